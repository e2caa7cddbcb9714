"""Verifies an evidence bundle of callrec offline: this file, Python 3.11 and PyNaCl are all that it takes.

    python3 verify.py case.zip --key NAME+ID+KEY        exit status: 0 it holds, 1 it does not, 2 wrong usage

KEY is the ledger's public key, from the operator or who keeps it for them; never from the bundle. What is said of the
call is read from entries alone (a .leaf, and the .body that it has the hash of) that by their .proof (8 bytes of index,
then the hashes of RFC 6962) stand under a checkpoint that this key has signed (c2sp.org/tlog-checkpoint). The entry
`export` has the SHA-256 of manifest.json, and that has the SHA-256 of everything else. Every byte of the zip is
compared with the one form in which callrec makes it. The halves of tree.py and note.py that verify are here, too.
"""

import argparse
import hmac
import json
import re
import struct
import sys
import zlib
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, BinaryIO, NamedTuple, Self

from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

try:
    from callrec.errors import LedgerError
except ImportError:  # this file is alone

    class LedgerError(Exception):  # type: ignore[no-redef] # the same for who only reads it
        def __init__(self, message: str, **more: str) -> None:
            super().__init__(". ".join((message, *more.values())))


HASH_BYTES, MAX_SIZE = 32, 2**63 - 1  # the last is what a bigint holds


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """That the leaf stands at `index` in the tree of this size and root; LedgerError if not. RFC 9162, 2.1.3.2."""
    if not 0 <= index < size <= MAX_SIZE or any(len(each) != HASH_BYTES for each in (leaf, *proof, root)):
        raise LedgerError("The tree has no such leaf, or a hash is none", detail=f"index {index}, size {size}")
    above = leaf
    for beside, on_the_left in zip(proof, sides(index, size - 1, len(proof)), strict=True):
        above = node_hash(beside, above) if on_the_left else node_hash(above, beside)
    if above != root:
        raise LedgerError("The entry is not in the tree", detail="its proof leads to another root")


def sides(place: int, last: int, length: int) -> list[bool]:
    """Of each hash of a proof, from the node at `place` up, whether it is on the left. The level ends at `last`."""
    found = []
    while last:
        if place & 1 or place < last:  # else it stands alone on the right border, and is its own parent
            found.append(bool(place & 1))
        place, last = place >> 1, last >> 1
    if len(found) != length:
        raise LedgerError("The proof has a wrong length", detail=f"{length} hashes instead of {len(found)}")
    return found


# Signed notes, as in ledger/note.py
MAX_BYTES, MAX_SIGNATURES = 256 * 1024, 100  # sixteen of the largest signatures that C2SP names are a third of this
ED25519, _ID_BYTES, _KEY_BYTES = b"\x01", 4, 32
CONTROL = re.compile("[\x00-\x09\x0b-\x1f]")
_SIGNATURE = re.compile("— ([^\\s+]+) ([A-Za-z0-9+/]+={0,2})\n")
_SIGNATURES = re.compile(f"(?:{_SIGNATURE.pattern}){{1,{MAX_SIGNATURES}}}")
_CHECKPOINT = re.compile("([^\n]+)\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n")


@dataclass(frozen=True, slots=True)
class Verifier:
    """A name, the 32 bytes of an Ed25519 public key, and the id that follows from both."""

    name: str
    public_key: bytes
    key_id: bytes = field(init=False)

    def __post_init__(self) -> None:
        named = self.name and self.name.isprintable() and not {" ", "+"} & {*self.name}
        if not named or len(self.public_key) != _KEY_BYTES:
            raise LedgerError("This is no key", hint="Name it ledger.example.com/calls or so; it has 32 bytes")
        about = self.name.encode() + b"\n" + ED25519 + self.public_key
        object.__setattr__(self, "key_id", sha256(about).digest()[:_ID_BYTES])

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{b64encode(ED25519 + self.public_key).decode()}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """A verifier from its text form; LedgerError if it is none."""
        found = cls(text.partition("+")[0], from_base64(text.split("+", 2)[-1])[1:])
        if str(found) != text:
            raise LedgerError("This is not a key", hint="One reads name+id+key, and the three belong together")
        return found

    def holds(self, text: str, signature: bytes) -> bool:
        try:
            return bool(VerifyKey(self.public_key).verify(text.encode(), signature))
        except (CryptoError, ValueError):  # ValueError: it has another length
            return False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The ledger called `origin` had `size` entries and this root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not self.origin or "\n" in self.origin or not 0 <= self.size <= MAX_SIZE or len(self.root) != HASH_BYTES:
            raise LedgerError("This can't be a checkpoint", detail=f"size {self.size}, {len(self.root)} bytes of root")

    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """A checkpoint from a note's text. Lines behind the root are refused too: they would be believed unread."""
        match = _CHECKPOINT.fullmatch(text)
        root = from_base64(match[3]) if match else b""
        if match is None or not root:
            raise LedgerError("This is not a signed note that can be read", detail="its text is no checkpoint")
        return cls(match[1], int(match[2]), root)


