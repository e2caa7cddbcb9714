"""The operator's configuration: one TOML file, annotated in callrec.example.toml, read into frozen values.

Every fault is found and reported at once. Secrets are not in it: see callrec.credentials.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo, available_timezones

import phonenumbers

from callrec.call.policy import Basis, Notice, Policy
from callrec.credentials import ROLES, Secrets, decode_key
from callrec.errors import ConfigError
from callrec.lines import Purposes
from callrec.lines import read as read_lawful
from callrec.rights.calendar import WEEKEND, Calendar
from callrec.signing import Signing
from callrec.signing import read as read_signing
from callrec.strict_toml import Address, ConfigErrors, Fault, Faults, Table, nearest, quoted
from callrec.terms import Terms
from callrec.terms import read as read_terms

# FreeSWITCH splits a path at spaces and gives other signs a meaning; callrec's own paths go to it.
_PATH = r"/[A-Za-z0-9._/-]+"
_PATH_WANTED = "an absolute path of letters, digits, . _ - and / (FreeSWITCH splits paths at spaces)"
_NAME = r"[a-z_][a-z0-9_]{0,62}"
_WEEK = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_BUCKET, _BUCKET_WANTED = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "an S3 bucket's name"
_ARN = r"arn:[a-z-]+:iam::[A-Za-z0-9$_-]*:(?:user|role)/[\w+=,.@/-]{1,128}"
_ARN_WANTED = "an ARN such as arn:aws:iam::111122223333:role/callrec-ship"


@dataclass(frozen=True, slots=True)
class Operator:
    """Who records: the controller."""

    name: str
    country: str  # ISO 3166-1 alpha-2
    timezone: str  # in which retention is counted
    language: str  # of the notices, ISO 639-1
    address: str
    contact: str

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)


@dataclass(frozen=True, slots=True)
class Workdays:
    """What the operator says about working days, beside the public holidays of the country."""

    weekend: frozenset[int]  # as date.weekday() counts: Monday is 0
    extra_non_working: frozenset[date]
    extra_working: frozenset[date]


@dataclass(frozen=True, slots=True)
class Listen:
    """The listener that FreeSWITCH's `socket` application connects to."""

    address: Address
    max_calls: int
    decision_timeout_ms: int  # a basis that is not durable by then is none

    @property
    def decision_timeout(self) -> float:
        """Seconds."""
        return self.decision_timeout_ms / 1000


@dataclass(frozen=True, slots=True)
class Spool:
    """Where recordings wait for the object store. Sizes in bytes."""

    path: Path
    min_free: int  # with less free space, no new recording
    max_size: int  # with more in the spool, no new recording
    consent_reserve: int  # with less than this left to either, no new recording by consent


@dataclass(frozen=True, slots=True)
class Postgres:
    """The database, and the user that each role logs in as."""

    url: str
    users: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Redis:
    """The live state of calls. Times in seconds."""

    url: str
    live_ttl_seconds: int
    ended_ttl_seconds: int


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The S3 bucket of the ledger's checkpoints."""

    bucket: str
    years: int  # under COMPLIANCE: nobody can shorten that


@dataclass(frozen=True, slots=True)
class Storage:
    """The S3 bucket of the recordings."""

    endpoint: str
    region: str
    allowed_regions: tuple[str, ...]  # F4
    bucket: str
    single_put_limit: int  # bytes; above it a recording goes up in parts
    read_back: str  # of what was put: "sample" or "full"
    worm_probe: str  # "enforce": nothing is recorded on storage that fails the probe; "warn": it is only said
    checkpoints: Checkpoints | None  # None where none are kept in S3
    principals: Mapping[str, str]  # the ARN of each credential, or empty: `callrec storage init` sets no policies


