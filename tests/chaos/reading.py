"""What is there after a fault: each call, each recording and each erasure, read back from where it must be.

Nothing that callrec says of itself is believed. What FreeSWITCH recorded is compared byte for byte with what is stored;
when a basis was durable, Postgres says (commit timestamps), and when a file was begun, the switch.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import redis
from exchange import Call
from house import House

from callrec.call.policy import ERASED_PREFIX
from callrec.errors import CallrecError
from callrec.rights.retention import retain_until
from callrec.store.live import KEY

_BYTES = 32_000  # of a second in stereo
_HEADER = 44
_UNSETTLED = ("authorised", "recording", "finished")
_BASES = """
SELECT r.recording_id, pg_xact_commit_timestamp(l.xmin) AS durable
  FROM recording r LEFT JOIN ledger l ON l.call_id = r.call_id AND l.kind = 'basis_established'
 WHERE r.recording_id = ANY(%s)"""


@dataclass(slots=True)
class Found:
    """What an experiment, or one phase of it, came to. `wrong` says each fault that was found."""

    calls: int = 0
    callers_lost: int = 0
    recordings: int = 0  # that FreeSWITCH began
    stored: int = 0
    recordings_lost: int = 0
    audio_lost: float = 0.0  # seconds
    without_basis: int = 0
    erased: int = 0
    left: int = 0  # things of recordings that are erased, or had to be
    longest_silence: float = 0.0  # seconds that a caller heard nothing
    wrong: list[str] = field(default_factory=list)

    def add(self, other: "Found") -> None:
        for name in self.__slots__:
            if name == "longest_silence":
                self.longest_silence = max(self.longest_silence, other.longest_silence)
            else:
                setattr(self, name, getattr(self, name) + getattr(other, name))


def unsettled(house: House) -> str:
    """What is still under way; empty when nothing is."""
    if missing := house.callrec.missing():
        return f"not ready: {', '.join(sorted(missing))}"
    asked = house.inspector.rows
    recordings = Counter(
        row["state"] for row in asked("SELECT state FROM recording WHERE state = ANY(%s)", list(_UNSETTLED))
    )
    if recordings:
        return ", ".join(f"{count} recordings {state}" for state, count in recordings.items())
    if erasures := asked("SELECT last_error FROM erasure WHERE state <> 'erased'"):
        return f"{len(erasures)} erasures: {erasures[0]['last_error']}"
    if files := spooled(house):
        return f"{len(files)} files in the spool"
    return ""


def spooled(house: House) -> list[str]:
    """Files that may hold audio; the empty mark of a withdrawal stays until `ship` next tidies up."""
    folders = (house.callrec.spool / folder for folder in ("rec", "sealed"))
    return [path.name for folder in folders for path in folder.iterdir()]


class Reader:
    """Reads once what all calls are compared with. Make a new one for each experiment, when nothing is under way."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._config = house.callrec.config
        self._objects: dict[str, list] = {}
        for version in house.inspector.versions():
            if version.key.startswith(f"{ERASED_PREFIX}/"):
                continue  # the name of what was erased, not a copy of it
            self._objects.setdefault(version.key.rsplit("/", 1)[-1], []).append(version)
        self._spool = spooled(house)
        self._redis = redis.Redis.from_url(house.stack.redis_url, decode_responses=True, socket_timeout=5)

    def call(self, call: Call, *, patience: float, withdrawn: bool) -> Found:
        """`patience`: seconds that this caller may hear nothing; `withdrawn`: nothing of it may be left."""
        found = Found(calls=1)
        self._caller(call, patience, found)
        recording = call.recording
        if recording:
            found.recordings = 1
            self._basis(call, recording, found)
            if withdrawn:
                found.erased = 1
                self.gone(recording, call.channel, found)
            else:
                self._kept(recording, found)
        elif self._states(call):
            found.wrong.append(f"never recorded, and yet {self._states(call)}")
        if "2" in {fact[1] for _, fact in call.facts if fact[0] == "key"} and recording:
            found.without_basis += 1
            found.wrong.append("recorded although the caller refused")
        found.wrong = [f"{call.phase}, {call.line}: {each}" for each in found.wrong]
        return found

    def _caller(self, call: Call, patience: float, found: Found) -> None:
        if call.at("bridged") is None:
            if not call.killed:
                found.callers_lost += 1
                found.wrong.append(f"the caller reached no agent: {[fact for _, fact in call.facts]}")
            return
        found.longest_silence = call.longest_silence
        if found.longest_silence > patience:
            found.callers_lost += 1
            found.wrong.append(f"the caller heard nothing for {found.longest_silence:.1f} s")

    def _states(self, call: Call) -> list[str]:
        """Of recordings that are more than the note that there is none."""
        rows = self._house.inspector.rows(
            "SELECT r.state FROM recording r JOIN call c USING (call_id) WHERE c.channel = %s", call.channel
        )
        return [row["state"] for row in rows if row["state"] not in {"discarded", "empty", "lost", "erased"}]

    def _basis(self, call: Call, recording: str, found: Found) -> None:
        begun = call.at("recording")
        rows = self._house.inspector.rows(_BASES, [recording])
        durable = rows[0]["durable"] if rows else None
        if durable is None or durable.timestamp() > begun:
            found.without_basis += 1
            late = "never was" if durable is None else f"was {durable.timestamp() - begun:.3f} s late"
            found.wrong.append(f"{recording}: its basis {late}")

    def _kept(self, recording: str, found: Found) -> None:
        """One verified, locked object with every byte that FreeSWITCH wrote."""
        inspector = self._house.inspector
        (row,) = inspector.rows("SELECT * FROM recording WHERE recording_id = %s", recording) or [None]
        versions = self._objects.get(recording, [])
        tape = self._tape(recording)[_HEADER:]
        if row is None or row["state"] != "stored" or len(versions) != 1:
            if row is not None and row["state"] in {"empty", "discarded"} and not tape and not versions:
                return  # FreeSWITCH never wrote a sample: it began when nobody waited any more, and was stopped
            found.recordings_lost += 1
            found.audio_lost += len(tape) / _BYTES
            found.wrong.append(
                f"{recording}: {row and row['state']}, {len(versions)} versions, {len(tape)} bytes of audio"
            )
            return
        mode, until = inspector.lock_of(versions[0])
        basis = self._config.bases[row["basis"]]
        wanted = retain_until(row["started_at"], basis.retention, self._config.operator.timezone)
        if (mode, until) != (basis.lock.value, wanted):
            found.recordings_lost += 1
            found.wrong.append(f"{recording}: locked {mode} until {until}, not {basis.lock.value} until {wanted}")
        try:
            sound = inspector.sound(UUID(recording), versions[0])[_HEADER:]
        except CallrecError as error:
            found.recordings_lost += 1
            found.wrong.append(f"{recording} does not open: {error}")
            return
        found.stored += 1
        if sound != tape[: len(tape) // 4 * 4]:
            lost = max(0, len(tape) - len(sound)) / _BYTES
            found.audio_lost += lost
            found.wrong.append(f"{recording}: {lost:.3f} s of the {len(tape) / _BYTES:.3f} s are not stored, or others")

    def gone(self, recording: str, channel: str, found: Found) -> None:
        """Nothing is left of it anywhere."""
        asked = self._house.inspector.rows
        left = [f"{len(self._objects[recording])} versions"] if recording in self._objects else []
        left += [f"spool: {name}" for name in self._spool if recording in name]
        for table in ("recording_key", "caller"):
            column = "r.recording_id" if table == "recording_key" else "r.call_id"
            if asked(
                f"SELECT 1 FROM recording r JOIN {table} t ON t.{column[2:]} = {column} WHERE r.recording_id = %s",
                recording,
            ):
                left.append(f"a row of {table}")
        shown = self._redis.hgetall(KEY.format(channel=channel))
        if shown.get("recording") == recording:
            left.append(f"Redis: {shown['state']}")
        states = [row["state"] for row in asked("SELECT state FROM recording WHERE recording_id = %s", recording)]
        if states and states[0] not in {"erased", "discarded", "empty", "lost"}:
            left.append(f"its state is {states[0]}")
        found.left += len(left)
        found.wrong += [f"{recording} is withdrawn, and there is {each}" for each in left]

    def _tape(self, recording: str) -> bytes:
        path: Path = self._house.tapes / f"{recording}.wav"
        return path.read_bytes() if path.exists() else b""

    def strangers(self, calls: list[Call]) -> list[str]:
        """Objects and rows that belong to no call of ours: something was stored that FreeSWITCH never began."""
        known = {call.recording for call in calls}
        rows = self._house.inspector.rows("SELECT recording_id FROM recording WHERE state = 'stored'")
        return [str(row["recording_id"]) for row in rows if str(row["recording_id"]) not in known]
