"""The lawful part of the configuration, [purposes], [bases], [notices] and [lines], read into a Policy.

What the law and the operator's promises forbid is refused here, so that no role can start with it: a wildcard line
(B8), a purpose that is denied everywhere (B4-B6), a notice that lacks one of its three elements or speaks of another
period than the one kept (A2), a text that is not the published one (A8).
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from callrec.call import spoken
from callrec.call.policy import (
    ERASED_PREFIX,
    PROBE_PREFIX,
    SEGMENTS_PREFIX,
    Basis,
    BasisKind,
    Line,
    LockMode,
    Notice,
    Policy,
    Prompt,
    Retention,
    e164,
)
from callrec.sound import Sound, inspect
from callrec.strict_toml import Table, nearest, quoted

_CODE = r"[a-z0-9_]+(\.[a-z0-9_]+)*"
_CODES = 'a list of purpose codes such as ["complaint_handling"]'
_DTMF = r"[0-9*#A-D]"
_WILDCARD = re.compile(r"[*?\[\]^$|\\{}]|[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Purposes:
    """What recordings may never be used for, and what the rights of callers always allow."""

    denied: frozenset[str]  # on every basis, whatever else is said (B4-B6)
    rights: frozenset[str]  # on every basis: requests of the person recorded, and the law's (B9, B10)


@dataclass(frozen=True, slots=True)
class Lawful:
    """What this module read."""

    policy: Policy
    purposes: Purposes
    bases: Mapping[str, Basis]
    notices: Mapping[str, Notice]
    also_printed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # line id -> misprints of its number


def text_sha256(text: str) -> str:
    """The hash under which a notice is published: of its NFC form in UTF-8."""
    return hashlib.sha256(unicodedata.normalize("NFC", text).encode()).hexdigest()


def read(root: Table, *, country: str, language: str, directory: str) -> Lawful:
    """Read the four tables of a configuration; `directory` holds the prompts' sound files."""
    purposes = _purposes(root.table("purposes"))
    bases = {name: _basis(name, table, purposes) for name, table in root.tables("bases").items()}
    notices = {
        name: _notice(name, table, purposes, language, directory) for name, table in root.tables("notices").items()
    }
    prefixes: dict[str, str] = {}
    for basis in bases.values():
        if basis.prefix and prefixes.setdefault(basis.prefix, basis.id) != basis.id:
            why = f"[bases.{prefixes[basis.prefix]}] has it already, and a prefix tells the bases apart"
            root.fault(f"bases.{basis.id}.prefix", f"is {quoted(basis.prefix)}", why, "Choose another")
        if basis.prefix in {PROBE_PREFIX, SEGMENTS_PREFIX, ERASED_PREFIX}:
            why = "callrec keeps something else below it, which goes by other rules"
            root.fault(f"bases.{basis.id}.prefix", f"is {quoted(basis.prefix)}", why, "Choose another")
    lines: dict[str, Line] = {}
    also: dict[str, tuple[str, ...]] = {}
    for name, table in root.tables("lines").items():
        line = _line(name, table, _number(table, country), bases, notices)
        also[name] = table.texts("also_printed_as", (), wanted="a list of misprints of the number", pattern=r"[^\n]+")
        if not line:
            continue
        _refuse_untold(table, line, purposes.rights)
        if line.number in lines:
            why = f"[lines.{lines[line.number].id}] is the same number, {line.number}"
            table.fault("number", "stands twice", why, "Remove one of the two lines")
        lines.setdefault(line.number, line)
    return Lawful(Policy(country, lines), purposes, bases, notices, also)


def _purposes(table: Table) -> Purposes:
    denied = frozenset(table.texts("denied", wanted=_CODES, pattern=_CODE))
    rights = frozenset(table.texts("rights", (), wanted=_CODES, pattern=_CODE))
    _refuse_denied(table, "rights", rights, denied)
    return Purposes(denied, rights)


def _refuse_denied(table: Table, key: str, purposes: frozenset[str], denied: frozenset[str]) -> None:
    for purpose in sorted(purposes & denied):
        why = "[purposes] denies it for every recording (B4, B5, B6)"
        table.fault(key, f"holds {quoted(purpose)}", why, "Remove it here")


def read_retention(table: Table) -> Retention:
    """The table `retention` of a table: years, months or both."""
    period = table.table("retention")
    years = period.integer("years", 0, 0, 30)
    months = period.integer("months", 0, 0, 360)
    if table.has("retention") and not years and not months:
        why = "Nothing may be kept for no time or for ever"
        table.fault("retention", "is no period", why, "Write { years = 3 } or { months = 3 }")
    return Retention(years, months)


