"""What the law takes back, on a real Postgres, Redis and Ceph RGW, each role with its own login and its own S3 user."""

import hashlib
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

import gevent
import psycopg
import pytest
from fix_rights import BASES, LOOKUP_KEY, NODE, NUMBER, PATIENCE, code_reference, connect
from fix_stack import wait_until
from psycopg.rows import dict_row

from callrec import metrics
from callrec.call.policy import BasisKind
from callrec.errors import (
    AccessDeniedError,
    CallrecError,
    ConflictError,
    RightsError,
    StorageError,
    StoreError,
    UnknownError,
)
from callrec.ledger.caller import look_up
from callrec.recording import lifecycle
from callrec.rights.calendar import Deadline
from callrec.rights.desk import Intake
from callrec.rights.disposition import Disposition, Patience, Said, Unsaid
from callrec.rights.erasure import Eraser, erased_before
from callrec.rights.erasure_steps import Step
from callrec.rights.holds import Cause, Hold, HoldReason
from callrec.rights.reference_code import new_code, show_code
from callrec.rights.revocation import Channel, Identification, Proof
from callrec.rights.vigil import Vigil
from callrec.store.rights import RightsRecords

SALE = BasisKind.NOTICE
ALLOWED = "service_quality.information_accuracy"
EVERYTHING = {"recording_key", "caller", "consent", "redis"}


def later(**delta):
    """A clock that is ahead."""
    return lambda: datetime.now(UTC) + timedelta(**delta)


def date(house, kept, until):
    """Have the recording go at another date, and have the lock of its object end."""
    house.stores.admin.execute(
        "UPDATE recording SET retain_until = %s WHERE recording_id = %s", (until, kept.recording_id)
    )


def withdrawal(**about):
    return Intake(**{"channel": Channel.PHONE, "received_at": datetime.now(UTC), "proofs": [Proof.LOGIN]} | about)


def fates(answer):
    return {each.recording_id: (each.fate.value, each.why.value) for each in answer.decisions}


def counted(metric, *labels):
    return (metric.labels(*labels) if labels else metric)._value.get()


# Expiry


def test_what_reaches_its_date_goes_whole_and_not_before_c2(house):
    kept = house.record()
    until = house.row(kept.recording_id)["retain_until"]
    assert house.sweep.lock_of(kept.key, kept.version_id) == ("GOVERNANCE", until)
    assert house.left(kept) == EVERYTHING
    house.sweeper(clock=lambda: until - timedelta(seconds=1)).expire()
    house.erase_all()
    assert house.erasure(kept.recording_id) is None
    assert house.left(kept) == EVERYTHING
    date(house, kept, datetime.now(UTC))
    house.sweeper().expire()
    house.erase_all()
    assert house.left(kept) == set()
    assert house.row(kept.recording_id)["state"] == "erased"
    assert house.kinds(kept.recording_id) == ["recording_stored", "recording_expired", "key_erased", "recording_erased"]


def test_every_version_and_marker_goes_and_the_neighbours_stay(house):
    kept, neighbour = house.record(), house.record()
    ship_again = house.ship.exchange.ask("PUT", kept.key, body=b"another version")
    assert ship_again.accepted
    assert house.sweep.exchange.ask("DELETE", kept.key).accepted  # writes a marker
    segment = f"segments/{kept.key}/000001"
    assert house.ship.exchange.ask("PUT", segment, body=b"a segment").accepted
    (house.spool.root / "sealed" / f"{kept.recording_id}.enc").write_bytes(b"left over")
    assert house.left(kept) == EVERYTHING | {"marker", "segments", "spool"}
    house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    house.erase_all()
    assert house.left(kept) == set()
    assert house.left(neighbour) == EVERYTHING


def test_a_lock_that_the_shipper_gave_does_not_outlast_its_date(house):
    """Nothing of ours but the clock: the lock ends, the sweeper comes, all is gone."""
    kept = house.record(retain_until=datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=5))
    sweeper = house.sweeper()
    assert house.left(kept) == EVERYTHING

    def gone():
        sweeper.expire()
        house.erase_all()
        return house.left(kept) == set()

    wait_until(gone, 20, "its expiry")
    erased = house.erasure(kept.recording_id)
    assert erased["erased_at"] >= house.row(kept.recording_id)["retain_until"]


def test_one_clock_that_is_wrong_has_nothing_erased_c1(house):
    """That of a node, or that of Postgres: what goes before its date does not come back."""
    kept = house.record()
    house.sweeper(clock=later(days=400)).expire()
    assert house.erasure(kept.recording_id) is None
    date(house, kept, datetime.now(UTC) - timedelta(days=1))  # as Postgres sees it
    house.sweeper(clock=later(days=-2)).expire()
    assert house.erasure(kept.recording_id) is None


def test_what_lies_in_another_bucket_is_not_called_erased(house, s3):
    """[storage] bucket was changed: nothing is found in the new one, and that proves nothing."""
    kept, elsewhere = house.record(), connect(s3, s3.bucket_name())
    elsewhere.create_bucket(None)
    house.desk().erase(kept.recording_id, Cause.ORDER, "dpo")
    house.erase_all(Eraser(house.records(), elsewhere, house.spool, house.live, print))
    assert house.erasure(kept.recording_id)["state"] == "due"
    assert house.bucket in house.erasure(kept.recording_id)["last_error"]
    house.stores.admin.execute("UPDATE erasure SET due_at = now()")
    house.erase_all()
    assert house.left(kept) == set()


