"""The simulated switch does what the transcripts show: its headers, its order of events, its files."""

import re
import resource
import stat
import struct
import time
import wave
from array import array
from pathlib import Path

import gevent
import pytest
from gevent import socket

from callrec.demo import audio, caller
from callrec.demo.caller import CallScript
from callrec.demo.switch import Switch
from callrec.esl.wire import FrameParser, command, execute

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"
SPEED = 20.0
EXACT = "{RECORD_STEREO=true,enable_file_write_buffering=false,RECORD_PRE_BUFFER_FRAMES=0}"
EVENTS = "event plain PLAYBACK_START PLAYBACK_STOP RECORD_START RECORD_STOP BACKGROUND_JOB"


class Peer:
    """A bare event-socket client: sends bytes, collects frames."""

    def __init__(self, sock):
        self.sock = sock
        self.parser = FrameParser()
        self.frames = []
        self.closed = False
        gevent.spawn(self._read)

    def _read(self):
        try:
            while data := self.sock.recv(65536):
                self.frames += self.parser.feed(data)
        except OSError:
            pass
        self.closed = True
        self.sock.close()

    def until(self, found, seconds=10.0):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for frame in self.frames:
                if found(frame):
                    return frame
            gevent.sleep(0.002)
        raise AssertionError(f"never came; there are {self.story()}")

    def event(self, name, **wanted):
        def found(frame):
            headers = frame.event
            return (
                headers is not None
                and headers.get("Event-Name") == name
                and all(headers.get(key.replace("_", "-")) == value for key, value in wanted.items())
            )

        return self.until(found).event

    def ask(self, text, *headers):
        """The reply to one command; replies come in order."""
        answers = ("command/reply", "api/response")
        before = sum(frame.content_type in answers for frame in self.frames)
        self.sock.sendall(command(text, *headers))
        self.until(lambda _: sum(frame.content_type in answers for frame in self.frames) > before)
        return [frame for frame in self.frames if frame.content_type in answers][before].reply

    def run(self, app, arg="", token="t"):
        self.sock.sendall(execute(app, arg, token))

    def story(self):
        return [
            frame.event.get("Event-Name") if frame.event else frame.headers.get("Content-Disposition")
            for frame in self.frames
            if frame.event or frame.content_type == "text/disconnect-notice"
        ]

    def open(self):
        """What the listener says first, as in the transcripts."""
        self.sock.sendall(command("connect"))
        data = self.until(lambda frame: frame.headers.get("Event-Name") == "CHANNEL_DATA")
        assert self.ask("linger 5") == "+OK will linger 5 seconds"
        assert self.ask("myevents") == "+OK Events Enabled"
        assert self.ask(EVENTS) == "+OK event listener enabled plain"
        self.run("answer", token="ev-1")
        self.event("CHANNEL_EXECUTE_COMPLETE", Application="answer")
        return data


class Bench:
    """A listening socket and a switch that sends its calls there."""

    def __init__(self, **options):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.switch = Switch(
            listener=self.server.getsockname(), password="secret", **{"speed": SPEED, "channels_lag": 0.0} | options
        )
        self.switch.start()
        self.peers = []

    def peer(self, sock):
        self.peers.append(Peer(sock))
        return self.peers[-1]

    def close(self):
        self.switch.kill()
        self.server.close()
        for peer in self.peers:
            peer.sock.close()

    def call(self, **script):
        return self.switch.place(CallScript(**{"dialled": "+38614044045"} | script))

    def accept(self):
        with gevent.Timeout(5):
            return self.peer(self.server.accept()[0])

    def client(self, password="secret"):
        peer = self.peer(socket.create_connection(self.switch.event_socket_address, timeout=5))
        peer.until(lambda frame: frame.content_type == "auth/request")
        return peer, peer.ask(f"auth {password}")


@pytest.fixture
def make_bench():
    made = []

    def make(**options):
        made.append(Bench(**options))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(make_bench):
    return make_bench()


@pytest.fixture
def prompt(tmp_path):
    """A prompt of 3 s."""
    path = tmp_path / "prompt.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 24000))
    return str(path)


def facts(call, *names):
    return [what for _, what in call.timeline if what[0] in names]


def header_names(text):
    return [line.partition(":")[0] for line in text.strip().splitlines()]


