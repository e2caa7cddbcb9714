"""The order in which a recording goes, and when it may be called gone.

    key             the row that alone opens the recording; with it the recording is erased for everybody
    objects         each version of the object, by its id and with bypass where the lock is GOVERNANCE
    markers         delete markers under the same key
    segments        what the stream during the call left
    spool           plain and sealed files on the node, and what was set apart of them
    redis           the live state
    personal_data   the caller's row: look-up, salt, sealed number
    verification    each of these places is looked at again

The state is the set of steps that are done. Every step may be repeated, so whoever performs them does the work first
and then records it with `after`; a crash in between costs a repetition. Only `key` is recorded in the same transaction
in which it is done, because it is the point of no return: before it a hold makes the erasure wait or refuses it, after
it there is nothing left that a hold could keep.

A COMPLIANCE lock keeps the ciphertext until its date and nothing can be done about that. All else goes, that is
verified, and the recording is erased by key; the ciphertext follows at the date, and then all is verified again. Only
then it is Erased.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from callrec.rights.holds import Cause, Hold, Meeting, meets


class Step(StrEnum):
    """In this order."""

    KEY = "key"
    OBJECTS = "objects"
    MARKERS = "markers"
    SEGMENTS = "segments"
    SPOOL = "spool"
    REDIS = "redis"
    PERSONAL_DATA = "personal_data"
    VERIFICATION = "verification"


_ALL = frozenset(Step)
_CIPHERTEXT = frozenset({Step.OBJECTS, Step.MARKERS})  # what a lock keeps; a marker goes after what it hides


@dataclass(frozen=True, slots=True)
class Facts:
    """How things stand now."""

    cause: Cause
    now: datetime  # aware
    holds: tuple[Hold, ...] = ()
    writing: bool = False  # FreeSWITCH still records, or `ship` still has it in hand
    locked_until: datetime | None = None  # the latest end of a COMPLIANCE lock on any of its versions; aware


@dataclass(frozen=True, slots=True)
class WaitsForHold:
    """Nothing has gone yet. It is due, and goes on when these are released."""

    holds: tuple[Hold, ...]


@dataclass(frozen=True, slots=True)
class RefusedByHold:
    """Nothing has gone, and it is not due: release these first, then ask again."""

    holds: tuple[Hold, ...]


@dataclass(frozen=True, slots=True)
class WaitsForWriter:
    """The key is gone; whatever still writes has to end, or it would write again what has been removed."""


@dataclass(frozen=True, slots=True)
class WaitsUntil:
    """Erased by key, and verified to be. The ciphertext is locked and follows at `at`."""

    at: datetime


@dataclass(frozen=True, slots=True)
class Erased:
    """Each copy was looked for and not found."""


Next = Step | WaitsForHold | RefusedByHold | WaitsForWriter | WaitsUntil | Erased


def next_step(done: Collection[Step], facts: Facts) -> Next:
    """What comes next: a step to perform, what the erasure waits for, or that it is over."""
    if facts.holds and not done:
        refused = meets(facts.cause) is Meeting.REFUSED
        return RefusedByHold(facts.holds) if refused else WaitsForHold(facts.holds)
    if Step.KEY not in done:
        return Step.KEY
    if facts.writing:
        return WaitsForWriter()
    locked = facts.locked_until if facts.locked_until is not None and facts.now <= facts.locked_until else None
    later = _CIPHERTEXT if locked is not None else frozenset()
    for step in Step:
        if step not in done and step not in later:
            return step
    return Erased() if locked is None else WaitsUntil(locked)


def after(done: Collection[Step], step: Step, left: Collection[Step] = ()) -> frozenset[Step]:
    """The steps that are done once `step` was performed.

    `left` is for the verification alone: the steps whose matter it found. Those are to be done again. Ciphertext that
    is left says nothing against the rest, because a lock may keep it: the verification then stands until one of the
    other steps is done. Any step makes an earlier verification void.
    """
    if step is not Step.VERIFICATION:
        return (frozenset(done) | {step}) - {Step.VERIFICATION}
    found = frozenset(left) - {Step.VERIFICATION}
    verified = frozenset() if found - _CIPHERTEXT else frozenset({Step.VERIFICATION})
    return ((frozenset(done) & _ALL) - found - {Step.VERIFICATION}) | verified
