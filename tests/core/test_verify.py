"""A bundle proves its call or fails and says where: for thieves without the key, and for an operator who has it.

The bundles here are made of invented entries in a ledger of a few lines; tests/service/test_evidence.py has real ones.
"""

import io
import json
import zipfile
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID

import pytest

from callrec.errors import LedgerError
from callrec.ledger import verify
from callrec.ledger.bundle import Container
from callrec.ledger.caller import commitment
from callrec.ledger.entry import Entry, canonical_body
from callrec.ledger.leaflet import TEXT as TEXT_OF_README
from callrec.ledger.note import Checkpoint, Signer, sign_checkpoint
from callrec.ledger.receipt import Controller, receipt, vcon
from callrec.ledger.tree import Frontier, inclusion_proof

ORIGIN = "ledger.example.com/test"
SIGNER = Signer(ORIGIN, b"s" * 32)
CALL, OTHER_CALL = UUID(int=1), UUID(int=2)
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
AUDIO, SOUND, TEXT = b"RIFF audio" * 50, b"RIFF notice", b"Pogovor se snema."
SALT, NUMBER = b"p" * 32, "+38640111222"
CONTROLLER = Controller("Operator", "Street 1", "dpo@example.com", "SI", "sl", "eu-central-1")


def digest(data):
    return sha256(data).hexdigest()


ARRIVED = ("call_arrived", {"line": "service", "basis": "consent", "notice": "B", "notice_version": "2"})
HEARD = ("notice_completed", {"text_sha256": digest(TEXT), "audio_sha256": digest(SOUND), "notice_url": "https://x"})
PRESSED = ("key_pressed", {"meaning": "granted", "key": "1"})
BASIS = ("basis_established", {
    "basis": "consent", "citation": "privolitev", "gdpr_article_6": "6(1)(a)", "decision": "granted",
    "retention": "P3M", "purposes": ["quality"], "caller_commitment": commitment(NUMBER, SALT),
})  # fmt: skip
STARTED = ("recording_started", {})
STORED = ("recording_stored", {
    "plaintext_sha256": digest(AUDIO), "lock_mode": "GOVERNANCE", "retain_until": "2027-02-22", "duration_seconds": 3.5,
})  # fmt: skip
REFUSED = ("consent_refused", {"key": "2"})
UNRECORDED = ("released_unrecorded", {"reason": "refused"})
CONSENT = [ARRIVED, ("notice_started", {}), HEARD, PRESSED, BASIS, STARTED]
AFTER = [STORED, ("access_granted", {"purpose": "quality", "account": "agent-7"})]


