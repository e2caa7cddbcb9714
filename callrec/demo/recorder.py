"""How FreeSWITCH writes a recording (uuid_record), on real files in simulated time.

Copied from what 1.10.12 does: a 44-byte header at once, its sizes 0 (8 for RIFF) until close; data in pieces of 64 KiB,
of one 20 ms frame (enable_file_write_buffering=false) or of a given number of bytes; half a second held back when both
directions are recorded, lost at the end and late for mask and unmask, unless RECORD_PRE_BUFFER_FRAMES says otherwise;
mask writes zeros, pause drops; a file without one frame is removed (empty-file); with a full disk the recording goes on
(uri-failure). The samples of a codec of another rate than at the start are taken for samples of that one, so what is
said then gets longer or shorter; RECORD_APPEND goes on in a file at its own speed (19). Files here are of 8000 Hz.
"""

import os
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from callrec.demo.audio import FRAME, FRAMES_PER_BLOCK, FRAMES_PER_SECOND, RATE, block_bytes

_DEFAULT_BUFFER = 65536  # bytes
_DEFAULT_PRE_BUFFER = 25  # frames: half a second
_HEADER = 44
_EPSILON = 1e-6  # seconds; keeps 0.02 * n from counting as one frame less

Sound = Callable[[int], tuple[str | None, str | None]]
"""Who is heard in a block of the call: (what the party says, what it hears)."""


def _wav_header(channels: int, data_bytes: int | None) -> bytes:
    """The 44 bytes; None is a file that was not closed: RIFF size 8 and data size 0, as libsndfile leaves them."""
    riff, data = (8, 0) if data_bytes is None else (36 + data_bytes, data_bytes)
    align = 2 * channels
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, channels, RATE, RATE * align, align, 16,
        b"data", data,
    )  # fmt: skip


def _true(value: str) -> bool:
    return value.lower() in {"yes", "on", "true", "t", "enabled", "active", "allow"} or (
        value.isdecimal() and int(value) > 0
    )


class Recording:
    """One file being written. Times are seconds of the call; the file counts in frames of 20 ms.

    OSError when the file can't be made: FreeSWITCH answers -ERR Cannot record session!
    """

    def __init__(
        self,
        path: str,
        started: float,
        settings: Callable[[str], str],
        *,
        own: Mapping[str, str],
        sound: Sound | None,
        rate: Callable[[], int] = lambda: RATE,
        limit: float = 0.0,
        umask: int = 0o027,
    ) -> None:
        self.path = path
        self.own = own  # the variables in braces, this recording's alone
        self.started = started
        self.limit = limit  # seconds, 0: none
        self.masked = self.paused = False
        self.failed = False  # the disk took not everything
        self._sound = sound
        self._rate, self._native = rate, rate()
        one_way = _true(settings("RECORD_READ_ONLY")) or _true(settings("RECORD_WRITE_ONLY"))
        self._stereo = not one_way and (_true(settings("RECORD_STEREO")) or _true(settings("RECORD_STEREO_SWAP")))
        self.channels = 2 if self._stereo else 1
        held = settings("RECORD_PRE_BUFFER_FRAMES")
        self._held = 0 if one_way else int(held) if held.isdecimal() else _DEFAULT_PRE_BUFFER
        buffering = settings("enable_file_write_buffering")
        self._piece = _DEFAULT_BUFFER if not buffering or _true(buffering) else 0
        if buffering.isdecimal():
            self._piece = int(buffering)
        self._frame_bytes = 2 * FRAME * self.channels
        self._zeros = bytes(self._frame_bytes)
        self._origin = round(started * FRAMES_PER_SECOND)  # frame of the call that is the file's first
        self._taken = 0  # frames of the call that were handled, written or dropped
        self.frames = 0  # frames in the file, buffered ones too
        self._buffer = bytearray()
        self._wav = Path(path).suffix == ".wav"
        head = _HEADER if self._wav else 0
        Path(path).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._append = _true(settings("RECORD_APPEND"))
        emptied = 0 if self._append else os.O_TRUNC
        self._fd = os.open(path, os.O_CREAT | emptied | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.fchmod(self._fd, 0o666 & ~umask)
        end = os.lseek(self._fd, 0, os.SEEK_END)
        self._before = max(0, end - head)  # bytes of audio that were there
        if self._wav and not end:
            try:
                os.write(self._fd, _wav_header(self.channels, None))
            except OSError:
                self.abandon()
                raise

    @property
    def samples(self) -> int:
        """Per channel, as record_samples counts: since the file was opened, as they came in."""
        return self.frames * FRAME * self._native // RATE

    def due(self, now: float) -> bool:
        """True once the limit has passed."""
        return bool(self.limit) and now - self.started >= self.limit

    def write(self, now: float) -> None:
        """Take everything that was said until `now`, under the mask and pause that hold now."""
        end = int((now - self.started + _EPSILON) * FRAMES_PER_SECOND) - self._held
        if self._fd < 0 or end <= self._taken:
            return
        first, self._taken = self._taken, end
        if self.paused:
            return
        speed = self._rate() / self._native
        self.frames += int(end * speed) - int(first * speed)
        if self._sound is None:  # cheap: the file gets its length at close
            return
        for number in range(first, end):
            times = int((number + 1) * speed) - int(number * speed)
            if self.masked:
                self._put(self._zeros * times)
                continue
            block, part = divmod(self._origin + number, FRAMES_PER_BLOCK)
            said, heard = self._sound(block)
            at = part * self._frame_bytes
            self._put(block_bytes(said, heard, block, self._stereo)[at : at + self._frame_bytes] * times)

    def _put(self, data: bytes) -> None:
        if not self._piece:
            self._to_disk(data)
            return
        self._buffer += data
        while len(self._buffer) >= self._piece:
            self._to_disk(self._buffer[: self._piece])
            del self._buffer[: self._piece]

    def _to_disk(self, data: bytes | bytearray) -> None:
        """What the disk has no room for is lost, counted all the same, and the recording goes on."""
        try:
            written = os.write(self._fd, data)
        except OSError:
            written = 0
        if written < len(data):
            self.failed = True
            os.lseek(self._fd, -written, os.SEEK_CUR)

    def close(self, now: float) -> int:
        """Finish the file. Its size in bytes; 0 when it held nothing and was removed."""
        self.write(now)
        size = self._before + self.frames * self._frame_bytes
        if not (self.frames or self._append):
            self.abandon()
            Path(self.path).unlink(missing_ok=True)
            return 0
        if self._buffer:
            self._to_disk(self._buffer)
        head = _HEADER if self._wav else 0
        with suppress(OSError):  # a last flush that fails is swallowed
            if self._sound is None:
                os.ftruncate(self._fd, head + size)
            if self._wav:
                os.pwrite(self._fd, _wav_header(self.channels, size), 0)
        self.abandon()
        return head + size

    def abandon(self) -> None:
        """As SIGKILL leaves it: what was buffered is gone, the header keeps its zeros."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
