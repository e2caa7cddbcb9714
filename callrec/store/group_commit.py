"""Statements that wait for Postgres at the same moment go there as one: group commit, by the client.

A call must wait until its legal basis is durable, and what costs most of that is not the row but the statement and its
commit. Alone, a row is sent at once. While another is under way, those that arrive gather, and the next statement takes
them all: the busier the node, the less each costs.
"""

import json
import time
from collections import deque
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import gevent
from gevent.event import AsyncResult

from callrec.errors import StatementRefusedError, StoreError
from callrec.metrics import STORE_ERRORS
from callrec.store.db import Database

_MOST = 100  # rows a statement
_WIDTH = 2  # statements under way at once
_PATIENCE = 0.02  # seconds that one may be under way before those behind it are sent beside it: it may be stuck


class _Asked:
    """A row whose asker waits."""

    __slots__ = ("answer", "deadline", "row")

    def __init__(self, row: Mapping[str, Any], deadline: float) -> None:
        self.row = row
        self.deadline = deadline
        self.answer: AsyncResult[bool] = AsyncResult()


class GroupCommit:
    """Runs the named statement `name`, which takes many rows as the JSON array `rows`.

    Each row has a `call_id`; the statement gives back the `call_id` of each row that it took.
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._waiting: deque[_Asked] = deque()
        self._under_way = 0
        self._reinforced = False  # or about to be

    def run(self, row: Mapping[str, Any], *, timeout: float) -> bool:
        """Wait until the row is durable; False when the statement did not take it.

        StoreError when that did not happen within `timeout` seconds, and then it may or may not have been done;
        StatementRefusedError when it was refused and sent again would be refused again. One row's fault is not
        another's: rows that were refused together are sent again one by one.
        """
        asked = _Asked(row, time.monotonic() + timeout)
        self._waiting.append(asked)
        if not self._under_way:
            self._under_way = 1
            gevent.spawn(self._send_all)
        elif self._under_way < _WIDTH and not self._reinforced:
            self._reinforced = True
            gevent.spawn_later(_PATIENCE, self._reinforce)
        try:
            return bool(asked.answer.get(timeout=timeout))
        except gevent.Timeout:
            STORE_ERRORS.labels("postgres", self._name).inc()
            raise StoreError("Postgres did not answer in time", detail=f"{self._name} had {timeout:.3f} s") from None
        finally:
            if not asked.answer.ready() and asked in self._waiting:  # nobody waits for it any more: it was not sent
                self._waiting.remove(asked)

    def _reinforce(self) -> None:
        self._reinforced = False
        if self._waiting and self._under_way < _WIDTH:
            self._under_way += 1
            self._send_all()

    def _send_all(self) -> None:
        try:
            while self._waiting:
                self._send([self._waiting.popleft() for _ in range(min(_MOST, len(self._waiting)))])
        finally:
            self._under_way -= 1

    def _send(self, batch: list[_Asked]) -> None:
        left = max(asked.deadline for asked in batch) - time.monotonic()
        try:
            rows = json.dumps([asked.row for asked in batch])
            taken = self._database.run(self._name, {"rows": rows}, timeout=max(0.0, left))
        except StatementRefusedError as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for asked in batch:
                self._send([asked])
        except BaseException as error:
            for asked in batch:
                asked.answer.set_exception(error)
            if not isinstance(error, StoreError):
                raise
        else:
            known: set[UUID] = {row["call_id"] for row in taken}
            for asked in batch:
                asked.answer.set(UUID(asked.row["call_id"]) in known)
