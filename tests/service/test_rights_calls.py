"""What callers and agents say afterwards, through the whole of callrec: commands and callbacks in, effects seen."""

import json
import re
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
import pytest
import redis
from fix_callrec import frozen, moment, until_seen
from fix_stack import wait_until

from callrec.demo.scenarios import by_name

CONSENT, SALE = by_name("consent"), by_name("sale")
ALLOWED = "service_quality.information_accuracy"


def by(number, scenario=CONSENT):
    return replace(scenario, script=replace(scenario.script, caller_number=number))


@pytest.fixture
def talk(callrec):
    """talk(number) -> a consent call that is being recorded, from this number, until the test ends."""
    calls = []

    def begin(number):
        call = callrec.place(replace(by(number).script, talk=600))
        calls.append(call)
        until_seen(call, "bridged")
        wait_until(lambda: callrec.recording(call)["state"] == "recording", 10, "recording noted")
        return call

    yield begin
    for call in calls:
        call.hangup("NORMAL_CLEARING", now=True)
        callrec.settled(call)


def revoke(node, *arguments):
    done = node.command("revoke", "--channel", "phone", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def post(node, path, body):
    token = node.installation.secrets["CALLREC_API_TOKENS"].partition(":")[2]
    host, port = node.installation.callbacks
    request = urllib.request.Request(
        f"http://{host}:{port}{path}", data=json.dumps(body).encode(), headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def gone(node, recording_id):
    rows = node.inspector.rows(
        "SELECT (SELECT count(*) FROM recording_key k WHERE k.recording_id = r.recording_id)"
        " + (SELECT count(*) FROM caller c WHERE c.call_id = r.call_id) AS left, state FROM recording r"
        " WHERE recording_id = %s",
        recording_id,
    )
    versions = [each for each in node.versions(recording_id) if not each.key.startswith("erased/")]
    return rows[0]["left"] == 0 and rows[0]["state"] == "erased" and not versions


def live(node, call):
    client = redis.Redis.from_url(node.stack.redis_url, decode_responses=True, socket_timeout=5)
    try:
        return client.hgetall(f"callrec:call:{call.uuid}")
    finally:
        client.close()


def test_a_withheld_number_gets_a_code_to_withdraw_by_d11(callrec, talk):
    call = talk("anonymous")
    code = wait_until(lambda: live(callrec, call).get("reference"), 5, "the code for the agent to read out")
    assert re.fullmatch(r"[0-9A-Z]{4}-[0-9A-Z]{4}", code)
    row = callrec.recording(call)
    told = revoke(callrec, "--code", code.lower().replace("-", " "))
    assert f"{row['recording_id']}  erase" in told
    wait_until(lambda: not callrec.spooled(), 10, "no file")
    assert not call.ended
    wait_until(lambda: gone(callrec, row["recording_id"]), 30, "erased")
    everything = callrec.inspector.rows("SELECT string_agg(row_to_json(l)::text, '') AS text FROM ledger l")[0]["text"]
    assert code not in everything
    assert code not in callrec.logs()


def test_a_known_number_gets_no_code(callrec, talk):
    assert "reference" not in live(callrec, talk("+38631222333"))


def test_by_callback_a_running_recording_stops_at_once_and_is_erased(callrec, talk):
    call = talk("031 333 444")
    row = callrec.recording(call)
    about = {"channel": "portal", "received_at": datetime.now(UTC).isoformat(), "number": "+38631333444",
             "proofs": ["login"]}  # fmt: skip
    answer = post(callrec, "/v1/revocations", about)
    assert [(each["recording"], each["fate"]) for each in answer["recordings"]] == [(str(row["recording_id"]), "erase")]
    wait_until(lambda: "consent_withdrawn" in callrec.kinds(call), 10, "stopped")
    assert not call.ended
    wait_until(lambda: gone(callrec, row["recording_id"]), 30, "erased")


def test_withdrawn_while_the_listener_is_dead_it_is_stopped_when_there_is_one_again(callrec, talk):
    call = talk("031 444 555")
    row = callrec.recording(call)
    withdrawn = callrec.installation.spool / "withdrawn" / str(row["recording_id"])
    with frozen(callrec.supervisor):  # so that the erasure has begun before there is a listener again
        callrec.kill("listen")
        revoke(callrec, "--number", "031 444 555", "--proof", "calling_number")
        wait_until(withdrawn.exists, 30, "the erasure's mark")
    wait_until(lambda: gone(callrec, row["recording_id"]), 60, "erased")
    assert moment(call, "recorded") is not None  # FreeSWITCH writes no more, not even into a file without a name
    assert not call.ended
    callrec.ready()


def test_stored_consent_goes_and_what_the_law_keeps_stays_and_is_said_d4(callrec):
    number = "+38631555666"
    verdicts, calls = callrec.judged(by(number), by(number, SALE))
    assert not any(verdict.wrong for verdict in verdicts)
    consent, sale = (callrec.recording(call) for call in calls)
    told = revoke(callrec, "--number", number, "--proof", "document")
    assert f"{sale['recording_id']}  not_touched  The recording is kept by law" in told
    played = callrec.command(
        "play", str(consent["recording_id"]), "-p", ALLOWED, "-o", str(callrec.directory / "withdrawn.wav")
    )
    assert played.returncode == 1
    assert not (callrec.directory / "withdrawn.wav").exists()
    wait_until(lambda: gone(callrec, consent["recording_id"]), 30, "erased")
    assert callrec.recording(calls[1])["state"] == "stored"

    said = callrec.command("dispose", str(sale["recording_id"]), "order")
    assert said.returncode == 0, said.stderr
    wait_until(lambda: callrec.recording(calls[1])["lock_mode"] == "COMPLIANCE", 40, "sealed")
    other = callrec.command("dispose", str(sale["recording_id"]), "no_transaction")
    assert (other.returncode, "order" in other.stderr) == (1, True)


def test_an_order_to_erase_many_is_tried_first_and_confirmed_by_its_count(callrec):
    _, calls = callrec.judged(CONSENT, CONSENT)
    rows = [callrec.recording(call) for call in calls]
    since = min(row["started_at"] for row in rows).isoformat()
    conditions = ("erase", "--since", since, "--basis", "consent", "--cause", "order")
    tried = callrec.command(*conditions)
    assert (tried.returncode, tried.stdout.startswith("2 recordings; nothing was done")) == (0, True)
    assert callrec.command(*conditions, "--confirm", "3").returncode == 1
    assert {callrec.recording(call)["state"] for call in calls} == {"stored"}
    done = callrec.command(*conditions, "--confirm", "2")
    assert (done.returncode, done.stdout.startswith("2 due for erasure")) == (0, True), done.stderr
    wait_until(lambda: all(gone(callrec, row["recording_id"]) for row in rows), 30, "erased")
    replayed = callrec.command("replay-erasures")
    assert (replayed.returncode, replayed.stdout.split()[0]) == (0, "0"), replayed.stderr


def test_a_lost_nodes_recordings_are_taken_over_by_their_count(callrec):
    own = callrec.installation.config.node
    assert callrec.command("adopt", own).returncode == 1
    asked = callrec.command("adopt", "never-was")
    assert (asked.returncode, asked.stdout.splitlines()[0]) == (
        0, "never-was leaves 0 stored recordings, and 0 that only its disk had",
    )  # fmt: skip
    assert callrec.command("adopt", "never-was", "--confirm", "7").returncode == 1
    done = callrec.command("adopt", "never-was", "--confirm", "0")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"0 taken over by {own}"), done.stderr


def test_on_storage_that_failed_its_probe_nothing_is_recorded(callrec):
    """[storage] worm_probe = "enforce"; the real probe of this store passed when `sweep` started."""
    found = wait_until(lambda: callrec.inspector.rows("SELECT * FROM storage_probe"), 60, "the first probe")
    assert [each["passed"] for each in found] == [True]
    with psycopg.connect(callrec.stack.postgres_url, autocommit=True) as admin:
        before = callrec.metric("callrec_unrecorded_total", reason="storage_unproven")
        admin.execute("UPDATE storage_probe SET passed = false, failed = '{single: shorten}'")
        wait_until(lambda: "storage_unproven" in callrec.logs(), 20, "listen knows")
        call = callrec.place(CONSENT.script)
        callrec.settled(call)
        assert callrec.recording(call) is None
        assert callrec.metric("callrec_unrecorded_total", reason="storage_unproven") == before + 1
        admin.execute("UPDATE storage_probe SET passed = true, failed = '{}'")
    wait_until(lambda: "storage_proven" in callrec.logs(), 20, "listen knows")
    (verdict,), _ = callrec.judged(CONSENT)
    assert not verdict.wrong
