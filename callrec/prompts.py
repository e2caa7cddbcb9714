"""Placeholder prompts: the configured texts, spoken by espeak-ng.

They make an installation complete from its configuration alone. An operator replaces them by studio recordings under
the same names; those are never overwritten unless told so.
"""

import os
import subprocess
import tempfile
from pathlib import Path

from callrec.call.policy import Prompt
from callrec.config import Config
from callrec.errors import CallrecError
from callrec.sound import inspect

_PROGRAM = "espeak-ng"
_WORDS_PER_MINUTE = "150"
_TIMEOUT = 60.0  # seconds; a notice takes well below one
_READABLE = 0o644  # FreeSWITCH runs as another user


class PromptError(CallrecError):
    """A prompt could not be spoken."""


def synthesise(config: Config, directory: Path | None = None, *, force: bool = False) -> list[Path]:
    """Speak each configured text that has no sound file yet; with `force` all of them. Returns the files written.

    They go to `directory`, or to the configured one, as 16-bit mono WAV at espeak-ng's own rate of 22,050 Hz, which
    FreeSWITCH resamples to the call's. Each appears whole or not at all. Raises PromptError.
    """
    directory = directory or config.prompts
    texts: dict[str, str] = {}
    for prompt in _prompts(config):
        name = Path(prompt.file).name
        if texts.setdefault(name, prompt.text) != prompt.text:
            raise PromptError(f"Two texts share the prompt {name}", hint="Give each its own file name")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "Run this as a user who may, or give another directory"
        raise PromptError(f"{directory} can't be made", detail=str(error.strerror), hint=hint) from None
    wanted = [name for name in texts if force or not (directory / name).exists()]
    return [_speak(texts[name], config.operator.language, directory / name) for name in wanted]


def _prompts(config: Config) -> list[Prompt]:
    notices = config.notices.values()
    return [prompt for notice in notices for prompt in (notice.prompt, notice.ask) if prompt]


def _speak(text: str, language: str, target: Path) -> Path:
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=".wav")
    except OSError as error:
        hint = "Run this as a user who may write there, or give another directory"
        raise PromptError(f"{target.parent} can't be written", detail=str(error.strerror), hint=hint) from None
    os.close(handle)
    part = Path(name)
    try:
        _run([_PROGRAM, "-v", language, "-s", _WORDS_PER_MINUTE, "-b", "1", "--stdin", "-w", name], text)
        sound = inspect(part)
        if sound.fault:
            raise PromptError(f"What {_PROGRAM} made of {target.name} {sound.fault}", hint="Record this prompt instead")
        part.chmod(_READABLE)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _run(command: list[str], text: str) -> None:
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=_TIMEOUT, check=False)  # noqa: S603 - no shell; the language is two letters, the text goes to standard input
    except FileNotFoundError:
        raise PromptError(
            f"{_PROGRAM} is not installed", hint=f"apt install {_PROGRAM}, or record the prompts"
        ) from None
    except subprocess.TimeoutExpired:
        raise PromptError(f"{_PROGRAM} did not end within {_TIMEOUT:g} s", hint="Record the prompts instead") from None
    except OSError as error:
        raise PromptError(f"{_PROGRAM} can't be started", detail=str(error.strerror)) from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        hint = "See `espeak-ng --voices` for the languages it speaks"
        raise PromptError(
            f"{_PROGRAM} failed with status {done.returncode}", detail=said[-1] if said else "", hint=hint
        )
