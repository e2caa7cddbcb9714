"""How many calls callrec takes, how fast and at what cost, beside stock greenswitch, in one run on one machine.

    make bench    or    .venv/bin/python tests/bench/run.py [--quick] [--json]

The simulated switch, in a process of its own, places calls at a rising rate: against `callrec listen` with a real
Postgres (fsync on) and Redis, and against greenswitch's own outbound server, which plays the same two prompts and has
no store. A rate is sustained when every call was released and recorded, and 99 of 100 waited less than 250 ms for
`connect` and from their key to `uuid_record`: stock greenswitch looks for new calls every 100 ms only. All times are
taken by the switch, so its own delays are in them. Machines differ and are noisy: what counts is the ratio.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import wave
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from load import Outcome, Switch, busy, cpu, resident
from rich.console import Console
from rich.table import Table

from callrec import log
from callrec.demo.installation import Installation
from callrec.demo.process import free_port
from callrec.demo.stack import Stack

_SERVICE, _SALES = "040404040", "040404045"
_PASSWORD = "bench"
_TALK = 1.0  # seconds of conversation on the ladder
_PROMPT = 1.0  # seconds
_WORST = 0.25  # seconds that 99 of 100 may wait at a sustained rate
_NOISE = 0.2  # cores busy with something else, from which on no figure says much
_WARM = 20  # calls that a server has had before its memory is looked at
_REFERENCE = 50  # calls a second at which latencies are compared
_LADDER = (50, 75, 100, 125, 150, 175, 200, 225, 250, 275, 300, 325, 350, 375, 400)
_TRIES = 3  # at one rate, of a machine that may have been busy with something else
_NO_S3 = {
    "CALLREC_DEMO_S3_ENDPOINT": "http://127.0.0.1:9", "CALLREC_DEMO_S3_ACCESS_KEY": "none",
    "CALLREC_DEMO_S3_SECRET_KEY": "none",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rung:
    """What one server did at one rate. Times in seconds, CPU in seconds a call."""

    rate: float  # calls a second, as placed
    calls: int
    good: int  # released and recorded
    connect_p50: float
    connect_p99: float
    start_p50: float
    start_p99: float
    cpu: float
    cpu_stores: float
    switch_load: float  # of one core, while calls were placed
    others: float  # cores that programs which are not the bench's kept busy meanwhile
    sustained: bool
    unrecorded: dict[str, int]  # by the reason that callrec's own metric gives


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes a call; None where there is no such state: stock greenswitch forgets a call that it has released."""

    calls: int
    in_notice: float
    in_conversation: float | None


class Side:
    """One of the two servers and the switch that calls it. Stock greenswitch has no `metrics` page and no stores."""

    def __init__(
        self, name: str, pid: int, switch: Switch, stores: tuple[int, ...] = (), metrics: str | None = None
    ) -> None:
        self.name, self.pid, self.switch, self._stores, self._metrics = name, pid, switch, stores, metrics
        self.rungs: list[Rung] = []

    def metric(self, name: str) -> dict[str, float]:
        """A metric with one label, by that label's value; empty where the server has none."""
        if self._metrics is None:
            return {}
        with urllib.request.urlopen(self._metrics, timeout=10) as answer:
            found = re.findall(rf'^{name}{{[a-z]+="(.*)"}} ([0-9.e+-]+)$', answer.read().decode(), re.MULTILINE)
        return {label: float(value) for label, value in found}

    def climb(self, rate: int, seconds: float) -> Rung:
        """Place calls at this rate for so long, and wait until they are over."""
        before = self.metric("callrec_unrecorded_total")
        used, stores, load = cpu(self.pid), cpu(*self._stores), cpu(self.switch.pid)
        ours = self.pid, self.switch.pid, os.getpid(), *self._stores
        begun, others = time.monotonic(), busy() - cpu(*ours)
        wave = self.switch.place(rate, round(rate * seconds), _SERVICE, talk=_TALK)
        load = (cpu(self.switch.pid) - load) / (wave.placed - wave.began)
        self.switch.settle(wave, 20.0)
        time.sleep(0.2)  # for the last notes
        others = max(0.0, busy() - cpu(*ours) - others) / (time.monotonic() - begun)
        good = sum(outcome.good for outcome in wave.outcomes)
        after = self.metric("callrec_unrecorded_total")
        unrecorded = {why: int(n - before.get(why, 0)) for why, n in after.items() if n > before.get(why, 0)}
        connect_p50, connect_p99 = _percentiles(wave.outcomes, lambda outcome: outcome.connect)
        start_p50, start_p99 = _percentiles(wave.outcomes, lambda outcome: outcome.start)
        return Rung(
            rate=wave.rate, calls=wave.wanted, good=good, connect_p50=connect_p50, connect_p99=connect_p99,
            start_p50=start_p50, start_p99=start_p99, cpu=(cpu(self.pid) - used) / wave.wanted,
            cpu_stores=(cpu(*self._stores) - stores) / wave.wanted, switch_load=load, others=others,
            sustained=good == wave.wanted and max(connect_p99, start_p99) < _WORST and wave.rate > 0.95 * rate,
            unrecorded=unrecorded,
        )  # fmt: skip