def reference(title):
    """One full frame of transcript 15, and its event's part."""
    text = (TRANSCRIPTS / "15_full_headers_reference.txt").read_text()
    part = next(p for p in text.split("################ ")[1:] if p.startswith(title))
    blocks = part.partition("\n")[2].strip().split("\n\n")
    return header_names(blocks[-1])


def samples(path):
    """The two channels of a stereo file."""
    data = array("h", Path(path).read_bytes()[44:])
    return data[0::2], data[1::2]


def sizes(path):
    """(RIFF size, data size) as the header says."""
    head = Path(path).read_bytes()[:44]
    return struct.unpack("<I", head[4:8])[0], struct.unpack("<I", head[40:44])[0]


def test_the_connect_reply_has_the_headers_of_the_real_one(bench):
    bench.call()
    data = bench.accept().open()
    # socket_resume is set before `socket` here, and was not in transcript 15
    ours = [name for name in header_names(data.headers.raw().decode()) if name != "variable_socket_resume"]
    assert ours == reference("connect reply")
    assert data.headers.get("Control") == "full"
    assert data.headers.get("Reply-Text") == "+OK\n"


@pytest.mark.parametrize(
    ("title", "event"),
    [("PLAYBACK_STOP break", "PLAYBACK_STOP"), ("DTMF", "DTMF"), ("CHANNEL_EXECUTE_COMPLETE playback", None)],
)
def test_events_have_the_headers_of_the_real_ones(bench, prompt, title, event):
    """Names, apart from the variables that the other call happened to have, and their order."""
    bench.call(steps=((caller.during_prompt(0.5), caller.press("*")),))
    peer = bench.accept()
    peer.open()
    peer.run("playback", prompt if event else "/nope/none.wav", "ev-4")
    found = peer.event(event) if event else peer.event("CHANNEL_EXECUTE_COMPLETE", Application="playback")
    ours = [name for name in header_names(found.raw().decode()) if not name.startswith("variable_")]
    assert ours == [name for name in reference(title) if not name.startswith("variable_")]


def test_a_whole_notice_is_heard_and_the_call_goes_on_after_resume(bench, prompt):
    call = bench.call(talk=2)
    peer = bench.accept()
    peer.open()
    peer.run("playback", prompt, "ev-2")
    done = peer.event("CHANNEL_EXECUTE_COMPLETE", Application="playback")
    assert (done.get("Application-Response"), done.get("Application-UUID")) == ("FILE PLAYED", "ev-2")
    start, stop = peer.event("PLAYBACK_START"), peer.event("PLAYBACK_STOP")
    assert stop.get("Playback-Status") == "done"
    assert stop.get("variable_playback_ms") == "3000"
    length = int(stop.get("Event-Date-Timestamp")) - int(start.get("Event-Date-Timestamp"))
    assert length == 3_000_000  # simulated, whatever the speed
    assert peer.ask("resume") == "+OK"
    assert peer.ask("exit") == "+OK bye"
    call.result(10)
    assert facts(call, "prompt", "released", "bridged", "hangup") == [
        ("prompt", prompt, 3.0),
        ("released", "resume"),
        ("bridged",),
        ("hangup", "NORMAL_CLEARING"),
    ]
    assert peer.closed
    assert peer.story()[-1] == "disconnect"


def usual_order():
    """The order that 38 of 40 calls had, as transcript 10b counted it, without the notice."""
    text = (TRANSCRIPTS / "10b_outbound_linger_vs_no_linger_race.txt").read_text()
    return re.findall(r"38x (.*) > text/disconnect-notice/linger", text)[0].split(" > ")


@pytest.mark.parametrize("late", [False, True])
def test_hang_up_during_the_notice(bench, prompt, tmp_path, late):
    call = bench.call(steps=((caller.during_prompt(0.4), caller.hang_up()),), late_hangup=late)
    peer = bench.accept()
    peer.open()
    assert peer.ask(f"api uuid_record {call.uuid} start {tmp_path}/a.wav 0 {EXACT}") == "+OK Success"
    peer.run("playback", prompt, "ev-2")
    call.result(10)
    peer.until(lambda frame: frame.headers.get("Content-Disposition") == "linger")
    names = [n for n in peer.story() if n not in ("CHANNEL_STATE", "linger")]
    expected = usual_order()
    if late:
        expected = [*expected[1:5], "CHANNEL_HANGUP", *expected[5:]]
    assert names[-7:] == expected
    assert peer.event("PLAYBACK_STOP").get("Playback-Status") == "done"  # a hang-up too
    done = peer.event("CHANNEL_EXECUTE_COMPLETE", Application="playback")
    assert done.get("Application-Response") == "PLAYBACK ERROR"
    assert facts(call, "prompt") == [("prompt", prompt, pytest.approx(1.2))]
    sequence = [int(f.event.get("Event-Sequence")) for f in peer.frames if f.event]
    assert sequence == sorted(set(sequence))
    # while it lingers
    assert peer.ask(f"api uuid_exists {call.uuid}") == "false"
    assert peer.ask("getvar hangup_cause") == "NORMAL_CLEARING"
    assert peer.ask("sendmsg", ("call-command", "execute"), ("execute-app-name", "playback")) == "+OK"


