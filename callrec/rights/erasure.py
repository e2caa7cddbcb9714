"""Erasing a recording, for whatever cause: the steps of erasure_steps.py, performed and recorded one by one.

The order is decided there; here is the work. Each step is done first and recorded after, so a crash costs a
repetition and nothing else, and it is called erased only when every place was looked at and nothing was found. What
fails is tried again with a jittered back-off, for ever. An erasure is the work of the node whose spool the recording
was in, because only that node can look there.

What was erased is named in the object store, too, under erased/<cause>/<recording>: a database that is restored from a
backup has its keys back, and no memory of their erasure (`callrec replay-erasures`).
"""

import random
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from callrec import metrics
from callrec.call.policy import ERASED_PREFIX
from callrec.errors import CallrecError, StorageError, StoreError
from callrec.log import Log
from callrec.recording.facts import object_name, segments_prefix
from callrec.recording.objects import S3Objects, Version
from callrec.recording.spool import Spool
from callrec.recording.transport import refused
from callrec.rights import erasure_steps as steps
from callrec.rights.erasure_steps import Step
from callrec.rights.holds import Cause
from callrec.store.rights import Claimed, RightsRecords

log = Log(__name__)

_LEASE = 120.0  # seconds
_WRITER = 1.0  # seconds until a recording that is still being written is looked at again
_LONGEST_PAUSE = 300.0
_RUNNING = frozenset({"authorised", "recording"})
_UNDER_WAY = _RUNNING | {"finished"}
_COMPLIANCE = "COMPLIANCE"


class LiveState(Protocol):
    def forget(self, channel: str) -> None: ...
    def get(self, channel: str) -> dict[str, str]: ...


