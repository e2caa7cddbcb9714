"""The spool on a real file system."""

import errno
import itertools
import os
import stat
import time
from collections import namedtuple
from types import SimpleNamespace
from uuid import uuid4

import pytest

from callrec.errors import SpoolError
from callrec.recording import spool as spool_module
from callrec.recording.spool import Spool

BIG = 1 << 40


@pytest.fixture
def spool(tmp_path):
    made = Spool(tmp_path / "spool", min_free_bytes=0, max_bytes=BIG)
    made.prepare()
    return made


def recorded(spool, data=b"RIFF" + bytes(40), age=0.0):
    recording_id = uuid4()
    path = spool.path(recording_id)
    path.write_bytes(data)
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    return recording_id


def everything(spool):
    return sorted(str(path.relative_to(spool.root)) for path in spool.root.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "root", ["/var/spool/call rec", "relative/spool", "/srv/{x}", "/srv/a,b", "/srv/../etc", "/srv/ž"]
)
def test_a_path_that_freeswitch_would_misread_is_refused(tmp_path, root):
    with pytest.raises(SpoolError) as caught:
        Spool(type(tmp_path)(root), 0, BIG)
    assert caught.value.hint


def test_a_directory_named_like_a_rate_is_refused(tmp_path, spool):
    with pytest.raises(SpoolError, match="sampling rate"):
        Spool(tmp_path / "8000" / "spool", 0, BIG)
    (spool.path(uuid4()).parent / "16000").mkdir()
    with pytest.raises(SpoolError, match="sampling rate"):
        spool.prepare()


def test_freeswitch_as_another_user_of_the_group_may_write(spool):
    for name in ("rec", "sealed", "withdrawn"):
        mode = stat.S_IMODE((spool.root / name).stat().st_mode)
        assert mode == 0o2770, name


def test_prepare_leaves_the_mode_that_the_operator_chose(spool):
    (spool.root / "rec").chmod(0o2775)
    spool.prepare()
    assert stat.S_IMODE((spool.root / "rec").stat().st_mode) == 0o2775


def test_the_path_carries_nothing_but_the_id(spool):
    recording_id = uuid4()
    assert spool.path(recording_id) == spool.root / "rec" / f"{recording_id}.wav"


def test_room_counts_plain_and_sealed_bytes_and_the_oldest(spool):
    assert spool.room().oldest_age == 0
    recorded(spool, bytes(1000), age=90)
    other = recorded(spool, bytes(500))
    spool.store_sealed(other, lambda out: out.write(bytes(300)) and b"note")
    room = spool.room()
    assert (room.bytes_used, room.files) == (1804, 2)
    assert 90 <= room.oldest_age < 100
    assert room.free > 0


def test_no_room_when_the_spool_is_full(tmp_path):
    spool = Spool(tmp_path / "spool", 0, max_bytes=1000)
    spool.prepare()
    assert spool.left() > 0
    recorded(spool, bytes(1000))
    assert Spool(tmp_path / "spool", 0, max_bytes=1000).left() <= 0
    assert Spool(tmp_path / "spool", min_free_bytes=BIG, max_bytes=BIG).left() <= 0


