"""What is to be done about a call, as values: the machine's output. The listener performs them in order."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from callrec.call.policy import Prompt


@dataclass(frozen=True, slots=True)
class Note:
    """A fact for the ledger. `body` holds no number, no name, and of keys only those that mean something."""

    kind: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    pass


@dataclass(frozen=True, slots=True)
class Play:
    """Play a prompt that no key interrupts, then throw away unread keys if `flush`."""

    prompt: Prompt
    token: str
    flush: bool


@dataclass(frozen=True, slots=True)
class Break:
    """End the prompt that is playing."""


@dataclass(frozen=True, slots=True)
class Authorise:
    """Make the basis, and every note so far, durable; answer with BasisDurable or BasisMissing."""


@dataclass(frozen=True, slots=True)
class StartRecording:
    pass


@dataclass(frozen=True, slots=True)
class StopRecording:
    pass


@dataclass(frozen=True, slots=True)
class Mask:
    on: bool


@dataclass(frozen=True, slots=True)
class Release:
    """Hand the caller on: `resume`, `exit`."""


@dataclass(frozen=True, slots=True)
class Started:
    """The recording has started: its retention counts from `at`."""

    at: datetime | None


@dataclass(frozen=True, slots=True)
class Finish:
    """The recording is complete: it may be stored. `abrupt` when FreeSWITCH never said that the file was closed."""

    at: datetime | None
    samples: int | None
    abrupt: bool


@dataclass(frozen=True, slots=True)
class Discard:
    """Nothing of this recording may be kept."""

    reason: str


@dataclass(frozen=True, slots=True)
class Void:
    """No recording was started on the basis that may have become durable."""

    reason: str


Command = (
    Note
    | Answer
    | Play
    | Break
    | Authorise
    | StartRecording
    | StopRecording
    | Mask
    | Release
    | Started
    | Finish
    | Discard
    | Void
)
