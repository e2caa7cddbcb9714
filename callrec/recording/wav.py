"""The header of a WAV file, and its repair.

FreeSWITCH writes 44 bytes of header at once and leaves its two sizes at 8 and 0 until it closes the file; killed or
shut down in between, it leaves them so, with the audio behind them (seen on 1.10.12). The sizes then follow from the
length of the file, cut to whole frames because the last write may be partial.

Bytes in, values out: callers read HEAD_BYTES and the length of the file, never the whole of it.
"""

import struct
from dataclasses import dataclass

from callrec.errors import WavError

HEAD_BYTES = 4096  # enough for any header that is followed by audio; FreeSWITCH's has 44

_PCM = 1
_FMT_BYTES = 16
_RIFF_HEAD = 12  # "RIFF", size, "WAVE"
_CHUNK_HEAD = 8
_UNKNOWN = 0xFFFFFFFF  # also the largest size that fits


@dataclass(frozen=True, slots=True)
class Wav:
    """What a header says."""

    channels: int
    rate: int  # frames a second
    bits: int  # of one sample
    data_offset: int  # where the audio begins
    data_size: int  # bytes of audio as the header has it: 0 while FreeSWITCH has not closed the file
    file_size: int  # bytes of the file as the header has them

    @property
    def frame_bytes(self) -> int:
        """One sample of every channel."""
        return self.channels * self.bits // 8


def parse(head: bytes) -> Wav:
    """The header at the beginning of a file of 16-bit PCM or another whole number of bytes a sample.

    WavError when it is not RIFF/WAVE, not PCM, or ends before the audio begins.
    """
    if len(head) < _RIFF_HEAD or head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        raise WavError("This is not a WAV file", detail="it does not begin with RIFF and WAVE")
    form: tuple[int, int, int, int, int, int] | None = None
    at = _RIFF_HEAD
    while at + _CHUNK_HEAD <= len(head):
        name, size = struct.unpack_from("<4sI", head, at)
        at += _CHUNK_HEAD
        if name == b"fmt " and size >= _FMT_BYTES and at + _FMT_BYTES <= len(head):
            form = struct.unpack_from("<HHIIHH", head, at)
        if name == b"data":
            return _wav(form, at, size, _CHUNK_HEAD + struct.unpack_from("<I", head, 4)[0])
        at += size + size % 2
    raise WavError("The WAV file has no audio", detail="its header ends before the data chunk")


def audio_bytes(wav: Wav, file_size: int) -> int:
    """How many bytes of audio there are, in whole frames.

    The header's size counts where the file has as much; 0, or more than there is, means that the file was not closed,
    and all that follows the header is audio. So does a file that is longer than its header says: it was opened again.
    """
    there = max(0, file_size - wav.data_offset)
    closed = 0 < wav.data_size <= there and file_size <= wav.file_size
    known = wav.data_size if closed else there
    return known - known % wav.frame_bytes


def duration_seconds(wav: Wav, file_size: int) -> float:
    """The length of the audio."""
    return audio_bytes(wav, file_size) / wav.frame_bytes / wav.rate


def repaired_header(head: bytes, file_size: int) -> bytes:
    """The header up to the audio, with the sizes that hold for audio_bytes() of audio and nothing behind it.

    A header that is right comes back unchanged. Beyond 4 GiB the sizes are 0xFFFFFFFF, as streams have them.
    """
    wav = parse(head)
    audio = audio_bytes(wav, file_size)
    repaired = bytearray(head[: wav.data_offset])
    struct.pack_into("<I", repaired, 4, min(_UNKNOWN, wav.data_offset - _CHUNK_HEAD + audio))
    struct.pack_into("<I", repaired, wav.data_offset - 4, min(_UNKNOWN, audio))
    return bytes(repaired)


def stream_header(head: bytes) -> bytes:
    """The header up to the audio, with sizes that say "as long as there is": the length is not known yet."""
    wav = parse(head)
    endless = bytearray(head[: wav.data_offset])
    for at in (4, wav.data_offset - 4):
        struct.pack_into("<I", endless, at, _UNKNOWN)
    return bytes(endless)


def _wav(form: tuple[int, int, int, int, int, int] | None, data_offset: int, data_size: int, file_size: int) -> Wav:
    if form is None:
        raise WavError("The WAV file does not say its format", detail="no fmt chunk before the audio")
    tag, channels, rate, _, _, bits = form
    if tag != _PCM:
        raise WavError("The WAV file is not PCM", detail=f"its format is {tag}")
    if not channels or not rate or not bits or bits % 8:
        raise WavError(
            "The WAV file's format makes no sense", detail=f"{channels} channels, {rate} frames a second, {bits} bits"
        )
    return Wav(channels, rate, bits, data_offset, data_size, file_size)
