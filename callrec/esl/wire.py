"""Bytes to frames and back: the event-socket protocol, strict and bounded. No socket, clock or log.

A frame is a header block of `Name: value` lines, a blank line, and a body of exactly Content-Length bytes if that
header is there. Values are percent-encoded, but a caller's own upper-case %XX passes through FreeSWITCH as it came
(switch_url_encode), so a decoded value may hold anything, a line feed too. Hence the two rules here: a block is cut
into lines before anything is decoded, and a value is decoded only when it is asked for. Nobody may take a decoded
value for one line.

A peer that breaks the protocol gets a WireError, and its parser takes nothing more: after a framing fault there is no
telling where the next frame starts. The kinds of fault, as metric labels show them: bad_header, bad_length, bad_event,
cut_short, duplicate_length, header_too_long, body_too_long, no_content_type, stray_blank_line; and bad_argument for
what we were about to send.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from callrec.errors import WireError

MAX_HEADER = 256 * 1024  # bytes; a connect reply with all variables of a long call has about 10 KiB
MAX_BODY = 4 * 1024 * 1024  # bytes; `show channels as json` has about 1 KiB a channel
_LONGEST_LENGTH = 10  # digits of a Content-Length worth reading
_EVENT = re.compile(rb"Content-Length: ([0-9]{1,10})\nContent-Type: text/event-plain\n")  # what most frames open with
_REPLY = re.compile(rb"Content-Type: command/reply\nReply-Text: [^\n]*\n")  # and most others are, with no body


class Headers:
    """One header block, kept as the bytes that came; a value is looked up and decoded when it is asked for.

    FreeSWITCH writes `_undef_` where a value is empty (switch_event_serialize); it is given back as it is.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def get(self, name: str, default: str = "") -> str:
        """The decoded value of the first line `name: …`, or `default`. Bytes that are not UTF-8 become U+FFFD."""
        start = self._find(name)
        if start < 0:
            return default
        end = self._raw.find(b"\n", start)
        return _decode(self._raw[start:end] if end >= 0 else self._raw[start:])

    def raw(self) -> bytes:
        """The block as it came, without the blank line that ends it."""
        return self._raw

    def items(self) -> Iterator[tuple[str, str]]:
        """Each line as (name, decoded value), in the order of the wire; a name may come twice."""
        for line in self._raw.split(b"\n"):
            name, colon, value = line.partition(b": ")
            if colon:
                yield name.decode("utf-8", "replace"), _decode(value)

    def __contains__(self, name: str) -> bool:
        return self._find(name) >= 0

    def _find(self, name: str) -> int:
        """Where the value of `name` starts, or -1."""
        key = _key(name)
        if self._raw.startswith(key[1:]):
            return len(key) - 1
        at = self._raw.find(key)
        return at + len(key) if at >= 0 else -1


@lru_cache(maxsize=256)
def _key(name: str) -> bytes:
    """How a line begins."""
    return f"\n{name}: ".encode()


def _decode(value: bytes) -> str:
    if b"%" in value:
        value = unquote_to_bytes(value)
    return value.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. Its repr shows no header and no body: both carry what callers sent."""

    content_type: (
        str  # "command/reply", "api/response", "text/event-plain", "text/disconnect-notice", "auth/request", …
    )
    headers: Headers = field(repr=False)  # the outer block; of the reply to `connect`, the channel data
    body: bytes = field(default=b"", repr=False)
    event: Headers | None = field(default=None, repr=False)  # text/event-plain: the header block in the body

    @property
    def event_body(self) -> bytes:
        """What follows the event's own header block, as the output of a BACKGROUND_JOB does; b"" without one."""
        return self.body[len(self.event.raw()) + 1 :] if self.event else b""

    @property
    def reply(self) -> str:
        """The text of an answer: the body of an api/response, the Reply-Text of anything else, without its line end."""
        if self.content_type == "api/response":
            return self.body.decode("utf-8", "replace").rstrip("\n")
        return self.headers.get("Reply-Text").rstrip("\n")

    def raw(self) -> bytes:
        """The frame as it was on the wire, byte for byte."""
        return b"%b\n%b" % (self.headers.raw(), self.body)


