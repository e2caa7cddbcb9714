"""Reads the whole ledger and says whether it is what was signed: `callrec verify --ledger`.

Two things are believed, the public keys that were given and what they signed. Every entry is hashed again from its row
and compared with its leaf; the leaves are made into the tree again, and its root compared with every anchor. From both
together follows that no row was changed, removed, inserted or moved since.

Where a root differs, the entry is looked for: by the leaves beside the anchor (ledger/archive.py), which name it; or by
the signed checkpoints that the database still has, which say between which two entries it lies.

Memory is bounded: rows come in pages by their place in the tree, anchors by size, and of what is wrong the first are
kept and the rest counted.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from heapq import merge
from itertools import chain

import gevent

from callrec.ahead import Ahead
from callrec.errors import LedgerError
from callrec.ledger.archive import Archive, leaf_list, split
from callrec.ledger.checkpoint import Lineage, Signed
from callrec.ledger.tree import Frontier
from callrec.ledger.verdict import MOST, Bad, Report, Subject, bad_row, how, noted, utc, wrong
from callrec.store.db import Row
from callrec.store.reading import LedgerReading

PAGE = 8192  # leaves: a few MB of rows
SETTLED = 60.0  # seconds in which an entry gets its leaf and its signature, if somebody signs
_MICROS = 1_000_000


class Examination:
    """One reading of the whole ledger. `tardy`: seconds after which an entry has to be anchored; None: any time.

    `progress(done, of)` is told places in the tree. `clock`: seconds since 1970.
    """

    def __init__(
        self,
        records: LedgerReading,
        archive: Archive | None,
        lineage: Lineage,
        *,
        tardy: float | None = None,
        progress: Callable[[int, int], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._archive = archive
        self._lineage = lineage
        self._tardy = tardy
        self._progress = progress
        self._clock = clock
        self._size = 0  # leaves that the database says it has
        self._at = 0  # the place that is read next
        self._begin = 0  # the place of the page's first row
        self._rows: list[Row] = []
        self._ahead: tuple[int, Ahead[list[Row]]] | None = None  # the page that begins there is being read
        self._frontier = Frontier()
        self._full: dict[int, list[bytes]] = {}  # by level, subtrees that are not yet compared with the stored ones
        self._compared = 0  # the place up to which they are
        self._torn = False  # from here on no root can agree
        self._good: tuple[int, list[bytes]] = (0, [])  # the last size whose root was signed, and the tree then
        self._anchor: Signed | None = None  # the last
        self._known: Iterator[tuple[int, str]] = iter(())  # anchors that the database knows of
        self._lost = 0  # anchors of entries that a restore has lost
        self._agreed = 0
        self.report = Report()

    def run(self) -> Report:
        """LedgerError, StoreError or StorageError when it can't be read; all else is in the report."""
        if self._archive is None:
            self.report.refute(Subject.ANCHORS, "[storage.checkpoints] is not set, and no copy was given")
        else:
            self._size = self._records.size()
            for anchor in self._anchors(self._archive):
                if self._anchor is None or anchor[:2] > self._anchor[:2]:
                    self._anchor = anchor
                self.report.anchors += 1
                self._compare(anchor, Subject.ANCHORS)
        self._since()
        self._unsequenced()
        self._in_time()
        self._word()
        return self.report

    # Anchors

    def _anchors(self, archive: Archive) -> Iterator[Signed]:
        """Those that somebody known signed, by size. An earlier generation's only as far as the restore kept them."""
        expected = self._records.anchored()
        gone = next(expected, None)
        streams: list[Iterator[Signed]] = []
        while (first := next(opened := self._opened(archive, len(streams) + 1), None)) is not None:
            streams.append(chain([first], opened))
        kept = self._records.restores() if len(streams) > 1 else {}
        for anchor in merge(*streams, key=lambda signed: (signed.size, signed.generation)):
            while gone is not None and gone[0] <= anchor.size:
                if gone[0] < anchor.size:
                    self.report.refute(Subject.ANCHORS, f"{gone[1]} is gone: the database knows that it was put")
                gone = next(expected, None)
            known = kept.get(self._lineage.name(anchor.generation)) if anchor.generation < len(streams) else None
            if known is not None and anchor.size > known:
                self._lost += 1
            else:
                yield anchor
        while gone is not None and archive.complete:
            self.report.refute(Subject.ANCHORS, f"{gone[1]} is gone: the database knows that it was put")
            gone = next(expected, None)

    def _opened(self, archive: Archive, generation: int) -> Iterator[Signed]:
        last: Signed | None = None
        for found in archive.generation(generation):
            if found.note is None:
                self.report.refute(Subject.ANCHORS, f"{found.name} was deleted; what is below its marker still counts")
                continue
            again = last if last is not None and last.size == found.size else None
            try:
                signed = self._lineage.open(found.note)
            except LedgerError as error:
                if again is None:  # whoever may put may put anything over it: the first version is locked, and counts
                    self.report.refute(Subject.ANCHORS, f"{found.name} is no anchor of this ledger: {error}")
                continue
            if signed[:2] != (generation, found.size):
                self.report.refute(Subject.ANCHORS, f"{found.name} holds the checkpoint of another size, {signed.size}")
            elif again is None:
                last = signed
                yield signed
            elif signed.root != again.root:
                self.report.refute(Subject.ANCHORS, f"{found.name}: two were signed, with different roots")

    # Rows, and the tree over their leaves

    def _advance(self, to: int) -> bool:
        """Read on to this place; False when there are not so many."""
        if to > self._size:
            self._size = self._records.size()  # it may have grown since
        while self._at < (end := min(to, self._size)):
            if not self._begin <= self._at < self._begin + len(self._rows):
                self._turn()
            here = self._rows[self._at - self._begin : end - self._begin]
            if not self._torn:
                self._grow(here)
            self._at = min(end, self._at + len(here)) if here else end
        return self._at >= to

    def _turn(self) -> None:
        """To the page of this place. The one behind it is asked for, and comes while the rows of this are hashed."""
        at, end = self._at, self._at - self._at % PAGE + PAGE
        self._compare_nodes()
        known = self._ahead and self._ahead[0] == at
        self._begin, self._rows = at, self._ahead[1].result() if self._ahead and known else self._records.page(at, end)
        if end < self._size:
            self._ahead = end, Ahead(partial(self._records.page, end, end + PAGE))
            gevent.sleep(0)
        for row in self._rows:
            self.report.entries += 1
            if what := wrong(row):
                self.report.found(Subject.ROWS, bad_row(row, what))
            elif row["body"] is None:
                self.report.pruned += 1
        if self._progress:
            self._progress(min(end, self._size), self._size)

    def _grow(self, rows: list[Row]) -> None:
        for place, row in enumerate(rows, self._at):
            if row["leaf_index"] != place:
                twice = row["leaf_index"] < place
                self._tear(bad_row(row, "its place is taken twice") if twice else self._gone(place))
                return
        if not rows:
            self._tear(self._gone(self._at))
            return
        for node, value in self._frontier.append(row["leaf_hash"] for row in rows):
            self._full.setdefault(node.level, []).append(value)

    def _compare_nodes(self) -> None:
        """The stored subtrees with those that the leaves make: proofs are made of them."""
        begin, self._compared = self._compared, self._frontier.size
        full, self._full = self._full, {}
        if begin == self._compared:
            return
        stored = self._records.nodes(begin, self._compared)
        for level in sorted((full.keys() | stored.keys()) - {0}):
            made, kept = full.get(level, []), split(stored.get(level, b""))
            if made != kept:
                same = next((at for at, pair in enumerate(zip(made, kept, strict=False)) if pair[0] != pair[1]), 0)
                first = ((begin >> level) + same) << level
                what = f"level {level}, places {first} to {first + (1 << level) - 1}, and perhaps more"
                self.report.refute(Subject.NODES, what)

    def _gone(self, place: int, what: str = "its leaf was removed") -> Bad:
        """An entry of which the database holds nothing: its neighbour tells where it was."""
        before = self._records.page(place - 1, place) if place else []
        behind = f"; it came behind entry {before[0]['entry_id']}, noted {noted(before[0])}" if before else ""
        return Bad(place, None, None, None, what + behind)

    def _tear(self, bad: Bad) -> None:
        self._torn = True
        self.report.found(Subject.TREE, bad)

    # Roots

    def _compare(self, signed: Signed, subject: Subject) -> None:
        if self._at > signed.size:
            self.report.refute(subject, f"the signed size {signed.size} comes behind a larger one, {self._at}")
            return
        reached = self._advance(signed.size)
        if self._torn:
            return
        if not reached:
            who = "an anchor" if subject is Subject.ANCHORS else "the last checkpoint"
            what = f"it and all behind it were removed: {who} says that there were {signed.size}"
            self._tear(self._gone(self._at, what))
        elif self._frontier.root() == signed.root:
            self._good = (signed.size, list(self._frontier.peaks))
            self._agreed += subject is Subject.ANCHORS
        else:
            self._locate(signed)

    def _locate(self, signed: Signed) -> None:
        """Which entry it is. The leaves up to the last root that agreed are those that were signed."""
        beside = self._archive.leaves(signed.generation, signed.size) if self._archive else None
        found = leaf_list(beside, signed.size) if beside else None
        bad = self._by_leaves(signed, *found) if found else None
        if bad is None:
            begin, end = self._by_checkpoints(signed)
            what = f"from here on, or from a later place up to {end - 1}, entries and their leaves were rewritten"
            if any(each.place is not None and begin <= each.place < end for each in self.report.bad):
                self._torn = True  # a row in there is not even the one that its leaf was made of: that says more
                self.report.refute(Subject.TREE, f"places {begin} to {end - 1} don't lead to the root that was signed")
                return
            rows = self._records.page(begin, begin + 1)
            bad = bad_row(rows[0], what, until=end - 1) if rows else self._gone(begin)
        self._tear(bad)

    def _by_leaves(self, signed: Signed, begin: int, leaves: list[bytes]) -> Bad | None:
        """By the leaves that were put beside the anchor; None when these can't be believed."""
        size, peaks = self._good
        frontier = Frontier(size, peaks)
        frontier.append(leaf for _, leaf in self._leaves(size, begin))
        at = frontier.size
        if at != max(begin, size):
            return None
        frontier.append(leaves[at - begin :])
        if frontier.root() != signed.root:
            return None
        for place, leaf in self._leaves(at, signed.size):
            if leaf != leaves[place - begin]:
                rows = self._records.page(place, place + 2)
                what = how([row["leaf_hash"] for row in rows], leaves[place - begin :])
                return (
                    bad_row(rows[0], what) if what else self._gone(place, "it was removed, and what followed moved up")
                )
        return None

    def _by_checkpoints(self, signed: Signed) -> tuple[int, int]:
        """The sizes of the last signed checkpoint in the database that agrees, and of the first that does not."""
        size, peaks = self._good
        frontier = Frontier(size, peaks)
        for at, stored in self._records.checkpoints(size, signed.size):
            try:
                checkpoint = self._lineage.open(stored)
            except LedgerError as error:
                self.report.refute(Subject.SIGNED, f"the checkpoint of {at} entries in the database: {error}")
                continue
            if checkpoint[:2] == (signed.generation, at):
                frontier.append(leaf for _, leaf in self._leaves(frontier.size, at))
                if frontier.root() != checkpoint.root:
                    return size, at
                size = at
        return size, signed.size

    def _leaves(self, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
        for at in range(begin, end, PAGE):
            yield from self._records.leaves(at, min(at + PAGE, end))

    # The end

    def _since(self) -> None:
        """What came behind the last anchor is as good as the last checkpoint in the database."""
        last, anchor = self._records.last_checkpoint(), self._anchor
        covered = anchor.size if anchor else 0
        signed: Signed | None = None
        if last is not None:
            try:
                signed = self._lineage.open(last)
            except LedgerError as error:
                self.report.refute(Subject.SIGNED, f"the last checkpoint in the database: {error}")
        if signed and (anchor is None or signed[:2] >= anchor[:2]):
            covered = signed.size
            self._compare(signed, Subject.SIGNED)
        elif anchor and (signed or last is None):
            kept = f"the last of {signed.size} entries" if signed else "none"
            what = f"an anchor has a checkpoint of {covered} entries, the database {kept}: later ones were removed"
            self.report.refute(Subject.SIGNED, what)
        self._size = self._records.size()
        self._advance(self._size)
        self._compare_nodes()
        rows = self._records.page(covered, covered + 1)
        if rows and not self._torn and self._older(rows[0], SETTLED):
            self.report.found(Subject.SIGNED, bad_row(rows[0], "it, and all behind it, were never signed"))

    def _unsequenced(self) -> None:
        count, rows = self._records.unsequenced(SETTLED, MOST)
        for row in rows:
            bad = Bad(None, row["entry_id"], row["call"], utc(row["noted_at"]), "it has no place in the tree")
            self.report.found(Subject.SEQUENCED, bad)
        self.report.claims[Subject.SEQUENCED].faults = count

    def _in_time(self) -> None:
        covered = self._anchor.size if self._anchor else 0
        rows = self._records.page(covered, covered + 1) if self._tardy else []
        if rows and self._older(rows[0], self._tardy or 0.0):
            what = "the last anchor is older" if self._anchor else "there is no anchor at all"
            since = f"place {covered}, noted {noted(rows[0])}, and what came behind it is not anchored"
            self.report.refute(Subject.ANCHORS, f"{since}: {what}")

    def _older(self, row: Row, seconds: float) -> bool:
        return row["noted"] is not None and row["noted"] < (self._clock() - seconds) * _MICROS

    def _word(self) -> None:
        report, anchor = self.report, self._anchor
        pruned = f", {report.pruned} of them by the hash of a body that was pruned" if report.pruned else ""
        upto = f", the last of {anchor.size} entries" if anchor else ""
        lost = f"; {self._lost} more prove what was lost in a restore that a person accepted" if self._lost else ""
        none = "There is no anchor that the leaves could be compared with"
        for subject, says in {
            Subject.ROWS: f"Each of {report.entries} entries is the one that its leaf was made of{pruned}",
            Subject.TREE: f"The leaves lead to the roots of {self._agreed} anchors: nothing was changed, removed, "
            "inserted or moved"
            if self._agreed
            else none,
            Subject.ANCHORS: f"{report.anchors} anchors are signed by a key that was given{upto}{lost}",
            Subject.SIGNED: "What came behind the last anchor is signed in the database",
            Subject.SEQUENCED: "Every entry has its place in the tree",
            Subject.NODES: "The stored tree, of which proofs are made, is the one that the leaves make",
        }.items():
            report.claims[subject].says = says
