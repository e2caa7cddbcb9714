"""Gives ledger entries their place in the tree, and signs what the tree has become.

Appends are plain INSERTs that know nothing of this. One step takes the entries that have no leaf yet, in one statement
adds theirs behind the last, and signs a checkpoint. Any number of sequencers may run: each step is built on the size
that it found, and of two on the same size one fails and begins again. A crash leaves a tree that is whole, at worst
without a checkpoint of its last size, which the next step signs.

Before it signs, it proves to itself that the tree begins with all that was signed last, as the database says it, as the
object store holds it (ledger/anchors.py), and as this process remembers it. If not, somebody has rewritten, cut off or
restored what is stored: it says so, signs nothing, and goes on saying so.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from callrec import metrics
from callrec.errors import LedgerError, StatementRefusedError, StoreError
from callrec.ledger import note, tree
from callrec.ledger.checkpoint import Lineage, Signed
from callrec.ledger.entry import Leaf, leaf_of
from callrec.ledger.note import Signer, Verifier
from callrec.ledger.tree import Frontier
from callrec.log import Log
from callrec.store.tree import TreeRecords

log = Log(__name__)

BATCH = 4000  # entries: about 100 ms of hashing
# Of so many at once the next are there already: to pause would only make the following step longer, and what is signed
# later.
_MANY = 1000
_SIGN_EVERY = 0.25  # seconds between signatures while there is more to do
# A step looks behind the first entry that is missing, until that is older than so many seconds: a transaction may hold
# one back as long, or have taken its number back. What was held back longer is found by looks that go further back, and
# come less often: all that a look passes has to be tried.
_NEAR = 2.0
_LATE, _LATE_EVERY = 600.0, 30.0
_WHOLE_EVERY = 3600.0
_SAY = 60.0  # seconds between saying again why nothing is signed


class Anchored(Protocol):
    """What the object store holds."""

    @property
    def looked(self) -> bool:
        """Whether it was asked; what it said is then known, unless it was away."""

    def trusted(self) -> Signed | None:
        """The last checkpoint there. LedgerError when what is there can't be believed."""


