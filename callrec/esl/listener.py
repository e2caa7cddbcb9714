"""Takes the calls that FreeSWITCH's `socket` application brings, and lets each be conducted."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

from gevent.socket import socket

from callrec import metrics
from callrec.call import events as on
from callrec.call.policy import e164
from callrec.call.state import Call
from callrec.errors import CallrecError, LinkError, WireError
from callrec.esl import dialect
from callrec.esl.conduct import EXIT, Conduct, Node
from callrec.esl.link import OutboundLink
from callrec.esl.registry import Registry
from callrec.esl.wire import Headers
from callrec.log import Log
from callrec.store.records import CallFacts

log = Log(__name__)

_CONNECT = 5.0  # seconds for FreeSWITCH to answer `connect`
_LINGER = 10  # seconds that FreeSWITCH keeps the connection after a hang-up, for the last events


class Listener:
    """Takes the calls that FreeSWITCH brings."""

    def __init__(self, node: Node, registry: Registry) -> None:
        self._node = node
        self._registry = registry

    def serve(self, sock: socket, _address: tuple[str, int]) -> None:
        """Conduct one call; returns when nothing more can happen to it. Runs in a greenlet of its own."""
        conduct: Conduct | None = None

        def hear(headers: Headers) -> None:
            if conduct is not None:
                conduct.hear(headers)

        def ended() -> None:
            if conduct is not None:
                conduct.link_ended()

        accepted = time.monotonic()
        link = OutboundLink(sock, on_event=hear, on_close=ended)
        try:
            link.start()
            data = link.connect(_CONNECT)
            metrics.CONNECT_SECONDS.observe(time.monotonic() - accepted)
            channel = dialect.channel_id(data)
        except WireError as error:
            metrics.ESL_ERRORS.labels("outbound", error.kind).inc()
            self._turn_away(link)
            return
        except CallrecError as error:
            log.warning("call_not_taken", detail=error.message)
            self._turn_away(link)
            return
        earlier = self._registry.on(channel)
        conduct = self._conduct(data, channel, link, earlier)
        self._registry.add(conduct)
        try:
            if conduct.facts.line:
                link.post_all(dialect.subscriptions(_LINGER))
                for call in earlier:  # over this link, because the node's own may be down at this moment
                    link.post(dialect.change_recording(channel, "stop", call.path))
                    call.supersede()
            else:  # what was recorded before goes on, and stays in sight
                conduct.superseded = any(call.call.started for call in earlier)
            conduct.run(on.Arrived(conduct.facts.line))
        except LinkError:
            log.warning("call_not_taken", call=conduct.facts.call_id)
        finally:
            self._registry.remove(conduct)
            link.close()

    def _conduct(self, data: Headers, channel: str, link: OutboundLink, earlier: list[Conduct]) -> Conduct:
        policy = self._node.policy
        line = policy.line_for(dialect.dialled(data))
        metrics.CALLS.labels(line.id if line else "", line.basis.id if line else "").inc()
        if line is not None:
            line = self._node.prompts(line)
        facts = CallFacts(uuid4(), uuid4(), channel, line, datetime.now(UTC))
        caller = e164(dialect.caller_number(data), policy.country) or ""
        call = Call(facts.call_id, facts.recording_id, self._node.timing)
        before = dialect.before(data)
        if earlier and before.terminators == "none":  # which an interview that was cut off may not have undone yet
            before = replace(before, terminators=earlier[-1].before.terminators)
        return Conduct(self._node, facts, call, link, caller, before=before)

    def _turn_away(self, link: OutboundLink) -> None:
        """Nothing can be done for this call: let the dialplan go on with it."""
        metrics.UNRECORDED.labels("not_taken").inc()
        if link.connected:
            try:
                link.post(b"resume\n\n")
                link.request("exit", EXIT)
            except LinkError:
                pass
        link.close()
