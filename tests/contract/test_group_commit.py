"""Bases that wait for Postgres together share a commit, and nothing else: on a real Postgres."""

import time

import gevent
import pytest
from fix_stack import wait_until
from fix_store import ZONE, make_facts, make_notes

from callrec.errors import StatementRefusedError, StoreError
from callrec.store.records import CallRecords
from callrec.store.scribe import Scribe

_WAITING = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted"


@pytest.fixture
def records(stores):
    database = stores.database("listen")
    return CallRecords(database, Scribe(database), node="n", timezone=ZONE)


def authorise(records, facts, timeout=20, **said):
    records.authorise(facts, "granted", make_notes("call_arrived", "basis_established", **said), None, timeout=timeout)
    return True


def outcome(greenlet):
    greenlet.join(30)
    return greenlet.value or type(greenlet.exception)


def held_up(stores, *askers):
    """Start them one after the other until two statements wait for a lock, then the others. Gives their greenlets."""
    asking = []
    for n, asker in enumerate(askers, 1):
        asking.append(gevent.spawn(asker))
        if n <= 2:
            wait_until(lambda n=n: stores.rows(_WAITING)[0]["n"] == n, 20, "a statement to wait for the lock")
    return asking


def behind_a_lock(stores, *askers):
    """Start each while nobody can write, and let go when all wait. Gives their greenlets."""
    with stores.admin.transaction():
        stores.admin.execute("LOCK TABLE recording IN SHARE MODE")
        asking = held_up(stores, *askers)
        gevent.sleep(0)  # each begins to wait
    return asking


def test_a_hundred_bases_that_wait_together_are_durable_together(stores, records):
    """Each of them, with every note of it and in order, whatever statement it went with."""
    calls = [make_facts() for _ in range(100)]
    asking = behind_a_lock(stores, *(lambda facts=facts: authorise(records, facts) for facts in calls))
    assert [outcome(greenlet) for greenlet in asking] == [True] * 100
    for facts in calls:
        assert stores.kinds(facts.call_id) == ["call_arrived", "basis_established"]
    shared = stores.rows("SELECT count(DISTINCT xmin::text) AS n FROM recording")
    assert shared[0]["n"] == 3, "the first, one beside it, and all who waited meanwhile"


def test_one_that_is_refused_fails_alone(stores, records):
    """A text that Postgres can't hold: its neighbours in the same statement are not to blame."""
    good, bad = [make_facts() for _ in range(10)], make_facts()
    askers = [lambda facts=facts: authorise(records, facts) for facts in good]
    askers.insert(6, lambda: authorise(records, bad, note="\0"))
    asking = behind_a_lock(stores, *askers)
    assert outcome(asking.pop(6)) is StatementRefusedError
    assert [outcome(greenlet) for greenlet in asking] == [True] * 10
    assert stores.rows("SELECT 1 FROM call WHERE call_id = %s", bad.call_id) == []


def test_one_that_is_known_already_is_not_taken_and_the_others_are_a9(stores, records):
    known, new = make_facts(), [make_facts() for _ in range(5)]
    authorise(records, known)
    twice = make_facts()
    asking = behind_a_lock(stores, *(lambda facts=facts: authorise(records, facts) for facts in [*new, known, twice]))
    assert [outcome(greenlet) for greenlet in asking] == [True] * 5 + [StoreError, True]
    assert stores.kinds(known.call_id) == ["call_arrived", "basis_established"]


def test_one_that_was_given_up_before_it_was_sent_never_arrives(stores, records):
    """Its caller has been released by then: no row may say that there was a basis."""
    others, late = [make_facts() for _ in range(3)], make_facts()
    with stores.admin.transaction():
        stores.admin.execute("LOCK TABLE recording IN SHARE MODE")
        asking = held_up(stores, *(lambda facts=facts: authorise(records, facts) for facts in others))
        begun = time.monotonic()
        with pytest.raises(StoreError, match="in time"):
            authorise(records, late, timeout=0.2)
        assert time.monotonic() - begun < 2
    assert [outcome(greenlet) for greenlet in asking] == [True] * 3
    assert stores.rows("SELECT 1 FROM call WHERE call_id = %s", late.call_id) == []
