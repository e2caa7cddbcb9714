"""Recordings leave the node while they run: every few seconds a segment of each is put into the object store.

A look at Postgres every half second finds what this node has begun to record; from then on each recording has a time at
which its next segment is due. The earliest come first, a few at once, and what piled up while the store was away goes
in segments of bounded size, so that memory does not depend on how long or how many the calls are. A segment is read,
hashed and encrypted in the threadpool.

Each is announced in Postgres before it is put. That statement is the guard: once a recording is over, being erased or
another node's, nothing of it is put any more, and whoever removes its segments knows that none is on its way.

The segments do not replace the recording. It is stored whole from the spool as if there were none, and then `sweep`
removes them. They are for the day on which the spool does not come back (recording/recovery.py). The lock is short and
GOVERNANCE whatever the legal basis says, because they have to go. Together every byte is sent twice.
"""

import os
import random
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Protocol
from uuid import UUID

from gevent.event import Event
from gevent.pool import Pool

from callrec import metrics
from callrec.call.policy import LockMode
from callrec.errors import CallrecError, OtherFileError, StorageError, StoreError, WavError
from callrec.log import Log
from callrec.recording import envelope, segments, wav
from callrec.recording.facts import Cut, Running, segments_prefix
from callrec.recording.objects import S3Objects, lock_headers
from callrec.recording.spool import Spool
from callrec.recording.threads import in_thread
from callrec.recording.transport import refused

LOCK = timedelta(days=7)  # a node that is lost on a long weekend is still found whole
_LOOK = 0.5  # seconds
_AT_ONCE = 4
_MOST_AUDIO = segments.MOST_AUDIO // 2  # bytes in one, of those that piled up: 4 whole ones took 30 MiB
_BLOCK = 64 * 1024
_LONGEST_PAUSE = 15.0
_DRAIN_SECONDS = 5.0
_log = Log(__name__)


class Records(Protocol):
    """What the streamer asks of the database (store/segments.py)."""

    def streams(self, bases: Collection[str], known: Collection[UUID]) -> list[Running]: ...
    def reserve(self, recording_id: UUID, cut: Cut, sealed_key: bytes | None, key_id: str) -> bool: ...
    def put(self, recording_id: UUID, index: int, version_id: str) -> None: ...


@dataclass(slots=True, eq=False)
class _Stream:
    """One running recording. The key is for this process' segments of it alone."""

    recording_id: UUID
    below: str  # prefix of the segments' keys
    every: float  # seconds
    due: float  # by the monotonic clock
    number: int  # of the key among the recording's
    index: int  # of the next segment
    previous: bytes
    audio_end: int
    sealed_key: bytes | None  # until Postgres has it
    key: bytes = field(repr=False)
    digest: Any = None  # SHA-256 of the plaintext so far; None: to be made from the file
    file: tuple[int, int] | None = None  # device and inode
    put_at: float = field(default_factory=time.monotonic)
    failures: int = 0
    busy: bool = False


