"""The configuration: the example operator as published, and a clear message for each kind of fault."""

import base64
import hashlib
import re
from datetime import date
from pathlib import Path

import pytest

from callrec.config import load, parse
from callrec.credentials import ROLES, variables
from callrec.errors import ConfigError
from callrec.ledger.caller import Lookup, look_up
from callrec.ledger.note import Signer
from callrec.rights.calendar import Calendar
from callrec.strict_toml import ConfigErrors

EXAMPLE = Path(__file__).parents[2] / "callrec.example.toml"
TEXT = EXAMPLE.read_text(encoding="utf-8")
# As published: requirements, announcements A and B.
PUBLISHED = {
    "A": "b7b28ba532daf18b5188b4dea78832336b9016d2dfa526c1d833728638f56988",
    "B": "46f2683d051d01b77e9b74efbc176bdbbe324a64fdaa805018c3eb1947134a4b",
}
KEY = base64.b64encode(bytes(range(32))).decode()
SECRETS = {name: f"s3cret-{i}" for i, role in enumerate(ROLES) for name in variables(role)} | {
    "CALLREC_PRIVATE_KEY": KEY,
    "CALLREC_LOOKUP_KEY": KEY,
    "CALLREC_LEDGER_KEY": Signer("ledger.a1.si/callrec", b"\x02" * 32).private_text(),  # the example's
}


def changed(tmp_path: Path, old: str, new: str) -> Path:
    assert TEXT.count(old) >= 1, f"the example no longer holds {old!r}"
    path = tmp_path / "callrec.toml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    return path


def faults(path: Path, env=None, role=None) -> list[str]:
    return [str(fault) for fault in parse(path, env or {}, role)[1]]


def test_the_notices_are_the_published_ones_d10():
    config = load(EXAMPLE, {})
    for name, sha256 in PUBLISHED.items():
        prompt = config.notices[name].prompt
        assert prompt.text_sha256 == sha256
        assert hashlib.sha256(prompt.text.encode()).hexdigest() == sha256


def test_c4_the_operators_working_days(tmp_path):
    assert load(EXAMPLE, {}).calendar == Calendar("SI", "Europe/Ljubljana")
    path = changed(tmp_path, "extra_non_working = []", "extra_non_working = [2026-06-12, 2026-06-15]")
    calendar = load(path, {}).calendar
    assert [calendar.is_working(date(2026, 6, day)) for day in (11, 12, 15, 16)] == [True, False, False, True]
    path = changed(tmp_path, "extra_working = []", "extra_working = [2026-06-13]")
    assert load(path, {}).calendar.is_working(date(2026, 6, 13))
    path = changed(tmp_path, 'weekend = ["saturday", "sunday"]', 'weekend = ["sunday"]')
    assert load(path, {}).calendar.is_working(date(2026, 6, 20))


def test_the_example_operator():
    config = load(EXAMPLE, {})
    assert config.operator.zone.key == "Europe/Ljubljana"
    assert len(config.policy.lines) == 7
    assert config.spool.min_free == 2 << 30
    assert config.spool.consent_reserve == 1 << 30
    assert config.storage.single_put_limit == 64 << 20
    assert config.listen.decision_timeout == 0.25
    assert config.listen.address == ("127.0.0.1", 8084)
    assert "agent_supervision" in config.purposes.denied  # B4
    assert config.bases["consent"].purposes == {  # B9
        "service_quality.information_accuracy", "service_quality.caller_satisfaction", "dsar", "erasure", "legal_claim",
    }  # fmt: skip
    assert config.bases["market_transaction"].purposes == {  # B10; so none for marketing or tracing either: B11, C7
        "transaction_evidence", "complaint_handling", "dispute", "dsar", "erasure", "legal_claim",
    }  # fmt: skip
    ask = config.notices["B"].ask
    assert ask
    assert ask.text in config.notices["B"].prompt.text


