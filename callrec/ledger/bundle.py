"""Makes evidence bundles: one call, with all that proves it, in a file that ledger/verify.py verifies offline.

The order matters. That evidence is asked for is in the ledger before a byte is written. The parts come first, then the
manifest over them; its hash goes into the ledger (`evidence_exported`), and what the ledger has signed after that goes
in last. So the ledger answers for every part, those that the operator alone says included.

What would name an employee is left out: such an entry comes without its body, and access.json says the rest of it.
"""

import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO
from unicodedata import normalize
from uuid import uuid4

from callrec.call.policy import Notice
from callrec.errors import LedgerError, UnknownError
from callrec.ledger import verify
from callrec.ledger.entry import Entry, canonical_body
from callrec.ledger.leaflet import TEXT
from callrec.ledger.receipt import Controller, receipt, told, vcon
from callrec.ledger.tree import inclusion_proof
from callrec.ledger.verify import Checkpoint, Fact, Part, Verifier
from callrec.recording.playback import Player
from callrec.store.db import Row
from callrec.store.evidence import Case, EvidenceRecords
from callrec.store.tree import TreeRecords

_PATIENCE = 10.0  # seconds for the sequencer, which takes about one
_LOOK = 0.1
_NAMES = frozenset({"account", "owner", "case"})  # members of a body that lead to a person
_LARGEST_NOTICE = 64 << 20  # bytes, as sound.py has it


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks for evidence of which call, and what for (B9)."""

    call: str  # any id of it
    purpose: str
    account: str  # an id, never a name: the ledger can't forget it


class Container:
    """The zip as ledger/verify.py wants it, written part by part. `out` can seek."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.parts: list[Part] = []

    def add(self, name: str, data: Iterable[bytes]) -> None:
        at, crc, size, digest = self._out.tell(), 0, 0, sha256()
        self._out.write(verify.local_header(name, 0, 0))
        for piece in data:
            self._out.write(piece)
            crc, size = zlib.crc32(piece, crc), size + len(piece)
            digest.update(piece)
            if at + size > verify.MAX_CONTAINER:
                raise LedgerError("The recording is too long for a bundle", detail="It would have more than 4 GiB")
        self._out.seek(at)
        self._out.write(verify.local_header(name, crc, size))
        self._out.seek(0, 2)
        self.parts.append(Part(name, at, size, crc, digest.hexdigest()))

    def close(self) -> None:
        self._out.write(verify.directory(self.parts))