def open_note(note: bytes, verifiers: Iterable[Verifier]) -> tuple[str, list[Verifier]]:
    """The text of a note, and who of the verifiers signed it: at least one. Signatures by others are passed over.

    LedgerError for what is no note, for one that none of them signed, or with a signature by one of them that is false.
    """
    known: dict[tuple[str, bytes], Verifier] = {}
    for verifier in verifiers:
        if known.setdefault((verifier.name, verifier.key_id), verifier) != verifier:
            raise LedgerError("Two keys have the same name and id", detail=f"{verifier.name}+{verifier.key_id.hex()}")
    said = note[:MAX_BYTES].decode(errors="replace")
    text, _, lines = said.rpartition("\n\n")
    signatures = [(name, from_base64(blob)) for name, blob in _SIGNATURE.findall(lines)]
    short = any(len(blob) <= _ID_BYTES for _, blob in signatures)
    if short or said.encode() != note or CONTROL.search(said) or not _SIGNATURES.fullmatch(lines):
        raise LedgerError("This is not a signed note that can be read", detail="a text, an empty line, and signatures")
    signed = []
    for name, blob in signatures:
        signer = known.get((name, blob[:_ID_BYTES]))
        if signer is not None and not signer.holds(f"{text}\n", blob[_ID_BYTES:]):
            raise LedgerError("A signature is false", detail=f"by {name}", hint="Trust nothing of it")
        if signer is not None and signer not in signed:
            signed.append(signer)
    if not signed:
        raise LedgerError("Nobody known has signed this", hint="Is this the key that was given for this ledger?")
    return f"{text}\n", signed


def from_base64(text: str) -> bytes:
    """What standard base64 says; nothing for what is none, and for a second way to write the same."""
    try:
        data = b64decode(text, validate=True)
    except ValueError:
        return b""
    return data if b64encode(data).decode() == text else b""


# The container: a zip without compression, made and read in one form, so that nothing can hide in it
_LOCAL, _CENTRAL, _END = (struct.Struct(form) for form in ("<4s5H3L2H", "<4s6H3L5H2L", "<4s4H2LH"))
_FORM = (20, 0x800, 0, 0, 33)  # version, UTF-8 names, stored, 1 January 1980: the same parts are the same bytes
_NAME = re.compile(r"[a-z]+(?:/[0-9]+)?\.[a-z]+|README\.txt")
MAX_PARTS, MAX_CONTAINER, _KEPT = 20_000, 2**32 - 2**24, 2**26  # bytes of the file, and of all parts but sounds


class Part(NamedTuple):
    name: str
    at: int  # bytes before it
    size: int
    crc: int
    sha256: str


def local_header(name: str, crc: int, size: int) -> bytes:
    return _LOCAL.pack(b"PK\3\4", *_FORM, crc, size, size, len(name), 0) + name.encode()


def directory(parts: Iterable[Part]) -> bytes:
    """The end of the zip."""
    listed, at = [], 0
    for name, begin, size, crc, _ in parts:
        about = (crc, size, size, len(name), 0, 0, 0, 0, 0, begin)
        listed.append(_CENTRAL.pack(b"PK\1\2", 20, *_FORM, *about) + name.encode())
        at = begin + _LOCAL.size + len(name) + size
    count, entries = len(listed), b"".join(listed)
    return entries + _END.pack(b"PK\5\6", 0, 0, count, count, len(entries), at, 0)


