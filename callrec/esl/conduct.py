"""One call, conducted: its greenlet alone decides about it.

    mailbox -> step -> perform, in order; the next wait is until the call's own deadline.

A call comes in over its own connection (the `socket` application), is conducted over it until the caller is handed on,
and from then on over the node's inbound link (esl/watcher.py). What a call may wait for is one thing: that its basis is
durable, and that has a deadline.
"""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Protocol

from gevent.event import Event
from gevent.queue import Empty, SimpleQueue
from prometheus_client import Gauge

from callrec import metrics
from callrec.call import commands as do
from callrec.call import events as on
from callrec.call import machine
from callrec.call.policy import BasisKind, Line, Policy
from callrec.call.state import Call, State, Timing
from callrec.errors import LinkError, SpoolError, StoreError
from callrec.esl import dialect
from callrec.esl.link import OutboundLink
from callrec.esl.recorder import Recorder
from callrec.esl.wire import Headers
from callrec.ledger.caller import Concealed, Lookup
from callrec.log import Log
from callrec.recording.spool import Spool
from callrec.store.live import LiveState
from callrec.store.records import CallFacts, CallRecords, Noted, OpenRecording

log = Log(__name__)

EXIT = 2.0  # seconds for FreeSWITCH to answer `exit`
_LONGEST_CALL = 86_400.0  # seconds
_LATE = 0.25  # seconds after a deadline of which it says more about us than about FreeSWITCH
_LOOK = 1.0  # seconds between two looks at where a call is that was sent elsewhere
_OVER = frozenset({State.UNRECORDED, State.ENDED})


@cache
def _in_state(state: State) -> Gauge:
    """The calls in this state. Looking a label up takes as long as counting ten calls."""
    return metrics.STATE.labels(state)


class Control(Protocol):
    """The node's inbound link, as a call needs it."""

    @property
    def up(self) -> bool: ...

    def post(self, payload: bytes, on_reply: Callable[[str], None] | None = None) -> None:
        """LinkError when the link is down. What nobody wants to hear of, a stop, is sent when it is there again."""


@dataclass(slots=True)
class Node:
    """What all calls of this node share."""

    policy: Policy
    records: CallRecords
    live: LiveState
    spool: Spool
    control: Control
    prompts: Callable[[Line], Line]  # the line with its prompts' hashes and lengths as the files are now
    conceal: Callable[[str], Concealed]
    name: str
    decision_timeout: float = 0.25
    room: bool = True  # in the spool; kept current by the service
    room_for_consent: bool = True  # ends first, so that evidence of transactions is recorded for longer
    storage_ok: bool = True  # no probe has found that the object store breaks its word; kept current by the service
    refer: Callable[[], tuple[str, Lookup]] | None = None  # a new reference code, and what is kept of it (D11)
    timing: Timing = field(default_factory=Timing)


