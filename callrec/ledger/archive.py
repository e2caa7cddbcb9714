"""The anchors as somebody finds them who verifies: in their bucket, or copied from there into a directory.

Beside the anchor of a size may lie its leaves, checkpoints/<size in 20 digits>.leaves: the hashes of the leaves that
came with it, 32 bytes each, one behind the other, up to the last. They need no signature: with the leaves before them
they have the root that the anchor says, or they are not believed. They name an entry that was rewritten exactly, where
an anchor alone says no more than since when; and years later they tell without the database what it held.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from callrec.ahead import in_order
from callrec.errors import LedgerError
from callrec.ledger.checkpoint import PREFIX, object_key
from callrec.ledger.note import MAX_BYTES
from callrec.ledger.tree import HASH_BYTES
from callrec.recording.objects import S3Objects, Version

MOST_LEAVES = 1 << 20  # 32 MiB beside one anchor; of more than these the last
_NAME = re.compile(r"(?:^|/)(?:r(\d{3})/)?(\d{20})$")
_AT_ONCE = 8  # anchors that are read at a time


class Found(NamedTuple):
    """What lies where an anchor belongs. `note` is empty for what can't be one, and None where it is deleted."""

    generation: int
    size: int
    name: str  # for people
    note: bytes | None


class Archive(Protocol):
    """Anchors, all of one generation by size; of one size the oldest first where that is known.

    `complete`: all that there are; a copy may be older than the last of them.
    """

    complete: bool

    def generation(self, number: int) -> Iterator[Found]: ...

    def leaves(self, generation: int, size: int) -> bytes | None:
        """The leaves beside an anchor; None where there are none."""


def leaves_key(generation: int, size: int) -> str:
    """Where the object store keeps the leaves beside the anchor of this size."""
    return f"{object_key(generation, size)}.leaves"


def leaves_since(previous: int, size: int, read: Callable[[int, int], Sequence[tuple[int, bytes]]]) -> bytes:
    """The content of leaves_key(): the leaves behind those of the last anchor, whose size was `previous`.

    `read(begin, end)` gives (index, hash) of stored leaves (LedgerReading.leaves). LedgerError if one is missing.
    """
    begin = max(previous, size - MOST_LEAVES)
    found = read(begin, size)
    if [index for index, _ in found] != list(range(begin, size)):
        raise LedgerError("The stored tree is not whole", detail=f"a leaf from {begin} to {size - 1} is missing")
    return b"".join(leaf for _, leaf in found)


def leaf_list(content: bytes, size: int) -> tuple[int, list[bytes]] | None:
    """The index of the first of the leaves beside an anchor, and their hashes; None for what can't be such."""
    count, rest = divmod(len(content), HASH_BYTES)
    if rest or not 0 < count <= min(size, MOST_LEAVES):
        return None
    return size - count, split(content)


def split(hashes: bytes) -> list[bytes]:
    """Hashes that stand one behind the other."""
    return [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]


def _place(name: str) -> tuple[int, int] | None:
    """Generation and size from a key or path."""
    match = _NAME.search(name)
    return (int(match[1] or 1), int(match[2])) if match else None


class BucketArchive:
    """In the bucket of `objects`; StorageError as of S3Objects. Every version counts: nobody hides one by a later."""

    complete = True

    def __init__(self, objects: S3Objects) -> None:
        self._objects = objects

    def generation(self, number: int) -> Iterator[Found]:
        prefix = object_key(number, 0).removesuffix("0" * 20)
        yield from in_order(self._read, self._versions(prefix, number), _AT_ONCE)

    def _versions(self, prefix: str, number: int) -> Iterator[Version]:
        same: list[Version] = []  # of one key, the newest first
        for version in self._objects.versions_after(prefix, ""):
            place = _place(version.key)
            if place is None or place[0] != number:
                continue
            if same and same[-1].key != version.key:
                yield from reversed(same)
                same = []
            same.append(version)
        yield from reversed(same)

    def _read(self, version: Version) -> Found:
        place = _place(version.key)
        assert place is not None  # it was chosen by that
        note = None
        if not version.is_delete_marker:
            readable = version.size <= MAX_BYTES
            note = b"".join(self._objects.read(version.key, version.version_id)) if readable else b""
        return Found(*place, version.key, note)

    def leaves(self, generation: int, size: int) -> bytes | None:
        key = leaves_key(generation, size)
        found = [each for each in self._objects.versions(key) if each.key == key and not each.is_delete_marker]
        if not found or found[-1].size > MOST_LEAVES * HASH_BYTES:
            return None
        return b"".join(self._objects.read(key, found[-1].version_id))


class DirectoryArchive:
    """In files that have the names of the keys. LedgerError for what can't be read.

    Copies that were made at several times may lie in directories of their own below: all of them count.
    """

    complete = False

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise LedgerError(f"{directory} is no directory", hint="Copy the bucket of checkpoints into one")
        self._files: dict[tuple[int, int], list[Path]] = {}
        for path in sorted(directory.rglob("*")):
            place = _place(path.as_posix())
            if place and path.is_file():
                self._files.setdefault(place, []).append(path)
        if not self._files:
            hint = f"Copy what lies below {PREFIX} in the bucket, under the same names of 20 digits"
            raise LedgerError(f"{directory} holds no anchors", hint=hint)

    def generation(self, number: int) -> Iterator[Found]:
        for generation, size in sorted(self._files):
            if generation == number:
                for path in self._files[generation, size]:
                    yield Found(generation, size, path.name, _content(path, MAX_BYTES) or b"")

    def leaves(self, generation: int, size: int) -> bytes | None:
        for path in self._files.get((generation, size), ()):
            beside = path.with_name(f"{path.name}.leaves")
            if beside.is_file():
                return _content(beside, MOST_LEAVES * HASH_BYTES)
        return None


def _content(path: Path, most: int) -> bytes | None:
    try:
        return path.read_bytes() if path.stat().st_size <= most else None
    except OSError as error:
        raise LedgerError(f"{path} can't be read", detail=error.strerror or "") from None
