"""The commands about rights: withdrawals, kinds of call, holds, erasures."""

import argparse
import getpass
import hashlib
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from uuid import UUID

from callrec import adapters, tables
from callrec.call.policy import e164
from callrec.config import Config, load
from callrec.errors import CallrecError
from callrec.rights.disposition import Disposition, Said
from callrec.rights.holds import Cause, HoldReason
from callrec.rights.revocation import Channel, GivenBy, Identification, Person, Proof

if TYPE_CHECKING:
    from callrec.rights.desk import Desk
    from callrec.store.db import Database

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Command: TypeAlias = Callable[..., argparse.ArgumentParser]

_LONGEST_REASON = 400
_MOST_ROWS = 1_000_000


def add_commands(commands: Commands, command: Command) -> None:
    """Add the commands. `command(commands, name, run, text, more)` makes one of them."""
    _revocations(commands, command)
    _holds(commands, command)
    _erasures(commands, command)
    _lookup_keys(commands, command)


def _revocations(commands: Commands, command: Command) -> None:
    more = "All of the caller's consent recordings are erased, or the one named; never those kept by law."
    revoke = command(commands, "revoke", _revoke, "take a withdrawal of consent in", more)
    what = revoke.add_mutually_exclusive_group(required=True)
    what.add_argument("--number", help="the caller's number")
    what.add_argument("--call", type=UUID, help="the call's id")
    what.add_argument("--recording", type=UUID, help="this one recording alone")
    what.add_argument("--code", help="the reference code of a caller whose number was withheld")
    revoke.add_argument("--channel", required=True, choices=list(Channel), help="how it arrived")
    revoke.add_argument(
        "--received-at", type=_time, help="when it arrived at the operator, by its clocks unless it has an offset (now)"
    )
    revoke.add_argument("--proof", action="append", default=[], choices=list(Proof), help="what shows who asks")
    revoke.add_argument("--given-by", default="self", choices=list(GivenBy), help="who asks (self)")
    revoke.add_argument("--on-behalf-of", default="", help="a reference for the child, where a parent or guardian asks")
    revoke.add_argument("--evidence", type=Path, help="the letter or e-mail: its SHA-256 is kept, nothing else")
    identify = command(commands, "identify", _identify, "say how far the person of a withdrawal is known")
    identify.add_argument("revocation", type=UUID, help="its id, as revoke gave it")
    identify.add_argument("identification", choices=list(Identification), help="how far the person is known now")
    dispose = command(commands, "dispose", _dispose, "say what kind of call it was")
    dispose.add_argument("recording", type=UUID, help="the recording's id")
    dispose.add_argument("disposition", choices=list(Disposition), help="what kind it was")
    dispose.add_argument("--minor", action="store_true", help="the caller is under age")
    dispose.add_argument("--guardian-consent", default="", help="reference of the guardian's written consent")


def _holds(commands: Commands, command: Command) -> None:
    hold = command(commands, "hold", _hold, "keep a recording from erasure and listening, for a case")
    hold.add_argument("recording", type=UUID, help="the recording's id")
    hold.add_argument("--reason", required=True, choices=list(HoldReason), help="why it has to stay")
    hold.add_argument("--case", required=True, help="the file's reference; no name, no number")
    hold.add_argument("--owner", type=account, help="who answers for it: an account's id (you)")
    hold.add_argument("--review-at", required=True, type=_time, help="when it is looked at again")
    release = command(commands, "release", _release, "end a hold; what was due goes on")
    release.add_argument("hold", type=UUID, help="its id, as hold gave it")
    release.add_argument("--why", required=True, help="why it ends; kept beside the hold")
    release.add_argument("--person-told-at", type=_time, help="when the person who asked for the restriction was told")
    listed = command(commands, "holds", _list_holds, "list the holds that stand, those to be reviewed soonest first")
    listed.add_argument("--json", action="store_true", help="one JSON object a line")