def read_container(file: BinaryIO) -> tuple[dict[str, Part], dict[str, bytes]]:
    """All parts, and the bytes of those that are no sound. It reads no more than a bundle can be."""
    parts: dict[str, Part] = {}
    kept: dict[str, bytes] = {}
    at = room = 0
    while (head := file.read(_LOCAL.size))[:4] == b"PK\3\4" and len(head) == _LOCAL.size and len(parts) < MAX_PARTS:
        size, length = _LOCAL.unpack(head)[8:10]
        name = file.read(min(length, 64)).decode("ascii", "replace")
        sound = name.endswith(".wav")
        room += 0 if sound else size
        if not _NAME.fullmatch(name) or name in parts or at + size > MAX_CONTAINER or room > _KEPT:
            raise LedgerError(f"Behind {next(reversed(parts), 'its start')} the file is not as callrec makes it")
        crc, digest, left, pieces = 0, sha256(), size, list[bytes]()
        while left and (piece := file.read(min(left, 2**20))):
            crc, left = zlib.crc32(piece, crc), left - len(piece)
            digest.update(piece)
            pieces += [piece] * (not sound)
        if left or head + name.encode() != local_header(name, crc, size):
            raise LedgerError(f"The part {name} was changed, or the zip's header before it")
        parts[name] = Part(name, at, size, crc, digest.hexdigest())
        kept |= {} if sound else {name: b"".join(pieces)}
        at += len(head) + length + size
    end = directory(parts.values())
    if head + file.read(len(end) + 1) != end:
        raise LedgerError("The end of the file was changed: the zip's list of its parts")
    return parts, kept


# What the entries say. A fact is a leaf with the body beside it as `said`, which is empty where it is not in the bundle
Fact = dict[str, Any]
_SAYS = {
    "call_arrived": "The call came in at {time}, on the line {line}",
    "notice_completed": "The notice {notice}, version {notice_version}, was played whole from {begun} to {time}: "
    "text SHA-256 {text_sha256}, sound SHA-256 {audio_sha256}",
    "key_pressed": "The key {key} was pressed at {time}, after the notice",
    "consent_refused": "The caller refused at {time}, with the key {key}",
    "no_consent": "The caller gave no consent: {reason}",
    "basis_established": "The legal basis {basis} ({citation}) was established at {time}, after that",
    "recording_started": "The recording started at {time}, after that",
    "recording_stopped": "The recording ended at {time}",
    "recording_stored": "It was stored at {time}, locked ({lock_mode}) until {retain_until}",
    "recording_locked": "Its lock was raised at {time} ({lock_mode}) until {retain_until}",
    "released_unrecorded": "The call went on without a recording from {time} on: {reason}",
    "consent_withdrawn": "The consent was withdrawn in the call, at {time}",
    "revocation_decided": "A withdrawal of the consent was decided at {time}: {fate}, {why}",
    "recording_discarded": "What was recorded was discarded at {time}: {reason}",
    "key_erased": "Its key was erased at {time}: nobody can open the stored recording since",
    "recording_erased": "It was looked for everywhere and found nowhere, at {time}; why it had to go: {cause}",
    "access_granted": "Somebody listened to it at {time}",
    "evidence_requested": "Evidence of the call was asked for at {time}",
}
STATES = {
    "key_pressed": "dpv:ConsentGiven", "consent_refused": "dpv:ConsentRefused",
    "no_consent": "dpv:ConsentRequestDeferred", "consent_withdrawn": "dpv:ConsentWithdrawn",
    "revocation_decided": "dpv:ConsentWithdrawn",
}  # fmt: skip


def repeated(facts: Sequence[Fact]) -> dict[str, list[dict[str, Any]]]:
    """What receipt and vCon repeat of the entries."""
    told = [{name: fact[name] for name in ("entry", "kind", "at", "said")} for fact in facts]
    left = [f for f in facts if f["kind"] == "revocation_decided" and f["said"].get("why") not in ("withdrawn", "held")]
    of_consent = [f for f in facts if f["kind"] in STATES and f not in left]  # what is held is withdrawn all the same
    states = [{"@type": STATES[fact["kind"]], "dpv:isIndicatedAtTime": fact["at"]} for fact in of_consent]
    return {"dpv:hasConsentStatus": states, "callrec:events": told}