def test_an_erasure_that_outlasts_its_lease_ends(house, monkeypatch):
    """The object store was slow, another worker has taken it meanwhile, and is through."""
    kept, slow = house.record(), house.eraser()
    look = slow._locked_until

    def meanwhile(row):
        until = look(row)
        house.stores.admin.execute("UPDATE erasure SET claimed_until = now()")
        assert house.eraser().erase_next()
        return until

    monkeypatch.setattr(slow, "_locked_until", meanwhile)
    house.desk().erase(kept.recording_id, Cause.ORDER, "dpo")
    with gevent.Timeout(20):
        assert slow.erase_next()
    assert house.left(kept) == set()
    assert house.kinds(kept.recording_id).count("recording_erased") == 1


# Holds


def hold(house, kept, reason=HoldReason.DISPUTE, **clock):
    desk = house.desk(**clock)
    return desk.hold(
        kept.recording_id, reason, case="case-1", owner="dpo", review_at=datetime.now(UTC) + timedelta(days=30)
    )


def test_what_is_held_stays_and_is_not_heard_and_goes_on_when_released_e11(house):
    kept = house.record()
    placed = hold(house, kept)
    sweeper = house.sweeper()
    sweeper.apply_holds()
    assert house.sweep.held(kept.key, kept.version_id)
    with pytest.raises(AccessDeniedError, match="held"):
        house.player(ALLOWED, kept.recording_id)
    assert house.player("legal_claim", kept.recording_id)  # the exception that the operator names
    date(house, kept, datetime.now(UTC))
    sweeper.expire()
    house.erase_all()
    assert house.left(kept) == EVERYTHING
    with pytest.raises(StorageError):
        house.sweep.delete_version(kept.key, kept.version_id, bypass_governance=True)
    house.desk().release(placed.id, "the dispute is over", "dpo")
    sweeper.apply_holds()
    assert not house.sweep.held(kept.key, kept.version_id)
    assert house.player(ALLOWED, kept.recording_id)
    sweeper.expire()
    house.erase_all()
    assert house.left(kept) == set()
    assert [kind for kind in house.kinds(kept.recording_id) if kind.startswith("hold")] == [
        "hold_placed", "hold_released",
    ]  # fmt: skip


def test_what_was_held_beyond_its_date_goes_within_a_day_of_the_release(house):
    kept = house.record()
    placed = hold(house, kept)
    house.stores.admin.execute("UPDATE recording SET retain_until = now() - interval '30 days'")
    house.desk().release(placed.id, "the dispute is over", "dpo")
    house.sweeper().expire()
    assert house.erasure(kept.recording_id)["deadline"] > datetime.now(UTC) + timedelta(hours=23)


def test_who_released_a_hold_and_when_the_person_was_told_is_in_the_ledger_e11(house):
    kept = house.record()
    placed = hold(house, kept, HoldReason.RESTRICTION)
    house.desk().review(placed.id, datetime.now(UTC) + timedelta(days=40), "legal-3")
    told_at = datetime.now(UTC)
    house.desk().release(placed.id, "it is right as it is", "dpo-2", told_at)
    entries = house.stores.rows("SELECT kind, body FROM ledger WHERE kind IN ('hold_reviewed', 'hold_released')")
    bodies = {entry["kind"]: entry["body"] for entry in entries}
    assert bodies["hold_reviewed"]["account"] == "legal-3"
    assert (bodies["hold_released"]["account"], bodies["hold_released"]["person_told_at"]) == (
        "dpo-2", told_at.isoformat(),
    )  # fmt: skip


def test_a_withdrawal_meets_a_hold_waits_and_is_carried_out_on_release(house):
    kept = house.record()
    placed = hold(house, kept)
    answer = house.desk().revoke(withdrawal(number=NUMBER))
    assert fates(answer) == {kept.recording_id: ("waits", "held")}
    house.erase_all()
    assert house.left(kept) == EVERYTHING
    assert house.erasure(kept.recording_id)["state"] == "waits"
    assert "release" in house.erasure(kept.recording_id)["last_error"]
    house.desk().release(placed.id, "settled", "dpo")
    house.erase_all()
    assert house.left(kept) == set()


def test_what_somebody_orders_is_refused_by_a_hold_and_says_which(house):
    kept = house.record()
    hold(house, kept, HoldReason.COURT_ORDER)
    with pytest.raises(ConflictError) as refused:
        house.desk().erase(kept.recording_id, Cause.ORDER, "dpo")
    assert "case-1" in refused.value.detail
    assert house.erasure(kept.recording_id) is None


def test_a_hold_that_comes_between_the_look_and_the_deletion_of_the_key_wins(house):
    kept = house.record()
    house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    records = house.records()
    eraser = house.eraser()
    looked = records.holds_of

    def look_then_hold(recording_id):
        found = looked(recording_id)
        if not found:
            hold(house, kept)
        return found

    eraser._records.holds_of = look_then_hold
    house.erase_all(eraser)
    assert house.left(kept) == EVERYTHING
    assert "key_erased" not in house.kinds(kept.recording_id)


def test_so_it_does_for_one_that_is_not_stored_yet(house):
    kept = house.record(until="finished")
    house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    eraser = house.eraser()
    erase_key = eraser._records.erase_key

    def hold_then_erase(recording_id, done):
        hold(house, kept)
        return erase_key(recording_id, done)

    eraser._records.erase_key = hold_then_erase
    house.erase_all(eraser)
    house.store()
    assert house.row(kept.recording_id)["state"] == "stored"
    assert "consent" in house.left(kept)


