"""The hardened core under both links: one reader, those who wait for answers, one way to end.

One reader greenlet a link and no other (a writer lives only while the peer does not take what we send). The reader
hands each frame on as it comes: events to `on_event`, answers to whoever waits longest, as FreeSWITCH answers in order.

- `on_event(headers)` is called for each text/event-plain with the event's headers, and for a disconnect notice with the
  notice's own: that has no Event-Name, its Content-Type is text/disconnect-notice and its Content-Disposition `linger`
  or `disconnect`. After `linger` more events may come.
- `on_close()` is called exactly once, whatever ended the link, a failed `connect` of ours included.

Both run in the reader (on_close also in whoever calls `close`) and must not wait: `post` and `close` are allowed there,
`request` is refused. A fault ends the link, fails all who wait and is counted in ESL_ERRORS under its kind: those of
esl/wire.py and unexpected_reply, reset, send_timeout, handler (a bug of ours). unexpected_frame is counted, no more.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypedDict, Unpack

import gevent
from gevent import socket
from gevent.event import AsyncResult
from gevent.greenlet import Greenlet

from callrec import metrics
from callrec.errors import LinkClosedError, LinkError, LinkTimeoutError, WireError
from callrec.esl import wire
from callrec.esl.wire import Frame, FrameParser, Headers
from callrec.log import Log

_log = Log("callrec.esl")

_CHUNK = 16 * 1024  # bytes taken from the kernel at a time; held only while they are parsed
_TURNS = 8  # pieces read before others get the hub, when there is always one more
_MAX_BACKLOG = 1024 * 1024  # bytes of ours that FreeSWITCH has not taken
HELPER_TIMEOUT = 5.0  # seconds that a session helper of greenswitch waits for its reply
# A peer that vanished without a word is noticed after a minute, or 20 s after something was sent to it.
_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),
)

_Waiting: TypeAlias = "AsyncResult[Frame] | Callable[[str], None] | None"  # AsyncResult is generic in its stubs only


class Limits(TypedDict, total=False):
    """What a link bears of its peer."""

    max_header: int  # bytes of one header block; 256 KiB
    max_body: int  # bytes of one body; 4 MiB
    send_timeout: float  # seconds in which the peer must take what we send; 5
    max_pending: int  # commands without an answer; 256


class Pipe:
    """What both links share; a class that goes before greenswitch's and never runs its constructor or greenlets."""

    _side = ""  # the `link` label of ESL_ERRORS

    def __init__(
        self,
        on_event: Callable[[Headers], None],
        on_close: Callable[[], None],
        **limits: Unpack[Limits],
    ) -> None:
        self.sock: socket.socket | None = None
        self.connected = False
        self._on_event = on_event
        self._on_close = on_close
        self._parser = FrameParser(limits.get("max_header", wire.MAX_HEADER), limits.get("max_body", wire.MAX_BODY))
        self._send_timeout = limits.get("send_timeout", 5.0)
        self._max_pending = limits.get("max_pending", 256)
        self._pending: deque[_Waiting] = deque()
        self._backlog = bytearray()
        self._reader: Greenlet[[socket.socket], None] | None = None
        self._ended = False
        self._reason = ""
        self._lingering = False  # read by greenswitch's helpers

    # Sending

    def request(self, text: str, timeout: float) -> Frame:
        """Send one command and wait for its answer.

        LinkTimeoutError after `timeout` seconds (an answer that comes later is dropped), LinkClosedError when the link
        ends first, WireError when `text` has a line end in it.
        """
        return self._ask(wire.command(text), timeout)

    def post(self, payload: bytes, on_reply: Callable[[str], None] | None = None) -> None:
        """Send one command, as wire.command or wire.execute made it, and go on at once.

        `on_reply` gets the text of the answer; when the link ends first it is not called, `on_close` tells.
        LinkClosedError when the link has ended, LinkError when FreeSWITCH has left too much unanswered.
        """
        self._write((payload,), on_reply)

    def post_all(self, payloads: Sequence[bytes]) -> None:
        """Send several commands in one piece, in this order. Nobody waits for their answers; errors as of `post`."""
        self._write(payloads, None)

    def close(self) -> None:
        """End the link now, without waiting. Whoever waits on it gets LinkClosedError. May be called again."""
        self._end("")

    def _ask(self, payload: bytes, timeout: float) -> Frame:
        if gevent.getcurrent() is self._reader:
            raise LinkError("A callback of the event socket waited for the event socket", hint="Use post there.")
        answer: AsyncResult[Frame] = AsyncResult()
        self._write((payload,), answer)
        return self._await(answer, timeout)

    def _await(self, answer: "AsyncResult[Frame]", timeout: float) -> Frame:
        answer.wait(timeout)  # unlike get(), raises no Timeout that could be mistaken for an outer one
        if not answer.ready():
            raise LinkTimeoutError(f"FreeSWITCH did not answer within {timeout:.3g} s")
        frame = answer.get_nowait()
        assert frame is not None  # it is ready, and set with a frame or an error
        return frame

    def _write(self, payloads: Sequence[bytes], waiting: _Waiting) -> None:
        """Send commands; each of their answers goes to `waiting`."""
        if self._ended or self.sock is None:
            raise self._gone()
        for payload in payloads:
            if payload.find(b"\n\n") != len(payload) - 2:
                raise WireError("Only one command at a time, ended by a blank line", kind="bad_argument")
        payload = b"".join(payloads)
        if len(self._pending) + len(payloads) > self._max_pending or len(self._backlog) + len(payload) > _MAX_BACKLOG:
            raise LinkError("FreeSWITCH has left too many commands unanswered")
        if self._backlog:  # the writer sends it in its turn
            self._backlog += payload
        else:
            try:
                # A timeout of 0 makes gevent's send not wait; any other it takes, and ignores (26.9).
                sent = self.sock.send(payload, 0, 0.0)  # type: ignore[call-arg]  # the stubs have the stdlib's send
            except BlockingIOError:
                sent = 0
            except OSError:
                raise self._gone() from None  # the reader may still find last events, and then the end
            if sent < len(payload):
                self._backlog += payload[sent:]
                gevent.spawn(self._drain, self.sock)
        self._pending.extend(waiting for _ in payloads)

    def _drain(self, sock: socket.socket) -> None:
        try:
            with gevent.Timeout(self._send_timeout, TimeoutError):
                while self._backlog:
                    del self._backlog[: sock.send(bytes(self._backlog[:_CHUNK]))]
        except TimeoutError:
            self._end("send_timeout")
        except OSError:
            self._backlog.clear()  # as above: the reader tells

    def _gone(self) -> LinkClosedError:
        return LinkClosedError("The connection to FreeSWITCH is closed", detail=self._reason)

    # Receiving

    def _open(self, sock: socket.socket) -> None:
        """Start reading from a connected socket."""
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            for level, option, value in _OPTIONS:
                sock.setsockopt(level, option, value)
        self.sock = sock
        self.connected = True
        self._reader = gevent.spawn(self._read, sock)

    def _read(self, sock: socket.socket) -> None:
        kind, turns = "", 0
        try:
            while data := sock.recv(_CHUNK):
                for frame in self._parser.feed(data):
                    self._take(frame)
                    if self._ended:
                        return
                # recv does not wait while there is more, and one peer's flood must not starve the others. Only a
                # timer lets the loop look at sockets and timers again; sleep(0) does so after every 50th alone.
                turns += 1
                if len(data) == _CHUNK:
                    gevent.sleep(0.001)
                elif turns % _TURNS == 0:
                    gevent.sleep(0)
            self._parser.eof()
        except WireError as fault:
            kind = fault.kind
        except OSError:
            kind = "reset"
        except Exception:  # noqa: BLE001 - whatever a callback raises, nobody may wait on a link that no one reads
            kind = "handler"
            _log.error("esl_handler_failed", exc_info=True, link=self._side)
        finally:
            self._end(kind)

    def _take(self, frame: Frame) -> None:
        if frame.event is not None:
            self._on_event(frame.event)
        elif frame.content_type in ("command/reply", "api/response"):
            if not self._pending:
                raise WireError("An answer came to nothing that was asked", kind="unexpected_reply")
            waiting = self._pending.popleft()
            if isinstance(waiting, AsyncResult):
                waiting.set(frame)
            elif waiting is not None:
                waiting(frame.reply)
        elif frame.content_type == "text/disconnect-notice":
            self._lingering = frame.headers.get("Content-Disposition") == "linger"
            self._on_event(frame.headers)
        else:
            self._greeted(frame)

    def _greeted(self, frame: Frame) -> None:  # noqa: ARG002 - an inbound link looks at it
        """A frame of any other kind. Framing is intact, so the link goes on; we never ask for JSON, XML or logs."""
        metrics.ESL_ERRORS.labels(self._side, "unexpected_frame").inc()

    def _end(self, kind: str) -> None:
        """End the link, once. `kind` is the fault, empty for an orderly end."""
        if self._ended:
            return
        self._ended, self.connected, self._reason = True, False, kind
        if kind:
            metrics.ESL_ERRORS.labels(self._side, kind).inc()
            _log.info("esl_link_fault", link=self._side, kind=kind)
        if self.sock is not None:
            self.sock.close()  # wakes the reader and the writer, if they wait
        self._backlog.clear()
        self._parser.drop()  # half a frame may be large, and this object goes only when Python looks for cycles
        pending, self._pending = self._pending, deque()
        for waiting in pending:
            if isinstance(waiting, AsyncResult):
                waiting.set_exception(self._gone())
        self._failed()
        try:
            self._on_close()
        except Exception:  # noqa: BLE001 - a bug there must not come out of whatever happened to end the link
            _log.error("esl_handler_failed", exc_info=True, link=self._side)

    def _failed(self) -> None:
        """For what waits without having asked."""

    # greenswitch's helpers: those that send go through `request`; those that would wait for ever, send the word None or
    # start a greenlet of their own are out of reach.

    def send(self, data: str) -> Frame:
        """What greenswitch's helpers send with."""
        return self.request(data, HELPER_TIMEOUT)

    def stop(self) -> None:
        self.close()

    def out_of_reach(self, *_: object, **__: object) -> None:
        raise LinkError("This helper of greenswitch is not for use here", hint="Post wire.execute with a token.")

    start_event_handlers = receive_events = process_events = handle_event = out_of_reach
    register_handle = unregister_handle = register_expected_event = out_of_reach
