"""Database on a real Postgres: deadlines, cooperation, and how it comes through an outage."""

import os
import signal
import time
from uuid import uuid4

import gevent
import pytest
from fix_stack import wait_until
from fix_store import ticking

from callrec import metrics
from callrec.errors import StatementRefusedError, StoreError
from callrec.store import db

SLEEP = "SELECT pg_sleep(%(seconds)s)"
SLACK = 0.5  # seconds by which a busy machine may be late


@pytest.fixture
def database(stores):
    return opened(stores)


def opened(stores, **options):
    made = stores.database("listen", **options)
    made.queries = made.queries | {
        "sleep": SLEEP,
        "pid": "SELECT pg_backend_pid() AS pid",
        "add": "INSERT INTO ledger (kind, body, node, at) VALUES (%(kind)s, '{}', 'n', now())",
    }
    return made


def counted(operation):
    return metrics.STORE_ERRORS.labels("postgres", operation)._value.get()


def elapsed(function, *args, **options):
    begun = time.monotonic()
    with pytest.raises(StoreError) as failed:
        function(*args, **options)
    return time.monotonic() - begun, failed.value


def test_a_late_answer_is_a_store_error_at_its_deadline(database):
    before = counted("sleep")
    seconds, error = elapsed(database.run, "sleep", {"seconds": 20}, timeout=0.3)
    assert 0.25 < seconds < 0.3 + SLACK
    assert (error.message, error.detail) == ("Postgres did not answer in time", "sleep had 0.300 s")
    assert counted("sleep") == before + 1


def test_a_statement_that_may_take_long_is_not_ended_by_the_server_before(stores, monkeypatch):
    """`replay-erasures` reads all of the ledger."""
    monkeypatch.setattr(db, "_SERVER_SECONDS", 1)
    database = opened(stores, size=1)
    database.queries |= {"slow": "SELECT pg_sleep(1.5)", "limit": "SHOW statement_timeout"}
    with pytest.raises(StoreError, match="57014"):  # cancelled by the server
        database.run("slow")
    usual = database.one("limit")
    assert database.run("slow", timeout=10)
    assert database.one("limit") == usual, "who has the connection next is not to wait that long"


def test_the_connection_of_a_late_answer_is_not_used_again(stores):
    database = opened(stores, size=1)
    first = database.one("pid")["pid"]
    elapsed(database.run, "sleep", {"seconds": 20}, timeout=0.2)
    assert database.one("pid")["pid"] != first


@pytest.mark.parametrize("name", ["run", "run_all"])
def test_a_timeout_or_a_kill_from_outside_leaves_no_bad_connection(stores, name):
    """What a caller does around a query (gevent.Timeout, greenlet.kill) may not spoil the next one's connection."""
    database = opened(stores, size=1, timeout=3)
    long = {"seconds": 20}
    work = {"run": lambda: database.run("sleep", long), "run_all": lambda: database.run_all([("sleep", long)])}[name]
    with gevent.Timeout(0.2, False):
        work()
    assert wait_until(lambda: database.one("alive"), 10)
    killed = gevent.spawn(work)
    gevent.sleep(0.1)
    killed.kill()
    for _ in range(3):
        assert database.one("alive")


def test_other_greenlets_run_while_a_query_waits(database):
    database.run("alive")
    with ticking():
        elapsed(database.run, "sleep", {"seconds": 5}, timeout=0.4)


def test_an_exhausted_pool_is_an_error_at_the_deadline_and_recovers(stores):
    database = opened(stores, size=2)
    busy = [gevent.spawn(database.run, "sleep", {"seconds": 1.0}) for _ in range(2)]
    gevent.sleep(0.2)
    seconds, error = elapsed(database.run, "alive", timeout=0.2)
    assert seconds < 0.2 + SLACK
    assert error.message == "No connection to Postgres"
    gevent.joinall(busy, raise_error=True)
    assert database.one("alive")


def test_an_error_says_nothing_of_the_row(database, stores):
    database.queries["strict"] = (
        "INSERT INTO ledger (kind, body, node, at) VALUES ('k', %(kind)s::text::jsonb, 'n', now())"
    )
    with pytest.raises(StatementRefusedError) as refused:
        database.run("strict", {"kind": "+38640123456"})
    assert "38640123456" not in str(refused.value)
    assert "InvalidTextRepresentation (22P02)" in refused.value.detail
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("text", ["a\0b", "\udcff"], ids=["NUL", "surrogate"])
def test_text_that_postgres_cannot_hold_is_a_refusal_too(database, text):
    with pytest.raises(StatementRefusedError):
        database.run("add", {"kind": text})
    with pytest.raises(StatementRefusedError):
        database.run_all([("add", {"kind": text})])
    assert database.one("alive")


