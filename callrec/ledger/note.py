r"""Signed notes and checkpoints of the ledger, as C2SP has them (c2sp.org/signed-note, c2sp.org/tlog-checkpoint).

A note is a text that ends in a newline, an empty line, and a line for each signature:

    — <key name> base64(key id || signature)\n            key id: the first 4 bytes of
                                                          SHA-256(key name || 0x0A || 0x01 || public key)

A checkpoint is a note whose text says how large the tree was, and its root:

    <origin>\n<size in decimal>\n<base64 of the root>\n

Signatures are Ed25519 (type 0x01) of the text. Other types, witnesses and keys that nobody here knows are passed over,
so that a new key may sign beside the old one for as long as somebody trusts only the old. A note is read strictly:
what has two readings is refused, and everything has a bound.

What verifies is in ledger/verify.py, and needs the standard library and PyNaCl: who verifies need not have the rest of
callrec.
"""

from base64 import b64encode
from collections.abc import Iterable
from typing import Self

from nacl.signing import SigningKey

from callrec.errors import LedgerError
from callrec.ledger.verify import (
    CONTROL,
    ED25519,
    MAX_BYTES,
    MAX_SIGNATURES,
    Checkpoint,
    Verifier,
    from_base64,
    open_note,
)

__all__ = [
    "MAX_BYTES", "MAX_SIGNATURES", "Checkpoint", "Signer", "Verifier", "open_checkpoint", "open_note",
    "sign_checkpoint", "sign_note",
]  # fmt: skip

_PRIVATE = "PRIVATE+KEY+"
_SEED_BYTES = 32

# Keys. As text: name+key id in hexadecimal+base64(0x01 || key); a signer's begins with PRIVATE+KEY+ and holds the seed.


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
        name, _, rest = text.removeprefix(_PRIVATE).partition("+")
        seed = from_base64(rest.partition("+")[2])[1:]
        signer = cls(name, seed) if len(seed) == _SEED_BYTES else None
        if signer is None or signer.private_text() != text:
            raise LedgerError(
                "This is not a private key", detail="its name, its id and its bytes don't belong together"
            )
        return signer

    def private_text(self) -> str:
        """The text form, which is a secret."""
        about = self.verifier
        return f"{_PRIVATE}{about.name}+{about.key_id.hex()}+{b64encode(ED25519 + bytes(self._key)).decode()}"

    def sign(self, text: str) -> str:
        """A signature line for a note of this text."""
        signature = self._key.sign(text.encode()).signature
        return f"— {self.verifier.name} {b64encode(self.verifier.key_id + signature).decode()}\n"


# Notes


def sign_note(text: str, signers: Iterable[Signer]) -> bytes:
    """The note of this text with a signature by each. LedgerError if the text can't stand in a note."""
    lines = [signer.sign(text) for signer in signers]
    note = f"{text}\n{''.join(lines)}".encode()
    if not text.endswith("\n") or CONTROL.search(text) or not 0 < len(lines) <= MAX_SIGNATURES or len(note) > MAX_BYTES:
        raise LedgerError(
            "This can't be signed as a note", hint="A note's text ends in a newline, and has no other control"
        )
    return note


# Checkpoints


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