def _erasures(commands: Commands, command: Command) -> None:
    more = "One recording, or all that the conditions cover (an authority's order): say their number with --confirm."
    erase = command(commands, "erase", None, "have recordings erased before their date", more)
    erase.set_defaults(run=partial(_erase, erase))
    erase.add_argument("recording", type=UUID, nargs="?", help="this one alone")
    erase.add_argument("--line", help="of this line")
    erase.add_argument("--basis", help="on this legal basis")
    erase.add_argument("--disposition", choices=[*Disposition, "none"], help="of this kind of call")
    erase.add_argument("--since", type=_time, help="that began at or after")
    erase.add_argument("--until", type=_time, help="that began before")
    causes = ["no_longer_needed", "order"]
    erase.add_argument("--cause", default=causes[0], choices=causes, help=f"why ({causes[0]})")
    erase.add_argument("--confirm", type=int, metavar="COUNT", help="without it nothing is done but counting")
    listed = command(commands, "erasures", _list_erasures, "list erasures: due, waiting, done")
    listed.add_argument("-n", "--limit", type=count, default=50, help="how many, the latest first (50)")
    listed.add_argument("--json", action="store_true", help="one JSON object a line")
    adopt = command(
        commands, "adopt", _adopt, "take over the recordings of a node that does not come back",
        "A node erases its own recordings alone. What the lost one had not stored is gone with its disk, but for what "
        "had left it during the call.",
    )  # fmt: skip
    adopt.add_argument("node", help="the lost node's name; it must never run again under that name")
    adopt.add_argument("--confirm", type=int, metavar="COUNT", help="without it nothing is done but counting")
    command(
        commands, "replay-erasures", _replay, "after a database was restored: erase again the keys that came back",
        "Run it before anything else is started.",
    )  # fmt: skip
    accept = command(
        commands, "accept-restore", _accept_restore,
        "after a database was restored: have the ledger signed on, without what was lost",
        "Until then nothing is signed. What was lost, who accepts it and why is an entry; the ledger goes on as its"
        " next generation, which every inspector sees. Needs what sweep has.",
    )  # fmt: skip
    accept.add_argument("--reason", required=True, type=_reason, help="what happened; no name, no number")
    accept.add_argument("--account", type=account, help="who accepts it: an account's id (you)")
    accept.add_argument("--confirm", type=int, metavar="COUNT", help="without it nothing is done but counting")


def _lookup_keys(commands: Commands, command: Command) -> None:
    keys = command(
        commands, "lookup-keys", _list_lookup_keys, "list the look-up keys: which is needed, which can be destroyed",
        "Numbers and reference codes are found under CALLREC_LOOKUP_KEY. To replace it write EPOCH:KEY pairs, the old "
        "key and a new one of the next epoch: 1:OLD,2:NEW. Give them to `api` first, then to `listen`, which writes "
        "under the newest. When nothing is found under the old key any more, this says so. Exit status 1: a key is "
        "missing, and callers can't be found.",
    )  # fmt: skip
    keys.add_argument("--json", action="store_true", help="one JSON object a line")


def count(text: str) -> int:
    """How many, as an argument."""
    if not text.isdecimal() or not 0 < int(text) <= _MOST_ROWS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_MOST_ROWS}")
    return int(text)


def account(text: str) -> str:
    """An account's id, as an argument."""
    if not re.fullmatch(r"[\w.@+-]{1,64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no account: 1 to 64 letters, digits and . _ @ + -")
    return text


