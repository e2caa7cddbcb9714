"""The tree is RFC 6962's: published vectors, another implementation, and no change of any bit goes unseen."""

import time
from functools import cache
from hashlib import sha256

import pymerkle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callrec.errors import LedgerError
from callrec.ledger import tree
from callrec.ledger.tree import Frontier, Node

# The eight leaves that Certificate Transparency's own tests use, and the roots over the first one, two … of them.
LEAVES = [bytes.fromhex(leaf) for leaf in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LARGEST = 70  # past two full subtrees of different heights
SIZES = st.integers(1, LARGEST)


class Store(dict):
    """A stored tree in memory, which counts how often and for how much it was asked."""

    def __init__(self, leaf_hashes):
        super().__init__(Frontier().append(leaf_hashes))
        self.asked = []

    def read(self, nodes):
        self.asked.append(len(nodes))
        return {node: self[node] for node in nodes if node in self}


def data(index):
    return b"entry %d" % index


@cache
def store():
    return Store([tree.leaf_hash(data(index)) for index in range(LARGEST)])


def root(size):
    return Frontier.stored(size, store().read).root()


def by_definition(entries):
    """MTH as RFC 6962, 2.1 writes it down."""
    return mth(tuple(entries))


@cache
def mth(entries):
    if len(entries) < 2:
        return sha256(b"\0" + entries[0]).digest() if entries else sha256(b"").digest()
    middle = parted(entries)
    return sha256(b"\1" + mth(entries[:middle]) + mth(entries[middle:])).digest()


def parted(entries):
    middle = 1
    while 2 * middle < len(entries):
        middle *= 2
    return middle


def proof_by_definition(first, entries, whole=True):
    """PROOF and SUBPROOF as RFC 6962, 2.1.2 writes them down."""
    if first == len(entries):
        return [] if whole else [by_definition(entries)]
    middle = parted(entries)
    if first <= middle:
        return [*proof_by_definition(first, entries[:middle], whole), by_definition(entries[middle:])]
    return [*proof_by_definition(first - middle, entries[middle:], whole=False), by_definition(entries[:middle])]


def flipped(value, bit):
    changed = bytearray(value)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# Against others


@pytest.mark.parametrize("size", range(1, 9))
def test_the_published_roots(size):
    frontier = Frontier()
    frontier.append(map(tree.leaf_hash, LEAVES[:size]))
    assert frontier.root().hex() == ROOTS[size - 1]
    assert by_definition(LEAVES[:size]).hex() == ROOTS[size - 1]


def test_the_published_empty_root():
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert Frontier().root().hex() == Frontier.stored(0, store().read).root().hex() == empty


PUBLISHED_PATHS = [  # index, size, path
    (0, 1, []),
    (0, 8, [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]),
    (5, 8, [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (1, 5, [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ]),
]  # fmt: skip
PUBLISHED_CONSISTENCY = [  # first, second, proof
    (1, 1, []),
    (1, 8, [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]),
    (6, 8, [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]),
    (2, 5, [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("index", "size", "path"), PUBLISHED_PATHS)
def test_the_published_inclusion_proofs(index, size, path):
    reference = Store(map(tree.leaf_hash, LEAVES))
    proof = tree.inclusion_proof(index, size, reference.read)
    assert [part.hex() for part in proof] == path
    tree.verify_inclusion(tree.leaf_hash(LEAVES[index]), index, size, proof, bytes.fromhex(ROOTS[size - 1]))


@pytest.mark.parametrize(("first", "second", "path"), PUBLISHED_CONSISTENCY)
def test_the_published_consistency_proofs(first, second, path):
    reference = Store(map(tree.leaf_hash, LEAVES))
    proof = tree.consistency_proof(first, second, reference.read)
    assert [part.hex() for part in proof] == path
    roots = bytes.fromhex(ROOTS[first - 1]), bytes.fromhex(ROOTS[second - 1])
    tree.verify_consistency(first, second, proof, *roots)


def test_another_implementation_has_the_same_roots_and_inclusion_proofs():
    """pymerkle counts leaves from 1, and its paths begin with the leaf. Its consistency proofs are not RFC 6962's."""
    other = pymerkle.InmemoryTree(algorithm="sha256")
    for index in range(LARGEST):
        other.append_entry(data(index))
    for size in range(1, LARGEST + 1):
        assert other.get_root(size) == root(size)
        for index in range(size):
            leaf, *path = other.prove_inclusion(index + 1, size).path
            assert leaf == store()[Node(0, index)]
            assert path == tree.inclusion_proof(index, size, store().read)


def test_consistency_proofs_are_those_of_the_definition():
    for second in range(1, LARGEST + 1):
        for first in range(1, second + 1):
            expected = proof_by_definition(first, [data(index) for index in range(second)])
            assert tree.consistency_proof(first, second, store().read) == expected


# By property, over every size that is small


def test_every_leaf_is_included_in_every_size():
    for size in range(1, LARGEST + 1):
        assert root(size) == by_definition([data(index) for index in range(size)])
        for index in range(size):
            proof = tree.inclusion_proof(index, size, store().read)
            tree.verify_inclusion(store()[Node(0, index)], index, size, proof, root(size))


def test_every_prefix_is_consistent_with_every_size():
    for second in range(LARGEST + 1):
        for first in range(second + 1):
            proof = tree.consistency_proof(first, second, store().read)
            tree.verify_consistency(first, second, proof, root(first), root(second))


@given(st.lists(st.integers(0, 40), max_size=6))
def test_batches_make_the_same_tree_as_one_by_one(sizes):
    """And a frontier that is read back from the store goes on as if it had never stopped: the sequencer restarts."""
    leaves = [tree.leaf_hash(data(index)) for index in range(sum(sizes))]
    stored, size = Store([]), 0
    for batch in sizes:
        frontier = Frontier.stored(size, stored.read)
        stored.update(frontier.append(leaves[size : size + batch]))
        size += batch
        assert frontier.size == size
    assert stored == Store(leaves)
    assert Frontier.stored(size, stored.read).root() == by_definition([data(index) for index in range(size)])


@given(SIZES, st.data())
@settings(max_examples=300)
def test_no_bit_of_an_inclusion_may_change(size, draw):
    index = draw.draw(st.integers(0, size - 1))
    proof = tree.inclusion_proof(index, size, store().read)
    leaf, top = store()[Node(0, index)], root(size)
    part = draw.draw(st.integers(0, len(proof) + 1))
    bit = draw.draw(st.integers(0, 255))
    if part < len(proof):
        proof[part] = flipped(proof[part], bit)
    elif part == len(proof):
        leaf = flipped(leaf, bit)
    else:
        top = flipped(top, bit)
    with pytest.raises(LedgerError):
        tree.verify_inclusion(leaf, index, size, proof, top)


@given(st.integers(1, LARGEST), st.data())
@settings(max_examples=300)
def test_no_bit_of_a_consistency_may_change(second, draw):
    first = draw.draw(st.integers(1, second))
    proof = tree.consistency_proof(first, second, store().read)
    old, new = root(first), root(second)
    part = draw.draw(st.integers(0, len(proof) + 1))
    bit = draw.draw(st.integers(0, 255))
    if part < len(proof):
        proof[part] = flipped(proof[part], bit)
    elif part == len(proof):
        old = flipped(old, bit)
    else:
        new = flipped(new, bit)
    with pytest.raises(LedgerError):
        tree.verify_consistency(first, second, proof, old, new)


@given(SIZES, st.data())
@settings(max_examples=300)
def test_a_proof_holds_for_its_own_leaf_alone(size, draw):
    index = draw.draw(st.integers(0, size - 1))
    proof = tree.inclusion_proof(index, size, store().read)
    other = index ^ (1 << draw.draw(st.integers(0, 63)))
    with pytest.raises(LedgerError):
        tree.verify_inclusion(store()[Node(0, index)], other, size, proof, root(size))


@given(SIZES, SIZES, st.data())
@settings(max_examples=300)
def test_a_proof_does_not_hold_in_the_tree_of_another_size(size, other, draw):
    """Its root goes with a size: that some proofs hold for one root at two sizes is why a checkpoint signs both."""
    index = draw.draw(st.integers(0, min(size, other) - 1))
    first = draw.draw(st.integers(1, min(size, other)))
    inclusion = tree.inclusion_proof(index, size, store().read)
    consistency = tree.consistency_proof(first, size, store().read)
    if size == other:
        return
    with pytest.raises(LedgerError):
        tree.verify_inclusion(store()[Node(0, index)], index, other, inclusion, root(other))
    if first != other:
        with pytest.raises(LedgerError):
            tree.verify_consistency(first, other, consistency, root(first), root(other))


@given(SIZES, st.data())
def test_no_hash_may_be_missing_doubled_or_added(size, draw):
    index = draw.draw(st.integers(0, size - 1))
    first = draw.draw(st.integers(1, size))
    leaf, spare = store()[Node(0, index)], draw.draw(st.sampled_from([root(size), tree.EMPTY_ROOT]))
    inclusion = tree.inclusion_proof(index, size, store().read)
    consistency = tree.consistency_proof(first, size, store().read)
    for proof, verify in (
        (inclusion, lambda changed: tree.verify_inclusion(leaf, index, size, changed, root(size))),
        (consistency, lambda changed: tree.verify_consistency(first, size, changed, root(first), root(size))),
    ):
        changes = [[*proof, spare], [spare, *proof], proof + proof[-1:] * 70]
        changes += [proof[:place] + proof[place + 1 :] for place in range(len(proof))]
        changes += [[part[:-1] for part in proof], [part + b"\0" for part in proof]]
        for changed in changes:
            if changed != proof:
                with pytest.raises(LedgerError):
                    verify(changed)


def test_a_node_is_not_taken_for_a_leaf():
    """The second preimage that the two prefixes are there for."""
    left, right = (store()[Node(0, index)] for index in (0, 1))
    with pytest.raises(LedgerError):
        tree.verify_inclusion(tree.leaf_hash(left + right), 0, 1, [], root(2))
    assert tree.leaf_hash(left + right) != root(2)


def test_a_rewritten_tree_is_not_consistent():
    """Another entry, one entry less, two in each other's place: whatever is done to what a root once stood for."""
    leaves = [tree.leaf_hash(data(index)) for index in range(20)]
    for rewritten in (
        [*leaves[:7], tree.leaf_hash(b"other"), *leaves[8:]],
        leaves[:7] + leaves[8:] + leaves[7:8],
        [*leaves[:7], leaves[8], leaves[7], *leaves[9:]],
    ):
        forged = Store(rewritten)
        for first in range(9, 21):
            forged_root = Frontier.stored(20, forged.read).root()
            with pytest.raises(LedgerError, match="rewritten"):
                tree.verify_consistency(
                    first, 20, tree.consistency_proof(first, 20, forged.read), root(first), forged_root
                )


# What can't be


def test_what_is_no_tree_is_refused():
    for ask in (
        lambda: tree.inclusion_proof(5, 5, store().read),
        lambda: tree.inclusion_proof(-1, 5, store().read),
        lambda: tree.consistency_proof(6, 5, store().read),
        lambda: tree.verify_inclusion(root(1), 5, 5, [], root(5)),
        lambda: tree.verify_inclusion(root(1), 0, 2**64, [root(1)] * 64, root(5)),
        lambda: tree.verify_consistency(6, 5, [], root(6), root(5)),
        lambda: tree.verify_consistency(5, 5, [], root(4), root(5)),
        lambda: tree.verify_consistency(0, 5, [], root(1), root(5)),
        lambda: Frontier(3, [root(1)]),
        lambda: Frontier(1, [b"short"]),
        lambda: Frontier().append([b"short"]),
    ):
        with pytest.raises(LedgerError):
            ask()


def test_a_store_that_lost_a_node_says_which():
    damaged = Store([tree.leaf_hash(data(index)) for index in range(8)])
    del damaged[Node(1, 2)]
    with pytest.raises(LedgerError, match="level 1, position 2"):
        tree.inclusion_proof(7, 8, damaged.read)


# How much it takes


def test_one_among_a_million_takes_one_question_for_a_few_nodes():
    """The hashes are made up: what is counted is how many of them a proof needs, and how long it takes to make."""
    asked = []

    def read(nodes):
        asked.append(len(nodes))
        return {node: tree.leaf_hash(b"%d %d" % node) for node in nodes}

    taken = []
    for index in range(0, 999_999, 9_973):
        begun = time.perf_counter()
        tree.inclusion_proof(index, 999_999, read)
        tree.consistency_proof(index + 1, 999_999, read)
        taken.append(time.perf_counter() - begun)
    assert len(asked) <= 2 * len(taken), "one question each"
    assert max(asked) <= 2 * 20
    assert sorted(taken)[len(taken) // 2] < 0.010