class OpenTransaction:
    """Statements that take effect when `commit` is called. In Database's place."""

    def __init__(self, house, role):
        user, password = house.stores.login(role)
        self._connection = psycopg.connect(house.stores.url, user=user, password=password, row_factory=dict_row)
        self._queries = house.database(role).queries
        self.commit = self._connection.commit
        self.close = self._connection.close

    def run(self, name, params, **_):
        return self._connection.execute(self._queries[name], params).fetchall()


@pytest.mark.parametrize("first", ["hold", "key"])
def test_of_a_hold_and_the_deletion_of_the_key_in_the_same_moment_one_alone_happens(house, first):
    kept = house.record()
    house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    later_one = RightsRecords(house.database("sweep" if first == "hold" else "api"), node=NODE)
    open_one = OpenTransaction(house, "api" if first == "hold" else "sweep")
    earlier_one = RightsRecords(open_one, node=NODE)
    now = datetime.now(UTC)
    placed = Hold(uuid4(), HoldReason.COURT_ORDER, "case-1", "dpo", now, now + timedelta(days=9))

    def hold_it(records):
        return records.place_hold(kept.recording_id, placed)

    def erase_it(records):
        return records.erase_key(kept.recording_id, [Step.KEY])

    does = [hold_it, erase_it] if first == "hold" else [erase_it, hold_it]
    try:
        assert does[0](earlier_one)
        waiting = gevent.spawn(does[1], later_one)
        blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        wait_until(lambda: waiting.ready() or house.stores.rows(blocked), 10, "the other, which waits for it")
        open_one.commit()
        assert waiting.get(timeout=10) is False
    finally:
        open_one.close()
    assert ("recording_key" in house.left(kept)) == (first == "hold")
    assert ("hold_placed" in house.kinds(kept.recording_id)) == (first == "hold")


def test_after_the_key_nothing_can_be_held(house):
    kept = house.record()
    house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    assert house.records().erase_key(kept.recording_id, [Step.KEY])
    with pytest.raises(ConflictError, match="can't be held"):
        hold(house, kept)
    house.erase_all()
    with pytest.raises(ConflictError, match="can't be held"):
        hold(house, kept)


def test_holds_to_be_reviewed_are_counted_and_one_that_fails_keeps_no_other_waiting_e17(house):
    first, second = house.record(), house.record()
    placed = hold(house, first)
    hold(house, second)
    house.stores.admin.execute(
        "UPDATE recording SET version_id = 'none' WHERE recording_id = %s", (first.recording_id,)
    )
    house.sweeper().apply_holds()
    assert house.sweep.held(second.key, second.version_id)
    house.sweeper().mind()
    assert (counted(metrics.HOLDS), counted(metrics.HOLDS_OVERDUE)) == (2, 0)
    house.sweeper(clock=later(days=31)).mind()
    assert counted(metrics.HOLDS_OVERDUE) == 2
    house.desk(clock=later(days=20)).review(placed.id, datetime.now(UTC) + timedelta(days=100), "dpo")
    house.sweeper(clock=later(days=31)).mind()
    assert counted(metrics.HOLDS_OVERDUE) == 1