class FrameParser:
    """Takes bytes in whatever pieces they come, gives frames. Holds at most one unfinished frame and the last piece."""

    __slots__ = ("_block", "_buffer", "_fault", "_length", "_max_body", "_max_header", "_scanned", "_type")

    def __init__(self, max_header: int = MAX_HEADER, max_body: int = MAX_BODY) -> None:
        self._max_header = max_header
        self._max_body = max_body
        self._buffer = bytearray()
        self._scanned = 0  # bytes of the buffer known to hold no end of a header block
        self._block: Headers | None = None  # of the frame whose body is awaited
        self._type = ""
        self._length = 0
        self._fault: WireError | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, in order.

        WireError at the first fault, as soon as it can be told; frames before it in the same piece are given up with
        it. Every later call raises the same fault.
        """
        if self._fault:
            raise self._fault
        self._buffer += data
        try:
            return self._frames()
        except WireError as fault:
            self._fault = fault
            self._buffer = bytearray()
            raise

    def eof(self) -> None:
        """The peer has closed: WireError if that cut a frame short."""
        if self._fault:
            raise self._fault
        if self._buffer or self._block:
            raise WireError("The event socket was closed in the middle of a frame", kind="cut_short")

    def drop(self) -> None:
        """Forget what is unfinished: nobody will feed this parser any more."""
        self._buffer = bytearray()
        self._block = None

    def _frames(self) -> list[Frame]:
        frames: list[Frame] = []
        buffer, at = self._buffer, 0
        while True:
            if self._block is None:
                end = self._end_of_block(at)
                if end < 0:
                    break
                self._open(bytes(buffer[at : end + 1]))
                self._scanned = at = end + 2
            if len(buffer) - at < self._length:
                break
            end = at + self._length
            frames.append(self._close(bytes(buffer[at:end])))
            self._scanned = at = end
        if at:
            del buffer[:at]
            self._scanned = max(0, self._scanned - at)
        return frames

    def _end_of_block(self, at: int) -> int:
        """Where the last line feed before the blank line is, or -1 while the block at `at` is unfinished."""
        buffer = self._buffer
        if buffer.startswith(b"\n", at):
            raise WireError("A blank line came where a frame should start", kind="stray_blank_line")
        end = buffer.find(b"\n\n", max(at, self._scanned))
        if (len(buffer) if end < 0 else end) - at > self._max_header:
            raise WireError(f"A header block is longer than {self._max_header} bytes", kind="header_too_long")
        if end < 0:
            self._scanned = max(at, len(buffer) - 1)  # the last byte may be the first of the two line feeds
        return end

    def _open(self, block: bytes) -> None:
        """Check a whole header block and remember what kind of frame it opens."""
        usual = _EVENT.fullmatch(block)
        if usual and int(usual[1]) <= self._max_body:
            self._block, self._type, self._length = Headers(block), "text/event-plain", int(usual[1])
            return
        if _REPLY.fullmatch(block):
            self._block, self._type, self._length = Headers(block), "command/reply", 0
            return
        if not all(line.find(b": ") > 0 for line in block[:-1].split(b"\n")):
            raise WireError("A header line has no name or no colon", kind="bad_header")
        headers = Headers(block)
        self._type = headers.get("Content-Type")
        if not self._type:
            raise WireError("A frame has no Content-Type", kind="no_content_type")
        self._length = _content_length(block, self._max_body)
        self._block = headers

    def _close(self, body: bytes) -> Frame:
        headers, self._block, self._length = self._block, None, 0
        assert headers is not None  # a frame is closed after it was opened
        if self._type != "text/event-plain":
            return Frame(self._type, headers, body)
        end = body.find(b"\n\n")
        if end < 0:
            raise WireError("An event's headers are not ended by a blank line", kind="bad_event")
        return Frame(self._type, headers, body, Headers(body[: end + 1]))


def _content_length(block: bytes, limit: int) -> int:
    """The length of the body that follows this header block, 0 where it has none."""
    name = b"Content-Length: "
    start = len(name) if block.startswith(name) else -1
    at = block.find(b"\n" + name)
    if at >= 0:
        if start >= 0 or block.find(b"\n" + name, at + 1) >= 0:
            raise WireError("A frame has two Content-Lengths", kind="duplicate_length")
        start = at + 1 + len(name)
    if start < 0:
        return 0
    digits = block[start : block.index(b"\n", start)]
    if not digits.isdigit():
        raise WireError("A Content-Length is not a number", kind="bad_length")
    if len(digits) > _LONGEST_LENGTH or int(digits) > limit:
        raise WireError(f"A body is longer than {limit} bytes", kind="body_too_long")
    return int(digits)


# What we send.

_REFUSED = re.compile(r"[\r\n\0]")


def command(text: str, *headers: tuple[str, str]) -> bytes:
    """One command, ended by its blank line.

    FreeSWITCH ends a line at CR as well as at LF (read_packet) and a string at NUL, so each of them is refused wherever
    it stands: WireError, kind bad_argument. A Content-Length is refused too; it would make the next command a body.
    """
    lines = [text]
    for name, value in headers:
        if not name or ":" in name or name.lower() == "content-length":
            raise WireError("A command was given a header that it can't carry", kind="bad_argument")
        lines.append(f"{name}: {value}")
    if not text or any(_REFUSED.search(line) for line in lines):
        raise WireError(
            "A command is empty, or has a line end or a NUL in an argument",
            kind="bad_argument",
            hint="Nothing was sent. Check the configured value, path or header that goes into it.",
        )
    try:
        return "\n".join([*lines, "", ""]).encode()
    except UnicodeEncodeError:
        raise WireError("A command has text that UTF-8 can't carry", kind="bad_argument") from None


def execute(app: str, arg: str, token: str) -> bytes:
    """sendmsg that runs a dialplan application on the link's own channel, after those sent before it (event-lock).

    `token` comes back as Application-UUID of CHANNEL_EXECUTE_COMPLETE. An empty `arg` is left out.
    """
    headers = [("call-command", "execute"), ("execute-app-name", app)]
    if arg:
        headers.append(("execute-app-arg", arg))
    return command("sendmsg", *headers, ("event-lock", "true"), ("Event-UUID", token))


# What FreeSWITCH sends, for the simulated switch.

# A name may come twice: CHANNEL_HANGUP_COMPLETE has two Hangup-Cause.
Fields = Mapping[str, str] | Iterable[tuple[str, str]]

_UNSAFE = re.compile(rb"%(?![0-9A-F]{2})|[^%!$'()*,./0-9A-Z_a-z~-]")


def encode(value: str) -> bytes:
    """A header's value as switch_url_encode writes it: an upper-case %XX passes through, nothing is `_undef_`."""
    return _UNSAFE.sub(lambda byte: b"%%%02X" % byte[0][0], value.encode("utf-8", "replace")) or b"_undef_"


