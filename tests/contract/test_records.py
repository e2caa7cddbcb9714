"""What each fact does to the rows: the listener's records and the shipper's, as their own roles, on a real Postgres."""

import json
import uuid
from datetime import UTC, datetime, timedelta

import gevent
import pytest
from fix_stack import wait_until
from fix_store import ZONE, make_facts, make_line, make_notes, make_policy

from callrec.call.policy import BasisKind, LockMode
from callrec.errors import StoreError
from callrec.ledger.caller import LookupKeys, conceal, look_up
from callrec.recording import envelope
from callrec.recording.facts import StoredRecording
from callrec.rights.retention import Inputs
from callrec.store.records import CallRecords
from callrec.store.scribe import Scribe
from callrec.store.shipping import ShipRecords

LOOKUP = LookupKeys({1: b"k" * 32, 7: b"l" * 32})
PRIVATE, PUBLIC = envelope.generate_keypair()
NUMBER = "+38640123456"
NOW = datetime.now(UTC)


class Office:
    def __init__(self, stores):
        self.stores = stores
        self.listen, ship = stores.database("listen"), stores.database("ship")
        self.scribe = Scribe(self.listen)
        self.scribe.start()
        self.calls = CallRecords(self.listen, self.scribe, node="node-1", timezone=ZONE)
        self.ship, self.other_ship = ShipRecords(ship, node="node-1"), ShipRecords(ship, node="node-2")

    def authorise(self, facts=None, decision="granted", notes=None):
        facts = facts or make_facts()
        notes = notes or make_notes("call_arrived", "basis_established")
        self.calls.authorise(facts, decision, notes, conceal(NUMBER, LOOKUP, PUBLIC), timeout=5)
        return facts

    def finished(self, **other):
        facts = self.authorise(make_facts(**other))
        self.calls.started(facts, NOW)
        self.calls.finished(facts.recording_id, NOW, 800, abrupt=False)
        self.flush()
        return facts

    def flush(self):
        assert self.scribe._idle.wait(20)

    def row(self, facts, table="recording"):
        rows = self.stores.rows(f"SELECT * FROM {table} WHERE call_id = %s", facts.call_id)
        return rows[0] if rows else None

    def key(self, facts):
        return self.stores.rows("SELECT * FROM recording_key WHERE recording_id = %s", facts.recording_id)

    def body(self, facts, kind):
        rows = self.stores.rows("SELECT * FROM ledger WHERE call_id = %s AND kind = %s", facts.call_id, kind)
        assert len(rows) == 1
        return rows[0]

    def store(self, facts):
        self.ship.stored(facts.recording_id, STORED)


STORED = StoredRecording(
    bucket="b", object_key="consent/2026/x", version_id="v1", lock_mode=LockMode.GOVERNANCE, retain_until=NOW,
    plaintext_sha256=b"p" * 32, ciphertext_sha256=b"c" * 32, ciphertext_bytes=123, duration_seconds=1.23456,
)  # fmt: skip


@pytest.fixture
def office(stores):
    made = Office(stores)
    yield made
    made.scribe.stop(0)


# The listener


def test_a_basis_is_durable_with_all_that_proves_it(office):
    """A8, A9: one basis, its notice's version, what it may be used for; and no number in the clear anywhere."""
    facts = office.authorise()
    row, call, caller = office.row(facts), office.row(facts, "call"), office.row(facts, "caller")
    assert (row["state"], row["basis"], row["notice"], row["notice_version"]) == (
        "authorised",
        "consent",
        "notice-b",
        "1",
    )
    assert (row["lock_mode"], row["prefix"], row["node"]) == ("GOVERNANCE", "consent/", "node-1")
    assert row["purposes"] == ["complaint_handling", "service_quality.information_accuracy"]
    assert (call["channel"], call["decision"], call["state"], call["line"]) == (
        facts.channel, "granted", "authorised", "service",
    )  # fmt: skip
    assert office.stores.kinds(facts.call_id) == ["call_arrived", "basis_established"]
    assert (bytes(caller["lookup"]), caller["epoch"]) == (look_up(NUMBER, b"l" * 32), 7)
    for table in ("call", "caller", "recording", "ledger"):
        assert NUMBER not in str(office.stores.rows(f"SELECT * FROM {table}"))


