"""A whole callrec to make experiments on: real stores, all roles, the simulated switch, the network in between."""

import ctypes
import json
import math
import os
import subprocess
import urllib.request
import wave
from array import array
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path

import gevent
import psycopg
from exchange import PASSWORD, FreeSwitch, Network

from callrec.demo.installation import Installation
from callrec.demo.process import free_port
from callrec.demo.stack import Stack
from callrec.demo.verdict import Inspector

SPEED = 5.0  # times as fast as real callers
NOTICE, ASK = 6.0, 3.0  # seconds of the prompts
WAIT = 1.0  # seconds that callrec waits for a key
_DISK = "512m"  # of the spool, where it can have one of its own
_CLONE_NEWNS = 0x20000


class House:
    """Boots with `ExitStack.enter_context`; `root` holds everything and is made for it.

    `speed` is how much faster than real callers are; `small_disk`: the spool gets one of its own, where it can;
    `stores` are options of the Stack.
    """

    def __init__(self, root: Path, *, speed: float = SPEED, small_disk: bool = True, **stores) -> None:
        self.root = root
        self._speed, self._small_disk, self._stores = speed, small_disk, stores
        self.tapes = root / "callrec" / "spool" / "tapes"  # beside what is recorded: a second name needs the same disk
        self.own_disk = False
        self._ends = ExitStack()

    def __enter__(self) -> "House":
        try:
            self._boot()
        except BaseException:
            self._ends.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def _boot(self) -> None:
        spool = self.root / "callrec" / "spool"
        spool.mkdir(parents=True)
        self.own_disk = self._small_disk and _mount(spool)
        if self.own_disk:  # or its directory could not be removed
            self._ends.callback(subprocess.run, ["umount", "--lazy", str(spool)], check=False)
        self.tapes.mkdir(mode=0o755)
        self.stack = Stack(self.root / "stack", env={}, **self._stores)
        self._ends.callback(self.stack.stop)
        self.stack.start()
        self._note_commits()
        self.network = Network()
        self._ends.callback(self.network.kill)
        self.network.start()
        at = {name: f"{host}:{port}" for name, (host, port) in self._route_stores().items()}
        event_socket = ("127.0.0.1", free_port())
        prompts = self.root / "prompts"
        _make_prompts(prompts)
        self.callrec = Installation(
            self.root / "callrec", self.stack, prompts=prompts, password=PASSWORD,
            event_socket=self.network.route("event_socket", event_socket),
            changes={
                "bases.consent": {"wait_seconds": WAIT},
                "postgres": {"url": f"postgresql://{at['postgres']}/callrec"},
                "redis": {"url": f"redis://{at['redis']}/0"},
                "storage": {"endpoint": f"http://{at['s3']}"},
            },
        )  # fmt: skip
        self.callrec.prepare()
        self._callbacks = self.network.route("callbacks", self.callrec.callbacks)
        self.switch = FreeSwitch(
            self.network.route("listen", self.callrec.listen), event_socket, self._speed, self.tapes
        )
        self._ends.callback(self.switch.kill)
        self.switch.start()
        self._ends.callback(self.callrec.stop)
        self.callrec.start()
        self.inspector = Inspector(self.callrec)
        self._ends.callback(lambda: self.inspector.close())  # noqa: PLW0108 # by then it may be another

    def _note_commits(self) -> None:
        """Have Postgres note when each transaction was committed: what was durable when, by its own word."""
        with psycopg.connect(self.stack.postgres_url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
        self.stack.restart("postgres")

    def _route_stores(self) -> dict[str, tuple[str, int]]:
        targets = {"postgres": self.stack.postgres_url, "redis": self.stack.redis_url, "s3": self.stack.s3.endpoint}
        return {name: self.network.route(name, _address(url)) for name, url in targets.items()}

    def reopen(self) -> None:
        """A new inspector: the old one's connection may have gone with its Postgres."""
        self.inspector.close()
        self.inspector = Inspector(self.callrec)

    # What the platform and the portal do

    def withdraw(self, recording_id: str, number: str, received_at: str) -> bool:
        """Tell callrec that consent to one recording is withdrawn; whether it says that it has taken that in.

        It may have done so without the answer arriving: the same is said again then, word for word.
        """
        said = {
            "channel": "portal", "received_at": received_at, "recording": recording_id, "number": number,
            "proofs": ["login"],
        }  # fmt: skip
        token = self.callrec.secrets["CALLREC_API_TOKENS"].partition(":")[2]
        request = urllib.request.Request(
            f"http://{self._callbacks[0]}:{self._callbacks[1]}/v1/revocations", data=json.dumps(said).encode(),
            headers={"Authorization": f"Bearer {token}"},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=3) as answer:
                return answer.status == HTTPStatus.CREATED
        except OSError:  # an answer that is none, too
            return False

    def pid(self, role: str) -> int:
        """Of a role, as soon as there is one."""
        with gevent.Timeout(30):
            while not (pid := self.callrec.pids().get(role)):
                gevent.sleep(0.02)
        return pid


def _mount(spool: Path) -> bool:
    """Give the spool a small disk of its own, seen by us and our children alone, where we may. Whether it has one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or libc.unshare(_CLONE_NEWNS) != 0:
        return False
    commands = (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={_DISK},mode=0755", "tmpfs", str(spool)])
    return all(subprocess.run(["mount", *each], capture_output=True, check=False).returncode == 0 for each in commands)


def _make_prompts(folder: Path) -> None:
    folder.mkdir()
    for name, seconds in (("notice-a", NOTICE), ("notice-b", NOTICE), ("ask-b", ASK)):
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(
                array("h", (round(9000 * math.sin(n * 0.4)) for n in range(int(8000 * seconds)))).tobytes()
            )


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.partition("://")[2].rpartition("@")[2].partition("/")[0].partition(":")
    return host, int(port)
