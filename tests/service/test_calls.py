"""Every kind of call through the whole of callrec, and what an operator can do with it afterwards."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from fix_callrec import Watched, facts, frozen, moment, until_seen
from fix_stack import wait_until

from callrec.demo.caller import CallScript, after_prompt, change_codec, during_prompt, hang_up, in_conversation, press
from callrec.demo.scenarios import SCENARIOS, Demand, Scenario, by_name
from callrec.recording import envelope

CONSENT = by_name("consent")


def sha256_of(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def watch(node):
    return Watched(node.installation.spool / "rec", node.installation.spool / "sealed")


@pytest.fixture(scope="module")
def recorded(callrec):
    """A consent call that was recorded and stored: the call, its recording's row, its file as FreeSWITCH wrote it."""
    (verdict,), (call,) = callrec.judged(CONSENT)
    assert not verdict.wrong
    return call, callrec.recording(call)


@pytest.fixture
def talking(callrec):
    """A consent call that is being recorded, in conversation, until it is told to end."""
    call = callrec.place(replace(CONSENT.script, talk=600))
    until_seen(call, "bridged")
    wait_until(lambda: callrec.recording(call)["state"] == "recording", 5, "recording noted")
    yield call
    call.hangup("NORMAL_CLEARING", now=True)
    callrec.settled(call)


@pytest.fixture(scope="module")
def all_calls(callrec):
    """Every scenario, placed at once: {name: (verdict, call)}, and every file that was ever in the spool meanwhile."""
    with watch(callrec) as watched:
        verdicts, calls = callrec.judged(*SCENARIOS)
        wait_until(lambda: not callrec.spooled(), 5, "an empty spool")
        names = watched.names
    return {verdict.scenario: (verdict, call) for verdict, call in zip(verdicts, calls, strict=True)}, names


@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS])
def test_a_call_is_as_the_law_demands(all_calls, name):
    verdict, _ = all_calls[0][name]
    assert verdict.wrong == []


def test_who_is_not_recorded_has_no_file_at_any_time(callrec, all_calls):
    """A3, A5, A6, A7, B8: watched by the kernel while the calls run, not looked for afterwards."""
    calls, names = all_calls
    recorded = {name: callrec.recording(call) for name, (_, call) in calls.items()}
    assert {name for name, row in recorded.items() if row} == {"sale", "consent", "withdrawal", "masked"}
    assert {name.partition(".")[0] for name in names} == {str(row["recording_id"]) for row in recorded.values() if row}
    for name in {scenario.name for scenario in SCENARIOS} - {name for name, row in recorded.items() if row}:
        assert "recording" not in facts(calls[name][1])


def test_who_refuses_alone_makes_no_file(callrec):
    """A6: with nothing else going on that a file could be mistaken for."""
    with watch(callrec) as watched:
        (verdict,), _ = callrec.judged(by_name("refusal"))
        assert watched.names == []
    assert not verdict.wrong


def test_a_withdrawn_recording_is_gone_from_the_spool_before_the_call_ends(callrec):
    """D1, D2: what *2 takes back does not wait for the end of the conversation."""
    script = replace(CONSENT.script, talk=600, steps=(*CONSENT.script.steps, (in_conversation(3), press("*2"))))
    call = callrec.place(script)
    until_seen(call, "recorded")
    wait_until(lambda: not callrec.spooled(), 5, "no file")
    assert not call.ended
    row = wait_until(lambda: (row := callrec.recording(call))["state"] == "discarded" and row, 5, "the row")
    assert not callrec.versions(row["recording_id"])
    assert not callrec.inspector.rows("SELECT 1 FROM recording_key WHERE recording_id = %s", row["recording_id"])
    call.hangup("NORMAL_CLEARING", now=True)
    callrec.settled(call)


