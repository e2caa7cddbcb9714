"""What the sweep costs: many recordings, of which some have reached their date.

    .venv/bin/python tests/bench/sweep.py [--recordings 100000] [--expired 1000 10000] [--real 200]

Postgres is real (fsync on), and so is the spool; rows are made by SQL. The object store and Redis are stand-ins in
memory, so the figures are callrec's own work and Postgres': the store's requests come on top of them. What those take
is measured with a few recordings on a real Ceph RGW (--real), whose objects are put by SQL's own names.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402 # patched first, as callrec itself is
import resource  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from datetime import UTC, datetime, timedelta  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
import psycopg  # noqa: E402

from callrec import log  # noqa: E402
from callrec.demo.stack import Stack  # noqa: E402
from callrec.recording.exchange import Answer  # noqa: E402
from callrec.recording.facts import object_name  # noqa: E402
from callrec.recording.objects import S3Objects, Version  # noqa: E402
from callrec.recording.spool import Spool  # noqa: E402
from callrec.rights.disposition import Patience, Unsaid  # noqa: E402
from callrec.rights.erasure import Eraser  # noqa: E402
from callrec.rights.sweeper import Sweeper  # noqa: E402
from callrec.store import db  # noqa: E402
from callrec.store.rights import RightsRecords  # noqa: E402

_NODE = "bench"
_MAKE = """
WITH made AS (
    INSERT INTO call (call_id, node, channel, line, basis, state, arrived_at)
    SELECT gen_random_uuid(), %(node)s, gen_random_uuid()::text, 'service', 'consent', 'ended',
           now() - interval '90 days'
      FROM generate_series(1, %(count)s)
    RETURNING call_id, channel, arrived_at
), kept AS (
    INSERT INTO recording (recording_id, call_id, node, channel, line, basis, notice, notice_version, purposes,
                           lock_mode, prefix, state, authorised_at, started_at, stopped_at, retain_until,
                           retention_inputs, bucket, object_key, version_id, ciphertext_sha256, stored_at)
    SELECT gen_random_uuid(), call_id, %(node)s, channel, 'service', 'consent', 'B', '1', '{}', 'GOVERNANCE', 'consent',
           'stored', arrived_at, arrived_at, arrived_at, %(until)s, '{}', 'b', NULL, 'v', '\\x00', arrived_at
      FROM made
    RETURNING recording_id, call_id
), who AS (
    INSERT INTO caller SELECT call_id, uuid_send(call_id), '\\x00', '\\x00' FROM kept
)
INSERT INTO recording_key (recording_id, sealed, key_id) SELECT recording_id, '\\x00', 'k' FROM kept
"""


class Shelf:
    """An object store in memory: each recording has one version until that is deleted."""

    def __init__(self):
        self.deleted = set()
        self.exchange = self

    def ask(self, *_args, **_options):
        return Answer(200, "", {}, b"")

    def versions(self, prefix):
        if prefix.startswith("segments/") or prefix in self.deleted:
            return []
        return [Version(prefix, "v", False, 1, None)]

    def lock_of(self, _key, _version):
        return "GOVERNANCE", None

    def delete_version(self, key, _version, *, bypass_governance):
        assert bypass_governance
        self.deleted.add(key)


class Nobody:
    """A Redis without any call."""

    def get(self, _channel):
        return {}

    def forget(self, _channel):
        pass


def run(stack, recordings, expired, *, directory, say, real=False):
    at = psycopg.conninfo.conninfo_to_dict(stack.postgres_url)
    db.migrate(f"postgresql://{at['host']}:{at['port']}/{at['dbname']}", at["user"], at.get("password") or "")
    past, future = datetime.now(UTC) - timedelta(minutes=1), datetime.now(UTC) + timedelta(days=3)
    with psycopg.connect(stack.postgres_url, autocommit=True) as admin, ExitStack() as ends:
        admin.execute("TRUNCATE call, caller, recording, recording_key, erasure, hold, revocation_recording,"
                      " disposition, escalation, revocation")  # fmt: skip
        for count, until in ((expired, past), (recordings - expired, future)):
            admin.execute(_MAKE, {"node": _NODE, "count": count, "until": until})
        admin.execute("ANALYZE")
        objects = Shelf()
        if real:
            s3 = stack.s3
            objects = S3Objects(
                endpoint=s3.endpoint, region=s3.region, bucket=f"bench-{time.time_ns()}", access_key=s3.access_key,
                secret_key=s3.secret_key,
            )  # fmt: skip
            ends.callback(objects.close)
            objects.create_bucket(None)
            for prefix, started, recording in admin.execute(
                "SELECT prefix, started_at, recording_id FROM recording WHERE retain_until < now()"
            ).fetchall():
                assert objects.exchange.ask("PUT", object_name(prefix, started, recording), body=b"sealed").accepted
        database = db.Database(stack.postgres_url, at["user"], at.get("password") or "", size=4)
        ends.enter_context(database)
        spool = Spool(directory, 1, 1 << 40)
        spool.prepare()
        records = RightsRecords(database, node=_NODE)
        eraser = Eraser(records, objects, spool, Nobody(), lambda *_: None)
        hours = timedelta(hours=24)
        sweeper = Sweeper(records, eraser, objects, {}, Patience(hours, hours, Unsaid.ERASE))
        gaps = [0.0]

        def tick():
            while True:
                begun = time.monotonic()
                gevent.sleep(0.005)
                gaps.append(time.monotonic() - begun)

        ticker = gevent.spawn(tick)
        before, began, cpu = _memory(), time.monotonic(), time.process_time()
        while sweeper.expire():
            pass
        found = time.monotonic() - began
        gevent.joinall([gevent.spawn(_until_none, eraser) for _ in range(2)], raise_error=True)
        took, worked = time.monotonic() - began, time.process_time() - cpu
        ticker.kill()
        done = admin.execute("SELECT count(*) FROM recording WHERE state = 'erased'").fetchone()[0]
        assert done == expired, f"{done} of {expired} erased"
        say(
            f"{recordings:>7} recordings, {expired:>6} expired, {'Ceph RGW' if real else 'stand-in':<9}: found in"
            f" {found:.2f} s, erased in {took:.1f} s, {1000 * took / expired:.2f} ms each"
            f" ({1000 * worked / expired:.2f} ms CPU), memory {before:.0f} -> {_memory():.0f} MiB,"
            f" hub held {1000 * max(gaps):.0f} ms at most"
        )


def _until_none(eraser):
    while eraser.erase_next():
        pass


def _memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recordings", type=int, default=100_000)
    parser.add_argument("--expired", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--real", type=int, default=200, help="recordings on a real Ceph RGW; 0: none")
    args = parser.parse_args()
    log.setup("sweep", "ERROR")
    directory = Path(tempfile.mkdtemp(prefix="callrec-bench-"))
    directory.chmod(0o711)

    def say(text):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    try:
        services = ["postgres", "s3"] if args.real else ["postgres"]
        with Stack(directory / "stack", services=services, env={}) as stack:
            for expired in args.expired:
                run(stack, args.recordings, expired, directory=directory / "spool", say=say)
            if args.real:
                run(stack, args.real, args.real, directory=directory / "spool", say=say, real=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
