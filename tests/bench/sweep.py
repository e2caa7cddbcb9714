"""What the sweep costs, and whether a caller notices: many recordings, some have expired, and calls come in meanwhile.

    make bench-sweep    or    .venv/bin/python tests/bench/sweep.py [--recordings N] [--expired N ...] [--calls N]

A real Postgres (fsync on) and Redis hold the recordings, made by SQL. First calls are placed alone, by the simulated
switch to `callrec listen`; then the sweep, in a process of its own, erases what has expired, and calls are placed
meanwhile at the same rate. It erases the smallest number a second time at the end, so that a machine that got slower
is not taken for a cost that grows. Its object store is a stand-in in memory: what a real one adds is seen with a few
recordings on Ceph RGW (--real).

It fails, with exit status 1, if one of the largest number costs more than 1.25 of one of the smallest, if a call was
not released and recorded, or if one had to wait for 250 ms, which is what callrec waits for Postgres at most, for
`connect` or from its key to `uuid_record`. All times of calls are taken by the switch, so its own delays are in them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from load import Outcome, Switch, busy, cpu
from rich.console import Console
from rich.table import Table
from run import _NO_S3, _NOISE, Side, _percentiles

from callrec import log
from callrec.demo.installation import Installation
from callrec.demo.process import free_port
from callrec.demo.stack import Stack
from callrec.recording.facts import object_name
from callrec.recording.objects import S3Objects

_LINE, _PASSWORD = "040404040", "bench"
_PROMPT = 0.25  # seconds: the key is pressed soon, so that nearly all of a call falls into a short sweep, too
_QUIET = 10.0  # seconds of calls without a sweep
_LIMIT = 0.25  # seconds that a caller may wait: what callrec waits for Postgres
_FLAT = 1.25  # the cost of one of many, compared with one of few
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
           'stored', arrived_at, arrived_at, arrived_at, %(until)s, '{}', NULL, NULL, 'v', '\\x00', arrived_at
      FROM made
    RETURNING recording_id, call_id
), who AS (
    INSERT INTO caller SELECT call_id, uuid_send(call_id), '\\x00', '\\x00' FROM kept
)
INSERT INTO recording_key (recording_id, sealed, key_id) SELECT recording_id, '\\x00', 'k' FROM kept
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One sweep (none of `cost` when calls were placed alone), and the calls that came meanwhile."""

    recordings: int
    cost: dict | None  # as erasing.py gives it
    calls: list[Outcome]
    unrecorded: dict[str, int]  # calls, by the reason that callrec's own metric gives
    others: float  # cores that programs which are not the bench's kept busy meanwhile

    @property
    def each(self) -> float:
        """Seconds for one recording."""
        return self.cost["took"] / self.cost["expired"]

    @property
    def cpu_each(self) -> float:
        return self.cost["cpu"] / self.cost["expired"]

    @property
    def lost(self) -> int:
        return sum(not call.good for call in self.calls)

    @property
    def longest(self) -> float:
        """Seconds that any call had to wait; infinite when one never came that far."""
        return max(float("inf") if t is None else t for call in self.calls for t in (call.connect, call.start))


