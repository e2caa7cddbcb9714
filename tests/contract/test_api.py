"""The callbacks over HTTP, as the role `api` serves them, on a real Postgres, Redis and Ceph RGW."""

import json
import socket
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import falcon
import pytest
from fix_rights import NUMBER

from callrec.call.policy import BasisKind
from callrec.demo.process import free_port
from callrec.errors import ConfigError
from callrec.web import health
from callrec.web.api import Callbacks
from callrec.web.auth import Accounts

TOKEN = "t" * 32
NOW = datetime.now(UTC).isoformat()
WITHDRAWAL = {"channel": "phone", "received_at": NOW, "number": NUMBER, "proofs": ["login"]}


class Client:
    def __init__(self, house):
        self.address = ("127.0.0.1", free_port())
        pages = falcon.App()
        Callbacks(house.desk(), Accounts(f"desktop:{TOKEN}"), "SI").add_to(pages)
        self._server = health.serve(self.address, pages)

    def close(self):
        self._server.stop(timeout=1)

    def post(self, path, body=None, *, token=TOKEN, raw=None, method="POST", headers=None):
        """(status, JSON, content type)"""
        request = urllib.request.Request(
            f"http://{self.address[0]}:{self.address[1]}{path}", method=method,
            data=raw if raw is not None else json.dumps(body or {}).encode(),
            headers={"Authorization": f"Bearer {token}"} | (headers or {}) if token else headers or {},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.load(answer), answer.headers["Content-Type"]
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, json.load(answer), answer.headers["Content-Type"]

    def refused(self, status, *args, **options):
        """The problem that is answered with this status."""
        found, problem, kind = self.post(*args, **options)
        assert (found, kind) == (status, "application/problem+json"), problem
        assert problem["status"] == status
        assert problem["title"]
        return problem


@pytest.fixture
def client(house):
    made = Client(house)
    yield made
    made.close()


@pytest.mark.parametrize("token", ["", "wrong" * 8, TOKEN + "x", f"desktop:{TOKEN}"])
def test_without_an_accounts_token_nothing_is_even_read(house, client, token):
    for path in ("/v1/revocations", f"/v1/recordings/{uuid4()}/disposition", f"/v1/holds/{uuid4()}/release"):
        client.refused(401, path, WITHDRAWAL, token=token)
    assert house.stores.rows("SELECT 1 FROM revocation") == []


def test_tokens_are_configured_long_enough_and_with_an_account():
    other = "u" * 32
    for text in (
        "desktop:short", f"{TOKEN}", f"Desk top:{TOKEN}",
        f"desktop:{TOKEN} portal:{TOKEN}",  # whose word is it?
        f"desktop:{TOKEN} desktop:{other}",  # one of them would not count, unsaid
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            Accounts(text)
    assert not Accounts("")


def test_a_withdrawal_is_taken_in_and_answered_with_what_stays_and_until_when_d4(house, client):
    kept, sale = house.record(), house.record(BasisKind.NOTICE)
    received = datetime.now(UTC).isoformat()
    about = WITHDRAWAL | {"received_at": received, "number": "031 234 567"}
    status, answer, kind = client.post("/v1/revocations", about)
    assert (status, kind) == (201, "application/json")
    assert {each["recording"]: (each["fate"], each["why"]) for each in answer["recordings"]} == {
        str(kept.recording_id): ("erase", "withdrawn"), str(sale.recording_id): ("not_touched", "statutory"),
    }  # fmt: skip
    assert all(each["says"] for each in answer["recordings"])
    assert datetime.fromisoformat(answer["deadline"]) > datetime.now(UTC) + timedelta(days=4)
    assert client.post("/v1/revocations", about)[1]["revocation"] == answer["revocation"]  # sent again
    assert len(house.stores.rows("SELECT 1 FROM revocation")) == 1
    house.erase_all()
    assert house.left(kept) == set()


def test_identified_later(house, client):
    kept = house.record()
    answer = client.post("/v1/revocations", WITHDRAWAL | {"proofs": [], "received_at": datetime.now(UTC).isoformat()})[
        1
    ]
    assert answer["identification"] == "unverified"
    page = f"/v1/revocations/{answer['revocation']}/identification"
    client.refused(409, page, {"identification": "failed"})
    assert client.post(page, {"identification": "verified"})[1]["recordings"][0]["fate"] == "erase"
    house.erase_all()
    assert house.left(kept) == set()
    client.refused(404, f"/v1/revocations/{uuid4()}/identification", {"identification": "verified"})


def test_a_disposition_seals_or_erases_and_is_said_once(house, client):
    kept, consent = house.record(BasisKind.NOTICE), house.record()
    page = f"/v1/recordings/{kept.recording_id}/disposition"
    assert client.post(page, {"disposition": "order"})[:2] == (200, {"disposition": "order", "effect": "seal"})
    assert client.post(page, {"disposition": "order"})[1]["effect"] == "unchanged"
    assert "order" in client.refused(409, page, {"disposition": "no_transaction"})["title"]
    client.refused(409, f"/v1/recordings/{consent.recording_id}/disposition", {"disposition": "order"})
    client.refused(404, f"/v1/recordings/{uuid4()}/disposition", {"disposition": "order"})
    minor = house.record(BasisKind.NOTICE)
    answer = client.post(f"/v1/recordings/{minor.recording_id}/disposition", {"disposition": "order", "minor": True})
    assert answer[1] == {"disposition": "no_transaction", "effect": "erase"}


def test_a_hold_is_placed_reviewed_and_released(house, client):
    kept = house.record()
    review = (datetime.now(UTC) + timedelta(days=10)).isoformat()
    page = f"/v1/recordings/{kept.recording_id}/holds"
    client.refused(422, page, {"reason": "dispute", "case": " ", "review_at": review})
    too_late = (datetime.now(UTC) + timedelta(days=400)).isoformat()
    client.refused(422, page, {"reason": "dispute", "case": "c-1", "review_at": too_late})
    status, answer, _ = client.post(page, {"reason": "restriction", "case": "c-1", "review_at": review})
    assert status == 201
    hold = answer["hold"]
    later = (datetime.now(UTC) + timedelta(days=20)).isoformat()
    assert client.post(f"/v1/holds/{hold}/review", {"review_at": later})[0] == 200
    client.refused(422, f"/v1/holds/{hold}/release", {"why": "over"})  # the person has to be told first (E11)
    told = {"why": "over", "person_told_at": datetime.now(UTC).isoformat()}
    assert client.post(f"/v1/holds/{hold}/release", told)[1] == {"recording": str(kept.recording_id)}
    client.refused(404, f"/v1/holds/{hold}/release", told)


DEEP = b'{"proofs":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
HOSTILE = [
    b"", b"null", b"[]",  b"1e999", b"{", b'"text"', b"\xff\xfe", b"{}" * 2, DEEP, b'{"number": NaN}',
    b'{"channel": "phone", "received_at": ' + b"9" * 5000 + b"}",
    (json.dumps(WITHDRAWAL)[:-1] + ', "number": "+38631999999"}').encode(),  # a name twice
]  # fmt: skip
WRONG = [
    {"number": 38631234567}, {"number": "not a number"}, {"number": "\ud800"}, {"number": "+386\u0000"},
    {"number": NUMBER * 1000}, {"channel": "carrier pigeon"}, {"channel": ["phone"]}, {"received_at": "yesterday"},
    {"received_at": "2026-12-24T10:00:00"}, {"received_at": "0001-01-01T00:00:00+00:00"},
    {"received_at": "9999-12-31T23:59:59-12:00"}, {"received_at": None}, {"proofs": "login"}, {"proofs": [1]},
    {"proofs": [{}]}, {"proofs": ["login"] * 21}, {"proofs": ["telepathy"]}, {"call": "none"}, {"recording": 5},
    {"recording": "x" * 40}, {"evidence_sha256": "zz"}, {"evidence_sha256": "00"}, {"evidence_sha256": "  "},
    {"received_at": "2026-W01-1T10:00:00+01:00"}, {"received_at": "2026-02-30T10:00:00+01:00"}, {"given_by": "aunt"},
    {"unknown": 1}, {"nu\ud800mber": 1}, {"": ""}, {"code": {"a": 1}}, {"on_behalf_of": True},
    {"on_behalf_of": "line\r\nbreak", "given_by": "parent"}, {"on_behalf_of": "\u202egnp", "given_by": "parent"},
]  # fmt: skip


@pytest.mark.parametrize("raw", HOSTILE, ids=lambda raw: raw[:12].decode(errors="replace"))
def test_what_is_no_json_object_is_refused(house, client, raw):
    client.refused(400, "/v1/revocations", raw=raw)
    assert house.stores.rows("SELECT 1 FROM revocation") == []


@pytest.mark.parametrize("about", WRONG, ids=lambda about: ascii(about)[:30])
def test_a_field_of_the_wrong_kind_is_refused_and_not_repeated(house, client, about):
    problem = client.refused(400, "/v1/revocations", WITHDRAWAL | about)
    assert "not a number" not in str(problem)
    assert house.stores.rows("SELECT 1 FROM revocation") == []


@pytest.mark.parametrize(
    "about",
    [
        {"number": ""}, {"number": "", "code": "AAAA-AAAA"}, {"given_by": "parent"}, {"on_behalf_of": "child-1"},
        {"code": "7K3M-9QXF"}, {"call": str(uuid4())},  # beside the number
        {"received_at": (datetime.now(UTC) + timedelta(days=1)).isoformat()},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_what_to_do(house, client, about):
    assert client.refused(422, "/v1/revocations", WITHDRAWAL | about)["hint"]
    assert house.stores.rows("SELECT 1 FROM revocation") == []


def test_a_body_that_is_too_long_is_not_read(client):
    with socket.create_connection(client.address, timeout=10) as plug:
        plug.sendall(
            f"POST /v1/revocations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Length: 1000000000\r\n\r\n".encode()
        )
        assert b" 413 " in plug.recv(100)  # nothing of it was sent
    client.refused(413, "/v1/revocations", raw=b" " * 100_000)


def in_chunks(client, *chunks):
    """The answer to a body without a length, as streaming clients send it."""
    with socket.create_connection(client.address, timeout=10) as plug:
        plug.sendall(
            f"POST /v1/revocations HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for chunk in (*chunks, b""):
            plug.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        return b"".join(iter(lambda: plug.recv(4096), b""))


def test_a_body_in_chunks_is_read_whole(house, client):
    sent = json.dumps(WITHDRAWAL).encode()
    assert b" 201 " in in_chunks(client, sent[:9], sent[9:]).splitlines()[0]
    assert len(house.stores.rows("SELECT 1 FROM revocation")) == 1
    assert b" 413 " in in_chunks(client, b" " * 66_000).splitlines()[0]


def test_a_recording_that_never_was_is_unknown(house, client):
    client.refused(404, "/v1/revocations", WITHDRAWAL | {"recording": str(uuid4())})
    assert house.stores.rows("SELECT 1 FROM revocation") == []


def test_other_pages_and_methods(client):
    client.refused(404, "/v1/nothing")
    client.refused(405, "/v1/revocations", method="PUT")
    client.refused(400, "/v1/recordings/none/disposition", {"disposition": "order"})


def test_codes_cannot_be_tried_out_d11(client):
    statuses = [client.post("/v1/revocations", WITHDRAWAL | {"number": "", "code": "AAAA-AAAA"})[0] for _ in range(22)]
    assert statuses[0] == 422
    assert statuses[-1] == 429


def test_without_postgres_it_says_so_and_when_to_come_back(house, client):
    house.database("api").close()
    problem = client.refused(503, "/v1/revocations", WITHDRAWAL)
    assert NUMBER not in str(problem)


def test_a_fault_of_ours_is_told_without_a_word_of_what_was_sent(house, client, monkeypatch, capfd):
    from callrec.rights.desk import Desk

    def broken(self, intake):
        raise RuntimeError(intake.number)

    monkeypatch.setattr(Desk, "revoke", broken)
    problem = client.refused(500, "/v1/revocations", WITHDRAWAL)
    assert NUMBER[1:] not in str(problem)
    assert NUMBER[1:] not in "".join(capfd.readouterr())
