"""What `callrec demo` is told. Apart from the command, whose libraries no other command is to wait for."""

import argparse

from callrec.demo.scenarios import SCENARIOS

_DESCRIPTION = """\
Boots Postgres, Redis and an S3 server (Ceph RGW) in a directory of its own, starts callrec on them, places one call for
each scenario through a simulated FreeSWITCH, and then reads back what is there. Exit status 1 if anything differs from
what the law demanded.

Stores given by CALLREC_DEMO_POSTGRES_URL, CALLREC_DEMO_REDIS_URL and CALLREC_DEMO_S3_ENDPOINT, _ACCESS_KEY, _SECRET_KEY
are used instead of booting them."""


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = ", ".join(scenario.name for scenario in SCENARIOS)
    parser.add_argument("--scenario", metavar="NAME", action="append", help=f"only this one; may be repeated ({names})")
    parser.add_argument("--json", action="store_true", help="one JSON object a call instead of the table")
    parser.add_argument(
        "--serve", action="store_true", help="boot, print where everything is as one JSON line, and stay"
    )
    parser.add_argument("--event-socket", metavar="HOST:PORT", help="with --serve: a real FreeSWITCH's event socket")
    parser.add_argument("--password", default="", help="with --event-socket: its password")
