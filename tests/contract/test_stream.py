"""Segments of running recordings, from their first to the look that finds none, on a real Postgres and Ceph RGW."""

import os
import tracemalloc
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from fix_rights import NODE, PRIVATE, connect
from fix_stream import OTHER, SECOND, UNCLOSED, Call, Shipping, heard, lose, remover, sound, stored, streamed
from gevent import GreenletExit

from callrec import metrics
from callrec.call.policy import BasisKind
from callrec.errors import StorageError, StoreError
from callrec.recording import envelope, segments
from callrec.recording.stream import LOCK
from callrec.rights.erasure import Eraser
from callrec.rights.holds import Cause, HoldReason
from callrec.rights.remnants import Remover
from callrec.store.rights import RightsRecords
from callrec.store.segments import RemnantRecords


def test_segments_are_put_while_the_call_is_on_and_go_once_it_is_stored(house, ship):
    call = streamed(house, ship)
    found = call.segments()
    assert [version.key.rpartition("/")[2] for version in found] == ["000000", "000001", "000002"]
    for version in found:
        mode, until = house.sweep.lock_of(version.key, version.version_id)
        assert mode == "GOVERNANCE"
        assert until - datetime.now(UTC) < LOCK
        assert b"RIFF" not in b"".join(house.sweep.read(version.key, version.version_id))
    assert not remover(house).remove_next()  # the call is on
    call.ends()
    ship.store()
    assert call.row["state"] == "stored"
    assert not call.row["incomplete"]
    assert remover(house).remove_next()
    assert call.segments() == []
    assert not remover(house).remove_next()
    assert heard(call.opened()) == (3.0, sound(0, 3))
    (key,) = house.stores.rows("SELECT * FROM recording_key")
    assert key["segment_keys"] == []
    assert house.stores.rows("SELECT 1 FROM segment UNION ALL SELECT 1 FROM remnant") == []


def test_every_byte_is_sent_at_most_twice(house, ship):
    """2.1 times the encrypted size, whatever the interval: here every tenth of a second, which is far below any."""
    before = metrics.SEGMENT_BYTES._value.get() + metrics.UPLOAD_BYTES._value.get()
    call = Call(house)
    for _ in range(10):
        call.goes_on(seconds=1)
        ship.stream()
    call.ends()
    ship.store()
    sent = metrics.SEGMENT_BYTES._value.get() + metrics.UPLOAD_BYTES._value.get() - before
    assert 2.0 <= sent / call.row["ciphertext_bytes"] <= 2.1


def test_what_piles_up_goes_in_segments_of_bounded_size(house, monkeypatch):
    ship = Shipping(house, most_audio=SECOND + 3)  # and whole frames
    call = Call(house)
    call.goes_on(5)
    ship.stream(looks=8)
    assert [version.size for version in call.segments()] == [SECOND + 44 + 82, *[SECOND + 82] * 4]
    refused = []

    def refuse(*_, **__):
        refused.append(1)
        raise StorageError("away", transient=True)

    monkeypatch.setattr(house.ship.exchange, "ask", refuse)
    call.goes_on()
    ship.stream(looks=5)
    assert len(refused) == 1  # and then it waits
    assert len(call.segments()) == 5


def test_a_ship_that_starts_again_goes_on_under_another_key(house, ship):
    call = streamed(house, ship, 2)
    keys = house.stores.rows("SELECT segment_keys FROM recording_key")[0]["segment_keys"]
    again = Shipping(house)
    call.goes_on(2)
    again.stream(looks=2)
    lose(house)
    (key,) = house.stores.rows("SELECT segment_keys FROM recording_key")
    assert key["segment_keys"][:1] == keys
    assert len(key["segment_keys"]) == 2
    opened = [envelope.unseal(bytes(each), PRIVATE) for each in key["segment_keys"]]
    assert opened[0] != opened[1]
    whole = segments.joined_head(3) + b"".join(
        b"".join(house.sweep.read(version.key, version.version_id)) for version in call.segments()
    )
    plain = b"".join(segments.decrypt([whole], opened, call.id))
    assert plain[44:] == sound(0, 4)
    (last,) = house.stores.rows("SELECT * FROM segment WHERE index = 2")
    assert last["plaintext_sha256"] == sha256(plain).digest()
    assert last["ends_at"] == 4.0


