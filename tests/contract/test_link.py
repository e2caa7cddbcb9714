"""The links to FreeSWITCH against peers that break every rule, and a ticker that shows that nobody else notices."""

import contextlib
import errno
import resource
import socket as plain
import struct
import time
from pathlib import Path

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer

from callrec import metrics
from callrec.errors import LinkClosedError, LinkError, LinkTimeoutError, WireError
from callrec.esl import wire
from callrec.esl.link import InboundLink, OutboundLink, OutboundServer

OK = wire.build_frame("command/reply", {"Reply-Text": "+OK"})
GREETING = wire.build_frame("auth/request")
CONNECT = wire.build_connect_reply({"variable_uuid": "u-1", "Caller-Caller-ID-Name": "x%0AControl%3A%20none"})


class Heard:
    """What a link told its owner."""

    def __init__(self):
        self.events, self.closes, self.closed = [], 0, Event()

    def event(self, headers):
        self.events.append(headers)

    def close(self):
        self.closes += 1
        self.closed.set()


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def pair(heard):
    """An outbound link that has been started, and the socket of its peer."""
    listener = socket.create_server(("127.0.0.1", 0))
    peer = socket.socket()
    peer.setsockopt(plain.SOL_SOCKET, plain.SO_RCVBUF, 65536)  # small, so that a peer can be slow
    peer.connect(listener.getsockname())
    sock, _ = listener.accept()
    listener.close()
    link = OutboundLink(sock, on_event=heard.event, on_close=heard.close, send_timeout=0.3)
    link.start()
    yield link, peer
    link.close()
    peer.close()


@pytest.fixture
def inbound(heard):
    """Makes inbound links to a peer that runs the given function on its end."""
    servers, links = [], []

    def make(play, password="secret", timeout=0.5):
        server = StreamServer(("127.0.0.1", 0), lambda sock, _: play(sock))
        server.start()
        servers.append(server)
        host, port = server.address
        links.append(InboundLink(host, port, password, on_event=heard.event, on_close=heard.close, timeout=timeout))
        return links[-1]

    yield make
    for link in links:
        link.close()
    for server in servers:
        server.stop()


@contextlib.contextmanager
def ticking(limit=0.25):
    """While this runs nobody has the hub for longer than `limit` seconds at a stretch.

    Counted in this thread's CPU time, so that a busy machine fails no test; a hub that blocks instead of working shows
    in the wall clock, with room for the other processes.
    """
    worked = stood = 0.0

    def tick():
        nonlocal worked, stood
        while True:
            cpu, wall = time.thread_time(), time.monotonic()
            gevent.sleep(0.005)
            worked, stood = max(worked, time.thread_time() - cpu), max(stood, time.monotonic() - wall)

    ticker = gevent.spawn(tick)
    gevent.sleep(0.01)
    try:
        yield
        gevent.sleep(0.01)
    finally:
        ticker.kill()
    assert 0 < worked < limit
    assert stood < 5 * limit


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def errors(kind, link="outbound"):
    return metrics.ESL_ERRORS.labels(link, kind)._value.get()


def until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the deadline"
        gevent.sleep(0.005)


def ask(link, text="api status", timeout=5.0):
    """A request in a greenlet of its own, once it waits."""
    asked = len(link._pending)
    greenlet = gevent.spawn(link.request, text, timeout)
    until(lambda: len(link._pending) > asked or greenlet.ready())
    return greenlet


def received(peer, count):
    data = b""
    while len(data) < count:
        data += peer.recv(count - len(data))
    return data


# What works


def test_connect_gives_the_channel_data(pair):
    link, peer = pair
    asking = gevent.spawn(link.connect, 2)
    assert received(peer, 9) == b"connect\n\n"
    peer.sendall(CONNECT)
    data = asking.get(timeout=2)
    assert data.get("variable_uuid") == link.uuid == "u-1"
    assert data.get("Control") == "full"
    assert link.connect(2) is data  # asked once


def test_a_link_without_full_is_refused_with_the_remedy(pair):
    link, peer = pair
    asking = gevent.spawn(link.connect, 2)
    received(peer, 9)
    peer.sendall(wire.build_connect_reply({}, control="single-channel"))
    with pytest.raises(LinkError, match="async full"):
        asking.get(timeout=2)


