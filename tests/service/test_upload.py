"""From the spool to the locked object on a real Ceph RGW, with a fake of the database's port (A11, C1, C2)."""

import base64
import errno
import io
import os
import re
import struct
import time
import wave
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import gevent
import pytest
from fix_stack import wait_until
from gevent.event import Event

from callrec import metrics
from callrec.call.policy import LockMode
from callrec.errors import StoreError
from callrec.recording import envelope
from callrec.recording.facts import Finished
from callrec.recording.objects import DefaultRetention, S3Objects
from callrec.recording.spool import Spool
from callrec.recording.upload import Shipper

MIB = 1 << 20
NODE = "node-1"
STARTED = datetime(2026, 11, 30, 23, 30, tzinfo=UTC)
PRIVATE, PUBLIC = envelope.generate_keypair()
UNCLOSED = struct.pack(  # what FreeSWITCH has written while it records, or when it was killed
    "<4sI4s4sIHHIIHH4sI", b"RIFF", 8, b"WAVE", b"fmt ", 16, 1, 2, 8000, 32000, 4, 16, b"data", 0
)
AUDIO = bytes(range(256)) * 250  # 2 s of stereo


class CrashError(BaseException):
    """The process is gone: nothing of ours may catch it."""


class FakeRecords:
    """The port of recording/upload.py in memory, with the rules that sql/queries.sql keeps."""

    def __init__(self):
        self.rows, self.keys, self.entries, self.failures = {}, {}, [], []
        self.down = False
        self.until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=90)

    def finish(self, recording_id, **other):
        self.rows[recording_id] = {
            "state": "finished",
            "attempts": 0,
            "due": 0.0,
            "stored": None,
            "lock": LockMode.GOVERNANCE,
            "retain_until": self.until,
            "samples": None,
        } | other

    def restart(self):
        """The leases of a process that died have run out, and back-offs are over."""
        for row in self.rows.values():
            row["due"] = 0.0

    def claim(self, node, lease_seconds):
        self._answer()
        assert node == NODE
        for recording_id, row in self.rows.items():
            if row["state"] == "finished" and row["due"] <= time.monotonic():
                row["due"] = time.monotonic() + lease_seconds
                row["attempts"] += 1
                return Finished(
                    recording_id=recording_id,
                    call_id=uuid4(),
                    basis_id="consent",
                    lock=row["lock"],
                    prefix="consent/",
                    started_at=STARTED.astimezone(),
                    retain_until=row["retain_until"],
                    attempts=row["attempts"],
                    ended_abruptly=False,
                    samples=row["samples"],
                    expired=row["retain_until"] <= datetime.now(UTC),
                )
        return None

    def sealed(self, recording_id, sealed_key, key_id):
        self._answer()
        assert key_id == envelope.key_id(PUBLIC)
        self.keys[recording_id] = sealed_key
        return sealed_key

    def stored(self, recording_id, stored):
        self._answer()
        row = self.rows[recording_id]
        if row["state"] == "finished":
            row.update(state="stored", stored=stored)
            self.entries.append((recording_id, "stored"))

    def failed(self, recording_id, error, retry_in):
        self._answer()
        self.failures.append((error, retry_in))
        self.rows[recording_id]["due"] = time.monotonic() + retry_in

    def discarded(self, recording_id, reason):
        self._answer()
        self.keys.pop(recording_id, None)
        self._end(recording_id, "discarded", reason, ("finished", "stored"))

    def empty(self, recording_id):
        self._answer()
        self._end(recording_id, "empty", "empty", ("finished",))

    def lost(self, recording_id):
        self._answer()
        self._end(recording_id, "lost", "lost", ("finished",))

    def state_of(self, recording_id):
        self._answer()
        row = self.rows.get(recording_id)
        return row["state"] if row else None

    def nothing_may_stay_of(self, recordings):
        self._answer()
        return {each for each in recordings if self.rows[each]["state"] == "discarded"}

    def reclaim(self, _recording_id, **_):
        self._answer()
        return False  # there is one node

    def _end(self, recording_id, state, entry, before):
        if self.rows[recording_id]["state"] in before:
            self.rows[recording_id]["state"] = state
            self.entries.append((recording_id, entry))

    def _answer(self):
        if self.down:
            raise StoreError("Postgres is away")


def connection(at, bucket, **options):
    return S3Objects(
        endpoint=at.endpoint,
        region=at.region,
        bucket=bucket,
        access_key=at.access_key,
        secret_key=at.secret_key,
        connect_seconds=2,
        read_seconds=10,
        **options,
    )


