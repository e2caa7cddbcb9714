"""Files that are not what was recorded, and objects that are not what was put, on a real Postgres and Ceph RGW."""

import os
from datetime import UTC, datetime, timedelta

import pytest
from fix_rights import NODE
from fix_stream import OTHER, SECOND, UNCLOSED, Call, lose, remover, sound, stored, streamed

from callrec import metrics
from callrec.ledger.audit import Audit
from callrec.rights.erasure import Eraser
from callrec.rights.holds import Cause, HoldReason
from callrec.store.audit import AuditRecords
from callrec.store.rights import RightsRecords


def counted():
    return metrics.UPLOADS.labels("quarantined")._value.get()


def apart(house, call):
    return house.spool.set_apart(call.id)


def shorter(path):
    os.truncate(path, len(UNCLOSED) + 2 * SECOND)


def header_alone(path):
    os.truncate(path, len(UNCLOSED))


def nothing(path):
    os.truncate(path, 0)


def same_length(path):
    with path.open("r+b") as file:
        file.seek(len(UNCLOSED) + 100)
        file.write(b"\x55")


def last_byte_streamed(path):
    with path.open("r+b") as file:
        file.seek(len(UNCLOSED) + 3 * SECOND - 1)
        file.write(b"\x55")


def zeros(path):
    """As unwritten pages are after the power failed: the header, too."""
    path.write_bytes(bytes(path.stat().st_size))


def longer(path):
    moved = path.with_suffix(".other")
    moved.write_bytes(UNCLOSED + sound(7, 9))
    moved.replace(path)


def link(path):
    """To a file that would do."""
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


def dangling(path):
    path.unlink()
    path.symlink_to("/nowhere")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def directory(path):
    path.unlink()
    path.mkdir()


REGULAR = [shorter, header_alone, nothing, same_length, last_byte_streamed, zeros, longer]
NO_FILE = [link, dangling, pipe]


@pytest.mark.parametrize("change", [*REGULAR, *NO_FILE, directory])
def test_what_is_not_the_file_that_was_streamed_is_set_apart_and_the_segments_are_the_recording(house, ship, change):
    before = counted()
    call = streamed(house, ship)
    call.goes_on()  # and that is in the file alone
    change(call.path)
    call.ends()
    ship.store()
    assert counted() == before + 1
    stored(house, call, NODE, incomplete=True, seconds=3.0)
    (kept,) = apart(house, call)
    assert kept.name.startswith(str(call.id))
    assert not os.path.lexists(call.path)
    ship.shipper.tidy()
    assert apart(house, call) == [kept]  # until a person decides


@pytest.mark.parametrize("looks", [0, 1])
def test_a_file_that_is_what_was_streamed_is_stored_whole(house, ship, looks):
    """However much of it was, and although FreeSWITCH has written its sizes into the header meanwhile."""
    call = Call(house)
    call.goes_on(3)
    ship.stream(looks)
    call.goes_on()
    data = bytearray(call.path.read_bytes())
    data[4:8] = (len(data) - 8).to_bytes(4, "little")
    data[40:44] = (len(data) - 44).to_bytes(4, "little")
    call.path.write_bytes(data)
    call.ends()
    ship.store()
    stored(house, call, NODE, incomplete=False, seconds=4.0)


def test_what_was_about_to_be_put_and_was_not_accuses_nobody(house, ship):
    """The power failed, and took the end of the file and the segment that was on its way."""
    call = streamed(house, ship)
    house.stores.admin.execute(
        "UPDATE segment SET version_id = NULL, begun_at = now() - interval '1 hour' WHERE index = 2"
    )
    shorter(call.path)
    call.ends()
    ship.store()
    stored(house, call, NODE, incomplete=False, seconds=2.0)


@pytest.mark.parametrize("change", NO_FILE)
def test_without_segments_what_is_no_file_is_lost_loudly(house, ship, change):
    call, before = Call(house), counted()
    call.goes_on()
    change(call.path)
    call.ends()
    ship.store()
    assert call.row["state"] == "lost"
    assert counted() == before + 1
    assert len(apart(house, call)) == 1
    ship.shipper.tidy()
    assert len(apart(house, call)) == 1
    house.stores.admin.execute("UPDATE recording SET retain_until = now()")
    ship.shipper.tidy()
    assert apart(house, call) == []


def neither_file_nor_segments(house, ship):
    """A call whose file was cut, and whose segments the object store has lost."""
    call = streamed(house, ship)
    for each in call.segments():
        house.sweep.delete_version(each.key, each.version_id, bypass_governance=True)
    shorter(call.path)
    call.ends()
    ship.store()
    return call


def test_a_file_that_is_all_there_is_waits_for_a_person(house, ship):
    """Called lost it would have no key, no caller and no erasure any more, and still a voice in the clear."""
    call = neither_file_nor_segments(house, ship)
    for _ in range(2):
        assert call.row["state"] == "finished"
        assert "quarantine" in call.row["last_error"]
        house.stores.admin.execute("UPDATE recording SET due_at = now()")
        ship.store()
    (kept,) = apart(house, call)
    kept.unlink()  # it is of no use to anybody
    house.stores.admin.execute("UPDATE recording SET due_at = now()")
    ship.store()
    assert call.row["state"] == "lost"


