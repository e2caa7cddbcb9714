"""The rule of a call, requirement by requirement: events in, state and commands out."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from callrec.call import commands as do
from callrec.call import events as on
from callrec.call import machine
from callrec.call.policy import Basis, BasisKind, Line, LockMode, Notice, Prompt, Retention
from callrec.call.state import Call, State

AT = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
RETENTION = Retention(months=3)
NOTICE = Notice("B", "1", Prompt("/p/b.wav", "text", "t" * 64, "a" * 64, 8.0), RETENTION, "https://x", "2", frozenset(),
                Prompt("/p/ask.wav", "ask", "q" * 64, "b" * 64, 2.0))  # fmt: skip
CONSENT = Basis("consent", BasisKind.CONSENT, "c", "a", RETENTION, LockMode.GOVERNANCE, "c/", frozenset({"quality"}),
                grant_key="1", refuse_key="2", withdraw_keys="*2", wait_seconds=5.0, repeats=2)  # fmt: skip
MARKET = replace(CONSENT, id="market", kind=BasisKind.NOTICE, grant_key="", refuse_key="", withdraw_keys="")
SERVICE = Line("service", "+38640404040", CONSENT, NOTICE)
SALES = Line("sales", "+38640404045", MARKET, NOTICE)

BEFORE_START = (State.ANNOUNCING, State.ASKING, State.AUTHORISING)


class Run:
    """A call that is told events, and remembers every command."""

    def __init__(self, line=SERVICE):
        self.call = Call(UUID(int=1), UUID(int=2))
        self.now = 100.0
        self.all = []
        self.arrived = self(on.Arrived(line))

    def __call__(self, *events):
        """The commands that these events cause together."""
        caused = []
        for event in events:
            self.call, commands = machine.step(self.call, event, self.now)
            caused += commands
        self.all += caused
        return caused

    def tick(self):
        """Time passes to the deadline."""
        self.now = self.call.deadline
        return self(on.Tick())

    def played(self, played=True, done=True):
        """The prompt that plays ends."""
        stop = [on.PromptStopped(done)] if done is not None else []
        return self(*stop, on.PromptEnded(self.call.token, played, AT, 8.0))

    def heard(self, flushed_at=100):
        """The notice plays whole, and unread keys are flushed."""
        commands = self(on.PromptStarted(AT)) + self.played()
        return commands + (self(on.KeysFlushed(self.call.token, flushed_at)) if self.state is State.ANNOUNCING else [])

    @property
    def state(self):
        return self.call.state

    def kinds(self):
        return [command.kind for command in self.all if isinstance(command, do.Note)]

    def count(self, command):
        return len(of(self.all, command))


def of(commands, kind):
    return [command for command in commands if isinstance(command, kind)]


def names(commands):
    return [command.kind if isinstance(command, do.Note) else type(command).__name__ for command in commands]


def reached(state, line=SERVICE):
    """A call in this state, by the usual way."""
    run = Run(line)
    if state is State.ANNOUNCING:
        return run
    run.heard()
    if line is SERVICE:
        if state is State.ASKING:
            return run
        run(on.Key("1", 101))
    if state is State.AUTHORISING:
        return run
    run(on.BasisDurable())
    if state is State.STARTING:
        return run
    run(on.RecordReply(ok=True), on.RecordStarted(AT))
    if state is State.RECORDING:
        return run
    run(on.Hangup() if state is State.CLOSING else on.RecordStopped(AT, 8000))
    assert run.state is state
    return run


# the way through


def test_a_caller_who_agrees_is_recorded_and_handed_on_a4():
    run = Run()
    assert names(run.arrived) == ["call_arrived", "Answer", "Play"]
    assert run.arrived[2] == do.Play(NOTICE.prompt, run.call.token, flush=True)
    assert names(run.heard()) == ["notice_started", "notice_completed"]
    assert names(run(on.Key("1", 101))) == ["key_pressed", "Authorise"]
    assert (run.state, run.call.decision) == (State.AUTHORISING, "granted")
    assert names(run(on.BasisDurable())) == ["StartRecording"]
    assert run(on.RecordReply(ok=True)) == []
    assert run(on.RecordStarted(AT)) == [do.Started(AT), do.Release()]
    assert (run.state, run.call.deadline) == (State.RECORDING, None)
    assert run(on.Hangup()) == []
    assert run(on.RecordStopped(AT, 8000)) == [do.Finish(AT, 8000, abrupt=False)]
    assert run.state is State.ENDED


def test_a_market_transaction_needs_the_notice_and_no_key_a1():
    run = Run(SALES)
    assert not run.arrived[2].flush
    assert run(on.Key("1", 50), on.Key("2", 51)) == []
    assert names(run.played()) == ["notice_completed", "Authorise"]
    assert run.call.decision == "notice_given"
    assert names(run(on.BasisDurable())) == ["StartRecording"]


def test_what_the_caller_was_told_is_in_the_evidence_a8():
    run = Run()
    run.heard()
    notes = {note.kind: note.body for note in of(run.all, do.Note)}
    assert notes["call_arrived"] == {"line": "service", "basis": "consent", "notice": "B", "notice_version": "1"}
    assert notes["notice_started"] == {"at": "2026-11-30T12:00:00.000+00:00"}
    assert notes["notice_completed"] == {
        "at": "2026-11-30T12:00:00.000+00:00", "text_sha256": "t" * 64, "audio_sha256": "a" * 64,
        "notice_url": "https://x", "policy_version": "2",
    }  # fmt: skip


def test_an_unknown_line_is_released_at_once_and_nothing_is_played_b8():
    run = Run(None)
    assert names(run.arrived) == ["Release", "released_unrecorded"]
    assert (run.state, run.call.decision) == (State.UNRECORDED, "unknown_line")
    assert run(on.Key("1", 5), on.BasisDurable(), on.RecordStarted(AT), on.Hangup()) == []


# the notice


@pytest.mark.parametrize(
    "events",
    [
        [("end", False)],  # FILE NOT FOUND: no PLAYBACK events at all
        [("stop", False), ("end", True)],
        [("end", True), ("stop", False)],
        [("stop", False), ("end", False)],
        [("stop", False), ("stop", True), ("end", True)],  # another's playback ended well after ours was broken off
    ],
)
@pytest.mark.parametrize("line", [SERVICE, SALES], ids=lambda line: line.id)
def test_a_cut_notice_is_never_recorded_a2(line, events):
    run = Run(line)
    for kind, good in events:
        run(on.PromptStopped(good) if kind == "stop" else on.PromptEnded(run.call.token, good, AT, 8.0))
    assert (run.state, run.call.decision) == (State.UNRECORDED, "notice_not_played")
    assert run.kinds()[-2:] == ["notice_cut", "released_unrecorded"]
    run(on.KeysFlushed(run.call.token, 100), on.Key("1", 101), on.BasisDurable())
    assert run.count(do.Authorise) == run.count(do.StartRecording) == 0
    assert run.count(do.Release) == 1


def ended_after(heard, played=True):
    """A notice of 1.5 s that FreeSWITCH calls done after `heard` seconds, and played or not."""
    notice = replace(SALES.notice, prompt=replace(SALES.notice.prompt, seconds=1.5))
    run = Run(replace(SALES, notice=notice))
    run(on.PromptStarted(AT), on.PromptStopped(True), on.PromptEnded(run.call.token, played, AT, heard))
    return run


@pytest.mark.parametrize("heard", [1.4992, 1.5])
def test_a_notice_is_whole_at_its_end_a3(heard):
    assert ended_after(heard).state is State.AUTHORISING


@pytest.mark.parametrize(("heard", "played"), [(0.0, True), (0.8, True), (1.44, True), (None, True), (None, False)])
def test_a_notice_that_freeswitch_calls_done_before_its_end_is_cut_a3(heard, played):
    hung_up, alone = ended_after(heard, played), ended_after(heard, played)
    assert hung_up.count(do.Authorise) == alone.count(do.Authorise) == 0
    hung_up(on.Hangup())
    assert (hung_up.state, hung_up.call.decision) == (State.ENDED, "abandoned")
    alone.tick()
    assert (alone.state, alone.call.decision) == (State.UNRECORDED, "notice_not_played")
    assert alone.kinds()[-2:] == ["notice_cut", "released_unrecorded"]


@pytest.mark.parametrize("line", [SERVICE, SALES], ids=lambda line: line.id)
def test_half_of_the_proof_of_a_whole_notice_is_none_a2(line):
    for half in (on.PromptStopped(True), on.PromptEnded("00000000-0000-0000-0000-000000000001:1", True, AT, 8.0)):
        run = Run(line)
        run(half, on.KeysFlushed(run.call.token, 100), on.Key("1", 101))
        assert run.state is State.ANNOUNCING
        assert names(run.tick()) == ["Break", "Release", "released_unrecorded"]
        assert run.call.decision == "notice_overdue"


def test_the_end_of_another_prompt_is_not_the_end_of_the_notice_a2():
    run = Run(SALES)
    run(on.PromptStopped(True), on.PromptEnded("another", True, AT, 8.0), on.PromptEnded("", True, AT, 8.0))
    assert run.state is State.ANNOUNCING


def test_a_notice_that_is_said_to_be_whole_twice_is_noted_once_a8():
    run = Run()
    end = on.PromptEnded(run.call.token, True, AT, 8.0)
    run(on.PromptStopped(True), end, on.PromptStopped(True), end)
    assert run.kinds().count("notice_completed") == 1


def test_the_notice_has_its_own_length_to_be_played_in():
    run = Run()
    assert run.call.deadline == run.now + NOTICE.prompt.seconds + run.call.timing.prompt
    unknown = Run(replace(SERVICE, notice=replace(NOTICE, prompt=replace(NOTICE.prompt, seconds=0.0))))
    assert unknown.call.deadline == unknown.now + unknown.call.timing.unknown_prompt


# hang-up


@pytest.mark.parametrize("line", [SERVICE, SALES], ids=lambda line: line.id)
@pytest.mark.parametrize("state", BEFORE_START)
def test_nothing_exists_of_a_caller_who_hangs_up_before_the_start_a3(state, line):
    if (state, line) == (State.ASKING, SALES):
        return  # is never asked
    run = reached(state, line)
    caused = run(on.Hangup())
    assert (run.state, run.call.decision) == (State.ENDED, "abandoned")
    assert run.kinds()[-1] == ("abandoned_during_notice" if state is State.ANNOUNCING else "abandoned")
    assert of(caused, do.Void) == ([do.Void("abandoned")] if state is State.AUTHORISING else [])
    assert run(on.PromptStopped(True), on.BasisDurable(), on.Key("1", 200), on.RecordStarted(AT), on.Tick()) == []
    assert run.count(do.StartRecording) == 0


def test_a_hangup_before_anything_is_nothing():
    call, commands = machine.step(Call(UUID(int=1), UUID(int=2)), on.Hangup(), 0.0)
    assert (call.state, names(commands)) == (State.ENDED, ["Release", "abandoned"])


def test_a_hangup_while_the_recording_starts_keeps_what_was_recorded():
    run = reached(State.STARTING)
    assert run(on.Hangup()) == [do.Release()]
    assert run(on.RecordStarted(AT)) == [do.Started(AT)]
    assert run(on.RecordStopped(AT, 160)) == [do.Finish(AT, 160, abrupt=False)]
    assert run.state is State.ENDED


@pytest.mark.parametrize("how", ["overdue", "stopped", "otherwise"])
def test_a_hangup_while_the_recording_starts_discards_what_never_started(how):
    run = reached(State.STARTING)
    run(on.Hangup())
    ends = {
        "overdue": run.tick,
        "stopped": lambda: run(on.RecordStopped(AT, 0)),
        "otherwise": lambda: run(on.RecordStarted(AT, as_asked=False)),
    }
    ends[how]()
    assert run.state is State.DISCARDING
    assert run.count(do.Discard) == 1
    run.tick()
    assert (run.state, run.count(do.Finish), run.count(do.Release)) == (State.ENDED, 0, 1)


# keys


@pytest.mark.parametrize("digit", list("03456789*#ABCD"))
def test_another_key_is_never_consent_a4(digit):
    run = reached(State.ASKING)
    for _ in range(5):
        if run.state is State.ASKING:
            run(on.Key(digit, 200))
            run.played()
    assert (run.state, run.call.decision) == (State.UNRECORDED, "wrong_key")
    assert run.count(do.Authorise) == 0


@pytest.mark.parametrize("state", BEFORE_START)
def test_a_2_counts_at_any_time_a5_a6(state):
    run = reached(state)
    caused = run(on.Key("2", 1))
    assert (run.state, run.call.decision) == (State.UNRECORDED, "refused")
    around = {State.ANNOUNCING: (["Break"], []), State.ASKING: ([], []), State.AUTHORISING: ([], ["Void"])}[state]
    assert names(caused) == [*around[0], "consent_refused", "Release", "released_unrecorded", *around[1]]
    assert run(on.BasisDurable(), on.Key("1", 300), on.RecordStarted(AT)) == []


def test_a_2_during_the_repeated_question_counts_a5():
    run = reached(State.ASKING)
    run.tick()
    assert names(run(on.Key("2", 200))) == ["Break", "consent_refused", "Release", "released_unrecorded"]


def test_a_2_while_the_recording_starts_stops_and_discards_it_a5_d1():
    run = reached(State.STARTING)
    caused = run(on.Key("2", 200))
    assert names(caused) == ["StopRecording", "consent_withdrawn", "Release", "released_unrecorded", "Discard"]
    assert (run.state, run.call.decision) == (State.DISCARDING, "withdrawn")


def test_an_early_1_does_not_count_and_the_caller_is_asked_again_a5():
    run = Run()
    assert names(run(on.Key("1", 50), on.Key("1", 51))) == ["key_pressed"]
    assert run.all[-1].body == {"meaning": "early"}
    caused = run.heard()
    assert names(caused) == ["notice_started", "notice_completed", "asked_again", "Play"]
    assert caused[-1].prompt == NOTICE.ask
    assert (run.state, run.call.repeats) == (State.ASKING, 0)  # being early cost no repeat
    assert names(run(on.Key("1", 101))) == ["Break", "key_pressed", "Authorise"]


@pytest.mark.parametrize("sequence", [0, 1, 99, 100])
def test_an_early_1_that_was_overtaken_by_the_end_of_the_notice_is_early_a5(sequence):
    run = reached(State.ASKING)  # keys count from 101
    caused = run(on.Key("1", sequence))
    assert names(caused) == ["key_pressed", "asked_again", "Play"]
    assert (run.state, run.call.repeats, caused[0].body) == (State.ASKING, 0, {"meaning": "early"})
    assert run(on.Key("1", sequence)) == []
    assert run(on.Key("5", sequence)) == []
    run.played()
    run(on.Key("1", 101))
    assert run.state is State.AUTHORISING


def test_events_that_overtake_each_other_end_the_notice_all_the_same_a5():
    run = Run()
    token = run.call.token
    run(on.KeysFlushed(token, 100))
    run(on.PromptEnded(token, True, AT, 8.0))
    assert run.state is State.ANNOUNCING
    run(on.PromptStopped(True))
    assert run.state is State.ASKING
    run(on.Key("1", 101))
    assert run.state is State.AUTHORISING


def test_a_flush_that_is_not_the_notices_opens_no_question_a5():
    run = Run()
    run(on.KeysFlushed("another", 1))
    run.played()
    assert run.state is State.ANNOUNCING
    run(on.Key("1", 2))
    assert run.count(do.Authorise) == 0


# silence


@pytest.mark.parametrize("repeats", [0, 1, 2, 3])
@pytest.mark.parametrize("asked", ["played", "failed"])
def test_silence_is_asked_again_and_then_no_consent_a7(repeats, asked):
    run = Run(replace(SERVICE, basis=replace(CONSENT, repeats=repeats)))
    run.heard()
    for count in range(1, repeats + 1):
        began = run.now
        caused = run.tick()
        assert run.now - began == CONSENT.wait_seconds
        assert names(caused) == ["asked_again", "Play"]
        assert (caused[0].body, caused[1].prompt, caused[1].flush) == ({"reason": "no_input"}, NOTICE.ask, False)
        assert run.call.repeats == count
        run.played(played=asked == "played", done=True if asked == "played" else None)
    caused = run.tick()
    assert names(caused) == ["no_consent", "Release", "released_unrecorded"]
    assert caused[0].body == {"reason": "no_input", "repeats": repeats}
    assert (run.state, run.call.decision, run.count(do.Authorise)) == (State.UNRECORDED, "no_input", 0)


@pytest.mark.parametrize("notice", [NOTICE, replace(NOTICE, ask=None)])
@pytest.mark.parametrize("line", [SALES, SERVICE], ids=["sales", "service"])
def test_the_longest_interview_is_that_of_a_caller_who_keeps_us_waiting(line, notice):
    """What a stop waits for: a `1` that is early, and then nothing, however often the question is asked."""
    run = Run(replace(line, notice=notice))
    run(on.Key("1", 5))
    began, prompt = run.now, notice.prompt
    while run.state in {State.ANNOUNCING, State.ASKING}:
        if run.call.token:
            run.now += prompt.seconds
            run.heard() if run.state is State.ANNOUNCING else run.played()
        else:
            run.tick()
        prompt = notice.ask or notice.prompt
    assert run.now - began == run.call.rule.longest_interview


def test_a_question_that_never_ends_is_broken_off_and_counts_a7():
    run = reached(State.ASKING)
    run.tick()
    assert names(run.tick()) == ["Break", "asked_again", "Play"]
    assert names(run.tick()) == ["Break", "no_consent", "Release", "released_unrecorded"]


def test_without_a_question_of_its_own_the_whole_notice_is_played_again_a7():
    run = Run(replace(SERVICE, notice=replace(NOTICE, ask=None)))
    run.heard()
    assert of(run.tick(), do.Play)[0].prompt == NOTICE.prompt


def test_each_prompt_has_a_token_of_its_own_and_the_old_ones_end_means_nothing():
    run = reached(State.ASKING)
    run.tick()
    old, deadline = run.call.token, run.call.deadline
    run.tick()
    assert run.call.token != old
    run(on.PromptEnded(old, True, AT, 8.0))
    assert run.call.deadline > deadline
    assert run.call.token


def test_a_wrong_key_is_asked_again_at_once_and_during_the_question_it_is_nothing_a7():
    run = reached(State.ASKING)
    assert names(run(on.Key("5", 200))) == ["asked_again", "Play"]
    assert run(on.Key("7", 201)) == []
    run.played()
    assert names(run(on.Key("7", 202))) == ["asked_again", "Play"]
    run.played()
    assert names(run(on.Key("9", 203))) == ["no_consent", "Release", "released_unrecorded"]


# one way on


def test_every_answer_leads_the_same_way_on_d7():
    def handed_on(run):
        return [command for command in run.all if isinstance(command, do.Release | do.Answer)]

    granted, refused, silent, wrong, early = (Run() for _ in range(5))
    granted.heard()
    granted(on.Key("1", 101), on.BasisDurable(), on.RecordStarted(AT))
    refused(on.Key("2", 1))
    silent.heard()
    wrong.heard()
    early(on.Key("1", 1))
    early.heard()
    while not (silent.call.released and wrong.call.released and early.call.released):
        for run in (silent, early):
            if not run.call.released:
                run.tick()
        if not wrong.call.released:
            wrong(on.Key("9", 200))
            wrong.played()
    lost = reached(State.AUTHORISING)
    lost(on.BasisMissing("ledger_down"))
    for run in (granted, refused, silent, wrong, early, lost):
        assert handed_on(run) == [do.Answer(), do.Release()], run.call.decision
        assert run.call.deadline is None


# the start


@pytest.mark.parametrize("line", [SERVICE, SALES], ids=lambda line: line.id)
def test_without_a_durable_basis_nothing_starts(line):
    for event in (on.BasisMissing("ledger_down"), on.Tick(), on.LinkLost(), on.RecordStarted(AT), on.RecordReply(True)):
        run = reached(State.AUTHORISING, line)
        run(event)
        assert run.count(do.StartRecording) == 0
        assert run.state in (State.UNRECORDED, State.AUTHORISING)
    run = reached(State.AUTHORISING, line)
    caused = run(on.BasisMissing("spool_full"))
    assert caused == [
        do.Release(), do.Note("released_unrecorded", {"reason": "spool_full"}), do.Void("spool_full")
    ]  # fmt: skip
    assert run(on.BasisDurable()) == []


def test_a_decision_that_takes_too_long_is_given_up():
    run = reached(State.AUTHORISING)
    assert run.call.deadline == run.now + run.call.timing.authorise
    assert names(run.tick()) == ["Release", "released_unrecorded", "Void"]
    assert run(on.BasisDurable()) == []


def test_a_basis_starts_one_recording():
    run = reached(State.AUTHORISING)
    run(on.BasisDurable(), on.BasisDurable(), on.Key("1", 102), on.RecordStarted(AT), on.BasisDurable())
    assert run.count(do.StartRecording) == 1


@pytest.mark.parametrize("state", [State.NEW, State.ANNOUNCING, State.ASKING, State.RECORDING, State.CLOSING])
def test_a_basis_that_was_not_asked_for_starts_nothing(state):
    call = replace(reached(State.ASKING).call, state=state)
    assert machine.step(call, on.BasisDurable(), 0.0) == (call, [])


def test_a_start_that_is_refused_is_discarded():
    run = reached(State.STARTING)
    caused = run(on.RecordReply(ok=False))
    assert names(caused) == ["Release", "released_unrecorded", "Discard"]
    assert (caused[1].body, caused[2]) == ({"reason": "start_refused"}, do.Discard("start_refused"))
    assert run.state is State.DISCARDING


def test_ok_alone_is_no_recording():
    run = reached(State.STARTING)
    run(on.RecordReply(ok=True))
    assert (run.state, run.call.released) == (State.STARTING, False)
    assert names(run.tick()) == ["StopRecording", "Release", "released_unrecorded", "Discard"]


def test_a_recording_not_made_as_asked_is_stopped_and_discarded():
    run = reached(State.STARTING)
    caused = run(on.RecordStarted(AT, as_asked=False))
    assert names(caused) == ["StopRecording", "Release", "released_unrecorded", "Discard"]
    run(on.RecordStopped(AT, 160))
    assert (run.state, run.count(do.Finish), run.count(do.Started)) == (State.ENDED, 0, 0)
    assert run.all[-1] == do.Discard("closed")  # what was written until it was closed goes too


def test_a_recording_that_starts_after_its_deadline_is_stopped_and_discarded():
    run = reached(State.STARTING)
    run.tick()
    assert run(on.RecordStarted(AT)) == [do.StopRecording()]
    assert run(on.RecordStopped(AT, 160)) == [do.Discard("closed")]
    assert (run.state, run.count(do.Finish), run.count(do.Release)) == (State.ENDED, 0, 1)


# the conversation


@pytest.mark.parametrize(("order", "on_"), [(on.Order.MASK, True), (on.Order.UNMASK, False)])
def test_mask_and_unmask_are_told_and_noted_as_they_were_answered_a11(order, on_):
    run = reached(State.RECORDING)
    assert run(on.Ordered(order)) == [do.Mask(on=on_)]
    verb = "masked" if on_ else "unmasked"
    assert names(run(on.MaskReply(on_, ok=True))) == [f"recording_{verb}"]
    assert names(run(on.MaskReply(on_, ok=False))) == [f"recording_not_{verb}"]
    assert run.state is State.RECORDING


def test_a_stop_keeps_what_was_recorded_until_then():
    run = reached(State.RECORDING)
    assert run(on.Ordered(on.Order.STOP)) == [do.StopRecording()]
    assert run(on.RecordStopped(AT, 8000)) == [do.Finish(AT, 8000, abrupt=False)]
    assert (run.state, run.call.deadline) == (State.STOPPED, None)
    assert run(on.Hangup()) == []
    assert run.state is State.ENDED


def test_a_recording_that_freeswitch_ends_by_itself_is_finished():
    run = reached(State.RECORDING)
    assert run(on.RecordStopped(None, None)) == [do.Finish(None, None, abrupt=False)]


@pytest.mark.parametrize("state", [State.RECORDING, State.CLOSING, State.STOPPED])
def test_a_withdrawal_counts_until_the_call_is_over_d1(state):
    by_order = reached(state)
    caused = by_order(on.Ordered(on.Order.WITHDRAW))
    assert caused == [
        do.StopRecording(), do.Note("consent_withdrawn", {"channel": "order"}), do.Discard("withdrawn")
    ]  # fmt: skip
    by_key = reached(state)
    assert by_key(on.Key("*", 300)) == []
    caused = by_key(on.Key("2", 301))
    assert caused[1] == do.Note("consent_withdrawn", {"channel": "key", "key": "*2"})
    for run in (by_order, by_key):
        assert (run.state, run.call.decision) == (State.DISCARDING, "withdrawn")
        run(on.RecordStopped(AT, 8000))
        assert run.state is State.ENDED
        assert run.all[-1] == do.Discard("closed")


def test_a_withdrawal_while_the_recording_starts_d1():
    run = reached(State.STARTING)
    assert run(on.Ordered(on.Order.MASK), on.Ordered(on.Order.STOP)) == []
    run(on.Ordered(on.Order.WITHDRAW))
    assert (run.state, run.call.released) == (State.DISCARDING, True)
    assert run(on.RecordStarted(AT)) == [do.StopRecording()]


@pytest.mark.parametrize("state", [State.STARTING, State.RECORDING, State.CLOSING])
def test_a_withdrawal_never_touches_a_market_transaction_d4(state):
    run = reached(state, SALES)
    before = run.call
    assert names(run(on.Ordered(on.Order.WITHDRAW))) == ["withdrawal_without_effect"]
    assert run(on.Key("*", 300), on.Key("2", 301), on.Key("1", 302)) == []
    assert run.call == before


@pytest.mark.parametrize(
    ("keys", "withdrawn"),
    [("*2", True), ("**2", True), ("1*2", True), ("*1*2", True), ("123456*2", True), ("*12", False), ("2*", False),
     ("*", False), ("2", False), ("1", False), ("*#2", False), ("22", False)],
)  # fmt: skip
def test_withdrawal_by_key_is_the_sequence_and_nothing_else_d1_d2(keys, withdrawn):
    run = reached(State.RECORDING)
    for number, key in enumerate(keys, 300):
        run(on.Key(key, number))
    assert (run.state is State.DISCARDING) is withdrawn
    assert run.count(do.Discard) == withdrawn


def test_withdrawal_keys_that_overtake_each_other_are_read_in_freeswitchs_order_d1():
    run = reached(State.RECORDING)
    run(on.Key("5", 300), on.Key("2", 302), on.Key("*", 301))
    assert run.state is State.DISCARDING
    turned = reached(State.RECORDING)
    turned(on.Key("*", 302), on.Key("2", 301))
    assert turned.state is State.RECORDING


@pytest.mark.parametrize("keys", ["9", "*99", "**"])
def test_withdrawal_keys_are_configuration(keys):
    run = reached(State.RECORDING, SERVICE)
    run.call = replace(run.call, line=replace(SERVICE, basis=replace(CONSENT, withdraw_keys=keys)))
    for number, key in enumerate("*2" + keys, 300):
        assert run.state is State.RECORDING
        run(on.Key(key, number))
    assert run.state is State.DISCARDING


# the end


def test_without_a_record_stop_the_recording_is_finished_abruptly():
    for end in (on.Hangup(), on.Ordered(on.Order.STOP)):
        run = reached(State.RECORDING)
        run(end)
        assert run.call.deadline == run.now + run.call.timing.close
        assert run.tick() == [do.Finish(None, None, abrupt=True)]
        assert run(on.RecordStopped(AT, 1)) == []
        run(on.Hangup())
        assert run.state is State.ENDED


def test_a_caller_who_hangs_up_after_a_stop_is_not_waited_for():
    run = reached(State.RECORDING)
    run(on.Ordered(on.Order.STOP), on.Hangup())
    assert run.state is State.CLOSING
    assert run(on.RecordStopped(AT, 1)) == [do.Finish(AT, 1, abrupt=False)]
    assert run.state is State.ENDED


def test_what_is_discarded_ends_in_any_case():
    for end in (on.Hangup(), on.RecordStopped(AT, 1), on.Tick()):
        run = reached(State.RECORDING)
        run(on.Ordered(on.Order.WITHDRAW))
        assert run(end) == [do.Discard("closed")]
        assert (run.state, run.call.deadline) == (State.ENDED, None)


@pytest.mark.parametrize("state", [State.ANNOUNCING, State.ASKING, State.AUTHORISING])
def test_a_link_that_is_lost_before_the_start_leaves_the_call_unrecorded(state):
    run = reached(state)
    caused = run(on.LinkLost())
    assert (run.state, caused[1].body) == (State.UNRECORDED, {"reason": "link_lost"})
    assert of(caused, do.Void) == ([do.Void("link_lost")] if state is State.AUTHORISING else [])
    assert run(on.BasisDurable(), on.RecordStarted(AT)) == []


def test_a_link_that_is_lost_while_the_recording_starts_stops_it_by_the_other():
    run = reached(State.STARTING)
    assert names(run(on.LinkLost())) == ["StopRecording", "Release", "released_unrecorded", "Discard"]
    assert run(on.RecordStarted(AT)) == [do.StopRecording()]


@pytest.mark.parametrize("state", [State.RECORDING, State.CLOSING, State.STOPPED])
def test_a_link_that_ends_after_the_caller_was_handed_on_means_nothing(state):
    run = reached(state)
    before = run.call
    assert run(on.LinkLost()) == []
    assert run.call == before


def test_every_handler_is_in_the_table_and_the_table_knows_only_live_states():
    assert {state for state, _ in machine.TABLE} == set(State) - {State.UNRECORDED, State.ENDED}