def test_every_answer_leads_the_same_way_on_and_as_fast(callrec, all_calls):
    """D7: after 1, 2, a wrong key and silence the same `resume` and the same path; 1 waits for its basis alone."""
    named = {name: all_calls[0][name][1] for name in ("consent", "refusal", "silence", "wrong-keys")}
    for name, call in named.items():
        seen = [(fact[0], fact[1]) if fact[0] == "released" else (fact[0],) for _, fact in call.timeline]
        after = seen[seen.index(("released", "resume")) :]
        assert [what for what in after if what != ("recorded",)] == [
            ("released", "resume"),
            ("bridged",),
            ("hangup",),
        ], name
    waits = {
        name: (moment(named[name], "released") - moment(named[name], "pressed")) / callrec.switch.clock.speed
        for name in ("consent", "refusal")
    }
    assert waits["refusal"] < 0.25
    assert waits["consent"] < 0.5


@pytest.mark.parametrize("dialled", ["040404040", "+38640404040", "0038640404040", "38640404040"])
def test_a_line_is_known_in_each_form_that_trunks_deliver(callrec, dialled):
    script = CallScript(dialled, steps=((during_prompt(0.1), press("2")),), talk=0.5)
    demand = Demand("refused", "refused", None, ("consent_refused",))
    (verdict,), (call,) = callrec.judged(Scenario("form", "", script, demand))
    assert not verdict.wrong
    rows = callrec.inspector.rows("SELECT line FROM call WHERE channel = %s", call.uuid)
    assert rows == [{"line": "service-40"}]


@pytest.mark.parametrize("dialled", ["404404045", "4044040045", "*", "", "040404040;x=1", "04040404", "0404040400"])
def test_what_is_no_line_is_never_announced_nor_recorded(callrec, dialled):
    """B8; the misprint 404 40 40 45 is no alias of the sales line."""
    script = CallScript(dialled, talk=0.5)
    (verdict,), (call,) = callrec.judged(Scenario("no line", "", script, by_name("unknown-line").demand))
    assert not verdict.wrong
    assert "answered" not in facts(call)[: facts(call).index("released")]


def test_a_caller_without_a_number_consents_like_any_other(callrec):
    """D11."""
    script = replace(CONSENT.script, caller_number="anonymous", caller_name="anonymous", talk=2)
    (verdict,), (call,) = callrec.judged(Scenario("withheld", "", script, CONSENT.demand))
    assert not verdict.wrong
    call_id = callrec.recording(call)["call_id"]
    assert not callrec.inspector.rows("SELECT 1 FROM caller WHERE call_id = %s", call_id)


def test_a_hang_up_at_any_moment_leaves_nothing_or_all(callrec):
    """A3: hang-ups spread around the key, the start of the recording and the hand-over."""
    offsets = [n * 0.1 for n in range(16)]  # simulated seconds: 10 ms apart
    scripts = [
        CallScript("040404040", steps=((after_prompt(1.0), press("1")), (after_prompt(0.9 + at), hang_up())))
        for at in offsets
    ]
    calls = [callrec.place(script) for script in scripts]
    for call in calls:
        seen = facts(call)
        callrec.settled(call)
        row = callrec.recording(call)
        if "recording" not in seen:
            assert row is None or row["state"] == "discarded", seen
        else:
            assert row["state"] in {"stored", "discarded", "empty"}, seen
            assert len(callrec.versions(row["recording_id"])) == (row["state"] == "stored")
    wait_until(lambda: not callrec.spooled(), 10, "an empty spool")


def test_what_is_played_back_is_what_was_recorded(callrec, tmp_path):
    """The same bytes as FreeSWITCH wrote, B9's purposes alone, and each listening in the ledger before it is heard."""
    call = callrec.place(replace(CONSENT.script, talk=600))
    until_seen(call, "bridged")
    with frozen(callrec.pid("ship")):  # the plain file goes when the object is verified
        call.hangup("NORMAL_CLEARING", now=True)
        facts(call)
        path = next(fact[1] for _, fact in call.timeline if fact[0] == "recorded")
        written = sha256_of(path)
    callrec.settled(call)
    row = callrec.recording(call)
    out = tmp_path / "out.wav"
    done = callrec.command(
        "play", str(row["recording_id"]), "-o", str(out), "-p", "service_quality.caller_satisfaction"
    )
    assert done.returncode == 0, done.stderr
    assert sha256_of(out) == written == row["plaintext_sha256"].hex()
    assert callrec.kinds(call)[-1] == "access_granted"


