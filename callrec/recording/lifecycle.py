"""S3 lifecycle rules of the recordings' bucket: the safety net beneath the sweeper, never the mechanism.

A lifecycle counts days, not months, from the upload, not from the start of the call, and acts when it likes. So each
rule waits for the longest that the basis's period can be on any calendar (3 months: 92 days; 3 years: 1096) and MARGIN
days more: what the sweeper forgot goes at last, and nothing goes that must still be kept, whatever a lock would say.
That holds for versions that were replaced or deleted, too: their days are counted from then.

What the net does for the keys below each prefix:

- current versions get a delete marker after those days, and replaced or marked ones go after as many again;
- a delete marker beneath which nothing is left goes;
- in the whole bucket, an upload in parts that was begun and not completed for a day goes.

A rule of somebody else that expires anything below these prefixes is drift, and so is a rule of ours that is missing
or differs. A rule that waits longer than it should is drift as well, but `apply` leaves it: it may be there because the
period was longer once, and what was recorded then is still kept.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from xml.etree import ElementTree as ET

from callrec import metrics
from callrec.call.policy import PROBE_PREFIX, SEGMENTS_PREFIX, Basis, Retention
from callrec.errors import StorageError
from callrec.recording.objects import S3Objects
from callrec.recording.transport import refused

MARGIN = 14  # days in which somebody can mend the sweeper before the net acts
_PROBE_DAYS = 7  # canaries are locked for minutes; the next probe removes them, and if none comes, this
_STALE_DAYS = 1
_STALE = "abort-stale-uploads"  # the name under which callrec has made it from the beginning
_KNOWN = frozenset(
    {"ID", "Filter", "Prefix", "Status", "AbortIncompleteMultipartUpload", "Expiration", "NoncurrentVersionExpiration"}
)
_NONE_YET = "NoSuchLifecycleConfiguration"
_CYCLE_MONTHS = 400 * 12  # after which the Gregorian calendar repeats


@dataclass(frozen=True, slots=True)
class NetRule:
    """One rule. Days are None where it does nothing of that kind."""

    id: str
    prefix: str
    expire_days: int | None = None  # a current version gets a delete marker
    noncurrent_days: int | None = None  # a replaced or deleted version goes
    lone_markers: bool = False  # a delete marker with nothing beneath it goes
    abort_days: int | None = None  # an upload in parts that was not completed goes
    enabled: bool = True
    more: str = ""  # what else the server's rule says: filters, transitions

    @property
    def removes(self) -> bool:
        """Whether it can take a version away or out of sight."""
        return self.enabled and (self.expire_days is not None or self.noncurrent_days is not None or bool(self.more))

    def __str__(self) -> str:
        parts = [
            f"marks after {self.expire_days} days" if self.expire_days is not None else "",
            f"removes replaced versions after {self.noncurrent_days} days" if self.noncurrent_days is not None else "",
            "removes lone delete markers" if self.lone_markers else "",
            f"aborts uploads after {self.abort_days} days" if self.abort_days is not None else "",
            self.more,
            "" if self.enabled else "switched off",
        ]
        return f"{self.prefix or 'all keys'}: {', '.join(filter(None, parts)) or 'nothing'}"


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference between the rules that should be and those that are."""

    rule: str
    wanted: str
    found: str
    dangerous: bool  # what must be kept could go, were it not locked