class Sequencer:
    """`signers` sign from now on; `retired` are keys that did before, and may have signed the last checkpoint.

    Without `anchors` a database that was put back to an earlier state as a whole goes unnoticed. `clock`: in seconds.
    """

    def __init__(
        self,
        records: TreeRecords,
        signers: Sequence[Signer],
        origin: str,
        *,
        retired: Sequence[Verifier] = (),
        anchors: Anchored | None = None,
        batch: int = BATCH,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._signers = signers
        self._lineage = Lineage(origin, (*(signer.verifier for signer in signers), *retired))
        self._anchors = anchors
        self._batch = batch
        self._clock = clock
        self._frontier = Frontier()
        self._after = 0  # the entry behind which to look: the whole ledger each time would be too dear
        self._beyond: set[int] = set()  # entries behind it that have their leaf: one between may still be on its way
        self._near_at = self._late_at = self._whole_at = clock()
        self._sign_at = self._near_at
        self._signed: Signed | None = None  # what this process signed last
        self._proved: tuple[object, ...] = ()
        self._said, self._say_at = "", 0.0
        self.sound = False  # whether the ledger is what was signed; not known at first

    def work(self) -> bool:
        """A step as a chore of `sweep`: a ledger that is not what was signed is counted and logged, not raised."""
        try:
            more = self.step()
        except LedgerError:
            self.sound = False
            metrics.LEDGER_REFUSED.inc()
            return False
        self.sound = True
        return more

    def measure(self) -> bool:
        """Show how many entries wait for a signature, and for how long; a chore as well."""
        waiting, age = self._records.unsigned(self._after)
        metrics.LEDGER_UNSIGNED.set(waiting)
        metrics.LEDGER_OLDEST.set(age)
        return False

    def step(self) -> bool:
        """Sequence one batch and sign; True when there is more to do, or will be at once.

        LedgerError: the store is not what was signed, or holds an entry that can't be hashed. StoreError: Postgres is
        away. It may be called again after both.
        """
        try:
            taken = self.integrate(durable=False)  # the checkpoint is, and with it all before it
            more = taken is None or taken >= min(_MANY, self._batch)
            due = not more or self._clock() >= self._sign_at
            if taken is not None and due and self._sign() and taken < self._batch:
                metrics.LEDGER_SIGNED.set_to_current_time()
        except (LedgerError, StoreError) as error:
            # What was not durable may be lost, or another database come back.
            size, self._frontier = self._frontier.size, Frontier()
            if isinstance(error, StoreError):
                self._late_at = self._clock()
            about = str(error)
            if isinstance(error, LedgerError) and (about != self._said or self._clock() >= self._say_at):
                self._said, self._say_at = about, self._clock() + _SAY
                log.error("ledger_not_signed", size=size, why=about)
            raise
        return more

    def integrate(self, *, durable: bool = True) -> int | None:
        """The first half of a step: entries, a batch at most, get their leaves. How many did.

        None when another was quicker, and nothing is known of the tree. Errors as of `step`. Without `durable` a crash
        of Postgres may take the leaves, until something else is committed.
        """
        size, now = self._records.size(), self._clock()
        if self._frontier.size != size:
            if size < self._frontier.size:  # leaves were removed, maybe long after they were added
                self._whole_at = now
            self._frontier = Frontier.stored(size, self._records.read)
        if far := now >= min(self._whole_at, self._late_at):
            self._look_back(now)
        rows = self._records.pending(self._after, self._batch)
        if rows and not self._extend([leaf_of(row) for row in rows], durable):
            self._frontier = Frontier()
            if self._records.size() == size:  # nobody was quicker
                raise LedgerError("The tree has no room for what follows", detail=f"leaves behind {size} were removed")
            return None
        full = len(rows) == self._batch
        self._beyond.update(row["entry_id"] for row in rows)
        if far or now >= self._near_at or (full and self._after + 1 not in self._beyond):
            settled, self._near_at = self._records.settled(_NEAR), now + _NEAR
            self._after = max(self._after, min(settled, rows[-1]["entry_id"]) if full else settled)
            self._beyond = {entry for entry in self._beyond if entry > self._after}
        while self._after + 1 in self._beyond:
            self._after += 1
            self._beyond.discard(self._after)
        return len(rows)

    def _look_back(self, now: float) -> None:
        """Begin further back than usual: from the first entry each hour, else from what is old enough."""
        whole, self._late_at = now >= self._whole_at, now + _LATE_EVERY
        self._after = 0 if whole else self._records.settled(_LATE)
        self._beyond.clear()
        if whole:
            self._whole_at = now + _WHOLE_EVERY

    def _extend(self, leaves: list[Leaf], durable: bool) -> bool:
        size = self._frontier.size
        full = self._frontier.append(leaf.leaf_hash for leaf in leaves)
        try:
            return self._records.extend(size, leaves, full, durable=durable)
        except StatementRefusedError:
            return False
        except BaseException:
            self._frontier = Frontier()  # nobody knows whether it was done
            raise

    def _sign(self) -> bool:
        """Sign the tree as it is; False when that is not yet, or no longer, for this step to do."""
        size, root = self._frontier.size, self._frontier.root()
        if self._anchors is not None and not self._anchors.looked:
            return False
        last = self._records.last_checkpoint()
        stored = self._lineage.open(last) if last else None
        anchor = self._anchors.trusted() if self._anchors else None
        known = [each for each in (stored, anchor, self._signed) if each]
        generation = max((each.generation for each in known), default=1)
        # What was signed before a restore that was accepted no longer binds, but for what the database itself holds.
        earlier = [each for each in known if each is stored or each.generation == generation]
        for each in earlier:
            if each.size > size and self._records.size() >= each.size:
                return False  # another has sequenced, and signed, more than was here a moment ago
        if self._proved != (facts := (size, root, *earlier)):
            for each in earlier:
                if each.size > size:
                    raise LedgerError(
                        "The ledger holds less than was signed",
                        detail=f"{each.size} entries were, {size} are here",
                        hint="Was the database restored? Then see callrec accept-restore --help",
                    )
                proof = tree.consistency_proof(each.size, size, self._records.read)
                tree.verify_consistency(each.size, size, proof, each.root, root)
            self._proved = facts
        self._sign_at = self._clock() + _SIGN_EVERY
        here = self._lineage.checkpoint(generation, size, root)
        if size and (stored is None or (stored.generation, stored.size) != (generation, size)):
            signed = note.sign_checkpoint(here, self._signers)
            self._records.checkpoint(size, signed)
            self._signed = Signed(generation, size, root, signed)
        metrics.LEDGER_SIZE.set(size)
        return True