@pytest.mark.parametrize(
    "purpose",
    [
        "agent_supervision",  # B4
        "agent_evaluation",  # B4
        "external_callcentre_analysis",  # B5
        "transaction_evidence",  # B9: another basis' purpose
        "marketing",  # B11
        "",
    ],
)
def test_a_denied_purpose_is_refused_and_noted(callrec, recorded, tmp_path, purpose):
    call, row = recorded
    out = tmp_path / "out.wav"
    done = callrec.command("play", str(row["recording_id"]), "-o", str(out), "-p", purpose)
    assert done.returncode == 1
    assert "may not be heard" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert callrec.kinds(call)[-1] == "access_denied"
    body = callrec.lines("ledger", str(row["call_id"]))[-1]["body"]
    assert (json.loads(body) if isinstance(body, str) else body)["purpose"] == purpose


def test_only_the_private_key_opens_a_recording(callrec, recorded, tmp_path):
    _, row = recorded
    out = tmp_path / "out.wav"
    arguments = [sys.executable, "-m", "callrec", "play", str(row["recording_id"]), "-o", str(out), "-p", "dsar"]
    env = callrec.installation.env
    stranger = envelope.encode_key(envelope.generate_keypair()[0])
    for key in ("", stranger):
        done = subprocess.run(
            arguments, env=env | {"CALLREC_PRIVATE_KEY": key}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith("callrec: ")
        assert list(tmp_path.iterdir()) == []
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes()[:4] == b"RIFF"


def test_lists_are_for_scripts_too(callrec, recorded):
    call, row = recorded
    listed = {line["channel"]: line for line in callrec.lines("calls")}
    assert listed[call.uuid]["decision"] == "granted"
    (mine,) = [line for line in callrec.lines("recordings") if line["recording_id"] == str(row["recording_id"])]
    assert (mine["state"], mine["lock_mode"]) == ("stored", "GOVERNANCE")
    for name in (row["recording_id"], call.uuid):
        assert [line["kind"] for line in callrec.lines("ledger", str(name))] == callrec.kinds(call)
    for arguments in (("recordings",), ("ledger", call.uuid)):
        done = callrec.command(*arguments)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) > 2
    done = callrec.command("ledger", "no-such-call")
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        1,
        "callrec: There is no such call. `callrec calls` lists them",
    )


def test_the_desk_masks_and_unmasks_and_stops_a_call(callrec, talking):
    for order, outcome in (
        ("mask", "recording_masked"),
        ("unmask", "recording_unmasked"),
        ("stop", "recording_stopped"),
    ):
        done = callrec.command(order, talking.uuid)
        assert (done.returncode, done.stdout.strip()) == (0, outcome), done.stderr
    assert not talking.ended
    row = wait_until(lambda: (row := callrec.recording(talking))["state"] == "stored" and row, 20, "stored")
    assert len(callrec.versions(row["recording_id"])) == 1
    done = callrec.command("mask", talking.uuid)
    assert (done.returncode, "Nobody could mask" in done.stderr) == (1, True)


def test_a_call_whose_codec_changes_is_one_recording_as_long_as_the_call(callrec):
    """FreeSWITCH would write it at half the speed from there on (transcript 19)."""
    steps = ((in_conversation(1), change_codec(16000)), (in_conversation(3), change_codec(8000)))
    call = callrec.place(replace(by_name("sale").script, talk=5, steps=steps))
    call.result(30)
    callrec.settled(call)
    row = callrec.recording(call)
    [began, *_] = [at for at, fact in call.timeline if fact[0] == "recording"]
    [ended] = [at for at, fact in call.timeline if fact[0] == "hangup"]
    assert row["duration_seconds"] == pytest.approx(ended - began, abs=0.3)
    assert (row["state"], row["abrupt"], row["samples"]) == ("stored", False, None)
    assert len(callrec.versions(row["recording_id"])) == 1
    kinds = callrec.kinds(call)
    assert (kinds.count("recording_started"), kinds.count("recording_continued")) == (1, 2)


