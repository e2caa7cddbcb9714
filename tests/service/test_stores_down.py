"""A store that is down or says nothing: calls go on, what may be recorded is, and nothing recorded is lost."""

import os
import uuid
from contextlib import ExitStack
from dataclasses import replace

import psycopg
import pytest
from fix_callrec import Watched, children, facts, frozen, moment, until_seen
from fix_stack import wait_until

from callrec.demo.caller import CallScript, after_prompt, in_conversation, press
from callrec.demo.scenarios import by_name

CONSENT, SALE, REFUSAL = by_name("consent"), by_name("sale"), by_name("refusal")
DECISION = 0.25  # seconds that a decision may take (listen.decision_timeout_ms)
SLACK = 0.75  # seconds for a machine that others use too


@pytest.fixture
def node(own_callrec):
    """The module's node with everything up, and all of it up again for the next test."""
    own_callrec.ready()
    yield own_callrec
    for service, program in (("postgres", "postgres"), ("redis", "redis-server"), ("s3", "radosgw")):
        if program not in own_callrec.stack.pids():
            own_callrec.stack.restart(service)
    own_callrec.ready()
    own_callrec.reopen()
    wait_until(lambda: not own_callrec.spooled(), 90, "an empty spool")


def watch(node):
    return Watched(node.installation.spool / "rec", node.installation.spool / "sealed")


def wait_after_key(node, call):
    """Real seconds from the caller's key to the caller's being handed on."""
    return (moment(call, "released") - moment(call, "key")) / node.switch.clock.speed


def whole_postgres(node):
    postmaster = node.stack.pids()["postgres"]
    return [postmaster, *children(postmaster)]


def asserted_stored(node, scenario, call, seconds=90.0):
    verdict = node.verdict(scenario, call, seconds)
    assert verdict.wrong == []


# Postgres


def test_without_postgres_calls_go_on_unrecorded_and_at_once(node):
    """No proof, no recording; and no caller waits for a ledger that is away."""
    before = node.metric("callrec_unrecorded_total", reason="ledger_down")
    node.stack.kill("postgres")
    with watch(node) as watched:
        calls = [node.place(replace(CONSENT.script, talk=2)) for _ in range(3)]
        calls.append(node.place(replace(SALE.script, talk=2)))
        for call in calls:
            seen = facts(call)
            assert "bridged" in seen, seen
        assert watched.names == []
    for call in calls[:-1]:
        assert wait_after_key(node, call) < DECISION + SLACK
    notice = calls[-1]
    assert (moment(notice, "released") - moment(notice, "prompt")) / node.switch.clock.speed < DECISION + SLACK
    assert node.metric("callrec_unrecorded_total", reason="ledger_down") == before + 4
    wait_until(lambda: {"listen: postgres", "ship: postgres"} <= node.installation.missing(), 10, "/readyz to say so")
    wait_until(lambda: node.metric("callrec_store_errors_total", operation="waiting"), 20, "a figure that was not had")

    node.stack.restart("postgres")
    node.ready()
    node.reopen()
    (verdict,), _ = node.judged(CONSENT)  # recording works again, and nothing had to be restarted
    assert not verdict.wrong
    unknown = node.installation.spool / "rec" / f"{uuid.uuid4()}.wav"
    unknown.touch()
    wait_until(lambda: node.metric("callrec_spool_files") == 1, 10, "the spool's figures go on, too")
    unknown.unlink()
    for call in calls:
        node.settled(call)  # and what happened without it is in the ledger now
        assert node.kinds(call)[-1] == "released_unrecorded"
        assert "basis_established" not in node.kinds(call)
        assert node.recording(call) is None


def test_a_refusal_needs_no_postgres(node):
    node.stack.kill("postgres")
    call = node.place(REFUSAL.script)
    assert "bridged" in facts(call)
    assert (moment(call, "released") - moment(call, "pressed")) / node.switch.clock.speed < SLACK
    node.stack.restart("postgres")
    node.ready()
    node.reopen()
    asserted_stored(node, REFUSAL, call)


def test_a_postgres_that_says_nothing_delays_no_caller_beyond_the_decision(node):
    """Frozen, not dead: connections stand, statements are taken and never answered; later all of them are."""
    before = node.metric("callrec_unrecorded_total", reason="ledger_down")
    with watch(node) as watched:
        with frozen(*whole_postgres(node)):
            calls = [node.place(replace(CONSENT.script, talk=5)) for _ in range(6)]
            for call in calls:
                seen = facts(call)
                assert "bridged" in seen, seen
                assert wait_after_key(node, call) < DECISION + SLACK, call.timeline
        assert watched.names == []
    wait_until(lambda: node.metric("callrec_unrecorded_total", reason="ledger_down") == before + 6, 10, "the metric")
    node.ready()
    (verdict,), _ = node.judged(CONSENT)
    assert not verdict.wrong
    for call in calls:
        node.settled(call)
        row = node.recording(call)  # of a statement that Postgres took before it froze and carried out after
        assert row is None or row["state"] == "discarded"


