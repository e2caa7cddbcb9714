"""`callrec check`: judges a configuration and what it points at, without starting anything.

What no role could start with comes from callrec.config; this adds what lies outside the file (sounds, spool, secrets)
and what is allowed but should be known.
"""

import ipaddress
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from nacl.public import PrivateKey

from callrec.call import spoken
from callrec.call.policy import e164
from callrec.config import Config, parse
from callrec.credentials import LEDGER_KEY, ROLES
from callrec.errors import ConfigError
from callrec.sound import inspect
from callrec.strict_toml import Address, quoted


class Severity(StrEnum):
    """An error keeps a role from its work; a warning is for the operator to know."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know: where it stands, what it is, why it matters, how to mend it."""

    severity: Severity
    where: str
    what: str
    why: str = ""
    how: str = ""


# The private half of this key is 32 times the byte 1: callrec.example.toml holds it so that it can be tried.
_EXAMPLE_KEY = bytes(PrivateKey(b"\x01" * 32).public_key)
_EXAMPLE_VERIFIER = "AYE5dw6ofRdfVqNUZsNMfszLjYqRtO43ol32D1uPybOU"  # likewise, of 32 times the byte 2
_DEFAULT_PASSWORD = "ClueCon"  # noqa: S105 - the one that FreeSWITCH ships and everybody knows
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse.sshfs", "fuse.s3fs", "fuse.glusterfs", "ceph", "9p")
_RATES = ("8000", "16000", "32000", "48000")


def check(path: str | Path, env: Mapping[str, str] | None = None) -> list[Finding]:
    """Everything found, errors first. No error means that callrec can start."""
    config, faults = parse(path, os.environ if env is None else env)
    found = [Finding(Severity.ERROR, fault.where, fault.what, fault.why, fault.how) for fault in faults]
    if config:
        for part in (_prompts, _spool, _lines, _lawful, _network, _storage, _secrets, _left_out, _ledger):
            found.extend(part(config))
    return sorted(found, key=lambda finding: finding.severity)  # "error" sorts first, the rest keeps its order


def failed(findings: list[Finding]) -> bool:
    """Whether there is an error: the command's exit status."""
    return any(finding.severity is Severity.ERROR for finding in findings)


def render(findings: list[Finding]) -> str:
    """For people."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity:<8} {finding.where} {finding.what}.")
        lines.extend(f"         {part.rstrip('.')}." for part in (finding.why, finding.how) if part)
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    warnings = len(findings) - errors
    count = f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}."
    return "\n".join([*lines, f"The configuration is good: {count}" if not errors else count])


def as_json(findings: list[Finding]) -> str:
    """For scripts: a list of objects with severity, where, what, why, how."""
    return json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2)


def _error(where: str, what: str, why: str, how: str) -> Finding:
    return Finding(Severity.ERROR, where, what, why, how)


def _warning(where: str, what: str, why: str, how: str) -> Finding:
    return Finding(Severity.WARNING, where, what, why, how)


def _prompts(config: Config) -> Iterator[Finding]:
    texts: dict[str, str] = {}
    for notice in config.notices.values():
        for key, prompt in (("prompt", notice.prompt), ("ask_prompt", notice.ask)):
            if not prompt or not prompt.file:
                continue
            where = f"notices.{notice.id}.{key}"
            if texts.setdefault(prompt.file, prompt.text) != prompt.text:
                why = "One sound can't say two texts, and the ledger would vouch for both"
                yield _error(where, f"shares {prompt.file} with another text", why, "Give each text its own file")
            sound = inspect(Path(prompt.file))
            if sound.fault:
                why = "A call whose notice can't be played whole is not recorded (A2)"
                yield _error(where, f"names {prompt.file}, which {sound.fault}", why, sound.how)
    if not config.prompts.is_absolute():
        return
    for rate in _RATES:
        if os.path.isdir(config.prompts / rate):  # noqa: PTH112 # which is no error where this user may not look
            why = (
                "FreeSWITCH takes a file from a directory named like the call's rate before the one that is hashed here"
            )
            yield _error("prompts.directory", f"holds a directory {rate}", why, "Remove it")


def _spool(config: Config) -> Iterator[Finding]:
    path = config.spool.path
    if not path.is_absolute():  # a fault already
        return
    where = "spool.path"
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        how = "Let callrec's user enter the directories above it"
        yield _error(where, f"is {path}, which can't be looked at: {error.strerror}", "Recordings wait there", how)
        return
    if not path.is_dir():
        what = f"is {path}, which is no directory" if path.exists() else f"is {path}, which does not exist"
        how = f"install -d -m 2770 -o callrec -g freeswitch {path}"
        yield _error(where, what, "FreeSWITCH records into it, and callrec takes the files from it", how)
        return
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        why = "Recordings are read and removed by callrec's user"
        yield _error(where, f"is {path}, which this user can't write", why, "Correct its owner or mode")
    kind = _file_system(path)
    if kind.startswith(_NETWORK_FILE_SYSTEMS):
        why = "A write that waits for the network stops the audio of the call"
        yield _error(where, f"is {path}, on {kind}", why, "Use a local disk")
    if config.spool.max_size and config.spool.consent_reserve >= config.spool.max_size:
        why = "Nothing would ever be recorded by consent"
        yield _error("spool.consent_reserve", "is not less than max_size", why, "Make it a small part of max_size")
    disk = shutil.disk_usage(path)
    if disk.free < config.spool.min_free:
        what = f"is {path}, which has {disk.free >> 20} MiB free, less than min_free"
        yield _error(where, what, "No recording starts below it", "Free some space, or lower spool.min_free")
    if config.spool.max_size > disk.total:
        why = f"The whole disk has {disk.total >> 20} MiB, so min_free alone limits the spool"
        yield _warning("spool.max_size", "is larger than the disk", why, "Lower it")


def _file_system(path: Path) -> str:
    """The type of the file system that holds `path`; empty where the system doesn't tell."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    real = path.resolve()
    for mount in mounts:
        _, point, mounted, *_ = mount.split(" ")
        point = point.replace("\\040", " ")
        if real.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, mounted
    return kind


