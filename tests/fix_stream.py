"""Running recordings that are streamed, and the `ship` of one node with its parts in the tests' hands."""

import io
import struct
import wave
from datetime import UTC, datetime

import pytest
from fix_rights import NODE, PUBLIC

from callrec.call.policy import BasisKind, LockMode
from callrec.recording.recovery import Assembler, Neighbours
from callrec.recording.spool import Spool
from callrec.recording.stream import Streamer
from callrec.recording.upload import Shipper
from callrec.rights.remnants import Remover
from callrec.store.segments import RemnantRecords, SegmentRecords
from callrec.store.shipping import ShipRecords

UNCLOSED = struct.pack(
    "<4sI4s4sIHHIIHH4sI", b"RIFF", 8, b"WAVE", b"fmt ", 16, 1, 2, 8000, 32000, 4, 16, b"data", 0
)  # what FreeSWITCH has written while it records
SECOND = 32_000  # bytes of stereo
OTHER = "another"
EVERY = {"consent": 1e-9, "market_transaction": 1e-9}  # always due


def sound(first, seconds):
    """Audio that differs in every second, from second `first` on."""
    return b"".join(
        struct.pack("<hh", second + 1, n % 30_000) for second in range(first, first + seconds) for n in range(8000)
    )


class Call:
    """A recording that FreeSWITCH is writing."""

    def __init__(self, house, kind=BasisKind.CONSENT):
        self.house = house
        self.kept = house.record(kind, until="recording")
        self.id = self.kept.recording_id
        self.path = house.spool.path(self.id)
        self.path.write_bytes(UNCLOSED)
        self.seconds = 0

    def goes_on(self, seconds=1):
        with self.path.open("ab") as file:
            file.write(sound(self.seconds, seconds))
        self.seconds += seconds

    def ends(self):
        self.house._calls.finished(self.id, datetime.now(UTC), None, abrupt=False)
        assert self.house._scribe._idle.wait(5)

    def segments(self):
        """Versions of its segments, in order."""
        return self.house.admin.versions(f"segments/{self.kept.key}/")

    @property
    def row(self):
        return self.house.row(self.id)

    def opened(self):
        """What a listener gets."""
        return self.house.player("dsar", self.id)


class Shipping:
    """The `ship` of one node, its parts in the tests' hands."""

    def __init__(self, house, node=NODE, spool=None, **options):
        self.spool = spool or house.spool
        database = house.database("ship")
        self.records = SegmentRecords(database, node=node)
        self.streamer = Streamer(self.records, self.spool, house.ship, PUBLIC, EVERY, **options)
        self.shipper = Shipper(
            ShipRecords(database, node=node), self.spool, house.ship, PUBLIC, node,
            segments=Assembler(self.records, self.spool, house.ship),
        )  # fmt: skip
        self._clock = 0.0
        self.neighbours = Neighbours(self.records, 1.0, clock=lambda: self._clock)

    def stream(self, looks=1):
        for _ in range(looks):
            self.streamer.look()
            assert self.streamer._pool.join(30)

    def store(self):
        while self.shipper.ship_next():
            pass

    def take_over(self):
        self.neighbours.look()
        self._clock += 10
        self.neighbours.look()


@pytest.fixture
def ship(house):
    return Shipping(house)


@pytest.fixture
def other(house, tmp_path):
    """The `ship` of another node on the same stores."""
    spool = Spool(tmp_path / "other", 1, 1 << 40)
    spool.prepare()
    return Shipping(house, OTHER, spool)


def remover(house):
    return Remover(RemnantRecords(house.database("sweep"), node=NODE), house.records(), house.sweep)


def lose(house, node=NODE):
    """Nothing was heard of the node for long, and its disk is gone."""
    house.stores.admin.execute(
        "INSERT INTO node_heartbeat VALUES (%s, now() - interval '1 hour')"
        " ON CONFLICT (node) DO UPDATE SET beat_at = EXCLUDED.beat_at", (node,)
    )  # fmt: skip


def heard(wav_bytes):
    """(seconds, audio) of a WAV file with any header."""
    with wave.open(io.BytesIO(wav_bytes)) as file:
        assert (file.getnchannels(), file.getframerate()) == (2, 8000)
        audio = file.readframes(1 << 30)
    return len(audio) / SECOND, audio


def streamed(house, ship, parts=3, kind=BasisKind.CONSENT):
    """A call of which so many segments of a second each have been put."""
    call = Call(house, kind)
    for _ in range(parts):
        call.goes_on()
        ship.stream()
    return call


def stored(house, call, node, *, incomplete, seconds):
    """There is exactly one object: locked, playable, so long, and it says whether it is complete."""
    row = call.row
    assert (row["state"], row["node"], row["incomplete"]) == ("stored", node, incomplete)
    assert row["duration_seconds"] == pytest.approx(seconds)
    while remover(house).remove_next():
        pass
    assert call.segments() == []
    (version,) = house.admin.versions(call.kept.key)
    assert version.version_id == row["version_id"]
    house.sweep.verify(
        call.kept.key, version.version_id, sha256=bytes(row["ciphertext_sha256"]), size=row["ciphertext_bytes"],
        mode=LockMode(row["lock_mode"]), until=row["retain_until"],
    )  # fmt: skip
    assert heard(call.opened()) == (seconds, sound(0, int(seconds)))