def _percentiles(outcomes: list[Outcome], value: Callable[[Outcome], float | None]) -> tuple[float, float]:
    """p50 and p99; infinite when fewer than two calls came that far."""
    values = [found for found in map(value, outcomes) if found is not None]
    if len(values) < 2:
        return float("inf"), float("inf")
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


class Bench:
    """Everything that runs, in `root`; `say` tells the one who waits."""

    def __init__(self, root: Path, stack: ExitStack, say: Callable[[str], None], *, long_prompt: float) -> None:
        """`long_prompt`: seconds of the notice that has to hold many calls at once."""
        self._root, self._stack, self._say = root, stack, say
        self._long_prompt = long_prompt
        self._prompts = root / "prompts"
        self._prompts.mkdir()
        for name, seconds in (("notice-a", long_prompt), ("notice-b", _PROMPT), ("ask-b", _PROMPT)):
            with wave.open(str(self._prompts / f"{name}.wav"), "wb") as sound:
                sound.setparams((1, 2, 8000, 0, "NONE", ""))
                sound.writeframes(bytes(round(seconds * 8000) * 2))
        say("booting Postgres and Redis")
        self._stores = Stack(root / "stack", env=_NO_S3)
        stack.callback(self._stores.stop)
        self._stores.start()
        self._count = 0

    def callrec(self, *, long: bool = False) -> tuple[Side, Installation]:  # noqa: ARG002 # its lines have both notices
        self._count += 1
        event_socket = ("127.0.0.1", free_port())
        installation = Installation(
            self._root / f"callrec-{self._count}", self._stores, event_socket=event_socket, password=_PASSWORD,
            prompts=self._prompts, role="listen",
            changes={"listen": {"max_calls": 5000}, "node": {"name": f"bench-{self._count}"}},
        )  # fmt: skip
        installation.prepare()
        switch = self._switch(installation.listen, event_socket)
        self._stack.callback(installation.stop)
        installation.start()
        stores = tuple(self._stores.pids().values())
        return Side("callrec", installation.pid, switch, stores, installation.url("/metrics")), installation

    def stock(self, *, long: bool = False) -> tuple[Side, None]:
        self._count += 1
        address = ("127.0.0.1", free_port())
        spool = self._root / f"stock-{self._count}"
        process = subprocess.Popen(
            [
                sys.executable, str(Path(__file__).with_name("stock.py")), "--port", str(address[1]),
                "--notice", str(self._prompts / ("notice-a.wav" if long else "notice-b.wav")),
                "--question", str(self._prompts / "ask-b.wav"), "--spool", str(spool),
            ],
            start_new_session=True, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._stack.callback(lambda: (process.kill(), process.wait()))
        process.stdout.readline()  # it listens
        return Side("stock", process.pid, self._switch(address, ("127.0.0.1", free_port()))), None

    def _switch(self, listener: tuple[str, int], event_socket: tuple[str, int]) -> Switch:
        switch = Switch(listener, event_socket, _PASSWORD)
        self._stack.callback(switch.stop)
        return switch

    def ladder(self, sides: list[Side], rates: tuple[int, ...], seconds: float) -> None:
        """Each rate for each side in turn, so that a noisy moment meets both; a side that fails each try is done."""
        climbing = list(sides)
        for rate in rates:
            for side in list(climbing):
                for _ in range(_TRIES):
                    rung = side.climb(rate, 2 * seconds if rate == _REFERENCE else seconds)
                    self._say(
                        f"{side.name:<8}{rate:4} calls/s  {rung.good} of {rung.calls} good  connect p99 "
                        f"{_ms(rung.connect_p99)}  key to uuid_record p50 {_ms(rung.start_p50)} p99 "
                        f"{_ms(rung.start_p99)}  CPU {_ms(rung.cpu)}/call  switch {rung.switch_load:.0%} of a core, "
                        f"others {rung.others:.0%}" + (f"  unrecorded: {rung.unrecorded}" if rung.unrecorded else "")
                    )
                    if rung.sustained:
                        break
                side.rungs.append(rung)
                if not rung.sustained:
                    climbing.remove(side)
            climbing.reverse()
            if not climbing:
                return

    def memory(self, boot: Callable[..., tuple[Side, Installation | None]], calls: int, rate: int) -> Memory:
        """What `calls` more at once take, of a server that has just started and has a few."""
        side, installation = boot(long=True)
        side.switch.place(rate, _WARM, _SALES, talk=600.0)
        time.sleep(1.5)
        warm = resident(side.pid)
        side.switch.place(rate, calls, _SALES, talk=600.0)
        conversation = None
        if installation is None:
            time.sleep(1.5)
            notice = (resident(side.pid) - warm) / calls
        else:
            every = calls + _WARM
            _until(lambda: side.metric("callrec_calls_in_state").get("announcing") == every, 10, "all to be announced")
            notice = (resident(side.pid) - warm) / calls
            _until(
                lambda: side.metric("callrec_calls_in_state").get("recording") == every, self._long_prompt + 10,
                "all to be recorded",
            )  # fmt: skip
            time.sleep(1)
            conversation = (resident(side.pid) - warm) / calls
        side.switch.stop()
        self._say(f"{side.name:<8}{calls} at once: {_kib(notice)} a call in the notice, {_kib(conversation)} after it")
        return Memory(calls, notice, conversation)


def _until(ready: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: waited {seconds:g} s for {what}")
        time.sleep(0.2)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _kib(size: float | None) -> str:
    return "-" if size is None else f"{size / 1024:.1f} KiB"


def _sustained(side: Side) -> float:
    return max((rung.rate for rung in side.rungs if rung.sustained), default=0.0)


def _table(ours: Side, stock: Side, memory: dict[str, Memory], lag: float) -> Table:
    table = Table(title="callrec beside stock greenswitch", title_justify="left")
    for column in ("", "callrec", "stock", "ratio", "target", ""):
        table.add_column(column, justify="left" if column in ("", "target") else "right")

    def row(what, a, b, show, *, target="", met=None):
        ratio = f"{a / b:.2f}" if b else "-"
        verdict = "" if met is None else "[green]met[/]" if met else "[red]missed[/]"
        table.add_row(what, show(a), show(b) if b is not None else "-", ratio, target, verdict)

    others = max(rung.others for side in (ours, stock) for rung in side.rungs)
    if others > _NOISE:
        table.caption = f"Other programs kept up to {others:.1f} of {os.cpu_count()} cores busy: too noisy to judge by."
    a, b = ours.rungs[0], stock.rungs[0]
    rates = _sustained(ours), _sustained(stock)
    row(
        "calls/s sustained",
        *rates,
        lambda rate: f"{rate:.0f}",
        target="at least stock's",
        met=rates[0] > 0.97 * rates[1],
    )
    at = f"at {a.rate:.0f}/s: "
    row(at + "connect p50", a.connect_p50, b.connect_p50, _ms)
    row(at + "connect p99", a.connect_p99, b.connect_p99, _ms, target="under 10 ms", met=a.connect_p99 < 0.010)
    row(at + "key to uuid_record p50", a.start_p50, b.start_p50, _ms)
    row(at + "key to uuid_record p99", a.start_p99, b.start_p99, _ms, target="under 50 ms", met=a.start_p99 < 0.050)
    row(at + "CPU a call", a.cpu, b.cpu, _ms)
    row(at + "CPU a call, Postgres and Redis", a.cpu_stores, None, _ms)
    row("worst hub lag at all rates", lag, None, _ms)
    if memory:
        mine, theirs = memory["callrec"], memory["stock"]
        most = 100 * 1024
        what = f"memory a call, {mine.calls} "
        row(
            what + "in the notice",
            mine.in_notice,
            theirs.in_notice,
            _kib,
            target="under 100 KiB",
            met=mine.in_notice < most,
        )
        talking = mine.in_conversation
        row(what + "in conversation", talking, None, _kib, target="under 100 KiB", met=talking < most)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two short rates, 200 calls for memory: about a minute")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--rates", type=int, nargs="+", metavar="N", help="calls a second to try, in this order")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each rate; twice as long for the first (5)")
    options = parser.parse_args()
    log.setup("bench", "ERROR")
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = 160
    begun = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:6.1f} s[/]  {text}", highlight=False)

    rates = tuple(options.rates or (_LADDER[:2] if options.quick else _LADDER))
    seconds = 3.0 if options.quick else options.seconds
    calls, rate = (200, 50) if options.quick else (1000, 60)
    memory: dict[str, Memory] = {}
    with (
        tempfile.TemporaryDirectory(prefix="callrec-bench-", ignore_cleanup_errors=True) as name,
        ExitStack() as running,
    ):
        Path(name).chmod(0o755)  # Postgres is another user
        bench = Bench(Path(name), running, say, long_prompt=12.0 if options.quick else 30.0)
        ours, stock = bench.callrec()[0], bench.stock()[0]
        bench.ladder([ours, stock], rates, seconds)
        lag = ours.metric("callrec_hub_lag_max_seconds")["listen"]
        if not options.no_memory:
            for side in (ours, stock):
                side.switch.stop()
            memory = {
                "callrec": bench.memory(bench.callrec, calls, rate),
                "stock": bench.memory(bench.stock, calls, rate),
            }
    if options.json:
        figures = {
            side.name: {"sustained": _sustained(side), "rungs": [asdict(rung) for rung in side.rungs]}
            | ({"memory": asdict(memory[side.name])} if memory else {})
            for side in (ours, stock)
        }
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(_table(ours, stock, memory, lag))
    return 0 if _sustained(ours) and _sustained(stock) else 1


if __name__ == "__main__":
    sys.exit(main())
