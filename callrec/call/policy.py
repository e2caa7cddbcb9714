"""Which line is recorded on which legal basis, after which notice, for how long and for what.

Default deny (B8): a number that is not in the table has no policy, and without a policy nothing is played and nothing
is recorded. Everything here comes from the operator's configuration; nothing is a constant of the code.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

import phonenumbers


class BasisKind(StrEnum):
    """What a basis asks of the caller."""

    NOTICE = "notice"  # the notice is enough: a legally authorised recording of a market transaction
    CONSENT = "consent"  # nothing before the caller has agreed by key


class LockMode(StrEnum):
    """S3 Object Lock retention modes."""

    GOVERNANCE = "GOVERNANCE"
    COMPLIANCE = "COMPLIANCE"


# Of object keys: the storage probe's canaries, and segments of running calls. No basis may have them.
PROBE_PREFIX, SEGMENTS_PREFIX, ERASED_PREFIX = "probe", "segments", "erased"


@dataclass(frozen=True, slots=True)
class Retention:
    """A calendar period, counted in the operator's time zone from the start of the recording (C1, C2)."""

    years: int = 0
    months: int = 0

    def __str__(self) -> str:
        """As ISO 8601 writes it: P3Y, P3M."""
        return f"P{f'{self.years}Y' if self.years else ''}{f'{self.months}M' if self.months else ''}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A sound that FreeSWITCH plays, and the words in it."""

    file: str  # absolute path, as FreeSWITCH sees it
    text: str
    text_sha256: str  # of the NFC text in UTF-8
    audio_sha256: str = ""  # of the file, filled in when it is read; empty where it is not there
    seconds: float = 0.0  # its length, filled in with the hash; 0 where it is not known


@dataclass(frozen=True, slots=True)
class Notice:
    """An announcement version (A2, A8, B6)."""

    id: str
    version: str
    prompt: Prompt
    retention: Retention  # as spoken in the text
    url: str
    policy_version: str
    purposes: frozenset[str]  # what the notice tells the caller that the recording is for
    ask: Prompt | None = None  # repeats the question alone; None plays the whole notice again

    def proof(self) -> dict[str, str]:
        """Which information the caller was given (A8)."""
        return {
            "text_sha256": self.prompt.text_sha256,
            "audio_sha256": self.prompt.audio_sha256,
            "notice_url": self.url,
            "policy_version": self.policy_version,
        }


@dataclass(frozen=True, slots=True)
class Basis:
    """A legal basis (A9): a recording carries exactly one, fixed before its first sample."""

    id: str
    kind: BasisKind
    citation: str
    gdpr_article_6: str
    retention: Retention
    lock: LockMode
    prefix: str  # of the object keys
    purposes: frozenset[str]  # for which a recording may be listened to; anything else is denied (B4-B6, B9-B11)
    grant_key: str = ""
    refuse_key: str = ""
    withdraw_keys: str = ""  # pressed during the conversation, in this order; empty where nothing can be withdrawn
    wait_seconds: float = 5.0  # for a key, after the notice and after each repeat
    repeats: int = 2  # of the question, before silence or a wrong key counts as no consent (A7)
    segment_seconds: int = 10  # between two segments of a running recording in the object store; 0: none are put

    def proof(self) -> dict[str, object]:
        """What a recording is made on, and what is promised of it: fixed before its first sample (A9)."""
        return {
            "basis": self.id,
            "citation": self.citation,
            "gdpr_article_6": self.gdpr_article_6,
            "retention": str(self.retention),
            "purposes": sorted(self.purposes),
        }


@dataclass(frozen=True, slots=True)
class Line:
    """One called number and what holds for calls to it."""

    id: str  # the configuration's name for it; what metrics and logs show
    number: str  # E.164
    basis: Basis
    notice: Notice

    @property
    def longest_interview(self) -> float:
        """Seconds from the answer to the decision if the caller lets every prompt play and answers last, or never.

        As far as the prompts' lengths are known. An early key has the question asked once more than `repeats` says.
        """
        basis, notice = self.basis, self.notice
        if basis.kind is BasisKind.NOTICE:
            return notice.prompt.seconds
        question = (notice.ask or notice.prompt).seconds + basis.wait_seconds
        return notice.prompt.seconds + (basis.repeats + 1) * question


@dataclass(frozen=True, slots=True)
class Policy:
    """All lines of one operator."""

    country: str  # ISO 3166-1 alpha-2, for numbers in national form
    lines: Mapping[str, Line] = field(default_factory=dict)  # by E.164

    def line_for(self, dialled: str) -> Line | None:
        """The line that was dialled, in whatever form the trunk delivered its number, or None: not recorded."""
        number = _known(dialled, self.country)
        return self.lines.get(number) if number else None

    def basis(self, basis_id: str) -> Basis | None:
        return next((line.basis for line in self.lines.values() if line.basis.id == basis_id), None)


_LONGEST_DIALLED = 32  # E.164 has 15 digits; prefixes and separators stay well below this
# One plus, and first. No nested repeats: the text is the caller's choice.
_DIALLED = re.compile(r"(?:\+(?=[1-9]))?[0-9 ()./-]+")


def e164(dialled: str, country: str) -> str | None:
    """The E.164 form of a dialled number: 040…, +386…, 00386… and 386… all name one line; None if it is no number."""
    text = dialled.strip(" ")
    if len(text) > _LONGEST_DIALLED or not _DIALLED.fullmatch(text):
        return None
    # Some trunks deliver the international form without its plus.
    for candidate in (text,) if text[0] == "+" else (text, f"+{text}"):
        try:
            number = phonenumbers.parse(candidate, country)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_possible_number(number) and phonenumbers.is_valid_number(number):
            return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    return None


_known = lru_cache(maxsize=256)(e164)  # of dialled numbers, which are few; callers' numbers are not kept