def test_what_is_overdue_and_what_waits_for_a_word_is_counted_until_it_is_done(house):
    late, unsaid = house.record(), house.record(SALE)
    house.desk().erase(late.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    house.stores.admin.execute("UPDATE erasure SET deadline = now() - interval '1 second'")
    sweeper = house.sweeper(clock=later(days=1, hours=1))
    sweeper.escalate()

    def figures():
        sweeper.mind()
        return [counted(each) for each in (metrics.ERASURES_OVERDUE, metrics.KINDS_MISSING, metrics.WITHOUT_BASIS)]

    assert figures() == [1, 1, 0]
    house.erase_all()
    house.desk().dispose(unsaid.recording_id, Said(Disposition.ORDER), "desktop")
    assert figures() == [0, 0, 0]
    house.stores.admin.execute(
        "WITH c AS (INSERT INTO call SELECT gen_random_uuid(), node, channel, line, basis, state, decision, arrived_at "
        "           FROM call LIMIT 1 RETURNING call_id) "
        "INSERT INTO recording (recording_id, call_id, node, channel, line, basis, notice, notice_version, purposes, "
        "  lock_mode, prefix, authorised_at, retain_until, retention_inputs) "
        "SELECT gen_random_uuid(), c.call_id, node, channel, line, basis, notice, notice_version, purposes, lock_mode, "
        "  prefix, authorised_at, retain_until, retention_inputs FROM c, recording LIMIT 1"
    )
    assert figures() == [0, 0, 1]


# Revocation


def test_by_number_all_consent_recordings_go_and_none_that_the_law_keeps_d4(house):
    mine, another, sale = house.record(), house.record(number="+38631999999"), house.record(SALE)
    ours = house.record()
    answer = house.desk().revoke(withdrawal(number=NUMBER))
    assert fates(answer) == {
        mine.recording_id: ("erase", "withdrawn"), ours.recording_id: ("erase", "withdrawn"),
        sale.recording_id: ("not_touched", "statutory"),
    }  # fmt: skip
    assert "kept by law" in next(each.why.says for each in answer.decisions if each.recording_id == sale.recording_id)
    with pytest.raises(AccessDeniedError):  # at once
        house.player(ALLOWED, mine.recording_id)
    assert house.player(ALLOWED, sale.recording_id)
    house.erase_all()
    assert house.left(mine) == house.left(ours) == set()
    assert house.left(another) == EVERYTHING
    assert house.left(sale) == EVERYTHING - {"consent"} | {"market-transaction"}


@pytest.mark.parametrize("by", ["call", "recording", "one of a number", "code"])
def test_by_call_by_recording_and_by_code_only_that_one_goes(house, by):
    code = new_code()
    kept = house.record(
        number=None if by == "code" else NUMBER, reference=code_reference(code) if by == "code" else None
    )
    other = house.record()
    about = {
        "call": {"call_id": kept.call_id},
        "recording": {"recording_id": kept.recording_id},
        "one of a number": {"number": NUMBER, "recording_id": kept.recording_id},
        "code": {"code": show_code(code).lower(), "proofs": []},  # knowing it is the proof (D11)
    }[by]
    answer = house.desk().revoke(withdrawal(**about))
    assert fates(answer)[kept.recording_id] == ("erase", "withdrawn")
    house.erase_all()
    assert house.left(kept) == set()
    assert house.left(other) == EVERYTHING


def test_a_running_recording_is_stopped_at_once_and_nothing_of_it_is_kept_d2(house):
    kept = house.record(until="recording")
    house.desk().revoke(withdrawal(number=NUMBER))
    assert house.stopped == [(kept.channel, "withdraw", kept.call_id)]
    house.erase_all()
    assert house.erasure(kept.recording_id)["state"] == "due"  # it is still being written
    assert house.stopped[1:] == [(kept.channel, "stop", kept.call_id)]  # again: no listener may have heard the first
    assert not house.spool.path(kept.recording_id).exists()
    house.stores.admin.execute(
        "UPDATE recording SET state = 'finished', due_at = now() WHERE recording_id = %s", (kept.recording_id,)
    )
    house.store()
    assert house.row(kept.recording_id)["state"] == "discarded"
    wait_until(lambda: house.eraser().erase_next(), 10, "another look")
    assert house.left(kept) == set()
    assert house.row(kept.recording_id)["state"] == "erased"


def test_what_is_being_stored_when_consent_is_withdrawn_goes_too(house):
    kept = house.record(until="finished")
    house.desk().revoke(withdrawal(number=NUMBER))
    house.erase_all()
    house.store()
    wait_until(lambda: house.eraser().erase_next(), 10, "another look")
    assert house.left(kept) == set()


def test_somebody_unknown_blocks_listening_until_known_and_then_it_goes_d3(house):
    kept = house.record()
    answer = house.desk().revoke(withdrawal(number=NUMBER, proofs=[], channel=Channel.EMAIL))
    assert answer.identification is Identification.UNVERIFIED
    assert fates(answer) == {kept.recording_id: ("waits", "not_identified_yet")}
    house.erase_all()
    assert house.left(kept) == EVERYTHING
    with pytest.raises(AccessDeniedError):
        house.player(ALLOWED, kept.recording_id)
    house.desk().identify(answer.revocation_id, Identification.VERIFIED, "dpo")
    house.erase_all()
    assert house.left(kept) == set()


def test_each_step_of_an_identification_is_in_the_ledger_even_where_it_leads_to_nothing_e5(house):
    desk = house.desk()
    answer = desk.revoke(withdrawal(number=NUMBER, proofs=[]))  # no recording of this number
    desk.identify(answer.revocation_id, Identification.INFO_REQUESTED, "agent-7")
    desk.identify(answer.revocation_id, Identification.VERIFIED, "dpo-2")
    steps = house.stores.rows("SELECT body FROM ledger WHERE kind = 'revocation_identified' ORDER BY entry_id")
    assert [step["body"] for step in steps] == [
        {"revocation": str(answer.revocation_id), "identification": state, "account": account}
        for state, account in (("info_requested", "agent-7"), ("verified", "dpo-2"))
    ]


@pytest.mark.parametrize("kind", BasisKind)
def test_a_basis_that_the_configuration_has_no_more_is_withdrawn_from_as_before(house, kind):
    """The operator has renamed it for new calls. What callers agreed to is kept for months yet."""
    kept = house.record(kind)
    desk = house.desk()
    desk._bases = {}
    answer = desk.revoke(withdrawal(number=NUMBER))
    consent = kind is BasisKind.CONSENT
    assert fates(answer) == {kept.recording_id: ("erase", "withdrawn") if consent else ("not_touched", "statutory")}
    if consent:
        with pytest.raises(ConflictError, match="A9"):  # and no agent's word seals it
            desk.dispose(kept.recording_id, Said(Disposition.ORDER), "agent-7")


def test_somebody_who_is_not_the_caller_changes_nothing(house):
    kept = house.record()
    desk = house.desk()
    answer = desk.revoke(withdrawal(number=NUMBER, proofs=[]))
    with pytest.raises(ConflictError):
        desk.identify(answer.revocation_id, Identification.FAILED, "dpo")  # without having been asked
    desk.identify(answer.revocation_id, Identification.INFO_REQUESTED, "dpo")
    desk.identify(answer.revocation_id, Identification.FAILED, "dpo")
    assert house.player(ALLOWED, kept.recording_id)
    house.erase_all()
    assert house.left(kept) == EVERYTHING
    with pytest.raises(UnknownError):
        desk.identify(kept.recording_id, Identification.VERIFIED, "dpo")


def test_consent_that_was_received_after_the_withdrawal_prevails_d5(house):
    before = datetime.now(UTC)
    kept = house.record()
    assert fates(house.desk().revoke(withdrawal(number=NUMBER, received_at=before))) == {
        kept.recording_id: ("not_touched", "agreed_later")
    }
    assert house.player(ALLOWED, kept.recording_id)


def test_the_same_request_again_is_the_same_revocation(house):
    house.record()
    about = withdrawal(number=NUMBER, evidence_sha256=hashlib.sha256(b"a letter").digest())
    desk = house.desk()
    first, second = desk.revoke(about), desk.revoke(about)
    assert first.revocation_id == second.revocation_id
    assert first.deadline == second.deadline
    assert len(house.stores.rows("SELECT 1 FROM revocation")) == 1
    assert len(house.stores.rows("SELECT 1 FROM ledger WHERE kind = 'revocation_decided'")) == 1


@pytest.mark.parametrize(
    ("received", "third", "due"),
    [
        ("2026-12-24T10:00:00+01:00", "2026-12-30T00:00:00+01:00", "2027-01-04T23:59:59+01:00"),
        ("2026-04-30T10:00:00+02:00", "2026-05-06T00:00:00+02:00", "2026-05-08T23:59:59+02:00"),
        ("2025-12-23T23:59:00+01:00", "2025-12-30T00:00:00+01:00", "2026-01-05T23:59:59+01:00"),
    ],
)
def test_deadline_and_alarm_are_in_the_row_with_what_they_were_computed_from_c4(house, received, third, due):
    house.record()
    desk = house.desk(clock=lambda: datetime(2027, 6, 1, tzinfo=UTC))
    answer = desk.revoke(withdrawal(number=NUMBER, received_at=datetime.fromisoformat(received)))
    row = house.stores.rows("SELECT deadline, deadline_inputs, alarm_at FROM revocation")[0]
    assert row["alarm_at"] == datetime.fromisoformat(third)  # when that day begins: three are left to act in
    assert row["deadline"] == answer.deadline == datetime.fromisoformat(due)
    again = Deadline.from_record(row["deadline_inputs"])
    assert again.at == row["deadline"]
    assert row["deadline_inputs"] == again.as_record()


def test_alarm_near_the_deadline_and_at_its_breach_once_each_c4(house):
    kept = house.record()
    house.desk().revoke(withdrawal(number=NUMBER))
    sweeper = house.sweeper()

    def told():
        before = {how: counted(metrics.DEADLINES, how) for how in ("near", "breached")}
        for _ in range(3):
            sweeper.mind()
        return {how: counted(metrics.DEADLINES, how) - before[how] for how in before}

    def open_now():
        return [counted(metrics.REVOCATIONS_OPEN, deadline) for deadline in ("in_time", "near", "breached")]

    assert told() == {"near": 0, "breached": 0}
    assert open_now() == [1, 0, 0]
    house.stores.admin.execute("UPDATE revocation SET alarm_at = now() - interval '1 second'")
    assert told() == {"near": 1, "breached": 0}
    assert open_now() == [0, 1, 0]
    house.stores.admin.execute("UPDATE revocation SET deadline = now() - interval '1 second'")
    assert told() == {"near": 0, "breached": 1}
    assert open_now() == [0, 0, 1]
    house.erase_all()
    house.stores.admin.execute("UPDATE revocation SET alarmed = ''")
    assert told() == {"near": 0, "breached": 0}
    assert open_now() == [0, 0, 0]
    assert house.left(kept) == set()


def test_what_names_nothing_or_comes_from_the_future_is_refused(house):
    for about in ({}, {"code": "no code"}, {"number": NUMBER, "received_at": later(hours=1)()}):
        with pytest.raises(RightsError):
            house.desk().revoke(withdrawal(**about))
    assert house.stores.rows("SELECT 1 FROM revocation") == []


def test_no_row_and_no_entry_of_a_withdrawal_holds_the_number_or_its_look_up(house):
    house.record()
    house.desk().revoke(withdrawal(number=NUMBER))
    house.erase_all()
    everything = "".join(
        str(row)
        for table in ("revocation", "revocation_recording", "erasure", "ledger", "recording", "call")
        for row in house.stores.rows(f"SELECT row_to_json({table})::text FROM {table}")
    )
    assert NUMBER[1:] not in everything
    assert look_up(NUMBER, LOOKUP_KEY).hex() not in everything


# The kind of call


def test_a_confirmed_order_is_sealed_and_none_of_our_credentials_can_take_it_back_b1(house):
    kept = house.record(SALE, retain_until=datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1))
    house.desk().dispose(kept.recording_id, Said(Disposition.ORDER), "agent-7")
    house.sweeper().seal()
    assert house.sweep.lock_of(kept.key, kept.version_id)[0] == "COMPLIANCE"
    assert house.row(kept.recording_id)["lock_mode"] == "COMPLIANCE"
    assert house.kinds(kept.recording_id)[-2:] == ["disposition_said", "recording_locked"]
    for role in ("ship", "sweep", "api"):
        objects = connect(house.users[role], house.bucket)
        for bypass in (False, True):
            with pytest.raises(StorageError):
                objects.delete_version(kept.key, kept.version_id, bypass_governance=bypass)
        objects.close()
    assert house.player("complaint_handling", kept.recording_id)
    house.sweeper().seal()  # nothing more to do
    assert house.kinds(kept.recording_id).count("recording_locked") == 1