def _in_words(facts: Sequence[Fact]) -> Iterator[str]:
    numbers = {fact["ordinal"]: fact["said"] for fact in facts if fact["ordinal"]}
    for number in range(1, last := max(numbers, default=0)):
        # A basis that the ledger was too late to take had a number, too. Then the next one says so.
        if number not in numbers and numbers.get(number + 1, {}).get("reason") not in ("ledger_down", "fault"):
            raise LedgerError("An entry of the call is left out", detail=f"number {number} of its course")
    # Bodies go by the call, when its recording is long gone; none of these names anybody.
    if len({fact["told"] for fact in facts if fact["ordinal"] or fact["kind"] == "recording_stored"}) > 1:
        raise LedgerError("An entry of the call comes without its body, others do not")
    yield f"The call's own entries are all here, 1 to {last}"
    first = {fact["kind"]: place for place, fact in reversed(list(enumerate(facts)))}
    if {"recording_started", "recording_stored"} & first.keys():
        key = ["key_pressed"] * (facts[first.get("basis_established", 0)]["said"].get("decision") == "granted")
        order = ["notice_completed", *key, "basis_established", "recording_started"]
        places = [first.get(kind, -1) for kind in order[:-1]] + [first.get(order[-1], len(facts))]
        if -1 in places or places != sorted(places) or {"consent_refused", "no_consent"} & first.keys():
            raise LedgerError("It was recorded without what the law demands", detail="wanted: " + ", ".join(order))
    about: Fact = defaultdict(lambda: "(not in this bundle)")
    for fact in facts:
        about |= {"call_arrived": fact["said"], "notice_started": {"begun": fact["at"]}}.get(fact["kind"], {})
        text = _SAYS.get(fact["kind"], "").format_map(about | fact["said"] | {"time": fact["at"]})
        yield from [text] if text else []


def fact_of(leaf: bytes, body: bytes) -> Fact:
    """The entry of these bytes; `body` is empty where it is not known any more, or not told."""
    fact: Fact = json.loads(leaf) | {"told": bool(body), "said": json.loads(body or b"{}")}
    fact["kind"] += "_early" if fact["kind"] == "key_pressed" and fact["said"].get("meaning") != "granted" else ""
    return fact


def _proven(kept: dict[str, bytes], stem: str, checkpoint: Checkpoint) -> Fact:
    leaf, body, proof = (kept.get(f"{stem}.{what}", b"") for what in ("leaf", "body", "proof"))
    way = [proof[at : at + HASH_BYTES] for at in range(8, len(proof), HASH_BYTES)]
    try:
        verify_inclusion(leaf_hash(leaf), int.from_bytes(proof[:8]), checkpoint.size, way, checkpoint.root)
    except LedgerError as error:
        raise LedgerError(f"The part {stem}.leaf, or its .proof, is not the ledger's", detail=str(error)) from None
    if body and sha256(body).hexdigest() != json.loads(leaf)["body_sha256"]:
        raise LedgerError(f"The part {stem}.body is not what its entry had")
    return fact_of(leaf, body)


