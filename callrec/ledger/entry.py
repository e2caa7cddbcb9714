"""A ledger entry as the bytes that its leaf in the tree is made of.

Version 1: the canonical JSON (RFC 8785, UTF-8) of an object with these members, all of them always there.

    at           when it happened, by the node's clock
    body_sha256  SHA-256 of the canonical JSON of the entry's body, 64 hexadecimal digits; see body_bytes()
    call         UUID of the call, or null
    entry        entry_id of the row
    kind         what happened
    node         who says so
    noted        when Postgres took it
    ordinal      place among the call's own notes, or null
    recording    UUID of the recording, or null
    version      1

Times are UTC with microseconds, 2026-11-22T03:07:40.123456Z; UUIDs are in lower case. The leaf hash is RFC 6962's of
these bytes. The body counts by its hash alone: an entry whose body was pruned keeps its leaf, and what the leaf says
besides can still be checked.

No member is personal data: ids are random, and bodies hold none (ledger/caller.py).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

import rfc8785

from callrec.errors import LedgerError
from callrec.ledger import tree

VERSION = 1
_BODY_HASH_BYTES = 32
# For what `_usual`, `_integer` and `_fraction` let through this is RFC 8785 too, and many times as quick: a million
# entries are verified at a time.
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode
_HIGH = re.compile(r"[\ud800-\U0010ffff]")  # what UTF-16 sorts in another order than Unicode
_PLAIN, _PLAIN_END = 1e-4, 1e15  # between these Python writes a fraction as ECMAScript does
_SAFE_DIGITS = 15  # an integer of so many is exact in a double
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 1_000_000


def canonical_body(body: dict[str, Any]) -> bytes:
    """The body, as psycopg gives it, in its one form.

    LedgerError for what has none: a number that a double does not hold, a text that is not Unicode.
    """
    if not isinstance(body, dict):
        raise LedgerError("The body of an entry has no canonical form", detail="it is not an object")
    try:
        return rfc8785.dumps(body)
    except (ValueError, RecursionError) as error:  # rfc8785's own errors are ValueErrors
        raise LedgerError("The body of an entry has no canonical form", detail=type(error).__name__) from None


class _UnusualError(Exception):
    """Python would write this number in another way than RFC 8785."""


def _usual(text: str) -> bool:
    return (text.isascii() or _HIGH.search(text) is None) and "\\u" not in text


def _integer(text: str) -> int:
    if len(text) > _SAFE_DIGITS:
        raise _UnusualError
    return int(text)


def _fraction(text: str) -> float:
    value = float(text)
    if value.is_integer() and abs(value) < _PLAIN_END:
        return int(value)
    if not _PLAIN <= abs(value) < _PLAIN_END:
        raise _UnusualError
    return value


def _constant(_name: str) -> float:
    raise _UnusualError  # NaN and its like, which Python reads


_decode = json.JSONDecoder(parse_float=_fraction, parse_int=_integer, parse_constant=_constant).decode


def canonical_json(text: str) -> bytes:
    """`canonical_body` of a body as JSON text, as Postgres writes it; LedgerError as there, and for what is no JSON.

    The usual ones go the quick way. Of members that have the same name the last counts, as in psycopg.
    """
    try:
        if _usual(text):
            body = _decode(text)
            if isinstance(body, dict):
                return _encode(body).encode()
    except _UnusualError:
        pass
    except (ValueError, RecursionError) as error:
        raise LedgerError("The body of an entry has no canonical form", detail=type(error).__name__) from None
    try:
        return canonical_body(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise LedgerError("The body of an entry has no canonical form", detail=type(error).__name__) from None


def body_bytes(text: str) -> bytes:
    """What is hashed of a body, from its text as Postgres writes it: its canonical form, or that text if it has none.

    Else whoever may write one entry could keep all behind it out of the tree. No body's text is the canonical form of
    another: jsonb is written with a space behind each colon and comma, canonical JSON is not.
    """
    try:
        return canonical_json(text)
    except LedgerError:
        return text.encode()


_quoted = lru_cache(maxsize=1024)(_encode)  # kinds and nodes are few


def canonical_leaf(
    *,
    at: str,
    body_sha256: str,
    call: str | None,
    entry: int,
    kind: str,
    node: str,
    noted: str,
    ordinal: int | None,
    recording: str | None,
) -> bytes:
    """The bytes of a leaf from its members, which are in their canonical form already."""
    return (
        f'{{"at":"{at}","body_sha256":"{body_sha256}","call":{_text(call)},"entry":{entry},"kind":{_quoted(kind)},'
        f'"node":{_quoted(node)},"noted":"{noted}","ordinal":{"null" if ordinal is None else ordinal},'
        f'"recording":{_text(recording)},"version":{VERSION}}}'
    ).encode()  # fmt: skip


def _text(uuid: str | None) -> str:
    return "null" if uuid is None else f'"{uuid}"'


def canonical_time(micros: int) -> str:
    """A time, in microseconds since 1970, as leaves have it. OverflowError outside Python's calendar."""
    seconds, rest = divmod(micros, _SECOND)
    return f"{_to_the_second(seconds)}.{rest:06}Z"


