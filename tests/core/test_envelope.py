"""What is sealed opens with the right key, whole and unchanged, or not at all (A11)."""

import io
import tracemalloc
from functools import cache
from hashlib import sha256
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl import bindings as sodium

from callrec.errors import EnvelopeError
from callrec.recording import envelope

KEY = bytes(range(32))
ID = UUID("0191d6a0-1111-7222-8333-444455556666")
CHUNK = envelope.CHUNK_BYTES
HEAD = 32
LENGTHS = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7]


def sealed(plain, key=KEY, recording_id=ID):
    sink = io.BytesIO()
    facts = envelope.encrypt(io.BytesIO(plain), sink, key, recording_id)
    return sink.getvalue(), facts


@cache
def example(length):
    plain = (b"RIFF and what follows it " * (length // 25 + 1))[:length]
    return plain, sealed(plain)[0]


def opened(cipher, key=KEY, recording_id=ID, step=None):
    pieces = [cipher] if step is None else [cipher[at : at + step] for at in range(0, len(cipher), step)]
    return b"".join(envelope.decrypt(pieces, key, recording_id))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("step", [None, 1000, CHUNK + 17])
def test_what_went_in_comes_out(length, step):
    plain, cipher = example(length)
    assert opened(cipher, step=step) == plain


def test_the_facts_are_those_of_the_bytes():
    plain = example(2 * CHUNK)[0]
    cipher, facts = sealed(plain)
    assert facts == envelope.Sealed(sha256(plain).digest(), len(plain), sha256(cipher).digest(), len(cipher))


@given(st.lists(st.binary(max_size=3 * CHUNK // 2), max_size=5))
@settings(max_examples=30)
def test_the_pieces_of_the_source_do_not_matter(pieces):
    sink = io.BytesIO()
    envelope.encrypt(iter(pieces), sink, KEY, ID)
    plain = b"".join(pieces)
    assert opened(sink.getvalue()) == plain
    assert len(sink.getvalue()) == len(sealed(plain)[0])


def test_the_description_of_the_format_is_enough_to_read_it():
    """A reader written from the module's docstring alone."""
    plain, cipher = example(3 * CHUNK + 7)
    assert cipher[:8] == b"callrec\x01"
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, cipher[8:32], KEY)
    body, out, tags = cipher[32:], b"", []
    while body:
        part, body = body[:65553], body[65553:]
        text, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(state, part, b"callrec\x01" + ID.bytes)
        out += text
        tags.append(tag)
    assert out == plain
    assert tags == [0, 0, 0, 3]


@given(st.sampled_from(LENGTHS), st.data())
@settings(max_examples=150)
def test_no_single_bit_may_change(length, data):
    plain, cipher = example(length)
    bit = data.draw(st.integers(0, len(cipher) * 8 - 1))
    changed = bytearray(cipher)
    changed[bit // 8] ^= 1 << bit % 8
    written = []
    with pytest.raises(EnvelopeError):
        written.extend(envelope.decrypt([bytes(changed)], KEY, ID))  # keeps the pieces before the error
    assert plain.startswith(b"".join(written))


@given(st.sampled_from(LENGTHS), st.data())
@settings(max_examples=100)
def test_no_byte_may_be_missing(length, data):
    _, cipher = example(length)
    cut = data.draw(st.one_of(st.integers(0, len(cipher) - 1), st.sampled_from([HEAD, HEAD + CHUNK + 17])))
    if cut < len(cipher):
        with pytest.raises(EnvelopeError):
            opened(cipher[:cut], step=data.draw(st.sampled_from([None, 4096])))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("more", [b"\0", b"x" * 17, b"x" * (CHUNK + 17)])
def test_nothing_may_follow(length, more):
    _, cipher = example(length)
    for step in (None, 4096, len(cipher)):
        with pytest.raises(EnvelopeError):
            opened(cipher + more, step=step)


def test_a_second_recording_behind_the_first_is_refused():
    _, cipher = example(CHUNK)
    with pytest.raises(EnvelopeError):
        opened(cipher + cipher, step=len(cipher))


def test_chunks_may_not_change_places():
    _, cipher = example(3 * CHUNK + 7)
    size = CHUNK + 17
    first, second, rest = cipher[HEAD : HEAD + size], cipher[HEAD + size : HEAD + 2 * size], cipher[HEAD + 2 * size :]
    for order in (second + first + rest, first + first + rest, second + rest, first + rest):
        with pytest.raises(EnvelopeError):
            opened(cipher[:HEAD] + order)


def test_a_chunk_of_another_recording_under_the_same_key_is_refused():
    plain, cipher = example(2 * CHUNK)
    with pytest.raises(EnvelopeError):
        opened(cipher, recording_id=uuid4())
    other = sealed(plain, recording_id=uuid4())[0]
    with pytest.raises(EnvelopeError):
        opened(cipher[:HEAD] + other[HEAD:])


def test_the_wrong_key_opens_nothing():
    _, cipher = example(CHUNK)
    with pytest.raises(EnvelopeError):
        opened(cipher, key=envelope.new_key())
    with pytest.raises(EnvelopeError, match="32 bytes"):
        opened(cipher, key=b"short")


def test_another_version_says_so():
    _, cipher = example(1)
    with pytest.raises(EnvelopeError, match="version 2"):
        opened(cipher[:7] + b"\x02" + cipher[8:])


@given(st.binary(max_size=300))
def test_junk_is_refused(junk):
    with pytest.raises(EnvelopeError):
        opened(junk)
    with pytest.raises(EnvelopeError):
        opened(envelope.MAGIC + junk)


def test_two_encryptions_share_nothing():
    plain = example(CHUNK)[0]
    assert sealed(plain)[0][8:] != sealed(plain)[0][8:]


def test_memory_does_not_grow_with_the_recording():
    class Nowhere(io.RawIOBase):
        def write(self, data):
            return len(data)

    def recording():
        piece = bytes(8192)
        for _ in range(4096):  # 32 MiB
            yield piece

    tracemalloc.start()
    try:
        facts = envelope.encrypt(recording(), Nowhere(), KEY, ID)
        assert facts.plaintext_bytes == 32 << 20
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# Keys


def test_a_sealed_key_opens_with_its_private_key_alone():
    private, public = envelope.generate_keypair()
    key = envelope.new_key()
    box = envelope.seal(key, public)
    assert key not in box
    assert len(box) == 80
    assert envelope.unseal(box, private) == key
    assert envelope.public_of(private) == public
    stranger, other = envelope.generate_keypair()
    assert envelope.key_id(public) != envelope.key_id(other)
    with pytest.raises(EnvelopeError, match="another public key"):
        envelope.unseal(box, stranger)
    with pytest.raises(EnvelopeError):
        envelope.unseal(box[:-1] + bytes([box[-1] ^ 1]), private)
    with pytest.raises(EnvelopeError):
        envelope.unseal(b"", private)


def test_keys_as_text():
    private, _ = envelope.generate_keypair()
    assert envelope.decode_key(envelope.encode_key(private) + "\n") == private


@pytest.mark.parametrize("text", ["", "hunter2!", "aGVsbG8=", "A" * 43, "ž" * 44, "A" * 88])
def test_what_is_no_key_is_refused_and_not_repeated(text):
    with pytest.raises(EnvelopeError) as caught:
        envelope.decode_key(text)
    assert not text or text not in str(caught.value)
    assert caught.value.hint
