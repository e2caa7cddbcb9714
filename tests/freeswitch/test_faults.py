"""What fails beside a call, on a real FreeSWITCH: the caller goes on, what was recorded is stored as far as it went.

A FreeSWITCH that dies takes its calls with it; the file that it leaves has a header of zeros and no event tells of it.
"""

import contextlib
import os
import uuid

import ear
import pytest
from ear import BLOCK
from fix_callrec import frozen
from fix_stack import wait_until
from real_switch import LOOPBACK, SIP

from callrec.demo.audio import CALLER, RATE
from callrec.demo.caller import CallScript, after_prompt, press

SALES, SERVICE = "040404045", "040404040"
AGREES = ((after_prompt(0.5), press("1")),)
AT_ONCE = 1.0  # seconds after which a caller whom nobody keeps must be with the agents, on a busy machine too
_NOTHING = {"basis_established", "recording_started", "recording_stored"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def node(house):
    """The house with everything up, and up again for the next test."""
    house.ready()
    yield house
    house.meddler.refusing = False
    if not house.switch.running:
        house.switch.start(house.installation.listen)
    house.ready()


def after(call, seconds):
    """Wait until the call has gone on for so long."""
    then = call.age + seconds
    wait_until(lambda: call.ended or call.age > then, seconds + 10)


def unrecorded(node, call):
    """The call went to its agent, and nothing of it was kept."""
    seen = [fact[0] for _, fact in call.result(60)]
    assert "bridged" in seen, call.timeline
    assert "recording" not in seen
    assert not any(row["recording_id"] for row in node.rows(call))
    assert not _NOTHING & set(node.ledger(call))


def stored(node, call, end, slack=0.15):
    """One recording, in one piece from its start to `end` (seconds of the call); gives its row."""
    node.settle(call)
    [row] = node.rows(call)
    assert row["state"] == "stored"
    said, _ = ear.channels(node.sound(call))
    speaks = call.speaks_from - call.began
    found = ear.heard(said, CALLER, call.at("recording") - speaks, step=0.5)
    assert ear.clear([sound.sure for sound in found])
    steps = [sound.begun for sound in found[1:]]
    assert max(steps) - min(steps) <= 0.062
    assert abs(speaks + found[-1].said + BLOCK / RATE - end) <= slack
    return row


def in_conversation(node, via=LOOPBACK, dialled=SERVICE, steps=AGREES, seconds=1.5):
    call = node.switch.place(CallScript(dialled, steps=steps, talk=0), via=via)
    call.until("bridged")
    after(call, seconds)
    return call


@pytest.mark.parametrize("via", [LOOPBACK, SIP])
def test_without_a_listener_the_caller_is_with_the_agents_at_once(node, via):
    node.installation.stop()
    try:
        call = node.switch.place(CallScript(SALES, talk=1), via=via)
        assert call.until("bridged") < AT_ONCE
        assert "recording" not in [fact[0] for _, fact in call.result(30)]
    finally:
        node.installation.start()
    assert node.rows(call) == []


@pytest.mark.parametrize("state", ["announcing", "asking"])
def test_a_listener_killed_in_the_interview_lets_the_caller_go_on_unrecorded(node, state):
    call = node.switch.place(CallScript(SERVICE, talk=2))
    wait_until(lambda: node.state(call) == state, 10, state)
    node.kill("listen")
    killed = call.age
    assert call.until("bridged") < killed + 2 * AT_ONCE
    unrecorded(node, call)


@pytest.mark.parametrize("via", [LOOPBACK, SIP])
def test_a_recording_goes_on_when_the_listener_is_killed_and_can_still_be_withdrawn(node, via):
    call, other = in_conversation(node, via), in_conversation(node, via)
    node.kill("listen")
    node.ready()
    after(call, 1.0)
    other.press("*2")
    wait_until(lambda: node.rows(other)[0]["state"] == "discarded", 20, "withdrawn")
    for each in (call, other):
        assert not each.ended
        each.hang_up()
        each.result(20)
    assert not stored(node, call, call.at("hangup"))["abrupt"]
    assert not node.spooled(node.rows(other)[0]["recording_id"])


def test_a_call_that_ends_while_the_listener_is_dead_is_stored_whole(node):
    call = in_conversation(node)
    with frozen(node.installation.pids()["run"]):  # nobody starts another
        node.kill("listen")
        after(call, 1.0)
        call.hang_up()
        call.result(20)
    assert stored(node, call, call.at("hangup"))["abrupt"]


def test_the_event_socket_is_cut_and_comes_back(node):
    """What happened meanwhile is found out: one call has ended, the other can be withdrawn (D1)."""
    ended, going_on = in_conversation(node), in_conversation(node)
    node.meddler.refusing = True
    node.meddler.hang_up()
    wait_until(lambda: "listen: event_socket" in node.installation.missing(), 20, "it is noticed")
    sale = node.switch.place(CallScript(SALES, talk=1))
    service = node.switch.place(CallScript(SERVICE, steps=AGREES, talk=1))
    ended.hang_up()
    for call in (ended, sale, service):
        call.result(30)
    unrecorded(node, service)  # what could not be withdrawn is not begun
    node.meddler.refusing = False
    wait_until(lambda: not node.installation.missing(), 20, "it is back")
    stored(node, ended, ended.at("hangup"))
    stored(node, sale, sale.at("hangup"))
    going_on.press("*2")
    wait_until(lambda: node.rows(going_on)[0]["state"] == "discarded", 20, "withdrawn")
    going_on.hang_up()
    going_on.result(20)


@pytest.mark.parametrize("how", ["kill -9", "fsctl shutdown now"])
def test_a_freeswitch_that_dies_leaves_recordings_that_are_repaired_stored_and_marked(node, how):
    calls = [in_conversation(node, via, SALES, ()) for via in (LOOPBACK, SIP)]
    if how == "kill -9":
        node.switch.kill()
    else:
        node.switch.shut_down()
    ends = [call.age for call in calls]
    node.switch.start(node.installation.listen)
    node.ready()
    for call, end in zip(calls, ends, strict=True):
        assert stored(node, call, end, slack=1.0 if how != "kill -9" else 0.3)["abrupt"]
        [stopped] = [entry for entry in node.entries(call) if entry["kind"] == "recording_stopped"]
        assert stopped["body"]["abrupt"]
    call = node.switch.place(CallScript(SALES, talk=1))
    call.result(30)
    stored(node, call, call.at("hangup"))


def test_a_full_spool_stops_new_recordings_and_no_call(node):
    running = in_conversation(node, dialled=SALES, steps=())
    big = node.installation.spool / "rec" / f"{uuid.uuid4()}.wav"
    with contextlib.ExitStack() as ends:
        with big.open("wb") as file:
            os.truncate(file.fileno(), 21 * 2**30)  # sparse; above [spool] max_size
        ends.callback(big.unlink)
        wait_until(lambda: "listen: spool" in node.installation.missing(), 20, "/readyz says so")
        call = node.switch.place(CallScript(SERVICE, steps=AGREES, talk=1))
        unrecorded(node, call)
        assert node.rows(call)[0]["decision"] == "granted"
    running.hang_up()
    running.result(20)
    stored(node, running, running.at("hangup"))


def test_a_prompt_that_is_gone_at_run_time_records_nothing(node):
    file = node.prompts / "notice-a.wav"
    away = file.rename(file.with_suffix(".away"))
    try:
        call = node.switch.place(CallScript(SALES, talk=1))
        assert call.until("bridged") < 2 * AT_ONCE
        unrecorded(node, call)
    finally:
        away.rename(file)
    assert "notice_cut" in node.ledger(call)