def test_postgres_is_killed_in_mid_conversation_and_nothing_is_lost(node):
    """What happens meanwhile, an end too, is noted when it is back."""
    calls = [node.place(replace(SALE.script, talk=1000)), node.place(replace(CONSENT.script, talk=1000))]
    for call in calls:
        until_seen(call, "bridged")
    node.stack.kill("postgres")
    for call in calls:
        call.hangup("NORMAL_CLEARING", now=True)
        assert "recorded" in facts(call)
    node.stack.restart("postgres")
    node.ready()
    node.reopen()
    for scenario, call in zip((SALE, CONSENT), calls, strict=True):
        asserted_stored(node, scenario, call)
        recorded = moment(call, "recorded") - moment(call, "recording")
        assert node.stored_seconds(call) == pytest.approx(recorded, abs=0.1)


def test_consent_is_withdrawn_while_postgres_is_away(node):
    """D1: the file goes at once, whoever may note it later."""
    withdrawal = by_name("withdrawal")
    call = node.place(replace(withdrawal.script, talk=1000))
    until_seen(call, "bridged")
    node.stack.kill("postgres")
    until_seen(call, "recorded")
    wait_until(lambda: not node.spooled(), 5, "no file")
    call.hangup("NORMAL_CLEARING", now=True)
    facts(call)
    node.stack.restart("postgres")
    node.ready()
    node.reopen()
    asserted_stored(node, withdrawal, call)


@pytest.mark.parametrize("statement", ["UPDATE ledger SET kind = 'x'", "DELETE FROM ledger", "TRUNCATE ledger"])
@pytest.mark.parametrize("role", ["listen", "ship", "sweep", "api", "owner"])
def test_nobody_rewrites_the_ledger(node, role, statement):
    """Not its own writers, nor the owner of the tables with all of a superuser's rights."""
    config = node.installation.config
    with (
        psycopg.connect(
            config.postgres.url, user=config.postgres.users[role], password=config.secrets.postgres_password(role)
        ) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement)


# Redis


def test_without_redis_calls_are_recorded_as_ever(node):
    before = node.metric("callrec_store_errors_total", store="redis")
    node.stack.kill("redis")
    call = node.place(replace(CONSENT.script, talk=5))
    seen = facts(call)
    assert {"bridged", "recorded"} <= set(seen), seen
    assert wait_after_key(node, call) < DECISION + SLACK
    node.settled(call)
    assert node.recording(call)["state"] == "stored"
    assert node.metric("callrec_store_errors_total", store="redis") > before
    wait_until(lambda: "listen: redis" in node.installation.missing(), 10, "/readyz to say so")
    node.stack.restart("redis")
    node.ready()
    (verdict,), _ = node.judged(CONSENT)  # the live state is there again
    assert not verdict.wrong


def test_a_redis_that_says_nothing_delays_no_caller(node):
    with frozen(node.stack.pids()["redis-server"]):
        calls = [node.place(replace(CONSENT.script, talk=5)) for _ in range(4)]
        for call in calls:
            assert {"bridged", "recorded"} <= set(facts(call))
            assert wait_after_key(node, call) < DECISION + SLACK
    for call in calls:
        asserted_stored(node, CONSENT, call)


# S3


def test_without_s3_recordings_wait_in_the_spool_and_are_stored_later(node):
    retries = node.metric("callrec_retries_total", what="upload")
    node.stack.kill("s3")
    calls = [node.place(replace(SALE.script, talk=4)) for _ in range(2)]
    for call in calls:
        assert {"bridged", "recorded"} <= set(facts(call))
    wait_until(lambda: all(node.recording(call)["attempts"] > 1 for call in calls), 30, "a second attempt")
    assert {node.recording(call)["state"] for call in calls} == {"finished"}
    assert all(node.recording(call)["last_error"] for call in calls)
    assert node.metric("callrec_retries_total", what="upload") >= retries + 2
    wait_until(lambda: node.metric("callrec_spool_oldest_seconds") > 1, 10, "the age")
    assert node.metric("callrec_spool_bytes") > 100_000
    wait_until(lambda: "ship: storage" in node.installation.missing(), 10, "/readyz to say so")
    node.stack.restart("s3")
    for call in calls:
        asserted_stored(node, SALE, call)