def test_a_caller_without_a_number_can_be_recorded_too(office):
    facts = make_facts()
    office.calls.authorise(facts, "granted", make_notes("basis_established"), None, timeout=5)
    assert office.row(facts)["state"] == "authorised"
    assert office.row(facts, "caller") is None


def test_a_second_basis_for_a_call_is_refused_and_changes_nothing_a9(office):
    facts = office.authorise()
    other = make_facts(make_line(BasisKind.NOTICE), call_id=facts.call_id, channel=facts.channel)
    before = office.row(facts)
    for again in (facts, other):
        with pytest.raises(StoreError):
            office.authorise(again, notes=make_notes("basis_established", first=9))
    assert office.row(facts) == before
    assert office.stores.kinds(facts.call_id) == ["call_arrived", "basis_established"]


def test_a_call_without_a_line_gets_no_basis_b8(office):
    facts = make_facts()
    unknown = type(facts)(facts.call_id, facts.recording_id, facts.channel, None, facts.arrived_at)
    with pytest.raises(StoreError):
        office.authorise(unknown)
    assert office.row(facts, "call") is None


@pytest.mark.parametrize(
    ("kind", "start", "until"),
    [
        (BasisKind.CONSENT, "2026-11-30T10:00:00+01:00", "2027-02-28T10:00:00+01:00"),  # C2
        (BasisKind.NOTICE, "2028-02-29T12:00:00+01:00", "2031-02-28T12:00:00+01:00"),  # C1
    ],
)
def test_the_retention_date_follows_from_the_start_and_can_be_computed_again(office, kind, start, until):
    facts = office.authorise(make_facts(make_line(kind)))
    provisional = office.row(facts)["retain_until"]
    office.calls.started(facts, datetime.fromisoformat(start))
    office.flush()
    row = office.row(facts)
    assert row["retain_until"] == datetime.fromisoformat(until)
    assert row["retain_until"] != provisional
    inputs = Inputs.from_record(row["retention_inputs"])
    assert inputs.until() == row["retain_until"]
    assert inputs.start == row["started_at"]


def test_a_recording_starts_and_finishes(office):
    facts = office.authorise()
    office.calls.started(facts, NOW)
    office.flush()
    assert office.row(facts)["state"] == "recording"
    office.calls.finished(facts.recording_id, NOW + timedelta(seconds=3), 24000, abrupt=True)
    office.flush()
    row = office.row(facts)
    assert (row["state"], row["samples"], row["abrupt"]) == ("finished", 24000, True)
    assert row["stopped_at"] - row["started_at"] == timedelta(seconds=3)


def test_a_start_that_arrives_after_the_finish_takes_nothing_back(office):
    facts = office.authorise()
    office.calls.finished(facts.recording_id, NOW, None, abrupt=True)
    office.calls.started(facts, NOW)
    office.flush()
    assert office.row(facts)["state"] == "finished"


def test_void_before_there_is_a_basis_is_nothing(office):
    facts = make_facts()
    office.calls.void(facts.recording_id, "ledger_down")
    office.flush()
    assert office.row(facts) is None
    assert office.stores.rows("SELECT 1 FROM ledger") == []


@pytest.mark.parametrize("how_far", ["authorised", "recording", "finished"])
def test_void_discards_with_the_caller_and_says_so_once(office, how_far):
    facts = office.authorise()
    if how_far != "authorised":
        office.calls.started(facts, NOW)
    if how_far == "finished":
        office.calls.finished(facts.recording_id, NOW, 1, abrupt=False)
    office.calls.void(facts.recording_id, "withdrawn")
    office.calls.void(facts.recording_id, "withdrawn")
    office.flush()
    assert office.row(facts)["state"] == "discarded"
    assert office.row(facts, "caller") is None
    assert office.body(facts, "recording_discarded")["body"] == {"reason": "withdrawn"}
    office.calls.finished(facts.recording_id, NOW, 1, abrupt=False)
    office.flush()
    assert office.row(facts)["state"] == "discarded"


