"""kill -9 of each role at each moment of a call: the caller gets through, what was recorded is stored, no more."""

import io
import os
import signal
import wave
from dataclasses import replace
from pathlib import Path

import pytest
from fix_callrec import Watched, alive, children, facts, frozen, moment, until_seen
from fix_stack import wait_until

from callrec.demo.caller import CallScript, after_prompt, during_prompt, in_conversation, press
from callrec.demo.scenarios import by_name

CONSENT, SALE = by_name("consent"), by_name("sale")
BRIEF = 0.1  # seconds of audio that a figure may differ by


@pytest.fixture
def node(own_callrec):
    """The module's node with everything up, and up again for the next test."""
    own_callrec.ready()
    yield own_callrec
    own_callrec.ready()
    wait_until(lambda: not own_callrec.spooled(), 30, "an empty spool")


def watch(node):
    return Watched(node.installation.spool / "rec", node.installation.spool / "sealed")


def asserted_stored_in_full(node, call):
    """What FreeSWITCH recorded, from its first sample to its last, is one locked version that opens."""
    node.settled(call)
    row = node.recording(call)
    assert row["state"] == "stored"
    (version,) = node.versions(row["recording_id"])
    assert node.inspector.lock_of(version)[0] == row["lock_mode"]
    recorded = moment(call, "recorded") - moment(call, "recording")
    assert node.stored_seconds(call) == pytest.approx(recorded, abs=BRIEF)


def test_listen_is_killed_during_the_notice(node):
    """A2, A3: a notice that was cut short is none."""
    with watch(node) as watched:
        calls = [node.place(replace(each.script, talk=3)) for each in (SALE, CONSENT)]
        for call in calls:
            until_seen(call, "answered")
        node.kill("listen")
        for call in calls:
            seen = facts(call)
            assert "bridged" in seen, seen
            assert "recording" not in seen, seen
            assert node.recording(call) is None
        assert watched.names == []


def test_listen_is_killed_while_it_asks(node):
    """A key that nobody hears any more is no consent."""
    with watch(node) as watched:
        call = node.place(CallScript("040404040", steps=((after_prompt(8.0), press("1")),), talk=20))
        until_seen(call, "prompt")
        node.kill("listen")
        seen = facts(call)
        assert "bridged" in seen, seen
        assert "recording" not in seen, seen
        assert watched.names == []
    assert node.recording(call) is None


def test_a_recording_goes_on_without_listen_and_is_stored_in_full(node):
    call = node.place(replace(CONSENT.script, talk=1000))
    until_seen(call, "bridged")
    node.kill("listen")
    node.ready()
    assert moment(call, "recorded") is None
    call.hangup("NORMAL_CLEARING", now=True)
    asserted_stored_in_full(node, call)
    assert not node.recording(call)["abrupt"]  # RECORD_STOP was heard by the new listen
    assert "recording_stopped" in node.kinds(call)


def test_a_call_that_ends_while_listen_is_dead_is_stored_in_full(node):
    call = node.place(replace(CONSENT.script, talk=1000))
    until_seen(call, "bridged")
    with frozen(node.supervisor):  # nobody starts another
        node.kill("listen")
        call.hangup("NORMAL_CLEARING", now=True)
        assert "recorded" in facts(call)
    asserted_stored_in_full(node, call)
    assert node.recording(call)["abrupt"]  # nobody heard FreeSWITCH say that it closed the file


def test_consent_can_be_withdrawn_by_key_after_a_restart_of_listen(node):
    """D1, D2: a caller does not know that we died, and need not."""
    call = node.place(replace(CONSENT.script, talk=1000))
    until_seen(call, "bridged")
    node.kill("listen")
    node.ready()
    wait_until(lambda: node.taken_up(call), 5, "the recording taken up")
    call.plan(0.1, press("*2"))
    call.poke()
    until_seen(call, "recorded")
    wait_until(lambda: node.recording(call)["state"] == "discarded", 10, "discarded")
    wait_until(lambda: not node.spooled(), 5, "no file")
    assert not call.ended
    assert {"consent_withdrawn", "recording_discarded"} <= set(node.kinds(call))
    call.hangup("NORMAL_CLEARING", now=True)
    node.settled(call)
    assert not node.versions(node.recording(call)["recording_id"])


def test_the_desk_reaches_a_call_after_a_restart_of_listen(node):
    """A11: the agent masks, whichever listen has the call now."""
    call = node.place(replace(CONSENT.script, talk=1000))
    until_seen(call, "bridged")
    node.kill("listen")
    node.ready()
    wait_until(lambda: node.taken_up(call), 5, "the recording taken up")
    done = node.command("mask", call.uuid)
    assert (done.returncode, done.stdout.strip()) == (0, "recording_masked"), done.stderr
    call.hangup("NORMAL_CLEARING", now=True)
    asserted_stored_in_full(node, call)


