"""Working days, and the deadlines that are counted in them.

A day is a calendar day in the operator's time zone. The day of receipt is not counted: an e-mail that arrives at 23:59
counts for the day that is ending. A period ends at 23:59:59 local time of its last day (Regulation 1182/71, article
3(1) to (3)); where that second exists twice, at the first of the two.

Working days are all but the weekend, the country's public holidays and the operator's extra days off. The holidays are
those of the `holidays` library in its category PUBLIC: days that have a name but are worked on (in Slovenia 8 June, 17
August, 15 and 23 September, 25 October and 23 November) are no days off. Days that a special act adds (Slovenia's 14
August 2023) or takes are configured where the library does not have them yet.

    C4        deadline(received, 5)             the end of the 5th working day after receipt
    E1, E2    response_due(received, 1 or 3)    the same date so many months on, or the month's last day; if that is no
                                                working day, the next one (Regulation 1182/71, article 3(4))
    E15, E16  due_in_days(received, 15)         so many days on, moved in the same way

These are times in which somebody must act. How long a recording may be kept is another matter and never moves to a
later day: see rights/retention.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import lru_cache
from importlib import metadata
from typing import Any

import holidays
from dateutil.relativedelta import relativedelta

from callrec.errors import ConfigError
from callrec.rights.retention import tzdata_version, zone_of

WEEKEND = frozenset({5, 6})  # Saturday and Sunday, as date.weekday() counts; S004:322 counts Saturday as not worked
_WEEK = 7
_DAY = timedelta(days=1)
_LAST_SECOND = time(23, 59, 59)


class Unit(StrEnum):
    """What a period is counted in."""

    WORKING_DAYS = "working_days"
    DAYS = "days"
    MONTHS = "months"


@dataclass(frozen=True, slots=True)
class Deadline:
    """An instant, and all that it was computed from: enough to compute it again when the calendar has changed.

    `non_working` are all days off, weekends too, after the day of receipt and up to the deadline.
    """

    at: datetime  # UTC
    received: datetime  # aware
    unit: Unit
    count: int
    country: str  # ISO 3166-1 alpha-2
    timezone: str  # IANA name
    tzdata: str  # which zone rules, as retention.tzdata_version() says it
    holiday_data: str  # which edition of the holidays, such as "holidays 0.109"
    non_working: tuple[date, ...]

    def recompute(self) -> datetime:
        """The instant that follows from the inputs, in UTC: `at`, unless someone has changed one of them.

        Only the rules of the time zone are taken from this machine. Raises ConfigError if it doesn't know the zone.
        """
        off = frozenset(self.non_working)
        first = local_day(self.received, self.timezone)
        return day_ends(_last_day(first, self.unit, self.count, lambda day: day not in off), self.timezone)

    def as_record(self) -> dict[str, str | int | list[str]]:
        """Plain values for a ledger entry or a JSON column; times are ISO 8601 in UTC, days are ISO 8601 dates."""
        return {
            "at": self.at.isoformat(),
            "received": self.received.astimezone(UTC).isoformat(),
            "unit": self.unit.value,
            "count": self.count,
            "country": self.country,
            "timezone": self.timezone,
            "tzdata": self.tzdata,
            "holiday_data": self.holiday_data,
            "non_working": [day.isoformat() for day in self.non_working],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Deadline":
        """What as_record() gave, read back; `at` as it was recorded. KeyError or ValueError for anything else."""
        return cls(
            at=datetime.fromisoformat(record["at"]),
            received=datetime.fromisoformat(record["received"]),
            unit=Unit(record["unit"]),
            count=int(record["count"]),
            country=record["country"],
            timezone=record["timezone"],
            tzdata=record["tzdata"],
            holiday_data=record["holiday_data"],
            non_working=tuple(date.fromisoformat(day) for day in record["non_working"]),
        )


@dataclass(frozen=True, slots=True)
class Calendar:
    """The working days of one operator.

    An extra working day is worked even on a weekend or a holiday. Raises ConfigError for a country that `holidays`
    doesn't have, an unknown zone, a day that is both extra on and extra off, and a week without a working day.
    """

    country: str  # ISO 3166-1 alpha-2
    timezone: str  # IANA name
    weekend: frozenset[int] = WEEKEND  # as date.weekday() counts: Monday is 0
    extra_non_working: frozenset[date] = frozenset()
    extra_working: frozenset[date] = frozenset()

    def __post_init__(self) -> None:
        zone_of(self.timezone)
        _entity(self.country)
        if both := sorted(self.extra_non_working & self.extra_working):
            days = ", ".join(day.isoformat() for day in both)
            raise ConfigError("A day is both off and worked", detail=days, hint="Take it out of one of the two lists")
        if self.weekend >= frozenset(range(_WEEK)):
            raise ConfigError("Every day is a weekend", hint="Name the days on which nobody works")

    def is_working(self, day: date) -> bool:
        """Whether people work on `day`. Raises ConfigError for a year that the holiday data does not reach."""
        if day in self.extra_working:
            return True
        return not (
            day.weekday() in self.weekend
            or day in self.extra_non_working
            or day in _public_holidays(self.country, day.year)
        )

    def working_day(self, received: datetime, n: int) -> date:
        """The n-th working day after the local day of receipt: with n = 3 the day of the alarm (C4).

        `received` is aware, n at least 1; ValueError otherwise. day_begins() and day_ends() make an instant of it.
        """
        return _last_day(local_day(received, self.timezone), Unit.WORKING_DAYS, n, self.is_working)

    def deadline(self, received: datetime, working_days: int) -> Deadline:
        """The end of the n-th working day after the local day of receipt (C4, E15)."""
        return self._deadline(received, Unit.WORKING_DAYS, working_days)

    def response_due(self, received: datetime, months: int = 1) -> Deadline:
        """By when a request is answered: one month (E1), three from receipt when it was extended by two (E2)."""
        return self._deadline(received, Unit.MONTHS, months)

    def due_in_days(self, received: datetime, days: int) -> Deadline:
        """The end of a period of calendar days: 15 for a complaint about a decision, or an objection (E15, E16)."""
        return self._deadline(received, Unit.DAYS, days)

    def _deadline(self, received: datetime, unit: Unit, count: int) -> Deadline:
        first = local_day(received, self.timezone)
        last = _last_day(first, unit, count, self.is_working)
        span = (first + timedelta(days=n) for n in range(1, (last - first).days + 1))
        return Deadline(
            at=day_ends(last, self.timezone),
            received=received,
            unit=unit,
            count=count,
            country=self.country,
            timezone=self.timezone,
            tzdata=tzdata_version(self.timezone),
            holiday_data=holiday_data(),
            non_working=tuple(day for day in span if not self.is_working(day)),
        )


def local_day(instant: datetime, timezone: str) -> date:
    """The operator's calendar day at `instant`, which is aware; ValueError if not."""
    if instant.tzinfo is None:
        raise ValueError("a time of receipt needs a time zone")
    return instant.astimezone(zone_of(timezone)).date()


