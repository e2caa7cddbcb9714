"""What lies in the spool of recordings that are settled: removed, taken back, or set apart for a person.

A recording may have been settled without its file: another node made an object of its segments, or the spool was not
mounted for a while. A file that is there then is the better recording only if it has all that left the node. After a
power failure it mostly has less, and the object stays what there is.
"""

import os
from collections.abc import Collection
from typing import Protocol
from uuid import UUID

from callrec import metrics
from callrec.errors import OtherFileError, SpoolError
from callrec.log import Log
from callrec.recording.spool import Spool, apart_of

WITHDRAWN_AFTER_PUT = "withdrawn_after_put"  # there may be versions of the object's key

_UNDER_WAY = frozenset({"authorised", "recording", "finished"})
_log = Log(__name__)


class Records(Protocol):
    """What is asked of the database here; upload.Records says how it behaves."""

    def state_of(self, recording_id: UUID) -> str | None:
        """authorised, recording or finished; stored, discarded, empty or lost; None where there is no row."""

    def discarded(self, recording_id: UUID, reason: str) -> None:
        """It has to go (WITHDRAWN, WITHDRAWN_AFTER_PUT, EXPIRED): row, key row deleted, entry recording_discarded."""

    def nothing_may_stay_of(self, recordings: Collection[UUID]) -> set[UUID]:
        """Those of them that are erased or discarded, or came to nothing and are past their retention."""

    def reclaim(self, recording_id: UUID, *, ask: bool = False) -> bool | None:
        """Take back what was stored incomplete, or `ask` for it. False: it was not; None: it can't be had now."""


class Segments(Protocol):
    """What was put of a recording while it ran."""

    def whole(self, recording_id: UUID) -> bool:
        """Whether all of that is in the spool; OtherFileError where its file is less, or another."""


def tidy(records: Records, spool: Spool, segments: Segments | None, in_hand: Collection[UUID]) -> None:
    """Remove files whose recording is settled, see withdrawals through that came too late, count the rest."""
    orphans = len(spool.strangers())
    for recording_id in (spool.leftovers() | spool.withdrawals()).difference(in_hand):
        state = records.state_of(recording_id)
        if state in _UNDER_WAY or recording_id in in_hand:
            continue
        try:
            orphans += state is None or not _settled(records, spool, segments, recording_id, state)
        except SpoolError as error:  # whatever is wrong with one, the others go
            _log.error("leftover_stays", recording=recording_id, why=str(error))
            orphans += 1
    if apart := {whose for path in spool.quarantined() if (whose := apart_of(path))}:
        for recording_id in records.nothing_may_stay_of(apart):
            spool.purge(recording_id)
    if orphans:
        _log.warning("spool_orphans", files=orphans)
    metrics.SPOOL_ORPHANS.set(orphans)


def _settled(records: Records, spool: Spool, segments: Segments | None, recording_id: UUID, state: str) -> bool:
    """False where it has to stay for now."""
    withdrawn = spool.withdrawn(recording_id)
    if state == "stored" and not withdrawn and (back := _back(records, spool, segments, recording_id)) is not False:
        return back is not None
    if state == "lost" and not withdrawn and os.path.lexists(spool.path(recording_id)):
        set_apart(spool, recording_id, "It was called lost, and is there")  # its key and its caller are gone
    if withdrawn:
        records.discarded(recording_id, WITHDRAWN_AFTER_PUT)
    spool.remove(recording_id)
    spool.clear_withdrawn(recording_id)
    return True


def set_apart(spool: Spool, recording_id: UUID, why: str) -> None:
    """Set the file of a recording apart, loudly."""
    spool.quarantine(spool.path(recording_id))
    metrics.UPLOADS.labels("quarantined").inc()
    _log.error("recording_quarantined", recording=recording_id, why=why)


def _back(records: Records, spool: Spool, segments: Segments | None, recording_id: UUID) -> bool | None:
    """Take it back, as Records.reclaim, where all of it is here."""
    plain = os.path.lexists(spool.path(recording_id))
    if plain and (possible := records.reclaim(recording_id, ask=True)) is not True:
        return possible  # a file is not read each minute for what can't be had
    try:
        whole = segments.whole(recording_id) if segments else True
    except OtherFileError as error:
        set_apart(spool, recording_id, str(error))
        return False
    except SpoolError:
        return None
    return whole and records.reclaim(recording_id)
