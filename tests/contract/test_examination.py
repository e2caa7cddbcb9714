"""`callrec verify --ledger` against a database whose administrator lies: each change is found, and the first bad entry
named, with nothing believed but the public key and the anchors (issue: a ledger that convinces)."""

import re
import shutil
from datetime import timedelta

import pytest

from callrec.errors import LedgerError
from callrec.ledger import note
from callrec.ledger.archive import DirectoryArchive, leaves_key, leaves_since
from callrec.ledger.checkpoint import Lineage, object_key
from callrec.ledger.examination import SETTLED, Examination
from callrec.ledger.note import Checkpoint, Signer
from callrec.ledger.sequencer import Sequencer
from callrec.ledger.tree import Frontier
from callrec.ledger.verdict import Subject
from callrec.store.reading import LedgerReading
from callrec.store.rights import RightsRecords
from callrec.store.tree import TreeRecords

ORIGIN = "ledger.example.com/test"
SIZES = (5, 12, 13, 30)  # what was anchored; entries are numbered from 1, places from 0


class Ledger:
    """A ledger that was sequenced and anchored, and its administrator."""

    def __init__(self, stores, directory):
        self.stores = stores
        self.directory = directory
        self.signer = Signer.generate(ORIGIN)
        self.lineage = Lineage(ORIGIN, (self.signer.verifier,))
        self.appender = RightsRecords(stores.database("sweep"), node="node-1")
        self.reading = LedgerReading(stores.database("api"))
        self.anchored = 0

    def grow(self, to, *, anchor=True, leaves=True):
        """Append until there are so many entries, sign after every third, and anchor."""
        sequencer = Sequencer(TreeRecords(self.stores.database("sweep")), [self.signer], ORIGIN)
        for number in range(self.reading.size(), to):
            self.appender.entry("tested", {"number": number, "seconds": 2.5})
            if number % 3 == 0 or number == to - 1:
                while sequencer.step():
                    pass
        if anchor:
            self.put(object_key(1, to), self.reading.last_checkpoint())
            if leaves:
                self.put(leaves_key(1, to), leaves_since(self.anchored, to, self.reading.leaves))
            self.anchored = to

    def put(self, key, content):
        path = self.directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def tamper(self, *statements):
        """What the database's own administrator can do: drop the triggers, and all that keeps order."""
        admin = self.stores.admin
        for table in ("ledger", "ledger_leaf", "ledger_node", "ledger_checkpoint"):
            admin.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        for statement in statements:
            admin.execute(statement)

    def examine(self, **options):
        archive = DirectoryArchive(self.directory)
        return Examination(self.reading, archive, options.pop("lineage", self.lineage), **options).run()

    def rewrite(self, entry, signer=None):
        """Everything from this entry on with its hashes, subtrees and checkpoints computed anew."""
        self.tamper(
            f"UPDATE ledger SET body = '{{\"number\": 99}}' WHERE entry_id = {entry}",
            "DELETE FROM ledger_leaf",
            "DELETE FROM ledger_node",
            f"DELETE FROM ledger_checkpoint WHERE size >= {entry}",
        )
        sequencer = Sequencer(TreeRecords(self.stores.database("sweep")), [signer or Signer.generate(ORIGIN)], ORIGIN)
        sequencer._sign = lambda: False  # it would not: what was signed before is another tree
        while sequencer.step():
            pass
        frontier, leaves = Frontier(), self.reading.leaves(0, self.reading.size())
        for index, leaf in leaves:
            frontier.append([leaf])
            if signer and index + 1 >= entry:
                signed = note.sign_checkpoint(Checkpoint(ORIGIN, frontier.size, frontier.root()), [signer])
                self.stores.admin.execute("INSERT INTO ledger_checkpoint VALUES (%s, %s)", (frontier.size, signed))


@pytest.fixture
def ledger(stores, tmp_path):
    made = Ledger(stores, tmp_path / "anchors")
    for size in SIZES:
        made.grow(size)
    made.grow(34, anchor=False)
    return made


def failed(report):
    return {subject for subject, claim in report.claims.items() if not claim.holds}


# What is whole


def test_an_untouched_ledger_holds_in_every_claim(ledger):
    report = ledger.examine()
    assert report.holds
    assert failed(report) == set()
    assert (report.entries, report.anchors, report.bad) == (34, len(SIZES), [])
    assert all(claim.says for claim in report.claims.values())