def test_answers_go_to_those_who_asked_in_order(pair):
    link, peer = pair
    replies = []
    link.post(wire.command("linger 5"), replies.append)
    first = ask(link)
    link.post(wire.command("myevents"))
    second = ask(link, "api version")
    asked = b"linger 5\n\napi status\n\nmyevents\n\napi version\n\n"
    assert received(peer, len(asked)) == asked
    peer.sendall(
        OK + wire.build_frame("api/response", body=b"UP\n") + OK + wire.build_frame("api/response", body=b"1.10")
    )
    assert first.get(timeout=2).body == b"UP\n"
    assert second.get(timeout=2).reply == "1.10"
    assert replies == ["+OK"]


def test_events_and_notices_are_told_in_order(pair, heard):
    link, peer = pair
    notice = {"Controlled-Session-UUID": "u-1", "Content-Disposition": "linger"}
    peer.sendall(
        wire.build_event("CHANNEL_HANGUP", {"Unique-ID": "u-1"})
        + wire.build_frame("text/disconnect-notice", notice, b"")
        + wire.build_event("RECORD_STOP", {"Unique-ID": "u-1"})
    )
    until(lambda: len(heard.events) == 3)
    assert [headers.get("Event-Name") for headers in heard.events] == ["CHANNEL_HANGUP", "", "RECORD_STOP"]
    assert heard.events[1].get("Content-Type") == "text/disconnect-notice"
    assert heard.events[1].get("Content-Disposition") == "linger"
    peer.close()
    assert heard.closed.wait(2)
    assert heard.closes == 1
    assert not link.connected


def test_greenswitchs_helpers_work_or_say_no(pair):
    link, peer = pair
    asking = gevent.spawn(link.answer)
    until(lambda: len(link._pending) == 1)
    assert b"execute-app-name: answer\nevent-lock: true\nEvent-UUID: " in peer.recv(4096)
    peer.sendall(OK)
    assert asking.get(timeout=2) == "+OK"
    for helper in (
        lambda: link.playback("/a.wav"),  # would wait for ever
        lambda: link.play_and_get_digits(1, 1),  # would send the word None
        lambda: link.say(text="x"),
        lambda: link.bridge("x"),
        lambda: link.register_handle("*", print),
        link.start_event_handlers,
    ):
        with pytest.raises(LinkError, match="not for use here"):
            helper()
    with pytest.raises(WireError):
        link.hangup("NORMAL\n\napi shutdown")
    link.stop()
    with pytest.raises(LinkClosedError), link.while_connected():
        pass


# What peers do wrong


@pytest.mark.parametrize(
    ("garbage", "kind"),
    [
        (b"\x00\xff\x16\x03garbage\r\n" * 50_000, "header_too_long"),
        (b"GET / HTTP/1.1\r\n\n\n", "bad_header"),
        (b"Reply-Text: +OK\n\n", "no_content_type"),
        (b"\n" + OK, "stray_blank_line"),
        (OK, "unexpected_reply"),
        (b"Content-Type: api/response\nContent-Length: -5\n\n", "bad_length"),
        (b"Content-Type: api/response\nContent-Length: 99999999\n\n", "body_too_long"),
        (b"x: " + b"y" * 10_000_000 + b"\n\n", "header_too_long"),
    ],
    ids=["binary", "http", "no-type", "blank-line", "unasked", "negative", "huge-body", "10MB-header"],
)
def test_garbage_ends_its_own_link_and_nothing_else(pair, heard, garbage, kind):
    link, peer = pair
    before, counted = resident(), errors(kind)
    pushing = gevent.spawn(push, peer, garbage)
    with ticking():
        assert heard.closed.wait(5)
    pushing.kill()
    assert heard.closes == 1
    assert errors(kind) == counted + 1
    assert resident() - before < 8 << 20
    with pytest.raises(LinkClosedError, match=kind):
        link.request("api status", 1)
    with pytest.raises(LinkClosedError):
        link.post(wire.command("api status"))


def push(peer, data):
    with contextlib.suppress(OSError):
        peer.sendall(data)


def test_a_flood_of_valid_frames_leaves_the_hub_to_others(pair, heard):
    link, peer = pair
    flood = wire.build_event("DTMF", {"DTMF-Digit": "1"}) * 5000
    flooding = gevent.get_hub().threadpool.spawn(flood_from_a_thread, peer.fileno(), flood)
    with ticking():
        until(lambda: len(heard.events) > 60_000, 20)
    link.close()
    flooding.get()


def flood_from_a_thread(descriptor, flood):
    sock = plain.socket(fileno=plain.dup(descriptor))
    with sock, contextlib.suppress(OSError):
        sock.setblocking(True)
        for _ in range(15):
            sock.sendall(flood)


