"""greenswitch 0.0.19 as it comes: its own outbound server, playing the bench's dialogue, with no store behind it.

The dialogue is callrec's as far as its API goes: answer, prompt, key, prompt, key, uuid_record, resume, exit. It starts
the recording on the key alone: nothing is proved, noted, or shown to anybody.
"""

import argparse
import logging
import sys

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402 # after the patch
from gevent.queue import Queue  # noqa: E402
from greenswitch.esl import OutboundESLServer  # noqa: E402

_KEY = 10.0  # seconds to wait for one


def application(notice: str, question: str, spool: str):
    """The class that greenswitch's server makes one of for each call."""

    class Interview:
        def __init__(self, session):
            self.session = session
            self.keys = Queue()
            session.register_handle("DTMF", lambda event: self.keys.put(event.headers.get("DTMF-Digit")))

        def run(self):
            session = self.session
            session.linger(10)
            session.myevents()
            session.answer()
            session.call_command("set", "playback_terminators=none")
            session.playback(notice)
            self.keys.get(timeout=_KEY)
            session.playback(question)
            self.keys.get(timeout=_KEY)
            session.send(f"api uuid_record {session.uuid} start {spool}/{session.uuid}.wav 0 {{RECORD_STEREO=true}}")
            session.send("resume")  # `exit` follows from the server, when this returns

    return Interview


def main():
    parser = argparse.ArgumentParser(description="Stock greenswitch's outbound server, for tests/bench/run.py")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--notice", required=True)
    parser.add_argument("--question", required=True)
    parser.add_argument("--spool", required=True)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # it logs each call's number
    interview = application(options.notice, options.question, options.spool)
    server = OutboundESLServer("127.0.0.1", options.port, interview, max_connections=10_000)
    gevent.get_hub().NOT_ERROR += (BrokenPipeError, ConnectionResetError)  # a caller who hangs up is no traceback
    gevent.spawn(_announce, server)
    server.listen()


def _announce(server):
    while not server._running:
        gevent.sleep(0.01)
    sys.stdout.write("listening\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
