"""What must hold of every call, whatever FreeSWITCH says in whatever order; and a machine that breaks it is caught.

The suite keeps its own account of what it told the machine and judges each command by that, not by the machine's state.
"""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from callrec.call import commands as do
from callrec.call import events as on
from callrec.call import machine
from callrec.call.policy import Basis, BasisKind, Line, LockMode, Notice, Prompt, Retention
from callrec.call.state import Call, State

AT = datetime(2026, 11, 30, tzinfo=UTC)
OVER = {State.UNRECORDED, State.ENDED}
WITHOUT_DEADLINE = OVER | {State.NEW, State.RECORDING, State.STOPPED}
BEFORE_START = {State.ANNOUNCING, State.ASKING, State.AUTHORISING}
MANY_TICKS = 20  # more than the notice, every repeat of the question, the start and the close need together

_PROMPT = Prompt("/p/notice.wav", "text", "0" * 64, "1" * 64, 3.0)
_NOTICE = Notice("B", "1", _PROMPT, Retention(months=3), "https://x", "1", frozenset())
_CONSENT = Basis("consent", BasisKind.CONSENT, "", "", Retention(months=3), LockMode.GOVERNANCE, "c/", frozenset(),
                 grant_key="1", refuse_key="2", withdraw_keys="*2")  # fmt: skip
_MARKET = replace(_CONSENT, kind=BasisKind.NOTICE, grant_key="", refuse_key="", withdraw_keys="")
LINES = {"consent": _CONSENT, "market": _MARKET}

small = st.integers(0, 12)
flaws = st.sampled_from([*[None] * 10, "broken off", "not played", "cut short"])
mostly = st.sampled_from([True, True, True, False])