def day_begins(day: date, timezone: str) -> datetime:
    """The first instant of a local day, in UTC."""
    return _instant(day, time(), timezone)


def day_ends(day: date, timezone: str) -> datetime:
    """23:59:59 of a local day, in UTC."""
    return _instant(day, _LAST_SECOND, timezone)


def holiday_data() -> str:
    """Which edition of the public holidays this process uses."""
    return f"holidays {metadata.version('holidays')}"


def _instant(day: date, wall: time, timezone: str) -> datetime:
    """A wall time in UTC; of two readings the earlier, so that a deadline is never later than promised."""
    local = datetime.combine(day, wall, tzinfo=zone_of(timezone))
    return min(local.replace(fold=fold).astimezone(UTC) for fold in (0, 1))


def _last_day(first: date, unit: Unit, count: int, is_working: Callable[[date], bool]) -> date:
    """The last day of a period that began on `first`, which is not counted."""
    if count < 1:
        raise ValueError("a period has at least one day")
    if unit is Unit.WORKING_DAYS:
        day = first
        for _ in range(count):
            day = _next_working(day + _DAY, is_working)
        return day
    return _next_working(
        first + (relativedelta(months=count) if unit is Unit.MONTHS else timedelta(days=count)), is_working
    )


def _next_working(day: date, is_working: Callable[[date], bool]) -> date:
    """`day`, or the next working day."""
    while not is_working(day):
        day += _DAY
    return day


@lru_cache(maxsize=64)
def _public_holidays(country: str, year: int) -> frozenset[date]:
    known = _entity(country)
    if not known.start_year <= year <= known.end_year:
        raise ConfigError(
            f"The public holidays of {country} in {year} are not known",
            detail=f"{holiday_data()} has {known.start_year} to {known.end_year}",
        )
    return frozenset(holidays.country_holidays(country, years=year, categories=holidays.PUBLIC))


@lru_cache(maxsize=8)
def _entity(country: str) -> holidays.HolidayBase:
    if country not in holidays.list_supported_countries(include_aliases=True):
        raise ConfigError(
            f"The public holidays of {country!r} are not known",
            detail=f"{holiday_data()} has no such country",
            hint="Give the ISO 3166-1 code of the operator's country, such as SI",
        )
    return holidays.country_holidays(country, categories=holidays.PUBLIC)
