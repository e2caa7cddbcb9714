"""FreeSWITCH's words understood: as a real one wrote them, and as a caller would like them to be."""

import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callrec.call import events as on
from callrec.errors import WireError
from callrec.esl import dialect, wire

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"
_MARK = re.compile(rb"^(?:=====\[ *[0-9.]+\] (S->C|C->S) ([^\n]+)|#####\[ *[0-9.]+\] NOTE[^\n]*)\n", re.MULTILINE)
PATH = "/srv/spool/rec/2f6c0f5e-6f0b-4c8b-9a53-0d7c2b1a9f10.wav"
CHANNEL = "5b454a8a-700c-41df-9514-66bf3f4629b5"


@cache
def heard(number, connection="B"):
    """All events that FreeSWITCH sent on one connection of a transcript."""
    text = next(TRANSCRIPTS.glob(f"{number}_*.txt")).read_bytes()
    marks = list(_MARK.finditer(text))
    parser, events = wire.FrameParser(), []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        if mark[1] == b"S->C" and mark[2] == connection.encode():
            payload = text[mark.end() : following.start() - 1 if following else len(text)]
            if payload.strip() != b"<<EOF>>":
                events += [frame.event for frame in parser.feed(payload) if frame.event]
    return events


def reference(title):
    """One event of the reference transcript, by the title above it."""
    text = next(TRANSCRIPTS.glob("15_*.txt")).read_bytes()
    section = re.search(rb"^#{16} %b   [^\n]*\n(.*?)(?=^#{16} |\Z)" % title.encode(), text, re.DOTALL | re.MULTILINE)
    block = section[1][section[1].index(b"Event-Name: ") :].split(b"\n\n")[0] + b"\n"
    return wire.Headers(block)


def numbered(number, sequence, connection="B"):
    return next(event for event in heard(number, connection) if dialect.sequence(event) == sequence)


def understood(number, path, connection="B"):
    """(Event-Sequence, what it means) of everything in a transcript that means something."""
    meant = [(dialect.sequence(event), dialect.understand(event, path)) for event in heard(number, connection)]
    return [(sequence, event) for sequence, event in meant if event is not None]


def event(name, **headers):
    """An event as FreeSWITCH encodes it; `_` stands for `-` in names without a prefix."""
    fields = {key if key.startswith("variable_") else key.replace("_", "-"): value for key, value in headers.items()}
    [frame] = wire.FrameParser().feed(wire.build_event(name, fields))
    return frame.event


# real events


def test_record_start_of_our_path_alone():
    other, ours = "/srv/fsbuild/run/rec/c.wav", "/srv/fsbuild/run/rec/c2.wav"
    starts = [event for event in heard("09") if event.get("Event-Name") == "RECORD_START"]
    assert len(starts) == 4
    assert [dialect.understand(start, ours) is not None for start in starts] == [False, True, False, False]
    assert dialect.understand(starts[0], other).at.tzinfo is UTC
    assert dialect.understand(starts[0], PATH) is None
    assert dialect.understand(starts[0], "") is None


def test_a_recording_without_our_variables_is_not_as_asked():
    start = numbered("09", 5549)
    assert not dialect.understand(start, start.get("Record-File-Path")).as_asked


@pytest.mark.parametrize(
    ("variables", "as_asked"),
    [
        ({"RECORD_STEREO": "true", "RECORD_PRE_BUFFER_FRAMES": "0"}, True),
        ({"RECORD_STEREO": "true", "RECORD_PRE_BUFFER_FRAMES": "25"}, False),
        ({"RECORD_STEREO": "true"}, False),
        ({"RECORD_PRE_BUFFER_FRAMES": "0"}, False),
        ({"RECORD_STEREO": "false", "RECORD_PRE_BUFFER_FRAMES": "0"}, False),
    ],
)
def test_a_recording_is_as_asked_when_it_is_stereo_and_whole(variables, as_asked):
    block = numbered("09", 5549).raw().replace(b"/srv/fsbuild/run/rec/c.wav", PATH.encode())
    block += b"".join(b"Recording-Variable-%b: %b\n" % (k.encode(), v.encode()) for k, v in variables.items())
    started = dialect.understand(wire.Headers(block), PATH)
    assert (type(started), started.as_asked) == (on.RecordStarted, as_asked)