class Bench:
    """Stores, `callrec listen`, the switch that calls it, and the recordings; `root` holds them all."""

    def __init__(self, root: Path, ends: ExitStack, *, rate: float, real: bool) -> None:
        self._rate = rate
        prompts = root / "prompts"
        prompts.mkdir()
        for name in ("notice-a", "notice-b", "ask-b"):
            with wave.open(str(prompts / f"{name}.wav"), "wb") as sound:
                sound.setparams((1, 2, 8000, 0, "NONE", ""))
                sound.writeframes(bytes(round(_PROMPT * 8000) * 2))
        self._stack = ends.enter_context(Stack(root / "stack", env={} if real else _NO_S3))
        event_socket = ("127.0.0.1", free_port())
        self._callrec = Installation(
            root / "callrec", self._stack, event_socket=event_socket, password=_PASSWORD, prompts=prompts, role="listen"
        )
        self._callrec.prepare()
        self._switch = Switch(self._callrec.listen, event_socket, _PASSWORD)
        ends.callback(self._switch.stop)
        ends.callback(self._callrec.stop)
        self._callrec.start()
        page = self._callrec.url("/metrics")
        self._side = Side("callrec", self._callrec.pid, self._switch, tuple(self._stack.pids().values()), page)
        self._admin = ends.enter_context(psycopg.connect(self._stack.postgres_url, autocommit=True))

    def fill(self, count: int, until: timedelta) -> None:
        """Make recordings whose retention ends in `until`."""
        about = {"node": self._callrec.config.node, "count": count, "until": datetime.now(UTC) + until}
        self._admin.execute(_MAKE, about)
        self._admin.execute("ANALYZE")
        self._admin.execute("CHECKPOINT")  # writing down what was made here is no work of the sweep

    def put_expired(self) -> dict[str, str]:
        """Give what has expired an object each, in a new bucket; where that is."""
        s3 = self._stack.s3
        at = {"endpoint": s3.endpoint, "region": s3.region, "bucket": "bench", "access_key": s3.access_key,
              "secret_key": s3.secret_key}  # fmt: skip
        objects = S3Objects(**at)
        objects.create_bucket(None)
        for prefix, started, recording in self._admin.execute(
            "SELECT prefix, started_at, recording_id FROM recording WHERE state = 'stored' AND retain_until < now()"
        ).fetchall():
            assert objects.exchange.ask("PUT", object_name(prefix, started, recording), body=b"sealed").accepted
        objects.close()
        return at

    def quiet(self) -> Run:
        """Calls alone."""
        end = time.monotonic() + _QUIET
        return self._measured(None, lambda: time.monotonic() < end)

    def sweep(self, expired: int, s3: dict[str, str] | None = None) -> Run:
        """Erase all that have expired, `expired` of them, while calls come in."""
        environment = self._callrec.env | ({"BENCH_S3": json.dumps(s3)} if s3 else {})
        with subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("erasing.py")), str(expired)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        ) as process:  # fmt: skip
            try:
                if process.stdout.readline() != "ready\n":
                    raise SystemExit("bench: the sweep did not start")
                return self._measured(process, lambda: process.poll() is None)
            finally:
                process.kill()

    def _measured(self, sweep: subprocess.Popen | None, going: Callable[[], bool]) -> Run:
        recordings = self._count("state = 'stored'")
        ours = os.getpid(), self._callrec.pid, self._switch.pid, *self._stack.pids().values()
        before = self._side.metric("callrec_unrecorded_total")
        others, began, waves = busy() - cpu(*ours), time.monotonic(), []
        if sweep:
            sweep.stdin.write("\n")
            sweep.stdin.flush()
        while going():
            waves.append(self._switch.place(self._rate, 1, _LINE, talk=1.0))
            time.sleep(max(0.0, began + len(waves) / self._rate - time.monotonic()))
        others = (busy() - cpu(*ours) - others) / (time.monotonic() - began)
        for each in waves:
            self._switch.settle(each, 20.0)
        after = self._side.metric("callrec_unrecorded_total")
        unrecorded = {why: int(n - before.get(why, 0)) for why, n in after.items() if n > before.get(why, 0)}
        # A call that never ended is none of the outcomes, and lost all the same.
        calls = [call for each in waves for call in each.outcomes or [Outcome(None, None, False, False)]]
        if not sweep:
            return Run(recordings, None, calls, unrecorded, others)
        if sweep.wait() != 0:
            raise SystemExit("bench: the sweep failed")
        cost = json.loads(sweep.stdout.read())
        left = self._count("state = 'stored' AND retain_until < now()")
        assert left == 0, f"{left} of {cost['expired']} were not erased"
        return Run(recordings, cost, calls, unrecorded, others)

    def _count(self, what: str) -> int:
        return self._admin.execute(f"SELECT count(*) FROM recording WHERE {what}").fetchone()[0]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


def _costs(runs: list[Run], few: list[Run], many: Run, real: Run | None) -> Table:
    table = Table(title="The sweep", title_justify="left")
    for column in (
        "recordings", "expired", "storage", "found in", "erased in", "each", "CPU each", "memory", "hub held"
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "storage" else "right")
    for run in [*runs, *([real] if real else [])]:
        cost = run.cost
        table.add_row(
            f"{run.recordings:,}", f"{cost['expired']:,}", "Ceph RGW" if run is real else "stand-in",
            f"{cost['found']:.2f} s", f"{cost['took']:.1f} s", _ms(run.each), _ms(run.cpu_each),
            f"{_mib(cost['memory_before'])} -> {_mib(cost['memory'])}", _ms(cost["hub_held"]),
        )  # fmt: skip
    if many not in few:
        flat = _ratio(few, many, lambda run: run.each)
        table.add_section()
        table.add_row(
            "", "", "many / few", "", "", f"{flat:.2f}", f"{_ratio(few, many, lambda run: run.cpu_each):.2f}", "",
            f"[green]flat[/], below {_FLAT}" if flat <= _FLAT else f"[red]not flat[/], above {_FLAT}",
        )  # fmt: skip
    others = max(run.others for run in [*runs, *([real] if real else [])])
    if others > _NOISE:
        table.caption = f"Other programs kept up to {others:.1f} of {os.cpu_count()} cores busy: too noisy to judge by."
    return table


