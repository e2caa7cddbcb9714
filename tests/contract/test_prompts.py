"""`callrec prompts`, with the real espeak-ng: texts are spoken, and a studio recording is never overwritten."""

import wave
from pathlib import Path

import pytest

from callrec import prompts
from callrec.check import check, failed
from callrec.config import load

EXAMPLE = Path(__file__).parents[2] / "callrec.example.toml"
LIST = EXAMPLE.parent / "freeswitch-conf" / "prompts.md"


@pytest.fixture
def config():
    return load(EXAMPLE, {})


def test_every_text_is_spoken_as_finite_mono_wav(config, tmp_path):
    written = prompts.synthesise(config, tmp_path / "new")
    assert sorted(path.name for path in written) == ["ask-b.wav", "notice-a.wav", "notice-b.wav"]
    lengths = {}
    for path in written:
        with wave.open(str(path)) as sound:
            assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 22050)
            lengths[path.name] = sound.getnframes() / sound.getframerate()
        assert path.stat().st_mode & 0o444 == 0o444  # FreeSWITCH runs as another user
    assert lengths["ask-b.wav"] < lengths["notice-a.wav"] < lengths["notice-b.wav"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(lengths)  # no remains


def test_a_configuration_is_good_after_its_prompts_were_spoken(tmp_path):
    (tmp_path / "spool").mkdir()
    text = EXAMPLE.read_text(encoding="utf-8")
    text = text.replace("/usr/share/freeswitch/sounds/callrec", str(tmp_path / "sounds"))
    text = text.replace("/var/spool/callrec", str(tmp_path / "spool")).replace('"2GiB"', '"1MiB"')
    path = tmp_path / "callrec.toml"
    path.write_text(text, encoding="utf-8")
    assert failed(check(path, {}))
    prompts.synthesise(load(path, {}))
    assert not failed(check(path, {}))
    prompt = load(path, {}).notices["A"].prompt
    assert len(prompt.audio_sha256) == 64
    assert 5 < prompt.seconds < 60


def test_what_is_there_stays_unless_forced(config, tmp_path):
    studio = tmp_path / "notice-a.wav"
    studio.write_bytes(b"recorded in a studio")
    assert studio not in prompts.synthesise(config, tmp_path)
    assert studio.read_bytes() == b"recorded in a studio"
    assert prompts.synthesise(config, tmp_path) == []
    assert studio in prompts.synthesise(config, tmp_path, force=True)
    assert studio.read_bytes()[:4] == b"RIFF"


def test_without_espeak_the_error_says_what_to_install(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(prompts.PromptError, match=r"espeak-ng is not installed.*apt install espeak-ng"):
        prompts.synthesise(config, tmp_path / "sounds")
    assert list((tmp_path / "sounds").iterdir()) == []


def test_a_language_it_does_not_speak_fails_clearly(tmp_path):
    path = tmp_path / "callrec.toml"
    path.write_text(EXAMPLE.read_text(encoding="utf-8").replace('language = "sl"', 'language = "zz"'), encoding="utf-8")
    with pytest.raises(prompts.PromptError, match=r"espeak-ng failed with status .*--voices"):
        prompts.synthesise(load(path, {}), tmp_path / "sounds")
    assert list((tmp_path / "sounds").iterdir()) == []


def test_a_directory_that_can_not_be_made_is_named(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(prompts.PromptError, match="can't be made"):
        prompts.synthesise(config, tmp_path / "file" / "sounds")


def test_the_list_for_the_studio_holds_the_very_texts(config):
    rows = LIST.read_text(encoding="utf-8")
    for notice in config.notices.values():
        for prompt in (notice.prompt, notice.ask):
            if prompt:
                assert f"| `{Path(prompt.file).name}` | {prompt.text} |" in rows