def test_record_stop_says_when_and_how_many_samples():
    stop = dialect.understand(numbered("09", 5554), "/srv/fsbuild/run/rec/c.wav")
    assert (type(stop), stop.samples) == (on.RecordStopped, 13120)
    assert stop.at == dialect.happened_at(numbered("09", 5554))
    assert dialect.understand(numbered("09", 5605), "/srv/fsbuild/run/rec/c4.wav").samples == 8320
    assert dialect.understand(numbered("09", 5579), "/srv/fsbuild/run/rec/c3.wav").samples == 0
    assert dialect.understand(numbered("09", 5554), PATH) is None


def test_times_are_freeswitchs_own():
    assert dialect.happened_at(numbered("07", 5201)).year == 2026
    stamp = "1795298181845508"
    at = dialect.happened_at(event("DTMF", Event_Date_Timestamp=stamp))
    assert at == datetime(2026, 11, 21, 21, 56, 21, 845508, tzinfo=UTC)


def test_a_notice_that_was_played_a2():
    stopped, ended = numbered("11d", 6290), numbered("11d", 6291)
    assert dialect.understand(stopped, PATH) == on.PromptStopped(done=True)
    assert dialect.understand(ended, PATH) == on.PromptEnded("ev-2", True, dialect.happened_at(ended), 0.3)


def test_a_notice_that_was_broken_off_a2():
    assert dialect.understand(reference("PLAYBACK_STOP break"), PATH) == on.PromptStopped(done=False)
    assert dialect.understand(reference("PLAYBACK_STOP done"), PATH) == on.PromptStopped(done=True)
    assert dialect.understand(numbered("07", 5217), PATH) == on.PromptStopped(done=False)


def test_a_notice_whose_file_is_missing_a2():
    missing = reference("CHANNEL_EXECUTE_COMPLETE playback missing file")
    assert missing.get("Application-Response") == "FILE NOT FOUND"
    assert dialect.understand(missing, PATH) == on.PromptEnded("ev-4", False, dialect.happened_at(missing))


@pytest.mark.parametrize(("number", "stop", "end"), [("09", 5599, 5600), ("10", 5667, 5668), ("14", 9205, 9206)])
def test_done_on_hangup_is_not_done_a2_a3(number, stop, end):
    assert numbered(number, stop).get("Playback-Status") == "done"
    assert dialect.understand(numbered(number, stop), PATH) == on.PromptStopped(done=False)
    assert dialect.understand(numbered(number, end), PATH) == on.Hangup()


def test_a_prompt_was_heard_as_far_as_freeswitch_got_with_it_a3():
    # Seen on 1.10.12: played, done and answered, although the caller had hung up after 0.8 s of 1.5 s.
    ended = event(
        "CHANNEL_EXECUTE_COMPLETE", Application="playback", Application_UUID="t", Answer_State="answered",
        Application_Response="FILE PLAYED", variable_playback_ms="1500", variable_playback_samples="12000",
        variable_playback_last_offset_pos="6400", variable_write_rate="8000",
    )  # fmt: skip
    assert dialect.understand(ended, PATH) == on.PromptEnded("t", True, None, 0.8)


def test_played_and_hung_up_is_not_played_a3():
    ended = event(
        "CHANNEL_EXECUTE_COMPLETE", Application="playback", Application_UUID="t", Answer_State="hangup",
        Application_Response="FILE PLAYED",
    )  # fmt: skip
    assert dialect.understand(ended, PATH) == on.Hangup()


def test_keys_in_the_order_of_their_numbers_a4():
    keys = [event for _, event in understood("07", PATH) if isinstance(event, on.Key)]
    assert keys[:4] == [on.Key("4", 5204), on.Key("2", 5206), on.Key("7", 5208), on.Key("#", 5210)]
    assert len(keys) == 17
    assert [key.sequence for key in keys] == sorted(key.sequence for key in keys)


def test_the_flush_carries_the_number_from_which_keys_count_a5():
    flushed = event(
        "CHANNEL_EXECUTE_COMPLETE", Application="flush_dtmf", Application_UUID="call:1", Event_Sequence="77"
    )
    assert dialect.understand(flushed, PATH) == on.KeysFlushed("call:1", 77)


@pytest.mark.parametrize(
    ("number", "first", "during_prompt"),
    [("07", 5311, False), ("09", 5596, True), ("10", 5664, True), ("12e", 6017, False), ("14", 9202, True)],
)
def test_hangups(number, first, during_prompt):
    hangups = [sequence for sequence, event in understood(number, PATH) if event == on.Hangup()]
    assert hangups[0] == first
    assert len(hangups) == during_prompt + 2  # CHANNEL_HANGUP, the prompt's completion, CHANNEL_HANGUP_COMPLETE