@pytest.mark.parametrize("said", ["FILE PLAYED", "PLAYBACK ERROR"])
def test_a_prompt_cut_by_a_hang_up_that_nobody_noticed(bench, prompt, said):
    """Seen on the real one in 1 of 80 such calls: only the offset tells that the prompt was not played to its end."""
    call = bench.call(steps=((caller.during_prompt(0.4), caller.hang_up()),), unnoticed_hangup=said)
    peer = bench.accept()
    peer.open()
    peer.run("playback", prompt, "ev-2")
    call.result(10)
    done = peer.event("CHANNEL_EXECUTE_COMPLETE", Application="playback")
    assert (done.get("Application-Response"), done.get("Answer-State")) == (said, "answered")
    assert peer.event("PLAYBACK_STOP").get("Playback-Status") == "done"
    assert done.get("variable_playback_last_offset_pos") == "9600"
    assert done.get("variable_write_rate") == "8000"
    names = [name for name in peer.story() if name.startswith("CHANNEL_")]
    assert names.index("CHANNEL_HANGUP") > names.index("CHANNEL_EXECUTE_COMPLETE")


def test_refused_listener(bench):
    bench.server.close()
    call = bench.call(talk=1)
    call.result(5)
    assert facts(call, "released", "bridged") == [("released", "refused"), ("bridged",)]


@pytest.mark.parametrize(("resume", "after"), [(True, "bridged"), (False, "parked")])
def test_listener_closes_before_connect(make_bench, resume, after):
    """13b: without socket_resume the call stays parked for ever."""
    bench = make_bench(socket_resume=resume)
    call = bench.call(talk=1, steps=() if resume else ((caller.on_arrival(60), caller.hang_up()),))
    bench.accept().sock.close()
    call.result(10)
    assert facts(call, "bridged", "parked") == [(after,)]


def test_silent_listener_is_given_up_after_25_s(bench):
    call = bench.call(talk=1)
    bench.accept()
    call.result(10)
    (at,) = [at for at, what in call.timeline if what == ("released", "timeout")]
    assert 25 <= at < 28
    assert facts(call, "bridged")


@pytest.mark.parametrize(("resume", "played"), [(True, 0.0), (False, 3.0)])
def test_listener_dies_during_the_prompt(make_bench, prompt, resume, played):
    """Run on the real one: with socket_resume the prompt is cut and the dialplan goes on, else it is played out."""
    bench = make_bench(socket_resume=resume)
    call = bench.call(talk=1)
    peer = bench.accept()
    peer.open()
    peer.run("playback", prompt)
    peer.event("PLAYBACK_START")
    peer.sock.close()
    call.result(10)
    ((_, _, seconds),) = facts(call, "prompt")
    assert seconds == 3.0 if played else seconds < 2.0
    assert facts(call, "released", "bridged") == [("released", "died"), ("bridged",)]


def test_keys_end_a_prompt_only_where_they_may(bench, prompt):
    call = bench.call(
        steps=((caller.during_prompt(0.5), caller.press("*1")), (caller.during_prompt(0.5, 2), caller.press("*")))
    )
    peer = bench.accept()
    peer.open()
    peer.run("set", "playback_terminators=none")
    peer.run("playback", prompt, "first")
    peer.run("set", "playback_terminators=")
    peer.run("playback", prompt, "second")
    peer.event("CHANNEL_EXECUTE_COMPLETE", Application_UUID="second")
    assert facts(call, "prompt", "key") == [
        ("key", "*"),
        ("key", "1"),
        ("prompt", prompt, 3.0),
        ("key", "*"),
        ("prompt", prompt, 1.5),  # a star ends it by default
    ]
    assert peer.event("DTMF", DTMF_Digit="1").get("DTMF-Source") == "RTP"


