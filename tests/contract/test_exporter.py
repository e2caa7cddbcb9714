"""What goes into an evidence bundle and what does not, on real stores: purposes, holds, keys, a ledger that is late."""

import io
import json
import zipfile
from datetime import UTC, datetime, timedelta

import gevent
import pytest
from fix_rights import NODE, PRIVATE

from callrec.errors import AccessDeniedError, LedgerError, UnknownError
from callrec.ledger import verify
from callrec.ledger.bundle import Exporter, Request
from callrec.ledger.note import Signer
from callrec.ledger.receipt import Controller
from callrec.ledger.sequencer import Sequencer
from callrec.recording.playback import Player
from callrec.rights.holds import HoldReason
from callrec.store.evidence import EvidenceRecords
from callrec.store.tree import TreeRecords

OWN, RIGHT, DENIED = "complaint_handling", "dsar", "agent_supervision"
SIGNER = Signer("ledger.example.com/test", b"s" * 32)
CONTROLLER = Controller("Operator", "Street 1", "dpo@example.com", "SI", "sl", "eu-central-1")


class Office:
    """Who makes bundles, beside a ledger that is signed while `signing`."""

    def __init__(self, house):
        self.house = house
        api = house.database("api")
        player = Player(api.run, house.api, PRIVATE, node=NODE, denied=(DENIED,), rights=(RIGHT,))
        self.exporter = Exporter(
            EvidenceRecords(api, node=NODE), TreeRecords(api), player, CONTROLLER, notices={}, lines={},
            verifiers=[SIGNER.verifier], patience=0.3,
        )  # fmt: skip
        self.sequencer = Sequencer(TreeRecords(house.database("sweep")), [SIGNER], SIGNER.verifier.name)
        self.signing = True

    def sign(self):
        while self.signing:
            gevent.sleep(0 if self.sequencer.step() else 0.01)

    def export(self, call, purpose=RIGHT, *, patience=30.0):
        """The bundle's bytes."""
        self.exporter._patience = patience
        out = io.BytesIO()
        signer = gevent.spawn(self.sign)
        try:
            self.exporter.export(Request(str(call), purpose, "dpo-1"), out)
        finally:
            signer.kill()
            self.out = out.getvalue()
        return self.out

    def entries(self, call_id):
        return self.house.stores.rows(
            "SELECT kind, body FROM ledger WHERE call_id = %s AND (kind LIKE 'evidence%%' OR kind LIKE 'access%%')"
            " ORDER BY entry_id", call_id,
        )  # fmt: skip


@pytest.fixture
def office(house):
    return Office(house)


def parts(data):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def reason(data):
    found = parts(data)
    assert "audio.wav" not in found
    return json.loads(found["manifest.json"])["absent"]["audio.wav"]


@pytest.mark.parametrize("name", ["call_id", "recording_id", "channel"])
def test_a_call_is_found_by_any_of_its_ids_and_its_bundle_verifies(office, name):
    kept = office.house.record()
    data = office.export(getattr(kept, name))
    assert [*verify.claims(io.BytesIO(data), [SIGNER.verifier])]
    assert parts(data)["audio.wav"] == office.house.player(RIGHT, kept.recording_id)


def test_it_is_in_the_ledger_who_asked_and_what_for_and_the_bundle_does_not_say_who(office):
    kept = office.house.record()
    data = office.export(kept.call_id, OWN)
    asked, exported = office.entries(kept.call_id)
    assert asked == {"kind": "evidence_requested", "body": {"purpose": OWN, "account": "dpo-1"}}
    assert exported["kind"] == "evidence_exported"
    assert b"dpo-1" not in data
    access = json.loads(parts(data)["access.json"])
    assert [(line["kind"], line["purpose"]) for line in access] == [("evidence_requested", OWN)]


def test_asking_twice_shows_the_first_time_in_the_second(office):
    kept = office.house.record()
    office.export(kept.call_id)
    office.house.player(RIGHT, kept.recording_id)
    claims = [*verify.claims(io.BytesIO(office.export(kept.call_id)), [SIGNER.verifier])]
    assert sum(claim.startswith("Evidence of the call was asked for") for claim in claims) == 2
    assert any(claim.startswith("Somebody listened") for claim in claims)


@pytest.mark.parametrize("purpose", [DENIED, "marketing", ""])
def test_another_purpose_is_denied_and_noted_and_nothing_is_written(office, purpose):
    kept = office.house.record()
    with pytest.raises(AccessDeniedError, match="purpose"):
        office.export(kept.call_id, purpose)
    assert office.out == b""
    assert office.entries(kept.call_id) == [
        {"kind": "access_denied", "body": {"purpose": purpose, "account": "dpo-1"}}
    ]  # fmt: skip


def test_an_unknown_call_is_said_to_be_unknown(office):
    with pytest.raises(UnknownError, match="no such call"):
        office.export("nobody")


def test_nothing_is_written_before_the_ledger_has_it(office):
    kept = office.house.record()
    office.exporter._records.note = None  # Postgres is away
    with pytest.raises(TypeError):
        office.export(kept.call_id)
    assert office.out == b""


def test_without_a_signature_in_time_it_says_what_to_look_at(office):
    kept = office.house.record()
    office.signing = False
    with pytest.raises(LedgerError, match="Is `callrec sweep` running"):
        office.export(kept.call_id, patience=0.3)


def test_a_held_recording_goes_to_the_rights_of_callers_alone(office):
    kept = office.house.record()
    review = datetime.now(UTC) + timedelta(days=9)
    office.house.desk().hold(kept.recording_id, HoldReason.DISPUTE, case="case-4711x", owner="dpo-9", review_at=review)
    assert "audio.wav" in parts(office.export(kept.call_id, RIGHT))
    data = office.export(kept.call_id, OWN)
    assert reason(data) == "It is held (E11)"
    assert b"dpo-9" not in data
    assert b"case-4711x" not in data


def test_a_recording_that_is_not_there_is_told_why(office):
    unfinished = office.house.record(until="finished")
    assert reason(office.export(unfinished.call_id)) == "It is finished"
    keyless = office.house.record()
    office.house.stores.admin.execute("DELETE FROM recording_key WHERE recording_id = %s", (keyless.recording_id,))
    assert reason(office.export(keyless.call_id)) == "Its key is gone"


def test_what_the_administrator_changed_in_the_ledger_is_not_exported(office):
    kept = office.house.record()
    office.export(kept.call_id)
    office.house.stores.admin.execute("ALTER TABLE ledger DISABLE TRIGGER USER")
    office.house.stores.admin.execute(
        "UPDATE ledger SET at = at - interval '1 hour' WHERE call_id = %s AND kind = 'recording_stored'",
        (kept.call_id,),
    )
    with pytest.raises(LedgerError, match=r"The part entries/\d+.leaf, or its .proof, is not the ledger's"):
        office.export(kept.call_id)
