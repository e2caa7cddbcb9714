"""How a bucket has to be, how it differs, and what makes it so.

Two buckets: one for the recordings, and one for the ledger's checkpoints, where COMPLIANCE is the default of every
object. Four credentials with no more than their work needs:

    ship        puts and locks; can't delete, bypass, hold or publish
    sweep       deletes with bypass, seals, holds; puts nothing but the probe's canaries and the names of what it erased
    api         reads
    checkpoint  puts checkpoints and reads them; nothing there can be deleted by anyone before its time

What is allowed is not enough: whoever puts an object owns it on some servers, and may then do with it what no policy
allowed (Ceph RGW: place a hold, change the ACL, clear a lock with the bypass header). So each credential is denied, by
name of the action, what is not its work. Deny with NotAction says the same in one line, but Ceph RGW ignores it. Which
conditions a server enforces differs, too: docs/object-stores.md.

Setting up only adds. A lock never becomes weaker, and statements and rules that somebody else wrote stay; what stands
in the way of the plan and can't be had by adding is named, for a person to decide.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minio.objectlockconfig import DAYS, YEARS

from callrec.call.policy import ERASED_PREFIX, PROBE_PREFIX, SEGMENTS_PREFIX, Basis, BasisKind, LockMode
from callrec.errors import StorageError
from callrec.recording import lifecycle
from callrec.recording.lifecycle import NetRule, longest_days
from callrec.recording.objects import BucketFacts, DefaultRetention, S3Objects
from callrec.recording.transport import refused

_LOOK = ("ListBucket", "ListBucketVersions", "GetBucketVersioning", "GetBucketObjectLockConfiguration")
_READ = ("GetObject", "GetObjectVersion", "GetObjectRetention", "GetObjectLegalHold")
_PUT = ("PutObject", "PutObjectRetention", "AbortMultipartUpload")
_DELETE = ("DeleteObject", "DeleteObjectVersion")
_BYPASS, _HOLD = ("BypassGovernanceRetention",), ("PutObjectLegalHold",)
_PUBLISH = ("PutObjectAcl", "PutObjectVersionAcl", "PutBucketAcl")
_SETTINGS = (
    "DeleteBucket", "DeleteBucketPolicy", "PutBucketPolicy", "PutBucketVersioning", "PutBucketObjectLockConfiguration",
    "PutLifecycleConfiguration",
)  # fmt: skip
_PUBLIC = ["authenticated-read", "public-read", "public-read-write"]
_SEALING = {"StringEquals": {"s3:object-lock-mode": LockMode.COMPLIANCE.value}}
_OURS = "Callrec"
_NO_POLICY = "NoSuchBucketPolicy"
_YEAR, _MONTH = 365, 28  # days, the fewest
_DEFAULT_DAYS = 1  # covers the moment between the end of an upload in parts and the lock of its version

Statement = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one bucket should be. Without principals there are no statements, and its policy is left as it is."""

    bucket: str
    default: DefaultRetention
    statements: tuple[Statement, ...]
    rules: tuple[NetRule, ...]
    most_days: int | None = None  # of the default; None where it may be as long as it likes


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as planned. `mendable`: set_up() can change it without weakening anything."""

    what: str
    wanted: str
    found: str
    mendable: bool = True


def recordings(bucket: str, bases: Collection[Basis], principals: Mapping[str, str], *, https: bool = True) -> Plan:
    """The plan of the recordings' bucket. `principals`: the ARN of each of ship, sweep and api, or none at all."""
    default = DefaultRetention(LockMode.GOVERNANCE, _DEFAULT_DAYS)
    statements = tuple(_recordings_policy(bucket, bases, principals, https=https)) if principals else ()
    # An upload in parts ends under the default, and `ship` can't shorten that to the period of the basis.
    most = min((_MONTH * (12 * each.retention.years + each.retention.months) for each in bases), default=None)
    return Plan(bucket, default, statements, lifecycle.rules(bases), most)