def test_what_is_left_is_the_less_of_the_disk_and_of_what_the_spool_may_hold(spool, monkeypatch):
    disk = namedtuple("disk", "f_bavail f_bfree f_frsize")(f_bavail=10, f_bfree=10, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    recorded(spool, bytes(1000))
    assert Spool(spool.root, 960, max_bytes=BIG).left() == 40_000
    assert Spool(spool.root, 960, max_bytes=30_000).left() == 29_000
    assert Spool(spool.root, 50_000, max_bytes=BIG).left() == -9_040


def test_a_count_that_takes_long_is_believed_longer_but_what_is_free_is_asked(spool, monkeypatch):
    now = itertools.count(100.0)  # a second a look
    took = itertools.count(0.0, 0.05)  # of the processor for a count: 2.5 s it is believed
    monkeypatch.setattr(spool_module, "time", SimpleNamespace(
        monotonic=lambda: next(now), thread_time=lambda: next(took), time=time.time
    ))  # fmt: skip
    disk = namedtuple("disk", "f_bavail f_bfree f_frsize")
    monkeypatch.setattr(os, "statvfs", lambda _: disk(BIG, BIG, 1))
    counted = Spool(spool.root, 0, max_bytes=1500)
    assert counted.left() == 1500
    recorded(spool, bytes(1000))
    assert [counted.left() for _ in range(3)] == [1500, 1500, 500]
    monkeypatch.setattr(os, "statvfs", lambda _: disk(7, 7, 1))
    assert counted.left() == 7


def test_what_the_file_system_keeps_for_root_is_not_room(spool, monkeypatch):
    disk = namedtuple("disk", "f_bavail f_bfree f_frsize")(f_bavail=10, f_bfree=1_000_000, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    assert spool.room().free == 40_960


def test_unknown_names_are_reported_and_never_touched(spool):
    recording_id = recorded(spool)
    strangers = [
        spool.root / "rec" / "notes.txt",
        spool.root / "rec" / f"{uuid4().hex}.wav",  # an id, but not in our spelling
        spool.root / "rec" / f"{str(uuid4()).upper()}.wav",
        spool.root / "sealed" / f"{uuid4()}.bak",
        spool.root / "withdrawn" / "me",
    ]
    for path in strangers:
        path.write_bytes(b"x")
    assert [file.recording_id for file in spool.recordings()] == [recording_id]
    assert sorted(spool.strangers()) == sorted(strangers)
    spool.withdraw(recording_id)
    spool.clear_withdrawn(recording_id)
    assert sorted(everything(spool)) == sorted(str(path.relative_to(spool.root)) for path in strangers)


def test_withdrawn_removes_both_forms_and_the_mark_outlives_a_restart(spool):
    recording_id = recorded(spool)
    spool.store_sealed(recording_id, lambda out: out.write(b"cipher") and b"note")
    spool.withdraw(recording_id)
    spool.withdraw(recording_id)  # twice is once
    assert everything(spool) == [f"withdrawn/{recording_id}"]
    again = Spool(spool.root, 0, BIG)
    assert again.withdrawn(recording_id)
    assert again.withdrawals() == {recording_id}
    again.clear_withdrawn(recording_id)
    again.clear_withdrawn(recording_id)
    assert not again.withdrawn(recording_id)
    assert not again.withdrawn(uuid4())


@pytest.mark.parametrize(
    "name", ["rec/{}.wav", "sealed/{}.enc", "sealed/{}.key", "sealed/{}." + "0" * 32 + ".enc-part"]
)
def test_whatever_is_left_of_a_recording_is_found_and_goes_alone_c2(spool, name):
    mine, other = uuid4(), uuid4()
    for recording_id in (mine, other):
        (spool.root / name.format(recording_id)).write_bytes(b"x")
    assert spool.has(mine)
    spool.remove(mine)
    assert not spool.has(mine)
    assert everything(spool) == [name.format(other)]


def test_the_mark_is_on_disk_before_the_file_goes(spool, monkeypatch):
    recording_id = recorded(spool)
    steps = []
    fsync, unlink = os.fsync, type(spool.root).unlink

    def noted_fsync(handle):
        kind = "directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        steps.append(f"fsync {kind}")
        fsync(handle)

    def noted_unlink(path, *, missing_ok=False):
        steps.append(f"unlink {path.suffix}")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(type(spool.root), "unlink", noted_unlink)
    spool.withdraw(recording_id)
    assert steps[:3] == ["fsync file", "fsync directory", "unlink .wav"]


def test_a_sealed_form_is_whole_or_not_there(spool):
    recording_id = recorded(spool)
    assert spool.sealed_note(recording_id) is None

    def cut_short(out):
        out.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(SpoolError, match="No space left"):
        spool.store_sealed(recording_id, cut_short)
    assert everything(spool) == [f"rec/{recording_id}.wav"]
    spool.store_sealed(recording_id, lambda out: out.write(b"whole") and b"note")
    assert spool.sealed_note(recording_id) == b"note"
    assert spool.sealed_path(recording_id).read_bytes() == b"whole"
    assert spool.path(recording_id).exists()


def test_a_ciphertext_always_belongs_to_the_note_beside_it(spool, monkeypatch):
    """A crash at any rename or unlink while a sealed form takes the place of another."""
    recording_id = recorded(spool)
    real = {name: getattr(type(spool.root), name) for name in ("replace", "unlink")}
    for crash_at in range(1, 6):
        spool.store_sealed(recording_id, lambda out: out.write(b"first") and b"first")
        calls = 0

        def crashing(name, crash_at=crash_at):
            def call(path, *args, **kwargs):
                nonlocal calls
                calls += 1
                if calls >= crash_at:
                    raise KeyboardInterrupt  # nothing of ours runs after a crash, so clean-up fails as well
                return real[name](path, *args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(type(spool.root), name, crashing(name))
            try:
                spool.store_sealed(recording_id, lambda out: out.write(b"second") and b"second")
            except KeyboardInterrupt:
                pass
            else:
                assert crash_at == 5  # two unlinks, two renames: no fifth step
        note = spool.sealed_note(recording_id)
        if note is not None:
            assert spool.sealed_path(recording_id).read_bytes() == note
    spool.remove(recording_id)
    assert everything(spool) == []


def test_foreign_errors_stop_here(tmp_path):
    missing = Spool(tmp_path / "none", 0, BIG)
    for fails in (
        missing.room,
        missing.strangers,
        lambda: missing.withdraw(uuid4()),
        lambda: list(missing.recordings()),
    ):
        with pytest.raises(SpoolError):
            fails()


@pytest.mark.parametrize("look", ["left", "room", "leftovers"])
@pytest.mark.parametrize("directory", ["rec", "sealed"])
def test_a_file_that_can_not_be_looked_at_is_our_error(spool, monkeypatch, look, directory):
    """Whoever counts goes on after that: else the spool would have room for ever."""

    def failing(**_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    name = f"{uuid4()}.{'wav' if directory == 'rec' else 'enc'}"
    bad = SimpleNamespace(name=name, path=name, stat=failing)
    monkeypatch.setattr(spool, "_scan", lambda at: [bad] if at.name == directory else [])
    with pytest.raises(SpoolError, match="Input/output error"):
        getattr(spool, look)()
