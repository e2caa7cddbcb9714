"""The commands that prove something, or look whether it can be proved."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from callrec import adapters, tables
from callrec.config import load
from callrec.errors import CallrecError, LedgerError
from callrec.ledger import verify as bundles
from callrec.ledger.checkpoint import Lineage
from callrec.ledger.note import Verifier
from callrec.ledger.verdict import Report

if TYPE_CHECKING:
    from callrec.ledger.archive import Archive

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Command: TypeAlias = Callable[..., argparse.ArgumentParser]

_TARDY = 600.0  # seconds after which an entry has to be anchored, unless anchors are rarer by configuration
_MOST_MINUTES = 525_600
_MOST_SHOWN = 1000  # findings

_VERIFY = """\
Of a bundle it says in words what holds, offline; callrec/ledger/verify.py does the same alone, for those who have no
callrec. With --ledger it reads the whole ledger, computes the hash of every entry and the tree over them, and compares
its root with every checkpoint that was anchored in S3: it believes the database nothing, and the bucket nothing but
what a key signed that is given here or in [ledger] verifiers. It says of each claim whether it holds, and names the
first bad entry. A million entries take less than a minute. Needs the credentials of api. Exit status 1 when anything
does not hold."""

_AUDIT = """\
Compares calls, ledger, object store and this node's spool, each way, as `sweep` does every day, and lists what is not
as it must be (exit status 1). Nothing is deleted: an object without a row is put under legal hold, a spool file without
a row is moved to the spool's quarantine. Needs the credentials of sweep."""


def add_commands(commands: Commands, command: Command) -> None:
    """Add the commands. `command(commands, name, run, text, more)` makes one of them."""
    _add_verify(commands, command)
    _add_audit(commands, command)


def _add_verify(commands: Commands, command: Command) -> None:
    verify = command(commands, "verify", None, "say whether a bundle, or the whole ledger, is what was signed", _VERIFY)
    verify.set_defaults(run=partial(_verify, verify))
    verify.add_argument("bundle", nargs="?", type=Path, help="a file that `callrec evidence` wrote: verified offline")
    verify.add_argument("--ledger", action="store_true", help="verify the whole ledger in the database")
    verify.add_argument(
        "--anchors", type=Path, metavar="DIR", help="a copy of the bucket of checkpoints, instead of the bucket"
    )
    verify.add_argument(
        "--key", action="append", type=verifier, metavar="NAME+ID+KEY",
        help="a public key to believe, instead of the configured ones; may be repeated",
    )  # fmt: skip
    verify.add_argument(
        "--anchored-within", type=_minutes, metavar="MINUTES",
        help="how soon an entry has to be anchored (10; with --anchors it does not matter unless this is given)",
    )  # fmt: skip
    verify.add_argument("--json", action="store_true", help="the verdict as one JSON object")


def _add_audit(commands: Commands, command: Command) -> None:
    audit = command(
        commands, "audit", _audit, "say whether everything that must be there is there, and nothing else", _AUDIT
    )
    audit.add_argument(
        "--full", action="store_true", help="look at the lock of every recording, not of the thirtieth whose day it is"
    )
    audit.add_argument("--json", action="store_true", help="one JSON object a finding")


def verifier(text: str) -> Verifier:
    """A public key as an argument."""
    try:
        return Verifier.parse(text)
    except LedgerError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _minutes(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes from 1 to {_MOST_MINUTES}")
    return int(text)


def _verify(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.ledger == bool(args.bundle):
        parser.error("say what to verify: a bundle, or --ledger")
    if args.bundle:
        keys = args.key or load(args.config).ledger.verifiers
        return bundles.main([str(args.bundle), *(f"--key={key}" for key in keys)])
    return _verify_ledger(args)


def _verify_ledger(args: argparse.Namespace) -> int:
    from callrec.ledger.archive import BucketArchive, DirectoryArchive
    from callrec.ledger.examination import Examination
    from callrec.store.reading import LedgerReading

    config = load(args.config)
    lineage = _lineage(args.key) if args.key else config.ledger.lineage
    show = _progress if sys.stderr.isatty() else None
    with ExitStack() as ends:
        archive: Archive | None = None
        tardy = 60.0 * args.anchored_within if args.anchored_within else None
        if args.anchors:
            archive = DirectoryArchive(args.anchors)
        elif config.storage.checkpoints:
            archive = BucketArchive(bucket := adapters.objects(config, "api", config.storage.checkpoints.bucket))
            ends.callback(bucket.close)
            tardy = tardy or max(_TARDY, 2 * config.ledger.anchor_seconds)
        store = ends.enter_context(adapters.database(config, "api"))
        report = Examination(LedgerReading(store), archive, lineage, tardy=tardy, progress=show).run()
    if show:
        sys.stderr.write("\r\033[K")
    if args.json:
        sys.stdout.write(json.dumps({"ledger": lineage.origin, **report.as_record()}, ensure_ascii=False) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in _lines(report, lineage.origin))
    return int(not report.holds)


def _lineage(keys: Sequence[Verifier]) -> Lineage:
    names = {key.name for key in keys}
    if len(names) != 1:
        raise CallrecError("These are keys of several ledgers", hint="Give those of one: a key bears the ledger's name")
    return Lineage(names.pop(), tuple(keys))


def _progress(done: int, size: int) -> None:
    sys.stderr.write(f"\r{done:,} of {size:,} entries\033[K")
    sys.stderr.flush()


def _lines(report: Report, origin: str) -> Iterator[str]:
    yield f"{origin}: {report.entries} entries, {report.anchors} anchors"
    for claim in report.claims.values():
        yield f"{'holds' if claim.holds else 'FAILS'}  {claim.says}"
        yield from (f"       - {against}" for against in claim.against)
        if (more := claim.faults - len(claim.against)) > 0:
            yield f"       - and {more} more"
    if report.bad:
        yield f"The first bad entry: {report.bad[0]}"
    yield "The ledger is what was signed." if report.holds else "The ledger is NOT what was signed, or can't be proved."


def _audit(args: argparse.Namespace) -> int:
    with adapters.audit(load(args.config, role="sweep")) as (audit, records):
        audit.now(full=args.full, say=_say)
        found, many = records.open_findings(_MOST_SHOWN), sum(records.open_kinds().values())
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    tables.show(found, tables.FINDINGS, as_json=args.json)
    if many > len(found):
        sys.stderr.write(f"{many} findings in all: the table audit_finding has them\n")
    elif not found and not args.json:
        sys.stdout.write("everything is there, and nothing else\n")
    return int(bool(found))


def _say(counts: Mapping[str, int]) -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r" + "   ".join(f"{name} {count:,}" for name, count in counts.items()))
        sys.stderr.flush()