def test_a_sealed_one_that_must_still_go_is_erased_by_key_and_followed(house):
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=8)
    kept = house.record(SALE, retain_until=end)
    house.desk().dispose(kept.recording_id, Said(Disposition.ORDER), "agent-7")
    house.sweeper().seal()
    assert house.desk().erase(kept.recording_id, Cause.ORDER, "dpo")
    house.erase_all()
    assert house.left(kept) == {"market-transaction"}
    erasure = house.erasure(kept.recording_id)
    assert (erasure["state"], erasure["ciphertext_until"]) == ("key_erased", end)
    assert "recording_erased_by_key" in house.kinds(kept.recording_id)
    assert "recording_erased" not in house.kinds(kept.recording_id)
    wait_until(lambda: house.eraser().erase_next(), 30, "the end of the lock")
    assert house.left(kept) == set()
    assert house.kinds(kept.recording_id)[-1] == "recording_erased"


def test_what_is_no_longer_needed_goes_before_its_date_on_a_statutory_basis_too_c3(house):
    kept = house.record(SALE)
    assert house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    house.erase_all()
    assert house.left(kept) == set()
    assert house.erasure(kept.recording_id)["cause"] == "no_longer_needed"


@pytest.mark.parametrize("said", [Disposition.GENERAL_INFORMATION, Disposition.NO_TRANSACTION])
def test_what_may_not_be_kept_goes_b2_b3(house, said):
    kept = house.record(SALE)
    house.desk().dispose(kept.recording_id, Said(said), "agent-7")
    house.erase_all()
    assert house.left(kept) == set()


