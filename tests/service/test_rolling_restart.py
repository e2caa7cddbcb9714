"""callrec is restarted while calls are in every phase: each caller gets through, what was recorded is stored whole."""

import json
import os
import signal
import urllib.request
from datetime import UTC, datetime
from itertools import count, cycle
from pathlib import Path
from uuid import UUID

import gevent
import psycopg
import pytest
from fix_callrec import SPEED, UNHURRIED, facts, moment, until_seen
from fix_stack import wait_until

from callrec.demo.call import SimCall
from callrec.demo.caller import CallScript, after_prompt, during_prompt, press
from callrec.process import ROLES

EVERY = 0.2  # seconds between calls
KEY_WAIT = 1.0  # seconds that callrec waits for a key (fix_callrec.py)
SLACK = 1.25  # seconds for a machine that others use too
PATIENCE = (
    KEY_WAIT + UNHURRIED["listen"]["decision_timeout_ms"] / 1000 + SLACK
)  # seconds that a caller may hear nothing
NUMBER = "+38640123456"
SALES, SERVICE = "040404045", "040404040"


def agrees(after=1.0, **more):
    """A caller who agrees so many seconds after the notice."""
    return CallScript(SERVICE, caller_number=NUMBER, steps=((after_prompt(after), press("1")),), **more)


MIX = {
    "sale": CallScript(SALES, talk=20),
    "agrees": agrees(talk=25),
    "refuses": CallScript(SERVICE, steps=((during_prompt(0.5), press("2")),), talk=5),
    "hesitates": agrees(8.0, talk=10),
    "withdraws": agrees(talk=5),  # at the portal, after the call
    "long sale": CallScript(SALES, talk=60),
    "silent": CallScript(SERVICE, talk=5),
}
NEVER_RECORDED = {"refuses", "silent"}


class Traffic:
    """Calls that come in one after the other, whatever else happens, and the portal that takes some back."""

    def __init__(self, node, tapes, basis):
        self.node = node
        self.calls = []  # (kind, call)
        self.recorded = {}  # id of the recording -> (kind, call), as the switch began them
        self.unfounded = []  # of which no basis was in Postgres then
        self._tapes, self._basis = tapes, basis
        self._tasks = [gevent.spawn(self._come)]

    def _come(self):
        for number, kind in zip(count(), cycle(MIX), strict=False):
            call = self.place(kind, MIX[kind])
            if kind == "withdraws":
                self._tasks.append(gevent.spawn(self._withdraw, call))
            gevent.sleep(EVERY if number else 0)

    def place(self, kind, script):
        call = self.node.place(script)
        self.calls.append((kind, call))
        return call

    def _withdraw(self, call):
        """As a portal does: the same words until it is told that they were taken in."""
        facts(call)
        if moment(call, "recording") is None:
            return
        said = {
            "channel": "portal", "received_at": datetime.now(UTC).isoformat(), "recording": recording_of(call),
            "number": NUMBER, "proofs": ["login"],
        }  # fmt: skip
        token = self.node.installation.secrets["CALLREC_API_TOKENS"].partition(":")[2]
        host, port = self.node.installation.callbacks
        request = urllib.request.Request(
            f"http://{host}:{port}/v1/revocations", data=json.dumps(said).encode(),
            headers={"Authorization": f"Bearer {token}"},
        )  # fmt: skip
        for _ in range(300):
            try:
                with urllib.request.urlopen(request, timeout=3) as answer:
                    assert answer.status == 201
                    return
            except OSError:
                gevent.sleep(0.1)
        pytest.fail("the portal was never told that a withdrawal was taken in")

    def began(self, call, path):
        """FreeSWITCH has begun to record: whoever removes the file, its bytes stay for comparison."""
        os.link(path, self._tapes / Path(path).name)
        recording = Path(path).stem
        kind = next((kind for kind, each in self.calls if each is call), "")
        self.recorded[recording] = kind, call
        found = self._basis.execute(
            "SELECT 1 FROM ledger JOIN recording USING (call_id) WHERE recording.recording_id = %s"
            " AND kind = 'basis_established'", [recording],
        ).fetchone()  # fmt: skip
        if found is None:
            self.unfounded.append(recording)

    def in_phase(self):
        """The calls that are in the notice, asking, recording and over, by phase."""
        found = {"notice": [], "asking": [], "recording": [], "after": []}
        for kind, call in self.calls:
            seen = {fact[0] for _, fact in call.timeline}
            if "recorded" in seen:
                found["after"].append((kind, call))
            elif "recording" in seen:
                found["recording"].append((kind, call))
            elif "connected" in seen and not seen & {"released", "hangup"}:
                found["asking" if "prompt" in seen else "notice"].append((kind, call))
        return found

    def await_every_phase(self):
        return wait_until(lambda: all(found := self.in_phase().values()) and found, 20, "calls in every phase")

    # What became of them

    def end(self):
        """No more calls, and those that are up end."""
        self._tasks[0].kill()
        for _, call in self.calls:
            facts(call)
        gevent.joinall(self._tasks, raise_error=True)

    def read_back(self, withdrawn=()):
        """Each caller, each recording; `withdrawn` are calls that have to be gone by now."""
        node, rows = self.node, self.node.inspector.rows
        for kind, call in self.calls:
            seen = {fact[0] for _, fact in call.timeline}
            assert "bridged" in seen, (kind, call.timeline)
            assert silence(call) < PATIENCE, (kind, call.timeline)
            if kind in NEVER_RECORDED or "connected" not in seen:
                assert "recording" not in seen, (kind, call.timeline)
            else:  # callrec had this call: it is recorded
                assert "recording" in seen, (kind, call.timeline)
        assert self.unfounded == []
        wait_until(lambda: not rows(
            "SELECT state FROM recording WHERE state IN ('authorised', 'recording', 'finished')"
            " UNION ALL SELECT state FROM erasure WHERE state <> 'erased'"), 60, "nothing under way")  # fmt: skip
        wait_until(lambda: not node.spooled(), 20, "an empty spool")
        versions = {}
        for version in node.inspector.versions():
            if version.key.startswith(("consent/", "market-transaction/")):
                versions.setdefault(version.key.rpartition("/")[2], []).append(version)
        for recording, (kind, call) in self.recorded.items():
            (row,) = rows("SELECT * FROM recording WHERE recording_id = %s", recording)
            if kind == "withdraws" or call in withdrawn:
                assert row["state"] in {"erased", "discarded"}, (kind, row)
                assert recording not in versions, (kind, call.timeline)
                continue
            assert row["state"] == "stored", (kind, row, call.timeline)
            assert len(versions[recording]) == 1
            tape = (self._tapes / f"{recording}.wav").read_bytes()
            assert node.inspector.sound(UUID(recording))[44:] == tape[44:], (kind, call.timeline)


