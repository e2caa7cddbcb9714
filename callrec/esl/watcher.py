"""The node's own connection to FreeSWITCH: what becomes of calls that were handed on, and orders to them.

It reconnects for ever, with a jittered back-off. FreeSWITCH replays nothing, so after each reconnect, and once in a
while, what FreeSWITCH has (`show channels`) is compared with what is being conducted and with what Postgres calls open:
a recorded call that is gone is finished, one that nobody conducts any more is taken up again.
"""

import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import gevent
from gevent.event import Event

from callrec import metrics
from callrec.call import events as on
from callrec.errors import CallrecError, LinkClosedError, LinkError, StoreError
from callrec.esl import dialect
from callrec.esl.conduct import Conduct, Node
from callrec.esl.link import InboundLink
from callrec.esl.registry import Registry
from callrec.esl.wire import Headers
from callrec.log import Log
from callrec.store.records import OpenRecording

log = Log(__name__)

_LIVENESS = 5.0  # seconds between questions that FreeSWITCH must answer
_ANSWER = 5.0  # seconds that it has for each
_RESYNC = 30.0  # seconds between comparisons while nothing goes wrong
_LONGEST_PAUSE = 5.0  # seconds between attempts to connect
_AT_ONCE = 100  # stops; the link bears no more than 256 commands without an answer
_SETTLED = 10.0  # seconds after which a basis of our own without a conductor is nobody's


