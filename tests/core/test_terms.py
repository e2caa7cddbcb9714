"""[dispositions] and [holds] of the configuration."""

from datetime import timedelta

import pytest

from callrec import terms
from callrec.rights.disposition import Unsaid
from callrec.strict_toml import Faults, Table


def read(dispositions=None, holds=None):
    faults = Faults()
    tables = Table(dispositions or {}, "dispositions", faults), Table(holds or {}, "holds", faults)
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
