"""Where what people say arrives: withdrawals, kinds of call, holds, orders to erase.

Each takes effect at once: a recording that runs is stopped, listening is blocked, what must go is due; the sweeper does
the rest. What may be said, and what follows from it, is decided in the pure modules beside this one.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from callrec.call.policy import Basis, BasisKind
from callrec.errors import ConflictError, RightsError, UnknownError
from callrec.ledger.caller import LookupKeys
from callrec.rights import disposition, holds, revocation
from callrec.rights.calendar import Calendar, day_begins
from callrec.rights.disposition import Disposition, Said
from callrec.rights.holds import Cause, Hold, HoldReason, Meeting
from callrec.rights.reference_code import parse_code
from callrec.rights.revocation import Channel, Decision, Fate, Identification, Person, Proof, Receipt, Revocation, Scope
from callrec.store.rights import RightsRecords, Wanted

_WORKING_DAYS = 5  # C4
_ALARM_DAY = 3
_RUNNING = frozenset({"authorised", "recording"})
_GONE = frozenset({"discarded", "empty", "lost", "erased"})


@dataclass(frozen=True, slots=True)
class Intake:
    """A withdrawal as it arrived. One of `number`, `call_id` and `code` says what it is about; `recording_id`, alone or
    beside it, that one recording is meant."""

    channel: Channel
    received_at: datetime
    number: str = field(default="", repr=False)  # E.164
    call_id: UUID | None = None
    recording_id: UUID | None = None
    code: str = field(default="", repr=False)
    proofs: Collection[Proof] = ()
    by: Person = field(default_factory=Person)
    evidence_sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What is told to whoever withdrew consent."""

    revocation_id: UUID
    identification: Identification
    deadline: datetime
    decisions: tuple[Decision, ...]


