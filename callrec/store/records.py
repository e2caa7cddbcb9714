"""One function per fact: what the listener notes of a call, and what it must have in Postgres first."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from callrec.call.policy import Line, Policy
from callrec.errors import StoreError
from callrec.ledger.caller import Concealed, Lookup
from callrec.rights.retention import Inputs
from callrec.store.db import Database
from callrec.store.group_commit import GroupCommit
from callrec.store.scribe import Scribe

_BEHIND = 2.0  # seconds that the notes may be


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What a call is, from its arrival on."""

    call_id: UUID
    recording_id: UUID
    channel: str
    line: Line | None
    arrived_at: datetime


@dataclass(frozen=True, slots=True)
class Noted:
    """One note of a call; `ordinal` counts them, so that a note sent twice is kept once."""

    ordinal: int
    kind: str
    body: dict[str, Any]
    at: datetime


@dataclass(frozen=True, slots=True)
class OpenRecording:
    """A recording that Postgres calls neither finished nor gone."""

    facts: CallFacts  # its line is None when the policy has that line no more
    started: bool  # RECORD_START was noted
    authorised_at: datetime
    decision: str
    ordinal: int  # of the call's last note
    masked: bool = False


class CallRecords:
    """The listener's hand on Postgres: `authorise` waits until it is durable, the others never wait."""

    def __init__(self, database: Database, scribe: Scribe, *, node: str, timezone: str) -> None:
        self._database = database
        self._authorise = GroupCommit(database, "authorise")
        self._scribe = scribe
        self._node = node
        self._timezone = timezone

    def authorise(
        self,
        facts: CallFacts,
        decision: str,
        notes: Sequence[Noted],
        caller: Concealed | None,
        *,
        timeout: float,
        reference: Lookup | None = None,
    ) -> None:
        """Make the basis of this call durable, and every note so far. StoreError: it is not, or nobody knows.

        `reference` is the keyed hash of the code that a caller without a number was given (D11).

        Where nobody knows, a `note` of the call settles it: what arrives in Postgres behind that establishes nothing,
        and what arrived before it is there for a `void`.
        """
        line = facts.line
        if line is None:
            raise StoreError("A call without a line has no basis")
        now = datetime.now(UTC)
        row = self._call(facts, "authorised", decision, notes, None) | {
            "recording_id": str(facts.recording_id),
            "notice": line.notice.id,
            "notice_version": line.notice.version,
            "purposes": sorted(line.basis.purposes),
            "lock_mode": line.basis.lock.value,
            "prefix": line.basis.prefix,
            "authorised_at": now.isoformat(),
            "reference": reference.digest.hex() if reference else None,
            "reference_epoch": reference.epoch if reference else 1,  # as the column has it where there is no code
            **self._retention(line, now),
        }
        if caller is not None:
            row |= {"lookup": caller.lookup.digest.hex(), "lookup_epoch": caller.lookup.epoch}
            row |= {"salt": caller.salt.hex(), "sealed": caller.sealed.hex()}
        if not self._authorise.run(row, timeout=timeout):
            raise StoreError("This call has been released, or authorised, before", detail=str(facts.call_id))

    def note(
        self, facts: CallFacts, state: str, decision: str, notes: Sequence[Noted], ended_at: datetime | None = None
    ) -> None:
        self._scribe.write(("note", self._call(facts, state, decision, notes, ended_at)))

    def started(self, facts: CallFacts, at: datetime) -> None:
        assert facts.line
        about = {"recording_id": str(facts.recording_id), "started_at": at.isoformat()}
        self._scribe.write(("started", about | self._retention(facts.line, at)))

    def finished(self, recording_id: UUID, at: datetime, samples: int | None, *, abrupt: bool) -> None:
        about = {"recording_id": str(recording_id), "stopped_at": at.isoformat(), "samples": samples, "abrupt": abrupt}
        self._scribe.write(("finished", about))

    def void(self, recording_id: UUID, reason: str) -> None:
        about = {"recording_id": recording_id, "reason": reason, "node": self._node, "at": datetime.now(UTC)}
        self._scribe.write(("void", about))

    def open_recordings(self, policy: Policy) -> list[OpenRecording]:
        """What this node was recording, as far as Postgres knows: what a listener that died left behind.

        StoreError while Postgres has not yet taken what we noted before: it would call open what has ended.
        """
        if not self._scribe.caught_up(_BEHIND):
            raise StoreError("What this node noted is not written yet")
        lines = {line.id: line for line in policy.lines.values()}
        return [
            OpenRecording(
                CallFacts(
                    row["call_id"], row["recording_id"], row["channel"], lines.get(row["line"]), row["arrived_at"]
                ),
                row["state"] == "recording",
                row["authorised_at"],
                row["decision"] or "",
                row["ordinal"],
                row["masked"],
            )
            for row in self._database.run("open_recordings", {"node": self._node})
        ]

    def _call(
        self, facts: CallFacts, state: str, decision: str, notes: Sequence[Noted], ended_at: datetime | None
    ) -> dict[str, Any]:
        """Plain values: they are sent as JSON."""
        written = [
            {"ordinal": note.ordinal, "kind": note.kind, "body": note.body, "at": note.at.isoformat()} for note in notes
        ]
        return {
            "call_id": str(facts.call_id),
            "node": self._node,
            "channel": facts.channel,
            "line": facts.line.id if facts.line else None,
            "basis": facts.line.basis.id if facts.line else None,
            "state": state,
            "decision": decision or None,
            "arrived_at": facts.arrived_at.isoformat(),
            "ended_at": ended_at.isoformat() if ended_at else None,
            "notes": written,
        }

    def _retention(self, line: Line, start: datetime) -> dict[str, Any]:
        inputs = Inputs.of(start, line.basis.retention, self._timezone).as_record()
        return {"retain_until": inputs["until"], "retention_inputs": inputs}
