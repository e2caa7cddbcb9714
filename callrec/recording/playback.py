"""Listening to a recording: for a stated purpose, by a named person, and noted before the first sample is given."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from callrec.errors import AccessDeniedError, CallrecError, EnvelopeError
from callrec.recording import envelope, segments


class Objects(Protocol):
    def read(self, key: str, version_id: str) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Listening:
    """Who wants to hear what, and what for (B9)."""

    recording_id: UUID
    purpose: str
    account: str  # of the person who listens; an id, never a name: the ledger can't forget it


class Player:
    """Opens recordings. `run` is a statement of store/db.py by its name; it gives rows."""

    def __init__(
        self,
        run: Callable[[str, Mapping[str, Any]], list[dict[str, Any]]],
        objects: Objects,
        private_key: bytes,
        *,
        node: str,
        denied: Collection[str],
        rights: Collection[str],
    ) -> None:
        self._run = run
        self._objects = objects
        self._private_key = private_key
        self._node = node
        self._denied = denied
        self._rights = rights

    def open(self, listening: Listening) -> Iterator[bytes]:
        """The plain WAV file in pieces. The first piece comes only when the listening is in the ledger.

        AccessDeniedError, noted too, for a purpose that this recording may not serve (B4-B6, B9, B10). EnvelopeError
        when what is stored is not what was recorded: the pieces given until then may not be used.
        """
        row = self.find(listening.recording_id)
        if not self.serves(listening.purpose, row["purposes"]):
            self._note("access_denied", listening, row)
            raise self.denial(listening.purpose, row)
        if barred := self.barred(row, listening.purpose):
            self._note("access_denied", listening, row)
            raise AccessDeniedError("This recording may not be heard", detail=barred)
        if missing := self.missing(row):
            raise CallrecError("This recording can't be heard", detail=missing)
        self._note("access_granted", listening, row)
        return self.pieces(row)

    def serves(self, purpose: str, purposes: Collection[str]) -> bool:
        """Whether a purpose may be served, by what has these purposes of its own."""
        return purpose not in self._denied and (purpose in purposes or purpose in self._rights)

    def denial(self, purpose: str, about: Mapping[str, Any]) -> AccessDeniedError:
        """What to say of a purpose that is not served. `about` has the basis and its purposes."""
        allowed = ", ".join(sorted({*(about["purposes"] or ()), *self._rights} - set(self._denied)))
        return AccessDeniedError(
            f"This recording may not be heard for the purpose {purpose!r}",
            detail=f"Its basis is {about['basis']}",
            hint=f"Purposes that it may serve: {allowed}",
        )

    def barred(self, row: Mapping[str, Any], purpose: str) -> str:
        """Why nobody may hear it now, even for a purpose that it serves; empty where it may be heard."""
        if row["withdrawn"]:
            return "It is being erased, or its consent was withdrawn"
        return "It is held (E11)" if row["held"] and purpose not in self._rights else ""

    @staticmethod
    def missing(row: Mapping[str, Any]) -> str:
        """Why it can't be opened; empty where it can."""
        if row["state"] != "stored":
            return f"It is {row['state']}"
        return "Its key is gone" if row["sealed"] is None else ""

    def find(self, recording_id: UUID) -> dict[str, Any]:
        """What is known of a recording."""
        rows = self._run("sealed_recording", {"recording_id": recording_id})
        if not rows:
            raise CallrecError("There is no such recording", hint="`callrec recordings` lists them")
        return rows[0]

    def pieces(self, row: Mapping[str, Any]) -> Iterator[bytes]:
        """The plain file. Whoever calls this has noted it."""
        there, recording_id = self._objects.read(row["object_key"], row["version_id"]), row["recording_id"]
        if row["incomplete"]:
            keys = [envelope.unseal(bytes(key), self._private_key) for key in row["segment_keys"]]
            pieces = segments.decrypt(there, keys, recording_id)
        else:
            pieces = envelope.decrypt(there, envelope.unseal(bytes(row["sealed"]), self._private_key), recording_id)
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
            yield piece
        if digest.digest() != bytes(row["plaintext_sha256"]):
            raise EnvelopeError("What is stored is not what was recorded", detail="SHA-256 differs from the ledger's")

    def _note(self, kind: str, listening: Listening, row: Mapping[str, Any]) -> None:
        body = {"purpose": listening.purpose, "account": listening.account}
        about = {
            "call_id": row["call_id"],
            "recording_id": listening.recording_id,
            "kind": kind,
            "body": json.dumps(body),
            "node": self._node,
        }
        self._run("entry", about)