def recording_of(call):
    """The id of what FreeSWITCH recorded of a call."""
    return next(Path(fact[1]).stem for _, fact in call.timeline if fact[0] == "recording")


def silence(call):
    """Seconds that a caller heard nothing: from the last prompt or key to the agent."""
    bridged = moment(call, "bridged")
    heard = (at for at, fact in call.timeline if fact[0] in {"answered", "prompt", "key"} and at <= bridged)
    return (bridged - max(heard, default=0.0)) / SPEED


@pytest.fixture
def traffic(callrec, tmp_path, monkeypatch):
    """Comes in from here on."""
    tapes = callrec.directory / "tapes" / tmp_path.name
    tapes.mkdir(parents=True)
    with psycopg.connect(callrec.stack.postgres_url, autocommit=True) as basis:
        begun = Traffic(callrec, tapes, basis)
        tell = SimCall.fact

        def fact(call, *what):
            if what[0] == "recording":
                begun.began(call, what[1])
            tell(call, *what)

        monkeypatch.setattr(SimCall, "fact", fact)
        yield begun
        gevent.killall(begun._tasks)


def restart(node):
    """As systemd does it: SIGTERM, and the next as soon as the last of the first has ended."""
    process = node.installation._process
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 0
    node.installation.start()


def test_three_restarts_in_a_row_lose_nothing(callrec, traffic):
    """A2, A5, C4, D1: a caller who is recorded across all of them, and one whom a stop met in the interview."""
    talking = traffic.place("talks", agrees(talk=5000))
    until_seen(talking, "bridged")
    for _ in range(3):
        traffic.await_every_phase()
        asked = traffic.place("asked", agrees(6.0, talk=5000))
        until_seen(asked, "answered")
        restart(callrec)
        assert moment(asked, "recording") is not None
        wait_until(lambda: callrec.taken_up(asked), 10, "the recording taken up")  # noqa: B023 # of this round
        asked.plan(0.1, press("*2"))
        asked.poke()
        until_seen(asked, "recorded")
        assert not asked.ended
        asked.hangup("NORMAL_CLEARING", now=True)
    assert moment(talking, "recorded") is None
    wait_until(lambda: callrec.taken_up(talking), 10, "the recording taken up")
    talking.hangup("NORMAL_CLEARING", now=True)
    traffic.end()
    withdrawn = [call for kind, call in traffic.calls if kind == "asked"]
    traffic.read_back(withdrawn)
    assert len(withdrawn) == 3
    for call in withdrawn:
        assert {"consent_withdrawn", "recording_discarded"} <= set(callrec.kinds(call))


def test_roles_that_are_restarted_one_after_the_other_lose_nothing(callrec, traffic):
    """As a larger installation does it, where each role is a service of its own."""
    for role in ROLES:
        traffic.await_every_phase()
        before = callrec.pid(role)
        os.kill(before, signal.SIGTERM)
        wait_until(lambda: callrec.installation.pids().get(role) not in {None, before}, 30, "a new process")  # noqa: B023 # of this round
        callrec.ready(60)
    traffic.end()
    traffic.read_back()
