"""Checkpoints are C2SP's: published vectors, and whatever was changed, or signed by nobody known, is refused."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callrec.errors import LedgerError
from callrec.ledger import note, tree
from callrec.ledger.note import Checkpoint, Signer, Verifier

# The example keys and notes of golang.org/x/mod/sumdb/note, which C2SP's signed-note was written from.
PETER_PRIVATE = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH_LINE = (
    "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
)
# The example of C2SP's tlog-checkpoint.
SOFA = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"

ORIGIN = "ledger.example.com/calls"
SIGNER = Signer(ORIGIN, bytes(range(32)))
CHECKPOINT = Checkpoint(ORIGIN, 1_000_000, tree.leaf_hash(b"root"))


def opened(*lines, text=TEXT, by=(PETER,)):
    return note.open_note((text + "\n" + "".join(lines)).encode(), map(Verifier.parse, by))


# Published


def test_the_published_note_is_made_byte_for_byte():
    assert note.sign_note(TEXT, [Signer.parse(PETER_PRIVATE)]).decode() == TEXT + "\n" + PETER_LINE


def test_the_published_note_opens():
    text, by = opened(PETER_LINE)
    assert text == TEXT
    assert [str(verifier) for verifier in by] == [PETER]


def test_the_published_keys_as_text():
    signer = Signer.parse(PETER_PRIVATE)
    assert signer.private_text() == PETER_PRIVATE
    assert str(signer.verifier) == PETER
    assert str(Verifier.parse(ENOCH)) == ENOCH


def test_the_published_checkpoint():
    checkpoint = Checkpoint.parse(SOFA)
    assert checkpoint.origin == "example.com/behind-the-sofa"
    assert checkpoint.size == 20852163
    assert checkpoint.root.hex().startswith("0ac5186a91863e8e1d90")
    assert checkpoint.text() == SOFA


# Who signed


def test_signatures_by_others_are_passed_over():
    """So that keys can be changed, and witnesses sign, without anybody being told first."""
    assert [by.name for by in opened(ENOCH_LINE, PETER_LINE)[1]] == ["PeterNeumann"]
    assert [by.name for by in opened(PETER_LINE, ENOCH_LINE, PETER_LINE, by=(PETER, ENOCH))[1]] == [
        "PeterNeumann",
        "EnochRoot",
    ]
    witness = f"— PeterNeumann {base64.b64encode(bytes(4 + 2420)).decode()}\n"  # another key of the same name
    assert opened(witness, PETER_LINE)[0] == TEXT


def test_a_note_that_nobody_known_signed_is_refused():
    with pytest.raises(LedgerError, match="Nobody known"):
        opened(PETER_LINE, by=(ENOCH,))
    with pytest.raises(LedgerError, match="Nobody known"):
        opened(PETER_LINE, by=())
    stranger = Signer.generate("PeterNeumann")
    with pytest.raises(LedgerError, match="Nobody known"):
        opened(stranger.sign(TEXT))


def test_one_false_signature_of_a_known_key_spoils_the_note():
    forged = base64.b64encode(bytes.fromhex("c74f20a3") + bytes(64)).decode()
    for line in (f"— PeterNeumann {forged}\n", PETER_LINE[:60] + "ABCD" + PETER_LINE[60:]):
        with pytest.raises(LedgerError, match="false"):
            opened(PETER_LINE, line)


def test_two_keys_of_one_name_and_id_are_refused():
    one, other = Verifier.parse(PETER), Verifier("PeterNeumann", bytes(32))
    object.__setattr__(other, "key_id", one.key_id)
    with pytest.raises(LedgerError, match="same name and id"):
        note.open_note((TEXT + "\n" + PETER_LINE).encode(), [one, other])


def test_an_old_and_a_new_key_sign_side_by_side():
    old, new = Signer.generate(ORIGIN), Signer.generate(ORIGIN)
    signed = note.sign_checkpoint(CHECKPOINT, [old, new])
    for trusted in ([old.verifier], [new.verifier], [old.verifier, new.verifier]):
        assert note.open_checkpoint(signed, trusted, ORIGIN) == CHECKPOINT


# What was changed


@given(st.data())
@settings(max_examples=300)
def test_no_bit_of_a_checkpoint_may_change(data):
    """Every bit of it: the size among them, which no proof of inclusion protects by itself."""
    signed = bytearray(note.sign_checkpoint(CHECKPOINT, [SIGNER]))
    bit = data.draw(st.integers(0, len(signed) * 8 - 1))
    signed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(LedgerError):
        note.open_checkpoint(bytes(signed), [SIGNER.verifier], ORIGIN)


def test_a_checkpoint_of_another_ledger_is_refused():
    other = Checkpoint("ledger.example.com/other", CHECKPOINT.size, CHECKPOINT.root)
    with pytest.raises(LedgerError, match="another ledger"):
        note.open_checkpoint(note.sign_checkpoint(other, [SIGNER]), [SIGNER.verifier], ORIGIN)


# What can't be read


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"\n",
        b"\n\n",
        TEXT.encode(),
        f"{TEXT}\n".encode(),
        f"{TEXT}\n{PETER_LINE}"[:-1].encode(),
        f"\x01{TEXT}\n{PETER_LINE}".encode(),
        f"{TEXT}\r\n\n{PETER_LINE}".encode(),
        b"\xff" + f"{TEXT}\n{PETER_LINE}".encode(),
        f"{TEXT}\n{PETER_LINE}Unexpected line.\n".encode(),
        f"{TEXT}\n{PETER_LINE}\n".encode(),
        f"{TEXT}\n{PETER_LINE.replace('PeterNeumann', 'Bad Name')}".encode(),
        f"{TEXT}\n{PETER_LINE.replace('PeterNeumann', 'Bad+Name')}".encode(),
        f"{TEXT}\n{PETER_LINE.replace('PeterNeumann', 'Bad' + chr(0xA0) + 'Name')}".encode(),
        f"{TEXT}\n{PETER_LINE.replace('— ', '- ')}".encode(),
        f"{TEXT}\n{PETER_LINE.replace('AM=', 'AN=')}".encode(),  # the same bytes, written in another way
        f"{TEXT}\n{PETER_LINE}— x AAAAAA==\n".encode(),  # a key id and nothing behind it
        f"{TEXT}\n{PETER_LINE}— x =\n".encode(),
        f"{TEXT}\n{PETER_LINE * 101}".encode(),
        f"{'x' * note.MAX_BYTES}\n\n{PETER_LINE}".encode(),
    ],
)
def test_what_is_no_note_is_refused(written):
    with pytest.raises(LedgerError, match="not a signed note"):
        note.open_note(written, [Verifier.parse(PETER)])


@given(st.binary(min_size=1, max_size=200))
def test_junk_is_refused(junk):
    with pytest.raises(LedgerError):
        note.open_note(junk, [SIGNER.verifier])
    with pytest.raises(LedgerError):
        note.open_note(junk + note.sign_checkpoint(CHECKPOINT, [SIGNER]), [SIGNER.verifier])


def test_sixteen_signatures_of_the_largest_kind_are_read():
    """As many as C2SP demands; post-quantum ones have up to nearly 5 kB."""
    lines = [f"— witness{place} {base64.b64encode(bytes(5000)).decode()}\n" for place in range(15)]
    assert opened(*lines, PETER_LINE)[0] == TEXT


@pytest.mark.parametrize(
    "text",
    [
        "",
        ORIGIN + "\n",
        f"{ORIGIN}\n7\n",
        SOFA.removesuffix("\n"),
        SOFA + "extension\n",
        SOFA + "\n",
        SOFA.replace("20852163", "020852163"),
        SOFA.replace("20852163", "-1"),
        SOFA.replace("20852163", "+1"),
        SOFA.replace("20852163", "1e3"),
        SOFA.replace("20852163", "٣"),
        SOFA.replace("20852163", ""),
        SOFA.replace("20852163", "9223372036854775808"),
        SOFA.replace("example.com/behind-the-sofa", ""),
        SOFA.replace("CsUY", "Cs-Y"),
        SOFA.replace("q2I=", "q2J="),
        SOFA.replace("CsUYapGG", ""),
        SOFA.replace("\n", "\r\n"),
    ],
)
def test_what_is_no_checkpoint_is_refused(text):
    with pytest.raises(LedgerError):
        Checkpoint.parse(text)


def test_a_checkpoint_of_nothing():
    empty = Checkpoint(ORIGIN, 0, tree.EMPTY_ROOT)
    assert Checkpoint.parse(empty.text()) == empty


@given(st.integers(0, tree.MAX_SIZE), st.binary(min_size=32, max_size=32))
def test_a_checkpoint_reads_as_it_was_written(size, root):
    checkpoint = Checkpoint(ORIGIN, size, root)
    assert note.open_checkpoint(note.sign_checkpoint(checkpoint, [SIGNER]), [SIGNER.verifier], ORIGIN) == checkpoint


@pytest.mark.parametrize("text", ["", "no newline", "a\tb\n", "a\x00\n", "a\r\n", "x" * note.MAX_BYTES + "\n"])
def test_what_could_not_be_read_again_is_not_signed(text):
    with pytest.raises(LedgerError):
        note.sign_note(text, [SIGNER])
    with pytest.raises(LedgerError):
        note.sign_note(TEXT, [])


@given(st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), max_size=20), st.integers(0, 3))
def test_whatever_is_signed_reads_again(words, gaps):
    """A text may end in empty lines: the last one of the note parts it from the signatures."""
    text = words + "\n" + "\n" * gaps
    assert note.open_note(note.sign_note(text, [SIGNER]), [SIGNER.verifier])[0] == text


@pytest.mark.parametrize(
    ("origin", "size", "root"), [("", 1, bytes(32)), ("a\nb", 1, bytes(32)), ("a", -1, bytes(32)), ("a", 1, b"")]
)
def test_what_can_not_be_a_checkpoint(origin, size, root):
    with pytest.raises(LedgerError):
        Checkpoint(origin, size, root)


# Keys


def mangled(text):
    for begin in range(len(text)):
        for end in range(begin + 1, len(text) + 1):
            if (begin, end) != (0, len(text)):
                yield text[begin:end]
    for place, letter in enumerate(text):
        yield text[:place] + chr(ord(letter) + 1) + text[place + 1 :]


@pytest.mark.parametrize(("parse", "text"), [(Verifier.parse, PETER), (Signer.parse, PETER_PRIVATE)])
def test_a_mangled_key_is_refused_and_not_repeated(parse, text):
    for changed in mangled(text):
        with pytest.raises(LedgerError) as caught:
            parse(changed)
        assert text[-20:] not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",  # an unknown kind of key
        PETER.replace("c74f20a3", "C74F20A3"),
        PETER + "\n",
    ],
)
def test_a_key_that_goes_by_another_id_or_kind_is_refused(text):
    with pytest.raises(LedgerError):
        Verifier.parse(text)


@pytest.mark.parametrize("name", ["", "two words", "one+one", "a\u00a0b", "a\nb", "a\u200bb"])
def test_what_can_not_name_a_key(name):
    with pytest.raises(LedgerError):
        Verifier(name, bytes(32))


def test_a_public_key_has_32_bytes():
    with pytest.raises(LedgerError):
        Verifier("short", bytes(31))


def test_a_new_key_is_its_own_and_does_not_show():
    one, other = Signer.generate(ORIGIN), Signer.generate(ORIGIN)
    assert one.private_text() != other.private_text()
    assert Signer.parse(one.private_text()).verifier == one.verifier
    assert Verifier.parse(str(one.verifier)) == one.verifier
    assert one.private_text().rpartition("+")[2] not in repr(one)
