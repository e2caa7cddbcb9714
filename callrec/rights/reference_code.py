"""Reference codes: how a caller who withheld the number names the call later (D11).

Seven random signs and one that checks them, in Crockford's base 32 (digits and capital letters without I, L, O and U),
written as two groups of four: "7K3M-9QXF". Whoever reads one back may use small letters, spaces and hyphens, O for 0
and I or L for 1. One wrong sign, or two neighbours swapped, is always noticed: the eight signs are the coefficients of
a polynomial over the field of 32 elements which is zero at a generator of the field.

A code finds one recording and proves no more than that its bearer was told it. It has 35 random bits, so whoever takes
codes from outside limits the attempts, and keeps a keyed hash of the code, not the code.
"""

import secrets
from collections.abc import Callable

from callrec.errors import RightsError

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUE = {sign: value for value, sign in enumerate(_ALPHABET)} | {"O": 0, "I": 1, "L": 1}
_RANDOM = 7
_LENGTH = _RANDOM + 1
_LONGEST = 64  # what is read aloud has its spaces, but not more than this
_FIELD = 32
_REDUCTION = 0b100101  # x^5 + x^2 + 1 is primitive, so x generates the field's 31 non-zero elements


def new_code(below: Callable[[int], int] = secrets.randbelow) -> str:
    """A new code, eight signs. `below(n)` gives a random number from 0 to n - 1."""
    body = [below(_FIELD) for _ in range(_RANDOM)]
    return "".join(_ALPHABET[value] for value in [*body, _times_x(_remainder(body))])


def parse_code(text: str) -> str:
    """The code that `text` means, eight signs. Raises RightsError, which does not repeat the text, if it is none."""
    signs = "".join(text.replace("-", "").split()).upper() if len(text) <= _LONGEST else ""
    values = [_VALUE[sign] for sign in signs if sign in _VALUE]
    if len(signs) != _LENGTH or len(values) != _LENGTH:
        raise RightsError(
            "This is no reference code",
            detail=f"a code has {_LENGTH} letters and digits, and never a U",
            hint="Ask the caller to read it again",
        )
    if _remainder(values):
        raise RightsError(
            "This reference code has a mistake in it",
            detail="its last sign does not fit the others",
            hint="Ask the caller to read it again",
        )
    return "".join(_ALPHABET[value] for value in values)


def show_code(code: str) -> str:
    """A code as people read it: two groups of four."""
    return f"{code[:4]}-{code[4:]}"


def _remainder(values: list[int]) -> int:
    """The polynomial's value at x, by Horner's rule; 0 for a whole code."""
    result = 0
    for value in values:
        result = _times_x(result) ^ value
    return result


def _times_x(value: int) -> int:
    value <<= 1
    return value ^ _REDUCTION if value & _FIELD else value
