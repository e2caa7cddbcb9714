"""What must be there of a call and of a recording, and what may not: the rules of the audit, without the looking.

A finding says that something is not as it must be when nothing is under way: whoever looks judges again what seemed
wrong, and these rules let pass what another part of callrec has in hand (an upload, an erasure).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import quote
from uuid import UUID

from callrec.call.policy import ERASED_PREFIX, PROBE_PREFIX, SEGMENTS_PREFIX
from callrec.recording.objects import Version

Row = Mapping[str, Any]
MARKER = "delete marker"  # the detail of one, which no legal hold can be put on

_TOLERANCE = timedelta(seconds=1)  # servers keep whole seconds of a lock's date
_KEPT_NOTHING = frozenset({"discarded", "empty", "lost", "erased"})
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Kind(StrEnum):
    """What can be wrong. A closed list: metric labels."""

    ENTRY_MISSING = "entry_missing"  # the ledger lacks what the state of a call demands
    ORDINAL_GAP = "ordinal_gap"  # a note of a call is not there, although later ones are
    ENTRY_WITHOUT_ROW = "entry_without_row"  # an entry names a call or a recording that is not there
    KEY_MISSING = "key_missing"  # a stored recording that nobody can open any more, and nobody asked for that
    KEY_LEFT = "key_left"  # a key of what is erased, or of what nothing was kept
    CALLER_LEFT = "caller_left"  # personal data of a caller without a recording
    OBJECT_MISSING = "object_missing"  # a stored recording without its version
    OBJECT_DIFFERS = "object_differs"  # in size, lock or legal hold from what the row says
    OBJECT_EXTRA = "object_extra"  # a version, or a delete marker, at a recording's key that its row does not name
    OBJECT_LEFT = "object_left"  # of what is erased, or of what nothing was kept
    OBJECT_WITHOUT_ROW = "object_without_row"  # of no recording: quarantined
    ERASURE_UNDONE = "erasure_undone"  # the object store names it as erased, and the database still has it
    SPOOL_WITHOUT_ROW = "spool_without_row"  # a file of no recording: quarantined
    SPOOL_ALTERED = "spool_altered"  # a file that is not what was recorded: quarantined
    SPOOL_LEFT = "spool_left"  # a file of a recording that is over


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `subject` is an id, an object's key (percent-encoded) or a file's name."""

    kind: Kind
    subject: str
    detail: str = ""
    version_id: str = ""


# Calls


def of_call(row: Row) -> Iterator[Finding]:
    """A call that is over, with its recording, against its entries. Gaps in the notes are for of_notes()."""
    call, recording = str(row["call_id"]), str(row["recording_id"])
    if missing := demanded(row) - set(row["kinds"]):
        yield Finding(Kind.ENTRY_MISSING, call, " ".join(sorted(missing)))
    elif not row["notes"]:
        yield Finding(Kind.ENTRY_MISSING, call, "no note of it at all")
    gone = row["state"] in _KEPT_NOTHING
    if row["caller"] and (row["recording_id"] is None or gone):
        yield Finding(Kind.CALLER_LEFT, call, f"the recording is {row['state']}" if gone else "no recording")
    if row["key"] and (gone or (row["state"] == "stored" and row["key_erased"])):
        yield Finding(Kind.KEY_LEFT, recording, f"the recording is {row['state']}")
    if row["state"] == "stored" and not row["key"] and not row["key_erased"]:
        yield Finding(Kind.KEY_MISSING, recording, "stored, and no erasure took its key")


def demanded(row: Row) -> set[str]:
    """The kinds of entries that a call has to have by now."""
    if row["recording_id"] is None:
        return set()
    replayed = "erasure_replayed" in row["kinds"]  # the entry of the first time went with the database's later part
    wanted = {
        "basis_established": True,
        # What a listener that died left behind is taken up at the time of its authorisation, without these notes.
        "recording_started": row["started"],
        "recording_stopped": row["stopped"] and row["ended"],
        "recording_stored": row["stored"],
        "key_erased": row["key_erased"] and not replayed,
        "disposition_said": row["disposed"],
        "recording_locked": row["sealed"],
    }
    over = {f"recording_{row['state']}"} if row["state"] in _KEPT_NOTHING else set()
    return over | {kind for kind, needed in wanted.items() if needed}


