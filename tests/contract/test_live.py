"""The live state of calls in a real Redis, as an agent's desktop reads it."""

import os
import re
import signal
import time

import gevent
import pytest
import redis
from fix_stack import wait_until
from fix_store import ticking

from callrec import metrics
from callrec.errors import StoreError
from callrec.store import live
from callrec.store.live import KEY, LiveState, connect

FIELDS = {
    "call": "c", "line": "service", "basis": "consent", "state": "asking", "decision": "", "recording": "",
    "masked": "0", "since": "2026-11-30T10:00:00.000+00:00", "node": "node-1",
    "reference": "7K3M9QXD",
}  # fmt: skip


def started(url, **options):
    client = connect(url, timeout=0.5)
    view = LiveState(client, **{"live_ttl": 100, "ended_ttl": 10} | options)
    view.start()
    return view


@pytest.fixture
def view(redis_url):
    made = started(redis_url)
    yield made
    made.stop(0)
    made._client.close()


@pytest.fixture
def own_redis(own_stack):
    return own_stack("redis")


def state_of(view, channel):
    try:
        return view.get(channel).get("state")
    except StoreError:
        return None


def test_a_reader_finds_every_documented_field_and_an_expiry(view, redis_url):
    documented = re.findall(r"^    (\w+) +\S", live.__doc__, flags=re.MULTILINE)
    assert set(documented) == set(FIELDS)
    view.put("ch", FIELDS)
    wait_until(lambda: view.get("ch"))
    with redis.Redis.from_url(redis_url, decode_responses=True) as reader:
        assert reader.hgetall("callrec:call:ch") == FIELDS
        assert 0 < reader.ttl(KEY.format(channel="ch")) <= 100
        view.put("ch", FIELDS | {"state": "ended"}, ended=True)
        wait_until(lambda: state_of(view, "ch") == "ended")
        assert 0 < reader.ttl(KEY.format(channel="ch")) <= 10


def test_the_newest_state_wins(view):
    for place in range(500):
        view.put("ch", FIELDS | {"state": str(place)})
    wait_until(lambda: state_of(view, "ch") == "499")


def test_an_unknown_call_has_no_fields(view):
    assert view.get("none") == {}


def test_a_dead_redis_costs_put_nothing_and_the_newest_state_is_there_afterwards(own_redis):
    view = started(own_redis.redis_url, max_waiting=50)
    view.put("early", FIELDS)
    wait_until(lambda: state_of(view, "early"))
    before = metrics.STORE_ERRORS.labels("redis", "put")._value.get()
    own_redis.kill("redis")
    with ticking():
        begun = time.monotonic()
        for place in range(1000):
            view.put(f"ch-{place % 100}", FIELDS | {"state": f"{place}"})
        assert time.monotonic() - begun < 0.2
        assert len(view._waiting) <= 50  # the newest of them
        gevent.sleep(0.5)
    assert not view.alive()
    with pytest.raises(StoreError):
        view.get("early")
    assert metrics.STORE_ERRORS.labels("redis", "put")._value.get() > before
    view.put("ch-99", FIELDS | {"state": "newest"})
    own_redis.restart("redis")
    wait_until(lambda: state_of(view, "ch-99") == "newest", 10)
    assert state_of(view, "ch-60") == "960"
    assert len(view._waiting) <= 50
    view.stop()


def test_a_redis_that_says_nothing_holds_nobody_and_an_older_state_never_comes_last(own_redis):
    view = started(own_redis.redis_url)
    pid = own_redis.pids()["redis-server"]
    before = metrics.STORE_ERRORS.labels("redis", "put")._value.get()
    os.kill(pid, signal.SIGSTOP)
    try:
        with ticking():
            view.put("ch", FIELDS)
            wait_until(lambda: not view._waiting)  # it is on its way, and will be tried again
            view.put("ch", FIELDS | {"state": "recording"})
            begun = time.monotonic()
            assert not view.alive()
            assert time.monotonic() - begun < 2
        wait_until(lambda: metrics.STORE_ERRORS.labels("redis", "put")._value.get() > before, 10)
    finally:
        os.kill(pid, signal.SIGCONT)
    view.stop(10)
    assert state_of(view, "ch") == "recording"


def test_stopping_writes_what_waits_and_gives_up_in_time(own_redis):
    view = started(own_redis.redis_url)
    for place in range(1000):
        view.put(f"ch-{place}", FIELDS)
    view.stop(10)
    assert state_of(view, "ch-999") == "asking"
    view = started(own_redis.redis_url)
    own_redis.kill("redis")
    view.put("ch", FIELDS)
    begun = time.monotonic()
    view.stop(0.3)
    assert time.monotonic() - begun < 2