NOTICE_A = "notices.A]"
EXTRA_DAYS = TEXT[TEXT.index("extra_non_working =") : TEXT.index("[node]")]
FAULTS = {
    "no ledger": ("[ledger]", "[ledger2]", ["ledger: is missing", "[ledger]"]),
    "origin with a space": ('"ledger.a1.si/callrec"', '"our ledger"', ["ledger.origin", '"our ledger"']),
    "nobody signs": ("verifiers = [", "verifiers = []\n# ", ["ledger.verifiers", "names no public key"]),
    "a key that is none": ("verifiers = [", 'verifiers = ["x+y+z"]\n# ', ["ledger.verifiers", "no public key"]),
    "the key of another ledger": (
        'origin = "ledger.a1.si/callrec"', 'origin = "ledger.a1.si/other"',
        ["ledger.verifiers", '"ledger.a1.si/callrec"', "callrec keys --ledger --origin ledger.a1.si/other"],
    ),
    "anchors too seldom": ("anchor_seconds = 60", "anchor_seconds = 36000", ["ledger.anchor_seconds", "1 to 3600"]),
    "a time stamp from nobody": ('# tsa_url = "http', 'tsa_url = "http', ["ledger.tsa_roots", "proves nothing"]),
    "stamps of nobody who is asked": ('# tsa_roots = "', 'tsa_roots = "', ["ledger.tsa_url", "is missing", "asked"]),
    "unknown weekday": ('["saturday", "sunday"]', '["sabbath"]', ["calendar.weekend", '"sabbath"']),
    "day in quotes": ("extra_working = []", 'extra_working = ["2026-06-13"]', ["calendar.extra_working", "quotes"]),
    "day with a time": (
        "extra_working = []", "extra_working = [2026-06-13T00:00:00Z]", ["calendar.extra_working", "without quotes"],
    ),
    "day on and off": (
        EXTRA_DAYS, "extra_non_working = [2026-06-13]\nextra_working = [2026-06-13]\n",
        ["calendar", "both off and worked", "2026-06-13"],
    ),
    "nobody ever works": (
        '["saturday", "sunday"]', '["monday","tuesday","wednesday","thursday","friday","saturday","sunday"]',
        ["weekend"],
    ),
    "country without known holidays": ('country = "SI"', 'country = "AC"', ["calendar", "public holidays", "AC"]),
    "unknown key": ("max_calls = 1000", "max_call = 1000", ["listen.max_call: ", "unknown key", '"max_calls"']),
    "unknown table": ("[http]", "[htpp]", ["htpp: ", "unknown key", '"http"']),
    "unknown key in a line": ('basis = "market_tr', 'note = "x"\nbasis = "market_tr', ["lines.sales.note", '"notice"']),
    "wrong type": ("max_calls = 1000", 'max_calls = "1000"', ["listen.max_calls", '"1000"', "whole number from 1 to"]),
    "boolean for a number": ("max_calls = 1000", "max_calls = true", ["listen.max_calls", "true or false"]),
    "table for a text": ("[node]\n", "[node]\nname = { a = 1 }\n[node2]\n", ["node.name", "a table"]),
    "out of range": ("max_calls = 1000", "max_calls = 0", ["listen.max_calls", "out of range", "from 1 to"]),
    "a node lost between two beats": (
        "lost_after_seconds = 120", "lost_after_seconds = 2", ["node.lost_after_seconds", "out of range", "from 5 to"],
    ),
    "missing key": ('bucket = "callrec-recordings"', "", ["storage.bucket", "is missing"]),
    "missing table": ("[spool]", "[spool2]", ["spool: is missing", "[spool]"]),
    "empty text": ('name = "A1 Slovenija, d. d."', 'name = " "', ["operator.name", "is empty"]),
    "control character": ('name = "A1 Slovenija, d. d."', r'name = "A\u0000"', ["operator.name", "control characters"]),
    "bad size": ('min_free = "2GiB"', 'min_free = "2 gigs"', ["spool.min_free", '"2 gigs"', "MiB"]),
    "size without unit": ('min_free = "2GiB"', "min_free = 2", ["spool.min_free", "a number", "64MiB"]),
    "bad address": ('"127.0.0.1:8084"', '"127.0.0.1"', ["listen.address", '"127.0.0.1"', "a port"]),
    "bad port": ('"127.0.0.1:8084"', '"127.0.0.1:70000"', ["listen.address", "70000"]),
    "unknown time zone": ("Europe/Ljubljana", "Europe/Lubljana", ["operator.timezone", '"Europe/Ljubljana"', "C1"]),
    "unknown country": ('country = "SI"', 'country = "XX"', ["operator.country", '"XX"']),
    "relative spool": ('"/var/spool/callrec"', '"spool"', ["spool.path", "absolute path"]),
    "space in the spool": ('"/var/spool/callrec"', '"/var/my spool"', ["spool.path", "/var/my spool", "spaces"]),
    "password in the file": ("[redis]\n", '[redis]\npassword = "x"\n', ["redis.password", "looks like a secret"]),
    "secret key in the file": ("[storage]\n", '[storage]\nsecret_key = "x"\n', ["storage.secret_key", "secret"]),
    "private key in the file": ("[encryption]\n", '[encryption]\nprivate_key = "x"\n', ["encryption.private_key"]),
    "password in the database url": ("//127.0.0.1:5432", "//u:hunter2@127.0.0.1:5432", ["postgres.url", "password"]),
    "password in the query": ("5432/callrec", "5432/callrec?password=hunter2", ["postgres.url", "holds a password"]),
    "password in the redis url": ("redis://127", "redis://:hunter2@127", ["redis.url", "CALLREC_REDIS_PASSWORD"]),
    "user in the database url": ("//127.0.0.1:5432", "//root@127.0.0.1:5432", ["postgres.url", "user name"]),
    "not a database url": ("postgresql://", "mysql://", ["postgres.url", "postgresql://"]),
    "two roles, one user": ('"callrec_ship"', '"callrec_listen"', ["postgres.users.ship", "listen has it too"]),
    "region not allowed (F4)": ('region = "eu-central-1"', 'region = "us-east-1"', ["storage.region", "F4"]),
    "endpoint elsewhere (F4)": ("s3.eu-central-1.", "s3.us-east-1.", ["storage.endpoint", "us-east-1", "F4"]),
    "public key too short": ('public_key = "pOCS', 'public_key = "', ["encryption.public_key", "32 bytes"]),
    "public key no base64": ('public_key = "pOCS', 'public_key = "!!!!', ["encryption.public_key", "base64"]),
    "wildcard * (B8)": ('"040 40 40 40"', '"*"', ["lines.service-40.number", "a wildcard", "B8"]),
    "wildcard +386* (B8)": ('"040 40 40 40"', '"+386*"', ["lines.service-40.number", "a wildcard", "B8"]),
    "wildcard any (B8)": ('"040 40 40 40"', '"any"', ["lines.service-40.number", "a wildcard", "B8"]),
    "regular expression (B8)": ('"040 40 40 40"', '"^0404040.."', ["lines.service-40.number", "a wildcard", "B8"]),
    "no valid number": ('"040 40 40 40"', '"404 40 40 45"', ["lines.service-40.number", "no valid number of SI"]),
    "number twice": ('"040 40 40 40"', '"+386 40 404 045"', ["lines.service-40.number", "[lines.sales]", "twice"]),
    "unknown basis": ('basis = "market_transaction"', 'basis = "market"', ["sales.basis", '"market_transaction"']),
    "unknown notice": ('notice = "A"', 'notice = "AA"', ["lines.sales.notice", '"AA"', '"A"']),
    "consent without keys": ('grant_key = "1"', 'x = "1"', ["bases.consent.grant_key", "is missing"]),
    "yes and no alike (A4)": ('refuse_key = "2"', 'refuse_key = "1"', ["bases.consent.refuse_key", "A4"]),
    "two-digit key": ('grant_key = "1"', 'grant_key = "11"', ["bases.consent.grant_key", "one DTMF key"]),
    "key that no phone has": ('withdraw_keys = "*2"', 'withdraw_keys = "x2"', ["consent.withdraw_keys", "DTMF"]),
    "notice with a key": ('kind = "notice"', 'kind = "notice"\ngrant_key = "1"', ["transaction.grant_key", "asks"]),
    "unknown kind": ('kind = "notice"', 'kind = "notices"', ["market_transaction.kind", '"notice"']),
    "unknown lock": ('lock = "GOVERNANCE"', 'lock = "governance"', ["market_transaction.lock", "COMPLIANCE"]),
    "no retention": ("retention = { months = 3 }", "retention = {}", ["bases.consent.retention", "no period"]),
    "negative retention": ("{ years = 3 }", "{ years = -3 }", ["retention.years", "out of range"]),
    "retention in days": ("{ months = 3 }", "{ days = 90 }", ["bases.consent.retention.days", "unknown key"]),
    "prefix twice": ('prefix = "consent"', 'prefix = "market-transaction"', ["bases.consent.prefix", "market_trans"]),
    "denied purpose (B4)": (
        'purposes = ["transaction_evidence", "complaint_handling", "dispute"]',
        'purposes = ["transaction_evidence", "agent_supervision"]',
        ["bases.market_transaction.purposes", "agent_supervision", "B4"],
    ),
    "denied purpose in a notice (B6)": (
        '"dispute"]    #', '"dispute", "agent_evaluation"]    #', ["notices.A.purposes", "agent_evaluation"],
    ),
    "purpose that callers aren't told (B6)": (
        '"dispute"]\n', '"dispute", "training"]\n', ["lines.sales.notice", "training", "B6"],
    ),
    "other text than published (A8)": ("vaš pogovor snema,", "vaš klic snema,", ["notices.A.text_sha256", "A8"]),
    "hash of another text": ('text_sha256 = "b7b2', 'text_sha256 = "0000', ["notices.A.text_sha256", "b7b28ba532"]),
    "kept longer than told (A2)": ("{ months = 3 }", "{ months = 6 }", ["lines.service-40.notice", "A2", "6 months"]),
    "question not in the text": ('ask_text = "Če s snem', 'ask_text = "Če soglašate s snem', ["notices.B.ask_text"]),
    "prompt is a stream": ('"notice-a.wav"', '"tone_stream://%(1000,0,440)"', ["notices.A.prompt", "a stream"]),
    "prompt from the web": ('"notice-a.wav"', '"https://example.org/a.wav"', ["notices.A.prompt", "a stream"]),
    "prompt is silence": ('"notice-a.wav"', '"silence_stream://-1"', ["notices.A.prompt", "a stream"]),
    "space in a prompt": ('"notice-a.wav"', '"notice a.wav"', ["notices.A.prompt", "spaces"]),
    "prompt above the directory": ('"notice-a.wav"', '"../../etc/a.wav"', ["notices.A.prompt", "letters, digits"]),
    "prompt of another format": ('"notice-a.wav"', '"notice-a.mp3"', ["notices.A.prompt", ".wav"]),
    "notice without https": ('url = "https://', 'url = "ftp://', ["notices.A.url", "https://"]),
    "name that breaks labels": ("[lines.sales]", '[lines."sa les"]', ["lines.sa les", "no usable name"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_has_its_own_message(tmp_path, kind):
    old, new, says = FAULTS[kind]
    found = faults(changed(tmp_path, old, new))
    assert any(all(word in fault for word in says) for fault in found), found
    assert "hunter2" not in "".join(found)
    with pytest.raises(ConfigError) as raised:
        load(changed(tmp_path, old, new), {})
    assert all(word in str(raised.value) for word in says)


def test_the_messages_differ(tmp_path):
    """No two kinds of fault are answered by the same words."""
    seen = {}
    for kind, (old, new, _) in FAULTS.items():
        message = "\n".join(faults(changed(tmp_path, old, new)))
        assert message not in seen, f"{kind} reads like {seen.get(message)}"
        seen[message] = kind


def test_a_change_that_is_no_fault_is_none(tmp_path):
    assert faults(changed(tmp_path, "max_calls = 1000", "max_calls = 10")) == []
    assert faults(changed(tmp_path, '"127.0.0.1:8084"', '"[::1]:8084"')) == []
    assert load(changed(tmp_path, '"127.0.0.1:8084"', '"[::1]:8084"'), {}).listen.address == ("::1", 8084)


def test_all_faults_are_reported_at_once(tmp_path):
    path = tmp_path / "callrec.toml"
    text = TEXT.replace("max_calls = 1000", "max_call = 1000").replace('"2GiB"', '"2"').replace("040 40 40 66", "*")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigErrors) as raised:
        load(path, {})
    assert len(raised.value.faults) == 3
    assert "3 faults" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[operator]\nname = "x\n', "line 2"),
        (b"a = 1\na = 2\n", "line 2"),
        (b"[operator]\nname = 'caf\xe9'\n", "not UTF-8 text (line 2)"),
        (b"", "operator: is missing"),
    ],
)
def test_what_is_no_toml_says_where(tmp_path, content, says):
    path = tmp_path / "callrec.toml"
    path.write_bytes(content)
    assert any(says in fault for fault in faults(path))


