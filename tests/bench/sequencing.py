"""The sequencer in a process of its own, for ledger.py: says `ready`, then works as `sweep` has it work, until killed.

BENCH_POSTGRES is the database, and BENCH_LOGIN a login that is a member of callrec_sweep.
"""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402 # patched first, as callrec itself is
import random  # noqa: E402
import sys  # noqa: E402

import gevent  # noqa: E402

from callrec.ledger.note import Signer  # noqa: E402
from callrec.ledger.sequencer import Sequencer  # noqa: E402
from callrec.store.db import Database  # noqa: E402
from callrec.store.tree import TreeRecords  # noqa: E402

_PAUSE = 0.5  # seconds between steps when there is nothing more to do, jittered, as the sweeper waits
_ORIGIN = "bench.example.com/ledger"


def main():
    with Database(os.environ["BENCH_POSTGRES"], *os.environ["BENCH_LOGIN"].split(":")) as store:
        assert store.alive(10.0)
        sequencer = Sequencer(TreeRecords(store), [Signer.generate(_ORIGIN)], _ORIGIN)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            if not sequencer.step():
                gevent.sleep(_PAUSE * random.uniform(0.5, 1.5))


if __name__ == "__main__":
    main()
