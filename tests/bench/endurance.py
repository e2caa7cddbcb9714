"""Many long calls at once on one node, in real time, each streamed while it runs, and no S3 for a while in the middle.

    make endurance    or    .venv/bin/python tests/bench/endurance.py [--calls N] [--minutes N] [--outage SECONDS]

Real Postgres (fsync on), Redis and Ceph RGW (on disk), all roles of callrec, and the simulated switch in a process of
its own, which writes every recording as FreeSWITCH does, 50 times a second. Half of the calls are sales, half by
consent; segments go out at the shipped interval. All traffic with S3 goes through a relay (tests/chaos/network.py)
that swallows everything for the time of the outage, and counts what `ship` sends, attempts that fail included.

In the end every recording is opened and compared with the bytes that the switch wrote, and its lock and its basis are
looked at, as the failure matrix does it (tests/chaos/reading.py). It fails, with exit status 1, if

- a caller waited, or a recording is not stored once, locked, whole and on a basis that was durable before;
- the memory of `ship`, at any time from when the last call had its first segments to the end, was more than 1.25 times
  what it was then;
- the hub of `listen` was 20 ms late in 1 of 100 ticks while all calls were up;
- more than 2.1 times the size of the encrypted recordings was sent.
"""

import sys
from pathlib import Path

from gevent import monkey

monkey.patch_all()
sys.path.append(str(Path(__file__).parents[1] / "chaos"))

import argparse  # noqa: E402 # after the patch
import math  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import urllib.request  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402

from house import WAIT, House  # noqa: E402
from load import busy, cpu, resident  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from reading import Found, Reader, unsettled  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from run import _NOISE  # noqa: E402

from callrec import log  # noqa: E402

_RATE = 5.0  # calls placed a second
_NUMBER = "+38640123456"
_BYTES = 32_000  # of a second of a call
_INTERVAL = 10.0  # seconds between segments, as shipped
_CAUGHT_UP = 2.0  # seconds that the latest segment may be late when the gap is closed
_STARTS = 15.0  # seconds from the last call's arrival until it is recorded
_SETTLE = 900.0  # seconds from the last call's end until everything is stored and its segments are gone
_PATIENCE = WAIT + 0.25 + 1.25  # seconds that a caller may hear nothing
_FLAT, _LATE, _SENT = 1.25, 0.020, 2.1  # the targets
_MIB = 1 << 20


@dataclass(slots=True)
class Watch:
    """What is looked at once a second. Times are seconds of the monotonic clock, memory is in bytes."""

    memory: list[tuple[float, int]] = field(default_factory=list)  # of `ship`
    slowest_lag: float = 0.0  # seconds that a segment was late

    def most(self, begin: float, end: float) -> int:
        return max((size for at, size in self.memory if begin <= at <= end), default=0)


@dataclass(slots=True)
class Result:
    """What it came to. `memory`: of `ship` by the part of the run; `cores`: by process, while all calls were up."""

    found: Found
    memory: dict[str, int]
    lag: float  # seconds of the hub of `listen`, p99
    worst_lag: float
    cores: dict[str, float]
    others: float  # cores that other programs kept busy
    segments: int
    failed: int  # attempts to put one
    stream_lag: float  # seconds, at most
    caught_up: float | None  # seconds from the outage's end until the gap was closed
    sent: float  # times the encrypted size
    settled_in: float  # seconds from the end of the last call
    unsettled: str
    restarted: list[str]  # roles whose process is another one