@pytest.fixture(scope="module")
def objects(s3):
    objects = connection(s3, s3.bucket_name())
    objects.create_bucket(DefaultRetention(LockMode.GOVERNANCE, 1))
    yield objects
    objects.close()


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool", min_free_bytes=0, max_bytes=1 << 40)
    spool.prepare()
    return spool


@pytest.fixture
def records():
    return FakeRecords()


@pytest.fixture
def shipper(records, spool, objects):
    return Shipper(records, spool, objects, PUBLIC, NODE)


def recorded(records, spool, data=UNCLOSED + AUDIO, **row):
    recording_id = uuid4()
    if data is not None:
        spool.path(recording_id).write_bytes(data)
    records.finish(recording_id, **row)
    return recording_id


def files(spool):
    return sorted(str(path.relative_to(spool.root)) for path in spool.root.rglob("*") if path.is_file())


def opened(records, objects, recording_id):
    """The recording as someone with the private key gets it from the stored row."""
    stored = records.rows[recording_id]["stored"]
    key = envelope.unseal(records.keys[recording_id], PRIVATE)
    return b"".join(envelope.decrypt(objects.read(stored.object_key, stored.version_id), key, recording_id))


def versions(objects, recording_id):
    return objects.versions(f"consent/2026/11/{recording_id}")


def test_a_recording_is_stored_locked_and_playable(shipper, records, spool, objects):
    recording_id = recorded(records, spool, UNCLOSED + AUDIO + b"\1\2")  # killed in the middle of a frame
    assert shipper.ship_next()
    stored = records.rows[recording_id]["stored"]
    assert stored.object_key == f"consent/2026/11/{recording_id}"
    assert (stored.bucket, stored.lock_mode, stored.retain_until) == (
        objects.bucket,
        LockMode.GOVERNANCE,
        records.until,
    )
    assert stored.duration_seconds == pytest.approx(2.0)
    objects.verify(
        stored.object_key,
        stored.version_id,
        sha256=stored.ciphertext_sha256,
        size=stored.ciphertext_bytes,
        mode=LockMode.GOVERNANCE,
        until=records.until,
    )
    plain = opened(records, objects, recording_id)
    assert envelope.sha256(plain).digest() == stored.plaintext_sha256
    with wave.open(io.BytesIO(plain)) as file:
        assert (file.getnchannels(), file.getframerate(), file.readframes(1 << 20)) == (2, 8000, AUDIO)
    assert records.entries == [(recording_id, "stored")]
    assert files(spool) == []
    assert not shipper.ship_next()


def test_a11_no_audio_in_the_clear_is_put_or_left(shipper, records, spool, objects):
    recording_id = recorded(records, spool)
    assert shipper.ship_next()
    left = b"".join(path.read_bytes() for path in spool.root.rglob("*") if path.is_file())
    stored = records.rows[recording_id]["stored"]
    there = b"".join(objects.read(stored.object_key, stored.version_id))
    for data in (left, there):
        assert b"RIFF" not in data
        assert AUDIO[:64] not in data


class Watched:
    """Passes every call on, and dies before or after a chosen one."""

    def __init__(self, target, steps):
        self._target, self._steps = target, steps

    def __getattr__(self, name):
        found = getattr(self._target, name)
        if not callable(found):
            return found

        def call(*args, **kwargs):
            self._steps.before(name)
            result = found(*args, **kwargs)
            try:
                self._steps.after(name)
            except CrashError:
                if name == "open_plain":
                    result.close()  # as the system does when a process ends
                raise
            return result

        return call


class Steps:
    def __init__(self, die_at, when):
        self.die_at, self.when, self.count, self.names = die_at, when, 0, []

    def before(self, name):
        self.count += 1
        self.names.append(name)
        if self.when == "before" and self.count == self.die_at:
            raise CrashError(name)

    def after(self, name):
        if self.when == "after" and self.count == self.die_at:
            raise CrashError(name)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_any_step_ends_in_one_stored_recording(records, spool, objects, when):
    die_at, passed = 1, set()
    while True:
        recording_id = recorded(records, spool)
        steps = Steps(die_at, when)
        watched = [Watched(part, steps) for part in (records, spool, objects)]
        try:
            Shipper(*watched, PUBLIC, NODE).ship_next()
        except CrashError as crash:
            passed.add(str(crash))
            # No moment leaves a recording that is stored and still in the clear on the disk.
            if records.rows[recording_id]["state"] == "stored":
                assert not spool.path(recording_id).exists()
        else:
            break
        records.restart()
        again = Shipper(records, spool, objects, PUBLIC, NODE)
        again.ship_next()
        again.tidy()
        name = f"{when} {steps.names[-1]}"
        assert records.entries == [(recording_id, "stored")], name
        assert len(versions(objects, recording_id)) == 1, name
        assert opened(records, objects, recording_id)[44:] == AUDIO, name
        assert files(spool) == [], name
        records.entries.clear()
        die_at += 1
    assert passed >= {"claim", "store_sealed", "sealed", "put_locked", "verify", "remove_plain", "stored", "remove"}


