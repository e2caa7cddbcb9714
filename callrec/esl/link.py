"""greenswitch's sessions, hardened: the API of the session stays, what is under it is esl/pipe.py.

Outbound: FreeSWITCH brings us a call. Inbound: we connect to mod_event_socket. What `on_event` and `on_close` are
given, and what they may do, stands in esl/pipe.py.
"""

import time
import uuid
from collections.abc import Callable
from typing import Unpack

from gevent import socket
from gevent.event import AsyncResult
from greenswitch.esl import InboundESL, OutboundSession

from callrec.errors import LinkClosedError, LinkError, LinkTimeoutError
from callrec.esl import wire
from callrec.esl.pipe import HELPER_TIMEOUT, Limits, Pipe
from callrec.esl.server import OutboundServer
from callrec.esl.wire import Frame, Headers

__all__ = ["InboundLink", "OutboundLink", "OutboundServer"]


class OutboundLink(Pipe, OutboundSession):  # type: ignore[misc]  # greenswitch has no types
    """A call that FreeSWITCH brought to us with the `socket` application."""

    _side = "outbound"

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_event: Callable[[Headers], None],
        on_close: Callable[[], None],
        **limits: Unpack[Limits],
    ) -> None:
        Pipe.__init__(self, on_event, on_close, **limits)
        self.sock = sock
        self.session_data: Headers | None = None

    def start(self) -> None:
        """Begin to read. Nothing is sent before `connect`."""
        if self._ended:
            raise self._gone()
        assert self.sock is not None  # given to the constructor
        try:
            self._open(self.sock)
        except OSError:
            self._end("reset")
            raise self._gone() from None

    def connect(self, timeout: float) -> Headers:
        """Take the call: the channel data as FreeSWITCH had it when it came to us.

        LinkError when the dialplan did not ask for `full`: such a link has neither linger nor events nor api.
        """
        if self.session_data is None:
            data = self.request("connect", timeout).headers
            if data.get("Control") != "full":
                raise LinkError(
                    "FreeSWITCH gives no full control of this call",
                    hint="Write the dialplan action as `socket` with data `HOST:PORT async full`.",
                )
            self.session_data = data
        return self.session_data

    def call_command(
        self, app_name: str, app_args: str | None = None, block: bool = False, response_timeout: float | None = None
    ) -> Frame:
        """Run a dialplan application; the reply says that it was taken, not that it was done."""
        if block:
            self.out_of_reach()
        return self._ask(wire.execute(app_name, app_args or "", str(uuid.uuid4())), response_timeout or HELPER_TIMEOUT)

    def answer(self) -> str:
        return self.call_command("answer").reply

    def raise_if_disconnected(self) -> None:
        if self._ended:
            raise self._gone()

    play_and_get_digits = say = on_event = on_hangup = on_disconnect = Pipe.out_of_reach


class InboundLink(Pipe, InboundESL):  # type: ignore[misc]  # greenswitch has no types
    """Our own connection to mod_event_socket. One object is one connection: for another, make another."""

    _side = "inbound"

    def __init__(
        self,
        host: str,
        port: int,
        password: str,
        *,
        on_event: Callable[[Headers], None],
        on_close: Callable[[], None],
        timeout: float = 5.0,
        **limits: Unpack[Limits],
    ) -> None:
        Pipe.__init__(self, on_event, on_close, **limits)
        self.host = host
        self.port = port
        self.password = password
        self.timeout = timeout
        self._greeting: AsyncResult[Frame] = AsyncResult()

    def connect(self) -> None:
        """Connect and authenticate, all within `timeout` seconds of the constructor; when it fails the link is closed.

        LinkClosedError where nobody listens or the peer closes, LinkTimeoutError where it stays silent, LinkError when
        the ACL or the password is refused.
        """
        if self._ended or self.sock is not None:
            raise LinkError("An inbound link connects once", hint="Make a new one.")
        try:
            self._connect(time.monotonic() + self.timeout)
        except BaseException:
            self.close()
            raise

    def _connect(self, deadline: float) -> None:
        login = wire.command(f"auth {self.password}")  # before anything else: it may have a line end in it
        try:
            sock = socket.create_connection((self.host, self.port), timeout=self.timeout)
            sock.settimeout(None)
            self._open(sock)
        except TimeoutError:
            raise LinkTimeoutError(
                f"FreeSWITCH's event socket did not take a connection in {self.timeout:g} s"
            ) from None
        except OSError as error:
            raise LinkClosedError(
                "FreeSWITCH's event socket can't be reached",
                detail=error.strerror or "",
                hint="Is FreeSWITCH up, and listen-ip and listen-port in event_socket.conf.xml as configured here?",
            ) from None
        if self._await(self._greeting, max(deadline - time.monotonic(), 0)).content_type != "auth/request":
            raise LinkError(
                "FreeSWITCH's event socket refused this address by its ACL",
                hint="See apply-inbound-acl in event_socket.conf.xml; without it only loopback is let in.",
            )
        if not self._ask(login, max(deadline - time.monotonic(), 0)).reply.startswith("+OK"):
            raise LinkError(
                "FreeSWITCH's event socket refused the password",
                hint="It must be the one in event_socket.conf.xml.",
            )

    def _greeted(self, frame: Frame) -> None:
        if frame.content_type in ("auth/request", "text/rude-rejection") and not self._greeting.ready():
            self._greeting.set(frame)
        else:
            super()._greeted(frame)

    def _failed(self) -> None:
        if not self._greeting.ready():
            self._greeting.set_exception(self._gone())

    authenticate = Pipe.out_of_reach
