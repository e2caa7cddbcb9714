r"""A recording as it lies in the object store: encrypted under a key of its own, readable only with the private key.

The format, version 1. Everything is concatenated; there are no length fields.

    offset  bytes
    0       8      magic: the seven ASCII letters "callrec", then the version, 0x01
    8       24     header of crypto_secretstream_xchacha20poly1305 (libsodium)
    32      65553  chunk: the ciphertext of 65536 bytes of plaintext and 17 bytes that the stream adds; tag MESSAGE (0)
    ...     65553  further chunks of the same size and tag
    ...     17 to 65553  the last chunk, of 0 to 65536 bytes of plaintext; tag FINAL (3)

Only the last chunk has the tag FINAL, every recording has exactly one, and nothing follows it. The last chunk is empty
only if the whole plaintext is. The additional data of every chunk are 24 bytes: the magic, then the 16 bytes of the
recording's UUID (RFC 9562, network order), so that one recording can't be put in another's place.

The key of the stream is 32 random bytes, used for this one stream. It is kept sealed: crypto_box_seal (X25519,
XSalsa20-Poly1305) of those 32 bytes to the operator's public key, 80 bytes. Public and private keys are 32 bytes; as
text they are standard base64 with padding, 44 characters.
"""

import base64
import binascii
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO
from uuid import UUID

from nacl import bindings as sodium
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox
from nacl.utils import random

from callrec.errors import EnvelopeError

MAGIC = b"callrec\x01"
CHUNK_BYTES = 64 * 1024
KEY_BYTES = 32

_STREAM_HEADER_BYTES = sodium.crypto_secretstream_xchacha20poly1305_HEADERBYTES
_ADDED_BYTES = sodium.crypto_secretstream_xchacha20poly1305_ABYTES
_MESSAGE = sodium.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
_FINAL = sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL


# Keys


def new_key() -> bytes:
    """A fresh key for one recording."""
    return random(KEY_BYTES)


def generate_keypair() -> tuple[bytes, bytes]:
    """A new (private, public) pair of the operator."""
    private = PrivateKey.generate()
    return bytes(private), bytes(private.public_key)


def public_of(private_key: bytes) -> bytes:
    """The public key that belongs to a private one."""
    return bytes(PrivateKey(private_key).public_key)


def key_id(public_key: bytes) -> str:
    """A short name for a public key: the first 16 hexadecimal digits of its SHA-256."""
    return sha256(public_key).hexdigest()[:16]


def seal(key: bytes, public_key: bytes) -> bytes:
    """The recording's key, to be opened with the private key alone."""
    return SealedBox(PublicKey(public_key)).encrypt(key)


def unseal(sealed: bytes, private_key: bytes) -> bytes:
    """The recording's key again; EnvelopeError if it was sealed to another public key or changed."""
    try:
        return SealedBox(PrivateKey(private_key)).decrypt(sealed)
    except (CryptoError, ValueError, TypeError) as error:
        raise EnvelopeError(
            "The sealed key does not open",
            detail="it was sealed to another public key, or changed",
            hint="Use the private key whose key id stands beside it",
        ) from error


def encode_key(key: bytes) -> str:
    """A public or private key as text."""
    return base64.b64encode(key).decode("ascii")


