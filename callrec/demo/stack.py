"""The private stack: real Postgres, Redis and Ceph RGW in one directory, on free ports of 127.0.0.1.

For `callrec demo`, the tests and the bench. Everything runs as a child of this process and dies with it, even when
that is killed with SIGKILL. A service that these environment variables name is used instead of booted:

    CALLREC_DEMO_POSTGRES_URL     postgresql://user:password@host:port/database, of a superuser
    CALLREC_DEMO_REDIS_URL        redis://host:port/number
    CALLREC_DEMO_S3_ENDPOINT      http://host:port, with CALLREC_DEMO_S3_ACCESS_KEY and CALLREC_DEMO_S3_SECRET_KEY,
                                  and CALLREC_DEMO_S3_REGION where the region is not called "default"
"""

import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from callrec.demo.ceph import Ceph, ObjectStore
from callrec.demo.process import Boot, together
from callrec.demo.servers import Postgres, Redis, Server
from callrec.errors import CallrecError, ConfigError
from callrec.log import Log

SERVICES = ("postgres", "redis", "s3")
_S3_NEEDS = ("CALLREC_DEMO_S3_ENDPOINT", "CALLREC_DEMO_S3_ACCESS_KEY", "CALLREC_DEMO_S3_SECRET_KEY")
_MARK = ".callrec-stack"
_log = Log(__name__)


