"""Calls that are transferred while they are conducted or recorded, on the simulated switch.

tests/freeswitch/test_moves.py does the same and more on a real one.
"""

import pytest
from fix_callrec import until_seen
from fix_stack import wait_until

from callrec.demo.caller import CallScript, after_prompt, press

SALES, SERVICE = "040404045", "040404040"


def rows(node, call):
    """Its calls on this channel, each with its recording, in their order."""
    return node.inspector.rows(
        "SELECT r.*, c.decision, c.ended_at FROM call c LEFT JOIN recording r USING (call_id)"
        " WHERE c.channel = %s ORDER BY c.arrived_at",
        call.uuid,
    )


def recorded_next(node, call):
    """Wait until the interview after the transfer has led to a recording."""
    wait_until(lambda: len(found := rows(node, call)) == 2 and found[1]["state"] == "recording", 20, "the second")


def consented(node):
    """A consent call in conversation, recorded."""
    call = node.place(CallScript(SERVICE, steps=((after_prompt(0.5), press("1")),), talk=0))
    until_seen(call, "bridged")
    wait_until(lambda: rows(node, call)[0]["state"] == "recording", 10, "recording noted")
    return call


def over(node, call):
    """Hang up; the rows of the call's interviews once everything about it is settled."""
    call.hangup("NORMAL_CLEARING", now=True)
    call.result(20)
    unsettled = {"authorised", "recording", "finished"}
    wait_until(lambda: all(r["ended_at"] and r["state"] not in unsettled for r in rows(node, call)), 30, "settled")
    return rows(node, call)


def test_a_recorded_call_transferred_to_another_line_is_a_new_call_on_a_new_basis(callrec):
    """A4, A9: the consent covers no more than its line; the sales line plays its own notice and records anew."""
    call = consented(callrec)
    call.transfer(SALES, "public")
    recorded_next(callrec, call)
    consent, sale = over(callrec, call)
    assert [row["basis"] for row in (consent, sale)] == ["consent", "market_transaction"]
    assert [(row["state"], row["abrupt"]) for row in (consent, sale)] == [("stored", False)] * 2
    story = [fact[0] for _, fact in call.timeline if fact[0] in {"transferred", "prompt", "recording", "recorded"}]
    assert story == ["prompt", "recording", "transferred", "recorded", "prompt", "recording", "recorded"]
    assert callrec.kinds(call).count("notice_completed") == 2


@pytest.mark.parametrize("state", ["announcing", "asking"])
def test_a_call_transferred_to_an_agent_in_the_interview_is_left_alone_unrecorded(callrec, state):
    """A2: no whole notice, no recording; and the connection stays open, because closing it could tear the call out."""
    call = callrec.place(CallScript(SERVICE, talk=0))
    until_seen(call, "prompt" if state == "asking" else "answered")
    call.transfer("agent", "agents")
    until_seen(call, "bridged")
    wait_until(lambda: (found := rows(callrec, call)) and found[0]["decision"], 20, "given up")
    assert not call.ended
    assert not call.links[-1].finished
    [row] = over(callrec, call)
    assert (row["decision"], row["recording_id"]) == ("link_lost", None)
    assert not {"basis_established", "recording_started"} & set(callrec.kinds(call))
    assert ("released", "transferred") in [fact for _, fact in call.timeline]


def test_a_call_transferred_in_the_notice_to_another_line_is_interviewed_there(callrec):
    """A4, A9: what was cut off counts for nothing, and the other line's notice is played whole."""
    call = callrec.place(CallScript(SERVICE, talk=0))
    until_seen(call, "answered")
    call.transfer(SALES, "public")
    recorded_next(callrec, call)
    until_seen(call, "bridged")
    service, sale = over(callrec, call)
    assert (service["decision"], service["recording_id"]) == ("link_lost", None)
    assert (sale["basis"], sale["state"], sale["abrupt"]) == ("market_transaction", "stored", False)
    assert callrec.kinds(call).count("notice_completed") == 1


def test_a_recorded_call_that_is_transferred_to_no_line_of_ours_goes_on_in_sight(callrec):
    """B8: nothing is recorded on the number where it arrives; what is recorded already is shown, and obeys."""
    call = consented(callrec)
    call.transfer("040999999", "public")
    wait_until(lambda: [bool(row["ended_at"]) for row in rows(callrec, call)] == [False, True], 20, "the second noted")
    before = rows(callrec, call)[0]
    assert len(callrec.lines("calls", "-n", "2")) == 2  # and time enough for Redis to be told
    shown = callrec.inspector._shown.get(call.uuid)
    assert (shown["call"], shown["state"]) == (str(before["call_id"]), "recording")
    done = callrec.command("mask", call.uuid)
    assert (done.returncode, done.stdout.strip()) == (0, "recording_masked"), done.stderr
    consent, unknown = over(callrec, call)
    assert [consent["state"], unknown["decision"]] == ["stored", "unknown_line"]


def test_an_order_for_a_call_spares_the_one_that_followed_it_on_the_channel(callrec):
    """D1, D4: the consent is withdrawn while the caller is on the sales line, whose evidence is kept."""
    call = consented(callrec)
    call.transfer(SALES, "public")
    recorded_next(callrec, call)
    consent, sale = rows(callrec, call)
    done = callrec.command("withdraw", str(consent["call_id"]))
    assert (done.returncode, done.stdout.strip()) == (0, "consent_withdrawn"), done.stderr
    done = callrec.command("stop", str(consent["call_id"]))
    assert (done.returncode, "Nobody could stop this call" in done.stderr) == (1, True)
    assert rows(callrec, call)[1]["state"] == "recording"
    done = callrec.command("mask", str(sale["recording_id"]))
    assert (done.returncode, done.stdout.strip()) == (0, "recording_masked"), done.stderr
    assert over(callrec, call)[1]["state"] == "stored"
    assert "withdrawal_without_effect" not in callrec.kinds(call)
