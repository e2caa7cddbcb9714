"""`callrec check`: what lies outside the file, what the notices say aloud, and how findings read."""

import base64
import json
import os
import wave
from pathlib import Path

import pytest
from nacl.public import PrivateKey

from callrec.call import spoken
from callrec.call.policy import Retention
from callrec.check import Severity, as_json, check, failed, render
from callrec.ledger.note import Signer

EXAMPLE = Path(__file__).parents[2] / "callrec.example.toml"
FILES = ("notice-a.wav", "notice-b.wav", "ask-b.wav")


def sound(path: Path, seconds: float = 1.0, rate: int = 8000) -> None:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(b"\x01\x00" * int(seconds * rate))


@pytest.fixture
def place(tmp_path):
    """A configuration whose prompts and spool are there, made from the example; `text` may change it."""
    prompts, spool = tmp_path / "prompts", tmp_path / "spool"
    prompts.mkdir()
    spool.mkdir()
    for name in FILES:
        sound(prompts / name)
    text = EXAMPLE.read_text(encoding="utf-8")
    text = text.replace("/usr/share/freeswitch/sounds/callrec", str(prompts)).replace("/var/spool/callrec", str(spool))
    text = text.replace('"2GiB"', '"1MiB"').replace('"20GiB"', '"10MiB"').replace('"1GiB"', '"1MiB"')
    path = tmp_path / "callrec.toml"
    path.write_text(text, encoding="utf-8")
    return path


def change(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert old in text, old
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def errors(path: Path, env=None) -> list[str]:
    return [f"{f.where}: {f.what}. {f.why}. {f.how}" for f in check(path, env or {}) if f.severity is Severity.ERROR]


def warnings(path: Path, env=None) -> list[str]:
    return [f"{f.where}: {f.what}. {f.why}. {f.how}" for f in check(path, env or {}) if f.severity is Severity.WARNING]


def test_the_example_is_good_once_its_prompts_and_spool_are_there(place):
    assert errors(place) == []
    assert not failed(check(place, {}))


def test_the_misprint_is_warned_about_and_not_taken_for_the_line(place):
    (warning,) = [w for w in warnings(place) if "404 40 40 45" in w]
    assert warning.startswith("lines.sales.also_printed_as")
    assert "no valid number of SI" in warning
    assert "would not be announced and not be recorded (B8)" in warning


def test_what_the_operator_should_decide_is_warned_about(place):
    found = "\n".join(warnings(place))
    assert "bases.market_transaction.gdpr_article_6: is not set" in found
    assert "bases.consent.gdpr_article_6" not in found
    assert "encryption.public_key: is the example's" in found
    for role in ("listen", "ship", "sweep", "api", "owner"):
        assert f"role {role}: has no CALLREC_" in found


def _not_there(path):
    path.unlink()


def _empty(path):
    path.write_bytes(b"")


def _text(path):
    path.write_text("no sound at all, but long enough to be looked at as if it were one")


def _cut_short(path):
    path.write_bytes(path.read_bytes()[:-4000])


def _unfinished(path):  # as a recorder leaves it: sizes 0 until it is closed
    data = bytearray(path.read_bytes())
    data[40:44] = b"\0\0\0\0"
    path.write_bytes(data)


def _too_short(path):
    sound(path, 0.2)


def _too_long(path):
    sound(path, 121)


def _directory(path):
    path.unlink()
    path.mkdir()


def _fifo(path):
    path.unlink()
    os.mkfifo(path)


def _endless(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def _mu_law(path):
    data = bytearray(path.read_bytes())
    data[20:22] = b"\x07\x00"
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_not_there, "is missing"),
        (_empty, "no PCM WAV file"),
        (_text, "no PCM WAV file"),
        (_mu_law, "no PCM WAV file"),
        (_cut_short, "is cut short"),
        (_unfinished, "lasts 0.0 s"),
        (_too_short, "lasts 0.2 s"),
        (_too_long, "lasts 121.0 s"),
        (_directory, "is not a file"),
        (_fifo, "is not a file"),
        (_endless, "is not a file"),
    ],
)
def test_a_prompt_that_can_not_be_played_whole_is_an_error(place, spoil, says):
    spoil(place.parent / "prompts" / "notice-b.wav")
    (error,) = errors(place)
    assert error.startswith("notices.B.prompt: names ")
    assert says in error
    assert "not recorded (A2)" in error


def test_one_sound_for_two_texts_is_an_error(place):
    change(place, '"ask-b.wav"', '"notice-b.wav"')
    assert any("notices.B.ask_prompt: shares" in error for error in errors(place))


def test_a_directory_named_like_a_rate_is_an_error(place):
    (place.parent / "prompts" / "8000").mkdir()
    assert any("holds a directory 8000" in error for error in errors(place))


