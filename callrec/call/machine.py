"""What callrec does with a call, as one table.

A caller reaches a line of the policy. The notice of that line is played whole. On a consent line the caller is then
asked; on a market-transaction line the notice is enough. Only then is the legal basis made durable, only then does the
recording start, and once FreeSWITCH says that it has started, or anything at all is missing, the call is handed on
to the agents. Every answer leads the same way on (D7). In the order of the rule:

    NEW           the line is known: answer, play the notice                 unknown: release, nothing is played (B8)
    ANNOUNCING    the notice runs; it can't be interrupted                   a `2` counts at once (A5), a `1` is early
    ASKING        the notice was heard whole: a `1` is consent (A4)          `2`, silence, wrong keys are not (A6, A7)
    AUTHORISING   the basis is on its way to Postgres                        not there in time: release unrecorded
    STARTING      uuid_record was sent                                       no RECORD_START: discard, release
    RECORDING     RECORD_START with our path was seen; the caller is released
    CLOSING       the call is over, or a stop was ordered: the file is being closed
    STOPPED       the recording is complete, the conversation goes on: a withdrawal still counts (D1)
    DISCARDING    withdrawn or failed: stopped, the file is removed, whatever FreeSWITCH still says about it
    UNRECORDED    released without a recording
    ENDED         nothing more will happen

Everything that affects a call's state is in this file. `step` knows no clock, socket, log or database: time comes in
as an argument (seconds of a monotonic clock), commands go out as values and the listener performs them in order.
A pair of state and event that is not in the table changes nothing: FreeSWITCH may say more than we asked, and late.

Keys are judged by FreeSWITCH's own numbering of events (Event-Sequence), not by arrival: its dispatch threads may
overtake each other. `1` counts only if it is numbered after the end of the whole notice.
"""

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter

from callrec.call import commands as do
from callrec.call import events as on
from callrec.call.policy import BasisKind, Prompt
from callrec.call.state import Call, State

Step = tuple[Call, list[do.Command]]

_UNHEARD = 0.04  # seconds that may be missing of a whole prompt: two frames; resampling loses less than one


def step(call: Call, event: on.Event, now: float) -> Step:
    """The rule: what becomes of the call, and what is to be done, in this order."""
    handler = TABLE.get((call.state, type(event)))
    return handler(call, event, now) if handler else (call, [])


def _arrived(call: Call, event: on.Arrived, now: float) -> Step:
    line = event.line
    if line is None:
        call = replace(call, state=State.UNRECORDED, decision="unknown_line", released=True)
        return call, [do.Release(), do.Note("released_unrecorded", {"reason": "unknown_line"})]
    call = replace(call, line=line)
    call, play = _play(call, line.notice.prompt, now)
    about = {"line": line.id, "basis": line.basis.id, "notice": line.notice.id, "notice_version": line.notice.version}
    return replace(call, state=State.ANNOUNCING), [do.Note("call_arrived", about), do.Answer(), play]


def _play(call: Call, prompt: Prompt, now: float) -> tuple[Call, do.Play]:
    number = call.prompts + 1
    length = prompt.seconds + call.timing.prompt if prompt.seconds else call.timing.unknown_prompt
    flush = call.rule.basis.kind is BasisKind.CONSENT
    token = f"{call.id}:{number}"
    call = replace(call, prompts=number, token=token, deadline=now + length)
    return call, do.Play(prompt, token, flush)


# ANNOUNCING


def _notice_started(call: Call, event: on.PromptStarted, _now: float) -> Step:
    return call, [do.Note("notice_started", {"at": on.iso(event.at)})]


def _notice_stopped(call: Call, event: on.PromptStopped, now: float) -> Step:
    return _judge_notice(replace(call, unbroken=event.done and call.unbroken is not False), now)


def _notice_ended(call: Call, event: on.PromptEnded, now: float) -> Step:
    call = replace(call, completed=call.completed or event) if event.token == call.token else call
    return _judge_notice(call, now)


def _judge_notice(call: Call, now: float) -> Step:
    """Whole is what FreeSWITCH calls both played and not broken off, whichever it says first. Judged once."""
    if call.heard_whole or call.completed is None or (call.completed.played and call.unbroken is None):
        return call, []
    at = {"at": on.iso(call.completed.at)}
    if not call.unbroken:
        return _unrecorded(call, "notice_not_played", do.Note("notice_cut", at))
    if not _to_its_end(call.completed, call.rule.notice.prompt):
        return replace(call, deadline=now + call.timing.hangup), []  # what cut it is about to be told
    heard = do.Note("notice_completed", at | call.rule.notice.proof())
    call = replace(call, heard_whole=True)
    enough = call.rule.basis.kind is BasisKind.NOTICE
    call, commands = _authorise(call, "notice_given", now) if enough else _open_question(call, now)
    return call, [heard, *commands]


