r"""The pieces of a running recording as they lie in the object store, and a recording that was made of them.

A lost node leaves segments, and whoever makes a recording of them can't open them: nodes hold the public key alone. So
they are joined as they are, behind a head that counts them. This is version 2 of the format in recording/envelope.py;
numbers are big-endian.

    offset  bytes
    0       8      magic: the seven ASCII letters "callrec", then the version, 0x02
    8       4      how many segments follow, at least 1
    12      ...    the segments, in order, each as it was put

    A segment:
    0       4      its index, from 0
    4       2      which of the recording's segment keys it is under, from 0
    6       4      bytes of ciphertext at its end: those of its plaintext, at most 1 MiB + 4096, and 16
    10      32     SHA-256 of the segment before it, all of that; zeros in the first
    42      24     nonce, random
    66      ...    ciphertext: crypto_aead_xchacha20poly1305_ietf (libsodium)

Additional data are the magic, the 16 bytes of the recording's UUID, and the 42 bytes before the nonce. So a segment
opens in its recording, at its place, behind the very segment that it was put behind, and nowhere else: what was
exchanged, repeated or left out in the middle does not open. How many there have to be says the head, and the SHA-256
of the whole, which is in Postgres and in the ledger, vouches for that.

Why no stream that goes on from one segment to the next (crypto_secretstream): its state would have to outlive a restart
of `ship`, on the disk of the node. Here every segment has a random nonce of 24 bytes, and every start of `ship` a key
of its own for each recording, which never leaves its memory but sealed: no nonce comes twice under one key.

The plaintext is a WAV file whose header says "as long as there is" (sizes 0xFFFFFFFF), because its length is not known
when it begins.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from uuid import UUID

from nacl import bindings as sodium
from nacl.exceptions import CryptoError
from nacl.utils import random

from callrec.errors import EnvelopeError

MAGIC = b"callrec\x02"
FIRST = bytes(32)  # stands for the segment before the first
MOST_AUDIO = 1 << 20  # bytes in one segment, and the header in the first

_COUNT = struct.Struct(">I")
_HEAD = struct.Struct(">IHI32s")
_NONCE_BYTES = sodium.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
_TAG_BYTES = sodium.crypto_aead_xchacha20poly1305_ietf_ABYTES
_MOST_BYTES = MOST_AUDIO + 4096 + _TAG_BYTES


@dataclass(frozen=True, slots=True)
class Head:
    """What a segment says of itself; it is authentic once the segment opens."""

    index: int
    key: int  # which of the segment keys
    size: int  # bytes of ciphertext
    previous: bytes


def seal(plain: bytes, key: bytes, recording_id: UUID, *, index: int, number: int, previous: bytes) -> bytes:
    """A segment: `plain` under segment key `number`, behind the segment with the hash `previous`."""
    head = _HEAD.pack(index, number, len(plain) + _TAG_BYTES, previous)
    nonce = random(_NONCE_BYTES)
    about = MAGIC + recording_id.bytes + head
    return head + nonce + sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(plain, about, nonce, key)


def head_of(segment: bytes) -> Head:
    """The head at the beginning of a segment; EnvelopeError where there is none that makes sense."""
    if len(segment) < _HEAD.size:
        raise EnvelopeError("A segment was cut short")
    head = Head(*_HEAD.unpack_from(segment))
    if not _TAG_BYTES <= head.size <= _MOST_BYTES:
        raise EnvelopeError("This is not a segment", detail=f"it says that it has {head.size} bytes")
    return head


def joined_head(count: int) -> bytes:
    """What stands before `count` segments that are joined."""
    return MAGIC + _COUNT.pack(count)


def decrypt(pieces: Iterable[bytes], keys: Sequence[bytes], recording_id: UUID) -> Iterator[bytes]:
    """The plaintext of joined segments given in pieces of any size, under the recording's segment keys.

    As envelope.decrypt: each piece that comes out is authentic and in its place, and only the end of the iteration says
    that nothing is missing. EnvelopeError otherwise. Memory: one segment, and the largest piece.
    """
    source = _Source(pieces)
    start = source.take(len(MAGIC) + _COUNT.size)
    if not start.startswith(MAGIC):
        raise EnvelopeError("This is not a recording made of segments", detail="it does not begin as one")
    (count,) = _COUNT.unpack_from(start, len(MAGIC))
    if not count:
        raise EnvelopeError("This recording is made of no segment")
    previous = FIRST
    for index in range(count):
        written = source.take(_HEAD.size)
        head = head_of(written)
        if head.index != index or head.previous != previous or head.key >= len(keys):
            raise EnvelopeError(
                "The segments of this recording are not those that were put",
                detail=f"at place {index} is number {head.index}, or what is before it is another one",
            )
        sealed = source.take(_NONCE_BYTES + head.size)
        previous = sha256(written + sealed).digest()
        yield _opened(written, sealed, keys[head.key], recording_id)
    if source.more():
        raise EnvelopeError("Something follows the last segment")


def _opened(head: bytes, sealed: bytes, key: bytes, recording_id: UUID) -> bytes:
    nonce, cipher = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    about = MAGIC + recording_id.bytes + head
    try:
        return sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(cipher, about, nonce, key)
    except (CryptoError, ValueError, TypeError) as error:
        raise EnvelopeError(
            "A segment does not open",
            detail="the key or the recording is another one, or the bytes were changed, moved or cut",
        ) from error


class _Source:
    """Pieces of any size, taken in others."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._waiting = bytearray()

    def take(self, size: int) -> bytes:
        while len(self._waiting) < size:
            piece = next(self._pieces, None)
            if piece is None:
                raise EnvelopeError("The recording was cut short", hint="Read the object again; compare its SHA-256")
            self._waiting += piece
        taken = bytes(self._waiting[:size])
        del self._waiting[:size]
        return taken

    def more(self) -> bool:
        return bool(self._waiting) or any(self._pieces)
