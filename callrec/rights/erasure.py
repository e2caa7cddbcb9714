"""Erasing a recording, for whatever cause: the steps of erasure_steps.py, performed and recorded one by one.

The order is decided there; here is the work. Each step is done first and recorded after, so a crash costs a
repetition and nothing else, and it is called erased only when every place was looked at and nothing was found. What
fails is tried again with a jittered back-off, for ever. An erasure is the work of the node whose spool the recording
was in, because only that node can look there.
"""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from callrec import metrics
from callrec.errors import CallrecError, StoreError
from callrec.log import Log
from callrec.recording.facts import object_name
from callrec.recording.objects import S3Objects, Version
from callrec.recording.spool import Spool
from callrec.rights import erasure_steps as steps
from callrec.rights.erasure_steps import Step
from callrec.store.rights import Claimed, RightsRecords

log = Log(__name__)

SEGMENTS = "segments"  # prefix of what the stream during a call leaves
_LEASE = 120.0  # seconds
_WRITER = 1.0  # seconds until a recording that is still being written is looked at again
_LONGEST_PAUSE = 300.0
_UNDER_WAY = frozenset({"authorised", "recording", "finished"})
_COMPLIANCE = "COMPLIANCE"


class LiveState(Protocol):
    def forget(self, channel: str) -> None: ...
    def get(self, channel: str) -> dict[str, str]: ...


class Eraser:
    """Performs the erasures of one node."""

    def __init__(
        self,
        records: RightsRecords,
        objects: S3Objects,
        spool: Spool,
        live: LiveState,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._objects = objects
        self._spool = spool
        self._live = live
        self._clock = clock

    def erase_next(self) -> bool:
        """Take one erasure as far as it goes; False when none is due. StoreError if the claim itself fails."""
        claimed = self._records.claim_erasure(_LEASE)
        if claimed is None:
            return False
        began = time.monotonic()
        try:
            self._erase(claimed)
        except CallrecError as error:
            pause = random.uniform(0, min(_LONGEST_PAUSE, 2.0 ** min(claimed.attempts, 12)))  # noqa: S311 # jitter
            metrics.RETRIES.labels("erasure").inc()
            log.warning("erasure_put_off", recording=claimed.recording_id, why=str(error), retry_in=round(pause, 1))
            due_at = self._clock() + timedelta(seconds=pause)
            self._records.erasure_waits(claimed.recording_id, "due", due_at, error=str(error))
        metrics.ERASURE_SECONDS.observe(time.monotonic() - began)
        return True

    def _erase(self, claimed: Claimed) -> None:
        recording_id, done = claimed.recording_id, claimed.done
        row = self._records.recording(recording_id)
        if row is None:
            raise StoreError("An erasure has no recording", detail=str(recording_id))
        while True:
            match steps.next_step(done, self._facts(claimed, row)):
                case Step() as step:
                    left = self._perform(step, recording_id, row)
                    done = steps.after(done, step, left)
                    if step is Step.KEY:
                        self._records.erase_key(recording_id, done)
                    else:
                        self._records.erasure_step(recording_id, done)
                    if left:
                        raise CallrecError("Something of the recording is left", detail=", ".join(sorted(left)))
                case steps.WaitsForHold() | steps.RefusedByHold():
                    # Released holds wake it; a refused one is told to whoever asked, when they ask.
                    self._records.erasure_waits(recording_id, "waits", self._clock() + timedelta(days=1), error="held")
                    return
                case steps.WaitsForWriter():
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

    def _erased_by_key(self, recording_id: UUID, until: datetime) -> None:
        self._records.note(recording_id, "recording_erased_by_key", {"ciphertext_until": until.isoformat()})
        self._records.erasure_waits(recording_id, "key_erased", until + timedelta(seconds=1), until=until)
        log.info("recording_erased_by_key", recording=recording_id, ciphertext_until=until.isoformat())

    def _facts(self, claimed: Claimed, row: dict[str, Any]) -> steps.Facts:
        now = self._clock()
        fresh = self._records.recording(claimed.recording_id) or row
        row["state"] = fresh["state"]
        return steps.Facts(
            cause=claimed.cause,
            now=now,
            holds=self._records.holds_of(claimed.recording_id) if not claimed.done else (),
            writing=row["state"] in _UNDER_WAY,
            locked_until=self._locked_until(row, now),
        )

    def _locked_until(self, row: dict[str, Any], now: datetime) -> datetime | None:
        """The latest end of a COMPLIANCE lock that still stands on any version."""
        ends = [
            until
            for version in self._objects.versions(object_name(row["prefix"], row["started_at"], row["recording_id"]))
            if not version.is_delete_marker
            for mode, until in [self._objects.lock_of(version.key, version.version_id)]
            if mode == _COMPLIANCE and until is not None and until >= now
        ]
        return max(ends, default=None)

    # The steps. Each may be repeated, and gives what it found left (the verification alone).

    def _perform(self, step: Step, recording_id: UUID, row: dict[str, Any]) -> set[Step]:
        match step:
            case Step.KEY:
                if row["state"] in _UNDER_WAY:
                    self._spool.withdraw(recording_id)  # `ship` must not store it any more
            case Step.OBJECTS:
                self._delete(self._versions(row), markers=False)
            case Step.MARKERS:
                self._delete(self._versions(row), markers=True)
            case Step.SEGMENTS:
                self._delete(self._segments(recording_id), markers=None)
            case Step.SPOOL:
                self._spool.remove(recording_id)
                self._spool.clear_withdrawn(recording_id)
            case Step.REDIS:
                self._live.forget(row["channel"])
            case Step.PERSONAL_DATA:
                self._records.forget_caller(row["call_id"])
            case Step.VERIFICATION:
                return self._left(recording_id, row)
        return set()

    def _versions(self, row: dict[str, Any]) -> list[Version]:
        return self._objects.versions(object_name(row["prefix"], row["started_at"], row["recording_id"]))

    def _segments(self, recording_id: UUID) -> list[Version]:
        return self._objects.versions(f"{SEGMENTS}/{recording_id}/")

    def _delete(self, versions: list[Version], *, markers: bool | None) -> None:
        for version in versions:
            if markers is None or version.is_delete_marker is markers:
                self._objects.delete_version(version.key, version.version_id, bypass_governance=True)

    def _left(self, recording_id: UUID, row: dict[str, Any]) -> set[Step]:
        left = self._records.erasure_left(recording_id, row["call_id"])
        for version in self._versions(row):
            left.add(Step.MARKERS if version.is_delete_marker else Step.OBJECTS)
        if self._segments(recording_id):
            left.add(Step.SEGMENTS)
        if recording_id in self._spool.leftovers():
            left.add(Step.SPOOL)
        if self._live.get(row["channel"]):
            left.add(Step.REDIS)
        return left
