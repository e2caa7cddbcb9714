"""The simulated FreeSWITCH as a program that tells each fact when it happens, and keeps every tape.

Line-JSON. In: {"place": {script}, "id": n}. Out: {"id": n, "channel": …, "at": seconds since the
epoch, "fact": [...]}; the last fact of a call is ["over"]. Every file that it records into gets a second name in
--tapes, so that what was said can be compared with what is stored, whoever removes the first.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402 # after the patch
import gc  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from contextlib import suppress  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402

from callrec.demo.call import SimCall  # noqa: E402
from callrec.demo.caller import from_json  # noqa: E402
from callrec.demo.switch import Switch  # noqa: E402

numbers: dict[str, int] = {}  # of calls, by channel
tell_in_own_time = SimCall.fact


def say(line: dict) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def tell(call: SimCall, *what: str | float) -> None:
    at = time.time()
    tell_in_own_time(call, *what)
    if what[0] == "recording":
        with suppress(FileExistsError):
            os.link(what[1], options.tapes / Path(what[1]).name)
    say({"id": numbers.get(call.uuid), "channel": call.uuid, "at": at, "fact": what})


def follow(call: SimCall) -> None:
    call.result(3600)
    say({"id": numbers[call.uuid], "channel": call.uuid, "at": time.time(), "fact": ["over"]})


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--listener", type=address, required=True)
parser.add_argument("--event-socket", type=address, required=True)
parser.add_argument("--speed", type=float, required=True)
parser.add_argument("--tapes", type=Path, required=True)
options = parser.parse_args()
SimCall.fact = tell
switch = Switch(
    listener=options.listener, event_socket=options.event_socket, speed=options.speed,
    password=os.environ["CALLREC_EVENT_SOCKET_PASSWORD"],
)  # fmt: skip
switch.start()
gc.freeze()
gc.set_threshold(20_000)
say({"ready": os.getpid()})
for text in FileObject(sys.stdin.fileno(), "r", close=False):
    command = json.loads(text)
    placed = switch.place(from_json(command["place"]))
    numbers[placed.uuid] = command["id"]
    gevent.spawn(follow, placed)
switch.stop()
