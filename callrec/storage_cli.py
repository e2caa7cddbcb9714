"""The commands about the object store: its buckets, their lifecycle, and whether it keeps its word."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from callrec import adapters
from callrec.config import Config, load

if TYPE_CHECKING:
    from callrec.recording.bucket import Difference, Plan
    from callrec.recording.lifecycle import Drift
    from callrec.recording.objects import S3Objects
    from callrec.recording.probe import Finding, Note

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Command: TypeAlias = Callable[..., argparse.ArgumentParser]

_WIDTH = 160  # where there is no terminal


def add_commands(commands: Commands, command: Command) -> None:
    """Add `storage`, `lifecycle` and `worm-probe`. `command(commands, name, run, text, more)` makes one of them."""
    storage = _group(commands, "storage", "set up the buckets, or compare them with the plan")
    more = (
        "Needs CALLREC_S3_ACCESS_KEY_ADMIN and CALLREC_S3_SECRET_KEY_ADMIN. Adds what is missing and weakens nothing."
    )
    command(storage, "init", _init, "create the buckets with lock, default retention, lifecycle and policies", more)
    judge = command(storage, "check", _check, "say what is not as planned (exit status 1)", more.partition(" Adds")[0])
    net = _group(commands, "lifecycle", "the rules that remove what the sweeper forgot, long after it was due")
    show = command(net, "show", _show, "list the rules that the bucket has")
    put = command(net, "apply", _apply, "write the rules; those of others stay")
    put.add_argument("--shorten", action="store_true", help="let rules wait less than they do now")
    drift = command(net, "check", _drift, "say which rules are missing, changed or foreign (exit status 1)")
    worm = command(
        commands,
        "worm-probe",
        _probe,
        "try to delete, shorten and downgrade locked canaries",
        "Exit status 1 when the store does not keep its locks. Needs the credential of sweep.",
    )
    worm.add_argument("--wait", action="store_true", help="wait a minute for the end of a lock and see the canary go")
    for parser in (judge, show, drift, worm):
        parser.add_argument("--json", action="store_true", help="as JSON")


def _group(commands: Commands, name: str, text: str) -> Commands:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


# What each works on


def _plans(config: Config) -> list["Plan"]:
    from callrec.recording import bucket

    storage = config.storage
    https = urlsplit(storage.endpoint).scheme == "https"
    plans = [bucket.recordings(storage.bucket, config.bases.values(), storage.principals, https=https)]
    if storage.checkpoints:
        kept = storage.checkpoints
        plans.append(bucket.checkpoints(kept.bucket, kept.years, storage.principals, https=https))
    return plans


@contextmanager
def _objects(config: Config, role: str, name: str | None = None) -> Iterator["S3Objects"]:
    from callrec.recording.objects import S3Objects

    access_key, secret_key = config.secrets.s3_keys(role)
    storage = config.storage
    objects = S3Objects(
        endpoint=storage.endpoint,
        region=storage.region,
        bucket=name or storage.bucket,
        access_key=access_key,
        secret_key=secret_key,
    )
    try:
        yield objects
    finally:
        objects.close()


def _reader(config: Config) -> str:
    """Who looks at rules: the administrator where his keys are given, otherwise sweep, who may."""
    return "admin" if config.secrets.given("CALLREC_S3_ACCESS_KEY_ADMIN") else "sweep"


# The commands


def _init(args: argparse.Namespace) -> int:
    from callrec.recording import bucket

    config = load(args.config, role="admin")
    differing: list[Difference] = []
    for plan in _plans(config):
        with _objects(config, "admin", plan.bucket) as objects:
            done, left = bucket.set_up(objects, plan)
        _say(done or [f"{plan.bucket} was as planned" if not left else f"nothing changed in {plan.bucket}"])
        differing += left
    if not config.storage.principals:
        _say(["no policies: [storage.principals] is not set"])
    _differences(differing)
    return int(bool(differing))


def _check(args: argparse.Namespace) -> int:
    from callrec.recording import bucket

    config = load(args.config, role="admin")
    found: dict[str, list[Difference]] = {}
    for plan in _plans(config):
        with _objects(config, "admin", plan.bucket) as objects:
            found[plan.bucket] = bucket.compare(objects, plan)
    if args.json:
        _json({name: [asdict(each) for each in differing] for name, differing in found.items()})
    else:
        for name, differing in found.items():
            _say([f"{name} is as planned"] if not differing else [f"{name}:"])
            _differences(differing)
    return int(any(found.values()))


def _show(args: argparse.Namespace) -> None:
    from callrec.recording import lifecycle

    config = load(args.config)
    with _objects(config, _reader(config)) as objects:
        rules = lifecycle.read(objects)
    if args.json:
        _json([asdict(rule) for rule in rules])
    else:
        _table(("rule", "what it does"), ((rule.id, str(rule)) for rule in rules))


def _apply(args: argparse.Namespace) -> int:
    from callrec.recording import lifecycle

    config = load(args.config, role="admin")
    with _objects(config, "admin") as objects:
        left = lifecycle.apply(objects, lifecycle.rules(config.bases.values()), shorten=args.shorten)
    return _drifted(left)


def _drift(args: argparse.Namespace) -> int:
    from callrec.recording import lifecycle

    config = load(args.config)
    with _objects(config, _reader(config)) as objects:
        found = lifecycle.check(objects, lifecycle.rules(config.bases.values()))
    if args.json:
        _json([asdict(each) for each in found])
        return int(bool(found))
    return _drifted(found)


def _drifted(found: list["Drift"]) -> int:
    if not found:
        _say(["the rules are as they should be"])
        return 0
    rows = ((each.rule, each.wanted, each.found, "dangerous" if each.dangerous else "") for each in found)
    _table(("rule", "wanted", "found", ""), rows)
    return 1


def _probe(args: argparse.Namespace) -> int:
    from callrec.recording.probe import probe

    config = load(args.config)
    with _objects(config, "sweep") as objects, _ledger(config) as note:
        report = probe(objects, note=note, wait=args.wait)
    if args.json:
        _json(report.as_record())
    else:
        rows = ((each.check, each.expected, each.found, _verdict(each)) for each in report.findings)
        _table(("check", "expected", "found", ""), rows)
        kept = f"{report.bucket} keeps its word"
        _say([kept if report.passed else f"{report.bucket} fails {len(report.failures)} checks"])
    return int(not report.passed)


@contextmanager
def _ledger(config: Config) -> Iterator["Note | None"]:
    """What notes it in the ledger and for `listen`; nothing where sweep's database password is not given here."""
    if not config.secrets.given("CALLREC_POSTGRES_PASSWORD_SWEEP"):
        yield None
        return
    with adapters.database(config, "sweep", size=1) as store:
        records = adapters.rights(config, store)

        def note(kind: str, body: Mapping[str, Any]) -> None:
            records.entry(kind, body)
            records.storage_probed(body)

        yield note


# What people and scripts see


def _verdict(finding: "Finding") -> str:
    if not finding.judged:
        return "for information"
    return "passed" if finding.passed else "FAILED"


def _differences(differing: Iterable["Difference"]) -> None:
    rows = [
        (each.what, each.wanted, each.found, "storage init" if each.mendable else "decide yourself")
        for each in differing
    ]
    if rows:
        _table(("what", "wanted", "found", "mended by"), rows)


def _table(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))  # a rule's name or a server's word is no markup
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")


def _json(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