def _to_its_end(completed: on.PromptEnded, prompt: Prompt) -> bool:
    """A caller who hangs up may cut a prompt on a channel still up, and FreeSWITCH may call it played: 1 in 80 (A3)."""
    return completed.played and (completed.heard or 0.0) >= prompt.seconds - _UNHEARD > 0


def _notice_flushed(call: Call, event: on.KeysFlushed, now: float) -> Step:
    call = replace(call, listening_from=event.sequence) if event.token == call.token else call
    return _open_question(call, now)


def _open_question(call: Call, now: float) -> Step:
    if not call.heard_whole or call.listening_from is None:
        return call, []
    call = _wait_for_key(replace(call, state=State.ASKING), now)
    return _ask_again(call, "early", now, counts=False) if call.early else (call, [])


def _key_during_notice(call: Call, event: on.Key, now: float) -> Step:
    if event.digit and event.digit == call.rule.basis.grant_key and not call.early:
        return replace(call, early=True), [do.Note("key_pressed", {"meaning": "early"})]
    return _key_while_authorising(call, event, now)


def _notice_overdue(call: Call, _event: on.Tick, _now: float) -> Step:
    if call.completed is not None and call.unbroken:  # cut short, and no hang-up came
        return _unrecorded(call, "notice_not_played", do.Note("notice_cut", {"at": on.iso(call.completed.at)}))
    return _unrecorded(call, "notice_overdue", do.Break())


# ASKING


def _wait_for_key(call: Call, now: float) -> Call:
    return replace(call, token="", deadline=now + call.rule.basis.wait_seconds)


def _key_answers(call: Call, event: on.Key, now: float) -> Step:
    basis = call.rule.basis
    if event.digit == basis.refuse_key:
        return _refused(call, event)
    if call.listening_from is None or event.sequence <= call.listening_from:
        return _overtaken_key(call, event, now)
    if event.digit == basis.grant_key:
        pressed = do.Note("key_pressed", {"meaning": "granted", "key": event.digit})
        quiet = _quiet(call)
        call, commands = _authorise(call, "granted", now)
        return call, [*quiet, pressed, *commands]
    if call.token:  # the question is being asked again as it is
        return call, []
    return _ask_again(call, "wrong_key", now)


def _overtaken_key(call: Call, event: on.Key, now: float) -> Step:
    """FreeSWITCH numbered it before the end of the notice: as early as one that comes in time."""
    if event.digit != call.rule.basis.grant_key or call.early:
        return call, []
    call, early = replace(call, early=True), do.Note("key_pressed", {"meaning": "early"})
    call, commands = (call, []) if call.token else _ask_again(call, "early", now, counts=False)
    return call, [early, *commands]


def _question_ended(call: Call, event: on.PromptEnded, now: float) -> Step:
    # Played or not: the caller was informed by the whole notice before, and without the question silence decides.
    return (_wait_for_key(call, now), []) if event.token == call.token else (call, [])


def _no_key(call: Call, _event: on.Tick, now: float) -> Step:
    return _ask_again(call, "no_input", now)


def _ask_again(call: Call, why: str, now: float, *, counts: bool = True) -> Step:
    quiet = _quiet(call)  # a question that is overdue may still be playing
    if counts and call.repeats >= call.rule.basis.repeats:
        return _unrecorded(call, why, *quiet, do.Note("no_consent", {"reason": why, "repeats": call.repeats}))
    call, play = _play(call, call.rule.notice.ask or call.rule.notice.prompt, now)
    call = replace(call, repeats=call.repeats + counts)
    return call, [*quiet, do.Note("asked_again", {"reason": why}), replace(play, flush=False)]


def _refused(call: Call, event: on.Key) -> Step:
    note = do.Note("consent_refused", {"key": event.digit})
    return _unrecorded(replace(call, decision="refused"), "refused", *_quiet(call), note)


def _quiet(call: Call) -> list[do.Command]:
    return [do.Break()] if call.token else []


# AUTHORISING and STARTING


def _authorise(call: Call, decision: str, now: float) -> Step:
    call = replace(call, state=State.AUTHORISING, decision=decision, token="", deadline=now + call.timing.authorise)
    return call, [do.Authorise()]


def _durable(call: Call, _event: on.BasisDurable, now: float) -> Step:
    return replace(call, state=State.STARTING, deadline=now + call.timing.start), [do.StartRecording()]


def _missing(call: Call, event: on.BasisMissing, _now: float) -> Step:
    return _unrecorded(call, event.reason)