def test_digits_are_asked_for(bench, prompt):
    bench.call(steps=((caller.during_prompt(0.5), caller.press("9")), (caller.after_prompt(0.5, 2), caller.press("2"))))
    peer = bench.accept()
    peer.open()
    peer.run("play_and_get_digits", f"1 1 2 3000 # {prompt} {prompt} answer ^[12]$ 1000", "ask")
    peer.event("CHANNEL_EXECUTE_COMPLETE", Application_UUID="ask")
    assert peer.ask("getvar answer_invalid") == "9"
    assert peer.ask("getvar answer") in {"2", "-ERR command not found"}
    assert peer.ask("getvar nothing_of_the_kind") == "-ERR command not found"


def events_of(transcript, connection):
    """The events that FreeSWITCH sent there. As bytes: lines end in LF alone."""
    blocks = re.split(rb"(?m)^(?:=====|#####)\[ *[\d.]+\] ", (TRANSCRIPTS / transcript).read_bytes())
    marker = b"S->C %b\n" % connection.encode()
    parser, frames = FrameParser(), []
    for block in blocks:
        if block.startswith(marker):
            frames += parser.feed(block.removeprefix(marker).removesuffix(b"\n"))
    return [frame.event for frame in frames if frame.event]


def told(events):
    """What they tell, from the cut prompt to the agent; of what this dialplan does beside, nothing."""
    names = ("Event-Name", "Channel-State", "Answer-State", "Application", "Application-Response", "Playback-Status")
    own = ("callrec_reached=agents", "hangup_after_bridge=true")
    lines = [tuple(event.get(name) for name in names) for event in events if event.get("Application-Data") not in own]
    ends = [line[0] for line in lines]
    return lines[ends.index("PLAYBACK_STOP") : ends.index("CHANNEL_BRIDGE") + 1]


def test_a_transfer_in_the_interview_to_another_interview(bench, prompt):
    """14b: the prompt fails, `socket` is done, and the old connection stays and hears what the new one conducts."""
    call = bench.call(dialled="040404040", talk=0)
    first = bench.accept()
    first.open()
    first.run("playback", prompt, "ev-2")
    first.event("PLAYBACK_START")
    inbound, _ = bench.client()
    assert inbound.ask(f"api uuid_transfer {call.uuid} 040404045 XML public") == "+OK"
    second = bench.accept()
    second.sock.sendall(command("connect"))
    data = second.until(lambda frame: frame.headers.get("Event-Name") == "CHANNEL_DATA").headers
    assert (data.get("Unique-ID"), data.get("Caller-Destination-Number")) == (call.uuid, "040404045")
    for line in ("linger 5", "myevents", "resume", "exit"):
        assert second.ask(line).startswith("+OK")
    first.event("CHANNEL_BRIDGE")
    assert not first.closed
    real = events_of("14b_outbound_transfer_in_the_interview.txt", "B1")
    assert told([frame.event for frame in first.frames if frame.event]) == told(real)
    cut, theirs = first.event("PLAYBACK_STOP"), next(e for e in real if e.get("Event-Name") == "PLAYBACK_STOP")
    ours, wanted = header_names(cut.raw().decode()), header_names(theirs.raw().decode())
    assert [n for n in ours if not n.startswith("variable_")] == [n for n in wanted if not n.startswith("variable_")]
    mark = re.compile(r"\d+:[0-9a-f-]{36}:bl_xfer:040404045/public/XML")
    for name in ("Caller-Transfer-Source", "variable_transfer_source", "variable_transfer_history"):
        assert mark.fullmatch(cut.get(name)), name
        assert mark.fullmatch(theirs.get(name)), name
    assert inbound.ask(f"api uuid_transfer {call.uuid} agent XML agents") == "+OK"
    first.event("CHANNEL_UNBRIDGE")
    inbound.ask(f"api uuid_kill {call.uuid}")
    call.result(10)
    first.until(lambda _: first.closed)
    assert facts(call, "released", "transferred", "bridged") == [
        ("released", "transferred"),
        ("transferred", "040404045"),
        ("released", "resume"),
        ("bridged",),
        ("transferred", "agent"),
        ("bridged",),
    ]


