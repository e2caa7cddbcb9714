"""One simulated inbound call: its dialplan, its caller, its recordings, its end.

The call's greenlet runs the dialplan: `socket`, then `bridge`. It also plays the caller, whose acts stand in an agenda
by time, so that a key is pressed and a call ends at exactly the scripted moment. Events carry the call's own time: a
prompt of 12 s ends 12 s after it began, however late the greenlet woke and whatever the speed.
"""

import heapq
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING
from uuid import uuid4

from gevent import socket
from gevent.event import Event

from callrec.demo import apps, caller
from callrec.demo.caller import Act, CallScript
from callrec.demo.events import ChannelText, block, framed
from callrec.demo.eventsocket import EventSocket
from callrec.demo.tape import Tape
from callrec.errors import LinkTimeoutError

if TYPE_CHECKING:
    from callrec.demo.switch import Switch

Fact = tuple[float, tuple[str | float, ...]]
"""Seconds since the call came in, and what happened: ("prompt", path, seconds played), ("key", digit), …"""

_CONNECT = 10.0  # seconds of the clock on the wall


class SimCall:
    """A call. `timeline` tells what happened: connected, answered, prompt, key, released (how: refused, closed,
    timeout, exit, resume, died), recording and recorded (path), bridged, hangup (cause), killed."""

    def __init__(self, switch: "Switch", script: CallScript, *, late: bool = False) -> None:
        self.switch = switch
        self.script = script
        self.uuid = str(uuid4())
        self.at = switch.clock.micros()
        self.text = ChannelText(self.uuid, script.dialled, script.caller_number, script.caller_name, self.at)
        self.timeline: list[Fact] = []
        self.link: EventSocket | None = None
        self.digits: list[str] = []  # pressed and not yet dequeued
        self.queue: list[dict[str, str]] = []  # sendmsg not yet executed
        self.down = self.cut = self.locked = False  # hung up; taken back from `socket`; in an event-locked application
        self.broken = False  # uuid_break, until the application sees it
        self.prompts = 0
        self.tape = Tape(self)
        self._late = late or script.late_hangup  # CHANNEL_HANGUP comes after EXECUTE_COMPLETE
        self._agenda: list[tuple[int, int, Act]] = []
        self._order = count()
        self._wake = Event()
        self._ended = Event()
        self._agent_gone = False

    def result(self, timeout: float) -> list[Fact]:
        """The timeline, once the call is over. `timeout` is in seconds of the wall clock; LinkTimeoutError after it."""
        if not self._ended.wait(timeout):
            raise LinkTimeoutError("The simulated call did not end", detail=f"So far: {self.timeline}")
        return self.timeline

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def fact(self, *what: str | float) -> None:
        self.timeline.append(((self.at - self.text.created) / 1e6, what))

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

    def reached(self, point: str, number: int = 1, length: float = 0.0) -> None:
        """The call is at a point that the script may refer to; `length` is that of the prompt that starts."""
        for when, act in self.script.steps:
            if when.point == point and when.number == number:
                self._plan(when.offset * length if point == caller.PROMPT else when.offset, act)

    def _plan(self, seconds: float, act: Act) -> None:
        heapq.heappush(self._agenda, (self.at + round(seconds * 1e6), next(self._order), act))

    def _act(self, act: Act) -> None:
        if act.kind == caller.PRESS:
            for digit in act.value:
                self.fact("pressed", digit)
                self.digits.append(digit)
        elif act.kind == caller.AGENT_HANGS_UP:
            self._agent_gone = True
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

    def dequeue(self) -> str:
        """Take the next digit; this is when its DTMF event fires."""
        digit = self.digits.pop(0)
        self.fact("key", digit)
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

    def hangup(self, cause: str, *, now: bool = False) -> None:
        """End the call; CHANNEL_HANGUP comes first, or late in the rare order."""
        if self.down:
            return
        if now:
            self.poke()
        self.text.cause, self.text.hung_up, self.text.answer_state = cause, self.at, "hangup"
        self.text.state_number = 10
        self.text.changed()
        self.fact("hangup", cause)
        if not self._late:
            self.fire("CHANNEL_HANGUP")
        self.down = True
        self._wake.set()

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

    # The dialplan

    def run(self) -> None:
        """The whole call. Whatever ends it, the call ends tidily."""
        self._begin()
        self._socket_application()
        if not self.down:
            self._bridge_application()
        self.hangup("NORMAL_CLEARING")
        self._end()

    def _begin(self) -> None:
        self.text.state, self.text.state_number, self.text.call_state = "CS_INIT", 1, "DOWN"
        self.fire("CHANNEL_CREATE")
        self.text.state, self.text.state_number, self.text.call_state = "CS_EXECUTE", 4, "RINGING"
        self.text.changed()
        leg, where = str(uuid4()), f"{self.switch.listener[0]}:{self.switch.listener[1]} async full"
        for name, value in {
            "direction": "inbound", "uuid": self.uuid, "session_id": str(self.switch.placed),
            "channel_name": self.text.name, "read_codec": "L16", "read_rate": "8000", "write_codec": "L16",
            "write_rate": "8000", "origination_uuid": leg, "origination_caller_id_number": self.script.caller_number,
            "origination_caller_id_name": self.script.caller_name, "other_loopback_leg_uuid": leg, "loopback_leg": "B",
            "DP_MATCH": f"ARRAY::{self.script.dialled}|:{self.script.dialled}", "call_uuid": self.uuid,
            **self.script.variables,
        }.items():  # fmt: skip
            self.set(name, value)
        if self.switch.socket_resume:
            apps.execute(self, "set", "socket_resume=true", "")
        self.reached(caller.ARRIVAL)
        self._where = where

    def _socket_application(self) -> None:
        """`socket`, from the connection to the moment when the dialplan goes on."""
        token = apps.announce(self, "socket", self._where, "")
        self.set("socket_host", self.switch.listener[0])
        how = self._listen()
        if not self.down:
            self.fact("released", how)
        apps.complete(self, "socket", self._where, token)
        self.cut = False

    def _listen(self) -> str:
        """How the listener let go of the call."""
        try:
            sock = socket.create_connection(self.switch.listener, timeout=_CONNECT)
        except OSError:
            return "refused"
        link = self.link = EventSocket(self.switch, sock, self)
        self.switch.attach(link)
        self.wait(None, lambda: link.connected or link.finished)
        if link.connected:
            self.fact("connected")
        elif not self.switch.socket_resume and not self.down:
            # switch_ivr_park begins after the listener has ended, and nobody will ever unpark the call (13b).
            self.fact("parked")
            self.fire("CHANNEL_PARK")
            self.wait(None, lambda: False)
            self.fire("CHANNEL_UNPARK")
            return "parked"
        if link.connected and not self.down:
            self.fire("CHANNEL_PARK")
            self._park(link)
            self.fire("CHANNEL_UNPARK")
        if not link.connected:
            return "timeout" if link.timed_out else "closed"
        return "died" if not link.said_exit else "resume" if link.resume else "exit"

    def taken_back(self) -> bool:
        """True once a finished link has `resume`: the channel is reset, and what plays is cut off at once."""
        link = self.link
        resume = bool(link and (link.resume or self.text.variables.get("socket_resume") == "true"))
        self.cut = self.cut or bool(link and link.finished and resume)
        return self.cut

    def _park(self, link: EventSocket) -> None:
        while not self.down:
            # Without media nothing reads the channel, and keys stay in its queue.
            listening = bool(self.text.answered or self.text.media)
            if self.taken_back():
                return
            if self.queue:
                apps.from_message(self, self.queue.pop(0))
            elif self.digits and listening:
                self.dequeue()
            elif link.finished:
                return
            else:
                self.broken = False
                self.wait(None, lambda: bool(self.queue or link.finished or (self.digits and listening)))

    def _bridge_application(self) -> None:
        """`bridge` to the agent, until one of the two hangs up."""
        where = "loopback/agent/default"
        token = apps.announce(self, "bridge", where, "")
        if not self.script.agent_answers:
            self.hangup("NO_ANSWER")  # continue_on_fail is not set
        else:
            self.converse()
        apps.complete(self, "bridge", where, token)

    def converse(self) -> None:
        """The caller talks to the agent."""
        agent = str(uuid4())
        self.answer()
        self.tape.advance(self.seconds())
        self.text.bridged = self.at
        self.text.changed()
        self.set("bridge_uuid", agent)
        self.set("signal_bond", agent)
        self.fact("bridged")
        lead = block([("Bridge-A-Unique-ID", self.uuid), ("Bridge-B-Unique-ID", agent)])
        self.fire("CHANNEL_BRIDGE", lead=lead)
        self.reached(caller.CONVERSATION)
        ends = (caller.AGENT_HANGS_UP, caller.HANG_UP)
        if self.script.talk and not any(
            w.point == caller.CONVERSATION and a.kind in ends for w, a in self.script.steps
        ):
            self._plan(self.script.talk, caller.hang_up())
        while not (self.down or self._agent_gone):
            if self.digits:
                self.dequeue()
            elif self.queue:
                apps.from_message(self, self.queue.pop(0))
            else:
                self.wait(None, lambda: bool(self._agent_gone or self.digits or self.queue))
        self.fire("CHANNEL_UNBRIDGE", lead=lead)

    def _end(self) -> None:
        """The order of the end, as 76 of 80 calls had it (10b); the others: CHANNEL_HANGUP late."""
        if self._late:
            self.fire("CHANNEL_HANGUP")
        self.state("CS_HANGUP", 10)
        self.tape.finish()
        self.call_state("HANGUP")
        self.state("CS_REPORTING", 11)
        for name, value in apps.report(self):
            self.set(name, value)
        self.switch.calls.pop(self.uuid, None)  # from here on the api knows it no more
        self.fire("CHANNEL_HANGUP_COMPLETE", lead=block([("Hangup-Cause", self.text.cause)]))
        if self.link:
            self.link.hung_up()
        self.state("CS_DESTROY", 12)
        self.fire("CHANNEL_DESTROY")
        self._ended.set()

    def killed(self) -> None:
        """The process is gone: the files stay as they are, nobody is told."""
        self.tape.abandon()
        self.down = True
        self.fact("killed")
        self._ended.set()

    def row(self) -> dict[str, str]:
        """The call's line of `show channels`."""
        return apps.channel_row(self)
