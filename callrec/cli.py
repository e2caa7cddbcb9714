"""The command line. Exit status: 0 done, 1 refused or failed (and why on standard error), 2 wrong usage."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, TypeAlias
from uuid import UUID

import gevent

from callrec import __version__, adapters, evidence_cli, ledger_cli, log, rights_cli, storage_cli, tables
from callrec.check import as_json, check, failed, render
from callrec.config import Config, load, parse
from callrec.credentials import generate, generate_ledger_key
from callrec.demo import arguments as demo_arguments
from callrec.errors import CallrecError, WavError
from callrec.output import whole_file
from callrec.process import ROLES
from callrec.prompts import synthesise
from callrec.recording import wav
from callrec.recording.playback import Listening

_CONFIG = "/etc/callrec/callrec.toml"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_MOST_PORT = 65_535

_EPILOG = """\
First steps:
  callrec demo                    see it work, on a private stack of its own
  callrec check -c FILE           what is wrong with a configuration, and how to mend it
  callrec keys                    new keys for one
  callrec prompts, migrate, run   then: speak the notices, make the tables, go

The configuration is FILE, or $CALLREC_CONFIG, or /etc/callrec/callrec.toml. Secrets come from the environment or from
files that it names (callrec.example.toml lists them)."""


def main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    # The commands answer in words of their own: what a library logs on the way is not for the terminal.
    logging.getLogger().addHandler(logging.NullHandler())
    gevent.get_hub().NOT_ERROR += (KeyboardInterrupt,)  # it would print one that comes while we wait
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has every letter
    try:
        status = int(args.run(args) or 0)
        sys.stdout.flush()  # here a closed pipe can still be answered
    except CallrecError as error:
        print(f"callrec: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # of standard output: adapters let no other through
        if hasattr(args, "log_level"):  # a role has no answer
            raise
        if not isinstance(error, BrokenPipeError):  # whoever read the answer has enough of it
            what = error.filename or "The answer can't be written"
            print(f"callrec: {what}. {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="callrec",
        description="Lawful call recording beside FreeSWITCH: announce, ask, record, lock, prove.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"callrec {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _roles(commands)
    _setting_up(commands)
    _looking(commands)
    _calls(commands)
    rights_cli.add_commands(commands, _command)
    storage_cli.add_commands(commands, _command)
    ledger_cli.add_commands(commands, _command)
    evidence_cli.add_commands(commands, _command)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _command(commands: Commands, name: str, run: object, text: str, more: str = "") -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip())
    parser.set_defaults(run=run)
    parser.add_argument(
        "-c", "--config", metavar="FILE", default=os.environ.get("CALLREC_CONFIG", _CONFIG), help="the configuration"
    )
    return parser


def _roles(commands: Commands) -> None:
    run = _command(commands, "run", _run, "run all roles of a node, each a process of its own")
    listen = _command(
        commands, "listen", _listen, "conduct calls", "Needs FreeSWITCH, Postgres and Redis; has no S3 credentials."
    )
    ship = _command(commands, "ship", _ship, "store finished recordings", "Needs the spool, Postgres and S3.")
    sweep = _command(
        commands, "sweep", _sweep, "erase, expire, seal, sign the ledger", "Needs the spool, Postgres, Redis and S3."
    )
    api = _command(commands, "api", _api, "take callbacks", "Needs Postgres; CALLREC_API_TOKENS says who may call.")
    for parser in (run, listen, ship, sweep, api):
        text = "for /metrics, /healthz, /readyz ([http] address); `none` for none"
        parser.add_argument("--http", metavar="HOST:PORT", type=_address, default=(), help=text)
        parser.add_argument("--log-level", default="INFO", choices=_LEVELS, help="the least that is logged (INFO)")


def _setting_up(commands: Commands) -> None:
    judge = _command(commands, "check", _check, "say what is wrong with a configuration, without starting anything")
    judge.add_argument("--json", action="store_true", help="findings as JSON")
    _command(
        commands,
        "migrate",
        _migrate,
        "bring the database up to date",
        "Logs in as the owner, who must be able to create roles and give away a table.",
    )
    prompts = _command(
        commands,
        "prompts",
        _prompts,
        "speak the notices with espeak-ng",
        "Files that are there are kept: replace any of them with a studio recording.",
    )
    prompts.add_argument("-d", "--directory", type=Path, help="where to write, if not [prompts] directory")
    prompts.add_argument("--force", action="store_true", help="overwrite files that are there")
    keys = _command(commands, "keys", _keys, "make new keys", "Says where each belongs; nothing is kept.")
    keys.add_argument("--origin", help="the ledger's name, which its key bears, if not [ledger] origin")
    keys.add_argument("--ledger", action="store_true", help="only a key that signs the ledger, to replace another")


def _looking(commands: Commands) -> None:
    for name, run, text in (
        ("calls", _list_calls, "list calls and how they were decided"),
        ("recordings", _list_recordings, "list recordings, their locks and where they are"),
    ):
        parser = _command(commands, name, run, text)
        parser.add_argument("-n", "--limit", type=rights_cli.count, default=50, help="how many, the latest first (50)")
        parser.add_argument("--json", action="store_true", help="one JSON object a line")
    ledger = _command(commands, "ledger", _ledger, "show what the ledger holds of a call")
    ledger.add_argument("call", help="the call's id, its recording's, or FreeSWITCH's of its channel")
    ledger.add_argument("--json", action="store_true", help="one JSON object a line")
    play = _command(
        commands,
        "play",
        _play,
        "open a recording, for a stated purpose",
        "The listening is in the ledger before the first sample is written. Needs the private key.",
    )
    play.add_argument("recording", type=UUID, help="the recording's id")
    play.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.wav", help="where to write it")
    play.add_argument("-p", "--purpose", required=True, help="what for; the recording's basis says what may be")
    play.add_argument("--account", type=rights_cli.account, help="who listens: an account's id, not a name")


def _calls(commands: Commands) -> None:
    for order, text in (
        ("mask", "silence the recording of a running call from now on"),
        ("unmask", "end the silence"),
        ("stop", "end the recording of a running call and keep it"),
        ("withdraw", "end the recording of a running call and discard it: the caller takes the consent back"),
    ):
        parser = _command(commands, order, _order, text)
        parser.set_defaults(order=order)
        parser.add_argument("call", help="the call's id, its recording's, or FreeSWITCH's of its channel")
    demo = commands.add_parser("demo", help="see it work, on a private stack of its own")
    demo_arguments.add_to(demo)
    demo.set_defaults(run=_demo)


def _load(args: argparse.Namespace, role: str | None = None) -> Config:
    return load(args.config, role=role)


def _address(text: str) -> tuple[str, int] | None:
    if text == "none":
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= _MOST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no address: give HOST:PORT or none")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _http(args: argparse.Namespace, config: Config) -> tuple[str, int] | None:
    return config.http if args.http == () else args.http


def _run(args: argparse.Namespace) -> None:
    from callrec.supervisor import Supervisor

    log.setup("supervisor", args.log_level)
    config = _load(args)
    for role in ROLES:
        load(args.config, role=role)  # say now, and all at once, what a role would miss
    Supervisor(config, _http(args, config), args.log_level).run()


def _listen(args: argparse.Namespace) -> None:
    from callrec import service

    log.setup("listen", args.log_level)
    config = _load(args, "listen")
    service.listen(config, _http(args, config))


def _ship(args: argparse.Namespace) -> None:
    from callrec import service

    log.setup("ship", args.log_level)
    config = _load(args, "ship")
    service.ship(config, _http(args, config))


def _sweep(args: argparse.Namespace) -> None:
    from callrec import service

    log.setup("sweep", args.log_level)
    config = _load(args, "sweep")
    service.sweep(config, _http(args, config))


def _api(args: argparse.Namespace) -> None:
    from callrec import service

    log.setup("api", args.log_level)
    config = _load(args, "api")
    service.api(config, _http(args, config))


def _check(args: argparse.Namespace) -> int:
    findings = check(args.config)
    print(as_json(findings) if args.json else render(findings))
    return int(failed(findings))


def _migrate(args: argparse.Namespace) -> None:
    from callrec.store.db import migrate

    config = _load(args, "owner")
    applied = migrate(config.postgres.url, config.postgres.users["owner"], config.secrets.postgres_password("owner"))
    print("\n".join(f"applied {name}" for name in applied) or "up to date")


def _prompts(args: argparse.Namespace) -> None:
    written = synthesise(_load(args), args.directory, force=args.force)
    print("\n".join(f"wrote {path}" for path in written) or "all prompts are there")


def _keys(args: argparse.Namespace) -> None:
    config = None if args.origin else parse(args.config, {})[0]
    origin = args.origin or (config.ledger.origin if config else "")
    print(generate_ledger_key(origin) if args.ledger else generate(origin))


def _list_calls(args: argparse.Namespace) -> None:
    with adapters.database(_load(args), "api") as store:
        tables.show(store.run("calls", {"limit": args.limit}), tables.CALLS, as_json=args.json)


def _list_recordings(args: argparse.Namespace) -> None:
    with adapters.database(_load(args), "api") as store:
        tables.show(store.run("recordings", {"limit": args.limit}), tables.RECORDINGS, as_json=args.json)


def _ledger(args: argparse.Namespace) -> None:
    with adapters.database(_load(args), "api") as store:
        call = store.one("call_of", {"id": args.call})
        if call is None:
            raise CallrecError("There is no such call", hint="`callrec calls` lists them")
        rows = store.run("ledger_of", {"call_id": call["call_id"]})
        tables.show(rows, tables.LEDGER, as_json=args.json)
        if not args.json and any(row["body"] is None for row in rows):
            print("Bodies that are not shown were kept as long as [evidence] says; their leaves can still be proved.")


def _play(args: argparse.Namespace) -> None:
    config = _load(args)
    listening = Listening(args.recording, args.purpose, args.account or rights_cli.own_account())
    # The place is tried first: a listening that is in the ledger should be one that took place.
    with whole_file(args.output) as out:
        with adapters.player(config) as player:
            for piece in player.open(listening):
                out.write(piece)
        _repair_header(out)
    print(f"wrote {args.output}")


def _repair_header(out: BinaryIO) -> None:
    """The header of an incomplete recording knows no length (recording/segments.py): not every player bears that."""
    size = out.seek(0, os.SEEK_END)
    out.seek(0)
    head = out.read(wav.HEAD_BYTES)
    with suppress(WavError):  # it was kept as it was recorded
        repaired = wav.repaired_header(head, size)
        out.seek(0)
        out.write(repaired)


def _order(args: argparse.Namespace) -> None:
    from callrec.store.orders import carry_out

    with adapters.database(_load(args), "api") as store:
        print(carry_out(store, args.call, args.order))


def _demo(args: argparse.Namespace) -> int:
    from callrec.demo import command

    return command.run(args)
