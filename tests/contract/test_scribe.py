"""The notes of calls on their way into a real Postgres: in order, once, and none lost to an outage."""

from datetime import UTC, datetime

import gevent
import pytest
from fix_stack import wait_until
from fix_store import make_facts, make_notes, ticking

from callrec import metrics
from callrec.errors import StoreError
from callrec.store.records import CallRecords
from callrec.store.scribe import Scribe, folded


def lost():
    return metrics.NOTES_LOST._value.get()


class Writer:
    """A scribe, the records of calls that write through it, and what Postgres got."""

    def __init__(self, stores, **options):
        self.stores = stores
        self.scribe = Scribe(stores.database("listen", timeout=1.0), **options)
        self.records = CallRecords(None, self.scribe, node="n", timezone="UTC")
        self.scribe.start()

    def note(self, facts, *ordinals, kind="note_{}"):
        for ordinal in ordinals:
            self.records.note(facts, "asking", "", make_notes(kind.format(ordinal), first=ordinal))

    def ordinals(self, facts):
        rows = self.stores.rows("SELECT ordinal FROM ledger WHERE call_id = %s ORDER BY entry_id", facts.call_id)
        return [row["ordinal"] for row in rows]


@pytest.fixture
def writer(stores):
    made = Writer(stores)
    yield made
    made.scribe.stop(0)


def test_notes_of_calls_stand_in_the_order_in_which_they_happened(writer):
    calls = [make_facts() for _ in range(5)]
    for ordinal in range(1, 101):
        for facts in calls:
            writer.note(facts, ordinal)
    assert writer.scribe.stop(30)
    for facts in calls:
        assert writer.ordinals(facts) == list(range(1, 101))


