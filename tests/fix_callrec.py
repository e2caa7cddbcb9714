"""A whole callrec for tests: all roles as processes on real stores, with the simulated switch in this process.

callrec      one per test module, on the session's stores with a database of its own: never kill those stores
own_callrec  one per test module on a stack of its own, whose stores may be killed and frozen

Both give a Node. `Watched`, `frozen`, `children` and `alive` are imported from here.
"""

import contextlib
import ctypes
import io
import json
import math
import os
import shutil
import signal
import struct
import threading
import urllib.request
import wave
from array import array
from pathlib import Path
from unittest import mock

import gevent
import pytest
from fix_stack import stack_directory, wait_until
from gevent import socket
from gevent.server import StreamServer
from prometheus_client.parser import text_string_to_metric_families

from callrec.demo.command import place_and_judge
from callrec.demo.installation import Installation
from callrec.demo.process import running as alive
from callrec.demo.stack import Stack
from callrec.demo.switch import Switch
from callrec.demo.verdict import Inspector

SPEED = 10.0
PASSWORD = "test-event-socket"
# Three runs of tests share two processors: what they starve is not what a test is about. own_callrec, whose stores are
# killed and frozen, keeps the shipped limit, and test_stores_down holds callrec to it.
UNHURRIED = {"listen": {"decision_timeout_ms": 2500}}


class Meddler:
    """A proxy before the switch's event socket that can put bytes of its own into what FreeSWITCH says."""

    def __init__(self):
        self.target = None
        self.refusing = False
        self._clients = set()
        self._server = StreamServer(("127.0.0.1", 0), self._carry)

    def start(self, target):
        self.target = target
        self._server.start()
        return ("127.0.0.1", self._server.address[1])

    def say(self, data):
        """Have callrec hear this from FreeSWITCH; how many connections heard it."""
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.sendall(data)
        return len(self._clients)

    def hang_up(self):
        """End every connection towards callrec, as after what was said last."""
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def stop(self):
        self.hang_up()
        self._server.stop(timeout=0)

    def _carry(self, client, _address):
        if self.refusing:
            return
        try:
            server = socket.create_connection(self.target, timeout=5)
        except OSError:
            return
        server.settimeout(None)
        self._clients.add(client)
        there = gevent.spawn(_copy, client, server)
        try:
            _copy(server, client)
        finally:
            self._clients.discard(client)
            there.kill()
            server.close()


