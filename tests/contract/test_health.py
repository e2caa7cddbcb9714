"""/healthz, /readyz and /metrics over HTTP, as an orchestrator and Prometheus ask for them."""

import json
import socket
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from callrec import metrics
from callrec.errors import ConfigError
from callrec.web import health


@pytest.fixture
def pages():
    found = {"postgres": True}
    registry = CollectorRegistry()
    Counter("callrec_test", "A test's", ["line"], registry=registry).labels('a"b\\c\nd').inc()
    server = health.serve(("127.0.0.1", 0), health.app(lambda: registry, lambda: found))

    def ask(path, method="GET"):
        request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, answer.headers["Content-Type"], answer.read().decode()

    ask.found = found
    ask.port = server.server_port
    yield ask
    server.stop(timeout=1)


def test_healthz_answers_while_the_process_lives_whatever_is_missing(pages):
    pages.found["postgres"] = False
    status, kind, body = pages("/healthz")
    assert (status, kind, json.loads(body)) == (200, "application/json", {"status": "ok"})


def test_readyz_names_what_is_missing(pages):
    assert pages("/readyz")[0] == 200
    pages.found.update(redis=False, event_socket=False, spool=True)
    status, _, body = pages("/readyz")
    assert status == 503
    assert json.loads(body) == {
        "ready": False,
        "missing": ["event_socket", "redis"],
        "checked": ["event_socket", "postgres", "redis", "spool"],
    }
    pages.found.update(redis=True, event_socket=True)
    assert json.loads(pages("/readyz")[2])["ready"] is True


def test_what_has_not_looked_yet_is_not_ready(pages):
    pages.found.clear()
    assert pages("/readyz")[0] == 503


def test_metrics_are_what_prometheus_reads(pages):
    status, kind, body = pages("/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=0.0.4")
    (family,) = [each for each in text_string_to_metric_families(body) if each.name == "callrec_test"]
    assert {sample.value for sample in family.samples if sample.name == "callrec_test_total"} == {1.0}
    assert "_created" not in body, "a series that nobody asks for"


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), ("/metrics", "POST", 405), ("/x", "GET", 404)]
)
def test_anything_else_is_refused(pages, path, method, status):
    assert pages(path, method)[0] == status


def test_garbage_on_the_port_harms_nobody(pages):
    for data in (b"\x00\xff" * 100, b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"a" * 100_000):
        with socket.create_connection(("127.0.0.1", pages.port), timeout=5) as peer:
            peer.sendall(data)
    silent = [socket.create_connection(("127.0.0.1", pages.port), timeout=5) for _ in range(20)]
    assert pages("/healthz")[0] == 200
    for peer in silent:
        peer.close()


def test_more_headers_than_are_read_leave_nothing_in_the_log(pages, capfd):
    with socket.create_connection(("127.0.0.1", pages.port), timeout=10) as peer:
        peer.sendall(b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n")
        assert b" 400 " in peer.recv(4096)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("said", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_peer_that_says_nothing_more_is_let_go(pages, monkeypatch, said):
    """Half a request would otherwise hold a connection, and one of the most at once, for ever."""
    monkeypatch.setattr(health, "_SILENCE", 0.2)
    with socket.create_connection(("127.0.0.1", pages.port), timeout=10) as peer:
        peer.sendall(said)
        while peer.recv(4096):
            pass


def test_a_peer_that_says_it_letter_by_letter_is_let_go(pages, monkeypatch):
    """None of its silences is long, and a few hundred of such would take every connection."""
    monkeypatch.setattr(health, "_REQUEST", 0.5, raising=False)
    deadline = time.monotonic() + 10
    with socket.create_connection(("127.0.0.1", pages.port), timeout=0.05) as peer:
        peer.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        while time.monotonic() < deadline:
            try:
                peer.sendall(b"x")
                if not peer.recv(4096):
                    return
            except TimeoutError:
                continue
            except OSError:
                return
    pytest.fail("it is still listened to")


def test_an_address_that_cannot_be_had_is_said(pages):
    for address, why in (
        (("127.0.0.1", pages.port), r"Address already in use. Another process has it"),
        (("192.0.2.1", 9470), r"Cannot assign requested address. See \[http\]"),
        (("no-such-host.invalid", 9470), r".+\. See \[http\]"),
    ):
        with pytest.raises(ConfigError, match=f"can't listen on {address[0]}:{address[1]}. {why}"):
            health.serve(address, health.app(CollectorRegistry, dict))


def test_no_metric_has_a_label_that_a_caller_could_fill():
    """What a label may name is a closed list: ids of the configuration, states, reasons, our own operations."""
    allowed = {
        "line", "basis", "decision", "reason", "state", "link", "kind", "result", "what", "store", "operation", "role",
        "dependency", "cause", "how", "check", "deadline",
    }  # fmt: skip
    ours = [each for each in vars(metrics).values() if hasattr(each, "_labelnames")]
    assert len(ours) > 20
    assert {label for metric in ours for label in metric._labelnames} <= allowed
    assert all(metric._name.startswith("callrec_") and metric._documentation for metric in ours)
    assert all(metric._name in REGISTRY._collector_to_names[metric] for metric in ours)