class Forge:
    """A ledger of one's own and bundles from it, true or false.

    `course` have ordinals. A test changes `parts` between filling and attesting, as an operator could, or after, as
    anybody can.
    """

    def __init__(self, course=CONSENT, after=AFTER, *, call=CALL, skip=(), signer=SIGNER):
        self.signer, self.call = signer, call
        self.entries, self.bodies = [], []
        for place, (kind, body) in enumerate(course, 1):
            self.append(kind, body, place)
        for kind, body in after:
            self.append(kind, body, None)
        self.entries = [entry for entry in self.entries if entry.ordinal not in skip]
        self.parts = {"README.txt": b"Read me"}

    def append(self, kind, body, ordinal):
        written = canonical_body(body)
        number = len(self.bodies) + 10
        at = NOON + timedelta(seconds=number)
        entry = Entry(number, self.call, None, ordinal, kind, "node-1", at, at, sha256(written).digest())
        self.entries.append(entry)
        self.bodies.append(written)
        return entry

    def body(self, entry):
        return self.bodies[entry.entry_id - 10]

    def fill(self, *, audio=AUDIO, opening=None, untold=()):
        """`untold`: kinds of entries that come without their bodies."""
        facts = []
        for entry in self.entries:
            named = b'"account"' in self.body(entry) or entry.kind in untold
            self.parts[f"entries/{entry.entry_id}.leaf"] = entry.canonical()
            if not named:
                self.parts[f"entries/{entry.entry_id}.body"] = self.body(entry)
            facts.append(verify.fact_of(entry.canonical(), b"" if named else self.body(entry)))
        facts.sort(key=lambda fact: (fact["ordinal"] or verify.MAX_SIZE, fact["entry"]))
        about = receipt(facts, CONTROLLER, receipt_id=UUID(int=3), made_at="now")
        self.parts["receipt.json"] = json.dumps(about).encode()
        if any(fact["kind"] == "basis_established" for fact in facts):
            about = vcon(facts, CONTROLLER, vcon_id=UUID(int=4), made_at="now", line="+38640404040")
            self.parts |= {"vcon.json": json.dumps(about).encode(), "notice.txt": TEXT, "notice.wav": SOUND}
        if audio:
            self.parts["audio.wav"] = audio
        if opening:
            self.parts["opening.json"] = json.dumps(opening).encode()
        return self

    def attest(self, *, kind="evidence_exported", signers=None, origin=ORIGIN, before=40):
        """Write the manifest, have the ledger take its hash and sign, add the proofs."""
        manifest = {
            "callrec_evidence": 1,
            "call": str(self.call),
            "parts": {n: digest(d) for n, d in self.parts.items()},
        }
        manifest["absent"] = {} if "audio.wav" in self.parts else {"audio.wav": "The call was not recorded"}
        self.parts["manifest.json"] = json.dumps(manifest).encode()
        self.export = self.append(kind, {"manifest_sha256": digest(self.parts["manifest.json"])}, None)
        self.parts |= {"export.leaf": self.export.canonical(), "export.body": self.body(self.export)}
        frontier = Frontier()
        others = [verify.leaf_hash(b"%d" % number) for number in range(before)]
        nodes = dict(frontier.append([*others, *(entry.leaf_hash() for entry in self.entries)]))
        for index, entry in enumerate(self.entries, before):
            stem = "export" if entry is self.export else f"entries/{entry.entry_id}"
            proof = inclusion_proof(index, frontier.size, lambda wanted: {node: nodes[node] for node in wanted})
            self.parts[f"{stem}.proof"] = index.to_bytes(8) + b"".join(proof)
        self.checkpoint = Checkpoint(origin, frontier.size, frontier.root())
        self.parts["checkpoint.txt"] = sign_checkpoint(self.checkpoint, signers or [self.signer])
        return self

    def zip(self):
        return pack(self.parts)


def pack(parts):
    out = io.BytesIO()
    container = Container(out)
    for name, data in parts.items():
        container.add(name, [data[:7], data[7:]])
    container.close()
    return out.getvalue()


def said(data, *verifiers):
    return list(verify.claims(io.BytesIO(data), verifiers or [SIGNER.verifier]))


def fault(data, *verifiers):
    """What the verifier says is wrong; fails when it finds nothing."""
    with pytest.raises(LedgerError) as found:
        said(data, *verifiers)
    return str(found.value)


def true_bundle(**how):
    return Forge().fill(**how).attest()


OPENING = {"number": NUMBER, "salt": SALT.hex(), "commitment": commitment(NUMBER, SALT)}


# What holds


def test_what_holds_is_said_in_words():
    claims = said(true_bundle(opening=OPENING).zip())
    text = "\n".join(claims)
    order = [
        "The file is whole", "has signed that the ledger had 49 entries", "Nothing in here was changed since",
        "All 8 entries", "1 to 6", "on the line service",
        "The notice B, version 2, was played whole from 2026-11-22T12:00:11", "The key 1 was pressed",
        "The legal basis consent (privolitev)", "The recording started at 2026-11-22T12:00:15.000000Z, after that",
        "It was stored", "Somebody listened to it at",
        f"The recording in audio.wav is the one of the ledger: SHA-256 {digest(AUDIO)}", "The text of the notice",
        "The sound of the notice", "receipt.json has the events and the states of consent",
        "vcon.json has the events", "The number",
    ]  # fmt: skip
    places = [text.find(each) for each in order]
    assert -1 not in places, (order[places.index(-1)], text)
    assert places == sorted(places)


def test_a_refusal_is_proved_without_a_recording_and_without_a_number_f7():
    forge = Forge([ARRIVED, REFUSED, UNRECORDED], []).fill(audio=b"").attest()
    text = "\n".join(said(forge.zip()))
    assert "The caller refused at" in text
    assert "went on without a recording" in text
    assert "The call was not recorded" in text
    assert NUMBER.encode() not in forge.zip()


