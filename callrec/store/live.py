"""Redis: what a call's state is now, for whoever must see it now. Never the truth; that is in Postgres.

For each call one hash, `callrec:call:<FreeSWITCH Unique-ID>`, with the fields

    call       callrec's id of the call, for commands and the ledger
    line       the line's id in the configuration
    basis      the legal basis, or empty
    state      announcing, asking, recording, … (callrec/call/state.py)
    decision   granted, refused, no_input, notice_given, …; empty while undecided
    recording  the recording's id while there is one, otherwise empty
    masked     1 while the recording is masked, otherwise 0
    since      when this state began, RFC 3339 in UTC
    node       the node that has the call
    reference  the code by which a caller who withheld the number names the call later (D11), for the agent to read out;
               only while such a call is recorded

It expires by itself, also when callrec dies. An agent's desktop reads it and waits for nothing. Writes are sent by one
greenlet, newest state only, so that a slow or dead Redis costs a call nothing.
"""

import random
from collections import OrderedDict
from typing import Any, cast

import gevent
import redis
from gevent.event import Event
from redis.backoff import NoBackoff
from redis.retry import Retry

from callrec.errors import StoreError
from callrec.metrics import RETRIES, STORE_ERRORS

KEY = "callrec:call:{channel}"
_BATCH = 200  # calls in one go, each with its expiry: all of them or none
_GATHER = 0.05  # seconds in which a newer state may take a waiting one's place
_PAUSE = 0.5  # seconds at most between attempts

Fields = dict[str, str]


def connect(url: str, password: str = "", timeout: float = 1.0) -> Any:
    """A client without redis-py's own ten retries: a dead Redis answers within `timeout` seconds."""
    return redis.Redis.from_url(
        url,
        password=password or None,
        decode_responses=True,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )


class LiveState:
    """Publishes the states of this node's calls. `put` never waits; at most `max_waiting` calls wait to be written."""

    def __init__(self, client: Any, *, live_ttl: int, ended_ttl: int, max_waiting: int = 10_000) -> None:
        self._client = client
        self._live_ttl = live_ttl
        self._ended_ttl = ended_ttl
        self._max_waiting = max_waiting
        self._waiting: OrderedDict[str, tuple[Fields, bool]] = OrderedDict()
        self._wake = Event()
        self._idle = Event()
        self._idle.set()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._write_for_ever)

    def stop(self, timeout: float = 2.0) -> None:
        """Write what is waiting, for at most `timeout` seconds."""
        self._idle.wait(timeout)
        if self._greenlet is not None:
            self._greenlet.kill()

    def put(self, channel: str, fields: Fields, *, ended: bool = False) -> None:
        """This is now the state of the call on `channel`; `ended` lets it expire soon."""
        self._waiting.pop(channel, None)
        self._waiting[channel] = (fields, ended)
        if len(self._waiting) > self._max_waiting:
            self._waiting.popitem(last=False)
        self._idle.clear()
        self._wake.set()

    def get(self, channel: str) -> Fields:
        """The fields of a call, empty when there are none. StoreError when Redis does not answer."""
        try:
            return cast("Fields", self._client.hgetall(KEY.format(channel=channel)))
        except redis.RedisError as error:
            raise StoreError("Redis did not answer", detail=type(error).__name__) from None

    def forget(self, channel: str) -> None:
        """Remove a call's state. StoreError when Redis does not answer."""
        self._waiting.pop(channel, None)
        try:
            self._client.delete(KEY.format(channel=channel))
        except redis.RedisError as error:
            raise StoreError("Redis did not answer", detail=type(error).__name__) from None

    def alive(self) -> bool:
        try:
            return bool(self._client.ping())
        except redis.RedisError:
            return False

    def _write_for_ever(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._waiting:
                if len(self._waiting) < _BATCH:
                    gevent.sleep(_GATHER)
                if not self._write_batch():
                    gevent.sleep(random.uniform(0.1, _PAUSE))  # noqa: S311 # jitter
            self._idle.set()

    def _write_batch(self) -> bool:
        batch = [self._waiting.popitem(last=False) for _ in range(min(_BATCH, len(self._waiting)))]
        try:
            with self._client.pipeline(transaction=True) as pipe:
                for channel, (fields, ended) in batch:
                    key = KEY.format(channel=channel)
                    pipe.hset(key, mapping=fields)
                    pipe.expire(key, self._ended_ttl if ended else self._live_ttl)
                pipe.execute()
        except redis.RedisError:
            STORE_ERRORS.labels("redis", "put").inc()
            RETRIES.labels("live_state").inc()
            for channel, item in reversed(batch):
                if channel not in self._waiting:  # a newer state is already waiting
                    self._waiting[channel] = item
                    self._waiting.move_to_end(channel, last=False)
            while len(self._waiting) > self._max_waiting:
                self._waiting.popitem(last=False)
            return False
        return True