def _ratio(few: list[Run], many: Run, cost: Callable[[Run], float]) -> float:
    return cost(many) / (sum(map(cost, few)) / len(few))


def _calls(quiet: Run, runs: list[Run]) -> Table:
    table = Table(title="Calls meanwhile", title_justify="left")
    for column in ("", "calls", "recorded", "connect p50", "p99", "key to uuid_record p50", "p99", "longest wait", ""):
        table.add_column(column, justify="right")
    for run in [quiet, *runs]:
        figures = [
            *_percentiles(run.calls, lambda call: call.connect), *_percentiles(run.calls, lambda call: call.start)
        ]  # fmt: skip
        why = ", ".join(f"{reason} {n}" for reason, n in run.unrecorded.items())
        verdict = "[green]none delayed[/]" if _undelayed(run) else f"[red]delayed or lost[/] {why}"
        table.add_row(
            f"{run.cost['expired']:,} erased" if run.cost else "no sweep", str(len(run.calls)),
            str(len(run.calls) - run.lost), *map(_ms, figures), _ms(run.longest), verdict,
        )  # fmt: skip
    return table


def _undelayed(run: Run) -> bool:
    return not run.lost and run.longest < _LIMIT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=100_000, help="of which the largest number expires (100000)")
    parser.add_argument(
        "--expired",
        type=int,
        nargs="+",
        default=[1000, 10_000],
        metavar="N",
        help="erased one after the other (1000 10000)",
    )
    parser.add_argument("--calls", type=float, default=10.0, metavar="N", help="calls a second, with and without (10)")
    parser.add_argument(
        "--real", type=int, default=200, metavar="N", help="recordings on a real Ceph RGW (200; 0: none)"
    )
    options = parser.parse_args()
    few, many = min(options.expired), max(options.expired)
    if few < 1 or many > options.recordings or options.calls <= 0:
        parser.error("at least one must expire, no more than there are, and calls must be placed")
    log.setup("bench", "ERROR")
    console = Console(stderr=True)
    begun, runs, real = time.monotonic(), [], None

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:6.1f} s[/]  {text}", highlight=False)

    with (
        tempfile.TemporaryDirectory(prefix="callrec-bench-", ignore_cleanup_errors=True) as name,
        ExitStack() as ends,
    ):
        Path(name).chmod(0o755)  # Postgres is another user
        say("booting the stores and callrec listen")
        bench = Bench(Path(name), ends, rate=options.calls, real=bool(options.real))
        say(f"making {options.recordings - many:,} recordings that stay")
        bench.fill(options.recordings - many, timedelta(days=30))
        say(f"placing {options.calls:g} calls a second, without a sweep")
        quiet = bench.quiet()
        for expired in [*sorted(options.expired), *([few] if many > few else [])]:
            bench.fill(expired, -timedelta(minutes=1))
            say(f"erasing {expired:,}, and placing {options.calls:g} calls a second")
            runs.append(bench.sweep(expired))
        if options.real:
            bench.fill(options.real, -timedelta(minutes=1))
            at = bench.put_expired()
            say(f"erasing {options.real:,} on Ceph RGW, and placing {options.calls:g} calls a second")
            real = bench.sweep(options.real, at)
    least = [run for run in runs if run.cost["expired"] == few]
    most = next(run for run in runs if run.cost["expired"] == many)
    out = Console(width=None if sys.stdout.isatty() else 150)
    out.print(_costs(runs, least, most, real))
    every = [*runs, *([real] if real else [])]
    out.print(_calls(quiet, every))
    return 0 if _ratio(least, most, lambda run: run.each) <= _FLAT and all(map(_undelayed, [quiet, *every])) else 1


if __name__ == "__main__":
    sys.exit(main())
