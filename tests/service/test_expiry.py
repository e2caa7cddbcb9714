"""What leaves the object store, and when, on a whole callrec whose Ceph RGW has a lifecycle day of ten seconds.

The bucket, its policies and its rules are those of `callrec storage init`. One thing is shortened: the rules wait one
day instead of 106 and 1110, so that from the first call on the net tries to take everything. What stays, stays because
of its lock or its hold.
"""

import contextlib
import hashlib
import shutil
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest
from fix_callrec import UNHURRIED, frozen, running_node
from fix_stack import stack_directory, wait_until

from callrec import adapters
from callrec.call.policy import LockMode
from callrec.demo.scenarios import by_name
from callrec.demo.stack import Stack
from callrec.demo.switch import SimCall
from callrec.errors import StorageError
from callrec.recording import lifecycle
from callrec.recording.exchange import BYPASS
from callrec.rights.erasure_steps import Step
from callrec.store import live

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONSENT, SALE = (
    replace(scenario, script=replace(scenario.script, caller_number="+38631222333"))  # a number: personal data to go
    for scenario in (by_name("consent"), by_name("sale"))
)
PLACED = {
    "due": CONSENT, "due sale": SALE, "held": CONSENT, "forgotten": CONSENT, "disputed": CONSENT, "running": CONSENT,
    "sealed": SALE,
}  # fmt: skip
HELD = ("held", "disputed")
EVERYWHERE = {"bucket", "redis", "recording_key", "caller"}
LATER = timedelta(days=30)
LOOK = 0.3  # seconds between looks at the whole bucket


@dataclass(frozen=True)
class Kept:
    """A recording that was stored: `body` is its ciphertext, `until` the end of its lock."""

    call: SimCall = field(repr=False)
    id: UUID
    key: str
    version_id: str
    until: datetime
    body: bytes = field(repr=False)


@pytest.fixture(scope="module")
def node(short_prompts):
    directory = stack_directory()
    with contextlib.ExitStack() as ends:
        ends.callback(shutil.rmtree, directory, ignore_errors=True)
        stack = ends.enter_context(Stack(directory / "stack", env={}, lifecycle_day_seconds=10))
        patient = UNHURRIED | {"redis": {"ended_ttl_seconds": 3600}}  # what goes from Redis here was erased
        yield ends.enter_context(running_node(stack, short_prompts, changes=patient))


@pytest.fixture(scope="module")
def credentials(node):
    """The bucket as each who has anything to do with it: our four credentials, and the administrator who owns it."""
    config = node.installation.config
    with contextlib.ExitStack() as ends:
        found = {role: adapters.objects(config, role) for role in ("ship", "sweep", "api", "checkpoint")}
        found["owner"] = node.installation.objects()
        for objects in found.values():
            ends.callback(objects.close)
        yield found


@pytest.fixture(scope="module")
def kept(node, credentials):
    """Recordings of real calls, by name: two are held, one is sealed as an order, and the net is out over all."""
    verdicts, calls = node.judged(*PLACED.values())
    assert not [verdict.wrong for verdict in verdicts if verdict.wrong]
    found = {}
    for name, call in zip(PLACED, calls, strict=True):
        row = node.recording(call)
        where = row["object_key"], row["version_id"]
        until = credentials["api"].lock_of(*where)[1]
        assert until == row["retain_until"]
        found[name] = Kept(call, row["recording_id"], *where, until, b"".join(credentials["api"].read(*where)))
    for name in HELD:
        review_at = (datetime.now(UTC) + LATER).isoformat()
        run(node, "hold", found[name].id, "--reason", "dispute", "--case", "case-1", "--review-at", review_at)
    run(node, "dispose", found["sealed"].id, "order")
    soon = [
        replace(rule, expire_days=rule.expire_days and 1, noncurrent_days=rule.noncurrent_days and 1)
        for rule in lifecycle.rules(node.installation.config.bases.values())
    ]
    assert lifecycle.apply(credentials["owner"], soon, shorten=True) == []
    sweep = credentials["sweep"]
    for name in HELD:
        wait_until(lambda it=found[name]: sweep.held(it.key, it.version_id), 40, f"S3's legal hold on {name}", LOOK)
    wait_until(lambda: lock(sweep, found["sealed"])[0] == "COMPLIANCE", 40, "the seal", LOOK)
    return found


