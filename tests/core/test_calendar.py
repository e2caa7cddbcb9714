"""Deadlines are counted in the operator's working days, and can be counted again years later (C4, E1, E2, E15, E16)."""

import json
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workalendar.europe import Slovenia

from callrec.errors import ConfigError
from callrec.rights import calendar as module
from callrec.rights.calendar import Calendar, Deadline, Unit, day_begins, day_ends, holiday_data, local_day

ZONE = "Europe/Ljubljana"
LOCAL = ZoneInfo(ZONE)
SI = Calendar("SI", ZONE)
ALL_DAYS = [date(2024, 1, 1) + timedelta(days=n) for n in range((date(2031, 1, 1) - date(2024, 1, 1)).days)]
# Where the two libraries are known to differ on Slovenia. workalendar has had no release since 2023.
WORKALENDAR_LACKS = {date(2023, 8, 14)}  # dan solidarnosti, by a special act after the floods
RECEIVED = st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 # bounds


def local(*parts, fold=0):
    return datetime(*parts, tzinfo=LOCAL, fold=fold)


def end_of(*parts):
    return local(*parts, 23, 59, 59)


@pytest.mark.parametrize(
    ("received", "due"),
    [
        (local(2026, 12, 24, 10), (2027, 1, 4)),
        (local(2026, 4, 30, 10), (2026, 5, 8)),
        (local(2025, 12, 23, 10), (2026, 1, 5)),
        (local(2026, 12, 26, 10), (2027, 1, 4)),  # on a holiday that is a Saturday
        (local(2030, 12, 24, 10), (2031, 1, 6)),  # the longest of these years: 13 days
    ],
)
def test_c4_the_fifth_working_day_after_receipt(received, due):
    deadline = SI.deadline(received, 5)
    assert deadline.at == end_of(*due)
    assert deadline.at.tzinfo is UTC


def test_c4_an_email_at_2359_counts_for_that_day_and_a_minute_later_for_the_next():
    # Thursday 11 June 2026, and Friday.
    assert SI.deadline(local(2026, 6, 11, 23, 59), 5).at == end_of(2026, 6, 18)
    assert SI.deadline(local(2026, 6, 12, 0, 0), 5).at == end_of(2026, 6, 19)
    assert SI.deadline(datetime(2026, 6, 11, 22, 0, tzinfo=UTC), 5).at == end_of(2026, 6, 19)  # midnight in Ljubljana


def test_c4_the_alarm_is_on_the_third_working_day():
    assert SI.working_day(local(2026, 12, 24, 10), 3) == date(2026, 12, 30)
    assert day_begins(date(2026, 12, 30), ZONE) == datetime(2026, 12, 29, 23, tzinfo=UTC)


def test_named_days_that_are_worked_on_are_no_days_off():
    for day in [(2026, 6, 8), (2026, 8, 17), (2026, 9, 15), (2026, 9, 23), (2026, 11, 23)]:
        assert SI.is_working(date(*day)), day


def test_a_day_off_by_special_act_is_one():
    assert not SI.is_working(date(2023, 8, 14))
    assert SI.deadline(local(2023, 8, 11, 9), 1).at == end_of(2023, 8, 16)


def test_summer_time_ends_and_begins_within_the_period():
    # 29 March and 25 October 2026 are the Sundays on which the clocks change.
    assert SI.deadline(local(2026, 3, 26, 12), 2).at == datetime(2026, 3, 30, 21, 59, 59, tzinfo=UTC)
    assert SI.deadline(local(2026, 10, 22, 12), 2).at == datetime(2026, 10, 26, 22, 59, 59, tzinfo=UTC)
    # Sunday 25 October 02:30 exists twice; either way it is that Sunday.
    for fold in (0, 1):
        assert SI.deadline(local(2026, 10, 25, 2, 30, fold=fold), 1).at == end_of(2026, 10, 26)


def test_where_the_last_second_exists_twice_the_first_counts():
    # Until 2019 Brazil ended its summer time at midnight: 17 February 2018 had 23:59:59 twice.
    assert day_ends(date(2018, 2, 17), "America/Sao_Paulo") == datetime(2018, 2, 18, 1, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("received", "months", "due"),
    [
        ((2027, 1, 31), 1, (2027, 3, 1)),  # no 31 February; the 28th is a Sunday
        ((2026, 11, 25), 1, (2026, 12, 28)),  # Christmas is a Friday
        ((2026, 12, 1), 1, (2027, 1, 4)),
        ((2027, 1, 31), 3, (2027, 4, 30)),  # extended: clamped from the day of receipt, not from 1 March
        ((2026, 11, 25), 3, (2027, 2, 25)),
        ((2028, 1, 31), 1, (2028, 2, 29)),
        ((2026, 1, 15), 1, (2026, 2, 16)),
    ],
)
def test_e1_e2_an_answer_is_due_on_the_same_date_or_the_next_working_day(received, months, due):
    assert SI.response_due(local(*received, 12), months).at == end_of(*due)


def test_e15_e16_calendar_days_end_on_a_working_day():
    assert SI.due_in_days(local(2026, 6, 1, 9), 15).at == end_of(2026, 6, 16)
    assert SI.due_in_days(local(2026, 12, 10, 9), 15).at == end_of(2026, 12, 28)
    assert SI.deadline(local(2026, 12, 28, 9), 5).at == end_of(2027, 1, 5)


