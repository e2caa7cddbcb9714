"""FreeSWITCH's words for what the machine knows: its events in, our commands out.

Which header says what was seen on FreeSWITCH 1.10.12; nothing here decides anything but whose clock is believed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache

from callrec import metrics
from callrec.call import events as on
from callrec.errors import WireError
from callrec.esl import wire
from callrec.esl.wire import Headers

# What an outbound link asks for: `myevents` leaves PLAYBACK_* and RECORD_* out.
OUTBOUND_EVENTS = "event plain PLAYBACK_START PLAYBACK_STOP RECORD_START RECORD_STOP"
# What `myevents` brings and the machine has no word for.
UNWANTED_EVENTS = "nixevent CHANNEL_EXECUTE CHANNEL_STATE CHANNEL_CALLSTATE CHANNEL_PARK CHANNEL_UNPARK CHANNEL_ANSWER"
# What the inbound link asks for, of all calls.
INBOUND_EVENTS = "event plain CODEC DTMF RECORD_START RECORD_STOP CHANNEL_HANGUP_COMPLETE"

# This recording's alone: as channel variables they would leak to every other. Without the pre-buffer at 0 the last
# half second is lost and a mask acts half a second early; unbuffered, so that the spool holds what was said.
_RECORD_VARIABLES = "{RECORD_STEREO=true,RECORD_PRE_BUFFER_FRAMES=0,enable_file_write_buffering=false,RECORD_MIN_SEC=0}"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KEYS = frozenset("0123456789*#ABCD")
_LONGEST_NUMBER = 18  # digits; fits a bigint of Postgres
_TERMINATORS = re.compile(r"[0-9*#]{1,16}|any|none")
_WRONG = timedelta(minutes=1)  # between FreeSWITCH's clock and ours; both are the host's
_CHANNEL = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def channel_id(headers: Headers) -> str:
    """FreeSWITCH's Unique-ID of the channel. WireError when it is no UUID: it goes into commands and keys.

    With `inbound-use-callid-as-uuid` the caller's side chooses it.
    """
    channel = headers.get("Unique-ID")
    if not _CHANNEL.fullmatch(channel):
        raise WireError(
            "FreeSWITCH names this channel by something that is no UUID",
            kind="channel_id",
            hint="Set inbound-use-callid-as-uuid to false in the SIP profile",
        )
    return channel


def dialled(headers: Headers) -> str:
    return headers.get("Caller-Destination-Number")


def caller_number(headers: Headers) -> str:
    """The calling number, empty where it is withheld."""
    withheld = headers.get("Caller-Privacy-Hide-Number") == "true"
    return "" if withheld else headers.get("Caller-Caller-ID-Number")


@dataclass(frozen=True, slots=True)
class Before:
    """What the channel brought with it to the interview."""

    terminators: str = ""  # the keys that end a prompt; empty: FreeSWITCH's own
    transfer: str = ""  # FreeSWITCH's mark of the last transfer; empty: there was none
    sequence: int = 0  # Event-Sequence of that moment


def before(headers: Headers) -> Before:
    """From the reply to `connect`. Terminators are taken only as FreeSWITCH knows them: they go back in a command."""
    terminators = headers.get("variable_playback_terminators")
    known = terminators if _TERMINATORS.fullmatch(terminators) else ""
    return Before(known, headers.get("variable_transfer_source"), sequence(headers))


def moved(headers: Headers, before: Before) -> bool:
    """Whether `socket` itself is done in the middle of an interview: somebody sent the call elsewhere.

    Only that is certain. An event of an interview before on this channel may come late: its number tells it.
    """
    done = _executed(headers, "socket")
    return done and _up(headers) and sequence(headers) > before.sequence


def cut_by_transfer(headers: Headers, before: Before) -> bool:
    """Whether a transfer has cut this prompt: `socket` is about to be done, and to `resume` now would undo it.

    FreeSWITCH may set its mark after the dialplan that it transferred to has begun (3 of 160), so the mark alone says
    nothing.
    """
    failed = _executed(headers, "playback") and headers.get("Application-Response") == "PLAYBACK ERROR"
    return failed and _up(headers) and headers.get("variable_transfer_source") != before.transfer


def _executed(headers: Headers, application: str) -> bool:
    return headers.get("Event-Name") == "CHANNEL_EXECUTE_COMPLETE" and headers.get("Application") == application


def sequence(headers: Headers) -> int:
    """Event-Sequence: FreeSWITCH's own numbering of its events, from 1; 0 where there is none."""
    return _number(headers.get("Event-Sequence")) or 0


def happened_at(headers: Headers) -> datetime | None:
    """Event-Date-Timestamp: microseconds since the epoch, by FreeSWITCH's clock."""
    stamp = headers.get("Event-Date-Timestamp")
    if not (stamp.isascii() and stamp.isdigit()) or len(stamp) > 17:  # noqa: PLR2004 # beyond the year 5000: not a date
        return None
    return _EPOCH + timedelta(microseconds=int(stamp))


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER else None


def rate(headers: Headers) -> int:
    """Samples a second that come in on the channel; 0 where FreeSWITCH does not say it."""
    return _number(headers.get("Channel-Read-Codec-Rate")) or 0


def understand(headers: Headers, path: str, now: datetime | None = None) -> on.Event | None:
    """What FreeSWITCH says, in the machine's words; None for what it has no word for. `path` is our recording's.

    What it dates far from `now`, if that is given, happened now: a start in 1970 would be an expiry today. FreeSWITCH
    counts on from the time of its own start, so one that was started before the host's clock was set stays wrong.
    """
    heard = _EVENTS.get(headers.get("Event-Name"))
    event = heard(headers, path) if heard else None
    if now and isinstance(event, _DATED) and event.at and abs(event.at - now) > _WRONG:
        metrics.ESL_ERRORS.labels("either", "clock").inc()
        return replace(event, at=now)
    return event


