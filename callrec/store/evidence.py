"""What the ledger and the tables have of one call, for those who have to prove something. One function per fact."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from callrec.store.db import Database, Row


@dataclass(frozen=True, slots=True)
class Case:
    """A call that evidence is asked for."""

    call_id: UUID
    recording_id: UUID | None  # None: no legal basis was established
    basis: str
    purposes: Sequence[str]  # that a recording may serve; none where there is none


class EvidenceRecords:
    """As `api`. Each function is one statement. StoreError while Postgres is away."""

    def __init__(self, database: Database, *, node: str) -> None:
        self._database = database
        self._node = node

    def case(self, wanted: str) -> Case | None:
        """The call of this id: its own, its recording's, or FreeSWITCH's of its channel."""
        found = self._database.one("call_of", {"id": wanted})
        row = self._database.one("evidence_case", {"call_id": found["call_id"]}) if found else None
        if row is None:
            return None
        return Case(row["call_id"], row["recording_id"], row["basis"] or "none", row["purposes"])

    def entries(self, call_id: UUID) -> list[Row]:
        """Rows of the ledger, in the order of their ids, each with the hash that its body has in the tree."""
        return self._database.run("evidence_entries", {"call_id": call_id})

    def places(self, entries: Sequence[int]) -> dict[int, int]:
        """The leaf index of each of these entries; without those that have none yet."""
        rows = self._database.run("evidence_places", {"entries": list(entries)})
        return {row["entry_id"]: row["leaf_index"] for row in rows}

    def note(self, case: Case, kind: str, body: Mapping[str, Any]) -> int:
        """A new entry's id."""
        about = {"call_id": case.call_id, "recording_id": case.recording_id, "kind": kind, "body": json.dumps(body)}
        row = self._database.one("evidence_note", about | {"node": self._node})
        assert row is not None  # RETURNING
        return int(row["entry_id"])


def caller_of(database: Database, call_id: UUID) -> tuple[bytes, bytes] | None:
    """As `sweep`: the salt of the number's commitment, and the number, sealed; None where there are none."""
    row = database.one("evidence_caller", {"call_id": call_id})
    return (bytes(row["salt"]), bytes(row["sealed"])) if row else None
