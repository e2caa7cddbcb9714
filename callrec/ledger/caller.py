"""What is kept of a caller's number, so that the caller can be found, and proved, and forgotten.

The number itself is sealed to the public key. It is found by an HMAC under a key that only `listen` and the look-up
hold, and it stands in the ledger as a commitment: an HMAC under a random salt. The salt is in a row that can be
deleted; after that the commitment says nothing, while the ledger stays whole. A plain hash would not do: all of a
country's numbers can be tried in a minute.

The key of the look-up is replaced now and then: each has an epoch, a row is found under the key of its own epoch, and a
key whose rows are all gone can be destroyed. Then not even a copy of those rows says whose they were.
"""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from nacl.public import PublicKey, SealedBox


@dataclass(frozen=True, slots=True)
class Lookup:
    """Under what a number, or a reference code, is found."""

    digest: bytes = field(repr=False)  # 32 bytes, equal for equal texts of one epoch
    epoch: int  # of the key that made it


class LookupKeys:
    """`keys`: 32 bytes each, by their epochs, one at least. repr() shows the epochs alone."""

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        self._keys = {epoch: keys[epoch] for epoch in sorted(keys, reverse=True)}

    def __repr__(self) -> str:
        return f"LookupKeys({self.epochs})"

    @property
    def epochs(self) -> tuple[int, ...]:
        """The newest first."""
        return tuple(self._keys)

    def newest(self, text: str) -> Lookup:
        """What is written now."""
        epoch, key = next(iter(self._keys.items()))
        return Lookup(look_up(text, key), epoch)

    def every(self, text: str) -> list[bytes]:
        """What may have been written at any time, the newest first."""
        return [look_up(text, key) for key in self._keys.values()]


@dataclass(frozen=True, slots=True)
class Concealed:
    """Nothing of it tells the number to who has not the keys."""

    lookup: Lookup
    salt: bytes = field(repr=False)  # 32 bytes, opens the commitment
    sealed: bytes = field(repr=False)  # the number, for the holder of the private key
    commitment: str = ""  # 64 hex digits, for the ledger


def conceal(number: str, lookup_keys: LookupKeys, public_key: bytes) -> Concealed:
    """The E.164 `number` in its three forms. `public_key` has 32 bytes."""
    text = number.encode()
    salt = secrets.token_bytes(32)
    return Concealed(
        lookup=lookup_keys.newest(number),
        salt=salt,
        sealed=SealedBox(PublicKey(public_key)).encrypt(text),
        commitment=commitment(number, salt),
    )


def look_up(text: str, key: bytes) -> bytes:
    """The index under which the calls of an E.164 number are found, or that of a reference code."""
    return hmac.digest(key, text.encode(), "sha256")


def commitment(number: str, salt: bytes) -> str:
    """What stands in the ledger for this E.164 number and this salt of 32 bytes: 64 hexadecimal digits."""
    return hmac.digest(salt, number.encode(), "sha256").hex()
