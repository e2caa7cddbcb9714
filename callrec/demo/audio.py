"""What the simulated calls sound like, and how long a prompt lasts. 16-bit, 8000 samples/s, as the channel's L16.

A caller and an agent of a scripted call say one pure tone per 100 ms of the call, another for each, so that a recording
tells by itself whom it holds and from when: `who_and_when` reads it back.
"""

from __future__ import annotations  # array is generic to type checkers only, before Python 3.12

import math
import sys
import wave
from array import array
from functools import lru_cache
from pathlib import Path

RATE = 8000  # samples a second
FRAME = 160  # samples of one 20 ms frame
FRAMES_PER_SECOND = 50
BLOCK = 800  # samples of one tone
FRAMES_PER_BLOCK = BLOCK // FRAME
TONES = 150  # blocks before the tones repeat: 15 s

CALLER, AGENT = "caller", "agent"
_FIRST_CYCLE = {CALLER: 30, AGENT: 30 + TONES}  # cycles in a block, whole, so that blocks join without a click
_PEAK = {CALLER: 9000, AGENT: 7000}


@lru_cache(maxsize=4 * TONES)
def tone(who: str, block: int) -> array[int]:
    """The 800 samples that `who` says in the 100 ms numbered `block % 150`."""
    cycles = _FIRST_CYCLE[who] + block % TONES
    step = 2 * math.pi * cycles / BLOCK
    # Half a step of phase keeps every sample off zero, so that its sign can be counted.
    return array("h", (round(_PEAK[who] * math.sin(step * (i + 0.5))) for i in range(BLOCK)))


def who_and_when(samples: array[int]) -> tuple[str, int] | None:
    """Who speaks in these 800 samples of one channel and in which block (modulo 150); None for silence.

    The samples must be one whole block: a recording that starts on a multiple of 100 ms of the call has them so.
    """
    assert len(samples) == BLOCK
    if not any(samples):
        return None
    signs = [value > 0 for value in samples]
    cycles = (sum(a != b for a, b in zip(signs, [*signs[1:], signs[0]], strict=True)) + 1) // 2
    who = AGENT if cycles >= _FIRST_CYCLE[AGENT] else CALLER
    return who, cycles - _FIRST_CYCLE[who]


@lru_cache(maxsize=8 * TONES)
def block_bytes(said: str | None, heard: str | None, block: int, stereo: bool) -> bytes:
    """100 ms as a file holds it, little-endian: what the party said and what it heard, apart (stereo) or mixed."""
    left = tone(said, block) if said else array("h", bytes(2 * BLOCK))
    right = tone(heard, block) if heard else array("h", bytes(2 * BLOCK))
    if stereo:
        both = array("h", bytes(4 * BLOCK))
        both[0::2], both[1::2] = left, right
    else:
        both = array("h", (a + b for a, b in zip(left, right, strict=True)))
    if sys.byteorder == "big":
        both.byteswap()
    return both.tobytes()


@lru_cache(maxsize=256)
def _wav_samples(path: str, _size: int, _mtime: int) -> int | None:
    try:
        with wave.open(path, "rb") as file:
            return file.getnframes() * RATE // file.getframerate()
    except (OSError, EOFError, wave.Error, ZeroDivisionError):
        return None


def prompt_samples(path: str) -> int | None:
    """How many samples of the channel this prompt is; None where FreeSWITCH would say FILE NOT FOUND.

    A WAV file by its header, silence_stream://MS, and tone_stream://%(ON,OFF,HZ) once. An endless silence is None too.
    """
    kind, separator, rest = path.partition("://")
    if separator:
        number = rest.split(",")[0] if kind == "silence_stream" else rest.removeprefix("%(").split(",")[0]
        return int(number) * RATE // 1000 if kind in {"silence_stream", "tone_stream"} and number.isdecimal() else None
    try:
        found = Path(path).stat()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    return _wav_samples(path, found.st_size, found.st_mtime_ns)
