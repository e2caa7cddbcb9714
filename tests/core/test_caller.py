"""What is kept of a caller's number: found by who may look, proved with the salt, else nothing."""

import hmac

import pytest
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, SealedBox

from callrec.ledger.caller import Lookup, LookupKeys, conceal, look_up

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
KEYS = LookupKeys({1: KEY})
PRIVATE = PrivateKey.generate()
PUBLIC = bytes(PRIVATE.public_key)
NUMBER = "+38640123456"


def test_equal_numbers_are_found_under_one_index_and_others_are_not():
    first, second = conceal(NUMBER, KEYS, PUBLIC), conceal(NUMBER, KEYS, PUBLIC)
    assert first.lookup == second.lookup == Lookup(look_up(NUMBER, KEY), 1)
    assert look_up("+38640123457", KEY) != first.lookup.digest
    assert look_up(NUMBER, OTHER_KEY) != first.lookup.digest


def test_what_is_written_is_found_under_its_own_key_for_as_long_as_that_is_there():
    before, after = LookupKeys({1: KEY}), LookupKeys({1: KEY, 2: OTHER_KEY})
    old, new = before.newest(NUMBER), after.newest(NUMBER)
    assert (old.epoch, new.epoch) == (1, 2)
    assert after.every(NUMBER) == [new.digest, old.digest]
    assert LookupKeys({2: OTHER_KEY}).every(NUMBER) == [new.digest]
    assert after.epochs == (2, 1)


def test_two_calls_of_one_caller_do_not_show_as_such_in_the_ledger():
    first, second = conceal(NUMBER, KEYS, PUBLIC), conceal(NUMBER, KEYS, PUBLIC)
    assert first.commitment != second.commitment
    assert first.salt != second.salt
    assert first.sealed != second.sealed


def test_the_commitment_is_proved_with_its_salt_and_with_no_other():
    kept = conceal(NUMBER, KEYS, PUBLIC)
    assert hmac.new(kept.salt, NUMBER.encode(), "sha256").hexdigest() == kept.commitment
    assert hmac.new(conceal(NUMBER, KEYS, PUBLIC).salt, NUMBER.encode(), "sha256").hexdigest() != kept.commitment
    assert len(kept.salt) == 32


def test_the_number_opens_with_the_private_key_alone():
    kept = conceal(NUMBER, KEYS, PUBLIC)
    assert SealedBox(PRIVATE).decrypt(kept.sealed).decode() == NUMBER
    with pytest.raises(CryptoError):
        SealedBox(PrivateKey.generate()).decrypt(kept.sealed)


def test_no_part_shows_the_number_f1():
    kept = conceal(NUMBER, KEYS, PUBLIC)
    shown = repr(kept) + repr(KEYS) + kept.commitment
    assert NUMBER not in shown
    assert NUMBER[1:] not in shown
    assert NUMBER.encode() not in kept.lookup.digest + kept.salt + kept.sealed
    for secret in (kept.salt, kept.lookup.digest, KEY):
        assert str(secret) not in shown
        assert secret.hex() not in shown
