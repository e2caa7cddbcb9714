"""What is kept of a caller's number, so that the caller can be found, and proved, and forgotten.

The number itself is sealed to the public key. It is found by an HMAC under a key that only `listen` and the look-up
hold, and it stands in the ledger as a commitment: an HMAC under a random salt. The salt is in a row that can be
deleted; after that the commitment says nothing, while the ledger stays whole. A plain hash would not do: all of a
country's numbers can be tried in a minute.
"""

import hmac
import secrets
from dataclasses import dataclass, field

from nacl.public import PublicKey, SealedBox


@dataclass(frozen=True, slots=True)
class Concealed:
    """Bytes only; none of them tells the number to who has not the keys."""

    lookup: bytes = field(repr=False)  # 32 bytes, equal for equal numbers
    salt: bytes = field(repr=False)  # 32 bytes, opens the commitment
    sealed: bytes = field(repr=False)  # the number, for the holder of the private key
    commitment: str = ""  # 64 hex digits, for the ledger


def conceal(number: str, lookup_key: bytes, public_key: bytes) -> Concealed:
    """The E.164 `number` in its three forms. `lookup_key` and `public_key` have 32 bytes."""
    text = number.encode()
    salt = secrets.token_bytes(32)
    return Concealed(
        lookup=look_up(number, lookup_key),
        salt=salt,
        sealed=SealedBox(PublicKey(public_key)).encrypt(text),
        commitment=hmac.digest(salt, text, "sha256").hex(),
    )


def look_up(number: str, lookup_key: bytes) -> bytes:
    """The index under which the calls of this E.164 number are found."""
    return hmac.digest(lookup_key, number.encode(), "sha256")
