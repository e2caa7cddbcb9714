"""What is put of recordings while they run, and what becomes of it: rows. StoreError while Postgres is away."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from callrec.recording.facts import Cut, Part, Running, Streamed
from callrec.store.db import Database


class SegmentRecords:
    """What `ship` writes and reads. Each function is one statement, and may be repeated."""

    def __init__(self, database: Database, *, node: str) -> None:
        self._database = database
        self._node = node

    def streams(self, bases: Collection[str], known: Collection[UUID]) -> list[Running]:
        """What this node records on these bases, without the `known`, and how far its segments have come."""
        about = {"node": self._node, "bases": list(bases), "known": list(known)}
        return [
            Running(
                recording_id=row["recording_id"],
                basis_id=row["basis"],
                prefix=row["prefix"],
                started_at=row["started_at"],
                keys=row["keys"],
                next_index=0 if row["index"] is None else row["index"] + 1,
                previous=bytes(row["sha256"]) if row["sha256"] else None,
                audio_end=row["audio_end"] or 0,
            )
            for row in self._database.run("streams", about)
        ]

    def reserve(self, recording_id: UUID, cut: Cut, sealed_key: bytes | None, key_id: str) -> bool:
        """Say that this segment is about to be put, with its key if it is the first under it. False: it may not be."""
        about: dict[str, Any] = {
            "recording_id": recording_id,
            "node": self._node,
            "index": cut.index,
            "stream": cut.key,
            "sha256": cut.sha256,
            "bytes": len(cut.segment),
            "audio_end": cut.audio_end,
            "ends_at": cut.ends_at,
            "plaintext_sha256": cut.plaintext_sha256,
            "sealed": sealed_key,
            "key_id": key_id,
        }
        return bool(self._database.run("reserve_segment", about))

    def put(self, recording_id: UUID, index: int, version_id: str) -> None:
        """The object of this segment is there."""
        self._database.run("segment_put", {"recording_id": recording_id, "index": index, "version_id": version_id})

    def parts(self, recording_id: UUID) -> list[Part]:
        """The segments of a recording, in order."""
        return [
            Part(
                index=row["index"],
                sha256=bytes(row["sha256"]),
                size=row["bytes"],
                ends_at=row["ends_at"],
                plaintext_sha256=bytes(row["plaintext_sha256"]),
                version_id=row["version_id"],
            )
            for row in self._database.run("segments_of", {"recording_id": recording_id})
        ]

    def streamed(self, recording_id: UUID) -> Streamed | None:
        """How far what was put of a recording goes; None where nothing was."""
        row = self._database.one("streamed", {"recording_id": recording_id})
        return Streamed(row["audio_end"], bytes(row["plaintext_sha256"])) if row else None

    # Nodes

    def beat(self) -> None:
        """This node lives."""
        self._database.run("beat", {"node": self._node}, timeout=2.0)

    def nodes_lost(self, after: float) -> int:
        """How many other nodes were not heard of for `after` seconds."""
        row = self._database.one("nodes_lost", {"node": self._node, "after": after})
        assert row is not None  # a count
        return int(row["lost"])

    def take_over(self, after: float, limit: int = 100) -> list[UUID]:
        """What nodes that were not heard of for `after` seconds have put segments of is this node's: which."""
        about = {"node": self._node, "after": after, "limit": limit}
        return [row["recording_id"] for row in self._database.run("take_over", about)]


@dataclass(frozen=True, slots=True)
class Remnant:
    """What may be left beside the object of a recording that is settled."""

    recording_id: UUID
    superseded: tuple[str, ...]  # versions of its object
    attempts: int


class RemnantRecords:
    """What `sweep` does with it. Each function is one statement, and may be repeated."""

    def __init__(self, database: Database, *, node: str) -> None:
        self._database = database
        self._node = node

    def erase_discarded(self) -> None:
        """Have erased what was discarded after segments of it were put."""
        self._database.run("erase_discarded", {"node": self._node})

    def claim(self, lease_seconds: float) -> Remnant | None:
        row = self._database.one("claim_remnant", {"lease": lease_seconds})
        return Remnant(row["recording_id"], tuple(row["superseded"]), row["attempts"]) if row else None

    def gone(self, remnant: Remnant) -> None:
        """Nothing was found any more."""
        about = {"recording_id": remnant.recording_id, "superseded": list(remnant.superseded)}
        self._database.run("remnant_gone", about)

    def stays(self, remnant: Remnant, error: str, retry_in: float) -> None:
        about = {"recording_id": remnant.recording_id, "error": error, "retry_in": retry_in}
        self._database.run("remnant_stays", about)