def test_what_the_machine_has_no_word_for_is_nothing():
    for number in ("07", "09", "12e", "14"):
        meaning = {sequence for sequence, _ in understood(number, PATH)}
        for heard_ in heard(number):
            name, application = heard_.get("Event-Name"), heard_.get("Application")
            if name == "CHANNEL_EXECUTE_COMPLETE" and application not in ("playback", "flush_dtmf"):
                assert dialect.sequence(heard_) not in meaning
            if name in ("CHANNEL_EXECUTE", "CHANNEL_PARK", "CHANNEL_ANSWER", "CHANNEL_BRIDGE", "CHANNEL_UNPARK"):
                assert dialect.sequence(heard_) not in meaning
    assert dialect.understand(wire.Headers(b"Content-Type: text/disconnect-notice\n"), PATH) is None


def test_the_channel_the_number_dialled_and_the_caller():
    [reply] = wire.FrameParser().feed(
        wire.build_connect_reply({
            "Unique-ID": CHANNEL, "Caller-Destination-Number": "040404040", "Caller-Caller-ID-Number": "+38640111222",
        })
    )  # fmt: skip
    assert dialect.channel_id(reply.headers) == CHANNEL
    assert dialect.dialled(reply.headers) == "040404040"
    assert dialect.caller_number(reply.headers) == "+38640111222"
    [hidden] = wire.FrameParser().feed(
        wire.build_connect_reply({
            "Unique-ID": CHANNEL, "Caller-Caller-ID-Number": "+38640111222", "Caller-Privacy-Hide-Number": "true",
        })
    )  # fmt: skip
    assert dialect.caller_number(hidden.headers) == ""


# what a caller may write


FORGED = (
    "x%0AEvent-Name%3A%20DTMF%0ADTMF-Digit%3A%201",
    "x\nEvent-Name: DTMF\nDTMF-Digit: 1",
    "x%0ARecord-File-Path%3A%20" + PATH,
    "x%0A%0AContent-Length%3A%205",
    "%0AUnique-ID%3A%20" + CHANNEL,
)


@pytest.mark.parametrize("name", FORGED)
def test_a_callers_name_is_never_an_event_nor_a_header(name):
    for true, meaning in [
        (event("CHANNEL_PARK", Caller_Caller_ID_Name=name, variable_sip_from_display=name), None),
        (event("CHANNEL_HANGUP", Caller_Caller_ID_Name=name), on.Hangup()),
        (event("DTMF", Caller_Caller_ID_Name=name, DTMF_Digit="5", Event_Sequence="9"), on.Key("5", 9)),
        (event("RECORD_START", Caller_Caller_ID_Name=name, Record_File_Path="/elsewhere.wav"), None),
    ]:
        assert dialect.understand(true, PATH) == meaning


@pytest.mark.parametrize(
    "digit", ["", "1\n", "%31%0A", "%31", "11", "1 ", " 1", "\u0661", "\uff11", "x", "_undef_", "1\r", "\x001", "%"]
)
def test_what_is_not_one_key_is_none_a4(digit):
    if digit == "%31":  # FreeSWITCH lets it through as it is: it is a 1
        assert dialect.understand(event("DTMF", DTMF_Digit=digit), PATH) == on.Key("1", 0)
    else:
        assert dialect.understand(event("DTMF", DTMF_Digit=digit), PATH) is None


@pytest.mark.parametrize(
    "number", ["", "-1", "1.5", "1e9", "9" * 19, "9" * 5000, "\u0661", "\u00b2", "0x10", "1\n", " 1"]
)
def test_what_is_no_number_is_none(number):
    assert dialect.sequence(event("DTMF", Event_Sequence=number)) == 0
    assert dialect.happened_at(event("DTMF", Event_Date_Timestamp=number)) is None
    stop = event("RECORD_STOP", Record_File_Path=PATH, variable_record_samples=number)
    assert dialect.understand(stop, PATH).samples is None


def test_a_date_beyond_the_calendar_is_none():
    assert dialect.happened_at(event("DTMF", Event_Date_Timestamp="9" * 18)) is None
    assert dialect.happened_at(event("DTMF", Event_Date_Timestamp="9" * 17)) is not None


@pytest.mark.parametrize(
    "channel", ["", "x", CHANNEL + "\n", CHANNEL + " start", CHANNEL[:-1], f"{CHANNEL}\nexit", "\u0661" * 36]
)
def test_a_channel_that_is_no_uuid_is_refused(channel):
    with pytest.raises(WireError) as caught:
        dialect.channel_id(event("X", Unique_ID=channel))
    assert caught.value.kind == "channel_id"
    assert caught.value.hint


