"""Fifty appenders in a process of their own, for ledger.py: callrec's own way to a table, one entry a transaction.

    appending.py TABLE SECONDS

BENCH_POSTGRES is the database, and BENCH_APPENDER a login that may insert. Says `ready`. They begin when a line comes
on standard input, and append for a second before they count. Then it prints the seconds that each append took, as JSON.
"""

from gevent import monkey

monkey.patch_all()

import itertools  # noqa: E402 # patched first, as callrec itself is
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import uuid  # noqa: E402

import gevent  # noqa: E402

from callrec.store.db import Database  # noqa: E402

APPENDERS = 50
_WARM = 1.0  # seconds
_ENTRIES = 7  # of a call, one behind the other
_BODIES = (
    ("key_pressed", {"key": "1", "meaning": "granted"}),
    ("notice_played", {"notice": "B", "version": "2026-01", "complete": True, "text_sha256": "4" * 64,
                       "audio_sha256": "6" * 64}),
    ("basis_established", {"basis": "consent", "citation": "privolitev", "decision": "granted",
                           "caller_commitment": "c" * 64, "purposes": ["service_quality.information_accuracy"]}),
)  # fmt: skip


def main():
    table, seconds = sys.argv[1], float(sys.argv[2])
    took = []
    with Database(os.environ["BENCH_POSTGRES"], *os.environ["BENCH_APPENDER"].split(":"), size=APPENDERS) as store:
        store.queries["append"] = store.queries["entry"].replace("INTO ledger", f"INTO {table}")
        assert store.alive(10.0)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        counted = time.monotonic() + _WARM
        ends = counted + seconds

        def append():
            for number, (kind, body) in enumerate(itertools.cycle(_BODIES)):
                if number % _ENTRIES == 0:
                    call_id = uuid.uuid4()
                began = time.monotonic()
                if began >= ends:
                    return
                about = {"call_id": call_id, "recording_id": None, "kind": kind, "body": json.dumps(body)}
                store.run("append", about | {"node": "node-1"}, timeout=30.0)
                if began >= counted:
                    took.append(time.monotonic() - began)

        gevent.joinall([gevent.spawn(append) for _ in range(APPENDERS)], raise_error=True)
    json.dump(took, sys.stdout)


if __name__ == "__main__":
    main()