def test_a_missing_file_says_what_to_copy(tmp_path):
    (fault,) = faults(tmp_path / "nothing.toml")
    assert "does not exist" in fault
    assert "callrec.example.toml" in fault


def test_a_role_without_its_secrets_does_not_start():
    with pytest.raises(ConfigErrors) as raised:
        load(EXAMPLE, {}, role="ship")
    for name in ("CALLREC_POSTGRES_PASSWORD_SHIP", "CALLREC_S3_ACCESS_KEY_SHIP", "CALLREC_S3_SECRET_KEY_SHIP"):
        assert name in str(raised.value)
    assert "_SWEEP" not in str(raised.value)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_starts_with_its_own_secrets_alone(role):
    own = {name: SECRETS[name] for name in variables(role)}
    config = load(EXAMPLE, own, role=role)
    assert config.secrets.postgres_password(role) == own[f"CALLREC_POSTGRES_PASSWORD_{role.upper()}"]
    other = next(r for r in ROLES if r != role)
    with pytest.raises(ConfigError, match=f"CALLREC_POSTGRES_PASSWORD_{other.upper()}"):
        config.secrets.postgres_password(other)


def test_a_secret_may_stand_in_a_file(tmp_path):
    (tmp_path / "pw").write_text(" hush \n")
    secrets = load(EXAMPLE, {"CALLREC_EVENT_SOCKET_PASSWORD_FILE": str(tmp_path / "pw")}).secrets
    assert secrets.event_socket_password() == "hush"
    both = {"CALLREC_EVENT_SOCKET_PASSWORD_FILE": str(tmp_path / "pw"), "CALLREC_EVENT_SOCKET_PASSWORD": "x"}
    with pytest.raises(ConfigError, match="both given"):
        load(EXAMPLE, both).secrets.event_socket_password()
    gone = {"CALLREC_EVENT_SOCKET_PASSWORD_FILE": str(tmp_path / "gone")}
    with pytest.raises(ConfigError, match="CALLREC_EVENT_SOCKET_PASSWORD_FILE can't be read"):
        load(EXAMPLE, gone).secrets.event_socket_password()