def test_an_unknown_application_hangs_up(bench):
    call = bench.call()
    peer = bench.accept()
    peer.open()
    peer.run("nosuchapp", "x")
    call.result(5)
    assert facts(call, "hangup", "bridged") == [("hangup", "DESTINATION_OUT_OF_ORDER")]
    assert "nosuchapp" not in [f.event.get("Application") for f in peer.frames if f.event]


def record(bench, peer, call, path, tail=EXACT):
    assert peer.ask(f"api uuid_record {call.uuid} start {path} 0 {tail}".strip()) == "+OK Success"
    return peer.event("RECORD_START", Record_File_Path=path)


def pass_time(bench, seconds):
    """Simulated seconds; not a wait for something to happen but the length of what is recorded."""
    gevent.sleep(seconds / bench.switch.clock.speed)


def test_recording_is_exact_stereo_and_masked(bench, tmp_path):
    """06: masked samples are zero, the time line stays; 09: RECORD_STOP comes after the file is closed."""
    call = bench.call(talk=30)
    peer = bench.accept()
    peer.open()
    path = f"{tmp_path}/spool/a.wav"
    started = record(bench, peer, call, path)
    assert started.get("Recording-Variable-RECORD_STEREO") == "true"
    assert sizes(path) == (8, 0)
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o640
    pass_time(bench, 4)
    assert peer.ask(f"api uuid_record {call.uuid} mask {path}") == "+OK Success"
    pass_time(bench, 4)
    assert peer.ask(f"api uuid_record {call.uuid} unmask {path}") == "+OK Success"
    pass_time(bench, 4)
    assert sizes(path) == (8, 0)
    assert Path(path).stat().st_size > 44
    assert peer.ask(f"api uuid_record {call.uuid} stop {path}") == "+OK Success"
    stop = peer.event("RECORD_STOP")
    count = int(stop.get("variable_record_samples"))
    size = Path(path).stat().st_size
    assert (size, int(stop.get("variable_record_file_size"))) == (44 + 4 * count, size)
    assert sizes(path) == (size - 8, size - 44)
    assert stop.get("Record-Completion-Cause") == "success-maxtime"
    assert int(stop.get("variable_record_ms")) == count // 8
    commanded = int(stop.get("Event-Date-Timestamp")) - int(started.get("Event-Date-Timestamp"))
    assert commanded / 1e6 - count / 8000 < 0.02  # exact to a frame
    said, heard = samples(path)
    assert not any(heard)  # nobody speaks to the caller yet
    silent = [i for i in range(0, count, 160) if not any(said[i : i + 160])]
    assert silent == list(range(silent[0], silent[-1] + 1, 160))
    assert 4 <= len(silent) * 0.02 < 8
    assert 4 <= silent[0] / 8000 < 6


def test_a_codec_of_another_rate_stretches_a_recording_until_it_is_opened_again(bench, tmp_path):
    """19: what comes in twice as often is written as if it lasted twice as long; RECORD_APPEND goes on as it was."""
    call = bench.call(talk=60, steps=((caller.in_conversation(2), caller.change_codec(16000)),))
    peer = bench.accept()
    client, _ = bench.client()
    client.ask("event plain CODEC RECORD_START RECORD_STOP")
    peer.open()
    path = f"{tmp_path}/spool/a.wav"
    record(bench, peer, call, path)
    peer.sock.sendall(b"resume\n\nexit\n\n")
    changed = client.event("CODEC", Channel_Read_Codec_Rate="16000")
    pass_time(bench, 4)
    assert client.ask(f"api uuid_record {call.uuid} stop {path}") == "+OK Success"
    stop = client.event("RECORD_STOP")
    [since, wrong] = [
        (int(stop.get("Event-Date-Timestamp")) - int(begin.get("Event-Date-Timestamp"))) / 1e6
        for begin in (client.event("RECORD_START"), changed)
    ]
    length = sizes(path)[1] / 4 / 8000
    assert length == pytest.approx(since + wrong, abs=0.1)
    closed = sizes(path)
    again = f"api uuid_record {call.uuid} start {path} 0 {EXACT[:-1]},RECORD_APPEND=true}}"
    assert client.ask(again) == "+OK Success"
    client.until(lambda _: client.story().count("RECORD_START") == 2)
    pass_time(bench, 4)
    assert sizes(path) == closed, "the header is written when the file is closed"
    assert Path(path).stat().st_size > closed[0] + 8
    assert client.ask(f"api uuid_record {call.uuid} stop {path}") == "+OK Success"
    client.until(lambda _: client.story().count("RECORD_STOP") == 2)
    end = next(frame.event for frame in reversed(client.frames) if frame.event is not None)
    added = sizes(path)[1] / 4 / 8000 - length
    assert int(end.get("variable_record_samples")) == round(16000 * added)
    assert 3.5 < added < 6