def test_a_withdrawal_before_the_upload_stores_nothing(shipper, records, spool, objects):
    recording_id = recorded(records, spool)
    spool.withdraw(recording_id)
    assert shipper.ship_next()
    assert records.entries == [(recording_id, "withdrawn")]
    assert versions(objects, recording_id) == []
    assert recording_id not in records.keys
    assert files(spool) == []


@pytest.mark.parametrize(
    ("step", "put"),
    [
        ("spool.open_plain", False),
        ("spool.store_sealed", False),
        ("objects.put_locked", True),
        ("objects.verify", True),
        ("records.stored", True),
    ],
)
def test_a_withdrawal_during_the_upload_ends_discarded(records, spool, objects, step, put):
    part, name = step.split(".")
    parts = {"records": records, "spool": spool, "objects": objects}
    recording_id = recorded(records, spool)
    real = getattr(parts[part], name)

    def withdrawn_meanwhile(*args, **kwargs):
        if name == "open_plain":
            spool.withdraw(recording_id)
        result = real(*args, **kwargs)
        if name != "open_plain":
            spool.withdraw(recording_id)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts[part], name, withdrawn_meanwhile)
        shipper = Shipper(records, spool, objects, PUBLIC, NODE)
        assert shipper.ship_next()
    assert records.rows[recording_id]["state"] == "discarded"
    assert records.entries[-1] == (recording_id, "withdrawn_after_put" if put else "withdrawn")
    assert recording_id not in records.keys  # what was put opens no more, before the eraser comes
    assert bool(versions(objects, recording_id)) is put
    assert files(spool) == []
    assert not shipper.ship_next()


def test_a_withdrawal_after_the_recording_was_stored_is_seen_by_tidy(shipper, records, spool):
    recording_id = recorded(records, spool)
    shipper.ship_next()
    spool.withdraw(recording_id)
    shipper.tidy()
    assert records.rows[recording_id]["state"] == "discarded"
    assert recording_id not in records.keys
    assert files(spool) == []


def test_tidy_leaves_what_is_under_way_and_counts_orphans(shipper, records, spool):
    waiting = recorded(records, spool)
    running = recorded(records, spool, state="recording")
    withdrawn = recorded(records, spool, state="recording")
    spool.withdraw(withdrawn)
    orphan = uuid4()
    spool.path(orphan).write_bytes(UNCLOSED + AUDIO)
    (spool.root / "rec" / "readme.txt").touch()
    before = files(spool)
    shipper.tidy()
    assert files(spool) == before
    assert {waiting, running, orphan} == {file.recording_id for file in spool.recordings()}
    assert metrics.SPOOL_ORPHANS._value.get() == 2


def test_one_that_cannot_be_removed_keeps_no_other_in_the_clear(shipper, records, spool):
    """A11."""
    stuck = recorded(records, spool, None, state="discarded")
    spool.path(stuck).mkdir()
    for _ in range(20):
        recorded(records, spool, state="discarded")
    shipper.tidy()
    assert [file.recording_id for file in spool.recordings()] == [stuck]
    assert metrics.SPOOL_ORPHANS._value.get() == 1


@pytest.mark.parametrize("data", [b"", UNCLOSED[:20], UNCLOSED, UNCLOSED + b"\1"])
def test_a_header_without_audio_is_empty(shipper, records, spool, objects, data):
    recording_id = recorded(records, spool, data)
    shipper.ship_next()
    assert records.entries == [(recording_id, "empty")]
    assert versions(objects, recording_id) == []
    assert files(spool) == []


def test_a_file_that_is_not_there_is_lost(shipper, records, spool):
    recording_id = recorded(records, spool, None)
    shipper.ship_next()
    assert records.entries == [(recording_id, "lost")]
    assert not shipper.ship_next()


class Unreadable(io.FileIO):
    """A disk that fails behind the first block."""

    def read(self, size=-1):
        if self.tell() >= self.bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)
        return super().read(size)