def test_the_spool_must_be_there_and_roomy(place):
    spool = place.parent / "spool"
    change(place, 'min_free = "1MiB"', 'min_free = "1000TiB"')
    assert any("less than min_free" in error for error in errors(place))
    spool.rmdir()
    assert any("spool.path" in error and "does not exist" in error and "install -d" in error for error in errors(place))
    spool.write_text("")
    assert any("is no directory" in error for error in errors(place))


def test_places_that_can_not_be_looked_at_are_errors(place):
    """As one that callrec's user may not enter; root, who runs this, is stopped by a name that is too long alone."""
    change(place, str(place.parent / "spool"), f"/{'s' * 300}")
    change(place, str(place.parent / "prompts"), f"/{'p' * 300}")
    found = errors(place)
    assert len(found) == len(FILES) + 1
    assert sum("ppp" in error and "can't be read: File name too long" in error for error in found) == len(FILES)
    assert sum("sss" in error and "which can't be looked at: File name too long" in error for error in found) == 1


def test_faults_of_the_file_and_of_the_world_are_reported_together(place):
    change(place, "max_calls = 1000", "max_call = 1000")
    change(place, '"040 40 40 66"', '"*"')
    (place.parent / "prompts" / "notice-a.wav").unlink()
    found = "\n".join(errors(place))
    assert "listen.max_call" in found
    assert "lines.service-66.number" in found
    assert "notices.A.prompt" in found


def test_secrets_that_can_not_be_right(place):
    assert any("is ClueCon" in error for error in errors(place, {"CALLREC_EVENT_SOCKET_PASSWORD": "ClueCon"}))
    assert any("32 bytes" in error for error in errors(place, {"CALLREC_LOOKUP_KEY": "abc"}))
    other = base64.b64encode(bytes(PrivateKey.generate())).decode()
    found = errors(place, {"CALLREC_PRIVATE_KEY": other})
    assert any("does not belong to encryption.public_key" in error for error in found)
    right = base64.b64encode(b"\x01" * 32).decode()
    assert errors(place, {"CALLREC_PRIVATE_KEY": right, "CALLREC_EVENT_SOCKET_PASSWORD": "x"}) == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"CALLREC_PRIVATE_KEY": "abc"}, "CALLREC_PRIVATE_KEY: can't be used: CALLREC_PRIVATE_KEY is not 32 bytes"),
        ({"CALLREC_API_TOKENS": "desktop:short"}, "CALLREC_API_TOKENS: can't be used"),
        ({"CALLREC_API_TOKENS_FILE": "/nowhere"}, "CALLREC_API_TOKENS: can't be used: The file of"),
        ({"CALLREC_REDIS_PASSWORD_FILE": "/nowhere"}, "CALLREC_REDIS_PASSWORD: can't be used: The file of"),
    ],
)
def test_a_secret_that_may_be_left_out_is_judged_where_it_is_given(place, given, says):
    """With the first of them nobody could listen to a recording, and `check` once called it good."""
    found = errors(place, given)
    assert any(error.startswith(says) for error in found), found
    assert "short" not in "".join(found)


def test_values_that_contradict_each_other_are_errors(place):
    change(place, '"127.0.0.1:9471"', '"127.0.0.1:9470"')
    change(place, 'consent_reserve = "1MiB"', 'consent_reserve = "10MiB"')
    port, reserve = sorted(errors(place))
    assert port.startswith("http.callbacks: is 127.0.0.1:9470, as is http.address. Only one of them can have it")
    assert reserve.startswith(
        "spool.consent_reserve: is not less than max_size. Nothing would ever be recorded by consent"
    )
    change(place, 'callbacks = "127.0.0.1:9470"', 'callbacks = "127.0.0.1:8084"')
    assert any("as is listen.address" in error for error in errors(place))


def test_addresses_that_others_reach_are_warned_about(place):
    change(place, '"127.0.0.1:8021"', '"192.0.2.7:8021"')
    change(place, '"127.0.0.1:8084"', '"0.0.0.0:8084"')
    change(place, "https://s3.eu", "http://s3.eu")
    found = "\n".join(warnings(place))
    assert "freeswitch.event_socket: is 192.0.2.7:8021" in found
    assert "listen.address: is 0.0.0.0:8084" in found
    assert "storage.endpoint: is not https" in found


def test_another_language_is_a_warning_because_nobody_compared_the_words(place):
    change(place, 'language = "sl"', 'language = "de"')
    assert any("operator.language" in warning and "A2" in warning for warning in warnings(place))


def test_a_basis_whose_recordings_wait_for_the_end_of_the_call_is_said(place):
    change(place, "segment_seconds = 10  ", "segment_seconds = 0   ")
    (found,) = [each for each in check(place, {}) if "segment_seconds" in each.where]
    assert (found.severity, found.where) == ("warning", "bases.market_transaction.segment_seconds")
    assert "is lost with it" in render([found])


