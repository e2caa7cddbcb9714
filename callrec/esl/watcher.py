"""The node's own connection to FreeSWITCH: what becomes of calls that were handed on, and orders to them.

It reconnects for ever, with a jittered back-off. FreeSWITCH replays nothing, so after each reconnect, and once in a
while, what FreeSWITCH has (`show channels`) is compared with what is being conducted and with what Postgres calls open:
a recorded call that is gone is finished, one that nobody conducts any more is taken up again.
"""

import json
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime

import gevent
from gevent.event import Event

from callrec import metrics
from callrec.call import events as on
from callrec.errors import CallrecError, LinkClosedError, LinkError, StoreError
from callrec.esl import dialect
from callrec.esl.conduct import Conduct, Node, Registry
from callrec.esl.link import InboundLink
from callrec.esl.wire import Headers
from callrec.log import Log
from callrec.store.db import Row
from callrec.store.records import CallFacts

log = Log(__name__)

_LIVENESS = 5.0  # seconds between questions that FreeSWITCH must answer
_ANSWER = 5.0  # seconds that it has for each
_RESYNC = 30.0  # seconds between comparisons while nothing goes wrong
_LONGEST_PAUSE = 5.0  # seconds between attempts to connect
_SETTLED = 10.0  # seconds after which a basis without a conductor is nobody's


class Watcher:
    """Implements conduct.Control."""

    def __init__(self, host: str, port: int, password: str) -> None:
        self._host, self._port, self._password = host, port, password
        self._link: InboundLink | None = None
        self._registry = Registry()
        self._node: Node | None = None
        self._lost = Event()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    @property
    def up(self) -> bool:
        return self._link is not None and self._link.connected

    def post(self, payload: bytes, on_reply: Callable[[str], None] | None = None) -> None:
        if self._link is None:
            raise LinkClosedError("The inbound event socket is down")
        self._link.post(payload, on_reply)

    def start(self, node: Node, registry: Registry) -> None:
        self._node, self._registry = node, registry
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()
        if self._link is not None:
            self._link.close()

    def _run(self) -> None:
        failures = 0
        while True:
            try:
                self._connect()
                failures = 0
                self._watch()
            except CallrecError as error:
                failures += 1
                metrics.RETRIES.labels("control_link").inc()
                if failures in (1, 10, 100):
                    log.warning("control_link_down", detail=str(error), attempts=failures)
            finally:
                metrics.CONTROL_UP.set(0)
                if self._link is not None:
                    self._link.close()
                    self._link = None
            gevent.sleep(random.uniform(0.05, min(_LONGEST_PAUSE, 0.1 * 2**failures)))  # noqa: S311 # jitter

    def _connect(self) -> None:
        self._lost.clear()
        link = InboundLink(
            self._host, self._port, self._password, on_event=self._hear, on_close=self._lost.set, timeout=_ANSWER
        )
        link.connect()
        link.request(dialect.INBOUND_EVENTS, _ANSWER)
        self._link = link
        metrics.CONTROL_UP.set(1)
        log.info("control_link_up")

    def _watch(self) -> None:
        due = 0.0
        while self._link is not None:
            if time.monotonic() >= due:
                self._resync(self._link)
                due = time.monotonic() + _RESYNC
            if self._lost.wait(_LIVENESS):
                raise LinkClosedError("The inbound event socket ended")
            self._link.request("api uuid_exists liveness", _ANSWER)

    def _hear(self, headers: Headers) -> None:
        conduct = self._registry.get(headers.get("Unique-ID"))
        if conduct is not None and conduct.handed_on:  # until then its own link tells the same
            conduct.hear(headers)

    def _resync(self, link: InboundLink) -> None:
        """Compare what FreeSWITCH has with what we believe."""
        metrics.RESYNCS.inc()
        believed = [conduct for conduct in self._registry.all() if conduct.handed_on]
        alive = channels(link.request("api show channels as json", _ANSWER).reply)
        for conduct in believed:
            if conduct.facts.channel not in alive:
                conduct.mailbox.put(on.Hangup())
        assert self._node is not None
        try:
            rows = self._node.records.open_recordings()
        except StoreError as error:
            log.warning("resync_without_postgres", detail=error.detail)
            return
        for row in rows:
            age = (datetime.now(UTC) - row["authorised_at"]).total_seconds()
            if self._registry.get(row["channel"]) is None and (age > _SETTLED or row["channel"] not in alive):
                self._take_up(row, alive=row["channel"] in alive)

    def _take_up(self, row: Row, *, alive: bool) -> None:
        """Go on with a recording that a listener before us began."""
        node = self._node
        assert node is not None
        recording = row["recording_id"]
        line = next((line for line in node.policy.lines.values() if line.id == row["line"]), None)
        if node.spool.withdrawn(recording) or (
            row["state"] == "authorised" and not node.spool.path(recording).exists()
        ):
            node.records.void(recording, "never_started")
            return
        facts = CallFacts(row["call_id"], recording, row["channel"], line, row["arrived_at"])
        log.info("recording_taken_up", call=facts.call_id, recording=recording, alive=alive)
        if row["state"] == "authorised" and line is not None:
            node.records.started(facts, row["authorised_at"])
        if line is None or not alive:  # its line is no longer in the policy, or its call is over
            if alive:
                self.post(dialect.change_recording(row["channel"], "stop", str(node.spool.path(recording))))
            node.records.finished(recording, datetime.now(UTC), None, abrupt=True)
            return
        conduct = Conduct.revived(node, facts, row["decision"] or "", row["ordinal"])
        self._registry.add(conduct)
        gevent.spawn(self._conduct, conduct)

    def _conduct(self, conduct: Conduct) -> None:
        try:
            conduct.run()
        finally:
            self._registry.remove(conduct)


def channels(reply: str) -> set[str]:
    """The Unique-IDs in the answer to `show channels as json`: {"row_count":1,"rows":[{"uuid":"…",…}]}."""
    try:
        rows = json.loads(reply).get("rows", [])
        return {str(row["uuid"]) for row in rows}
    except (ValueError, AttributeError, TypeError, KeyError):
        raise LinkError("FreeSWITCH's list of channels can't be read") from None
