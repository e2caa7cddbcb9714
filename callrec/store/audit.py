"""The audit's rows: how far each walk has come, what there is to judge, what was found. One function per fact."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from callrec.ledger.completeness import Finding, Kind
from callrec.store.db import Database, Row

SHARED = ""  # the scope of what all nodes share; a node's name is that of its spool
_LONG = 30.0  # seconds for the statements that read a page


class Run(NamedTuple):
    """A walk, and where it goes on."""

    started_at: datetime
    stage: str
    position: str
    counts: dict[str, int]


class AuditRecords:
    """Each function is one statement. StoreError while Postgres is away. `database` is logged in as `sweep`."""

    def __init__(self, database: Database, *, node: str) -> None:
        self._database = database
        self.node = node

    # The walk

    def claim(self, scope: str, every: float, lease: float) -> Run | None:
        """The walk that is due, nobody else's for `lease` seconds; None when it is not due, or somebody else has it."""
        about = {"scope": scope, "node": self.node, "every": every, "lease": lease}
        row = self._database.one("audit_claim", about)
        return Run(**row) if row else None

    def unclaimed(self) -> Run:
        """A walk that nobody else knows of."""
        row = self._database.one("audit_unclaimed")
        assert row is not None  # a SELECT of constants
        return Run(**row)

    def progress(self, scope: str, stage: str, position: str, counts: Mapping[str, int], lease: float) -> bool:
        """Keep how far a claimed walk has come, and the claim; False when somebody else has taken it over."""
        about = {"scope": scope, "node": self.node, "stage": stage, "position": position, "lease": lease}
        return bool(self._database.run("audit_progress", about | {"counts": json.dumps(counts)}))

    def completed(self, scope: str, run: Run, *, claimed: bool, full: bool) -> None:
        """The end of a walk: what it no longer found is resolved, and the result is in the ledger."""
        about = {"scope": scope, "node": self.node, "started_at": run.started_at}
        self._database.run("audit_resolve", about)
        more = {"counts": json.dumps(run.counts), "claimed": claimed, "full": full}
        self._database.run("audit_completed", about | more | {"of": "spool" if scope else "stores"})

    def completed_at(self) -> datetime | None:
        """When stores and spool were last walked to the end; None when one of them never was."""
        row = self._database.one("audit_completed_at", {"node": self.node})
        return row["at"] if row else None

    # What there is

    def call_page(self, after: UUID, limit: int) -> list[UUID]:
        rows = self._database.run("audit_call_page", {"after": after, "limit": limit}, timeout=_LONG)
        return [row["call_id"] for row in rows]

    def calls(self, calls: Collection[UUID]) -> list[Row]:
        """Those of them that are over, with what of_call() asks for."""
        return self._database.run("audit_calls", {"calls": list(calls)}, timeout=_LONG)

    def notes(self, call: UUID) -> list[Row]:
        return self._database.run("audit_ordinals", {"call_id": call})

    def entry_page(self, after: int, limit: int) -> tuple[int | None, int]:
        """The last entry of the page behind `after`, None when there is none, and how many they are."""
        row = self._database.one("audit_entry_page", {"after": after, "limit": limit}, timeout=_LONG)
        assert row is not None  # an aggregate
        return row["last"], row["entries"]

    def entries_without_row(self, after: int, last: int) -> list[Row]:
        return self._database.run("audit_entries", {"after": after, "last": last}, timeout=_LONG)

    def stored_between(self, after: str, last: str | None, limit: int) -> list[Row]:
        """Stored recordings by the keys of their objects, in the order of a bucket's listing."""
        about = {"after": after, "last": last, "limit": limit}
        return self._database.run("audit_stored_between", about, timeout=_LONG)

    def objects(self, recordings: Collection[UUID]) -> dict[UUID, Row]:
        rows = self._database.run("audit_objects", {"recordings": list(recordings)}, timeout=_LONG)
        return {row["recording_id"]: row for row in rows}

    def states(self, recordings: Collection[UUID]) -> dict[UUID, str]:
        rows = self._database.run("audit_states", {"recordings": list(recordings)}, timeout=_LONG)
        return {row["recording_id"]: row["state"] for row in rows}

    # What was found

    def found(self, scope: str, findings: Sequence[Finding]) -> list[Finding]:
        """Keep these; those of them that are not quarantined."""
        told = [
            {"kind": each.kind, "subject": each.subject, "version_id": each.version_id, "detail": each.detail}
            for each in findings
        ]
        rows = self._database.run("audit_found", {"scope": scope, "findings": json.dumps(told)}, timeout=_LONG)
        return [
            Finding(Kind(row["kind"]), row["subject"], version_id=row["version_id"])
            for row in rows
            if not row["quarantined"]
        ]

    def quarantined(self, scope: str, finding: Finding, *, on: bool = True) -> None:
        about: dict[str, Any] = {"scope": scope, "kind": finding.kind, "subject": finding.subject}
        self._database.run("audit_quarantined", about | {"version_id": finding.version_id, "quarantined": on})

    def stale(self, scope: str, kind: Kind, started_at: datetime, limit: int = 1000) -> list[Finding]:
        """What is quarantined and was not found again by the walk that began then."""
        about = {"scope": scope, "kind": kind, "started_at": started_at, "limit": limit}
        rows = self._database.run("audit_stale", about)
        return [Finding(kind, row["subject"], version_id=row["version_id"]) for row in rows]

    def open_findings(self, limit: int) -> list[Row]:
        return self._database.run("audit_open", {"limit": limit})

    def open_kinds(self) -> dict[str, int]:
        return {row["kind"]: row["found"] for row in self._database.run("audit_open_kinds")}
