"""Segments that are joined open with the recording's keys, whole and in the order of the call, or not at all (A11)."""

from functools import cache
from hashlib import sha256
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callrec.errors import EnvelopeError
from callrec.recording import segments

KEYS = (bytes(range(32)), bytes(range(1, 33)))  # of two starts of `ship`
ID = UUID("0191d6a0-1111-7222-8333-444455556666")
HEAD, NONCE = 42, 24


def chain(plains, recording_id=ID, keys=KEYS):
    """One segment for each: the second half was put after a restart."""
    previous, found = segments.FIRST, []
    for index, plain in enumerate(plains):
        number = int(index >= len(plains) / 2)
        found.append(segments.seal(plain, keys[number], recording_id, index=index, number=number, previous=previous))
        previous = sha256(found[-1]).digest()
    return found


@cache
def example(count=4):
    plains = [b"RIFF"] + [bytes([index]) * 997 * index for index in range(1, count)]
    return plains, chain(plains)


def joined(parts, count=None):
    return segments.joined_head(len(parts) if count is None else count) + b"".join(parts)


def opened(whole, keys=KEYS, recording_id=ID, step=None):
    pieces = [whole[at : at + step] for at in range(0, len(whole), step)] if step else [whole]
    return b"".join(segments.decrypt(pieces, keys, recording_id))


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=6), st.sampled_from([None, 1, 41, 4096]))
@settings(max_examples=40)
def test_what_was_put_comes_out(plains, step):
    whole = joined(chain(plains))
    assert opened(whole, step=step) == b"".join(plains)
    assert len(whole) == 12 + sum(len(plain) + HEAD + NONCE + 16 for plain in plains)


@given(st.data())
@settings(max_examples=200)
def test_no_other_order_opens(data):
    """Exchanged, repeated, left out, or of another recording: nothing but what was put, in its place."""
    plains, parts = example()
    other = chain(plains, recording_id=uuid4())
    places = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=6))
    chosen = [parts[at] if at < 4 else other[at - 4] for at in places]
    if places == [0, 1, 2, 3]:
        return
    written = []
    try:
        written.extend(segments.decrypt([joined(chosen)], KEYS, ID))
    except EnvelopeError:
        assert b"".join(plains).startswith(b"".join(written))
    else:  # a beginning, said to be one by a head that somebody else wrote: the hash in the ledger tells
        assert places == list(range(len(places)))


@given(st.integers(0, 3), st.data())
def test_the_head_says_how_many_there_are(missing, data):
    _, parts = example()
    left = parts[:missing]
    with pytest.raises(EnvelopeError, match="cut short"):
        opened(joined(left, count=4), step=data.draw(st.sampled_from([None, 100])))


@given(st.data())
@settings(max_examples=150)
def test_no_single_bit_may_change_and_no_byte_may_be_missing(data):
    plains, parts = example()
    whole = joined(parts)
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    for wrong in (bytes(changed), whole[: bit // 8], whole + b"\0"):
        written = []
        with pytest.raises(EnvelopeError):
            written.extend(segments.decrypt([wrong], KEYS, ID))
        assert b"".join(plains).startswith(b"".join(written))


def test_the_wrong_key_or_recording_opens_nothing():
    whole = joined(example()[1])
    for keys, recording_id in (
        ((KEYS[1], KEYS[0]), ID), (KEYS[:1], ID), ((), ID), ((b"short", b"short"), ID), (KEYS, uuid4()),
    ):  # fmt: skip
        with pytest.raises(EnvelopeError):
            opened(whole, keys, recording_id)


def test_only_the_segment_that_was_gone_on_from_opens():
    """One that was put twice, because nobody heard that it had arrived, is there twice: under one key, at one place."""
    plains, parts = example()
    twin = segments.seal(b"x" * 99, KEYS[0], ID, index=1, number=0, previous=sha256(parts[0]).digest())
    assert opened(joined([parts[0], twin])) == plains[0] + b"x" * 99
    with pytest.raises(EnvelopeError, match="what is before it"):
        opened(joined([parts[0], twin, *parts[2:]]))


def test_two_segments_of_the_same_audio_share_nothing_but_their_head():
    one, two = (segments.seal(b"\0" * 9000, KEYS[0], ID, index=1, number=0, previous=segments.FIRST) for _ in range(2))
    assert one[:HEAD] == two[:HEAD]
    assert one[HEAD : HEAD + NONCE] != two[HEAD : HEAD + NONCE]
    assert one[HEAD + NONCE :][:64] != two[HEAD + NONCE :][:64]


@given(st.binary(max_size=200))
def test_junk_is_refused(junk):
    for whole in (junk, segments.MAGIC + junk, segments.joined_head(0), segments.joined_head(1) + junk):
        with pytest.raises(EnvelopeError):
            opened(whole)


def test_a_segment_that_claims_to_be_huge_is_not_waited_for():
    first = example()[1][0]
    huge = first[:6] + (1 << 31).to_bytes(4, "big") + first[10:]
    with pytest.raises(EnvelopeError, match="says that it has"):
        opened(joined([huge]))
