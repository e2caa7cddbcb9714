"""Evidence of a call goes when it has had its time, and its leaves stay (C6); nothing else in the ledger changes."""

import hashlib
import json
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import gevent
import psycopg
import pytest
from fix_store import ZONE, make_facts, make_notes
from psycopg import errors

from callrec import cli
from callrec.call.policy import Retention
from callrec.errors import StoreError
from callrec.ledger import note, tree
from callrec.ledger.entry import Entry, canonical_body
from callrec.ledger.note import Signer
from callrec.ledger.sequencer import Sequencer
from callrec.rights.pruning import Pruner
from callrec.store.records import CallRecords
from callrec.store.rights import RightsRecords
from callrec.store.scribe import Scribe
from callrec.store.tree import TreeRecords

ORIGIN = "ledger.example.com/pruned"
THREE_YEARS = ((date.min, Retention(years=3)),)
NOW = datetime(2031, 3, 1, 12, 0, tzinfo=UTC)


class Archive:
    """Calls of long ago in a signed ledger, and who prunes it."""

    def __init__(self, stores):
        self.stores = stores
        self.listen = stores.database("listen")
        self.scribe = Scribe(self.listen)
        self.scribe.start()
        self.calls = CallRecords(self.listen, self.scribe, node="node-1", timezone=ZONE)
        self.records = RightsRecords(stores.database("sweep"), node="node-1")
        self.tree = TreeRecords(stores.database("sweep"))
        self.signer = Signer.generate(ORIGIN)

    def call(self, gone_at, *, state="erased", arrived_at=None):
        """A call whose recording was gone at `gone_at`; without `state` it had none, and ended then."""
        facts = make_facts(arrived_at=arrived_at or gone_at - timedelta(minutes=1))
        if state:
            self.calls.authorise(facts, "granted", make_notes("key_pressed", "basis_established"), None, timeout=5)
        else:
            self.calls.note(facts, "ended", "refused", make_notes("key_pressed", "call_ended"), gone_at)
        assert self.scribe._idle.wait(5)
        self.change("UPDATE call SET ended_at = arrived_at + interval '30 s' WHERE call_id = %s", facts.call_id)
        if not state:
            self.change("UPDATE call SET ended_at = %s WHERE call_id = %s", gone_at, facts.call_id)
        if state == "erased":
            self.change(
                "INSERT INTO erasure (recording_id, cause, state, erased_at) VALUES (%s, 'expiry', 'erased', %s)",
                facts.recording_id, gone_at,
            )  # fmt: skip
            self.records.note(facts.recording_id, "recording_erased", {"cause": "expiry"})
        elif state:
            self.change("UPDATE recording SET stopped_at = %s WHERE recording_id = %s", gone_at, facts.recording_id)
        if state:
            self.change("UPDATE recording SET version_id = 'v', ciphertext_sha256 = 'x', state = %s"
                        " WHERE recording_id = %s", state, facts.recording_id)  # fmt: skip
        return facts

    def revocation(self, received_at, *recordings):
        revocation = uuid4()
        self.change(
            "INSERT INTO revocation (revocation_id, request, received_at, channel, identification, scope, deadline,"
            " deadline_inputs, alarm_at) VALUES (%s, %s, %s, 'post', 'verified', 'all', now(), '{}', now())",
            revocation, revocation.bytes, received_at,
        )  # fmt: skip
        for recording in recordings:
            self.change("INSERT INTO revocation_recording VALUES (%s, %s, 'erase', 'withdrawn')", revocation, recording)
        self.records.entry("revocation_received", {"revocation": str(revocation), "channel": "post"})
        self.records.entry("revocation_identified", {"revocation": str(revocation), "account": "dpo-1"})
        return revocation

    def change(self, statement, *values):
        self.stores.admin.execute(statement, values)

    def sequence(self):
        sequencer = Sequencer(self.tree, [self.signer], ORIGIN)
        while sequencer.step():
            pass

    def prune(self, now=NOW, periods=THREE_YEARS):
        pruner = Pruner(self.records, periods, ZONE, clock=lambda: now)
        while pruner.prune():
            pass

    def bodies(self, facts):
        """Of the call's entries, which still have one."""
        rows = self.stores.rows("SELECT body FROM ledger WHERE call_id = %s ORDER BY entry_id", facts.call_id)
        return [row["body"] is not None for row in rows]

    def kept(self, facts):
        kept = self.bodies(facts)
        assert all(kept) or not any(kept), "a part of the evidence went"
        return kept[0]


@pytest.fixture
def archive(stores):
    made = Archive(stores)
    yield made
    made.scribe.stop(0)


def local(*parts):
    return datetime(*parts, tzinfo=ZoneInfo(ZONE))


