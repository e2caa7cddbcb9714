"""F1: after every kind of call, nowhere the caller's number, name or keys but where each is meant to be."""

import hashlib
import hmac
import re
import urllib.request
import uuid
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from fix_callrec import facts
from fix_stack import wait_until
from minio import Minio
from nacl.public import PrivateKey, SealedBox

from callrec.demo.caller import after_prompt, in_conversation, on_arrival, press
from callrec.demo.scenarios import SCENARIOS
from callrec.ledger.caller import Lookup
from callrec.store import live

NUMBER, NAME = "+38641234567", "Janez Novak"
FORMS = (NUMBER, "041234567", "38641234567", "0038641234567", "41234567", "041 234 567", "%2B38641234567")
HASHES = tuple(
    digest(form.encode()).hexdigest() for form in FORMS for digest in (hashlib.sha256, hashlib.sha1, hashlib.md5)
)
TELLING = (*FORMS, *HASHES, NAME, "Janez", "Novak", "Janez%20Novak", NAME.encode().hex())
SECRET_KEYS = "8467395"  # what a caller might type to a bank


@pytest.fixture(scope="module")
def told(callrec):
    """Every scenario by this caller, who also presses keys that are nobody's business; what each call was."""
    live.connect(callrec.stack.redis_url).flushdb()
    forms = ("+38641234567", "041234567", "38641234567", "0038641234567")
    scenarios = [
        replace(
            each,
            script=replace(
                each.script,
                caller_number=forms[n % len(forms)],
                caller_name=NAME,
                steps=(*each.script.steps, (in_conversation(0.5), press(SECRET_KEYS))),
            ),
        )
        for n, each in enumerate(SCENARIOS)
    ]
    verdicts, calls = callrec.judged(*scenarios)
    assert not [verdict.wrong for verdict in verdicts if verdict.wrong]
    assert any(SECRET_KEYS[-1] in [fact[1] for _, fact in call.timeline if fact[0] == "key"] for call in calls)
    return {verdict.scenario: call for verdict, call in zip(verdicts, calls, strict=True)}


def asserted_silent(text, where):
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "", text)  # random ids may hold any digits
    found = [each for each in (*TELLING, SECRET_KEYS) if each.lower() in text.lower()]
    assert not found, f"{found} in {where}"


def test_logs_and_metrics_do_not_tell(callrec, told):
    asserted_silent(callrec.logs(), "the log")
    assert "recording_stored" in callrec.logs()
    for page in ("/metrics", "/readyz"):
        with urllib.request.urlopen(callrec.installation.url(page), timeout=5) as answer:
            text = answer.read().decode()
        asserted_silent(text, page)
    assert "5551234" not in callrec.logs()


def test_redis_does_not_tell(callrec, told):
    client = live.connect(callrec.stack.redis_url)
    keys = client.keys("*")
    assert len(keys) >= len(SCENARIOS)
    for key in keys:
        asserted_silent(f"{key} {client.hgetall(key)}", "Redis")
        assert set(client.hgetall(key)) == {
            "call", "line", "basis", "state", "decision", "recording", "masked", "since", "node"
        }  # fmt: skip
        assert client.ttl(key) > 0
    client.close()


def metadata(node, version):
    """Every header with which the object store describes this version."""
    s3 = node.stack.s3
    keys = node.installation.secrets
    client = Minio(
        endpoint=s3.host,
        access_key=keys["CALLREC_S3_ACCESS_KEY_API"],
        secret_key=keys["CALLREC_S3_SECRET_KEY_API"],
        secure=s3.secure,
        region=s3.region,
    )
    found = client.stat_object(
        bucket_name=node.installation.bucket, object_name=version.key, version_id=version.version_id
    )
    return dict(found.metadata)


def test_objects_and_files_do_not_tell(callrec, told):
    everything = callrec.inspector.versions()
    found = [version for version in everything if not version.key.startswith("probe/")]  # the storage probe's canaries
    assert len(found) >= 3
    for version in everything:
        asserted_silent(version.key, "an object's key")
    for version in found:
        asserted_silent(repr(metadata(callrec, version)), "an object's metadata")
        assert re.fullmatch(r"[a-z-]+/\d{4}/\d{2}/[0-9a-f-]{36}", version.key), version.key
    for path in callrec.installation.root.rglob("*"):
        asserted_silent(str(path.relative_to(callrec.installation.root)), "a path")
        if path.is_file() and path.suffix not in {".wav", ".enc"}:
            asserted_silent(path.read_bytes().decode("utf-8", "replace"), path.name)


