"""A whole callrec beside a real FreeSWITCH, and what a test asks of it."""

import contextlib
import os
import signal
import time

import ear
import gevent
from fix_callrec import Meddler
from fix_stack import wait_until
from psycopg.conninfo import conninfo_to_dict

from callrec import adapters
from callrec.demo.installation import Installation
from callrec.demo.process import running
from callrec.demo.scenarios import SCENARIOS
from callrec.demo.verdict import Inspector
from callrec.errors import CallrecError
from callrec.recording.playback import Listening
from callrec.store import live
from callrec.store.db import Database
from callrec.store.orders import carry_out

NOTICE_SECONDS, ASK_SECONDS = 1.5, 1.0
WAIT_SECONDS = 2.0  # for a key
_SETTLE = 60.0
SUMMARY = {}  # by way into the switch: {scenario: agree or differ}, for the end of the run


class House:
    """FreeSWITCH and callrec, started and stopped together. A context manager."""

    def __init__(self, directory, stack, switch):
        self.switch = switch
        self.meddler = Meddler()  # between callrec and FreeSWITCH's event socket
        self.installation = Installation(
            directory / "callrec", stack, event_socket=self.meddler.start(switch.address), password=switch.password,
            changes={"bases.consent": {"wait_seconds": WAIT_SECONDS}},
        )  # fmt: skip
        self.prompts = directory / "callrec" / "prompts"
        self.directory = directory
        self._open = contextlib.ExitStack()
        self._played = {}

    def __enter__(self):
        self.prompts.mkdir(parents=True)
        self.switch.prompts = str(self.prompts)
        for name, seconds in (("notice-a", NOTICE_SECONDS), ("notice-b", NOTICE_SECONDS), ("ask-b", ASK_SECONDS)):
            ear.write(self.prompts / f"{name}.wav", ear.prompt(seconds))
        with contextlib.ExitStack() as opened:
            opened.callback(self.meddler.stop)
            self.installation.prepare()
            opened.callback(self.switch.stop)
            self.switch.start(self.installation.listen)
            opened.callback(self.installation.stop)
            self.installation.start()
            self.inspector = opened.enter_context(Inspector(self.installation))
            at = conninfo_to_dict(self.installation.stack.postgres_url)
            self.desk = opened.enter_context(
                Database(self.installation.stack.postgres_url, str(at["user"]), str(at.get("password") or ""))
            )
            self._redis = live.connect(self.installation.stack.redis_url)
            opened.callback(self._redis.close)
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_):
        self._open.close()

    def play(self, scenarios, **options):
        """Place one call for each scenario, all at once. [(scenario, call, verdict)] when all have settled."""
        placed = [(scenario, self.switch.place(scenario.script, **options)) for scenario in scenarios]
        orders = [gevent.spawn(self._give_orders, scenario, call) for scenario, call in placed]
        done = [(scenario, call, self.judge(scenario, call)) for scenario, call in placed]
        gevent.joinall(orders, timeout=1)
        return done

    def played(self, via):
        """The demo's scenarios, each placed once in this session: {name: (call, verdict)}."""
        if via not in self._played:
            self._played[via] = {scenario.name: rest for scenario, *rest in self.play(SCENARIOS, via=via)}
            SUMMARY[f"FreeSWITCH, {via}"] = {
                name: "differ" if verdict.wrong else "agree" for name, (_, verdict) in self._played[via].items()
            }
        return self._played[via]

    def judge(self, scenario, call):
        facts = [str(fact[0]) for _, fact in call.result(90)]
        self.settle(call)
        return self.inspector.judge(scenario, call.uuid, facts)

    def settle(self, call, seconds=_SETTLE):
        """Wait until nothing more happens to what this channel recorded."""
        wait_until(lambda: self._settled(call), seconds, f"settled {call.timeline}")

    def _settled(self, call):
        rows = self.rows(call)
        if not rows or not all(row["ended_at"] for row in rows):
            return False
        if any(row["state"] in {"authorised", "recording", "finished"} for row in rows):
            return False
        if any(self.spooled(row["recording_id"]) for row in rows):
            return False
        return self.inspector.told(call.uuid, erased=any(row["state"] not in {None, "stored"} for row in rows))

    def spooled(self, recording_id):
        """The files of this recording that hold audio."""
        folders = (self.installation.spool / folder for folder in ("rec", "sealed"))
        return [path.name for folder in folders for path in folder.iterdir() if str(recording_id) in path.name]

    def rows(self, call):
        """Its calls on this channel, each with its recording, in their order."""
        return self.inspector.rows(
            "SELECT r.*, c.call_id, c.state AS call_state, c.decision, c.ended_at, c.line"
            " FROM call c LEFT JOIN recording r USING (call_id) WHERE c.channel = %s ORDER BY c.arrived_at",
            call.uuid,
        )

    def ledger(self, call):
        """The kinds of the call's entries, in order."""
        return [entry["kind"] for entry in self.entries(call)]

    def entries(self, call):
        return self.inspector.rows(
            "SELECT l.* FROM ledger l JOIN call c USING (call_id) WHERE c.channel = %s ORDER BY entry_id", call.uuid
        )

    def sound(self, call, number=0):
        """The bytes of the stored recording, opened as an operator opens it."""
        row = self.rows(call)[number]
        with adapters.player(self.installation.config) as player:
            return b"".join(player.open(Listening(row["recording_id"], "dsar", "test")))

    def state(self, call):
        """Where callrec has this call; empty while it does not know it."""
        return self.live(call).get("state", "")

    def live(self, call):
        """The live state of the channel, as an agent's desktop reads it."""
        return self._redis.hgetall(live.KEY.format(channel=call.uuid))

    def kill(self, role, how=signal.SIGKILL):
        """End this role's process; the supervisor starts another."""
        pid = wait_until(lambda: self.installation.pids().get(role), 20, f"a process of {role}")
        os.kill(pid, how)
        wait_until(lambda: not running(pid), 20, f"the end of {role}")

    def ready(self, seconds=40.0):
        for role in ("listen", "ship"):
            wait_until(lambda role=role: self.installation.pids().get(role), seconds, f"a process of {role}")
        wait_until(lambda: not self.installation.missing(), seconds, "every role ready")

    def _give_orders(self, scenario, call):
        for moment, order in scenario.orders:
            bridged = call.until("bridged")
            while call.age < bridged + moment:
                gevent.sleep(0.005)
            given = time.time()
            with contextlib.suppress(CallrecError):  # the ledger lacks it then, and the verdict says so
                carry_out(self.desk, call.uuid, order)
                call.ordered[order] = (given - call.began, time.time() - call.began)
