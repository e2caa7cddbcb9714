"""JSON logs, one object a line, without personal data.

A log line carries an event name and fields chosen by us; text that arrived in a call (numbers, names, digits, headers)
is never passed in (rule 6 of the design, F1). `call` and `recording` are our own random identifiers.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import gevent

_FRAMES = 8  # of a traceback, the innermost


ErrorInfo = tuple[type[BaseException], BaseException, TracebackType | None]  # as sys.exc_info() has it


class JsonFormatter(logging.Formatter):
    """One JSON object a line: at, level, role, event, then the fields given with the record."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "role": self.role,
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[0]:
            # The type and places of a foreign error, never its text: that may quote what a caller sent.
            line["error"] = record.exc_info[0].__name__
            places = [f"{Path(f.f_code.co_filename).name}:{at}" for f, at in traceback.walk_tb(record.exc_info[2])]
            line["trace"] = places[-_FRAMES:]
        return json.dumps(line, default=str, ensure_ascii=False)


class Log:
    """A logger whose calls read `log.info("recording_stored", recording=id, seconds=3.2)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: object) -> None:
        self._logger.debug(event, extra={"fields": fields})

    def info(self, event: str, **fields: object) -> None:
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, *, exc_info: bool | ErrorInfo = False, **fields: object) -> None:
        self._logger.warning(event, exc_info=exc_info, extra={"fields": fields})

    def error(self, event: str, *, exc_info: bool | ErrorInfo = False, **fields: object) -> None:
        self._logger.error(event, exc_info=exc_info, extra={"fields": fields})


def setup(role: str, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send this process's logs to `stream` (standard error unless given) as JSON lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Libraries quote what they are sent; callrec's own events say what an operator needs.
    for name in ("greenswitch", "urllib3", "psycopg.pool", "psycopg"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # greenswitch logs the caller's number through the root logger's functions; nothing of ours does.
    handler.addFilter(lambda record: record.name != "root")
    # What nobody caught would be printed with its text.
    gevent.get_hub().print_exception = _greenlet_failed  # type: ignore[method-assign, assignment] # gevent's only way
    sys.excepthook = _process_failed


def _greenlet_failed(_context: object, kind: Any, error: Any, trace: Any) -> None:
    Log(__name__).error("greenlet_failed", exc_info=(kind, error, trace))


def _process_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    Log(__name__).error("process_failed", exc_info=(kind, error, trace))
