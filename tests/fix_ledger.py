"""A ledger with its tree on a real Postgres, and its anchors on a real Ceph RGW.

ledger    .append(3), .sequencer, .another(...), .checkpoint(), .verify(), .as_superuser("...")
anchored  a ledger with a bucket of checkpoints: .anchors, .another_anchors(...), .keys(), .admin (the bucket's owner)
run_out   imported: steps of a sequencer until there is nothing more to do
"""

import contextlib

import pytest
from fix_rights import connect

from callrec.ledger import note
from callrec.ledger.anchors import Anchors
from callrec.ledger.checkpoint import Lineage
from callrec.ledger.entry import Entry
from callrec.ledger.note import Signer
from callrec.ledger.sequencer import Sequencer
from callrec.ledger.tree import Frontier
from callrec.recording import bucket
from callrec.store.reading import LedgerReading
from callrec.store.rights import RightsRecords
from callrec.store.tree import TreeRecords

ORIGIN = "ledger.example.com/test"
TABLES = ("ledger_leaf", "ledger_node", "ledger_checkpoint", "ledger_anchor")
YEARS = 10


class Ledger:
    """A ledger, who writes into it, and who sequences it."""

    def __init__(self, stores):
        self.stores = stores
        self.appender = RightsRecords(stores.database("sweep"), node="node-1")
        self.records = TreeRecords(stores.database("sweep"))
        self.signer = Signer.generate(ORIGIN)
        self.sequencer = self.another()

    def another(self, *signers, **options):
        return Sequencer(TreeRecords(self.stores.database("sweep")), signers or [self.signer], ORIGIN, **options)

    def append(self, count, kind="tested"):
        for number in range(count):
            self.appender.entry(kind, {"number": number, "seconds": 2.5, "name": "ž"})

    def rows(self):
        return self.stores.rows("SELECT * FROM ledger ORDER BY entry_id")

    def checkpoint(self):
        return note.open_checkpoint(self.records.last_checkpoint(), [self.signer.verifier], ORIGIN)

    def verify(self):
        """Everything from the rows alone: each entry is one leaf, in one tree, whose root is signed."""
        checkpoint = self.checkpoint()
        leaves = self.stores.rows("SELECT * FROM ledger_leaf ORDER BY leaf_index")
        assert [leaf["leaf_index"] for leaf in leaves] == list(range(checkpoint.size)), "gaps"
        entries = {row["entry_id"]: Entry.of_row(row) for row in self.rows()}
        assert sorted(leaf["entry_id"] for leaf in leaves) == sorted(entries), "an entry without its leaf"
        frontier = Frontier()
        stored = dict(frontier.append(entries[leaf["entry_id"]].leaf_hash() for leaf in leaves))
        assert frontier.root() == checkpoint.root
        kept = self.stores.rows("SELECT * FROM ledger_node")
        assert {(n["level"], n["position"]): n["hash"] for n in kept} == {
            node: value for node, value in stored.items() if node.level
        }
        assert all(leaf["body_sha256"] == entries[leaf["entry_id"]].body_sha256 for leaf in leaves)

    def as_superuser(self, *statements):
        """What the database's own administrator can do: put the triggers aside."""
        for table in ("ledger", *TABLES):
            self.stores.admin.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        for statement in statements:
            self.stores.admin.execute(statement)


@pytest.fixture
def ledger(stores):
    return Ledger(stores)


def run_out(sequencer):
    while sequencer.step():
        pass


class Anchored(Ledger):
    """A ledger whose checkpoints go to a bucket as `callrec storage init` makes it."""

    def __init__(self, stores, s3, users, ends):
        self._at, ids = users
        self._ends = ends
        self.bucket = s3.bucket_name()
        self.admin = self.objects(s3)
        principals = {role: f"arn:aws:iam:::user/{ids[role]}" for role in ids}
        assert bucket.set_up(self.admin, bucket.checkpoints(self.bucket, YEARS, principals, https=False))[1] == []
        super().__init__(stores)
        self.lineage = Lineage(ORIGIN, (self.signer.verifier,))
        self.anchors = self.another_anchors()
        self.sequencer = self.another()

    def objects(self, at, name=None):
        made = connect(at, name or self.bucket)
        self._ends.callback(made.close)
        return made

    def another_anchors(self, *, objects=None, lineage=None, **options):
        objects = objects or self.objects(self._at["checkpoint"])
        records = LedgerReading(self.stores.database("sweep"))
        return Anchors(records, objects, lineage or self.lineage, YEARS, **options)

    def another(self, *signers, **options):
        return super().another(*signers, **({"anchors": getattr(self, "anchors", None)} | options))

    def afresh(self):
        """What a `sweep` that was started again has."""
        anchors = self.another_anchors()
        return anchors, self.another(anchors=anchors)

    def sign(self, count):
        self.append(count)
        run_out(self.sequencer)

    def anchor(self, count):
        """Entries that are signed and anchored."""
        self.anchors.looked = True
        self.sign(count)
        self.anchors.anchor()

    def read(self, version):
        """As `api` may; the bucket's owner may not."""
        return b"".join(self.objects(self._at["api"]).read(version.key, version.version_id))

    def versions(self):
        """Of the anchors, not of the leaves beside them."""
        return [each for each in self.admin.versions("checkpoints/") if not each.key.endswith(".leaves")]

    def keys(self):
        return sorted({version.key for version in self.versions()})

    def rows_of_anchors(self):
        return self.stores.rows("SELECT * FROM ledger_anchor ORDER BY size")

    def signed(self):
        return self.stores.rows("SELECT size, note FROM ledger_checkpoint ORDER BY size")

    def cut_off(self, size):
        """The database as a backup had it when the ledger had this many entries, all of them signed."""
        self.as_superuser(
            f"DELETE FROM ledger WHERE entry_id IN (SELECT entry_id FROM ledger_leaf WHERE leaf_index >= {size})",
            f"DELETE FROM ledger_leaf WHERE leaf_index >= {size}",
            f"DELETE FROM ledger_node WHERE (position + 1) << level > {size}",
            f"DELETE FROM ledger_checkpoint WHERE size > {size}",
            f"DELETE FROM ledger_anchor WHERE size > {size}",
        )


@pytest.fixture(scope="session")
def ledger_users(s3):
    return s3.users("ship", "sweep", "api", "checkpoint")


@pytest.fixture
def anchored(stores, s3, ledger_users):
    with contextlib.ExitStack() as ends:
        yield Anchored(stores, s3, ledger_users, ends)