@dataclass(frozen=True, slots=True)
class Config:
    """All of it. `operator.zone`, `policy.line_for(number)` and `secrets` are what most readers want."""

    path: Path
    operator: Operator
    node: str
    lost_after_seconds: int  # without a sign of another node its recordings are taken over
    event_socket: Address
    listen: Listen
    spool: Spool
    postgres: Postgres
    redis: Redis
    storage: Storage
    ledger: Signing
    public_key: bytes  # 32 bytes; recordings' keys are sealed to it
    http: Address  # for those who operate callrec
    callbacks: Address  # for those who tell it things
    prompts: Path
    policy: Policy
    workdays: Workdays
    terms: Terms
    purposes: Purposes
    bases: Mapping[str, Basis]
    notices: Mapping[str, Notice]
    also_printed: Mapping[str, tuple[str, ...]]
    secrets: Secrets = field(repr=False)

    @property
    def calendar(self) -> Calendar:
        """The operator's working days, in which deadlines are counted (C4, E1)."""
        return _calendar(self.operator, self.workdays)


def load(path: str | Path, env: Mapping[str, str] | None = None, role: str | None = None) -> Config:
    """The configuration in `path`. With `role`, its secrets must be there as well.

    Raises ConfigErrors (a ConfigError) with every fault found.
    """
    config, faults = parse(path, os.environ if env is None else env, role)
    if faults or config is None:
        raise ConfigErrors(faults)
    return config


def parse(path: str | Path, env: Mapping[str, str], role: str | None = None) -> tuple[Config | None, list[Fault]]:
    """The configuration and its faults. With faults it holds empty values in their place; None if it is no TOML."""
    path = Path(path)
    faults = Faults()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        faults.add(str(path), "does not exist", how="Copy callrec.example.toml there, or give another path")
        return None, faults.found
    except OSError as error:
        faults.add(str(path), f"can't be read: {error.strerror}", how="Correct the path or its rights")
        return None, faults.found
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        faults.add(str(path), f"is not UTF-8 text (line {line})", how="Save it as UTF-8")
        return None, faults.found
    except tomllib.TOMLDecodeError as error:
        faults.add(str(path), f"is not TOML: {error}", how="Correct that line")
        return None, faults.found
    root = Table(data, "", faults)
    secrets = Secrets(env)
    config = _config(root, path, secrets)
    root.done()
    if role is not None:
        lacking = secrets.faults(role)
        for name, what, how in [*lacking, *(config.ledger.faults(secrets) if role == "sweep" else ())]:
            faults.add(name, what, how=how)
    return config, faults.found


def _config(root: Table, path: Path, secrets: Secrets) -> Config:
    operator = _operator(root.table("operator"))
    prompts = root.table("prompts").text("directory", wanted=_PATH_WANTED, pattern=_PATH)
    lawful = read_lawful(root, country=operator.country, language=operator.language, directory=prompts)
    wanted = "1 to 40 lower-case letters, digits and -"
    return Config(
        path=path,
        operator=operator,
        node=(node := root.table("node")).text("name", wanted=wanted, pattern=r"[a-z0-9][a-z0-9-]{0,39}"),
        lost_after_seconds=node.integer("lost_after_seconds", 120, 5, 86_400),
        event_socket=root.table("freeswitch", required=False).address("event_socket", "127.0.0.1:8021"),
        listen=_listen(root.table("listen", required=False)),
        spool=_spool(root.table("spool")),
        postgres=_postgres(root.table("postgres")),
        redis=_redis(root.table("redis")),
        storage=_storage(root.table("storage")),
        ledger=read_signing(root.table("ledger")),
        public_key=_public_key(root.table("encryption")),
        http=(http := root.table("http", required=False)).address("address", "127.0.0.1:9470"),
        callbacks=http.address("callbacks", "127.0.0.1:9471"),
        prompts=Path(prompts),
        policy=lawful.policy,
        workdays=_workdays(root.table("calendar", required=False), operator),
        terms=read_terms(*(root.table(name, required=False) for name in ("dispositions", "holds", "evidence"))),
        purposes=lawful.purposes,
        bases=lawful.bases,
        notices=lawful.notices,
        also_printed=lawful.also_printed,
        secrets=secrets,
    )


