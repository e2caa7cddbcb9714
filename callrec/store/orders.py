"""Orders to the listener that has a call: mask, unmask, stop, withdraw.

They travel as a Postgres notification, since Postgres is what every process and every node already shares, and who may
connect to it is already decided. An order is not kept: what came of it is in the ledger.
"""

import json
import random
from collections.abc import Callable

import gevent
import psycopg

from callrec.errors import StoreError
from callrec.log import Log
from callrec.metrics import RETRIES
from callrec.store.db import Database

log = Log(__name__)

_CHANNEL = "callrec_order"
_LONGEST_PAUSE = 5.0


def send(database: Database, channel: str, order: str) -> None:
    """Have `order` carried out on the call on FreeSWITCH's `channel`, by whichever node has it."""
    database.run("order", {"payload": json.dumps({"channel": channel, "order": order})})


class OrderDesk:
    """Gives `take(channel, order)` every order that is sent, from now on, for as long as Postgres is there."""

    def __init__(self, conninfo: str, take: Callable[[str, str], None]) -> None:
        self._conninfo = conninfo
        self._take = take
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()

    def _run(self) -> None:
        failures = 0
        while True:
            try:
                with psycopg.connect(self._conninfo, autocommit=True) as connection:
                    connection.execute(f"LISTEN {_CHANNEL}")
                    failures = 0
                    for notify in connection.notifies():
                        self._deliver(notify.payload)
            except (psycopg.Error, StoreError) as error:
                failures += 1
                RETRIES.labels("order_desk").inc()
                log.debug("order_desk_down", detail=type(error).__name__)
                gevent.sleep(random.uniform(0.1, min(_LONGEST_PAUSE, 0.2 * 2**failures)))  # noqa: S311 # jitter

    def _deliver(self, payload: str) -> None:
        try:
            order = json.loads(payload)
            self._take(str(order["channel"]), str(order["order"]))
        except (ValueError, KeyError, TypeError):
            log.warning("order_unreadable")