def of_notes(call: UUID, notes: Sequence[Row]) -> Iterator[Finding]:
    """The notes of a call, in order: 1, 2, 3 … A basis that could not be made durable leaves its place empty."""
    there = {row["ordinal"]: row for row in notes}
    last = max(there, default=0)
    # A reason that is not known any more was pruned with its body.
    unproved = ("ledger_down", "fault", None)
    missing = [
        number
        for number in range(1, last)
        if number not in there
        and not (
            (after := there.get(number + 1)) and after["kind"] == "released_unrecorded" and after["reason"] in unproved
        )
    ]
    if missing:
        named = ", ".join(map(str, missing[:10])) + (" …" if len(missing) > 10 else "")  # noqa: PLR2004 # enough to see
        yield Finding(Kind.ORDINAL_GAP, str(call), f"{named} of {last}")


# Objects


def recording_in(key: str) -> UUID | None:
    """The recording that an object's key names: of its own, of a segment, of an erasure."""
    names = [part for part in key.split("/") if _ID.fullmatch(part)]
    return UUID(names[-1]) if names else None


def ignored(key: str) -> bool:
    """The storage probe's canaries come and go by themselves (and by the bucket's lifecycle)."""
    return key.startswith(f"{PROBE_PREFIX}/")


def of_key(key: str, versions: Sequence[Version], row: Row | None, bucket: str) -> Iterator[Finding]:
    """What a key of the bucket holds, against the row of the recording that the key names."""
    if row is None:
        for each in versions:
            what = MARKER if each.is_delete_marker else f"{each.size} bytes"
            yield Finding(Kind.OBJECT_WITHOUT_ROW, quote(key), what, each.version_id)
        return
    if key.startswith(f"{ERASED_PREFIX}/"):
        if not (row["key_erased"] or row["state"] in _KEPT_NOTHING):
            yield Finding(Kind.ERASURE_UNDONE, str(row["recording_id"]), f"the recording is {row['state']}")
        return
    segment = key.startswith(f"{SEGMENTS_PREFIX}/")
    for each in versions:
        if is_own(row, key, each, bucket):
            continue
        what = MARKER if each.is_delete_marker else f"{each.size} bytes"
        if _over(row):
            yield Finding(Kind.OBJECT_LEFT, quote(key), f"{what}; the recording is {row['state']}", each.version_id)
        elif not segment and row["erasure"] is None and row["state"] in {"authorised", "recording", "stored"}:
            yield Finding(Kind.OBJECT_EXTRA, quote(key), what, each.version_id)


def of_recording(row: Row, key: str, versions: Sequence[Version], bucket: str) -> Iterator[Finding]:
    """A stored recording against what is at its key, as far as a listing says it."""
    if not must_be_there(row) or row["object_key"] != key:
        return
    recording = str(row["recording_id"])
    own = next((each for each in versions if is_own(row, key, each, bucket)), None)
    if row["bucket"] != bucket:
        yield Finding(Kind.OBJECT_MISSING, recording, f"the row says that it is in the bucket {row['bucket']}")
    elif own is None:
        yield Finding(Kind.OBJECT_MISSING, recording, f"{len(versions)} other versions at its key")
    elif own.size != row["ciphertext_bytes"]:
        yield Finding(Kind.OBJECT_DIFFERS, recording, f"{own.size} bytes, not {row['ciphertext_bytes']}")


def of_lock(row: Row, mode: str, until: datetime | None, held: bool) -> Iterator[Finding]:
    """The lock and the legal hold of a recording's version, as the server holds them, against the row."""
    wrong = []
    if mode != row["lock_mode"]:
        wrong.append(f"lock mode {mode or 'none'}, not {row['lock_mode']}")
    if until is None or abs(until - row["retain_until"]) > _TOLERANCE:
        wrong.append(f"locked until {until}, not {row['retain_until']}")
    if held and not row["standing"]:
        wrong.append("a legal hold that callrec did not place: it can't be erased")
    elif row["shown"] and not held:
        wrong.append("no legal hold, and a hold stands")
    if wrong:
        yield Finding(Kind.OBJECT_DIFFERS, str(row["recording_id"]), "; ".join(wrong))


def must_be_there(row: Row) -> bool:
    """Whether the recording's object has to be there: it is stored, and no erasure may have touched it."""
    waiting = row["erasure"] == "waits" and not row["key_erased"]  # for the release of a hold
    return row["state"] == "stored" and (row["erasure"] is None or waiting)


def is_own(row: Row, key: str, version: Version, bucket: str) -> bool:
    """Whether this is the version that the recording's row names."""
    return not version.is_delete_marker and (row["bucket"], row["object_key"], row["version_id"]) == (
        bucket,
        key,
        version.version_id,
    )


def _over(row: Row) -> bool:
    """Whether nothing may be left. What was discarded while it was being put gets an erasure in a moment."""
    if row["state"] not in _KEPT_NOTHING or row["erasure"] not in {None, "erased"}:
        return False
    return not (row["state"] == "discarded" and row["attempts"] > 0 and row["erasure"] is None)
