"""Headers as FreeSWITCH leaves them, opened with the standard library's reader."""

import io
import struct
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callrec.errors import WavError
from callrec.recording import wav


def header(channels=2, rate=8000, bits=16, riff=8, data=0):
    """The 44 bytes of FreeSWITCH while it records: riff size 8, data size 0."""
    block = channels * bits // 8
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        riff,
        b"WAVE",
        b"fmt ",
        16,
        1,
        channels,
        rate,
        rate * block,
        block,
        bits,
        b"data",
        data,
    )


def opened(data):
    with wave.open(io.BytesIO(data)) as file:
        return file.getnchannels(), file.getframerate(), file.getnframes(), file.readframes(1 << 30)


def test_a_killed_recording_opens_again_with_all_its_audio():
    audio = bytes(range(256)) * 20  # 5120 bytes, 0.16 s of stereo
    file = header() + audio
    with pytest.raises(wave.Error):
        opened(file)  # what an unrepaired one does
    repaired = wav.repaired_header(file[: wav.HEAD_BYTES], len(file)) + audio
    assert opened(repaired) == (2, 8000, 1280, audio)
    assert wav.duration_seconds(wav.parse(file), len(file)) == pytest.approx(0.16)


def test_a_closed_recording_keeps_its_header():
    # 5.8 s mono, the sizes of transcript 04
    closed = header(channels=1, riff=92836, data=92800)
    assert wav.parse(closed) == wav.Wav(
        channels=1, rate=8000, bits=16, data_offset=44, data_size=92800, file_size=92844
    )
    assert wav.repaired_header(closed, 92844) == closed
    assert wav.duration_seconds(wav.parse(closed), 92844) == pytest.approx(5.8)


def test_a_recording_beyond_4_gib_has_all_its_audio():
    """libsndfile writes the size modulo 4 GiB: 6 hours at 48 kHz in stereo come to that."""
    audio = (4 << 30) + 4400
    said = wav.parse(header(rate=48_000, riff=4436, data=4400))
    assert wav.audio_bytes(said, 44 + audio) == audio
    repaired = wav.parse(wav.repaired_header(header(rate=48_000, riff=4436, data=4400), 44 + audio))
    assert wav.audio_bytes(repaired, 44 + audio) == audio  # it says "as long as there is"


def test_what_follows_the_audio_is_not_audio():
    assert wav.audio_bytes(wav.parse(header(riff=36 + 400 + 26, data=400)), 44 + 400 + 26) == 400


def test_a_closed_recording_that_was_opened_again_has_what_followed():
    # Closed at 400 bytes, gone on with after a change of codec, and killed.
    head = header(riff=36 + 400, data=400)
    assert wav.audio_bytes(wav.parse(head), 44 + 400) == 400
    assert wav.audio_bytes(wav.parse(head), 44 + 1200) == 1200
    assert opened(wav.repaired_header(head, 44 + 1200) + bytes(1200)) == (2, 8000, 300, bytes(1200))


def test_a_size_beyond_the_end_of_the_file_is_not_believed():
    assert wav.audio_bytes(wav.parse(header(data=4000)), 44 + 400) == 400
    assert wav.audio_bytes(wav.parse(header(data=0xFFFFFFFF)), 44 + 400) == 400


@given(st.integers(1, 8), st.sampled_from([8000, 16000, 48000]), st.sampled_from([8, 16, 24]), st.integers(0, 3000))
def test_a_torn_last_frame_is_cut_off(channels, rate, bits, extra):
    head = header(channels=channels, rate=rate, bits=bits)
    audio = bytes(extra)
    frame = channels * bits // 8
    whole = wav.audio_bytes(wav.parse(head), 44 + extra)
    assert whole == extra // frame * frame
    repaired = wav.repaired_header(head, 44 + extra) + audio[:whole]
    assert opened(repaired)[:3] == (channels, rate, extra // frame)


def test_a_header_alone_has_no_audio():
    assert wav.audio_bytes(wav.parse(header()), 44) == 0
    assert wav.duration_seconds(wav.parse(header()), 44) == 0


def test_chunks_before_the_audio_are_kept():
    plain = header()
    note = b"LIST" + struct.pack("<I", 5) + b"INFO!" + b"\0"  # odd, so padded
    head = plain[:36] + note + plain[36:]
    parsed = wav.parse(head)
    assert parsed.data_offset == 44 + len(note)
    assert opened(wav.repaired_header(head, len(head) + 8) + bytes(8))[2] == 2


def test_beyond_4_gib_the_sizes_are_those_of_a_stream():
    head = wav.repaired_header(header(), 5 << 30)
    assert head[4:8] == head[40:44] == b"\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"RIFF",
        b"OggS" + bytes(60),
        header()[:40],
        header().replace(b"fmt ", b"fmtx"),
        header().replace(struct.pack("<H", 1), struct.pack("<H", 7), 1),
        header(channels=0),
        header(rate=0),
        header(bits=12),
        b"RIFF" + bytes(4) + b"WAVE" + b"junk" + b"\xff\xff\xff\xff" + bytes(40),
    ],
)
def test_junk_is_refused(junk):
    with pytest.raises(WavError):
        wav.parse(junk)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_an_error(data):
    for candidate in (data, header()[:36] + data, header()[:20] + data):
        try:
            parsed = wav.parse(candidate)
        except WavError:
            continue
        assert parsed.frame_bytes > 0
        assert len(wav.repaired_header(candidate, 10_000)) == parsed.data_offset


def test_a_header_for_an_unknown_length_is_repaired_once_it_is_known():
    audio = b"\1\2\3\4" * 50
    endless = wav.stream_header(header() + audio)
    assert len(endless) == 44
    assert wav.audio_bytes(wav.parse(endless), 44 + len(audio)) == len(audio)
    assert opened(wav.repaired_header(endless, 44 + len(audio)) + audio) == (2, 8000, 50, audio)
