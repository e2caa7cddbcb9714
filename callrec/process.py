"""What every role does as a process: end on request, watch its hub, say what it needs and whether that is there."""

import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import gevent
from gevent.event import Event
from prometheus_client import REGISTRY

from callrec import metrics
from callrec.errors import CallrecError
from callrec.log import Log

log = Log(__name__)

ROLES = ("listen", "ship", "sweep", "api")

_TICK = 0.1  # seconds
_CHECK = 2.0  # seconds between looks at what a role needs
_RECHECK = 0.2  # while it is missing
_GARBAGE = 5_000  # objects that are made before cycles among the new ones are looked for; Python's 700 are two calls'
_PULSE = 1.0  # seconds between signs of life
_PR_SET_PDEATHSIG = 1


def pulse(directory: str, pid: int) -> Path:
    """The file whose time of change shows a supervisor that the hub of this process turns."""
    return Path(directory) / f"{pid}.pulse"


def die_with_parent(sig: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """For subprocess' preexec_fn: the kernel sends the child `sig` when we die (prctl(2)), however that happens."""
    parent = os.getpid()

    def ask_for_it() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(sig))
        if os.getppid() != parent:  # we died before the child could ask
            os._exit(1)

    return ask_for_it


class Role:
    """One role's process. `needs` are questions, each answered within its own short deadline."""

    def __init__(self, name: str, needs: Mapping[str, Callable[[], bool]]) -> None:
        self.name = name
        self.stopping = Event()
        self._needs = needs
        self._found: dict[str, bool] = dict.fromkeys(needs, False)
        self._server: object = None
        for sig in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(sig, self.stopping.set)

    def start(self, http: tuple[str, int] | None) -> None:
        """Begin to watch, and to answer HTTP on `http` if it is given."""
        # What start-up made lives as long as the process. Left among the rest, each full collection would look at all
        # of it: 60 ms in which no call goes on.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GARBAGE)
        gevent.spawn(self._watch_hub)
        if directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            gevent.spawn(_beat, pulse(directory, os.getpid()))
        for need, there in self._needs.items():
            gevent.spawn(self._watch, need, there)
        if http is not None:
            from callrec.web import health  # noqa: PLC0415 # a role under a supervisor does without its libraries

            self._server = health.serve(http, health.app(lambda: REGISTRY, lambda: self._found))
        log.info("role_started", http=f"{http[0]}:{http[1]}" if http else None)

    def wait(self) -> None:
        """Until the process is asked to end."""
        self.stopping.wait()
        log.info("role_stopping")

    def _watch_hub(self) -> None:
        latest = 0.0
        while True:
            begun = time.monotonic()
            gevent.sleep(_TICK)
            late = max(0.0, time.monotonic() - begun - _TICK)
            latest = max(latest, late)
            metrics.HUB_LAG.labels(self.name).observe(late)
            metrics.HUB_LAG_MAX.labels(self.name).set(latest)
            metrics.HEARTBEAT.labels(self.name).set_to_current_time()

    def _watch(self, need: str, there: Callable[[], bool]) -> None:
        gauge = metrics.DEPENDENCY_UP.labels(self.name, need)
        gauge.set(0)
        known: bool | None = None
        while True:
            try:
                found = there()
            except CallrecError:
                found = False
            except Exception:  # a question that fails is answered no; it is asked again
                found = False
                if known is not False:
                    log.error("dependency_check_failed", dependency=need, exc_info=True)  # noqa: G201 # our Log
            if found != known and not (known is None and found):
                (log.info if found else log.warning)("dependency_up" if found else "dependency_down", dependency=need)
            known = found
            self._found[need] = found
            gauge.set(int(found))
            gevent.sleep(_CHECK if found else _RECHECK)


def _beat(sign: Path) -> None:
    while True:
        with suppress(OSError):  # a full disk is no reason to end
            sign.touch()
        gevent.sleep(_PULSE)
