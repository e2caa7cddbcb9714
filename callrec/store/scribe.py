"""Writes what need not be waited for: one greenlet, first in first out, until Postgres has it.

What a call may wait for (its basis) does not come here. Everything else does, so that no caller ever waits for the
ledger and the order of a call's notes is the order in which they happened. Statements are taken in batches, one
transaction each, and the notes of a batch are one statement. Every statement here may be repeated: a batch whose commit
was lost on the way back is sent again.

While Postgres is away nothing is given up but what no longer fits the queue. A statement that Postgres refuses for what
is in it is given up alone, after some attempts, so that those behind it are written.
"""

import json
import random
from collections import deque
from collections.abc import Iterable
from typing import Any

import gevent
from gevent.event import Event

from callrec.errors import StatementRefusedError, StoreError
from callrec.log import Log
from callrec.metrics import NOTES_LOST, NOTES_WAITING, RETRIES
from callrec.store.db import Database, Statement

log = Log(__name__)

_BATCH = 100
_TAKES_MANY = ("note", "started", "finished")  # statements
_GATHER = 0.1  # seconds for more to come before a batch that is not full is sent: a transaction costs more than a note
_LOOK = 0.02  # seconds
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0  # seconds
_REFUSALS = 5  # of one statement alone, before it is given up


class Scribe:
    """A queue of named statements. At most `max_waiting` wait; beyond that the newest are given up, loudly."""

    def __init__(self, database: Database, *, max_waiting: int = 200_000) -> None:
        self._database = database
        self._max_waiting = max_waiting
        self._waiting: deque[Statement] = deque()
        self._settled = 0  # statements that were written, or given up, so far
        self._wake = Event()
        self._idle = Event()
        self._idle.set()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._write_for_ever)

    def stop(self, timeout: float = 5.0) -> bool:
        """Wait until everything is written, for at most `timeout` seconds; True when it is."""
        written = self._idle.wait(timeout)
        if self._greenlet is not None:
            self._greenlet.kill()
        if not written:
            log.error("notes_not_written", waiting=len(self._waiting))
        return bool(written)

    def write(self, *statements: Statement) -> None:
        """Have these written, in this order. Never waits."""
        for statement in statements:
            if len(self._waiting) >= self._max_waiting:
                NOTES_LOST.inc()
                log.error("note_lost", statement=statement[0], waiting=len(self._waiting))
                continue
            self._waiting.append(statement)
        NOTES_WAITING.set(len(self._waiting))
        if self._waiting:
            self._idle.clear()
            self._wake.set()

    def caught_up(self, timeout: float) -> bool:
        """Wait until what was asked for before now is written, for at most `timeout` seconds; True when it is."""
        wanted = self._settled + len(self._waiting)
        with gevent.Timeout(timeout, False):  # type: ignore[arg-type] # False: end the block quietly (gevent's manual)
            while self._settled < wanted:
                gevent.sleep(_LOOK)
        return self._settled >= wanted

    def _write_for_ever(self) -> None:
        failures = refusals = 0
        alone = 0  # how many are sent one by one, because one among them was refused
        while True:
            if not self._waiting:
                self._idle.set()
                self._wake.clear()
                self._wake.wait()
            if len(self._waiting) < _BATCH:
                gevent.sleep(_GATHER)
            size = 1 if alone else min(_BATCH, len(self._waiting))
            batch = [self._waiting[place] for place in range(size)]
            try:
                self._database.run_all(folded(batch))
            except StoreError as error:
                failures += 1
                RETRIES.labels("note").inc()
                if isinstance(error, StatementRefusedError):
                    refusals += size == 1
                    alone = max(alone, size)
                if refusals < _REFUSALS:
                    pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures, 10))
                    gevent.sleep(random.uniform(0, pause))  # noqa: S311 # jitter
                    continue
                NOTES_LOST.inc()
                log.error("note_refused", statement=batch[0][0], detail=error.detail)
            failures = refusals = 0
            alone = max(0, alone - size)
            for _ in batch:
                self._waiting.popleft()
            self._settled += len(batch)
            NOTES_WAITING.set(len(self._waiting))


def folded(batch: Iterable[Statement]) -> list[Statement]:
    """The same in fewer statements: `note`, `started` and `finished` take many at once, as `rows`, and in this order.

    That is the order in which they come for each call. Only none may go past a `void`, which writes into the ledger and
    ends a recording, too.
    """
    fewer: list[Statement] = []
    rows: dict[str, list[Any]] = {name: [] for name in _TAKES_MANY}

    def write() -> None:
        fewer.extend((name, {"rows": json.dumps(many)}) for name, many in rows.items() if many)
        rows.update((name, []) for name in rows)

    for name, params in batch:
        if name in rows:
            rows[name].append(params)
        else:
            write()
            fewer.append((name, params))
    write()
    return fewer