def test_a_minor_without_a_guardian_orders_nothing_d9(house):
    kept, agreed = house.record(SALE), house.record(SALE)
    house.desk().dispose(kept.recording_id, Said(Disposition.ORDER, minor=True), "agent-7")
    house.desk().dispose(agreed.recording_id, Said(Disposition.ORDER, True, "letter-12"), "agent-7")
    house.erase_all()
    assert house.left(kept) == set()
    assert house.erasure(kept.recording_id)["cause"] == "minor"
    assert "market-transaction" in house.left(agreed)


def test_said_once_the_same_again_is_harmless_another_is_refused_with_what_stands(house):
    kept = house.record(SALE)
    desk = house.desk()
    desk.dispose(kept.recording_id, Said(Disposition.ORDER), "agent-7")
    desk.dispose(kept.recording_id, Said(Disposition.ORDER), "agent-8")
    with pytest.raises(ConflictError, match="order"):
        desk.dispose(kept.recording_id, Said(Disposition.NO_TRANSACTION), "agent-7")
    assert house.erasure(kept.recording_id) is None
    assert house.kinds(kept.recording_id).count("disposition_said") == 1


def test_on_a_consent_recording_a_kind_changes_nothing_a9(house):
    kept = house.record()
    for said in Disposition:
        with pytest.raises(ConflictError, match="A9"):
            house.desk().dispose(kept.recording_id, Said(said), "agent-7")
    house.sweeper().seal()
    assert house.sweep.lock_of(kept.key, kept.version_id)[0] == "GOVERNANCE"
    assert house.stores.rows("SELECT 1 FROM disposition") == []


def test_when_nobody_says_anything_somebody_is_told_and_then_the_outcome_follows_b3(house):
    kept, consent = house.record(SALE), house.record()
    house.sweeper(clock=later(hours=23)).escalate()
    assert "disposition_missing" not in house.kinds(kept.recording_id)
    house.sweeper(clock=later(days=9)).escalate()  # down for a week: it escalates first
    house.sweeper(clock=later(days=9)).escalate()
    house.erase_all()
    assert house.kinds(kept.recording_id).count("disposition_missing") == 1
    assert "market-transaction" in house.left(kept)
    house.sweeper(clock=later(days=10, minutes=1)).escalate()
    house.erase_all()
    assert house.left(kept) == set()
    assert "consent" in house.left(consent)


def test_where_a_person_decides_it_stays_and_a_late_word_counts(house):
    kept = house.record(SALE)
    ask = Patience(PATIENCE.escalate_after, PATIENCE.decide_after, Unsaid.ASK)
    for days in (2, 9, 90):
        house.sweeper(clock=later(days=days), patience=ask).escalate()
    assert house.erasure(kept.recording_id) is None
    assert house.records().unsaid(["market_transaction"], later(days=99)(), later(days=98)(), told=True) == []
    house.desk().dispose(kept.recording_id, Said(Disposition.ORDER), "agent-7")
    house.sweeper().seal()
    assert house.row(kept.recording_id)["lock_mode"] == "COMPLIANCE"


def test_what_a_person_decides_now_does_not_keep_others_from_being_told_b3(house):
    """The operator has changed the outcome, so that a backlog is not erased; the backlog fills the look."""
    backlog = house.record(SALE, ended=datetime.now(UTC) - timedelta(days=3))
    house.sweeper().escalate()
    new = house.record(SALE)
    sweeper = house.sweeper(clock=later(days=9), patience=replace(PATIENCE, outcome=Unsaid.ASK))
    sweeper._records.unsaid = partial(sweeper._records.unsaid, limit=1)
    sweeper.escalate()
    assert house.erasure(backlog.recording_id) is None
    assert "disposition_missing" in house.kinds(new.recording_id)


def test_what_somebody_said_something_about_is_not_asked_for_again_b3(house):
    kept = house.record(SALE)
    house.desk().dispose(kept.recording_id, Said(Disposition.ORDER), "agent-7")
    for days in (2, 9):
        house.sweeper(clock=later(days=days)).escalate()
    assert "disposition_missing" not in house.kinds(kept.recording_id)
    assert house.erasure(kept.recording_id) is None


def test_said_before_it_is_stored_it_is_sealed_as_soon_as_it_is(house):
    kept = house.record(SALE, until="finished", retain_until=datetime.now(UTC) + timedelta(hours=1))
    house.desk().dispose(kept.recording_id, Said(Disposition.CHANGE), "agent-7")
    house.sweeper().seal()
    assert house.row(kept.recording_id)["lock_mode"] == "GOVERNANCE"
    house.store()
    house.sweeper().seal()
    assert house.row(kept.recording_id)["lock_mode"] == "COMPLIANCE"


# Orders, backups, faults


