"""What the law takes back, as rows: revocations, dispositions, holds, erasures. One function per fact."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from callrec.call.policy import Retention
from callrec.rights.calendar import Deadline
from callrec.rights.disposition import Disposition, Said
from callrec.rights.erasure_steps import Step
from callrec.rights.holds import Cause, Hold, HoldReason
from callrec.rights.revocation import Decision, Revocation
from callrec.store.db import Database, Row


@dataclass(frozen=True, slots=True)
class Claimed:
    """An erasure that is due, claimed for this process."""

    recording_id: UUID
    cause: Cause
    deadline: datetime | None
    done: frozenset[Step]
    attempts: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody names when consent is withdrawn: any of these."""

    lookups: Sequence[bytes] = ()  # of the caller's number, one for each epoch
    call_id: UUID | None = None
    recording_id: UUID | None = None
    references: Sequence[bytes] = ()  # keyed hashes of a reference code, one for each epoch


class RightsRecords:
    """Each function is one statement. StoreError while Postgres is away."""

    def __init__(self, database: Database, *, node: str) -> None:
        self._database = database
        self._node = node

    # Revocations

    def recordings_of(self, wanted: Wanted) -> list[Row]:
        return self._database.run(
            "held_recordings",
            {
                "lookups": list(wanted.lookups),
                "call_id": wanted.call_id,
                "recording_id": wanted.recording_id,
                "references": list(wanted.references),
            },
        )

    def revoke(
        self,
        revocation_id: UUID,
        request: bytes,
        revocation: Revocation,
        decisions: Iterable[Decision],
        *,
        deadline: Deadline,
        alarm_at: datetime,
        evidence_sha256: bytes | None,
    ) -> None:
        body = {
            "revocation": str(revocation_id),
            "channel": revocation.channel.value,
            "scope": revocation.scope.value,
            "identification": revocation.identification.value,
            "given_by": revocation.by.given_by.value,
            "evidence_sha256": evidence_sha256.hex() if evidence_sha256 else None,
            "deadline": deadline.at.isoformat(),
        }
        self._database.run(
            "revoke",
            {
                "revocation_id": revocation_id,
                "request": request,
                "received_at": revocation.receipt.at,
                "channel": revocation.channel.value,
                "identification": revocation.identification.value,
                "given_by": revocation.by.given_by.value,
                "on_behalf_of": revocation.by.on_behalf_of,
                "scope": revocation.scope.value,
                "recording_id": revocation.recording_id,
                "evidence_sha256": evidence_sha256,
                "deadline": deadline.at,
                "deadline_inputs": json.dumps(deadline.as_record()),
                "alarm_at": alarm_at,
                "decisions": _decisions(decisions),
                "body": json.dumps(body),
                "node": self._node,
            },
        )

    def revocation_by_request(self, requests: Sequence[bytes]) -> Row | None:
        """By its keyed hash, one for each epoch."""
        return self._database.one("revocation_by_request", {"requests": list(requests)})

    def revocation(self, revocation_id: UUID) -> Row | None:
        return self._database.one("revocation_of", {"revocation_id": revocation_id})

    def recordings_of_revocation(self, revocation_id: UUID) -> list[Row]:
        return self._database.run("recordings_of_revocation", {"revocation_id": revocation_id})

    def identified(self, revocation_id: UUID, identification: str, decisions: Iterable[Decision], account: str) -> None:
        body = {"revocation": str(revocation_id), "identification": identification, "account": account}
        about = {"revocation_id": revocation_id, "identification": identification, "decisions": _decisions(decisions)}
        self._database.run("identified", about | {"body": json.dumps(body), "node": self._node})

    def deadlines(self) -> list[Row]:
        """Revocations that have come near their deadline, or passed it, since the last look."""
        return self._database.run("deadlines")

    def affairs(self) -> Row:
        """What somebody has to look at in the whole database: counts, and the ids of recordings without a basis."""
        row = self._database.one("affairs")
        assert row is not None  # a SELECT of counts
        return row

    # Dispositions

    def recording(self, recording_id: UUID) -> Row | None:
        return self._database.one("recording_rights", {"recording_id": recording_id})

    def dispose(self, recording_id: UUID, said: Said, account: str, cause: Cause) -> bool:
        """False when something was said before."""
        effective = said.effective
        body = {"disposition": effective.value, "said": said.disposition.value, "account": account}
        about = {
            "recording_id": recording_id,
            "disposition": effective.value,
            "said": said.disposition.value,
            "guardian_consent": said.guardian_consent,
            "account": account,
            "seals": effective.seals,
            "cause": cause.value,
            "body": json.dumps(body),
            "node": self._node,
        }
        return bool(self._database.run("dispose", about))

    def to_seal(self) -> tuple[UUID, int] | None:
        """The next recording whose lock has to be raised to COMPLIANCE, and how often that was tried."""
        row = self._database.one("to_seal")
        return (row["recording_id"], row["attempts"]) if row else None

    def locked_compliance(self, recording_id: UUID) -> None:
        self._database.run("locked_compliance", {"recording_id": recording_id, "node": self._node})

    def seal_failed(self, recording_id: UUID, error: str, retry_in: float) -> None:
        self._database.run("seal_failed", {"recording_id": recording_id, "error": error, "retry_in": retry_in})

    def unsaid(
        self, bases: Sequence[str], now: datetime, before: datetime, *, told: bool, limit: int = 100
    ) -> list[Row]:
        about = {"bases": list(bases), "now": now, "before": before, "told": told}
        return self._database.run("unsaid", about | {"limit": limit})

    def escalate(self, recording_id: UUID, at: datetime, outcome_at: datetime | None) -> bool:
        """False when it was before. Without `outcome_at` only a person ends it."""
        about = {"recording_id": recording_id, "at": at, "outcome_at": outcome_at, "node": self._node}
        return bool(self._database.run("escalate", about))

    # Holds

    def holds_of(self, recording_id: UUID) -> tuple[Hold, ...]:
        rows = self._database.run("holds_of", {"recording_id": recording_id})
        return tuple(_hold(row) for row in rows)

    def hold(self, hold_id: UUID) -> tuple[UUID, Hold] | None:
        """The recording and the hold; None when there is none, or it was released."""
        row = self._database.one("hold_by_id", {"hold_id": hold_id})
        return (row["recording_id"], _hold(row)) if row and row["released_at"] is None else None

    def standing_holds(self, limit: int = 1000) -> list[Hold]:
        """Those to be reviewed soonest first."""
        return [_hold(row) for row in self._database.run("standing_holds", {"limit": limit})]

    def place_hold(self, recording_id: UUID, hold: Hold) -> bool:
        """False when the recording's key is gone."""
        body = {"hold": str(hold.id), "reason": hold.reason.value, "case": hold.case, "owner": hold.owner,
                "review_at": hold.review_at.isoformat()}  # fmt: skip
        about = {
            "hold_id": hold.id,
            "recording_id": recording_id,
            "reason": hold.reason.value,
            "case": hold.case,
            "owner": hold.owner,
            "placed_at": hold.placed_at,
            "review_at": hold.review_at,
            "body": json.dumps(body),
            "node": self._node,
        }
        return bool(self._database.run("place_hold", about))

    def review_hold(self, hold: Hold, account: str) -> bool:
        body = {"hold": str(hold.id), "review_at": hold.review_at.isoformat(), "account": account}
        about = {"hold_id": hold.id, "review_at": hold.review_at, "reviews": hold.reviews}
        return bool(self._database.run("review_hold", about | {"body": json.dumps(body), "node": self._node}))

    def release_hold(self, hold: Hold, why: str, at: datetime, account: str, told_at: datetime | None) -> bool:
        # why is somebody's words: in the row, not in the ledger, which forgets nothing
        body = {"hold": str(hold.id), "account": account} | ({"person_told_at": told_at.isoformat()} if told_at else {})
        about = {"hold_id": hold.id, "why": why, "at": at, "body": json.dumps(body), "node": self._node}
        return bool(self._database.run("release_hold", about))

    def holds_to_apply(self, limit: int = 100) -> list[Row]:
        """Recordings whose object has to show a legal hold (`standing`), or to lose it."""
        return self._database.run("holds_to_apply", {"limit": limit})

    def hold_applied(self, recording_id: UUID, *, standing: bool) -> None:
        self._database.run("hold_applied" if standing else "hold_lifted", {"recording_id": recording_id})

    # Erasures

    def expire(self, now: datetime, limit: int = 1000) -> int:
        """Have everything erased that has reached its date; how many were found, `limit` at most."""
        return len(self._database.run("expire", {"now": now, "limit": limit, "node": self._node}, timeout=30.0))

    def request_erasure(
        self, recording_id: UUID, cause: Cause, body: dict[str, Any], *, unless_said: bool = False
    ) -> bool:
        """False when its erasure is due already, or, with `unless_said`, when the kind of call is known."""
        about = {"recording_id": recording_id, "cause": cause.value, "body": json.dumps(body), "node": self._node}
        return bool(self._database.run("request_erasure", about | {"unless_said": unless_said}))

    def unclaim_erasures(self) -> None:
        """Have what this node's earlier `sweep` had claimed due again."""
        self._database.run("unclaim_erasures", {"node": self._node})

    def claim_erasure(self, lease_seconds: float) -> Claimed | None:
        row = self._database.one("claim_erasure", {"node": self._node, "lease": lease_seconds})
        if row is None:
            return None
        done = frozenset(Step(step) for step in row["done"])
        return Claimed(row["recording_id"], Cause(row["cause"]), row["deadline"], done, row["attempts"])

    def erase_key(self, recording_id: UUID, done: Collection[Step]) -> bool:
        """False when a hold keeps it."""
        about = {"recording_id": recording_id, "done": _steps(done), "node": self._node}
        return bool(self._database.run("erase_key", about))

    def erasure_step(self, recording_id: UUID, done: Collection[Step]) -> None:
        self._database.run("erasure_step", {"recording_id": recording_id, "done": _steps(done)})

    def forget_caller(self, call_id: UUID) -> None:
        self._database.run("forget_caller", {"call_id": call_id})

    def erasure_left(self, recording_id: UUID, call_id: UUID) -> set[Step]:
        """Which steps' matter Postgres itself still has."""
        row = self._database.one("erasure_left", {"recording_id": recording_id, "call_id": call_id})
        assert row is not None  # a SELECT of two expressions
        return {step for step in (Step.KEY, Step.PERSONAL_DATA) if row[step.value]}

    def erasure_waits(
        self, recording_id: UUID, state: str, due_at: datetime, *, error: str = "", until: datetime | None = None
    ) -> None:
        about = {"recording_id": recording_id, "state": state, "due_at": due_at, "error": error or None}
        self._database.run("erasure_waits", about | {"ciphertext_until": until})

    def erased(self, recording_id: UUID) -> None:
        self._database.run("erased", {"recording_id": recording_id, "node": self._node})

    # The object store's word

    def storage_probed(self, record: Mapping[str, Any]) -> None:
        """What a probe found, as Report.as_record() gives it."""
        about = {"bucket": record["bucket"], "at": record["at"], "passed": record["passed"], "failed": record["failed"]}
        self._database.run("storage_probed", about | {"node": self._node})

    def storage_failures(self, bucket: str) -> list[str]:
        """The checks that the bucket's latest probe found failing; empty too when it was never probed."""
        row = self._database.one("storage_proven", {"bucket": bucket})
        return [] if row is None or row["passed"] else row["failed"] or ["unknown"]

    def entry(self, kind: str, body: Mapping[str, Any]) -> None:
        """A ledger entry that belongs to no call."""
        about = {"call_id": None, "recording_id": None, "kind": kind, "body": json.dumps(body), "node": self._node}
        self._database.run("entry", about)

    def note(self, recording_id: UUID, kind: str, body: dict[str, Any]) -> None:
        about = {"recording_id": recording_id, "kind": kind, "body": json.dumps(body), "node": self._node}
        self._database.run("note_of_recording", about)

    def erasures(self, limit: int) -> list[Row]:
        return self._database.run("erasures", {"limit": limit})

    def bulk(
        self,
        *,
        line: str | None,
        basis: str | None,
        disposition: Disposition | str | None,
        since: datetime | None,
        until: datetime | None,
    ) -> list[UUID]:
        about = {"line": line, "basis": basis, "disposition": disposition, "since": since, "until": until}
        return [row["recording_id"] for row in self._database.run("bulk", about, timeout=60.0)]

    def leaves(self, node: str) -> tuple[int, int]:
        """How many recordings of `node` are stored, and how many its own disk alone had."""
        row = self._database.one("node_leaves", {"lost": node})
        assert row is not None  # a SELECT of two counts
        return row["stored"], row["unstored"]

    def adopt(self, node: str, limit: int = 1000) -> int:
        """Make up to `limit` recordings of `node`, which does not come back, this node's: how many; 0 at the end."""
        return len(self._database.run("adopt", {"lost": node, "node": self._node, "limit": limit}, timeout=30.0))

    def gone(self, node: str) -> None:
        """Nobody waits for that node any more."""
        self._database.run("node_gone", {"lost": node})

    # Evidence

    def prune(self, periods: Sequence[tuple[date, Retention]], timezone: str, now: datetime, limit: int) -> int:
        """Let the bodies of up to `limit` calls go whose evidence has had its time: how many calls, 0 at the end.

        `periods` as callrec.terms has them; `timezone` is that of their days.
        """
        months = [12 * period.years + period.months for _, period in periods]
        about = {"since": [since for since, _ in periods], "months": months, "timezone": timezone, "now": now}
        row = self._database.one("prune", about | {"limit": limit, "node": self._node}, timeout=30.0)
        return row["calls"] if row else 0

    def prune_revocations(self, periods: Sequence[tuple[date, Retention]], timezone: str, now: datetime) -> int:
        """The same for the revocations whose calls' bodies are gone; their rows go, too."""
        months = [12 * period.years + period.months for _, period in periods]
        about = {"since": [since for since, _ in periods], "months": months, "timezone": timezone, "now": now}
        return len(self._database.run("prune_revocations", about, timeout=30.0))

    def lookup_epochs(self) -> list[Row]:
        """Under which look-up keys something is found: `epoch`, and how many `callers` and `codes`."""
        return self._database.run("lookup_epochs", timeout=60.0)

    def replay_erasures(self, erased: Mapping[UUID, Cause]) -> list[UUID]:
        """Erase again what came back with a backup: what the ledger says was erased, and `erased`. Gives those."""
        named = [{"recording": str(recording), "cause": cause.value} for recording, cause in erased.items()]
        about = {"erased": json.dumps(named), "node": self._node}
        return [row["recording_id"] for row in self._database.run("replay_erasures", about, timeout=300.0)]


def _decisions(decisions: Iterable[Decision]) -> str:
    return json.dumps(
        [{"recording_id": str(d.recording_id), "fate": d.fate.value, "why": d.why.value} for d in decisions]
    )


def _steps(done: Collection[Step]) -> list[str]:
    return [step.value for step in Step if step in done]


def _hold(row: Row) -> Hold:
    return Hold(
        row["hold_id"], HoldReason(row["reason"]), row["case_reference"], row["owner"], row["placed_at"],
        row["review_at"], row["reviews"],
    )  # fmt: skip
