"""Event text as FreeSWITCH writes it: what every event starts with, and what a channel adds to its own.

Written for thousands of events a second: what does not change between two events of a call is kept as bytes.
"""

import time
from collections.abc import Iterable

from callrec.demo.audio import RATE
from callrec.esl.wire import encode

Lines = Iterable[tuple[str, str]]

GOODBYE = b"Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n"

# Where 1.10.12 raises each event (file, function, line), as in the transcripts.
_SOURCE = {
    "BACKGROUND_JOB": ("mod_event_socket.c", "api_exec", 1572),
    "CHANNEL_ANSWER": ("switch_channel.c", "switch_channel_perform_mark_answered", 3846),
    "CHANNEL_BRIDGE": ("switch_ivr_bridge.c", "switch_ivr_multi_threaded_bridge", 1689),
    "CHANNEL_CALLSTATE": ("switch_channel.c", "switch_channel_perform_set_callstate", 301),
    "CHANNEL_CREATE": ("switch_core_state_machine.c", "switch_core_session_run", 626),
    "CHANNEL_DATA": ("mod_event_socket.c", "parse_command", 2021),
    "CHANNEL_DESTROY": ("switch_core_session.c", "switch_core_session_perform_destroy", 1584),
    "CHANNEL_EXECUTE": ("switch_core_session.c", "switch_core_session_exec", 2944),
    "CHANNEL_EXECUTE_COMPLETE": ("switch_core_session.c", "switch_core_session_exec", 2967),
    "CHANNEL_HANGUP": ("switch_channel.c", "switch_channel_perform_hangup", 3445),
    "CHANNEL_HANGUP_COMPLETE": ("switch_core_state_machine.c", "switch_core_session_reporting_state", 943),
    "CHANNEL_PARK": ("switch_ivr.c", "switch_ivr_park", 1002),
    "CHANNEL_PROGRESS_MEDIA": ("switch_channel.c", "switch_channel_perform_mark_pre_answered", 3571),
    "CHANNEL_STATE": ("switch_channel.c", "switch_channel_perform_set_running_state", 2408),
    "CHANNEL_UNBRIDGE": ("switch_ivr_bridge.c", "switch_ivr_multi_threaded_bridge", 1879),
    "CHANNEL_UNPARK": ("switch_ivr.c", "switch_ivr_park", 1213),
    "CODEC": ("switch_core_codec.c", "switch_core_session_set_write_codec", 450),
    "DTMF": ("switch_channel.c", "switch_channel_dequeue_dtmf", 677),
    "HEARTBEAT": ("switch_core.c", "send_heartbeat", 95),
    "PLAYBACK_START": ("switch_ivr_play_say.c", "switch_ivr_play_file", 1646),
    "PLAYBACK_STOP": ("switch_ivr_play_say.c", "switch_ivr_play_file", 2020),
    "RECORD_START": ("switch_ivr_async.c", "record_callback", 1481),
    "RECORD_STOP": ("switch_ivr_async.c", "send_record_stop_event", 1240),
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The names that `event` takes; any other word there is ignored.
NAMES = frozenset(_SOURCE) | _words(
    "ALL CUSTOM CHANNEL_APPLICATION CHANNEL_HOLD CHANNEL_ORIGINATE CHANNEL_OUTGOING CHANNEL_PROGRESS "
    "CHANNEL_UNHOLD CHANNEL_UUID DETECTED_SPEECH MEDIA_BUG_START MEDIA_BUG_STOP NOTALK SHUTDOWN TALK API LOG "
    "RELOADXML RE_SCHEDULE STARTUP"
)

# What `myevents` turns on: no PLAYBACK_*, RECORD_*, CHANNEL_CALLSTATE or BACKGROUND_JOB among them.
MY_EVENTS = _words(
    "CHANNEL_ANSWER CHANNEL_APPLICATION CHANNEL_BRIDGE CHANNEL_CREATE CHANNEL_DATA CHANNEL_DESTROY CHANNEL_EXECUTE "
    "CHANNEL_EXECUTE_COMPLETE CHANNEL_HANGUP CHANNEL_HANGUP_COMPLETE CHANNEL_ORIGINATE CHANNEL_UUID CHANNEL_OUTGOING "
    "CHANNEL_PARK CHANNEL_PROGRESS CHANNEL_PROGRESS_MEDIA CHANNEL_STATE CHANNEL_UNBRIDGE CHANNEL_UNPARK "
    "DETECTED_SPEECH DTMF NOTALK TALK"
)


def block(lines: Lines) -> bytes:
    """Header lines, encoded, each with its line feed."""
    return b"".join(b"%b: %b\n" % (name.encode(), encode(value)) for name, value in lines)


def framed(text: bytes, body: bytes = b"") -> bytes:
    """A text/event-plain frame around an event's header lines and the body that it may carry."""
    inner = text + (b"Content-Length: %d\n\n%b" % (len(body), body) if body else b"\n")
    return b"Content-Length: %d\nContent-Type: text/event-plain\n\n%b" % (len(inner), inner)


class Heads:
    """The lines that every event of one switch starts with. `sequence` grows by one with each event."""

    def __init__(self, core_uuid: str, host: str) -> None:
        self.sequence = 0
        self._switch = block(
            [
                ("Core-UUID", core_uuid),
                ("FreeSWITCH-Hostname", host),
                ("FreeSWITCH-Switchname", host),
                ("FreeSWITCH-IPv4", "192.0.2.2"),
                ("FreeSWITCH-IPv6", "fd00::2"),
            ]
        )
        self._second = -1
        self._dates = b""
        self._source = {
            name: block(
                [
                    ("Event-Calling-File", file),
                    ("Event-Calling-Function", function),
                    ("Event-Calling-Line-Number", str(line)),
                ]
            )
            for name, (file, function, line) in _SOURCE.items()
        }

    def head(self, name: str, at: int) -> bytes:
        """For an event at `at`, in microseconds since the epoch."""
        self.sequence += 1
        second = at // 1_000_000
        if second != self._second:
            moment = time.gmtime(second)
            self._dates = block(
                [
                    ("Event-Date-Local", time.strftime("%Y-%m-%d %H:%M:%S", moment)),
                    ("Event-Date-GMT", time.strftime("%a, %d %b %Y %H:%M:%S GMT", moment)),
                ]
            )
            self._second = second
        return b"Event-Name: %b\n%b%bEvent-Date-Timestamp: %d\n%bEvent-Sequence: %d\n" % (
            name.encode(),
            self._switch,
            self._dates,
            at,
            self._source[name],
            self.sequence,
        )


class ChannelText:
    """What a channel writes into its events: its state, its caller, its variables.

    Setting a variable that is there moves it to the end, as in FreeSWITCH. Whoever changes a field calls `changed`.
    """

    def __init__(self, uuid: str, dialled: str, number: str, name: str, created: int) -> None:
        self.uuid = uuid
        self.state, self.state_number, self.call_state, self.answer_state = "CS_EXECUTE", 4, "RINGING", "ringing"
        self.cause = ""
        self.rate = RATE  # samples a second, of the codec in both directions
        self.answered = self.media = self.hung_up = self.bridged = 0  # microseconds since the epoch
        self.name = f"loopback/{dialled}-b"
        self.created = created
        who = [("Caller-ID-Name", name), ("Caller-ID-Number", number)]
        # A channel without a name or number has no such line at all.
        given = [(f"{orig}{key}", value) for orig in ("", "Orig-") for key, value in who if value]
        self._profile = [
            ("Direction", "inbound"),
            ("Logical-Direction", "inbound"),
            ("Dialplan", "xml"),
            *given,
            ("Callee-ID-Name", "Outbound Call"),
            ("Callee-ID-Number", "default"),
            *([("ANI", number)] if number else []),
            ("Destination-Number", dialled),
            ("Unique-ID", uuid),
            ("Source", "mod_loopback"),
            ("Context", "default"),
            ("Channel-Name", self.name),
            ("Profile-Index", "1"),
            ("Profile-Created-Time", str(created)),
            ("Channel-Created-Time", str(created)),
        ]
        self.variables: dict[str, str] = {}
        self._encoded: dict[str, bytes] = {}
        self._basic: bytes | None = None
        self._all: bytes | None = None

    def set(self, name: str, value: str) -> None:
        """Set a channel variable; an empty value removes it."""
        self.variables.pop(name, None)
        self._encoded.pop(name, None)
        if value:
            self.variables[name] = value
            self._encoded[name] = b"variable_%b: %b\n" % (name.encode("utf-8", "replace"), encode(value))
        self._all = None

    def changed(self) -> None:
        self._basic = None

    def move(self, dialled: str, source: str, at: int) -> None:
        """The caller's lines after a transfer: `source` is FreeSWITCH's mark of it, `at` its moment."""
        was = dict(self._profile)
        now = {
            "Destination-Number": dialled,
            "Profile-Index": str(int(was["Profile-Index"]) + 1),
            "Profile-Created-Time": str(at),
        }
        added = {"Source": ("Transfer-Source", source), "Context": ("RDNIS", was["Destination-Number"])}
        lines: list[tuple[str, str]] = []
        for name, value in self._profile:
            if name not in ("Transfer-Source", "RDNIS"):
                lines += [(name, now.get(name, value)), *([added[name]] if name in added else [])]
        self._profile = lines
        self.changed()

    def profile(self, prefix: str) -> bytes:
        """The caller's lines: `Caller-` in events, `Channel-` as well in the reply to `connect`."""
        times = [
            ("Answered", self.answered),
            ("Progress", 0),
            ("Progress-Media", self.media),
            ("Hangup", self.hung_up),
            ("Transfer", 0),
            ("Resurrect", 0),
            ("Bridged", self.bridged),
        ]
        return block(
            (f"{prefix}-{name}", value)
            for name, value in [
                *self._profile,
                *((f"Channel-{name}-Time", str(value)) for name, value in times),
                ("Channel-Last-Hold", "0"),
                ("Channel-Hold-Accum", "0"),
                ("Screen-Bit", "true"),
                ("Privacy-Hide-Name", "false"),
                ("Privacy-Hide-Number", "false"),
            ]
        )

    def basic(self) -> bytes:
        """State and caller, without variables: all that DTMF, CHANNEL_STATE and CHANNEL_CALLSTATE have."""
        if self._basic is None:
            rates = [("Name", "L16"), ("Rate", str(self.rate)), ("Bit-Rate", str(16 * self.rate))]
            self._basic = block(
                [
                    ("Channel-State", self.state),
                    ("Channel-Call-State", self.call_state),
                    ("Channel-State-Number", str(self.state_number)),
                    ("Channel-Name", self.name),
                    ("Unique-ID", self.uuid),
                    ("Call-Direction", "inbound"),
                    ("Presence-Call-Direction", "inbound"),
                    ("Channel-HIT-Dialplan", "true"),
                    ("Channel-Call-UUID", self.uuid),
                    ("Answer-State", self.answer_state),
                    *([("Hangup-Cause", self.cause)] if self.cause else []),
                    *((f"Channel-{way}-Codec-{key}", value) for way in ("Read", "Write") for key, value in rates),
                ]
            ) + self.profile("Caller")
        return self._basic

    def full(self) -> bytes:
        """State, caller and variables."""
        if self._all is None:
            self._all = b"".join(self._encoded.values())
        return self.basic() + self._all
