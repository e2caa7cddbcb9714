"""RFC 3161 time stamps from a stand-in authority, which is `openssl ts` behind HTTP; `openssl ts` verifies them too."""

import contextlib
import subprocess
from types import SimpleNamespace

import gevent
import pytest
from fix_ledger import run_out
from gevent.pywsgi import WSGIServer

from callrec.demo.process import free_port
from callrec.errors import ConfigError, StorageError
from callrec.ledger import timestamp
from callrec.ledger.timestamp import Authority

CONFIG = """\
[ tsa ]
default_tsa = a
[ a ]
serial = {0}/serial
signer_cert = {0}/tsa.pem
signer_key = {0}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
"""
EXTENSIONS = "extendedKeyUsage=critical,timeStamping\nkeyUsage=critical,digitalSignature\n"


def openssl(*arguments, **options):
    return subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60, **options)


def certify(directory):
    """An authority's own root, and its certificate for time stamps."""
    new = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(
        *new, "-x509", "-days", 2, "-subj", "/CN=root", "-keyout", directory / "ca.key", "-out", directory / "ca.pem"
    )
    openssl(*new, "-subj", "/CN=tsa", "-keyout", directory / "tsa.key", "-out", directory / "tsa.csr")
    (directory / "extensions").write_text(EXTENSIONS)
    openssl(
        "x509", "-req", "-in", directory / "tsa.csr", "-CA", directory / "ca.pem", "-CAkey", directory / "ca.key",
        "-set_serial", 7, "-days", 2, "-extfile", directory / "extensions", "-out", directory / "tsa.pem",
    )  # fmt: skip
    (directory / "serial").write_text("01")
    (directory / "tsa.cnf").write_text(CONFIG.format(directory))
    return directory


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    return certify(tmp_path_factory.mktemp("tsa"))


@pytest.fixture
def tsa(certified):
    """.url and .roots of an authority that answers; .answer may be replaced."""
    made = SimpleNamespace(roots=certified / "ca.pem", asked=0)

    def answer(query):
        (certified / "query").write_bytes(query)
        command = ("ts", "-reply", "-config", certified / "tsa.cnf", "-queryfile", certified / "query")
        return openssl(*command).stdout

    def serve(environ, start_response):
        made.asked += 1
        assert environ["CONTENT_TYPE"] == "application/timestamp-query"
        body = made.answer(environ["wsgi.input"].read())
        start_response("200 OK", [("Content-Type", "application/timestamp-reply")])
        return [body]

    made.answer = answer
    server = WSGIServer(("127.0.0.1", 0), serve, log=None, error_log=None)
    server.start()
    made.url = f"http://127.0.0.1:{server.address[1]}/tsr"
    yield made
    server.stop(timeout=0)


def test_a_stamp_is_checked_here_and_can_be_checked_by_anybody(tsa, tmp_path):
    stamp = Authority(tsa.url, tsa.roots).stamp(b"a note\n")
    (tmp_path / "note").write_bytes(b"a note\n")
    (tmp_path / "note.tsr").write_bytes(stamp)
    said = openssl(
        "ts", "-verify", "-in", tmp_path / "note.tsr", "-data", tmp_path / "note", "-CAfile", tsa.roots
    )  # fmt: skip
    assert b"Verification: OK" in said.stdout


def test_a_stamp_of_something_else_or_of_another_moment_is_refused(tsa):
    """Of other bytes, and one that was given before: the nonce tells."""
    answered = []
    genuine = tsa.answer
    tsa.answer = lambda query: answered.append(genuine(query)) or answered[0]
    authority = Authority(tsa.url, tsa.roots)
    authority.stamp(b"one")
    for data in (b"one", b"two"):
        with pytest.raises(StorageError, match="no valid stamp"):
            authority.stamp(data)


def test_a_stamp_of_an_authority_that_nobody_named_is_refused(tsa, tmp_path):
    other = certify(tmp_path)
    with pytest.raises(StorageError, match="no valid stamp"):
        Authority(tsa.url, other / "ca.pem").stamp(b"one")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"x" * 1_000_000, bytes.fromhex("30053003020102")], ids=["none", "page", "huge", "no"]
)
def test_an_answer_that_is_none_is_refused(tsa, body):
    tsa.answer = lambda _query: body
    with pytest.raises(StorageError, match=r"no (valid )?stamp"):
        Authority(tsa.url, tsa.roots).stamp(b"one")


def test_an_authority_that_is_silent_or_away_is_not_waited_for(tsa, monkeypatch):
    monkeypatch.setattr(timestamp, "_READ", 0.2)
    tsa.answer = lambda _query: gevent.sleep(30) or b""
    for url in (tsa.url, f"http://127.0.0.1:{free_port()}/"):
        with gevent.Timeout(20), pytest.raises(StorageError, match="does not answer"):
            Authority(url, tsa.roots).stamp(b"one")


def test_roots_that_are_none_are_said_at_the_start(tmp_path):
    (tmp_path / "empty").write_text("")
    for path in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(ConfigError, match="tsa_roots"):
            Authority("http://127.0.0.1/", path)


def test_each_anchor_gets_its_stamp_beside_it_as_soon_as_there_is_one(anchored, tsa):
    anchors = anchored.another_anchors(stamp=Authority(tsa.url, tsa.roots).stamp)
    anchors.look()
    anchored.append(2)
    run_out(anchored.another(anchors=anchors))
    genuine, tsa.answer = tsa.answer, lambda _query: b"not now"
    with contextlib.suppress(StorageError):
        anchors.anchor()
    assert [version.key[-4:] for version in anchored.versions()] == ["0002"], "the anchor does not wait for it"
    tsa.answer = genuine
    for _ in range(2):
        anchors.anchor()
    assert tsa.asked == 2
    stamp = next(version for version in anchored.versions() if version.key.endswith("0002.tsr"))
    assert anchored.read(stamp)[:1] == b"0"
    fresh = anchored.another_anchors()
    fresh.look()
    assert fresh.trusted().size == 2, "a stamp is taken for no anchor"
