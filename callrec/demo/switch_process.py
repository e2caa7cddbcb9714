"""The simulated switch in a process of its own: line-JSON in, line-JSON out. What `python -m callrec.demo.switch` runs.

First line out: {"event_socket": [host, port], "pid": n}. In: {"place": {script}, "id": any}, {"stop": true}; the end of
the input stops it too. Out, one a call: {"id": any, "uuid": …, "timeline": [[seconds, [fact, …]], …]}.
"""

import argparse
import json
import os
import sys
from typing import Any

import gevent
from gevent.fileobject import FileObject

from callrec.demo.caller import from_json
from callrec.demo.channel import SimCall
from callrec.demo.switch import Switch
from callrec.errors import CallrecError

_LONGEST_CALL = 3600.0  # seconds of the wall clock before a call is reported as it stands


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _report(key: object, call: SimCall) -> None:
    try:
        call.result(_LONGEST_CALL)
    except CallrecError:
        pass
    _say({"id": key, "uuid": call.uuid, "timeline": call.timeline})


def main() -> None:
    """Run until the input ends or says stop. The password comes from the environment variable that is named."""
    parser = argparse.ArgumentParser(prog="callrec.demo.switch", description="The simulated FreeSWITCH")
    parser.add_argument("--listener", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--event-socket", type=_address, default=("127.0.0.1", 0), metavar="HOST:PORT")
    parser.add_argument("--password-env", default="CALLREC_EVENT_SOCKET_PASSWORD", metavar="NAME")
    parser.add_argument("--speed", type=float, default=1.0)
    options = parser.parse_args()
    switch = Switch(
        listener=options.listener,
        event_socket=options.event_socket,
        password=os.environ[options.password_env],
        speed=options.speed,
    )
    switch.start()
    _say({"event_socket": switch.event_socket_address, "pid": os.getpid()})
    for text in FileObject(sys.stdin.fileno(), "r", close=False):
        command = json.loads(text)
        if "stop" in command:
            break
        try:
            call = switch.place(from_json(command["place"]))
        except (CallrecError, KeyError, TypeError, ValueError) as problem:
            _say({"id": command.get("id"), "error": str(problem)})
            continue
        gevent.spawn(_report, command.get("id"), call)
    switch.stop()