def test_an_s3_that_says_nothing_holds_no_call_up(node):
    with frozen(node.stack.pids()["radosgw"]):
        first = node.place(replace(SALE.script, talk=4))
        assert {"bridged", "recorded"} <= set(facts(first))
        wait_until(lambda: node.recording(first)["attempts"] > 0, 20, "an attempt")
        second = node.place(replace(CONSENT.script, talk=4))
        assert {"bridged", "recorded"} <= set(facts(second))
        assert wait_after_key(node, second) < DECISION + SLACK
    asserted_stored(node, SALE, first)
    asserted_stored(node, CONSENT, second)


# The spool


def test_a_full_spool_stops_new_recordings_before_it_stops_the_node(node):
    before = node.metric("callrec_unrecorded_total", reason="spool_full")
    running = node.place(replace(SALE.script, talk=1000))
    until_seen(running, "bridged")
    big = node.installation.spool / "rec" / f"{uuid.uuid4()}.wav"
    with ExitStack() as ends:
        with big.open("wb") as file:
            os.truncate(file.fileno(), 21 * 2**30)  # sparse; above [spool] max_size
        ends.callback(big.unlink)
        wait_until(lambda: "listen: spool" in node.installation.missing(), 10, "/readyz to say so")
        call = node.place(CallScript("040404040", steps=((after_prompt(1.0), press("1")),), talk=2))
        seen = facts(call)
        assert ("bridged" in seen, "recording" in seen) == (True, False)
        assert node.metric("callrec_unrecorded_total", reason="spool_full") == before + 1
        wait_until(lambda: node.metric("callrec_spool_bytes") > 21 * 2**30, 10, "the figure")
    node.settled(call)
    assert node.kinds(call)[-1] == "released_unrecorded"
    assert node.recording(call) is None
    wait_until(lambda: "listen: spool" not in node.installation.missing(), 10, "room again")
    running.hangup("NORMAL_CLEARING", now=True)
    asserted_stored(node, SALE, running)  # what had begun goes on


def test_what_room_is_left_is_kept_for_evidence(node):
    """B1, B2: the line that records by consent gives up first; the sales line still must be recorded."""
    big = node.installation.spool / "rec" / f"{uuid.uuid4()}.wav"
    with ExitStack() as ends:
        with big.open("wb") as file:
            os.truncate(file.fileno(), 20 * 2**30 - 2**25)  # sparse; half of [spool] consent_reserve below max_size
        ends.callback(big.unlink)
        wait_until(lambda: "listen: spool" in node.installation.missing(), 10, "/readyz to say so")
        call, sale = node.place(replace(CONSENT.script, talk=2)), node.place(replace(SALE.script, talk=2))
        assert ("bridged" in facts(call), "recording" in facts(call)) == (True, False)
        assert {"bridged", "recorded"} <= set(facts(sale))
    node.settled(call)
    assert node.kinds(call)[-1] == "released_unrecorded"
    node.ready()
    asserted_stored(node, SALE, sale)


# The event socket


def test_without_the_control_link_no_consent_is_taken_that_could_not_be_withdrawn(node):
    """D2; the sales line has no withdrawal and is recorded."""
    node.meddler.refusing = True
    node.meddler.hang_up()
    wait_until(lambda: "listen: event_socket" in node.installation.missing(), 10, "/readyz to say so")
    call = node.place(replace(CONSENT.script, talk=2))
    sale = node.place(replace(SALE.script, talk=20, steps=((in_conversation(1), press("*2")),)))
    assert ("bridged" in facts(call), "recording" in facts(call)) == (True, False)
    node.meddler.refusing = False
    node.ready()
    assert node.kinds(call)[-1] == "released_unrecorded"
    facts(sale)
    asserted_stored(node, SALE, sale)


def facts_so_far(call):
    return [what[0] for _, what in call.timeline]


def test_a_stop_that_came_while_the_control_link_was_down_is_carried_out_when_it_is_back(node):
    """C4: what follows such an order has no basis, so FreeSWITCH must not go on recording until the hang-up."""
    call = node.place(replace(CONSENT.script, talk=600))
    wait_until(lambda: (found := node.recording(call)) and found["state"] == "recording", 20, "the recording")
    node.meddler.refusing = True
    node.meddler.hang_up()
    wait_until(lambda: "listen: event_socket" in node.installation.missing(), 10, "/readyz to say so")
    refused = node.command("stop", call.uuid)
    assert (refused.returncode, "does not reach FreeSWITCH" in refused.stderr) == (1, True)
    assert "recorded" not in facts_so_far(call)
    node.meddler.refusing = False
    wait_until(lambda: "recorded" in facts_so_far(call), 15, "FreeSWITCH to stop")
    assert not call.ended
    call.hangup("NORMAL_CLEARING", now=True)
    node.ready()
