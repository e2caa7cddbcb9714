"""Look-up keys have epochs: what was written under each is found, and a key under which nothing is left can go."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from fix_rights import NUMBER, code_reference

from callrec import cli, rights_cli
from callrec.ledger.caller import LookupKeys
from callrec.rights.desk import Intake
from callrec.rights.reference_code import new_code
from callrec.rights.revocation import Channel, Proof

OLD, NEW = {1: b"k" * 32}, {2: b"n" * 32}
FIRST, BOTH, SECOND = LookupKeys(OLD), LookupKeys(OLD | NEW), LookupKeys(NEW)


def withdraw(house, keys, at=None, **what):
    intake = Intake(
        Channel.PHONE, at or datetime.now(UTC), proofs=[Proof.CALLING_NUMBER] if "number" in what else (), **what
    )
    return house.desk(keys=keys).revoke(intake)


def found(answer):
    return {decision.recording_id for decision in answer.decisions}


def epochs(house):
    return {row["epoch"]: (row["callers"], row["codes"]) for row in house.records("api").lookup_epochs()}


def test_a_caller_is_found_under_every_key_that_is_there(house):
    before = house.record(keys=FIRST, until="finished")
    after = house.record(keys=BOTH, until="finished")
    assert epochs(house) == {1: (1, 0), 2: (1, 0)}
    assert found(withdraw(house, SECOND, number=NUMBER)) == {after.recording_id}
    assert found(withdraw(house, BOTH, number=NUMBER)) == {before.recording_id, after.recording_id}


def test_a_reference_code_is_found_under_its_own_key_d11(house):
    code = new_code()
    kept = house.record(number=None, reference=code_reference(code), until="finished")
    assert epochs(house) == {1: (0, 1)}
    assert found(withdraw(house, SECOND, code=code)) == set()
    assert found(withdraw(house, BOTH, code=code)) == {kept.recording_id}


def test_a_request_sent_again_after_the_key_was_replaced_is_taken_once(house):
    house.record(until="finished")
    at = datetime.now(UTC)
    first = withdraw(house, FIRST, at, number=NUMBER)
    again = withdraw(house, BOTH, at, number=NUMBER)
    assert again.revocation_id == first.revocation_id
    assert len(house.stores.rows("SELECT 1 FROM revocation")) == 1


def test_nothing_is_left_under_a_key_when_its_recordings_are_gone(house):
    """Of number and code alike: a key must not have to be kept for what is erased."""
    code = new_code()
    house.record(number=None, reference=code_reference(code))
    house.record()
    house.record(number="+38631555666", keys=BOTH)
    withdraw(house, BOTH, number=NUMBER)
    withdraw(house, BOTH, code=code)
    house.erase_all()
    assert epochs(house) == {2: (1, 0)}


@pytest.mark.parametrize("state", ["discarded", "empty", "lost"])
def test_what_kept_nothing_keeps_no_code_either(house, state):
    kept = house.record(number=None, reference=code_reference(new_code()), until="finished")
    house.stores.admin.execute("UPDATE recording SET state = %s WHERE recording_id = %s", (state, kept.recording_id))
    assert epochs(house) == {}


def test_the_command_says_which_key_is_needed_missing_or_over(house, monkeypatch, capsys):
    def listed(keys):
        config = SimpleNamespace(node="n", secrets=SimpleNamespace(lookup_keys=lambda _role: keys))
        monkeypatch.setattr(rights_cli, "load", lambda _path: config)
        monkeypatch.setattr(rights_cli.adapters, "database", lambda *_: house.stores.database("api"))
        status = cli.main(["lookup-keys", "--json"])
        rows = map(json.loads, capsys.readouterr().out.splitlines())
        return status, {row["epoch"]: row["state"].partition(":")[0] for row in rows}

    kept = house.record(until="finished")
    assert listed(FIRST) == (0, {1: "newest"})
    assert listed(BOTH) == (0, {1: "needed", 2: "newest"})
    assert listed(SECOND) == (1, {1: "missing", 2: "newest"})
    house.stores.admin.execute("UPDATE recording SET state = 'discarded' WHERE recording_id = %s", (kept.recording_id,))
    assert listed(BOTH) == (0, {1: "can be destroyed", 2: "newest"})
