"""Anchors on a real Ceph RGW: what the database can't undo, and that nothing is signed which contradicts one."""

import hashlib
from datetime import UTC, datetime, timedelta

import gevent
import pytest
from fix_ledger import ORIGIN, YEARS, run_out

from callrec import metrics
from callrec.call.policy import LockMode
from callrec.demo.process import free_port
from callrec.demo.stack import S3Endpoint
from callrec.errors import ConflictError, LedgerError, StorageError, StoreError
from callrec.ledger import note
from callrec.ledger.checkpoint import Lineage, object_key
from callrec.ledger.note import Signer
from callrec.ledger.restore import Restore
from callrec.recording.objects import DefaultRetention


def key(size, generation=1):
    return object_key(generation, size)


def refused():
    return metrics.LEDGER_REFUSED._value.get()


# What is put


def test_a_checkpoint_is_put_under_compliance_and_read_back(anchored):
    anchored.anchor(3)
    (version,) = anchored.versions()
    assert version.key == "checkpoints/00000000000000000003"
    assert anchored.read(version) == anchored.records.last_checkpoint()
    mode, until = anchored.objects(anchored._at["api"]).lock_of(version.key, version.version_id)
    assert mode == "COMPLIANCE"
    assert abs(until - datetime.now(UTC) - YEARS * timedelta(days=365)) < timedelta(days=4)
    (row,) = anchored.rows_of_anchors()
    assert (row["size"], row["bucket"], row["object_key"]) == (3, anchored.bucket, version.key)
    assert row["version_id"] == version.version_id
    assert row["sha256"] == hashlib.sha256(anchored.records.last_checkpoint()).digest()
    assert metrics.LEDGER_ANCHOR_SIZE._value.get() == 3


def test_beside_it_lie_the_leaves_that_came_since_the_last_one(anchored):
    """They name a rewritten entry exactly; each lies there before its anchor does."""
    anchored.anchor(3)
    anchored.anchor(2)
    leaves = [row["leaf_hash"] for row in anchored.stores.rows("SELECT leaf_hash FROM ledger_leaf ORDER BY leaf_index")]
    for size, since in ((3, leaves[:3]), (5, leaves[3:])):
        (found,) = anchored.admin.versions(f"{key(size)}.leaves")
        assert anchored.read(found) == b"".join(since)


def test_only_what_is_new_is_put(anchored):
    anchored.anchors.anchor()
    assert anchored.versions() == []
    for size in (2, 5):
        anchored.anchor(size)
        anchored.anchors.anchor()
        anchored.another_anchors().anchor()
    assert [version.key for version in anchored.versions()] == [key(2), key(7)]


def test_several_at_once_put_the_same(anchored):
    several = [anchored.another_anchors() for _ in range(3)]
    for anchors in several:
        anchors.look()
    anchored.anchors.looked = True
    anchored.sign(4)
    gevent.joinall([gevent.spawn(anchors.anchor) for anchors in several], raise_error=True)
    found = {anchored.read(version) for version in anchored.versions()}
    assert found == {anchored.records.last_checkpoint()}
    for anchors in several:
        anchors.anchor()
        assert anchors.trusted().size == 4
    assert len(anchored.rows_of_anchors()) == 1
    anchored.anchor(1)
    assert anchored.keys() == [key(4), key(5)]


STEPS = ["last_checkpoint", "last_anchor", "keep_anchor", "put", "read", "lock_of"]


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_one_that_dies_between_any_two_steps_is_followed_by_another(anchored, monkeypatch, step, done):
    anchored.anchor(3)
    anchored.sign(2)
    dying = anchored.another_anchors()
    target = (
        next(part for part in (dying._records, dying._objects.exchange, dying._objects) if hasattr(part, step))
        if step != "put"
        else dying._objects.exchange
    )
    name = "ask" if step == "put" else step
    real = getattr(target, name)

    def die(*arguments, **named):
        if done:
            real(*arguments, **named)
        raise StoreError("killed here")

    monkeypatch.setattr(target, name, die)
    with pytest.raises(StoreError, match="killed here"):
        dying.anchor()
    monkeypatch.undo()
    for follower in (anchored.another_anchors(), dying, anchored.anchors):
        follower.anchor()
        assert follower.trusted().size == 5
    assert anchored.keys() == [key(3), key(5)]
    assert [row["size"] for row in anchored.rows_of_anchors()] == [3, 5]
    anchored.anchor(1)
    anchored.verify()


