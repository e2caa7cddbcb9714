"""The sweep in a process of its own, for sweep.py: says `ready`, waits for a line, erases COUNT, says what it took.

It is callrec's own Sweeper with its chores, roles, tables, spool and Redis. The object store is a stand-in in memory,
unless BENCH_S3 in the environment names a real one.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402 # patched first, as callrec itself is
import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402
from prometheus_client import REGISTRY  # noqa: E402

from callrec import adapters, config, log  # noqa: E402
from callrec.recording.exchange import Answer  # noqa: E402
from callrec.recording.objects import S3Objects, Version  # noqa: E402
from callrec.rights.erasure import Eraser  # noqa: E402
from callrec.rights.sweeper import Sweeper  # noqa: E402
from callrec.store import live  # noqa: E402
from callrec.store.rights import RightsRecords  # noqa: E402


class Shelf:
    """An object store in memory: each recording has one version until that is deleted."""

    bucket = "recordings"

    def __init__(self):
        self.deleted = set()
        self.exchange = self

    def ask(self, *_args, **_options):
        return Answer(200, "", {}, b"")

    def versions(self, prefix):
        if prefix.startswith("segments/") or prefix in self.deleted:
            return []
        return [Version(prefix, "v", False, 1, None)]

    def lock_of(self, _key, _version):
        return "GOVERNANCE", None

    def delete_version(self, key, _version, *, bypass_governance):
        assert bypass_governance
        self.deleted.add(key)


def sweep(settings, count):
    """Erase `count`, all that have expired. Times in seconds, memory in bytes."""
    objects = S3Objects(**json.loads(os.environ["BENCH_S3"])) if "BENCH_S3" in os.environ else Shelf()
    spool = adapters.spool(settings)
    spool.prepare()
    view = live.LiveState(live.connect(settings.redis.url), live_ttl=600, ended_ttl=60)
    with adapters.database(settings, "sweep") as database:
        records = RightsRecords(database, node=settings.node)
        eraser = Eraser(records, objects, spool, view, lambda *_: None)
        sweeper = Sweeper(records, eraser, objects, settings.bases, settings.terms.patience)
        assert database.alive(10.0)
        memory = peak()
        say("ready")
        sys.stdin.readline()
        gaps = [0.0]
        gevent.spawn(tick, gaps)
        began, worked = time.monotonic(), time.process_time()
        while sweeper.expire():
            pass
        found, stop = time.monotonic() - began, Event()
        sweeping = gevent.spawn(sweeper.run, stop)
        while (REGISTRY.get_sample_value("callrec_erasures_total", {"cause": "expiry"}) or 0) < count:
            gevent.sleep(0.02)
        took, worked = time.monotonic() - began, time.process_time() - worked
        stop.set()
        sweeping.join()
    return {
        "expired": count, "found": found, "took": took, "cpu": worked, "memory_before": memory, "memory": peak(),
        "hub_held": max(gaps),
    }  # fmt: skip


def say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def tick(gaps):
    while True:
        begun = time.monotonic()
        gevent.sleep(0.005)
        gaps.append(max(gaps.pop(), time.monotonic() - begun - 0.005))


def peak():
    """Bytes. Not ru_maxrss: that remembers the process which started this one."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    log.setup("sweep", "ERROR")
    say(json.dumps(sweep(config.load(os.environ["CALLREC_CONFIG"]), int(sys.argv[1]))))
