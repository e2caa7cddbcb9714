"""What the words of a notice tell the caller: that the call is recorded, why, and for how long the recording is kept.

S000:17 (A2) demands all three before anything is recorded. The period that is spoken must be the one that is kept.
Works on whole words in a small table for each language; it finds what is said plainly and accepts nothing else.
"""

import re
from dataclasses import dataclass

from callrec.call.policy import Retention


@dataclass(frozen=True, slots=True)
class _Language:
    numerals: dict[str, int]
    years: str  # regular expressions of the unit's forms
    months: str
    others: str  # units in which no retention is counted, spoken all the same
    fact: str
    purpose: str


_LANGUAGES = {
    "sl": _Language(
        numerals={
            "en": 1, "eno": 1, "enega": 1, "dve": 2, "dva": 2, "dveh": 2, "tri": 3, "treh": 3, "štiri": 4, "štirih": 4,
            "pet": 5, "petih": 5, "šest": 6, "šestih": 6, "sedem": 7, "osem": 8, "devet": 9, "deset": 10, "enajst": 11,
            "dvanajst": 12, "petnajst": 15, "osemnajst": 18, "dvajset": 20, "štiriindvajset": 24, "trideset": 30,
        },
        years=r"let(?:o|i|a|ih)?",
        months=r"mesec(?:a|e|ev|i|ih)?",
        others=r"dan|dni|dneva|dneh|ur|uro|uri|ure|teden|tedna|tedne|tednov|tednih",
        fact=r"(?:po)?snema\w*|posnet\w*|posname\w*",
        purpose=r"zaradi|z namenom|za namen\w*|v namen\w*|namen\w*",
    ),
    "en": _Language(
        numerals={
            "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
            "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "fifteen": 15, "eighteen": 18, "twenty": 20,
            "twenty-four": 24, "thirty": 30,
        },
        years=r"years?",
        months=r"months?",
        others=r"days?|weeks?|hours?",
        fact=r"record(?:ed|ing|ings|s)?",
        purpose=r"purposes?|in order to|because|so that|as evidence|as proof|due to",
    ),
}  # fmt: skip

LANGUAGES = frozenset(_LANGUAGES)


def _of_months(months: int) -> Retention:
    return Retention(years=months // 12, months=months % 12)


def describe(retention: Retention) -> str:
    """A period for people: "3 years", "1 year 6 months"."""
    parts = [(retention.years, "year"), (retention.months, "month")]
    return " ".join(f"{count} {unit}{'s' if count > 1 else ''}" for count, unit in parts if count) or "nothing"


def _normal(retention: Retention) -> Retention:
    return _of_months(retention.years * 12 + retention.months)


def same(one: Retention, other: Retention) -> bool:
    """Whether two periods are equally long; 12 months are a year."""
    return _normal(one) == _normal(other)


def periods(text: str, language: str) -> tuple[list[Retention], list[str]]:
    """Every period that the text names: those in years and months, and those in other units as they are spoken."""
    table = _LANGUAGES[language]
    count = "|".join(sorted((re.escape(word) for word in table.numerals), key=len, reverse=True))
    pattern = rf"\b(\d{{1,4}}|{count})[\s-]+(?:(?P<y>{table.years})|(?P<m>{table.months})|(?:{table.others}))\b"
    found, other = [], []
    for match in re.finditer(pattern, text.lower()):
        number = int(match[1]) if match[1].isdecimal() else table.numerals[match[1]]
        if match["y"]:
            found.append(_of_months(number * 12))
        elif match["m"]:
            found.append(_of_months(number))
        else:
            other.append(match[0])
    return found, other


def faults(text: str, retention: Retention, language: str) -> list[tuple[str, str, str]]:
    """What A2 finds wrong in a notice whose recordings are kept for `retention`: (what, why, how) each.

    Empty for a language that is not in `LANGUAGES`: nothing here can judge its words.
    """
    table = _LANGUAGES.get(language)
    if not table:
        return []
    wrong = []
    must = "A caller must be told of the recording, its purpose and how long it is kept (A2)"
    words = text.lower()
    if not re.search(rf"\b(?:{table.fact})\b", words):
        wrong.append(("does not say that the call is recorded", must, "Have the notice say it"))
    if not re.search(rf"\b(?:{table.purpose})\b", words):
        wrong.append(("does not say what the recording is for", must, "Have the notice name the purpose"))
    found, other = periods(text, language)
    wanted = describe(retention)
    if not found and not other:
        wrong.append(("does not say how long the recording is kept", must, f"Have the notice say {wanted}"))
    spoken = [describe(period) for period in found if not same(period, retention)] + [f'"{period}"' for period in other]
    if spoken:
        why = "A recording is kept exactly as long as its caller was told (A2)"
        how = "Correct the one that is wrong; a new text needs a new version, hash and sound file"
        wrong.append((f"speaks of {', '.join(spoken)} where the notice's retention is {wanted}", why, how))
    return wrong