def test_a_file_with_a_second_name_is_stored_and_that_is_said(house, ship, caplog):
    """A backup makes such names: its bytes are judged as those of any other."""
    call = streamed(house, ship)
    call.goes_on()
    os.link(call.path, house.spool.root / "elsewhere")
    call.ends()
    ship.store()
    stored(house, call, NODE, incomplete=False, seconds=4.0)
    assert "recording_has_second_name" in caplog.text


# A file that is set apart goes with its recording


def gone(house, call):
    return house.left(call.kept) == set() and not house.spool.has(call.id)


@pytest.mark.parametrize("change", [shorter, link, pipe])
def test_c2_an_erasure_takes_what_was_set_apart(house, ship, change):
    call = streamed(house, ship)
    change(call.path)
    call.ends()
    ship.store()
    assert house.spool.has(call.id)
    house.desk().erase(call.id, Cause.ORDER, "dpo")
    house.erase_all()
    assert house.erasure(call.id)["state"] == "erased"
    assert gone(house, call)


def test_an_erasure_does_not_end_while_something_is_set_apart(house, ship, monkeypatch):
    call = streamed(house, ship)
    shorter(call.path)
    call.ends()
    ship.store()
    monkeypatch.setattr(house.spool, "purge", house.spool.remove)
    house.desk().erase(call.id, Cause.ORDER, "dpo")
    house.erase_all()
    assert house.erasure(call.id)["state"] != "erased"
    assert "spool" in house.erasure(call.id)["last_error"]


@pytest.mark.parametrize("how", ["withdrawn", "erased", "expired"])
def test_what_waits_for_a_person_can_be_withdrawn_and_expires(house, ship, how):
    call = neither_file_nor_segments(house, ship)
    assert len(apart(house, call)) == 1
    if how == "withdrawn":
        house.spool.withdraw(call.id)
        assert apart(house, call) == []
    elif how == "erased":
        house.desk().erase(call.id, Cause.ORDER, "dpo")
        house.erase_all()
    else:
        house.stores.admin.execute("UPDATE recording SET retain_until = now()")
    house.stores.admin.execute("UPDATE recording SET due_at = now()")
    ship.store()
    assert call.row["state"] == "discarded"
    assert apart(house, call) == []


def test_what_is_held_does_not_expire_before_it_is_stored_e11(house, ship):
    call = neither_file_nor_segments(house, ship)
    hold = house.desk().hold(
        call.id, HoldReason.DISPUTE, case="c-1", owner="dpo", review_at=datetime.now(UTC) + timedelta(days=30)
    )
    house.stores.admin.execute("UPDATE recording SET retain_until = now(), due_at = now()")
    ship.store()
    assert call.row["state"] == "finished"
    assert len(apart(house, call)) == 1
    house.desk().release(hold.id, "over", "dpo")
    house.stores.admin.execute("UPDATE recording SET due_at = now()")
    ship.store()
    assert call.row["state"] == "discarded"
    assert apart(house, call) == []


def test_what_postgres_forgot_to_be_stored_keeps_its_key(house, ship):
    """It failed over to a server that lagged behind: the file is gone, because the object was there."""
    call = streamed(house, ship)
    call.ends()
    ship.store()
    while remover(house).remove_next():
        pass
    house.stores.admin.execute("UPDATE recording SET state = 'finished', version_id = NULL, stored_at = NULL")
    ship.store()
    assert call.row["state"] == "finished"
    assert "fail over" in call.row["last_error"]
    assert house.left(call.kept) >= {"recording_key", "consent"}
    house.stores.admin.execute("UPDATE recording SET retain_until = now(), due_at = now()")
    ship.store()
    house.sweeper().expire()
    house.erase_all()
    assert house.left(call.kept) == set()


def test_a_node_whose_clock_is_ahead_discards_nothing(house, ship):
    call = streamed(house, ship)
    call.ends()
    ship.shipper._clock = lambda: datetime.now(UTC) + timedelta(days=400)
    ship.store()
    stored(house, call, NODE, incomplete=False, seconds=3.0)


def test_a_node_that_comes_back_removes_what_it_had_set_apart_of_what_is_erased(house, ship, other):
    call = streamed(house, ship)
    shorter(call.path)
    call.ends()
    house.spool.quarantine(call.path)  # and over that the node was lost
    lose(house)
    other.take_over()
    other.store()
    house.desk().erase(call.id, Cause.ORDER, "dpo")
    house.erase_all(
        Eraser(RightsRecords(house.database("sweep"), node=OTHER), house.sweep, other.spool, house.live, print)
    )
    assert house.erasure(call.id)["state"] == "erased"
    ship.shipper.tidy()
    assert gone(house, call)


def test_the_audit_tells_it_apart_from_what_belongs_to_nobody(house, ship):
    call = streamed(house, ship)
    longer(call.path)
    call.ends()
    ship.store()
    records = AuditRecords(house.database("sweep"), node=NODE)
    Audit(records, house.sweep, house.spool, pause=0).now(full=False, say=lambda _: None)
    told = {(row["kind"], row["subject"], row["quarantined"]) for row in records.open_findings(10)}
    assert ("spool_altered", f"{call.id}.wav", True) in told
    house.desk().erase(call.id, Cause.ORDER, "dpo")
    house.erase_all()
    Audit(records, house.sweep, house.spool, pause=0).now(full=False, say=lambda _: None)
    assert "spool_altered" not in {row["kind"] for row in records.open_findings(10)}
