"""What happens to a call, as values: the machine's input.

Times (`at`) are FreeSWITCH's own, from Event-Date-Timestamp, and None where it gave none. Sequences are its
Event-Sequence: one numbering for all events of a running FreeSWITCH.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from callrec.call.policy import Line


def iso(at: datetime | None) -> str | None:
    """A time for the ledger: RFC 3339 to the millisecond."""
    return at.isoformat(timespec="milliseconds") if at else None


@dataclass(frozen=True, slots=True)
class Arrived:
    """FreeSWITCH connected; `line` is what the policy says about the number dialled."""

    line: Line | None


@dataclass(frozen=True, slots=True)
class PromptStarted:
    at: datetime | None


@dataclass(frozen=True, slots=True)
class PromptStopped:
    """PLAYBACK_STOP: `done` is false when something broke the playback off."""

    done: bool


@dataclass(frozen=True, slots=True)
class PromptEnded:
    """The playback application completed; `played` means FILE PLAYED with the channel still up."""

    token: str
    played: bool
    at: datetime | None
    heard: float | None = None  # seconds of the prompt that went to the caller; None: FreeSWITCH didn't say


@dataclass(frozen=True, slots=True)
class KeysFlushed:
    """Keys pressed up to here, unread, are gone; `sequence` numbers this moment."""

    token: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Key:
    digit: str
    sequence: int


@dataclass(frozen=True, slots=True)
class BasisDurable:
    """Postgres has committed the legal basis of this call."""


@dataclass(frozen=True, slots=True)
class BasisMissing:
    """The basis is not durable, or the recording could not be kept or stopped; `reason` is for the ledger."""

    reason: str


@dataclass(frozen=True, slots=True)
class RecordReply:
    """What uuid_record answered. +OK proves nothing yet: an existing recording answers the same."""

    ok: bool


@dataclass(frozen=True, slots=True)
class RecordStarted:
    """RECORD_START with our path, recorded as asked (stereo, nothing cut off)."""

    at: datetime | None
    as_asked: bool = True


@dataclass(frozen=True, slots=True)
class RecordStopped:
    """RECORD_STOP with our path: the file is closed. `samples` per channel, as FreeSWITCH counted them."""

    at: datetime | None
    samples: int | None


@dataclass(frozen=True, slots=True)
class MaskReply:
    on: bool
    ok: bool


class Order(StrEnum):
    """What the agent's desktop, or the operator, may ask for during the conversation."""

    MASK = "mask"
    UNMASK = "unmask"
    STOP = "stop"
    WITHDRAW = "withdraw"


@dataclass(frozen=True, slots=True)
class Ordered:
    order: Order


@dataclass(frozen=True, slots=True)
class Hangup:
    """The channel is gone."""


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The outbound connection ended before we ended it; the dialplan carries the caller on."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The call's deadline has passed."""


Event = (
    Arrived | PromptStarted | PromptStopped | PromptEnded | KeysFlushed | Key | BasisDurable | BasisMissing
    | RecordReply | RecordStarted | RecordStopped | MaskReply | Ordered | Hangup | LinkLost | Tick
)  # fmt: skip
