"""The node's inbound link against a FreeSWITCH that misbehaves: it stays one link, and comes back."""

import contextlib
import json
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from uuid import uuid4

import gevent
import pytest
from fix_stack import wait_until
from fix_store import make_facts
from gevent.server import StreamServer

from callrec.esl import dialect, watcher, wire
from callrec.esl.registry import Registry
from callrec.esl.watcher import Watcher
from callrec.store.records import OpenRecording

OK = wire.build_frame("command/reply", {"Reply-Text": "+OK"})


class Exchange:
    """mod_event_socket: answers whatever it is asked, but for what a test has it not answer."""

    def __init__(self):
        self.asked, self.open, self.most = [], 0, 0
        self.silent_to = ()
        self.up = set()
        self.listing = None
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()

    @property
    def address(self):
        return self._server.address

    def stop(self):
        self._server.stop(timeout=0)

    def close(self):
        self._server.close()

    def _serve(self, sock, _address):
        self.open += 1
        self.most = max(self.most, self.open)
        with contextlib.suppress(OSError), sock.makefile("rb") as lines:
            sock.sendall(wire.build_frame("auth/request"))
            for line in lines:
                if command := line.decode().strip():
                    self.asked.append(command)
                    sock.sendall(self._answer(command))
        self.open -= 1

    def _answer(self, command):
        if command.startswith(self.silent_to):
            return b""
        if not command.startswith("api "):
            return OK
        if command == "api show channels as json":
            rows = [{"uuid": channel} for channel in self.up]
            body = json.dumps({"row_count": len(rows), "rows": rows}) if self.listing is None else self.listing
        elif command.startswith("api uuid_exists"):
            body = "true" if command.split()[-1] in self.up else "false"
        else:
            body = "+OK Success"
        return wire.build_frame("api/response", {}, body.encode())


@pytest.fixture
def exchange(monkeypatch):
    monkeypatch.setattr(watcher, "_ANSWER", 0.3)
    monkeypatch.setattr(watcher, "_LIVENESS", 0.1)
    made = Exchange()
    yield made
    made.stop()


class House:
    """A watcher on a node that has no more than it asks."""

    def __init__(self, exchange, left=()):
        self.registry, self.left, self.taken = Registry(), list(left), []
        self.watcher = Watcher(*exchange.address, "secret")
        self.node = SimpleNamespace(policy=None, records=self, spool=self, live=self, timing=None)
        self.watcher.start(self.node, self.registry)

    def open_recordings(self, _policy):
        return self.left

    def stop(self):
        self.watcher.stop()


@pytest.fixture
def house(exchange):
    made = House(exchange)
    yield made
    made.stop()


def conducted(**about):
    """As far as a watcher knows a call."""
    facts, mail = make_facts(**about), []
    return SimpleNamespace(facts=facts, handed_on=True, mailbox=SimpleNamespace(put=mail.append), mail=mail)


def test_a_freeswitch_that_takes_no_subscription_is_left_again(exchange, house):
    """It is overloaded, say: each attempt that stayed open would be one more connection that it has to feed."""
    exchange.silent_to = ("event ",)
    wait_until(lambda: exchange.asked.count(dialect.INBOUND_EVENTS) > 2, 20, "attempts")
    assert exchange.most == 1
    exchange.silent_to = ()
    wait_until(lambda: house.watcher.up, 20, "the link")


def test_all_stops_that_are_owed_are_paid_however_many(exchange, house):
    exchange.silent_to = ("auth",)
    wait_until(lambda: not house.watcher.up, 20)
    owed = [dialect.change_recording(str(uuid4()), "stop", "/spool/x.wav") for _ in range(600)]
    for payload in owed:
        house.watcher.post(payload)
    exchange.asked.clear()
    exchange.silent_to = ()
    wait_until(lambda: house.watcher.up and not house.watcher._owed, 20, "every stop answered")
    assert {payload.decode().strip() for payload in owed} <= set(exchange.asked)
    assert exchange.asked.count("auth secret") == 1