def test_configured_days_off_and_on():
    received = local(2026, 6, 11, 9)  # a Thursday
    closed = Calendar("SI", ZONE, extra_non_working=frozenset({date(2026, 6, 12)}))
    assert closed.deadline(received, 1).at == end_of(2026, 6, 15)
    open_on_saturday = Calendar("SI", ZONE, extra_working=frozenset({date(2026, 6, 13)}))
    assert open_on_saturday.deadline(received, 2).at == end_of(2026, 6, 13)
    open_at_christmas = Calendar("SI", ZONE, extra_working=frozenset({date(2026, 12, 25)}))
    assert open_at_christmas.deadline(local(2026, 12, 24, 9), 1).at == end_of(2026, 12, 25)
    six_days = Calendar("SI", ZONE, weekend=frozenset({6}))
    assert six_days.deadline(received, 2).at == end_of(2026, 6, 13)


def differences(n):
    """Days of receipt for which workalendar has another n-th working day."""
    other = Slovenia()
    return [
        day
        for day in ALL_DAYS
        if SI.working_day(datetime.combine(day, time(12), LOCAL), n) != other.add_working_days(day, n)
    ]


@pytest.mark.parametrize("n", [1, 3, 5])
def test_another_library_counts_the_same_from_2024_to_2030(n):
    assert differences(n) == []


def test_what_the_other_library_lacks_is_known():
    days = [date(2023, 1, 1) + timedelta(days=n) for n in range(365)]
    other = Slovenia()
    assert {day for day in days if SI.is_working(day) != other.is_working_day(day)} == WORKALENDAR_LACKS


def test_five_working_days_are_5_to_13_calendar_days():
    spans = {(SI.working_day(datetime.combine(day, time(12), LOCAL), 5) - day).days for day in ALL_DAYS}
    assert (min(spans), max(spans)) == (5, 13)


@given(received=RECEIVED, unit=st.sampled_from(Unit), count=st.integers(1, 30))
def test_a_deadline_can_be_computed_again_from_its_record(received, unit, count):
    make = {Unit.WORKING_DAYS: SI.deadline, Unit.DAYS: SI.due_in_days, Unit.MONTHS: SI.response_due}[unit]
    deadline = make(received, count)
    record = json.loads(json.dumps(deadline.as_record()))
    again = Deadline.from_record(record)
    assert again == deadline
    assert again.recompute() == deadline.at
    assert again.as_record() == record
    last = local_day(deadline.at, ZONE)
    assert SI.is_working(last)
    assert deadline.at.astimezone(LOCAL).time() == time(23, 59, 59)
    if unit is Unit.WORKING_DAYS:  # exactly so many days of the span are worked on
        assert (last - local_day(received, ZONE)).days - len(deadline.non_working) == count


def test_a_deadline_is_recomputed_with_the_days_off_of_its_time(monkeypatch):
    record = SI.deadline(local(2026, 12, 24, 10), 5).as_record()
    assert record["holiday_data"] == holiday_data()
    assert record["non_working"] == ["2026-12-25", "2026-12-26", "2026-12-27", "2027-01-01", "2027-01-02", "2027-01-03"]
    # Years later the data has changed: no holidays at all.
    monkeypatch.setattr(module, "_public_holidays", lambda _country, _year: frozenset())
    assert SI.deadline(local(2026, 12, 24, 10), 5).at == end_of(2026, 12, 31)
    assert Deadline.from_record(record).recompute() == end_of(2027, 1, 4)


@pytest.mark.parametrize(
    "change", [{"received": "2026-12-25T09:00:00+00:00", "count": 6}, {"count": 4}, {"non_working": []}]
)
def test_a_changed_record_is_noticed(change):
    record = SI.deadline(local(2026, 12, 24, 10), 5).as_record() | change
    changed = Deadline.from_record(record)
    assert changed.recompute() != changed.at


def test_a_calendar_that_can_not_be_right_is_refused():
    day = frozenset({date(2026, 6, 12)})
    with pytest.raises(ConfigError, match="public holidays of 'ZZ'"):
        Calendar("ZZ", ZONE)
    with pytest.raises(ConfigError, match="time zone"):
        Calendar("SI", "Europe/Ljubljanna")
    with pytest.raises(ConfigError, match="2026-06-12"):
        Calendar("SI", ZONE, extra_non_working=day, extra_working=day)
    with pytest.raises(ConfigError, match="Every day"):
        Calendar("SI", ZONE, weekend=frozenset(range(7)))


def test_years_without_data_are_refused_not_guessed():
    with pytest.raises(ConfigError, match="2101"):
        SI.deadline(local(2101, 6, 1, 9), 5)
    with pytest.raises(ConfigError, match="1991"):
        SI.is_working(date(1991, 1, 2))


def test_a_receipt_without_zone_and_a_period_without_length_are_refused():
    with pytest.raises(ValueError, match="time zone"):
        SI.deadline(datetime(2026, 1, 1), 5)  # noqa: DTZ001 # that is the fault
    for count in (0, -1):
        with pytest.raises(ValueError, match="at least one"):
            SI.deadline(local(2026, 1, 1), count)
