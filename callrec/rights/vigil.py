"""Whether the object store keeps its word, looked at when `sweep` starts and once a day.

The probe (recording/probe.py) tries the locks; what it finds is in the ledger, in the metrics, and in the row that
`listen` asks before it records. The lifecycle rules are compared with the plan: a rule that would remove what must
still be kept, or a missing one, is in the ledger and in the metrics.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from callrec import metrics
from callrec.log import Log
from callrec.recording import lifecycle
from callrec.recording.lifecycle import NetRule
from callrec.recording.objects import S3Objects
from callrec.recording.probe import probe
from callrec.rights.sweeper import Chore
from callrec.store.rights import RightsRecords

log = Log(__name__)

_LOOK = 30.0  # seconds until a look that failed is repeated
_DAY = 86_400.0


class Vigil:
    """Looks at the store of `objects`, which has the eraser's credential. `every` is in seconds."""

    def __init__(
        self, objects: S3Objects, rules: Sequence[NetRule], records: RightsRecords, *, every: float = _DAY
    ) -> None:
        self._objects = objects
        self._rules = rules
        self._records = records
        self._every = every
        self._probed: float | None = None
        self._compared: float | None = None
        self.chores: tuple[Chore, ...] = ((self.probe, _LOOK), (self.compare, _LOOK))

    def probe(self) -> bool:
        """Probe the store, if it is time. StorageError when it can't be tried: then what was found last stands."""
        if self._due(self._probed):
            report = probe(self._objects, note=self._found)
            self._probed = time.monotonic()
            failed = [each.check for each in report.failures]
            (log.error if failed else log.info)("storage_probed", passed=report.passed, failed=failed)
        return False

    def compare(self) -> bool:
        """Compare the lifecycle rules with the plan, if it is time."""
        if self._due(self._compared):
            drift = lifecycle.check(self._objects, self._rules)
            metrics.LIFECYCLE_DRIFT.set(len(drift))
            if drift:
                self._records.entry("lifecycle_drifted", {"rules": [asdict(each) for each in drift]})
                log.error("lifecycle_drifted", rules=[each.rule for each in drift])
            self._compared = time.monotonic()
        return False

    def _found(self, kind: str, record: Mapping[str, Any]) -> None:
        self._records.entry(kind, record)
        self._records.storage_probed(record)

    def _due(self, last: float | None) -> bool:
        return last is None or time.monotonic() - last >= self._every