def test_a_key_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="CALLREC_LOOKUP_KEY is not 32 bytes in base64"):
        load(EXAMPLE, {"CALLREC_LOOKUP_KEY": "short"}).secrets.lookup_keys()


def lookup_keys(text):
    return load(EXAMPLE, {"CALLREC_LOOKUP_KEY": text}).secrets.lookup_keys()


def test_look_up_keys_have_epochs_and_a_single_one_is_the_first():
    number, other = "+38640123456", base64.b64encode(b"o" * 32).decode()
    assert lookup_keys(KEY).newest(number) == Lookup(look_up(number, bytes(range(32))), 1)
    for text in (f"1:{KEY},2:{other}", f"2:{other} 1:{KEY}", f"2:{other}\n1:{KEY}\n"):
        keys = lookup_keys(text)
        assert keys.epochs == (2, 1)
        assert keys.every(number) == [look_up(number, b"o" * 32), look_up(number, bytes(range(32)))]


@pytest.mark.parametrize(
    "text",
    [
        f"{KEY},{KEY}",
        f"{KEY},2:{KEY}",
        f"1:{KEY},1:{KEY}",
        f"0:{KEY}",
        f"x:{KEY}",
        f":{KEY}",
        f"40000:{KEY}",
        "1:short",
    ],
)
def test_look_up_keys_that_are_none_are_refused_and_not_shown(text):
    with pytest.raises(ConfigError, match="CALLREC_LOOKUP_KEY") as refused:
        lookup_keys(text)
    assert KEY not in str(refused.value)
    assert refused.value.hint