class Desk:
    """`stop(channel, order, call)` has a running recording stopped; `lookup_keys` find a caller's own recordings."""

    def __init__(
        self,
        records: RightsRecords,
        calendar: Calendar,
        bases: Mapping[str, Basis],
        lookup_keys: LookupKeys,
        stop: Callable[[str, str, UUID], None],
        *,
        longest_hold: timedelta,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._calendar = calendar
        self._bases = bases
        self._lookup_keys = lookup_keys
        self._stop = stop
        self._longest_hold = longest_hold
        self._clock = clock

    # Withdrawal of consent

    def revoke(self, intake: Intake) -> Answer:
        """Take a withdrawal in. RightsError when it names nothing or too much, or comes from the future; UnknownError
        for a recording that never was. A number or a code that leads to no recording is noted: the answer says so."""
        if intake.received_at > self._clock() + timedelta(minutes=5):
            raise RightsError("The withdrawal was received in the future", hint="Give the time at which it arrived")
        wanted = self._wanted(intake)
        found = self._records.recordings_of(wanted)
        proofs = {*intake.proofs, Proof.REFERENCE_CODE} if intake.code else set(intake.proofs)
        only = intake.recording_id
        said = Revocation(
            channel=intake.channel,
            receipt=Receipt(intake.received_at, 0),
            identification=revocation.identification(proofs),
            by=intake.by,
            scope=Scope.ONE if only else Scope.ALL,
            recording_id=only,
        )
        requests = self._requests(intake, said)
        if self._records.revocation_by_request(requests) is None:
            self._records.revoke(
                uuid4(),
                requests[0],
                said,
                revocation.decide(said, [self._recording(row) for row in found]),
                deadline=self._calendar.deadline(intake.received_at, _WORKING_DAYS),
                alarm_at=day_begins(
                    self._calendar.working_day(intake.received_at, _ALARM_DAY), self._calendar.timezone
                ),
                evidence_sha256=intake.evidence_sha256,
            )
        row = self._records.revocation_by_request(requests)
        assert row is not None  # written above, or before
        said = replace(said, identification=Identification(row["identification"]))  # of a repeat, it may be further
        decisions = revocation.decide(said, [self._recording(each) for each in found])
        self._stop_running(decisions, found)
        return Answer(row["revocation_id"], said.identification, row["deadline"], decisions)

    def _requests(self, intake: Intake, said: Revocation) -> list[bytes]:
        """Equal for the same request sent twice, and telling nothing to who has not the key: one for each key."""
        parts = (
            intake.channel, intake.received_at.astimezone(UTC).isoformat(), intake.number, intake.call_id,
            intake.recording_id, intake.code and parse_code(intake.code), said.identification, intake.by.given_by,
            intake.by.on_behalf_of, (intake.evidence_sha256 or b"").hex(),
        )  # fmt: skip
        return self._lookup_keys.every(json.dumps([str(part) for part in parts]))

    def identify(self, revocation_id: UUID, to: Identification, account: str) -> tuple[Decision, ...]:
        """The person is known now, or asked, or was found not to be the caller: decide again (E5)."""
        row = self._records.revocation(revocation_id)
        if row is None:
            raise UnknownError("There is no such revocation")
        now = revocation.identified(Identification(row["identification"]), to)
        found = self._records.recordings_of_revocation(revocation_id)
        given_by = revocation.GivenBy(row["given_by"])
        said = Revocation(
            channel=Channel(row["channel"]),
            receipt=Receipt(row["received_at"], row["receipt"]),
            identification=now,
            by=Person(given_by, row["on_behalf_of"]),
            scope=Scope(row["scope"]),
            recording_id=row["recording_id"],
        )
        decisions = revocation.decide(said, [self._recording(each) for each in found])
        self._records.identified(revocation_id, now.value, decisions, account)
        self._stop_running(decisions, found)
        return decisions

    def _wanted(self, intake: Intake) -> Wanted:
        if sum(map(bool, (intake.number, intake.call_id, intake.code))) > 1:
            # A code that isn't this number's would count as its proof, and a call beside a number for nothing.
            raise RightsError("The withdrawal names more than one thing", hint="Give a number, a call or a code")
        if intake.recording_id:
            self._row(intake.recording_id)
        if intake.number:
            return Wanted(lookups=self._lookup_keys.every(intake.number))
        if intake.code:
            return Wanted(references=self._lookup_keys.every(parse_code(intake.code)))
        if intake.call_id or intake.recording_id:
            return Wanted(call_id=intake.call_id, recording_id=intake.recording_id)
        raise RightsError(
            "The withdrawal says nothing of what it is about", hint="Give a number, a call, a recording or a code"
        )

    def _recording(self, row: Mapping[str, Any]) -> revocation.Recording:
        return revocation.Recording(
            recording_id=row["recording_id"],
            kind=self._kind(row),
            agreed=Receipt(row["authorised_at"], 0),
            running=row["state"] in _RUNNING,
            held=row["held"],
            erased=row["state"] == "erased",
        )

    def _kind(self, row: Mapping[str, Any]) -> BasisKind:
        """Of a basis that is no longer configured the call says it: who granted it, and may have withdrawn since."""
        if known := self._bases.get(row["basis"]):
            return known.kind
        return BasisKind.CONSENT if row["decision"] in {"granted", "withdrawn"} else BasisKind.NOTICE

    def _stop_running(self, decisions: Collection[Decision], rows: Collection[Mapping[str, Any]]) -> None:
        found = {row["recording_id"]: row for row in rows}
        for decision in decisions:
            if decision.stop:
                row = found[decision.recording_id]
                self._stop(row["channel"], "withdraw" if decision.fate is Fate.ERASE else "stop", row["call_id"])

    # The kind of call

    def dispose(self, recording_id: UUID, said: Said, account: str) -> disposition.Outcome:
        """What the agent's desktop says of a call; ConflictError where that contradicts what stands (A9)."""
        row = self._row(recording_id)
        standing = Disposition(row["disposition"]) if row["disposition"] else None
        outcome = disposition.decide(self._kind(row), said, standing, erasing=row["erasing"])
        if isinstance(outcome, disposition.Refused):
            raise ConflictError(_REFUSALS[outcome.refusal].format(standing=outcome.standing))
        if isinstance(outcome, disposition.Unchanged):
            return outcome
        cause = outcome.cause if isinstance(outcome, disposition.Erase) else Cause.DISPOSITION
        if not self._records.dispose(recording_id, said, account, cause):
            return self.dispose(recording_id, said, account)  # somebody else said something just now: judge again
        if isinstance(outcome, disposition.Erase) and row["state"] in _RUNNING:
            self._stop(row["channel"], "stop", row["call_id"])
        return outcome

    # Holds

    def hold(self, recording_id: UUID, reason: HoldReason, *, case: str, owner: str, review_at: datetime) -> Hold:
        row = self._row(recording_id)
        if row["state"] in _GONE:
            raise ConflictError("This recording can't be held", detail=f"It is {row['state']}")
        placed = holds.place(
            uuid4(), reason, case=case, owner=owner, placed_at=self._clock(), review_at=review_at,
            longest=self._longest_hold, erasure_begun=row["key_gone"],
        )  # fmt: skip
        if not self._records.place_hold(recording_id, placed):
            return self.hold(recording_id, reason, case=case, owner=owner, review_at=review_at)  # its key went just now
        return placed

    def review(self, hold_id: UUID, review_at: datetime, account: str) -> Hold:
        _, hold = self._standing(hold_id)
        reviewed = holds.review(hold, at=self._clock(), review_at=review_at, longest=self._longest_hold)
        self._records.review_hold(reviewed, account)
        return reviewed

    def release(self, hold_id: UUID, why: str, account: str, person_told_at: datetime | None = None) -> UUID:
        """End a hold; what was due goes on. Gives the recording."""
        recording_id, hold = self._standing(hold_id)
        at = self._clock()
        holds.check_release(hold, why=why, at=at, person_told_at=person_told_at)
        self._records.release_hold(hold, why, at, account, person_told_at)
        return recording_id

    def _standing(self, hold_id: UUID) -> tuple[UUID, Hold]:
        found = self._records.hold(hold_id)
        if found is None:
            raise UnknownError("There is no such hold, or it was released", hint="`callrec holds` lists them")
        return found

    # Orders to erase

    def erase(self, recording_id: UUID, cause: Cause, account: str) -> bool:
        """Have a recording erased; False when it was due already. ConflictError when a hold refuses it."""
        row = self._row(recording_id)
        if row["state"] in _GONE:
            raise ConflictError("Nothing is left of this recording", detail=f"It is {row['state']}")
        if holds.meets(cause) is Meeting.REFUSED and (standing := self._records.holds_of(recording_id)):
            raise ConflictError(
                "A hold keeps this recording",
                detail=", ".join(f"{hold.reason.value}, case {hold.case}" for hold in standing),
                hint="Release it first, with its owner's word",
            )
        return self._records.request_erasure(recording_id, cause, {"cause": cause.value, "account": account})

    def _row(self, recording_id: UUID) -> dict[str, Any]:
        row = self._records.recording(recording_id)
        if row is None:
            raise UnknownError("There is no such recording", hint="`callrec recordings` lists them")
        return row


_REFUSALS = {
    disposition.Refusal.CONSENT_BASIS: "A recording on consent keeps its basis, whatever the call was (A9)",
    disposition.Refusal.ANOTHER_STANDS: "Another kind stands for this call: {standing}",
    disposition.Refusal.ERASED: "This recording is being erased",
}
