"""How a connection to Postgres waits: for its socket, in gevent's own loop.

psycopg's own way under gevent, `select.poll` as patched, makes a poll object, a timer and an event for each wait, and
looks up ten times a second in between: up to half as much work again as the statement itself.
"""

from typing import Any

import gevent
import psycopg
from gevent.hub import Waiter
from psycopg.abc import RV, PQGen
from psycopg.waiting import Ready, Wait

_READ, _WRITE = 1, 2  # of gevent's io watchers; psycopg's Wait and Ready have the same bits
assert (Wait.R, Wait.W, Ready.R, Ready.W) == (_READ, _WRITE, _READ, _WRITE)


class Connection(psycopg.Connection[dict[str, Any]]):
    """Has no deadlines of its own: whoever uses it shuts its socket when the time is over (store/db.py)."""

    def wait(self, gen: PQGen[RV], interval: float = 0.0, timeout: float | None = None) -> RV:
        """Run one of psycopg's generators to its end."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        hub = gevent.get_hub()
        try:
            wanted = next(gen)
            while True:
                watcher = hub.loop.io(self.pgconn.socket, int(wanted))
                try:
                    waiter: Waiter[int] = Waiter(hub)
                    watcher.start(waiter.switch, pass_events=True)
                    events = waiter.get()
                finally:
                    watcher.close()
                wanted = gen.send(Ready(events & (_READ | _WRITE)))
        except StopIteration as end:
            result: RV = end.value
            return result