@pytest.mark.parametrize("landed", [True, False])
def test_a_ship_that_dies_over_a_segment_puts_it_again(house, ship, monkeypatch, landed):
    """Between the word that it is about to be put and the word that it is there."""
    call = streamed(house, ship, 1)
    real = house.ship.exchange.ask

    def die(*args, **options):
        if landed:
            real(*args, **options)
        raise GreenletExit  # the process is gone

    with monkeypatch.context() as patch:
        patch.setattr(house.ship.exchange, "ask", die)
        call.goes_on()
        ship.stream()
    again = Shipping(house)
    call.goes_on()
    again.stream()
    assert [row["version_id"] is None for row in house.stores.rows("SELECT * FROM segment ORDER BY index")] == [
        False
    ] * 2
    call.ends()
    ship.store()
    remover(house).remove_next()
    assert call.segments() == []


def test_many_calls_wait_for_no_second_look(house, ship):
    calls = [Call(house) for _ in range(12)]
    for call in calls:
        call.goes_on()
    ship.stream()
    assert [len(call.segments()) for call in calls] == [1] * 12


def test_nothing_is_streamed_on_a_basis_without_segments(house):
    ship = Shipping(house)
    ship.streamer._every.pop("consent")
    call, sale = Call(house), Call(house, BasisKind.NOTICE)
    for each in (call, sale):
        each.goes_on()
    ship.stream()
    assert (len(call.segments()), len(sale.segments())) == (0, 1)


def test_a_file_that_shrinks_or_is_replaced_is_not_followed_any_more(house, ship):
    before = metrics.SEGMENTS.labels("stopped")._value.get()
    call = streamed(house, ship)
    call.path.write_bytes(UNCLOSED + sound(0, 1))
    other = streamed(house, ship)
    moved = other.path.with_suffix(".other")
    moved.write_bytes(UNCLOSED + sound(7, 9))
    moved.replace(other.path)
    ship.stream(looks=3)
    assert metrics.SEGMENTS.labels("stopped")._value.get() == before + 2
    assert (len(call.segments()), len(other.segments())) == (3, 3)


def test_memory_does_not_grow_with_what_piled_up(house, ship):
    call = Call(house)
    with call.path.open("r+b") as file:
        file.truncate(44 + (48 << 20))
    ship.stream(looks=2)
    tracemalloc.start()
    try:
        ship.stream(looks=120)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert [row["audio_end"] for row in house.stores.rows("SELECT max(audio_end) AS audio_end FROM segment")] == [
        48 << 20
    ]


def test_segments_in_another_bucket_are_not_called_gone(house, ship, s3):
    """[storage] bucket was changed."""
    call, elsewhere = streamed(house, ship), connect(s3, s3.bucket_name())
    elsewhere.create_bucket(None)
    call.ends()
    ship.store()
    Remover(RemnantRecords(house.database("sweep"), node=NODE), house.records(), elsewhere).remove_next()
    (remnant,) = house.stores.rows("SELECT * FROM remnant")
    assert house.bucket in remnant["last_error"]
    house.stores.admin.execute("UPDATE remnant SET due_at = now()")
    remover(house).remove_next()
    assert call.segments() == []


# What has to go


def test_a_withdrawal_takes_the_segments_with_it_and_it_is_proved(house, ship):
    """D1: pressed in the call. What opened them is gone in the same statement."""
    call = streamed(house, ship)
    house.spool.withdraw(call.id)
    house._calls.void(call.id, "withdrawn")
    assert house._scribe._idle.wait(5)
    assert house.stores.rows("SELECT 1 FROM recording_key") == []
    chores = remover(house)
    chores.erase_discarded()
    house.erase_all()
    assert house.erasure(call.id)["state"] == "erased"
    assert house.kinds(call.id)[-3:] == ["erasure_requested", "key_erased", "recording_erased"]
    house.live.forget(call.kept.channel)
    assert house.left(call.kept) == set()
    chores.remove_next()
    assert house.stores.rows("SELECT 1 FROM segment UNION ALL SELECT 1 FROM remnant") == []


