"""What is kept of a caller's number: found by who may look, proved with the salt, else nothing."""

import hmac

import pytest
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, SealedBox

from callrec.ledger.caller import conceal, look_up

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
PRIVATE = PrivateKey.generate()
PUBLIC = bytes(PRIVATE.public_key)
NUMBER = "+38640123456"


def test_equal_numbers_are_found_under_one_index_and_others_are_not():
    first, second = conceal(NUMBER, KEY, PUBLIC), conceal(NUMBER, KEY, PUBLIC)
    assert first.lookup == second.lookup == look_up(NUMBER, KEY)
    assert look_up("+38640123457", KEY) != first.lookup
    assert look_up(NUMBER, OTHER_KEY) != first.lookup


def test_two_calls_of_one_caller_do_not_show_as_such_in_the_ledger():
    first, second = conceal(NUMBER, KEY, PUBLIC), conceal(NUMBER, KEY, PUBLIC)
    assert first.commitment != second.commitment
    assert first.salt != second.salt
    assert first.sealed != second.sealed


def test_the_commitment_is_proved_with_its_salt_and_with_no_other():
    kept = conceal(NUMBER, KEY, PUBLIC)
    assert hmac.new(kept.salt, NUMBER.encode(), "sha256").hexdigest() == kept.commitment
    assert hmac.new(conceal(NUMBER, KEY, PUBLIC).salt, NUMBER.encode(), "sha256").hexdigest() != kept.commitment
    assert len(kept.salt) == 32


def test_the_number_opens_with_the_private_key_alone():
    kept = conceal(NUMBER, KEY, PUBLIC)
    assert SealedBox(PRIVATE).decrypt(kept.sealed).decode() == NUMBER
    with pytest.raises(CryptoError):
        SealedBox(PrivateKey.generate()).decrypt(kept.sealed)


def test_no_part_shows_the_number_f1():
    kept = conceal(NUMBER, KEY, PUBLIC)
    shown = repr(kept) + kept.commitment
    assert NUMBER not in shown
    assert NUMBER[1:] not in shown
    assert NUMBER.encode() not in kept.lookup + kept.salt + kept.sealed
    assert kept.salt.hex() not in repr(kept)
