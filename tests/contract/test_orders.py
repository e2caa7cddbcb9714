"""Orders from any process to the listener that has the call, through a real Postgres."""

import json
import time

import gevent
import psycopg
import pytest
from fix_stack import wait_until
from fix_store import ZONE, make_facts, make_notes

from callrec import metrics
from callrec.errors import StoreError
from callrec.store import orders
from callrec.store.orders import OrderDesk, carry_out
from callrec.store.records import CallRecords
from callrec.store.scribe import Scribe


class House:
    """A listener that notes a given outcome for every order, and an operator who gives them."""

    def __init__(self, stores, outcomes=None):
        self.listen, self.api = stores.database("listen"), stores.database("api")
        scribe = Scribe(self.listen)
        self.records = CallRecords(self.listen, scribe, node="n", timezone=ZONE)
        self.facts, self.taken, self.outcomes = make_facts(), [], outcomes or {}
        self.records.authorise(self.facts, "granted", make_notes("basis_established"), None, timeout=5)
        self.desk = OrderDesk(self.listen.conninfo, self.take)
        self.desk.start()
        self.scribe = scribe
        scribe.start()
        self.stores = stores

    def take(self, channel, order, call):
        self.taken.append((channel, order, call))
        if order == "burst":
            raise RuntimeError("a fault of ours")
        if kind := self.outcomes.get(order):
            self.records.note(self.facts, "recording", "granted", make_notes(kind, first=len(self.taken) + 1))

    def send(self, payload):
        self.stores.admin.execute("SELECT pg_notify('callrec_order', %s)", (payload,))

    def heard(self, order="ping"):
        """Whether the desk hears: orders of its own may come before it does."""
        self.send(json.dumps({"channel": "test", "order": order}))
        return ("test", order, "") in self.taken

    def close(self):
        self.desk.stop()
        self.scribe.stop(0)


@pytest.fixture
def house(stores):
    made = House(stores, {"mask": "recording_masked", "stop": "recording_stopped", "unmask": "recording_not_unmasked"})
    wait_until(made.heard, 10, "the desk hears")
    made.taken.clear()
    yield made
    made.close()


@pytest.mark.parametrize("name", ["call_id", "recording_id", "channel"])
def test_an_order_reaches_whoever_has_the_call_and_its_outcome_comes_back(house, name):
    assert carry_out(house.api, str(getattr(house.facts, name)), "mask") == "recording_masked"
    assert (house.facts.channel, "mask", str(house.facts.call_id)) in house.taken
    assert carry_out(house.api, str(house.facts.call_id), "unmask") == "recording_not_unmasked"


def test_an_earlier_outcome_does_not_answer_a_later_order(house):
    call = str(house.facts.call_id)
    assert carry_out(house.api, call, "mask") == "recording_masked"
    house.outcomes["mask"] = "recording_not_masked"
    assert carry_out(house.api, call, "mask") == "recording_not_masked"


def test_orders_given_at_once_are_all_answered(house):
    call = str(house.facts.call_id)
    given = [gevent.spawn(carry_out, house.api, call, order) for order in ("mask", "stop", "mask", "unmask")]
    gevent.joinall(given, raise_error=True)
    assert [each.value for each in given] == [
        "recording_masked", "recording_stopped", "recording_masked", "recording_not_unmasked",
    ]  # fmt: skip


def test_an_order_for_no_call_is_told_so(house):
    with pytest.raises(StoreError, match="no such call") as refused:
        carry_out(house.api, "nobody", "mask")
    assert "callrec calls" in refused.value.hint


def test_an_order_that_nobody_carries_out_is_an_error_in_time(house):
    begun = time.monotonic()
    with pytest.raises(StoreError, match="Nobody could withdraw this call"):
        carry_out(house.api, str(house.facts.call_id), "withdraw", timeout=0.5)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("payload", ["", "x", "[]", "{}", '"text"', '{"channel": "c"}', "null", "[" * 5000])
def test_what_is_no_order_is_passed_over(house, payload):
    house.send(payload)
    wait_until(house.heard, 10)
    assert set(house.taken) == {("test", "ping", "")}


def test_an_order_that_fails_does_not_end_the_hearing(house):
    wait_until(lambda: house.heard("burst"), 10)
    house.taken.clear()
    wait_until(house.heard, 10)


def test_the_desk_hears_again_after_its_connection_or_postgres_was_lost(own_stores):
    house = House(own_stores)
    wait_until(house.heard, 10)
    house.taken.clear()
    own_stores.admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND pid <> pg_backend_pid()"
    )
    wait_until(house.heard, 10, "the desk hears after its connection was ended")
    before = metrics.RETRIES.labels("order_desk")._value.get()
    own_stores.stack.kill("postgres")
    wait_until(lambda: metrics.RETRIES.labels("order_desk")._value.get() > before + 2, 15, "some attempts")
    own_stores.stack.restart("postgres")
    own_stores.reconnect()
    house.taken.clear()
    wait_until(house.heard, 15, "the desk hears after a restart")
    house.close()


def test_an_outage_of_hours_does_not_end_the_desk(monkeypatch):
    """The pause once grew beyond what a float holds, after some thousand attempts, and took the greenlet with it."""
    attempts = []

    def refuse(*_, **__):
        attempts.append(None)
        raise psycopg.OperationalError

    monkeypatch.setattr(orders.psycopg, "connect", refuse)
    monkeypatch.setattr(orders.gevent, "sleep", lambda _: gevent.idle())
    desk = OrderDesk("", lambda *_: None)
    desk.start()
    wait_until(lambda: len(attempts) > 1500, 20)
    assert not desk._greenlet.dead
    desk.stop()