def test_secrets_never_show():
    config = load(EXAMPLE, SECRETS, role="listen")
    shown = repr(config) + str(config) + repr(config.secrets) + f"{config.secrets}"
    assert not re.search("s3cret", shown)
    assert KEY not in shown


def test_a_ledger_key_that_nobody_could_verify_is_refused():
    """sweep does not start with it; both keys of a rotation are fine."""
    own = {name: SECRETS[name] for name in variables("sweep")}
    stranger = Signer.generate("ledger.a1.si/callrec")
    for text, said in (
        ("nonsense", "no key"),
        (stranger.private_text(), "not among [ledger] verifiers"),
        (f"{own['CALLREC_LEDGER_KEY']}\n{stranger.private_text()}", "not among [ledger] verifiers"),
    ):
        (fault,) = faults(EXAMPLE, own | {"CALLREC_LEDGER_KEY": text}, "sweep")
        assert said in fault
        assert "PRIVATE" not in fault
    assert any("CALLREC_LEDGER_KEY" in fault for fault in faults(EXAMPLE, own | {"CALLREC_LEDGER_KEY": ""}, "sweep"))


def test_two_keys_sign_while_one_takes_over(tmp_path):
    new = Signer.generate("ledger.a1.si/callrec")
    path = changed(tmp_path, "verifiers = [", f'verifiers = ["{new.verifier}", ')
    config = load(path, SECRETS | {"CALLREC_LEDGER_KEY": f"{SECRETS['CALLREC_LEDGER_KEY']}\n{new.private_text()}\n"})
    assert [signer.verifier for signer in config.ledger.signers(config.secrets)] == list(config.ledger.verifiers)[::-1]


def test_checkpoints_are_put_by_their_own_credential_or_by_sweeps():
    sweep = {"CALLREC_S3_ACCESS_KEY_SWEEP": "a", "CALLREC_S3_SECRET_KEY_SWEEP": "s"}
    own = {"CALLREC_S3_ACCESS_KEY_CHECKPOINT": "c", "CALLREC_S3_SECRET_KEY_CHECKPOINT": "k"}
    assert load(EXAMPLE, sweep).secrets.checkpoint_keys() == ("a", "s")
    assert load(EXAMPLE, sweep | own).secrets.checkpoint_keys() == ("c", "k")
    with pytest.raises(ConfigError, match="CALLREC_S3_SECRET_KEY_CHECKPOINT"):
        load(EXAMPLE, sweep | {"CALLREC_S3_ACCESS_KEY_CHECKPOINT": "c"}).secrets.checkpoint_keys()
