"""One event-socket connection, as mod_event_socket holds it: inbound (a client came) or outbound (the `socket` app).

Commands are answered in the order in which they came, with the words of 1.10.12. What is sent goes through one bounded
queue; a client that lets 100,000 events pile up loses its connection, as there.
"""

import socket as stdlib_socket
from contextlib import suppress
from uuid import uuid4

import gevent
from gevent import socket

from callrec.demo import api
from callrec.demo.channel import Board, Channel
from callrec.demo.events import GOODBYE, MY_EVENTS, NAMES, block, framed
from callrec.esl.wire import Headers, build_frame

_QUEUE = 100_000  # frames waiting to be sent (MAX_QUEUE_LEN)
_LONGEST_COMMAND = 1024 * 1024  # bytes
_FIRST_COMMAND = 25.0  # seconds that FreeSWITCH waits for it
_SEND = 10.0  # seconds for the peer to take what is sent
_DENIED = b"Access Denied, go away.\n"
_NOT_FULL = ("sendevent", "api ", "bgapi ", "log", "linger", "nolinger", "nolog", "event", "nixevent", "noevents")


class EventSocket:
    """A connection and what it subscribed to. `channel` is set on outbound ones; `full` is their second argument."""

    def __init__(self, switch: Board, sock: socket.socket, channel: Channel | None = None, full: bool = True) -> None:
        self.channel = channel
        self.connected = self.finished = self.resume = self.said_exit = self.timed_out = False
        self.linger: float | None = None  # seconds; -1: for ever
        self.mine = False  # `myevents`: of this channel only
        self._switch = switch
        self._sock = sock
        self._full = full
        self._authed = channel is not None
        self._names: set[str] = set()
        self._listening = False
        self._filters: list[tuple[str, str]] = []
        self._out: list[bytes] = []
        self._sender: gevent.Greenlet[[], None] | None = None
        self._running = True
        self._logging = False
        sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)

    # What goes out

    def send(self, data: bytes) -> None:
        """Queue bytes; they leave in this order."""
        if self.finished:
            return
        if len(self._out) >= _QUEUE:
            self.drop()
            return
        self._out.append(data)
        if self._sender is None:
            self._sender = gevent.spawn(self._drain)

    def _drain(self) -> None:
        """Send what is queued, all of one turn of the hub in one piece, and end when there is no more."""
        try:
            while self._out:
                data = b"".join(self._out)
                self._out.clear()
                with gevent.Timeout(_SEND, TimeoutError):
                    self._sock.sendall(data)
        except (OSError, TimeoutError):
            self.drop()
        finally:
            self._sender = None

    def reply(self, text: str) -> None:
        # Values from a call may hold a line feed: mod_event_socket writes them as they are.
        self.send(b"Content-Type: command/reply\nReply-Text: %b\n\n" % text.encode("utf-8", "replace"))

    def wants(self, name: str, uuid: str, owner: str = "") -> bool:
        """True when an event of this name and channel goes to this connection, filters aside."""
        if not self._listening or self.finished or name not in self._names:
            return False
        if not self.mine or self.channel is None:
            return True
        return self.channel.uuid in (uuid, owner)

    def offer(self, text: bytes, frame: bytes) -> None:
        """Send an event if the filters let it through; they are ORed."""
        if self._filters:
            headers = Headers(text)
            if not any(value in headers.get(name) for name, value in self._filters):
                return
        self.send(frame)

    # How it lives and ends

    def serve(self) -> None:
        """Read commands until the connection ends, then say goodbye. Runs in a greenlet of its own."""
        try:
            if self.channel is None:
                if self._switch.acl_rejects:
                    self.send(build_frame("text/rude-rejection", body=_DENIED))
                    return
                self.send(build_frame("auth/request"))
            self._read()
        except OSError:
            pass
        finally:
            self._finish()

    def _read(self) -> None:
        first = _FIRST_COMMAND / self._switch.clock.speed if self.channel else _FIRST_COMMAND
        self._sock.settimeout(first)
        buffer = b""
        while self._running:
            try:
                data = self._sock.recv(16384)
            except TimeoutError:
                self.timed_out = True
                return
            if not data or len(buffer) > _LONGEST_COMMAND:
                return
            buffer = (buffer + data).replace(b"\r\n", b"\n").lstrip(b"\n")
            while self._running and (end := buffer.find(b"\n\n")) >= 0:
                self._sock.settimeout(None)
                line, headers = _parse(buffer[:end])
                size = headers.get("content-length", "")
                length = int(size) if size.isdecimal() else 0
                if len(buffer) < end + 2 + length:
                    break
                buffer = buffer[end + 2 + length :].lstrip(b"\n")
                self._command(line, headers)

    def _finish(self) -> None:
        if self.finished:
            return
        if self.channel is None or not self._switch.acl_rejects:
            session = (
                {"Controlled-Session-UUID": self.channel.uuid, "Content-Disposition": "disconnect"}
                if self.channel
                else {}
            )
            self.send(build_frame("text/disconnect-notice", session, GOODBYE))
        sender = self._sender
        self.finished = True
        self._switch.forget(self)
        if sender is not None:
            sender.join(_SEND)
        self._sock.close()
        if self.channel:
            self.channel.poke()

    def drop(self) -> None:
        """End at once and without a word, as when the process is killed."""
        self._running = False
        if not self.finished:
            self.finished = True
            self._switch.forget(self)
            if self.channel:
                self.channel.poke()
        self._out.clear()
        self._shut()

    def end(self) -> None:
        """End with the notice, once what is queued has gone out."""
        self._running = False
        self._finish()
        self._shut()

    def _shut(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(stdlib_socket.SHUT_RDWR)  # wakes the reader
        self._sock.close()

    def hung_up(self) -> None:
        """The channel is gone: linger, or end."""
        assert self.channel is not None
        if self.finished:
            return
        if self.linger is None:
            self.end()
            return
        notice = {
            "Controlled-Session-UUID": self.channel.uuid,
            "Content-Disposition": "linger",
            "Channel-Name": self.channel.text.name,
            "Linger-Time": str(int(self.linger)),
        }
        self.send(build_frame("text/disconnect-notice", notice, b""))
        if self.linger >= 0:
            gevent.spawn_later(self.linger / self._switch.clock.speed, self.end)

    # Commands

    def _command(self, line: str, headers: dict[str, str]) -> None:
        word, _, rest = line.partition(" ")
        if line.startswith(("exit", "...")):
            self._running, self.said_exit = False, True
            self.reply("+OK bye")
        elif not self._authed:
            self._auth(line)
        elif line.startswith("filter "):
            self._filter(line[7:].strip())
        elif self.channel and line.startswith(("resume", "connect", "getvar")):
            self._of_the_call(self.channel, word, rest)
        elif line.startswith("myevents") and (self.channel or rest):
            self._myevents()
        elif line.startswith("divert_events"):
            self.reply(self._divert(rest.strip()))
        elif line.startswith("sendmsg"):
            self._sendmsg(line[7:].strip(), headers)
        elif self.channel and not self._full and line.startswith(_NOT_FULL):
            self.reply("-ERR command not found")
        elif line.startswith("api "):
            self.send(build_frame("api/response", body=api.run(self._switch, line[4:])))
        elif line.startswith("bgapi "):
            self._bgapi(line[6:], headers)
        elif word == "sendevent":
            self.reply(f"+OK {uuid4()}")
        else:
            self._subscription(line)

    def _of_the_call(self, channel: Channel, word: str, rest: str) -> None:
        if word == "resume":
            self.resume = True
            channel.set("socket_resume", "true")
            self.reply("+OK")
        elif word == "connect":
            self.connected = True
            channel.mark("connect")
            self.send(channel.data(self._full))
            channel.poke()
        else:
            self.reply(channel.text.variables.get(rest) or "-ERR command not found")

    def _auth(self, line: str) -> None:
        if line.startswith("auth "):
            self._authed = self._running = line[5:] == self._switch.password
            if self._authed:
                self._sock.settimeout(None)
                self._switch.hear(self)
            self.reply("+OK accepted" if self._authed else "-ERR invalid")
        else:
            self.reply("-ERR command not found")

    def _filter(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if name == "delete" and value:
            name, _, value = value.partition(" ")
            self._filters = [] if name == "all" else [f for f in self._filters if f not in ((name, value), (name, ""))]
            self.reply(f"+OK filter deleted. [{name}][{value}]")
        elif value:
            if name == "add":
                name, _, value = value.partition(" ")
            self._filters.append((name, value))
            self.reply(f"+OK filter added. [{name}]=[{value}]")
        else:
            self.reply("-ERR invalid syntax")

    def _myevents(self) -> None:
        if self.mine:
            self.reply("-ERR aready enabled.")  # 1.10.12 spells it so
            return
        self.mine = self._listening = True
        self._names |= MY_EVENTS
        if self.channel:
            self._switch.forget(self, gone=False)
        self.reply("+OK Events Enabled")

    def _divert(self, value: str) -> str:
        if not self.channel:
            return "-ERR not controlling a session."
        if not value:
            return "-ERR missing value."
        return "+OK events diverted" if value == "on" else "+OK events not diverted"

    def _sendmsg(self, uuid: str, headers: dict[str, str]) -> None:
        uuid = uuid or headers.get("session-id", "")
        channel = self.channel if not uuid or (self.channel and uuid == self.channel.uuid) else None
        channel = channel or self._switch.calls.get(uuid)
        if channel is None:
            self.reply(f"-ERR invalid session id [{uuid}]")
            return
        self.reply("+OK")  # after hang-up too, when nothing comes of it
        channel.message(headers)

    def _bgapi(self, text: str, headers: dict[str, str]) -> None:
        job = headers.get("job-uuid") or str(uuid4())
        self.send(
            b"Content-Type: command/reply\nReply-Text: +OK Job-UUID: %b\nJob-UUID: %b\n\n"
            % (job.encode(), job.encode())
        )
        gevent.spawn(self._job, job, text)

    def _job(self, job: str, text: str) -> None:
        command, _, arg = text.partition(" ")
        output = api.run(self._switch, text)
        lines = [("Job-UUID", job), ("Job-Command", command), *([("Job-Command-Arg", arg)] if arg else [])]
        owner = self.channel.uuid if self.channel else ""
        head = self._switch.heads.head("BACKGROUND_JOB", self._switch.clock.micros())
        event = head + block([*lines, *([("Job-Owner-UUID", owner)] if owner else [])])
        self._switch.deliver("BACKGROUND_JOB", event, framed(event, output), owner)

    def _subscription(self, line: str) -> None:
        word, *names = line.split()
        if word == "event":
            known = {name.upper() for name in names} & NAMES
            self._listening = self._listening or bool(known)
            self._names |= NAMES if "ALL" in known else known
            if known and self.channel and not self.mine:
                self._switch.hear(self)  # without `myevents` an outbound link hears every call
            form = next((n for n in names[:1] if n in {"json", "xml"}), "plain")
            self.reply(f"+OK event listener enabled {form}" if known else "-ERR no keywords supplied")
        elif word == "nixevent":
            known = {name.upper() for name in names} & NAMES
            self._names -= NAMES if "ALL" in known else known
            self.reply("+OK events nixed" if known else "-ERR no keywords supplied")
        elif word == "noevents":
            self.reply("+OK no longer listening for events" if self._listening else "-ERR not listening for events")
            self._listening, self._names = False, set()
        elif word in {"linger", "nolinger"}:
            self.reply(self._linger(line))
        elif word == "log":
            self._logging = True
            level = names[0] if names else ""
            self.reply(f"+OK log level {level} [{level if level.isdecimal() else 7}]")
        elif word == "nolog":
            self.reply("+OK no longer logging" if self._logging else "-ERR not loging")  # 1.10.12 spells it so
            self._logging = False
        else:
            self.reply("-ERR command not found")

    def _linger(self, line: str) -> str:
        if not self.channel:
            return "-ERR not controlling a session"
        if line.startswith("no"):
            self.linger = None
            return "+OK will not linger"
        if line == "linger":
            self.linger = -1.0
            return "+OK will linger"
        digits = line[7:].partition(" ")[0]
        self.linger = float(digits) if digits.isdecimal() else 0.0  # atoi: a trailing space is no time at all
        return f"+OK will linger {int(self.linger)} seconds"


def _parse(raw: bytes) -> tuple[str, dict[str, str]]:
    """A command line and its headers, their names in lower case; both CR and LF end a line."""
    line, *rest = raw.decode("utf-8", "replace").replace("\r", "\n").split("\n")
    pairs = (entry.partition(":") for entry in rest)
    return line, {name.strip().lower(): value.lstrip() for name, colon, value in pairs if colon}
