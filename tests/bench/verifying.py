"""How long it takes to verify a whole ledger, and in how much memory.

    make bench-verify    or    .venv/bin/python tests/bench/verifying.py [--entries N] [--rounds N]

A real Postgres holds calls of eight entries each, made by SQL and then given their places and signatures by callrec's
own sequencer. An anchor and the leaves beside it are written every 12,000 entries, which is a minute of 25 calls a
second. `callrec verify --ledger` then reads all of it, as a command of its own. It does so twice and with a tenth of
the entries too: memory may not grow with them.

It fails, with exit status 1, if a verification does not find the ledger whole, takes more than 60 seconds for a
million, or a tenth of the entries takes much less memory. The machine's other work is shown beside the figures.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402 # patched first, as callrec itself is
import json  # noqa: E402
import os  # noqa: E402
import secrets  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from pathlib import Path  # noqa: E402
from urllib.parse import urlsplit  # noqa: E402

import psycopg  # noqa: E402
from load import busy  # noqa: E402

from callrec import log  # noqa: E402
from callrec.demo.installation import example, rewritten  # noqa: E402
from callrec.demo.stack import Stack  # noqa: E402
from callrec.ledger.archive import leaves_key, leaves_since  # noqa: E402
from callrec.ledger.checkpoint import object_key  # noqa: E402
from callrec.ledger.note import Signer  # noqa: E402
from callrec.ledger.sequencer import Sequencer  # noqa: E402
from callrec.store.db import Database, migrate  # noqa: E402
from callrec.store.reading import LedgerReading  # noqa: E402

_ORIGIN = "ledger.example.com/bench"
_LIMIT = 60e-6  # seconds an entry: a minute for a million
_ANCHOR = 12_000  # entries
_FLAT = 64 * 1024 * 1024  # bytes that a ten times larger ledger may take more
_CHUNK = 100_000
# Three kinds of body: a key, a notice, a basis, as machine.py notes them; every third entry has the longest.
_MAKE = """
INSERT INTO ledger (call_id, recording_id, ordinal, kind, body, node, at)
SELECT md5((n / 8)::text)::uuid, CASE WHEN n %% 8 > 3 THEN md5((-n / 8)::text)::uuid END, n %% 8,
       (ARRAY['key_pressed', 'notice_played', 'basis_established'])[1 + n %% 3],
       CASE n %% 3 WHEN 0 THEN jsonb_build_object('key', '1', 'meaning', 'granted', 'number', n)
       WHEN 1 THEN jsonb_build_object('notice', 'B', 'version', '2026-01', 'complete', true, 'seconds', n / 7.0,
           'text_sha256', encode(sha256(n::text::bytea), 'hex'), 'audio_sha256', encode(sha256('x'), 'hex'))
       ELSE jsonb_build_object('basis', 'consent', 'citation', 'privolitev po 6(1)(a), člen 147', 'decision', 'granted',
           'caller_commitment', encode(sha256(n::text::bytea), 'hex'), 'purposes',
           jsonb_build_array('service_quality.caller_satisfaction', 'complaint_handling')) END,
       'node-1', now() - interval '1 hour' + n * interval '1 ms'
  FROM generate_series(%s::bigint, %s::bigint) AS n
"""
# In a process between: a process knows only the most that any of its children took.
_MEASURED = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss, json.loads(done.stdout)]))
"""