def test_what_a_listener_that_died_left_open(office):
    begun, running, gone = office.authorise(), office.authorise(), office.finished()
    office.calls.started(running, NOW)
    office.calls.note(running, "recording", "granted", make_notes("recording_started", "recording_masked", first=6))
    office.flush()
    left = {found.facts.recording_id: found for found in office.calls.open_recordings(make_policy(make_line()))}
    assert set(left) == {begun.recording_id, running.recording_id}
    assert gone.recording_id not in left
    found = left[running.recording_id]
    assert (found.started, found.ordinal, found.decision, found.masked) == (True, 7, "granted", True)
    assert found.facts.line.id == "service"
    assert found.facts.channel == running.channel
    assert (left[begun.recording_id].started, left[begun.recording_id].masked) == (False, False)
    office.calls.note(running, "recording", "granted", make_notes("recording_unmasked", first=8))
    office.flush()
    assert not any(found.masked for found in office.calls.open_recordings(make_policy(make_line())))
    other = CallRecords(office.listen, office.scribe, node="node-2", timezone=ZONE)
    assert other.open_recordings(make_policy(make_line())) == []


# The shipper


def test_a_claim_gives_what_is_needed_and_counts(office):
    facts = office.finished()
    found = office.ship.claim("node-1", 60)
    assert (found.recording_id, found.call_id, found.basis_id) == (facts.recording_id, facts.call_id, "consent")
    assert (found.lock, found.prefix, found.attempts, found.ended_abruptly) == (
        LockMode.GOVERNANCE,
        "consent/",
        1,
        False,
    )
    assert found.started_at == NOW
    assert office.ship.claim("node-1", 60) is None


def test_every_recording_is_claimed_by_one_of_many_at_once(office):
    wanted = {office.finished().recording_id for _ in range(10)}
    claims = [gevent.spawn(office.ship.claim, "node-1", 60) for _ in range(20)]
    gevent.joinall(claims, raise_error=True)
    found = [claim.value.recording_id for claim in claims if claim.value]
    # SKIP LOCKED may pass over a row that another claim held for a moment; the next look finds it.
    while (more := office.ship.claim("node-1", 60)) is not None:
        found.append(more.recording_id)
    assert sorted(found) == sorted(wanted)


def test_another_node_does_not_claim_it(office):
    office.finished()
    assert office.other_ship.claim("node-2", 60) is None
    assert office.ship.claim("node-1", 60) is not None


def test_a_lease_ends_by_itself_and_unclaim_ends_it_at_once(office):
    office.finished()
    assert office.ship.claim("node-1", 0.3)
    assert wait_until(lambda: office.ship.claim("node-1", 60), 5).attempts == 2
    office.other_ship.unclaim()
    assert office.ship.claim("node-1", 60) is None
    office.ship.unclaim()
    assert office.ship.claim("node-1", 60).attempts == 3


def test_a_failed_attempt_waits_and_says_why(office):
    facts = office.finished()
    office.ship.claim("node-1", 60)
    office.ship.failed(facts.recording_id, "S3 is away", 0.4)
    assert office.row(facts)["last_error"] == "S3 is away"
    assert office.ship.claim("node-1", 60) is None
    assert wait_until(lambda: office.ship.claim("node-1", 60), 5).attempts == 2


def test_the_key_is_replaced_while_it_is_not_stored_and_never_after(office):
    facts = office.finished()
    assert office.ship.sealed(facts.recording_id, b"one", "k") == b"one"
    assert office.ship.sealed(facts.recording_id, b"two", "k") == b"two"
    office.store(facts)
    with pytest.raises(StoreError, match="not waiting"):
        office.ship.sealed(facts.recording_id, b"three", "k")
    assert bytes(office.key(facts)[0]["sealed"]) == b"two"


def test_a_key_on_its_way_goes_with_a_recording_that_is_discarded_meanwhile(office):
    """Whichever of the two comes first: no key is left."""
    facts = office.finished()
    with office.stores.admin.transaction():
        office.stores.admin.execute("SELECT 1 FROM recording FOR UPDATE")
        sealing = gevent.spawn(office.ship.sealed, facts.recording_id, b"key", "k")
        office.calls.void(facts.recording_id, "withdrawn")
        gevent.sleep(0.2)  # both wait for the row now
    office.flush()
    sealing.join(10)
    assert office.row(facts)["state"] == "discarded"
    assert office.key(facts) == []