def test_writing_never_waits_and_a_thousand_notes_take_few_transactions(writer):
    before = writer.stores.rows("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
    facts = make_facts()
    with ticking():
        writer.note(facts, *range(1, 1001))
        gevent.sleep(0.02)
        assert writer.scribe.stop(30)
    assert len(writer.ordinals(facts)) == 1000
    after = writer.stores.rows("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
    assert after[0]["xact_commit"] - before[0]["xact_commit"] < 200


def test_a_batch_sent_again_changes_nothing(writer):
    """The answer to a commit can be lost with the connection; then the scribe sends the batch once more."""
    facts = make_facts()
    for _ in range(2):
        writer.note(facts, 1, 2, 3)
        writer.records.void(facts.recording_id, "never_started")
    assert writer.scribe.stop(10)
    assert writer.ordinals(facts) == [1, 2, 3]


def test_an_outage_loses_nothing_and_doubles_nothing(own_stores):
    writer, facts = Writer(own_stores), make_facts()
    before = lost()
    writer.note(facts, 1, 2, 3)
    wait_until(lambda: len(writer.ordinals(facts)) == 3, 20)
    for outage in range(2):
        first = 4 + outage * 300
        gevent.spawn(
            lambda first=first: [(writer.note(facts, n), gevent.sleep(0.002)) for n in range(first, first + 300)]
        )
        gevent.sleep(0.1)
        own_stores.stack.kill("postgres")  # in the middle of a batch, likely
        with ticking():
            gevent.sleep(1.5)
        own_stores.stack.restart("postgres")
        own_stores.reconnect()
        wait_until(lambda first=first: len(writer.ordinals(facts)) >= first + 299, 30, "the notes in Postgres")
    assert writer.ordinals(facts) == list(range(1, 604))
    assert lost() == before
    assert writer.scribe.stop(10)


@pytest.mark.parametrize("poison", ["\0", "\udcff"], ids=["NUL", "surrogate"])
def test_a_note_that_postgres_refuses_is_given_up_alone(writer, poison):
    before, facts = lost(), make_facts()
    poisoned = make_facts(channel=poison)
    for ordinal in range(1, 121):
        writer.note(facts, ordinal)
        if ordinal == 60:
            writer.note(poisoned, 1)
    assert writer.scribe.stop(30)
    assert writer.ordinals(facts) == list(range(1, 121))
    assert writer.ordinals(poisoned) == []
    assert lost() == before + 1


def test_missing_rights_give_nothing_up(writer, stores):
    """Whoever forgot `callrec migrate`, or the grants, gets the notes when that is mended."""
    before, facts = lost(), make_facts()
    stores.admin.execute("REVOKE INSERT ON call FROM callrec_listen")
    writer.note(facts, 1, 2)
    assert not writer.scribe._idle.wait(3)
    stores.admin.execute("GRANT INSERT ON call TO callrec_listen")
    wait_until(lambda: writer.ordinals(facts) == [1, 2], 20)
    assert lost() == before


def test_the_queue_is_bounded_and_keeps_the_oldest(stores):
    writer = Writer(stores, max_waiting=5)
    facts, before = make_facts(), lost()
    writer.note(facts, *range(1, 9))  # in one go: the scribe has had no turn
    assert lost() == before + 3
    assert writer.scribe.stop(10)
    assert writer.ordinals(facts) == [1, 2, 3, 4, 5]


def test_stopping_says_when_it_could_not_write(own_stores):
    writer = Writer(own_stores)
    own_stores.stack.kill("postgres")
    writer.note(make_facts(), 1)
    with gevent.Timeout(10):
        assert writer.scribe.stop(0.5) is False
    own_stores.stack.restart("postgres")
    own_stores.reconnect()


def test_stopping_while_a_statement_hangs_ends_nevertheless(stores):
    """A lock holds the statement; the greenlet has to go, whatever psycopg does about the interruption."""
    writer, facts = Writer(stores), make_facts()
    writer.scribe._database.timeout = 20
    with stores.admin.transaction():
        stores.admin.execute("LOCK TABLE call IN ACCESS EXCLUSIVE MODE")
        writer.note(facts, 1)
        with gevent.Timeout(10):
            assert writer.scribe.stop(0.3) is False
        assert writer.scribe._greenlet.dead


def test_a_basis_that_arrives_after_its_call_was_released_establishes_nothing(stores):
    """`authorise` was too late for the caller, and then for Postgres as well: the note that came first decides."""
    writer, facts = Writer(stores), make_facts()
    records = CallRecords(stores.database("listen"), writer.scribe, node="n", timezone="UTC")
    records.note(facts, "unrecorded", "granted", make_notes("released_unrecorded", reason="ledger_down"))
    records.void(facts.recording_id, "ledger_down")
    wait_until(lambda: writer.ordinals(facts) == [1], 10)
    with pytest.raises(StoreError, match="released"):
        records.authorise(facts, "granted", make_notes("basis_established", first=2), None, timeout=5)
    assert stores.rows("SELECT 1 FROM recording") == []
    assert stores.kinds(facts.call_id) == ["released_unrecorded"]
    writer.scribe.stop(5)


def test_a_basis_still_on_its_way_is_voided_when_it_arrives(stores):
    """`authorise` is held up in Postgres; the release that was noted meanwhile waits for it there and then voids it."""
    writer, facts = Writer(stores), make_facts()
    records = CallRecords(stores.database("listen"), writer.scribe, node="n", timezone="UTC")
    with stores.admin.transaction():
        stores.admin.execute("LOCK TABLE recording IN SHARE MODE")
        with pytest.raises(StoreError, match="in time"):
            records.authorise(facts, "granted", make_notes("basis_established"), None, timeout=0.25)
        records.note(facts, "unrecorded", "granted", make_notes("released_unrecorded", first=2))
        records.void(facts.recording_id, "ledger_down")
        gevent.sleep(0.2)
    assert writer.scribe.stop(20)
    assert stores.rows("SELECT state FROM recording") in ([], [{"state": "discarded"}])
    assert stores.rows("SELECT 1 FROM caller") == []


def test_notes_are_written_together_but_none_goes_past_a_void(stores):
    """The ledger says in this order: what led to it, that it was discarded, what came then."""
    writer, (facts, other) = Writer(stores), (make_facts(), make_facts())
    records = CallRecords(stores.database("listen"), writer.scribe, node="n", timezone="UTC")
    records.authorise(facts, "granted", make_notes("basis_established"), None, timeout=5)
    records.note(other, "announcing", "", make_notes("call_arrived"))
    records.note(facts, "discarding", "withdrawn", make_notes("consent_withdrawn", first=2))
    records.void(facts.recording_id, "withdrawn")
    records.note(facts, "ended", "withdrawn", make_notes("later", first=3), datetime.now(UTC))
    records.note(other, "ended", "refused", make_notes("consent_refused", first=2), datetime.now(UTC))
    assert [name for name, _ in folded(writer.scribe._waiting)] == ["note", "void", "note"]
    assert writer.scribe.stop(10)
    assert stores.kinds(facts.call_id) == ["basis_established", "consent_withdrawn", "recording_discarded", "later"]
    assert stores.kinds(other.call_id) == ["call_arrived", "consent_refused"]
    rows = stores.rows("SELECT state, decision, ended_at IS NOT NULL AS over FROM call")
    assert sorted(map(tuple, (row.values() for row in rows))) == [
        ("ended", "refused", True),
        ("ended", "withdrawn", True),
    ]