def test_no_table_tells_and_the_callers_own_is_sealed(callrec, told):
    with psycopg.connect(callrec.stack.postgres_url, autocommit=True) as connection:
        tables = [
            name
            for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        ]
        assert {"call", "caller", "recording", "recording_key", "ledger"} <= set(tables)
        for table in tables:
            rows = connection.execute(f"SELECT t::text FROM {table} AS t").fetchall()
            for (row,) in rows:
                asserted_silent(row, table)
                for form in (*FORMS, NAME, SECRET_KEYS):  # bytea shows as hex
                    assert form.encode().hex() not in row, table


def test_the_ledger_holds_only_keys_that_mean_something(callrec, told):
    """And of a refusal only that it was one."""
    keys = callrec.inspector.rows("SELECT kind, body->>'key' AS key FROM ledger WHERE body ? 'key'")
    assert {(row["kind"], row["key"]) for row in keys} <= {
        ("key_pressed", "1"), ("consent_refused", "2"), ("consent_withdrawn", "*2")
    }  # fmt: skip
    assert not callrec.inspector.rows("SELECT 1 FROM ledger WHERE body::text ~ 'digits|dtmf'")


def test_only_recorded_callers_are_kept(callrec, told):
    """There is nothing to prove about who refused."""
    kept = {
        str(row["channel"]) for row in callrec.inspector.rows("SELECT channel FROM caller JOIN call USING (call_id)")
    }
    recorded = {told[name].uuid for name in ("sale", "consent", "masked")}
    assert recorded <= kept
    assert not kept & {told[name].uuid for name in set(told) - {"sale", "consent", "masked", "withdrawal"}}


@pytest.mark.parametrize("name", ["sale", "consent", "masked"])
def test_the_number_opens_with_the_private_key_and_the_commitment_with_the_salt(callrec, told, name):
    (row,) = callrec.inspector.rows(
        "SELECT caller.*, body->>'caller_commitment' AS commitment FROM caller JOIN call USING (call_id)"
        " JOIN ledger USING (call_id) WHERE channel = %s AND kind = 'basis_established'",
        told[name].uuid,
    )
    opened = SealedBox(PrivateKey(callrec.installation.private_key)).decrypt(bytes(row["sealed"]))
    assert opened.decode() == NUMBER
    assert hmac.digest(bytes(row["salt"]), NUMBER.encode(), "sha256").hex() == row["commitment"]
    lookup_keys = callrec.installation.config.secrets.lookup_keys()
    assert lookup_keys.newest(NUMBER) == Lookup(bytes(row["lookup"]), row["epoch"])
    others = callrec.inspector.rows("SELECT salt FROM caller WHERE call_id <> %s", row["call_id"])
    assert bytes(row["salt"]) not in [bytes(other["salt"]) for other in others]


def test_a_withdrawn_caller_is_forgotten(callrec, told):
    """The recording is gone, and so is who made the call; the commitment in the ledger says nothing any more."""
    rows = callrec.inspector.rows(
        "SELECT 1 FROM caller JOIN call USING (call_id) WHERE channel = %s", told["withdrawal"].uuid
    )
    assert rows == []


def test_a_listener_that_meets_trouble_does_not_tell_either(callrec, told):
    """Errors are where quoted input gets out: broken links, orders for nobody, keys before the notice."""
    script = replace(
        SCENARIOS[1].script,
        caller_number=NUMBER,
        caller_name=NAME,
        steps=(
            (on_arrival(0.1), press(SECRET_KEYS)),
            (after_prompt(1.0), press(SECRET_KEYS)),
            *SCENARIOS[1].script.steps,
        ),
    )
    call = callrec.place(script)
    wait_until(lambda: call.links, 5, "the link")
    callrec.meddler.hang_up()
    assert "bridged" in facts(call)
    callrec.command("mask", str(uuid.uuid4()))
    callrec.ready()
    callrec.settled(call)
    asserted_silent(callrec.logs(), "the log")
    asserted_silent(Path(callrec.installation.config_path).read_text(), "the configuration")
