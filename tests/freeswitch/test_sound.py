"""What stands in a stored recording was said exactly then: heard in its tones, on both channels.

Times are seconds since the call came in, on FreeSWITCH's clock. Its events are stamped in steps of 20 ms, and a frame
of 20 ms is on its way through the caller's leg, so two frames are the least that can be told apart from outside.
"""

import io
import os
import wave

import ear
import gevent
import pytest
from fix_stack import wait_until
from real_switch import LOOPBACK, SIP, WIDEBAND

from callrec.demo.audio import AGENT, CALLER, RATE
from callrec.demo.caller import CallScript
from callrec.demo.scenarios import Demand, Scenario

FRAME = 0.02
LENGTH = 0.06  # the event's 20 ms beside the 40 ms that a length may differ
RECORDED = ["sale", "consent", "masked"]

# On a busy machine FreeSWITCH drops or repeats single frames of a leg before they are recorded: seen up to three in a
# call. An idle one loses none after the first 100 ms. Where a frame is not there yet when the recorder asks, FreeSWITCH
# fills 20 ms (samples of -1) and has it from then on one frame later, nothing lost: seen once in ten minutes on
# loopback legs, in a recording that FreeSWITCH made by itself as well; never over SIP.
SLIP = 3 * FRAME + 0.002  # how far the speech may get behind by such frames
LATE = 6 * FRAME  # what a hang-up may find still on its way; half a second would be the lost pre-buffer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
each_way = pytest.mark.parametrize("via", [LOOPBACK, SIP, WIDEBAND])


class Heard:
    """A call and what its stored recording says: (seconds of the file, seconds of the call, how well it fits)."""

    def __init__(self, house, call, step=1.0):
        self.call = call
        self.said, self.heard = ear.channels(house.sound(call))  # by the caller, and what the caller heard
        speaks, agent = call.speaks_from - call.began, call.agent_speaks_from - call.began
        self.caller = [
            (sound.at, speaks + sound.said, sound.sure)
            for sound in ear.heard(self.said, CALLER, call.at("recording") - speaks, step)
        ]
        self.agent = [(sound.at, agent + sound.said, sound.sure) for sound in ear.heard(self.heard, AGENT, 0.0, step)]


@pytest.fixture(scope="module")
def hear(house):
    known = {}

    def once(via, name):
        call, verdict = house.played(via)[name]
        assert not verdict.wrong
        if (via, name) not in known:
            known[via, name] = Heard(house, call)
        return known[via, name]

    return once


@pytest.fixture(params=RECORDED)
def recording(request, hear, via):
    return hear(via, request.param)


def begins(call):
    """When the recording may begin: the key, or the end of the notice."""
    keys = [at for at, fact in call.timeline if fact[0] == "pressed"]
    return keys[0] if keys else call.at("prompt")


@each_way
def test_nothing_from_before_the_basis(recording):
    _, first, sure = recording.caller[0]
    assert sure > ear.BEGUN
    assert first >= begins(recording.call) - FRAME
    assert not ear.has_prompt(recording.heard)


@each_way
def test_nothing_missing_at_the_start(recording):
    _, first, _ = recording.caller[0]  # which may lack frames: ear.BEGUN
    assert first <= recording.call.at("recording") + 0.1 + FRAME
    _, first, _ = recording.agent[0]
    assert first <= recording.call.agent_speaks_from - recording.call.began + 2 * FRAME


@each_way
def test_nothing_missing_at_the_end(recording):
    gone = recording.call.at("hangup")
    for channel in (recording.caller, recording.agent):
        _, last, sure = channel[-1]
        assert sure > ear.GAPPED
        assert gone - LATE <= last + 0.1 <= gone + 2 * FRAME  # the last stretch is 100 ms


@each_way
def test_nothing_missing_in_between_and_the_channels_in_step(recording):
    in_step(recording)


@each_way
def test_the_length_is_that_of_the_conversation(recording):
    lasts(recording)


def test_a_wideband_call_is_recorded_in_wideband(house):
    call, _ = house.played(WIDEBAND)["sale"]
    with wave.open(io.BytesIO(house.sound(call))) as file:
        assert (file.getnchannels(), file.getframerate()) == (2, 16000)