@pytest.mark.parametrize("bad", [0, 4096])
def test_a_disk_that_fails_is_named_and_nothing_is_removed(shipper, records, spool, monkeypatch, bad):
    recording_id = recorded(records, spool, UNCLOSED + 2 * AUDIO)
    monkeypatch.setattr(Unreadable, "bad", bad, raising=False)
    monkeypatch.setattr(spool, "open_plain", lambda known: Unreadable(spool.path(known)))
    shipper.ship_next()
    ((error, _),) = records.failures
    assert "can't be" in error
    assert "Input/output error" in error
    assert str(recording_id) not in error
    assert spool.path(recording_id).read_bytes() == UNCLOSED + 2 * AUDIO
    assert not spool.sealed_path(recording_id).exists()


def test_what_freeswitch_counted_and_the_disk_did_not_take_is_lost(shipper, records, spool):
    """Empty is where nothing was said. This is for somebody to look at."""
    recording_id = recorded(records, spool, UNCLOSED, samples=8000)
    shipper.ship_next()
    assert records.entries == [(recording_id, "lost")]
    shipper.tidy()
    assert files(spool) == []


def test_audio_without_a_readable_header_is_kept_as_it_is(shipper, records, spool, objects):
    recording_id = recorded(records, spool, b"\0" * 44 + AUDIO)
    shipper.ship_next()
    assert opened(records, objects, recording_id) == b"\0" * 44 + AUDIO
    assert files(spool) == []


def test_what_expired_while_it_waited_is_not_stored(shipper, records, spool, objects):
    recording_id = recorded(records, spool, retain_until=datetime.now(UTC) - timedelta(seconds=1))
    shipper.ship_next()
    assert records.entries == [(recording_id, "expired")]
    assert versions(objects, recording_id) == []
    assert files(spool) == []


@pytest.mark.parametrize("damage", ["ciphertext", "note"])
def test_a_sealed_form_that_was_damaged_is_made_again(records, spool, objects, monkeypatch, damage):
    shipper = Shipper(records, spool, objects, PUBLIC, NODE)
    recording_id = recorded(records, spool)
    monkeypatch.setattr(objects, "put_locked", crash)
    with pytest.raises(CrashError):
        shipper.ship_next()
    monkeypatch.undo()
    path = spool.sealed_path(recording_id).with_suffix(".enc" if damage == "ciphertext" else ".key")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x80
    path.write_bytes(data)
    records.restart()
    shipper.ship_next()
    assert opened(records, objects, recording_id)[44:] == AUDIO


def crash(*_, **__):
    raise CrashError


def test_a_broken_upload_does_not_stop_the_others(shipper, records, spool, objects, monkeypatch):
    bad, good = recorded(records, spool), recorded(records, spool)
    real = objects.put_locked

    def faulty(key, *args, **kwargs):
        if str(bad) in key:
            raise ZeroDivisionError("secret text")
        return real(key, *args, **kwargs)

    monkeypatch.setattr(objects, "put_locked", faulty)
    while records.rows[good]["state"] != "stored":
        assert shipper.ship_next()
    assert records.rows[bad]["state"] == "finished"
    assert spool.path(bad).exists()
    assert "secret text" not in records.failures[0][0]


def flips(objects, monkeypatch, at):
    """A store that keeps other bytes than the first that it is given, and tells the checksum that it was told."""
    put, head = objects.put_locked, objects._head
    puts = []

    def flipped(key, path, *, sha256, metadata, **options):
        data = bytearray(path.read_bytes())
        if not puts:
            data[at] ^= 1
        puts.append(at)
        there = path.parent.parent.parent / "there"
        there.write_bytes(data)
        digest = envelope.sha256(data).digest()
        return put(key, there, sha256=digest, metadata=metadata | {"sha256": sha256.hex()}, **options)

    def believing(*about):
        said = head(*about)
        claimed = bytes.fromhex(said.metadata["x-amz-meta-sha256"])
        said.metadata["x-amz-checksum-sha256"] = base64.b64encode(claimed).decode()
        return said

    monkeypatch.setattr(objects, "put_locked", flipped)
    monkeypatch.setattr(objects, "_head", believing)
    return puts


