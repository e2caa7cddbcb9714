"""An eraser that dies: forked once for each run, it kills itself at a step, before or after what the step does.

Started by test_erasure_kill.py with the stores in its standard input, one JSON object; then each line of input is a
run, {"at": N, "after": true}, and each line of output says how it ended: "killed" or "done".
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402 # patched first, as callrec itself is
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from callrec.recording.objects import S3Objects  # noqa: E402
from callrec.recording.spool import Spool  # noqa: E402
from callrec.rights.erasure import Eraser  # noqa: E402
from callrec.store import live  # noqa: E402
from callrec.store.db import Database  # noqa: E402
from callrec.store.rights import RightsRecords  # noqa: E402


class Fate:
    """Counts what is done to anything, and kills this process at the given one."""

    def __init__(self, at, *, after):
        self.left, self.after = at, after

    def watch(self, part, *names):
        for name in names:
            setattr(part, name, self._mortal(getattr(part, name)))
        return part

    def _mortal(self, work):
        def doomed(*args, **options):
            self.left -= 1
            if self.left == 0 and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = work(*args, **options)
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return doomed


class Mortal:
    """Stands before a part that takes no new attributes, or whose methods are looked up on its class."""

    def __init__(self, part):
        self._part = part

    def __getattr__(self, name):
        return getattr(self._part, name)


def erase(stores, at, *, after):
    fate = Fate(at, after=after)
    with Database(stores["url"], *stores["login"], size=2) as database:
        records = RightsRecords(database, node=stores["node"])
        objects = Mortal(S3Objects(**stores["s3"]))
        objects.exchange = fate.watch(Mortal(objects.exchange), "ask")
        eraser = Eraser(
            fate.watch(
                Mortal(records), "claim_erasure", "erase_key", "erasure_step", "forget_caller", "erasure_left",
                "erasure_waits", "erased", "note",
            ),
            fate.watch(objects, "versions", "delete_version", "lock_of"),
            fate.watch(Mortal(Spool(Path(stores["spool"]), 1, 1 << 40)), "withdraw", "remove", "clear_withdrawn"),
            fate.watch(Mortal(live.LiveState(live.connect(stores["redis"]), live_ttl=600, ended_ttl=60)), "forget"),
            lambda *_: None,
        )  # fmt: skip
        records.unclaim_erasures()
        while eraser.erase_next():
            pass


def main():
    stores = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        run = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                erase(stores, run["at"], after=run["after"])
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        sys.stdout.write({0: "done", -signal.SIGKILL: "killed"}.get(code, f"failed {code}") + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
