"""Programs of the private stack as children of this process: started, waited for with a deadline, gone when we are.

The kernel ties a child to the thread that forked it (PR_SET_PDEATHSIG), so whatever starts one must run in a thread
that lives as long as the child. Waiting is written as generators that yield between looks: several services come up
at once in one thread, under gevent and without it.
"""

import ctypes
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from callrec.errors import CallrecError

BOOT_SECONDS = 60.0  # for each wait; a warm boot takes 2 s in all, a loaded machine several times that
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.01
_COLLISION = re.compile(rb"address already in use|could not bind|unable to bind", re.IGNORECASE)
_PACKAGES = {
    "initdb": "postgresql",
    "postgres": "postgresql",
    "redis-server": "redis-server",
    "monmaptool": "ceph-base",
    "ceph": "ceph-common",
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "radosgw": "radosgw",
    "radosgw-admin": "ceph-common",
    "prometheus": "prometheus",
    "promtool": "prometheus",
}
_PR_SET_PDEATHSIG = 1
_PORTS = range(20_000, 32_000)  # below those that Linux gives to connections
_DONE = object()
_libc = ctypes.CDLL(None, use_errno=True)

Boot = Iterator[None]  # one service's way up; yields whenever it has to wait


class PortTakenError(CallrecError):
    """Somebody took the port between our looking and the service's binding."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on. Another program may still be quicker: see PortTakenError.

    Of those that no connection of anybody's is given by itself; where all are taken, one of these.
    """
    candidates = random.sample(_PORTS, 100)
    for port in (*candidates, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise CallrecError("No port is free")


def program(name: str) -> str:
    """Where `name` is: on PATH, in sbin, or where Debian keeps Postgres. CallrecError names the package to install."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(4), reverse=True)
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", *map(str, debian)])
    found = shutil.which(name, path=path)
    if not found:
        hint = f"make setup, or apt-get install --no-install-recommends {_PACKAGES[name]}"
        raise CallrecError(f"{name} is not installed", hint=hint)
    return found


def running(pid: int) -> bool:
    """Whether a process lives. A zombie does not: it holds nothing any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Child:
    """A program in the foreground in a session of its own, its output appended to `log`.

    `last_signal` is what the kernel sends it when this process dies. `user` matters to root only. Its environment is
    PATH, LC_ALL=C and HOME=/: nothing of the caller's (PG*, CEPH_*, PYTHON*) leaks in.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        user: pwd.struct_passwd | None = None,
        last_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.name = argv[0]
        self.log = log
        parent = os.getpid()

        def bind_life() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, int(last_signal), 0, 0, 0)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own argument lists, no shell
                [program(argv[0]), *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin", "LC_ALL": "C", "HOME": "/"},
                start_new_session=True,  # Ctrl-C on a terminal reaches us alone; we stop them in order
                preexec_fn=bind_life,  # noqa: PLW1509 - two system calls: no lock, no import, no allocation to speak of
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
            )
        self.pid = self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL to it and to its children (Postgres has some), and wait until all are gone."""
        if self._process.poll() is not None:
            return
        try:
            children = [int(word) for word in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            children = []
        self._process.kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process.wait(_STOP_SECONDS)
        deadline = time.monotonic() + _STOP_SECONDS
        while any(map(running, children)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def end(self, politely: signal.Signals) -> None:
        """Signal `politely` and wait; SIGKILL if that was not enough."""
        if self._process.poll() is not None:
            return
        self._process.send_signal(politely)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def failure(self, what: str, hint: str = "") -> CallrecError:
        """The error to raise when `what` came to nothing: with its exit status and the end of its log."""
        status = self.exit_status()
        state = "it still runs" if status is None else f"it ended with status {status}"
        text = self.log.read_bytes()[-4000:]
        tail = "\n".join(text.decode(errors="replace").splitlines()[-15:])
        kind = PortTakenError if _COLLISION.search(text) else CallrecError
        hint = hint or f"the whole log is {self.log}"
        return kind(f"{what} failed", detail=f"{self.name}: {state}; its log ends:\n{tail}\n", hint=hint)


def until(ready: Callable[[], bool], child: Child, what: str) -> Boot:
    """Wait until `ready`. Raises when `child` ends or BOOT_SECONDS pass before."""
    deadline = time.monotonic() + BOOT_SECONDS
    while not ready():
        if child.exit_status() is not None or time.monotonic() > deadline:
            raise child.failure(what)
        yield


def finish(child: Child, what: str) -> Boot:
    """Wait for a program that has a task and an end. Raises when it fails or BOOT_SECONDS pass before."""
    deadline = time.monotonic() + BOOT_SECONDS
    while child.exit_status() is None and time.monotonic() < deadline:
        yield
    if child.exit_status() != 0:
        error = child.failure(what)
        child.kill()
        raise error


def together(boots: Collection[Boot]) -> None:
    """Run every boot to its end, all at once, in this thread. The first error ends it."""
    waiting = list(boots)
    while waiting:
        waiting = [boot for boot in waiting if next(boot, _DONE) is not _DONE]
        time.sleep(_POLL_SECONDS)