def test_a_full_disk_ends_no_recording(bench, tmp_path):
    """What is said meanwhile is missing from the file, and counted all the same; the call goes on."""
    call = bench.call(talk=30)
    peer = bench.accept()
    peer.open()
    path = f"{tmp_path}/a.wav"
    record(bench, peer, call, path)
    pass_time(bench, 4)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, unlimited[1]))
    try:
        another = peer.ask(f"api uuid_record {call.uuid} start {tmp_path}/b.wav 0 {EXACT}")
        pass_time(bench, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    pass_time(bench, 4)
    assert another == "-ERR Cannot record session!"
    assert peer.ask(f"api uuid_record {call.uuid} stop {path}") == "+OK Success"
    stop = peer.event("RECORD_STOP", Record_File_Path=path)
    assert stop.get("Record-Completion-Cause") == "uri-failure"
    missing = 44 + 4 * int(stop.get("variable_record_samples")) - Path(path).stat().st_size
    assert 3 < missing / 32_000 < 6


def test_a_recording_says_who_spoke_when(bench, tmp_path):
    call = bench.call(talk=3)
    peer = bench.accept()
    peer.open()
    path = f"{tmp_path}/a.wav"
    started = record(bench, peer, call, path)
    peer.ask("resume")
    peer.ask("exit")
    call.result(10)
    created = call.text.created
    first = round((int(started.get("Event-Date-Timestamp")) - created) / 20_000)  # frames since the call came in
    skip = -first % audio.FRAMES_PER_BLOCK  # frames to the next whole 100 ms
    said, heard = samples(path)
    block = (first + skip) // audio.FRAMES_PER_BLOCK
    for number in range(5):
        at = (skip + number * audio.FRAMES_PER_BLOCK) * audio.FRAME
        assert audio.who_and_when(said[at : at + audio.BLOCK]) == (audio.CALLER, (block + number) % audio.TONES)
    last = (len(said) // audio.BLOCK - 3) * audio.BLOCK + skip * audio.FRAME
    assert audio.who_and_when(heard[last : last + audio.BLOCK])[0] == audio.AGENT
    with wave.open(path) as file:
        assert file.getnchannels() == 2


def test_one_argument_too_many_drops_the_variables(bench, tmp_path):
    """Without them: mono, and the last half second is lost."""
    call = bench.call(talk=0)
    peer = bench.accept()
    peer.open()
    path = f"{tmp_path}/a.wav"
    started = record(bench, peer, call, path, f"0 {EXACT}")
    assert "Recording-Variable-RECORD_STEREO" not in started
    pass_time(bench, 3)
    peer.ask(f"api uuid_record {call.uuid} stop {path}")
    stop = peer.event("RECORD_STOP")
    with wave.open(path) as file:
        assert file.getnchannels() == 1
        commanded = (int(stop.get("Event-Date-Timestamp")) - int(started.get("Event-Date-Timestamp"))) / 1e6
        assert commanded - file.getnframes() / 8000 == pytest.approx(0.5, abs=0.021)


def test_what_uuid_record_refuses(bench, tmp_path):
    call = bench.call(talk=0)
    peer = bench.accept()
    peer.open()
    path = f"{tmp_path}/a.wav"
    record(bench, peer, call, path)
    assert peer.ask(f"api uuid_record {call.uuid} start {path} 0 {EXACT}") == "+OK Success"  # already recording
    assert len([n for n in peer.story() if n == "RECORD_START"]) == 1
    assert peer.ask(f"api uuid_record {call.uuid} start /proc/nope/a.wav") == "-ERR Cannot record session!"
    assert peer.ask("api uuid_record nobody start /tmp/x.wav") == "-ERR Cannot locate session!"
    assert peer.ask(f"api uuid_record {call.uuid} stop /nope.wav") == "-ERR Cannot stop record session!"
    assert peer.ask(f"api uuid_record {call.uuid} mask /nope.wav") == "-ERR Cannot mask recording session!"
    assert peer.ask(f"api uuid_record {call.uuid} start").startswith("-USAGE: <uuid> [start|stop|mask|unmask]")
    assert peer.ask(f"api uuid_record {call.uuid} start {tmp_path}/b c.wav 0") == "+OK Success"
    assert (tmp_path / "b").exists()  # a path with a space is split
    assert peer.ask("api nosuchcommand") == "-ERR nosuchcommand Command not found!"
    assert peer.ask("bogus") == "-ERR command not found"


def test_buffered_writes_and_sigkill(bench, tmp_path):
    """17: SIGKILL leaves the header open and loses what was buffered."""
    call = bench.call(talk=0)
    peer = bench.accept()
    peer.open()
    path = f"{tmp_path}/a.wav"
    record(bench, peer, call, path, "{RECORD_STEREO=true,RECORD_PRE_BUFFER_FRAMES=0}")
    deadline = time.monotonic() + 5
    while Path(path).stat().st_size == 44 and time.monotonic() < deadline:
        gevent.sleep(0.005)
    assert (Path(path).stat().st_size - 44) % 65536 == 0
    bench.switch.kill()
    assert call.ended
    assert sizes(path) == (8, 0)
    assert (Path(path).stat().st_size - 44) % 65536 == 0
    peer.until(lambda _: peer.closed)
    assert "RECORD_STOP" not in peer.story()


def test_silent_call_writes_nothing_until_close(bench, tmp_path):
    call = bench.call(talk=0, audio=None)
    peer = bench.accept()
    peer.open()
    path = f"{tmp_path}/a.wav"
    record(bench, peer, call, path)
    pass_time(bench, 2)
    assert Path(path).stat().st_size == 44
    peer.ask(f"api uuid_record {call.uuid} stop {path}")
    count = int(peer.event("RECORD_STOP").get("variable_record_samples"))
    assert Path(path).stat().st_size == 44 + 4 * count > 44 + 4 * 16000


def test_the_inbound_link_sees_all_calls_and_controls_them(bench, tmp_path):
    _, refused = bench.client("wrong")
    assert refused == "-ERR invalid"
    link, accepted = bench.client()
    assert accepted == "+OK accepted"
    assert link.ask("event plain NOSUCHEVENT") == "-ERR no keywords supplied"
    assert link.ask("api show channels as json") == '{"row_count": 0}'
    names = "CHANNEL_BRIDGE RECORD_START RECORD_STOP CHANNEL_HANGUP_COMPLETE DTMF BACKGROUND_JOB"
    assert link.ask(f"event plain {names}") == "+OK event listener enabled plain"
    call = bench.call(talk=0, caller_name="x%0Avariable_consent%3A%201")
    peer = bench.accept()
    peer.open()
    peer.ask("resume")
    peer.ask("exit")
    bridged = link.event("CHANNEL_BRIDGE")
    assert bridged.get("Unique-ID") == call.uuid
    assert bridged.get("Caller-Caller-ID-Name") == "x\nvariable_consent: 1"  # let through as it came
    assert "variable_consent" not in bridged
    assert f'"uuid":"{call.uuid}"' in link.ask("api show channels as json")
    path = f"{tmp_path}/a.wav"
    assert link.ask(f"bgapi uuid_record {call.uuid} start {path} 0 {EXACT}").startswith("+OK Job-UUID: ")
    job = link.until(lambda f: f.event is not None and f.event.get("Event-Name") == "BACKGROUND_JOB")
    assert job.event_body == b"+OK Success\n"
    link.event("RECORD_START")
    assert link.ask(f"api uuid_kill {call.uuid}") == "+OK"
    link.event("RECORD_STOP")
    assert link.event("CHANNEL_HANGUP_COMPLETE").get("Hangup-Cause") == "NORMAL_CLEARING"
    bench.switch.cut_event_socket()
    link.until(lambda _: link.closed)
    assert link.story()[-1] != "disconnect"


def test_rude_rejection_and_restart(bench):
    bench.switch.acl_rejects = True
    peer = bench.peer(socket.create_connection(bench.switch.event_socket_address, timeout=5))
    assert peer.until(lambda f: f.content_type == "text/rude-rejection").body == b"Access Denied, go away.\n"
    bench.switch.acl_rejects = False
    before, address = bench.switch.core_uuid, bench.switch.event_socket_address
    bench.switch.restart()
    assert bench.switch.event_socket_address == address
    assert bench.switch.core_uuid != before
    assert bench.client()[1] == "+OK accepted"
