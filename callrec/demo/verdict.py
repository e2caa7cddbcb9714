"""What the law demanded of a call and what is there: everything is read back from where it must be, nothing believed.

Spool, object store with its versions, ledger, key table and Redis are each asked themselves, and a stored recording is
opened with the private key and listened to.
"""

import io
import time
import wave
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import gevent
import psycopg
from psycopg.rows import dict_row

from callrec import adapters
from callrec.config import Config
from callrec.demo.installation import Installation
from callrec.demo.scenarios import Demand, Scenario
from callrec.errors import CallrecError, LedgerError, StoreError
from callrec.ledger import tree
from callrec.ledger.entry import Entry
from callrec.recording import envelope
from callrec.recording.objects import Version
from callrec.rights.retention import retain_until
from callrec.store import live
from callrec.store.tree import TreeRecords

_OVER = frozenset({"ended", "unrecorded"})
_SIGNED = 20.0  # seconds until an entry must be signed: far more than it takes
_BRIEF = 0.1  # seconds by which an accelerated call's lengths may differ


@dataclass(slots=True)
class Verdict:
    """One call's line in the table. `wrong` says what differs from the demand; nothing: it is met."""

    scenario: str
    law: str
    call: str = ""
    agent: str = ""  # what is there, from here on
    spool: str = ""
    storage: str = ""
    ledger: str = ""
    redis: str = ""
    wrong: list[str] = field(default_factory=list)