def test_listen_is_killed_at_any_moment_of_a_decision(node):
    """Keys spread in time, one kill: each caller gets through; who was recorded is stored, who was not has nothing."""
    keys = ["1", "1", "2", "1"] * 8
    scripts = [
        CallScript("040404040", steps=((after_prompt(1.0 + n * 0.1), press(key)),), talk=30)
        for n, key in enumerate(keys)
    ]
    with watch(node) as watched:
        calls = [node.place(script) for script in scripts]
        wait_until(lambda: sum(moment(call, "recording") is not None for call in calls) > 6, 20, "recordings")
        node.kill("listen")
        seen = [facts(call) for call in calls]
        node.ready()
        assert all("bridged" in each for each in seen)
        recorded = [call for call, each in zip(calls, seen, strict=True) if "recording" in each]
        assert not [call for call in recorded if keys[calls.index(call)] == "2"]
        for call in recorded:
            asserted_stored_in_full(node, call)
        ids = {str(node.recording(call)["recording_id"]) for call in recorded}
        assert {name.partition(".")[0] for name in watched.names} == ids
    for call in calls:
        if call not in recorded:
            wait_until(lambda: (row := node.recording(call)) is None or row["state"] == "discarded", 40, "voided")  # noqa: B023


def test_ship_is_killed_during_an_upload(node):
    """S3 is frozen, so the upload is under way; the next ship goes on with what the first has left."""
    with frozen(node.stack.pids()["radosgw"]):
        call = node.place(replace(SALE.script, talk=6))
        facts(call)
        wait_until(lambda: node.recording(call)["attempts"] > 0, 20, "an attempt")
        wait_until(lambda: f"{node.recording(call)['recording_id']}.enc" in node.spooled(), 20, "the ciphertext")
        node.kill("ship")
    asserted_stored_in_full(node, call)
    assert not node.verdict(SALE, call).wrong


def test_ship_is_killed_again_and_again(node):
    calls = [node.place(replace(SALE.script, talk=2 + n)) for n in range(8)]
    for _ in range(3):
        wait_until(lambda: any(node.recording(call) for call in calls), 20, "recordings")
        node.kill("ship")
        node.pid("ship")
    for call in calls:
        facts(call)
        asserted_stored_in_full(node, call)


def test_the_supervisor_says_what_is_missing_and_starts_it_again(node):
    before = node.metric("callrec_role_starts_total", role="listen")
    with frozen(node.supervisor):
        old = node.kill("listen")
    wait_until(lambda: any(name.startswith("listen") for name in node.installation.missing()), 5, "/readyz to say so")
    node.ready()
    assert node.pid("listen") != old
    assert node.metric("callrec_role_starts_total", role="listen") == before + 1
    assert node.metric("callrec_role_up", role="listen") == 1


def test_a_role_killed_while_it_makes_its_metrics_breaks_no_page(node):
    """prometheus-client makes each file empty and then gives it its size; a kill between the two leaves it empty."""
    words = Path(f"/proc/{node.pid('ship')}/environ").read_bytes().split(b"\0")
    directory = next(
        word.partition(b"=")[2].decode() for word in words if word.startswith(b"PROMETHEUS_MULTIPROC_DIR=")
    )
    left = [Path(directory) / name for name in ("gauge_livesum_1.db", "counter_1.db")]
    for file in left:
        file.touch()
    try:
        assert node.installation.missing() == set()
        assert node.metric("callrec_role_up", role="listen") == 1
    finally:
        for file in left:
            file.unlink()


def test_nothing_is_left_running_when_the_supervisor_is_killed(node):
    """Its roles end by themselves: interviews are finished first, recordings go on in FreeSWITCH, and all is stored."""
    talking = node.place(replace(CONSENT.script, talk=1000))
    until_seen(talking, "bridged")
    refusing = node.place(CallScript("040404040", steps=((during_prompt(0.9), press("2")),), talk=1))
    asked = node.place(
        CallScript("040404040", steps=((after_prompt(1.0), press("1")), (in_conversation(2), press("*2"))))
    )
    until_seen(refusing, "answered")
    until_seen(asked, "answered")
    supervisor = node.supervisor
    left = children(supervisor)
    assert len(left) >= 2
    os.kill(supervisor, signal.SIGKILL)
    assert "bridged" in facts(refusing)
    wait_until(lambda: not any(alive(pid) for pid in left), 30, "the roles' end")
    assert (moment(talking, "recorded"), talking.ended) == (None, False)
    node.start()
    talking.hangup("NORMAL_CLEARING", now=True)
    asserted_stored_in_full(node, talking)
    asked.hangup("NORMAL_CLEARING", now=True)
    assert "bridged" in facts(asked)
    node.settled(asked)
    assert node.recording(refusing) is None


def test_freeswitch_is_killed_in_the_middle_of_a_conversation(node):
    """The file has its unfinished header and nobody is told: what it holds is stored all the same."""
    call = node.place(replace(SALE.script, talk=1000))
    until_seen(call, "bridged")
    row = wait_until(lambda: (row := node.recording(call)) and row["state"] == "recording" and row, 10, "noted")
    path = node.installation.spool / "rec" / f"{row['recording_id']}.wav"
    wait_until(lambda: path.stat().st_size > 64_000, 10, "some audio")
    node.switch.restart()
    size = path.stat().st_size if path.exists() else 0
    node.settled(call)
    row = node.recording(call)
    assert (row["state"], row["abrupt"]) == ("stored", True)
    with wave.open(io.BytesIO(node.inspector.sound(row["recording_id"]))) as file:
        assert file.getnframes() * 4 == pytest.approx(size - 44, abs=4) if size else file.getnframes() > 15_000
