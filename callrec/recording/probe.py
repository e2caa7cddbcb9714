"""Does the object store keep its word? Canaries under lock, and attempts to be rid of them.

Servers that offer object lock have deleted locked versions, shortened COMPLIANCE, or let it become GOVERNANCE and then
go by bypass; some drop the lock of an upload in parts. So no documentation is believed: `probe` puts canaries below
their own prefix, by one PUT and in parts, tries what must be refused with all the rights that the eraser has, and looks
each time whether the canary is still there, unchanged, whatever the answer was. It tries as well what must be granted,
because what has to go has to go: GOVERNANCE yields to bypass, and a hold can be released.

The canary in parts is made as recordings are: put, then locked. Whether the lock headers at CreateMultipartUpload would
have done is reported, not judged.

COMPLIANCE canaries can't be removed by us either. They are locked for a minute, and the next probe removes them, which
proves that what is expired can go.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree as ET

from callrec import metrics
from callrec.call.policy import PROBE_PREFIX, LockMode
from callrec.errors import StorageError
from callrec.recording.exchange import BYPASS, Answer
from callrec.recording.objects import S3Objects, Version, lock_headers, lock_in
from callrec.recording.transport import refused

_BODY = b"canary\n"
_NO_LOCK = b'<Retention xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></Retention>'
_TOLERANCE = timedelta(seconds=1)
_NOT_ALLOWED = frozenset({401, 403})
_NOT_FOUND, _SERVER_ERROR = 404, 500
_REFUSED, _GONE = "refused", "gone"

Note = Callable[[str, Mapping[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. What is not `judged` is for people to know."""

    check: str
    expected: str
    found: str
    passed: bool
    judged: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """What one probe found."""

    bucket: str
    at: datetime
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(each for each in self.findings if each.judged and not each.passed)

    @property
    def passed(self) -> bool:
        return not self.failures

    def as_record(self) -> dict[str, Any]:
        """Plain values, for JSON and for the ledger."""
        return {
            "bucket": self.bucket,
            "at": self.at.isoformat(),
            "passed": self.passed,
            "failed": [each.check for each in self.failures],
            "checks": [asdict(each) for each in self.findings],
        }


def probe(
    objects: S3Objects,
    *,
    note: Note | None = None,
    lock_seconds: int = 60,
    spare_seconds: float = 300.0,
    wait: bool = False,
) -> Report:
    """Try the store; needs the eraser's credential. StorageError when it can't be tried, which is no pass.

    `note(kind, body)` writes the ledger's entry. Canaries younger than `spare_seconds` may belong to a probe that runs
    now on another node, and are left. With `wait`, wait for the end of a lock and see the canary go.
    """
    attempt = _Probe(objects, timedelta(seconds=lock_seconds), timedelta(seconds=spare_seconds))
    report = Report(objects.bucket, datetime.now(UTC), tuple(attempt.findings(wait=wait)))
    for each in report.findings:
        if each.judged:
            metrics.WORM_PROBE.labels(each.check).set(each.passed)
    metrics.WORM_PROBE_AT.set(report.at.timestamp())
    if note:
        note("storage_probed", report.as_record())
    return report


@dataclass(frozen=True, slots=True)
class _Canary:
    key: str
    version_id: str
    mode: LockMode
    until: datetime