def test_evidence_goes_three_years_after_the_recording_to_the_second_and_not_before_c6(archive):
    long_ago = local(2020, 1, 1)
    facts = archive.call(local(2028, 2, 29, 12), arrived_at=long_ago)  # by the calendar that is 28 Feb 2031
    archive.sequence()
    archive.prune(local(2031, 2, 28, 11, 59, 59))
    assert archive.kept(facts)
    archive.prune(local(2031, 2, 28, 12))
    assert not archive.kept(facts)
    (noted,) = archive.stores.rows("SELECT * FROM ledger WHERE kind = 'evidence_pruned'")
    assert (noted["body"], noted["call_id"], noted["node"]) == ({"calls": 1, "entries": 3}, None, "node-1")
    archive.prune(local(2031, 2, 28, 13))
    assert len(archive.stores.rows("SELECT 1 FROM ledger WHERE kind = 'evidence_pruned'")) == 1


def test_of_a_call_that_kept_nothing_it_goes_three_years_after_the_call(archive):
    gone = [archive.call(NOW - timedelta(days=1100), state=s) for s in (None, "discarded", "empty", "lost")]
    recent = [archive.call(NOW - timedelta(days=1000), state=s) for s in (None, "discarded", "empty", "lost")]
    archive.sequence()
    archive.prune()
    assert [archive.kept(facts) for facts in (*gone, *recent)] == [False] * 4 + [True] * 4


def test_what_still_stands_keeps_its_evidence(archive):
    long_ago = NOW - timedelta(days=5000)
    standing = {state: archive.call(long_ago, state=state) for state in ("authorised", "finished", "stored")}
    held, erasing, unsigned = archive.call(long_ago), archive.call(long_ago), None
    archive.change(
        "INSERT INTO hold VALUES (%s, %s, 'dispute', 'case', 'owner', now(), now())", uuid4(), held.recording_id
    )
    archive.change("UPDATE erasure SET state = 'waits' WHERE recording_id = %s", erasing.recording_id)
    archive.sequence()
    unsigned = archive.call(long_ago)
    archive.prune()
    assert all(archive.kept(facts) for facts in (*standing.values(), held, erasing, unsigned))
    archive.change("UPDATE hold SET released_at = now()")
    archive.sequence()
    archive.prune()
    assert [archive.kept(facts) for facts in (held, unsigned, erasing)] == [False, False, True]


def test_the_period_is_the_one_that_held_when_the_recording_was_gone_c6(archive):
    periods = (*THREE_YEARS, (date(2029, 1, 1), Retention(months=6)))
    before, after = archive.call(local(2028, 12, 31, 23, 59)), archive.call(local(2029, 1, 1))
    archive.sequence()
    archive.prune(local(2029, 6, 30, 23), periods)
    assert (archive.kept(before), archive.kept(after)) == (True, True)
    archive.prune(local(2029, 7, 1), periods)
    assert (archive.kept(before), archive.kept(after)) == (True, False)
    archive.prune(local(2031, 12, 31, 23, 59), periods)
    assert (archive.kept(before), archive.kept(after)) == (False, False)


def test_more_than_a_batch_goes_and_two_that_prune_at_once_do_it_once(archive, monkeypatch):
    monkeypatch.setattr("callrec.rights.pruning._BATCH", 2)
    calls = [archive.call(NOW - timedelta(days=1100 + day)) for day in range(7)]
    archive.sequence()
    gevent.joinall([gevent.spawn(archive.prune) for _ in range(2)], timeout=30, raise_error=True)
    assert not any(archive.kept(facts) for facts in calls)
    noted = archive.stores.rows("SELECT body FROM ledger WHERE kind = 'evidence_pruned'")
    assert sum(row["body"]["calls"] for row in noted) == 7
    assert sum(row["body"]["entries"] for row in noted) == 21


def test_what_was_pruned_can_still_be_proved(archive):
    """The leaf, the proof and the signature are as they were; and the body, where somebody has kept a copy."""
    facts = archive.call(NOW - timedelta(days=1100))
    archive.sequence()
    before = {row["entry_id"]: row for row in archive.stores.rows("SELECT * FROM ledger ORDER BY entry_id")}
    archive.prune()
    archive.sequence()  # it goes on growing
    checkpoint = note.open_checkpoint(archive.tree.last_checkpoint(), [archive.signer.verifier], ORIGIN)
    assert checkpoint.size == 4
    for row in archive.stores.rows("SELECT * FROM ledger WHERE call_id = %s", facts.call_id):
        was, leaf = before[row["entry_id"]], archive.tree.leaf(row["entry_id"])
        entry = Entry.of_row(row, pruned=leaf.body_sha256)
        assert entry == Entry.of_row(was)
        assert hashlib.sha256(canonical_body(was["body"])).digest() == leaf.body_sha256
        proof = tree.inclusion_proof(leaf.leaf_index, checkpoint.size, archive.tree.read)
        tree.verify_inclusion(entry.leaf_hash(), leaf.leaf_index, checkpoint.size, proof, checkpoint.root)
        assert row["pruned_at"] is not None