@pytest.mark.parametrize(
    "default",
    [DefaultRetention(LockMode.GOVERNANCE, YEARS, "Years"), DefaultRetention(LockMode.COMPLIANCE, 1)],
    ids=["mode", "date"],
)
def test_what_is_not_locked_as_it_should_be_does_not_count(anchored, s3, default):
    """Somebody has changed the bucket's default."""
    weak = anchored.objects(s3, s3.bucket_name())
    weak.create_bucket(default)
    anchors = anchored.another_anchors(objects=weak)
    anchored.anchors.looked = True
    anchored.sign(2)
    for _ in range(2):
        with pytest.raises(StorageError, match="does not keep checkpoints"):
            anchors.anchor()
    assert len(weak.versions(key(2))) - len(weak.versions(f"{key(2)}.leaves")) == 1, "it is not put again and again"
    assert anchored.rows_of_anchors() == []


def test_while_the_store_is_away_the_ledger_is_signed_on(anchored):
    """And it is looked at first, and anchored when it is back."""
    nowhere = S3Endpoint(f"http://127.0.0.1:{free_port()}", "a", "s")
    away = anchored.another_anchors(objects=anchored.objects(nowhere))
    sequencer = anchored.another(anchors=away)
    anchored.append(2)
    run_out(sequencer)
    assert anchored.signed() == [], "nothing is signed before the first look"
    with pytest.raises(StorageError):
        away.anchor()
    run_out(sequencer)
    assert anchored.checkpoint().size == 2
    anchored.anchors.anchor()
    assert anchored.anchors.trusted().size == 2


# What is not signed


def assert_refused(anchored, sequencer, why=None):
    before, counted = anchored.signed(), refused()
    for _ in range(2):
        assert not sequencer.work()
    assert refused() == counted + 2
    assert not sequencer.sound
    with pytest.raises(LedgerError, match=why):
        run_out(sequencer)
    anchored.append(9)
    for _ in range(3):
        sequencer.work()
    assert anchored.signed() == before
    assert not sequencer.sound


@pytest.mark.parametrize("who", ["the same process", "one started anew"])
def test_a_database_put_back_is_not_signed_on(anchored, who):
    for _ in range(3):
        anchored.anchor(4)
    anchored.cut_off(8)
    sequencer = anchored.sequencer
    if who == "one started anew":
        anchors, sequencer = anchored.afresh()
        anchors.anchor()
    assert_refused(anchored, sequencer, "holds less than was signed")
    keys = anchored.keys()
    anchored.afresh()[0].anchor()
    assert anchored.keys() == keys == [key(4), key(8), key(12)]


def test_what_was_cut_off_behind_the_last_anchor_is_remembered_by_who_signed_it(anchored):
    anchored.anchor(4)
    anchored.sign(3)
    anchored.cut_off(4)
    assert_refused(anchored, anchored.sequencer, "holds less than was signed")


@pytest.mark.parametrize("who", ["the same process", "one started anew"])
def test_a_ledger_rewritten_whole_is_not_signed_on(anchored, who):
    """As superuser: an entry changed, then everything computed anew, checkpoints and anchors' rows taken away."""
    anchored.anchor(6)
    anchored.as_superuser(
        "UPDATE ledger SET kind = 'rewritten' WHERE entry_id = (SELECT min(entry_id) + 2 FROM ledger)",
        *(f"DELETE FROM {table}" for table in ("ledger_leaf", "ledger_node", "ledger_checkpoint", "ledger_anchor")),
    )
    counted = refused()
    sequencer = anchored.sequencer
    if who == "one started anew":
        anchors, sequencer = anchored.afresh()
        anchors.anchor()
    for _ in range(2):
        sequencer.work()
    assert refused() == counted + 2
    with pytest.raises(LedgerError, match="rewritten"):
        run_out(sequencer)
    anchored.append(5)
    sequencer.work()
    assert anchored.signed() == []
    assert anchored.keys() == [key(6)]


