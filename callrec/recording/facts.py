"""What passes between the spool, the object store and Postgres about one recording."""

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from callrec.call.policy import SEGMENTS_PREFIX, LockMode


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
    expired: bool = False  # by Postgres' clock, and no hold keeps it


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
    segments: int = 0  # that it was made of; 0: it is complete


@dataclass(frozen=True, slots=True)
class Running:
    """A recording that is being written, and how far its segments have come."""

    recording_id: UUID
    basis_id: str
    prefix: str  # of the object key
    started_at: datetime
    keys: int  # under which earlier starts of `ship` have put segments
    next_index: int
    previous: bytes | None  # SHA-256 of the last segment; None before the first
    audio_end: int  # bytes of audio in the segments


@dataclass(frozen=True, slots=True)
class Cut:
    """A segment that is ready to be put."""

    index: int
    key: int  # which of the segment keys, from 0
    segment: bytes
    sha256: bytes  # of the segment
    audio_end: int  # bytes of audio up to its end
    ends_at: float  # the same in seconds
    plaintext_sha256: bytes  # of everything up to its end, header included


@dataclass(frozen=True, slots=True)
class Part:
    """A segment that was put, or was about to be."""

    index: int
    sha256: bytes
    size: int
    ends_at: float  # seconds of audio up to its end
    plaintext_sha256: bytes  # of everything up to its end, header included
    version_id: str | None  # None where nobody has seen the object


@dataclass(frozen=True, slots=True)
class Streamed:
    """What left the node of a recording while it ran."""

    audio_end: int  # bytes of audio
    plaintext_sha256: bytes  # of all that up to there, behind a header that knows no length (wav.stream_header)


def object_name(prefix: str, started_at: datetime, recording_id: UUID) -> str:
    """The object's key: <prefix>/<year>/<month>/<recording>, by the UTC date of the start."""
    return f"{prefix.strip('/')}/{started_at.astimezone(UTC):%Y/%m}/{recording_id}"


def segments_prefix(prefix: str, started_at: datetime, recording_id: UUID) -> str:
    """Below which the segments of a recording are: the name of its own object under segments/."""
    return f"{SEGMENTS_PREFIX}/{object_name(prefix, started_at, recording_id)}/"
