"""One finished recording after the other, from the spool to a verified object under lock.

    claim -> seal -> store the sealed key -> put -> verify, read back -> remove the plain file -> stored -> remove rest

A crash may come between any two of these, and the next claim goes on from what is there:

- The sealed form is made once, with its note (sealed key, hashes) beside it, and used by every later attempt. A note
  without ciphertext, or a ciphertext that is not the noted one, is dropped and made again under a new key. The key row
  is set to the note's key before anything is put, so the row always opens what is put next; an object of an earlier
  encryption, if there is one, is a version that no key opens any more and that erasure finds by its key.
- From the second attempt on, an object with the noted hash is looked for, and verified instead of put again. All of it
  is read then: what failed to be read back has that hash by name as well, and a sample need not meet its fault again.
  One that can't be read now may be right, so that is tried again, and nothing is put beside it.
  Such a version stays where the lock keeps it, behind the one that is put next; the audit tells it as object_extra, and
  the erasure takes all versions of the key.
- A plain file that is not the one that was recorded (recording/plain.py, Spool.open_plain) is set apart, and what was
  put of the recording while it ran is all there is of it. Where nothing was, it waits for a person, or its erasure.
- The plain file goes once the object is verified, before the row says so: no moment leaves audio in the clear behind.
- A withdrawal is looked for before each step that would make it harder. This role can't delete objects; it says
  "withdrawn_after_put", and the eraser looks for every version of the object's key.

What fails is tried again for ever, with full jitter between 0 and 1, 2, 4 … 60 s.
"""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import BinaryIO, Protocol
from uuid import UUID

import gevent
from gevent.event import Event

from callrec import metrics
from callrec.errors import CallrecError, EnvelopeError, OtherFileError, SpoolError, StoreError
from callrec.log import Log
from callrec.recording import envelope, leftovers
from callrec.recording.facts import Finished, StoredRecording, Streamed, object_name
from callrec.recording.note import Note
from callrec.recording.objects import S3Objects
from callrec.recording.plain import Plain
from callrec.recording.read_back import read_back
from callrec.recording.spool import Spool
from callrec.recording.threads import in_thread

WITHDRAWN = "withdrawn"  # nothing was put
EXPIRED = "expired"  # its retention ended before it could be stored; there may be versions, too

_BASE_SECONDS, _CAP_SECONDS = 1.0, 60.0
_IDLE_SECONDS = 0.5
_TIDY_SECONDS = 60.0
_DRAIN_SECONDS = 10.0
_log = Log(__name__)


class Records(leftovers.Records, Protocol):
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

    def empty(self, recording_id: UUID) -> None:
        """There was a header and not one frame of audio: row and entry recording_empty."""

    def lost(self, recording_id: UUID) -> None:
        """There is no file, or nothing in it of what was recorded: row and entry recording_lost."""