def decode_key(text: str) -> bytes:
    """The key in a text; EnvelopeError if it is none. The text never appears in the error."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = None
    if key is None or len(key) != KEY_BYTES:
        raise EnvelopeError(
            "This is not a key",
            detail="it is not base64" if key is None else f"it has {len(key)} bytes, not {KEY_BYTES}",
            hint="A key is 44 characters of base64, on one line",
        )
    return key


# The stream


@dataclass(frozen=True, slots=True)
class Sealed:
    """What went in and what came out. The hashes are the 32 bytes of SHA-256."""

    plaintext_sha256: bytes
    plaintext_bytes: int
    ciphertext_sha256: bytes
    ciphertext_bytes: int


class Encryptor:
    """Plaintext in pieces of any size, ciphertext out. Holds one chunk, whatever the length of the recording."""

    def __init__(self, key: bytes, recording_id: UUID) -> None:
        self._state = sodium.crypto_secretstream_xchacha20poly1305_state()
        self._about = MAGIC + recording_id.bytes
        self._waiting = bytearray()
        self.head = MAGIC + sodium.crypto_secretstream_xchacha20poly1305_init_push(self._state, key)
        """The first 32 bytes of the ciphertext; the caller writes them before all others."""

    def update(self, data: bytes) -> bytes:
        """The chunks that are now known not to be the last; often empty."""
        self._waiting += data
        whole = (len(self._waiting) - 1) // CHUNK_BYTES * CHUNK_BYTES  # a full chunk at the end may be the last one
        if whole <= 0:
            return b""
        out = [
            self._push(self._waiting[start : start + CHUNK_BYTES], _MESSAGE) for start in range(0, whole, CHUNK_BYTES)
        ]
        del self._waiting[:whole]
        return b"".join(out)

    def finish(self) -> bytes:
        """The last chunk. Nothing may follow it."""
        return self._push(self._waiting, _FINAL)

    def _push(self, chunk: bytearray, tag: int) -> bytes:
        return sodium.crypto_secretstream_xchacha20poly1305_push(self._state, bytes(chunk), self._about, tag)


def encrypt(source: BinaryIO | Iterable[bytes], sink: BinaryIO, key: bytes, recording_id: UUID) -> Sealed:
    """Write the encrypted form of `source` to `sink`; does not flush or close it.

    Errors of `source` and `sink` pass through. Memory: one chunk, and the largest piece that `source` yields.
    """
    encryptor = Encryptor(key, recording_id)
    plain, cipher = sha256(), sha256()
    plain_bytes = cipher_bytes = 0

    def put(piece: bytes) -> None:
        nonlocal cipher_bytes
        cipher.update(piece)
        cipher_bytes += len(piece)
        sink.write(piece)

    put(encryptor.head)
    for piece in _pieces(source):
        plain.update(piece)
        plain_bytes += len(piece)
        put(encryptor.update(piece))
    put(encryptor.finish())
    return Sealed(plain.digest(), plain_bytes, cipher.digest(), cipher_bytes)


def decrypt(chunks: Iterable[bytes], key: bytes, recording_id: UUID) -> Iterator[bytes]:
    """The plaintext of a ciphertext given in pieces of any size.

    Each piece that comes out is authentic and in its place, but only the end of the iteration says that nothing is
    missing: what was written before an EnvelopeError must not be taken for the recording. EnvelopeError for a wrong key
    or recording, a changed byte, an exchange of chunks, an early end, and anything behind the end.
    """
    waiting = bytearray()
    state: sodium.crypto_secretstream_xchacha20poly1305_state | None = None
    about = MAGIC + recording_id.bytes
    head_bytes = len(MAGIC) + _STREAM_HEADER_BYTES
    sealed_bytes = CHUNK_BYTES + _ADDED_BYTES
    ended = False
    for piece in chunks:
        waiting += piece
        if state is None and len(waiting) >= head_bytes:
            state = _opened(bytes(waiting[:head_bytes]), key)
            del waiting[:head_bytes]
        while state and not ended and len(waiting) >= sealed_bytes:
            plain, ended = _pulled(state, bytes(waiting[:sealed_bytes]), about)
            del waiting[:sealed_bytes]
            yield plain
        if ended and waiting:
            break  # what follows the end is refused below, without reading all of it
    if state is None:
        raise EnvelopeError("This is not a sealed recording", detail=f"it has only {len(waiting)} bytes")
    if not ended and len(waiting) >= _ADDED_BYTES:
        plain, ended = _pulled(state, bytes(waiting), about)
        waiting.clear()
        if ended:
            yield plain
    if not ended:
        raise EnvelopeError("The sealed recording was cut short", hint="Read the object again; compare its SHA-256")
    if waiting:
        raise EnvelopeError("Something follows the end of the sealed recording")


def _pieces(source: BinaryIO | Iterable[bytes]) -> Iterator[bytes]:
    """Iterating a binary file would give lines; read it in chunks instead."""
    read = getattr(source, "read", None)
    return iter(lambda: read(CHUNK_BYTES), b"") if read else iter(source)


def _opened(head: bytes, key: bytes) -> "sodium.crypto_secretstream_xchacha20poly1305_state":
    magic, header = head[: len(MAGIC)], head[len(MAGIC) :]
    if magic[:-1] != MAGIC[:-1]:
        raise EnvelopeError("This is not a sealed recording", detail="it does not begin as one")
    if magic != MAGIC:
        raise EnvelopeError("This sealed recording has another format", detail=f"version {magic[-1]}, not {MAGIC[-1]}")
    if len(key) != KEY_BYTES:
        raise EnvelopeError("The key of a recording has 32 bytes", detail=f"this one has {len(key)}")
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, header, key)
    return state


def _pulled(
    state: "sodium.crypto_secretstream_xchacha20poly1305_state", chunk: bytes, about: bytes
) -> tuple[bytes, bool]:
    try:
        plain, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(state, chunk, about)
    except CryptoError as error:
        raise EnvelopeError(
            "The sealed recording does not open",
            detail="the key or the recording is another one, or the bytes were changed, moved or cut",
        ) from error
    if tag not in {_MESSAGE, _FINAL}:
        raise EnvelopeError("The sealed recording has another format", detail=f"tag {tag}")
    return plain, tag == _FINAL