@each_way
def test_what_is_heard_as_it_is_said_stands_beside_it(house, via):
    # An echo says each frame back at once: what is apart in the recording, the recording has put apart.
    call = house.switch.place(CallScript("040404045", talk=0), via=via)
    call.until("recording")
    call.until("bridged")
    assert house.switch.api(f"uuid_transfer {call.uuid} echo inline").startswith("+OK")
    moved = call.age
    wait_until(lambda: call.age > moved + 3.0, 10)
    call.hang_up()
    call.result(20)
    house.settle(call)
    said, heard = ear.channels(house.sound(call))
    apart = []
    for ago in (2.0, 1.0, 0.5):
        at = len(said) - round(ago * RATE)
        near = at / RATE + call.at("recording") - (call.speaks_from - call.began)
        pair = [ear.when(channel, CALLER, at, near) for channel in (said, heard)]
        assert min(sound.sure for sound in pair) > ear.GAPPED
        apart.append(pair[0].said - pair[1].said)
    assert round(max(map(abs, apart)), 6) <= FRAME


@each_way
def test_a_masked_passage_is_silent_from_mask_to_unmask(hear, via):
    masked = hear(via, "masked")
    silent = [ear.silence(channel) for channel in (masked.said, masked.heard)]
    assert silent[0] == silent[1]
    [(begin, end)] = silent[0]
    for order, moment in (("mask", begin), ("unmask", end)):
        given, done = masked.call.ordered[order]
        assert given - 2 * FRAME <= moment + masked.call.at("recording") <= done + 2 * FRAME


@pytest.mark.skipif(not os.environ.get("CALLREC_TEST_LONG"), reason="takes ten minutes: set CALLREC_TEST_LONG=1")
@pytest.mark.timeout(1200)
def test_ten_minutes(house, capsys):
    demand = Demand("notice whole, then recorded", "notice_given", "market_transaction")
    scenario = Scenario("long", "ten minutes", CallScript("040404045", talk=600.0), demand)
    calls = {via: house.switch.place(scenario.script, via=via) for via in (LOOPBACK, SIP)}
    gevent.sleep(600)
    heard = {}
    for via, call in calls.items():
        assert house.judge(scenario, call).wrong == []
        recording = heard[via] = Heard(house, call, step=10.0)
        drift, apart = steps(recording)
        with capsys.disabled():
            print(  # noqa: T201 # the figures are for who runs it
                f"\n{via}: {len(recording.said) / RATE:.2f} s, {beside(recording) * 1000:+.0f} ms beside the call;"
                f" channels {apart * 1000:+.1f} ms apart at the end, having drifted by {drift * 1000:.1f} ms"
            )
    for recording in heard.values():
        lasts(recording)
        drift, _ = in_step(recording)
        assert drift <= FRAME


def steps(recording):
    """How much the channels drift against each other, and how far they are apart at the end, in seconds.

    From the second stretch on: what the first frames may lack, test_nothing_missing_at_the_start bounds.
    """
    pairs = zip(recording.caller[1:], recording.agent[1:], strict=False)
    apart = [round((said - at) - (heard - to), 6) for (at, said, _), (to, heard, _) in pairs]  # whole samples
    return round(max(apart) - min(apart), 6), apart[-1]


def in_step(recording):
    """Neither channel loses or gains on the other: how much they drift, and how far they are apart at the end."""
    for channel in (recording.caller, recording.agent):
        assert ear.clear([sure for _, _, sure in channel])
        begun = [said - at for at, said, _ in channel[1:]]
        assert max(begun) - min(begun) <= SLIP
    drift, apart = steps(recording)
    assert drift <= SLIP
    # What the agent says has two more legs to go to where it is recorded, and when it was said is known to a frame.
    assert abs(apart) <= 5 * FRAME
    return drift, apart


def beside(recording):
    """By how much the recording is longer than the time from its start to the hang-up."""
    return len(recording.said) / RATE - (recording.call.at("hangup") - recording.call.at("recording"))


def lasts(recording):
    """The recording is as long as it took, and both channels are."""
    assert len(recording.said) == len(recording.heard)
    assert abs(beside(recording)) <= LENGTH