class Exporter:
    """As `api`. `verifiers`: the ledger's public keys, the latest last."""

    def __init__(
        self,
        records: EvidenceRecords,
        tree: TreeRecords,
        player: Player,
        controller: Controller,
        *,
        notices: Mapping[str, Notice],
        lines: Mapping[str, str],
        verifiers: Sequence[Verifier],
        patience: float = _PATIENCE,
    ) -> None:
        """`lines`: the numbers of lines, E.164, by the configuration's name for each."""
        self._records, self._tree, self._player = records, tree, player
        self._controller, self._notices, self._lines = controller, notices, lines
        self._verifiers, self._patience = verifiers, patience

    def export(
        self, request: Request, out: BinaryIO, opening: Callable[[Case], Mapping[str, str]] | None = None
    ) -> None:
        """Write the bundle and verify it. `opening` gives number, salt and commitment of the caller.

        AccessDeniedError, noted, as for listening. UnknownError for no such call. LedgerError when the ledger does not
        sign in time, or when what it has does not verify.
        """
        case = self._records.case(request.call)
        if case is None:
            raise UnknownError("There is no such call", hint="`callrec calls` lists them")
        about = {"purpose": request.purpose, "account": request.account}
        if not self._player.serves(request.purpose, case.purposes):
            self._records.note(case, "access_denied", about)
            raise self._player.denial(request.purpose, {"basis": case.basis, "purposes": case.purposes})
        # What may fail comes before the entry that says it was done.
        opened = opening(case) if opening else None
        asked = self._records.note(case, "evidence_requested", about)
        rows = self._records.entries(case.call_id)
        container = Container(out)
        manifest = self._fill(container, case, request, rows, opened)
        body = {"manifest_sha256": sha256(manifest).hexdigest(), "purpose": request.purpose, "request": asked}
        exported = self._records.note(case, "evidence_exported", body)
        self._prove(container, case, [row["entry_id"] for row in rows], exported)
        container.close()
        out.seek(0)
        for _ in verify.claims(out, self._verifiers):
            pass

    def _fill(
        self, container: Container, case: Case, request: Request, rows: Sequence[Row], opened: Mapping[str, str] | None
    ) -> bytes:
        """Everything up to the manifest, which is given back."""
        facts, access = [], []
        container.add("README.txt", [TEXT.encode()])
        for row in rows:
            entry = Entry.of_row(row, row["body_sha256"])
            leaf, body = entry.canonical(), b"" if row["body"] is None else canonical_body(row["body"])
            if _NAMES & (row["body"] or {}).keys():
                said = {name: value for name, value in row["body"].items() if name not in _NAMES}
                access.append({"entry": entry.entry_id, "kind": entry.kind, "at": json.loads(leaf)["at"]} | said)
                body = b""
            facts.append(verify.fact_of(leaf, body))
            container.add(f"entries/{entry.entry_id}.leaf", [leaf])
            if body:
                container.add(f"entries/{entry.entry_id}.body", [body])
        facts.sort(key=lambda fact: (fact["ordinal"] or verify.MAX_SIZE, fact["entry"]))
        made_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        about = receipt(facts, self._controller, receipt_id=uuid4(), made_at=made_at)
        container.add("receipt.json", _json(about))
        container.add("access.json", _json(access))
        container.add("keys.txt", ["".join(f"{verifier}\n" for verifier in self._verifiers).encode()])
        number = (opened or {}).get("number", "")
        if opened:
            container.add("opening.json", _json(opened))
        if any(fact["kind"] == "basis_established" for fact in facts):
            line = self._lines.get(told(facts, "call_arrived").get("line", ""), "")
            parties = {"line": line, "number": number}
            container.add(
                "vcon.json", _json(vcon(facts, self._controller, vcon_id=uuid4(), made_at=made_at, **parties))
            )
        absent = {name: why for name, why in self._sounds(container, case, request, facts) if why}
        manifest = {
            "callrec_evidence": 1,
            "call": str(case.call_id),
            "recording": str(case.recording_id) if case.recording_id else None,
            "made_at": made_at,
            "purpose": request.purpose,
            "absent": absent,
            "parts": {part.name: part.sha256 for part in container.parts},
        }
        written = b"".join(_json(manifest))
        container.add("manifest.json", [written])
        return written

    def _sounds(
        self, container: Container, case: Case, request: Request, facts: Sequence[Fact]
    ) -> Iterator[tuple[str, str]]:
        """Add the recording and the notice; of each its name, and why it is not there."""
        why = "The call was not recorded"
        if case.recording_id is not None:
            row = self._player.find(case.recording_id)
            why = _why(facts) or self._player.barred(row, request.purpose) or self._player.missing(row)
            if not why:
                container.add("audio.wav", self._player.pieces(row))
        yield "audio.wav", why
        heard = told(facts, "notice_completed")
        notice = self._notices.get(told(facts, "call_arrived").get("notice", ""))
        text = normalize("NFC", notice.prompt.text).encode() if notice else b""
        sound = _read(notice.prompt.file) if notice else b""
        for name, data, wanted in (
            ("notice.txt", text, heard.get("text_sha256")), ("notice.wav", sound, heard.get("audio_sha256"))
        ):  # fmt: skip
            same = data and sha256(data).hexdigest() == wanted
            if same:
                container.add(name, [data])
            yield name, "" if same else "It was not heard whole" if not heard else "The operator has another one now"

    def _prove(self, container: Container, case: Case, entries: Sequence[int], exported: int) -> None:
        """What the ledger has signed, and where the entries stand in it."""
        written = next(row for row in self._records.entries(case.call_id) if row["entry_id"] == exported)
        container.add("export.leaf", [Entry.of_row(written).canonical()])
        container.add("export.body", [canonical_body(written["body"])])
        note, checkpoint, places = self._signed([*entries, exported])
        for entry, index in places.items():
            proof = inclusion_proof(index, checkpoint.size, self._tree.read)
            name = "export.proof" if entry == exported else f"entries/{entry}.proof"
            container.add(name, [index.to_bytes(8) + b"".join(proof)])
        container.add("checkpoint.txt", [note])

    def _signed(self, entries: Sequence[int]) -> tuple[bytes, Checkpoint, dict[int, int]]:
        """The last checkpoint, with one signature, and the places under it of these entries, when it has them all."""
        deadline = time.monotonic() + self._patience
        while True:
            places, note = self._records.places(entries), self._tree.last_checkpoint()
            if note is not None and len(places) == len(entries):
                text, signed = verify.open_note(note, self._verifiers)
                checkpoint = Checkpoint.parse(text)
                if checkpoint.size > max(places.values()):
                    return _signed_once(note, text, signed), checkpoint, places
            if time.monotonic() > deadline:
                why = f"It did not sign the entries of this call within {self._patience:g} s"
                raise LedgerError("The ledger is not ready", detail=why, hint="Is `callrec sweep` running?")
            time.sleep(_LOOK)


def _signed_once(note: bytes, text: str, signed: Sequence[Verifier]) -> bytes:
    """The note with its last known signature alone: one that a verifier does not know could be changed unseen."""
    for line in reversed(note.decode().splitlines(keepends=True)):
        one = f"{text}\n{line}".encode()
        if any(line.startswith(f"— {verifier.name} ") for verifier in signed):
            try:
                verify.open_note(one, signed)
            except LedgerError:
                continue
            return one
    raise AssertionError(note)  # open_note found one


def _why(facts: Sequence[Fact]) -> str:
    """What the entries themselves say of a recording that is gone."""
    kinds = {fact["kind"] for fact in facts}
    if "recording_erased" in kinds:
        return "It was erased"
    return "It was discarded" if "recording_discarded" in kinds else ""


def _read(file: str) -> bytes:
    """A prompt's file; nothing where it can't be read."""
    try:
        path = Path(file)
        return path.read_bytes() if path.is_file() and path.stat().st_size <= _LARGEST_NOTICE else b""
    except OSError:
        return b""


def _json(what: Any) -> list[bytes]:
    return [json.dumps(what, ensure_ascii=False, indent=1).encode() + b"\n"]