@pytest.mark.parametrize("case", [(len(AUDIO), 1000, False), (MIB, MIB // 2, True)], ids=["sample", "full"])
def test_a_version_that_is_read_back_wrong_is_put_again_and_not_taken_later(records, spool, objects, monkeypatch, case):
    size, at, full = case
    puts = flips(objects, monkeypatch, at)
    recording_id = recorded(records, spool, UNCLOSED + bytes(size))
    for _ in range(3):  # each time by another process
        records.restart()
        Shipper(records, spool, objects, PUBLIC, NODE, read_all_back=full).ship_next()
        if len(records.failures) == len(puts) == 1:
            assert "SHA-256" in records.failures[0][0]
            assert spool.path(recording_id).exists()
    assert (len(puts), len(records.failures)) == (2, 1)
    assert opened(records, objects, recording_id)[44:] == bytes(size)
    stored = records.rows[recording_id]["stored"].version_id
    newest, wrong = (version.version_id for version in versions(objects, recording_id))  # an erasure finds both
    assert newest == stored != wrong
    assert files(spool) == []


def test_what_was_put_by_an_earlier_attempt_is_read_whole_and_not_put_again(records, spool, objects, monkeypatch):
    recording_id = recorded(records, spool, UNCLOSED + bytes(MIB))
    monkeypatch.setattr(objects, "verify", crash)
    with pytest.raises(CrashError):
        Shipper(records, spool, objects, PUBLIC, NODE).ship_next()
    monkeypatch.undo()
    records.restart()
    before = metrics.READ_BACK_BYTES._value.get()
    Shipper(records, spool, objects, PUBLIC, NODE).ship_next()
    assert records.entries == [(recording_id, "stored")]
    assert len(versions(objects, recording_id)) == 1
    assert metrics.READ_BACK_BYTES._value.get() - before >= MIB


def test_the_pauses_grow_and_are_jittered(shipper, records, spool, objects, monkeypatch):
    recorded(records, spool)
    before = metrics.RETRIES.labels("upload")._value.get()

    def refuse(*_, **__):
        raise StoreError("no")

    monkeypatch.setattr(objects, "put_locked", refuse)
    monkeypatch.setattr(objects, "find", lambda *_, **__: None)
    for _ in range(40):
        records.restart()
        assert shipper.ship_next()
    pauses = [pause for _, pause in records.failures]
    assert pauses[0] <= 1
    assert max(pauses) > 10
    assert max(pauses) <= 60
    assert len(set(pauses)) == 40
    assert metrics.RETRIES.labels("upload")._value.get() - before == 40


@pytest.fixture
def running(records, spool):
    """Start a shipper as the role does, and stop it."""
    started = []

    def start(objects):
        stop = Event()
        shipper = Shipper(records, spool, objects, PUBLIC, NODE)
        started.append((stop, gevent.spawn(shipper.run, stop)))

    yield start
    for stop, greenlet in started:
        stop.set()
        greenlet.join(timeout=5)
        assert greenlet.successful(), "the shipper did not stop"


def test_nothing_is_lost_while_the_store_is_down(records, spool, own_stack, running):
    stack = own_stack("s3")
    objects = connection(stack.s3, "recordings")
    objects.create_bucket(None)
    running(objects)
    first = recorded(records, spool)
    wait_until(lambda: records.rows[first]["state"] == "stored", 10, "the first recording stored")
    stack.kill("s3")
    ids = [recorded(records, spool) for _ in range(3)]
    wait_until(lambda: len(records.failures) >= 3, 10, "failures")
    assert len(list(spool.recordings())) == 3
    stack.restart("s3")
    records.restart()
    wait_until(lambda: all(records.rows[each]["state"] == "stored" for each in ids), 30, "all stored")
    for recording_id in ids:
        assert opened(records, objects, recording_id)[44:] == AUDIO
    wait_until(lambda: files(spool) == [], 5, "an empty spool")
    objects.close()


def test_nothing_is_lost_while_the_database_is_down(records, spool, objects, running):
    running(objects)
    records.down = True
    recording_id = recorded(records, spool)
    before = metrics.RETRIES.labels("upload")._value.get()
    wait_until(lambda: metrics.RETRIES.labels("upload")._value.get() > before + 2, 10, "failing claims")
    assert spool.path(recording_id).exists()
    records.down = False
    wait_until(lambda: records.rows[recording_id]["state"] == "stored", 15, "stored")


def memory(field):
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.parametrize(("size", "most"), [(60 * MIB, 40 * MIB), (200 * MIB, 100 * MIB)], ids=["single", "multipart"])
def test_memory_and_hub_stay_free_however_long_the_recording(shipper, records, spool, size, most):
    recording_id = recorded(records, spool)
    with spool.path(recording_id).open("r+b") as file:
        file.truncate(44 + size)
    gaps, last = [], time.monotonic()

    def ticker():
        nonlocal last
        while True:
            gevent.sleep(0.005)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    beside = gevent.spawn(ticker)
    try:
        assert shipper.ship_next()
    finally:
        beside.kill()
    stored = records.rows[recording_id]["stored"]
    assert stored is not None, records.failures
    assert stored.ciphertext_bytes > size
    print(f"peak +{(memory('VmHWM') - before) / MIB:.0f} MiB, longest hub gap {max(gaps):.3f} s")  # noqa: T201 # a figure
    assert memory("VmHWM") - before < most
    assert max(gaps) < 1
