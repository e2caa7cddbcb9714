"""[dispositions], [holds] and [evidence] of the configuration."""

from datetime import date, timedelta

import pytest

from callrec import terms
from callrec.call.policy import Retention
from callrec.rights.disposition import Unsaid
from callrec.strict_toml import Faults, Table


def read(dispositions=None, holds=None, evidence=None):
    faults = Faults()
    given = {"dispositions": dispositions, "holds": holds, "evidence": evidence}
    tables = [Table(table or {}, name, faults) for name, table in given.items()]
    found = terms.read(*tables)
    for table in tables:
        table.done()
    return found, [fault.where for fault in faults.found]


def test_what_holds_where_nothing_is_said():
    found, faults = read()
    assert faults == []
    assert found.patience.escalate_after == found.patience.decide_after == timedelta(hours=24)
    assert found.patience.outcome is Unsaid.ERASE
    assert found.longest_hold == timedelta(days=90)
    assert found.evidence == ((date.min, Retention(years=3)),)


def test_what_is_said():
    found, faults = read(
        {"escalate_after_hours": 1, "decide_after_hours": 2, "without": "ask"}, {"longest_review_days": 30}
    )
    assert faults == []
    assert found.patience == terms.Patience(timedelta(hours=1), timedelta(hours=2), Unsaid.ASK)
    assert found.longest_hold == timedelta(days=30)


@pytest.mark.parametrize(
    ("dispositions", "holds"),
    [
        ({"escalate_after_hours": 0}, {}), ({"decide_after_hours": 24 * 366}, {}), ({"without": "keep"}, {}),
        ({"without": 1}, {}), ({"escalate_after_hours": "24"}, {}), ({"else": 1}, {}),
        ({}, {"longest_review_days": 367}),
        ({}, {"longest_review_days": 0}),
    ],
)  # fmt: skip
def test_what_can_not_be_meant_is_a_fault_e17(dispositions, holds):
    assert len(read(dispositions, holds)[1]) == 1


def test_evidence_has_a_period_and_later_ones_from_a_day_on_c6():
    later = {"2027-01-01": {"retention": {"months": 6}}, "2019-05-01": {"retention": {"years": 1}}}
    found, faults = read(evidence={"retention": {"years": 2}, "since": later})
    assert faults == []
    assert found.evidence == (
        (date.min, Retention(years=2)), (date(2019, 5, 1), Retention(years=1)), (date(2027, 1, 1), Retention(months=6)),
    )  # fmt: skip


@pytest.mark.parametrize(
    "evidence",
    [
        {"retention": {"years": 31}}, {"retention": {"years": 0}}, {"retention": {}}, {"retention": "3 years"},
        {"since": {"soon": {"retention": {"years": 1}}}}, {"since": {"2027-01-01": {}}}, {"keep": True},
    ],
)  # fmt: skip
def test_evidence_is_never_kept_without_an_end_c6(evidence):
    assert read(evidence=evidence)[1] != []
