"""Calls that move: what is recorded when the caller does not simply stay with the first agent until the end.

README, "Calls that move", says the same in a table.
"""

import itertools
import signal

import ear
import pytest
from ear import BLOCK
from fix_stack import wait_until
from real_switch import LOOPBACK, SIP, WIDEBAND

from callrec.demo.audio import AGENT, CALLER, RATE
from callrec.demo.caller import CallScript, after_prompt, agent_hangs_up, in_conversation, press
from callrec.store.orders import carry_out

SALES, SERVICE = "040404045", "040404040"
AGREES = ((after_prompt(0.5), press("1")),)
FRAME = 0.02

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
both_ways = pytest.mark.parametrize("via", [LOOPBACK, SIP])


def in_conversation_with(house, via, dialled=SALES, steps=(), seconds=1.5, **options):
    """A call that has been with its agent for so long."""
    call = house.switch.place(CallScript(dialled, steps=steps, talk=0), via=via, **options)
    bridged = call.until("bridged")
    wait_until(lambda: call.age > bridged + seconds, 10)
    return call


def seconds(channel):
    return len(channel) / RATE


def spoke(call, channel, cut=None):
    """(from, to) in seconds of the call: the first and the last 100 ms that the caller is heard to say.

    At `cut`, in seconds of the call, a tenth of a second may be missing.
    """
    speaks = call.speaks_from - call.began
    found = ear.heard(channel, CALLER, call.at("recording") - speaks, step=0.5)
    assert ear.clear([sound.sure for sound in found if cut is None or abs(call.at("recording") + sound.at - cut) > 0.2])
    steps = [sound.begun for sound in found[1:]]
    assert max(steps) - min(steps) <= (0.1 if cut else 3 * FRAME + 0.002), "the caller's channel has a gap"
    return speaks + found[0].said, speaks + found[-1].said + BLOCK / RATE


def recorded_to_the_end(house, call, end, cut=None):
    """One recording, stored whole: the caller's words from its start to `end`. Gives what the caller heard."""
    house.settle(call)
    [row] = house.rows(call)
    assert (row["state"], row["abrupt"]) == ("stored", False)
    said, heard = ear.channels(house.sound(call))
    first, last = spoke(call, said, cut)
    assert first <= call.at("recording") + 0.12
    assert abs(last - end) <= 0.15
    return heard


@both_ways
def test_the_agent_hangs_up_first(house, via):
    script = CallScript(SALES, steps=((in_conversation(2.0), agent_hangs_up()),))
    call = house.switch.place(script, via=via)
    call.result(30)
    recorded_to_the_end(house, call, call.at("hangup"))


@both_ways
def test_a_caller_who_hangs_up_within_a_second(house, via):
    call = house.switch.place(CallScript(SALES, talk=0.6), via=via)
    call.result(30)
    recorded_to_the_end(house, call, call.at("hangup"))


def test_a_bridge_that_fails(house):
    busy = {"loopback_export": "callrec_agent", "callrec_agent": "error/USER_BUSY"}
    call = house.switch.place(CallScript(SALES), **busy)
    facts = [fact for _, fact in call.result(30)]
    assert ("hangup", "USER_BUSY") in facts
    assert call.at("bridged") is None
    house.settle(call)
    [row] = house.rows(call)
    assert row["state"] in {"stored", "empty"}  # begun with the basis, ended with the call: 0 or 1 frames of nobody
    assert row["duration_seconds"] is None or row["duration_seconds"] < 0.3


@both_ways
def test_hold_is_recorded_with_its_music(house, via):
    call = in_conversation_with(house, via)
    house.switch.api(f"uuid_setvar {call.uuid} hold_music tone_stream://%(1000,0,440);loops=-1")
    agent = call.agent()
    assert house.switch.api(f"uuid_hold {agent}").startswith("+OK")
    held = call.age
    wait_until(lambda: call.age > held + 2.0, 10)
    # As unhold does it: `uuid_hold off` itself wants an agent's phone that said by SIP that it holds.
    assert house.switch.api(f"uuid_break {call.uuid} all").startswith("+OK")
    wait_until(lambda: call.age > held + 3.0, 10)
    call.hang_up()
    call.result(20)
    recorded_to_the_end(house, call, call.at("hangup"))


