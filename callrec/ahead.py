"""Work that goes on while its result is not wanted yet.

A greenlet that fails prints a traceback, even if somebody asks for its result later. Here the error waits for them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Generic, TypeVar

import gevent

T = TypeVar("T")
A = TypeVar("A")


class Ahead(Generic[T]):
    """A call that has begun as soon as this one waits for something."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._result: list[T] = []
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        try:
            self._result.append(self._call())
        except Exception as error:  # noqa: BLE001 # it is raised again, where it belongs
            self._error = error

    def result(self) -> T:
        """What it gave; raises what it raised."""
        self._greenlet.get()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def cancel(self) -> None:
        self._greenlet.kill()


def in_order(call: Callable[[A], T], arguments: Iterable[A], at_once: int) -> Iterator[T]:
    """The result of each, in their order, while the next are under way."""
    begun: deque[Ahead[T]] = deque()
    try:
        for argument in arguments:
            begun.append(Ahead(partial(call, argument)))
            if len(begun) == at_once:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for each in begun:
            each.cancel()
