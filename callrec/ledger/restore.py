"""The only way on after a database came back with less than was signed: a person accepts that, and the break is kept.

An entry says what was anchored, what is left, who accepted it and why. The tree with that entry is signed as the next
generation (ledger/checkpoint.py), and its anchor is put before anything else, so that no state of the database can undo
it. The anchors of what was lost stay, and go on proving that it was there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from callrec.errors import ConflictError, LedgerError
from callrec.ledger import note, tree
from callrec.ledger.anchors import Anchors
from callrec.ledger.checkpoint import Lineage, Signed
from callrec.ledger.note import Signer
from callrec.ledger.sequencer import Sequencer
from callrec.ledger.tree import Frontier
from callrec.store.rights import RightsRecords
from callrec.store.tree import TreeRecords


@dataclass(frozen=True, slots=True)
class Loss:
    """What the object store has an anchor of, and the last checkpoint that the database still holds, if any."""

    anchored: Signed
    kept: Signed | None

    @property
    def entries(self) -> int:
        """How many signed entries are gone, at least."""
        return self.anchored.size - (self.kept.size if self.kept else 0)


class Restore:
    """`tree_records` and `rights_records` are logged in as `sweep`; `anchors` are those of the same ledger."""

    def __init__(
        self,
        tree_records: TreeRecords,
        rights_records: RightsRecords,
        anchors: Anchors,
        lineage: Lineage,
        signers: Sequence[Signer],
    ) -> None:
        self._records = tree_records
        self._rights = rights_records
        self._anchors = anchors
        self._lineage = lineage
        self._signers = signers

    def loss(self) -> Loss:
        """What was lost. ConflictError when nothing was; LedgerError when the database contradicts its own checkpoint.

        That is no restored database but a changed one: nobody may accept it here.
        """
        self._anchors.look()
        anchored = self._anchors.trusted()
        frontier = self._frontier()
        if anchored is None or self._begins_with(frontier, anchored):
            raise ConflictError("Nothing was lost", detail="the ledger holds all that was anchored")
        last = self._records.last_checkpoint()
        kept = self._lineage.open(last) if last else None
        if kept and not self._begins_with(frontier, kept):
            raise LedgerError(
                "The database does not hold what its own last checkpoint says",
                hint="It was changed, not restored: restore a backup of the whole database, then run this again",
            )
        return Loss(anchored, kept)

    def accept(self, loss: Loss, reason: str, account: str) -> Signed:
        """Note it, and sign the ledger as its next generation. May be repeated when it was cut off."""
        body = {
            "reason": reason,
            "account": account,
            "anchored": self._said(loss.anchored),
            "kept": self._said(loss.kept) if loss.kept else None,
        }
        self._rights.entry("restore_accepted", body)
        sequencer = Sequencer(self._records, self._signers, self._lineage.origin, retired=self._lineage.verifiers)
        while sequencer.integrate() != 0:
            pass
        frontier = self._frontier()
        if loss.kept and not self._begins_with(frontier, loss.kept):
            raise LedgerError("The ledger changed meanwhile", hint="Look again at what it holds")
        checkpoint = self._lineage.checkpoint(loss.anchored.generation + 1, frontier.size, frontier.root())
        signed = self._lineage.open(note.sign_checkpoint(checkpoint, self._signers))
        self._anchors.put(signed)
        self._records.checkpoint(signed.size, signed.note)
        return signed

    def _frontier(self) -> Frontier:
        return Frontier.stored(self._records.size(), self._records.read)

    def _begins_with(self, frontier: Frontier, signed: Signed) -> bool:
        if signed.size > frontier.size:
            return False
        try:
            proof = tree.consistency_proof(signed.size, frontier.size, self._records.read)
            tree.verify_consistency(signed.size, frontier.size, proof, signed.root, frontier.root())
        except LedgerError:
            return False
        return True

    def _said(self, signed: Signed) -> dict[str, object]:
        return {"origin": self._lineage.name(signed.generation), "size": signed.size, "root": signed.root.hex()}