def _copy(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Node:
    """A callrec that runs, its switch, and what a test asks of both."""

    def __init__(self, directory, stack, prompts, changes=None, *, speed=SPEED, beside=None):
        self.stack = stack
        self.directory = directory
        self.switch = Switch(listener=("127.0.0.1", 0), password=PASSWORD, speed=speed)
        self.switch.start()
        self.meddler = Meddler()
        self.installation = Installation(
            directory / "callrec",
            stack,
            event_socket=self.meddler.start(self.switch.event_socket_address),
            password=PASSWORD,
            changes={"bases.consent": {"wait_seconds": 1.0}} | (changes or {}),
            prompts=prompts,
            beside=beside.installation if beside else None,
        )
        self.installation.prepare()
        self.switch.listener = self.installation.listen
        self.inspector = None

    def start(self):
        self.installation.start()
        if self.inspector is None:
            self.inspector = Inspector(self.installation)

    def stop(self):
        self.installation.stop()
        self.switch.stop()
        self.meddler.stop()
        if self.inspector is not None:
            self.inspector.close()

    def reopen(self):
        """A new inspector: the old one's connection went with its Postgres."""
        self.inspector.close()
        self.inspector = Inspector(self.installation)

    def ready(self, seconds=30.0):
        """Every role runs and has what it needs; one that was killed a moment ago has been started again."""
        for role in ("listen", "ship"):
            self.pid(role)  # /readyz may not know yet that its process is gone
        wait_until(lambda: not self.installation.missing(), seconds, "every role ready")

    # Calls

    def place(self, script):
        return self.switch.place(script)

    def judged(self, *scenarios):
        """Place these at once, and give their verdicts and their timelines."""
        calls = []
        verdicts = place_and_judge(self.installation, self.switch, list(scenarios), placed=calls.append)
        return verdicts, calls

    def settled(self, call, seconds=30.0):
        wait_until(lambda: self.inspector.settled(call.uuid), seconds, f"call settled, after {call.timeline}")

    def verdict(self, scenario, call, seconds=30.0):
        """The verdict of one call that was placed by hand."""
        names = facts(call)
        self.settled(call, seconds)
        return self.inspector.judge(scenario, call.uuid, names)

    def recording(self, call):
        """The row of this call's recording; None where there is none."""
        rows = self.inspector.rows(
            "SELECT r.* FROM recording r JOIN call c USING (call_id) WHERE c.channel = %s", call.uuid
        )
        return rows[0] if rows else None

    def kinds(self, call):
        """The ledger's entries of this call, in order."""
        rows = self.inspector.rows(
            "SELECT kind FROM ledger JOIN call USING (call_id) WHERE channel = %s ORDER BY entry_id", call.uuid
        )
        return [row["kind"] for row in rows]

    def taken_up(self, call):
        """Whether a listener that was started later conducts this call's recording."""
        line = f'"recording": "{self.recording(call)["recording_id"]}"'
        return any("recording_taken_up" in each and line in each for each in self.logs().splitlines())

    def versions(self, recording_id):
        return [found for found in self.inspector.versions() if found.key.endswith(str(recording_id))]

    def stored_seconds(self, call):
        """How long the recording is that is stored: opened with the private key and counted."""
        with wave.open(io.BytesIO(self.inspector.sound(self.recording(call)["recording_id"]))) as file:
            return file.getnframes() / file.getframerate()

    def spooled(self):
        """Names of all files that may hold audio."""
        return sorted(path.name for part in ("rec", "sealed") for path in (self.installation.spool / part).iterdir())

    # Processes and figures

    @property
    def supervisor(self):
        return self.installation.pids()["run"]

    def pid(self, role):
        """The process of a role, as soon as there is one."""
        return wait_until(lambda: self.installation.pids().get(role), 20, f"a process of {role}")

    def kill(self, role):
        """SIGKILL to this role's process; gives its id."""
        pid = self.pid(role)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid), 10, f"the end of {role}")
        return pid

    def metric(self, name, **labels):
        """The sum of a metric's samples that have these labels; 0 where there are none."""
        with urllib.request.urlopen(self.installation.url("/metrics"), timeout=10) as answer:
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def logs(self):
        return self.installation.log_tail(1_000_000)

    def command(self, *arguments):
        return self.installation.command(*arguments)

    def lines(self, *arguments):
        """What a command prints with --json, a list of objects."""
        done = self.command(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def facts(call, seconds=60.0):
    """What the switch saw of a call, once it is over."""
    return [str(what[0]) for _, what in call.result(seconds)]


def moment(call, what):
    """When something happened to a call, in its own seconds; None: it has not."""
    return next((at for at, fact in call.timeline if fact[0] == what), None)


def until_seen(call, *what, seconds=20.0):
    """Wait until all of this has happened to the call."""
    wait_until(lambda: all(moment(call, each) is not None for each in what), seconds, f"{what} in {call.timeline}")


def children(pid):
    """The processes that this one started, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for word in task.read_text().split():
            found += [int(word), *children(int(word))]
    return found


@contextlib.contextmanager
def frozen(*pids):
    """SIGSTOP to these for as long as the block runs: their sockets take bytes and nobody answers."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class Watched:
    """Every file that comes into these directories, from now on, however short it lives (inotify).

    The kernel queues what happens; nothing is missed between two looks, and an overflow is an error.
    """

    _CREATE, _MOVED_TO, _OVERFLOW = 0x100, 0x80, 0x4000
    _libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, *directories):
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._fd >= 0
        for directory in directories:
            watch = self._libc.inotify_add_watch(self._fd, str(directory).encode(), self._CREATE | self._MOVED_TO)
            assert watch >= 0, os.strerror(ctypes.get_errno())
        self._names = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._fd)

    @property
    def names(self):
        """The names so far, in order."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, 65536):
                while data:
                    _, mask, _, size = struct.unpack_from("iIII", data)
                    assert not mask & self._OVERFLOW
                    self._names.append(data[16 : 16 + size].rstrip(b"\0").decode())
                    data = data[16 + size :]
        return list(self._names)


@pytest.fixture(scope="session")
def short_prompts():
    """Prompts that are there already: a tone each, so that a notice takes a fraction of a second at this speed."""
    directory = stack_directory()
    for name, seconds in (("notice-a.wav", 6), ("notice-b.wav", 6), ("ask-b.wav", 3)):
        with wave.open(str(directory / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(array("h", (round(9000 * math.sin(n * 0.4)) for n in range(8000 * seconds))).tobytes())
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


class _Part:
    """The session's stores, with a database of one's own."""

    def __init__(self, stack, postgres_url):
        self._stack = stack
        self.postgres_url = postgres_url

    def __getattr__(self, name):
        return getattr(self._stack, name)


@contextlib.contextmanager
def running_node(stack, prompts, **options):
    """A Node on these stores, started and stopped."""
    assert threading.current_thread() is threading.main_thread()  # its processes die with the thread that made them
    directory = stack_directory()
    with contextlib.ExitStack() as ends:
        ends.callback(shutil.rmtree, directory, ignore_errors=True)
        ends.enter_context(mock.patch.dict(os.environ, TMPDIR=str(directory)))  # of a supervisor that is killed, too
        node = Node(directory, stack, prompts, **options)
        ends.callback(node.stop)
        node.start()
        yield node


@pytest.fixture(scope="module")
def callrec(stack, databases, short_prompts):
    name = databases.create(migrate=False)
    with contextlib.ExitStack() as ends:
        ends.callback(databases.drop, name)
        part = _Part(stack, databases.url(name))
        yield ends.enter_context(running_node(part, short_prompts, changes=UNHURRIED))


@pytest.fixture(scope="module")
def own_callrec(short_prompts):
    directory = stack_directory()
    with contextlib.ExitStack() as ends:
        ends.callback(shutil.rmtree, directory, ignore_errors=True)
        stack = ends.enter_context(Stack(directory / "stack", env={}))
        yield ends.enter_context(running_node(stack, short_prompts))
