"""What a withdrawal of consent covers: one decision for each of the caller's recordings.

    erased        a consent recording, whatever its state; one that is running stops first
    not touched   a recording on a statutory basis (D4), one that was not meant, one whose consent was received later
                  (D5), one that is gone already, and all of them when the person turned out not to be entitled (D3, D8)
    waits         held, or the person is not identified yet: nobody listens meanwhile (D3, E11)

A withdrawal has no form and needs no reason (D1, D2). The order that counts is that in which statements reached the
controller, not the dates that are written in them (D5).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from callrec.call.policy import BasisKind
from callrec.errors import ConflictError, RightsError


class Channel(StrEnum):
    """How a revocation reached the controller (D1, D2)."""

    KEYPRESS = "keypress"  # in the call itself, or in a later one
    PHONE = "phone"  # said to an agent, on any line
    EMAIL = "email"
    POST = "post"
    PORTAL = "portal"
    POINT_OF_SALE = "point_of_sale"


class Proof(StrEnum):
    """What speaks for the person being the caller. For a withdrawal any of them is enough (D3): little is at stake."""

    IN_CALL = "in_call"  # in the call whose recording it is
    CALLING_NUMBER = "calling_number"  # the network shows the number that the recordings are of
    REFERENCE_CODE = "reference_code"  # D11
    LOGIN = "login"  # of the portal, to the account that the number belongs to
    DOCUMENT = "document"  # shown at a point of sale, or answers given on being asked


class Identification(StrEnum):
    """How far the person's identity is known (E5)."""

    UNVERIFIED = "unverified"
    INFO_REQUESTED = "info_requested"
    VERIFIED = "verified"
    FAILED = "failed"


class GivenBy(StrEnum):
    """Whose statement it is (D8)."""

    SELF = "self"
    PARENT = "parent"
    FOSTER_PARENT = "foster_parent"
    GUARDIAN = "guardian"


class Scope(StrEnum):
    ALL = "all"  # the caller's consent recordings: what is meant unless one is named
    ONE = "one"


@dataclass(frozen=True, slots=True, order=True)
class Receipt:
    """When a statement reached the controller; of two at the same time the later entry in the ledger is the later."""

    at: datetime  # aware
    sequence: int  # the ledger's


@dataclass(frozen=True, slots=True)
class Person:
    """Who makes a statement, and for whom. A child is named by an opaque reference, empty for oneself."""

    given_by: GivenBy = GivenBy.SELF
    on_behalf_of: str = ""
    of_age: bool = True  # may decide about the own data, where somebody else decided before (D8)

    def __post_init__(self) -> None:
        if (self.given_by is GivenBy.SELF) == bool(self.on_behalf_of):
            raise RightsError(
                "It is not clear who speaks for whom",
                detail="a parent, foster parent or guardian speaks for a child, anybody else for nobody else (D8)",
                hint="Name the child when given_by is not self, and only then",
            )


@dataclass(frozen=True, slots=True)
class Revocation:
    """A withdrawal of consent, as it was received."""

    channel: Channel
    receipt: Receipt
    identification: Identification
    by: Person = Person()
    scope: Scope = Scope.ALL
    recording_id: UUID | None = None  # the one that is meant

    def __post_init__(self) -> None:
        if (self.scope is Scope.ONE) != (self.recording_id is not None):
            raise RightsError("It is not clear which recordings are meant", hint="Name one, or leave the scope at all")


@dataclass(frozen=True, slots=True)
class Recording:
    """What a decision needs to know of one recording."""

    recording_id: UUID
    kind: BasisKind
    agreed: Receipt | None = None  # when consent was last received; None where no consent was asked
    agreed_by: Person = Person()
    running: bool = False
    held: bool = False
    erased: bool = False  # said only after each copy was looked for and not found


class Fate(StrEnum):
    ERASE = "erase"
    NOT_TOUCHED = "not_touched"
    WAITS = "waits"


class Why(StrEnum):
    """The reason of a decision, as the answer to the caller names it; `says` gives the sentence."""

    WITHDRAWN = "withdrawn"
    STATUTORY = "statutory"
    NOT_MEANT = "not_meant"
    AGREED_LATER = "agreed_later"
    ALREADY_ERASED = "already_erased"
    HELD = "held"
    NOT_IDENTIFIED_YET = "not_identified_yet"
    NOT_IDENTIFIED = "not_identified"
    NOT_ENTITLED = "not_entitled"
    MINOR = "minor"
    GUARDIAN_AGREED = "guardian_agreed"

    @property
    def says(self) -> str:
        return _SAYS[self]


