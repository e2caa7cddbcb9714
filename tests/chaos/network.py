"""TCP relays between callrec and what it talks to, which can be slow or cut.

Line-JSON. In: {"route": name, "target": [host, port]}, {"fault": "slow", "cut" or "", "routes": [...], "pids": [...]},
{"sent": name}. Out: {"port": n}, {}, {"bytes": n}: what came from callrec's side of a route, whether or not it arrived.
A fault concerns every connection on one of the routes, and every one that one of the processes has made, whatever its
route; "" heals.

slow   every piece of data arrives 250 ms later, both ways: each answer takes 500 ms longer.
cut    as when a firewall swallows everything: nothing arrives, no connection is made, nobody is told. When it is healed
       the old connections turn out to be dead. On the routes of the node itself (LOCAL) nothing can swallow: there
       connections break, and new ones are refused.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402 # after the patch
import os  # noqa: E402
import struct  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from contextlib import suppress  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
from gevent import socket  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402
from gevent.queue import Queue  # noqa: E402
from gevent.server import StreamServer  # noqa: E402

LOCAL = {"listen", "event_socket"}
DELAY = 0.25  # seconds, each way
PIECES = 256  # on the way at once
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset

relays: set["Relay"] = set()
sent: Counter = Counter()  # bytes by route
fault: dict = {"fault": "", "routes": [], "pids": []}
healthy = Event()
healthy.set()


def ports_of(pid: int) -> set[int]:
    """The local TCP ports of a process' connections."""
    inodes = set()
    with suppress(OSError):
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inodes.add(str(handle.readlink()).removeprefix("socket:[").removesuffix("]"))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[9] in inodes}


def abort(end: socket.socket | None) -> None:
    if end is not None:
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            end.shutdown(socket.SHUT_RD)
        end.close()


class Relay:
    """One connection and its other half."""

    def __init__(self, route: str, target: tuple[str, int], client: socket.socket, port: int) -> None:
        self.route, self._target, self._client, self._port = route, target, client, port
        self._server: socket.socket | None = None
        self.slow = self.cut = False

    def concern(self, ports: set[int]) -> None:
        """Take on the fault that holds now, if it is about this connection."""
        mine = self.route in fault["routes"] or self._port in ports
        self.slow, self.cut = mine and fault["fault"] == "slow", mine and fault["fault"] == "cut"
        if self.cut and self.route in LOCAL:
            self.abort()

    def abort(self) -> None:
        abort(self._client)
        abort(self._server)

    def run(self) -> None:
        if self.cut:  # it never reaches anybody
            healthy.wait()
            return self.abort()
        try:
            self._server = socket.create_connection(self._target, timeout=5)
        except OSError:
            return self.abort()
        self._server.settimeout(None)
        for end in (self._client, self._server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        halves = [
            gevent.spawn(self._carry, self._client, self._server), gevent.spawn(self._carry, self._server, self._client)
        ]  # fmt: skip
        gevent.joinall(halves)
        self._client.close()
        self._server.close()
        return None

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        pieces: Queue = Queue(PIECES)
        writer = gevent.spawn(self._deliver, pieces, sink)
        data = b"start"
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            if source is self._client:
                sent[self.route] += len(data)
            pieces.put((time.monotonic() + (DELAY if self.slow else 0.0), data))
        writer.join()

    def _deliver(self, pieces: Queue, sink: socket.socket) -> None:
        with suppress(OSError):
            while True:
                due, data = pieces.get()
                gevent.sleep(max(0.0, due - time.monotonic()))
                if self.cut:
                    healthy.wait()
                    return self.abort()
                if not data:
                    return sink.shutdown(socket.SHUT_WR)
                sink.sendall(data)
        return self.abort()


def accept(route: str, target: tuple[str, int], client: socket.socket, address: tuple[str, int]) -> None:
    relay = Relay(route, target, client, address[1])
    relays.add(relay)
    if fault["fault"]:
        relay.concern({port for pid in fault["pids"] for port in ports_of(pid)})
    try:
        relay.run()
    finally:
        relays.discard(relay)


def serve(name: str, target: tuple[str, int]) -> int:
    server = StreamServer(("127.0.0.1", 0), lambda client, address: accept(name, target, client, address))
    server.start()
    return server.address[1]


def strike(command: dict) -> None:
    """A fault, or its end."""
    fault.update(command)
    cut = [relay for relay in relays if relay.cut]
    ports = {port for pid in fault["pids"] for port in ports_of(pid)}
    for relay in relays:
        relay.concern(ports)
    if fault["fault"]:
        healthy.clear()
    else:
        healthy.set()
        for relay in cut:
            relay.abort()


def say(line: dict) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


say({"ready": os.getpid()})
for text in FileObject(sys.stdin.fileno(), "r", close=False):
    command = json.loads(text)
    if "route" in command:
        say({"port": serve(command["route"], tuple(command["target"]))})
    elif "sent" in command:
        say({"bytes": sent[command["sent"]]})
    else:
        strike(command)
        say({})