class Eraser:
    """Performs the erasures of one node. `stop(channel, order, call)` has a recording stopped that still runs."""

    def __init__(
        self,
        records: RightsRecords,
        objects: S3Objects,
        spool: Spool,
        live: LiveState,
        stop: Callable[[str, str, UUID], None],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._objects = objects
        self._spool = spool
        self._live = live
        self._stop = stop
        self._clock = clock
        self._owed: deque[tuple[UUID, datetime, str]] = deque()

    def erase_next(self) -> bool:
        """Take one erasure as far as it goes; False when none is due. StoreError if the claim itself fails."""
        self._tell_owed()
        claimed = self._records.claim_erasure(_LEASE)
        if claimed is None:
            return False
        began = time.monotonic()
        try:
            self._erase(claimed)
        except Exception as error:  # whatever is wrong with one recording, the others go on
            if not isinstance(error, CallrecError):
                log.error("erasure_failed", recording=claimed.recording_id, exc_info=True)  # noqa: G201 # our Log
                error = CallrecError("The erasure failed in a way that callrec does not know", detail=_name(error))
            pause = random.uniform(0, min(_LONGEST_PAUSE, 2.0 ** min(claimed.attempts, 12)))  # noqa: S311 # jitter
            metrics.RETRIES.labels("erasure").inc()
            log.warning("erasure_put_off", recording=claimed.recording_id, why=str(error), retry_in=round(pause, 1))
            due_at = self._clock() + timedelta(seconds=pause)
            self._owed.append((claimed.recording_id, due_at, str(error)))
            self._tell_owed()
        metrics.ERASURE_SECONDS.observe(time.monotonic() - began)
        return True

    def _tell_owed(self) -> None:
        """Note when erasures that failed are due again. Without Postgres that is owed: a lease lasts minutes."""
        while self._owed:
            recording_id, due_at, error = self._owed.popleft()
            try:
                self._records.erasure_waits(recording_id, "due", due_at, error=error)
            except StoreError:
                self._owed.append((recording_id, due_at, error))
                raise

    def _erase(self, claimed: Claimed) -> None:
        recording_id, done = claimed.recording_id, claimed.done
        row = self._row(recording_id)
        locked_until = self._locked_until(row)
        while True:
            if row["state"] in _UNDER_WAY or row["putting"]:
                row = self._row(recording_id)
            match steps.next_step(done, self._facts(claimed, done, row, locked_until)):
                case Step() as step:
                    left = self._perform(step, claimed, row)
                    after = steps.after(done, step, left)
                    if not self._recorded(step, recording_id, after):
                        if not self._records.holds_of(recording_id):
                            return  # our lease was over, and another goes on with it
                        continue  # a hold was placed while we looked: decide again
                    done = after
                    if left - {Step.OBJECTS, Step.MARKERS} or (left and not locked_until):
                        raise CallrecError("Something of the recording is left", detail=", ".join(sorted(left)))
                case steps.WaitsForHold() | steps.RefusedByHold() as held:
                    # Released holds wake it. Who orders what a hold refuses is told at once (desk.py); this one was
                    # placed after the order.
                    by_rule = isinstance(held, steps.RefusedByHold)
                    rule = "refused by a hold until that is released" if by_rule else "waits for the release of a hold"
                    self._records.erasure_waits(recording_id, "waits", self._clock() + timedelta(days=1), error=rule)
                    return
                case steps.WaitsForWriter():
                    if row["state"] in _UNDER_WAY:
                        self._spool.withdraw(recording_id)  # `ship` must not store it any more
                    if row["state"] in _RUNNING:  # an order given before may have met no listener
                        self._stop(row["channel"], "stop", row["call_id"])
                    due_at = self._clock() + timedelta(seconds=_WRITER)
                    self._records.erasure_waits(recording_id, "due", due_at, error="still being written")
                    return
                case steps.WaitsUntil(at):
                    self._erased_by_key(recording_id, at)
                    return
                case steps.Erased():
                    self._records.erased(recording_id)
                    metrics.ERASURES.labels(claimed.cause.value).inc()
                    log.info("recording_erased", recording=recording_id, cause=claimed.cause.value)
                    return

    def _recorded(self, step: Step, recording_id: UUID, done: frozenset[Step]) -> bool:
        if step is Step.KEY:  # recorded in the transaction in which it is done
            return self._records.erase_key(recording_id, done)
        self._records.erasure_step(recording_id, done)
        return True

    def _erased_by_key(self, recording_id: UUID, until: datetime) -> None:
        self._records.note(recording_id, "recording_erased_by_key", {"ciphertext_until": until.isoformat()})
        self._records.erasure_waits(recording_id, "key_erased", until + timedelta(seconds=1), until=until)
        log.info("recording_erased_by_key", recording=recording_id, ciphertext_until=until.isoformat())

    def _row(self, recording_id: UUID) -> dict[str, Any]:
        row = self._records.recording(recording_id)
        if row is None:
            raise StoreError("An erasure has no recording", detail=str(recording_id))
        return row

    def _facts(
        self, claimed: Claimed, done: frozenset[Step], row: dict[str, Any], locked_until: datetime | None
    ) -> steps.Facts:
        return steps.Facts(
            cause=claimed.cause,
            now=self._clock(),
            holds=() if done else self._records.holds_of(claimed.recording_id),
            writing=row["state"] in _UNDER_WAY or row["putting"],  # a segment that is on its way would come after us
            locked_until=locked_until,
        )

    def _locked_until(self, row: dict[str, Any]) -> datetime | None:
        """The latest end of a COMPLIANCE lock that stands on any version now."""
        now = self._clock()
        ends = [
            until
            for version in self._versions(row)
            if not version.is_delete_marker
            for mode, until in [self._objects.lock_of(version.key, version.version_id)]
            if mode == _COMPLIANCE and until is not None and until >= now
        ]
        return max(ends, default=None)

    # The steps but the key's, which is one statement. Each may be repeated, and gives what it found left (the
    # verification alone).

    def _perform(self, step: Step, claimed: Claimed, row: dict[str, Any]) -> set[Step]:
        recording_id = claimed.recording_id
        match step:
            case Step.OBJECTS:
                self._delete(self._versions(row), markers=False)
            case Step.MARKERS:
                self._delete(self._versions(row), markers=True)
            case Step.SEGMENTS:
                self._delete(self._segments(row), markers=None)
            case Step.SPOOL:
                self._spool.purge(recording_id)
                self._spool.clear_withdrawn(recording_id)
            case Step.REDIS:
                if self._alive(row):
                    self._live.forget(row["channel"])
            case Step.PERSONAL_DATA:
                self._records.forget_caller(row["call_id"])
            case Step.VERIFICATION:
                self._name_as_erased(claimed)
                return self._left(recording_id, row)
        return set()

    def _name_as_erased(self, claimed: Claimed) -> None:
        name = f"{ERASED_PREFIX}/{claimed.cause.value}/{claimed.recording_id}"
        answer = self._objects.exchange.ask("PUT", name, body=b"erased\n")  # with no body AWS would miss a checksum
        if not answer.accepted:
            raise refused("keep the name of what was erased", answer.code, answer.status)

    def _alive(self, row: dict[str, Any]) -> bool:
        """Whether Redis has this call. Its channel may have another by now: the caller was transferred."""
        return self._live.get(row["channel"]).get("call") == str(row["call_id"])

    def _versions(self, row: dict[str, Any]) -> list[Version]:
        must_be_here(row, self._objects)
        name = object_name(row["prefix"], row["started_at"], row["recording_id"])
        found = self._objects.versions(name)
        if row["object_key"] not in {None, name}:  # where it was put is what counts
            found += self._objects.versions(row["object_key"])
        return found

    def _segments(self, row: dict[str, Any]) -> list[Version]:
        """What the stream during the call left, below the name of the recording's own object."""
        return self._objects.versions(segments_prefix(row["prefix"], row["started_at"], row["recording_id"]))

    def _delete(self, versions: list[Version], *, markers: bool | None) -> None:
        for version in versions:
            if markers is None or version.is_delete_marker is markers:
                self._objects.delete_version(version.key, version.version_id, bypass_governance=True)

    def _left(self, recording_id: UUID, row: dict[str, Any]) -> set[Step]:
        left = self._records.erasure_left(recording_id, row["call_id"])
        for version in self._versions(row):
            left.add(Step.MARKERS if version.is_delete_marker else Step.OBJECTS)
        if self._segments(row):
            left.add(Step.SEGMENTS)
        if self._spool.has(recording_id):
            left.add(Step.SPOOL)
        if self._alive(row):
            left.add(Step.REDIS)
        return left


def must_be_here(row: dict[str, Any], objects: S3Objects) -> None:
    """StorageError for a recording in another bucket: not to find it here would prove nothing."""
    if row["bucket"] not in {None, objects.bucket}:
        hint = "Has [storage] bucket changed? What lies in the old one is erased while it names that"
        raise StorageError("A recording lies in another bucket", detail=str(row["bucket"]), hint=hint)


def erased_before(objects: S3Objects) -> dict[UUID, Cause]:
    """What the object store names as erased, with the cause."""
    found = {}
    for version in objects.versions(f"{ERASED_PREFIX}/"):
        _, cause, name = version.key.split("/")
        found[UUID(name)] = Cause(cause)
    return found


def _name(error: Exception) -> str:
    return type(error).__name__
