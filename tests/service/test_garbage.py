"""Hostile peers on both event sockets, while ordinary calls go on and must be as the law demands."""

import contextlib
import socket
import time
from pathlib import Path

import gevent
import pytest
from fix_callrec import facts
from fix_stack import wait_until

from callrec.demo.caller import CallScript, after_prompt, hang_up, press
from callrec.demo.scenarios import by_name

ORDINARY = ("sale", "consent", "refusal")
MIB = 2**20
FORGED = "x%0Avariable_consent%3A%201"  # decoded before the lines are split, it is a header of its own
CONNECT_REPLY = b"Event-Name: CHANNEL_DATA\nUnique-ID: 5e51-1\nContent-Type: command/reply\nReply-Text: %2BOK%0A\n"


def memory(node):
    """Resident bytes of `listen`."""
    status = Path(f"/proc/{node.pid('listen')}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024


def processor(node):
    """Seconds of processor time that `listen` has used."""
    words = Path(f"/proc/{node.pid('listen')}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / 100


def asserted_ordinary(node):
    verdicts, _ = node.judged(*[by_name(name) for name in ORDINARY])
    assert {verdict.scenario: verdict.wrong for verdict in verdicts} == {name: [] for name in ORDINARY}


@pytest.fixture
def unharmed(callrec):
    """Whatever the test does: the same `listen` goes on, its hub stays prompt, its memory small, calls as demanded."""
    pid, before = callrec.pid("listen"), memory(callrec)
    lag = callrec.metric("callrec_hub_lag_max_seconds", role="listen")
    yield callrec
    assert callrec.pid("listen") == pid
    assert memory(callrec) < before + 64 * MIB
    assert callrec.metric("callrec_hub_lag_max_seconds", role="listen") < max(lag, 1.0)
    asserted_ordinary(callrec)


@contextlib.contextmanager
def peer(node, *, answer=True):
    """A connection to the listener, as FreeSWITCH's `socket` makes it; after callrec's `connect` unless told not to."""
    with socket.create_connection(node.installation.listen, timeout=10) as connection:
        if answer:
            assert connection.recv(100).startswith(b"connect")
        yield connection


def closed(connection, seconds=15):
    """Whether callrec ends this connection in time."""
    connection.settimeout(seconds)
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


NO_TYPE = CONNECT_REPLY.replace(b"Content-Type: command/reply\n", b"") + b"\n"
GARBAGE = [  # the kind of error that is counted, and what is said
    ("no_content_type", NO_TYPE),
    ("stray_blank_line", b"\n" + NO_TYPE),
    ("header_too_long", b"X" * (10 * MIB)),
    ("header_too_long", b"".join(b"H%d: %b\n" % (n, b"v" * 1000) for n in range(10_000))),
    ("cut_short", b"Content-Type: text/event-plain\nContent-Length: 5000\n\nEvent-Name: DTM"),
    ("cut_short", b"Content-Type: command/re"),
    ("bad_length", b"Content-Type: command/reply\nContent-Length: -5\n\n"),
    ("body_too_long", b"Content-Type: command/reply\nContent-Length: 9999999999999\n\n"),
    ("duplicate_length", b"Content-Type: command/reply\nContent-Length: 1\nContent-Length: 2\n\n"),
    ("bad_header", b"\xff\xfe\x80\n\n"),
    ("unexpected_reply", b"Content-Type: command/reply\nReply-Text: -ERR\n\n" * 400),
]


@pytest.mark.parametrize(("kind", "said"), GARBAGE, ids=[kind for kind, _ in GARBAGE])
def test_garbage_ends_one_connection_and_is_counted(unharmed, kind, said):
    before = unharmed.metric("callrec_esl_errors_total", link="outbound", kind=kind)
    with peer(unharmed) as connection:
        with contextlib.suppress(OSError):  # callrec may have closed it by now
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
        assert closed(connection)
    wait_until(
        lambda: unharmed.metric("callrec_esl_errors_total", link="outbound", kind=kind) > before, 10, "it is counted"
    )


def test_a_channel_whose_id_is_no_uuid_is_let_go(unharmed):
    """It would become part of commands and keys."""
    before = unharmed.metric("callrec_esl_errors_total", kind="channel_id")
    with peer(unharmed) as connection:
        connection.sendall(CONNECT_REPLY + b"Control: full\n\n")
        assert connection.recv(100) in {b"resume\n\n", b"resume\n\nexit\n\n"}
        connection.sendall(b"Content-Type: command/reply\nReply-Text: +OK\n\n" * 2)
        assert closed(connection)
    assert unharmed.metric("callrec_esl_errors_total", kind="channel_id") == before + 1


NO_CALLS = (
    b"\xff\xfe\x80: \xc3\x28\n" + CONNECT_REPLY.replace(b"5e51-1", b"\xc3\x28\xff") + b"Control: full\n\n",
    b"Content-Type: text/event-plain\nContent-Length: 9\n\n\xff\xfe\xfd\xfc\n\n\n\n\n",
    CONNECT_REPLY + b"\n",  # without full control
    b"Content-Type: text/disconnect-notice\nContent-Length: 0\n\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 8,  # TLS
    b"",
)


def test_what_is_no_call_is_let_go(unharmed):
    before = unharmed.metric("callrec_unrecorded_total", reason="not_taken")
    with contextlib.ExitStack() as open_:
        peers = [open_.enter_context(peer(unharmed)) for _ in NO_CALLS]
        for connection, said in zip(peers, NO_CALLS, strict=True):
            connection.sendall(said)
        assert all(closed(connection) for connection in peers)
    assert unharmed.metric("callrec_unrecorded_total", reason="not_taken") == before + len(NO_CALLS)


def test_five_hundred_silent_peers_keep_nobody_waiting(unharmed):
    with contextlib.ExitStack() as open_:
        for _ in range(500):
            open_.enter_context(peer(unharmed, answer=False))
        wait_until(lambda: unharmed.metric("callrec_esl_connections") >= 400, 10, "the connections")
        begun = time.monotonic()
        asserted_ordinary(unharmed)
        assert time.monotonic() - begun < 30
    wait_until(lambda: unharmed.metric("callrec_esl_connections") == 0, 20, "the connections' end")


def test_a_flood_of_garbage_beside_ordinary_calls(unharmed):
    """All kinds at once, again and again, while calls are announced, asked and recorded."""
    stopping = []

    def flood(said):
        while not stopping:
            with contextlib.suppress(OSError), peer(unharmed, answer=False) as connection:
                connection.sendall(said[:MIB])

    floods = [gevent.spawn(flood, said) for _, said in GARBAGE]
    try:
        asserted_ordinary(unharmed)
    finally:
        stopping.append(True)
        gevent.joinall(floods, timeout=10)
        gevent.killall(floods)
    wait_until(lambda: unharmed.metric("callrec_esl_connections") == 0, 20, "the connections' end")


def test_a_body_cut_short_does_not_spin(unharmed):
    """Stock greenswitch takes a whole processor from there on."""
    with peer(unharmed) as connection:
        connection.sendall(next(said for kind, said in GARBAGE if kind == "cut_short"))
    gevent.sleep(0.2)  # the peer is gone by now: what follows is measured, not waited for
    before, begun = processor(unharmed), time.monotonic()
    gevent.sleep(1.0)
    assert processor(unharmed) - before < 0.5 * (time.monotonic() - begun)


def test_a_callers_name_is_no_header(unharmed):
    """A display name with encoded line ends forges neither a number nor a variable nor an event."""
    names = (
        FORGED,
        "x%0A%0AContent-Type%3A%20text/event-plain",
        "x\r\nUnique-ID: 1",
        "x%0AEvent-Name%3A%20DTMF%0ADTMF-Digit%3A%201",
        "${uuid_record(x start /tmp/y)}",
        "\x00\xff",
    )
    calls = []
    for name in names:
        calls.append(unharmed.place(CallScript("040404040", caller_name=name, caller_number=FORGED, talk=2)))
        script = CallScript(
            "040404040", caller_name=name, caller_number=name, steps=((after_prompt(1.0), press("1")),), talk=3
        )
        calls.append(unharmed.place(script))
    for silent, granting in zip(calls[::2], calls[1::2], strict=True):
        assert ("bridged" in facts(silent), "recording" in facts(silent)) == (True, False)
        assert {"bridged", "recorded"} <= set(facts(granting))
        for call, decision in ((silent, "no_input"), (granting, "granted")):
            unharmed.settled(call)
            rows = unharmed.inspector.rows("SELECT decision FROM call WHERE channel = %s", call.uuid)
            assert rows == [{"decision": decision}]


def test_a_hostile_event_socket_is_left_and_found_again(unharmed):
    """Garbage on the inbound link: counted, the link is made anew, and a call that is being recorded goes on."""
    running = unharmed.place(CallScript("040404045", steps=(), talk=1000))
    wait_until(lambda: (row := unharmed.recording(running)) and row["state"] == "recording", 20, "a recording")
    for kind, said in GARBAGE:
        before = unharmed.metric("callrec_esl_errors_total", link="inbound", kind=kind)
        wait_until(lambda: unharmed.meddler.say(said) == 1, 10, "a connection")  # noqa: B023 # now
        unharmed.meddler.hang_up()
        wait_until(
            lambda: unharmed.metric("callrec_esl_errors_total", link="inbound", kind=kind) > before,  # noqa: B023 # now
            10,
            kind,
        )
        unharmed.ready()
    running.plan(0.1, hang_up())
    running.poke()
    unharmed.settled(running)
    assert unharmed.recording(running)["state"] == "stored"
