"""The Merkle tree over the ledger, as RFC 6962 section 2.1 and RFC 9162 section 2.1 have it, with SHA-256.

    MTH({})     = SHA-256()
    MTH({d})    = SHA-256(0x00 || d)
    MTH(D[0:n]) = SHA-256(0x01 || MTH(D[0:k]) || MTH(D[k:n]))      k: the largest power of two smaller than n

A hash is 32 bytes. A tree of `size` leaves has the indices 0 to size - 1. A proof is a list of hashes, in the order of
the RFCs: from the leaves up.

A stored tree keeps the hash of every full subtree under its Node, (level, position). Level 0 are the leaf hashes, and
node (l, p) stands over the leaves p * 2^l to (p + 1) * 2^l - 1. Such a hash never changes while the tree grows, so that
the store only ever appends, and it can be asked for the root and the proofs of every earlier size.

What verifies an inclusion is in ledger/verify.py: who verifies need not have the rest of callrec.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple, Self

from callrec.errors import LedgerError
from callrec.ledger.verify import HASH_BYTES, MAX_SIZE, leaf_hash, node_hash, sides, verify_inclusion

__all__ = [
    "EMPTY_ROOT", "HASH_BYTES", "MAX_SIZE", "Frontier", "Node", "Read", "consistency_proof", "inclusion_proof",
    "leaf_hash", "node_hash", "verify_consistency", "verify_inclusion",
]  # fmt: skip

EMPTY_ROOT = sha256().digest()


class Node(NamedTuple):
    """Where a full subtree stands: its height, and how many of that height are left of it."""

    level: int
    position: int


Read = Callable[[Collection[Node]], Mapping[Node, bytes]]
"""Gives the hashes of stored nodes; leaves out those that are not there. It is called once for each question below."""


# Growing


class Frontier:
    """A tree that only grows, known by its size and the roots of the full subtrees that it consists of, largest first.

    They are as many as `size` has bits that are set.
    """

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        if not 0 <= size <= MAX_SIZE or len(peaks) != size.bit_count():
            raise LedgerError("This is no tree", detail=f"{len(peaks)} full subtrees for a size of {size}")
        self.size = size
        self.peaks = [_checked(peak) for peak in peaks]

    @classmethod
    def stored(cls, size: int, read: Read) -> Self:
        """The stored tree as it was, or is, at `size`. LedgerError if the store lacks a part of it."""
        return cls(size, _all(_covering(0, size), read))

    def append(self, leaf_hashes: Iterable[bytes]) -> list[tuple[Node, bytes]]:
        """Add leaves at the end; gives every node that is full now and was not before, the leaves among them."""
        full = []
        for leaf in leaf_hashes:
            index, above = self.size, _checked(leaf)
            full.append((Node(0, index), above))
            level = 0
            while index & 1:  # a left sibling of this height waits for it
                above = node_hash(self.peaks.pop(), above)
                level, index = level + 1, index >> 1
                full.append((Node(level, index), above))
            self.peaks.append(above)
            self.size += 1
        return full

    def root(self) -> bytes:
        return _folded(self.peaks) if self.peaks else EMPTY_ROOT


# Proving, from a stored tree


def inclusion_proof(index: int, size: int, read: Read) -> list[bytes]:
    """PATH(index, D[0:size]) of RFC 6962, 2.1.1. LedgerError if there is no such leaf, or the store lacks a node."""
    if not 0 <= index < size <= MAX_SIZE:
        raise LedgerError("The tree has no such leaf", detail=f"index {index}, size {size}")
    beside = []
    begin, end = 0, size
    while end - begin > 1:
        middle = _middle(begin, end)
        if index < middle:
            beside.append((middle, end))
            end = middle
        else:
            beside.append((begin, middle))
            begin = middle
    return _roots(reversed(beside), read)


def consistency_proof(first: int, second: int, read: Read) -> list[bytes]:
    """PROOF(first, D[0:second]) of RFC 6962, 2.1.2; empty when `first` is 0 or `second`. LedgerError as above."""
    if not 0 <= first <= second <= MAX_SIZE:
        raise LedgerError("The tree never had these sizes", detail=f"{first}, then {second}")
    beside = []
    begin, end = 0, second
    while 0 < first < end:
        middle = _middle(begin, end)
        if first <= middle:
            beside.append((middle, end))
            end = middle
        else:
            beside.append((begin, middle))
            begin = middle
    if begin > 0:  # else this subtree is the whole first tree, and its root is known
        beside.append((begin, end))
    return _roots(reversed(beside), read)


# Verifying, without the tree; of an inclusion in ledger/verify.py. Size and root belong together, and are believed
# because a checkpoint says both: some proofs hold for the same root at other sizes too, so a size from elsewhere proves
# nothing.


def verify_consistency(first: int, second: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes) -> None:
    """That the tree of the second size and root begins with all of the first tree; LedgerError if not.

    RFC 9162, 2.1.4.2. Every tree begins with the empty one.
    """
    if not 0 <= first <= second <= MAX_SIZE:
        raise LedgerError("A tree does not shrink", detail=f"from {first} to {second}")
    _checked(first_root)
    _checked(second_root)
    if first in {0, second}:
        if proof:
            raise LedgerError("The proof has a wrong length", detail=f"{len(proof)} hashes instead of none")
        if first_root != (second_root if first else EMPTY_ROOT):
            raise LedgerError("The tree was rewritten", detail=f"two roots for size {first}")
        return
    path = list(proof)
    if first.bit_count() == 1:  # the first tree is one full subtree: the proof leaves out its root
        path.insert(0, first_root)
    if not path:
        raise LedgerError("The proof has a wrong length", detail="it is empty")
    known = (first & -first).bit_length() - 1  # the height of the last full subtree of the first tree
    old = new = _checked(path[0])
    for beside, on_the_left in zip(
        path[1:], sides(first - 1 >> known, second - 1 >> known, len(path) - 1), strict=True
    ):
        if on_the_left:
            old = node_hash(_checked(beside), old)
            new = node_hash(beside, new)
        else:
            new = node_hash(new, _checked(beside))
    if old != first_root or new != second_root:
        raise LedgerError("The tree was rewritten", detail=f"size {second} does not begin with what size {first} was")


def _checked(value: bytes) -> bytes:
    if len(value) != HASH_BYTES:
        raise LedgerError("This is not a hash", detail=f"it has {len(value)} bytes, not {HASH_BYTES}")
    return value


def _middle(begin: int, end: int) -> int:
    """Where RFC 6962 parts a subtree of two leaves or more."""
    return begin + (1 << (end - begin - 1).bit_length() - 1)


def _covering(begin: int, end: int) -> list[Node]:
    """The full subtrees that a subtree consists of, largest first."""
    nodes = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        nodes.append(Node(level, begin >> level))
        begin += 1 << level
    return nodes


def _folded(peaks: Sequence[bytes]) -> bytes:
    """The root over full subtrees that stand side by side, largest first."""
    above = peaks[-1]
    for peak in reversed(peaks[:-1]):
        above = node_hash(peak, above)
    return above


def _roots(subtrees: Iterable[tuple[int, int]], read: Read) -> list[bytes]:
    """The roots of subtrees, each given by its first leaf and the one behind its last."""
    parts = [_covering(begin, end) for begin, end in subtrees]
    found = iter(_all([node for part in parts for node in part], read))
    return [_folded([next(found) for _ in part]) for part in parts]


def _all(nodes: Sequence[Node], read: Read) -> list[bytes]:
    found = read(nodes) if nodes else {}
    for node in nodes:
        if node not in found:
            raise LedgerError("The stored tree is not whole", detail=f"level {node.level}, position {node.position}")
    return [found[node] for node in nodes]
