"""A finished recording as it lies in the spool: how long it is, and whether it is what was recorded.

Of what left the node during the call, Postgres has the length and the hash. The file must begin with exactly that: one
that is shorter or begins otherwise was cut, replaced, or not written out when the power failed. An abrupt end of
FreeSWITCH leaves a file that is as long or longer. Only its header may have changed: FreeSWITCH writes the sizes into
it when it closes the file.
"""

import os
from collections.abc import Iterator
from hashlib import sha256
from typing import BinaryIO

from callrec.errors import OtherFileError, SpoolError, WavError
from callrec.recording import wav
from callrec.recording.facts import Streamed

_BLOCK = 64 * 1024
_HEADER_BYTES = 44  # FreeSWITCH writes its header at once: less is no recording


class Plain:
    """The open file `audio`. OtherFileError where it is too short for what was `streamed` of it, or begins otherwise.

    `length` in bytes of audio, `seconds` of it, the repaired `header`, and how many `names` the file has. What has no
    header that can be read is kept as it is, all of it, with no header and no known duration.
    """

    def __init__(self, audio: BinaryIO, streamed: Streamed | None = None) -> None:
        self._audio = audio
        self._streamed = streamed
        self._begin = b""
        self.names = os.fstat(audio.fileno()).st_nlink
        size = audio.seek(0, os.SEEK_END)
        audio.seek(0)
        head = self._read(wav.HEAD_BYTES)
        try:
            parsed = wav.parse(head)
        except WavError:
            self.header, self.length, self.seconds = b"", size if size > _HEADER_BYTES else 0, 0.0
            audio.seek(0)
        else:
            self._begin = wav.stream_header(head)
            self.header = wav.repaired_header(head, size)
            self.length = wav.audio_bytes(parsed, size)
            self.seconds = wav.duration_seconds(parsed, size)
            audio.seek(parsed.data_offset)
        if streamed and self.length < streamed.audio_end:
            raise OtherFileError("A recording is shorter than what was streamed of it")

    def pieces(self) -> Iterator[bytes]:
        """The recording under its repaired header, once. OtherFileError as soon as it is not what was streamed."""
        yield self.header
        left = self.length
        digest, to_judge = sha256(self._begin), self._streamed.audio_end if self._streamed else 0
        while left > 0 and (block := self._read(min(_BLOCK, left))):
            if to_judge:
                digest.update(block[:to_judge])
                to_judge -= min(to_judge, len(block))
                if self._streamed and not to_judge and digest.digest() != self._streamed.plaintext_sha256:
                    raise OtherFileError("A recording is not what was streamed of it")
            left -= len(block)
            yield block
        if left:
            raise OtherFileError("A recording became shorter while it was read")

    def _read(self, size: int) -> bytes:
        try:
            return self._audio.read(size)
        except OSError as error:
            raise SpoolError("A recording can't be read", detail=error.strerror or type(error).__name__) from error
