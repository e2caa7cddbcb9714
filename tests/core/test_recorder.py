"""A recording stays one file at one speed when the codec changes (transcript 19), and nothing more comes of it."""

import pytest

from callrec.call import events as on
from callrec.errors import LinkClosedError
from callrec.esl import wire
from callrec.esl.recorder import Recorder

CHANNEL, PATH = "ch", "/spool/rec/r.wav"
STOP = f"api uuid_record {CHANNEL} stop {PATH}"
MASK = f"api uuid_record {CHANNEL} mask {PATH}"
AGAIN = (
    f"api uuid_record {CHANNEL} start {PATH} 0 {{RECORD_STEREO=true,RECORD_PRE_BUFFER_FRAMES=0,"
    "enable_file_write_buffering=false,RECORD_MIN_SEC=0,RECORD_APPEND=true}"
)


class Stage:
    """A recorder whose link keeps what is posted, to be answered or not."""

    def __init__(self):
        self.posted, self.told, self.notes = [], [], []
        self.up = True
        self.recorder = Recorder(CHANNEL, PATH, self.post, self.told.append, lambda *note: self.notes.append(note))

    def post(self, payload, on_reply):
        if not self.up:
            raise LinkClosedError("down")
        self.posted.append((payload.decode().strip(), on_reply))

    def hear(self, name, rate, *, running=True, **more):
        headers = {"Channel-Read-Codec-Rate": str(rate)} | more
        [frame] = wire.FrameParser().feed(wire.build_event(name, headers))
        return self.recorder.understand(frame.event, running=running)

    def started(self, rate):
        variables = {"Recording-Variable-RECORD_STEREO": "true", "Recording-Variable-RECORD_PRE_BUFFER_FRAMES": "0"}
        return self.hear("RECORD_START", rate, **{"Record-File-Path": PATH} | variables)

    def stopped(self, samples="8000"):
        return self.hear("RECORD_STOP", 16000, **{"Record-File-Path": PATH, "variable_record_samples": samples})

    def commands(self):
        return [text for text, _ in self.posted]

    def answer(self, number, reply):
        _, on_reply = self.posted[number]
        on_reply(reply)


@pytest.fixture
def stage():
    stage = Stage()
    assert isinstance(stage.started(8000), on.RecordStarted)
    return stage


def test_a_codec_of_another_rate_has_the_file_closed_and_gone_on_with(stage):
    assert stage.hear("CODEC", 16000) is None
    assert stage.commands() == [STOP, AGAIN]
    assert stage.stopped() is None, "the machine must not take this for the end"
    assert stage.started(16000) is None
    assert [(kind, body["rate"]) for kind, body in stage.notes] == [("recording_continued", 16000)]
    assert stage.stopped("100") == on.RecordStopped(None, None), "100 are those since the file was opened again"
    assert stage.told == []


def test_twice_in_a_row_is_one_recording_still(stage):
    stage.hear("CODEC", 16000)
    stage.hear("CODEC", 8000)
    assert stage.commands() == [STOP, AGAIN] * 2
    heard = [stage.stopped(), stage.started(16000), stage.stopped(), stage.started(8000)]
    assert heard == [None] * 4
    assert isinstance(stage.stopped(), on.RecordStopped)


@pytest.mark.parametrize("rate", [8000, 0, ""])
def test_the_same_rate_or_none_changes_nothing(stage, rate):
    assert stage.hear("CODEC", rate) is None
    assert stage.commands() == []
    assert stage.stopped() == on.RecordStopped(None, 8000)


def test_what_is_stopped_or_withdrawn_is_not_opened_again_d1(stage):
    assert stage.hear("CODEC", 16000, running=False) is None
    assert stage.commands() == []


@pytest.mark.parametrize(("reply", "told"), [("+OK Success", []), ("-ERR no", [on.MaskReply(on=True, ok=False)])])
def test_what_is_masked_stays_masked_a11(stage, reply, told):
    stage.recorder.mask(True)
    stage.answer(0, "+OK Success")
    stage.told.clear()
    stage.hear("CODEC", 16000)
    assert stage.commands() == [MASK, STOP, AGAIN, MASK]
    stage.answer(3, reply)
    assert stage.told == told
    assert stage.recorder.masked is (not told)


def test_a_file_that_cannot_be_opened_again_ends_the_recording(stage):
    stage.hear("CODEC", 16000)
    assert stage.stopped() is None
    stage.answer(1, "-ERR Cannot record session!")
    assert stage.told == [on.RecordStopped(None, None)]


def test_with_the_link_down_the_recording_goes_on_as_it_was(stage):
    stage.up = False
    assert stage.hear("CODEC", 16000) is None
    stage.up = True
    assert stage.stopped() == on.RecordStopped(None, 8000)