@lru_cache(maxsize=64)
def longest_days(retention: Retention) -> int:
    """The most days that a period can span, over all starts: 3 months 92, 3 years 1096 (C1, C2).

    The first of a month is enough to look at: from the same day of a month to the same day the span is the same sum of
    months, and where the day doesn't exist the period is shorter.
    """
    months = retention.years * 12 + retention.months
    firsts = [date(2000 + month // 12, month % 12 + 1, 1).toordinal() for month in range(_CYCLE_MONTHS + months + 1)]
    return max(firsts[start + months] - firsts[start] for start in range(_CYCLE_MONTHS))


def kept_days(retention: Retention) -> int:
    """Days after which nothing of that period can have to be kept."""
    return longest_days(retention) + MARGIN


def rules(bases: Iterable[Basis]) -> tuple[NetRule, ...]:
    """The net for these bases: for each its recordings and its in-call segments."""
    wanted = [NetRule(_STALE, "", abort_days=_STALE_DAYS)]
    below = [(basis.prefix, kept_days(basis.retention)) for basis in bases]
    below += [(f"{SEGMENTS_PREFIX}/{prefix}", days) for prefix, days in below]
    for prefix, days in [*below, (PROBE_PREFIX, _PROBE_DAYS)]:
        name = f"callrec:{prefix}/"
        wanted.append(NetRule(name, f"{prefix}/", expire_days=days, noncurrent_days=days))
        # S3 takes no days beside it in one rule.
        wanted.append(NetRule(f"{name}:markers", f"{prefix}/", lone_markers=True))
    return tuple(wanted)


def drift(wanted: Sequence[NetRule], found: Sequence[NetRule]) -> list[Drift]:
    """What differs, rule by rule; empty when the net is as it should be."""
    by_id = {rule.id: rule for rule in found}
    least = {rule.prefix: rule.noncurrent_days for rule in wanted if rule.removes}
    differing = []
    for rule in wanted:
        there = by_id.pop(rule.id, None)
        if there is None:
            differing.append(Drift(rule.id, str(rule), "no such rule", dangerous=False))
        elif there != rule:
            differing.append(Drift(rule.id, str(rule), str(there), dangerous=_dangerous(there, least)))
    return differing + [
        Drift(rule.id, "no such rule", str(rule), dangerous=_dangerous(rule, least))
        for rule in by_id.values()
        if rule.removes and any(_overlap(rule.prefix, prefix) for prefix in least)
    ]


def merged(wanted: Sequence[NetRule], found: Sequence[NetRule], *, shorten: bool = False) -> list[NetRule]:
    """What `apply` writes: ours as wanted, or longer where they are longer now and not to be shortened; theirs kept."""
    by_id = {rule.id: rule for rule in found}
    ours = []
    for rule in wanted:
        there = by_id.pop(rule.id, None)
        if there and there.enabled and there.prefix == rule.prefix and not there.more and not shorten:
            expire, noncurrent = (
                max(filter(None, pair), default=None)
                for pair in ((rule.expire_days, there.expire_days), (rule.noncurrent_days, there.noncurrent_days))
            )
            ours.append(replace(rule, expire_days=expire, noncurrent_days=noncurrent))
        else:
            ours.append(rule)
    return [*ours, *by_id.values()]


def read(objects: S3Objects) -> list[NetRule]:
    """The rules that the bucket has."""
    return [_rule(element) for element in _elements(objects)]


def check(objects: S3Objects, wanted: Sequence[NetRule]) -> list[Drift]:
    """What differs in the bucket now; counted in callrec_lifecycle_drift."""
    found = drift(wanted, read(objects))
    metrics.LIFECYCLE_DRIFT.set(len(found))
    return found


def apply(objects: S3Objects, wanted: Sequence[NetRule], *, shorten: bool = False) -> list[Drift]:
    """Write the rules where they differ, keep those of others as they are, and return what still differs.

    `shorten` lets rules of ours that wait longer than wanted wait less. StorageError when the server refuses.
    """
    elements = _elements(objects)
    found = [_rule(element) for element in elements]
    result = merged(wanted, found, shorten=shorten)
    if set(result) != set(found):  # servers tell them in an order of their own
        document = ET.Element("LifecycleConfiguration", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
        names = {rule.id for rule in wanted}
        document.extend(_element(rule) for rule in result if rule.id in names)
        document.extend(element for element in elements if _rule(element).id not in names)  # theirs, word for word
        answer = objects.exchange.ask("PUT", "", query={"lifecycle": ""}, body=ET.tostring(document))
        if not answer.accepted:
            raise refused("set the lifecycle of the bucket", answer.code, answer.status)
        found = read(objects)
    return drift(wanted, found)


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _dangerous(rule: NetRule, least: dict[str, int | None]) -> bool:
    days = [each for each in (rule.expire_days, rule.noncurrent_days) if each is not None]
    return rule.removes and any(
        _overlap(rule.prefix, prefix) and (not days or min(days) < (most or 0)) for prefix, most in least.items()
    )


# XML


def _elements(objects: S3Objects) -> list[ET.Element]:
    answer = objects.exchange.ask("GET", "", query={"lifecycle": ""})
    if answer.code == _NONE_YET:
        return []
    if not answer.accepted:
        raise refused("say the lifecycle of the bucket", answer.code, answer.status)
    try:
        root = ET.fromstring(answer.body)  # noqa: S314 # our own store's answer; expat bounds entity expansion
    except ET.ParseError as error:
        raise StorageError("The object store did not say the lifecycle of the bucket", detail="no XML") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # some servers give a namespace, some none
    return root.findall("Rule")


def _rule(element: ET.Element) -> NetRule:
    """minio-py's own reading loses the prefix of a rule that has it outside of Filter, as Ceph RGW writes some."""

    def days(path: str) -> int | None:
        text = element.findtext(path, "").strip()
        return int(text) if text.isdigit() else None

    filters = [each.tag for name in ("Filter", "Filter/And") for each in element.findall(f"{name}/*")]
    more = sorted({each.tag for each in element} - _KNOWN) + sorted(set(filters) - {"Prefix", "And"})
    if element.findtext("Expiration/Date"):
        more.append("Expiration on a date")
    return NetRule(
        id=element.findtext("ID", "").strip(),
        prefix=next(
            (text for path in ("Filter/Prefix", "Filter/And/Prefix", "Prefix") if (text := element.findtext(path))), ""
        ),
        expire_days=days("Expiration/Days"),
        noncurrent_days=days("NoncurrentVersionExpiration/NoncurrentDays"),
        lone_markers=element.findtext("Expiration/ExpiredObjectDeleteMarker", "").strip().lower() == "true",
        abort_days=days("AbortIncompleteMultipartUpload/DaysAfterInitiation"),
        enabled=element.findtext("Status", "").strip() == "Enabled",
        more=", ".join(more),
    )


def _element(rule: NetRule) -> ET.Element:
    element = ET.Element("Rule")

    def add(path: str, value: object) -> None:
        at = element
        for name in path.split("/"):
            at = ET.SubElement(at, name)
        at.text = str(value)

    add("ID", rule.id)
    add("Filter/Prefix", rule.prefix)
    add("Status", "Enabled")
    if rule.expire_days is not None:
        add("Expiration/Days", rule.expire_days)
    if rule.lone_markers:
        add("Expiration/ExpiredObjectDeleteMarker", "true")
    if rule.noncurrent_days is not None:
        add("NoncurrentVersionExpiration/NoncurrentDays", rule.noncurrent_days)
    if rule.abort_days is not None:
        add("AbortIncompleteMultipartUpload/DaysAfterInitiation", rule.abort_days)
    return element