def checkpoints(bucket: str, years: int, principals: Mapping[str, str], *, https: bool = True) -> Plan:
    """The plan of the checkpoints' bucket: every object is under COMPLIANCE for `years`. Nothing there is personal."""
    statements: list[Statement] = []
    if principals:
        who, everything = principals["checkpoint"], ("*",)
        statements = [
            _allow("CheckpointPuts", who, ("PutObject", *_READ), bucket, everything),
            _allow("CheckpointLooks", who, _LOOK, bucket),
            _deny("CheckpointOnlyPuts", who, _DELETE + _BYPASS + _PUBLISH + _SETTINGS, bucket),
            *_everybody(bucket, https=https),
        ]
        if principals["api"] != who:
            statements += [
                _allow("ApiReads", principals["api"], _READ, bucket, everything),
                _allow("ApiLooks", principals["api"], _LOOK, bucket),
            ]
    return Plan(bucket, DefaultRetention(LockMode.COMPLIANCE, years, YEARS), tuple(statements), ())


def compare(objects: S3Objects, plan: Plan) -> list[Difference]:
    """What differs from the plan; StorageError when the server does not say."""
    facts = objects.check()
    if not facts.exists:
        return [Difference("bucket", f"{plan.bucket}, with object lock", "no such bucket")]
    if not facts.object_lock:
        return [Difference("object lock", "on", "off: it has to be there from the beginning", mendable=False)]
    found = [] if facts.versioning else [Difference("versioning", "on", "off", mendable=False)]
    found += _default_differs(facts, plan.default, plan.most_days)
    if plan.statements:
        found += _policy_differs(_policy(objects), plan.statements)
    found += [
        Difference(f"lifecycle rule {each.rule}", each.wanted, each.found)
        for each in (lifecycle.drift(plan.rules, lifecycle.read(objects)) if plan.rules else [])
    ]
    return found


def set_up(objects: S3Objects, plan: Plan) -> tuple[list[str], list[Difference]]:
    """Add what is missing; returns what was done, and what still differs and why a person has to decide it.

    May be repeated. StorageError when the server refuses a step; the next run goes on from there.
    """
    done = []
    differing = compare(objects, plan)
    if any(each.what == "bucket" for each in differing):
        objects.create_bucket(plan.default)
        done.append(f"created {plan.bucket} with object lock, by default {_said(plan.default)}")
        differing = compare(objects, plan)
    mendable = [each for each in differing if each.mendable]
    if any(each.what == "default retention" for each in mendable):
        objects.set_default_retention(plan.default)
        done.append(f"set the default retention of {plan.bucket}: {_said(plan.default)}")
    if any(each.what.startswith("statement") for each in mendable):
        _set_policy(objects, _merged(_policy(objects), plan.statements))
        done += [f"set {each.what} of {plan.bucket}'s policy" for each in mendable if each.what.startswith("statement")]
    if any(each.what.startswith("lifecycle") for each in mendable):
        left = {each.rule for each in lifecycle.apply(objects, plan.rules)}
        rules = (each.what for each in mendable if each.what.startswith("lifecycle"))
        done += [f"set {rule} of {plan.bucket}" for rule in rules if rule.rpartition(" ")[2] not in left]
    return done, compare(objects, plan) if mendable else differing


# Policies


