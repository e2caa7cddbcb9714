"""Everything that must be there is there, and nothing else: each fault planted, found, named, set apart."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from fix_rights import LINES, NODE
from fix_store import make_facts, make_notes

from callrec import metrics
from callrec.call.policy import BasisKind, LockMode
from callrec.errors import StorageError
from callrec.ledger.audit import Audit
from callrec.ledger.completeness import Kind
from callrec.recording.inventory import pages, versions_of
from callrec.rights.disposition import Disposition, Said
from callrec.rights.erasure_steps import Step
from callrec.rights.holds import Cause, HoldReason
from callrec.store.audit import SHARED, AuditRecords


def records_of(house, node=NODE):
    return AuditRecords(house.database("sweep"), node=node)


def auditor(house, node=NODE, **options):
    """Small pages, so that everything lies on the edge of one; no pause, and no file is too young."""
    options = {"page": 2, "pause": 0.0, "still": 0.0} | options
    return Audit(records_of(house, node), house.sweep, house.spool, **options)


def audit(house, *, full=False, **options):
    """Walk now; what is open then, as (kind, subject)."""
    auditor(house, **options).now(full=full, say=lambda _: None)
    return {(row["kind"], row["subject"]) for row in records_of(house).open_findings(1000)}


def opened(house, kind):
    return next(row for row in records_of(house).open_findings(1000) if row["kind"] == kind)


def over(house, kept, kind=BasisKind.CONSENT, notes=("recording_started", "recording_stopped"), first=3):
    """The call ends, with the notes that a listener makes of it."""
    ids = {"call_id": kept.call_id, "recording_id": kept.recording_id, "channel": kept.channel}
    facts = make_facts(LINES[kind], **ids)
    house._calls.note(facts, "ended", "granted", make_notes(*notes, first=first), datetime.now(UTC))
    assert house._scribe._idle.wait(5)
    return kept


def recorded(house, kind=BasisKind.CONSENT, **options):
    return over(house, house.record(kind, **options), kind)


def erased(house, kept):
    assert house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    house.erase_all()
    return kept


def hold(house, kept):
    review = datetime.now(UTC) + timedelta(days=30)
    house.desk().hold(kept.recording_id, HoldReason.DISPUTE, case="case-1", owner="dpo", review_at=review)
    house.sweeper().apply_holds()


def put(house, key, body=b"sealed"):
    assert house.admin.exchange.ask("PUT", key, body=body).accepted
    return key


def tamper(house, statement, *values):
    """As a superuser who has switched the triggers off."""
    with house.stores.admin.transaction():
        house.stores.admin.execute("ALTER TABLE ledger DISABLE TRIGGER ledger_only_grows")
        house.stores.admin.execute(statement, values)
        house.stores.admin.execute("ALTER TABLE ledger ENABLE ALWAYS TRIGGER ledger_only_grows")


def shown(kind):
    return metrics.AUDIT_FINDINGS.labels(kind)._value.get()


# A whole house


def test_nothing_is_found_where_everything_has_gone_its_way(house):
    recorded(house)
    hold(house, recorded(house))
    erased(house, recorded(house))
    sold, evidence = (recorded(house, BasisKind.NOTICE) for _ in range(2))
    for each in (sold, evidence):
        house.desk().dispose(each.recording_id, Said(Disposition.ORDER), "agent-7")
        assert house.sweeper().seal()
    erased(house, evidence)  # by key: its lock is COMPLIANCE
    assert house.erasure(evidence.recording_id)["state"] == "key_erased"
    house.spool.withdraw((gone := house.record(until="finished")).recording_id)
    house.store()
    over(house, gone)
    refused = make_facts()
    house._calls.note(refused, "ended", "refused", make_notes("call_arrived", "consent_refused"), datetime.now(UTC))
    assert house._scribe._idle.wait(5)
    assert audit(house, full=True) == set()
    entry = house.stores.rows("SELECT body FROM ledger WHERE kind = 'audit_completed' ORDER BY entry_id")[0]["body"]
    assert (entry["of"], entry["calls"], entry["full"], entry["findings"]) == ("stores", 7, True, {})
    assert entry["entries"] > 20
    assert entry["objects"] == 5 + 1  # five recordings and the name of what was erased


# One fault each


def entry_removed(house, kept):
    tamper(house, "DELETE FROM ledger WHERE kind = 'recording_stored' AND recording_id = %s", kept.recording_id)
    return {("entry_missing", str(kept.call_id))}


def note_removed(house, kept):
    over(house, kept, notes=["recording_masked", "recording_unmasked"], first=5)
    tamper(house, "DELETE FROM ledger WHERE kind = 'recording_masked' AND call_id = %s", kept.call_id)
    return {("ordinal_gap", str(kept.call_id))}


def entry_of_nothing(house, _kept):
    insert = "INSERT INTO ledger (call_id, kind, body, node, at) VALUES (%s, 'x', '{}', 'n', now()) RETURNING entry_id"
    return {("entry_without_row", str(house.stores.rows(insert, uuid.uuid4())[0]["entry_id"]))}


def call_removed(house, _kept):
    facts = make_facts()
    house._calls.note(facts, "ended", "refused", make_notes("call_arrived"), datetime.now(UTC))
    assert house._scribe._idle.wait(5)
    house.stores.admin.execute("DELETE FROM call WHERE call_id = %s", (facts.call_id,))
    entry = house.stores.rows("SELECT entry_id FROM ledger WHERE call_id = %s", facts.call_id)[0]["entry_id"]
    return {("entry_without_row", str(entry))}


def key_removed(house, kept):
    house.stores.admin.execute("DELETE FROM recording_key WHERE recording_id = %s", (kept.recording_id,))
    return {("key_missing", str(kept.recording_id))}


def key_come_back(house, kept):
    erased(house, kept)
    house.stores.admin.execute("INSERT INTO recording_key VALUES (%s, '\\x00', 'k')", (kept.recording_id,))
    return {("key_left", str(kept.recording_id))}


def caller_come_back(house, kept):
    erased(house, kept)
    house.stores.admin.execute("INSERT INTO caller VALUES (%s, '\\x00', '\\x00', '\\x00')", (kept.call_id,))
    return {("caller_left", str(kept.call_id))}


def object_removed(house, kept):
    house.admin.delete_version(kept.key, kept.version_id, bypass_governance=True)
    return {("object_missing", str(kept.recording_id))}


def object_hidden(house, kept):
    assert house.sweep.exchange.ask("DELETE", kept.key).accepted
    return {("object_extra", kept.key)}


def object_overwritten(house, kept):
    return {("object_extra", put(house, kept.key, b"something else"))}


def other_size(house, kept):
    update = "UPDATE recording SET ciphertext_bytes = ciphertext_bytes + 1 WHERE recording_id = %s"
    house.stores.admin.execute(update, (kept.recording_id,))
    return {("object_differs", str(kept.recording_id))}


def other_lock(house, kept):
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    assert house.sweep.relock(kept.key, kept.version_id, LockMode.GOVERNANCE, until).accepted
    return {("object_differs", str(kept.recording_id))}


def foreign_hold(house, kept):
    house.sweep.hold(kept.key, kept.version_id, on=True)
    return {("object_differs", str(kept.recording_id))}


def hold_lifted(house, kept):
    hold(house, kept)
    house.sweep.hold(kept.key, kept.version_id, on=False)
    return {("object_differs", str(kept.recording_id))}


def object_come_back(house, kept):
    return {("object_left", put(house, erased(house, kept).key))}


def segment_come_back(house, kept):
    return {("object_left", put(house, f"segments/{erased(house, kept).key}/000001"))}


def object_of_nothing(house, _kept):
    return {("object_without_row", put(house, f"consent/2026/11/{uuid.uuid4()}"))}


def object_of_any_name(house, _kept):
    return {("object_without_row", quote(put(house, "a name of/somebody's + 100 % é\x01.wav")))}


def erasure_undone(house, kept):
    put(house, f"erased/expiry/{kept.recording_id}")
    return {("erasure_undone", str(kept.recording_id))}


def file_of_nothing(house, _kept):
    path = house.spool.path(uuid.uuid4())
    path.write_bytes(b"RIFF")
    return {("spool_without_row", path.name)}


def file_left(house, kept):
    house.spool.path(kept.recording_id).write_bytes(b"RIFF")
    return {("spool_left", f"{kept.recording_id}.wav")}


def file_altered(house, kept):
    house.spool.path(kept.recording_id).write_bytes(b"RIFF")
    house.spool.quarantine(house.spool.path(kept.recording_id))
    return {("spool_altered", f"{kept.recording_id}.wav")}


PLANTS = [
    entry_removed, note_removed, entry_of_nothing, call_removed, key_removed, key_come_back, caller_come_back,
    object_removed, object_hidden, object_overwritten, other_size, other_lock, foreign_hold, hold_lifted,
    object_come_back, segment_come_back, object_of_nothing, object_of_any_name, erasure_undone, file_of_nothing,
    file_left, file_altered,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS)
def test_a_fault_is_found_and_named_and_its_neighbours_are_not(house, plant):
    recorded(house)
    kept = recorded(house)
    erased(house, recorded(house))
    expected = plant(house, kept)
    assert audit(house, full=True) == expected
    entries = house.stores.rows("SELECT body FROM ledger WHERE kind = 'audit_completed'")
    told = [each["body"]["findings"] for each in entries if each["body"]["findings"]]
    assert told == [{kind: 1 for kind, _ in expected}]
    auditor(house).show()
    assert {kind for kind in Kind if shown(kind)} == {kind for kind, _ in expected}


def test_every_kind_of_fault_is_planted_here(house):
    kept = {plant: recorded(house) for plant in PLANTS}
    assert {kind for plant in PLANTS for kind, _ in plant(house, kept[plant])} == set(Kind)


def test_what_is_mended_is_found_no_more(house):
    kept = recorded(house)
    other_size(house, kept)
    assert audit(house)
    house.stores.admin.execute("UPDATE recording SET ciphertext_bytes = ciphertext_bytes - 1")
    assert audit(house) == set()
    assert house.stores.rows("SELECT resolved_at IS NOT NULL AS over FROM audit_finding") == [{"over": True}]


def test_a_lock_is_looked_at_on_its_recordings_day_and_as_long_as_it_is_wrong(house):
    day = datetime.now(UTC).toordinal() % 30
    line = LINES[BasisKind.CONSENT]
    assert line.basis.lock is LockMode.GOVERNANCE
    kept = recorded(house)
    while kept.recording_id.int % 30 == day:
        kept = recorded(house)
    other_lock(house, kept)
    assert audit(house) == set()  # it is not its day
    found = {("object_differs", str(kept.recording_id))}
    assert audit(house, full=True) == found
    assert audit(house) == found  # and not forgotten because it is not its day


# Under way


def test_what_is_under_way_is_no_fault(house):
    """An upload between put and row, a call in conversation, an erasure that has begun, a call that Postgres missed."""
    talking = house.record(until="recording")
    put(house, f"segments/{talking.key}/000001")
    put(house, "probe/canary/1")
    house.desk().erase((going := recorded(house)).recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    assert house.records().erase_key(going.recording_id, {Step.KEY})
    house.admin.delete_version(going.key, going.version_id, bypass_governance=True)
    put(house, house.record(until="finished").key)
    missed = make_facts()
    # 2 was the basis, which was not durable; if it were in the ledger, the call would have been recorded.
    notes = [*make_notes("call_arrived"), *make_notes("released_unrecorded", first=3, reason="ledger_down")]
    house._calls.note(missed, "ended", "ledger_down", notes, datetime.now(UTC))
    assert house._scribe._idle.wait(5)
    assert audit(house, full=True) == set()


def test_a_gap_that_nothing_explains_is_one(house):
    facts = make_facts()
    notes = [*make_notes("call_arrived"), *make_notes("released_unrecorded", first=3, reason="refused")]
    house._calls.note(facts, "ended", "refused", notes, datetime.now(UTC))
    assert house._scribe._idle.wait(5)
    assert audit(house) == {("ordinal_gap", str(facts.call_id))}


def test_what_is_mended_before_the_second_look_is_no_finding(house):
    kept = recorded(house)
    key_removed(house, kept)
    walk = auditor(house)

    def mended(seconds):
        house.stores.admin.execute("INSERT INTO recording_key VALUES (%s, '\\x00', 'k')", (kept.recording_id,))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("callrec.ledger.audit.gevent.sleep", mended)
        walk.now(full=False, say=lambda _: None)
    assert records_of(house).open_findings(10) == []


# Quarantine


def test_an_object_without_a_row_can_no_longer_be_deleted_and_is_let_go_with_its_row(house):
    kept = recorded(house)
    saved = house.stores.rows("SELECT to_jsonb(r) AS row FROM recording r")[0]["row"]
    for table in ("recording_key", "recording"):
        house.stores.admin.execute(f"DELETE FROM {table}")
    assert ("object_without_row", kept.key) in audit(house)
    assert opened(house, "object_without_row")["quarantined"]
    assert house.sweep.held(kept.key, kept.version_id)
    with pytest.raises(StorageError):
        house.sweep.delete_version(kept.key, kept.version_id, bypass_governance=True)
    insert = "INSERT INTO recording SELECT * FROM jsonb_populate_record(NULL::recording, %s::jsonb)"
    house.stores.admin.execute(insert, (json.dumps(saved),))
    house.stores.admin.execute("INSERT INTO recording_key VALUES (%s, '\\x00', 'k')", (kept.recording_id,))
    assert audit(house, full=True) - {("object_differs", str(kept.recording_id))} == set()
    assert not house.sweep.held(kept.key, kept.version_id)
    assert audit(house, full=True) == set()


def test_a_file_without_a_row_is_moved_and_stays_until_somebody_takes_it(house):
    orphan, stranger = house.spool.path(uuid.uuid4()), house.spool.root / "rec" / "Janez Novak 031.wav"
    orphan.write_bytes(b"RIFF a voice")
    stranger.write_bytes(b"RIFF another")
    mark = house.spool.root / "withdrawn" / str(uuid.uuid4())
    mark.touch()
    for _ in range(2):
        found = {subject for kind, subject in audit(house) if kind == "spool_without_row"}
        assert {orphan.name, mark.name} <= found
        assert not any("Novak" in subject for subject in found)
        assert len(found) == 3
    apart = house.spool.root / "quarantine"
    assert (apart / orphan.name).read_bytes() == b"RIFF a voice"
    assert (apart / stranger.name).read_bytes() == b"RIFF another"
    assert list((house.spool.root / "rec").iterdir()) == []
    assert mark.exists()
    rows = {row["subject"]: row["quarantined"] for row in records_of(house).open_findings(10)}
    assert rows[orphan.name]
    assert not rows[mark.name]
    orphan.write_bytes(b"RIFF the same name again")
    audit(house)
    assert (apart / orphan.name).read_bytes() == b"RIFF a voice"
    assert len(list(apart.iterdir())) == 3
    for path in [*apart.iterdir(), mark]:
        path.unlink()
    assert audit(house) == set()


def test_a_file_that_is_being_written_stays(house):
    """Of a call that runs while its rows are gone: a database that was restored."""
    orphan = house.spool.path(uuid.uuid4())
    orphan.write_bytes(b"RIFF")
    assert audit(house, still=3600.0) == set()
    os.utime(orphan, (time.time() - 3700,) * 2)
    assert audit(house, still=3600.0) == {("spool_without_row", orphan.name)}


# Whose turn it is


def test_one_node_walks_the_stores_and_each_its_own_spool(house):
    first, second = auditor(house, "one"), auditor(house, "two")
    for each in (first, second, first):
        each.audit_stores()
        each.audit_spool()
    told = "SELECT node, body->>'of' AS of FROM ledger WHERE kind = 'audit_completed' ORDER BY entry_id"
    assert [(row["node"], row["of"]) for row in house.stores.rows(told)] == [
        ("one", "stores"), ("one", "spool"), ("two", "spool"),
    ]  # fmt: skip
    assert metrics.AUDIT_AT._value.get() == pytest.approx(time.time(), abs=60)
    auditor(house, "two", every=0.0).audit_stores()
    assert [row["node"] for row in house.stores.rows(told)] == ["one", "one", "two", "two"]


def test_a_walk_in_somebodys_hand_is_left_to_him_while_he_lives(house):
    records = records_of(house, "one")
    run = records.claim(SHARED, 3600, 3600)
    assert run
    assert records_of(house, "two").claim(SHARED, 3600, 3600) is None
    house.stores.admin.execute("UPDATE audit_run SET claimed_until = now() - interval '1 second'")
    assert records_of(house, "two").claim(SHARED, 3600, 3600) == run
    assert not records.progress(SHARED, "calls", "", {}, 3600)


KILLED = """
from gevent import monkey
monkey.patch_all()
import json, os, signal, sys
from pathlib import Path
from callrec.ledger.audit import Audit
from callrec.recording.objects import S3Objects
from callrec.recording.spool import Spool
from callrec.store.audit import AuditRecords
from callrec.store.db import Database