class Segments(leftovers.Segments, Protocol):
    """What was put of a recording while it ran (recording/recovery.py)."""

    def streamed(self, recording_id: UUID) -> Streamed | None:
        """What its file must begin with; None where nothing of it was put."""

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
        read_all_back: bool = False,
        lease_seconds: float = 60.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`lease_seconds` is how long a recording waits for a restart; an upload may take longer than that.

        `read_all_back`: of what was put, instead of a sample.
        """
        self._records = records
        self._spool = spool
        self._objects = objects
        self._public_key = public_key
        self._node = node
        self._segments = segments
        self._read_all_back = read_all_back
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
        """What is in the spool of recordings that are settled: see recording/leftovers.py."""
        leftovers.tidy(self._records, self._spool, self._segments, self._in_hand)
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
        found = version_id is not None
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
        compared = self._objects.verify(
            key, version_id, sha256=note.ciphertext_sha256, size=note.ciphertext_bytes, mode=lock, until=until
        )
        if not (found or compared):
            sealed = self._spool.sealed_path(recording_id)
            read_back(self._objects, key, version_id, sealed, note.ciphertext_sha256, full=self._read_all_back)
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
            reason = leftovers.WITHDRAWN_AFTER_PUT if after_put else WITHDRAWN
        elif finished.expired and finished.retain_until <= self._clock():  # one clock that is wrong discards nothing
            reason = EXPIRED
        else:
            return False
        self._records.discarded(finished.recording_id, reason)
        self._spool.purge(finished.recording_id)
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
            version_id = self._objects.find(object_key(finished), note.ciphertext_sha256, whole=True)
            if version_id:
                return note, version_id
        if note and in_thread(self._hash_of, finished.recording_id) == note.ciphertext_sha256:
            return note, None
        _log.warning("sealed_form_dropped", recording=finished.recording_id)
        self._spool.drop_sealed(finished.recording_id)
        return None, None

    def _seal(self, finished: Finished) -> Note | None:
        """Make the sealed form; None when there is nothing to seal, which is then noted."""
        recording_id = finished.recording_id
        try:
            audio = self._spool.open_plain(recording_id)
            if audio is None:
                return self._without_file(finished)
            with audio:
                plain = Plain(audio, self._segments.streamed(recording_id) if self._segments else None)
                if plain.names > 1:  # its bytes are what they are; but nothing of ours ever removes the other name
                    _log.error("recording_has_second_name", recording=recording_id)
                if plain.length:
                    if not plain.header:
                        _log.error("recording_without_header", recording=recording_id)
                    return in_thread(self._seal_file, recording_id, plain)
        except OtherFileError as error:
            leftovers.set_apart(self._spool, recording_id, str(error))
            return self._without_file(finished)
        if finished.samples:  # FreeSWITCH counted what the disk did not take
            self._spool.remove_plain(recording_id)
            return self._without_file(finished)
        self._nothing_said(finished)
        return None

    def _without_file(self, finished: Finished) -> Note | None:
        """What there is of a recording without its file; SpoolError while a person has to decide about that."""
        # The mark of a withdrawal is there before the file is gone.
        if self._gone(finished, after_put=finished.attempts > 1):
            return None
        if finished.samples == 0:  # FreeSWITCH itself removes a file without one frame
            self._nothing_said(finished)
        elif self._segments and (note := self._segments.assemble(finished)):
            return note
        elif any(path.is_file() and not path.is_symlink() for path in self._spool.set_apart(finished.recording_id)):
            # Called lost it would have no key, no caller and no erasure any more, and still a voice in the clear.
            raise SpoolError(
                "All that there is of a recording is in quarantine", hint="Look at its file, then erase it"
            )
        elif self._objects.versions(object_key(finished)):  # called lost it would have no key any more
            raise StoreError(
                "A recording has an object of which its row does not know",
                hint="Did Postgres fail over, or was it restored? Key and object are kept until its date",
            )
        else:
            self._records.lost(finished.recording_id)
            metrics.UPLOADS.labels("lost").inc()
            _log.error("recording_lost", recording=finished.recording_id)
        return None

    def _nothing_said(self, finished: Finished) -> None:
        self._records.empty(finished.recording_id)
        self._spool.remove(finished.recording_id)
        metrics.UPLOADS.labels("empty").inc()
        _log.warning("recording_empty", recording=finished.recording_id)

    def _seal_file(self, recording_id: UUID, plain: Plain) -> Note:
        made: list[Note] = []

        def write(sink: BinaryIO) -> bytes:
            key = envelope.new_key()
            sealed = envelope.encrypt(plain.pieces(), sink, key, recording_id)
            note = Note(
                sealed_key=envelope.seal(key, self._public_key),
                key_id=envelope.key_id(self._public_key),
                plaintext_sha256=sealed.plaintext_sha256,
                ciphertext_sha256=sealed.ciphertext_sha256,
                ciphertext_bytes=sealed.ciphertext_bytes,
                duration_seconds=plain.seconds,
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


def object_key(finished: Finished) -> str:
    return object_name(finished.prefix, finished.started_at, finished.recording_id)


def _pause(attempts: int) -> float:
    """Full jitter, so that a store that comes back is not met by all nodes at once."""
    return random.uniform(0, min(_CAP_SECONDS, _BASE_SECONDS * 2 ** min(attempts, 10)))  # noqa: S311 # no secret