@dataclass(frozen=True, slots=True)
class S3Endpoint:
    """Where an S3 server is, and as whom to speak to it. `endpoint` is a URL; `host` is the same without the scheme."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "default"

    @property
    def host(self) -> str:
        return self.endpoint.split("://", 1)[-1].rstrip("/")

    @property
    def secure(self) -> bool:
        return self.endpoint.startswith("https://")


class Stack:
    """Real stores for as long as this process lives. Also a context manager: `with Stack(root) as stack`.

    `root` is made if need be, and must be empty or an earlier stack's, whose data is dropped at `start`. Where user
    postgres can't reach `root` (we are root, it lies in root's home), Postgres keeps its data in the system's temporary
    directory instead. `lifecycle_day_seconds` shortens the day of S3 lifecycle rules. `object_store="bluestore"` puts
    S3's objects on disk (boots in 6 to 8 s); in "memstore" (1 to 2 s) they live in the OSD's memory. `object_room` is
    how many bytes of them there may be. Without `fsync` Postgres does not wait for the disk: a database is made and
    dropped in a tenth of the time.

    The kernel ties children to the thread that forked them: call `start`, `restart` and `s3_users` from a thread that
    lives as long as the stack (any greenlet of the main thread does).
    """

    def __init__(
        self,
        root: Path,
        *,
        services: Collection[str] = SERVICES,
        lifecycle_day_seconds: int | None = None,
        object_store: ObjectStore = "memstore",
        object_room: int = 4 << 30,
        fsync: bool = True,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        if unknown := set(services) - set(SERVICES):
            raise ValueError(f"no such service: {sorted(unknown)}, there are {SERVICES}")
        self.root = root.absolute()
        self._servers: dict[str, Server] = {}
        self._postgres_url = env.get("CALLREC_DEMO_POSTGRES_URL") if "postgres" in services else None
        self._redis_url = env.get("CALLREC_DEMO_REDIS_URL") if "redis" in services else None
        self._s3 = _given_s3(env) if "s3" in services else None
        if "postgres" in services and not self._postgres_url:
            self._servers["postgres"] = Postgres(self.root / "postgres", fsync=fsync)
        if "redis" in services and not self._redis_url:
            self._servers["redis"] = Redis(self.root / "redis")
        if "s3" in services and not self._s3:
            self._servers["s3"] = Ceph(
                self.root / "s3", store=object_store, room=object_room, day_seconds=lifecycle_day_seconds
            )

    def start(self) -> None:
        """Boot everything at once and return when all of it serves.

        Raises CallrecError when a program is missing (the hint names its package) or a service does not come up (with
        the end of its log); nothing is left running then.
        """
        self._claim_root()
        try:
            together([server.boot() for server in self._servers.values()])
        except BaseException:  # a Ctrl-C during the boot, too
            self.stop()
            raise
        _log.info("stack_started", services=sorted(self._servers))

    def stop(self, *, remove: bool = False) -> None:
        """Leave nothing running; with `remove`, leave no directory either. May be repeated."""
        for server in self._servers.values():
            server.stop()
        if remove and (self.root / _MARK).exists():
            shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> "Stack":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(remove=True)

    @property
    def postgres_url(self) -> str:
        """URL of a superuser who owns the database it names ("callrec" in a booted one)."""
        if self._postgres_url:
            return self._postgres_url
        server = self._server("postgres")
        assert isinstance(server, Postgres)
        return server.url

    @property
    def redis_url(self) -> str:
        if self._redis_url:
            return self._redis_url
        server = self._server("redis")
        assert isinstance(server, Redis)
        return server.url

    @property
    def s3(self) -> S3Endpoint:
        """S3 as the administrator, who may create buckets and owns those."""
        if self._s3:
            return self._s3
        ceph = self._ceph()
        return S3Endpoint(ceph.endpoint, ceph.access_key, ceph.secret_key)

    def s3_users(self, *names: str) -> dict[str, S3Endpoint]:
        """Create S3 users, several at once, and return how each speaks to S3 (0.1 s a user; a second time: an error).

        A new user can do nothing, not even create a bucket, until the policy of a bucket allows the principal
        `arn:aws:iam:::user/NAME` something. On a server given by the environment no users can be created: each name
        gets the administrator's keys, and a log line says so.
        """
        if self._s3:
            _log.warning("stack_s3_users_share_given_keys", users=list(names))
            return dict.fromkeys(names, self._s3)
        ceph = self._ceph()
        boots: list[Boot] = []
        keys = ceph.create_users(names, boots)
        together(boots)
        return {name: S3Endpoint(ceph.endpoint, *pair) for name, pair in keys.items()}

    def kill(self, service: str) -> None:
        """SIGKILL to Postgres with all its backends, to Redis, or to S3's gateway. Returns when the port is closed."""
        self._server(service).main.kill()

    def restart(self, service: str) -> None:
        """Launch what was killed on its old port. Postgres and S3 have their data; Redis is empty."""
        server = self._server(service)
        if server.main.exit_status() is None:
            self.kill(service)
        together([server.launch()])

    def pids(self) -> dict[str, int]:
        """Process ids of what runs, by program name ("postgres", "redis-server", "ceph-mon", "ceph-osd", "radosgw")."""
        return {name: pid for server in self._servers.values() for name, pid in server.pids().items()}

    def _server(self, service: str) -> Server:
        if service not in self._servers:
            raise CallrecError(
                f"{service} is not run by this stack", hint="it was not asked for, or given from outside"
            )
        return self._servers[service]

    def _ceph(self) -> Ceph:
        server = self._server("s3")
        assert isinstance(server, Ceph)
        return server

    def _claim_root(self) -> None:
        """Make the directory ours, and never empty one that isn't."""
        mark = self.root / _MARK
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not mark.exists() and any(self.root.iterdir()):
                hint = "give the stack a directory of its own"
                raise CallrecError(f"{self.root} holds something else already", hint=hint)
            mark.touch()
        except OSError as error:
            raise CallrecError(f"{self.root} can't hold the stack", detail=str(error)) from error


def _given_s3(env: Mapping[str, str]) -> S3Endpoint | None:
    given = [name for name in _S3_NEEDS if env.get(name)]
    if not given:
        return None
    if missing := [name for name in _S3_NEEDS if name not in given]:
        raise ConfigError(f"{given[0]} is set, but not {' and '.join(missing)}", hint="set all three or none")
    endpoint, access_key, secret_key = (env[name] for name in _S3_NEEDS)
    return S3Endpoint(endpoint, access_key, secret_key, env.get("CALLREC_DEMO_S3_REGION") or "default")