def test_pages_and_anchors_meet_anywhere(ledger, monkeypatch):
    for page in (1, 4, 7, 8, 16, 64):
        monkeypatch.setattr("callrec.ledger.examination.PAGE", page)
        seen = []
        report = ledger.examine(progress=lambda done, of, seen=seen: seen.append((done, of)))
        assert report.holds, page
        assert (report.entries, seen[-1]) == (34, (34, 34))


def test_a_ledger_that_grows_meanwhile_holds(ledger, monkeypatch):
    """What came while it was read is read, too: the last checkpoint already covers it."""
    monkeypatch.setattr("callrec.ledger.examination.PAGE", 8)

    def grow(done, of):
        if done == of == 34:
            ledger.grow(45, anchor=False)

    report = ledger.examine(progress=grow)
    assert report.holds, [claim.against for claim in report.claims.values()]
    assert report.entries == 45


def test_a_pruned_body_is_no_change_and_a_pruned_kind_is(ledger):
    ledger.stores.admin.execute("UPDATE ledger SET body = NULL WHERE entry_id = 7")  # as the pruner may
    report = ledger.examine()
    assert report.holds
    assert report.pruned == 1
    ledger.tamper("UPDATE ledger SET kind = 'other' WHERE entry_id = 7")
    assert ledger.examine().bad[0].entry_id == 7


def test_a_young_ledger_without_anchors_is_not_called_proved(stores, tmp_path):
    """Nothing outside the database speaks for it."""
    ledger = Ledger(stores, tmp_path / "none")
    ledger.grow(3, anchor=False)
    with pytest.raises(LedgerError, match="no directory"):
        ledger.examine()
    report = Examination(ledger.reading, None, ledger.lineage).run()
    assert failed(report) == {Subject.ANCHORS}
    assert "no anchor" in report.claims[Subject.TREE].says


# What its administrator changed. Entry N stands at place N - 1.


