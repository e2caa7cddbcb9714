"""Retention is counted on the calendar, in the operator's zone (C1, C2)."""

from calendar import monthrange
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callrec.call.policy import Retention
from callrec.errors import ConfigError
from callrec.rights.retention import Inputs, retain_until, tzdata_version

ZONE = "Europe/Ljubljana"
LOCAL = ZoneInfo(ZONE)
THREE_YEARS = Retention(years=3)
THREE_MONTHS = Retention(months=3)


def local(*parts, fold=0):
    return datetime(*parts, tzinfo=LOCAL, fold=fold)


def test_c1_three_years_from_a_leap_day_end_on_the_28th():
    assert retain_until(local(2028, 2, 29, 12), THREE_YEARS, ZONE) == local(2031, 2, 28, 12)


def test_c2_three_months_from_30_november_end_on_28_february():
    assert retain_until(local(2026, 11, 30, 9, 15), THREE_MONTHS, ZONE) == local(2027, 2, 28, 9, 15)


def test_summer_and_winter_time_keep_the_wall_time():
    assert retain_until(local(2026, 9, 1, 10), THREE_MONTHS, ZONE) == datetime(2026, 12, 1, 9, tzinfo=UTC)


def test_a_wall_time_that_does_not_exist_takes_the_earlier_instant():
    # 28 Mar 2027 02:30 is skipped: read with summer time it is 00:30 UTC, with winter time 01:30 UTC.
    until = retain_until(local(2026, 12, 28, 2, 30), THREE_MONTHS, ZONE)
    assert until == datetime(2027, 3, 28, 0, 30, tzinfo=UTC)


def test_a_wall_time_that_exists_twice_takes_the_earlier_instant():
    # 31 Oct 2027 02:30 is 00:30 UTC in summer time and 01:30 UTC in winter time.
    until = retain_until(local(2027, 7, 31, 2, 30), THREE_MONTHS, ZONE)
    assert until == datetime(2027, 10, 31, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize("fold", [0, 1])
def test_a_start_in_the_doubled_hour_ends_at_its_wall_time(fold):
    until = retain_until(local(2026, 10, 25, 2, 30, fold=fold), THREE_MONTHS, ZONE)
    assert until == local(2027, 1, 25, 2, 30)


def test_the_local_date_counts_not_that_of_utc():
    start = datetime(2026, 11, 29, 23, 30, tzinfo=UTC)  # 30 November 00:30 in Ljubljana
    assert retain_until(start, THREE_MONTHS, ZONE) == local(2027, 2, 28, 0, 30)
    start = datetime(
        2026, 5, 31, 22, 30, tzinfo=UTC
    )  # 1 June 00:30 in Ljubljana; by the UTC date it would be 31 August
    assert retain_until(start, THREE_MONTHS, ZONE) == local(2026, 9, 1, 0, 30)


def test_a_fraction_of_a_second_never_lengthens_the_lock():
    start = datetime(2026, 11, 30, 8, 0, 0, 999_999, tzinfo=UTC)
    assert retain_until(start, THREE_MONTHS, ZONE) == datetime(2027, 2, 28, 8, tzinfo=UTC)


@given(
    start=st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 # bounds
    years=st.integers(0, 30),
    months=st.integers(0, 24),
    zone=st.sampled_from([ZONE, "UTC", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"]),
)
def test_the_date_is_the_calendar_date_and_the_lock_is_never_too_long(start, years, months, zone):
    if not years and not months:
        months = 1
    until = retain_until(start, Retention(years=years, months=months), zone)
    began = start.astimezone(ZoneInfo(zone)).replace(tzinfo=None, microsecond=0)
    wall = until.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    count = began.year * 12 + began.month - 1 + years * 12 + months
    year, month = count // 12, count % 12 + 1
    promised = began.replace(year=year, month=month, day=min(began.day, monthrange(year, month)[1]))
    assert until.tzinfo is UTC
    # A skipped wall time (an hour in spring, a whole day in Apia) is the only way for the clock to read otherwise.
    exists = (
        promised.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        == promised
    )
    assert wall == promised if exists else promised - timedelta(days=1) <= wall < promised


def test_the_inputs_recompute_the_date():
    inputs = Inputs.of(local(2026, 11, 30, 9, 15), THREE_MONTHS, ZONE)
    record = inputs.as_record()
    assert record["until"] == "2027-02-28T08:15:00+00:00"
    assert record["tzdata"] == tzdata_version(ZONE)
    assert record["tzdata"] not in {"", "unknown"}
    again = Inputs.from_record(record)
    assert again.until() == inputs.until()
    assert again.as_record() == record


@pytest.mark.parametrize("zone", ["Europe/Ljubljanna", "", "../../etc/passwd"])
def test_an_unknown_zone_is_a_configuration_fault(zone):
    with pytest.raises(ConfigError, match="time zone"):
        retain_until(local(2026, 1, 1), THREE_YEARS, zone)


@pytest.mark.parametrize("retention", [Retention(), Retention(years=-1), Retention(years=1, months=-1)])
def test_a_period_has_to_be_positive(retention):
    with pytest.raises(ConfigError, match="not positive"):
        retain_until(local(2026, 1, 1), retention, ZONE)


def test_a_start_without_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        retain_until(datetime(2026, 1, 1), THREE_YEARS, ZONE)  # noqa: DTZ001 # that is the fault
