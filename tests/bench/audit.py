"""How long the daily audit takes, and what it holds in memory: many recordings, each with its object and its entries.

    make bench-audit    or    .venv/bin/python tests/bench/audit.py [--recordings N]

A real Postgres (fsync on) holds calls, recordings, keys, callers and eight ledger entries a call, made by SQL. The
object store is a stand-in in this process that answers with pages of 1000 as S3 does: its time is in the figures, a
network's is not. Locks are looked at one by one on a real store; here each costs nothing, and their number is given.

It fails, with exit status 1, if something is found, or if memory grew by more than 64 MiB.
"""

import argparse
import json
import sys
import tempfile
import time
from bisect import bisect_right
from pathlib import Path

from gevent import monkey

monkey.patch_all()

import psycopg  # noqa: E402 # patched first, as callrec itself is
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from run import _NO_S3  # noqa: E402

from callrec import log  # noqa: E402
from callrec.demo.stack import Stack  # noqa: E402
from callrec.ledger.audit import Audit  # noqa: E402
from callrec.recording.exchange import Answer  # noqa: E402
from callrec.recording.spool import Spool  # noqa: E402
from callrec.store.audit import AuditRecords  # noqa: E402
from callrec.store.db import Database, migrate  # noqa: E402

_MIB = 1 << 20
_MOST_MEMORY = 64 * _MIB
_MAKE = """
WITH made AS (
    INSERT INTO call (call_id, node, channel, line, basis, state, arrived_at, ended_at)
    SELECT gen_random_uuid(), 'n', gen_random_uuid()::text, 'service', 'consent', 'ended', now(), now()
      FROM generate_series(1, %(count)s)
    RETURNING call_id, channel, gen_random_uuid() AS recording_id
), kept AS (
    INSERT INTO recording (recording_id, call_id, node, channel, line, basis, notice, notice_version, purposes,
                           lock_mode, prefix, state, authorised_at, started_at, stopped_at, retain_until,
                           retention_inputs, bucket, object_key, version_id, ciphertext_sha256, ciphertext_bytes,
                           stored_at)
    SELECT recording_id, call_id, 'n', channel, 'service', 'consent', 'B', '1', '{}', 'GOVERNANCE', 'consent',
           'stored', now(), now() + interval '1 second', now(), now() + interval '90 days', '{}', 'bench',
           'consent/2026/11/' || recording_id, 'v', '\\x00', 1000, now()
      FROM made
    RETURNING recording_id, call_id
), who AS (
    INSERT INTO caller SELECT call_id, uuid_send(call_id), '\\x00', '\\x00' FROM kept
), keys AS (
    INSERT INTO recording_key (recording_id, sealed, key_id) SELECT recording_id, '\\x00', 'k' FROM kept
)
INSERT INTO ledger (call_id, recording_id, ordinal, kind, body, node, at)
SELECT call_id, CASE WHEN ordinal IS NULL THEN recording_id END, ordinal, kind, '{}', 'n', now()
  FROM kept, (VALUES (1, 'call_arrived'), (2, 'notice_started'), (3, 'notice_completed'), (4, 'key_pressed'),
                     (5, 'basis_established'), (6, 'recording_started'), (7, 'recording_stopped'),
                     (NULL, 'recording_stored')) AS notes (ordinal, kind)
"""


class Shelf:
    """An object store that lists what it is given, and holds every lock as it should."""

    bucket = "bench"

    def __init__(self, rows):
        self._until = dict(rows)
        self._keys = sorted(self._until)
        self.exchange, self.looks = self, 0

    def ask(self, _method, _key, *, query):
        at = bisect_right(self._keys, query["key-marker"])
        some = self._keys[at : at + 1000]
        listed = "".join(
            f"<Version><Key>{key}</Key><VersionId>v</VersionId><IsLatest>true</IsLatest><ETag>&quot;0&quot;</ETag>"
            f"<LastModified>2026-11-22T06:00:00.000Z</LastModified><Size>1000</Size></Version>"
            for key in some
        )
        more = str(at + 1000 < len(self._keys)).lower()
        page = f"<R><IsTruncated>{more}</IsTruncated><NextVersionIdMarker>v</NextVersionIdMarker>{listed}</R>"
        return Answer(200, "", {}, page.encode())

    def locks_of(self, key, _version):
        self.looks += 1
        return "GOVERNANCE", self._until[key], False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=100_000, help="each with its call and eight entries (100000)")
    count = parser.parse_args().recordings
    log.setup("bench", "ERROR")
    out = Console(width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory(prefix="callrec-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)  # Postgres is another user
        with Stack(Path(name) / "stack", services=["postgres"], env=_NO_S3) as stack:
            findings, grown = _measured(stack.postgres_url, Path(name) / "spool", count, out)
    return int(bool(findings) or grown > _MOST_MEMORY)


def _measured(url, spool, count, out):
    with psycopg.connect(url, autocommit=True) as admin:
        user, password = admin.info.user, admin.info.password
        migrate(url, user, password)
        admin.execute(_MAKE, {"count": count})
        admin.execute("ANALYZE")
        admin.execute("CHECKPOINT")
        shelf = Shelf(admin.execute("SELECT object_key, retain_until FROM recording").fetchall())
    directory = Spool(spool, 1, 1 << 40)
    directory.prepare()
    with Database(url, user, password) as database:
        records, took, last = AuditRecords(database, node="n"), {}, [time.monotonic()]
        assert database.alive(10.0)

        def say(counts):
            now = time.monotonic()
            stage = list(counts)[-1]
            took[stage] = took.get(stage, 0.0) + now - last[0]
            last[0] = now

        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets VmHWM
        memory, cpu = _memory("VmRSS"), time.process_time()
        last[0] = began = time.monotonic()
        Audit(records, shelf, directory).now(full=False, say=say)
        whole, cpu, grown = time.monotonic() - began, time.process_time() - cpu, _memory("VmHWM") - memory
        entry = database.run("audit_open", {"limit": 10})
    with psycopg.connect(url) as admin:
        counts = admin.execute("SELECT body FROM ledger WHERE body->>'of' = 'stores'").fetchone()[0]
    table = Table(title="One audit", title_justify="left")
    for column in ("", "looked at", "took", "each"):
        table.add_column(column, justify="right")
    for stage in ("calls", "entries", "objects"):
        each = 1e6 * took[stage] / max(1, counts[stage])
        table.add_row(stage, f"{counts[stage]:,}", f"{took[stage]:.1f} s", f"{each:.0f} us")
    table.add_row("all", "", f"{whole:.1f} s", "")
    table.caption = f"{cpu:.1f} s of CPU here; {shelf.looks:,} locks to look at; memory grew by {grown / _MIB:.0f} MiB"
    out.print(table)
    if entry:
        out.print(json.dumps(entry, default=str))
    return entry, grown


def _memory(what):
    """Bytes: VmRSS now, or VmHWM, the most since that was forgotten."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


if __name__ == "__main__":
    sys.exit(main())