def test_stops_beyond_what_the_link_takes_at_once_are_not_forgotten(exchange, house):
    wait_until(lambda: house.watcher.up, 20)
    for _ in range(600):
        house.watcher.post(dialect.change_recording(str(uuid4()), "stop", "/spool/x.wav"))
    wait_until(lambda: not house.watcher._owed, 20, "every stop answered")
    assert exchange.asked.count("auth secret") == 1


@pytest.mark.parametrize("listing", ["-ERR Database error!\n", "[]", '{"rows": [{}]}', "{"])
def test_without_a_list_of_channels_each_call_is_asked_for_by_name(exchange, house, listing):
    """FreeSWITCH's own database may be down while its calls and its events go on."""
    there, gone = conducted(), conducted()
    for conduct in (there, gone):
        house.registry.add(conduct)
    exchange.up, exchange.listing = {there.facts.channel}, listing
    house.watcher.stop()
    other = House(exchange)
    other.registry.add(there)
    other.registry.add(gone)
    wait_until(lambda: gone.mail, 20, "the end of the call that is gone")
    assert (there.mail, other.watcher.up, exchange.asked.count("auth secret") <= 2) == ([], True, True)
    other.stop()


def test_a_fault_in_the_comparison_does_not_end_the_link_for_good(exchange, house):
    wait_until(lambda: house.watcher.up, 20)
    failed = []

    def broken(_policy):
        failed.append(None)
        raise PermissionError("/spool")  # as Path.exists does where a directory may not be searched

    house.open_recordings, mended = broken, house.open_recordings
    house.watcher._link.close()
    wait_until(lambda: len(failed) > 1, 20, "attempts")
    house.open_recordings = mended
    wait_until(lambda: house.watcher.up and not house.watcher._greenlet.dead, 20, "the link")


def test_a_link_that_fails_as_soon_as_it_stands_is_retried_ever_slower(exchange, monkeypatch):
    pauses = []
    monkeypatch.setattr(watcher, "random", SimpleNamespace(uniform=lambda _least, most: pauses.append(most) or 0.01))
    exchange.silent_to = ("api show channels",)
    made = House(exchange)
    wait_until(lambda: len(pauses) > 4, 20)
    made.stop()
    assert pauses[:5] == sorted(set(pauses[:5]))


def test_a_call_that_ends_while_postgres_is_asked_is_not_taken_up_again(exchange):
    """Its last notes are on the way: on a busy node one is at each comparison."""
    ended, other = conducted(), conducted()
    left = [OpenRecording(ended.facts, True, datetime.now(UTC) - timedelta(minutes=5), "granted", 5)]
    exchange.up = {other.facts.channel}
    made, asked = House(exchange), []

    def open_recordings(_policy):
        asked.append(None)
        made.registry.remove(ended)
        return left if len(asked) == 1 else []

    made.open_recordings, made.path = open_recordings, asked.append  # it looks for the file of what it takes up
    made.registry.add(ended)
    made.registry.add(other)
    wait_until(lambda: made.watcher.up and exchange.asked[-1:] == ["api uuid_exists liveness"] and asked, 20)
    made.stop()
    assert asked == [None]
    assert made.registry.all() == [other]


def test_a_recording_that_is_taken_up_beside_a_later_interview_stops_a9(exchange, monkeypatch):
    """The caller went to another line while nobody listened: the consent to the first covers nothing of it."""
    stopped = []

    def revived(_node, left):
        stop = partial(stopped.append, left.facts.call_id)
        return SimpleNamespace(facts=left.facts, handed_on=True, supersede=stop, run=lambda: gevent.sleep(10))

    monkeypatch.setattr(watcher.Conduct, "revived", revived)
    begun = datetime.now(UTC) - timedelta(minutes=5)
    before = make_facts(arrived_at=begun)
    later = conducted(channel=before.channel)
    exchange.up = {before.channel}
    made = House(exchange, [OpenRecording(before, True, begun, "granted", 5)])
    made.path, made.withdrawn = (lambda _id: "/spool/x.wav"), (lambda _id: False)
    made.registry.add(later)
    wait_until(lambda: len(made.registry) == 2, 20, "the recording taken up")
    made.stop()
    assert stopped == [before.call_id]
