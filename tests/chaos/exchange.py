"""The simulated FreeSWITCH and the faulty network, each in a process of its own, as the experiments speak to them.

Both are Python programs beside this file; they take and give one JSON object a line.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import gevent

from callrec.process import die_with_parent

PASSWORD = "chaos-event-socket"


class Program(ABC):
    """A Python program beside this file. Its lines are read by a greenlet and given to `_heard`."""

    def __init__(self, name: str, *arguments: str) -> None:
        self._argv = [sys.executable, str(Path(__file__).with_name(name)), *arguments]
        self._process: subprocess.Popen | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True,
            env=os.environ | {"CALLREC_EVENT_SOCKET_PASSWORD": PASSWORD},
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 # one prctl; it takes no lock
        )  # fmt: skip
        self._heard(json.loads(self._process.stdout.readline()))  # it is there
        gevent.spawn(self._read, self._process.stdout)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def say(self, line: dict) -> None:
        self._process.stdin.write(json.dumps(line) + "\n")

    def _read(self, stream) -> None:
        for text in stream:
            self._heard(json.loads(text))

    @abstractmethod
    def _heard(self, line: dict) -> None:
        """Take one line of the program's."""


@dataclass(slots=True)
class Call:
    """A call, as its switch told of it. Moments are of the wall clock, as seconds since the epoch."""

    phase: str  # where it is planned to be when the fault strikes
    line: str  # "sale" or "service"
    placed: float
    channel: str = ""
    facts: list[tuple[float, tuple]] = field(default_factory=list)  # (when, what), as in callrec/demo/call.py
    killed: bool = False  # its FreeSWITCH died

    def at(self, *what: str) -> float | None:
        """When the first of these facts was."""
        return next((when for when, fact in self.facts if fact[0] in what), None)

    @property
    def over(self) -> bool:
        return self.killed or self.at("over") is not None

    @property
    def recording(self) -> str:
        """The id of what FreeSWITCH began to record; empty when it never did."""
        return next((Path(fact[1]).stem for _, fact in self.facts if fact[0] == "recording"), "")

    @property
    def longest_silence(self) -> float:
        """Seconds between the last prompt or key, or the call's arrival, and the agent; infinite if there came none."""
        bridged = self.at("bridged")
        if bridged is None:
            return float("inf")
        heard = [when for when, fact in self.facts if fact[0] in {"answered", "prompt", "key"} and when <= bridged]
        return bridged - max([self.placed, *heard])


class FreeSwitch(Program):
    """callrec's simulated switch; a killed one is started again on the same port and knows nothing of calls before."""

    def __init__(self, listener: tuple[str, int], event_socket: tuple[str, int], speed: float, tapes: Path) -> None:
        super().__init__(
            "switch.py", "--listener", f"{listener[0]}:{listener[1]}", "--tapes", str(tapes), "--speed", str(speed),
            "--event-socket", f"{event_socket[0]}:{event_socket[1]}",
        )  # fmt: skip
        self._up = False
        self.calls: dict[int, Call] = {}
        self._numbers = itertools.count()

    def place(self, phase: str, script: dict) -> Call | None:
        """A call that comes in now; None while there is no FreeSWITCH."""
        if not self._up:
            return None
        number = next(self._numbers)
        line = "sale" if script["dialled"].endswith("45") else "service"
        self.calls[number] = call = Call(phase, line, time.time())
        self.say({"id": number, "place": script})
        return call

    def start(self) -> None:
        super().start()
        self._up = True

    def kill(self) -> None:
        self._up = False
        super().kill()
        for call in self.calls.values():
            call.killed |= not call.over

    def _heard(self, line: dict) -> None:
        call = self.calls.get(line.get("id"))
        if call is not None:
            call.channel = line["channel"]
            call.facts.append((line["at"], tuple(line["fact"])))


class Network(Program):
    """What lies between callrec and the others: each route listens on a port of its own and leads to a service."""

    def __init__(self) -> None:
        super().__init__("network.py")
        self._answers: list[dict] = []

    def route(self, name: str, target: tuple[str, int]) -> tuple[str, int]:
        """Where to connect to for `target`, from now on."""
        return ("127.0.0.1", self._ask({"route": name, "target": target})["port"])

    def fault(self, kind: str, routes: list[str], pids: list[int]) -> None:
        """`slow` or `cut`: on these routes, and on every connection that these processes make."""
        self._ask({"fault": kind, "routes": routes, "pids": pids})

    def sent(self, route: str) -> int:
        """Bytes that came from callrec's side of it, whether or not they arrived."""
        return self._ask({"sent": route})["bytes"]

    def heal(self) -> None:
        self._ask({"fault": "", "routes": [], "pids": []})

    def _ask(self, line: dict) -> dict:
        self.say(line)
        with gevent.Timeout(10):
            while not self._answers:
                gevent.sleep(0.002)
        return self._answers.pop()

    def _heard(self, line: dict) -> None:
        if "ready" not in line:
            self._answers.append(line)
