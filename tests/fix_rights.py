"""What the law takes back, on real stores: recordings that were really stored, and the desk and the sweeper over them.

house   .record(...) -> a Kept recording; .desk(), .eraser(), .sweeper(); .left(kept): what is left of it anywhere
Kept    imported: ids of one recording
"""

import contextlib
import wave
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from fix_store import ZONE, make_facts, make_line, make_notes

from callrec.call.policy import BasisKind
from callrec.demo.stack import S3Endpoint
from callrec.ledger.caller import LookupKeys, conceal
from callrec.recording import bucket, envelope
from callrec.recording.facts import object_name
from callrec.recording.objects import S3Objects
from callrec.recording.playback import Listening, Player
from callrec.recording.spool import Spool
from callrec.recording.upload import Shipper
from callrec.rights.calendar import Calendar
from callrec.rights.desk import Desk
from callrec.rights.disposition import Patience, Unsaid
from callrec.rights.erasure import Eraser
from callrec.rights.sweeper import Sweeper
from callrec.store import live
from callrec.store.db import Database
from callrec.store.records import CallRecords
from callrec.store.rights import RightsRecords
from callrec.store.scribe import Scribe
from callrec.store.shipping import ShipRecords

NODE = "n"
NUMBER = "+38631234567"
LOOKUP_KEY = b"k" * 32
LOOKUP_KEYS = LookupKeys({1: LOOKUP_KEY})
PRIVATE, PUBLIC = envelope.generate_keypair()
PREFIXES = {BasisKind.CONSENT: "consent", BasisKind.NOTICE: "market-transaction"}
LINES = {
    kind: replace(line := make_line(kind), basis=replace(line.basis, prefix=prefix))
    for kind, prefix in PREFIXES.items()
}
BASES = {line.basis.id: line.basis for line in LINES.values()}
PATIENCE = Patience(timedelta(hours=24), timedelta(hours=24), Unsaid.ERASE)


@dataclass(frozen=True)
class Kept:
    recording_id: UUID
    call_id: UUID
    channel: str
    key: str
    version_id: str | None


def connect(at: S3Endpoint, name):
    return S3Objects(
        endpoint=at.endpoint, region=at.region, bucket=name, access_key=at.access_key, secret_key=at.secret_key,
        connect_seconds=2, read_seconds=10,
    )  # fmt: skip


