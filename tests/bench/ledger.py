"""What the ledger costs those who append to it, how far behind its checkpoint is, and how long a proof takes.

    make bench-ledger    or    .venv/bin/python tests/bench/ledger.py [--pgbench] [--rounds N] [--seconds N]

Two hundred appenders on as many connections, one INSERT a transaction, fsync on: in turn into the ledger, with the
sequencer at work, and the same rows into a plain table with the same columns and a primary key, and nothing else. They
append as callrec does (appending.py, four processes). With --pgbench they are Postgres' own, which take next to none
of the processor, so that all of it goes to what is compared: the hardest client there can be, and no appender of ours.

The lag is that of each entry: from when Postgres took it until a checkpoint that covers it was signed. A proof of one
among a million is what the evidence of an entry takes: its leaf, the hashes beside it, and the test against the root.

It fails, with exit status 1, if a target is missed.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402 # patched first, as callrec itself is
import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import secrets  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from pathlib import Path  # noqa: E402
from urllib.parse import urlsplit  # noqa: E402

import psycopg  # noqa: E402
from appending import APPENDERS  # noqa: E402
from load import busy, cpu  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from callrec import log  # noqa: E402
from callrec.demo.process import program  # noqa: E402
from callrec.demo.stack import Stack  # noqa: E402
from callrec.ledger import tree  # noqa: E402
from callrec.ledger.tree import Frontier  # noqa: E402
from callrec.store.db import Database, migrate  # noqa: E402
from callrec.store.tree import TreeRecords  # noqa: E402

_APPENDERS = 200
_THROUGHPUT = 0.8  # at least, of the plain table's
_LATENCY = 1.5  # at most, of the plain table's p99
_LAG = 1.0  # seconds at most
_PROOF = 0.010  # seconds at most
_NOISE = 0.2  # cores busy with something else, from which on no figure says much
# Calls of seven entries, as they are noted, each entry a transaction. A client's calls follow each other.
_SCRIPT = """\
\\set n :n + 1
\\set call :n / 7
\\set ordinal :n % 7
\\if :ordinal = 6
{basis}
\\elif :ordinal % 3 = 0
{notice}
\\else
{key}
\\endif
"""
_INSERT = (
    "INSERT INTO {table} (call_id, recording_id, ordinal, kind, body, node, at)"
    " VALUES (md5({round} || '/' || :client_id || '/' || :call)::uuid, NULL, :ordinal, '{kind}', '{body}', 'node-1',"
    " now());"
)
_BODIES = {
    "key": ("key_pressed", '{"key": "1", "meaning": "granted"}'),
    "notice": (
        "notice_played",
        '{"notice": "B", "version": "2026-01", "from": "2026-11-22T03:07:40.123456+00:00", "to":'
        ' "2026-11-22T03:07:58.123456+00:00", "complete": true, "text_sha256": "' + "4" * 64 + '", "audio_sha256": "'
        + "6" * 64 + '"}',
    ),
    "basis": (
        "basis_established",
        '{"basis": "consent", "citation": "privolitev", "decision": "granted", "caller_commitment": "' + "c" * 64
        + '", "recording": "5e2b86a1-55c7-44f8-9d6e-2f7d1cb1b8f6", "purposes":'
        ' ["service_quality.caller_satisfaction", "service_quality.information_accuracy"]}',
    ),
}  # fmt: skip
_PLAIN = """
CREATE TABLE plain (
    entry_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, call_id uuid, recording_id uuid, ordinal integer,
    kind text NOT NULL, body jsonb NOT NULL, node text NOT NULL, at timestamptz NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT INSERT ON plain TO callrec_listen;
"""
_LAGS = """
SELECT extract(epoch FROM c.signed_at - e.noted_at)::float
  FROM ledger e JOIN ledger_leaf l USING (entry_id)
       CROSS JOIN LATERAL (SELECT signed_at FROM ledger_checkpoint WHERE size > l.leaf_index ORDER BY size LIMIT 1) c
 WHERE e.noted_at >= %s
 ORDER BY 1
"""


@dataclass(slots=True)
class Side:
    """One of the two tables. Times in seconds."""

    table: str
    latencies: list[float] = field(default_factory=list)
    took: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.took

    @property
    def p99(self) -> float:
        return _percentile(sorted(self.latencies), 0.99)


def _percentile(values: list[float], share: float) -> float:
    return values[min(len(values), math.ceil(share * len(values))) - 1] if values else math.nan


class Bench:
    """A Postgres of its own with both tables, and the sequencer, which stands still while the plain table is tried."""

    def __init__(self, root: Path, ends: ExitStack, *, pgbench: bool = False) -> None:
        self._root = root
        self._pgbench = pgbench
        self._stack = ends.enter_context(Stack(root / "stack", services=["postgres"], env={}))
        self._url = self._stack.postgres_url
        at = urlsplit(self._url)
        migrate(self._url, at.username, at.password)
        self._admin = ends.enter_context(psycopg.connect(self._url, autocommit=True))
        self._admin.execute(_PLAIN)
        self._logins = {role: secrets.token_hex(8) for role in ("listen", "sweep")}
        for role, password in self._logins.items():
            self._admin.execute(f"CREATE ROLE bench_{role} LOGIN PASSWORD '{password}' IN ROLE callrec_{role}")
        login = {"BENCH_POSTGRES": self._url, "BENCH_LOGIN": f"bench_sweep:{self._logins['sweep']}"}
        self._sequencer = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("sequencing.py"))], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=os.environ | login,
        )  # fmt: skip
        ends.callback(self._sequencer.kill)
        if self._sequencer.stdout.readline() != "ready\n":
            raise SystemExit("bench: the sequencer did not start")
        self._rounds = 0
        self.others = 0.0  # cores that programs which are not the bench's kept busy, at most

    def _turn(self) -> None:
        """Have the sequencer work, or rest."""
        self._sequencer.stdin.write("\n")
        self._sequencer.stdin.flush()

    def append(self, side: Side, seconds: int) -> float:
        """Two hundred appenders for so long. Gives entries a second."""
        self._admin.execute("CHECKPOINT")  # what the other table wrote is no work of this one's
        self._rounds += 1
        if side.table == "ledger":
            self._turn()
        ours = os.getpid(), self._sequencer.pid, *self._stack.pids().values()
        began, others = time.monotonic(), busy() - cpu(*ours)
        latencies = self._by_pgbench(side.table, seconds) if self._pgbench else self._by_callrec(side.table, seconds)
        others = (busy() - cpu(*ours) - others) / (time.monotonic() - began)
        self.others = max(self.others, others)
        if side.table == "ledger":
            self._drain()
            self._turn()
        side.latencies += latencies
        side.took += seconds
        return len(latencies) / seconds

    def _by_callrec(self, table: str, seconds: int) -> list[float]:
        login = {"BENCH_POSTGRES": self._url, "BENCH_APPENDER": f"bench_listen:{self._logins['listen']}"}
        processes = [
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("appending.py")), table, str(seconds)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | login,
            )
            for _ in range(_APPENDERS // APPENDERS)
        ]  # fmt: skip
        for process in processes:
            if process.stdout.readline() != "ready\n":
                raise SystemExit("bench: the appenders did not start")
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return [took for process in processes for took in json.loads(process.communicate()[0])]

    def _by_pgbench(self, table: str, seconds: int) -> list[float]:
        for old in self._root.glob("log.*"):
            old.unlink()
        entries = {
            name: _INSERT.format(table=table, round=self._rounds, kind=kind, body=body)
            for name, (kind, body) in _BODIES.items()
        }
        (self._root / "script.sql").write_text(_SCRIPT.format(**entries))
        url = urlsplit(self._url)
        done = subprocess.run(
            [str(Path(program("initdb")).resolve().with_name("pgbench")), "--no-vacuum", "--protocol=prepared", "--log",
             f"--log-prefix={self._root}/log", f"--client={_APPENDERS}", "--jobs=2", f"--time={seconds}",
             "--define=n=0", f"--file={self._root}/script.sql", "-h", url.hostname, "-p", str(url.port),
             "-U", "bench_listen", url.path[1:]],
            env=os.environ | {"PGPASSWORD": self._logins["listen"]}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"bench: {done.stderr}")
        lines = (line for path in self._root.glob("log.*") for line in path.read_text().splitlines())
        return [int(line.split()[2]) / 1e6 for line in lines]

    def _drain(self) -> None:
        deadline = time.monotonic() + 60
        while self._admin.execute(
            "SELECT (SELECT max(size) FROM ledger_checkpoint) IS DISTINCT FROM (SELECT count(*) FROM ledger)"
        ).fetchone()[0]:
            if time.monotonic() > deadline:
                raise SystemExit("bench: the sequencer is more than a minute behind")
            time.sleep(0.1)

    def analyse(self) -> None:
        """What autovacuum does within a minute."""
        self._admin.execute("ANALYZE")
        self._since = self._admin.execute("SELECT clock_timestamp()").fetchone()[0]

    def lags(self) -> list[float]:
        """Of every entry since `analyse`, in seconds, the shortest first."""
        return [lag for (lag,) in self._admin.execute(_LAGS, (self._since,))]

    def proofs(self, leaves: int, tries: int = 300) -> list[float]:
        """Seconds that each of some proofs took, the shortest first, in a tree grown to `leaves`."""
        self._sequencer.kill()
        self._admin.execute("ALTER TABLE ledger_leaf DISABLE TRIGGER USER")
        self._admin.execute("ALTER TABLE ledger_node DISABLE TRIGGER USER")
        self._admin.execute("TRUNCATE ledger_leaf, ledger_node")
        frontier, base = Frontier(), os.urandom(28)
        full = frontier.append(base + number.to_bytes(4, "big") for number in range(leaves))
        hexed = base.hex() + base[:4].hex()
        with self._admin.cursor() as cursor:
            with cursor.copy("COPY ledger_leaf FROM STDIN") as copy:
                copy.write(
                    "".join(
                        f"{at.position}\t{at.position + 1}\t\\\\x{hexed}\t\\\\x{value.hex()}\n"
                        for at, value in full if not at.level
                    )
                )  # fmt: skip
            with cursor.copy("COPY ledger_node FROM STDIN") as copy:
                copy.write(
                    "".join(f"{at.level}\t{at.position}\t\\\\x{value.hex()}\n" for at, value in full if at.level)
                )
        self._admin.execute("ANALYZE ledger_leaf, ledger_node")
        root, took = frontier.root(), []
        with Database(self._url, "bench_sweep", self._logins["sweep"]) as store:
            records = TreeRecords(store)
            for _ in range(tries):
                entry = random.randint(1, leaves)
                began = time.monotonic()
                leaf = records.leaf(entry)
                proof = tree.inclusion_proof(leaf.leaf_index, leaves, records.read)
                tree.verify_inclusion(leaf.leaf_hash, leaf.leaf_index, leaves, proof, root)
                took.append(time.monotonic() - began)
        return sorted(took)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pgbench", action="store_true", help="appenders that take next to none of the processor")
    parser.add_argument("--rounds", type=int, default=4, help="of each table (4)")
    parser.add_argument("--seconds", type=int, default=5, help="for each round (5)")
    parser.add_argument("--leaves", type=int, default=1_000_000, help="of the tree in which proofs are made (1000000)")
    options = parser.parse_args()
    log.setup("bench", "ERROR")
    console = Console(stderr=True)
    begun = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:6.1f} s[/]  {text}", highlight=False)

    sides = plain, ledger = Side("plain"), Side("ledger")
    with (
        tempfile.TemporaryDirectory(prefix="callrec-bench-", ignore_cleanup_errors=True) as name,
        ExitStack() as running,
    ):
        Path(name).chmod(0o755)  # Postgres is another user
        bench = Bench(Path(name), running, pgbench=options.pgbench)
        for table in ("plain", "ledger"):  # an installation is warm, and Postgres knows how large its tables are
            bench.append(Side(table), 2)
        bench.analyse()
        for number in range(options.rounds):
            for side in sides[:: -1 if number % 2 else 1]:  # a noisy moment, or a warm one, meets both in turn
                say(f"{side.table:<7} {bench.append(side, options.seconds):8.0f} entries/s")
        lags = bench.lags()
        say(f"{len(lags)} entries in the tree; now one of {options.leaves}")
        proofs = bench.proofs(options.leaves)
    table, met = _table(plain, ledger, lags, proofs, options.leaves)
    if bench.others > _NOISE:
        table.caption = (
            f"Other programs kept up to {bench.others:.1f} of {os.cpu_count()} cores busy: too noisy to judge by."
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 0 if met else 1


def _table(plain: Side, ledger: Side, lags: list[float], proofs: list[float], leaves: int) -> tuple[Table, bool]:
    table = Table(title=f"{_APPENDERS} appenders at once on {os.cpu_count()} cores", title_justify="left")
    for column in ("", "ledger", "plain table", "ratio", "target", ""):
        table.add_column(column, justify="left" if column in ("", "target") else "right")
    verdicts = []

    def row(what: str, *shown: str, target: str = "", met: bool | None = None) -> None:
        verdicts.append(met is not False)
        table.add_row(what, *shown, target, "" if met is None else "[green]met[/]" if met else "[red]missed[/]")

    def ms(seconds: float) -> str:
        return f"{seconds * 1000:.1f} ms"

    def both(what: str, a: float, b: float, show: object, **judged: object) -> None:
        row(what, show(a), show(b), f"{a / b:.2f}", **judged)

    rate, late = ledger.rate / plain.rate, ledger.p99 / plain.p99
    both(
        "entries a second",
        ledger.rate,
        plain.rate,
        "{:.0f}".format,
        target=f"at least {_THROUGHPUT}",
        met=rate >= _THROUGHPUT,
    )
    both("append p50", *(_percentile(sorted(s.latencies), 0.5) for s in (ledger, plain)), ms)
    both("append p99", ledger.p99, plain.p99, ms, target=f"at most {_LATENCY}", met=late <= _LATENCY)
    row("checkpoint behind, p99", ms(_percentile(lags, 0.99)), "", "")
    row("checkpoint behind, most", ms(lags[-1]), "", "", target=f"{ms(_LAG)} at most", met=lags[-1] <= _LAG)
    row(f"proof of one among {leaves}, p50", ms(_percentile(proofs, 0.5)), "", "")
    row(
        "the same, p99",
        ms(_percentile(proofs, 0.99)),
        "",
        "",
        target=f"under {ms(_PROOF)}",
        met=_percentile(proofs, 0.99) < _PROOF,
    )
    return table, all(verdicts)


if __name__ == "__main__":
    sys.exit(main())