def test_a_body_cut_by_eof_fails_who_waits_for_it(pair, heard):
    link, peer = pair
    asking, counted = ask(link), errors("cut_short")
    received(peer, 12)
    peer.sendall(b"Content-Type: api/response\nContent-Length: 100\n\nonly half")
    peer.close()
    with ticking(), pytest.raises(LinkClosedError):
        asking.get(timeout=2)
    assert errors("cut_short") == counted + 1
    assert heard.closes == 1


def test_a_body_that_is_not_utf8_is_an_answer(pair):
    link, peer = pair
    asking = ask(link)
    peer.sendall(wire.build_frame("api/response", body=b"\xff\xfe"))
    assert asking.get(timeout=2).body == b"\xff\xfe"
    assert link.connected


def test_json_is_counted_and_passed_over(pair, heard):
    _, peer = pair
    counted = errors("unexpected_frame")
    peer.sendall(wire.build_frame("text/event-json", body=b"{}") + wire.build_event("DTMF", {}))
    until(lambda: heard.events)
    assert errors("unexpected_frame") == counted + 1
    assert heard.closes == 0


def test_all_who_wait_are_failed_when_the_peer_closes(pair, heard):
    link, peer = pair
    replies = []
    link.post(wire.command("linger 5"), replies.append)
    asking = [ask(link) for _ in range(5)]
    peer.close()
    started = time.monotonic()
    for greenlet in asking:
        with pytest.raises(LinkClosedError):
            greenlet.get(timeout=2)
    assert time.monotonic() - started < 0.5
    assert heard.closes == 1
    assert replies == []


