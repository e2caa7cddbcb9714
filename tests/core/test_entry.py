"""An entry has one form in bytes, which says all of it and nothing that tells a person (A8, C6)."""

import json
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from uuid import UUID

import pytest
import rfc8785
from hypothesis import example, given, settings
from hypothesis import strategies as st

from callrec.errors import LedgerError
from callrec.ledger import entry
from callrec.ledger.entry import Entry

ROW = {
    "entry_id": 17,
    "call_id": UUID("0191d6a0-1111-7222-8333-444455556666"),
    "recording_id": None,
    "ordinal": 2,
    "kind": "key_pressed",
    "body": {"key": "1", "after_notice_ms": 1840, "seconds": 12.5, "names": ["ž", "\u2028"]},
    "node": "node-1",
    "at": datetime(2026, 11, 22, 3, 7, 40, 123456, UTC),
    "noted_at": datetime(2026, 11, 22, 3, 7, 41, 0, UTC),
}
CANONICAL_BODY = '{"after_notice_ms":1840,"key":"1","names":["ž","\u2028"],"seconds":12.5}'
CANONICAL = (
    '{"at":"2026-11-22T03:07:40.123456Z","body_sha256":"' + sha256(CANONICAL_BODY.encode()).hexdigest() + '",'
    '"call":"0191d6a0-1111-7222-8333-444455556666","entry":17,"kind":"key_pressed","node":"node-1",'
    '"noted":"2026-11-22T03:07:41.000000Z","ordinal":2,"recording":null,"version":1}'
)