def test_an_erasure_waits_for_a_segment_that_is_on_its_way(house, ship, monkeypatch):
    call = streamed(house, ship)
    real = house.ship.exchange.ask
    looked = []

    def meanwhile(*args, **options):
        house.spool.withdraw(call.id)
        house._calls.void(call.id, "withdrawn")
        assert house._scribe._idle.wait(5)
        remover(house).erase_discarded()
        house.erase_all()
        looked.append(house.erasure(call.id)["state"])
        return real(*args, **options)

    call.goes_on()
    monkeypatch.setattr(house.ship.exchange, "ask", meanwhile)
    ship.stream()
    monkeypatch.undo()
    assert looked == ["due"]
    house.stores.admin.execute("UPDATE erasure SET due_at = now()")
    house.erase_all()
    assert house.erasure(call.id)["state"] == "erased"
    assert call.segments() == []


def test_nothing_is_put_any_more_once_an_erasure_is_due(house, ship):
    call = streamed(house, ship, 1)
    house.desk().erase(call.id, Cause.ORDER, "dpo")
    call.goes_on()
    ship.stream()
    assert len(call.segments()) == 1
    house.erase_all()
    assert house.stores.rows("SELECT 1 FROM recording_key") == []
    call.ends()
    ship.store()
    house.stores.admin.execute("UPDATE erasure SET due_at = now()")
    house.erase_all()
    assert house.erasure(call.id)["state"] == "erased"
    assert house.left(call.kept) == set()


@pytest.mark.parametrize("how", ["discarded", "taken over"])
def test_nothing_is_put_any_more_of_what_is_settled_or_not_ours(house, ship, other, how):
    call = streamed(house, ship, 1)
    if how == "discarded":
        house._calls.void(call.id, "withdrawn")
        assert house._scribe._idle.wait(5)
    else:
        lose(house)
        other.take_over()
    call.goes_on()
    ship.stream()
    assert len(call.segments()) == 1


# A node that is lost


def test_another_node_makes_a_recording_of_what_a_lost_one_left(house, ship, other):
    call = streamed(house, ship)
    call.goes_on()  # and nobody puts that
    lose(house)
    other.take_over()
    other.store()
    assert house.kinds(call.id) == ["recording_taken_over", "recording_stored"]
    bodies = [row["body"] for row in house.stores.rows("SELECT body FROM ledger WHERE recording_id = %s", call.id)]
    assert bodies[0] == {"node": NODE, "ends_at_second": 3.0}
    assert (bodies[1]["incomplete"], bodies[1]["segments"], bodies[1]["duration_seconds"]) == (True, 3, 3.0)
    stored(house, call, OTHER, incomplete=True, seconds=3.0)
    assert not other.spool.has(call.id)


def test_a_node_that_is_heard_of_keeps_its_recordings(house, ship, other):
    call = streamed(house, ship)
    ship.neighbours.look()
    other.take_over()
    assert call.row["node"] == NODE


def test_nobody_is_lost_because_postgres_was_away(house, ship, other, monkeypatch):
    call = streamed(house, ship)
    lose(house)
    other.neighbours.look()
    other._clock += 10
    with monkeypatch.context() as patch:
        patch.setattr(other.records, "beat", lambda: (_ for _ in ()).throw(StoreError("away")))
        other.neighbours.look()
    other.neighbours.look()  # heard of again, as all the others will be
    assert call.row["node"] == NODE
    other._clock += 10
    other.neighbours.look()
    assert call.row["node"] == OTHER


def test_a_segment_that_is_missing_ends_the_recording_before_it(house, ship, other):
    call = streamed(house, ship, 4)
    gone = call.segments()[2]
    house.sweep.delete_version(gone.key, gone.version_id, bypass_governance=True)
    lose(house)
    other.take_over()
    other.store()
    stored(house, call, OTHER, incomplete=True, seconds=2.0)