def test_a_reset_is_counted_and_fails_who_waits(pair, heard):
    link, peer = pair
    asking, counted = ask(link), errors("reset")
    received(peer, 12)
    peer.setsockopt(plain.SOL_SOCKET, plain.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    with pytest.raises(LinkClosedError):
        asking.get(timeout=2)
    assert errors("reset") == counted + 1
    assert heard.closes == 1


def test_a_silent_peer_costs_the_deadline_and_no_more(pair):
    link, peer = pair
    started = time.monotonic()
    with ticking(), pytest.raises(LinkTimeoutError):
        link.request("api status", 0.1)
    assert 0.09 < time.monotonic() - started < 0.5
    # The late answer belongs to the one who gave up, not to the next who asks.
    asking = ask(link, "api version")
    peer.sendall(wire.build_frame("api/response", body=b"late") + wire.build_frame("api/response", body=b"mine"))
    assert asking.get(timeout=2).body == b"mine"


def test_a_timeout_of_the_caller_passes_through(pair):
    link, _ = pair
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        link.request("api status", 5)


def test_a_peer_that_never_reads_ends_the_link_within_the_send_timeout(pair, heard):
    link, _ = pair
    counted = errors("send_timeout")
    payload = wire.command("api x " + "y" * 100_000)
    with ticking():
        with contextlib.suppress(LinkError):  # refused once a megabyte is not taken; before that, post never waits
            for _ in range(500):
                link.post(payload)
        assert link.connected
        assert heard.closed.wait(2)
    assert errors("send_timeout") == counted + 1
    assert heard.closes == 1


def test_what_a_slow_peer_takes_late_arrives_whole_and_in_order(pair):
    link, peer = pair
    sent = [wire.command(f"api {n} " + "y" * 60_000) for n in range(200)]
    taken = 0
    with contextlib.suppress(LinkError):
        for payload in sent:
            link.post(payload)
            taken += 1
    assert link._backlog
    expected = b"".join(sent[:taken])
    assert received(peer, len(expected)) == expected


def test_unanswered_commands_are_bounded(pair):
    link, _ = pair
    for _ in range(256):
        link.post(wire.command("api status"))
    with pytest.raises(LinkError, match="unanswered"):
        link.post(wire.command("api status"))


def test_commands_in_one_piece_are_sent_and_answered_in_order(pair):
    link, peer = pair
    link.post_all((b"resume\n\n", b"exit\n\n"))
    assert received(peer, 14) == b"resume\n\nexit\n\n"
    answers = []
    link.post(wire.command("api status"), answers.append)
    peer.sendall(OK + OK + wire.build_frame("command/reply", {"Reply-Text": "+OK third"}))
    until(lambda: answers)
    assert answers == ["+OK third"]  # the two before it took one answer each


def test_of_commands_in_one_piece_all_are_sent_or_none(pair):
    link, peer = pair
    with pytest.raises(WireError):
        link.post_all((b"resume\n\n", b"api a\n\napi b\n\n"))
    for _ in range(255):
        link.post(wire.command("noop"))
    with pytest.raises(LinkError, match="unanswered"):
        link.post_all((b"resume\n\n", b"exit\n\n"))
    link.post(wire.command("exit"))
    assert received(peer, 255 * 6 + 6) == b"noop\n\n" * 255 + b"exit\n\n"


@pytest.mark.parametrize("bad", ["api status\n\napi shutdown", "api status\r", "api \0"])
def test_a_line_end_in_an_argument_is_never_sent(pair, bad):
    link, peer = pair
    with pytest.raises(WireError):
        link.request(bad, 1)
    with pytest.raises(WireError):
        link.post(bad.encode() + b"\n\n" if "\n" in bad else bad.encode())
    link.post(wire.command("api status"))
    assert received(peer, 12) == b"api status\n\n"


def test_a_callback_that_fails_or_waits_ends_the_link(pair, heard):
    link, peer = pair
    counted, caught = errors("handler"), []

    def wait_on_myself(_):
        try:
            link.request("api status", 1)
        except LinkError as error:
            caught.append(error)
            raise

    link._on_event = wait_on_myself
    peer.sendall(wire.build_event("DTMF", {}))
    assert heard.closed.wait(2)
    assert "Use post" in str(caught[0])
    assert errors("handler") == counted + 1


def test_close_never_blocks_and_may_be_repeated(pair, heard):
    link, _ = pair
    asking = ask(link)
    link.close()
    link.close()
    assert heard.closes == 1
    with pytest.raises(LinkClosedError):
        asking.get(timeout=2)


# Inbound


def play_freeswitch(sock):
    sock.sendall(GREETING)
    lines = sock.makefile("rb")
    for line in iter(lines.readline, b""):
        if line == b"auth secret\n":
            sock.sendall(wire.build_frame("command/reply", {"Reply-Text": "+OK accepted"}))
        elif line.startswith(b"auth"):
            sock.sendall(wire.build_frame("command/reply", {"Reply-Text": "-ERR invalid"}))
            sock.sendall(wire.build_frame("text/disconnect-notice", body=b"Disconnected, goodbye.\n"))
            return
        elif line != b"\n":
            sock.sendall(wire.build_frame("api/response", body=b"+OK " + line))


def test_inbound_connects_and_asks(inbound, heard):
    link = inbound(play_freeswitch)
    link.connect()
    assert link.request("api status", 1).reply == "+OK api status"
    with pytest.raises(LinkError, match="once"):
        link.connect()
    link.close()
    assert heard.closes == 1


def test_an_idle_link_outlives_the_timeout_of_its_connect(inbound, heard):
    link = inbound(play_freeswitch, timeout=0.1)
    link.connect()
    assert not heard.closed.wait(0.3)
    assert link.request("api status", 1).reply == "+OK api status"


def test_a_wrong_password_is_named(inbound, heard):
    with pytest.raises(LinkError, match="refused the password") as caught:
        inbound(play_freeswitch, password="wrong").connect()
    assert "wrong" not in str(caught.value)
    assert heard.closes == 1


def test_a_password_with_a_line_end_is_never_sent(inbound, heard):
    with pytest.raises(WireError):
        inbound(play_freeswitch, password="a\n\napi shutdown").connect()
    assert heard.closes == 1


def test_a_refusal_by_the_acl_is_named(inbound):
    def reject(sock):
        sock.sendall(wire.build_frame("text/rude-rejection", body=b"Access Denied, go away.\n"))

    with pytest.raises(LinkError, match="apply-inbound-acl"):
        inbound(reject).connect()


def test_a_silent_event_socket_costs_the_timeout(inbound, heard):
    started = time.monotonic()
    with ticking(), pytest.raises(LinkTimeoutError):
        inbound(lambda sock: sock.recv(1), timeout=0.2).connect()
    assert time.monotonic() - started < 0.6
    assert heard.closes == 1


def test_an_event_socket_that_closes_or_is_not_there(inbound, heard):
    with pytest.raises(LinkClosedError):
        inbound(lambda _: None).connect()
    with plain.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    link = InboundLink("127.0.0.1", port, "x", on_event=heard.event, on_close=heard.close)
    with pytest.raises(LinkClosedError, match=r"event_socket\.conf\.xml"):
        link.connect()
    assert heard.closes == 2


# The server


@pytest.fixture
def server():
    servers = []

    def make(handler, limit):
        servers.append(OutboundServer(("127.0.0.1", 0), handler, limit))
        servers[-1].start()
        return servers[-1]

    yield make
    for each in servers:
        each.stop(0.1)


def test_one_connection_too_many_is_closed_at_once(server):
    release = Event()
    serving = server(lambda _sock, _address: release.wait(), 2)
    refused, opened = metrics.ESL_REFUSED._value.get(), metrics.ESL_CONNECTIONS._value.get()
    peers = [socket.create_connection(serving.address, timeout=2) for _ in range(2)]
    until(lambda: serving.connections == 2)
    started = time.monotonic()
    with socket.create_connection(serving.address, timeout=2) as third:
        assert third.recv(1) == b""
    assert time.monotonic() - started < 0.2
    assert metrics.ESL_REFUSED._value.get() == refused + 1
    assert metrics.ESL_CONNECTIONS._value.get() == opened + 2
    release.set()
    assert [peer.recv(1) for peer in peers] == [b"", b""]  # closed when the handler returned
    until(lambda: serving.connections == 0)
    assert metrics.ESL_CONNECTIONS._value.get() == opened
    for peer in peers:
        peer.close()
    with socket.create_connection(serving.address, timeout=2):  # and there is room again
        until(lambda: serving.connections == 0)


def test_500_silent_peers_cost_little_and_hold_nobody_up(server):
    results = []

    def handle(sock, _address):
        link = OutboundLink(sock, on_event=print, on_close=lambda: None)
        link.start()
        try:
            results.append(link.connect(1.0))
        except LinkError as error:
            results.append(error)
        finally:
            link.close()

    serving = server(handle, 600)
    before = resident()
    with ticking():
        peers = [socket.create_connection(serving.address) for _ in range(500)]
        until(lambda: serving.connections == 500)
        held = resident() - before
        with socket.create_connection(serving.address) as good:
            assert received(good, 9) == b"connect\n\n"
            good.sendall(CONNECT)
            until(lambda: any(not isinstance(result, LinkError) for result in results), 0.5)
        until(lambda: serving.connections == 0)
    assert sum(isinstance(result, LinkTimeoutError) for result in results) == 500
    assert held < 500 * 50 * 1024
    for peer in peers:
        peer.close()


def test_as_many_calls_as_there_may_be_have_descriptors(server):
    """systemd gives a process 1024 unless it asks for more; a caller who finds none waits for 25 s."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 40, hard))
    try:
        release = Event()
        serving = server(lambda _sock, _address: release.wait(), 60)
        peers = [socket.create_connection(serving.address, timeout=2) for _ in range(60)]
        until(lambda: serving.connections == 60)
        release.set()
        for peer in peers:
            peer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_running_out_of_descriptors_is_a_pause_and_not_the_end(server, monkeypatch):
    served = []
    serving = server(lambda _sock, _address: served.append(1), 10)
    counted, failing = errors("accept"), [3]
    accept = StreamServer.do_read

    def exhausted(listener):
        if failing[0]:
            failing[0] -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    monkeypatch.setattr(StreamServer, "do_read", exhausted)
    with ticking(), socket.create_connection(serving.address):
        until(lambda: served)
    assert errors("accept") == counted + 3


def test_a_failing_handler_is_one_calls_trouble(server):
    def handle(_sock, _address):
        raise ValueError

    serving, counted = server(handle, 2), errors("handler")
    for _ in range(3):
        with socket.create_connection(serving.address, timeout=2) as peer:
            assert peer.recv(1) == b""
    until(lambda: serving.connections == 0)
    assert errors("handler") == counted + 3


def test_stop_ends_what_does_not_end_itself():
    forever = Event()
    serving = OutboundServer(("127.0.0.1", 0), lambda _sock, _address: forever.wait(), 5)
    serving.start()
    with socket.create_connection(serving.address, timeout=2) as peer:
        until(lambda: serving.connections == 1)
        started = time.monotonic()
        serving.stop(0.1)
        assert time.monotonic() - started < 1
        assert peer.recv(1) == b""
    until(lambda: serving.connections == 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(serving.address, timeout=1)


def test_an_address_in_use_is_named():
    with (
        plain.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(LinkError, match=r"can't listen on 127\.0\.0\.1"),
    ):
        OutboundServer(taken.getsockname(), lambda _sock, _address: None, 5).start()