def codec_changed(house, call, codec, rate):
    """The caller's side has sent a re-INVITE with another codec, and FreeSWITCH has taken it."""
    assert house.switch.api(f"uuid_media_reneg {call.far} ={codec}").startswith("+OK")
    wait_until(lambda: house.switch.api(f"uuid_getvar {call.uuid} write_rate") == rate, 10, f"{codec} on the channel")


@pytest.mark.parametrize(("via", "codec", "rate"), [(SIP, "G722", "16000"), (WIDEBAND, "PCMA", "8000")])
def test_a_call_whose_codec_changes_is_recorded_on_as_fast_as_it_was_spoken(house, via, codec, rate):
    house.switch.needs("mod_spandsp")  # G.722
    call = in_conversation_with(house, via)
    codec_changed(house, call, codec, rate)
    changed = call.age
    wait_until(lambda: call.age > changed + 2.0, 10)
    call.hang_up()
    call.result(20)
    recorded_to_the_end(house, call, call.at("hangup"), changed)
    assert "recording_continued" in house.ledger(call)


def test_a_masked_call_stays_masked_when_its_codec_changes_a11(house):
    house.switch.needs("mod_spandsp")
    call = in_conversation_with(house, SIP)
    assert carry_out(house.desk, call.uuid, "mask") == "recording_masked"
    codec_changed(house, call, "G722", "16000")
    changed = call.age
    wait_until(lambda: call.age > changed + 1.0, 10)
    assert carry_out(house.desk, call.uuid, "unmask") == "recording_unmasked"
    call.hang_up()
    call.result(20)
    house.settle(call)
    for channel in ear.channels(house.sound(call)):
        silent = ear.silence(channel, shortest=FRAME)
        assert silent[-1][1] - silent[0][0] > 1.0
        assert sum(after[0] - before[1] for before, after in itertools.pairwise(silent)) <= 2 * FRAME


@both_ways
def test_a_blind_transfer_to_another_agent_is_recorded_on(house, via):
    call = in_conversation_with(house, via)
    assert house.switch.api(f"uuid_transfer {call.uuid} agent XML agents").startswith("+OK")
    moved = call.age
    wait_until(lambda: call.age > moved + 2.0, 10)
    call.hang_up()
    call.result(20)
    heard = recorded_to_the_end(house, call, call.at("hangup"))
    second = ear.when(heard, AGENT, len(heard) - 3 * BLOCK, 1.7, within=0.4)
    assert second.sure > ear.GAPPED, "the second agent, who began anew, is not heard at the end"


@both_ways
def test_an_attended_transfer_is_recorded_on(house, via):
    call = in_conversation_with(house, via)
    first = call.agent()
    second = (
        house.switch.api("originate {ignore_early_media=true}loopback/agent/agents &park()")
        .removeprefix("+OK ")
        .strip()
    )
    assert house.switch.api(f"uuid_bridge {call.uuid} {second}").startswith("+OK")
    moved = call.age
    wait_until(lambda: house.switch.api(f"uuid_exists {first}") == "false", 10, "the first agent is out of the call")
    wait_until(lambda: call.age > moved + 2.0, 10)
    call.hang_up()
    call.result(20)
    recorded_to_the_end(house, call, call.at("hangup"))