def _up(headers: Headers) -> bool:
    return headers.get("Answer-State") != "hangup"


def _prompt_started(headers: Headers, _path: str) -> on.Event | None:
    return on.PromptStarted(happened_at(headers))


def _prompt_stopped(headers: Headers, _path: str) -> on.Event | None:
    # FreeSWITCH says `done` on hang-up too.
    return on.PromptStopped(headers.get("Playback-Status") == "done" and _up(headers))


def _completed(headers: Headers, _path: str) -> on.Event | None:
    token = headers.get("Application-UUID")
    match headers.get("Application"):
        case "playback":
            if not _up(headers):
                return on.Hangup()  # CHANNEL_HANGUP itself may come after this: 4 in 80
            played = headers.get("Application-Response") == "FILE PLAYED"
            # Of a missing file the variables are those of the prompt before.
            return on.PromptEnded(token, played, happened_at(headers), _heard(headers) if played else None)
        case "flush_dtmf":
            return on.KeysFlushed(token, sequence(headers))
    return None


def _heard(headers: Headers) -> float | None:
    """Seconds of the prompt that were played. `playback_ms` and `playback_samples` count what was read ahead."""
    position = _number(headers.get("variable_playback_last_offset_pos"))
    rate = _number(headers.get("variable_write_rate"))
    return position / rate if position is not None and rate else None


def _key(headers: Headers, _path: str) -> on.Event | None:
    digit = headers.get("DTMF-Digit")
    return on.Key(digit, sequence(headers)) if digit in _KEYS else None


def _record_started(headers: Headers, path: str) -> on.Event | None:
    if headers.get("Record-File-Path") != path:
        return None
    # One argument too many and FreeSWITCH drops all variables without a word: only this shows it.
    stereo = headers.get("Recording-Variable-RECORD_STEREO") == "true"
    return on.RecordStarted(
        happened_at(headers), stereo and headers.get("Recording-Variable-RECORD_PRE_BUFFER_FRAMES") == "0"
    )


def _record_stopped(headers: Headers, path: str) -> on.Event | None:
    if headers.get("Record-File-Path") != path:
        return None
    return on.RecordStopped(happened_at(headers), _number(headers.get("variable_record_samples")))


def _hangup(_headers: Headers, _path: str) -> on.Event | None:
    return on.Hangup()


_DATED = on.PromptStarted | on.PromptEnded | on.RecordStarted | on.RecordStopped
_EVENTS: dict[str, Callable[[Headers, str], on.Event | None]] = {
    "PLAYBACK_START": _prompt_started,
    "PLAYBACK_STOP": _prompt_stopped,
    "CHANNEL_EXECUTE_COMPLETE": _completed,
    "DTMF": _key,
    "RECORD_START": _record_started,
    "RECORD_STOP": _record_stopped,
    "CHANNEL_HANGUP": _hangup,
    "CHANNEL_HANGUP_COMPLETE": _hangup,
}


@cache
def subscriptions(linger_seconds: int) -> tuple[bytes, ...]:
    """What an outbound link asks for first.

    Without `linger` FreeSWITCH may close before the last events: 1 call of 40 lost its RECORD_STOP.
    """
    wanted = (f"linger {linger_seconds}", "myevents", OUTBOUND_EVENTS, UNWANTED_EVENTS)
    return tuple(wire.command(text) for text in wanted)


@cache
def answer() -> bytes:
    return wire.execute("answer", "", "answer")


@cache
def uninterruptible() -> bytes:
    """FreeSWITCH ends a prompt at `*` unless told otherwise."""
    return wire.execute("set", "playback_terminators=none", "set")


def interruptible(channel: str, terminators: str) -> bytes:
    """Undo `uninterruptible` for the prompts that follow ours; without terminators FreeSWITCH's own hold again."""
    return wire.command(f"api uuid_setvar {channel} playback_terminators {terminators}".rstrip())


def play(path: str, token: str) -> bytes:
    return wire.execute("playback", path, token)


def flush_keys(token: str) -> bytes:
    return wire.execute("flush_dtmf", "", token)


def break_prompt(channel: str) -> bytes:
    return wire.command(f"api uuid_break {channel}")


def let_go(channel: str) -> bytes:
    """Make the end of this connection harmless to a call that was sent elsewhere, whatever ends it (kill -9 too).

    With `socket_resume` FreeSWITCH resets a channel whose connection ends, and what plays there is its last action.
    Without it a `park` ends with the connection, and a new `socket` that nobody takes is never left.
    """
    now = "${variable_current_application}"
    kept = f"${{cond({now} == socket ? true : ${{cond({now} == park ? true : false)}})}}"
    return wire.command(f"api expand uuid:{channel} uuid_setvar {channel} socket_resume {kept}")


def start_recording(channel: str, path: str) -> bytes:
    """`0` is no limit; the variables in braces are the fifth argument, and a sixth would drop them silently."""
    return wire.command(f"api uuid_record {channel} start {path} 0 {_RECORD_VARIABLES}")


def continue_recording(channel: str, path: str) -> bytes:
    """Record on into a file that was closed, at its rate. A file opened so is not removed when nothing follows."""
    return wire.command(f"api uuid_record {channel} start {path} 0 {_RECORD_VARIABLES[:-1]},RECORD_APPEND=true}}")


def change_recording(channel: str, verb: str, path: str) -> bytes:
    """`verb` is stop, mask or unmask."""
    return wire.command(f"api uuid_record {channel} {verb} {path}")
