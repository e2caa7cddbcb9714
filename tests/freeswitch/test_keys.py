"""Keys, however they come: one key is one key. And prompts behind us end at the keys that they always ended at."""

import pytest
from fix_stack import wait_until
from real_switch import LOOPBACK, SIP

from callrec.demo.caller import CallScript, after_prompt, in_conversation, press

SALES, SERVICE = "040404045", "040404040"
PRESSED = "177*2"
IN_BAND = {"loopback_export": "execute_on_answer", "execute_on_answer": "spandsp_start_dtmf"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def switch(house):
    """The switch, which a test may start anew with other keys; the usual one afterwards."""

    def again(**environment):
        house.switch.stop()
        house.switch.environment = environment
        house.switch.start(house.installation.listen)
        house.ready()
        return house.switch

    again.now = house.switch
    yield again
    if house.switch.environment:
        again()


def pressed_as_it_was(house, call):
    """The keys of the script were each heard once, in their order: 1 is consent, *2 takes it back (A4, D1)."""
    call.result(60)
    assert [fact[1] for _, fact in call.timeline if fact[0] == "key"] == list(PRESSED)
    house.settle(call)
    [row] = house.rows(call)
    assert (row["decision"], row["state"]) == ("withdrawn", "discarded")
    assert [kind for kind in house.ledger(call) if kind in {"key_pressed", "consent_withdrawn"}] == [
        "key_pressed",
        "consent_withdrawn",
    ]


def script(way=""):
    return CallScript(
        SERVICE, talk=6, steps=((after_prompt(0.5), press(way + "1")), (in_conversation(1.0), press(way + "77*2")))
    )


@pytest.mark.parametrize("via", [LOOPBACK, SIP])
def test_one_key_is_one_key_by_rfc_2833(house, via):
    pressed_as_it_was(house, house.switch.place(script(), via=via))


def test_one_key_is_one_key_by_sip_info(house, switch):
    call = switch(CALLREC_DTMF_TYPE="info").place(script(), via=SIP)
    pressed_as_it_was(house, call)
    assert {fact[2] for _, fact in call.timeline if fact[0] == "key"} == {"ENDPOINT"}  # by RFC 2833 it is RTP


def test_one_key_is_one_key_in_band(house):
    house.switch.needs("mod_spandsp")
    call = house.switch.place(script("~"), **IN_BAND)
    pressed_as_it_was(house, call)
    assert {fact[2] for _, fact in call.timeline if fact[0] == "key"} == {"INBAND_AUDIO"}


@pytest.mark.parametrize("via", [LOOPBACK, SIP])
@pytest.mark.parametrize("before", ["", "5"])
def test_a_prompt_behind_us_ends_at_the_key_that_ended_it_before(house, via, before):
    options = {"loopback_export": "playback_terminators", "playback_terminators": before} if before else {}
    if before and via == SIP:
        pytest.skip("over SIP no variable comes with the call")
    call = house.switch.place(CallScript(SALES, talk=0), via=via, **options)
    call.until("bridged")
    assert house.switch.api(f"uuid_transfer {call.uuid} agent XML agents").startswith("+OK")
    doing = lambda: house.switch.api(f"uuid_getvar {call.uuid} current_application")  # noqa: E731 # said thrice below
    wait_until(lambda: doing() == "playback", 10, "the agent speaks")
    call.press("7")
    wait_until(lambda: any(fact[:2] == ("key", "7") for _, fact in call.timeline), 10, "the key")
    assert doing() == "playback"
    call.press(before or "*")
    wait_until(lambda: doing() == "park", 10, "the key ends the prompt")
    call.hang_up()
    call.result(20)