def _beside(parts: dict[str, Part], kept: dict[str, bytes], facts: Sequence[Fact], why: Fact) -> Iterator[str]:
    """What lies beside the entries; `why` a sound or a text does not."""
    said = {fact["kind"]: fact["said"] for fact in facts}
    for name, what, kind, member in (
        ("audio.wav", "The recording", "recording_stored", "plaintext_sha256"),
        ("notice.txt", "The text of the notice", "notice_completed", "text_sha256"),
        ("notice.wav", "The sound of the notice", "notice_completed", "audio_sha256"),
    ):
        if name in parts and parts[name].sha256 != said.get(kind, {}).get(member):
            raise LedgerError(f"The part {name} is not the one of the ledger")
        if name in parts:
            yield f"{what} in {name} is the one of the ledger: SHA-256 {parts[name].sha256}"
        elif name in why:
            yield f"{what} is not in here. The operator says why: {why[name]}"
    where = {"receipt.json": ("dpv:hasRecordOfActivity",), "vcon.json": ("attachments", 0, "body", "metadata")}
    for name in sorted(where.keys() & kept.keys()):
        told = json.loads(kept[name])
        for step in where[name]:
            told = told[step]
        if any(told.get(member) != value for member, value in repeated(facts).items()):
            raise LedgerError(f"The part {name} says other than the entries")
        yield f"{name} has the events and the states of consent that the entries have"
    if "opening.json" in kept:
        opening = json.loads(kept["opening.json"])
        opened = hmac.digest(bytes.fromhex(opening["salt"]), opening["number"].encode(), "sha256").hex()
        if opened != said.get("basis_established", {}).get("caller_commitment"):
            raise LedgerError("The part opening.json is not the number of this call")
        yield "The number in opening.json is the one that called: it opens the commitment in the ledger"


def claims(file: BinaryIO, verifiers: Iterable[Verifier]) -> Iterator[str]:
    """What holds, a sentence each. LedgerError at the first that does not; it says what part is wrong."""
    parts, kept = read_container(file)
    yield f"The file is whole: {len(parts)} parts, with nothing before, between or behind them"
    try:
        text, signed = open_note(note := kept.get("checkpoint.txt", b""), verifiers)
        checkpoint = Checkpoint.parse(text)
    except LedgerError as error:
        raise LedgerError("The part checkpoint.txt is not what the ledger signed", detail=str(error)) from None
    origin = re.escape(signed[0].name) + "(/[0-9]+)?"  # numbered after a restore from a backup
    if note.count("\n— ".encode()) != 1 or not re.fullmatch(origin, checkpoint.origin):
        raise LedgerError("The part checkpoint.txt is of another ledger, or another key has signed it, too")
    yield f"{signed[0].name}+{signed[0].key_id.hex()} has signed that the ledger had {checkpoint.size} entries"
    stems = {name.partition(".")[0] for name in parts if name.endswith((".leaf", ".body", ".proof"))}
    facts = [_proven(kept, stem, checkpoint) for stem in stems - {"export"}]
    facts.sort(key=lambda fact: (fact["ordinal"] or MAX_SIZE, fact["entry"]))
    export, listed = _proven(kept, "export", checkpoint), kept.get("manifest.json", b"")
    if (export["kind"], export["said"].get("manifest_sha256")) != ("evidence_exported", sha256(listed).hexdigest()):
        raise LedgerError("The part manifest.json is not the one that the ledger has in export.body")
    manifest = json.loads(listed)
    outside = {"manifest.json", "checkpoint.txt", "export.leaf", "export.body", *(f"{stem}.proof" for stem in stems)}
    for name in sorted(manifest["parts"].keys() | parts.keys() - outside):
        if name not in parts or manifest["parts"].get(name) != parts[name].sha256:
            raise LedgerError(f"The part {name} is not the one of the manifest")
    yield f"Nothing in here was changed since {export['at']}: the ledger has the manifest's SHA-256"
    if {fact["call"] for fact in (*facts, export)} != {manifest["call"]}:
        raise LedgerError("There are entries of another call in here")
    yield f"All {len(facts)} entries stand in the ledger as they are here"
    yield from _in_words(facts)
    yield from _beside(parts, kept, facts, manifest["absent"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Verify an evidence bundle of callrec, offline.")
    parser.add_argument("bundle", help="the file, for example case.zip")
    parser.add_argument("--key", action="append", required=True, help="the ledger's public key: name+id+key")
    args = parser.parse_args(argv)
    try:
        verifiers = [Verifier.parse(key) for key in args.key]
        file = open(args.bundle, "rb")  # noqa: PTH123, SIM115 # that it is not there says nothing of it; closed below
    except (LedgerError, OSError) as error:
        parser.error(str(error))
    try:
        with file:
            for claim in claims(file, verifiers):
                print("holds ", "".join(char if char.isprintable() else "?" for char in claim))
    except (LedgerError, OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        print("FALSE ", error if isinstance(error, LedgerError | OSError) else "A part is not as callrec writes it")
        return 1
    print("This bundle holds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
