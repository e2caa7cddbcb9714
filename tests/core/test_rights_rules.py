"""What the law takes back, as decisions: revocation (D), kinds of call (B), holds (E11, E16, E17), and the erasure."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from callrec.call.policy import BasisKind
from callrec.errors import ConflictError, RightsError
from callrec.rights import disposition, holds, revocation
from callrec.rights.disposition import (
    Disposition,
    Erase,
    Escalate,
    Patience,
    Refusal,
    Refused,
    Said,
    Seal,
    Unchanged,
    Unsaid,
    Wait,
)
from callrec.rights.erasure_steps import (
    Erased,
    Facts,
    RefusedByHold,
    Step,
    WaitsForHold,
    WaitsForWriter,
    WaitsUntil,
    after,
    next_step,
)
from callrec.rights.holds import Cause, HoldReason, check_release, overdue, place, review
from callrec.rights.reference_code import new_code, parse_code, show_code
from callrec.rights.revocation import (
    Channel,
    Fate,
    GivenBy,
    Identification,
    Person,
    Proof,
    Receipt,
    Recording,
    Revocation,
    Scope,
    Why,
    identification,
    identified,
    may_revoke,
    of_minor,
)

NOON = datetime(2026, 6, 11, 12, tzinfo=UTC)
DAY = timedelta(days=1)
FIRST, SECOND, SALE = (UUID(int=n) for n in (1, 2, 3))
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def consented(recording_id=FIRST, days=0, **facts):
    return Recording(recording_id, BasisKind.CONSENT, agreed=Receipt(NOON + days * DAY, 10 + days), **facts)


def revoked(days=1, state=Identification.VERIFIED, **facts):
    return Revocation(Channel.EMAIL, Receipt(NOON + days * DAY, 100), state, **facts)


def outcome(revocation_, *recordings):
    return [(d.fate, d.why) for d in revocation.decide(revocation_, recordings)]


# Revocation


@pytest.mark.parametrize("channel", Channel)
def test_d1_d2_d10_every_channel_erases_all_consent_recordings(channel):
    request = Revocation(channel, Receipt(NOON + DAY, 100), Identification.VERIFIED)
    assert outcome(request, consented(FIRST), consented(SECOND)) == [(Fate.ERASE, Why.WITHDRAWN)] * 2


def test_one_recording_on_request():
    request = revoked(scope=Scope.ONE, recording_id=SECOND)
    assert outcome(request, consented(FIRST), consented(SECOND)) == [
        (Fate.NOT_TOUCHED, Why.NOT_MEANT),
        (Fate.ERASE, Why.WITHDRAWN),
    ]
    for facts in ({"scope": Scope.ONE}, {"recording_id": FIRST}):
        with pytest.raises(RightsError, match="which recordings"):
            revoked(**facts)


def test_d4_a_statutory_recording_is_never_touched_and_the_answer_says_why():
    sale = Recording(SALE, BasisKind.NOTICE, running=True, held=True)
    kept, gone = revocation.decide(revoked(), [sale, consented()])
    assert (kept.fate, kept.why, kept.stop, kept.blocked) == (Fate.NOT_TOUCHED, Why.STATUTORY, False, False)
    assert "by law" in kept.why.says
    assert gone.fate is Fate.ERASE
    named = revoked(scope=Scope.ONE, recording_id=SALE)
    assert outcome(named, sale) == [(Fate.NOT_TOUCHED, Why.STATUTORY)]


def test_a_running_recording_stops_and_nobody_listens_from_then_on():
    (decision,) = revocation.decide(revoked(), [consented(running=True)])
    assert (decision.fate, decision.stop, decision.blocked) == (Fate.ERASE, True, True)


def test_d5_the_last_received_wins():
    again = consented(days=2)  # a later call, in which the caller agreed once more
    assert outcome(revoked(days=1), consented(), again) == [
        (Fate.ERASE, Why.WITHDRAWN),
        (Fate.NOT_TOUCHED, Why.AGREED_LATER),
    ]
    assert outcome(revoked(days=3), consented(), again) == [(Fate.ERASE, Why.WITHDRAWN)] * 2


def test_d5_of_two_at_the_same_time_the_later_entry_wins():
    agreed = Recording(FIRST, BasisKind.CONSENT, agreed=Receipt(NOON, 100))
    for sequence, fate in ((99, Fate.NOT_TOUCHED), (101, Fate.ERASE)):
        request = Revocation(Channel.POST, Receipt(NOON, sequence), Identification.VERIFIED)
        assert outcome(request, agreed)[0][0] is fate


def test_d3_until_the_person_is_known_the_recording_is_frozen():
    for state in (Identification.UNVERIFIED, Identification.INFO_REQUESTED):
        (decision,) = revocation.decide(revoked(state=state), [consented(running=True)])
        assert (decision.fate, decision.why) == (Fate.WAITS, Why.NOT_IDENTIFIED_YET)
        assert decision.blocked
        assert decision.stop
    (decision,) = revocation.decide(revoked(state=Identification.FAILED), [consented()])
    assert (decision.fate, decision.why, decision.blocked) == (Fate.NOT_TOUCHED, Why.NOT_IDENTIFIED, False)


def test_d3_any_proof_is_enough_to_withdraw():
    assert identification([]) is Identification.UNVERIFIED
    assert {identification([proof]) for proof in Proof} == {Identification.VERIFIED}


def test_e5_an_identification_goes_its_way_and_no_other():
    assert identified(Identification.UNVERIFIED, Identification.INFO_REQUESTED) is Identification.INFO_REQUESTED
    assert identified(Identification.INFO_REQUESTED, Identification.VERIFIED) is Identification.VERIFIED
    assert identified(Identification.VERIFIED, Identification.VERIFIED) is Identification.VERIFIED
    for now, then in (
        (Identification.FAILED, Identification.VERIFIED),
        (Identification.VERIFIED, Identification.FAILED),
        (Identification.UNVERIFIED, Identification.FAILED),
    ):
        with pytest.raises(ConflictError):
            identified(now, then)


def test_a_held_recording_waits_and_is_blocked():
    (decision,) = revocation.decide(revoked(), [consented(held=True)])
    assert (decision.fate, decision.why, decision.blocked) == (Fate.WAITS, Why.HELD, True)


def test_what_is_erased_is_not_erased_again():
    assert outcome(revoked(), consented(erased=True)) == [(Fate.NOT_TOUCHED, Why.ALREADY_ERASED)]


MOTHER = Person(GivenBy.PARENT, "child-1")
FATHER = Person(GivenBy.PARENT, "child-1")


@pytest.mark.parametrize(
    ("agreed_by", "by", "may"),
    [
        (Person(), Person(), True),
        (Person(), Person(of_age=False), True),  # who could agree can withdraw
        (MOTHER, FATHER, True),
        (MOTHER, Person(GivenBy.FOSTER_PARENT, "child-1"), True),
        (MOTHER, Person(GivenBy.GUARDIAN, "child-1"), True),
        (MOTHER, Person(), True),  # the child, once entitled
        (MOTHER, Person(of_age=False), False),
        (MOTHER, Person(GivenBy.PARENT, "child-2"), False),
        (Person(), MOTHER, True),  # the child agreed by itself
    ],
)
def test_d8_who_may_withdraw_for_a_child(agreed_by, by, may):
    assert may_revoke(agreed_by, by) is may
    fate, why = outcome(revoked(by=by), consented(agreed_by=agreed_by))[0]
    assert (fate, why) == ((Fate.ERASE, Why.WITHDRAWN) if may else (Fate.NOT_TOUCHED, Why.NOT_ENTITLED))


@pytest.mark.parametrize("unclear", [(GivenBy.PARENT, ""), (GivenBy.SELF, "child-1")])
def test_d8_who_speaks_for_whom_has_to_be_said(unclear):
    with pytest.raises(RightsError, match="who speaks for whom"):
        Person(*unclear)


def test_d8_a_minor_without_guardian_is_erased():
    assert of_minor(consented(running=True), guardian_agreed=False).fate is Fate.ERASE
    assert of_minor(consented(held=True), guardian_agreed=False).fate is Fate.WAITS
    assert of_minor(consented(), guardian_agreed=True).fate is Fate.NOT_TOUCHED
    with pytest.raises(RightsError, match="disposition"):
        of_minor(Recording(SALE, BasisKind.NOTICE), guardian_agreed=False)


RECORDINGS = st.lists(
    st.builds(
        Recording,
        recording_id=st.sampled_from([FIRST, SECOND, SALE]),
        kind=st.sampled_from(BasisKind),
        agreed=st.none() | st.builds(Receipt, st.just(NOON) | st.just(NOON + 2 * DAY), st.integers(0, 200)),
        agreed_by=st.sampled_from([Person(), MOTHER]),
        running=st.booleans(),
        held=st.booleans(),
        erased=st.booleans(),
    ),
    max_size=4,
)


@given(recordings=RECORDINGS, state=st.sampled_from(Identification), by=st.sampled_from([Person(), FATHER]))
def test_each_recording_gets_one_decision_and_no_rule_is_ever_broken(recordings, state, by):
    decisions = revocation.decide(revoked(state=state, by=by), recordings)
    assert [d.recording_id for d in decisions] == [r.recording_id for r in recordings]
    for recording, decision in zip(recordings, decisions, strict=True):
        assert decision.why.says
        assert decision.blocked == (decision.fate is not Fate.NOT_TOUCHED)
        assert decision.stop == (recording.running and decision.blocked)
        if recording.kind is BasisKind.NOTICE:
            assert decision.fate is Fate.NOT_TOUCHED
        if recording.held or state is not Identification.VERIFIED:
            assert decision.fate is not Fate.ERASE


# Reference codes


def test_d11_a_code_is_read_back_as_people_read_it():
    drawn = iter([0, 1, 10, 0, 31, 1, 17])
    code = new_code(lambda _n: next(drawn))
    assert code[:7] == "01A0Z1H"
    assert show_code(code) == f"01A0-Z1H{code[7]}"
    last = code[7].lower()
    for text in (code, show_code(code), f"oia0zlh{last}", f" O 1 a o - Z I h {last}\n", f"0lA0-ZLH{last}"):
        assert parse_code(text) == code


def test_d11_codes_are_of_the_alphabet():
    assert {sign for _ in range(200) for sign in new_code()} == set(ALPHABET)


@given(st.lists(st.integers(0, 31), min_size=7, max_size=7), st.data())
def test_d11_one_wrong_sign_or_two_swapped_are_noticed(numbers, data):
    drawn = iter(numbers)
    code = new_code(lambda _n: next(drawn))
    assert parse_code(code) == code
    at = data.draw(st.integers(0, 7))
    sign = data.draw(st.sampled_from([s for s in ALPHABET if s != code[at]]))
    with pytest.raises(RightsError, match="mistake"):
        parse_code(code[:at] + sign + code[at + 1 :])
    for n, (one, two) in enumerate(pairwise(code)):
        if one != two:
            with pytest.raises(RightsError, match="mistake"):
                parse_code(code[:n] + two + one + code[n + 2 :])


@pytest.mark.parametrize(
    "text", ["", "7K3M", "7K3M-9QXDA", "UUUUUUUU", "\uff17K3M9QXD", "0" * 10_000, "7K3M_9QX", "\0" * 8]
)
def test_d11_anything_else_is_no_code_and_is_not_repeated(text):
    with pytest.raises(RightsError) as refused:
        parse_code(text)
    assert not text or text not in str(refused.value)


def test_d11_codes_differ():
    assert len({new_code() for _ in range(1000)}) == 1000


# Kinds of call

KEEPS = ["order", "change", "cancellation", "complaint_objection"]
GOES = ["general_information", "no_transaction"]


def say(said, standing=None, kind=BasisKind.NOTICE, erasing=False):
    return disposition.decide(kind, said, standing, erasing=erasing)


@pytest.mark.parametrize("code", KEEPS)
def test_b1_permitted_kinds_seal(code):
    assert say(Said(Disposition(code))) == Seal(Disposition(code))


@pytest.mark.parametrize("code", GOES)
def test_b2_b3_other_kinds_erase(code):
    assert say(Said(Disposition(code))) == Erase(Disposition(code), Cause.DISPOSITION)


def test_a10_b1_there_are_no_other_kinds():
    assert sorted(Disposition) == sorted(KEEPS + GOES)


@pytest.mark.parametrize("code", Disposition)
def test_the_same_again_is_harmless_and_another_is_refused_with_what_stands(code):
    assert say(Said(code), standing=code) == Unchanged(code)
    assert say(Said(code), standing=code, erasing=True) == Unchanged(code)
    for other in set(Disposition) - {code}:
        assert say(Said(code), standing=other) == Refused(Refusal.ANOTHER_STANDS, other)


@pytest.mark.parametrize("code", Disposition)
def test_a9_a_consent_recording_takes_no_disposition(code):
    assert say(Said(code), kind=BasisKind.CONSENT) == Refused(Refusal.CONSENT_BASIS)


def test_nothing_is_sealed_once_its_erasure_has_begun():
    assert say(Said(Disposition.ORDER), erasing=True) == Refused(Refusal.ERASED)


def test_d9_a_minor_orders_with_the_guardians_written_consent_or_not_at_all():
    alone = Said(Disposition.ORDER, minor=True, guardian_consent=" ")
    assert say(alone) == Erase(Disposition.NO_TRANSACTION, Cause.MINOR)
    assert say(alone, standing=Disposition.NO_TRANSACTION) == Unchanged(Disposition.NO_TRANSACTION)
    with_consent = replace(alone, guardian_consent="case-17")
    assert say(with_consent) == Seal(Disposition.ORDER)
    assert say(with_consent, standing=Disposition.NO_TRANSACTION) == Refused(
        Refusal.ANOTHER_STANDS, Disposition.NO_TRANSACTION
    )
    # A complaint binds nobody: it is the child's evidence.
    assert say(Said(Disposition.COMPLAINT_OBJECTION, minor=True)) == Seal(Disposition.COMPLAINT_OBJECTION)


def test_b3_unsaid_escalates_first_then_does_what_is_configured():
    patience = Patience(timedelta(hours=24), timedelta(hours=8), Unsaid.ERASE)
    due = NOON + DAY
    assert disposition.unsaid(NOON, None, due - timedelta(seconds=1), patience) == Wait(due)
    assert disposition.unsaid(NOON, None, due, patience) == Escalate(due + timedelta(hours=8))
    # A sweeper that was down for a week does not erase before anybody was told.
    assert disposition.unsaid(NOON, None, NOON + 7 * DAY, patience) == Escalate(NOON + 7 * DAY + timedelta(hours=8))
    assert disposition.unsaid(NOON, due, due + timedelta(hours=7), patience) == Wait(due + timedelta(hours=8))
    assert disposition.unsaid(NOON, due, due + timedelta(hours=8), patience) == Erase(
        Disposition.NO_TRANSACTION, Cause.DISPOSITION
    )
    asks = replace(patience, outcome=Unsaid.ASK)
    assert disposition.unsaid(NOON, due, due + 100 * DAY, asks) == Wait(None)


# Holds


def a_hold(reason=HoldReason.DISPUTE, **facts):
    given_ = {
        "case": "case-17",
        "owner": "legal",
        "placed_at": NOON,
        "review_at": NOON + 30 * DAY,
        "longest": 90 * DAY,
        "erasure_begun": False,
    } | facts
    return place(UUID(int=9), reason, **given_)


@pytest.mark.parametrize(
    "facts",
    [
        {"case": " "},
        {"owner": ""},
        {"review_at": NOON},
        {"review_at": NOON - DAY},
        {"review_at": NOON + 91 * DAY},
    ],
)
def test_e17_a_hold_has_a_case_an_owner_and_a_review_date(facts):
    with pytest.raises(RightsError):
        a_hold(**facts)


def test_e17_a_review_sets_the_next_date_and_a_missed_one_is_told_but_ends_nothing():
    hold = a_hold()
    assert overdue([hold], NOON + 29 * DAY) == ()
    assert overdue([hold], NOON + 30 * DAY) == (hold,)
    reviewed = review(hold, at=NOON + 31 * DAY, review_at=NOON + 60 * DAY, longest=90 * DAY)
    assert reviewed.reviews == 1
    assert overdue([reviewed], NOON + 59 * DAY) == ()
    with pytest.raises(RightsError, match="review date"):
        review(hold, at=NOON + 31 * DAY, review_at=NOON + 31 * DAY, longest=90 * DAY)


def test_a_recording_without_its_key_can_not_be_held():
    with pytest.raises(ConflictError, match="can't be held"):
        a_hold(erasure_begun=True)


def test_e11_a_restriction_is_lifted_only_after_the_person_was_told():
    restriction = a_hold(HoldReason.RESTRICTION)
    for told in (None, NOON + DAY):
        with pytest.raises(RightsError, match="told before"):
            check_release(restriction, why="decided", at=NOON, person_told_at=told)
    check_release(restriction, why="decided", at=NOON, person_told_at=NOON - DAY)
    check_release(a_hold(), why="settled", at=NOON)
    with pytest.raises(RightsError, match="reason"):
        check_release(a_hold(), why=" ", at=NOON)


# Erasure


def walk(facts, done=frozenset()):
    """The steps until something else than a step comes next, and that."""
    steps = []
    while isinstance(step := next_step(done, facts), Step):
        steps.append(step)
        done = after(done, step)
        assert len(steps) < 100
    return steps, done, step


def test_the_steps_go_key_first_and_verification_last():
    steps, _, end = walk(Facts(Cause.REVOCATION, NOON))
    assert steps == list(Step)
    assert steps[0] is Step.KEY
    assert end == Erased()


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (Cause.REVOCATION, WaitsForHold),
        (Cause.DISPOSITION, WaitsForHold),
        (Cause.MINOR, WaitsForHold),
        (Cause.EXPIRY, WaitsForHold),
        (Cause.NO_LONGER_NEEDED, RefusedByHold),
        (Cause.ORDER, RefusedByHold),
    ],
)
def test_a_hold_that_is_met_before_the_key_is_gone_names_itself(cause, expected):
    facts = Facts(cause, NOON, holds=(a_hold(HoldReason.COURT_ORDER),))
    assert next_step((), facts) == expected(facts.holds)
    assert next_step((), replace(facts, holds=())) is Step.KEY
    # The point of no return is behind: nothing could be kept any more.
    assert next_step({Step.KEY}, facts) is Step.OBJECTS


def test_every_cause_has_its_rule():
    assert {holds.meets(cause) for cause in Cause} == set(holds.Meeting)


def test_while_something_writes_only_the_key_goes():
    facts = Facts(Cause.REVOCATION, NOON, writing=True)
    steps, done, end = walk(facts)
    assert (steps, end) == ([Step.KEY], WaitsForWriter())
    assert walk(replace(facts, writing=False), done)[2] == Erased()


def test_a_sealed_recording_is_erased_by_key_and_followed_to_the_end_of_its_lock():
    ends = NOON + 900 * DAY
    facts = Facts(Cause.ORDER, NOON, locked_until=ends)
    steps, done, end = walk(facts)
    assert end == WaitsUntil(ends)
    assert steps == [Step.KEY, Step.SEGMENTS, Step.SPOOL, Step.REDIS, Step.PERSONAL_DATA, Step.VERIFICATION]
    assert walk(replace(facts, now=ends), done)[2] == WaitsUntil(ends)
    steps, _, end = walk(replace(facts, now=ends + timedelta(seconds=1)), done)
    assert (steps, end) == ([Step.OBJECTS, Step.MARKERS, Step.VERIFICATION], Erased())


def test_locked_ciphertext_does_not_void_the_verification_of_the_rest():
    facts = Facts(Cause.ORDER, NOON, locked_until=NOON + DAY)
    done = walk(replace(facts, writing=True))[1] | {Step.SEGMENTS, Step.SPOOL, Step.REDIS, Step.PERSONAL_DATA}
    assert next_step(after(done, Step.VERIFICATION, left={Step.OBJECTS}), facts) == WaitsUntil(NOON + DAY)
    assert next_step(after(done, Step.VERIFICATION, left={Step.OBJECTS, Step.SPOOL}), facts) is Step.SPOOL


def test_a_key_that_came_back_goes_again_whatever_holds_there_are_by_then():
    done = after(set(Step), Step.VERIFICATION, left={Step.KEY})
    assert next_step(done, Facts(Cause.REVOCATION, NOON, holds=(a_hold(),))) is Step.KEY


def test_what_the_verification_finds_is_done_again_and_verified_again():
    facts = Facts(Cause.EXPIRY, NOON)
    done = after(set(Step) - {Step.VERIFICATION}, Step.VERIFICATION, left={Step.SPOOL, Step.KEY})
    assert walk(facts, done)[0] == [Step.KEY, Step.SPOOL, Step.VERIFICATION]
    done = after(set(Step) - {Step.VERIFICATION}, Step.VERIFICATION, left={Step.OBJECTS})
    assert walk(facts, done)[0] == [Step.OBJECTS, Step.VERIFICATION]


class Sweep(RuleBasedStateMachine):
    """A world with copies in it, a sweeper that dies anywhere, holds that come and go, a `ship` that still writes."""

    @initialize(
        cause=st.sampled_from(Cause),
        lock=st.none() | st.integers(1, 5),
        present=st.sets(st.sampled_from([step for step in Step if step is not Step.VERIFICATION])),
        writing=st.booleans(),
    )
    def begin(self, cause, lock, present, writing):
        self.cause = cause
        self.present = present | {Step.KEY}
        self.locked_until = NOON + lock * DAY if lock and Step.OBJECTS in present else None
        self.now = NOON
        self.done = frozenset()
        self.held = ()
        self.writing = writing
        self.said = None

    def facts(self):
        return Facts(self.cause, self.now, self.held, self.writing, self.locked_until)

    def perform(self, step):
        """What the adapters do; returns what the verification sees."""
        if step is Step.VERIFICATION:
            return frozenset(self.present)
        if step is Step.OBJECTS and self.locked_until is not None:
            assert self.now > self.locked_until, "the store would have refused"
        self.present.discard(step)
        return frozenset()

    def sweep(self):
        step = next_step(self.done, self.facts())
        self.said = None if isinstance(step, Step) else step
        return step

    @rule()
    def works(self):
        if isinstance(step := self.sweep(), Step):
            self.done = after(self.done, step, self.perform(step))

    @rule()
    def dies_after_the_work(self):
        step = self.sweep()
        if isinstance(step, Step) and step is not Step.KEY:  # the key and its record are one transaction
            self.perform(step)

    @rule()
    def dies_before_the_work(self):
        self.sweep()

    @rule()
    def holds(self):
        if Step.KEY not in self.done and not self.held:
            self.held = (a_hold(),)

    @rule()
    def releases(self):
        self.held = ()

    @precondition(lambda self: self.writing)
    @rule(left=st.sampled_from([Step.OBJECTS, Step.SPOOL, Step.SEGMENTS, Step.REDIS]))
    def writes(self, left):
        self.present.add(left)

    @rule()
    def writer_ends(self):
        self.writing = False

    @precondition(lambda self: self.said != Erased())
    @rule(again=st.sampled_from([Step.KEY, Step.SPOOL, Step.MARKERS, Step.REDIS, Step.PERSONAL_DATA]))
    def something_turns_up_again(self, again):
        """A restored backup, a file that came back: before the last verification it must be seen."""
        if Step.VERIFICATION not in self.done and self.done:
            self.present.add(again)

    @rule()
    def time_passes(self):
        self.now += DAY

    @invariant()
    def erased_means_nothing_is_left(self):
        if self.said == Erased():
            assert not self.present
            assert self.done == set(Step)

    @invariant()
    def erased_by_key_means_only_ciphertext_is_left(self):
        if isinstance(self.said, WaitsUntil):
            assert self.present <= {Step.OBJECTS, Step.MARKERS}
            assert self.said.at == self.locked_until

    @invariant()
    def a_hold_keeps_the_key(self):
        if self.held and not self.done:
            assert Step.KEY in self.present
        if isinstance(self.said, WaitsForHold | RefusedByHold):
            assert not self.done

    def teardown(self):
        """In the end, with time and without holds, it is always erased, and soon."""
        if not hasattr(self, "done"):
            return
        self.held, self.writing = (), False
        if self.locked_until:
            self.now = max(self.now, self.locked_until + DAY)
        for _ in range(3 * len(Step)):
            if isinstance(step := self.sweep(), Step):
                self.done = after(self.done, step, self.perform(step))
        assert self.said == Erased()
        assert not self.present


def test_an_erasure_that_dies_anywhere_always_ends_erased_and_never_says_so_too_early():
    run_state_machine_as_test(Sweep, settings=settings(max_examples=200, stateful_step_count=30))