def test_missing_rights_are_no_refusal_since_someone_mends_them(stores):
    ship = stores.database("ship")
    ship.queries["forbidden"] = "DELETE FROM call"
    with pytest.raises(StoreError) as failed:
        ship.run("forbidden")
    assert not isinstance(failed.value, StatementRefusedError)
    assert "42501" in failed.value.detail


def test_a_transaction_is_all_or_nothing(database, stores):
    with pytest.raises(StatementRefusedError):
        database.run_all([("add", {"kind": "first"}), ("add", {"kind": None})])
    assert stores.rows("SELECT 1 FROM ledger") == []
    database.run_all([("add", {"kind": "first"}), ("add", {"kind": "second"})])
    assert [row["kind"] for row in stores.rows("SELECT kind FROM ledger ORDER BY entry_id")] == ["first", "second"]


def test_a_postgres_that_says_nothing_holds_nobody_beyond_the_deadline(own_stores):
    """Its processes are stopped, so that the connection stays up: the case that no reset and no end-of-file solves."""
    database = opened(own_stores, size=1)
    pids = [database.one("pid")["pid"], own_stores.stack.pids()["postgres"]]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        for work in (
            lambda: database.run("alive", timeout=0.3),
            lambda: database.run_all([("alive", {})], timeout=0.3),
        ):
            with ticking():
                seconds, _ = elapsed(work)
            assert seconds < 0.3 + SLACK
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    wait_until(database.alive, 15, "Postgres usable again")


def test_after_a_restart_every_connection_works_at_once(own_stores):
    """No call may lose its basis to a connection of the server before: all of the pool was in use, then it died."""
    database = opened(own_stores, size=6)
    gevent.joinall([gevent.spawn(database.run, "sleep", {"seconds": 0.2}) for _ in range(6)], raise_error=True)
    own_stores.stack.kill("postgres")
    own_stores.stack.restart("postgres")
    for _ in range(6):
        assert database.run("alive", timeout=3)
    own_stores.reconnect()


def test_an_outage_is_an_error_each_time_and_over_within_seconds(own_stores):
    database = opened(own_stores, size=4)
    assert database.alive()
    own_stores.stack.kill("postgres")
    begun = time.monotonic()
    while time.monotonic() - begun < 3:  # longer than the pool tries on its own
        with ticking():
            seconds, _ = elapsed(database.run, "alive", timeout=0.25)
        assert seconds < 0.25 + SLACK
    own_stores.stack.restart("postgres")
    begun = time.monotonic()
    wait_until(lambda: database.alive(0.25), 15, "Postgres usable again")
    assert time.monotonic() - begun < 5
    own_stores.reconnect()


def test_opening_does_not_wait_for_postgres_and_finds_it_when_it_comes(own_stores):
    own_stores.login("listen")
    own_stores.stack.kill("postgres")
    begun = time.monotonic()
    database = opened(own_stores)
    assert time.monotonic() - begun < SLACK
    _, error = elapsed(database.run, "alive", timeout=0.2)
    assert "Is it up" in error.hint
    own_stores.stack.restart("postgres")
    wait_until(lambda: database.alive(0.5), 15, "Postgres usable")
    own_stores.reconnect()


def test_who_withdraws_is_found_without_a_look_at_all_that_is_kept(database, stores):
    """Where millions of recordings are kept, a look at each takes longer than the statement may."""
    wanted = {"lookups": [b"l"], "call_id": uuid4(), "recording_id": uuid4(), "references": [b"r"]}
    stores.admin.execute("SET enable_seqscan = off")
    (plan,) = stores.admin.execute(
        "EXPLAIN (FORMAT JSON) " + database.queries["held_recordings"], wanted
    ).fetchone().values()  # fmt: skip
    nodes = list(scans(plan[0]["Plan"]))
    assert {node["Relation Name"] for node in nodes} >= {"recording", "caller"}
    assert [node for node in nodes if "Index Cond" not in node and "Recheck Cond" not in node] == []


def scans(node):
    if "Relation Name" in node:
        yield node
    for each in node.get("Plans", []):
        yield from scans(each)
