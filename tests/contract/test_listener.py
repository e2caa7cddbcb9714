"""The listener against a FreeSWITCH that brings a call and takes it away again at once."""

from types import SimpleNamespace

import pytest
from fix_stack import wait_until
from fix_store import make_line, make_policy
from gevent import socket
from prometheus_client import REGISTRY

from callrec.call.state import Timing
from callrec.esl import wire
from callrec.esl.link import OutboundServer
from callrec.esl.listener import Listener
from callrec.esl.registry import Registry

CHANNEL = "9f2c1a52-5d0e-4c77-8d38-7a1f3f0f8a11"


# What a listener asks of its node before the interview.
NODE = SimpleNamespace(
    policy=make_policy(make_line()),
    timing=Timing(),
    prompts=lambda line: line,
    spool=SimpleNamespace(path=lambda _recording: "/spool/x.wav"),
)


def in_new():
    return REGISTRY.get_sample_value("callrec_calls_in_state", {"state": "new"}) or 0.0


@pytest.fixture
def server():
    registry = Registry()
    server = OutboundServer(("127.0.0.1", 0), Listener(NODE, registry).serve, 10)
    server.start()
    server.registry = registry
    yield server
    server.stop(1)


def test_a_call_that_goes_again_as_soon_as_it_is_taken_is_counted_nowhere(server):
    """Its caller hung up meanwhile. What stays in a gauge stays there until the next restart."""
    before = in_new()
    data = {"Unique-ID": CHANNEL, "Caller-Destination-Number": "+38640404040"}
    for _ in range(5):
        with socket.create_connection(server.address) as peer:
            assert peer.recv(100) == b"connect\n\n"
            peer.sendall(wire.build_connect_reply(data))
        wait_until(lambda: server.connections == 0, 10)
    assert (in_new(), len(server.registry)) == (before, 0)