def test_a_revocation_goes_with_the_evidence_of_its_calls_c6(archive):
    gone = archive.call(NOW - timedelta(days=1200))
    kept = archive.call(NOW - timedelta(days=1000))
    over = archive.revocation(NOW - timedelta(days=1200), gone.recording_id)
    of_nothing = archive.revocation(NOW - timedelta(days=1200))
    of_kept = archive.revocation(NOW - timedelta(days=1200), gone.recording_id, kept.recording_id)
    recent = archive.revocation(NOW - timedelta(days=1000), gone.recording_id)
    archive.sequence()
    unsigned = archive.revocation(NOW - timedelta(days=1200))
    archive.prune()
    left = {row["revocation_id"] for row in archive.stores.rows("SELECT revocation_id FROM revocation")}
    assert left == {of_kept, recent, unsigned}
    told = archive.stores.rows("SELECT body FROM ledger WHERE kind LIKE 'revocation_%%' AND body IS NOT NULL")
    assert {UUID(row["body"]["revocation"]) for row in told} == left
    linked = archive.stores.rows("SELECT revocation_id FROM revocation_recording")
    assert {row["revocation_id"] for row in linked} == {of_kept, recent}
    assert {over, of_nothing}.isdisjoint(left)


# What must not be

FIRST = "(SELECT min(entry_id) FROM ledger)"
REFUSED = {
    "another body": "UPDATE ledger SET body = '{}'",
    "another kind": "UPDATE ledger SET kind = 'x'",
    "a body and a kind": "UPDATE ledger SET body = NULL, kind = 'x'",
    "a body and a time": "UPDATE ledger SET body = NULL, at = at + interval '1 s'",
    "a body and when it went": "UPDATE ledger SET body = NULL, pruned_at = '2020-01-01'",
    "when it went": "UPDATE ledger SET pruned_at = now()",
    "a row": "DELETE FROM ledger",
}


@pytest.mark.parametrize("how", REFUSED)
def test_nobody_changes_anything_else_of_the_ledger(archive, how):
    """Not even a superuser, as long as the triggers stand, in whatever session_replication_role."""
    archive.records.entry("tested", {"number": 1})
    archive.sequence()
    for silenced in ("origin", "replica"):
        archive.change(f"SET session_replication_role = {silenced}")
        with pytest.raises(errors.InsufficientPrivilege, match="the ledger only grows"):
            archive.change(REFUSED[how])


def test_a_body_goes_once_by_the_sweeper_alone_and_only_from_a_leaf(archive):
    archive.records.entry("tested", {"number": 1})
    prune = "UPDATE ledger SET body = NULL"
    user, password = archive.stores.login("sweep")
    with psycopg.connect(archive.stores.url, user=user, password=password, autocommit=True) as sweep:
        with pytest.raises(errors.InsufficientPrivilege, match="the ledger only grows"):
            sweep.execute(prune)
        archive.sequence()
        for role in ("listen", "ship", "api"):
            other, secret = archive.stores.login(role)
            with (
                psycopg.connect(archive.stores.url, user=other, password=secret) as connection,
                pytest.raises(errors.InsufficientPrivilege, match="permission denied"),
            ):
                connection.execute(prune)
        sweep.execute(prune)
        with pytest.raises(errors.InsufficientPrivilege, match="the ledger only grows"):
            sweep.execute(prune)  # it has none any more
        with pytest.raises(errors.InsufficientPrivilege):
            sweep.execute("UPDATE ledger SET body = '{\"number\": 1}'")


def test_no_entry_begins_without_a_body(archive):
    with pytest.raises(StoreError):
        archive.records._database.run(
            "entry", {"call_id": None, "recording_id": None, "kind": "k", "body": None, "node": "n"}
        )
    assert archive.stores.rows("SELECT 1 FROM ledger") == []


def test_the_ledger_of_a_pruned_call_can_be_looked_at(archive, monkeypatch, capsys):
    facts = archive.call(NOW - timedelta(days=1100))
    archive.sequence()
    archive.prune()
    monkeypatch.setattr(cli, "_load", lambda _args: None)
    monkeypatch.setattr(cli.adapters, "database", lambda *_: archive.stores.database("api"))
    assert cli.main(["ledger", str(facts.call_id)]) == 0
    out = capsys.readouterr().out
    assert "basis_established" in out
    assert "can still be proved" in out
    assert cli.main(["ledger", str(facts.call_id), "--json"]) == 0
    assert [json.loads(line)["body"] for line in capsys.readouterr().out.splitlines()] == [None] * 3