at = json.loads(sys.argv[1])
with Database(at["url"], *at["login"], size=2) as database:
    records, left = AuditRecords(database, node=at["node"]), [at["after"]]
    keep = records.progress
    def progress(*args):
        keep(*args)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return True
    records.progress = progress
    audit = Audit(records, S3Objects(**at["s3"]), Spool(Path(at["spool"]), 1, 1 << 40), page=1, pause=0.0)
    audit.audit_stores()
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("after", [2, 5, 8])  # in each stage
def test_a_walk_that_was_killed_goes_on_where_it_stood(house, after):
    wrong = {object_removed, key_removed}
    expected = {each for plant in wrong for each in plant(house, recorded(house))}
    recorded(house)
    at = house.users["sweep"]
    about = {
        "url": house.stores.url, "login": house.stores.login("sweep"), "node": NODE, "spool": str(house.spool.root),
        "after": after,
        "s3": {"endpoint": at.endpoint, "region": at.region, "bucket": house.bucket, "access_key": at.access_key,
               "secret_key": at.secret_key},
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(about)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    before = house.stores.rows("SELECT * FROM audit_run")[0]
    assert before["completed_at"] is None
    auditor(house, page=1).audit_stores()  # the same node: its earlier `sweep` is dead
    assert {(row["kind"], row["subject"]) for row in records_of(house).open_findings(10)} == expected
    now = house.stores.rows("SELECT * FROM audit_run")[0]
    assert now["started_at"] == before["started_at"]
    assert now["completed_at"]
    entry = house.stores.rows("SELECT body FROM ledger WHERE kind = 'audit_completed'")[0]["body"]
    assert (entry["calls"], entry["objects"]) == (3, 3)  # none twice, none left out


# The listing


def test_a_listing_in_pages_has_every_key_whole_and_in_order(house):
    names = ["a+b", "a b", "a%20b", "a%2Bb", "č&<>", "\x01", "\x01\x1f", "/", "z//"]
    keys = [put(house, name) for name in [*names, *(f"consent/2026/11/{uuid.uuid4()}" for _ in range(5))]]
    for body in (b"1", b"22", b"333"):
        put(house, keys[0], body)
    assert house.admin.exchange.ask("DELETE", keys[1]).accepted
    for size in (1, 2, 3, 1000):
        found = list(pages(house.sweep.exchange, size=size))
        listed = [key for page in found for key in page.keys]
        assert listed == sorted(keys)
        versions = {key: each for page in found for key, each in page.keys.items()}
        assert len(versions[keys[0]]) == 4
        assert sorted(each.is_delete_marker for each in versions[keys[1]]) == [False, True]
        assert found[-1].last is None
        for place, key in enumerate(sorted(keys)):
            behind = [each for page in pages(house.sweep.exchange, key, size=size) for each in page.keys]
            assert behind == sorted(keys)[place + 1 :]
            assert versions_of(house.sweep.exchange, key) == versions[key]