def test_any_zip_program_reads_it_and_the_same_parts_are_the_same_bytes():
    forge = true_bundle()
    with zipfile.ZipFile(io.BytesIO(forge.zip())) as file:
        assert file.testzip() is None
        assert {name: file.read(name) for name in file.namelist()} == forge.parts
    assert forge.zip() == forge.zip()


def test_who_works_with_it_is_not_named():
    assert b"agent-7" not in true_bundle().zip()


# Anybody, without the key


def test_no_byte_of_it_can_be_changed():
    data = true_bundle(opening=OPENING).zip()
    assert said(data)
    for at in range(0, len(data), 5):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        assert fault(bytes(changed)), at


def test_no_byte_of_a_part_can_be_changed_in_a_zip_made_again_and_the_part_is_named():
    forge = true_bundle(opening=OPENING)
    assert said(pack(forge.parts))
    for name, data in forge.parts.items():
        for at in {*range(0, len(data), max(1, len(data) // 25)), len(data) - 1}:
            changed = bytearray(data)
            changed[at] ^= 1 << at % 8
            message = fault(pack(forge.parts | {name: bytes(changed)}))
            assert name.replace(".proof", ".leaf") in message, (name, at, message)


@pytest.mark.parametrize("name", sorted(true_bundle(opening=OPENING).parts))
def test_no_part_can_be_taken_away_or_made_empty(name):
    parts = true_bundle(opening=OPENING).parts
    assert name.partition(".")[0] in fault(pack(parts | {name: b""}))
    del parts[name]
    assert name.partition(".")[0] in fault(pack(parts))


@pytest.mark.parametrize("name", ["more.txt", "entries/99.body", "entries/99.proof", "export.txt", "more.wav"])
def test_nothing_can_be_put_beside_it(name):
    assert name.partition(".")[0] in fault(pack(true_bundle().parts | {name: b"{}"}))


def test_parts_of_two_calls_cannot_be_mixed():
    one = true_bundle().parts
    two = Forge(call=OTHER_CALL).fill(audio=b"RIFF other").attest().parts
    for name in one.keys() & two.keys():
        if one[name] != two[name]:
            assert fault(pack(one | {name: two[name]})), name


def test_an_entry_that_is_left_out_is_missed():
    parts = true_bundle().parts
    for what in ("leaf", "body", "proof"):
        del parts[f"entries/13.{what}"]
    assert "entries/13" in fault(pack(parts))


def test_another_key_proves_nothing():
    thief = Signer.generate(ORIGIN)
    forged = Forge(signer=thief).fill().attest().zip()
    assert said(forged, thief.verifier)
    assert "checkpoint.txt" in fault(forged)
    assert "checkpoint.txt" in fault(true_bundle().zip(), Signer.generate("elsewhere.example.com").verifier)


def test_another_checkpoint_does_not_fit():
    forge = true_bundle()
    later = Forge(call=OTHER_CALL).fill().attest(before=90)
    message = fault(pack(forge.parts | {"checkpoint.txt": later.parts["checkpoint.txt"]}))
    assert "is not the ledger's" in message


# An operator, with the key


def attested(forge):
    return fault(forge.attest().zip())


def test_an_operator_cannot_attest_a_recording_without_its_basis():
    for missing in (HEARD, PRESSED, BASIS):
        course = [each for each in CONSENT if each is not missing]
        assert "without what the law demands" in attested(Forge(course).fill()), missing[0]


@pytest.mark.parametrize(
    "course",
    [
        [ARRIVED, PRESSED, HEARD, BASIS, STARTED],
        [ARRIVED, HEARD, BASIS, PRESSED, STARTED],
        [ARRIVED, HEARD, PRESSED, STARTED, BASIS],
        [ARRIVED, HEARD, REFUSED, PRESSED, BASIS, STARTED],
        [ARRIVED, HEARD, ("key_pressed", {"meaning": "early"}), BASIS, STARTED],
    ],
    ids=["key before the notice", "key after the basis", "basis after the start", "refused", "early key alone"],
)
def test_an_operator_cannot_attest_another_order(course):
    assert "without what the law demands" in attested(Forge(course).fill())


@pytest.mark.parametrize("untold", ["key_pressed", "basis_established"])
def test_an_operator_cannot_hide_what_an_entry_says_and_have_it_taken_for_another(untold):
    """An early key for the one that consents; a basis that demands a key for one that does not."""
    course = {
        "key_pressed": [ARRIVED, HEARD, ("key_pressed", {"meaning": "early"}), BASIS, STARTED],
        "basis_established": [ARRIVED, HEARD, BASIS, STARTED],
    }[untold]
    assert "without its body" in attested(Forge(course).fill(untold={untold}))


def test_of_what_is_pruned_no_more_is_said_than_what_was_noted_and_when():
    """Years after the recording is gone: nobody knows any more which key, nor what became of a withdrawal."""
    early, kept = ("key_pressed", {"meaning": "early"}), ("revocation_decided", {"fate": "not_touched", "why": "x"})
    course = [ARRIVED, early, HEARD, PRESSED, BASIS, STARTED]
    kinds = {kind for kind, _ in [*course, *AFTER, kept]}
    forge = Forge(course, [*AFTER, kept]).fill(audio=b"", untold=kinds)
    record = json.loads(forge.parts["receipt.json"])["dpv:hasRecordOfActivity"]
    assert record["dpv:hasConsentStatus"] == []
    del forge.parts["notice.txt"], forge.parts["notice.wav"]
    text = "\n".join(said(forge.attest().zip()))
    assert "The recording started at" in text
    assert "was pressed" not in text


def test_an_operator_cannot_leave_out_a_note_of_the_call():
    for ordinal in range(1, len(CONSENT)):
        assert f"number {ordinal} of its course" in attested(Forge(skip={ordinal}).fill()), ordinal


@pytest.mark.parametrize("reason", ["ledger_down", "fault"])  # a stop of the listener at that moment is such a fault
def test_a_basis_that_the_ledger_was_too_late_to_take_is_no_gap(reason):
    late = ("released_unrecorded", {"reason": reason})
    assert said(Forge([ARRIVED, HEARD, PRESSED, BASIS, late], [], skip={4}).fill(audio=b"").attest().zip())


@pytest.mark.parametrize(
    ("name", "data"),
    [("audio.wav", b"RIFF other"), ("notice.txt", b"Something else."), ("notice.wav", b"RIFF other")],
)
def test_an_operator_cannot_attest_another_sound_or_text(name, data):
    forge = Forge().fill()
    forge.parts[name] = data
    assert attested(forge) == f"The part {name} is not the one of the ledger"


def test_a_withdrawal_ends_the_consent_in_the_receipt_unless_it_touched_nothing():
    for fate, why, withdrawn in (
        ("erase", "withdrawn", True),
        ("waits", "held", True),  # the recording stays for now, the consent does not
        ("waits", "not_identified_yet", False),
        ("not_touched", "agreed_later", False),
    ):
        states = ["dpv:ConsentGiven"] + ["dpv:ConsentWithdrawn"] * withdrawn
        forge = Forge(after=[*AFTER, ("revocation_decided", {"fate": fate, "why": why})]).fill()
        record = json.loads(forge.parts["receipt.json"])["dpv:hasRecordOfActivity"]
        assert [each["@type"] for each in record["dpv:hasConsentStatus"]] == states
        basis = json.loads(forge.parts["vcon.json"])["attachments"][0]["body"]
        assert [grant["granted"] for grant in basis["purpose_grants"]] == [not withdrawn]
        assert said(forge.attest().zip())


def test_of_a_receipt_no_more_is_said_than_was_compared():
    """Its purposes, say, are the operator's word; those of the ledger are among the events."""
    forge = Forge().fill()
    record = json.loads(forge.parts["receipt.json"])
    record["dpv:hasRecordOfActivity"]["dpv:hasProcess"]["dpv:hasPurpose"] = ["marketing"]
    forge.parts["receipt.json"] = json.dumps(record).encode()
    assert not any("says what the entries say" in claim for claim in said(forge.attest().zip()))
    assert "What receipt.json and vcon.json say besides" in TEXT_OF_README


def test_an_operator_cannot_attest_another_number():
    forge = Forge().fill(opening=OPENING | {"number": "+38640999999"})
    assert "opening.json is not the number of this call" in attested(forge)


def test_an_operator_cannot_attest_a_receipt_that_says_other_than_the_entries():
    refusal = Forge([ARRIVED, HEARD, REFUSED, UNRECORDED], []).fill(audio=b"")
    changed = refusal.parts["receipt.json"].replace(b"dpv:ConsentRefused", b"dpv:ConsentGiven")
    assert changed != refusal.parts["receipt.json"]
    refusal.parts["receipt.json"] = changed
    assert attested(refusal) == "The part receipt.json says other than the entries"
    for name in ("receipt.json", "vcon.json"):
        forge = Forge().fill()
        forge.parts[name] = forge.parts[name].replace(b"2026-11-22T12:00:13", b"2026-11-22T12:00:14")
        assert attested(forge) == f"The part {name} says other than the entries"


def test_entries_of_another_call_have_no_place_in_it():
    forge = Forge()
    forge.call = OTHER_CALL
    forge.append("access_denied", {}, None)
    forge.call = CALL
    assert "entries of another call" in attested(forge.fill())


def test_the_export_must_be_the_export():
    assert "manifest.json" in fault(Forge().fill().attest(kind="access_granted").zip())


def test_the_checkpoint_has_one_signature_of_the_ledger_that_it_names():
    beside = Signer.generate(ORIGIN)
    assert "another key" in fault(Forge().fill().attest(signers=[SIGNER, beside]).zip())
    assert "another ledger" in fault(Forge().fill().attest(origin="ledger.example.com/other").zip())
    assert said(Forge().fill().attest(origin=f"{ORIGIN}/2").zip())


# Hostile files


def test_what_is_no_bundle_is_refused_without_reading_much():
    for data in (b"", b"PK", b"PK\3\4", b"x" * 100, b"PK\3\4" + b"\xff" * 26 + b"name"):
        assert fault(data)
    assert fault(pack({}))


def test_a_foreign_zip_is_refused_compressed_or_not():
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", how) as file:
            for name, data in true_bundle().parts.items():
                file.writestr(name, data)
        assert fault(out.getvalue())


def test_a_part_that_claims_to_be_huge_is_not_waited_for():
    header = verify.local_header("manifest.json", 0, 2**31)
    assert "the file is not as callrec makes it" in fault(header + b"x" * 1000)
    assert "audio.wav was changed" in fault(verify.local_header("audio.wav", 0, 2**31) + b"x" * 1000)


@pytest.mark.parametrize(
    "name", ["../etc.passwd", "/etc.x", "a/b/c.txt", "A.txt", "a.txt\0", "entries/.leaf", "x" * 70]
)
def test_a_name_that_no_part_has_is_refused(name):
    assert "not as callrec makes it" in fault(verify.local_header(name, 0, 0) + verify.directory([]))


def test_a_part_stands_there_once():
    twice = verify.local_header("a.txt", 0, 0) * 2
    assert "Behind a.txt" in fault(twice + verify.directory([]))


def test_nothing_stands_before_or_behind():
    data = true_bundle().zip()
    assert fault(b"\0" + data)
    assert "end of the file" in fault(data + b"\0")


def test_deep_json_ends_in_a_verdict(tmp_path, capsys):
    forge = Forge().fill()
    forge.parts["receipt.json"] = b"[" * 100_000
    path = tmp_path / "case.zip"
    path.write_bytes(forge.attest().zip())
    assert verify.main([str(path), "--key", str(SIGNER.verifier)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "FALSE  A part is not as callrec writes it"


# The program


def test_the_program_says_what_holds_and_ends_with_the_status(tmp_path, capsys):
    path = tmp_path / "case.zip"
    path.write_bytes(true_bundle().zip())
    key = str(SIGNER.verifier)
    assert verify.main([str(path), "--key", key]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "This bundle holds."
    path.write_bytes(path.read_bytes()[:-1])
    assert verify.main([str(path), "--key", key]) == 1
    assert capsys.readouterr().out.startswith("FALSE  The end of the file")
    gone = str(tmp_path / "nothing.zip")
    for arguments in ([str(path)], [str(path), "--key", "no key"], ["--key", key], [gone, "--key", key]):
        with pytest.raises(SystemExit) as ended:
            verify.main(arguments)
        assert ended.value.code == 2


def test_what_an_entry_says_cannot_steer_the_terminal(tmp_path, capsys):
    forge = Forge([("call_arrived", ARRIVED[1] | {"line": "\x1b]0;x\x07{0}"}), *CONSENT[1:]]).fill()
    path = tmp_path / "case.zip"
    path.write_bytes(forge.attest().zip())
    assert verify.main([str(path), "--key", str(SIGNER.verifier)]) == 0
    assert "\x1b" not in capsys.readouterr().out
