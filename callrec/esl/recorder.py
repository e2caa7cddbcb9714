"""FreeSWITCH's recorder of one call: masked, stopped, and one file at one speed for as long as the call lasts.

When a channel's codec changes to another sampling rate (by a re-INVITE), FreeSWITCH 1.10.12 writes the samples of the
new rate into the file as if they were of the old: from there on everything is twice as slow or as fast. A file that is
closed and opened again to append gets them resampled. So that is done at once: up to a tenth of a second is missing
there, and the recording, its path and its basis stay the same.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from callrec.call import events as on
from callrec.errors import LinkError
from callrec.esl import dialect
from callrec.esl.wire import Headers

Reply = Callable[[str], None]


class Recorder:
    """What is asked of FreeSWITCH's recorder after its start, and what its events mean."""

    __slots__ = ("_awaited", "_channel", "_continued", "_note", "_path", "_post", "_rate", "_tell", "masked")

    def __init__(
        self, channel: str, path: str, post: Callable[[bytes, Reply | None], None], tell: Callable[[on.Event], None],
        note: Callable[[str, dict[str, object]], None],
    ) -> None:  # fmt: skip
        """`post` sends a command, and raises LinkError; without a reply wanted, it is sent until FreeSWITCH has it."""
        self.masked = False
        self._channel, self._path = channel, path
        self._post, self._tell, self._note = post, tell, note
        self._rate = 0  # samples a second that FreeSWITCH takes as they come; 0: not known
        self._continued = False
        self._awaited = 0  # RECORD_STARTs that the file's being opened again has yet to bring

    def understand(self, headers: Headers, *, running: bool) -> on.Event | None:
        """What FreeSWITCH says, in the machine's words; None for what it has no word for, or need not know.

        `running`: the call is being recorded, and shall be on.
        """
        event = dialect.understand(headers, self._path, datetime.now(UTC))
        match event:
            case on.RecordStarted():
                self._rate = dialect.rate(headers)
                if self._awaited:
                    self._awaited -= 1
                    self._note("recording_continued", {"at": on.iso(event.at), "rate": self._rate})
                    return None
            case on.RecordStopped() if self._awaited:
                return None
            case on.RecordStopped() if self._continued:
                return replace(event, samples=None)  # FreeSWITCH counts those since the file was opened again
            case None if headers.get("Event-Name") == "CODEC" and running:
                self._follow(dialect.rate(headers))
        return event

    def _follow(self, rate: int) -> None:
        if not rate or rate == self._rate:
            return
        with suppress(LinkError):  # then the recording goes on as it was, and ends with the call
            # Not to be sent again on another link, as a stop is that ends the recording.
            self._post(self._command("stop"), _heard)
            self._rate, self._continued = rate, True
            self._post(dialect.continue_recording(self._channel, self._path), self._reopened)
            self._awaited += 1
            if self.masked:
                self._post(self._command("mask"), self._masked_again)

    def _reopened(self, reply: str) -> None:
        if not reply.startswith("+OK"):
            self._awaited = 0
            self._tell(on.RecordStopped(None, None))

    def _masked_again(self, reply: str) -> None:
        if not reply.startswith("+OK"):
            self.masked = False
            self._tell(on.MaskReply(on=True, ok=False))

    def stop(self) -> None:
        self._post(self._command("stop"), None)

    def mask(self, masked: bool) -> None:
        """Silence what follows, or no longer; MaskReply tells whether it is so."""

        def replied(reply: str) -> None:
            self.masked = masked if reply.startswith("+OK") else self.masked
            self._tell(on.MaskReply(masked, reply.startswith("+OK")))

        try:
            self._post(self._command("mask" if masked else "unmask"), replied)
        except LinkError:
            self._tell(on.MaskReply(masked, ok=False))  # who asked for it must learn that it is not so
            raise

    def _command(self, verb: str) -> bytes:
        return dialect.change_recording(self._channel, verb, self._path)


def _heard(_reply: str) -> None:
    """Whatever FreeSWITCH answers: RECORD_STOP tells."""
