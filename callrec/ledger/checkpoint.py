"""The checkpoints of one ledger in their order, across restores of its database.

An origin names one tree, which only grows. A database that was restored from a backup holds less than was signed, and
what grows from there is another tree: once a person has accepted that (ledger/restore.py), it is signed as ORIGIN/2,
then as ORIGIN/3. The keys stay. So no two checkpoints of one origin ever contradict each other, and the break shows.

In the object store a checkpoint lies at checkpoints/<size in 20 digits>, after a restore at
checkpoints/r002/<size in 20 digits>: the order of the keys is the order of the checkpoints.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from callrec.errors import LedgerError
from callrec.ledger import note
from callrec.ledger.note import Checkpoint, Verifier

PREFIX = "checkpoints/"
_KEY = re.compile(rf"{PREFIX}(?:r\d{{3}}/)?\d{{20}}")
_MOST_GENERATIONS = 999


class Signed(NamedTuple):
    """A checkpoint that a known key signed. `generation` is 1, and one more for each restore."""

    generation: int
    size: int
    root: bytes
    note: bytes


@dataclass(frozen=True, slots=True)
class Lineage:
    """The ledger's name, and every key that may have signed it."""

    origin: str
    verifiers: tuple[Verifier, ...]

    def open(self, signed: bytes) -> Signed:
        """LedgerError for what none of the verifiers signed, and for the checkpoint of another ledger."""
        text, _ = note.open_note(signed, self.verifiers)
        checkpoint = Checkpoint.parse(text)
        number = checkpoint.origin.removeprefix(f"{self.origin}/")
        generation = int(number) if re.fullmatch("[1-9][0-9]{0,2}", number) else 1
        if checkpoint.origin != self.name(generation):
            raise LedgerError("This is a checkpoint of another ledger", detail=f"its origin is {checkpoint.origin!a}")
        return Signed(generation, checkpoint.size, checkpoint.root, signed)

    def name(self, generation: int) -> str:
        """The origin that checkpoints of this generation bear."""
        if not 1 <= generation <= _MOST_GENERATIONS:
            raise LedgerError("The ledger was restored too often", detail=f"{generation - 1} times")
        return self.origin if generation == 1 else f"{self.origin}/{generation}"

    def checkpoint(self, generation: int, size: int, root: bytes) -> Checkpoint:
        return Checkpoint(self.name(generation), size, root)


def object_key(generation: int, size: int) -> str:
    """Where the object store keeps the checkpoint of this size."""
    return f"{PREFIX}{size:020}" if generation == 1 else f"{PREFIX}r{generation:03}/{size:020}"


def is_checkpoint(key: str) -> bool:
    """Whether this is such a key; beside checkpoints lie their time stamps."""
    return _KEY.fullmatch(key) is not None
