"""Gives ledger entries their place in the tree, and signs what the tree has become.

Appends are plain INSERTs that know nothing of this. One step takes the entries that have no leaf yet, in one statement
adds theirs behind the last, and signs a checkpoint. Any number of sequencers may run: each step is built on the size
that it found, and of two on the same size one fails and begins again. A crash leaves a tree that is whole, at worst
without a checkpoint of its last size, which the next step signs.

Before it signs, it proves to itself that the tree begins with all that it signed last. If not, somebody has rewritten
what is stored: it says so, signs nothing, and goes on saying so.
"""

import time
from collections.abc import Callable, Sequence

from callrec.errors import LedgerError, StatementRefusedError
from callrec.ledger import note, tree
from callrec.ledger.entry import Entry
from callrec.ledger.note import Checkpoint, Signer, Verifier
from callrec.ledger.tree import Frontier
from callrec.log import Log
from callrec.store.tree import TreeRecords

log = Log(__name__)

BATCH = 1000  # entries: about 30 ms of hashing
_LATE = 600.0  # seconds: how long a transaction may hold back its entry, and it is still found by the next step
_SETTLE = 60.0  # seconds between moving forward where a step begins to look
_WHOLE = 3600.0  # seconds between looks at the whole ledger, for an entry that was held back longer


class Sequencer:
    """`signers` sign from now on; `retired` are keys that did before, and may have signed the last checkpoint.

    `clock` gives seconds.
    """

    def __init__(
        self,
        records: TreeRecords,
        signers: Sequence[Signer],
        origin: str,
        *,
        retired: Sequence[Verifier] = (),
        batch: int = BATCH,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._signers = signers
        self._verifiers = [*(signer.verifier for signer in signers), *retired]
        self._origin = origin
        self._batch = batch
        self._clock = clock
        self._frontier = Frontier()
        self._after = 0  # the entry behind which to look: the whole ledger each time would be too dear
        self._whole_at = self._settle_at = clock()

    def step(self) -> bool:
        """Sequence one batch and sign; True when there is more to do.

        LedgerError: the store is not what was signed, or holds an entry that can't be hashed. StoreError: Postgres is
        away. It may be called again after both.
        """
        try:
            return self._step()
        except LedgerError as error:
            log.error("ledger_not_signed", size=self._frontier.size, why=str(error))
            raise

    def _step(self) -> bool:
        size = self._records.size()
        if self._frontier.size != size:
            self._frontier = Frontier.stored(size, self._records.read)
        now = self._clock()
        if now >= self._whole_at:
            self._after, self._whole_at, self._settle_at = 0, now + _WHOLE, now
        rows = self._records.pending(self._after, self._batch)
        if rows and not self._extend([Entry.of_row(row) for row in rows]):
            self._frontier = Frontier()
            if self._records.size() == size:  # nobody was quicker
                raise LedgerError("The tree has no room for what follows", detail=f"leaves behind {size} were removed")
            return True
        self._sign()
        if len(rows) == self._batch:
            self._after, self._settle_at = rows[-1]["entry_id"], now
            return True
        if now >= self._settle_at:
            self._after, self._settle_at = self._records.settled(_LATE), now + _SETTLE
        return False

    def _extend(self, entries: list[Entry]) -> bool:
        size = self._frontier.size
        full = self._frontier.append(entry.leaf_hash() for entry in entries)
        try:
            return self._records.extend(size, entries, full)
        except StatementRefusedError:
            return False
        except BaseException:
            self._frontier = Frontier()  # nobody knows whether it was done
            raise

    def _sign(self) -> None:
        size, root = self._frontier.size, self._frontier.root()
        last = self._records.last_checkpoint()
        if last is not None:
            signed = note.open_checkpoint(last, self._verifiers, self._origin)
            if signed.size == size and signed.root == root:
                return
            if signed.size > size and self._records.size() >= signed.size:
                return  # another has sequenced, and signed, more than was here a moment ago
            proof = tree.consistency_proof(signed.size, size, self._records.read)
            tree.verify_consistency(signed.size, size, proof, signed.root, root)
        if size:
            self._records.checkpoint(size, note.sign_checkpoint(Checkpoint(self._origin, size, root), self._signers))
