"""The channel of a simulated call: its time, its events, its keys, its end; and what it needs of its switch.

The caller's acts stand in an agenda by time, so that a key is pressed and a call ends at exactly the scripted moment.
Events carry the call's own time: a prompt of 12 s ends 12 s after it began, however late the greenlet woke and whatever
the speed.
"""

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Protocol
from uuid import uuid4

from gevent.event import Event

from callrec.demo import caller
from callrec.demo.caller import Act, CallScript
from callrec.demo.events import ChannelText, Heads, block, framed

Fact = tuple[float, tuple[str | float, ...]]
"""Seconds since the call came in, and what happened: ("prompt", path, seconds played), ("key", digit), …"""


class Clock:
    """Simulated time, in microseconds since the epoch: starts at the real time and runs `speed` times as fast."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._start = time.time_ns() // 1000
        self._origin = time.monotonic_ns()

    def micros(self) -> int:
        return self._start + int((time.monotonic_ns() - self._origin) * self.speed) // 1000


class Link(Protocol):
    """An event-socket connection, as a channel and the switch see it."""

    @property
    def finished(self) -> bool: ...
    @property
    def resume(self) -> bool: ...
    def wants(self, name: str, uuid: str, owner: str = "") -> bool: ...
    def offer(self, text: bytes, frame: bytes) -> None: ...
    def hung_up(self) -> None: ...
    def serve(self) -> None: ...
    def end(self) -> None: ...
    def drop(self) -> None: ...


class Recorder(Protocol):
    """What records a call."""

    def __bool__(self) -> bool: ...
    def start(self, path: str, limit: float, own: Mapping[str, str]) -> bool: ...
    def stop(self, path: str) -> bool: ...
    def change(self, path: str, verb: str) -> bool: ...
    def advance(self, now: float) -> None: ...


class Board(Protocol):
    """The switch, as its channels and connections see it."""

    clock: Clock
    heads: Heads
    host: str
    core_uuid: str
    password: str
    listener: tuple[str, int]
    socket_resume: bool
    acl_rejects: bool
    spool_umask: int
    channels_lag: float
    started: int
    placed: int
    peak: int

    @property
    def calls(self) -> Mapping[str, "Channel"]: ...
    def wanted(self, name: str, call: "Channel") -> Sequence[Link]: ...
    def deliver(self, name: str, event: bytes, frame: bytes, owner: str = "") -> None: ...
    def hear(self, link: Link) -> None: ...
    def forget(self, link: Link, *, gone: bool = True) -> None: ...
    def attach(self, link: Link) -> None: ...
    def gone(self, uuid: str) -> None: ...
    def tick(self) -> None: ...


class Channel:
    """A call's channel, as applications, recordings and the event socket see it."""

    tape: Recorder

    def __init__(self, switch: Board, script: CallScript, *, late: bool = False) -> None:
        self.switch = switch
        self.script = script
        self.uuid = str(uuid4())
        self.at = switch.clock.micros()
        self.text = ChannelText(self.uuid, script.dialled, script.caller_number, script.caller_name, self.at)
        self.timeline: list[Fact] = []
        self.marks: dict[str, float] = {}  # see `mark`
        self.links: list[Link] = []  # of every interview: a call that was transferred away keeps its connection
        self.destination: tuple[str, str] | None = None  # number and context of a transfer, until its dialplan begins
        self.digits: list[str] = []  # pressed and not yet dequeued
        self.queue: list[dict[str, str]] = []  # sendmsg not yet executed
        self.down = self.cut = self.locked = False  # hung up; taken back from `socket`; in an event-locked application
        self.broken = False  # uuid_break, until the application sees it
        self.prompts = 0
        # CHANNEL_HANGUP comes after EXECUTE_COMPLETE
        self.late = late or script.late_hangup or bool(script.unnoticed_hangup)
        self._agenda: list[tuple[int, int, Act]] = []
        self._order = count()
        self._wake = Event()
        self.agent_gone = False

    def fact(self, *what: str | float) -> None:
        self.timeline.append(((self.at - self.text.created) / 1e6, what))

    def mark(self, what: str) -> None:
        """Remember when this really happened, in seconds of time.monotonic: a timeline tells the call's own time."""
        self.marks[what] = time.monotonic()

    # Time

    def poke(self) -> None:
        """Something came from outside, now: look again at what the call waits for."""
        self.at = max(self.at, self.switch.clock.micros())
        self._wake.set()

    def wait(self, until: int | None, ready: Callable[[], bool]) -> None:
        """Let the call's time pass until `until` (microseconds), `ready`, or the end of the call."""
        clock = self.switch.clock
        while not (self.down or ready()):
            due = self._agenda[0][0] if self._agenda else None
            act_first = due is not None and (until is None or due <= until)
            then = due if act_first else until
            if then is not None and then <= clock.micros():
                self.at = max(self.at, then)
                if not act_first:
                    return
                self._act(heapq.heappop(self._agenda)[2])
                continue
            self._wake.clear()
            self._wake.wait(None if then is None else max(0.0, (then - clock.micros()) / 1e6 / clock.speed))

    def outlive_link(self) -> None:
        """Return when the outbound connection has ended, after its linger time too."""
        while not all(link.finished for link in self.links):
            self._wake.clear()
            self._wake.wait()

    def reached(self, point: str, number: int = 1, length: float = 0.0) -> None:
        """The call is at a point that the script may refer to; `length` is that of the prompt that starts."""
        for when, act in self.script.steps:
            if when.point == point and when.number == number:
                self.plan(when.offset * length if point == caller.PROMPT else when.offset, act)

    def plan(self, seconds: float, act: Act) -> None:
        """The caller or the agent will do this, `seconds` from now."""
        heapq.heappush(self._agenda, (self.at + round(seconds * 1e6), next(self._order), act))

    def _act(self, act: Act) -> None:
        if act.kind == caller.PRESS:
            for digit in act.value:
                self.fact("pressed", digit)
                self.digits.append(digit)
        elif act.kind == caller.AGENT_HANGS_UP:
            self.agent_gone = True
        elif act.kind == caller.CHANGE_CODEC:
            self.change_codec(int(act.value))
        else:
            self.hangup(act.value or "NORMAL_CLEARING")

    # Events

    def fire(self, name: str, tail: bytes = b"", *, full: bool = True, lead: bytes = b"") -> None:
        """An event of this channel: `lead` goes before the channel's own lines, `tail` after them."""
        head = self.switch.heads.head(name, self.at)
        wanted = self.switch.wanted(name, self)
        if wanted:
            event = b"".join((head, lead, self.text.full() if full else self.text.basic(), tail))
            frame = framed(event)
            for link in wanted:
                link.offer(event, frame)

    def data(self, full: bool) -> bytes:
        """The reply to `connect`: all that is known of the channel, as headers, without a body."""
        control = b"full" if full else b"single-channel"
        head = self.switch.heads.head("CHANNEL_DATA", self.at)
        end = b"Content-Type: command/reply\nReply-Text: %%2BOK%%0A\nSocket-Mode: async\nControl: %b\n\n" % control
        return b"".join((head, self.text.profile("Channel"), self.text.full(), end))

    def set(self, name: str, value: str) -> None:
        self.text.set(name, value)

    def state(self, name: str, number: int) -> None:
        self.text.state, self.text.state_number = name, number
        self.text.changed()
        self.fire("CHANNEL_STATE", full=False)

    def call_state(self, name: str) -> None:
        was, self.text.call_state = self.text.call_state, name
        self.text.changed()
        numbers = {"RINGING": "2", "EARLY": "3", "ACTIVE": "4", "HANGUP": "10"}
        lead = block([("Original-Channel-Call-State", was), ("Channel-Call-State-Number", numbers[name])])
        self.fire("CHANNEL_CALLSTATE", full=False, lead=lead)

    def answer(self) -> None:
        """Answer the call, once."""
        if self.text.answered or self.down:
            return
        self.text.answered, self.text.answer_state = self.at, "answered"
        self.set("endpoint_disposition", "ANSWER")
        self.text.changed()
        self.fire("CHANNEL_ANSWER")
        self.call_state("ACTIVE")
        self.fact("answered")
        self.reached(caller.ANSWER)

    def change_codec(self, rate: int) -> None:
        self.tape.advance(self.seconds())  # what was said until now
        self.text.rate = rate
        self.text.changed()
        self.fire("CODEC", full=False)

    def dequeue(self) -> str:
        """Take the next digit; this is when its DTMF event fires."""
        digit = self.digits.pop(0)
        self.fact("key", digit)
        self.mark("key")
        lines = [("DTMF-Digit", digit), ("DTMF-Duration", "2000"), ("DTMF-Source", "RTP")]
        self.fire("DTMF", block(lines), full=False)
        return digit

    # What the event socket asks for

    def message(self, headers: dict[str, str]) -> None:
        """A sendmsg. After hang-up nothing comes of it."""
        if self.down:
            return
        if headers.get("call-command") == "hangup":
            self.hangup(headers.get("hangup-cause") or "NORMAL_CLEARING", now=True)
        elif headers.get("call-command") == "execute":
            self.queue.append(headers)
            self.poke()

    def interrupt(self, *, everything: bool) -> None:
        """uuid_break: end what plays; with `all`, forget the queued applications without a word as well."""
        if everything:
            self.queue.clear()
        self.broken = True
        self.poke()

    def transfer(self, dialled: str, context: str) -> None:
        """uuid_transfer: whatever the call does is cut off, and it goes through the dialplan anew."""
        if self.down:
            return
        self.poke()
        context = context or "default"
        source = f"{self.at // 1_000_000}:{uuid4()}:bl_xfer:{dialled}/{context}/XML"
        for name, value in (("max_forwards", "70"), ("transfer_history", source), ("transfer_source", source)):
            self.set(name, value)
        self.text.move(dialled, source, self.at)
        self.destination = (dialled, context)

    def hangup(self, cause: str, *, now: bool = False) -> None:
        """End the call; CHANNEL_HANGUP comes first, or late in the rare order."""
        if self.down:
            return
        if now:
            self.poke()
        self.text.cause, self.text.hung_up = cause, self.at
        if not self.script.unnoticed_hangup:
            self.show_hangup()
        self.fact("hangup", cause)
        if not self.late:
            self.fire("CHANNEL_HANGUP")
        self.down = True
        self._wake.set()

    def show_hangup(self) -> None:
        """From here on every event says that the channel is down."""
        self.text.answer_state, self.text.state_number = "hangup", 10
        self.text.changed()

    # Recording

    def seconds(self) -> float:
        """The call's time, which the audio follows."""
        return (self.at - self.text.created) / 1e6

    def advance(self) -> None:
        """Let the recordings take what was said since the last tick, up to the caller's next act."""
        if not self.down:
            now = self.switch.clock.micros()
            now = min(now, self._agenda[0][0]) if self._agenda else now
            self.tape.advance((max(self.at, now) - self.text.created) / 1e6)

    def taken_back(self) -> bool:
        """True once a finished link has `resume`: the channel is reset, and what plays is cut off at once.

        A transfer does the same.
        """
        if self.destination is not None:
            return True
        link = self.links[-1] if self.links else None
        resume = bool(link and (link.resume or self.text.variables.get("socket_resume") == "true"))
        self.cut = self.cut or bool(link and link.finished and resume)
        return self.cut
