"""`callrec run`: all roles of a small installation, each a process of its own with its own secrets alone.

A role that ends is started again with a back-off, one that stands still is ended first. One HTTP address shows all of
them: the roles share their metrics through files (prometheus-client's multiprocess mode), and the supervisor adds
whether each runs.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import gevent
from gevent.event import Event
from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from callrec.config import Config
from callrec.credentials import variables
from callrec.log import Log
from callrec.process import ROLES, die_with_parent, pulse
from callrec.web import health

log = Log(__name__)

# Who ends after whom, and seconds until the next are told to end as well. While nobody listens calls go unrecorded and
# withdrawals by key unheard, so `listen` waits for those that may have an upload or an erasure in hand.
_ORDER = ((("ship", "sweep"), 15.0), (("listen",), 130.0), (("api",), 10.0))
_GRACE = 15.0  # seconds that those have in the end until SIGKILL who have not ended by then
_LONGEST_PAUSE = 10.0
_MEMORY = "/dev/shm"  # noqa: S108 # for mkdtemp
_LOOK = 1.0  # seconds between looks at the roles' signs of life
_STILL = {"listen": 5}  # looks without one before a role is ended; callers wait for `listen` that long
_LONGEST_STILL = 120  # the same for the others: nobody waits for them at once, and an alert comes first
_STEADY = 30.0  # seconds of running after which a role's earlier ends are forgotten


def environment(role: str, env: Mapping[str, str], metrics_directory: str) -> dict[str, str]:
    """What a role is given: the caller's environment without callrec's secrets, and of those its own."""
    own = {name for variable in variables(role) for name in (variable, f"{variable}_FILE")}
    kept = {name: value for name, value in env.items() if not name.startswith("CALLREC_") or name in own}
    return kept | {"PROMETHEUS_MULTIPROC_DIR": metrics_directory}


def _directory_of_metrics() -> str:
    """In memory, unless TMPDIR names a place: on a full disk a role that counts something would die of SIGBUS."""
    memory = _MEMORY if "TMPDIR" not in os.environ and os.access(_MEMORY, os.W_OK) else None
    return tempfile.mkdtemp(prefix="callrec-metrics-", dir=memory)


class Supervisor:
    """Runs the roles until told to stop; leaves nothing running."""

    def __init__(self, config: Config, http: tuple[str, int] | None, log_level: str = "INFO") -> None:
        self._config = config
        self._http = http
        self._log_level = log_level
        self._stopping = Event()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._directory = ""
        self._own = CollectorRegistry()
        self._up = Gauge("callrec_role_up", "1 while the role's process runs", ["role"], registry=self._own)
        self._starts = Counter("callrec_role_starts", "Starts of the role's process", ["role"], registry=self._own)

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(sig, self._stopping.set)
        self._directory = _directory_of_metrics()
        try:
            server = health.serve(self._http, health.app(self._registry, self._readiness)) if self._http else None
            keepers = {role: gevent.spawn(self._keep, role) for role in ROLES}
            minder = gevent.spawn(self._mind)
            log.info("supervisor_started", http=self._http and f"{self._http[0]}:{self._http[1]}", roles=list(ROLES))
            self._stopping.wait()
            for roles, seconds in _ORDER:
                for role in roles:
                    if (child := self._children.get(role)) is not None and child.poll() is None:
                        child.terminate()
                gevent.joinall([keepers[role] for role in roles], timeout=seconds)
            gevent.joinall(list(keepers.values()), timeout=_GRACE)
            for child in self._children.values():
                if child.poll() is None:
                    child.kill()
            gevent.killall([minder, *keepers.values()])
            if server:
                server.stop(timeout=1)
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)
        log.info("supervisor_stopped")

    def _keep(self, role: str) -> None:
        """Have this role run for as long as we do."""
        ends = 0
        while not self._stopping.is_set():
            begun = time.monotonic()
            own = ("--config", str(self._config.path), "--http", "none", "--log-level", self._log_level)
            try:
                child = subprocess.Popen(  # noqa: S603 # our own program
                    [sys.executable, "-m", "callrec", role, *own],
                    env=environment(role, os.environ, self._directory),
                    preexec_fn=die_with_parent(),  # noqa: PLW1509 # one prctl; it takes no lock
                )
            except (OSError, subprocess.SubprocessError) as error:  # no memory or no process, for the moment
                ends += 1
                self._up.labels(role).set(0)
                log.error("role_not_started", unstarted=role, error=type(error).__name__, ends=ends)
                self._pause(ends)
                continue
            self._children[role] = child
            if self._stopping.is_set():  # it was set while the process was being made
                child.terminate()
            self._starts.labels(role).inc()
            self._up.labels(role).set(1)
            status = child.wait()
            self._up.labels(role).set(0)
            mark_process_dead(child.pid, self._directory)  # type: ignore[no-untyped-call] # no types there
            pulse(self._directory, child.pid).unlink(missing_ok=True)
            if self._stopping.is_set():
                return
            ends = 0 if time.monotonic() - begun > _STEADY else ends + 1
            log.error("role_ended", ended=role, status=status, ends=ends)
            self._pause(ends)

    def _pause(self, ends: int) -> None:
        self._stopping.wait(random.uniform(0, min(_LONGEST_PAUSE, 0.1 * 2 ** min(ends, 10))))  # noqa: S311 # jitter

    def _mind(self) -> None:
        """End a role that stands still. FreeSWITCH waits for ever for a listener that it has a call's connection to."""
        seen: dict[str, tuple[float, int]] = {}
        while True:
            gevent.sleep(_LOOK)  # our own standing still counts as one look, however long it was
            for role, child in list(self._children.items()):
                try:
                    sign = pulse(self._directory, child.pid).stat().st_mtime
                except OSError:  # it has not begun yet
                    continue
                known, looks = seen.get(role, (0.0, 0))
                looks = looks + 1 if sign == known else 0
                seen[role] = sign, looks
                if looks >= _STILL.get(role, _LONGEST_STILL) and child.poll() is None:
                    log.error("role_stands_still", still=role, looks=looks)
                    child.kill()

    def _registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        _Shared(registry, path=self._directory)  # type: ignore[no-untyped-call] # no types there
        registry.register(_Both(self._own))
        return registry

    def _readiness(self) -> health.Readiness:
        found = dict.fromkeys(ROLES, False)
        for family in self._registry().collect():
            if family.name == "callrec_dependency_up":
                for sample in family.samples:
                    role = sample.labels["role"]
                    found[role] = self._children[role].poll() is None  # and it has begun to look
                    found[f"{role}: {sample.labels['dependency']}"] = bool(sample.value)
        return found


class _Shared(MultiProcessCollector):
    """What the roles have written. A role that has just made its file, or was killed doing so, left it empty."""

    def collect(self) -> Iterable[Metric]:
        files = [str(file) for file in Path(self._path).glob("*.db") if _size(file)]
        merged: Iterable[Metric] = self.merge(files, accumulate=True)  # type: ignore[no-untyped-call] # no types there
        return merged


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # its process has just ended
        return 0


class _Both:
    """Shows one registry's metrics within another."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        return self._registry.collect()