def _key_while_authorising(call: Call, event: on.Key, _now: float) -> Step:
    return _refused(call, event) if event.digit and event.digit == call.rule.basis.refuse_key else (call, [])


def _no_answer(call: Call, _event: on.Tick, _now: float) -> Step:
    return _unrecorded(call, "decision_overdue")


def _record_reply(call: Call, event: on.RecordReply, now: float) -> Step:
    return (call, []) if event.ok else _discard(call, "start_refused", now)


def _record_started(call: Call, event: on.RecordStarted, now: float) -> Step:
    if not event.as_asked:
        return _discard(call, "started_otherwise", now, do.StopRecording())
    call = replace(call, state=State.RECORDING, started=True, released=True, deadline=None)
    return call, [do.Started(event.at), do.Release()]


def _start_overdue(call: Call, _event: on.Tick, now: float) -> Step:
    return _discard(call, "start_overdue", now, do.StopRecording())


def _key_while_starting(call: Call, event: on.Key, now: float) -> Step:
    if event.digit and event.digit == call.rule.basis.refuse_key:
        return _withdrawn(call, now, channel="key", key=event.digit)
    return call, []


def _link_lost_while_starting(call: Call, _event: on.LinkLost, now: float) -> Step:
    return _discard(call, "link_lost", now, do.StopRecording())


# RECORDING, CLOSING and STOPPED


def _key_in_conversation(call: Call, event: on.Key, now: float) -> Step:
    wanted = call.rule.basis.withdraw_keys
    if not wanted:
        return call, []
    # Twice as many as are wanted, in FreeSWITCH's order: one may still be overtaken by the next.
    keys = tuple(sorted((*call.keys, (event.sequence, event.digit)), key=itemgetter(0))[-2 * len(wanted) :])
    if wanted not in "".join(digit for _, digit in keys):
        return replace(call, keys=keys), []
    return _withdrawn(call, now, channel="key", key=wanted)


def _ordered(call: Call, event: on.Ordered, now: float) -> Step:
    match event.order:
        case on.Order.MASK | on.Order.UNMASK:
            return call, [do.Mask(on=event.order is on.Order.MASK)]
        case on.Order.STOP:
            return replace(call, state=State.CLOSING, deadline=now + call.timing.close), [do.StopRecording()]
    return _withdrawal_ordered(call, event, now)


def _withdrawal_ordered(call: Call, event: on.Ordered, now: float) -> Step:
    """A withdrawal counts from the start of the recording to the end of the call (D1); another order needs more."""
    if event.order is not on.Order.WITHDRAW:
        return call, []
    if call.rule.basis.kind is not BasisKind.CONSENT:
        return call, [do.Note("withdrawal_without_effect", {"basis": call.rule.basis.id})]  # D4
    return _withdrawn(call, now, channel="order")


def _masked(call: Call, event: on.MaskReply, _now: float) -> Step:
    verb = "masked" if event.on else "unmasked"
    return call, [do.Note(f"recording_{verb}" if event.ok else f"recording_not_{verb}", {})]


def _hangup_while_recording(call: Call, _event: on.Hangup, now: float) -> Step:
    commands: list[do.Command] = [] if call.released else [do.Release()]
    call = replace(call, state=State.CLOSING, hung_up=True, released=True, deadline=now + call.timing.close)
    return call, commands


def _started_while_closing(call: Call, event: on.RecordStarted, now: float) -> Step:
    if call.started:
        return call, []
    if not event.as_asked:
        return _discard(call, "started_otherwise", now)
    return replace(call, started=True), [do.Started(event.at)]  # the caller hung up while the recording was starting


def _record_stopped(call: Call, event: on.RecordStopped, now: float) -> Step:
    if not call.started:
        return _discard(call, "never_started", now)
    return _complete(call, do.Finish(event.at, event.samples, abrupt=False))


def _stop_overdue(call: Call, _event: on.Tick, now: float) -> Step:
    if not call.started:
        return _discard(call, "never_started", now)
    return _complete(call, do.Finish(None, None, abrupt=True))


def _complete(call: Call, finish: do.Finish) -> Step:
    return replace(call, state=State.ENDED if call.hung_up else State.STOPPED, deadline=None), [finish]


def _hangup_after_stop(call: Call, _event: on.Hangup, _now: float) -> Step:
    state = State.ENDED if call.state is State.STOPPED else call.state
    return replace(call, state=state, hung_up=True), []


# the ways out


def _unrecorded(call: Call, reason: str, *commands: do.Command) -> Step:
    onward = [do.Release(), do.Note("released_unrecorded", {"reason": reason}), *_voided(call, reason)]
    call = replace(call, state=State.UNRECORDED, decision=call.decision or reason, released=True, deadline=None)
    return call, [*commands, *onward]


