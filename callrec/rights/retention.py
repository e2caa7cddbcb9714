"""Until when a recording is kept.

The period is counted on the calendar, never in days: from the date of the start in the operator's time zone, by years
and months, clamped to the last day of a shorter month (C1: 29 Feb 2028 + 3 years = 28 Feb 2031; C2: 30 Nov 2026 + 3
months = 28 Feb 2027). The wall time of the start is kept, and the result is converted to UTC once. Where that wall time
does not exist (the hour skipped in spring) or exists twice (autumn) the earlier instant is taken, and fractions of a
second are dropped: a lock never ends after the promised period.
"""

import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from dateutil.relativedelta import relativedelta

from callrec.call.policy import Retention
from callrec.errors import ConfigError


def retain_until(start: datetime, retention: Retention, timezone: str) -> datetime:
    """The instant, in UTC and whole seconds, at which a recording that began at `start` has to go.

    `start` is aware (any zone), `timezone` an IANA name such as Europe/Ljubljana. Raises ConfigError for an unknown
    zone and for a period that is not positive, ValueError for a start without a zone.
    """
    if start.tzinfo is None:
        raise ValueError("the start of a recording needs a time zone")
    if retention.years < 0 or retention.months < 0 or not (retention.years or retention.months):
        raise ConfigError(
            "A retention period is not positive",
            detail=f"{retention.years} years, {retention.months} months",
            hint="Give years, months or both",
        )
    zone = zone_of(timezone)
    local = start.astimezone(zone)
    due = local.date() + relativedelta(years=retention.years, months=retention.months)
    wall = datetime.combine(due, local.time().replace(microsecond=0, fold=0), tzinfo=zone)
    return min(wall.replace(fold=fold).astimezone(UTC) for fold in (0, 1))


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a retention date was computed from, kept with it so that anyone can compute it again."""

    start: datetime  # aware
    retention: Retention
    timezone: str  # IANA name
    tzdata: str  # which edition of the zone rules, as tzdata_version() says it

    @classmethod
    def of(cls, start: datetime, retention: Retention, timezone: str) -> "Inputs":
        """The inputs as they hold now, with the zone rules of this machine."""
        return cls(start, retention, timezone, tzdata_version(timezone))

    def until(self) -> datetime:
        """The date that follows from these inputs, in UTC."""
        return retain_until(self.start, self.retention, self.timezone)

    def as_record(self) -> dict[str, str | int]:
        """Plain values for a ledger entry or a JSON column; times are ISO 8601 in UTC."""
        return {
            "start": self.start.astimezone(UTC).isoformat(),
            "years": self.retention.years,
            "months": self.retention.months,
            "timezone": self.timezone,
            "tzdata": self.tzdata,
            "until": self.until().isoformat(),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, str | int]) -> "Inputs":
        """What as_record() gave, read back."""
        return cls(
            start=datetime.fromisoformat(str(record["start"])),
            retention=Retention(years=int(record["years"]), months=int(record["months"])),
            timezone=str(record["timezone"]),
            tzdata=str(record["tzdata"]),
        )


@lru_cache(maxsize=16)
def tzdata_version(timezone: str) -> str:
    """Which zone rules this process uses for `timezone`: "system 2025b" or "package 2025b"; "system" if unnamed.

    zoneinfo takes the system's directory before the tzdata package (PEP 615), so the package's version alone may name
    rules that were not used.
    """
    for directory in map(Path, zoneinfo.TZPATH):
        if (directory / timezone).is_file():
            return f"system {_system_version(directory)}".rstrip()
    try:
        return f"package {metadata.version('tzdata')}"
    except metadata.PackageNotFoundError:
        return "unknown"


def _system_version(directory: Path) -> str:
    """The IANA edition in a zoneinfo directory: tzdata.zi opens with `# version 2025b`; empty where it has none."""
    try:
        with (directory / "tzdata.zi").open(encoding="ascii", errors="replace") as rules:
            words = rules.readline(64).split()
    except OSError:
        return ""
    return words[2] if words[:2] == ["#", "version"] and len(words) > 2 else ""  # noqa: PLR2004 # the word behind them


def zone_of(timezone: str) -> zoneinfo.ZoneInfo:
    """The zone of an IANA name. Raises ConfigError if there is none."""
    try:
        return zoneinfo.ZoneInfo(timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"There is no time zone {timezone!r}", hint="Give an IANA name, such as Europe/Ljubljana"
        ) from error