_SAYS = {
    Why.WITHDRAWN: "The consent is withdrawn and the recording is erased.",
    Why.STATUTORY: "The recording is kept by law and not by consent, so a withdrawal does not end it (D4).",
    Why.NOT_MEANT: "The withdrawal names another recording.",
    Why.AGREED_LATER: "Consent to this recording was received after the withdrawal (D5).",
    Why.ALREADY_ERASED: "The recording was erased before.",
    Why.HELD: "The recording has to stay for now; nobody listens to it, and it is erased when the hold is released.",
    Why.NOT_IDENTIFIED_YET: "It is not known yet whether the caller asks; nobody listens to it meanwhile (D3).",
    Why.NOT_IDENTIFIED: "Whoever asked was found not to be the caller.",
    Why.NOT_ENTITLED: "Whoever asked may not decide for the person who was recorded (D8).",
    Why.MINOR: "The caller is a minor and nobody agreed who may agree for a minor, so the recording is erased (D8).",
    Why.GUARDIAN_AGREED: "A parent, foster parent or guardian has agreed for the minor (D8).",
}
# E5. A failed identification ends there: the person may ask again.
_IDENTIFIED = {
    Identification.UNVERIFIED: {Identification.INFO_REQUESTED, Identification.VERIFIED},
    Identification.INFO_REQUESTED: {Identification.VERIFIED, Identification.FAILED},
}


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one recording, and why."""

    recording_id: UUID
    fate: Fate
    why: Why
    stop: bool = False  # the recording is running: stop it now
    blocked: bool = False  # nobody listens to it from now on


def identification(proofs: Iterable[Proof]) -> Identification:
    """How far a withdrawal is proved: verified by anything at all, otherwise the person has to be asked (D3)."""
    return Identification.VERIFIED if any(True for _ in proofs) else Identification.UNVERIFIED


def identified(now: Identification, then: Identification) -> Identification:
    """The next state of an identification (E5). Raises ConflictError where that does not follow from `now`."""
    if then is not now and then not in _IDENTIFIED.get(now, ()):
        raise ConflictError(
            f"The identification is {now} and can't become {then}", hint="Ask for the missing step first"
        )
    return then


def decide(revocation: Revocation, recordings: Iterable[Recording]) -> tuple[Decision, ...]:
    """A decision for each of the recordings that the revocation's number, call or reference code led to."""
    return tuple(_decide(revocation, recording) for recording in recordings)


def may_revoke(agreed_by: Person, by: Person) -> bool:
    """Whether `by` may withdraw what `agreed_by` has agreed to (D8).

    A child's consent may be withdrawn by any parent, foster parent or guardian of that child, and by the child once it
    is entitled to. Who agreed for themselves withdraw for themselves; if that was a child, a parent may too.
    """
    if by.given_by is GivenBy.SELF:
        return agreed_by.given_by is GivenBy.SELF or by.of_age
    return agreed_by.on_behalf_of in {"", by.on_behalf_of}


def of_minor(recording: Recording, guardian_agreed: bool) -> Decision:
    """What the agent's remark that the caller is a minor does to a consent recording (D8).

    Raises RightsError for a recording on another basis: there the disposition decides (D9).
    """
    if recording.kind is not BasisKind.CONSENT:
        raise RightsError(
            "This recording does not rest on consent", hint="Say in its disposition that the caller is a minor (D9)"
        )
    if guardian_agreed:
        return _untouched(recording, Why.GUARDIAN_AGREED)
    return _untouched(recording, Why.ALREADY_ERASED) if recording.erased else _goes(recording, Why.MINOR)


def _decide(revocation: Revocation, recording: Recording) -> Decision:
    if why := _not_covered(revocation, recording):
        return _untouched(recording, why)
    if revocation.identification is not Identification.VERIFIED:
        return _waits(recording, Why.NOT_IDENTIFIED_YET)
    return _goes(recording, Why.WITHDRAWN)


def _not_covered(revocation: Revocation, recording: Recording) -> Why | None:
    """Why the revocation leaves the recording alone, the first reason that holds; None if it doesn't."""
    reasons = {
        Why.STATUTORY: recording.kind is not BasisKind.CONSENT,
        Why.ALREADY_ERASED: recording.erased,
        Why.NOT_MEANT: revocation.recording_id not in {None, recording.recording_id},
        Why.NOT_IDENTIFIED: revocation.identification is Identification.FAILED,
        Why.NOT_ENTITLED: not may_revoke(recording.agreed_by, revocation.by),
        Why.AGREED_LATER: recording.agreed is not None and recording.agreed > revocation.receipt,
    }
    return next((why for why, holds in reasons.items() if holds), None)


def _goes(recording: Recording, why: Why) -> Decision:
    """Erased, as far as no hold is in the way."""
    if recording.held:
        return _waits(recording, Why.HELD)
    return Decision(recording.recording_id, Fate.ERASE, why, stop=recording.running, blocked=True)


def _waits(recording: Recording, why: Why) -> Decision:
    """Frozen: nothing more is recorded, and nobody listens."""
    return Decision(recording.recording_id, Fate.WAITS, why, stop=recording.running, blocked=True)


def _untouched(recording: Recording, why: Why) -> Decision:
    return Decision(recording.recording_id, Fate.NOT_TOUCHED, why)
