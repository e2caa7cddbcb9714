"""What is done to whom: each fault of each target, and how it is healed.

killed    SIGKILL; what nobody else starts again is started again when the fault is over
stopped   SIGSTOP, and SIGCONT: sockets take bytes and nobody answers
slow      each answer over the network takes 500 ms longer (network.py)
cut       nothing arrives over the network (network.py)
full      no file can be written: the limit of a process' files is 0, or its disk has no room
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import gevent
import redis
from house import House

from callrec.demo.process import running

ROLES = ("listen", "ship", "sweep", "api")
STORES = ("postgres", "redis", "s3")
TARGETS = (*ROLES, *STORES, "freeswitch", "node")
FAULTS = ("killed", "stopped", "slow", "cut", "full")
LASTS = 3.0  # seconds
LONGER = {("listen", "stopped"): 12.0}  # longer than `callrec run` watches a role that stands still
_PROGRAM = {"postgres": "postgres", "redis": "redis-server", "s3": "radosgw"}
_ROUTES = {
    "listen": ["listen"], "api": ["callbacks"], "postgres": ["postgres"], "redis": ["redis"], "s3": ["s3"],
    "freeswitch": ["listen", "event_socket"], "node": [*STORES, "callbacks"],
}  # fmt: skip
_SENSELESS = {
    ("sweep", "full"): "removes files and writes none",
    ("api", "full"): "writes no file",
}


def senseless(house: House, target: str, fault: str) -> str:
    """Why there is no such experiment; empty where there is."""
    if (target, fault) == ("node", "full") and not house.own_disk:
        return "the spool needs a disk of its own, which only root can mount"
    return _SENSELESS.get((target, fault), "")


def strike(house: House, target: str, fault: str) -> Callable[[], None]:
    """Have the fault begin; what is returned ends it."""
    match fault:
        case "killed":
            return _kill(house, target)
        case "stopped":
            return _stop(_pids(house, target))
        case "slow" | "cut":
            pids = [] if target in STORES or target in {"freeswitch", "node"} else [house.pid(target)]
            house.network.fault(fault, _ROUTES.get(target, []), pids)
            return house.network.heal
        case _:
            return _fill(house, target)


def _pids(house: House, target: str) -> list[int]:
    """All processes of the target; of Postgres its backends, too."""
    if target in STORES:
        main = house.stack.pids()[_PROGRAM[target]]
        return [main, *_children(main)] if target == "postgres" else [main]
    if target == "freeswitch":
        return [house.switch.pid]
    if target == "node":
        return [*house.callrec.pids().values(), house.switch.pid]
    return [house.pid(target)]


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _signal(pids: list[int], sig: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)


def _stop(pids: list[int]) -> Callable[[], None]:
    _signal(pids, signal.SIGSTOP)
    return lambda: _signal(pids, signal.SIGCONT)


def _kill(house: House, target: str) -> Callable[[], None]:
    if target in STORES:
        house.stack.kill(target)
        return lambda: house.stack.restart(target)
    if target == "freeswitch":
        house.switch.kill()
        return house.switch.start
    if target == "node":
        kill_node(house)
        return lambda: start_node(house)
    supervisor = house.callrec.pids()["run"]
    _signal([supervisor], signal.SIGSTOP)  # it would start another at once
    _signal([house.pid(target)], signal.SIGKILL)
    return lambda: _signal([supervisor], signal.SIGCONT)


def kill_node(house: House) -> None:
    """All roles and the switch, at once."""
    pids = list(house.callrec.pids().values())
    _signal([*pids, house.switch.pid], signal.SIGKILL)
    house.switch.kill()
    while any(map(running, pids)):
        gevent.sleep(0.005)
    house.callrec.stop()


def start_node(house: House) -> None:
    house.switch.start()
    house.callrec.start()


def _fill(house: House, target: str) -> Callable[[], None]:
    match target:
        case "node":
            return _fill_disk(house.callrec.spool)
        case "redis":
            return _fill_redis(house)
        case "s3":
            return _fill_s3(house)
    pids = _pids(house, target)
    _limit_files(pids, "0:")

    def heal() -> None:
        _limit_files([*pids, *_children(pids[0])], "unlimited:")
        if target == "postgres":  # it ends when it can't write its log ahead
            house.stack.restart("postgres")

    return heal


def _limit_files(pids: list[int], limit: str) -> None:
    """What a write beyond it fails with is EFBIG instead of ENOSPC. Only its own user may do that to a process."""
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            who = Path(f"/proc/{pid}").stat()
            done = subprocess.run(
                ["prlimit", "--pid", str(pid), f"--fsize={limit}"], user=who.st_uid, group=who.st_gid, extra_groups=[],
                capture_output=True, text=True, check=False, timeout=10,
            )  # fmt: skip
            if done.returncode and running(pid):
                raise SystemExit(f"chaos: {done.stderr}")


def _fill_disk(spool: Path) -> Callable[[], None]:
    """The disk of the spool has not one byte left."""
    ballast = spool / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(65536)) == 65536:
            pass
    return ballast.unlink


def _fill_redis(house: House) -> Callable[[], None]:
    """A Redis that couldn't save refuses writes, as it does by default where it saves at all."""
    pid = house.stack.pids()["redis-server"]
    with redis.Redis.from_url(house.stack.redis_url, socket_timeout=5) as client:
        client.config_set("save", "3600 1")
        client.config_set("loglevel", "warning")  # what it says of the saving would be a write, too
        _limit_files([pid], "0:")
        client.bgsave()  # the child keeps the limit
        _limit_files([pid], "unlimited:")
        while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
            gevent.sleep(0.01)

    def heal() -> None:
        with redis.Redis.from_url(house.stack.redis_url, socket_timeout=5) as client:
            client.config_set("save", "")

    return heal


def _fill_s3(house: House) -> Callable[[], None]:
    """A Ceph whose disks are full lets writers wait, for room or for ever. Here readers wait, too."""
    _ceph(house, "osd", "set", "pause")
    return lambda: _ceph(house, "osd", "unset", "pause")


def _ceph(house: House, *words: str) -> None:
    conf = house.stack.root / "s3" / "ceph.conf"
    done = subprocess.run(
        ["ceph", "-c", str(conf), *words], capture_output=True, text=True, check=False, timeout=30
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"chaos: {done.stderr}")


def healed_at_exit(ends: ExitStack, heal: Callable[[], None]) -> Callable[[], None]:
    """Heal once, at the latest when the experiment is left."""
    done: list[bool] = []

    def once() -> None:
        if not done:
            done.append(True)
            heal()

    ends.callback(once)
    return once