@pytest.mark.parametrize("landed", [True, False])
def test_a_segment_over_which_its_node_died_counts_if_it_is_there(house, ship, other, monkeypatch, landed):
    call = streamed(house, ship, 2)
    real = house.ship.exchange.ask

    def die(*args, **options):
        if landed:
            real(*args, **options)
        raise GreenletExit  # the process is gone

    with monkeypatch.context() as patch:
        patch.setattr(house.ship.exchange, "ask", die)
        call.goes_on()
        ship.stream()
    house.stores.admin.execute("UPDATE segment SET begun_at = now() - interval '1 hour'")
    lose(house)
    other.take_over()
    other.store()
    stored(house, call, OTHER, incomplete=True, seconds=3.0 if landed else 2.0)


def test_what_was_withdrawn_on_a_lost_node_is_erased_and_not_stored(house, ship, other):
    """Its key was gone already, or goes where it was taken over to."""
    early, late = streamed(house, ship), streamed(house, ship)
    for call in (early, late):
        house.desk().erase(call.id, Cause.ORDER, "dpo")
        if call is early:
            house.erase_all()  # as far as the key; then the node is lost
    lose(house)
    other.take_over()
    assert (early.row["state"], late.row["state"]) == ("discarded", "finished")
    eraser = Eraser(RightsRecords(house.database("sweep"), node=OTHER), house.sweep, other.spool, house.live, print)
    house.stores.admin.execute("UPDATE erasure SET due_at = now()")
    house.erase_all(eraser)
    other.store()
    house.stores.admin.execute("UPDATE erasure SET due_at = now()")
    house.erase_all(eraser)
    for call in (early, late):
        assert house.erasure(call.id)["state"] == "erased"
        house.spool.remove(call.id)
        house.spool.clear_withdrawn(call.id)
        assert house.left(call.kept) == set()
        assert "recording_lost" not in house.kinds(call.id)


def test_two_nodes_do_not_take_the_same_recording(house, ship, other, tmp_path):
    calls = [streamed(house, ship, 1) for _ in range(3)]
    lose(house)
    third = Shipping(house, "third", other.spool)
    other.take_over()
    third.take_over()
    assert {call.row["node"] for call in calls} == {OTHER}
    lose(house, OTHER)  # over it; and a third makes a recording of it all the same
    third.take_over()
    third.store()
    for call in calls:
        stored(house, call, "third", incomplete=True, seconds=1.0)


def test_a_node_without_its_disk_makes_a_recording_of_its_own_segments(house, ship):
    call = streamed(house, ship)
    call.ends()
    house.spool.remove(call.id)
    ship.store()
    stored(house, call, NODE, incomplete=True, seconds=3.0)


# … and comes back


def comes_back(house, ship, call):
    """The node's own ship finds what it has, and its listener says that it is over, if Postgres asks for it."""
    ship.shipper.tidy()
    call.ends()
    ship.store()
    ship.shipper.tidy()


def test_a_node_that_comes_back_in_time_stores_what_it_has(house, ship, other):
    call = streamed(house, ship)
    call.goes_on()
    lose(house)
    ship.neighbours.look()  # it is heard of again
    other.take_over()
    other.store()
    comes_back(house, ship, call)
    stored(house, call, NODE, incomplete=False, seconds=4.0)


def test_the_complete_recording_takes_the_place_of_the_incomplete_one(house, ship, other):
    call = streamed(house, ship)
    call.goes_on()
    lose(house)
    other.take_over()
    ship.shipper.tidy()  # the other has not stored it yet
    assert house.spool.has(call.id)
    other.store()
    stored(house, call, OTHER, incomplete=True, seconds=3.0)
    comes_back(house, ship, call)
    stored(house, call, NODE, incomplete=False, seconds=4.0)
    assert house.kinds(call.id).count("recording_reclaimed") == 1
    assert not house.spool.has(call.id)


