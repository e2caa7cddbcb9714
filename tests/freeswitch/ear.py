"""What is heard: files of known sound, and when the sound of a recording was said, to the sample.

A caller and an agent say one pure tone per 100 ms (callrec/demo/audio.py). Where in that speech a stretch of a
recording comes from is found by correlation, so it holds for any codec that leaves tones alone, and between blocks.
"""

import io
import itertools
import math
import operator
import wave
from array import array
from dataclasses import dataclass

from callrec.demo.audio import AGENT, BLOCK, CALLER, RATE, TONES, tone

NOTICE = 350  # cycles in 100 ms of the prompts' tone: 3500 Hz, above every tone of caller and agent
_QUIET = 200  # below this a sample is no speech: comfort noise, rounding
_WINDOW = 3 * BLOCK  # samples that are looked up together
GAPPED = 0.7  # how sure 100 ms are that lack two frames of five; 0.99 and more with all of them
BEGUN = 0.4  # and that lack four of five, as the first of a SIP leg may: FreeSWITCH's doing, seen up to 80 ms


def speech(who, seconds):
    """The samples of `who`: block n at n/10 s."""
    samples = array("h")
    for block in range(round(seconds * 10)):
        samples += tone(who, block)
    return samples


def prompt(seconds):
    one = array("h", (round(8000 * math.sin(2 * math.pi * NOTICE * (n + 0.5) / BLOCK)) for n in range(BLOCK)))
    return (one * math.ceil(seconds * 10))[: round(seconds * RATE)]


def write(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", "not compressed"))
        file.writeframes(samples.tobytes())
    path.chmod(0o644)


def channels(data):
    """The channels of a WAV file given as bytes, as arrays of samples; of a wideband call's, every second sample."""
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getsampwidth(), file.getframerate() % RATE) == (2, 0)
        samples = array("h", file.readframes(file.getnframes()))
        count, step = file.getnchannels(), file.getframerate() // RATE
        return [samples[n :: count * step] for n in range(count)]


@dataclass(frozen=True)
class Sound:
    """A stretch of a channel."""

    at: float  # seconds into the file
    said: float  # seconds into the speaker's speech
    sure: float  # 0 to 1: how well it fits

    @property
    def begun(self):
        """When the speech began, in seconds of the file; the same for all that was recorded in step."""
        return self.at - self.said


_CYCLE = TONES // 10  # seconds after which the tones repeat
_SPEECH = {who: speech(who, 3 * _CYCLE) for who in (CALLER, AGENT)}
_POWER = {who: math.sqrt(sum(map(operator.mul, said, said)) / len(said)) for who, said in _SPEECH.items()}


def loud(samples):
    """Where sound begins and ends, as sample numbers; None in silence."""
    first = next((n for n, value in enumerate(samples) if abs(value) > _QUIET), None)
    if first is None:
        return None
    last = next(n for n in range(len(samples) - 1, -1, -1) if abs(samples[n]) > _QUIET)
    return first, last + 1


def cycles(samples):
    """How many cycles of a tone there are in 100 ms, by counting zero crossings."""
    crossings = sum((a < 0) != (b < 0) for a, b in itertools.pairwise(samples))
    return crossings / 2 * BLOCK / max(1, len(samples) - 1)


def when(samples, who, at, near, *, width=_WINDOW, within=0.5):
    """When the `width` samples from sample `at` on were said: looked for `within` so many seconds of `near`."""
    window = samples[at : at + width]
    before = math.floor(near / _CYCLE) * _CYCLE - _CYCLE  # what is looked at is the middle one of three cycles
    said = _SPEECH[who]
    norm = math.sqrt(sum(map(operator.mul, window, window)) * width) * _POWER[who] or 1.0
    middle, span = round((near - before) * RATE), round(within * RATE)
    best = (0.0, 0, 0)
    for lag in range(middle - span, middle + span):
        # A stretch of one tone fits whole periods earlier and later nearly as well: to a thousandth, the nearest is it.
        sure = round(sum(map(operator.mul, window, said[lag : lag + width])) / norm, 3)
        best = max(best, (sure, -abs(lag - middle), lag))
    sure, _, lag = best
    return Sound(at / RATE, before + lag / RATE, sure)


def heard(samples, who, near, step=1.0):
    """Where the sound comes from: at its first sample, every `step` seconds, and at its last. `near` is for the first.

    Each stretch looked up is 100 ms; those with masked samples are left out.
    """
    start, end = loud(samples)
    first = when(samples, who, start, near)
    found, begun = [], first.begun
    at = start
    while at <= end - BLOCK:
        if samples[at : at + BLOCK].count(0) < BLOCK // 10:
            sound = when(samples, who, at, at / RATE - begun, width=BLOCK, within=0.07)
            found.append(sound)
            begun = sound.begun
        if at == end - BLOCK:
            break
        at = min(at + round(step * RATE), end - BLOCK)
    return found


def clear(sures):
    """Whether this is sound as it was said, throughout; what the first stretch may lack is said at BEGUN."""
    first, *rest = sures
    return first > BEGUN and min(rest) > GAPPED


def silence(samples, shortest=0.1):
    """The passages of zeros, as (begin, end) in seconds, of at least `shortest` seconds."""
    found, begun = [], None
    for n, value in enumerate([*samples, 1]):
        if value == 0:
            begun = n if begun is None else begun
        else:
            if begun is not None and n - begun >= shortest * RATE:
                found.append((begun / RATE, n / RATE))
            begun = None
    return found


def has_prompt(samples):
    """Whether a prompt's tone is anywhere: 20 ms of its frequency suffice."""
    for at in range(0, len(samples) - 160, 160):
        piece = samples[at : at + 160]
        if max(map(abs, piece)) > _QUIET and abs(cycles(piece) - NOTICE) < 15:
            return True
    return False
