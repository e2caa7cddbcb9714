"""What the object store gives back of a recording, compared with what it was given.

A checksum that a server tells may be the one that it was told. So bytes are read: of a sample the first and the last
block and some that nobody can foresee, or all of them by their SHA-256, as `[storage] read_back` says. Memory: a block.

Where a sample differs, the hash of the whole decides, because the file in the spool may be the one that is damaged.
"""

import random
from pathlib import Path

from callrec import metrics
from callrec.errors import SpoolError
from callrec.recording.objects import S3Objects, same

BLOCK = 64 * 1024
_FORESEEN_BY_NOBODY = 4


def read_back(objects: S3Objects, key: str, version_id: str, sealed: Path, sha256: bytes, *, full: bool) -> None:
    """StorageError where the version does not hold the bytes of the file `sealed`, whose hash is `sha256`."""
    if full or not _sample_agrees(objects, key, version_id, sealed):
        same("SHA-256", sha256.hex(), objects.hash_of(key, version_id).hex())


def _sample_agrees(objects: S3Objects, key: str, version_id: str, sealed: Path) -> bool:
    try:
        with sealed.open("rb") as file:
            for offset, length in _ranges(sealed.stat().st_size):
                file.seek(offset)
                for block in objects.read(key, version_id, offset, length):
                    metrics.READ_BACK_BYTES.inc(len(block))
                    if not block or file.read(len(block)) != block:
                        return False
                    length -= len(block)  # noqa: PLW2901 # what is still to come
                if length:
                    return False
    except OSError as error:
        raise SpoolError("A sealed recording can't be read", detail=error.strerror or "") from error
    return True


def _ranges(size: int) -> list[tuple[int, int]]:
    """(offset, length) of what is compared; of a small object that is all of it."""
    blocks = -(-size // BLOCK)
    if blocks <= _FORESEEN_BY_NOBODY + 2:
        return [(0, size)]
    between = sorted(random.sample(range(1, blocks - 1), _FORESEEN_BY_NOBODY))
    starts = [0, *(block * BLOCK for block in between), size - BLOCK]
    return [(start, BLOCK) for start in starts]
