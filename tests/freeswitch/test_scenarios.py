"""Every scenario of the demo on a real FreeSWITCH, judged by what is stored: one description, two switches."""

import gevent
import pytest
from real_switch import LOOPBACK, SIP, WIDEBAND

from callrec.demo.scenarios import by_name


@pytest.mark.slow
@pytest.mark.parametrize("via", [LOOPBACK, SIP, WIDEBAND])
def test_every_scenario_is_as_the_law_demands(house, via):
    judged = house.played(via)
    wrong = {name: (verdict.wrong, call.timeline) for name, (call, verdict) in judged.items() if verdict.wrong}
    assert wrong == {}


@pytest.mark.slow
@pytest.mark.parametrize("via", [LOOPBACK, SIP])
def test_a_notice_cut_by_hanging_up_is_never_taken_for_whole_a3(house, via):
    # FreeSWITCH calls the prompt played, done and the channel answered in about 1 of 80 such calls.
    scenario = by_name("hang-up")
    calls = []
    for _ in range(40):
        calls.append(house.switch.place(scenario.script, via=via))
        gevent.sleep(0.05)
    for call in calls:
        verdict = house.judge(scenario, call)
        kinds = set(house.ledger(call))
        assert not kinds & {"notice_completed", "basis_established", "recording_started"}, (
            verdict.wrong,
            call.timeline,
        )
        assert kinds & {"abandoned_during_notice", "notice_cut"}