def _recordings_policy(
    bucket: str, bases: Collection[Basis], principals: Mapping[str, str], *, https: bool
) -> Iterable[Statement]:
    ship, sweep, api = principals["ship"], principals["sweep"], principals["api"]
    recorded = [keys for basis in bases for keys in _below(basis)]
    yield _allow("ShipPuts", ship, (*_PUT, "GetObject", "GetObjectVersion", "GetObjectRetention"), bucket, recorded)
    yield _allow("ShipLooks", ship, _LOOK, bucket)
    yield _deny("ShipOnlyPuts", ship, _DELETE + _BYPASS + _HOLD + _PUBLISH + _SETTINGS, bucket)
    erase = (*_READ, *_DELETE, *_BYPASS, *_HOLD, "PutObjectRetention", "AbortMultipartUpload")
    if governed := [keys for basis in bases if basis.lock is LockMode.GOVERNANCE for keys in _below(basis)]:
        # Sealing is for later, when it is known what kind of call it was (B1-B3).
        yield _deny("ShipNeverSeals", ship, ("PutObject", "PutObjectRetention"), bucket, governed, when=_SEALING)
    # On the bucket as well: Ceph RGW looks there for the right to a batch delete.
    yield _statement("Allow", "SweepErases", sweep, erase, [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"])
    yield _allow("SweepProbes", sweep, ("PutObject",), bucket, (f"{PROBE_PREFIX}/*", f"{ERASED_PREFIX}/*"))
    yield _allow("SweepLooks", sweep, (*_LOOK, "ListBucketMultipartUploads", "GetLifecycleConfiguration"), bucket)
    yield _deny("SweepOnlyErases", sweep, _PUBLISH + _SETTINGS, bucket)
    yield _allow("ApiReads", api, _READ, bucket, recorded)
    yield _allow("ApiLooks", api, _LOOK, bucket)
    yield _deny("ApiOnlyReads", api, _PUT + _DELETE + _BYPASS + _HOLD + _PUBLISH + _SETTINGS, bucket)
    yield from _caps(bucket, bases)
    yield from _everybody(bucket, https=https)


def _caps(bucket: str, bases: Collection[Basis]) -> Iterable[Statement]:
    """Nobody may lock longer than the basis keeps, so that no fault of ours locks audio for a hundred years.

    One day above the calendar's longest: summer time may add an hour to the period.
    """
    by_days: dict[int, list[str]] = {1: [f"{PROBE_PREFIX}/*"]}
    for basis in bases:
        by_days.setdefault(longest_days(basis.retention) + 1, []).extend(_below(basis))
    for days, below in sorted(by_days.items()):
        longer = {"NumericGreaterThan": {"s3:object-lock-remaining-retention-days": str(days)}}
        yield _deny(f"NoLockAbove{days}Days", "*", ("PutObject", "PutObjectRetention"), bucket, below, when=longer)
    # What a caller consented to must be erasable until its last day (D1-D4), so nothing there is ever sealed.
    erasable = [each for each in bases if each.kind is BasisKind.CONSENT and each.lock is LockMode.GOVERNANCE]
    if consent := [keys for basis in erasable for keys in _below(basis)]:
        yield _deny("ConsentIsNeverSealed", "*", ("PutObject", "PutObjectRetention"), bucket, consent, when=_SEALING)


def _below(basis: Basis) -> tuple[str, str]:
    """The keys of a basis: its recordings, and their segments while the call runs."""
    return f"{basis.prefix}/*", f"{SEGMENTS_PREFIX}/{basis.prefix}/*"


def _everybody(bucket: str, *, https: bool) -> Iterable[Statement]:
    public = {"StringEquals": {"s3:x-amz-acl": _PUBLIC}}
    yield _deny("NothingPublic", "*", ("PutObject",), bucket, ("*",), when=public)
    if https:
        yield _deny("OnlyEncrypted", "*", ("*",), bucket, when={"Bool": {"aws:SecureTransport": "false"}})


def _allow(sid: str, who: str, actions: Iterable[str], bucket: str, below: Iterable[str] | None = None) -> Statement:
    """On the bucket itself, or on the keys `below`."""
    bare = f"arn:aws:s3:::{bucket}"
    on = [bare] if below is None else [f"{bare}/{key}" for key in below]
    return _statement("Allow", sid, who, actions, on)


def _deny(
    sid: str,
    who: str,
    actions: Iterable[str],
    bucket: str,
    below: Iterable[str] | None = None,
    *,
    when: Statement | None = None,
) -> Statement:
    """On the keys `below`, or on the bucket and everything in it."""
    bare = f"arn:aws:s3:::{bucket}"
    on = [bare, f"{bare}/*"] if below is None else [f"{bare}/{key}" for key in below]
    return _statement("Deny", sid, who, actions, on) | ({"Condition": when} if when else {})


def _statement(effect: str, sid: str, who: str, actions: Iterable[str], on: list[str]) -> Statement:
    return {
        "Sid": _OURS + sid,
        "Effect": effect,
        "Principal": "*" if who == "*" else {"AWS": [who]},
        "Action": [f"s3:{action}" for action in actions],
        "Resource": on,
    }


def _policy(objects: S3Objects) -> list[Statement]:
    answer = objects.exchange.ask("GET", "", query={"policy": ""})
    if answer.code == _NO_POLICY:
        return []
    if not answer.accepted:
        raise refused("say the policy of the bucket", answer.code, answer.status)
    try:
        said = json.loads(answer.body)["Statement"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError("The object store did not say the policy of the bucket", detail="no policy") from error
    return list(said) if isinstance(said, list) else [said]


def _set_policy(objects: S3Objects, statements: list[Statement]) -> None:
    document = json.dumps({"Version": "2012-10-17", "Statement": statements}).encode()
    answer = objects.exchange.ask("PUT", "", query={"policy": ""}, body=document)
    if not answer.accepted:
        error = refused("set the policy of the bucket", answer.code, answer.status)
        error.hint = error.hint or "Do the principals in [storage.principals] exist?"
        raise error


def _merged(found: list[Statement], wanted: Iterable[Statement]) -> list[Statement]:
    """Ours in place of ours; what others wrote stays."""
    return [*wanted, *(each for each in found if not _our(each))]


def _policy_differs(found: list[Statement], wanted: Iterable[Statement]) -> Iterable[Difference]:
    by_sid = {str(each.get("Sid")): each for each in found}
    for each in wanted:
        there = by_sid.pop(each["Sid"], None)
        if there is None:
            yield Difference(f"statement {each['Sid']}", _shown(each), "no such statement")
        elif _plain(there) != _plain(each):
            yield Difference(f"statement {each['Sid']}", _shown(each), _shown(there))
    for sid, each in by_sid.items():
        # A foreign Deny takes nothing from the plan; a foreign Allow opens what callrec keeps shut.
        if each.get("Effect") == "Allow" or _our(each):
            yield Difference(f"statement {sid}", "no such statement", _shown(each), mendable=_our(each))


def _our(statement: Statement) -> bool:
    return str(statement.get("Sid", "")).startswith(_OURS)


def _shown(statement: Statement) -> str:
    return json.dumps({name: statement[name] for name in sorted(statement) if name != "Sid"})


def _plain(value: Any) -> Any:
    """Servers write one thing as itself or as a list of one, and lists in any order."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return frozenset(str(each) for each in value)
    return value if isinstance(value, frozenset) else frozenset({str(value)})


# Locks


def _default_differs(facts: BucketFacts, wanted: DefaultRetention, most_days: int | None) -> Iterable[Difference]:
    found = facts.default_retention
    if found is None:
        yield Difference("default retention", _said(wanted), "none")
    elif wanted.mode is LockMode.GOVERNANCE and found.mode is LockMode.COMPLIANCE:
        # Every multipart upload would end in a version that nobody could erase.
        yield Difference("default retention", _said(wanted), _said(found), mendable=False)
    elif found.mode is not wanted.mode or _days(found) < _days(wanted):
        # A stronger mode for a shorter time would be stronger in one way and weaker in the other.
        yield Difference("default retention", _said(wanted), _said(found), mendable=_days(found) <= _days(wanted))
    elif most_days is not None and _days(found) > most_days:
        wish = f"{_said(wanted)}, {most_days} days at most"
        yield Difference("default retention", wish, _said(found), mendable=False)


def _days(retention: DefaultRetention) -> int:
    return retention.duration * (_YEAR if retention.unit == YEARS else 1)


def _said(retention: DefaultRetention) -> str:
    unit = (retention.unit if retention.unit == YEARS else DAYS).lower()
    return (
        f"{retention.mode.value} for {retention.duration} {unit.removesuffix('s') if retention.duration == 1 else unit}"
    )
