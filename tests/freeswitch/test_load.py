"""Calls at a steady rate through a real FreeSWITCH: each is handed on, each is recorded and stored, none too much.

CALLREC_LOAD_RATE and CALLREC_LOAD_SECONDS are calls a second and for how long; 25 and 60 where they are not set. The
callers are SIPp's, over SIP and RTP, or FreeSWITCH's own null endpoints, which leave it the least to do for a call.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import ear
import gevent
import pytest
from fix_stack import wait_until

from callrec.demo.process import free_port
from callrec.esl.link import InboundLink

RATE, SECONDS = float(os.environ.get("CALLREC_LOAD_RATE", "25")), float(os.environ.get("CALLREC_LOAD_SECONDS", "60"))
NOTICE, CONVERSATION = 1.0, 2.0
LOST = 0.25  # seconds between FreeSWITCH's own events of its start and its end that a recording may lack
DIALLED, TALK = "040404045", NOTICE + CONVERSATION
# The agent is a null endpoint as well: no sound to mix.
PLACE = f"bgapi originate {{execute_on_answer='sched_hangup +{TALK:.0f}'}}null/caller {DIALLED} XML public\n\n".encode()
MOST_AT_ONCE = 300  # more, and FreeSWITCH itself crawls on two cores

_OURS = (
    "SELECT c.channel, c.call_id, c.ended_at, r.state, r.basis, r.abrupt, r.duration_seconds, r.stopped_at, r.stored_at"
    " FROM call c LEFT JOIN recording r USING (call_id) WHERE c.arrived_at > to_timestamp(%s)"
)


def cpu(pid):
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def by_freeswitch(house, link, calls):
    """Have FreeSWITCH originate them."""
    began = time.time()
    for number in range(calls):
        gevent.sleep(max(0.0, began + number / RATE - time.time()))
        link.post(PLACE)
        if number % round(RATE) == 0:
            up = int(house.switch.api("show calls count").split()[0])
            assert up < 2 * MOST_AT_ONCE, f"{up} bridges and legs up after {number} calls"


def by_sipp(house, link, calls):  # as by_freeswitch
    """Have SIPp call; it fails unless each of its calls was answered and left up until it hung up itself."""
    port = str(free_port())
    command = [
        "sipp", "-sn", "uac", "-s", DIALLED, "-r", str(RATE), "-m", str(calls), "-d", str(round(1000 * TALK)),
        "-l", str(MOST_AT_ONCE), "-i", "127.0.0.1", "-p", port, "-nostdin", f"127.0.0.1:{house.switch.sip_port}",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS + 60, check=False, cwd=house.directory
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@contextlib.contextmanager
def silent_agents(switch):
    before = switch.api("global_getvar callrec_agent")
    switch.api("global_setvar callrec_agent=null/agent")
    yield
    switch.api(f"global_setvar callrec_agent={before}")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not os.environ.get("CALLREC_TEST_LONG"), reason="takes minutes, alone: set CALLREC_TEST_LONG=1")
@pytest.mark.parametrize("place", [by_freeswitch, by_sipp], ids=["null", "sipp"])
def test_every_call_of_a_busy_minute_is_handed_on_recorded_and_stored(house, capsys, place):
    if place is by_sipp and shutil.which("sipp") is None:
        pytest.skip("sipp is not installed")
    house.ready()
    ear.write(house.prompts / "notice-a.wav", ear.prompt(NOTICE))
    switch, channels = house.switch, {}

    def hear(headers):
        at = int(headers.get("Event-Date-Timestamp")) / 1e6
        channels.setdefault(headers.get("Unique-ID"), {})[headers.get("Event-Name")] = at

    link = InboundLink(*switch.address, switch.password, on_event=hear, on_close=lambda: None)
    link.connect()
    link.request("event plain CHANNEL_BRIDGE RECORD_START RECORD_STOP", 5)
    with switch.quiet(), silent_agents(switch):
        switch.api("fsctl sps 1000")
        pids = {"listen": house.installation.pids()["listen"], "FreeSWITCH": switch.pid}
        before, began = {name: cpu(pid) for name, pid in pids.items()}, time.time()
        place(house, link, round(RATE * SECONDS))
        placing = time.time() - began
        used = {name: cpu(pid) - before[name] for name, pid in pids.items()}
        wait_until(lambda: switch.api("show channels count").split()[0] == "0", 60, "every call over")

    def settled():
        rows = house.inspector.rows(_OURS, began)
        waiting = {"authorised", "recording", "finished"}
        return None if any(not row["ended_at"] or row["state"] in waiting for row in rows) else rows

    rows = wait_until(settled, 300, "every recording stored")
    link.close()
    share = used["listen"] / used["FreeSWITCH"]
    lag = sorted((row["stored_at"] - row["stopped_at"]).total_seconds() for row in rows if row["stored_at"])
    states = Counter(str(row["state"]) for row in rows)
    with capsys.disabled():
        print(  # noqa: T201 # the figures are for who runs it
            f"\n{dict(states)} of {len(rows)} calls in {placing:.1f} s, {RATE:g} a second: listen used"
            f" {used['listen']:.1f} s of processor time, FreeSWITCH {used['FreeSWITCH']:.1f} s ({share:.0%});"
            f" stored after {lag[len(lag) // 2]:.1f} s in the middle, {lag[-1]:.1f} s at most;"
            f" load of the machine {os.getloadavg()[0]:.1f}"
        )
    assert len(rows) == round(RATE * SECONDS)
    calls = {row["channel"] for row in rows}
    channels = {channel: names for channel, names in channels.items() if channel in calls}  # without the agents' legs
    bridged = {channel for channel, names in channels.items() if "CHANNEL_BRIDGE" in names}
    recorded = {channel for channel, names in channels.items() if "RECORD_START" in names}
    told = (
        "SELECT l.kind, l.at, l.body FROM ledger l JOIN call c USING (call_id) WHERE c.channel = %s ORDER BY entry_id"
    )
    assert {channel: house.inspector.rows(told, channel) for channel in calls - bridged} == {}
    assert {row["channel"] for row in rows if row["state"] == "stored"} == recorded
    assert {(row["state"], row["basis"], row["abrupt"]) for row in rows} == {("stored", "market_transaction", False)}
    lengths = {channel: names["RECORD_STOP"] - names["RECORD_START"] for channel, names in channels.items()}
    lost = max(lengths[row["channel"]] - row["duration_seconds"] for row in rows)
    assert lost < LOST, f"a recording lacks {lost:.2f} s"
    [without] = house.inspector.rows(
        "SELECT count(*) FROM ledger s WHERE s.kind = 'recording_started' AND NOT EXISTS (SELECT FROM ledger b"
        " WHERE b.call_id = s.call_id AND b.kind = 'basis_established' AND b.entry_id < s.entry_id)"
    )
    assert without["count"] == 0
    if place is by_sipp:  # what operators have; a null endpoint costs FreeSWITCH next to nothing
        assert share < 0.25