class Bench:
    """A Postgres of its own, the ledger in it, and a directory of anchors."""

    def __init__(self, root: Path, ends: ExitStack) -> None:
        self._root = root
        stack = ends.enter_context(Stack(root / "stack", services=["postgres"], env={}))
        url = urlsplit(stack.postgres_url)
        migrate(stack.postgres_url, url.username, url.password or "")
        self._admin = ends.enter_context(psycopg.connect(stack.postgres_url, autocommit=True))
        self._password, self._signer = secrets.token_hex(8), Signer.generate(_ORIGIN)
        for role in ("api", "sweep"):
            self._admin.execute(f"ALTER ROLE callrec_{role} LOGIN PASSWORD '{self._password}'")
        plain = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
        self._database = Database(plain, "callrec_sweep", self._password)
        ends.enter_context(self._database)
        values = {
            "postgres": {"url": plain},
            "ledger": {"origin": _ORIGIN, "verifiers": [str(self._signer.verifier)]},
        }
        self._config = root / "callrec.toml"
        self._config.write_text(rewritten(example().read_text(encoding="utf-8"), values), encoding="utf-8")
        self._reading, self._anchored = LedgerReading(self._database), 0

    def grow(self, to: int) -> None:
        """Append, sequence, sign and anchor, up to so many entries."""
        sequencer = Sequencer(self._reading, [self._signer], _ORIGIN)
        begun = time.monotonic()
        for first in range(self._reading.size(), to, _CHUNK):
            self._admin.execute(_MAKE, (first, min(first + _CHUNK, to) - 1))
            while sequencer.step():
                if self._reading.size() >= self._anchored + _ANCHOR:
                    self._anchor()
            _say(f"{min(first + _CHUNK, to):,} entries after {time.monotonic() - begun:.0f} s")
        self._anchor()
        self._admin.execute("VACUUM ANALYZE ledger, ledger_leaf, ledger_node, ledger_checkpoint")

    def _anchor(self) -> None:
        note = self._reading.last_checkpoint()
        size = int(note.split(b"\n")[1])
        beside = leaves_since(self._anchored, size, self._reading.leaves)
        for key, content in ((object_key(1, size), note), (leaves_key(1, size), beside)):
            path = self._root / "anchors" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self._anchored = size

    def verify(self) -> dict:
        """One run of the command: what it said, seconds, CPU seconds, and peak memory in bytes."""
        env = dict(os.environ) | {"CALLREC_POSTGRES_PASSWORD_API": self._password, "CALLREC_CONFIG": str(self._config)}
        command = [sys.executable, "-m", "callrec", "verify", "--ledger", "--json", "--anchors", self._root / "anchors"]
        before, begun = busy(), time.monotonic()
        done = subprocess.run([sys.executable, "-c", _MEASURED, *command], env=env, capture_output=True, check=True)
        took = time.monotonic() - begun
        status, cpu, peak, said = json.loads(done.stdout)
        return {
            "holds": said["holds"] and status == 0,
            "entries": said["entries"],
            "anchors": said["anchors"],
            "seconds": took,
            "cpu": cpu,
            "cores": (busy() - before) / took,
            "peak": peak * 1024,
        }


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    log.setup("bench", "ERROR")
    runs = []
    with tempfile.TemporaryDirectory(prefix="callrec-bench-") as directory, ExitStack() as ends:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory), ends)
        for entries in (args.entries // 10, args.entries):
            bench.grow(entries)
            for _ in range(args.rounds):
                runs.append(run := bench.verify())
                _say(
                    f"{run['entries']:,} entries, {run['anchors']} anchors: {run['seconds']:.1f} s, "
                    f"{run['seconds'] / run['entries'] * 1e6:.1f} us each, {run['cpu']:.1f} s of CPU, "
                    f"peak {run['peak'] / 2**20:.0f} MiB, {run['cores']:.1f} cores busy: "
                    f"{'whole' if run['holds'] else 'NOT WHOLE'}"
                )
    large = [run for run in runs if run["entries"] == args.entries]
    missed = [f"not whole: {run}" for run in runs if not run["holds"]]
    if min(run["seconds"] / run["entries"] for run in large) > _LIMIT:
        missed.append("more than a minute for a million")
    if max(run["peak"] for run in large) > max(run["peak"] for run in runs if run not in large) + _FLAT:
        missed.append("memory grows with the entries")
    _say("\n".join(missed) or "all targets met")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
