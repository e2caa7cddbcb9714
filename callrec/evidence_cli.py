"""The command that puts the proof of one call into a file."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from callrec import adapters
from callrec.config import Config, load
from callrec.errors import CallrecError
from callrec.ledger.caller import commitment
from callrec.ledger_cli import verifier
from callrec.output import whole_file
from callrec.recording import envelope
from callrec.rights_cli import account, own_account

if TYPE_CHECKING:
    from callrec.store.evidence import Case

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Command: TypeAlias = Callable[..., argparse.ArgumentParser]


def add_commands(commands: Commands, command: Command) -> None:
    """Add the commands. `command(commands, name, run, text, more)` makes one of them."""
    evidence = command(
        commands, "evidence", _evidence, "put all that proves one call into a file that verifies offline",
        "That it was asked for is in the ledger before anything is written. Needs the credentials of api, the private "
        "key, and a running `sweep`, which signs the ledger.",
    )  # fmt: skip
    evidence.add_argument("call", help="the call's id, its recording's, or FreeSWITCH's of its channel")
    evidence.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.zip", help="where to write it")
    evidence.add_argument("-p", "--purpose", required=True, help="what for: as for `callrec play`")
    evidence.add_argument("--account", type=account, help="who asks: an account's id, not a name (you)")
    more = "for the person who called alone: with the number; needs sweep's password for Postgres"
    evidence.add_argument("--with-number", action="store_true", help=more)
    more = "a public key that the file must verify by (those of the configuration)"
    evidence.add_argument("--key", action="append", type=verifier, metavar="NAME+ID+KEY", help=more)


def _evidence(args: argparse.Namespace) -> None:
    from callrec.ledger.bundle import Request

    config = load(args.config)
    request = Request(args.call, args.purpose, args.account or own_account())
    opening = (lambda case: _opening(config, case)) if args.with_number else None
    trusted = args.key or config.ledger.verifiers
    with whole_file(args.output) as out, adapters.exporter(config, trusted) as exporter:
        exporter.export(request, out, opening)
    print(f"wrote {args.output}, and verified it")


def _opening(config: Config, case: "Case") -> Mapping[str, str]:
    """What shows whose call it was. `sweep` may read the caller's row, and `api` opens it: neither can do both."""
    from callrec.store.evidence import caller_of

    with adapters.database(config, "sweep") as store:
        found = caller_of(store, case.call_id)
    if found is None:
        raise CallrecError(
            "The number of this call is not known", detail="It was withheld, was never kept, or is erased"
        )
    salt, sealed = found
    number = envelope.unseal(sealed, config.secrets.private_key()).decode()
    return {"number": number, "salt": salt.hex(), "commitment": commitment(number, salt)}
