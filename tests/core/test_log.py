"""One JSON object a line, and never a foreign text in it (F1)."""

import io
import json
import logging
import subprocess
import sys
from uuid import uuid4

import gevent
import pytest

from callrec import log

NUMBER = "+38640123456"


@pytest.fixture
def logged():
    """Logs of this process into a text; what was set before comes back afterwards."""
    root, hub = logging.getLogger(), gevent.get_hub()
    before = (root.handlers[:], root.level, sys.excepthook)
    levels = {name: logging.getLogger(name).level for name in ("greenswitch", "urllib3", "psycopg.pool", "psycopg")}
    stream = io.StringIO()
    log.setup("listen", "INFO", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]
    root.handlers[:], sys.excepthook = before[0], before[2]
    root.setLevel(before[1])
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    del hub.print_exception


def test_a_line_says_when_who_what_and_the_fields(logged):
    call = uuid4()
    log.Log("x").info("recording_stored", recording=call, seconds=1.5, name="čšž")
    (line,) = logged()
    assert line.pop("at").endswith("+00:00")
    assert line == {
        "level": "info", "role": "listen", "event": "recording_stored", "recording": str(call), "seconds": 1.5,
        "name": "čšž",
    }  # fmt: skip


def test_every_event_is_one_line_whatever_is_in_its_fields(logged):
    log.Log("x").warning("odd", text="a\nb\r\x1b[31m\u2028", value={"deep": [1, object]})
    (line,) = logged()
    assert line["text"] == "a\nb\r\x1b[31m\u2028"


def test_debug_is_not_shown_at_info(logged):
    log.Log("x").debug("detail")
    assert logged() == []


@pytest.mark.parametrize("level", ["warning", "error"])
def test_a_foreign_error_leaves_its_type_and_place_and_not_its_text(logged, level):
    def inner():
        raise ValueError(f"bad header {NUMBER}")

    try:
        inner()
    except ValueError:
        getattr(log.Log("x"), level)("failed", exc_info=True)
    (line,) = logged()
    assert line["error"] == "ValueError"
    assert "exc_info" not in line
    assert [place.split(":")[0] for place in line["trace"]] == ["test_log.py", "test_log.py"]
    assert NUMBER not in json.dumps(line)


def test_a_greenlet_that_fails_prints_nothing_of_its_error(logged, capfd):
    def fail():
        raise RuntimeError(NUMBER)

    gevent.spawn(fail).join()
    (line,) = logged()
    assert (line["event"], line["error"]) == ("greenlet_failed", "RuntimeError")
    assert NUMBER not in json.dumps(line)
    assert NUMBER not in capfd.readouterr().err


def test_a_process_that_fails_prints_nothing_of_its_error():
    program = f"from callrec import log; log.setup('ship'); raise RuntimeError('{NUMBER}')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    line = json.loads(done.stderr)
    assert (line["event"], line["role"], line["error"]) == ("process_failed", "ship", "RuntimeError")
    assert NUMBER not in done.stderr


def test_greenswitch_and_the_root_logger_are_silent(logged):
    """greenswitch logs event headers, the caller's number among them, through logging's own functions."""
    logging.error("caller %s", NUMBER)  # as greenswitch does
    logging.getLogger("greenswitch").error(NUMBER)
    logging.getLogger("greenswitch.esl").error(NUMBER)
    logging.getLogger("psycopg.pool").warning(NUMBER)
    logging.getLogger("urllib3.connectionpool").warning(NUMBER)
    assert logged() == []


def test_setting_up_again_does_not_double_the_lines(logged):
    stream = io.StringIO()
    log.setup("ship", "INFO", stream)
    log.Log("x").info("once")
    assert len(stream.getvalue().splitlines()) == 1
    assert logged() == []