def _basis(name: str, table: Table, purposes: Purposes) -> Basis:
    kind = table.choice("kind", BasisKind)
    lock = table.choice("lock", LockMode)
    own = frozenset(table.texts("purposes", wanted=_CODES, pattern=_CODE))
    _refuse_denied(table, "purposes", own, purposes.denied)
    one_key = "one DTMF key: 0-9, *, # or A-D"
    consent = kind == BasisKind.CONSENT
    required = None if consent else ""
    grant = table.text("grant_key", required, wanted=one_key, pattern=_DTMF)
    refuse = table.text("refuse_key", required, wanted=one_key, pattern=_DTMF)
    withdraw = table.text("withdraw_keys", "", wanted="one to six DTMF keys such as *2", pattern=rf"{_DTMF}{{1,6}}")
    if consent and grant and grant == refuse:
        table.fault(
            "refuse_key", f"is {quoted(refuse)}, as is grant_key", "Yes and no must differ (A4)", "Choose another"
        )
    for key, value in (("grant_key", grant), ("refuse_key", refuse), ("withdraw_keys", withdraw)):
        if kind == BasisKind.NOTICE and value:
            why = "A basis of the kind notice asks the caller for nothing, so there is nothing to press"
            table.fault(key, f"is {quoted(value)}", why, 'Remove it, or make the kind "consent"')
    return Basis(
        id=name,
        kind=BasisKind(kind or BasisKind.CONSENT),
        citation=table.text("citation"),
        gdpr_article_6=table.text("gdpr_article_6", ""),
        retention=read_retention(table),
        lock=LockMode(lock or LockMode.GOVERNANCE),
        prefix=table.text("prefix", wanted="lower-case letters, digits and -", pattern=r"[a-z0-9][a-z0-9-]{0,40}"),
        purposes=own | purposes.rights,
        grant_key=grant,
        refuse_key=refuse,
        withdraw_keys=withdraw,
        wait_seconds=table.number("wait_seconds", 5.0, 1, 60),
        repeats=table.integer("repeats", 2, 0, 10),
        segment_seconds=table.integer("segment_seconds", 10, 0, 3600),
    )


def _notice(name: str, table: Table, purposes: Purposes, language: str, directory: str) -> Notice:
    told = frozenset(table.texts("purposes", wanted=_CODES, pattern=_CODE))
    _refuse_denied(table, "purposes", told, purposes.denied)
    retention = read_retention(table)
    prompt = _prompt(table, "text", "prompt", directory)
    published = table.text("text_sha256", wanted="64 hexadecimal digits", pattern=r"[0-9a-f]{64}")
    if prompt.text and published and published != prompt.text_sha256:
        why = (
            f"The text's SHA-256 (NFC, UTF-8) is {prompt.text_sha256}, so this is not the text that was published (A8)"
        )
        table.fault("text_sha256", "does not belong to the text", why, "Restore the text, or publish a new version")
    if prompt.text and (retention.years or retention.months):
        for what, why, how in spoken.faults(prompt.text, retention, language):
            table.fault("text", what, why, how)
    ask = _prompt(table, "ask_text", "ask_prompt", directory) if table.has("ask_text") else None
    if ask and ask.text and " ".join(ask.text.split()) not in " ".join(prompt.text.split()):
        why = "The repeated question must be the one that the notice asked"
        table.fault("ask_text", "is no sentence of the notice's text", why, "Copy the sentence from the text")
    return Notice(
        id=name,
        version=table.text("version"),
        prompt=prompt,
        retention=retention,
        url=table.text("url", wanted="an https:// address", pattern=r"https://\S+"),
        policy_version=table.text("policy_version"),
        purposes=told,
        ask=ask,
    )


def _prompt(table: Table, text_key: str, file_key: str, directory: str) -> Prompt:
    text = table.text(text_key)
    name = table.text(file_key, wanted="the name of a sound file in [prompts] directory")
    if name and ("://" in name or name.startswith(("silence", "tone"))):
        why = "A stream may never end or never come, and the caller would wait for it"
        table.fault(file_key, f"is {quoted(name)}, a stream", why, "Name a WAV file in [prompts] directory")
        name = ""
    elif name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}\.wav", name):
        why = (
            "FreeSWITCH splits paths at spaces and reads other signs as commands; only PCM WAV is checked to be finite"
        )
        table.fault(file_key, f"is {quoted(name)}", why, "Use letters, digits, . _ - and end in .wav")
        name = ""
    file = f"{directory.rstrip('/')}/{name}" if name and directory else ""
    sound = inspect(Path(file)) if file else Sound()
    return Prompt(file, text, text_sha256(text), sound.sha256, sound.seconds)


def _number(table: Table, country: str) -> str:
    printed = table.text("number", wanted="a telephone number such as 040 40 40 45")
    if not printed:
        return ""
    number = e164(printed, country) if country else None
    if _WILDCARD.search(printed):
        why = "Recording calls without selection is unlawful, so every line is named by its own number (B8)"
        table.fault("number", f"is {quoted(printed)}, a wildcard", why, "Write one [lines.…] table for each number")
    elif country and not number:
        why = f"It is no valid number of {country}, so no call could match it"
        table.fault(
            "number", f"is {quoted(printed)}", why, "Correct it; both 040 40 40 45 and +386 40 404 045 are understood"
        )
    return number or ""


def _line(
    name: str, table: Table, number: str, bases: Mapping[str, Basis], notices: Mapping[str, Notice]
) -> Line | None:
    basis_id, notice_id = table.text("basis"), table.text("notice")
    basis, notice = bases.get(basis_id), notices.get(notice_id)
    if basis_id and not basis:
        table.fault("basis", f"is {quoted(basis_id)}, which [bases] does not define", nearest(basis_id, bases))
    if notice_id and not notice:
        table.fault("notice", f"is {quoted(notice_id)}, which [notices] does not define", nearest(notice_id, notices))
    if not (number and basis and notice):
        return None
    kept, told = basis.retention, notice.retention
    if (kept.years or kept.months) and (told.years or told.months) and not spoken.same(kept, told):
        why = f"The notice tells callers {spoken.describe(told)}, the basis keeps {spoken.describe(kept)} (A2)"
        table.fault(
            "notice", f"does not fit the basis {quoted(basis_id)}", why, "Make the two agree, or use another notice"
        )
    return Line(name, number, basis, notice)


def _refuse_untold(table: Table, line: Line, rights: frozenset[str]) -> None:
    untold = line.basis.purposes - rights - line.notice.purposes
    if untold:
        why = f"Its basis allows {', '.join(sorted(untold))}, which the notice does not tell the caller (B6)"
        table.fault("notice", "does not name every purpose", why, "Remove the purpose, or use a notice that names it")
