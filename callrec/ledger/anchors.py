"""Puts signed checkpoints where no administrator of the database reaches them, and reads the last one back.

An anchor is a checkpoint's note in a bucket of its own under COMPLIANCE, which the bucket's default gives to whatever
arrives there: who puts them needs no right to set, lengthen or end a lock. It counts when its bytes and its lock were
read back. What the sequencer is held to is read from the object store, never from the database, which only says where
to begin to look. Of several versions of one key the oldest counts: it is locked, later ones prove nothing.

While the object store is away the ledger goes on being signed, on what is known. Any number may anchor at once: they
put the same note twice.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from callrec import metrics
from callrec.call.policy import LockMode
from callrec.errors import LedgerError, StorageError
from callrec.ledger import tree
from callrec.ledger.archive import leaves_key, leaves_since
from callrec.ledger.checkpoint import PREFIX, Lineage, Signed, is_checkpoint, object_key
from callrec.ledger.note import MAX_BYTES
from callrec.log import Log
from callrec.recording.objects import S3Objects, Version
from callrec.recording.transport import refused
from callrec.store.reading import LedgerReading

log = Log(__name__)

_YEAR = timedelta(days=365)
_SLACK = timedelta(days=1)  # by which a server's years may be shorter


class Anchors:
    """The anchors in the bucket of `objects`, whose default is COMPLIANCE for `years`.

    `stamp` asks a time-stamp authority (RFC 3161) about a note, and gives what is kept beside it.
    """

    def __init__(
        self,
        records: LedgerReading,
        objects: S3Objects,
        lineage: Lineage,
        years: int,
        *,
        stamp: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._records = records
        self._objects = objects
        self._lineage = lineage
        self._years = years
        self._stamp = stamp
        self._unstamped: Signed | None = None
        self._last: Signed | None = None
        self._kept: Signed | None = None  # the last whose lock was seen, and that the database knows of
        self._fault: LedgerError | None = None
        self.looked = False

    def trusted(self) -> Signed | None:
        """The last anchor, as the object store showed it when it was last asked; None if there was none.

        LedgerError when what it showed can't be believed.
        """
        if self._fault:
            raise self._fault
        return self._last

    def anchor(self) -> bool:
        """Look, and put the newest checkpoint if it is not there; a chore of `sweep`.

        StorageError and StoreError are for another time. What contradicts itself is counted, logged, and not anchored.
        """
        try:
            self.look()
            last = self._records.last_checkpoint()
            newest = self._lineage.open(last) if last else None
            if newest and (self._last is None or newest[:2] > self._last[:2]):
                self._follows(newest)
                self.put(newest)
        except LedgerError as error:
            metrics.LEDGER_REFUSED.inc()
            log.error("ledger_not_anchored", why=str(error))
        self._time_stamp()
        return False

    def look(self) -> None:
        """Ask the object store for the last anchor. LedgerError when it can't be believed, or one is gone."""
        try:
            found = self._newest()
            signed = self._read(found) if found else None
            self._still_there(signed)
        except LedgerError as error:
            self._fault, self.looked = error, True
            raise
        except StorageError:
            self.looked = True
            raise
        self._last, self._fault, self.looked = signed, None, True
        if found and signed and signed != self._kept:
            self._keep(found, signed)

    def _still_there(self, signed: Signed | None) -> None:
        if self._last and (signed is None or signed[:2] < self._last[:2]):
            raise LedgerError("An anchor is gone from the object store", detail=f"the one of {self._last.size}")

    def put(self, signed: Signed) -> None:
        """Put a checkpoint, and read it back. StorageError when it is not there as it should be.

        Before it go the leaves that came since the last one: they make exact which entry was rewritten.
        """
        known = self._last.size if self._last and self._last.generation == signed.generation else 0
        leaves = leaves_since(known, signed.size, self._records.leaves)
        self._put(leaves_key(signed.generation, signed.size), leaves)
        self._put(object_key(signed.generation, signed.size), signed.note)
        self.look()
        self._unstamped = self._last

    def _follows(self, newest: Signed) -> None:
        """Something is signed unseen while the object store is away: here at the latest it must fit."""
        last = self._last
        if last and last.generation == newest.generation:
            proof = tree.consistency_proof(last.size, newest.size, self._records.read)
            tree.verify_consistency(last.size, newest.size, proof, last.root, newest.root)

    def _newest(self) -> Version | None:
        """The oldest version of the last key. It is looked for from the last one that is known onwards."""
        bucket = self._objects.bucket
        known = object_key(*self._last[:2]) if self._last else self._records.last_anchor(bucket)
        found = (self._last_from(known) if known else None) or self._last_from("")
        if known and not found:
            raise LedgerError("The anchors are gone from the object store", detail=f"{bucket} has none")
        return found

    def _last_from(self, key: str) -> Version | None:
        """None also when `key` is not there: a database may say what it likes."""
        before = key[:-1] + chr(ord(key[-1]) - 1) + "~" if key else ""  # the listing begins behind it
        last: Version | None = None
        for version in self._objects.versions_after(PREFIX, before):
            if version.is_delete_marker or not is_checkpoint(version.key):
                continue
            if last is None and key and version.key != key:
                return None
            last = version
        return last

    def _read(self, found: Version) -> Signed:
        if found.size > MAX_BYTES:
            raise LedgerError("This is not a signed note that can be read", detail=f"{found.key} is too long")
        signed = self._lineage.open(b"".join(self._objects.read(found.key, found.version_id)))
        if object_key(signed.generation, signed.size) != found.key:
            raise LedgerError("An anchor does not lie where it belongs", detail=found.key)
        return signed

    def _keep(self, found: Version, signed: Signed) -> None:
        mode, until = self._objects.lock_of(found.key, found.version_id)
        begun = found.last_modified or datetime.now(UTC)
        if mode != LockMode.COMPLIANCE or until is None or until < begun + self._years * _YEAR - _SLACK:
            raise StorageError(
                "The object store does not keep checkpoints as it should",
                detail=f"{found.key} is locked {mode or 'not at all'} until {until}",
                hint="callrec storage check",
            )
        hashed = sha256(signed.note).digest()
        self._records.keep_anchor(signed.size, self._objects.bucket, found.key, found.version_id, hashed)
        self._kept = signed
        metrics.LEDGER_ANCHOR_SIZE.set(signed.size)
        metrics.LEDGER_ANCHORED.set(begun.timestamp())

    def _time_stamp(self) -> None:
        if self._stamp and self._unstamped:
            signed = self._unstamped
            self._put(f"{object_key(signed.generation, signed.size)}.tsr", self._stamp(signed.note))
            self._unstamped = None

    def _put(self, key: str, body: bytes) -> None:
        answer = self._objects.exchange.ask("PUT", key, body=body)
        if not answer.accepted:
            raise refused("put a checkpoint", answer.code, answer.status)