class Calls(RuleBasedStateMachine):
    """One call. Sequences are small numbers, so that events come early, late and twice."""

    def __init__(self):
        super().__init__()
        self.call = Call(UUID(int=1), UUID(int=2))
        self.now = 0.0
        self.sequence = 0
        self.tokens = [""]
        self.done = []  # every command so far
        # what was told of the notice
        self.ended_well = self.stopped_well = self.cut = self.whole = False
        self.flushed_at = None
        self.refused = False

    @initialize(
        line=st.sampled_from(["consent"] * 5 + ["market"] * 2 + [None]),
        repeats=small,
        steps=st.sampled_from([0, 1, 2, 3, 3, 3, 4, 5, 6, 6, 6]),
        flaw=flaws,
    )
    def arrive(self, line, repeats, steps, flaw):
        basis = replace(LINES[line], repeats=repeats // 4) if line else None
        self.known = line
        self.tell(on.Arrived(Line(line, "+38640404040", basis, _NOTICE) if line else None))
        self.goes_on(steps, 12, flaw)

    def tell(self, event):
        before = self.call
        self.keep_account(event)
        self.call, commands = machine.step(before, event, self.now)
        for command in commands:
            self.judge(command, event, before)
            self.done.append(command)
            if isinstance(command, do.Play):
                self.tokens.append(command.token)
        if before.state in OVER:
            assert (self.call, commands) == (before, []), "a call that is over stays over"
        if isinstance(event, on.RecordStarted) and before.state is State.DISCARDING:
            assert any(isinstance(command, do.StopRecording) for command in commands), "a late recording is stopped"

    def keep_account(self, event):
        if self.call.state is State.ANNOUNCING:
            match event:
                case on.PromptEnded(token, played, _, heard):
                    if token == self.tokens[1]:
                        well = played and heard == _PROMPT.seconds
                        self.ended_well, self.cut = self.ended_well or well, self.cut or not well
                case on.PromptStopped(good):
                    self.stopped_well, self.cut = self.stopped_well or good, self.cut or not good
                case on.KeysFlushed(token, sequence) if token == self.tokens[1]:
                    self.flushed_at = sequence
            self.whole = self.whole or (self.ended_well and self.stopped_well and not self.cut)
        if isinstance(event, on.Key) and event.digit == "2" and self.known == "consent":
            self.refused = self.refused or self.call.state in BEFORE_START

    def judge(self, command, event, before):
        released = self.had(do.Release)
        match command:
            case do.Authorise():
                assert self.whole, "only a whole notice is a ground"
                assert not self.refused
                if self.known == "consent":
                    assert isinstance(event, on.Key)
                    assert event.digit == "1", "only the grant key is consent"
                    assert self.flushed_at is not None
                    assert event.sequence > self.flushed_at, "only after the notice"
            case do.StartRecording():
                assert isinstance(event, on.BasisDurable), "only a durable basis starts"
                assert before.state is State.AUTHORISING
                assert self.had(do.Authorise)
                assert not self.had(do.StartRecording), "at most one start"
                assert not self.refused
            case do.Release():
                assert not released, "handed on once"
            case do.Started():
                assert self.had(do.StartRecording)
                assert not self.had(do.Discard)
                assert not self.had(do.Started)
            case do.Finish():
                assert self.had(do.Started)
                assert not self.had(do.Discard), "what is discarded stays discarded"
                assert not self.had(do.Finish)
        if isinstance(command, do.Play | do.StartRecording | do.Authorise | do.Answer):
            assert not released, "nothing is begun with a caller who is with the agents"

    def had(self, kind):
        return any(isinstance(command, kind) for command in self.done)

    # what FreeSWITCH and the rest of callrec may say, at any time

    @rule(good=mostly)
    def prompt_stops(self, good):
        self.tell(on.PromptStopped(good))

    @rule(good=mostly, which=st.sampled_from([-1, -1, -1, 0]), seconds=st.sampled_from([None, _PROMPT.seconds, 1.0]))
    def prompt_ends(self, good, which, seconds):
        self.tell(on.PromptEnded(self.tokens[which], good, AT, seconds))

    @rule(which=st.sampled_from([-1, -1, -1, 0]), sequence=small)
    def keys_flushed(self, which, sequence):
        self.tell(on.KeysFlushed(self.tokens[which], sequence))

    @rule(steps=st.integers(1, 6), sequence=small, flaw=flaws)
    def goes_on(self, steps, sequence, flaw):
        """What usually comes next comes next, so that a few steps reach any state; the notice may have a flaw."""
        for _ in range(steps):
            match self.call.state:
                case State.ANNOUNCING if not (self.stopped_well or self.cut):
                    self.tell(on.PromptStopped(flaw != "broken off"))
                case State.ANNOUNCING if not self.ended_well and self.call.completed is None:
                    seconds = 1.0 if flaw == "cut short" else _PROMPT.seconds
                    self.tell(on.PromptEnded(self.tokens[1], flaw != "not played", AT, seconds))
                case State.ANNOUNCING:
                    self.tell(on.KeysFlushed(self.tokens[1], sequence))
                case State.ASKING:
                    self.tell(on.Key("1", 13))
                case State.AUTHORISING:
                    self.tell(on.BasisDurable())
                case State.STARTING:
                    self.tell(on.RecordStarted(AT))

    @rule()
    def goes_well(self):
        self.goes_on(6, 12, None)

    @rule(digit=st.sampled_from("12"), sequence=st.sampled_from([1, 12]))
    def early_answer(self, digit, sequence):
        self.tell(on.Key(digit, sequence))

    @rule(digit=st.sampled_from("12*5"), sequence=st.sampled_from([12, 13, 14]))
    def key(self, digit, sequence):
        self.tell(on.Key(digit, sequence))

    @rule()
    def withdraws_by_key(self):
        self.tell(on.Key("*", 20))
        self.tell(on.Key("2", 21))

    @rule()
    def basis_durable(self):
        self.tell(on.BasisDurable())

    @rule(event=st.sampled_from([on.BasisMissing("ledger_down"), on.RecordReply(False), on.LinkLost(), on.Hangup()]))
    def misfortune(self, event):
        self.tell(event)

    @rule(event=st.sampled_from([on.RecordReply(True), on.PromptStarted(None), on.MaskReply(True, True)]))
    def remark(self, event):
        self.tell(event)

    @rule(as_asked=mostly)
    def record_started(self, as_asked):
        self.tell(on.RecordStarted(AT, as_asked))

    @rule()
    def record_stopped(self):
        self.tell(on.RecordStopped(AT, 8000))

    @rule(order=st.sampled_from(on.Order))
    def ordered(self, order):
        self.tell(on.Ordered(order))

    @rule()
    def time_passes(self):
        if self.call.deadline is not None:
            self.now = max(self.now, self.call.deadline)
            self.tell(on.Tick())

    @rule()
    def second_arrival(self):
        self.tell(on.Arrived(self.call.line))

    # what holds after every event

    @invariant()
    def deadline_is_pending_while_anything_is_awaited(self):
        assert (self.call.deadline is None) == (self.call.state in WITHOUT_DEADLINE)

    @invariant()
    def caller_is_released_or_will_be(self):
        assert self.call.released == self.had(do.Release)
        if self.call.state is State.NEW:
            return
        call, commands = self.left_alone(self.call)
        assert call.released, "time alone hands the caller on"
        assert self.had(do.Release) or any(isinstance(command, do.Release) for command in commands)

    @invariant()
    def call_ends_after_hangup(self):
        call, _ = machine.step(self.call, on.Hangup(), self.now)
        call, _ = self.left_alone(call)
        assert call.state in OVER, "nothing is left behind by a call that is over"

    @invariant()
    def recorded_only_where_it_started(self):
        if self.call.state in {State.RECORDING, State.STOPPED}:
            assert self.had(do.Started)
        if self.call.state is State.UNRECORDED:
            assert not self.had(do.StartRecording)

    def left_alone(self, call):
        """The call after nothing but time has passed, and what it commanded meanwhile."""
        commands = []
        for _ in range(MANY_TICKS):
            if call.deadline is None:
                break
            call, more = machine.step(call, on.Tick(), max(self.now, call.deadline))
            commands += more
        assert call.deadline is None, "a call left alone comes to rest"
        return call, commands


SETTINGS = settings(max_examples=300, stateful_step_count=30)


def test_what_must_hold_of_every_call():
    """Of which one is that nothing starts a recording but its durable basis: no key, and no order (B7)."""
    run_state_machine_as_test(Calls, settings=SETTINGS)


# The suite must see a machine that breaks the rule.


def no_basis_needed(monkeypatch):
    def authorise(call, decision, now):
        call = replace(call, state=State.STARTING, decision=decision, token="", deadline=now + 1)
        return call, [do.StartRecording()]

    monkeypatch.setattr(machine, "_authorise", authorise)


def cut_notice_is_whole(monkeypatch):
    judge = machine._judge_notice

    def blind(call, now):
        if call.completed is None:
            return call, []
        return judge(replace(call, unbroken=True, completed=replace(call.completed, played=True)), now)

    monkeypatch.setattr(machine, "_judge_notice", blind)


def half_a_notice_is_whole(monkeypatch):
    monkeypatch.setattr(machine, "_to_its_end", lambda *_: True)


def early_key_counts(monkeypatch):
    answers = machine._key_answers
    early = lambda call, event, now: answers(replace(call, listening_from=-1), event, now)  # noqa: E731 # one line of mischief
    monkeypatch.setitem(machine.TABLE, (State.ASKING, on.Key), early)


def any_key_is_consent(monkeypatch):
    answers = machine._key_answers
    lax = lambda call, event, now: answers(call, replace(event, digit="1"), now)  # noqa: E731 # one line of mischief
    monkeypatch.setitem(machine.TABLE, (State.ASKING, on.Key), lax)


def refusal_during_the_notice_is_overheard(monkeypatch):
    monkeypatch.delitem(machine.TABLE, (State.ANNOUNCING, on.Key))


def refused_caller_is_not_released(monkeypatch):
    unrecorded = machine._unrecorded

    def park(call, reason, *commands):
        call, commands = unrecorded(call, reason, *commands)
        return call, [command for command in commands if not isinstance(command, do.Release)]

    monkeypatch.setattr(machine, "_unrecorded", park)


def silence_is_waited_for(monkeypatch):
    monkeypatch.setattr(machine, "_wait_for_key", lambda call, _now: replace(call, token="", deadline=None))


def question_is_repeated_for_ever(monkeypatch):
    again = machine._ask_again
    for_ever = lambda call, why, now, **_: again(call, why, now, counts=False)  # noqa: E731 # one line of mischief
    monkeypatch.setattr(machine, "_ask_again", for_ever)


def basis_starts_two_recordings(monkeypatch):
    monkeypatch.setitem(machine.TABLE, (State.STARTING, on.BasisDurable), machine._durable)


def withdrawn_recording_is_kept(monkeypatch):
    def keep(call, event, now):
        return replace(call, state=State.ENDED, deadline=None), [do.Finish(event.at, event.samples, abrupt=False)]

    monkeypatch.setitem(machine.TABLE, (State.DISCARDING, on.RecordStopped), keep)


def late_recording_goes_on(monkeypatch):
    monkeypatch.delitem(machine.TABLE, (State.DISCARDING, on.RecordStarted))


def hangup_after_a_stop_is_overheard(monkeypatch):
    monkeypatch.delitem(machine.TABLE, (State.STOPPED, on.Hangup))


MUTANTS = (
    no_basis_needed, cut_notice_is_whole, half_a_notice_is_whole, early_key_counts, any_key_is_consent,
    refusal_during_the_notice_is_overheard, refused_caller_is_not_released, silence_is_waited_for,
    question_is_repeated_for_ever, basis_starts_two_recordings, withdrawn_recording_is_kept, late_recording_goes_on,
    hangup_after_a_stop_is_overheard,
)  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_machine_that_breaks_the_rule_is_caught(mutant, monkeypatch):
    mutant(monkeypatch)
    hunt = settings(
        SETTINGS, max_examples=1500, derandomize=True, database=None, phases=[Phase.generate],
        report_multiple_bugs=False, print_blob=False,
    )  # fmt: skip
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Calls, settings=hunt)