def run(node, *arguments):
    done = node.command(*map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done.stdout


def lock(objects, it):
    return objects.lock_of(it.key, it.version_id)


def in_bucket(credentials, it):
    """What the bucket lists of a recording under any key, markers too; not the name that says it was erased."""
    listed = credentials["owner"].versions("")
    return [each for each in listed if str(it.id) in each.key and not each.key.startswith("erased/")]


def marked(credentials, it):
    return any(each.is_delete_marker for each in in_bucket(credentials, it))


def untouched(credentials, it):
    """Whether the version that was stored is there with every byte, whatever else was put above it."""
    listed = [each.version_id for each in in_bucket(credentials, it)]
    return it.version_id in listed and b"".join(credentials["api"].read(it.key, it.version_id)) == it.body


def bring_near(node, *kept):
    """The date in Postgres comes; the lock in S3 ends when it did before."""
    with psycopg.connect(node.stack.postgres_url, autocommit=True) as owner:
        for it in kept:
            owner.execute("UPDATE recording SET retain_until = now() WHERE recording_id = %s", (it.id,))


def left(node, credentials, it):
    """Each place that may have something of a recording, with what it has."""
    client = live.connect(node.stack.redis_url)
    try:
        found = {
            "bucket": in_bucket(credentials, it),
            "spool": [path for path in node.installation.spool.rglob("*") if str(it.id) in path.name],
            "redis": client.hgetall(live.KEY.format(channel=it.call.uuid)),
            "recording_key": node.inspector.rows("SELECT 1 FROM recording_key WHERE recording_id = %s", it.id),
            "caller": node.inspector.rows(
                "SELECT 1 FROM caller JOIN recording USING (call_id) WHERE recording_id = %s", it.id
            ),
        }
    finally:
        client.close()
    return {place: what for place, what in found.items() if what}


def told(node, command):
    """What `callrec COMMAND` says, by recording."""
    return {UUID(line["recording_id"]): line for line in node.lines(command)}


def until_erased(node, it, seconds=60):
    wait_until(lambda: node.recording(it.call)["state"] == "erased", seconds, f"{it} erased", LOOK)


def test_at_its_date_a_recording_goes_whole_and_a_held_one_goes_when_released_c1_c2_e11(node, credentials, kept):
    """The locks have months and years to go: what goes here went by `sweep`, versions and RGW's own markers alike."""
    due, held = [kept["due"], kept["due sale"]], kept["held"]
    for it in [*due, held]:
        wait_until(lambda it=it: marked(credentials, it), 60, f"RGW's marker above {it}", LOOK)
        assert set(left(node, credentials, it)) == EVERYWHERE
    bring_near(node, *due, held)
    for it in due:
        until_erased(node, it)
        assert left(node, credentials, it) == {}
        assert node.kinds(it.call)[-4:] == ["recording_stored", "recording_expired", "key_erased", "recording_erased"]
    # The sweeper has been past the held one, which has the same date.
    assert untouched(credentials, held)
    assert set(left(node, credentials, held)) == EVERYWHERE
    states = {it: line["state"] for it, line in told(node, "recordings").items()}
    assert [states[it.id] for it in (*due, held)] == ["erased", "erased", "stored"]
    erasures = told(node, "erasures")
    assert held.id not in erasures
    for it in due:
        line = erasures[it.id]
        assert (line["cause"], line["state"], sorted(line["done"])) == ("expiry", "erased", sorted(Step))
    run(node, "release", told(node, "holds")[held.id]["hold_id"], "--why", "the dispute is over")
    until_erased(node, held, 90)
    assert left(node, credentials, held) == {}
    assert told(node, "erasures")[held.id]["state"] == "erased"


def test_what_the_sweeper_forgets_rgw_takes_when_its_lock_has_ended_and_nothing_else(node, credentials, kept):
    """`sweep` stands still, so the lifecycle acts alone. A hold keeps what no lock keeps any more."""
    forgotten, disputed = kept["forgotten"], kept["disputed"]
    stays = [disputed, kept["running"], kept["sealed"]]
    for it in [forgotten, *stays]:
        wait_until(lambda it=it: marked(credentials, it), 60, f"RGW's marker above {it}", LOOK)
    with frozen(node.pid("sweep")):
        now = datetime.now(UTC)
        for it, seconds in ((disputed, 2), (forgotten, 4)):  # the round that takes the second has seen the first free
            ends = now + timedelta(seconds=seconds)
            assert credentials["sweep"].relock(it.key, it.version_id, LockMode.GOVERNANCE, ends).accepted
        bring_near(node, forgotten)
        wait_until(lambda: not in_bucket(credentials, forgotten), 120, "version and marker gone", LOOK)
        for it in stays:
            assert untouched(credentials, it)
        assert node.recording(forgotten.call)["state"] == "stored"  # nobody of ours did it
        assert forgotten.id not in told(node, "erasures")
        assert "recording_key" in left(node, credentials, forgotten)
    until_erased(node, forgotten)  # RGW knows nothing of keys: the rest is for the sweeper when it is back
    assert left(node, credentials, forgotten) == {}


def delete(objects, it, headers):
    return objects.exchange.ask("DELETE", it.key, query={"versionId": it.version_id}, headers=headers)


def clear(objects, it):
    nothing = b'<Retention xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></Retention>'
    about = {"retention": "", "versionId": it.version_id}
    return objects.exchange.ask("PUT", it.key, query=about, headers=BYPASS, body=nothing)


ON_THE_VERSION = {
    "delete": lambda objects, it: delete(objects, it, {}),
    "delete with bypass": lambda objects, it: delete(objects, it, BYPASS),
    "batch delete": lambda objects, it: objects.delete_version(it.key, it.version_id, bypass_governance=False),
    "batch delete with bypass": lambda objects, it: objects.delete_version(
        it.key, it.version_id, bypass_governance=True
    ),
    "shorten": lambda objects, it: objects.lock(it.key, it.version_id, LockMode.COMPLIANCE, it.until - LATER),
    "shorten with bypass": lambda objects, it: objects.relock(
        it.key, it.version_id, LockMode.COMPLIANCE, it.until - LATER
    ),
    "downgrade": lambda objects, it: objects.lock(it.key, it.version_id, LockMode.GOVERNANCE, it.until),
    "downgrade with bypass": lambda objects, it: objects.relock(it.key, it.version_id, LockMode.GOVERNANCE, it.until),
    "clear with bypass": clear,
}
ABOVE_IT = {
    "overwrite": lambda objects, it: objects.exchange.ask("PUT", it.key, body=b"something else"),
    "mark as deleted": lambda objects, it: objects.exchange.ask("DELETE", it.key),
}
MAY_ABOVE = {
    "ship": {"overwrite"}, "sweep": {"mark as deleted"}, "api": set(), "checkpoint": set(),
    "owner": {"overwrite", "mark as deleted"},
}  # fmt: skip


@pytest.mark.parametrize("who", MAY_ABOVE)
def test_a_sealed_one_is_beyond_everybody_b1(node, credentials, kept, who):
    sealed, objects = kept["sealed"], credentials[who]

    def accepted(attack):
        try:
            answer = attack(objects, sealed)
        except StorageError:
            return False
        return answer is None or answer.accepted

    def state():
        head = credentials["api"].exchange.ask("HEAD", sealed.key, query={"versionId": sealed.version_id})
        return head.status, head.headers["etag"], *lock(credentials["api"], sealed)

    before = state()
    assert before == (200, f'"{hashlib.md5(sealed.body).hexdigest()}"', "COMPLIANCE", sealed.until)
    had_their_way = set()
    for name, attack in {**ON_THE_VERSION, **ABOVE_IT}.items():
        if accepted(attack):
            had_their_way.add(name)
        assert state() == before, name
        assert untouched(credentials, sealed), name
    assert had_their_way == MAY_ABOVE[who]  # what they may do hides it at most
    heard = node.directory / f"{who}.wav"
    run(node, "play", sealed.id, "-p", "transaction_evidence", "-o", heard)
    assert hashlib.sha256(heard.read_bytes()).digest() == bytes(node.recording(sealed.call)["plaintext_sha256"])