def build_frame(content_type: str, headers: Fields = (), body: bytes | None = None) -> bytes:
    """A frame other than an event: Content-Type, the headers as they are (FreeSWITCH does not encode these), the body.

    Content-Length is written when there is a body, b"" included, as in the linger notice.
    """
    lines = [f"Content-Type: {content_type}", *(f"{name}: {value}" for name, value in _pairs(headers))]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\n".join([*lines, "", ""]).encode("utf-8", "replace") + (body or b"")


def build_event(name: str, headers: Fields, body: bytes = b"") -> bytes:
    """A text/event-plain frame; `body` follows the event's headers with a Content-Length of its own."""
    inner = _block([("Event-Name", name), *_pairs(headers)])
    inner += b"Content-Length: %d\n\n%b" % (len(body), body) if body else b"\n"
    return b"Content-Length: %d\nContent-Type: text/event-plain\n\n%b" % (len(inner), inner)


def build_connect_reply(headers: Fields, *, mode: str = "async", control: str = "full") -> bytes:
    """The reply to `connect`: the channel data as headers, no body. Control is `single-channel` without `full`."""
    tail = [("Content-Type", "command/reply"), ("Reply-Text", "+OK\n"), ("Socket-Mode", mode), ("Control", control)]
    return _block([("Event-Name", "CHANNEL_DATA"), *_pairs(headers), *tail]) + b"\n"


def _pairs(headers: Fields) -> Iterable[tuple[str, str]]:
    return headers.items() if isinstance(headers, Mapping) else headers


def _block(headers: Iterable[tuple[str, str]]) -> bytes:
    return b"".join(b"%b: %b\n" % (name.encode(), encode(value)) for name, value in headers)