CHANGES = {
    "body": ("UPDATE ledger SET body = '{\"number\": 99}' WHERE entry_id = 9", 9, "body was changed"),
    "body, unhashable": ("UPDATE ledger SET body = '{\"number\": 1e300}' WHERE entry_id = 9", 9, "body was changed"),
    "kind": ("UPDATE ledger SET kind = 'other' WHERE entry_id = 9", 9, "kind, node, ids"),
    "time": ("UPDATE ledger SET at = at + interval '1 us' WHERE entry_id = 9", 9, "times"),
    "time that is none": ("UPDATE ledger SET at = 'infinity' WHERE entry_id = 9", 9, "no entry can have"),
    "call": ("UPDATE ledger SET call_id = gen_random_uuid() WHERE entry_id = 9", 9, "kind, node, ids"),
    "two bodies": (
        "UPDATE ledger a SET body = b.body FROM ledger b WHERE a.entry_id IN (9, 20) AND b.entry_id = 29 - a.entry_id",
        9, "body was changed",
    ),
    "row": ("DELETE FROM ledger WHERE entry_id = 9", 9, "row was removed"),
    "kept hash of a body": (
        "UPDATE ledger_leaf SET body_sha256 = sha256('x') WHERE entry_id = 9", 9, "body was changed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_row_is_found_and_named(ledger, change):
    statement, entry, what = CHANGES[change]
    before = ledger.stores.rows("SELECT noted_at FROM ledger WHERE entry_id = %s", entry)[0]["noted_at"]
    ledger.tamper(statement)
    report = ledger.examine()
    assert failed(report) == {Subject.ROWS}, "the leaves still are those that were signed"
    first = report.bad[0]
    assert (first.entry_id, first.place, first.until) == (entry, entry - 1, None)
    assert what in first.what
    assert first.noted is None or first.noted[:19] == before.isoformat()[:19]
    assert report.claims[Subject.ROWS].faults == (2 if change == "two bodies" else 1)


MOVES = {
    "two leaves change places": (
        ("UPDATE ledger_leaf SET leaf_index = 27 - leaf_index WHERE leaf_index IN (8, 19)",),
        20, "it was rewritten",
    ),
    "two of one anchor change places": (
        ("UPDATE ledger_leaf SET leaf_index = 19 - leaf_index WHERE leaf_index IN (8, 11)",),
        12, "it was moved here",
    ),
    "neighbours change places": (
        ("UPDATE ledger_leaf SET leaf_index = 17 - leaf_index WHERE leaf_index IN (8, 9)",),
        10, "changed places",
    ),
    "a row and its leaf removed": (
        ("DELETE FROM ledger WHERE entry_id = 9", "DELETE FROM ledger_leaf WHERE entry_id = 9"),
        None, "leaf was removed; it came behind entry 8",
    ),
    "removed, and what followed moved up": (
        (
            "DELETE FROM ledger WHERE entry_id = 9", "DELETE FROM ledger_leaf WHERE entry_id = 9",
            "UPDATE ledger_leaf SET leaf_index = leaf_index - 1 WHERE leaf_index > 8",
        ),
        None, "removed, and what followed moved up; it came behind entry 8",
    ),
    "inserted": (
        (
            "UPDATE ledger_leaf SET leaf_index = leaf_index + 1 WHERE leaf_index >= 8",
            "INSERT INTO ledger_leaf SELECT 8, 1000, sha256('{}'), sha256('forged')",
        ),
        1000, "its row was removed|it was inserted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("move", MOVES)
def test_what_was_moved_removed_or_inserted_is_found_and_named(ledger, move):
    statements, entry, what = MOVES[move]
    ledger.tamper("ALTER TABLE ledger_leaf DROP CONSTRAINT ledger_leaf_pkey", *statements)
    report = ledger.examine()
    assert Subject.TREE in failed(report)
    first = report.bad[0]
    assert (first.place, first.entry_id, first.until) == (8, entry, None)
    assert re.search(what, first.what)


def test_a_place_that_is_taken_twice_is_found(ledger):
    ledger.tamper(
        "ALTER TABLE ledger_leaf DROP CONSTRAINT ledger_leaf_pkey",
        "INSERT INTO ledger_leaf SELECT 8, 1000, sha256('{}'), sha256('forged')",
    )
    report = ledger.examine()
    assert Subject.TREE in failed(report)
    assert report.bad[0].place == 8


@pytest.mark.parametrize("cut", ["rows", "leaves", "all", "checkpoints too"])
def test_a_truncated_tail_is_found_and_its_first_entry_named(ledger, cut):
    statements = {
        "rows": ["DELETE FROM ledger WHERE entry_id > 20"],
        "leaves": ["DELETE FROM ledger_leaf WHERE leaf_index >= 20"],
    }
    statements["all"] = (
        statements["rows"] + statements["leaves"] + ["DELETE FROM ledger_node WHERE position >= 20 >> level"]
    )
    statements["checkpoints too"] = [*statements["all"], "DELETE FROM ledger_checkpoint WHERE size > 20"]
    ledger.tamper(*statements[cut])
    report = ledger.examine()
    assert not report.holds
    assert report.bad[0].place == 20
    if cut == "rows":
        assert report.bad[0].entry_id == 21
    else:
        assert "says that there were 30" in report.bad[0].what
        assert "behind entry 20" in report.bad[0].what


@pytest.mark.parametrize("entry", [1, 5, 6, 13, 14, 22, 30])
@pytest.mark.parametrize("signed", ["unsigned", "by somebody else"])
def test_everything_made_anew_from_an_entry_on_is_found_and_that_entry_named(ledger, entry, signed):
    ledger.rewrite(entry, None if signed == "unsigned" else Signer.generate(ORIGIN))
    report = ledger.examine()
    assert Subject.TREE in failed(report)
    assert Subject.ROWS not in failed(report), "every hash fits"
    assert Subject.NODES not in failed(report), "and every subtree"
    assert (report.bad[0].place, report.bad[0].entry_id, report.bad[0].until) == (entry - 1, entry, None)
    if signed != "unsigned":
        assert Subject.SIGNED in failed(report)


@pytest.mark.parametrize("entry", [1, 5, 6, 13, 14, 22, 30])
def test_without_the_leaves_beside_the_anchors_a_range_is_named(ledger, entry):
    for path in ledger.directory.rglob("*.leaves"):
        path.unlink()
    ledger.rewrite(entry)
    first = ledger.examine().bad[0]
    assert first.place < entry <= first.until + 1
    begin = max((size for size in SIZES if size < entry), default=0)
    signed_before = [row["size"] for row in ledger.stores.rows("SELECT size FROM ledger_checkpoint")]
    assert first.place == max((size for size in signed_before if begin <= size < entry), default=begin)


def test_a_checkpoint_that_is_left_in_the_database_narrows_the_range_from_both_ends(ledger):
    for path in ledger.directory.rglob("*.leaves"):
        path.unlink()
    kept = ledger.stores.rows("SELECT size, note FROM ledger_checkpoint")
    ledger.rewrite(21)
    ledger.tamper("DELETE FROM ledger_checkpoint")
    for row in kept:
        ledger.stores.admin.execute("INSERT INTO ledger_checkpoint VALUES (%s, %s)", (row["size"], row["note"]))
    first = ledger.examine().bad[0]
    sizes = [row["size"] for row in kept]
    assert first.place == max(size for size in sizes if size < 21)
    assert first.until == min(size for size in sizes if size >= 21) - 1


def test_leaves_beside_an_anchor_are_believed_only_with_its_root(ledger):
    """Nobody signed them: those of the rewritten ledger say nothing."""
    ledger.rewrite(22)
    ledger.put(leaves_key(1, 30), leaves_since(13, 30, ledger.reading.leaves))
    first = ledger.examine().bad[0]
    assert first.place < 22 <= first.until + 1
    for content in (b"", b"x" * 33, b"x" * 32 * 17, b"x" * 32 * 31):
        ledger.put(leaves_key(1, 30), content)
        assert ledger.examine().bad[0] == first


def test_what_came_behind_the_last_anchor_is_held_to_the_last_checkpoint(ledger):
    ledger.rewrite(33, ledger.signer)  # even by the key itself …
    assert ledger.examine().holds, "… which nobody else has, and no anchor speaks for what is behind the last"
    ledger.tamper("UPDATE ledger_leaf SET leaf_hash = sha256('x') WHERE leaf_index = 32")
    report = ledger.examine()
    assert Subject.ROWS in failed(report)
    assert Subject.TREE in failed(report)
    assert report.bad[0].place == 32


def test_leaves_that_nobody_signed_are_found(ledger):
    ledger.tamper("DELETE FROM ledger_checkpoint WHERE size > 30")
    assert ledger.examine().holds, "a moment ago: somebody may be about to sign"
    report = ledger.examine(clock=lambda: 4e9)
    assert Subject.SIGNED in failed(report)
    assert report.bad[0].place == 30


def test_checkpoints_that_were_removed_are_missed(ledger):
    for size in (20, 0):
        ledger.tamper(f"DELETE FROM ledger_checkpoint WHERE size > {size}")
        report = ledger.examine()
        assert failed(report) == {Subject.SIGNED}
        assert "later ones were removed" in report.claims[Subject.SIGNED].against[0]


def test_an_entry_that_never_got_its_place_is_found(ledger):
    """Somebody put it in beside the sequencer, or nobody sequences."""
    insert = "INSERT INTO ledger (kind, body, node, at, noted_at) VALUES ('k', '{}', 'n', now(), now() - %s)"
    ledger.stores.admin.execute(insert, (timedelta(seconds=1),))
    assert ledger.examine().holds, "it may be on its way"
    ledger.stores.admin.execute(insert, (timedelta(seconds=SETTLED + 1),))
    report = ledger.examine()
    assert failed(report) == {Subject.SEQUENCED}
    assert (report.bad[0].entry_id, report.bad[0].place) == (36, None)


def test_a_stored_subtree_that_proofs_would_be_made_of_is_compared(ledger):
    ledger.tamper("UPDATE ledger_node SET hash = sha256('x') WHERE (level, position) = (2, 3)")
    report = ledger.examine()
    assert failed(report) == {Subject.NODES}
    assert "places 12 to 15" in report.claims[Subject.NODES].against[0]
    ledger.tamper("DELETE FROM ledger_node WHERE level = 5")
    assert ledger.examine().claims[Subject.NODES].faults == 2


# Anchors


def test_anchors_that_are_unsigned_foreign_contradictory_or_misplaced_are_found(ledger):
    directory = ledger.directory / "checkpoints"
    stranger = Signer.generate(ORIGIN)
    forged = Checkpoint(ORIGIN, 12, bytes(32))
    for content in (b"", b"x" * 300_000, note.sign_checkpoint(forged, [stranger])):
        (directory / f"{20:020}").write_bytes(content)
        report = ledger.examine()
        assert failed(report) == {Subject.ANCHORS}
        assert f"{20:020}" in report.claims[Subject.ANCHORS].against[0]
        (directory / f"{20:020}").unlink()
    shutil.copy(directory / f"{12:020}", directory / f"{20:020}")
    assert "another size, 12" in ledger.examine().claims[Subject.ANCHORS].against[0]
    (directory / f"{20:020}").unlink()
    (directory / "later").mkdir()
    twin = directory / "later" / f"{12:020}"
    twin.write_bytes(note.sign_checkpoint(forged, [ledger.signer]))
    assert "different roots" in ledger.examine().claims[Subject.ANCHORS].against[0]
    twin.write_bytes(note.sign_checkpoint(forged, [stranger]))
    assert ledger.examine().holds, "anybody may put something over an anchor; the first counts"


def test_another_key_proves_nothing(ledger):
    report = ledger.examine(lineage=Lineage(ORIGIN, (Signer.generate(ORIGIN).verifier,)))
    assert {Subject.ANCHORS, Subject.SIGNED} <= failed(report)
    assert report.anchors == 0


def test_entries_that_wait_too_long_for_an_anchor_are_found(ledger):
    assert ledger.examine(tardy=600).holds
    report = ledger.examine(tardy=600, clock=lambda: 4e9)
    assert failed(report) == {Subject.ANCHORS}
    assert "place 30" in report.claims[Subject.ANCHORS].against[0]


def test_an_anchor_that_the_database_knows_of_and_that_is_gone_is_found(ledger):
    keep = (
        "INSERT INTO ledger_anchor (size, bucket, object_key, version_id, sha256) VALUES (%s, 'b', %s, 'v', sha256(''))"
    )
    for size in (*SIZES, 34):
        ledger.stores.admin.execute(keep, (size, object_key(1, size)))
    assert ledger.examine().holds, "a copy may be older"
    (ledger.directory / object_key(1, 12)).unlink()
    report = ledger.examine()
    assert failed(report) == {Subject.ANCHORS}
    assert object_key(1, 12) in report.claims[Subject.ANCHORS].against[0]


def test_what_a_restore_lost_is_not_asked_of_the_ledger_that_went_on(ledger):
    """A person accepted it: the anchors of the first generation count as far as the restored database held them."""
    ledger.tamper(
        "DELETE FROM ledger WHERE entry_id > 20",
        "DELETE FROM ledger_leaf WHERE leaf_index >= 20",
        "DELETE FROM ledger_node WHERE (position + 1) << level > 20",
        "DELETE FROM ledger_checkpoint WHERE size > 19",
    )
    body = {"reason": "disk", "anchored": {"origin": ORIGIN, "size": 30}, "kept": {"origin": ORIGIN, "size": 19}}
    ledger.appender.entry("restore_accepted", body)
    assert not ledger.examine().holds, "an entry alone says nothing: anybody who may append could write it"
    sequencer = Sequencer(TreeRecords(ledger.stores.database("sweep")), [ledger.signer], ORIGIN)
    sequencer.integrate()
    size = ledger.reading.size()
    frontier = Frontier.stored(size, ledger.reading.read)
    signed = note.sign_checkpoint(ledger.lineage.checkpoint(2, size, frontier.root()), [ledger.signer])
    ledger.stores.admin.execute("INSERT INTO ledger_checkpoint VALUES (%s, %s)", (size, signed))
    ledger.put(object_key(2, size), signed)
    report = ledger.examine()
    assert report.holds, [claim.against for claim in report.claims.values()]
    assert "1 more prove what was lost" in report.claims[Subject.ANCHORS].says
    for origin in (ORIGIN, f"{ORIGIN}/2"):  # nobody is freed of an anchor by an entry that anybody could write
        ledger.appender.entry("restore_accepted", {"anchored": {"origin": origin}, "kept": None})
    assert ledger.examine().anchors == report.anchors == len(SIZES)
    ledger.tamper("UPDATE ledger SET kind = 'other' WHERE entry_id = 3")
    assert ledger.examine().bad[0].entry_id == 3