def _voided(call: Call, reason: str) -> list[do.Command]:
    return [do.Void(reason)] if call.state is State.AUTHORISING else []  # the basis may be durable all the same


def _withdrawn(call: Call, now: float, **how: str) -> Step:
    note = do.Note("consent_withdrawn", how)
    return _discard(replace(call, decision="withdrawn"), "withdrawn", now, do.StopRecording(), note)


def _discard(call: Call, reason: str, now: float, *commands: do.Command) -> Step:
    if not call.released:
        commands += (do.Release(), do.Note("released_unrecorded", {"reason": reason}))
    call = replace(call, state=State.DISCARDING, released=True, deadline=now + call.timing.close)
    return call, [*commands, do.Discard(reason)]


def _abandoned(call: Call, _event: on.Hangup, _now: float) -> Step:
    kind = "abandoned_during_notice" if call.state is State.ANNOUNCING else "abandoned"
    commands = [do.Release(), do.Note(kind, {}), *_voided(call, "abandoned")]
    call = replace(call, state=State.ENDED, decision="abandoned", hung_up=True, released=True, deadline=None)
    return call, commands


def _lost(call: Call, _event: on.LinkLost, _now: float) -> Step:
    return _unrecorded(call, "link_lost")


def _started_too_late(call: Call, _event: on.RecordStarted, _now: float) -> Step:
    return call, [do.StopRecording()]


def _discarded(call: Call, _event: on.Event, _now: float) -> Step:
    return replace(call, state=State.ENDED, deadline=None), [do.Discard("closed")]


TABLE: dict[tuple[State, type], Callable[..., Step]] = {
    (State.NEW, on.Arrived): _arrived,
    (State.NEW, on.Hangup): _abandoned,
    (State.ANNOUNCING, on.PromptStarted): _notice_started,
    (State.ANNOUNCING, on.PromptStopped): _notice_stopped,
    (State.ANNOUNCING, on.PromptEnded): _notice_ended,
    (State.ANNOUNCING, on.KeysFlushed): _notice_flushed,
    (State.ANNOUNCING, on.Key): _key_during_notice,
    (State.ANNOUNCING, on.Tick): _notice_overdue,
    (State.ANNOUNCING, on.Hangup): _abandoned,
    (State.ANNOUNCING, on.LinkLost): _lost,
    (State.ASKING, on.PromptEnded): _question_ended,
    (State.ASKING, on.Key): _key_answers,
    (State.ASKING, on.Tick): _no_key,
    (State.ASKING, on.Hangup): _abandoned,
    (State.ASKING, on.LinkLost): _lost,
    (State.AUTHORISING, on.BasisDurable): _durable,
    (State.AUTHORISING, on.BasisMissing): _missing,
    (State.AUTHORISING, on.Tick): _no_answer,
    (State.AUTHORISING, on.Key): _key_while_authorising,
    (State.AUTHORISING, on.Hangup): _abandoned,
    (State.AUTHORISING, on.LinkLost): _lost,
    (State.STARTING, on.RecordReply): _record_reply,
    (State.STARTING, on.RecordStarted): _record_started,
    (State.STARTING, on.Key): _key_while_starting,
    (State.STARTING, on.Ordered): _withdrawal_ordered,
    (State.STARTING, on.Tick): _start_overdue,
    (State.STARTING, on.Hangup): _hangup_while_recording,
    (State.STARTING, on.LinkLost): _link_lost_while_starting,
    (State.RECORDING, on.Key): _key_in_conversation,
    (State.RECORDING, on.Ordered): _ordered,
    (State.RECORDING, on.MaskReply): _masked,
    (State.RECORDING, on.Hangup): _hangup_while_recording,
    (State.RECORDING, on.RecordStopped): _record_stopped,
    (State.CLOSING, on.RecordStarted): _started_while_closing,
    (State.CLOSING, on.RecordStopped): _record_stopped,
    (State.CLOSING, on.Key): _key_in_conversation,
    (State.CLOSING, on.Ordered): _withdrawal_ordered,
    (State.CLOSING, on.Hangup): _hangup_after_stop,
    (State.CLOSING, on.Tick): _stop_overdue,
    (State.STOPPED, on.Key): _key_in_conversation,
    (State.STOPPED, on.Ordered): _withdrawal_ordered,
    (State.STOPPED, on.Hangup): _hangup_after_stop,
    (State.DISCARDING, on.RecordStarted): _started_too_late,
    (State.DISCARDING, on.RecordStopped): _discarded,
    (State.DISCARDING, on.Hangup): _discarded,
    (State.DISCARDING, on.Tick): _discarded,
}
