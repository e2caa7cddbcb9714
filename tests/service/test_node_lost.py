"""The stream during the call, and a node that is lost: two nodes on the same stores, each with a switch of its own.

Time in the calls runs ten times as fast as in callrec: a segment a second holds ten seconds of them.
"""

import contextlib
import os
import signal
import wave
from dataclasses import replace

import pytest
from fix_callrec import SPEED, UNHURRIED, _Part, alive, children, facts, running_node, until_seen
from fix_stack import wait_until

from callrec.demo.caller import press
from callrec.demo.scenarios import by_name

CONSENT, SALE = by_name("consent"), by_name("sale")
EVERY, LOST_AFTER = 1, 6  # seconds
FIND = 60.0  # seconds for another node to notice and to store: this machine has other work
FRAME = 4


@pytest.fixture(scope="module")
def nodes(stack, databases, short_prompts):
    """Two of them; a test that kills the first starts it again."""
    name = databases.create(migrate=False)
    with contextlib.ExitStack() as ends:
        ends.callback(databases.drop, name)
        part = _Part(stack, databases.url(name))
        bases = {"bases.consent": {"segment_seconds": EVERY, "wait_seconds": 1.0},
                 "bases.market_transaction": {"segment_seconds": EVERY}}  # fmt: skip

        def named(node):
            return UNHURRIED | bases | {"node": {"name": node, "lost_after_seconds": LOST_AFTER}}

        first = ends.enter_context(running_node(part, short_prompts, changes=named("node-1")))
        second = ends.enter_context(running_node(part, short_prompts, changes=named("node-2"), beside=first))
        yield first, second


@pytest.fixture
def node(nodes):
    return nodes[0]


def segments(node, call):
    """The numbers of a call's segments that are in the bucket, in order."""
    row = node.recording(call)
    found = [version.key for version in node.inspector.versions() if version.key.startswith("segments/")]
    return sorted(int(key.rpartition("/")[2]) for key in found if row and f"/{row['recording_id']}/" in key)


def talking(node, scenario=SALE, parts=3):
    """A call that has been recorded for so many segments."""
    call = node.place(replace(scenario.script, talk=100_000))
    until_seen(call, "bridged")
    wait_until(lambda: len(segments(node, call)) >= parts, 30, "segments", pause=0.1)
    return call


def recorded_seconds(node, call):
    path = node.installation.spool / "rec" / f"{node.recording(call)['recording_id']}.wav"
    return (path.stat().st_size - 44) / FRAME / 8000


def heard(node, call, tmp_path):
    """How long it is for someone who listens to it."""
    out = tmp_path / "heard.wav"
    recording = str(node.recording(call)["recording_id"])
    done = node.command("play", recording, "-p", "dsar", "--account", "agent-7", "-o", str(out))
    assert done.returncode == 0, done.stderr
    with wave.open(str(out)) as file:
        assert len(file.readframes(file.getnframes())) == FRAME * file.getnframes()
        return file.getnframes() / file.getframerate()


def lose(node):
    """Every role is gone, without a word."""
    pids = [node.supervisor, *children(node.supervisor)]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in pids), 20, "the end of the node")


def come_back(node):
    node.start()
    node.ready()


def stored(node, call):
    """Exactly one object, and none of its segments is left."""
    row = wait_until(lambda: (row := node.recording(call))["state"] == "stored" and row, FIND, "stored", pause=0.1)
    wait_until(lambda: not segments(node, call), 20, "no segment", pause=0.1)
    wait_until(lambda: len(node.versions(row["recording_id"])) == 1, 20, "one object", pause=0.1)
    row = node.recording(call)
    (version,) = node.versions(row["recording_id"])
    assert version.version_id == row["version_id"]
    assert node.inspector.lock_of(version)[0] == row["lock_mode"]
    return row


def test_segments_leave_while_the_call_is_on_and_go_after_it(node):
    before = node.metric("callrec_segment_bytes_total") + node.metric("callrec_upload_bytes_total")
    call = talking(node)
    assert node.recording(call)["state"] == "recording"
    found = segments(node, call)
    assert found == list(range(len(found)))
    call.hangup("NORMAL_CLEARING", now=True)
    row = stored(node, call)
    assert not row["incomplete"]
    assert node.stored_seconds(call) == pytest.approx(row["duration_seconds"])
    sent = node.metric("callrec_segment_bytes_total") + node.metric("callrec_upload_bytes_total") - before
    assert sent / row["ciphertext_bytes"] <= 2.1


def test_a_withdrawal_in_the_call_takes_its_segments_at_once(node):
    """D1, D2."""
    call = talking(node, CONSENT)
    call.plan(0.1, press("*2"))
    call.poke()
    until_seen(call, "recorded")
    recording = node.recording(call)["recording_id"]
    wait_until(lambda: not segments(node, call), 20, "no segment")
    wait_until(lambda: node.recording(call)["state"] == "erased", 20, "erased")
    assert not call.ended
    assert not node.inspector.rows("SELECT FROM recording_key WHERE recording_id = %s", recording)
    assert node.kinds(call)[-2:] == ["key_erased", "recording_erased"]
    call.hangup("NORMAL_CLEARING", now=True)
    assert not node.spooled()


def test_a_ship_that_is_killed_in_the_middle_goes_on(node):
    call = talking(node)
    before = len(segments(node, call))
    node.kill("ship")
    wait_until(lambda: len(segments(node, call)) >= before + 3, 40, "more segments", pause=0.1)
    found = segments(node, call)
    assert sorted(set(found)) == list(range(max(found) + 1))
    (key,) = node.inspector.rows(
        "SELECT segment_keys FROM recording_key WHERE recording_id = %s", node.recording(call)["recording_id"]
    )
    assert len(key["segment_keys"]) == 2
    call.hangup("NORMAL_CLEARING", now=True)
    assert not stored(node, call)["incomplete"]


def test_a_lost_node_costs_seconds_and_one_that_comes_back_none(nodes, tmp_path):
    """Both at once, because each time somebody has to wait for a node to be missed."""
    first, second = nodes
    gone, back = talking(first), talking(first, CONSENT)
    ended = recorded_seconds(first, gone)
    lose(first)
    first.switch.restart()  # FreeSWITCH dies with its node
    whole = recorded_seconds(first, back)
    (first.installation.spool / "rec" / f"{first.recording(gone)['recording_id']}.wav").unlink()
    for call in (gone, back):
        row = stored(second, call)
        assert (row["node"], row["incomplete"], row["abrupt"]) == ("node-2", True, True)
        assert second.kinds(call)[-2:] == ["recording_taken_over", "recording_stored"]
    lasted = second.recording(gone)["duration_seconds"]
    assert ended - lasted <= (EVERY + 2) * SPEED
    assert heard(second, gone, tmp_path) == pytest.approx(lasted)
    listed = {row["recording_id"]: row for row in second.lines("recordings")}
    assert listed[str(second.recording(gone)["recording_id"])]["incomplete"]

    come_back(first)
    wait_until(lambda: first.recording(back)["node"] == "node-1", FIND, "taken back", pause=0.1)
    first.meddler.hang_up()  # else the listener asks Postgres again after half a minute
    wait_until(lambda: not first.recording(back)["incomplete"], FIND, "the complete one", pause=0.1)
    row = stored(first, back)
    assert row["duration_seconds"] == pytest.approx(whole)
    assert first.stored_seconds(back) == pytest.approx(row["duration_seconds"])
    assert not first.spooled()
    assert stored(second, gone)["incomplete"]
    facts(gone)
