"""How a service of the private stack is set up in a folder, launched, killed and launched again; Postgres and Redis."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

import psycopg

from callrec.demo.process import Boot, Child, PortTakenError, finish, free_port, program, until
from callrec.errors import CallrecError

_COLLISION_TRIES = 3
_UNIX_PATH_LIMIT = 107  # sun_path holds 108 bytes with the final zero
PROBE_SECONDS = 2


class Server(ABC):
    """One booted service in `folder`. `main` is the process that serves, and that a fault test kills."""

    needs: tuple[str, ...] = ()
    main: Child

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._children: list[Child] = []

    def boot(self) -> Boot:
        """From nothing to serving. What an earlier stack left in the folder goes. Tries other ports on a collision."""
        for name in self.needs:
            program(name)
        for attempt in range(1, _COLLISION_TRIES + 1):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, mode=0o711)
            self.port = free_port()
            try:
                yield from self.prepare()
                yield from self.launch()
                yield from self.furnish()
            except PortTakenError:
                if attempt == _COLLISION_TRIES:
                    raise
                self.stop()
            else:
                return

    def prepare(self) -> Boot:
        """What is done once before the first launch."""
        yield

    @abstractmethod
    def launch(self) -> Boot:
        """Start `main` on the port chosen at boot and wait until it serves; after a kill again."""

    def furnish(self) -> Boot:
        """What is done once as soon as it serves."""
        yield

    def stop(self) -> None:
        """Leave none of its processes."""
        for child in reversed(self._children):
            child.kill()
        self._children.clear()

    def pids(self) -> dict[str, int]:
        """Process ids of what runs, by program."""
        return {child.name: child.pid for child in self._children if child.exit_status() is None}

    def spawn(
        self, *argv: str, user: pwd.struct_passwd | None = None, last_signal: signal.Signals = signal.SIGKILL
    ) -> Child:
        child = Child(argv, self.folder / f"{argv[0]}.out", user, last_signal)
        self._children.append(child)
        return child


class Postgres(Server):
    """Postgres with superuser "postgres", SCRAM passwords and an empty database "callrec".

    `fsync` guards against a crash of the machine; that Postgres itself is killed costs nothing without it.
    """

    needs = ("initdb", "postgres")

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        super().__init__(folder)
        self._fsync = fsync
        self._password = secrets.token_urlsafe(18)
        self._user: pwd.struct_passwd | None = None
        self._home = folder  # the data's place, and the Unix socket's

    @property
    def url(self) -> str:
        """For the superuser, who owns the database "callrec"."""
        return self._url("callrec")

    def _url(self, database: str) -> str:
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> Boot:
        if os.geteuid() == 0:  # as which Postgres refuses to run
            self._user = pwd.getpwnam("postgres")
            if not _reachable(self.folder, self._user):
                self._home = Path(tempfile.mkdtemp(prefix="callrec-postgres-"))
            os.chown(self._home, self._user.pw_uid, self._user.pw_gid)
        password = self._home / "password"
        password.touch(mode=0o600)
        password.write_text(self._password)
        if self._user:
            os.chown(password, self._user.pw_uid, self._user.pw_gid)
        options = ["--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256", "--encoding=UTF8"]
        options += ["--locale=C.UTF-8", "--no-sync", f"--pgdata={self._home / 'data'}"]
        yield from finish(self.spawn("initdb", *options, user=self._user), "creating the Postgres data directory")
        password.unlink()

    def launch(self) -> Boot:
        fits = len(f"{self._home}/.s.PGSQL.65535") <= _UNIX_PATH_LIMIT
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self._home if fits else "",
            "max_connections": 250,  # two hundred that append at once, and who looks on
            "shared_buffers": "64MB",
            "timezone": "UTC",
            "fsync": "on" if self._fsync else "off",
        }
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        # SIGQUIT is Postgres' own immediate shutdown: unlike SIGKILL it takes the backends along.
        data = str(self._home / "data")
        self.main = self.spawn("postgres", "-D", data, *arguments, user=self._user, last_signal=signal.SIGQUIT)
        yield from until(self._answers, self.main, "starting Postgres")

    def furnish(self) -> Boot:
        try:
            with psycopg.connect(self._url("postgres"), autocommit=True, connect_timeout=PROBE_SECONDS) as connection:
                connection.execute("CREATE DATABASE callrec")
        except psycopg.Error as error:
            raise CallrecError("creating the database callrec failed", detail=str(error)) from error
        yield

    def stop(self) -> None:
        for child in self._children:
            if child.name == "postgres":
                child.end(signal.SIGINT)  # its fast shutdown; a SIGKILL would leave shared memory behind
        super().stop()
        if self._home != self.folder:
            shutil.rmtree(self._home, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._url("postgres"), connect_timeout=PROBE_SECONDS).close()
        except psycopg.OperationalError:
            return False
        return True


class Redis(Server):
    """Redis without persistence: killed and launched again it is empty, like the live state after a loss."""

    needs = ("redis-server",)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def launch(self) -> Boot:
        settings = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        self.main = self.spawn("redis-server", *settings, "--save", "", "--appendonly", "no")
        yield from until(self._answers, self.main, "starting Redis")

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), PROBE_SECONDS) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _reachable(path: Path, user: pwd.struct_passwd) -> bool:
    """Whether `user` may walk down to `path`: root's home lets nobody through, nor do pytest's directories."""
    for folder in (path, *path.parents):
        status = folder.stat()
        mine, ours = status.st_uid == user.pw_uid, status.st_gid == user.pw_gid
        if not status.st_mode & (0o100 if mine else 0o010 if ours else 0o001):
            return False
    return True
