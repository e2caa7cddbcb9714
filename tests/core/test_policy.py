"""The dialled number and its line: every form a trunk delivers, and nothing else (B8)."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callrec.call.policy import Policy, e164
from callrec.config import load

EXAMPLE = Path(__file__).parents[2] / "callrec.example.toml"
LINES = {
    "+38640404045": "sales",
    "+38640404040": "service-40",
    "+38640404030": "service-30",
    "+38640404085": "service-85",
    "+38640404042": "service-42",
    "+38640404066": "service-66",
    "+38640404041": "service-41",
}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load(EXAMPLE, {}).policy


def test_the_seven_lines(policy):
    assert {number: line.id for number, line in policy.lines.items()} == LINES
    sales = policy.lines["+38640404045"]
    assert (sales.basis.kind, sales.basis.retention.years, sales.notice.id) == ("notice", 3, "A")
    for number in LINES.keys() - {"+38640404045"}:
        line = policy.lines[number]
        assert (line.basis.kind, line.basis.retention.months, line.notice.id) == ("consent", 3, "B")
        assert (line.basis.grant_key, line.basis.refuse_key, line.basis.withdraw_keys) == ("1", "2", "*2")


@pytest.mark.parametrize("number", LINES)
@pytest.mark.parametrize(
    "form",
    ["+{cc}{nn}", "00{cc}{nn}", "{cc}{nn}", "0{nn}", "{nn}", "0{a} {b} {c} {d}", "+{cc} {a} {b} {c} {d}",
     "0{a}/{b}{c}{d}", "(0{a}) {b}{c}-{d}", "+{cc} (0){nn}", "0{a}.{b}.{c}.{d}", " 0{nn} "],
)  # fmt: skip
def test_every_form_of_a_number_reaches_its_line(policy, number, form):
    national = number.removeprefix("+386")
    a, b, c, d = (national[i : i + 2] for i in range(0, 8, 2))
    dialled = form.format(cc="386", nn=national, a=a, b=b, c=c, d=d)
    line = policy.line_for(dialled)
    assert line is not None, dialled
    assert line.id == LINES[number]


@pytest.mark.parametrize(
    "dialled",
    [
        "", " ", "*", "+", "0", "112", "anonymous", "404 40 40 45", "404404045", "0404040455", "04040404", "040404046",
        "+4940404045", "+38540404045", "0038540404045", "+386404040455", "++38640404045", "+00386 40404045",
        "040404045;phone-context=+386", "040404045@example.org", "tel:040404045", "sip:040404045", "040404045x1",
        "040404045\n", "\t040404045", "040404045\r\nvariable_consent: 1", "040404045%0A", "0404040\x0045",
        "٠٤٠٤٠٤٠٤٥", "\uff10\uff14\uff10\uff14\uff10\uff14\uff10\uff14\uff15",
        "040" + " " * 40 + "404045", "0" * 1000, "040,404,045", "040404045#", "*2",
        "040404045/040404040", "O4O4O4O45", "040404045+", "+386+40404045",
    ],
)  # fmt: skip
def test_what_is_not_the_number_matches_no_line(policy, dialled):
    assert policy.line_for(dialled) is None, dialled


def test_a_number_made_to_be_slow_is_not():
    began = time.perf_counter()
    for junk in ("0" * 31 + "x", "(" * 31 + "x", "0-" * 16, "0 " * 15 + "0)", "+" * 32, "(0)" * 10, "1/" * 16):
        e164(junk, "SI")
    assert (
        time.perf_counter() - began < 0.1
    )  # seven calls of a millisecond; a regular expression gone wild takes minutes


@given(st.text(max_size=40))
def test_junk_never_raises_and_never_becomes_a_line_without_its_digits(junk):
    number = e164(junk, "SI")
    if number is None:
        return
    digits = "".join(c for c in junk if c in "0123456789")
    assert number[0] == "+"
    assert number[1:].isdecimal()
    assert number[1:].isascii()
    # the national number was really dialled: nothing was invented or read out of other signs
    assert number.removeprefix("+386") in digits or number[1:] in digits or digits.lstrip("0")[-6:] in number


@given(prefix=st.sampled_from(["", "+386", "00386", "0"]), rest=st.text("0123456789 -/().+*#;@abcx\n", max_size=14))
def test_only_the_digits_of_a_line_reach_it(policy, prefix, rest):
    line = policy.line_for(prefix + rest)
    if line:
        digits = "".join(c for c in prefix + rest if c.isdigit())
        national = line.number.removeprefix("+386")
        assert digits.removesuffix(national) in {"", "0", "386", "00386", "3860", "003860"}


@given(st.text("0123456789", min_size=1, max_size=15))
def test_e164_is_stable(digits):
    number = e164(digits, "SI")
    if number:
        assert e164(number, "SI") == number
        assert e164(number, "DE") == number
