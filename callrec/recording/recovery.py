"""A node that does not come back, and the recordings that it was making.

Every node says every few seconds in Postgres that it lives: `listen` and `ship` both do, because a node on which one of
them still runs has its spool and is not lost. Where nothing was heard of a node for `lost_after` seconds, another
node's `ship` takes over what there are segments of: one statement makes the recording its own, finished, and its claim
then finds no file in the spool, but segments. They are joined as they are (recording/segments.py says why), that is
the sealed form, and from there on it is stored like any other, under the lock of its basis, marked as incomplete.

Whoever takes a recording over is its owner: rows decide, not processes. Two nodes can't take the same row; a node that
dies over it is lost itself, and the next one goes on. The old owner, when it was not dead but cut off, finds no row of
its own any more: what it has put meanwhile is not stored, and its file stays. A node that comes back with all of a
recording of which there is an incomplete object takes it back (leftovers.py): the complete object takes the place of
the other, whose version then goes.

Postgres itself may have been away, and then nobody was heard of: so only who has been heard of itself, without a break,
for as long as that, says that another was not.
"""

import time
from collections import deque
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, BinaryIO, Protocol
from uuid import UUID

from gevent.event import Event

from callrec import metrics
from callrec.errors import EnvelopeError, StorageError, StoreError
from callrec.log import Log
from callrec.recording import segments
from callrec.recording.facts import Finished, Part, Streamed, segments_prefix
from callrec.recording.note import Note
from callrec.recording.plain import Plain
from callrec.recording.spool import Spool
from callrec.recording.threads import in_thread

if TYPE_CHECKING:  # `listen` has no use for S3's library
    from callrec.recording.objects import S3Objects

_BEAT = 2.0  # seconds
_log = Log(__name__)


class Parts(Protocol):
    def streamed(self, recording_id: UUID) -> Streamed | None:
        """What was put of a recording."""

    def parts(self, recording_id: UUID) -> list[Part]:
        """The segments of a recording, in order, those too that may not have been put."""


class Nodes(Protocol):
    def beat(self) -> None: ...
    def nodes_lost(self, after: float) -> int: ...
    def take_over(self, after: float) -> list[UUID]: ...


class _GapError(Exception):
    """The segment at this place is not the one that was put."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


class Assembler:
    """Makes the sealed form of a recording from its segments."""

    def __init__(self, records: Parts, spool: Spool, objects: "S3Objects") -> None:
        self._records = records
        self._spool = spool
        self._objects = objects

    def streamed(self, recording_id: UUID) -> Streamed | None:
        """What its file must begin with; None where nothing of it was put."""
        return self._records.streamed(recording_id)

    def whole(self, recording_id: UUID) -> bool:
        """Whether all that was put of it is in the spool. OtherFileError where its file is less, or another."""
        audio = self._spool.open_plain(recording_id)
        if audio is not None:
            with audio:
                in_thread(deque, Plain(audio, self.streamed(recording_id)).pieces(), 0)
            return True
        written = self._spool.sealed_note(recording_id)
        try:  # one that was made of segments has no more than they
            return written is not None and not Note.from_bytes(written).segments
        except EnvelopeError:
            return False

    def assemble(self, finished: Finished) -> Note | None:
        """Its note; None where there is no segment. StorageError while the object store is away.

        It ends before the first segment that is missing: what comes behind a gap would not open. The last one may be:
        its writer died over it.
        """
        below = segments_prefix(finished.prefix, finished.started_at, finished.recording_id)
        parts = self._put(below, self._records.parts(finished.recording_id))
        made: list[Note] = []

        def write(sink: BinaryIO) -> bytes:
            made.append(self._join(below, parts, sink))
            return made[0].as_bytes()

        while parts and not made:
            try:
                self._spool.store_sealed(finished.recording_id, write)
            except _GapError as gap:
                _log.error("segment_lost", recording=finished.recording_id, segment=gap.place)
                parts = parts[: gap.place]
        if not made:
            return None
        seconds = round(made[0].duration_seconds, 3)
        _log.warning(
            "recording_incomplete", recording=finished.recording_id, segments=len(parts), ends_at_second=seconds
        )
        return made[0]

    def _put(self, below: str, parts: list[Part]) -> list[tuple[Part, str]]:
        """Those that are there without a gap, each with its version."""
        found: list[tuple[Part, str]] = []
        for part in parts:
            version_id = part.version_id or self._objects.find(f"{below}{part.index:06d}", part.sha256)
            if version_id is None or part.index != len(found):
                break
            found.append((part, version_id))
        return found

    def _join(self, below: str, parts: list[tuple[Part, str]], sink: BinaryIO) -> Note:
        digest, size, previous = sha256(), 0, segments.FIRST

        def put(piece: bytes) -> None:
            nonlocal size
            digest.update(piece)
            size += len(piece)
            sink.write(piece)

        put(segments.joined_head(len(parts)))
        for part, version_id in parts:
            segment = self._read(f"{below}{part.index:06d}", version_id, part)
            head = segments.head_of(segment)
            if head.index != part.index or head.previous != previous:
                raise _GapError(part.index)
            put(segment)
            previous = part.sha256
        last, _ = parts[-1]
        return Note(
            sealed_key=b"",
            key_id="",
            plaintext_sha256=last.plaintext_sha256,
            ciphertext_sha256=digest.digest(),
            ciphertext_bytes=size,
            duration_seconds=last.ends_at,
            segments=len(parts),
        )

    def _read(self, key: str, version_id: str, part: Part) -> bytes:
        segment = bytearray()
        try:
            for block in self._objects.read(key, version_id):
                segment += block
                if len(segment) > part.size:
                    break
        except StorageError:
            if any(version.version_id == version_id for version in self._objects.versions(key)):
                raise  # it is there, and can't be had now
            raise _GapError(part.index) from None
        if sha256(segment).digest() != part.sha256:
            raise _GapError(part.index)
        return bytes(segment)


class Neighbours:
    """Says that this node lives, and takes over what lost ones leave: after `lost_after` seconds, with 0 never."""

    def __init__(self, records: Nodes, lost_after: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._records = records
        self._lost_after = lost_after
        self._clock = clock
        self._heard_since: float | None = None  # of ourselves

    def run(self, stop: Event) -> None:
        """Until `stop` is set."""
        while not stop.is_set():
            self.look()
            stop.wait(_BEAT)

    def look(self) -> None:
        """Say that this node lives, and look for others that do not say so."""
        now = self._clock()
        try:
            self._records.beat()
            if self._heard_since is None:
                self._heard_since = now
            if not self._lost_after:
                return
            lost = self._records.nodes_lost(self._lost_after)
            metrics.NODES_LOST.set(lost)
            if lost and now - self._heard_since > self._lost_after:
                for recording_id in self._records.take_over(self._lost_after):
                    metrics.TAKEN_OVER.inc()
                    _log.error("recording_taken_over", recording=recording_id)
        except StoreError:  # counted where it arose
            self._heard_since = None
