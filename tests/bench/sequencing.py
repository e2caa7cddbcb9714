"""The sequencer in a process of its own, for ledger.py: says `ready`; each line has it work as `sweep` does, or rest.

BENCH_POSTGRES is the database, and BENCH_LOGIN a login that is a member of callrec_sweep.
"""

from gevent import monkey

monkey.patch_all()

import gc  # noqa: E402 # patched first, as callrec itself is
import os  # noqa: E402
import random  # noqa: E402
import sys  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402

from callrec.ledger.note import Signer  # noqa: E402
from callrec.ledger.sequencer import Sequencer  # noqa: E402
from callrec.process import _GARBAGE  # noqa: E402
from callrec.service import _SIGN  # noqa: E402
from callrec.store.db import Database  # noqa: E402
from callrec.store.tree import TreeRecords  # noqa: E402

_ORIGIN = "bench.example.com/ledger"


def main():
    with Database(os.environ["BENCH_POSTGRES"], *os.environ["BENCH_LOGIN"].split(":")) as store:
        assert store.alive(10.0)
        sequencer = Sequencer(TreeRecords(store), [Signer.generate(_ORIGIN)], _ORIGIN)
        gc.freeze()  # as every role of callrec does
        gc.set_threshold(_GARBAGE)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        at_work = Event()
        gevent.spawn(take_turns, at_work)
        while True:
            at_work.wait()
            if not sequencer.step():
                gevent.sleep(_SIGN * random.uniform(0.5, 1.5))  # jitter as the sweeper's


def take_turns(at_work):
    for _ in FileObject(sys.stdin.buffer):
        (at_work.clear if at_work.is_set() else at_work.set)()
    os._exit(0)  # who started this process has ended


if __name__ == "__main__":
    main()
