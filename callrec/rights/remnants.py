"""What is left beside the object of a recording that is settled: segments, and versions that a complete one superseded.

`ship`, which put them, can delete nothing. Any node's `sweep` may do it, because they are in the object store alone. A
recording that was discarded after segments of it were put gets an erasure: that looks for everything, and says so.
"""

import random
from typing import Any
from uuid import UUID

from callrec import metrics
from callrec.errors import CallrecError, StorageError
from callrec.log import Log
from callrec.recording.facts import segments_prefix
from callrec.recording.objects import S3Objects
from callrec.rights.erasure import must_be_here
from callrec.store.rights import RightsRecords
from callrec.store.segments import Remnant, RemnantRecords

log = Log(__name__)

_LOOK = 1.0  # seconds
_LEASE = 120.0
_LONGEST_PAUSE = 300.0


class Remover:
    """Removes what is left. `objects` has the eraser's credential."""

    def __init__(self, records: RemnantRecords, rights: RightsRecords, objects: S3Objects) -> None:
        self._records = records
        self._rights = rights
        self._objects = objects
        self.chores = ((self.erase_discarded, _LOOK), (self.remove_next, _LOOK))

    def erase_discarded(self) -> bool:
        """Have erased what was discarded after segments of it were put."""
        self._records.erase_discarded()
        return False

    def remove_next(self) -> bool:
        """Remove what is left of one recording; False when there is none. StoreError if the claim itself fails."""
        remnant = self._records.claim(_LEASE)
        if remnant is None:
            return False
        try:
            self._remove(remnant)
        except CallrecError as error:
            pause = random.uniform(0, min(_LONGEST_PAUSE, 2.0 ** min(remnant.attempts, 12)))  # noqa: S311 # jitter
            metrics.RETRIES.labels("remnant").inc()
            log.warning("remnant_put_off", recording=remnant.recording_id, why=str(error), retry_in=round(pause, 1))
            self._records.stays(remnant, str(error), pause)
        return True

    def _remove(self, remnant: Remnant) -> None:
        row = self._row(remnant.recording_id)
        must_be_here(row, self._objects)
        below = segments_prefix(row["prefix"], row["started_at"], remnant.recording_id)
        for version in self._objects.versions(below):
            self._objects.delete_version(version.key, version.version_id, bypass_governance=True)
        for version_id in set(remnant.superseded) - {row["version_id"]}:
            self._objects.delete_version(row["object_key"], version_id, bypass_governance=True)
        if self._objects.versions(below):
            raise StorageError("Segments are left that were deleted", transient=True)
        self._records.gone(remnant)
        metrics.REMNANTS.inc()

    def _row(self, recording_id: UUID) -> dict[str, Any]:
        row = self._rights.recording(recording_id)
        assert row is not None  # the remnant refers to it
        return row
