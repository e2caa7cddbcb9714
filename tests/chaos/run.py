"""The failure matrix: every fault of every target, while calls are in every phase, and what was read back afterwards.

    make chaos    or    .venv/bin/python tests/chaos/run.py [--only TARGET:FAULT ...] [--json] [--node-kills N]

Boots a private stack (real Postgres, Redis, Ceph RGW), all roles of callrec and the simulated switch, each in processes
of its own. For each target and fault some 30 calls are placed so that when the fault strikes there are some in every
phase, and recordings are being erased; the fault lasts 3 s, is healed, everything is awaited, and each call is read
back: did the caller reach an agent in time; is what FreeSWITCH wrote stored, once, locked, byte for byte; was its basis
durable before the first sample; is anything left of what was withdrawn.

A cell is red, and the exit status 1, if a caller got lost or heard nothing for too long, a recording or a second of
audio was lost, a sample had no basis, or anything was left; a `?` is a phase that had no call when the fault struck. An
experiment takes 10 to 70 s, all of them a quarter of an hour; one that does not come to rest is red after 150 s more.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402 # after the patch
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from dataclasses import asdict  # noqa: E402
from pathlib import Path  # noqa: E402

from experiment import Laboratory, Outcome, red  # noqa: E402
from faults import FAULTS, TARGETS, senseless  # noqa: E402
from house import House  # noqa: E402
from node_kills import kill_again_and_again  # noqa: E402
from plan import PHASES  # noqa: E402
from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from callrec import log  # noqa: E402

_MARKS = {"well": "[green]+[/]", "red": "[red]X[/]", "unproved": "[yellow]?[/]"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", metavar="TARGET:FAULT",
        help=f"this alone; may be repeated, and either side left out (targets {', '.join(TARGETS)}; "
        f"faults {', '.join(FAULTS)})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object an experiment instead of the matrix")
    parser.add_argument(
        "--node-kills", type=int, default=0, metavar="N", help="instead: kill the whole node N times at random moments"
    )
    parser.add_argument("--seed", type=int, default=None, help="of those moments (default: another each time)")
    options = parser.parse_args()
    chosen = _chosen(parser, options.only)
    log.setup("chaos", os.environ.get("CALLREC_DEMO_LOG", "ERROR"))
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    begun = time.monotonic()
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, _interrupt)  # so that nothing is left running, and no directory

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:6.1f} s[/]  {text}", highlight=False)

    with tempfile.TemporaryDirectory(prefix="callrec-chaos-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)  # Postgres is another user
        os.environ["TMPDIR"] = name  # of a supervisor that is killed, too
        tempfile.tempdir = None
        say("booting the stores and all roles")
        with House(Path(name)) as house:
            if options.node_kills:
                return _kill_nodes(house, options, say)
            return _matrix(house, chosen, options.json, say)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _chosen(parser: argparse.ArgumentParser, only: list[str] | None) -> list[tuple[str, str]]:
    every = [(target, fault) for target in TARGETS for fault in FAULTS]
    if not only:
        return every
    chosen = []
    for text in only:
        target, _, fault = text.partition(":")
        found = [pair for pair in every if target in {"", pair[0]} and fault in {"", pair[1]}]
        if not found:
            parser.error(f"there is no {text!r}: TARGET:FAULT of {', '.join(TARGETS)} and {', '.join(FAULTS)}")
        chosen += found
    return chosen


def _kill_nodes(house: House, options: argparse.Namespace, say) -> int:
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    say(f"killing the whole node {options.node_kills} times, seed {seed}")
    found = kill_again_and_again(house, options.node_kills, seed, say)
    if options.json:
        _out(json.dumps({"kills": options.node_kills, "seed": seed, **asdict(found)}))
    else:
        _out(
            f"{options.node_kills} kills, seed {seed}: {found.recordings} recordings, {found.stored} stored once and "
            f"locked, {found.recordings_lost} lost, {found.audio_lost:.1f} s of audio lost, {found.without_basis} "
            "without a basis"
        )
        _out("\n".join(found.wrong))
    return 1 if found.wrong else 0


def _matrix(house: House, chosen: list[tuple[str, str]], as_json: bool, say) -> int:
    laboratory = Laboratory(house)
    say("calls without a fault, for the experiments to compare with")
    laboratory.warm_up()
    outcomes: list[Outcome] = []
    for number, (target, fault) in enumerate(chosen, 1):
        if why := senseless(house, target, fault):
            outcomes.append(Outcome(target, fault, senseless=why))
        else:
            say(f"{number} of {len(chosen)}: {target} {fault}")
            outcomes.append(laboratory.run(target, fault))
        if as_json:
            _out(json.dumps(asdict(outcomes[-1]) | {"red": outcomes[-1].red}))
        for each in _complaints(outcomes[-1]):
            say(f"      [red]{each}[/]")
    if not as_json:
        out = Console(width=None if sys.stdout.isatty() else 160)
        out.print(_table(outcomes))
        for outcome in outcomes:
            if outcome.senseless:
                out.print(f"-  {outcome.target} {outcome.fault}: {outcome.senseless}", highlight=False)
        if bad := sum(outcome.red for outcome in outcomes):
            out.print(f"[red]{bad} of {len(outcomes)} experiments are red.[/]", highlight=False)
    return int(any(outcome.red for outcome in outcomes))


def _complaints(outcome: Outcome) -> list[str]:
    found = list(outcome.total.wrong)
    if outcome.unsettled:
        found.append(f"after {outcome.settled_after:.0f} s still under way: {outcome.unsettled}")
    if outcome.unproved:
        found.append(f"no call was {' or '.join(outcome.unproved)} when the fault struck: the machine is too busy")
    return found


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(
        title="Each fault of each part, while calls are in every phase", title_justify="left", box=box.SIMPLE_HEAD
    )
    for column in ("", "fault", *PHASES):
        table.add_column(column, no_wrap=True)
    for column in (
        "callers\nlost", "recordings\nlost", "audio\nlost", "without\nbasis", "left of\nwhat goes", "longest\nwait",
        "well\nafter",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    target = ""
    for outcome in outcomes:
        if target not in {"", outcome.target}:
            table.add_section()
        name, target = (outcome.target if outcome.target != target else ""), outcome.target
        if outcome.senseless:
            table.add_row(name, outcome.fault, *["-"] * len(PHASES))
            continue
        total = outcome.total
        table.add_row(
            name, outcome.fault, *(_mark(outcome, phase) for phase in PHASES),
            _figure(total.callers_lost, f" of {total.calls}"),
            _figure(total.recordings_lost, f" of {total.recordings}"), _figure(total.audio_lost, " s"),
            _figure(total.without_basis), _figure(total.left, f" of {total.erased}"),
            f"{total.longest_silence:.1f} s", f"{outcome.settled_after:.0f} s",
        )  # fmt: skip
    return table


def _mark(outcome: Outcome, phase: str) -> str:
    if red(outcome.phases[phase]):
        return _MARKS["red"]
    return _MARKS["unproved" if phase in outcome.unproved else "well"]


def _out(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _figure(value: float, unit: str = "") -> str:
    text = f"{value:.1f}{unit}" if isinstance(value, float) else f"{value}{unit}"
    return f"[red]{text}[/]" if value else text


if __name__ == "__main__":
    sys.exit(main())
