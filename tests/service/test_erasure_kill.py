"""kill -9 at any moment of an erasure: it always ends erased, and is never called so with something left (C2, C4)."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fix_rights import NODE, House

from callrec.call.policy import BasisKind
from callrec.errors import StoreError
from callrec.rights.disposition import Disposition, Said
from callrec.rights.holds import Cause

RUNS = int(os.environ.get("CALLREC_TEST_KILLS", "50"))
MORTAL = Path(__file__).with_name("erasure_mortal.py")
STEPS = 40  # things done in one erasure, more or less; beyond them it lives


class Nursery:
    """The process that forks an eraser for each run."""

    def __init__(self, house):
        at = house.users["sweep"]
        stores = {
            "url": house.stores.url, "login": house.stores.login("sweep"), "node": NODE, "spool": str(house.spool.root),
            "redis": house.redis_url,
            "s3": {"endpoint": at.endpoint, "region": at.region, "bucket": house.bucket, "access_key": at.access_key,
                   "secret_key": at.secret_key},
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, str(MORTAL)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._say(stores)

    def run(self, at, *, after):
        self._say({"at": at, "after": after})
        return self._process.stdout.readline().strip()

    def close(self):
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _say(self, value):
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()


@pytest.fixture
def nursery(house):
    made = Nursery(house)
    yield made
    made.close()


def prepare(house, chance):
    """A recording somewhere on its way, with things left in every place, and its erasure due."""
    kept = house.record(number="+38631234567")
    if chance.random() < 0.5:
        assert house.ship.exchange.ask("PUT", kept.key, body=b"another version").accepted
        assert house.sweep.exchange.ask("DELETE", kept.key).accepted
    if chance.random() < 0.5:
        assert house.ship.exchange.ask("PUT", f"segments/{kept.key}/000001", body=b"a segment").accepted
    if chance.random() < 0.5:
        (house.spool.root / "sealed" / f"{kept.recording_id}.enc").write_bytes(b"left over")
    assert house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    return kept


def said_erased(house, kept):
    return house.erasure(kept.recording_id)["state"] == "erased" or "recording_erased" in house.kinds(kept.recording_id)


@pytest.mark.slow
@pytest.mark.timeout(900)  # with CALLREC_TEST_KILLS=200 some minutes
def test_two_hundred_erasures_killed_at_a_random_moment_all_end_erased(house, nursery):
    seed = random.SystemRandom().randrange(1 << 32)
    chance, killed, began = random.Random(seed), 0, time.monotonic()
    for number in range(RUNS):
        kept = prepare(house, chance)
        where = f"run {number} of seed {seed}"
        for _ in range(chance.choice((1, 1, 2))):
            outcome = nursery.run(chance.randrange(1, STEPS), after=chance.random() < 0.5)
            assert outcome in {"killed", "done"}, where
            killed += outcome == "killed"
            if said_erased(house, kept):
                assert house.left(kept) == set(), where
        assert nursery.run(0, after=False) == "done", where
        assert house.erasure(kept.recording_id)["state"] == "erased", where
        assert house.left(kept) == set(), where
        kinds = house.kinds(kept.recording_id)
        assert kinds.count("recording_erased") == kinds.count("key_erased") == 1, where
    assert killed > RUNS / 2
    print(f"{RUNS} erasures, {killed} kills, {time.monotonic() - began:.0f} s")  # noqa: T201 # for who runs it with -s


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_moment_of_one_erasure_in_turn(house, nursery):
    """Every step once, before and after it is done."""
    chance = random.Random(1)
    chance.random = lambda: 0.0  # everything is left everywhere
    at, alive = 1, False
    while not alive:
        for after in (False, True):
            kept = prepare(house, chance)
            alive = nursery.run(at, after=after) == "done"
            if said_erased(house, kept):
                assert house.left(kept) == set(), (at, after)
            assert nursery.run(0, after=False) == "done"
            assert (house.erasure(kept.recording_id)["state"], house.left(kept)) == ("erased", set()), (at, after)
        at += 1
    assert at > 20


@pytest.mark.timeout(120)
def test_what_a_lock_keeps_is_erased_by_key_whenever_it_is_killed(house, nursery):
    chance = random.Random(2)
    for _ in range(10):
        kept = house.record(BasisKind.NOTICE, retain_until=datetime.now(UTC) + timedelta(hours=1))
        house.desk().dispose(kept.recording_id, Said(Disposition.ORDER), "agent-7")
        house.sweeper().seal()
        house.desk().erase(kept.recording_id, Cause.ORDER, "dpo")
        nursery.run(chance.randrange(1, 15), after=True)
        assert nursery.run(0, after=False) == "done"
        assert house.erasure(kept.recording_id)["state"] == "key_erased"
        assert house.left(kept) == {"market-transaction"}
        assert "recording_erased" not in house.kinds(kept.recording_id)


@pytest.fixture
def own_house(own_stores, s3, role_users, redis_url, tmp_path):
    made = House(own_stores, s3, role_users, redis_url, tmp_path / "spool")
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", ["claim_erasure", "erase_key", "erasure_step", "forget_caller", "erased"])
def test_postgres_is_killed_and_what_it_said_last_of_an_erasure_is_true_or_done_again(own_house, moment):
    """Most steps do not wait for its disk: only that the key is gone, and that all is, must be there afterwards."""
    kept, stack = own_house.record(), own_house.stores.stack
    assert own_house.desk().erase(kept.recording_id, Cause.NO_LONGER_NEEDED, "dpo")
    eraser = own_house.eraser()
    said = getattr(eraser._records, moment)

    def last(*args):
        answer = said(*args)
        stack.kill("postgres")
        return answer

    setattr(eraser._records, moment, last)
    with contextlib.suppress(StoreError):
        eraser.erase_next()
    stack.restart("postgres")
    own_house.stores.reconnect()
    if moment != "claim_erasure":
        assert "recording_key" not in own_house.left(kept)
    if moment == "erased":
        assert said_erased(own_house, kept)
    else:
        own_house.records().unclaim_erasures()
        own_house.erase_all()
    assert (own_house.erasure(kept.recording_id)["state"], own_house.left(kept)) == ("erased", set())
    kinds = own_house.kinds(kept.recording_id)
    assert kinds.count("recording_erased") == kinds.count("key_erased") == 1
