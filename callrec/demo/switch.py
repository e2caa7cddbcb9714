"""The simulated FreeSWITCH: what 1.10.12 does on the wire and on the disk, without sound cards, SIP or RTP.

Used by `callrec demo`, by the service tests and, in a process of its own (`python -m callrec.demo.switch`), by the
bench. Time may run faster: with speed 10 a prompt of 12 s takes 1.2 s, and every event, header and file still says 12.
What it copies was seen in tests/transcripts or run against the real one; what it leaves out: SIP, the agent's own leg,
transfers but for uuid_transfer of the caller, XML and JSON events.
"""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeAlias
from uuid import uuid4

import gevent
from gevent import socket
from gevent.fileobject import FileObject
from gevent.pool import Pool
from gevent.server import StreamServer

from callrec.demo.call import SimCall
from callrec.demo.caller import CallScript, from_json
from callrec.demo.channel import Channel, Clock, Link
from callrec.demo.events import Heads, block, framed
from callrec.demo.eventsocket import EventSocket
from callrec.errors import CallrecError

Task: TypeAlias = "gevent.Greenlet[..., object]"

_TICK = 0.02  # seconds of the wall clock between two writes to the recordings
_LONGEST_CALL = 3600.0  # seconds of the wall clock before a call is reported as it stands
_CLIENTS = 64  # of the event socket at once
_PATIENCE = 5.0  # seconds that stop() gives the calls to end


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
        self.listeners: set[Link] = set()  # that may get events of any call
        self.placed = self.peak = 0
        self._bind = event_socket
        self._heartbeat = heartbeat
        self._late_every = late_hangup_every
        self._server: StreamServer | None = None
        self._links: set[Link] = set()  # all
        self._clients: set[Link] = set()  # the inbound ones of them
        self._tasks: set[Task] = set()
        self._ticker: Task | None = None
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
        self._server = StreamServer(self._bind, self._accept, backlog=64, spawn=Pool(_CLIENTS))
        self._server.start()
        self._bind = (self._bind[0], int(self._server.address[1]))
        if self._heartbeat:
            self.spawn(self._beat)

    def stop(self) -> None:
        """As SIGTERM: every call is hung up, every file finished, every link told."""
        for call in list(self.calls.values()):
            call.hangup("SYSTEM_SHUTDOWN", now=True)
        deadline = time.monotonic() + _PATIENCE
        while self.calls and time.monotonic() < deadline:
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
        for link in list(self._clients):
            link.drop()

    def _down(self) -> None:
        for link in list(self._links):
            link.drop()
        self._links.clear()
        if self._server is not None:
            self._server.stop(timeout=0)
            self._server = None
        gevent.killall(list(self._tasks), block=True, timeout=_PATIENCE)
        self.listeners.clear()

    def spawn(self, what: Callable[..., object], *args: object) -> Task:
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
        self._clients.add(link)
        link.serve()

    def attach(self, link: Link) -> None:
        """An outbound connection: it gets its own call's events, and ends with the switch."""
        self._links.add(link)
        self.spawn(link.serve)

    def gone(self, uuid: str) -> None:
        """The channel is no more; the api does not know it from here on."""
        self.calls.pop(uuid, None)

    def hear(self, link: Link) -> None:
        """This connection gets the events of every call that it asks for."""
        self.listeners.add(link)

    def forget(self, link: Link, *, gone: bool = True) -> None:
        """No more events of other calls to this connection; `gone`: it has ended."""
        self.listeners.discard(link)
        if gone:
            self._links.discard(link)
            self._clients.discard(link)

    def wanted(self, name: str, call: Channel) -> list[Link]:
        """Who gets an event of this name and call."""
        links: Iterable[Link] = self.listeners
        if call.links:
            links = (*(link for link in call.links if link not in self.listeners), *self.listeners)
        return [link for link in links if link.wants(name, call.uuid)]

    def deliver(self, name: str, event: bytes, frame: bytes, owner: str = "") -> None:
        """An event of no channel, to all who asked for it; `owner` is the call whose connection caused it."""
        own = self.calls[owner].links if owner in self.calls else ()
        for link in self.listeners.union(own):
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


# In a process of its own


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _report(key: object, call: SimCall) -> None:
    with suppress(CallrecError):
        call.result(_LONGEST_CALL)
    _say({"id": key, "uuid": call.uuid, "timeline": call.timeline, "marks": call.marks})


def main() -> None:
    """Line-JSON in and out until the input ends or says stop; the password is in the environment variable named.

    First line out: {"event_socket": [host, port], "pid": n}. In: {"place": {script}, "id": any} or {"stop": true}. Out,
    one for each call: {"id": any, "uuid": …, "timeline": [[seconds, [fact, …]], …], "marks": {…}}, or {"id": any,
    "error": …}. Marks are moments of time.monotonic: dialled (before connecting to the listener), connect (that command
    came), key (the last one that was heard), record (uuid_record start came).
    """
    parser = argparse.ArgumentParser(prog="callrec.demo.switch", description="The simulated FreeSWITCH")
    parser.add_argument("--listener", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--event-socket", type=_address, default=("127.0.0.1", 0), metavar="HOST:PORT")
    parser.add_argument("--password-env", default="CALLREC_EVENT_SOCKET_PASSWORD", metavar="NAME")
    parser.add_argument("--speed", type=float, default=1.0)
    options = parser.parse_args()
    switch = Switch(
        listener=options.listener,
        event_socket=options.event_socket,
        password=os.environ[options.password_env],
        speed=options.speed,
    )
    switch.start()
    gc.freeze()  # as the roles do (process.py)
    gc.set_threshold(20_000)
    _say({"event_socket": switch.event_socket_address, "pid": os.getpid()})
    for text in FileObject(sys.stdin.fileno(), "r", close=False):
        command = json.loads(text)
        if "stop" in command:
            break
        try:
            call = switch.place(from_json(command["place"]))
        except (CallrecError, KeyError, TypeError, ValueError) as problem:
            _say({"id": command.get("id"), "error": str(problem)})
            continue
        gevent.spawn(_report, command.get("id"), call)
    switch.stop()


if __name__ == "__main__":
    main()
