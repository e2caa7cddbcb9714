"""What a prompt's sound file is: its hash, its length, and whether FreeSWITCH can play it to its end."""

import hashlib
import io
import wave
from dataclasses import dataclass
from pathlib import Path

SHORTEST = 0.5  # seconds
LONGEST = 120.0
_LARGEST = 64 << 20  # bytes; two minutes at the highest usual rate stay below


@dataclass(frozen=True, slots=True)
class Sound:
    """A sound file; `fault` and `how` are empty where it can be played."""

    sha256: str = ""
    seconds: float = 0.0
    fault: str = ""
    how: str = ""


_SYNTHESISE = "Run `callrec prompts`, or put a studio recording there"
_CONVERT = "Save it as WAV, 16-bit PCM, mono, 8 to 48 kHz"


def inspect(path: Path) -> Sound:
    """Read a prompt. Only PCM WAV counts as playable: its length is stated, so it can't be endless or a stream."""
    try:
        if not path.is_file():  # a FIFO or a device among them
            return Sound(fault="is not a file" if path.exists() else "is missing", how=_SYNTHESISE)
        if path.stat().st_size > _LARGEST:
            return Sound(fault=f"is larger than {_LARGEST >> 20} MiB", how=_CONVERT)
        data = path.read_bytes()
    except OSError as error:
        return Sound(fault=f"can't be read: {error.strerror}", how="Let callrec's and FreeSWITCH's users read it")
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        with wave.open(io.BytesIO(data)) as sound:
            rate, frames, width = sound.getframerate(), sound.getnframes(), sound.getsampwidth() * sound.getnchannels()
            there = len(sound.readframes(frames)) // width
            seconds = there / rate
    except (wave.Error, EOFError, ZeroDivisionError, RuntimeError):
        return Sound(sha256, fault="is no PCM WAV file", how=_CONVERT)
    fault = ""
    if there < frames:
        fault = "is cut short: its header promises more than is there"
    elif not SHORTEST <= seconds <= LONGEST:
        fault = f"lasts {seconds:.1f} s, outside {SHORTEST:g} to {LONGEST:g} s"
    return Sound(sha256, seconds, fault, _SYNTHESISE if fault else "")


class Sounds:
    """Sound files, each read again only when it has changed: a call costs a look at the file's date and size."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int, int], Sound]] = {}

    def inspect(self, file: str) -> Sound:
        path = Path(file)
        try:
            status = path.stat()
        except OSError:
            return inspect(path)
        mark = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._known.get(file)
        if known is None or known[0] != mark:
            known = (mark, inspect(path))
            self._known[file] = known
        return known[1]