class Conduct:
    """One call, from the first word of FreeSWITCH to the last note about it."""

    __slots__ = (
        "_caller", "_closed", "_code", "_key_at", "_link", "_moved", "_notes", "_ordinal", "_recorder",
        "_seen", "_since", "before", "call", "facts", "handed_on", "mailbox", "node", "path", "superseded",
    )  # fmt: skip

    def __init__(
        self, node: Node, facts: CallFacts, call: Call, link: OutboundLink | None, caller: str = "", *,
        before: dialect.Before | None = None,
    ) -> None:  # fmt: skip
        """`caller` is the calling number as it came; it goes nowhere but into `Node.conceal`."""
        self.node = node
        self.facts = facts
        self.call = call
        self.mailbox: SimpleQueue[on.Event] = SimpleQueue()
        self.path = str(node.spool.path(facts.recording_id))
        self.handed_on = link is None
        self._recorder = Recorder(facts.channel, self.path, self._change, self.mailbox.put, self._note)
        self._link = link
        self._caller = caller
        self._code = ""  # what a caller without a number names this call by (D11)
        self._notes: list[Noted] = []
        self._ordinal = 0
        self._seen: deque[int] = deque(maxlen=32)
        self._key_at = 0.0
        self._since = datetime.now(UTC)  # when this state began
        self.superseded = False  # the live state of the channel is another call's
        self._moved = False  # somebody sent the call elsewhere in the middle of the interview
        self.before = before or dialect.Before()  # read by the interview that follows on this channel
        self._closed: Event | None = None  # set when the outbound link has ended

    @classmethod
    def revived(cls, node: Node, left: OpenRecording) -> "Conduct":
        """A call that a listener before us was recording; it goes on over the inbound link."""
        facts = left.facts
        call = Call(
            facts.call_id, facts.recording_id, node.timing, State.RECORDING, facts.line,
            decision=left.decision, started=True, released=True,
        )  # fmt: skip
        conduct = cls(node, facts, call, None)
        conduct._ordinal, conduct._recorder.masked = left.ordinal, left.masked
        return conduct

    # what happens

    def hear(self, headers: Headers) -> None:
        """Take an event of FreeSWITCH, from either link; one that came over both is taken once."""
        number = dialect.sequence(headers)
        if number and number in self._seen:
            return
        if not self.handed_on and dialect.moved(headers, self.before):
            self._moved = True
            self.mailbox.put(on.LinkLost())
            return
        if not self.handed_on and dialect.cut_by_transfer(headers, self.before):
            return  # if `socket` is not done at once, the prompt's deadline lets the caller go on
        event = self._recorder.understand(headers, running=self.call.state is State.RECORDING and not self.superseded)
        if event is not None:
            self._seen.append(number)
            self.mailbox.put(event)

    def link_ended(self) -> None:
        """The outbound link is gone, by our doing or not."""
        self.mailbox.put(on.LinkLost())
        if self._closed is not None:
            self._closed.set()

    def supersede(self) -> None:
        """The caller was transferred to another line of the policy, and another interview begins on this channel.

        This recording stops: its basis does not cover what follows.
        """
        self.superseded = True
        self.mailbox.put(on.Ordered(on.Order.STOP))

    def run(self, first: on.Event | None = None) -> None:
        """Conduct the call until nothing more can happen to it.

        Whatever ends this greenlet early, a fault of ours or the end of the process, the caller is handed on; a
        recording that runs goes on, and the next resync takes it up again.
        """
        _in_state(self.call.state).inc()
        try:
            if first is not None:
                self._take(first)
            while self.call.state not in _OVER:
                self._take(self._next())
            self._close()
        except BaseException:
            if self.handed_on:
                self._flush()
            else:
                self._release()
                self._note("released_unrecorded", {"reason": "fault"})
                self._flush(ended=True)
            raise
        finally:
            _in_state(self.call.state).dec()

    def _next(self) -> on.Event:
        deadline = self.call.deadline
        with suppress(Empty):
            return self.mailbox.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        if deadline is not None and time.monotonic() - deadline > _LATE:  # we stood still: hear what came meanwhile
            with suppress(Empty):
                return self.mailbox.get(timeout=_LATE)
        return on.Tick()

    def _take(self, event: on.Event) -> None:
        before = self.call
        if isinstance(event, on.Key | on.PromptEnded):
            self._key_at = time.monotonic()
        self.call, commands = machine.step(before, event, time.monotonic())
        if self.call.state is not before.state:
            self._since = datetime.now(UTC)
            _in_state(before.state).dec()
            _in_state(self.call.state).inc()
        for command in commands:
            self._perform(command)
        if isinstance(event, on.LinkLost) and not self._moved:
            self._link = None
        if self.call.released:  # the caller is on the way; before that only `authorise` writes
            self._flush()
        if self.call.state is not before.state or isinstance(event, on.MaskReply):
            self._publish()

    def _close(self) -> None:
        if self.facts.line is not None:
            metrics.DECISIONS.labels(self.facts.line.id, self.call.decision).inc()
        self._flush(ended=True)
        self._publish(ended=True)
        if self._link is not None:
            if self._link.connected:  # closing with events unread would reset the connection, and `exit` be lost
                self._closed = Event()
                if self._moved:
                    self._stay(self._closed)
                else:
                    self._closed.wait(EXIT)
            self._link.close()

    def _stay(self, closed: Event) -> None:
        """Until FreeSWITCH closes: where the call went, a `park` or another interview would end with this link.

        What its end would do depends on where the call is, so that is looked at again and again.
        """
        end = time.monotonic() + _LONGEST_CALL
        with suppress(LinkError):
            while time.monotonic() < end and not closed.wait(_LOOK):
                self._post(dialect.let_go(self.facts.channel))

    # what is done about it

    def _perform(self, command: do.Command) -> None:  # noqa: PLR0912 # one branch a command, nothing else
        try:
            match command:
                case do.Note():
                    self._note(command.kind, command.body)
                case do.Answer():
                    self._post(dialect.answer(), dialect.uninterruptible())
                case do.Play():
                    play = dialect.play(command.prompt.file, command.token)
                    self._post(play, *([dialect.flush_keys(command.token)] if command.flush else []))
                case do.Break():
                    self._post(dialect.break_prompt(self.facts.channel))
                case do.Authorise():
                    self._take(self._authorise())
                case do.StartRecording():
                    self._start_recording()
                case do.StopRecording():
                    self._recorder.stop()
                case do.Mask():
                    self._recorder.mask(command.on)
                case do.Release():
                    self._release()
                case do.Started():
                    self.node.records.started(self.facts, at := command.at or datetime.now(UTC))
                    self._note("recording_started", {"recording": str(self.facts.recording_id), "at": on.iso(at)})
                case do.Finish():
                    self._finish(command)
                case do.Discard():
                    self._discard(command.reason)
                case do.Void():
                    self._flush()
                    self.node.records.void(self.facts.recording_id, command.reason)
        except LinkError:
            # The link tells of its end by itself; what it could not carry, the deadlines of the machine notice.
            metrics.ESL_ERRORS.labels("outbound", "not_sent").inc()

    def _post(self, *payloads: bytes) -> None:
        if self._link is not None:
            self._link.post_all(payloads)

    def _authorise(self) -> on.Event:
        reason = self._obstacle()
        if reason:
            return on.BasisMissing(reason)
        basis, caller = self.call.rule.basis, self.node.conceal(self._caller) if self._caller else None
        commitment = {"caller_commitment": caller.commitment} if caller is not None else {}
        about = {"decision": self.call.decision, "recording": str(self.facts.recording_id), **commitment}
        more: dict[str, Any] = {"timeout": self.node.decision_timeout}
        if caller is None and basis.kind is BasisKind.CONSENT and self.node.refer is not None:
            self._code, more["reference"] = self.node.refer()
        established = self._noted("basis_established", basis.proof() | about)
        begun = time.monotonic()
        try:
            self.node.records.authorise(self.facts, self.call.decision, [*self._notes, established], caller, **more)
        except StoreError as error:
            log.warning("basis_not_durable", call=self.facts.call_id, detail=error.detail)
            return on.BasisMissing("ledger_down")
        finally:
            taken = time.monotonic() - begun
            metrics.DECIDE_SECONDS.observe(taken)
        self._notes.clear()  # with any other end `established` is not noted again: if it is so, the ledger has it
        return on.BasisDurable() if taken <= self.node.decision_timeout else on.BasisMissing("decision_overdue")

    def _obstacle(self) -> str:
        """Why this call can't be recorded although its basis is there; empty when it can."""
        consent = self.call.rule.basis.kind is BasisKind.CONSENT
        if not self.node.room or (consent and not self.node.room_for_consent):
            return "spool_full"
        if not self.node.storage_ok:
            return "storage_unproven"
        if self.call.rule.basis.withdraw_keys and not self.node.control.up:
            return "control_link_down"  # what can't be withdrawn may not be begun
        return ""

    def _start_recording(self) -> None:
        assert self._link is not None
        channel, mailbox = self.facts.channel, self.mailbox
        self._link.post(
            dialect.start_recording(channel, self.path),
            lambda reply: mailbox.put(on.RecordReply(reply.startswith("+OK"))),
        )
        metrics.START_SECONDS.observe(time.monotonic() - self._key_at)

    def _change(self, payload: bytes, on_reply: Callable[[str], None] | None) -> None:
        """Change the recording, over the link that is the call's now."""
        if self._link is not None and self._link.connected and not self.handed_on:
            self._link.post(payload, on_reply)
        else:
            self.node.control.post(payload, on_reply)

    def _release(self) -> None:
        """Hand the caller on: from here the dialplan goes its way and the inbound link tells us of this call."""
        self.handed_on = True
        if self._link is not None and self._link.connected:
            restored = [dialect.interruptible(self.facts.channel, self.before.terminators)] if self.facts.line else []
            try:
                gone = (dialect.let_go(self.facts.channel),)
                self._link.post_all((*restored, *(gone if self._moved else (b"resume\n\n", b"exit\n\n"))))
            except LinkError:
                self._link.close()  # socket_resume carries the caller on

    def _finish(self, command: do.Finish) -> None:
        at = command.at or datetime.now(UTC)
        how = {"samples": command.samples, "abrupt": command.abrupt}
        self._note("recording_stopped", {"at": on.iso(at), **how})
        self._flush()
        self.node.records.finished(self.facts.recording_id, at, command.samples, abrupt=command.abrupt)

    def _discard(self, reason: str) -> None:
        try:
            self.node.spool.withdraw(self.facts.recording_id)
        except SpoolError as error:
            log.error("discard_failed", recording=self.facts.recording_id, detail=error.detail)
        self._flush()  # why it is discarded comes before that it was
        self.node.records.void(self.facts.recording_id, reason)

    # what is told about it

    def _noted(self, kind: str, body: dict[str, object]) -> Noted:
        self._ordinal += 1
        return Noted(self._ordinal, kind, dict(body), datetime.now(UTC))

    def _note(self, kind: str, body: dict[str, object]) -> None:
        self._notes.append(self._noted(kind, body))
        if kind == "released_unrecorded":
            metrics.UNRECORDED.labels(str(body["reason"])).inc()

    def _flush(self, *, ended: bool = False) -> None:
        if self._notes or ended:
            ended_at = datetime.now(UTC) if ended else None
            self.node.records.note(self.facts, self.call.state, self.call.decision, self._notes, ended_at)
            self._notes = []

    def _publish(self, *, ended: bool = False) -> None:
        if self.superseded:
            return
        recorded = self.call.state in (State.RECORDING, State.CLOSING)
        self.node.live.put(
            self.facts.channel,
            {
                "call": str(self.facts.call_id),
                "line": self.facts.line.id if self.facts.line else "",
                "basis": self.facts.line.basis.id if self.facts.line else "",
                "state": self.call.state.value,
                "decision": self.call.decision,
                "recording": str(self.facts.recording_id) if recorded else "",
                "masked": "1" if self._recorder.masked and recorded else "0",
                "since": self._since.isoformat(timespec="milliseconds"),
                "node": self.node.name,
                **({"reference": self._code} if self._code and recorded else {}),  # otherwise Redis keeps what it has
            },
            ended=ended,
        )