@pytest.mark.parametrize("tidied", [False, True])
@pytest.mark.parametrize("left", [0, len(UNCLOSED), len(UNCLOSED) + SECOND])
def test_a_node_that_comes_back_with_less_takes_nothing_back(house, ship, other, tidied, left):
    """The power failed, and the end of the file was not on the disk: what left the node is all there is."""
    call = streamed(house, ship)
    lose(house)
    other.take_over()
    other.store()
    if tidied:
        stored(house, call, OTHER, incomplete=True, seconds=3.0)
    os.truncate(call.path, left)
    comes_back(house, ship, call)
    stored(house, call, OTHER, incomplete=True, seconds=3.0)
    assert [path.name for path in house.spool.set_apart(call.id)] == [f"{call.id}.wav"]


def test_a_spool_that_was_not_mounted_takes_back_what_it_has(house, ship):
    """Its files were not there for a while: nothing of them is removed for that."""
    call, short = streamed(house, ship), Call(house)
    for each in (call, short):
        each.goes_on()
        each.ends()
    away = house.spool.root / "away"
    (house.spool.root / "rec").rename(away)
    (house.spool.root / "rec").mkdir()
    ship.store()
    stored(house, call, NODE, incomplete=True, seconds=3.0)
    assert short.row["state"] == "lost"
    (house.spool.root / "rec").rmdir()
    away.rename(house.spool.root / "rec")
    ended = call.row["stopped_at"]
    ship.shipper.tidy()
    ship.store()
    stored(house, call, NODE, incomplete=False, seconds=4.0)
    assert call.row["stopped_at"] == ended
    (kept,) = house.spool.set_apart(short.id)  # its key and its caller are gone: for a person to decide
    assert kept.read_bytes() == UNCLOSED + sound(0, 1)


@pytest.mark.parametrize("other_is_quick", [True, False])
def test_a_node_that_was_only_cut_off_puts_no_second_object(house, ship, other, monkeypatch, other_is_quick):
    """It is taken over between its own put and the word that it has stored it."""
    call = streamed(house, ship)
    call.ends()
    real = house.ship.verify

    def meanwhile(*args, **options):
        monkeypatch.undo()
        lose(house)
        other.take_over()
        if other_is_quick:
            other.store()
        return real(*args, **options)

    monkeypatch.setattr(house.ship, "verify", meanwhile)
    ship.store()
    assert house.spool.has(call.id)
    other.store()
    assert call.row["incomplete"]
    assert call.row["node"] == OTHER
    comes_back(house, ship, call)
    stored(house, call, NODE, incomplete=False, seconds=3.0)


def test_what_is_held_stays_as_it_is_until_the_hold_ends(house, ship, other):
    """E11. The file waits in the spool, where it is counted."""
    call = streamed(house, ship)
    lose(house)
    other.take_over()
    other.store()
    hold = house.desk().hold(
        call.id, HoldReason.DISPUTE, case="c-1", owner="dpo", review_at=datetime.now(UTC) + timedelta(days=30)
    )
    comes_back(house, ship, call)
    assert (call.row["node"], call.row["incomplete"]) == (OTHER, True)
    assert house.spool.has(call.id)
    assert metrics.SPOOL_ORPHANS._value.get() == 1
    assert house.kinds(call.id).count("recording_reclaimed") == 0
    house.desk().release(hold.id, "over", "dpo")
    comes_back(house, ship, call)
    stored(house, call, NODE, incomplete=False, seconds=3.0)


def test_a_withdrawal_that_comes_back_with_its_node_is_seen_through(house, ship, other):
    call = streamed(house, ship)
    lose(house)
    other.take_over()
    other.store()
    house.spool.withdraw(call.id)  # pressed while the node was cut off
    ship.shipper.tidy()
    assert call.row["state"] == "discarded"
    assert house.stores.rows("SELECT 1 FROM recording_key") == []
    remover(house).erase_discarded()
    house.erase_all(
        Eraser(RightsRecords(house.database("sweep"), node=OTHER), house.sweep, other.spool, house.live, print)
    )
    assert house.left(call.kept) == set()


def test_adopting_a_node_saves_what_left_it_during_the_call(house, ship, other):
    call, short = streamed(house, ship), Call(house)
    records = RightsRecords(house.database("sweep"), node=OTHER)
    assert records.adopt(NODE) == 2
    records.gone(NODE)
    assert short.row["state"] == "lost"
    other.store()
    stored(house, call, OTHER, incomplete=True, seconds=3.0)