@lru_cache(maxsize=256)  # entries come in the order of time, several in a second
def _to_the_second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()


class Leaf(NamedTuple):
    """What the tree keeps of an entry. The hashes are 32 bytes."""

    entry_id: int
    body_sha256: bytes
    leaf_hash: bytes


def leaf_of(row: Mapping[str, Any]) -> Leaf:
    """The quick way from a row to its leaf, for those who look at many.

    The row has `at` and `noted` in microseconds since 1970, body and UUIDs as text, and `body_sha256` where the body
    was pruned. LedgerError where there is neither, or where a time has no canonical form.
    """
    body = row["body"]
    body_sha256 = row.get("body_sha256") if body is None else sha256(body_bytes(body)).digest()
    if body_sha256 is None:
        raise LedgerError("An entry without a body", detail=f"entry {row['entry_id']}, and nobody says what it was")
    try:
        data = canonical_leaf(
            at=canonical_time(row["at"]),
            body_sha256=body_sha256.hex(),
            call=row["call"],
            entry=row["entry_id"],
            kind=row["kind"],
            node=row["node"],
            noted=canonical_time(row["noted"]),
            ordinal=row["ordinal"],
            recording=row["recording"],
        )
    except OverflowError:
        raise LedgerError("An entry of a time that no calendar has", detail=f"entry {row['entry_id']}") from None
    return Leaf(row["entry_id"], body_sha256, tree.leaf_hash(data))


@dataclass(frozen=True, slots=True)
class Entry:
    """What the leaf says. Times must know their zone."""

    entry_id: int
    call_id: UUID | None
    recording_id: UUID | None
    ordinal: int | None
    kind: str
    node: str
    at: datetime
    noted_at: datetime
    body_sha256: bytes

    @classmethod
    def of_row(cls, row: Mapping[str, Any], pruned: bytes | None = None) -> "Entry":
        """A row of the table `ledger`, its body as psycopg gives it or as text.

        `pruned`: the hash of its body, where the body itself is NULL.
        """
        body = row["body"]
        if body is not None:
            body_sha256 = sha256(body_bytes(body) if isinstance(body, str) else canonical_body(body)).digest()
        elif pruned is not None:
            body_sha256 = pruned
        else:
            raise LedgerError("An entry without a body", detail=f"entry {row['entry_id']}, and nobody says what it was")
        return cls(
            entry_id=row["entry_id"],
            call_id=row["call_id"],
            recording_id=row["recording_id"],
            ordinal=row["ordinal"],
            kind=row["kind"],
            node=row["node"],
            at=row["at"],
            noted_at=row["noted_at"],
            body_sha256=body_sha256,
        )

    def canonical(self) -> bytes:
        """The bytes of the leaf."""
        if len(self.body_sha256) != _BODY_HASH_BYTES:
            raise LedgerError("This is not the hash of a body", detail=f"it has {len(self.body_sha256)} bytes")
        return canonical_leaf(
            at=_time(self.at),
            body_sha256=self.body_sha256.hex(),
            call=None if self.call_id is None else str(self.call_id),
            entry=self.entry_id,
            kind=self.kind,
            node=self.node,
            noted=_time(self.noted_at),
            ordinal=self.ordinal,
            recording=None if self.recording_id is None else str(self.recording_id),
        )

    def leaf_hash(self) -> bytes:
        """32 bytes."""
        return tree.leaf_hash(self.canonical())


def _time(at: datetime) -> str:
    if at.tzinfo is None:
        raise LedgerError("A time without a zone")
    if at.tzinfo is not UTC:
        at = at.astimezone(UTC)
    return f"{at.isoformat(timespec='microseconds').removesuffix('+00:00')}Z"
