"""What the operator promises, and gives itself, in time: dispositions, holds, evidence (B3, E17, C6)."""

from dataclasses import dataclass
from datetime import date, timedelta

from callrec.call.policy import Retention
from callrec.lines import read_retention
from callrec.rights.disposition import Patience, Unsaid
from callrec.strict_toml import Table, quoted

_HOURS = 24 * 365
EVIDENCE = Retention(years=3)  # what holds where nothing is said


@dataclass(frozen=True, slots=True)
class Terms:
    """`patience` with calls that nobody classified, and the longest time between two reviews of a hold.

    `evidence`: how long the bodies of a call's entries are kept when its recording is gone, each period by the day from
    which it holds for what goes then; the first holds since ever.
    """

    patience: Patience
    longest_hold: timedelta
    evidence: tuple[tuple[date, Retention], ...] = ((date.min, EVIDENCE),)


def read(dispositions: Table, holds: Table, evidence: Table) -> Terms:
    """The tables [dispositions], [holds] and [evidence]; each may be left out."""
    outcome = dispositions.text("without", "erase", wanted='"erase" or "ask"', pattern="|".join(Unsaid))
    return Terms(
        Patience(
            escalate_after=timedelta(hours=dispositions.integer("escalate_after_hours", 24, 1, _HOURS)),
            decide_after=timedelta(hours=dispositions.integer("decide_after_hours", 24, 1, _HOURS)),
            outcome=Unsaid(outcome or "erase"),
        ),
        longest_hold=timedelta(days=holds.integer("longest_review_days", 90, 1, 366)),
        evidence=_evidence(evidence),
    )


def _evidence(table: Table) -> tuple[tuple[date, Retention], ...]:
    """Never without an end: a period has 30 years at most."""
    periods = {date.min: read_retention(table) if table.has("retention") else EVIDENCE}
    for day, later in (table.tables("since") if table.has("since") else {}).items():
        period = read_retention(later)
        try:
            periods[date.fromisoformat(day)] = period
        except ValueError:
            table.fault("since", f"has {quoted(day)}, no date", how=f"Write [{table.at('since')}.2027-01-01]")
    return tuple(sorted(periods.items(), key=lambda period: period[0]))