class Endurance:
    """One run on `house`; `say` tells whoever waits."""

    def __init__(self, house: House, options: argparse.Namespace, say: Callable[[str], None]) -> None:
        self._house, self._options, self._say = house, options, say
        self._watch = Watch()
        self._pids = house.callrec.pids()
        self._calls = []
        self._told = 0.0

    def run(self) -> Result:
        talk, outage = self._options.minutes * 60, self._options.outage
        ends = time.monotonic() + talk  # of the first of them
        self._place(talk)
        self._sleep_until(lambda: all(call.recording for call in self._calls), _STARTS, "every call recorded")
        self._until(time.monotonic() + _INTERVAL + 2.0)
        warm, cores, late = time.monotonic(), self._cores(), self._ticks()
        self._until((warm + ends - outage) / 2)
        cut = time.monotonic()
        if outage:
            self._say(f"[yellow]S3 is cut off for {outage:g} s[/]")
            self._house.network.fault("cut", ["s3"], [])
            self._until(cut + outage)
            self._house.network.heal()
            self._say("S3 is back")
        healed = time.monotonic()
        caught_up = self._catch_up(healed, ends)
        self._until(ends)
        used, ticks = {name: now - cores[name] for name, now in self._cores().items()}, self._ticks()
        long, ticks = time.monotonic() - warm, {le: count - late[le] for le, count in ticks.items()}
        longest = len(self._calls) / _RATE + 2 * _STARTS
        self._sleep_until(lambda: all(call.over for call in self._calls), longest, "the end of every call")
        ended = time.monotonic()
        still = self._settle()
        done = time.monotonic()
        memory = {
            "warm": self._watch.most(warm - 2, warm), "before the outage": self._watch.most(warm, cut),
            "during it": self._watch.most(cut, healed), "after it": self._watch.most(healed, ended),
            "while the rest is stored": self._watch.most(ended, done),
        }  # fmt: skip
        sent = self._house.network.sent("s3") / max(1, self._stored_bytes())
        now = self._house.callrec.pids()
        return Result(
            found=self._read_back(), memory=memory, lag=_quantile(ticks, 0.99), worst_lag=_quantile(ticks, 1.0),
            cores={name: seconds / long for name, seconds in used.items() if name != "busy"},
            others=max(0.0, used["busy"] - sum(used[name] for name in used if name != "busy")) / long,
            segments=int(self._metric("callrec_segments_total", result="put")),
            failed=int(self._metric("callrec_segments_total", result="failed")), stream_lag=self._watch.slowest_lag,
            caught_up=caught_up, sent=sent, settled_in=done - ended, unsettled=still,
            restarted=[role for role, pid in self._pids.items() if now.get(role) != pid],
        )  # fmt: skip

    # The run

    def _place(self, talk: float) -> None:
        begun, count = time.monotonic(), self._options.calls
        self._say(f"placing {count} calls of {talk:g} s, {_RATE:g} a second")
        agree = ("after_prompt", 0.3, 1, "press", "1")
        for number in range(count):
            self._until(begun + number / _RATE)
            sale = number % 2 == 0
            script = {
                "dialled": "040404045" if sale else "040404040", "caller_number": _NUMBER,
                "talk": talk, "steps": () if sale else (agree,),
            }  # fmt: skip
            self._calls.append(self._house.switch.place("recording", script))

    def _until(self, moment: float) -> None:
        """Look once a second until then."""
        while (left := moment - time.monotonic()) > 0:
            if not self._watch.memory or time.monotonic() - self._watch.memory[-1][0] >= 1.0:
                self._look()
            time.sleep(max(0.0, min(left, 0.5)))

    def _sleep_until(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise SystemExit(f"endurance: waited {seconds:g} s for {what}")
            self._until(time.monotonic() + 0.5)

    def _look(self) -> None:
        now, pid = time.monotonic(), self._pids["ship"]
        try:
            size = resident(pid)
        except OSError:  # it has ended, which is found at the end
            return
        self._watch.memory.append((now, size))
        lag = self._metric("callrec_stream_lag_seconds")
        self._watch.slowest_lag = max(self._watch.slowest_lag, lag)
        if now - self._told >= 10.0:
            self._told = now
            up = sum(bool(call.recording) and call.at("recorded") is None for call in self._calls)
            put = self._metric("callrec_segments_total", result="put")
            uploads = self._metric("callrec_uploads_total", result="stored")
            self._say(
                f"{up} recorded now, {put:.0f} segments put, the latest {lag:.0f} s late, {uploads:.0f} recordings "
                f"stored, ship holds {size / _MIB:.0f} MiB"
            )

    def _catch_up(self, healed: float, ends: float) -> float | None:
        """Seconds from the outage's end until no stream is behind; None if that did not come to be."""
        while time.monotonic() < ends:
            if self._metric("callrec_stream_lag_seconds") < _CAUGHT_UP:
                return time.monotonic() - healed
            self._until(time.monotonic() + 0.5)
        return None

    def _settle(self) -> str:
        """What is still under way when patience ends; empty when nothing is."""
        end = time.monotonic() + _SETTLE
        self._say("the calls are over; the last recordings are stored, and segments removed")
        while still := unsettled(self._house) or self._remnants():
            if time.monotonic() > end:
                return still
            self._until(time.monotonic() + 1.0)
        return ""

    def _remnants(self) -> str:
        count = self._house.inspector.rows("SELECT count(*) FROM remnant")[0]["count"]
        return f"segments of {count} recordings" if count else ""

    # What is read

    def _metric(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self._samples(name, labels))

    def _ticks(self) -> dict[float, float]:
        """Ticks of the hub of `listen` that were late by no more than so many seconds."""
        found = self._samples("callrec_hub_lag_seconds_bucket", {"role": "listen"})
        return {float(labels["le"]): value for labels, value in found}

    def _samples(self, name: str, labels: dict[str, str]) -> list[tuple[dict[str, str], float]]:
        with urllib.request.urlopen(self._house.callrec.url("/metrics"), timeout=30) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return [
                (sample.labels, sample.value)
                for family in families for sample in family.samples
                if sample.name == name and labels.items() <= sample.labels.items()
            ]  # fmt: skip

    def _cores(self) -> dict[str, float]:
        """Seconds of CPU so far, by process; `busy`: all that the machine did."""
        house = self._house
        roles = {role: cpu(pid) for role, pid in self._pids.items() if role not in {"run", "sweep", "api"}}
        rest = [self._pids[role] for role in ("sweep", "api")]
        own = {"switch": cpu(house.switch.pid), "stores": cpu(*house.stack.pids().values())}
        more = {"relay": cpu(house.network.pid), "the rest": cpu(*rest) + time.process_time()}
        return roles | own | more | {"busy": busy()}

    def _stored_bytes(self) -> int:
        row = self._house.inspector.rows("SELECT sum(ciphertext_bytes) AS bytes FROM recording WHERE state = 'stored'")
        return int(row[0]["bytes"] or 0)

    def _read_back(self) -> Found:
        found, reader = Found(), Reader(self._house)
        for number, call in enumerate(self._calls, 1):
            found.add(reader.call(call, patience=_PATIENCE, withdrawn=False))
            if number % 25 == 0 or number == len(self._calls):
                self._say(f"read back {number} of {len(self._calls)}, {found.stored} whole")
        return found


def _quantile(ticks: dict[float, float], part: float) -> float:
    """Seconds, evenly within a bucket; infinite beyond the last."""
    wanted, below, before = part * max(ticks.values(), default=0.0), 0.0, 0.0
    for bound, count in sorted(ticks.items()):
        if count >= wanted and count > before:
            return below + (bound - below) * (wanted - before) / (count - before) if math.isfinite(bound) else bound
        below, before = bound, max(count, before)
    return math.inf


def _table(result: Result, options: argparse.Namespace) -> tuple[Table, bool]:
    """What is shown, and whether every target is met."""
    table = Table(
        title=f"{options.calls} calls of {options.minutes:g} minutes, S3 cut off for {options.outage:g} s",
        title_justify="left",
    )
    for column in ("", "measured", "target", ""):
        table.add_column(column)
    verdicts = []

    def row(what: str, shown: str, target: str = "", *, met: bool | None = None) -> None:
        verdicts.append(met is not False)
        table.add_row(what, shown, target, "" if met is None else "[green]met[/]" if met else "[red]missed[/]")

    found, calls = result.found, options.calls
    row("callers through", f"{found.calls - found.callers_lost} of {calls}", "all",
        met=found.calls == calls and not found.callers_lost)  # fmt: skip
    stored = f"{found.stored} of {found.recordings}, {found.audio_lost:.1f} s lost"
    row("stored once, locked, whole, on a basis", stored, "all",
        met=found.stored == found.recordings == calls and not (found.wrong or result.unsettled))  # fmt: skip
    warm = result.memory["warm"]
    row("memory of ship when warm", f"{warm / _MIB:.0f} MiB")
    for what, size in list(result.memory.items())[1:]:
        row(f"  the most {what}", f"{size / _MIB:.0f} MiB, {size / max(1, warm):.2f}", f"at most {_FLAT}",
            met=size <= _FLAT * warm)  # fmt: skip
    row("hub lag of listen, p99", f"{result.lag * 1000:.1f} ms", f"under {_LATE * 1000:.0f} ms", met=result.lag < _LATE)
    row("  the worst below", f"{result.worst_lag * 1000:.0f} ms")
    row("sent, beside the encrypted size", f"{result.sent:.3f}", f"at most {_SENT}", met=result.sent <= _SENT)
    row("segments put, attempts that failed", f"{result.segments}, {result.failed}")
    row("  the latest one", f"{result.stream_lag:.0f} s late")
    closed = "never while calls were up" if result.caught_up is None else f"{result.caught_up:.0f} s"
    row("the gap closed after the outage", closed, "at all", met=result.caught_up is not None)
    row("all stored, no segment left, after the last call", result.unsettled or f"{result.settled_in:.0f} s",
        "at all", met=not result.unsettled)  # fmt: skip
    row("processes", ", ".join(result.restarted) + " started again" if result.restarted else "the same throughout",
        "the same", met=not result.restarted)  # fmt: skip
    row("CPU", ", ".join(f"{name} {cores:.0%}" for name, cores in result.cores.items()))
    if result.others > _NOISE:
        table.caption = (
            f"Other programs kept {result.others:.1f} of {os.cpu_count()} cores busy: too noisy to judge by."
        )
    return table, all(verdicts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300, help="at once (300)")
    parser.add_argument("--minutes", type=float, default=5.0, help="that each is recorded (5)")
    parser.add_argument("--outage", type=float, default=120.0, metavar="SECONDS", help="of S3, in the middle (120)")
    options = parser.parse_args()
    least = options.outage + options.calls / _RATE + _STARTS + 2 * _INTERVAL
    if options.calls < 1 or options.outage < 0 or options.minutes * 60 < least:
        parser.error(f"it takes a call, and {least:.0f} s of each, so that all are up before and after the outage")
    audio = int(options.minutes * 60 * options.calls * _BYTES)
    log.setup("bench", "ERROR")
    console, begun = Console(stderr=True, width=None if sys.stderr.isatty() else 160), time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:6.1f} s[/]  {text}", highlight=False)

    with tempfile.TemporaryDirectory(prefix="callrec-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)  # Postgres is another user
        needed, free = 4 * audio + (4 << 30), shutil.disk_usage(name).free
        if free < needed:
            parser.exit(1, f"endurance: {name} has {free >> 30} GiB free and it takes {needed >> 30}: set TMPDIR\n")
        os.environ["TMPDIR"] = name  # of a supervisor that is killed, too
        tempfile.tempdir = None
        say(f"booting the stores and all roles; up to {needed / (1 << 30):.1f} GiB of {name}")
        stores = {"object_store": "bluestore", "object_room": (3 * audio >> 1) + (1 << 30)}
        with House(Path(name), speed=1.0, small_disk=False, **stores) as house:
            result = Endurance(house, options, say).run()
    for each in [*result.found.wrong[:20], *([result.unsettled] if result.unsettled else [])]:
        say(f"[red]{each}[/]")
    table, met = _table(result, options)
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
