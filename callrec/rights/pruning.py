"""Evidence of a call outlives its recording, and then goes, too (C6): bodies of ledger entries, rows of revocations.

What stays is each entry's leaf: that something of that kind was noted, when, by which node, of a call that has a random
id and nothing else any more. All that was signed can still be proved.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime

from callrec import metrics
from callrec.call.policy import Retention
from callrec.log import Log
from callrec.rights.sweeper import Chore
from callrec.store.rights import RightsRecords

log = Log(__name__)

_BATCH = 200  # calls: their entries are changed in one statement
_HOUR = 3600.0  # seconds between looks


class Pruner:
    """`periods` as callrec.terms has them, in the operator's `timezone`."""

    def __init__(
        self,
        records: RightsRecords,
        periods: Sequence[tuple[date, Retention]],
        timezone: str,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._periods = periods
        self._timezone = timezone
        self._clock = clock
        self.chore: Chore = (self.prune, _HOUR)

    def prune(self) -> bool:
        """One batch, and revocations when nothing else is left; True when there may be more to do."""
        now = self._clock()
        calls = self._records.prune(self._periods, self._timezone, now, _BATCH)
        if calls:
            metrics.PRUNED.inc(calls)
            log.info("evidence_pruned", calls=calls)
            return True
        if revocations := self._records.prune_revocations(self._periods, self._timezone, now):
            log.info("revocations_pruned", revocations=revocations)
        return False
