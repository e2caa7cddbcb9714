"""Orders to the listener that has a call: mask, unmask, stop, withdraw.

They travel as a Postgres notification, since Postgres is what every process and every node already shares, and who may
connect to it is already decided. An order is not kept: what came of it is in the ledger.
"""

import json
import random
from collections.abc import Callable
from uuid import UUID

import gevent
import psycopg

from callrec.errors import StoreError
from callrec.log import Log
from callrec.metrics import RETRIES
from callrec.store.db import Database, Row

log = Log(__name__)

_CHANNEL = "callrec_order"
_LONGEST_PAUSE = 5.0  # seconds
_LOOK = 0.05  # seconds between looks at the ledger
_OUTCOMES = {
    "mask": ("recording_masked", "recording_not_masked"),
    "unmask": ("recording_unmasked", "recording_not_unmasked"),
    "stop": ("recording_stopped",),
    "withdraw": ("consent_withdrawn", "withdrawal_without_effect"),
}


def send(database: Database, channel: str, order: str, call: UUID) -> None:
    """Have `order` carried out on the call on FreeSWITCH's `channel`, if it is still recorded, by whoever has it.

    Both are named: a caller who was transferred to another line has had several calls on one channel.
    """
    database.run("order", {"payload": json.dumps({"channel": channel, "order": order, "call": str(call)})})


def carry_out(database: Database, call: str, order: str, timeout: float = 5.0) -> str:
    """Have an order carried out by whichever node has the call; give the ledger entry that says what came of it.

    `call` is a call's id, its recording's, or its channel's. StoreError when there is no such call, and when nobody
    carried the order out within `timeout` seconds: the call is over, or is not being recorded.
    """
    known = database.one("call_of", {"id": call})
    if known is None:
        raise StoreError("There is no such call", hint="`callrec calls` lists them")
    before = {entry for entry, _ in _outcomes(database, known, order)}
    send(database, known["channel"], order, known["call_id"])
    with gevent.Timeout(timeout, False):  # type: ignore[arg-type] # False: end the block quietly (gevent's manual)
        while True:
            for entry, kind in _outcomes(database, known, order):
                if entry not in before:
                    return kind
            gevent.sleep(_LOOK)
    raise StoreError(
        f"Nobody could {order} this call by now",
        detail="It is over, is not being recorded, or its node does not reach FreeSWITCH",
        hint="A stop or a withdrawal that its node has heard is carried out as soon as it does",
    )


def _outcomes(database: Database, call: Row, order: str) -> list[tuple[int, str]]:
    """What the ledger says of such orders, the oldest first. Two alike at once share the first answer: it is true."""
    entries = database.run("ledger_of", {"call_id": call["call_id"]})
    return [(entry["entry_id"], entry["kind"]) for entry in entries if entry["kind"] in _OUTCOMES[order]]


class OrderDesk:
    """Gives `take(channel, order, call)` every order that is sent, from now on, for as long as Postgres is there.

    `call` is empty where an older callrec sent the order.
    """

    def __init__(self, conninfo: str, take: Callable[[str, str, str], None]) -> None:
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
            except psycopg.Error as error:
                failures += 1
                RETRIES.labels("order_desk").inc()
                log.debug("order_desk_down", detail=type(error).__name__)
                gevent.sleep(random.uniform(0.1, min(_LONGEST_PAUSE, 0.2 * 2 ** min(failures, 10))))  # noqa: S311 # jitter

    def _deliver(self, payload: str) -> None:
        try:
            fields = json.loads(payload)
            channel, order, call = str(fields["channel"]), str(fields["order"]), str(fields.get("call", ""))
        except (ValueError, KeyError, TypeError, RecursionError):
            log.warning("order_unreadable")
            return
        try:
            self._take(channel, order, call)
        except Exception:  # one order that fails may not end the hearing of all later ones
            log.error("order_failed", exc_info=True)  # noqa: G201 # our Log
