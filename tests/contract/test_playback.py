"""Who may hear a recording, and that it is in the ledger first (B4-B6, B9, B10), as `api` on a real Postgres."""

import hashlib

import pytest
from fix_store import ZONE, make_facts, make_line, make_notes

from callrec.call.policy import BasisKind
from callrec.errors import AccessDeniedError, CallrecError, EnvelopeError, StoreError
from callrec.recording import envelope
from callrec.recording.facts import StoredRecording
from callrec.recording.playback import Listening, Player
from callrec.store.records import CallRecords
from callrec.store.scribe import Scribe
from callrec.store.shipping import ShipRecords

PRIVATE, PUBLIC = envelope.generate_keypair()
AUDIO = bytes(range(256)) * 1000
ALLOWED = "service_quality.information_accuracy"
DENIED = ("agent_supervision", "agent_evaluation", "external_callcentre_analysis")
RIGHTS = ("dsar", "erasure")


class Shelf:
    """One stored recording, its object in memory."""

    def __init__(self, stores, kind=BasisKind.CONSENT, *, stored=True):
        self.stores, self.reads = stores, []
        listen = stores.database("listen")
        scribe, ship = Scribe(listen), ShipRecords(stores.database("ship"), node="n")
        scribe.start()
        self.facts = make_facts(make_line(kind))
        calls = CallRecords(listen, scribe, node="n", timezone=ZONE)
        calls.authorise(self.facts, "granted", make_notes("basis_established"), None, timeout=5)
        calls.finished(self.facts.recording_id, self.facts.arrived_at, 1, abrupt=False)
        assert scribe.stop(10)
        key = envelope.new_key()
        encryptor = envelope.Encryptor(key, self.facts.recording_id)
        self.object = encryptor.head + encryptor.update(AUDIO) + encryptor.finish()
        if stored:
            ship.sealed(self.facts.recording_id, envelope.seal(key, PUBLIC), envelope.key_id(PUBLIC))
            ship.stored(self.facts.recording_id, self.stored())
        self.api = stores.database("api")

    def stored(self):
        line = self.facts.line
        return StoredRecording(
            bucket="b", object_key="consent/x", version_id="v1", lock_mode=line.basis.lock,
            retain_until=self.facts.arrived_at, plaintext_sha256=hashlib.sha256(AUDIO).digest(),
            ciphertext_sha256=hashlib.sha256(self.object).digest(), ciphertext_bytes=len(self.object),
            duration_seconds=1.0,
        )  # fmt: skip

    def read(self, key, version_id):
        self.reads.append((key, version_id))
        yield from (self.object[at : at + 10_000] for at in range(0, len(self.object), 10_000))

    def play(self, purpose, *, run=None, private_key=PRIVATE):
        player = Player(run or self.api.run, self, private_key, node="desk", denied=DENIED, rights=RIGHTS)
        return player.open(Listening(self.facts.recording_id, purpose, "agent-7"))

    def accesses(self):
        rows = self.stores.rows(
            "SELECT kind, body, recording_id, node FROM ledger WHERE kind LIKE 'access%%' ORDER BY 1"
        )
        assert {row["recording_id"] for row in rows} <= {self.facts.recording_id}
        return [(row["kind"], row["body"]) for row in rows]


@pytest.fixture
def shelf(stores):
    return Shelf(stores)


@pytest.mark.parametrize("purpose", [ALLOWED, "complaint_handling", *RIGHTS])
def test_a_stated_purpose_that_the_basis_has_opens_it(shelf, purpose):
    assert b"".join(shelf.play(purpose)) == AUDIO
    assert shelf.reads == [("consent/x", "v1")]
    assert shelf.accesses() == [("access_granted", {"purpose": purpose, "account": "agent-7"})]


@pytest.mark.parametrize("kind", list(BasisKind))
@pytest.mark.parametrize("purpose", [*DENIED, "marketing", "", "transaction_evidence"])
def test_every_other_purpose_is_denied_and_noted_and_nothing_is_read(stores, purpose, kind):
    shelf = Shelf(stores, kind)
    with pytest.raises(AccessDeniedError) as denied:
        shelf.play(purpose)
    assert shelf.reads == []
    assert shelf.accesses() == [("access_denied", {"purpose": purpose, "account": "agent-7"})]
    assert ALLOWED in denied.value.hint


def test_what_is_denied_stays_denied_even_where_a_basis_allows_it_b4(stores):
    shelf = Shelf(stores)
    shelf.api.queries["sealed_recording"] = shelf.api.queries["sealed_recording"].replace(
        "r.purposes", "r.purposes || 'agent_supervision'::text AS purposes"
    )
    with pytest.raises(AccessDeniedError):
        shelf.play("agent_supervision")


@pytest.mark.parametrize("purpose", [ALLOWED, "marketing"])
def test_without_the_ledger_there_is_no_sound(shelf, purpose):
    def run(name, params):
        if name == "entry":
            raise StoreError("Postgres is away")
        return shelf.api.run(name, params)

    with pytest.raises(StoreError):
        shelf.play(purpose, run=run)
    assert shelf.reads == []


def test_the_entry_is_there_before_the_first_sample(shelf):
    pieces = shelf.play(ALLOWED)
    assert [kind for kind, _ in shelf.accesses()] == ["access_granted"]
    assert shelf.reads == []
    assert next(pieces)


def test_a_wrong_private_key_opens_nothing_f5(shelf):
    with pytest.raises(EnvelopeError, match="does not open"):
        list(shelf.play(ALLOWED, private_key=envelope.generate_keypair()[0]))


@pytest.mark.parametrize("place", [0, 40, 70_000, -1])
def test_a_changed_object_does_not_open(shelf, place):
    changed = bytearray(shelf.object)
    changed[place] ^= 1
    shelf.object = bytes(changed)
    with pytest.raises(EnvelopeError):
        list(shelf.play(ALLOWED))


def test_an_object_that_is_cut_short_does_not_open(shelf):
    shelf.object = shelf.object[:-10_000]
    with pytest.raises(EnvelopeError):
        list(shelf.play(ALLOWED))


def test_an_object_that_opens_but_is_not_the_one_in_the_row_is_refused(shelf):
    shelf.stores.admin.execute("UPDATE recording SET plaintext_sha256 = %s", (b"x" * 32,))
    with pytest.raises(EnvelopeError, match="not what was recorded"):
        list(shelf.play(ALLOWED))


def test_what_is_not_stored_or_has_no_key_cannot_be_heard_and_says_why(stores):
    with pytest.raises(CallrecError, match="It is finished"):
        Shelf(stores, stored=False).play(ALLOWED)
    shelf = Shelf(stores)
    stores.admin.execute("DELETE FROM recording_key")
    with pytest.raises(CallrecError, match="Its key is gone"):
        shelf.play(ALLOWED)
    with pytest.raises(CallrecError, match="no such recording"):
        Player(shelf.api.run, shelf, PRIVATE, node="n", denied=DENIED, rights=RIGHTS).open(
            Listening(shelf.facts.call_id, ALLOWED, "a")
        )