class Watcher:
    """Implements conduct.Control."""

    def __init__(self, host: str, port: int, password: str) -> None:
        self._host, self._port, self._password = host, port, password
        self._link: InboundLink | None = None
        self._registry = Registry()
        self._node: Node | None = None
        self._owed: dict[bytes, None] = {}  # a recording each, that must stop
        self._failures = 0  # since a link stood and was compared
        self._lost = Event()
        self._began = datetime.now(UTC)
        self._greenlet: gevent.Greenlet[[], None] | None = None

    @property
    def up(self) -> bool:
        return self._link is not None and self._link.connected

    def post(self, payload: bytes, on_reply: Callable[[str], None] | None = None) -> None:
        if on_reply is None:
            self._owed[payload] = None
            if len(self._owed) <= _AT_ONCE:  # the others are paid one after the other
                self._pay(payload)
        elif self._link is None:
            raise LinkClosedError("The inbound event socket is down")
        else:
            self._link.post(payload, on_reply)

    def _pay(self, payload: bytes) -> None:
        """Send what is owed until FreeSWITCH has answered, whatever: that it knows no such call is an answer, too."""
        with suppress(LinkError):
            if self._link is not None:
                self._link.post(payload, lambda _reply: self._owed.pop(payload, None))

    def start(self, node: Node, registry: Registry) -> None:
        self._node, self._registry = node, registry
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()
        if self._link is not None:
            self._link.close()

    def _run(self) -> None:
        while True:
            try:
                self._connect()
                self._watch()
            except Exception as error:  # without this link nothing can be withdrawn: it comes back
                self._failures += 1
                metrics.RETRIES.labels("control_link").inc()
                if not isinstance(error, CallrecError):
                    log.error("control_link_failed", exc_info=True)  # noqa: G201 # our Log
                elif self._failures in (1, 10, 100):
                    log.warning("control_link_down", detail=str(error), attempts=self._failures)
            finally:
                metrics.CONTROL_UP.set(0)
                if self._link is not None:
                    self._link.close()
                    self._link = None
            longest = min(_LONGEST_PAUSE, 0.1 * 2 ** min(self._failures, 10))
            gevent.sleep(random.uniform(0.05, longest))  # noqa: S311 # jitter

    def _connect(self) -> None:
        self._lost.clear()
        link = InboundLink(
            self._host, self._port, self._password, on_event=self._hear, on_close=self._lost.set, timeout=_ANSWER
        )
        link.connect()
        try:
            link.request(dialect.INBOUND_EVENTS, _ANSWER)
        except BaseException:
            link.close()
            raise
        self._link = link
        metrics.CONTROL_UP.set(1)
        log.info("control_link_up")

    def _watch(self) -> None:
        due = 0.0
        while self._link is not None:
            while True:
                for payload in list(self._owed)[:_AT_ONCE]:
                    self._pay(payload)
                self._link.request("api uuid_exists liveness", _ANSWER)  # behind their answers
                if not self._owed:
                    break
            if time.monotonic() >= due:
                self._resync(self._link)
                due = time.monotonic() + _RESYNC
                self._failures = 0
            if self._lost.wait(_LIVENESS):
                raise LinkClosedError("The inbound event socket ended")

    def _hear(self, headers: Headers) -> None:
        for conduct in self._registry.on(headers.get("Unique-ID")):
            if conduct.handed_on:  # until then its own link tells the same
                conduct.hear(headers)

    def _resync(self, link: InboundLink) -> None:
        """Compare what FreeSWITCH has with what we believe."""
        metrics.RESYNCS.inc()
        conducted = self._registry.all()  # what ends from now on may still be open in Postgres, and is not left behind
        believed = [conduct for conduct in conducted if conduct.handed_on]
        listed = channels(link.request("api show channels as json", _ANSWER).reply)

        def alive(channel: str) -> bool:
            # That list lags behind by up to seconds; a channel that it lacks is asked for by name.
            return channel in listed or link.request(f"api uuid_exists {channel}", _ANSWER).reply == "true"

        for conduct in believed:
            if not alive(conduct.facts.channel):
                conduct.mailbox.put(on.Hangup())
        assert self._node is not None
        try:
            left = self._node.records.open_recordings(self._node.policy)
        except StoreError as error:
            log.warning("resync_without_postgres", detail=error.detail)
            return
        known = {conduct.facts.recording_id for conduct in conducted + self._registry.all()}
        for recording in left:
            if recording.facts.recording_id not in known:
                age = (datetime.now(UTC) - recording.authorised_at).total_seconds()
                # A listener before us left it: at once, or a withdrawal by key would meanwhile go unheard.
                if recording.authorised_at < self._began or age > _SETTLED:
                    self._take_up(recording, alive=alive(recording.facts.channel))

    def _take_up(self, left: OpenRecording, *, alive: bool) -> None:
        """Go on with a recording that a listener before us began."""
        node, facts = self._node, left.facts
        assert node is not None
        file = node.spool.path(facts.recording_id)
        withdrawn = node.spool.withdrawn(facts.recording_id)
        if not (left.started or withdrawn or file.exists()):
            node.records.void(facts.recording_id, "never_started")
            return
        log.info("recording_taken_up", call=facts.call_id, recording=facts.recording_id, alive=alive)
        if facts.line is None:  # the policy has its line no more
            if alive:
                self.post(dialect.change_recording(facts.channel, "stop", str(file)))
            node.records.finished(facts.recording_id, datetime.now(UTC), None, abrupt=True)
            return
        if not left.started:
            node.records.started(facts, left.authorised_at)
        conduct = Conduct.revived(node, left)
        beside = [other.facts for other in self._registry.on(facts.channel)]
        later = any(other.line and other.arrived_at > facts.arrived_at for other in beside)
        self._registry.add(conduct)
        if not alive:
            conduct.mailbox.put(on.Hangup())
        elif later:  # the caller came to another line while nobody conducted this call
            conduct.supersede()
        elif withdrawn:  # while nobody could stop it; `ship` discards what it finds so marked
            conduct.mailbox.put(on.Ordered(on.Order.STOP))
        gevent.spawn(self._conduct, conduct)

    def _conduct(self, conduct: Conduct) -> None:
        try:
            conduct.run()
        finally:
            self._registry.remove(conduct)


def channels(reply: str) -> set[str]:
    """The Unique-IDs in the answer to `show channels as json`: {"row_count":1,"rows":[{"uuid":"…",…}]}.

    Empty where it can't be read, as when FreeSWITCH's own database fails: then each channel is asked for by name.
    """
    try:
        rows = json.loads(reply).get("rows", [])
        return {str(row["uuid"]) for row in rows}
    except (ValueError, AttributeError, TypeError, KeyError):
        return set()
