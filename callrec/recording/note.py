"""What lies beside a ciphertext in the spool: enough to store it without making it again.

JSON, version 1. It holds no secret: the key in it is sealed to the operator's public key.
"""

import base64
import binascii
import json
from dataclasses import dataclass

from callrec.errors import EnvelopeError

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Note:
    """One ciphertext. The hashes are the 32 bytes of SHA-256."""

    sealed_key: bytes
    key_id: str  # of the public key that it was sealed to
    plaintext_sha256: bytes
    ciphertext_sha256: bytes
    ciphertext_bytes: int
    duration_seconds: float
    segments: int = 0  # that it was made of, and whose keys open it; 0: it was sealed whole

    def as_bytes(self) -> bytes:
        return json.dumps(
            {
                "version": _VERSION,
                "sealed_key": base64.b64encode(self.sealed_key).decode("ascii"),
                "key_id": self.key_id,
                "plaintext_sha256": self.plaintext_sha256.hex(),
                "ciphertext_sha256": self.ciphertext_sha256.hex(),
                "ciphertext_bytes": self.ciphertext_bytes,
                "duration_seconds": self.duration_seconds,
                "segments": self.segments,
            }
        ).encode("ascii")

    @classmethod
    def from_bytes(cls, written: bytes) -> "Note":
        """The note again; EnvelopeError if it is damaged or of another version."""
        try:
            said = json.loads(written)
            if said["version"] != _VERSION:
                raise EnvelopeError("The note of a sealed recording is of another version")
            return cls(
                sealed_key=base64.b64decode(said["sealed_key"], validate=True),
                key_id=str(said["key_id"]),
                plaintext_sha256=bytes.fromhex(said["plaintext_sha256"]),
                ciphertext_sha256=bytes.fromhex(said["ciphertext_sha256"]),
                ciphertext_bytes=int(said["ciphertext_bytes"]),
                duration_seconds=float(said["duration_seconds"]),
                segments=int(said.get("segments", 0)),  # earlier notes do not say
            )
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise EnvelopeError("The note of a sealed recording is damaged", detail=type(error).__name__) from error