def test_stored_is_said_once_with_what_was_read_back(office):
    facts = office.finished()
    office.store(facts)
    office.store(facts)
    entry = office.body(facts, "recording_stored")
    assert entry["recording_id"] == facts.recording_id
    assert entry["body"] == {
        "bucket": "b", "object_key": "consent/2026/x", "version_id": "v1", "lock_mode": "GOVERNANCE",
        "retain_until": NOW.isoformat(), "plaintext_sha256": (b"p" * 32).hex(), "ciphertext_sha256": (b"c" * 32).hex(),
        "ciphertext_bytes": 123, "duration_seconds": 1.235,
    }  # fmt: skip
    row = office.row(facts)
    assert (row["state"], row["version_id"], row["claimed_until"]) == ("stored", "v1", None)
    assert office.ship.claim("node-1", 60) is None
    json.dumps(entry["body"])


@pytest.mark.parametrize("end", ["empty", "lost"])
def test_empty_and_lost_end_what_waits_and_never_what_is_stored(office, end):
    facts, stored = office.finished(), office.finished()
    office.ship.sealed(facts.recording_id, b"key", "k")
    office.ship.sealed(stored.recording_id, b"key", "k")
    office.store(stored)
    for each in (facts, stored, facts):
        getattr(office.ship, end)(each.recording_id)
    assert (office.row(facts)["state"], office.key(facts), office.row(facts, "caller")) == (end, [], None)
    assert office.body(facts, f"recording_{end}")["body"] == {}
    assert office.row(stored)["state"] == "stored"
    assert office.key(stored)
    assert office.row(stored, "caller")


@pytest.mark.parametrize("how_far", ["finished", "stored", "voided"])
def test_discarding_takes_key_and_caller_also_of_what_is_stored_already(office, how_far):
    facts = office.finished()
    office.ship.sealed(facts.recording_id, b"key", "k")
    if how_far == "stored":
        office.store(facts)
    if how_far == "voided":
        office.calls.void(facts.recording_id, "withdrawn")
        office.flush()
    for _ in range(2):
        office.ship.discarded(facts.recording_id, "withdrawn_after_put")
    assert office.row(facts)["state"] == "discarded"
    assert office.key(facts) == []
    assert office.row(facts, "caller") is None
    reason = "withdrawn" if how_far == "voided" else "withdrawn_after_put"
    assert office.body(facts, "recording_discarded")["body"] == {"reason": reason}
    office.store(facts)
    assert office.row(facts)["state"] == "discarded"


def test_the_state_and_the_lag(office):
    assert office.ship.state_of(uuid.uuid4()) is None
    assert office.ship.lag() == 0
    facts = office.finished()
    assert office.ship.state_of(facts.recording_id) == "finished"
    office.stores.admin.execute("UPDATE recording SET stopped_at = now() - interval '90 seconds'")
    assert 90 <= office.ship.lag() < 120
    assert office.other_ship.lag() == 0
    office.store(facts)
    assert office.ship.lag() == 0


def test_a_call_is_found_by_any_of_its_names(office):
    facts = office.authorise()
    names = (str(facts.call_id), str(facts.call_id).upper(), str(facts.recording_id), facts.channel)
    for name in names:
        found = office.listen.one("call_of", {"id": name})
        assert (found["call_id"], found["channel"]) == (facts.call_id, facts.channel)
    for name in ("", "%", "not-a-uuid", str(uuid.uuid4()), "' OR true --"):
        assert office.listen.one("call_of", {"id": name}) is None


def test_what_is_open_is_not_told_before_what_ended_is_written(office):
    """Postgres may be read for hours while it takes nothing: a call that ended meanwhile would be taken up again."""
    ended, policy = office.authorise(), make_policy(make_line())
    assert [each.facts.call_id for each in office.calls.open_recordings(policy)] == [ended.call_id]
    office.stores.admin.execute("REVOKE UPDATE ON recording FROM callrec_listen")
    office.calls.finished(ended.recording_id, NOW, 8000, abrupt=False)
    with pytest.raises(StoreError, match="not written yet"):
        office.calls.open_recordings(policy)
    office.stores.admin.execute("GRANT UPDATE ON recording TO callrec_listen")
    office.flush()
    assert office.calls.open_recordings(policy) == []
