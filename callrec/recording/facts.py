"""What passes between the spool, the object store and Postgres about one recording."""

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from callrec.call.policy import LockMode


@dataclass(frozen=True, slots=True)
class Finished:
    """A recording whose file is complete, claimed for storing."""

    recording_id: UUID
    call_id: UUID
    basis_id: str
    lock: LockMode
    prefix: str  # of the object key
    started_at: datetime
    retain_until: datetime
    attempts: int  # this one included
    ended_abruptly: bool  # FreeSWITCH never said that it closed the file
    samples: int | None = None  # per channel, as FreeSWITCH counted them; None where it did not say


@dataclass(frozen=True, slots=True)
class StoredRecording:
    """Where a recording is, and what was read back of it."""

    bucket: str
    object_key: str
    version_id: str
    lock_mode: LockMode
    retain_until: datetime
    plaintext_sha256: bytes
    ciphertext_sha256: bytes
    ciphertext_bytes: int
    duration_seconds: float


def object_name(prefix: str, started_at: datetime, recording_id: UUID) -> str:
    """The object's key: <prefix>/<year>/<month>/<recording>, by the UTC date of the start."""
    return f"{prefix.strip('/')}/{started_at.astimezone(UTC):%Y/%m}/{recording_id}"