def _lines(config: Config) -> Iterator[Finding]:
    for name, misprints in config.also_printed.items():
        where = f"lines.{name}.also_printed_as"
        for misprint in misprints:
            number = e164(misprint, config.operator.country) if config.operator.country else None
            what = f"{quoted(misprint)} is {number or f'no valid number of {config.operator.country}'}"
            why = "It is not taken for this line: a call to it would not be announced and not be recorded (B8)"
            yield _warning(where, what, why, "Correct it where it is printed")
    used = config.policy.lines.values()
    for basis_id in sorted(config.bases.keys() - {line.basis.id for line in used}):
        yield _warning(f"bases.{basis_id}", "is used by no line", "It has no effect", "Remove it, or use it")
    for notice_id in sorted(config.notices.keys() - {line.notice.id for line in used}):
        yield _warning(f"notices.{notice_id}", "is used by no line", "It has no effect", "Remove it, or use it")
    if not used:
        yield _error("lines", "defines no usable line", "No call would be recorded", "Add a [lines.NAME] table")


def _lawful(config: Config) -> Iterator[Finding]:
    for basis in config.bases.values():
        if not basis.segment_seconds:
            why = (
                "Nothing leaves the node before the end of a call: what it is recording when it is lost is lost with it"
            )
            yield _warning(
                f"bases.{basis.id}.segment_seconds", "is 0", why, "Use 10, at the price of sending all twice"
            )
        if not basis.gdpr_article_6:
            why = "It decides which rights a caller has against this recording, the right to object among them"
            how = 'Have the data-protection officer decide, then write for example "6(1)(f)"'
            yield _warning(f"bases.{basis.id}.gdpr_article_6", "is not set", why, how)
    language = config.operator.language
    if language and language not in spoken.LANGUAGES:
        why = (
            f"Notices are only understood in {', '.join(sorted(spoken.LANGUAGES))}, so nobody compared their words (A2)"
        )
        how = "Read each notice: it must say that it records, what for, and how long it keeps"
        yield _warning("operator.language", f"is {quoted(language)}", why, how)


def _network(config: Config) -> Iterator[Finding]:
    taken: dict[Address, str] = {}
    bound = {"listen.address": config.listen.address, "http.address": config.http, "http.callbacks": config.callbacks}
    for where, address in bound.items():
        if address.port and taken.setdefault(address, where) != where:
            what, why = f"is {address}, as is {taken[address]}", "Only one of them can have it"
            yield _error(where, what, why, "Choose another port")
    for where, address in (("freeswitch.event_socket", config.event_socket), ("listen.address", config.listen.address)):
        if address.host and not _loopback(address.host):
            why = "The event socket is not encrypted, and whoever reaches it commands the switch or feigns calls"
            yield _warning(
                where, f"is {address}, not on this host", why, "Use 127.0.0.1: callrec stands beside FreeSWITCH"
            )
    endpoint = urlsplit(config.storage.endpoint)
    if endpoint.scheme == "http" and not _loopback(endpoint.hostname or ""):
        why = "Recordings travel encrypted, but nobody proves to be the store"
        yield _warning("storage.endpoint", "is not https", why, "Use https")