def test_findings_read_well_for_people_and_scripts(place):
    change(place, '"040 40 40 66"', '"*"')
    findings = check(place, {})
    shown = render(findings)
    assert shown.startswith("error    lines.service-66.number")
    assert "1 error, " in shown.splitlines()[-1]
    assert json.loads(as_json(findings))[0]["severity"] == "error"
    assert set(json.loads(as_json(findings))[0]) == {"severity", "where", "what", "why", "how"}


def test_a_ledger_that_nobody_signs_is_an_error(place):
    """Where sweep runs; elsewhere it is only said that its secrets are not here."""
    here = {"CALLREC_POSTGRES_PASSWORD_SWEEP": "p"}
    (error,) = errors(place, here)
    assert error.startswith("CALLREC_LEDGER_KEY: is not given here, where sweep runs. The ledger isn't signed")
    key = Signer("ledger.a1.si/callrec", b"\x02" * 32).private_text()
    assert errors(place, here | {"CALLREC_LEDGER_KEY": key}) == []
    other = Signer.generate("ledger.a1.si/callrec").private_text()
    assert any("nobody would know it" in error for error in errors(place, {"CALLREC_LEDGER_KEY": other}))


def test_what_weakens_the_ledgers_proof_is_said(place):
    assert any("ledger.verifiers: holds the example's" in warning for warning in warnings(place))
    change(place, "# tsa_url", "tsa_url")
    change(place, "# tsa_roots", "tsa_roots")
    assert any("ledger.tsa_roots" in error and "can't be read" in error for error in errors(place))
    change(place, '# checkpoint = "…" ', 'checkpoint = "arn:aws:iam::111122223333:role/callrec-checkpoint" ')
    sweep = {"CALLREC_S3_ACCESS_KEY_SWEEP": "a"}
    assert any("storage.principals.checkpoint" in error for error in errors(place, sweep))
    given = sweep | {"CALLREC_S3_ACCESS_KEY_CHECKPOINT": "c"}
    assert not any("storage.principals.checkpoint" in error for error in errors(place, given))


GOOD = "Zaradi dokazov se pogovor snema, posnetek hranimo {}."


@pytest.mark.parametrize(
    ("spoken_period", "retention"),
    [
        ("3 leta", Retention(years=3)),
        ("tri leta", Retention(years=3)),
        ("TRI LETA", Retention(years=3)),
        ("36 mesecev", Retention(years=3)),
        ("eno leto", Retention(years=1)),
        ("dve leti", Retention(years=2)),
        ("pet let", Retention(years=5)),
        ("3 mesece", Retention(months=3)),
        ("tri mesece", Retention(months=3)),
        ("en mesec", Retention(months=1)),
        ("dva meseca", Retention(months=2)),
        ("šest mesecev", Retention(months=6)),
        ("dvanajst mesecev", Retention(years=1)),
    ],
)
def test_the_period_is_understood_in_words_and_figures(spoken_period, retention):
    assert spoken.faults(GOOD.format(spoken_period), retention, "sl") == []
    assert spoken.faults(GOOD.format(spoken_period), Retention(years=7), "sl") != []


@pytest.mark.parametrize(
    ("text", "language", "says"),
    [
        (GOOD.format("4 leta"), "sl", "speaks of 4 years where the notice's retention is 3 years"),
        (GOOD.format("3 mesece"), "sl", "speaks of 3 months"),
        (GOOD.format("3 leta ali 5 let"), "sl", "speaks of 5 years"),
        (GOOD.format("90 dni"), "sl", 'speaks of "90 dni"'),
        (GOOD.format("dlje časa"), "sl", "does not say how long"),
        ("Zaradi dokazov hranimo 3 leta.", "sl", "does not say that the call is recorded"),
        ("Pogovor se snema in hrani 3 leta.", "sl", "does not say what the recording is for"),
        ("For evidence purposes your call is recorded and kept for two years.", "en", "speaks of 2 years"),
        ("For evidence purposes your call is recorded.", "en", "does not say how long"),
        ("Your call is kept for three years as proof.", "en", "does not say that the call is recorded"),
        ("Your call is recorded and kept for three years.", "en", "does not say what the recording is for"),
    ],
)
def test_a_notice_that_says_something_else_is_refused(text, language, says):
    assert any(says in what for what, _, _ in spoken.faults(text, Retention(years=3), language))


def test_english_notices_are_understood():
    text = "For evidence purposes your call is recorded and kept for three years."
    assert spoken.faults(text, Retention(years=3), "en") == []


def test_a_notice_that_speaks_of_another_period_than_its_basis_keeps_is_an_error(place):
    change(place, "retention = { years = 3 }               # from", "retention = { years = 5 }               # from")
    (error,) = errors(place)
    assert error.startswith("lines.sales.notice: does not fit the basis")
    assert "tells callers 3 years, the basis keeps 5 years (A2)" in error
