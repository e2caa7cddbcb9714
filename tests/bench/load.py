"""Places calls at a rate, through the simulated switch in a process of its own, and says what became of each."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

# Key after each prompt: the first one is wrong and has the question asked, the second one is consent.
STEPS = [["after_prompt", 0.1, 1, "press", "5"], ["after_prompt", 0.1, 2, "press", "1"]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call, as the switch saw it. Times in seconds, None where it never came to that."""

    connect: float | None  # from the connection to `connect`
    start: float | None  # from the key to uuid_record
    released: bool
    recorded: bool

    @property
    def good(self) -> bool:
        return self.released and self.recorded

    @classmethod
    def of(cls, report: dict) -> "Outcome":
        marks = report.get("marks", {})
        facts = {what[0]: what[1:] for _, what in report.get("timeline", ())}

        def between(first: str, last: str) -> float | None:
            return marks[last] - marks[first] if first in marks and last in marks else None

        released = facts.get("released") == ["resume"] and "bridged" in facts
        return cls(between("dialled", "connect"), between("key", "record"), released, "recorded" in facts)


@dataclass
class Wave:
    """Calls placed together."""

    wanted: int
    outcomes: list[Outcome] = field(default_factory=list)
    began: float = 0.0
    placed: float = 0.0  # when the last one was

    @property
    def rate(self) -> float:
        """Calls a second as they were really placed."""
        return (self.wanted - 1) / (self.placed - self.began) if self.placed > self.began else 0.0


class Switch:
    """`python -m callrec.demo.switch`, told what to place."""

    def __init__(self, listener: tuple[str, int], event_socket: tuple[str, int], password: str) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "callrec.demo.switch",
                "--listener", f"{listener[0]}:{listener[1]}", "--event-socket", f"{event_socket[0]}:{event_socket[1]}",
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True,
            env=os.environ | {"CALLREC_EVENT_SOCKET_PASSWORD": password},
        )  # fmt: skip
        self.pid = self._process.pid
        self._waves: dict[int, Wave] = {}
        self._change = threading.Condition()
        self._process.stdout.readline()  # it listens
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for text in self._process.stdout:
            report = json.loads(text)
            with self._change:
                self._waves[report["id"]].outcomes.append(Outcome.of(report))
                self._change.notify_all()

    def place(self, rate: float, calls: int, dialled: str, *, talk: float) -> Wave:
        """Place `calls` at `rate` a second, evenly. Returns when the last one is placed."""
        wave = Wave(calls)
        number = len(self._waves)
        self._waves[number] = wave
        script = {"dialled": dialled, "caller_number": "+38640123456", "talk": talk, "audio": None, "steps": STEPS}
        line = json.dumps({"place": script, "id": number}) + "\n"
        wave.began = time.monotonic()
        for n in range(calls):
            time.sleep(max(0.0, wave.began + n / rate - time.monotonic()))
            self._process.stdin.write(line)
        wave.placed = time.monotonic()
        return wave

    def settle(self, wave: Wave, timeout: float) -> bool:
        """Wait until every call of the wave is over; False when some are not by then."""
        with self._change:
            return self._change.wait_for(lambda: len(wave.outcomes) >= wave.wanted, timeout)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def cpu(*pids: int) -> float:
    """CPU seconds that these processes have used, with those of their children, living and dead, each counted once."""
    total = 0
    for each in {each for pid in pids for each in (pid, *_children(pid))}:
        try:
            total += sum(map(int, Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[11:15]))
        except OSError:
            continue
    return total / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def busy() -> float:
    """Seconds that the machine's cores were not idle, all together; differences alone mean something.

    From the idle time, as the kernel's own sum of busy ticks falls short of what processes use on a virtual machine.
    """
    idle, waiting = map(int, Path("/proc/stat").read_text().split()[4:6])
    return time.monotonic() * os.cpu_count() - (idle + waiting) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of memory that the process holds (VmRSS)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
