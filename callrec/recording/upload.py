"""One finished recording after the other, from the spool to a verified object under lock.

    claim -> seal -> store the sealed key -> put -> verify -> remove the plain file -> stored -> remove the rest

A crash may come between any two of these, and the next claim goes on from what is there:

- The sealed form is made once, with its note (sealed key, hashes) beside it, and used by every later attempt. A note
  without ciphertext, or a ciphertext that is not the noted one, is dropped and made again under a new key. The key row
  is set to the note's key before anything is put, so the row always opens what is put next; an object of an earlier
  encryption, if there is one, is a version that no key opens any more and that erasure finds by its key.
- From the second attempt on, an object with the noted hash is looked for, and verified instead of put again.
- The plain file goes once the object is verified, before the row says so: no moment leaves audio in the clear behind.
- A withdrawal is looked for before each step that would make it harder. This role can't delete objects; it says
  "withdrawn_after_put", and the eraser looks for every version of the object's key.

What fails is tried again for ever, with full jitter between 0 and 1, 2, 4 … 60 s.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from typing import BinaryIO, Protocol, TypeVar, cast
from uuid import UUID

import gevent
from gevent.event import Event

from callrec import metrics
from callrec.errors import CallrecError, EnvelopeError, StoreError, WavError
from callrec.log import Log
from callrec.recording import envelope, wav
from callrec.recording.facts import Finished, StoredRecording, object_name
from callrec.recording.note import Note
from callrec.recording.objects import S3Objects
from callrec.recording.spool import Spool

WITHDRAWN = "withdrawn"  # nothing was put
WITHDRAWN_AFTER_PUT = "withdrawn_after_put"  # there may be versions of the object's key
EXPIRED = "expired"  # its retention ended before it could be stored; there may be versions, too

_UNDER_WAY = frozenset({"authorised", "recording", "finished"})
_BASE_SECONDS, _CAP_SECONDS = 1.0, 60.0
_IDLE_SECONDS = 0.5
_TIDY_SECONDS = 60.0
_DRAIN_SECONDS = 10.0
_BLOCK = 64 * 1024
_HEADER_BYTES = 44  # FreeSWITCH writes its header at once: less is no recording
_T = TypeVar("_T")
_log = Log(__name__)


class Records(Protocol):
    """What the shipper asks of the database. Each call is one transaction; StoreError when it can't be had.

    All but claim() and sealed() may come twice for the same recording and then change nothing; none of them takes a
    recording back that is stored, discarded, empty or lost, except discarded(), which may follow stored.
    """

    def claim(self, node: str, lease_seconds: float) -> Finished | None:
        """A finished recording of this node that is due, claimed for `lease_seconds`; counts the attempt."""

    def sealed(self, recording_id: UUID, sealed_key: bytes, key_id: str) -> bytes:
        """Set the recording's sealed key, in place of an earlier one, while it is not stored; return what is set."""

    def stored(self, recording_id: UUID, stored: StoredRecording) -> None:
        """The object is there and locked: row and ledger entry recording_stored."""

    def failed(self, recording_id: UUID, error: str, retry_in: float) -> None:
        """Not before `retry_in` seconds again."""

    def discarded(self, recording_id: UUID, reason: str) -> None:
        """It has to go (WITHDRAWN, WITHDRAWN_AFTER_PUT, EXPIRED): row, key row deleted, entry recording_discarded."""

    def empty(self, recording_id: UUID) -> None:
        """There was a header and not one frame of audio: row and entry recording_empty."""

    def lost(self, recording_id: UUID) -> None:
        """There is no file: row and entry recording_lost."""

    def state_of(self, recording_id: UUID) -> str | None:
        """authorised, recording or finished; stored, discarded, empty or lost; None where there is no row."""

    def reclaim(self, recording_id: UUID) -> bool | None:
        """Take back what another node has stored incomplete. False: it has not; None: it can't be had now."""


class Segments(Protocol):
    """What makes a recording of what was put of it while it ran (recording/recovery.py)."""

    def assemble(self, finished: Finished) -> Note | None:
        """The note of its sealed form, which is in the spool then; None where there is nothing to make it of."""