class Inspector:
    """Looks at what an installation holds of a call. A context manager: it keeps one connection of its own."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._config: Config = installation.config
        self._postgres = psycopg.connect(installation.stack.postgres_url, autocommit=True, row_factory=dict_row)
        self._objects = adapters.objects(self._config, "api")  # the bucket's owner may not read what `ship` put
        self._redis = live.connect(self._config.redis.url)
        self._shown = live.LiveState(self._redis, live_ttl=0, ended_ttl=0)  # it only looks
        self._store = adapters.database(self._config, "api", size=1)
        self._store.open()
        self._tree = TreeRecords(self._store)

    def __enter__(self) -> "Inspector":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._postgres.close()
        self._store.close()
        self._objects.close()
        self._redis.close()

    def rows(self, statement: str, *values: object) -> list[dict[str, Any]]:
        return self._postgres.execute(statement, values).fetchall()

    def settled(self, channel: str) -> bool:
        """Whether nothing more will happen to this call's recording."""
        found = self.rows(
            "SELECT c.ended_at, r.state, r.recording_id FROM call c LEFT JOIN recording r USING (call_id)"
            " WHERE c.channel = %s",
            channel,
        )
        if not found or not found[0]["ended_at"] or found[0]["state"] in {"authorised", "recording", "finished"}:
            return False
        if self._spooled([found[0]["recording_id"]]):  # the last of the files goes after the row says `stored`
            return False
        return self.told(channel, erased=found[0]["state"] not in {None, "stored"})

    def told(self, channel: str, *, erased: bool) -> bool:
        """Whether Redis shows the call's end by now; also true where it can't be asked, or erasure has been there."""
        try:
            state = self._shown.get(channel).get("state")
        except StoreError:
            return True
        return state in _OVER or (erased and state is None)

    def versions(self) -> list[Version]:
        """Every version of every object in the bucket, delete markers too."""
        return list(self._objects.versions(""))

    def lock_of(self, version: Version) -> tuple[str | None, datetime | None]:
        """Mode and date of a version's lock, as the object store gives them."""
        return self._objects.lock_of(version.key, version.version_id)

    def sound(self, recording_id: UUID, version: Version | None = None) -> bytes:
        """The WAV file that is stored, opened with the private key. EnvelopeError when it does not open."""
        row = self.rows(
            "SELECT object_key, version_id, sealed FROM recording JOIN recording_key USING (recording_id)"
            " WHERE recording_id = %s",
            recording_id,
        )[0]
        key = envelope.unseal(bytes(row["sealed"]), self._installation.private_key)
        where = (version.key, version.version_id) if version else (row["object_key"], row["version_id"])
        return b"".join(envelope.decrypt(self._objects.read(*where), key, recording_id))

    def judge(self, scenario: Scenario, channel: str, facts: Iterable[str]) -> Verdict:
        """Compare everything with the demand. `facts` are what the switch saw of the call."""
        demand = scenario.demand
        verdict = Verdict(scenario.name, demand.law)
        seen = set(facts)
        verdict.agent = "reached" if "bridged" in seen else "not reached"
        _differs(verdict, "agent reached", demand.reached_agent, "bridged" in seen)
        calls = self.rows("SELECT * FROM call WHERE channel = %s", channel)
        if len(calls) != 1:
            verdict.wrong.append(f"{len(calls)} calls in Postgres")
            return verdict
        verdict.call = str(calls[0]["call_id"])
        _differs(verdict, "decision", demand.decision, calls[0]["decision"])
        recordings = self.rows("SELECT * FROM recording WHERE call_id = %s", calls[0]["call_id"])
        self._ledger(verdict, demand, calls[0]["call_id"])
        self._spool(verdict, [row["recording_id"] for row in recordings])
        self._storage(verdict, demand, recordings)
        self._live(verdict, demand, channel)
        return verdict

    def _ledger(self, verdict: Verdict, demand: Demand, call_id: UUID) -> None:
        rows = self.rows("SELECT * FROM ledger WHERE call_id = %s ORDER BY entry_id", call_id)
        kinds = [row["kind"] for row in rows]
        verdict.ledger = f"{len(kinds)} entries"
        rest = iter(kinds)
        missing = [kind for kind in demand.kinds if kind not in rest]  # each looks on where the last was found
        if missing:
            verdict.wrong.append(f"ledger lacks {', '.join(missing)} (in order) in {', '.join(kinds)}")
        if there := set(demand.never) & set(kinds):
            verdict.wrong.append(f"ledger has {', '.join(sorted(there))}")
        try:
            size = self._signed(rows)
        except CallrecError as error:
            verdict.wrong.append(f"ledger is not signed: {error}")
        else:
            verdict.ledger += f", proved to be among {size} signed"

    def _signed(self, rows: Sequence[dict[str, Any]]) -> int:
        """How many entries the checkpoint has that all of these are under. LedgerError when one is not, or not yet."""
        deadline = time.monotonic() + _SIGNED
        while True:
            note = self._tree.last_checkpoint()
            leaves = [self._tree.leaf(row["entry_id"]) for row in rows]
            if note and None not in leaves:
                checkpoint = self._config.ledger.lineage.open(note)
                if all(leaf and leaf.leaf_index < checkpoint.size for leaf in leaves):
                    break
            if time.monotonic() > deadline:
                raise LedgerError("No checkpoint covers the call's entries")
            gevent.sleep(0.05)
        for row, leaf in zip(rows, leaves, strict=True):
            assert leaf  # seen above
            proof = tree.inclusion_proof(leaf.leaf_index, checkpoint.size, self._tree.read)
            entry = Entry.of_row(row).leaf_hash()
            tree.verify_inclusion(entry, leaf.leaf_index, checkpoint.size, proof, checkpoint.root)
        return checkpoint.size

    def _spool(self, verdict: Verdict, recording_ids: Sequence[UUID]) -> None:
        left = self._spooled(recording_ids)
        verdict.spool = ", ".join(left) or "nothing"
        _differs(verdict, "files in the spool", 0, len(left))

    def _spooled(self, recording_ids: Sequence[UUID]) -> list[str]:
        folders = (self._installation.spool / folder for folder in ("rec", "sealed"))  # where audio may be
        names = [path.name for folder in folders for path in folder.iterdir()]
        return [name for name in names if any(str(recording) in name for recording in recording_ids)]

    def _storage(self, verdict: Verdict, demand: Demand, recordings: Sequence[dict[str, Any]]) -> None:
        ids = {str(row["recording_id"]) for row in recordings}
        versions = [version for version in self.versions() if version.key.rsplit("/", 1)[-1] in ids]
        keys = self.rows("SELECT recording_id FROM recording_key WHERE recording_id::text = ANY(%s)", list(ids))
        if demand.basis is None:
            verdict.storage = f"{len(versions)} versions, {len(keys)} keys"
            _differs(verdict, "object versions", 0, len(versions))
            _differs(verdict, "key rows", 0, len(keys))
            return
        if len(versions) != 1 or len(keys) != 1 or len(recordings) != 1:
            verdict.wrong.append(f"{len(recordings)} recordings, {len(versions)} versions, {len(keys)} keys")
            return
        self._locked(verdict, demand, recordings[0], versions[0])

    def _locked(self, verdict: Verdict, demand: Demand, row: dict[str, Any], version: Version) -> None:
        basis = self._config.bases[str(demand.basis)]
        _differs(verdict, "basis", basis.id, row["basis"])
        until = retain_until(row["started_at"], basis.retention, self._config.operator.timezone)
        mode, found = self.lock_of(version)
        verdict.storage = f"1 version, {mode} until {found:%d %b %Y}, 1 key" if found else f"1 version, lock {mode}"
        _differs(verdict, "lock mode", basis.lock.value, mode)
        _differs(verdict, "lock date", until, found)
        _differs(verdict, "date in Postgres", until, row["retain_until"])
        try:
            sound = self.sound(row["recording_id"], version)
        except CallrecError as error:
            verdict.wrong.append(f"does not open: {error}")
            return
        _listen(verdict, demand, sound)

    def _live(self, verdict: Verdict, demand: Demand, channel: str) -> None:
        fields = self._shown.get(channel)
        verdict.redis = f"{fields.get('state', 'nothing')}, {fields.get('decision', '')}"
        _differs(verdict, "state in Redis", True, fields.get("state") in _OVER)
        _differs(verdict, "decision in Redis", demand.decision, fields.get("decision"))


def _differs(verdict: Verdict, what: str, wanted: object, found: object) -> None:
    if wanted != found:
        verdict.wrong.append(f"{what}: wanted {wanted}, found {found}")


def _listen(verdict: Verdict, demand: Demand, sound: bytes) -> None:
    """Both channels carry sound throughout, but for the masked passage, which must be there when it was demanded."""
    with wave.open(io.BytesIO(sound)) as file:
        channels, rate = file.getnchannels(), file.getframerate()
        samples = array("h", file.readframes(file.getnframes()))
    seconds = len(samples) / channels / rate if channels else 0.0
    verdict.storage += f", {seconds:.1f} s"
    _differs(verdict, "channels", 2, channels)
    block = rate // 10
    silent = [not any(samples[at : at + 2 * block]) for at in range(0, len(samples) - 2 * block, 2 * block)]
    masked = sum(silent) / 10
    if demand.masked:
        verdict.storage += f" ({masked:.1f} s masked)"
        first, last = silent.index(True) if True in silent else 0, len(silent) - 1 - silent[::-1].index(True)
        _differs(verdict, "one masked passage inside", True, masked > 1 and 0 < first < last < len(silent) - 1)
        _differs(verdict, "masked throughout", True, all(silent[first : last + 1]))
    else:
        _differs(verdict, "no silence", True, masked <= _BRIEF)
