"""Files, hashes and ciphers hold the hub; gevent's threadpool does them beside it."""

from collections.abc import Callable
from typing import TypeVar, cast

import gevent

_T = TypeVar("_T")


def in_thread(work: Callable[..., _T], *args: object) -> _T:
    """What `work` gives or raises."""

    def kept() -> tuple[_T | None, BaseException | None]:
        try:
            return work(*args), None
        except BaseException as error:  # noqa: BLE001 # raised below; gevent would print it as it is
            return None, error

    result, error = gevent.get_hub().threadpool.apply(kept)
    if error is not None:
        raise error
    return cast(_T, result)
