"""The ledger and its tree as somebody reads them who verifies: in pages, so that memory stays bounded."""

from collections.abc import Iterator

from callrec.store.db import Row
from callrec.store.tree import TreeRecords

_RANGE = 100_000  # entry ids at a time: a statement that looks at all of them may exceed its deadline
_SECONDS = 30.0


class LedgerReading(TreeRecords):
    """Each function is one statement unless it is an iterator. StoreError while Postgres is away."""

    def page(self, begin: int, end: int) -> list[Row]:
        """Leaves from `begin` to before `end`, each with its entry, if `found`."""
        return self._database.run("verify_page", {"begin": begin, "end": end}, timeout=_SECONDS)

    def nodes(self, begin: int, end: int) -> dict[int, bytes]:
        """The stored full subtrees that end within these leaves: by level, their hashes one behind the other."""
        rows = self._database.run("verify_nodes", {"begin": begin, "end": end}, timeout=_SECONDS)
        return {row["level"]: row["hashes"] for row in rows}

    def leaves(self, begin: int, end: int) -> list[tuple[int, bytes]]:
        """(index, hash) of the stored leaves from `begin` to before `end`; what is not there is left out."""
        rows = self._database.run("verify_leaves", {"begin": begin, "end": end}, timeout=_SECONDS)
        return [(row["leaf_index"], row["leaf_hash"]) for row in rows]

    def checkpoints(self, after: int, end: int, limit: int = 500) -> Iterator[tuple[int, bytes]]:
        """(size, signed note) of the checkpoints between two sizes, by size."""
        while rows := self._database.run("verify_checkpoints", {"after": after, "end": end, "limit": limit}):
            for row in rows:
                yield row["size"], row["note"]
            after = rows[-1]["size"]

    def unsequenced(self, seconds: float, limit: int) -> tuple[int, list[Row]]:
        """How many entries that are older than this have no leaf, and the first of them."""
        last = self._database.one("verify_last_entry")
        assert last is not None  # an aggregate
        count, first = 0, list[Row]()
        for after in range(0, last["entry_id"], _RANGE):
            about = {"after": after, "end": after + _RANGE, "seconds": seconds, "limit": limit}
            rows = self._database.run("verify_unsequenced", about, timeout=_SECONDS)
            count += rows[0]["entries"] if rows else 0
            first += rows[: limit - len(first)]
        return count, first

    def anchored(self, limit: int = 1000) -> Iterator[tuple[int, str]]:
        """(size, object key) of the anchors that were put, by size; those of this moment."""
        after, last = 0, self._database.one("verify_last_anchor")
        assert last is not None  # an aggregate
        about = {"end": last["size"], "limit": limit}
        while rows := self._database.run("verify_anchored", about | {"after": after}):
            for row in rows:
                yield row["size"], row["object_key"]
            after = rows[-1]["size"]

    def restores(self) -> dict[str, int]:
        """Sizes that restored databases had kept, by the origin that each ended.

        Of several the largest: anybody who may append could say that less was kept, and so have anchors passed over.
        """
        kept: dict[str, int] = {}
        for row in self._database.run("verify_restores", timeout=_SECONDS):
            size = row["kept"] or "0"
            if row["origin"] and size.isdecimal():
                kept[row["origin"]] = max(int(size), kept.get(row["origin"], 0))
        return kept