class Shipper:
    """Ships the recordings of one node. One process a node: what it has in hand is known to it alone."""

    def __init__(
        self,
        records: Records,
        spool: Spool,
        objects: S3Objects,
        public_key: bytes,
        node: str,
        *,
        segments: Segments | None = None,
        lease_seconds: float = 60.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`lease_seconds` is how long a recording waits for a restart; an upload may take longer than that."""
        self._records = records
        self._spool = spool
        self._objects = objects
        self._public_key = public_key
        self._node = node
        self._segments = segments
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._in_hand: set[UUID] = set()

    def run(self, stop: Event, workers: int = 2) -> None:
        """Ship until `stop` is set, then give what is in hand some seconds to end. All of it may be repeated."""
        greenlets = [gevent.spawn(self._work, stop, self.ship_next, _IDLE_SECONDS) for _ in range(workers)]
        greenlets.append(gevent.spawn(self._work, stop, self.tidy, _TIDY_SECONDS))
        stop.wait()
        gevent.joinall(greenlets, timeout=_DRAIN_SECONDS)
        gevent.killall(greenlets, timeout=_DRAIN_SECONDS)

    def ship_next(self) -> bool:
        """Take one recording as far as it goes; False when none is due. StoreError if the claim itself fails."""
        finished = self._records.claim(self._node, self._lease_seconds)
        if finished is None:
            return False
        if finished.recording_id in self._in_hand:
            return True  # the upload outlasted its lease, and has now got another one
        self._in_hand.add(finished.recording_id)
        try:
            self._ship(finished)
        except Exception as error:  # noqa: BLE001 # whatever is wrong with one recording, the others go on
            self._put_off(finished, error)
        finally:
            self._in_hand.discard(finished.recording_id)
        return True

    def tidy(self) -> bool:
        """Remove files whose recording is settled, see withdrawals through that came too late, count the rest."""
        orphans = len(self._spool.strangers())
        for recording_id in (self._spool.leftovers() | self._spool.withdrawals()) - self._in_hand:
            state = self._records.state_of(recording_id)
            if state is None:
                orphans += 1
            elif state not in _UNDER_WAY and recording_id not in self._in_hand:
                withdrawn = self._spool.withdrawn(recording_id)
                if state == "stored" and not withdrawn and (back := self._records.reclaim(recording_id)) is not False:
                    orphans += back is None
                    continue
                if withdrawn:
                    self._records.discarded(recording_id, WITHDRAWN_AFTER_PUT)
                self._spool.remove(recording_id)
                self._spool.clear_withdrawn(recording_id)
        if orphans:
            _log.warning("spool_orphans", files=orphans)
        metrics.SPOOL_ORPHANS.set(orphans)
        return False

    # One recording

    def _ship(self, finished: Finished) -> None:
        recording_id, began = finished.recording_id, time.monotonic()
        tried = finished.attempts > 1  # this one is counted
        if self._gone(finished, after_put=tried):
            return
        note, version_id = self._earlier(finished)
        if note is None:
            note = self._seal(finished)
            if note is None or self._gone(finished, after_put=tried):
                return
        key_row = note.sealed_key if note.segments else self._records.sealed(recording_id, note.sealed_key, note.key_id)
        if key_row != note.sealed_key:
            raise StoreError(
                "The key row of a recording belongs to another encryption", hint="Is another ship running?"
            )
        key = object_key(finished)
        lock, until = finished.lock, finished.retain_until
        if version_id is None:
            version_id = self._objects.put_locked(
                key,
                self._spool.sealed_path(recording_id),
                sha256=note.ciphertext_sha256,
                mode=lock,
                until=until,
                metadata={"recording": str(recording_id)},
            ).version_id
            metrics.UPLOAD_BYTES.inc(note.ciphertext_bytes)
        else:
            self._objects.lock(key, version_id, lock, until)
        self._objects.verify(
            key, version_id, sha256=note.ciphertext_sha256, size=note.ciphertext_bytes, mode=lock, until=until
        )
        self._spool.remove_plain(recording_id)
        if self._gone(finished, after_put=True):
            return
        stored = StoredRecording(
            bucket=self._objects.bucket,
            object_key=key,
            version_id=version_id,
            lock_mode=lock,
            retain_until=until,
            plaintext_sha256=note.plaintext_sha256,
            ciphertext_sha256=note.ciphertext_sha256,
            ciphertext_bytes=note.ciphertext_bytes,
            duration_seconds=note.duration_seconds,
            segments=note.segments,
        )
        self._records.stored(recording_id, stored)
        self._spool.remove(recording_id)
        seconds = time.monotonic() - began
        metrics.UPLOADS.labels("incomplete" if note.segments else "stored").inc()
        metrics.UPLOAD_SECONDS.observe(seconds)
        metrics.RECORDING_SECONDS.observe(note.duration_seconds)
        _log.info("recording_stored", recording=recording_id, seconds=round(seconds, 3), bytes=note.ciphertext_bytes)
        if self._spool.withdrawn(recording_id):
            self._gone(finished, after_put=True)

    def _gone(self, finished: Finished, *, after_put: bool) -> bool:
        """See a withdrawal or an expiry through, if there is one."""
        if self._spool.withdrawn(finished.recording_id):
            reason = WITHDRAWN_AFTER_PUT if after_put else WITHDRAWN
        elif finished.retain_until <= self._clock():
            reason = EXPIRED
        else:
            return False
        self._records.discarded(finished.recording_id, reason)
        self._spool.remove(finished.recording_id)
        self._spool.clear_withdrawn(finished.recording_id)
        metrics.UPLOADS.labels("discarded").inc()
        _log.info("recording_discarded", recording=finished.recording_id, reason=reason)
        return True

    def _earlier(self, finished: Finished) -> tuple[Note | None, str | None]:
        """The sealed form that an earlier attempt left, if it is whole, and the object that it put, if it did."""
        written = self._spool.sealed_note(finished.recording_id)
        if written is None:
            return None, None
        try:
            note = Note.from_bytes(written)
        except EnvelopeError:
            note = None
        if note and finished.attempts > 1:
            version_id = self._objects.find(object_key(finished), note.ciphertext_sha256)
            if version_id:
                return note, version_id
        if note and self._in_thread(self._hash_of, finished.recording_id) == note.ciphertext_sha256:
            return note, None
        _log.warning("sealed_form_dropped", recording=finished.recording_id)
        self._spool.drop_sealed(finished.recording_id)
        return None, None

    def _seal(self, finished: Finished) -> Note | None:
        """Make the sealed form; None when there is nothing to seal, which is then noted."""
        audio = self._spool.open_plain(finished.recording_id)
        if audio is None:
            # The mark of a withdrawal is there before the file is gone.
            if self._gone(finished, after_put=finished.attempts > 1):
                return None
            if finished.samples == 0:  # FreeSWITCH itself removes a file without one frame
                self._nothing_said(finished)
            elif self._segments and (note := self._segments.assemble(finished)):
                return note
            else:
                self._records.lost(finished.recording_id)
                metrics.UPLOADS.labels("lost").inc()
                _log.error("recording_lost", recording=finished.recording_id)
            return None
        with audio:
            header, length, seconds = _measured(audio)
            if length:
                if not header:
                    _log.error("recording_without_header", recording=finished.recording_id)
                return self._in_thread(self._seal_file, finished.recording_id, audio, header, length, seconds)
        self._nothing_said(finished)
        return None

    def _nothing_said(self, finished: Finished) -> None:
        self._records.empty(finished.recording_id)
        self._spool.remove(finished.recording_id)
        metrics.UPLOADS.labels("empty").inc()
        _log.warning("recording_empty", recording=finished.recording_id)

    def _seal_file(self, recording_id: UUID, audio: BinaryIO, header: bytes, length: int, seconds: float) -> Note:
        made: list[Note] = []

        def write(sink: BinaryIO) -> bytes:
            key = envelope.new_key()
            sealed = envelope.encrypt(_repaired(header, audio, length), sink, key, recording_id)
            note = Note(
                sealed_key=envelope.seal(key, self._public_key),
                key_id=envelope.key_id(self._public_key),
                plaintext_sha256=sealed.plaintext_sha256,
                ciphertext_sha256=sealed.ciphertext_sha256,
                ciphertext_bytes=sealed.ciphertext_bytes,
                duration_seconds=seconds,
            )
            made.append(note)
            return note.as_bytes()

        self._spool.store_sealed(recording_id, write)
        return made[0]

    def _hash_of(self, recording_id: UUID) -> bytes:
        found = sha256()
        for block in self._spool.read_sealed(recording_id):
            found.update(block)
        return found.digest()

    # The work around it

    def _put_off(self, finished: Finished, error: Exception) -> None:
        if not isinstance(error, CallrecError):
            _log.error("recording_not_stored", recording=finished.recording_id, exc_info=True)
            error = CallrecError("The upload failed in a way that callrec does not know", detail=type(error).__name__)
        retry_in = _pause(finished.attempts - 1)
        metrics.UPLOADS.labels("failed").inc()
        metrics.RETRIES.labels("upload").inc()
        _log.warning("upload_put_off", recording=finished.recording_id, why=str(error), retry_in=round(retry_in, 3))
        try:
            self._records.failed(finished.recording_id, str(error), retry_in)
        except StoreError as store_error:  # then the lease ends by itself
            _log.warning("upload_failure_not_noted", recording=finished.recording_id, why=str(store_error))

    def _work(self, stop: Event, step: Callable[[], bool], idle_seconds: float) -> None:
        """Take steps until `stop` is set; rest when there is nothing to do, and longer while steps fail."""
        failures = 0
        while not stop.is_set():
            try:
                busy, failures = step(), 0
            except Exception as error:  # noqa: BLE001 # a worker that ends would leave recordings where they are
                metrics.RETRIES.labels("upload").inc()
                known = isinstance(error, CallrecError)
                _log.error("shipper_step_failed", exc_info=not known, why=str(error) if known else "")
                busy, failures = False, failures + 1
            if not busy:
                stop.wait(_pause(failures) if failures else idle_seconds * random.uniform(0.5, 1.5))  # noqa: S311 # jitter

    @staticmethod
    def _in_thread(work: Callable[..., _T], *args: object) -> _T:
        """Files and hashes hold the hub; the threadpool does them beside it."""

        def kept() -> tuple[_T | None, BaseException | None]:
            try:
                return work(*args), None
            except BaseException as error:  # noqa: BLE001 # raised below; gevent would print it as it is
                return None, error

        result, error = gevent.get_hub().threadpool.apply(kept)
        if error is not None:
            raise error
        return cast(_T, result)


def object_key(finished: Finished) -> str:
    return object_name(finished.prefix, finished.started_at, finished.recording_id)


def _measured(audio: BinaryIO) -> tuple[bytes, int, float]:
    """(repaired header, bytes of audio behind it, seconds); leaves the file at the first byte of audio.

    What has no header that can be read is kept as it is, all of it, with no header and no known length.
    """
    size = audio.seek(0, os.SEEK_END)
    audio.seek(0)
    head = audio.read(wav.HEAD_BYTES)
    try:
        parsed = wav.parse(head)
    except WavError:
        audio.seek(0)
        return b"", size if size > _HEADER_BYTES else 0, 0.0
    audio.seek(parsed.data_offset)
    return wav.repaired_header(head, size), wav.audio_bytes(parsed, size), wav.duration_seconds(parsed, size)


def _repaired(header: bytes, audio: BinaryIO, length: int) -> Iterator[bytes]:
    yield header
    while length > 0 and (block := audio.read(min(_BLOCK, length))):
        length -= len(block)
        yield block


def _pause(attempts: int) -> float:
    """Full jitter, so that a store that comes back is not met by all nodes at once."""
    return random.uniform(0, min(_CAP_SECONDS, _BASE_SECONDS * 2 ** min(attempts, 10)))  # noqa: S311 # no secret