def _storage(config: Config) -> Iterator[Finding]:
    storage = config.storage
    if not storage.principals:
        how = "Name who has each S3 credential, then run callrec storage init"
        yield _warning("storage.principals", "is not set", "callrec can't give each credential its rights alone", how)
    if storage.worm_probe == "warn":
        why = "Recordings would be taken on storage that is known not to keep its locks"
        yield _warning("storage.worm_probe", 'is "warn"', why, 'Use "enforce" where recordings are evidence')


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _secrets(config: Config) -> Iterator[Finding]:
    secrets = config.secrets
    for role in ROLES:
        missing = []
        for name, what, how in secrets.faults(role):
            if secrets.given(name):
                yield _error(name, f"can't be used: {what}", f"The role {role} needs it", how)
            else:
                missing.append(name)
        if missing:
            how = "Set each, or its name with _FILE to a file that holds it, where that role runs and nowhere else"
            yield _warning(f"role {role}", f"has no {', '.join(missing)} here", "It can't start without", how)
    try:
        if secrets.given("CALLREC_EVENT_SOCKET_PASSWORD") and secrets.event_socket_password() == _DEFAULT_PASSWORD:
            why = "Everybody knows FreeSWITCH's default, and it gives command of the switch"
            yield _error("CALLREC_EVENT_SOCKET_PASSWORD", f"is {_DEFAULT_PASSWORD}", why, "Set another, there and here")
        if secrets.given("CALLREC_PRIVATE_KEY") and config.public_key:
            public = bytes(PrivateKey(secrets.private_key()).public_key)
            if public != config.public_key:
                why = "What is recorded now could not be opened with it"
                how = "Give the private key that was made together with encryption.public_key"
                yield _error("CALLREC_PRIVATE_KEY", "does not belong to encryption.public_key", why, how)
    except ConfigError:  # said above
        pass
    if config.public_key == _EXAMPLE_KEY:
        why = "Everybody has the private half of it and could open what is recorded"
        yield _warning("encryption.public_key", "is the example's", why, "Make a pair of your own: callrec keys")


def _left_out(config: Config) -> Iterator[Finding]:
    """The secrets that may be left out, where they are not."""
    from callrec.web.auth import Accounts  # noqa: PLC0415 # a library that no other command is to wait for

    secrets = config.secrets
    uses: dict[str, Callable[[], object]] = {
        "CALLREC_REDIS_PASSWORD": secrets.redis_password,
        "CALLREC_API_TOKENS": lambda: Accounts(secrets.api_tokens()),
        "CALLREC_PRIVATE_KEY": secrets.private_key,
        "CALLREC_S3_ACCESS_KEY_API": lambda: secrets.s3_keys("api"),
        "CALLREC_S3_ACCESS_KEY_CHECKPOINT": lambda: secrets.s3_keys("checkpoint"),
    }
    for name, use in uses.items():
        if secrets.given(name):
            try:
                use()
            except ConfigError as error:
                yield _error(name, f"can't be used: {error.message}", error.detail, error.hint)


def _ledger(config: Config) -> Iterator[Finding]:
    signing, secrets, storage = config.ledger, config.secrets, config.storage
    unsigned = "The ledger isn't signed, and an inspector would have to believe it"
    for name, what, how in signing.faults(secrets):
        yield _error(name, f"can't be used: {what}", unsigned, how)
    if secrets.given("CALLREC_POSTGRES_PASSWORD_SWEEP") and not secrets.given(LEDGER_KEY):
        yield _error(LEDGER_KEY, "is not given here, where sweep runs", unsigned, "Make one with callrec keys")
    if any(str(verifier).endswith(_EXAMPLE_VERIFIER) for verifier in signing.verifiers):
        why = "Everybody has the private half of it and could sign another ledger"
        yield _warning("ledger.verifiers", "holds the example's", why, "Make a pair of your own: callrec keys")
    if signing.tsa_roots and not os.access(signing.tsa_roots, os.R_OK):
        why = "No time stamp would be believed"
        yield _error("ledger.tsa_roots", f"is {signing.tsa_roots}, which can't be read", why, "Correct path or rights")
    if storage.checkpoints is None:
        why = "A database that is put back as a whole to an earlier state goes unnoticed"
        yield _warning("storage.checkpoints", "is not set", why, "Name a bucket of its own for them")
    own = storage.principals.get("checkpoint") not in {None, storage.principals.get("sweep")}
    if own and secrets.given("CALLREC_S3_ACCESS_KEY_SWEEP") and not secrets.given("CALLREC_S3_ACCESS_KEY_CHECKPOINT"):
        why = "sweep would put checkpoints with its own credential, which may not"
        how = "Set CALLREC_S3_ACCESS_KEY_CHECKPOINT and CALLREC_S3_SECRET_KEY_CHECKPOINT where sweep runs"
        yield _error("storage.principals.checkpoint", "is another than sweep's, but its keys are not given", why, how)