times = st.datetimes(datetime(2000, 1, 1), datetime(2999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 # bounds
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
rows = st.fixed_dictionaries(
    {
        "entry_id": st.integers(1, 2**53 - 1),
        "call_id": st.none() | st.uuids(),
        "recording_id": st.none() | st.uuids(),
        "ordinal": st.none() | st.integers(-(2**31), 2**31 - 1),
        "kind": texts,
        "body": st.dictionaries(texts, values, max_size=3),
        "node": texts,
        "at": times,
        "noted_at": times,
    }
)


def test_the_bytes_are_those_of_the_description():
    made = Entry.of_row(ROW)
    assert made.canonical().decode() == CANONICAL
    assert made.leaf_hash() == sha256(b"\0" + CANONICAL.encode()).digest()


@given(rows)
@settings(max_examples=200)
def test_the_bytes_are_canonical_json(row):
    made = Entry.of_row(row).canonical()
    assert rfc8785.dumps(json.loads(made)) == made


keys = texts | st.sampled_from(["\ue000", "\U00010000", "\ud7ff", "a", "B", ""])  # where UTF-16 sorts otherwise
awkward = st.sampled_from([1e-4, 9.99e-5, 1e-5, 1e-6, 1e-7, 1e15, 1e16, 1e20, 1e21, -0.0, 1.0, 0.1, 123456789012345678])


@given(st.dictionaries(keys, values | awkward | st.dictionaries(keys, awkward), max_size=4), st.booleans())
@example({"\ue000": 1, "\U00010000": 2}, False)  # where UTF-16 and Unicode sort differently
@example({"\ue000": 1, "\U00010000": 2}, True)
@settings(max_examples=500)
def test_the_quick_way_to_a_body_gives_the_same_bytes(body, escaped):
    """What verifies a million entries reads bodies as text."""
    text = json.dumps(body, ensure_ascii=escaped)
    try:
        wanted = entry.canonical_body(body)
    except LedgerError:
        with pytest.raises(LedgerError, match="canonical form"):
            entry.canonical_json(text)
    else:
        assert entry.canonical_json(text) == wanted


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": 1e999}', '{"a": -Infinity}', "[]", "1", "", "{", '{"a": "\\ud800"}']
)
def test_the_quick_way_takes_no_more_than_the_other(text):
    with pytest.raises(LedgerError, match="canonical form"):
        entry.canonical_json(text)


@given(rows)
@settings(max_examples=200)
def test_a_leaf_from_a_row_as_text_is_the_same(row):
    made = Entry.of_row(row)
    text = {
        "at": (row["at"] - entry._EPOCH) // timedelta(microseconds=1),
        "noted": (row["noted_at"] - entry._EPOCH) // timedelta(microseconds=1),
        "body": json.dumps(row["body"], ensure_ascii=False),
        "call": row["call_id"] and str(row["call_id"]),
        "recording": row["recording_id"] and str(row["recording_id"]),
    }
    assert entry.leaf_of(row | text) == (row["entry_id"], made.body_sha256, made.leaf_hash())
    pruned = {"body": None, "body_sha256": made.body_sha256}
    assert entry.leaf_of(row | text | pruned) == entry.leaf_of(row | text)


@given(rows, rows, st.sampled_from(sorted(ROW)))
@settings(max_examples=200)
def test_another_value_anywhere_is_another_leaf(row, other, column):
    changed = row | {column: other[column]}
    same = Entry.of_row(row).leaf_hash() == Entry.of_row(changed).leaf_hash()
    if column == "body":  # Python's 1, 1.0 and True are equal
        assert same == (rfc8785.dumps(row["body"]) == rfc8785.dumps(other["body"]))
    else:
        assert same == (row[column] == other[column])


def test_true_is_not_one_and_one_is_one_point_nought():
    """What JSON tells apart, and what it does not: Postgres keeps 1.0 and 1 apart, no other reader does."""
    bodies = [entry.canonical_body({"a": value}) for value in (1, 1.0, True, "1", None)]
    assert bodies[0] == bodies[1]
    assert len(set(bodies)) == 4


def test_a_time_is_the_same_in_every_zone():
    moved = ROW["at"].astimezone(timezone(timedelta(hours=2)))
    assert Entry.of_row(ROW | {"at": moved}).canonical().decode() == CANONICAL
    with pytest.raises(LedgerError, match="zone"):
        Entry.of_row(ROW | {"at": ROW["at"].replace(tzinfo=None)}).canonical()


def test_the_order_in_a_body_does_not_matter():
    turned = dict(reversed(ROW["body"].items()))
    assert Entry.of_row(ROW | {"body": turned}).leaf_hash() == Entry.of_row(ROW).leaf_hash()


def test_a_pruned_entry_keeps_its_leaf():
    whole = Entry.of_row(ROW)
    assert Entry.of_row(ROW | {"body": None}, pruned=whole.body_sha256) == whole
    # … and what is left of it can't be changed under cover of the pruning
    changed = Entry.of_row(ROW | {"body": None, "kind": "released"}, pruned=whole.body_sha256)
    assert changed.leaf_hash() != whole.leaf_hash()


def test_a_body_that_is_there_counts_whatever_the_kept_hash_says():
    assert Entry.of_row(ROW, pruned=bytes(32)) == Entry.of_row(ROW)


def test_a_missing_body_without_its_hash_is_refused():
    with pytest.raises(LedgerError, match="entry 17"):
        Entry.of_row(ROW | {"body": None})
    with pytest.raises(LedgerError, match="5 bytes"):
        Entry.of_row(ROW | {"body": None}, pruned=b"short").canonical()


@pytest.mark.parametrize(
    "value",
    [2**53, -(2**53), float("inf"), float("nan"), "\ud800", {"\ud800": 1}, {1: 1}, ROW["at"], b"bytes"],
    ids=ascii,
)
def test_what_has_no_canonical_form_is_refused_and_not_repeated(value):
    with pytest.raises(LedgerError, match="canonical form") as caught:
        entry.canonical_body({"a": value})
    assert ascii(value) not in str(caught.value)
    with pytest.raises(LedgerError, match="canonical form"):
        entry.canonical_body([value])


@pytest.mark.parametrize("body", [["ab"], [["a", "b"]], "ab", 1, [], True])
def test_a_body_is_an_object(body):
    with pytest.raises(LedgerError, match="canonical form"):
        entry.canonical_body(body)


def test_a_body_too_deep_to_read_is_refused():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(LedgerError, match="canonical form"):
        entry.canonical_body({"a": deep})
