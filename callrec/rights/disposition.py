"""What kind of call it was, as the agent says afterwards, and what that does to a recording on a statutory basis.

    order, change, cancellation, complaint_objection    permitted kinds (B1): sealed, COMPLIANCE until its date
    general_information, no_transaction                 not to be kept (B2, B3): erased

A kind is said once. The same again is harmless; a different one is refused with what stands, because sealing and
erasing can't be taken back. On a consent recording a kind is refused: no basis is changed afterwards (A9). A minor's
order, or change of one, needs the guardian's written consent, or it is no transaction (D9).

When nobody says anything, somebody is told after the operator's time, and after as much time as the operator gives them
the configured outcome follows (B3).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from callrec.call.policy import BasisKind
from callrec.rights.holds import Cause


class Disposition(StrEnum):
    ORDER = "order"
    CHANGE = "change"
    CANCELLATION = "cancellation"
    COMPLAINT_OBJECTION = "complaint_objection"
    GENERAL_INFORMATION = "general_information"
    NO_TRANSACTION = "no_transaction"

    @property
    def seals(self) -> bool:
        """Whether such a call may be kept as evidence of a transaction (B1)."""
        return self not in {Disposition.GENERAL_INFORMATION, Disposition.NO_TRANSACTION}


@dataclass(frozen=True, slots=True)
class Said:
    """What the agent's desktop sends."""

    disposition: Disposition
    minor: bool = False  # the caller is under age
    guardian_consent: str = ""  # reference of the written consent, opaque

    @property
    def effective(self) -> Disposition:
        """What it amounts to: what a minor may not do alone is no transaction (D9)."""
        binds = self.disposition in {Disposition.ORDER, Disposition.CHANGE}
        alone = self.minor and not self.guardian_consent.strip()
        return Disposition.NO_TRANSACTION if binds and alone else self.disposition


@dataclass(frozen=True, slots=True)
class Seal:
    """Keep it as evidence: COMPLIANCE until the date of its retention, as soon as it is stored."""

    disposition: Disposition


@dataclass(frozen=True, slots=True)
class Erase:
    """It may not be kept."""

    disposition: Disposition
    cause: Cause


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The same was said before."""

    standing: Disposition


class Refusal(StrEnum):
    CONSENT_BASIS = "consent_basis"  # A9
    ANOTHER_STANDS = "another_stands"
    ERASED = "erased"


@dataclass(frozen=True, slots=True)
class Refused:
    """It contradicts what stands (HTTP 409)."""

    refusal: Refusal
    standing: Disposition | None = None


Outcome = Seal | Erase | Unchanged | Refused


def decide(kind: BasisKind, said: Said, standing: Disposition | None, *, erasing: bool) -> Outcome:
    """What `said` does to a recording on a basis of `kind`.

    `standing` is what holds so far, as Said.effective gave it. `erasing`: its erasure has begun, for whatever cause.
    A hold changes nothing here: the erasure meets it.
    """
    effective = said.effective
    if kind is BasisKind.CONSENT:
        return Refused(Refusal.CONSENT_BASIS)
    if standing is not None:
        return Unchanged(standing) if standing is effective else Refused(Refusal.ANOTHER_STANDS, standing)
    if erasing:
        return Refused(Refusal.ERASED)
    if effective.seals:
        return Seal(effective)
    return Erase(effective, Cause.DISPOSITION if effective is said.disposition else Cause.MINOR)


class Unsaid(StrEnum):
    """What the operator wants of a recording that nobody said anything about (B3)."""

    ERASE = "erase"
    ASK = "ask"  # the data-protection officer decides; it stays unsealed until then


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the operator waits."""

    escalate_after: timedelta  # from the end of the call: D hours
    decide_after: timedelta  # from the escalation
    outcome: Unsaid


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until`; None: only a person ends this."""

    until: datetime | None


@dataclass(frozen=True, slots=True)
class Escalate:
    """Tell somebody now, and that the outcome follows at `outcome_at` unless they act."""

    outcome_at: datetime


def unsaid(
    ended_at: datetime, escalated_at: datetime | None, now: datetime, patience: Patience
) -> Wait | Escalate | Erase:
    """What is due of a statutory recording without a disposition; all times are aware.

    The outcome never comes before the escalation and its time: a sweeper that was down for a week escalates first.
    """
    if escalated_at is None:
        due = ended_at + patience.escalate_after
        return Wait(due) if now < due else Escalate(now + patience.decide_after)
    due = escalated_at + patience.decide_after
    if patience.outcome is Unsaid.ASK:
        return Wait(None)
    return Wait(due) if now < due else Erase(Disposition.NO_TRANSACTION, Cause.DISPOSITION)
