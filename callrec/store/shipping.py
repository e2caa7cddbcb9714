"""What `ship` reads and writes of recordings; implements the port of recording/upload.py."""

import json
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from callrec.call.policy import LockMode
from callrec.errors import StoreError
from callrec.recording.facts import Finished, StoredRecording
from callrec.store.db import Database


class ShipRecords:
    """Each function is one statement, and may be repeated. StoreError while Postgres is away."""

    def __init__(self, database: Database, *, node: str) -> None:
        self._database = database
        self._node = node

    def claim(self, node: str, lease_seconds: float) -> Finished | None:
        """The next recording due, nobody else's for `lease_seconds`; None when there is none."""
        row = self._database.one("claim", {"node": node, "lease": lease_seconds})
        if row is None:
            return None
        return Finished(
            recording_id=row["recording_id"],
            call_id=row["call_id"],
            basis_id=row["basis"],
            lock=LockMode(row["lock_mode"]),
            prefix=row["prefix"],
            started_at=row["started_at"],
            retain_until=row["retain_until"],
            attempts=row["attempts"],
            ended_abruptly=row["abrupt"],
            samples=row["samples"],
            expired=row["expired"],
        )

    def unclaim(self) -> None:
        """Have what this node's earlier `ship` had claimed due again."""
        self._database.run("unclaim", {"node": self._node})

    def sealed(self, recording_id: UUID, sealed_key: bytes, key_id: str) -> bytes:
        """Keep the sealed key that fits the ciphertext about to be put; gives back what is kept."""
        about = {"recording_id": recording_id, "sealed": sealed_key, "key_id": key_id}
        row = self._database.one("sealed", about)
        if row is None:
            raise StoreError("This recording is not waiting to be stored any more", detail=str(recording_id))
        return bytes(row["sealed"])

    def stored(self, recording_id: UUID, stored: StoredRecording) -> None:
        """The row and the ledger entry, in one statement. StoreError: another node has it meanwhile."""
        body: dict[str, Any] = {
            "bucket": stored.bucket,
            "object_key": stored.object_key,
            "version_id": stored.version_id,
            "lock_mode": stored.lock_mode.value,
            "retain_until": stored.retain_until.isoformat(),
            "plaintext_sha256": stored.plaintext_sha256.hex(),
            "ciphertext_sha256": stored.ciphertext_sha256.hex(),
            "ciphertext_bytes": stored.ciphertext_bytes,
            "duration_seconds": round(stored.duration_seconds, 3),
        }
        if stored.segments:
            body |= {"incomplete": True, "segments": stored.segments}  # it ends where duration_seconds says
        about: dict[str, Any] = {
            "recording_id": recording_id,
            "node": self._node,
            "bucket": stored.bucket,
            "object_key": stored.object_key,
            "version_id": stored.version_id,
            "plaintext_sha256": stored.plaintext_sha256,
            "ciphertext_sha256": stored.ciphertext_sha256,
            "ciphertext_bytes": stored.ciphertext_bytes,
            "duration_seconds": stored.duration_seconds,
            "incomplete": bool(stored.segments),
            "body": json.dumps(body),
        }
        row = self._database.one("stored", about)
        if row is not None and not row["ours"]:
            raise StoreError("Another node has taken this recording over", detail=str(recording_id))

    def failed(self, recording_id: UUID, error: str, retry_in: float) -> None:
        about = {"recording_id": recording_id, "error": error, "retry_in": retry_in, "node": self._node}
        self._database.run("failed", about)

    def discarded(self, recording_id: UUID, reason: str) -> None:
        self._ended_without(recording_id, "discarded", {"reason": reason})

    def empty(self, recording_id: UUID) -> None:
        self._ended_without(recording_id, "empty", {})

    def lost(self, recording_id: UUID) -> None:
        self._ended_without(recording_id, "lost", {})

    def state_of(self, recording_id: UUID) -> str | None:
        """The row's state; None when there is no row."""
        row = self._database.one("state_of", {"recording_id": recording_id})
        return str(row["state"]) if row else None

    def nothing_may_stay_of(self, recordings: Collection[UUID]) -> set[UUID]:
        rows = self._database.run("nothing_may_stay_of", {"recordings": list(recordings)})
        return {row["recording_id"] for row in rows}

    def reclaim(self, recording_id: UUID, *, ask: bool = False) -> bool | None:
        row = self._database.one("reclaim", {"recording_id": recording_id, "node": self._node, "ask": ask})
        return True if row and row["possible"] else None if row and row["incomplete"] else False

    def lag(self) -> float:
        """Seconds since the oldest recording that waits was finished; 0 when none waits."""
        row = self._database.one("waiting", {"node": self._node})
        if row is None or row["oldest"] is None:
            return 0.0
        return max(0.0, float((datetime.now(UTC) - row["oldest"]).total_seconds()))

    def _ended_without(self, recording_id: UUID, state: str, body: dict[str, str]) -> None:
        about = {"recording_id": recording_id, "state": state, "body": json.dumps(body), "node": self._node}
        self._database.run("ended_without", about)