class House:
    """One node's stores with a bucket of its own, set up as `callrec storage init` does it."""

    def __init__(self, stores, s3, users, redis_url, spool_directory):
        self.stores, self.redis_url, self.stopped = stores, redis_url, []
        self._ends = contextlib.ExitStack()
        self.bucket = s3.bucket_name()
        self.users, ids = users
        self.admin = self._objects(s3)
        plan = bucket.recordings(
            self.bucket, BASES.values(), {role: f"arn:aws:iam:::user/{ids[role]}" for role in ids}, https=False
        )
        assert bucket.set_up(self.admin, plan)[1] == []
        self.ship, self.sweep, self.api = (self._objects(self.users[role]) for role in ("ship", "sweep", "api"))
        self.spool = Spool(spool_directory, 1, 1 << 40)
        self.spool.prepare()
        self.live = live.LiveState(live.connect(redis_url), live_ttl=600, ended_ttl=60)
        self.live.start()
        self._ends.callback(self.live.stop)
        self._listen = stores.database("listen")
        self._scribe = Scribe(self._listen)
        self._scribe.start()
        self._ends.callback(self._scribe.stop, 5)
        self._calls = CallRecords(self._listen, self._scribe, node=NODE, timezone=ZONE)
        self._shipper = Shipper(
            ShipRecords(stores.database("ship"), node=NODE), self.spool, self.ship, PUBLIC, NODE, lease_seconds=600
        )
        self._roles: dict[str, Database] = {}

    def close(self):
        self._ends.close()

    def _objects(self, at):
        objects = connect(at, self.bucket)
        self._ends.callback(objects.close)
        return objects

    def database(self, role):
        if role not in self._roles:
            self._roles[role] = self.stores.database(role)
        return self._roles[role]

    def records(self, role="sweep"):
        return RightsRecords(self.database(role), node=NODE)

    def desk(self, clock=None, keys=LOOKUP_KEYS):
        return Desk(
            self.records("api"), Calendar("SI", ZONE), BASES, keys, lambda *order: self.stopped.append(order),
            longest_hold=timedelta(days=90), clock=clock or (lambda: datetime.now(UTC)),
        )  # fmt: skip

    def eraser(self, clock=None):
        return Eraser(
            self.records(), self.sweep, self.spool, self.live, lambda *order: self.stopped.append(order),
            clock=clock or (lambda: datetime.now(UTC)),
        )  # fmt: skip

    def sweeper(self, clock=None, patience=PATIENCE):
        return Sweeper(
            self.records(), self.eraser(clock), self.sweep, BASES, patience, clock=clock or (lambda: datetime.now(UTC))
        )

    def player(self, purpose, recording_id):
        player = Player(
            self.database("api").run, self.api, PRIVATE, node=NODE, denied=(), rights=("dsar", "erasure", "legal_claim")
        )
        return b"".join(player.open(Listening(recording_id, purpose, "agent-7")))

    # Recordings

    def record(
        self, kind=BasisKind.CONSENT, number=NUMBER, *, reference=None, until="stored", retain_until=None, ended=None,
        keys=LOOKUP_KEYS,
    ):  # fmt: skip
        """A recording that has come as far as `until`: authorised, recording, finished, stored."""
        facts = make_facts(LINES[kind])
        caller = conceal(number, keys, PUBLIC) if number else None
        notes = make_notes("notice_completed", "basis_established")
        decision = "granted" if kind is BasisKind.CONSENT else "notice_given"
        self._calls.authorise(facts, decision, notes, caller, timeout=5, reference=reference)
        at = datetime.now(UTC)
        with wave.open(str(self.spool.path(facts.recording_id)), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(b"\1\2\3\4" * 800)
        self.live.put(facts.channel, {"call": str(facts.call_id), "state": "recording"})
        assert self.live._idle.wait(5)
        if until != "authorised":
            self._calls.started(facts, at)
        if until in {"finished", "stored"}:
            self._calls.finished(facts.recording_id, ended or at, 800, abrupt=False)
        assert self._scribe._idle.wait(5)
        if retain_until:
            self.stores.admin.execute(
                "UPDATE recording SET retain_until = %s WHERE recording_id = %s", (retain_until, facts.recording_id)
            )
        if until == "stored":
            self.store()
        row = self.row(facts.recording_id)
        started = row["started_at"] or row["authorised_at"]
        return Kept(
            facts.recording_id, facts.call_id, facts.channel,
            object_name(row["prefix"], started, facts.recording_id), row["version_id"],
        )  # fmt: skip

    def store(self):
        """Everything that is finished is stored, or discarded."""
        while self._shipper.ship_next():
            pass

    def row(self, recording_id):
        return self.stores.rows("SELECT * FROM recording WHERE recording_id = %s", recording_id)[0]

    def erasure(self, recording_id):
        rows = self.stores.rows("SELECT * FROM erasure WHERE recording_id = %s", recording_id)
        return rows[0] if rows else None

    def kinds(self, recording_id):
        rows = self.stores.rows("SELECT kind FROM ledger WHERE recording_id = %s ORDER BY entry_id", recording_id)
        return [row["kind"] for row in rows]

    def erase_all(self, eraser=None):
        eraser = eraser or self.eraser()
        while eraser.erase_next():
            pass

    def left(self, kept):
        """Every copy of it that is anywhere, each place looked at itself."""
        found = set()
        for table, column, value in (
            ("recording_key", "recording_id", kept.recording_id), ("caller", "call_id", kept.call_id)
        ):  # fmt: skip
            if self.stores.rows(f"SELECT 1 FROM {table} WHERE {column} = %s", value):
                found.add(table)
        for version in self.admin.versions(""):
            if str(kept.recording_id) in version.key and not version.key.startswith("erased/"):
                found.add("marker" if version.is_delete_marker else version.key.partition("/")[0])
        if any(str(kept.recording_id) in path.name for path in self.spool.root.rglob("*")):
            found.add("spool")
        if self.live.get(kept.channel):
            found.add("redis")
        return found


@pytest.fixture(scope="session")
def role_users(s3):
    """An S3 user for each role; their rights are in each bucket's own policy."""
    return s3.users("ship", "sweep", "api")


@pytest.fixture
def house(stores, s3, role_users, redis_url, tmp_path):
    made = House(stores, s3, role_users, redis_url, tmp_path / "spool")
    yield made
    made.close()


def code_reference(code):
    """What callrec keeps of a reference code."""
    return LOOKUP_KEYS.newest(code)


def new_channel():
    return str(uuid4())
