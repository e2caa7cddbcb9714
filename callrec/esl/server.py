"""Accepts the connections that FreeSWITCH's `socket` application makes, and no more of them than it may."""

import resource
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket
from gevent.pool import Group
from gevent.server import StreamServer

from callrec import metrics
from callrec.errors import LinkError
from callrec.log import Log

_log = Log("callrec.esl")

_OTHER = 256  # descriptors beside those of the connections
_PAUSE = 0.05  # seconds without accepting when accept fails, as it does when descriptors run out


class OutboundServer:
    """Runs `handler(sock, address)` in a greenlet for each connection, at most `max_connections` at a time.

    The count is taken at accept. One connection too many is closed at once, which lets the dialplan go on
    (socket_resume); left unanswered it would hold its caller for 25 s. The socket is closed when the handler returns.
    """

    def __init__(
        self,
        address: tuple[str, int],
        handler: Callable[[socket.socket, tuple[str, int]], None],
        max_connections: int,
        backlog: int = 256,
    ) -> None:
        self.connections = 0
        self._handler = handler
        self._max_connections = max_connections
        self._handlers = Group()
        self._listener = _Listener(address, self._accepted, backlog=backlog)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port; the port that was bound, once started."""
        bound = self._listener.address
        return str(bound[0]), int(bound[1])

    def start(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < (wanted := self._max_connections + _OTHER):  # systemd's 1024 is what a process has not asked beyond
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
        try:
            self._listener.start()
        except OSError as error:
            host, port = self.address
            raise LinkError(
                f"The listener can't listen on {host}:{port}",
                detail=error.strerror or "",
                hint="Is another callrec running, or the address not this machine's?",
            ) from None

    def close(self) -> None:
        """Accept no more; FreeSWITCH finds nobody, and the dialplan goes on. Calls under way go on too."""
        self._listener.close()

    def stop(self, timeout: float) -> None:
        """Accept no more, give the calls `timeout` seconds to end, then end them."""
        self._listener.close()
        self._handlers.join(timeout=timeout)
        self._handlers.kill(timeout=1)

    def _accepted(self, sock: socket.socket, address: tuple[str, int]) -> None:
        if self.connections >= self._max_connections:
            metrics.ESL_REFUSED.inc()
            sock.close()
            return
        self.connections += 1
        metrics.ESL_CONNECTIONS.inc()
        greenlet = self._handlers.spawn(self._handle, sock, address)
        greenlet.rawlink(lambda _: self._done(sock))  # runs for a greenlet that was killed before it began, too

    def _handle(self, sock: socket.socket, address: tuple[str, int]) -> None:
        try:
            self._handler(sock, address)
        except Exception:  # noqa: BLE001 - one call's bug is this call's alone
            metrics.ESL_ERRORS.labels("outbound", "handler").inc()
            _log.error("esl_handler_failed", exc_info=True, link="outbound")

    def _done(self, sock: socket.socket) -> None:
        sock.close()
        self.connections -= 1
        metrics.ESL_CONNECTIONS.dec()


class _Listener(StreamServer):
    """gevent's server, which counts before it spawns, and takes a failing accept for a pause."""

    def __init__(
        self, address: tuple[str, int], accepted: Callable[[socket.socket, tuple[str, int]], None], backlog: int
    ) -> None:
        super().__init__(address, accepted, backlog=backlog)
        self._accepted = accepted

    @classmethod
    def get_listener(cls, address: Any, backlog: int | None = None, family: int | None = None) -> Any:
        # gevent's own leaves its socket open when the address is taken.
        listener = socket.create_server(address, family=family or socket.AF_INET, backlog=backlog)
        listener.setblocking(False)
        return listener

    def do_handle(self, *args: Any) -> None:
        self._accepted(*args)

    def do_read(self) -> tuple[socket.socket, Any] | None:  # type: ignore[override]  # None: nothing to accept
        try:
            return super().do_read()
        except OSError as error:
            if error.errno in self.fatal_errors:
                raise
            metrics.ESL_ERRORS.labels("outbound", "accept").inc()
            self.stop_accepting()  # the waiting connection keeps the listener readable: without a pause this would spin
            gevent.spawn_later(_PAUSE, self._resume)
            return None

    def _resume(self) -> None:
        if self.started:
            self.start_accepting()
