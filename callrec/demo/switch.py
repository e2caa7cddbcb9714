"""The simulated FreeSWITCH: what 1.10.12 does on the wire and on the disk, without sound cards, SIP or RTP.

Used by `callrec demo`, by the service tests and, in a process of its own (`python -m callrec.demo.switch`), by the
bench. Time may run faster: with speed 10 a prompt of 12 s takes 1.2 s, and every event, header and file still says 12.
What it copies was seen in tests/transcripts or run against the real one; what it leaves out: SIP, the agent's own leg,
transfers, XML and JSON events.
"""

import time
from collections.abc import Callable, Iterable
from uuid import uuid4

import gevent
from gevent import socket
from gevent.server import StreamServer

from callrec.demo.caller import CallScript
from callrec.demo.channel import SimCall
from callrec.demo.events import Heads, block, framed
from callrec.demo.eventsocket import EventSocket

_TICK = 0.02  # seconds of the wall clock between two writes to the recordings
_PATIENCE = 5.0  # seconds that stop() gives the calls to end


class Clock:
    """Simulated time, in microseconds since the epoch: starts at the real time and runs `speed` times as fast."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._start = time.time_ns() // 1000
        self._origin = time.monotonic_ns()

    def micros(self) -> int:
        return self._start + int((time.monotonic_ns() - self._origin) * self.speed) // 1000


class Switch:
    """One FreeSWITCH. `listener` is where the dialplan's `socket` goes; `event_socket` port 0 takes a free one.

    `acl_rejects`: clients of the event socket get text/rude-rejection. `channels_lag`: seconds before `show channels`
    knows a new call (FreeSWITCH fills that table in the background). `heartbeat`: simulated seconds, 0 for none.
    `late_hangup_every`: each n-th call has the rare order of events, 0 for none.
    """

    def __init__(
        self,
        *,
        listener: tuple[str, int],
        password: str,
        event_socket: tuple[str, int] = ("127.0.0.1", 0),
        speed: float = 1.0,
        socket_resume: bool = True,
        spool_umask: int = 0o027,
        heartbeat: float = 0.0,
        channels_lag: float = 0.0,
        late_hangup_every: int = 0,
    ) -> None:
        self.listener = listener
        self.password = password
        self.socket_resume = socket_resume
        self.spool_umask = spool_umask
        self.channels_lag = channels_lag
        self.acl_rejects = False
        self.clock = Clock(speed)
        self.host = "sim"
        self.calls: dict[str, SimCall] = {}  # that are up, by uuid
        self.listeners: set[EventSocket] = set()  # that may get events of any call
        self.placed = self.peak = 0
        self._bind = event_socket
        self._heartbeat = heartbeat
        self._late_every = late_hangup_every
        self._server: StreamServer | None = None
        self._links: set[EventSocket] = set()
        self._tasks: set[gevent.Greenlet] = set()
        self._ticker: gevent.Greenlet | None = None
        self._new_core()

    def _new_core(self) -> None:
        self.core_uuid = str(uuid4())
        self.heads = Heads(self.core_uuid, self.host)
        self.started = self.clock.micros()

    @property
    def event_socket_address(self) -> tuple[str, int]:
        return self._bind

    # Its life

    def start(self) -> None:
        """Listen on the event socket; the port is taken when this returns. OSError if it can't be had."""
        self._server = StreamServer(self._bind, self._accept, backlog=64)
        self._server.start()
        self._bind = (str(self._server.server_host), int(self._server.server_port))
        if self._heartbeat:
            self.spawn(self._beat)

    def stop(self) -> None:
        """As SIGTERM: every call is hung up, every file finished, every link told."""
        for call in list(self.calls.values()):
            call.hangup("SYSTEM_SHUTDOWN", now=True)
        with gevent.Timeout(_PATIENCE, False):
            while self.calls:
                gevent.sleep(_TICK)
        for link in list(self._links):
            link.end()
        self._down()

    def kill(self) -> None:
        """As SIGKILL: sockets are cut without a word, files keep their unfinished headers, calls just stop."""
        calls = list(self.calls.values())
        self.calls.clear()
        self._down()
        for call in calls:
            call.killed()

    def restart(self) -> None:
        """A new process on the same port, with a new Core-UUID, that knows nothing of the calls before."""
        self.kill()
        self._new_core()
        self.start()

    def cut_event_socket(self) -> None:
        """Close every inbound connection without a word; the calls go on."""
        for link in [link for link in self._links if link.channel is None]:
            link.drop()

    def _down(self) -> None:
        if self._server is not None:
            self._server.stop(timeout=0)
            self._server = None
        gevent.killall(list(self._tasks), block=True, timeout=_PATIENCE)
        for link in list(self._links):
            link.drop()
        self._links.clear()
        self.listeners.clear()

    def spawn(self, what: Callable[..., object], *args: object) -> gevent.Greenlet:
        """A greenlet that ends with the switch."""
        task = gevent.spawn(what, *args)
        self._tasks.add(task)
        task.rawlink(self._tasks.discard)
        return task

    # Calls

    def place(self, script: CallScript) -> SimCall:
        """One inbound call, which runs on its own from here."""
        self.placed += 1
        late = bool(self._late_every) and self.placed % self._late_every == 0
        call = SimCall(self, script, late=late)
        self.calls[call.uuid] = call
        self.peak = max(self.peak, len(self.calls))
        self.spawn(call.run)
        return call

    def tick(self) -> None:
        """A recording runs: see that the files are written as time passes."""
        if self._ticker is None:
            self._ticker = self.spawn(self._write)

    def _write(self) -> None:
        try:
            while any(call.tape for call in self.calls.values()):
                gevent.sleep(_TICK)
                for call in list(self.calls.values()):
                    call.advance()
        finally:
            self._ticker = None

    # Links and events

    def _accept(self, sock: socket.socket, _address: object) -> None:
        link = EventSocket(self, sock)
        self._links.add(link)
        self._tasks.add(gevent.getcurrent())
        link.serve()
        self._tasks.discard(gevent.getcurrent())

    def attach(self, link: EventSocket) -> None:
        """An outbound connection: it gets its own call's events, and ends with the switch."""
        self._links.add(link)
        self.spawn(link.serve)

    def forget(self, link: EventSocket, *, gone: bool = True) -> None:
        """No more events of other calls to this connection; `gone`: it has ended."""
        self.listeners.discard(link)
        if gone:
            self._links.discard(link)

    def wanted(self, name: str, call: SimCall) -> list[EventSocket]:
        """Who gets an event of this name and call."""
        links: Iterable[EventSocket] = self.listeners
        if call.link is not None and call.link not in self.listeners:
            links = (call.link, *self.listeners)
        return [link for link in links if link.wants(name, call.uuid)]

    def deliver(self, name: str, event: bytes, frame: bytes, owner: str = "") -> None:
        """An event of no channel, to all who asked for it; `owner` is the call whose connection caused it."""
        own = self.calls[owner].link if owner in self.calls else None
        for link in self.listeners | ({own} if own else set()):
            if link.wants(name, "", owner):
                link.offer(event, frame)

    def _beat(self) -> None:
        while True:
            gevent.sleep(self._heartbeat / self.clock.speed)
            lines = [
                ("Event-Info", "System Ready"),
                ("FreeSWITCH-Version", "1.10.12-release+git~20240802T210227Z~a88d069d6f~64bit"),
                ("Uptime-msec", str((self.clock.micros() - self.started) // 1000)),
                ("Session-Count", str(len(self.calls))),
                ("Max-Sessions", "5000"),
                ("Session-Since-Startup", str(self.placed)),
            ]
            event = self.heads.head("HEARTBEAT", self.clock.micros()) + block(lines)
            self.deliver("HEARTBEAT", event, framed(event))


if __name__ == "__main__":
    from callrec.demo.switch_process import main

    main()