NAMES = st.sampled_from([*dialect._EVENTS, "CHANNEL_PARK", "", "x"])
HEADERS = st.dictionaries(
    st.sampled_from([
        "Event-Sequence", "Event-Date-Timestamp", "DTMF-Digit", "Playback-Status", "Answer-State", "Application",
        "Application-UUID", "Application-Response", "Record-File-Path", "variable_record_samples",
    ]),
    st.one_of(
        st.text(max_size=30), st.sampled_from(["playback", "flush_dtmf", "FILE PLAYED", "done", PATH, "1", *FORGED])
    ),
)  # fmt: skip


@given(name=NAMES, headers=HEADERS)
def test_nothing_that_comes_raises_or_is_taken_for_what_it_is_not(name, headers):
    [frame] = wire.FrameParser().feed(wire.build_event(name, headers))
    meaning = dialect.understand(frame.event, PATH)
    sent = {key: frame.event.get(key) for key in headers}
    match meaning:
        case on.Key(digit):
            assert (name, sent["DTMF-Digit"]) == ("DTMF", digit)
        case on.RecordStarted() | on.RecordStopped():
            assert sent["Record-File-Path"] == PATH
        case on.PromptEnded(token, True):
            assert (sent["Application"], sent["Application-Response"]) == ("playback", "FILE PLAYED")
            assert token == sent.get("Application-UUID", "")
        case on.PromptStopped(True):
            assert sent["Playback-Status"] == "done"
        case on.Hangup():
            of_the_prompt = name == "CHANNEL_EXECUTE_COMPLETE" and sent["Answer-State"] == "hangup"
            assert of_the_prompt or name in ("CHANNEL_HANGUP", "CHANNEL_HANGUP_COMPLETE")


# what we say


def test_each_command_byte_for_byte():
    sendmsg = b"sendmsg\ncall-command: execute\nexecute-app-name: "
    tail = b"event-lock: true\nEvent-UUID: "
    assert dialect.answer() == sendmsg + b"answer\n" + tail + b"answer\n\n"
    assert dialect.uninterruptible() == (
        sendmsg + b"set\nexecute-app-arg: playback_terminators=none\n" + tail + b"set\n\n"
    )
    assert dialect.play("/p/b.wav", "c:1") == sendmsg + b"playback\nexecute-app-arg: /p/b.wav\n" + tail + b"c:1\n\n"
    assert dialect.flush_keys("c:1") == sendmsg + b"flush_dtmf\n" + tail + b"c:1\n\n"
    assert dialect.break_prompt(CHANNEL) == b"api uuid_break " + CHANNEL.encode() + b"\n\n"
    # uuid, start, path, limit, variables: one argument more and FreeSWITCH drops the variables
    assert dialect.start_recording(CHANNEL, PATH) == (
        b"api uuid_record " + CHANNEL.encode() + b" start " + PATH.encode() + b" 0 {RECORD_STEREO=true,"
        b"RECORD_PRE_BUFFER_FRAMES=0,enable_file_write_buffering=false,RECORD_MIN_SEC=0}\n\n"
    )
    for verb in ("stop", "mask", "unmask"):
        assert dialect.change_recording(CHANNEL, verb, PATH) == f"api uuid_record {CHANNEL} {verb} {PATH}\n\n".encode()


def test_linger_has_its_seconds_and_no_space_behind_them():
    first, second, third, fourth = dialect.subscriptions(10)
    assert (first, second) == (b"linger 10\n\n", b"myevents\n\n")
    assert third.startswith(b"event plain ")
    assert fourth.startswith(b"nixevent ")
    for wanted in (b"PLAYBACK_START", b"PLAYBACK_STOP", b"RECORD_START", b"RECORD_STOP"):
        assert wanted in third.split()


def test_what_is_not_wanted_is_nothing_the_machine_needs():
    assert not set(dialect.UNWANTED_EVENTS.split()) & dialect._EVENTS.keys()
    assert set(dialect.INBOUND_EVENTS.split()[2:]) <= dialect._EVENTS.keys() | {"CODEC"}  # the recorder's


@pytest.mark.parametrize("path", ["/p/a\nexit", "/p/a\r", "/p/a\0"])
def test_a_path_with_a_line_end_is_never_sent(path):
    for make in (
        lambda: dialect.play(path, "t"),
        lambda: dialect.start_recording(CHANNEL, path),
        lambda: dialect.change_recording(CHANNEL, "stop", path),
    ):
        with pytest.raises(WireError):
            make()
