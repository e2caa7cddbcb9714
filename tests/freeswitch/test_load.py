"""Calls at a steady rate through a real FreeSWITCH: each is handed on, each is recorded and stored, none too much.

CALLREC_LOAD_RATE and CALLREC_LOAD_SECONDS are calls a second and for how long; 25 and 60 where they are not set.
"""

import os
import time
from collections import Counter
from pathlib import Path

import ear
import gevent
import pytest
from fix_stack import wait_until

from callrec.esl.link import InboundLink

RATE, SECONDS = float(os.environ.get("CALLREC_LOAD_RATE", "25")), float(os.environ.get("CALLREC_LOAD_SECONDS", "60"))
NOTICE, CONVERSATION = 1.0, 2.0
# Two legs a call, and no sound to mix: what is measured is what FreeSWITCH and callrec do for a call.
PLACE = (
    f"bgapi originate {{callrec_agent=null/agent,execute_on_answer='sched_hangup +{NOTICE + CONVERSATION:.0f}'}}"
    "null/caller 040404045 XML public\n\n"
).encode()
MOST_AT_ONCE = 300  # more, and FreeSWITCH itself crawls on two cores

_OURS = (
    "SELECT c.channel, c.call_id, c.ended_at, r.state, r.basis, r.abrupt, r.duration_seconds, r.stopped_at, r.stored_at"
    " FROM call c LEFT JOIN recording r USING (call_id) WHERE c.arrived_at > to_timestamp(%s)"
)


def cpu(pid):
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not os.environ.get("CALLREC_TEST_LONG"), reason="takes minutes, alone: set CALLREC_TEST_LONG=1")
def test_every_call_of_a_busy_minute_is_handed_on_recorded_and_stored(house, capsys):
    house.ready()
    ear.write(house.prompts / "notice-a.wav", ear.prompt(NOTICE))
    switch, channels = house.switch, {}

    def hear(headers):
        channels.setdefault(headers.get("Unique-ID"), []).append(headers.get("Event-Name"))

    link = InboundLink(*switch.address, switch.password, on_event=hear, on_close=lambda: None)
    link.connect()
    link.request("event plain CHANNEL_BRIDGE RECORD_START", 5)
    with switch.quiet():
        switch.api("fsctl sps 1000")
        pids = {"listen": house.installation.pids()["listen"], "FreeSWITCH": switch.pid}
        before, began = {name: cpu(pid) for name, pid in pids.items()}, time.time()
        for number in range(round(RATE * SECONDS)):
            gevent.sleep(max(0.0, began + number / RATE - time.time()))
            link.post(PLACE)
            if number % round(RATE) == 0:
                up = int(switch.api("show calls count").split()[0])
                assert up < 2 * MOST_AT_ONCE, f"{up} bridges and legs up after {number} calls"
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
    bridged = {channel for channel, names in channels.items() if "CHANNEL_BRIDGE" in names}
    recorded = {channel for channel, names in channels.items() if "RECORD_START" in names}
    told = (
        "SELECT l.kind, l.at, l.body FROM ledger l JOIN call c USING (call_id) WHERE c.channel = %s ORDER BY entry_id"
    )
    assert {channel: house.inspector.rows(told, channel) for channel in calls - bridged} == {}
    assert {row["channel"] for row in rows if row["state"] == "stored"} == recorded
    assert {(row["state"], row["basis"], row["abrupt"]) for row in rows} == {("stored", "market_transaction", False)}
    assert min(row["duration_seconds"] for row in rows) > CONVERSATION - 1.0
    [without] = house.inspector.rows(
        "SELECT count(*) FROM ledger s WHERE s.kind = 'recording_started' AND NOT EXISTS (SELECT FROM ledger b"
        " WHERE b.call_id = s.call_id AND b.kind = 'basis_established' AND b.entry_id < s.entry_id)"
    )
    assert without["count"] == 0
    assert share < 0.25