def test_bulk_covers_what_the_conditions_say(house):
    sale, consent = house.record(SALE), house.record()
    records = house.records("api")
    none = {"line": None, "basis": None, "disposition": None, "since": None, "until": None}
    assert set(records.bulk(**none)) == {sale.recording_id, consent.recording_id}
    assert records.bulk(**none | {"basis": "consent"}) == [consent.recording_id]
    assert records.bulk(**none | {"since": later(hours=1)()}) == []
    assert set(records.bulk(**none | {"disposition": "none"})) == {sale.recording_id, consent.recording_id}
    house.desk().dispose(sale.recording_id, Said(Disposition.ORDER), "agent-7")
    assert records.bulk(**none | {"disposition": "order"}) == [sale.recording_id]


def test_a_restored_backup_brings_no_key_back(house):
    """The whole database as it was before the erasure: it knows nothing of it, the object store does."""
    gone, kept = house.record(), house.record(number="+38631999999")
    tables = ("call", "caller", "recording", "recording_key", "erasure", "ledger")
    dump = subprocess.run(
        ["/usr/lib/postgresql/15/bin/pg_dump", "--data-only", "--disable-triggers",
         *(f"--table={table}" for table in tables), house.stores.url],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    house.desk().revoke(withdrawal(number=NUMBER))
    house.erase_all()
    assert house.left(gone) == set()
    with psycopg.connect(house.stores.url, autocommit=True) as admin:
        admin.execute("ALTER TABLE ledger DISABLE TRIGGER ALL")
        admin.execute("TRUNCATE call, caller, recording, recording_key, erasure, revocation, revocation_recording,"
                      " disposition, escalation, hold, segment, remnant, ledger")  # fmt: skip
        admin.execute("ALTER TABLE ledger ENABLE ALWAYS TRIGGER ledger_only_grows")
        admin.execute("ALTER TABLE ledger ENABLE ALWAYS TRIGGER ledger_is_not_truncated")
    subprocess.run(
        ["/usr/lib/postgresql/15/bin/psql", "-qX", "-v", "ON_ERROR_STOP=1", house.stores.url], input=dump, check=True,
        capture_output=True,
    )  # fmt: skip
    assert house.left(gone) == {"recording_key", "caller"}
    erased = erased_before(house.sweep)
    assert erased == {gone.recording_id: Cause.REVOCATION}
    assert house.records().replay_erasures(erased) == [gone.recording_id]
    assert house.left(gone) == set()
    house.erase_all()
    assert house.row(gone.recording_id)["state"] == "erased"
    assert house.left(kept) == EVERYTHING
    assert house.records().replay_erasures(erased) == []


def test_a_key_that_came_back_alone_goes_by_the_ledgers_word(house):
    kept = house.record()
    key = house.stores.rows("SELECT sealed, key_id FROM recording_key")[0]
    house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    house.erase_all()
    house.stores.admin.execute(
        "INSERT INTO recording_key (recording_id, sealed, key_id) VALUES (%s, %s, %s)",
        (kept.recording_id, key["sealed"], key["key_id"]),
    )
    assert house.records().replay_erasures({}) == [kept.recording_id]
    house.erase_all()
    assert house.left(kept) == set()
    assert house.row(kept.recording_id)["state"] == "erased"


def test_what_a_restored_backup_takes_for_unfinished_was_erased_and_is_not_called_lost(house):
    """The backup was made before it was stored; stored and erased it was after that."""
    kept = house.record(until="finished")
    house.spool.purge(kept.recording_id)
    assert house.records().replay_erasures({kept.recording_id: Cause.REVOCATION}) == [kept.recording_id]
    house.erase_all()
    house.store()
    wait_until(lambda: house.eraser().erase_next(), 10, "another look")
    assert house.left(kept) == set()
    assert house.row(kept.recording_id)["state"] == "erased"
    assert "recording_lost" not in house.kinds(kept.recording_id)


@pytest.mark.parametrize("fault", [StorageError("no", transient=True), KeyError("whatever")])
def test_one_that_fails_is_put_off_and_the_others_go_on(house, fault):
    poisoned, kept = house.record(), house.record()
    for each in (poisoned, kept):
        house.desk().erase(each.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    eraser = house.eraser()
    versions = eraser._objects.versions

    def failing(prefix):
        if str(poisoned.recording_id) in prefix:
            raise fault
        return versions(prefix)

    eraser._objects.versions = failing
    try:
        while house.erasure(kept.recording_id)["state"] != "erased":
            assert eraser.erase_next()
    finally:
        del eraser._objects.versions
    assert house.left(kept) == set()
    row = house.erasure(poisoned.recording_id)
    assert row["state"] == "due"
    assert row["last_error"]
    wait_until(lambda: house.eraser().erase_next(), 10, "another go")
    assert house.left(poisoned) == set()


def test_a_failure_that_postgres_was_not_told_of_is_told_when_it_is_back(house):
    """Otherwise the erasure would wait for the end of its lease."""
    kept = house.record()
    house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    eraser = house.eraser()

    def away(*_, **__):
        raise StoreError("Postgres is away")

    eraser._records.erasure_step = eraser._records.erasure_waits = away
    for _ in range(2):
        with pytest.raises(StoreError):
            eraser.erase_next()
    assert house.erasure(kept.recording_id)["claimed_until"] > datetime.now(UTC) + timedelta(minutes=1)
    del eraser._records.erasure_step, eraser._records.erasure_waits
    wait_until(eraser.erase_next, 10, "another go")
    assert house.left(kept) == set()


def test_it_is_not_called_erased_while_something_is_found(house):
    kept = house.record()
    house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    eraser = house.eraser()
    eraser._live = Undead(house.live)
    house.erase_all(eraser)
    assert house.erasure(kept.recording_id)["state"] == "due"
    assert house.erasure(kept.recording_id)["last_error"] == "Something of the recording is left. redis"
    assert "recording_erased" not in house.kinds(kept.recording_id)


class Undead:
    """A Redis that keeps what it should forget."""

    def __init__(self, real):
        self.get = real.get

    def forget(self, channel):
        pass


def test_the_live_state_of_another_call_on_the_same_channel_is_left_alone(house):
    """A caller who was transferred to another line is another call on the same channel."""
    kept = house.record()
    house.live.put(kept.channel, {"call": "another", "state": "recording"})
    wait_until(lambda: house.live.get(kept.channel)["call"] == "another", 5, "its state")
    house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    house.erase_all()
    assert house.erasure(kept.recording_id)["state"] == "erased"
    assert house.live.get(kept.channel)["call"] == "another"


# The object store's word


def test_what_the_probe_finds_is_where_listen_looks(house):
    vigil = Vigil(house.sweep, (), house.records())
    listen = house.records("listen")
    assert listen.storage_failures(house.bucket) == []  # nothing is known yet
    vigil.probe()
    assert listen.storage_failures(house.bucket) == []
    row = house.stores.rows("SELECT * FROM storage_probe")[0]
    assert (row["bucket"], row["passed"], row["node"]) == (house.bucket, True, NODE)
    entries = house.stores.rows("SELECT body FROM ledger WHERE kind = 'storage_probed'")
    assert [entry["body"]["passed"] for entry in entries] == [True]
    vigil.probe()  # not due
    assert len(house.stores.rows("SELECT 1 FROM ledger WHERE kind = 'storage_probed'")) == 1
    at = datetime.now(UTC)
    house.records().storage_probed({"bucket": house.bucket, "at": at, "passed": False, "failed": ["single: shorten"]})
    assert listen.storage_failures(house.bucket) == ["single: shorten"]
    house.records().storage_probed({"bucket": house.bucket, "at": at - timedelta(days=1), "passed": True, "failed": []})
    assert listen.storage_failures(house.bucket) == ["single: shorten"]  # an older result does not cover a newer one
    ahead = datetime.now(UTC) + timedelta(days=400)  # of a node whose clock is wrong: it does not bar what comes later
    for wrong in (ahead, None):
        found = {"at": wrong or datetime.now(UTC), "passed": wrong is None, "failed": []}
        house.records().storage_probed({"bucket": house.bucket} | found)
    assert listen.storage_failures(house.bucket) == []


def test_a_lifecycle_that_drifted_is_in_the_ledger_and_counted(house):
    wanted = lifecycle.rules([replace(basis, prefix="elsewhere") for basis in BASES.values()])
    Vigil(house.sweep, wanted, house.records()).compare()
    entries = house.stores.rows("SELECT body FROM ledger WHERE kind = 'lifecycle_drifted'")
    assert len(entries) == 1
    assert counted(metrics.LIFECYCLE_DRIFT) == len(entries[0]["body"]["rules"]) > 0


def test_each_role_may_do_no_more_than_its_work_f5(house):
    kept = house.record()
    for role, statement in (
        ("api", "DELETE FROM recording_key"),
        ("api", "UPDATE erasure SET state = 'erased', erased_at = now()"),
        ("api", "INSERT INTO erasure (recording_id, cause, state, erased_at) VALUES (NULL, 'order', 'erased', now())"),
        ("api", "SELECT sealed FROM caller"),
        ("listen", "INSERT INTO storage_probe VALUES ('b', now(), 'n', true, '{}')"),
        ("listen", "SELECT * FROM revocation"),
        ("ship", "DELETE FROM recording_key"),
        ("sweep", "DELETE FROM ledger"),
    ):
        user, password = house.stores.login(role)
        refused = pytest.raises(psycopg.errors.InsufficientPrivilege)
        with refused, psycopg.connect(house.stores.url, user=user, password=password) as connection:
            connection.execute(statement)
    assert house.left(kept) == EVERYTHING


def test_a_recording_that_is_not_there_is_unknown(house):
    kept = house.record()
    for ask in (
        lambda: house.desk().erase(kept.call_id, Cause.ORDER, "dpo"),
        lambda: house.desk().dispose(kept.call_id, Said(Disposition.ORDER), "a"),
        lambda: house.desk().release(kept.call_id, "why", "dpo"),
    ):
        with pytest.raises(UnknownError):
            ask()
    house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    house.erase_all()
    with pytest.raises(CallrecError):
        house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")


def test_what_a_lost_node_leaves_is_erased_by_the_one_that_takes_it_over(house):
    """On time and completely, whatever becomes of the node that recorded it (C1, C2)."""
    stored, unstored = house.record(), house.record(until="finished")
    other = RightsRecords(house.database("sweep"), node="another")
    assert other.leaves(NODE) == (1, 1)
    assert [other.adopt(NODE, limit=1), other.adopt(NODE, limit=1), other.adopt(NODE)] == [1, 1, 0]
    assert other.leaves(NODE) == (0, 0)
    assert house.row(unstored.recording_id)["state"] == "lost"
    assert house.kinds(unstored.recording_id)[-1] == "recording_lost"
    assert house.kinds(stored.recording_id)[-1] == "recording_adopted"
    house.desk().erase(stored.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    house.erase_all()
    assert house.erasure(stored.recording_id)["state"] == "due"  # no longer the work of the node that is lost
    house.erase_all(Eraser(other, house.sweep, house.spool, house.live, lambda *_: None))
    assert house.row(stored.recording_id)["state"] == "erased"
    assert house.left(stored) == set()