@both_ways
@pytest.mark.parametrize("second", ["loopback/agent/agents/XML", "error/USER_BUSY"])
def test_an_attended_transfer_by_att_xfer_is_recorded_on(house, via, second):
    """The first agent asks the second, while the caller waits, and hangs up; a second who is busy changes nothing.

    The caller's dialplan must go on after `bridge`: with that as its last action FreeSWITCH hung up on 19 of 20.
    """
    call = in_conversation_with(house, via, seconds=0.5)
    behind = "bridge:loopback/agent/agents/XML,park inline"
    before = call.agent()
    assert house.switch.api(f"uuid_transfer {call.uuid} {behind}").startswith("+OK")
    first = wait_until(lambda: (agent := call.agent()) not in {before, "_undef_"} and agent, 10, "the first agent")
    speaks = call.age
    assert house.switch.api(f"uuid_broadcast {first} att_xfer::{second}").startswith("+OK")
    if not second.startswith("error"):
        wait_until(lambda: house.switch.api(f"uuid_getvar {first} bridge_uuid") not in {call.uuid, "_undef_"}, 10)
        speaks = call.age
        wait_until(lambda: call.age > speaks + 1.0, 10)
        assert house.switch.api(f"uuid_kill {first}").startswith("+OK")
        wait_until(lambda: call.agent() not in {first, "_undef_"}, 10, "the second agent")
    moved = call.age
    wait_until(lambda: call.age > moved + 2.0, 10)
    assert not call.ended, call.timeline
    call.hang_up()
    call.result(20)
    heard = recorded_to_the_end(house, call, call.at("hangup"))
    said = call.at("hangup") - speaks - 3 * BLOCK / RATE
    assert ear.when(heard, AGENT, len(heard) - 3 * BLOCK, said, within=0.6).sure > ear.GAPPED, "not this agent is heard"


@both_ways
def test_a_consent_call_transferred_to_the_sales_line_is_a_new_call_on_a_new_basis(house, via):
    """A4, A9: the recording on consent ends when the next interview begins; the next one has its own notice."""
    call = in_conversation_with(house, via, SERVICE, AGREES)
    assert house.switch.api(f"uuid_transfer {call.uuid} {SALES} XML public").startswith("+OK")
    moved = call.age
    wait_until(lambda: len(house.rows(call)) == 2 and house.rows(call)[1]["state"] == "recording", 20, "the second")
    live = house.live(call)
    assert (live["line"], live["basis"], live["state"]) == ("sales", "market_transaction", "recording")
    wait_until(lambda: call.age > moved + 4.0, 10)
    call.hang_up()
    call.result(20)
    house.settle(call)
    consent, sale = house.rows(call)
    assert [row["basis"] for row in (consent, sale)] == ["consent", "market_transaction"]
    assert [(row["state"], row["abrupt"]) for row in (consent, sale)] == [("stored", False)] * 2
    assert consent["stopped_at"] < sale["authorised_at"]
    said, heard = ear.channels(house.sound(call, 0))
    _, last = spoke(call, said)
    assert last <= moved + 0.3
    assert not ear.has_prompt(heard[RATE:])
    _, heard = ear.channels(house.sound(call, 1))
    assert not ear.has_prompt(heard)
    kinds = house.ledger(call)
    assert kinds.count("notice_completed") == kinds.count("basis_established") == 2
    live = house.live(call)
    assert (live["line"], live["state"]) == ("sales", "ended")


@both_ways
@pytest.mark.parametrize("state", ["announcing", "asking"])
def test_a_call_transferred_in_the_interview_is_let_go_unrecorded(house, via, state):
    """Nothing of ours follows it, and its new dialplan runs to its end: what we send or close could tear it out."""
    call = house.switch.place(CallScript(SERVICE, talk=0), via=via)
    wait_until(lambda: house.state(call) == state, 10, state)
    assert house.switch.api(f"uuid_transfer {call.uuid} agent XML agents").startswith("+OK")
    wait_until(lambda: house.state(call) == "unrecorded", 10, "given up")
    [row] = wait_until(lambda: house.rows(call), 10, "its row")
    assert (row["decision"], row["recording_id"]) == ("link_lost", None)
    given_up = call.age
    wait_until(lambda: call.age > given_up + 2.5, 10)  # until `exit` would have done its worst
    asserted_that_it_goes_on(house, call)


