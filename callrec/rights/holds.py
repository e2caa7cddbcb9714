"""Holds: a recording that may not go yet, and that nobody may listen to meanwhile.

A hold says why, for which case, who answers for it and when it is looked at again (E17): none is without end, though
none ends by itself either, because a hold that lapses unseen loses evidence. While it stands the recording is not
played but for the purposes that the operator excepts, its expiry is suspended (E11), and an erasure waits or is
refused, by `meets`. When the last hold is released, what was due goes on.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from callrec.errors import ConflictError, RightsError


class HoldReason(StrEnum):
    """Why a recording has to stay."""

    COURT_ORDER = "court_order"
    AUTHORITY_REQUEST = "authority_request"
    DISPUTE = "dispute"  # a claim, a complaint, an objection filed by telephone (E16)
    RESTRICTION = "restriction"  # asked for by the person (E11; GDPR article 18)


class Cause(StrEnum):
    """Why a recording has to go."""

    REVOCATION = "revocation"  # D1-D5
    DISPOSITION = "disposition"  # a kind of call that may not be kept (B2, B3), or none was given in time
    MINOR = "minor"  # consent or a sale without the guardian (D8, D9)
    EXPIRY = "expiry"  # C1, C2
    NO_LONGER_NEEDED = "no_longer_needed"  # C3
    ORDER = "order"  # an authority's or a court's


class Meeting(StrEnum):
    """What an erasure does when it meets a hold."""

    WAITS = "waits"  # stays due, and goes on when the hold is released
    REFUSED = "refused"  # is not taken on: someone has to choose first


# What the law or the caller set going waits. What somebody orders today is refused, because two orders contradict each
# other and whoever gives the second has to know of the first: release the hold, then erase.
_REFUSED = frozenset({Cause.NO_LONGER_NEEDED, Cause.ORDER})


@dataclass(frozen=True, slots=True)
class Hold:
    """One reason why one recording stays."""

    id: UUID
    reason: HoldReason
    case: str  # the file's reference; no name and no number
    owner: str  # who answers for it
    placed_at: datetime  # aware
    review_at: datetime  # aware; when the owner has to look at it again
    reviews: int = 0


def meets(cause: Cause) -> Meeting:
    """What an erasure for `cause` does when it meets a hold, of whatever reason."""
    return Meeting.REFUSED if cause in _REFUSED else Meeting.WAITS


def place(
    hold_id: UUID,
    reason: HoldReason,
    *,
    case: str,
    owner: str,
    placed_at: datetime,
    review_at: datetime,
    longest: timedelta,
    erasure_begun: bool,
) -> Hold:
    """A new hold.

    `longest` is the operator's longest time to a review. Raises RightsError without a case, an owner or a review date
    within it, and ConflictError when the recording's key is already gone (`erasure_begun`): nothing could be held.
    """
    if erasure_begun:
        raise ConflictError(
            "This recording can't be held",
            detail="its key has been deleted, so it can't be heard any more",
            hint="Tell whoever asked for the hold, with the ledger's entry of the erasure",
        )
    _named("case", case)
    _named("owner", owner)
    _in_time(placed_at, review_at, longest)
    return Hold(hold_id, reason, case.strip(), owner.strip(), placed_at, review_at)


def review(hold: Hold, *, at: datetime, review_at: datetime, longest: timedelta) -> Hold:
    """The hold after its owner has looked at it and set the next date (E17). Raises RightsError as `place` does."""
    _in_time(at, review_at, longest)
    return replace(hold, review_at=review_at, reviews=hold.reviews + 1)


def overdue(holds: Iterable[Hold], now: datetime) -> tuple[Hold, ...]:
    """Those whose review date has come. They stand on, and someone has to be told."""
    return tuple(hold for hold in holds if hold.review_at <= now)


def check_release(hold: Hold, *, why: str, at: datetime, person_told_at: datetime | None = None) -> None:
    """Raises RightsError where `hold` may not be released at `at` (aware).

    A release says why. The person who asked for a restriction is told before it is lifted (E11; GDPR article 18(3)).
    """
    _named("reason for the release", why)
    if hold.reason is HoldReason.RESTRICTION and (person_told_at is None or person_told_at > at):
        raise RightsError(
            "The restriction can't be lifted yet",
            detail="the person who asked for it has to be told before (E11)",
            hint="Tell them, then release it with the time at which they were told",
        )


def _named(what: str, value: str) -> None:
    if not value.strip():
        raise RightsError(f"The hold has no {what}", hint=f"Give the {what}")


def _in_time(since: datetime, review_at: datetime, longest: timedelta) -> None:
    if not since < review_at <= since + longest:
        raise RightsError(
            "The review date of the hold is not usable",
            detail=f"a hold is looked at again within {longest.days} days, and none is without end (E17)",
            hint=f"Give a date after {since:%Y-%m-%d} and up to {since + longest:%Y-%m-%d}",
        )