def test_the_desk_withdraws_a_consent(callrec, talking):
    """D1: told to the agent."""
    row = callrec.recording(talking)
    done = callrec.command("withdraw", str(row["recording_id"]))
    assert (done.returncode, done.stdout.strip()) == (0, "consent_withdrawn"), done.stderr
    wait_until(lambda: not callrec.spooled(), 5, "no file")
    assert not talking.ended
    wait_until(lambda: callrec.recording(talking)["state"] == "discarded", 5, "discarded")
    assert not callrec.versions(row["recording_id"])


def test_a_statutory_recording_is_not_withdrawn(callrec):
    """D4: a revocation touches what stands on consent, nothing else."""
    sale = by_name("sale")
    call = callrec.place(replace(sale.script, talk=600, steps=((in_conversation(1), press("*2")),)))
    until_seen(call, "bridged", "key")
    done = callrec.command("withdraw", call.uuid)
    assert (done.returncode, done.stdout.strip()) == (0, "withdrawal_without_effect"), done.stderr
    call.hangup("NORMAL_CLEARING", now=True)
    assert not callrec.verdict(sale, call).wrong


@pytest.mark.parametrize(
    "change",
    ["basis = 'market_transaction'", "purposes = '{marketing}'", "notice = 'A'", "call_id = gen_random_uuid()"],
)
def test_nobody_changes_the_basis_of_a_recording(callrec, recorded, change):
    """A9: not even the database's superuser, short of removing the trigger."""
    _, row = recorded
    with (
        psycopg.connect(callrec.stack.postgres_url, autocommit=True) as connection,
        pytest.raises(psycopg.errors.IntegrityError, match="keeps the basis"),
    ):
        connection.execute(f"UPDATE recording SET {change} WHERE recording_id = %s", (row["recording_id"],))


def test_the_consent_record_says_what_was_heard_and_pressed(callrec, recorded):
    """A8: notice, its version, text and audio hashes, the page it leads to, the policy's version."""
    call, row = recorded
    entries = {line["kind"]: line for line in callrec.lines("ledger", call.uuid)}
    bodies = {
        kind: body if isinstance(body := line["body"], dict) else json.loads(body) for kind, line in entries.items()
    }
    heard = bodies["notice_completed"]
    assert heard["text_sha256"] == "46f2683d051d01b77e9b74efbc176bdbbe324a64fdaa805018c3eb1947134a4b"
    assert heard["audio_sha256"] == sha256_of(callrec.installation.config.notices["B"].prompt.file)
    assert {"https://www.a1.si/", "2019"} <= set(map(str, heard.values()))
    basis = bodies["basis_established"]
    assert (basis["basis"], basis["recording"]) == ("consent", str(row["recording_id"]))
    assert re.fullmatch("[0-9a-f]{64}", basis["caller_commitment"]) if "caller_commitment" in basis else True
    moments = [datetime.fromisoformat(line["at"]) for line in callrec.lines("ledger", call.uuid)]
    assert all(at <= datetime.now(UTC) for at in moments)


@pytest.mark.parametrize(("dialled", "said"), [("040404045", "FILE PLAYED"), ("040404040", "PLAYBACK ERROR")])
def test_a_notice_cut_while_freeswitch_calls_it_done_is_not_recorded_a3(callrec, dialled, said):
    """FreeSWITCH said so of 1 notice in 80 that a caller cut by hanging up, on a channel answered."""
    with watch(callrec) as watched:
        calls = [
            callrec.place(CallScript(dialled, steps=((during_prompt(part), hang_up()),), unnoticed_hangup=said))
            for part in (0.1, 0.5, 0.9, 0.98)
        ]
        for call in calls:
            assert "recording" not in facts(call)
        for call in calls:
            callrec.settled(call)
            assert not {"notice_completed", "basis_established", "recording_started"} & set(callrec.kinds(call))
            assert "abandoned_during_notice" in callrec.kinds(call), "no agent is rung for a caller who is gone"
            assert callrec.recording(call) is None
        assert watched.names == []