def _operator(table: Table) -> Operator:
    country = table.text("country", wanted="a country's two capital letters", pattern=r"[A-Z]{2}")
    if country and country not in phonenumbers.SUPPORTED_REGIONS:
        table.fault("country", f"is {quoted(country)}, which has no numbering plan", how="Give the ISO 3166-1 code")
        country = ""
    timezone = table.text("timezone", wanted="a time zone such as Europe/Ljubljana")
    if timezone and timezone not in available_timezones():
        why = f"Retention ends by the operator's calendar (C1). {nearest(timezone, available_timezones())}"
        table.fault("timezone", f"is {quoted(timezone)}, no known zone", why, "Give an IANA name")
        timezone = "UTC"
    return Operator(
        name=table.text("name"),
        country=country,
        timezone=timezone or "UTC",
        language=table.text("language", wanted="a language's two letters such as sl", pattern=r"[a-z]{2}"),
        address=table.text("address"),
        contact=table.text("contact"),
    )


def _workdays(table: Table, operator: Operator) -> Workdays:
    usual = tuple(_WEEK[day] for day in sorted(WEEKEND))
    weekend = table.texts("weekend", usual, wanted='a list such as ["saturday", "sunday"]', pattern="|".join(_WEEK))
    workdays = Workdays(
        weekend=frozenset(map(_WEEK.index, weekend)),
        extra_non_working=frozenset(table.dates("extra_non_working")),
        extra_working=frozenset(table.dates("extra_working")),
    )
    if operator.country:
        try:
            _calendar(operator, workdays)
        except ConfigError as error:
            table.faults.add(table.where, error.message, error.detail, error.hint)
    return workdays


def _calendar(operator: Operator, workdays: Workdays) -> Calendar:
    return Calendar(
        operator.country,
        operator.timezone,
        workdays.weekend,
        workdays.extra_non_working,
        workdays.extra_working,
    )


def _listen(table: Table) -> Listen:
    return Listen(
        address=table.address("address", "127.0.0.1:8084"),
        max_calls=table.integer("max_calls", 1000, 1, 100_000),
        decision_timeout_ms=table.integer("decision_timeout_ms", 250, 10, 5000),
    )


def _spool(table: Table) -> Spool:
    path = table.text("path", wanted=_PATH_WANTED, pattern=_PATH)
    return Spool(
        Path(path),
        min_free=table.size("min_free", "2GiB"),
        max_size=table.size("max_size", "20GiB"),
        consent_reserve=table.size("consent_reserve", "1GiB"),
    )


def _url(table: Table, key: str, schemes: tuple[str, ...], variable: str) -> str:
    """A URL without a user or password in it."""
    value = table.text(key, wanted=f"a URL that begins with {' or '.join(f'{s}://' for s in schemes)}")
    if not value:
        return ""
    try:
        url = urlsplit(value)
        url.port  # noqa: B018 - raises for a port that is none
    except ValueError:
        table.fault(key, f"is {quoted(value)}, no URL", how=f"Begin it with {schemes[0]}://")
        return ""
    query = sorted(name for name in parse_qs(url.query) if "pass" in name)
    if url.password is not None or query:  # the value itself is not repeated here
        part = f" as {query[0]}" if query else ""
        table.fault(key, f"holds a password{part}", "This file holds no secrets", f"Remove it and set {variable}")
        return ""
    if url.username is not None:
        table.fault(key, "holds a user name", "Each role has a user of its own", "Remove it from the URL")
        return ""
    if url.scheme not in schemes or not (url.hostname or url.path.strip("/") or url.query):
        table.fault(key, f"is {quoted(value)}", how=f"Begin it with {schemes[0]}://, then the host")
        return ""
    return value


def _postgres(table: Table) -> Postgres:
    url = _url(table, "url", ("postgresql", "postgres"), "CALLREC_POSTGRES_PASSWORD_<ROLE>")
    named = table.table("users", required=False)
    wanted = "a user name of lower-case letters, digits and _"
    users = {role: named.text(role, f"callrec_{role}", wanted=wanted, pattern=_NAME) for role in ROLES}
    for role, user in users.items():
        first = next(other for other in users if users[other] == user)
        if user and first != role:
            why = f"{first} has it too, and a role may do no more than its work needs"
            named.fault(role, f"is {quoted(user)}", why, "Give each role its own user")
    return Postgres(url, users)


