"""The tree over the ledger, as rows: leaves, full subtrees, checkpoints. One function per fact."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from callrec.ledger.entry import Leaf
from callrec.ledger.tree import Node
from callrec.store.db import Database, Row


@dataclass(frozen=True, slots=True)
class Proven:
    """Where an entry stands in the tree. The hashes are 32 bytes."""

    leaf_index: int
    body_sha256: bytes
    leaf_hash: bytes


class TreeRecords:
    """Each function is one statement. StoreError while Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def size(self) -> int:
        """How many entries have their leaf."""
        row = self._database.one("tree_size")
        assert row is not None  # an aggregate
        return int(row["size"])

    def pending(self, after: int, limit: int) -> list[Row]:
        """Entries behind `after` that have no leaf yet, in the order of their ids, as `leaf_of` takes them."""
        return self._database.run("tree_pending", {"after": after, "limit": limit}, timeout=30.0)

    def settled(self, seconds: float) -> int:
        """The last entry that is older than this; 0 if there is none."""
        row = self._database.one("tree_settled", {"seconds": seconds})
        return int(row["entry_id"]) if row else 0

    def extend(
        self, size: int, leaves: Sequence[Leaf], full: Sequence[tuple[Node, bytes]], *, durable: bool = True
    ) -> bool:
        """Add leaves to the tree of this size, and every node that is full now. All or none.

        False when the tree has another size by now; StatementRefusedError when it got one in this moment.
        """
        above = [(node, value) for node, value in full if node.level]
        row = self._database.one(
            "tree_extend",
            {
                "size": size,
                "durable": durable,
                "entries": _array(leaf.entry_id for leaf in leaves),
                "bodies": b"".join(leaf.body_sha256 for leaf in leaves),
                "leaves": b"".join(leaf.leaf_hash for leaf in leaves),
                "levels": _array(node.level for node, _ in above),
                "positions": _array(node.position for node, _ in above),
                "hashes": b"".join(value for _, value in above),
            },
            timeout=30.0,
        )
        return row is not None and row["added"] > 0

    def read(self, nodes: Collection[Node]) -> Mapping[Node, bytes]:
        """Stored hashes, as ledger/tree.py asks for them."""
        above = [node for node in nodes if node.level]
        rows = self._database.run(
            "tree_nodes",
            {
                "levels": [node.level for node in above],
                "positions": [node.position for node in above],
                "leaves": [node.position for node in nodes if not node.level],
            },
        )
        return {Node(row["level"], row["position"]): row["hash"] for row in rows}

    def leaf(self, entry_id: int) -> Proven | None:
        """None when the entry has no leaf yet."""
        row = self._database.one("tree_leaf", {"entry_id": entry_id})
        return Proven(row["leaf_index"], row["body_sha256"], row["leaf_hash"]) if row else None

    def last_checkpoint(self) -> bytes | None:
        """The signed note of the largest size."""
        row = self._database.one("tree_last_checkpoint")
        return row["note"] if row else None

    def checkpoint(self, size: int, note: bytes) -> None:
        """Keep a signed note; one of the same size that is there already stays."""
        self._database.run("tree_checkpoint", {"size": size, "note": note})

    def unsigned(self, after: int) -> tuple[int, float]:
        """How many entries behind `after` no checkpoint covers, and the age of the oldest in seconds."""
        row = self._database.one("tree_unsigned", {"after": after})
        assert row is not None  # an aggregate
        return int(row["entries"]), float(row["age"])

    def last_anchor(self, bucket: str) -> str | None:
        """The object key of the latest anchor in this bucket; only the object itself proves anything."""
        row = self._database.one("anchor_last", {"bucket": bucket})
        return row["object_key"] if row else None

    def keep_anchor(self, size: int, bucket: str, key: str, version_id: str, sha256: bytes) -> None:
        """Note where a checkpoint lies in the object store; noted already, it stays as it is."""
        about = {"size": size, "bucket": bucket, "object_key": key, "version_id": version_id, "sha256": sha256}
        self._database.run("anchor_keep", about)


def _array(numbers: Iterable[int]) -> str:
    """As Postgres reads it: thousands, which psycopg would adapt one by one."""
    return f"{{{','.join(map(str, numbers))}}}"