def test_what_was_signed_unseen_while_the_store_was_away_is_not_anchored(anchored):
    """A ledger rewritten then got its signature; the next look finds the contradiction."""
    anchored.anchor(6)
    anchored.as_superuser(
        "DELETE FROM ledger WHERE entry_id = (SELECT max(entry_id) FROM ledger)",
        *(f"DELETE FROM {table}" for table in ("ledger_leaf", "ledger_node", "ledger_checkpoint", "ledger_anchor")),
    )
    anchored.append(3)
    blind = anchored.another(anchors=None)
    run_out(blind)
    assert anchored.checkpoint().size == 8
    anchors, sequencer = anchored.afresh()
    counted = refused()
    anchors.anchor()
    assert refused() == counted + 1
    assert anchored.keys() == [key(6)]
    assert_refused(anchored, sequencer, "rewritten")


def test_the_table_of_anchors_is_not_believed(anchored):
    for _ in range(2):
        anchored.anchor(2)
    anchored.stores.admin.execute(
        "INSERT INTO ledger_anchor (size, bucket, object_key, version_id, sha256) VALUES (99, %s, %s, 'v', sha256(''))",
        (anchored.bucket, key(99)),
    )
    anchors = anchored.another_anchors()
    anchors.look()
    assert anchors.trusted().size == 4
    anchored.as_superuser("DELETE FROM ledger_anchor")
    anchors = anchored.another_anchors()
    anchors.look()
    assert anchors.trusted().size == 4


def test_an_anchor_is_not_hidden_by_a_later_version_or_a_delete_marker(anchored):
    """Which is all that the bucket's own administrator can do."""
    anchored.anchor(2)
    genuine = anchored.records.last_checkpoint()
    anchored.admin.exchange.ask("PUT", key(2), body=b"something else")
    assert anchored.admin.exchange.ask("DELETE", key(2)).accepted
    assert any(version.is_delete_marker for version in anchored.versions())
    anchors = anchored.another_anchors()
    anchors.look()
    assert anchors.trusted().note == genuine
    anchored.cut_off(0)
    assert_refused(anchored, anchored.another(anchors=anchors), "holds less than was signed")


@pytest.mark.parametrize("what", ["no note", "of a stranger", "in the wrong place", "of another ledger", "too long"])
def test_what_can_not_be_believed_stops_the_signing(anchored, what):
    anchored.anchor(2)
    body = {
        "no note": b"x",
        "of a stranger": note.sign_checkpoint(note.Checkpoint(ORIGIN, 9, b"r" * 32), [Signer.generate(ORIGIN)]),
        "in the wrong place": anchored.records.last_checkpoint(),
        "of another ledger": note.sign_checkpoint(note.Checkpoint("other", 9, b"r" * 32), [anchored.signer]),
        "too long": b"x" * (note.MAX_BYTES + 1),
    }[what]
    anchored.objects(anchored._at["checkpoint"]).exchange.ask("PUT", key(9), body=body)
    anchors, sequencer = anchored.afresh()
    anchors.anchor()
    anchored.append(1)
    assert_refused(anchored, sequencer)


def test_an_empty_bucket_that_was_not_empty_stops_the_signing(anchored, s3):
    anchored.anchor(2)
    empty = anchored.objects(s3, s3.bucket_name())
    empty.create_bucket(DefaultRetention(LockMode.COMPLIANCE, YEARS, "Years"))
    anchored.anchors._objects = empty
    anchored.anchors.anchor()
    assert_refused(anchored, anchored.sequencer, "gone from the object store")
    anchored.stores.admin.execute(
        "INSERT INTO ledger_anchor (size, bucket, object_key, version_id, sha256) VALUES (99, %s, %s, 'v', sha256(''))",
        (empty.bucket, key(99)),
    )
    fresh = anchored.another_anchors(objects=empty)  # of a process that remembers nothing
    fresh.anchor()
    assert_refused(anchored, anchored.another(anchors=fresh), "gone from the object store")


def test_a_new_key_takes_over_the_anchors_too(anchored):
    anchored.anchor(2)
    old, new = anchored.signer, Signer.generate(ORIGIN)
    lineage = Lineage(ORIGIN, (old.verifier, new.verifier))
    anchors = anchored.another_anchors(lineage=lineage)
    anchors.look()
    anchored.append(1)
    run_out(anchored.another(new, retired=[old.verifier], anchors=anchors))
    anchors.anchor()
    assert anchored.keys() == [key(2), key(3)]
    ignorant, sequencer = anchored.afresh()
    ignorant.anchor()
    assert_refused(anchored, sequencer, "Nobody known")


# After a restore


def restoring(anchored):
    return Restore(anchored.records, anchored.appender, anchored.another_anchors(), anchored.lineage, [anchored.signer])


