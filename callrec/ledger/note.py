r"""Signed notes and checkpoints of the ledger, as C2SP has them (c2sp.org/signed-note, c2sp.org/tlog-checkpoint).

A note is a text that ends in a newline, an empty line, and a line for each signature:

    — <key name> base64(key id || signature)\n            key id: the first 4 bytes of
                                                          SHA-256(key name || 0x0A || 0x01 || public key)

A checkpoint is a note whose text says how large the tree was, and its root:

    <origin>\n<size in decimal>\n<base64 of the root>\n

Signatures are Ed25519 (type 0x01) of the text. Other types, witnesses and keys that nobody here knows are passed over,
so that a new key may sign beside the old one for as long as somebody trusts only the old. A note is read strictly:
what has two readings is refused, and everything has a bound.

The module needs the standard library and PyNaCl: who verifies need not have the rest of callrec.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Self

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from callrec.errors import LedgerError
from callrec.ledger.tree import HASH_BYTES, MAX_SIZE

MAX_BYTES = 256 * 1024  # sixteen of the largest signatures that C2SP names are a third of this
MAX_SIGNATURES = 100
_ED25519 = b"\x01"
_ID_BYTES = 4
_KEY_BYTES = 32
_PRIVATE = "PRIVATE+KEY+"
_SIGNATURE = re.compile("— ([^\\s+]+) ([A-Za-z0-9+/]+={0,2})")
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f]")
_CHECKPOINT = re.compile("([^\n]+)\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n")


# Keys. As text: name+key id in hexadecimal+base64(0x01 || key); a signer's begins with PRIVATE+KEY+ and holds the seed.


@dataclass(frozen=True, slots=True)
class Verifier:
    """A name, the 32 bytes of an Ed25519 public key, and the id that follows from both."""

    name: str
    public_key: bytes
    key_id: bytes = field(init=False)

    def __post_init__(self) -> None:
        if not self.name or "+" in self.name or any(c.isspace() for c in self.name) or not self.name.isprintable():
            raise LedgerError(
                "This can't name a key", hint="Use something like ledger.example.com/calls: no space, no +"
            )
        if len(self.public_key) != _KEY_BYTES:
            raise LedgerError("This is not a public key", detail=f"it has {len(self.public_key)} bytes")
        about = self.name.encode() + b"\n" + _ED25519 + self.public_key
        object.__setattr__(self, "key_id", sha256(about).digest()[:_ID_BYTES])

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{_base64(_ED25519 + self.public_key)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """A verifier from its text form; LedgerError if it is none."""
        name, key_id, key = _key(text)
        return cls(name, key)._with(key_id)

    def _with(self, key_id: str) -> Self:
        if key_id != self.key_id.hex():
            raise LedgerError("This is not a key", detail="its name, its id and its bytes don't belong together")
        return self

    def holds(self, text: str, signature: bytes) -> bool:
        """Whether these 64 bytes are this key's signature of the text."""
        try:
            VerifyKey(self.public_key).verify(text.encode(), signature)
        except (CryptoError, ValueError):  # ValueError: it has another length
            return False
        return True


class Signer:
    """A private key and its name. repr() and errors show nothing of the key."""

    __slots__ = ("_key", "verifier")

    def __init__(self, name: str, seed: bytes) -> None:
        """`seed`: 32 bytes, from a source fit for keys."""
        self._key = SigningKey(seed)
        self.verifier = Verifier(name, bytes(self._key.verify_key))

    def __repr__(self) -> str:
        return f"Signer({self.verifier})"

    @classmethod
    def generate(cls, name: str) -> Self:
        return cls(name, bytes(SigningKey.generate()))

    @classmethod
    def parse(cls, text: str) -> Self:
        """A signer from its text form; LedgerError, which does not repeat the text, if it is none."""
        if not text.startswith(_PRIVATE):
            raise LedgerError("This is not a private key", hint=f"One begins with {_PRIVATE}")
        name, key_id, seed = _key(text.removeprefix(_PRIVATE))
        signer = cls(name, seed)
        signer.verifier._with(key_id)
        return signer

    def private_text(self) -> str:
        """The text form, which is a secret."""
        about = self.verifier
        return f"{_PRIVATE}{about.name}+{about.key_id.hex()}+{_base64(_ED25519 + bytes(self._key))}"

    def sign(self, text: str) -> str:
        """A signature line for a note of this text."""
        signature = self._key.sign(text.encode()).signature
        return f"— {self.verifier.name} {_base64(self.verifier.key_id + signature)}\n"


# Notes