class _Probe:
    def __init__(self, objects: S3Objects, lock: timedelta, spare: timedelta) -> None:
        self._objects = objects
        self._lock = lock
        self._spare = spare
        self._below = f"{PROBE_PREFIX}/{uuid.uuid4()}"
        self._headers_kept = False

    def findings(self, *, wait: bool) -> Iterator[Finding]:
        yield self._remove_old()
        yield from self._compliance("single", self._put)
        yield from self._compliance("multipart", self._put_parts)
        kept = "kept" if self._headers_kept else "dropped"
        yield Finding("multipart: lock headers at its creation", "kept", kept, self._headers_kept, judged=False)
        yield from self._governance()
        yield from self._hold()
        yield from self._strangers()
        if wait:
            yield self._expiry()
        self._remove_own()

    # The checks

    def _compliance(self, how: str, plant: Callable[[LockMode], _Canary]) -> Iterator[Finding]:
        canary = plant(LockMode.COMPLIANCE)
        asked, differs = "mode and date as asked", self._state(canary)
        yield Finding(f"{how}: lock is told", asked, differs or asked, not differs)
        for name, attack in (
            ("delete", self._delete),
            ("batch delete", self._batch_delete),
            ("overwrite", self._overwrite),
            ("shorten", self._shorten),
            ("downgrade", self._downgrade),
            ("clear", self._clear),
        ):
            if self._state(canary) or canary.until - datetime.now(UTC) < self._lock / 2:
                canary = plant(LockMode.COMPLIANCE)  # the last attempt had its way, or the lock is about to end
            accepted, said = attack(canary)
            changed = self._state(canary)
            if name == "overwrite":  # a new version beside it is no harm
                yield Finding(f"{how}: {name}", "the version stays", changed or "the version stays", not changed)
            else:
                found = ", then ".join(filter(None, (said, changed)))
                yield Finding(f"{how}: {name}", _REFUSED, found, not accepted and not changed)

    def _governance(self) -> Iterator[Finding]:
        canary = self._put(LockMode.GOVERNANCE)
        answer = self._ask("DELETE", canary.key, query={"versionId": canary.version_id})
        changed = self._state(canary)
        found = ", then ".join(filter(None, (_said(answer), changed)))
        yield Finding("governance: delete without bypass", _REFUSED, found, not answer.accepted and not changed)
        if changed:
            canary = self._put(LockMode.GOVERNANCE)
        yield self._goes("governance: delete with bypass", canary)

    def _hold(self) -> Iterator[Finding]:
        canary = self._put(LockMode.GOVERNANCE)
        self._objects.hold(canary.key, canary.version_id, on=True)
        held = self._objects.held(canary.key, canary.version_id)
        yield Finding("hold: is told", "on", "on" if held else "off", held)
        accepted, said = self._delete(canary)
        changed = self._state(canary)
        found = ", then ".join(filter(None, (said, changed)))
        yield Finding("hold: delete with bypass", _REFUSED, found, not accepted and not changed)
        if not changed:
            self._objects.hold(canary.key, canary.version_id, on=False)
            yield self._goes("hold: delete after its release", canary)

    def _strangers(self) -> Iterator[Finding]:
        canary = self._put(LockMode.GOVERNANCE)
        version = {"versionId": canary.version_id}
        # A delete without a version would write a marker, which no lock prevents: only the credential does.
        attempts: tuple[tuple[str, str, dict[str, str], bytes], ...] = (
            ("read", "GET", version, b""),
            ("put", "PUT", {}, _BODY),
            ("delete", "DELETE", {}, b""),
        )
        for who, secret_key in (("wrong secret key", uuid.uuid4().hex), ("anonymous", None)):
            for name, method, query, body in attempts:
                answer = self._ask(
                    method, canary.key, query=query, body=body, secret_key=secret_key, anonymous=secret_key is None
                )
                yield Finding(f"{who}: {name}", _REFUSED, _said(answer), answer.status in _NOT_ALLOWED)

    def _expiry(self) -> Finding:
        canary = self._put(LockMode.COMPLIANCE)
        time.sleep(max(0.0, (canary.until + 2 * _TOLERANCE - datetime.now(UTC)).total_seconds()))
        return self._goes("single: delete after the lock's end", canary)

    def _goes(self, check: str, canary: _Canary) -> Finding:
        accepted, said = self._batch_delete(canary)  # as the eraser does it
        gone = self._state(canary) == _GONE
        return Finding(check, _GONE, _GONE if gone else said if not accepted else "still there", gone)

    # Attempts: whether the server said yes, and what it said

    def _delete(self, canary: _Canary) -> tuple[bool, str]:
        answer = self._ask("DELETE", canary.key, query={"versionId": canary.version_id}, headers=BYPASS)
        return answer.accepted, _said(answer)

    def _batch_delete(self, canary: _Canary) -> tuple[bool, str]:
        try:
            self._objects.delete_version(canary.key, canary.version_id, bypass_governance=True)
        except StorageError as error:
            if error.transient:
                raise
            return False, f"{_REFUSED} ({error.detail})"
        return True, "accepted"

    def _overwrite(self, canary: _Canary) -> tuple[bool, str]:
        answer = self._ask("PUT", canary.key, body=b"something else\n")
        return answer.accepted, _said(answer)

    def _shorten(self, canary: _Canary) -> tuple[bool, str]:
        answer = self._relock(canary, canary.mode, canary.until - self._lock / 4)
        return answer.accepted, _said(answer)

    def _downgrade(self, canary: _Canary) -> tuple[bool, str]:
        answer = self._relock(canary, LockMode.GOVERNANCE, canary.until)
        if not answer.accepted:
            return False, _said(answer)
        deleted, said = self._delete(canary)
        return True, "accepted, then deleted with bypass" if deleted else f"accepted, then delete {said}"

    def _clear(self, canary: _Canary) -> tuple[bool, str]:
        about = {"retention": "", "versionId": canary.version_id}
        answer = self._ask("PUT", canary.key, query=about, headers=BYPASS, body=_NO_LOCK)
        return answer.accepted, _said(answer)

    # Canaries

    def _state(self, canary: _Canary) -> str:
        """What became of it: empty while it is there as it was put."""
        answer = self._ask("GET", canary.key, query={"versionId": canary.version_id})
        if answer.status == _NOT_FOUND:
            return _GONE
        if not answer.accepted:
            raise refused("give back a canary", answer.code, answer.status)
        mode, until = lock_in(answer.headers)
        if answer.body != _BODY:
            return "its content is another"
        if mode != canary.mode:
            return f"its lock is {mode or 'none'}"
        if until is None or abs(until - canary.until) > _TOLERANCE:
            return f"its lock ends {until.isoformat() if until else 'never'}, not {canary.until.isoformat()}"
        return ""

    def _new(self, mode: LockMode) -> tuple[str, datetime, dict[str, str]]:
        until = datetime.now(UTC).replace(microsecond=0) + self._lock
        return f"{self._below}/{uuid.uuid4()}", until, lock_headers(mode, until)

    def _put(self, mode: LockMode) -> _Canary:
        key, until, headers = self._new(mode)
        answer = self._must("PUT", key, headers=headers, body=_BODY)
        return _Canary(key, _version(answer), mode, until)

    def _put_parts(self, mode: LockMode) -> _Canary:
        key, until, headers = self._new(mode)
        begun = self._must("POST", key, query={"uploads": ""}, headers=headers)
        upload = {"uploadId": _text(begun.body, "UploadId")}
        part = self._must("PUT", key, query={"partNumber": "1", **upload}, body=_BODY)
        etag = part.headers.get("etag", "")
        parts = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
        whole = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        canary = _Canary(key, _version(self._must("POST", key, query=upload, body=whole)), mode, until)
        self._headers_kept = not self._state(canary)
        if not self._headers_kept:
            # The bucket's default may hold it now, for longer and in GOVERNANCE: the same step as sealing.
            self._relock(canary, mode, until)
        return canary

    def _ask(self, method: str, key: str, **more: Any) -> Answer:
        return self._answered(self._objects.exchange.ask(method, key, **more))

    def _relock(self, canary: _Canary, mode: LockMode, until: datetime) -> Answer:
        return self._answered(self._objects.relock(canary.key, canary.version_id, mode, until))

    def _answered(self, answer: Answer) -> Answer:
        """A server that fails has refused nothing: then the store can't be judged now."""
        if answer.status >= _SERVER_ERROR:
            raise refused("answer an attempt of the probe", answer.code, answer.status)
        return answer

    def _must(self, method: str, key: str, **more: Any) -> Answer:
        answer = self._ask(method, key, **more)
        if not answer.accepted:
            raise refused("take a canary", answer.code, answer.status)
        return answer

    def _remove_old(self) -> Finding:
        """Removes the canaries of earlier probes."""
        young = datetime.now(UTC) - self._spare
        old = [each for each in self._objects.versions(f"{PROBE_PREFIX}/") if (each.last_modified or young) <= young]
        left = [each for each in old if not self._removed(each)]
        expected = "canaries of earlier probes go when their lock has ended"
        found = f"{len(old) - len(left)} went" + (f", {len(left)} did not" if left else "")
        return Finding("expired: delete", expected, found, not left, judged=bool(old))

    def _remove_own(self) -> None:
        """What of this probe is not locked for good, so that little is left for the next one."""
        for each in self._objects.versions(f"{self._below}/"):
            self._removed(each)

    def _removed(self, version: Version) -> bool:
        """False if its lock has ended, or yields to bypass, and it did not go."""
        if not version.is_delete_marker:
            mode, until = self._objects.lock_of(version.key, version.version_id)
            if mode == LockMode.COMPLIANCE and until and until > datetime.now(UTC):
                return True  # not its time yet
            if self._objects.held(version.key, version.version_id):  # a probe was interrupted
                self._objects.hold(version.key, version.version_id, on=False)
        canary = _Canary(version.key, version.version_id, LockMode.GOVERNANCE, datetime.now(UTC))
        return self._batch_delete(canary)[0]


def _said(answer: Answer) -> str:
    return "accepted" if answer.accepted else f"{_REFUSED} ({answer.code or f'HTTP {answer.status}'})"


def _version(answer: Answer) -> str:
    if not (version_id := answer.headers.get("x-amz-version-id", "")):
        raise StorageError("The bucket keeps no versions", hint="It has to be created with object lock")
    return version_id


def _text(body: bytes, name: str) -> str:
    try:
        found = next((each.text for each in ET.fromstring(body).iter() if each.tag.rpartition("}")[2] == name), None)  # noqa: S314 # our own store's answer; expat bounds entity expansion
    except ET.ParseError:
        found = None
    if not found:
        raise StorageError("The object store did not take a canary", detail=f"it named no {name}")
    return found
