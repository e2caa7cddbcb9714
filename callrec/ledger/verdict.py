"""What can be said of a ledger that was read as a whole: claims, whether they hold, and the entries that are wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from callrec.errors import LedgerError
from callrec.ledger.entry import canonical_time, leaf_of

MOST = 20  # of the entries that are wrong, and of the words against each claim


class Subject(StrEnum):
    """What is claimed."""

    ROWS = "rows"
    TREE = "tree"
    ANCHORS = "anchors"
    SIGNED = "signed"
    SEQUENCED = "sequenced"
    NODES = "nodes"


@dataclass(frozen=True, slots=True)
class Bad:
    """An entry that is not what was signed, and what is known of it."""

    place: int | None  # its leaf index; None without a leaf
    entry_id: int | None
    call: str | None
    noted: str | None
    what: str
    until: int | None = None  # the last place of a range, where no more is known

    def __str__(self) -> str:
        known = [f"entry {'unknown' if self.entry_id is None else self.entry_id}"]
        if self.place is not None:
            known.append(f"place {self.place}" if self.until is None else f"places {self.place} to {self.until}")
        known += [f"call {self.call}"] if self.call else []
        known += [f"noted {self.noted}"] if self.noted else []
        return f"{', '.join(known)}: {self.what}"


@dataclass(slots=True)
class Claim:
    """`against`: the first MOST of `faults`."""

    says: str
    against: list[str] = field(default_factory=list)
    faults: int = 0

    @property
    def holds(self) -> bool:
        return not self.faults


@dataclass(slots=True)
class Report:
    """`bad`: the first MOST, by their place in the tree, those without one last."""

    entries: int = 0
    pruned: int = 0
    anchors: int = 0
    bad: list[Bad] = field(default_factory=list)
    claims: dict[Subject, Claim] = field(default_factory=lambda: {subject: Claim("") for subject in Subject})

    @property
    def holds(self) -> bool:
        return all(claim.holds for claim in self.claims.values())

    def refute(self, subject: Subject, what: str) -> None:
        claim = self.claims[subject]
        claim.faults += 1
        if len(claim.against) < MOST:
            claim.against.append(what)

    def found(self, subject: Subject, bad: Bad) -> None:
        """An entry is wrong, and so is the claim."""
        self.refute(subject, str(bad))
        self.bad.append(bad)
        self.bad.sort(key=lambda each: (each.place is None, each.place or 0, each.entry_id or 0))
        del self.bad[MOST:]

    def as_record(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "holds": self.holds,
            "entries": self.entries,
            "pruned": self.pruned,
            "anchors": self.anchors,
            "first_bad": _record(self.bad[0]) if self.bad else None,
            "bad": [_record(bad) for bad in self.bad],
            "claims": [
                {"claim": name, "holds": claim.holds, "says": claim.says, "faults": claim.faults,
                 "against": claim.against}
                for name, claim in self.claims.items()
            ],
        }  # fmt: skip


def _record(bad: Bad) -> dict[str, Any]:
    return {
        "entry": bad.entry_id, "place": bad.place, "until": bad.until, "call": bad.call, "noted": bad.noted,
        "what": bad.what,
    }  # fmt: skip


# About one row, as LedgerReading.page gives it


def wrong(row: Mapping[str, Any]) -> str:
    """What is wrong with an entry; empty when it is the one that its leaf was made of."""
    if not row["found"]:
        return "its row was removed"
    if row["at"] is None or row["noted"] is None:
        return "its row was changed: it has a time that no entry can have"
    try:
        leaf = leaf_of(row)
    except LedgerError:
        return "its row was changed: nobody says what its body was, or it has a time that no entry can have"
    if leaf.body_sha256 != row["body_sha256"]:
        return "its body was changed"
    return "" if leaf.leaf_hash == row["leaf_hash"] else "its kind, node, ids, ordinal or times were changed"


def how(stored: Sequence[bytes], signed: Sequence[bytes]) -> str:
    """What happened at a place whose leaf is not the one that was signed; both lists begin there.

    Empty: the entry that was signed for this place was removed, and the one that stands there now followed it.
    """
    if stored[1:2] == signed[:1]:
        return "it and the entry behind it changed places" if stored[:1] == signed[1:2] else "it was inserted"
    if stored[:1] == signed[1:2]:
        return ""
    return "it was moved here" if stored[0] in signed else "it was rewritten, and its leaf with it"


def bad_row(row: Mapping[str, Any], what: str, until: int | None = None) -> Bad:
    return Bad(row["leaf_index"], row["entry_id"], row["call"], noted(row), what, until)


def noted(row: Mapping[str, Any]) -> str | None:
    return None if row["noted"] is None else canonical_time(row["noted"])


def utc(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()