class Streamer:
    """Streams what one node records. `every`: seconds between segments by the id of the basis, 0 for none."""

    def __init__(
        self,
        records: Records,
        spool: Spool,
        objects: S3Objects,
        public_key: bytes,
        every: Mapping[str, float],
        *,
        most_audio: int = _MOST_AUDIO,
    ) -> None:
        self._records = records
        self._spool = spool
        self._objects = objects
        self._public_key = public_key
        self._key_id = envelope.key_id(public_key)
        self._every = {basis: seconds for basis, seconds in every.items() if seconds}
        self._most_audio = most_audio
        self._streams: dict[UUID, _Stream] = {}
        self._stopped: set[UUID] = set()  # whose file is not what it was
        self._pool = Pool(_AT_ONCE)
        self._looked = 0.0  # by the monotonic clock
        self._postgres_away = False

    def run(self, stop: Event) -> None:
        """Stream until `stop` is set; what is being put then has a few seconds to end. The next start goes on."""
        if not self._every:
            return
        while not stop.is_set():
            self.look()
            stop.wait(_LOOK)
        self._pool.join(timeout=_DRAIN_SECONDS)
        self._pool.kill(timeout=_DRAIN_SECONDS)

    def look(self) -> None:
        """Find recordings that have begun, and begin the segments that are due, as many as may be at once."""
        try:
            self._find()
            self._postgres_away = False
        except StoreError as error:
            if not self._postgres_away:
                _log.warning("streams_not_looked_for", why=str(error))
            self._postgres_away = True
        self._looked = now = time.monotonic()
        for _ in range(min(self._pool.free_count(), len(self._waiting()))):
            self._pool.spawn(self._work)
        metrics.STREAMS.set(len(self._streams))
        late = (now - stream.put_at - stream.every for stream in self._streams.values())
        metrics.STREAM_LAG.set(max(0.0, max(late, default=0.0)))

    def _find(self) -> None:
        for found in self._records.streams(list(self._every), [*self._streams, *self._stopped]):
            key, every = envelope.new_key(), self._every[found.basis_id]
            again = found.next_index > 0  # what an earlier `ship` had begun has waited since
            self._streams[found.recording_id] = _Stream(
                recording_id=found.recording_id,
                below=segments_prefix(found.prefix, found.started_at, found.recording_id),
                every=every,
                due=time.monotonic() + (0.0 if again else every),
                number=found.keys,
                index=found.next_index,
                previous=found.previous or segments.FIRST,
                audio_end=found.audio_end,
                sealed_key=envelope.seal(key, self._public_key),
                key=key,
            )

    def _waiting(self) -> list[_Stream]:
        """Whose segment was due at the last look and is nobody's yet."""
        return [stream for stream in self._streams.values() if stream.due <= self._looked and not stream.busy]

    def _work(self) -> None:
        """Put one segment after the other, the earliest first, until no more are due."""
        while waiting := self._waiting():
            self._step(min(waiting, key=lambda each: each.due))

    def _step(self, stream: _Stream) -> None:
        """Put the segment that is due, and say when the next one is: after the last look."""
        stream.busy = True
        try:
            goes_on, more = self._put_next(stream)
            if not goes_on:
                self._streams.pop(stream.recording_id, None)
            stream.failures = 0
            now = time.monotonic()
            stream.due = now if more else max(stream.due + stream.every, now)
        except OtherFileError as error:  # what is there is for the shipper to judge
            self._streams.pop(stream.recording_id, None)
            self._stopped.add(stream.recording_id)
            metrics.SEGMENTS.labels("stopped").inc()
            _log.error("stream_stopped", recording=stream.recording_id, why=str(error))
        except Exception as error:  # noqa: BLE001 # whatever is wrong with one, the others go on
            known = isinstance(error, CallrecError)
            stream.failures += 1
            pause = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE, 2.0 ** min(stream.failures, 10))  # noqa: S311 # jitter
            stream.due = time.monotonic() + pause
            metrics.SEGMENTS.labels("failed").inc()
            metrics.RETRIES.labels("segment").inc()
            if stream.failures in {1, 10, 100}:  # an outage is one for every call
                why = str(error) if known else ""
                _log.warning("segment_put_off", recording=stream.recording_id, exc_info=not known, why=why)
        finally:
            stream.busy = False

    def _put_next(self, stream: _Stream) -> tuple[bool, bool]:
        """(whether the stream goes on, whether more is there already)"""
        made = in_thread(self._cut, stream)
        if made is None:  # stored, or withdrawn
            return False, False
        cut, digest, more = made
        if cut is None:
            stream.put_at = time.monotonic()  # there is nothing that could be put
            return True, False
        if not self._records.reserve(stream.recording_id, cut, stream.sealed_key, self._key_id):
            return False, False
        stream.sealed_key = None
        version_id = self._put(stream, cut)
        stream.index, stream.previous, stream.audio_end = cut.index + 1, cut.sha256, cut.audio_end
        stream.digest, stream.put_at = digest, time.monotonic()
        metrics.SEGMENTS.labels("put").inc()
        metrics.SEGMENT_BYTES.inc(len(cut.segment))
        self._records.put(stream.recording_id, cut.index, version_id)
        return True, more

    def _put(self, stream: _Stream, cut: Cut) -> str:
        answer = self._objects.exchange.ask(
            "PUT",
            f"{stream.below}{cut.index:06d}",
            headers={
                **lock_headers(LockMode.GOVERNANCE, datetime.now(UTC) + LOCK),
                "x-amz-meta-sha256": cut.sha256.hex(),
                "x-amz-meta-recording": str(stream.recording_id),
            },
            body=cut.segment,
        )
        if not answer.accepted:
            raise refused("put a segment", answer.code, answer.status)
        version_id = answer.headers.get("x-amz-version-id")
        if not version_id:
            raise StorageError("The bucket keeps no versions", hint="It has to be created with object lock")
        return version_id

    def _cut(self, stream: _Stream) -> tuple[Cut | None, Any, bool] | None:
        """The next segment, the hash up to its end, and whether there is more; None where the file is gone.

        OtherFileError: it is shorter than what was put of it, or another one.
        """
        opened = self._spool.open_plain(stream.recording_id)
        if opened is None:
            return None
        with opened as audio:
            status = os.fstat(audio.fileno())
            head = audio.read(wav.HEAD_BYTES)
            try:
                parsed = wav.parse(head)
            except WavError:
                return None, None, False  # not yet; and what never gets a header is stored as it is
            there = wav.audio_bytes(parsed, status.st_size)
            file = (status.st_dev, status.st_ino)
            if there < stream.audio_end or stream.file not in {None, file}:
                raise OtherFileError("A running recording is not the file any more that it was")
            stream.file = file
            length = min(there - stream.audio_end, self._most_audio - self._most_audio % parsed.frame_bytes)
            if not length:
                return None, None, False
            begin = wav.stream_header(head)
            audio.seek(parsed.data_offset)
            if stream.digest is None:
                digest, left = sha256(begin), stream.audio_end
                while left and (block := audio.read(min(_BLOCK, left))):
                    digest.update(block)
                    left -= len(block)
            else:
                digest = stream.digest.copy()
            audio.seek(parsed.data_offset + stream.audio_end)
            piece = audio.read(length)
            digest.update(piece)
        plain = piece if stream.audio_end else begin + piece
        segment = segments.seal(
            plain, stream.key, stream.recording_id,
            index=stream.index, number=stream.number, previous=stream.previous,
        )  # fmt: skip
        end = stream.audio_end + len(piece)
        seconds = end / parsed.frame_bytes / parsed.rate
        cut = Cut(stream.index, stream.number, segment, sha256(segment).digest(), end, seconds, digest.digest())
        return cut, digest, end < there