def doing(house, call):
    return house.switch.api(f"uuid_getvar {call.uuid} current_application")


def asserted_that_it_goes_on(house, call):
    """The agents' dialplan: what plays there ends at a key, and its next action follows."""
    assert not call.ended, call.timeline
    assert doing(house, call) == "playback"
    call.press("*")
    wait_until(lambda: doing(house, call) == "park", 10, "the next action of the dialplan")
    call.hang_up()
    call.result(20)


@both_ways
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_call_transferred_in_the_interview_outlives_the_listener(house, via, how):
    """FreeSWITCH resets a channel whose `socket` ends with `socket_resume` set: what plays would be its last action."""
    call = house.switch.place(CallScript(SERVICE, talk=0), via=via)
    wait_until(lambda: house.state(call) == "announcing", 10, "announcing")
    assert house.switch.api(f"uuid_transfer {call.uuid} agent XML agents").startswith("+OK")
    wait_until(lambda: house.state(call) == "unrecorded", 10, "given up")
    house.kill("listen", how)
    house.ready()
    asserted_that_it_goes_on(house, call)


@both_ways
def test_a_call_transferred_in_the_interview_stays_parked_without_the_listener(house, via):
    """Without `socket_resume` the end of our connection would end its `park`, and with that the call."""
    call = house.switch.place(CallScript(SERVICE, talk=0), via=via)
    wait_until(lambda: house.state(call) == "announcing", 10, "announcing")
    assert house.switch.api(f"uuid_transfer {call.uuid} park inline").startswith("+OK")
    wait_until(lambda: house.state(call) == "unrecorded", 10, "given up")
    parked = call.age
    wait_until(lambda: call.age > parked + 2.0, 10)  # where it is, is looked at once a second
    house.kill("listen")
    house.ready()
    assert not call.ended, call.timeline
    assert doing(house, call) == "park"
    assert house.switch.api(f"uuid_transfer {call.uuid} agent XML agents").startswith("+OK")
    wait_until(lambda: doing(house, call) == "playback", 10, "taken out of the park")
    call.hang_up()
    call.result(20)


@both_ways
@pytest.mark.parametrize("killed", [False, True])
def test_a_call_transferred_from_one_notice_to_another_line_is_interviewed_there(house, via, killed):
    """A listener that dies afterwards leaves it alone as well: the first interview's connection is still open."""
    call = house.switch.place(CallScript(SERVICE, talk=0), via=via)
    call.until("prompting")
    assert house.switch.api(f"uuid_transfer {call.uuid} {SALES} XML public").startswith("+OK")
    wait_until(lambda: len(house.rows(call)) == 2 and house.rows(call)[1]["state"] == "recording", 20, "the second")
    bridged = call.until("bridged")
    if killed:
        house.kill("listen")
        house.ready()
    wait_until(lambda: call.age > bridged + 2.5, 10)
    assert not call.ended, call.timeline
    if killed:
        assert house.switch.api(f"uuid_transfer {call.uuid} agent XML agents").startswith("+OK")
        wait_until(lambda: doing(house, call) == "playback", 10, "it can be transferred on")
        call.press("*")
        wait_until(lambda: doing(house, call) == "park", 10, "the next action of the dialplan")
    call.hang_up()
    call.result(20)
    house.settle(call)
    service, sale = house.rows(call)
    assert (service["decision"], service["recording_id"]) == ("link_lost", None)
    assert (sale["basis"], sale["state"], sale["abrupt"]) == ("market_transaction", "stored", False)
    if not killed:
        said, _ = ear.channels(house.sound(call, 1))
        _, last = spoke(call, said)
        assert abs(last - call.at("hangup")) <= 0.15