def _redis(table: Table) -> Redis:
    return Redis(
        url=_url(table, "url", ("redis", "rediss", "unix"), "CALLREC_REDIS_PASSWORD"),
        live_ttl_seconds=table.integer("live_ttl_seconds", 14_400, 60, 86_400),
        ended_ttl_seconds=table.integer("ended_ttl_seconds", 300, 1, 86_400),
    )


def _storage(table: Table) -> Storage:
    endpoint = _url(table, "endpoint", ("https", "http"), "CALLREC_S3_SECRET_KEY_<ROLE>")
    region = table.text("region", wanted="a region such as eu-central-1", pattern=r"[a-z0-9-]{1,40}")
    allowed = table.texts("allowed_regions", wanted='a list such as ["eu-central-1"]', pattern=r"[a-z0-9-]{1,40}")
    law = "Recordings may not leave the regions that the operator allows (F4)"
    if region and allowed and region not in allowed:
        how = f"Use one of {', '.join(allowed)}, or have the data-protection officer allow this one"
        table.fault("region", f"is {quoted(region)}, which allowed_regions does not hold", law, how)
    named = re.search(r"\b(?:af|ap|ca|cn|eu|il|me|mx|sa|us)(?:-[a-z]+)+-\d\b", urlsplit(endpoint).hostname or "")
    if named and region and named[0] != region:
        table.fault("endpoint", f"is in {named[0]} while region says {region}", law, "Make the two agree")
    if table.has("allowed_regions") and not allowed:
        table.fault("allowed_regions", "allows no region", law, "Name at least one")
    bucket = table.text("bucket", wanted=_BUCKET_WANTED, pattern=_BUCKET)
    return Storage(
        endpoint=endpoint,
        region=region,
        allowed_regions=allowed,
        bucket=bucket,
        single_put_limit=table.size("single_put_limit", "64MiB"),
        read_back=table.choice("read_back", ("sample", "full"), "sample"),
        worm_probe=table.text("worm_probe", "enforce", wanted='"enforce" or "warn"', pattern="enforce|warn"),
        checkpoints=_checkpoints(table.table("checkpoints"), bucket) if table.has("checkpoints") else None,
        principals=_principals(table.table("principals")) if table.has("principals") else {},
    )


def _checkpoints(table: Table, recordings: str) -> Checkpoints:
    bucket = table.text("bucket", wanted=_BUCKET_WANTED, pattern=_BUCKET)
    if bucket and bucket == recordings:
        why = "All in it is under COMPLIANCE for years, and recordings have to go before"
        table.fault("bucket", f"is {quoted(bucket)}, the bucket of the recordings", why, "Name another bucket")
    return Checkpoints(bucket, years=table.integer("years", 10, 1, 100))


def _principals(table: Table) -> Mapping[str, str]:
    """The ARN of ship, sweep, api and checkpoint, which is sweep's where it is left out."""
    arns = {role: table.text(role, wanted=_ARN_WANTED, pattern=_ARN) for role in ("ship", "sweep", "api")}
    for role, arn in arns.items():
        first = next(other for other in arns if arns[other] == arn)
        if arn and first != role:
            why = f"{first} has it too, and then whoever takes over one of the two has the rights of both"
            table.fault(role, f"is {quoted(arn)}", why, "Give each its own user or role")
    return {**arns, "checkpoint": table.text("checkpoint", arns["sweep"] or None, wanted=_ARN_WANTED, pattern=_ARN)}


def _public_key(table: Table) -> bytes:
    value = table.text("public_key", wanted="32 bytes in base64")
    try:
        return decode_key(value) if value else b""
    except ValueError as error:
        why = f"It must be 32 bytes in base64 ({error}); every recording's own key is sealed to it"
        table.fault("public_key", "is no public key", why, "Paste the public half of the key pair")
        return b""