def sign_note(text: str, signers: Iterable[Signer]) -> bytes:
    """The note of this text with a signature by each. LedgerError if the text can't stand in a note."""
    lines = [signer.sign(text) for signer in signers]
    note = f"{text}\n{''.join(lines)}".encode()
    if (
        not text.endswith("\n")
        or _CONTROL.search(text)
        or not 0 < len(lines) <= MAX_SIGNATURES
        or len(note) > MAX_BYTES
    ):
        raise LedgerError(
            "This can't be signed as a note", hint="A note's text ends in a newline, and has no other control"
        )
    return note


def open_note(note: bytes, verifiers: Iterable[Verifier]) -> tuple[str, list[Verifier]]:
    """The text of a note, and who of the verifiers signed it: at least one.

    LedgerError for what is no note, for a note that none of them signed, and for one with a signature that claims to be
    by one of them and is not. Signatures by others are passed over.
    """
    known: dict[tuple[str, bytes], Verifier] = {}
    for verifier in verifiers:
        if known.setdefault((verifier.name, verifier.key_id), verifier) != verifier:
            raise LedgerError("Two keys have the same name and id", detail=f"{verifier.name}+{verifier.key_id.hex()}")
    text, signatures = _parts(note)
    signed = []
    for name, key_id, signature in signatures:
        signer = known.get((name, key_id))
        if signer is None:
            continue
        if not signer.holds(text, signature):
            raise LedgerError(
                "A signature is false", detail=f"the one by {name}+{key_id.hex()}", hint="Trust nothing of it"
            )
        if signer not in signed:
            signed.append(signer)
    if not signed:
        raise LedgerError("Nobody known has signed this", hint="Is this the key that was given for this ledger?")
    return text, signed


def _parts(note: bytes) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    """Text, and name, key id and signature of each line."""
    if len(note) > MAX_BYTES:
        raise _malformed("it is too long")
    try:
        said = note.decode()
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    text, parting, lines = said.rpartition("\n\n")
    if not parting or not lines.endswith("\n") or _CONTROL.search(said):
        raise _malformed("it has no text and signatures")
    found: list[tuple[str, bytes, bytes]] = []
    for line in lines[:-1].split("\n"):
        match = _SIGNATURE.fullmatch(line)
        if match is None or len(found) == MAX_SIGNATURES:
            raise _malformed("a signature line is none" if match is None else "it has too many signatures")
        blob = _bytes(match[2])
        if blob is None or len(blob) <= _ID_BYTES:
            raise _malformed("a signature is not in base64")
        found.append((match[1], blob[:_ID_BYTES], blob[_ID_BYTES:]))
    return text + "\n", found


# Checkpoints


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The ledger called `origin` had `size` entries and this root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not self.origin or "\n" in self.origin or not 0 <= self.size <= MAX_SIZE or len(self.root) != HASH_BYTES:
            raise LedgerError(
                "This can't be a checkpoint", detail=f"size {self.size}, a root of {len(self.root)} bytes"
            )

    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """A checkpoint from a note's text. LedgerError for any other text; for lines behind the root too, which mean
        nothing here and would be believed unread."""
        match = _CHECKPOINT.fullmatch(text)
        root = _bytes(match[3]) if match else None
        if match is None or root is None:
            raise _malformed("its text is no checkpoint")
        return cls(match[1], int(match[2]), root)


def sign_checkpoint(checkpoint: Checkpoint, signers: Iterable[Signer]) -> bytes:
    """The checkpoint as a note. It is for the caller to have seen that it is consistent with all that were signed."""
    return sign_note(checkpoint.text(), signers)


def open_checkpoint(note: bytes, verifiers: Iterable[Verifier], origin: str) -> Checkpoint:
    """The checkpoint in a note that one of them signed. LedgerError as of open_note, and for another origin."""
    text, _ = open_note(note, verifiers)
    checkpoint = Checkpoint.parse(text)
    if checkpoint.origin != origin:
        raise LedgerError("This is a checkpoint of another ledger")
    return checkpoint


def _malformed(why: str) -> LedgerError:
    return LedgerError("This is not a signed note that can be read", detail=why)


def _key(text: str) -> tuple[str, str, bytes]:
    """Name, key id in hexadecimal, and 32 bytes."""
    name, _, rest = text.partition("+")
    key_id, _, key = rest.partition("+")
    blob = _bytes(key) or b""
    if blob[:1] != _ED25519 or len(blob) != 1 + _KEY_BYTES:
        raise LedgerError("This is not a key", hint="One reads name+id+key, and is for Ed25519")
    return name, key_id, blob[1:]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes | None:
    """What standard base64 says; None for what is none, and for a second way to write the same."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if _base64(data) == text else None