def own_account() -> str:
    """Who runs this command: an account's id."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return str(os.getuid())


def _reason(text: str) -> str:
    if not 0 < len(text.strip()) <= _LONGEST_REASON or not text.isprintable():
        raise argparse.ArgumentTypeError(f"it takes 1 to {_LONGEST_REASON} letters on one line")
    return text.strip()


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2026-12-24T10:00:00+01:00") from None


def _desk(args: argparse.Namespace) -> tuple[Config, "Database", "Desk"]:
    config = load(args.config)
    for name, value in vars(args).items():
        if isinstance(value, datetime) and value.tzinfo is None:  # days count in the operator's zone, not in the host's
            setattr(args, name, value.replace(tzinfo=config.operator.zone))
    store = adapters.database(config, "api")
    return config, store, adapters.desk(config, store)


def _revoke(args: argparse.Namespace) -> None:
    from callrec.rights.desk import Intake

    config, store, desk = _desk(args)
    number = e164(args.number, config.operator.country) if args.number else ""
    if args.number and not number:
        raise CallrecError("That is no telephone number", hint="Give it as +386…, or as it is dialled in the country")
    evidence = None
    if args.evidence:
        try:
            evidence = hashlib.sha256(args.evidence.read_bytes()).digest()
        except OSError as error:
            raise CallrecError(f"{args.evidence} can't be read", detail=error.strerror or "") from None
    intake = Intake(
        channel=Channel(args.channel), received_at=args.received_at or datetime.now(UTC), number=number or "",
        call_id=args.call, recording_id=args.recording, code=args.code or "",
        proofs=[Proof(proof) for proof in args.proof], by=Person(GivenBy(args.given_by), args.on_behalf_of),
        evidence_sha256=evidence,
    )  # fmt: skip
    with store:
        answer = desk.revoke(intake)
    local = answer.deadline.astimezone(config.operator.zone)
    print(f"revocation {answer.revocation_id}")
    print(f"identification {answer.identification.value}; to be carried out by {local:%A, %d %B %Y %H:%M:%S}")
    for decision in answer.decisions:
        print(f"{decision.recording_id}  {decision.fate.value:<12} {decision.why.says}")
    print(f"{len(answer.decisions)} recordings")


def _identify(args: argparse.Namespace) -> None:
    _, store, desk = _desk(args)
    with store:
        for decision in desk.identify(args.revocation, Identification(args.identification), own_account()):
            print(f"{decision.recording_id}  {decision.fate.value:<12} {decision.why.says}")


def _dispose(args: argparse.Namespace) -> None:
    _, store, desk = _desk(args)
    said = Said(Disposition(args.disposition), args.minor, args.guardian_consent)
    with store:
        outcome = desk.dispose(args.recording, said, own_account())
    print(type(outcome).__name__.lower())


def _hold(args: argparse.Namespace) -> None:
    _, store, desk = _desk(args)
    owner = args.owner or own_account()
    with store:
        hold = desk.hold(args.recording, HoldReason(args.reason), case=args.case, owner=owner, review_at=args.review_at)
    print(f"hold {hold.id}, to be reviewed by {hold.review_at.isoformat()}")


def _release(args: argparse.Namespace) -> None:
    _, store, desk = _desk(args)
    with store:
        recording = desk.release(args.hold, args.why, own_account(), args.person_told_at)
    print(f"released; recording {recording}")


def _list_holds(args: argparse.Namespace) -> None:
    with adapters.database(load(args.config), "api") as store:
        tables.show(store.run("standing_holds", {"limit": 10_000}), tables.HOLDS, as_json=args.json)


def _erase(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    conditions = [args.line, args.basis, args.disposition, args.since, args.until]
    if bool(args.recording) == any(condition is not None for condition in conditions):
        parser.error("say what to erase: one recording, or conditions")
    config, store, desk = _desk(args)
    cause, account = Cause(args.cause), own_account()
    with store:
        records = adapters.rights(config, store)
        found = [args.recording] if args.recording else records.bulk(
            line=args.line, basis=args.basis, disposition=args.disposition, since=args.since, until=args.until
        )  # fmt: skip
        if args.recording is None and args.confirm != len(found):
            print(f"{len(found)} recordings; nothing was done. To erase them: --confirm {len(found)}")
            return 0 if args.confirm is None else 1
        due = refused = 0
        for at, recording in enumerate(found, 1):
            try:
                due += desk.erase(recording, cause, account)
            except CallrecError as error:
                refused += 1
                print(f"{recording}: {error}", file=sys.stderr)
            if at % 1000 == 0:
                print(f"{at} of {len(found)}", file=sys.stderr)
    print(f"{due} due for erasure, {len(found) - due - refused} were already, {refused} refused")
    return int(bool(refused))


def _list_erasures(args: argparse.Namespace) -> None:
    with adapters.database(load(args.config), "sweep") as store:
        tables.show(store.run("erasures", {"limit": args.limit}), tables.ERASURES, as_json=args.json)


def _adopt(args: argparse.Namespace) -> int:
    config = load(args.config)
    if args.node == config.node:
        raise CallrecError("That is this node", hint="Run it on the node that takes over")
    with adapters.database(config, "sweep") as store:
        records = adapters.rights(config, store)
        stored, unstored = records.leaves(args.node)
        print(f"{args.node} leaves {stored} stored recordings, and {unstored} that only its disk had")
        if args.confirm != stored + unstored:
            print(f"Nothing was done. To take them over: --confirm {stored + unstored}")
            return 0 if args.confirm is None else 1
        adopted = 0
        while taken := records.adopt(args.node):
            adopted += taken
            print(f"{adopted} of {stored + unstored}", file=sys.stderr)
        records.gone(args.node)
    print(f"{adopted} taken over by {config.node}")
    return 0


def _replay(args: argparse.Namespace) -> None:
    from callrec.rights.erasure import erased_before

    config = load(args.config)
    bucket = adapters.objects(config, "sweep")
    try:
        erased = erased_before(bucket)
    finally:
        bucket.close()
    with adapters.database(config, "sweep") as store:
        again = adapters.rights(config, store).replay_erasures(erased)
    print(f"{len(again)} recordings had come back; their keys are gone again, and the sweeper looks for the rest")


def _accept_restore(args: argparse.Namespace) -> int:
    from callrec.ledger.restore import Restore
    from callrec.store.reading import LedgerReading

    config = load(args.config, role="sweep")
    with adapters.database(config, "sweep") as store:
        records = LedgerReading(store)
        anchored = adapters.anchors(config, records)
        if anchored is None:
            raise CallrecError(
                "No checkpoints are kept in S3", hint="Without [storage.checkpoints] nothing was refused"
            )
        signing = config.ledger
        restore = Restore(
            records, adapters.rights(config, store), anchored, signing.lineage, signing.signers(config.secrets)
        )
        loss = restore.loss()
        kept = f"its last checkpoint has {loss.kept.size}" if loss.kept else "it has no checkpoint"
        print(f"{loss.anchored.size} entries were anchored; the database contradicts that, and {kept}")
        print(f"{loss.entries} signed entries are lost at least")
        if args.confirm != loss.entries:
            print(f"Nothing was done. To sign the ledger on without them: --confirm {loss.entries}")
            return 0 if args.confirm is None else 1
        signed = restore.accept(loss, args.reason, args.account or own_account())
    print(f"signed on as {signing.lineage.name(signed.generation)}, with {signed.size} entries")
    return 0


def _list_lookup_keys(args: argparse.Namespace) -> int:
    config = load(args.config)
    given = config.secrets.lookup_keys("api").epochs
    with adapters.database(config, "api") as store:
        found = {row["epoch"]: row for row in adapters.rights(config, store).lookup_epochs()}
    rows = [
        {"epoch": epoch, "callers": 0, "codes": 0} | found.get(epoch, {}) | {"state": _key_state(epoch, given, found)}
        for epoch in sorted({*given, *found})
    ]
    tables.show(rows, tables.EPOCHS, as_json=args.json)
    return int(any(epoch not in given for epoch in found))


def _key_state(epoch: int, given: Sequence[int], found: Collection[int]) -> str:
    if epoch not in given:
        return "missing: these can't be found"
    if epoch == given[0]:
        return "newest: written with from now on"
    return "needed" if epoch in found else "can be destroyed"
