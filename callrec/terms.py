"""What the operator promises, and gives itself, in time: dispositions and holds (B3, E17)."""

from dataclasses import dataclass
from datetime import timedelta

from callrec.rights.disposition import Patience, Unsaid
from callrec.strict_toml import Table

_HOURS = 24 * 365


@dataclass(frozen=True, slots=True)
class Terms:
    """`patience` with calls that nobody classified, and the longest time between two reviews of a hold."""

    patience: Patience
    longest_hold: timedelta


def read(dispositions: Table, holds: Table) -> Terms:
    """The tables [dispositions] and [holds]; both may be left out."""
    outcome = dispositions.text("without", "erase", wanted='"erase" or "ask"', pattern="|".join(Unsaid))
    return Terms(
        Patience(
            escalate_after=timedelta(hours=dispositions.integer("escalate_after_hours", 24, 1, _HOURS)),
            decide_after=timedelta(hours=dispositions.integer("decide_after_hours", 24, 1, _HOURS)),
            outcome=Unsaid(outcome or "erase"),
        ),
        longest_hold=timedelta(days=holds.integer("longest_review_days", 90, 1, 366)),
    )