def last(anchored):
    return anchored.lineage.open(anchored.records.last_checkpoint())


def test_a_restore_that_was_accepted_goes_on_as_the_next_generation(anchored):
    for _ in range(3):
        anchored.anchor(4)
    anchored.cut_off(8)
    anchors, sequencer = anchored.afresh()
    anchors.anchor()
    assert_refused(anchored, sequencer)
    restore = restoring(anchored)
    loss = restore.loss()
    assert (loss.anchored.size, loss.kept.size, loss.entries) == (12, 8, 4)
    signed = restore.accept(loss, "disk of the database failed", "dba")
    entry = anchored.rows()[-1]
    assert entry["kind"] == "restore_accepted"
    assert (entry["body"]["reason"], entry["body"]["account"]) == ("disk of the database failed", "dba")
    assert entry["body"]["anchored"] == {"origin": ORIGIN, "size": 12, "root": loss.anchored.root.hex()}
    assert entry["body"]["kept"] == {"origin": ORIGIN, "size": 8, "root": loss.kept.root.hex()}
    assert (signed.generation, signed.size) == (2, len(anchored.rows()))
    assert note.open_checkpoint(signed.note, [anchored.signer.verifier], f"{ORIGIN}/2").size == signed.size
    assert anchored.keys() == [key(4), key(8), key(12), key(signed.size, 2)]
    # Those that run go on by themselves, and so does one that is started.
    for follower_anchors, follower in ((anchors, sequencer), anchored.afresh()):
        follower_anchors.anchor()
        anchored.append(2)
        run_out(follower)
        follower_anchors.anchor()
        assert (last(anchored).generation, last(anchored).size) == (2, len(anchored.rows()))
        assert anchored.keys()[-1] == key(last(anchored).size, 2)
    with pytest.raises(ConflictError, match="Nothing was lost"):
        restoring(anchored).loss()


def test_what_was_accepted_can_not_be_taken_back(anchored):
    """The database as it was before the acceptance: that of the first generation, even whole, is signed no more."""
    for _ in range(2):
        anchored.anchor(4)
    anchored.cut_off(4)
    restore = restoring(anchored)
    signed = restore.accept(restore.loss(), "why", "dba")
    anchored.cut_off(4)
    anchors, sequencer = anchored.afresh()
    anchors.anchor()
    assert_refused(anchored, sequencer)
    again = restoring(anchored)
    loss = again.loss()
    assert (loss.anchored.generation, loss.anchored.size, loss.kept.size) == (2, signed.size, 4)
    assert again.accept(loss, "once more", "dba").generation == 3


def test_an_acceptance_cut_off_behind_its_anchor_holds(anchored, monkeypatch):
    for _ in range(2):
        anchored.anchor(4)
    anchored.cut_off(4)
    restore = restoring(anchored)
    monkeypatch.setattr(anchored.records, "checkpoint", lambda *_: (_ for _ in ()).throw(StoreError("killed here")))
    with pytest.raises(StoreError, match="killed here"):
        restore.accept(restore.loss(), "why", "dba")
    monkeypatch.undo()
    anchors, sequencer = anchored.afresh()
    anchors.anchor()
    anchored.append(1)
    run_out(sequencer)
    assert (last(anchored).generation, last(anchored).size) == (2, len(anchored.rows()))


def test_a_database_that_lost_everything_can_begin_again(anchored):
    anchored.anchor(4)
    anchored.cut_off(0)
    restore = restoring(anchored)
    loss = restore.loss()
    assert (loss.kept, loss.entries) == (None, 4)
    assert restore.accept(loss, "why", "dba").size == 1


def test_a_changed_database_is_no_restored_one(anchored):
    for _ in range(2):
        anchored.anchor(4)
    anchored.as_superuser("UPDATE ledger_node SET hash = sha256('x')")
    with pytest.raises(LedgerError, match="does not hold what its own last checkpoint says"):
        restoring(anchored).loss()
    assert [row["kind"] for row in anchored.rows()] == ["tested"] * 8


def test_nothing_lost_is_nothing_to_accept(anchored):
    with pytest.raises(ConflictError, match="Nothing was lost"):
        restoring(anchored).loss()
    anchored.anchor(4)
    with pytest.raises(ConflictError, match="Nothing was lost"):
        restoring(anchored).loss()
