"""What is done without being asked: erasing, expiring, sealing, escalating, applying holds, minding deadlines.

Each chore is a short step that may be repeated, run on its own greenlet with a jittered pause; one that fails is
counted and tried again. S3's lifecycle rules are the safety net beneath, not the mechanism.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import gevent
from gevent.event import Event

from callrec import metrics
from callrec.call.policy import Basis, BasisKind
from callrec.errors import CallrecError, StorageError
from callrec.log import Log
from callrec.recording.objects import S3Objects
from callrec.rights import disposition
from callrec.rights.disposition import Patience, Unsaid
from callrec.rights.erasure import Eraser
from callrec.rights.holds import Cause, overdue
from callrec.store.rights import RightsRecords

log = Log(__name__)

_IDLE = 1.0  # seconds between looks for an erasure
_CHORE = 10.0  # seconds between rounds of everything else
_BATCH = 1000
_LONGEST_PAUSE = 300.0
_WHOLE_SECONDS = timedelta(seconds=1)  # what servers keep of a lock's date


Chore = tuple[Callable[[], bool], float]  # a step that says whether there is more to do, and the pause if not, seconds


class Sweeper:
    """The chores of one node. `patience` is what the operator gives a call without a disposition; `more` are others."""

    def __init__(
        self,
        records: RightsRecords,
        eraser: Eraser,
        objects: S3Objects,
        bases: Mapping[str, Basis],
        patience: Patience,
        *,
        more: Sequence[Chore] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._eraser = eraser
        self._objects = objects
        self._statutory = [basis.id for basis in bases.values() if basis.kind is BasisKind.NOTICE]
        self._patience = patience
        self._more = more
        self._unfounded: set[UUID] = set()  # recordings without a basis, as they were told
        self._clock = clock

    def run(self, stop: Event, workers: int = 2) -> None:
        """Do the chores until `stop` is set. What is under way may be cut off: all of it can be repeated."""
        chores: list[Chore] = [(self._eraser.erase_next, _IDLE)] * workers
        chores += [(chore, _CHORE) for chore in (self.expire, self.seal, self.escalate, self.apply_holds, self.mind)]
        greenlets = [gevent.spawn(self._work, stop, chore, pause) for chore, pause in [*chores, *self._more]]
        stop.wait()
        gevent.joinall(greenlets, timeout=5)
        gevent.killall(greenlets)

    def _work(self, stop: Event, chore: Callable[[], bool], pause: float) -> None:
        while not stop.is_set():
            try:
                busy = chore()
            except Exception as error:  # a chore that ends would leave what it minds undone
                metrics.RETRIES.labels("sweep").inc()
                known = isinstance(error, CallrecError)
                log.warning("chore_failed", chore=chore.__name__, exc_info=not known, why=str(error) if known else "")
                busy = False
            if not busy:
                stop.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311 # jitter

    def expire(self) -> bool:
        """Have erased what has reached its date, and not before (C1, C2)."""
        found = self._records.expire(self._clock(), _BATCH)
        metrics.EXPIRED.inc(found)
        return found == _BATCH

    def seal(self) -> bool:
        """Raise the lock of one recording whose disposition says that it is evidence (B1)."""
        claimed = self._records.to_seal()
        if claimed is None:
            return False
        recording_id, attempts = claimed
        try:
            self._seal(recording_id)
        except Exception as error:  # noqa: BLE001 # whatever is wrong with one recording, the others go on
            why = str(error) if isinstance(error, CallrecError) else type(error).__name__
            pause = random.uniform(0, min(_LONGEST_PAUSE, 2.0 ** min(attempts, 12)))  # noqa: S311 # jitter
            metrics.RETRIES.labels("seal").inc()
            log.warning("seal_put_off", recording=recording_id, why=why)
            self._records.seal_failed(recording_id, why, pause)
        return True

    def _seal(self, recording_id: UUID) -> None:
        row = self._records.recording(recording_id)
        assert row is not None  # its disposition refers to it
        key, version, until = row["object_key"], row["version_id"], row["retain_until"]
        self._objects.seal(key, version, until)
        mode, end = self._objects.lock_of(key, version)
        if mode != "COMPLIANCE" or end is None or end < until - _WHOLE_SECONDS:
            raise CallrecError("The object store did not keep the lock it was given", detail=f"{mode} until {end}")
        self._records.locked_compliance(recording_id)
        metrics.LOCKED.inc()
        log.info("recording_locked", recording=recording_id)

    def escalate(self) -> bool:
        """Tell of calls that nobody said anything about, and do what the operator configured when nobody acts (B3)."""
        now = self._clock()
        told = self._patience.outcome is Unsaid.ERASE
        rows = self._records.unsaid(self._statutory, now, now - self._patience.escalate_after, told=told)
        for row in rows:
            match disposition.unsaid(row["stopped_at"], row["escalated_at"], now, self._patience):
                case disposition.Escalate(at):
                    outcome_at = at if self._patience.outcome is Unsaid.ERASE else None  # else a person ends it
                    if self._records.escalate(row["recording_id"], now, outcome_at):
                        metrics.ESCALATIONS.inc()
                        log.warning("disposition_missing", recording=row["recording_id"], outcome_at=outcome_at)
                case disposition.Erase():
                    about = {"cause": "disposition_missing"}
                    self._records.request_erasure(row["recording_id"], Cause.DISPOSITION, about, unless_said=True)
        return False

    def apply_holds(self) -> bool:
        """Have S3 show what stands: its legal hold on while any hold stands, off when none does (E11)."""
        rows = self._records.holds_to_apply()
        for row in rows:
            standing = row["standing"]
            try:
                self._show_hold(row["object_key"], row["version_id"], on=standing)
            except StorageError as error:  # one that fails keeps no other waiting
                metrics.RETRIES.labels("hold").inc()
                log.error("hold_not_applied", recording=row["recording_id"], standing=standing, why=str(error))
                continue
            self._records.hold_applied(row["recording_id"], standing=standing)
        return False

    def _show_hold(self, key: str, version_id: str, *, on: bool) -> None:
        self._objects.hold(key, version_id, on=on)
        if self._objects.held(key, version_id) is not on:
            raise StorageError("The object store did not change the legal hold")

    def mind(self) -> bool:
        """Alarm at working day 3 of a revocation and at its breach (C4), and count what somebody has to look at.

        The figures are of the whole database: where several nodes sweep, each shows the same.
        """
        for row in self._records.deadlines():
            metrics.DEADLINES.labels(row["alarmed"]).inc()
            log.error(
                "revocation_deadline", revocation=row["revocation_id"], how=row["alarmed"], deadline=row["deadline"]
            )
        holds = self._records.standing_holds()
        late = overdue(holds, self._clock())
        metrics.HOLDS.set(len(holds))
        metrics.HOLDS_OVERDUE.set(len(late))
        found = self._records.affairs()
        for how in ("in_time", "near", "breached"):
            metrics.REVOCATIONS_OPEN.labels(how).set(found[how])
        metrics.ERASURES_OVERDUE.set(found["overdue"])
        metrics.KINDS_MISSING.set(found["unsaid"])
        metrics.WITHOUT_BASIS.set(len(found["without_basis"]))
        if new := set(found["without_basis"]) - self._unfounded:
            log.error("recordings_without_basis", recordings=sorted(map(str, new)))
        self._unfounded = set(found["without_basis"])
        return False
