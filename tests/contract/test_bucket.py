"""A bucket set up on a real Ceph RGW: each credential can do its work and nothing else, and nothing is weakened."""

import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest

from callrec.call.policy import LockMode
from callrec.config import load
from callrec.errors import StorageError
from callrec.recording import bucket, lifecycle
from callrec.recording.exchange import BYPASS
from callrec.recording.objects import DefaultRetention, S3Objects

BASES = load(Path(__file__).parents[2] / "callrec.example.toml", {}).bases.values()
ROLES = ("ship", "sweep", "api", "checkpoint")
UNTIL = datetime.now(UTC).replace(microsecond=0) + timedelta(days=90)
BODY = b"sealed"


@pytest.fixture(scope="module")
def users(s3):
    return s3.users(*ROLES, "stranger")


@pytest.fixture(scope="module")
def principals(users):
    return {role: f"arn:aws:iam:::user/{users[1][role]}" for role in ROLES}


@pytest.fixture(scope="module")
def connect(s3, users):
    made = []

    def connect(name, who="admin"):
        keys = s3 if who == "admin" else users[0][who]
        made.append(
            S3Objects(
                endpoint=s3.endpoint,
                region=s3.region,
                bucket=name,
                access_key=keys.access_key,
                secret_key=keys.secret_key,
            )
        )
        return made[-1]

    yield connect
    for objects in made:
        objects.close()


@pytest.fixture
def admin(s3, connect):
    return connect(s3.bucket_name())


@pytest.fixture
def plan(admin, principals):
    return bucket.recordings(admin.bucket, BASES, principals, https=False)


@pytest.fixture(scope="module")
def ready(s3, connect, principals):
    """A bucket as planned, for tests that leave its settings alone."""
    objects = connect(s3.bucket_name())
    bucket.set_up(objects, bucket.recordings(objects.bucket, BASES, principals, https=False))
    return objects


@pytest.fixture
def stored(ready, connect, tmp_path):
    """A recording that ship has put: key and version."""
    path, key = tmp_path / "sealed.enc", f"consent/2026/11/{uuid4()}"
    path.write_bytes(BODY)
    ship = connect(ready.bucket, "ship")
    put = ship.put_locked(
        key, path, sha256=sha256(BODY).digest(), mode=LockMode.GOVERNANCE, until=UNTIL, metadata={"recording": "r"}
    )
    return key, put.version_id


def intact(objects, key, version_id):
    """As api sees it: on Ceph RGW the bucket's owner can't even read what ship has put."""
    return (
        b"".join(objects.read(key, version_id)) == BODY
        and objects.lock_of(key, version_id) == ("GOVERNANCE", UNTIL)
        and not objects.held(key, version_id)
    )


def test_from_nothing_to_the_plan_and_again_nothing_to_do(admin, plan):
    assert [each.what for each in bucket.compare(admin, plan)] == ["bucket"]
    done, left = bucket.set_up(admin, plan)
    assert left == []
    assert done[0].startswith(f"created {admin.bucket} with object lock, by default GOVERNANCE for 1 day")
    assert bucket.compare(admin, plan) == []
    assert bucket.set_up(admin, plan) == ([], [])
    facts = admin.check()
    assert facts.object_lock
    assert facts.versioning
    assert facts.default_retention == DefaultRetention(LockMode.GOVERNANCE, 1)


def test_without_principals_no_policy_is_touched(admin):
    plan = bucket.recordings(admin.bucket, BASES, {})
    assert bucket.set_up(admin, plan)[1] == []
    assert admin.exchange.ask("GET", "", query={"policy": ""}).code == "NoSuchBucketPolicy"


def test_ship_can_put_verify_and_lengthen(ready, connect, stored):
    key, version_id = stored
    ship = connect(ready.bucket, "ship")
    ship.verify(key, version_id, sha256=sha256(BODY).digest(), size=len(BODY), mode=LockMode.GOVERNANCE, until=UNTIL)
    ship.lock(key, version_id, LockMode.GOVERNANCE, UNTIL + timedelta(days=1))
    assert ship.check().object_lock
    assert ship.versions(key)


def test_sweep_can_hold_release_seal_and_erase(ready, connect, stored):
    key, version_id = stored
    sweep = connect(ready.bucket, "sweep")
    sweep.hold(key, version_id, on=True)
    with pytest.raises(StorageError, match="AccessDenied"):
        sweep.delete_version(key, version_id, bypass_governance=True)
    sweep.hold(key, version_id, on=False)
    sweep.delete_version(key, version_id, bypass_governance=True)
    assert ready.versions(key) == []


def test_what_sweep_sealed_nobody_can_delete(ready, connect, stored):
    key, version_id = stored
    connect(ready.bucket, "sweep").seal(key, version_id, UNTIL)
    for who in (*ROLES, "admin"):
        with pytest.raises(StorageError, match="AccessDenied"):
            connect(ready.bucket, who).delete_version(key, version_id, bypass_governance=True)
    assert connect(ready.bucket, "api").lock_of(key, version_id) == ("COMPLIANCE", UNTIL)


def test_api_can_read(ready, connect, stored):
    api = connect(ready.bucket, "api")
    assert b"".join(api.read(*stored)) == BODY
    assert api.lock_of(*stored) == ("GOVERNANCE", UNTIL)


def attempts(key, version_id):
    """What is some credential's work at most: name -> request."""
    version = {"versionId": version_id}
    weaker = f"<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>{UNTIL - timedelta(days=80):%FT%TZ}</RetainUntilDate>"
    return {
        "read": ("GET", key, version, {}, b""),
        "put": ("PUT", "consent/2026/11/forged", {}, {}, b"x"),
        "put public": ("PUT", "consent/2026/11/forged", {}, {"x-amz-acl": "public-read"}, b"x"),
        "put elsewhere": ("PUT", "elsewhere/x", {}, {}, b"x"),
        "marker": ("DELETE", key, {}, {}, b""),
        "delete with bypass": ("DELETE", key, version, BYPASS, b""),
        "shorten with bypass": ("PUT", key, {"retention": "", **version}, BYPASS, f"{weaker}</Retention>".encode()),
        "hold": ("PUT", key, {"legal-hold": "", **version}, {}, b"<LegalHold><Status>ON</Status></LegalHold>"),
        "publish": ("PUT", key, {"acl": "", **version}, {"x-amz-acl": "public-read"}, b""),
        "versioning": (
            "PUT", "", {"versioning": ""}, {},
            b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
        ),
        "policy": ("DELETE", "", {"policy": ""}, {}, b""),
        "lifecycle": ("DELETE", "", {"lifecycle": ""}, {}, b""),
        "default lock": (
            "PUT", "", {"object-lock": ""}, {},
            b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>",
        ),
        "bucket": ("DELETE", "", {}, {}, b""),
    }  # fmt: skip


MAY = {"ship": {"read", "put"}, "api": {"read"}, "checkpoint": set(), "stranger": set()}
# Its bypass is the eraser's work; everything else stays shut to it, too.
SWEEP_MAY = {"read", "marker", "delete with bypass", "shorten with bypass", "hold"}


@pytest.mark.parametrize("who", MAY)
def test_each_credential_does_its_work_and_no_other(ready, connect, principals, stored, who):
    assert accepted(connect(ready.bucket, who), attempts(*stored)) == MAY[who]
    assert intact(connect(ready.bucket, "api"), *stored)
    assert bucket.compare(ready, bucket.recordings(ready.bucket, BASES, principals, https=False)) == []


def test_sweep_puts_nothing_and_changes_no_setting(ready, connect, principals, stored):
    others = {name: asked for name, asked in attempts(*stored).items() if name not in SWEEP_MAY}
    assert accepted(connect(ready.bucket, "sweep"), others) == set()
    assert bucket.compare(ready, bucket.recordings(ready.bucket, BASES, principals, https=False)) == []


def accepted(objects, asked):
    """The names of the requests that this credential was granted."""
    return {
        name
        for name, (method, key, query, headers, body) in asked.items()
        if objects.exchange.ask(method, key, query=query, headers=headers, body=body).accepted
    }


def test_checkpoints_can_be_written_by_one_and_deleted_by_none(s3, connect, principals):
    objects = connect(s3.bucket_name())
    plan = bucket.checkpoints(objects.bucket, 10, principals, https=False)
    assert bucket.set_up(objects, plan)[1] == []
    assert bucket.set_up(objects, plan) == ([], [])
    writer = connect(objects.bucket, "checkpoint")
    answer = writer.exchange.ask("PUT", "checkpoints/1.note", body=b"note")
    assert answer.accepted
    version_id = answer.headers["x-amz-version-id"]
    mode, until = writer.lock_of("checkpoints/1.note", version_id)
    assert mode == "COMPLIANCE"
    assert until > datetime.now(UTC) + timedelta(days=3649)
    for who in (*ROLES, "admin"):
        with pytest.raises(StorageError, match="AccessDenied"):
            connect(objects.bucket, who).delete_version("checkpoints/1.note", version_id, bypass_governance=True)
    assert b"".join(connect(objects.bucket, "api").read("checkpoints/1.note", version_id)) == b"note"
    for who in ("ship", "sweep", "api"):
        assert not connect(objects.bucket, who).exchange.ask("PUT", "checkpoints/2.note", body=b"note").accepted


def change_policy(objects, change):
    said = json.loads(objects.exchange.ask("GET", "", query={"policy": ""}).body)
    said["Statement"] = change(said["Statement"])
    assert objects.exchange.ask("PUT", "", query={"policy": ""}, body=json.dumps(said).encode()).accepted


def widen(statements):
    for each in statements:
        if each["Sid"] == "CallrecApiReads":
            each["Action"].append("s3:PutObject")
    return statements


HARM = {
    "statement CallrecShipOnlyPuts": lambda o: change_policy(
        o, lambda found: [each for each in found if each["Sid"] != "CallrecShipOnlyPuts"]
    ),
    "statement CallrecApiReads": lambda o: change_policy(o, widen),
    "lifecycle rule callrec:consent/": lambda o: o.exchange.ask("DELETE", "", query={"lifecycle": ""}),
    "default retention": lambda o: o.exchange.ask(
        "PUT", "", query={"object-lock": ""},
        body=b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HARM)
def test_what_was_taken_away_is_seen_and_put_back(admin, plan, what):
    bucket.set_up(admin, plan)
    HARM[what](admin)
    seen = [each.what for each in bucket.compare(admin, plan)]
    assert what in seen
    done, left = bucket.set_up(admin, plan)
    assert left == []
    assert any(what.rpartition(" ")[2] in line for line in done)
    assert bucket.compare(admin, plan) == []


def test_what_others_wrote_stays_and_is_named(admin, plan):
    bucket.set_up(admin, plan)
    on = [f"arn:aws:s3:::{admin.bucket}/*"]
    theirs = [
        {"Sid": "Audit", "Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject"], "Resource": on},
        {"Sid": "NoTags", "Effect": "Deny", "Principal": "*", "Action": ["s3:PutObjectTagging"], "Resource": on},
    ]
    change_policy(admin, lambda found: [each for each in found if each["Sid"] != "CallrecApiLooks"] + theirs)
    done, left = bucket.set_up(admin, plan)
    assert done == [f"set statement CallrecApiLooks of {admin.bucket}'s policy"]
    assert [(each.what, each.mendable) for each in left] == [("statement Audit", False)]
    kept = json.loads(admin.exchange.ask("GET", "", query={"policy": ""}).body)["Statement"]
    assert [each for each in kept if each["Sid"] in {"Audit", "NoTags"}] == theirs


@pytest.mark.parametrize(
    ("there", "named"),
    [
        (DefaultRetention(LockMode.GOVERNANCE, 30), False),  # stronger
        (DefaultRetention(LockMode.COMPLIANCE, 1), True),  # an upload in parts could not be erased
    ],
)
def test_a_stronger_lock_is_never_weakened(admin, plan, there, named):
    admin.create_bucket(there)
    left = bucket.set_up(admin, plan)[1]
    assert [(each.what, each.mendable) for each in left] == [("default retention", False)] * named
    assert admin.check().default_retention == there


def test_a_default_beyond_the_shortest_period_is_named(admin, plan, connect, tmp_path):
    """Calls of half an hour go up in parts, end under the default, and `ship` can shorten no lock: none is stored."""
    admin.create_bucket(DefaultRetention(LockMode.GOVERNANCE, 365))
    left = bucket.set_up(admin, plan)[1]
    path, ship = tmp_path / "sealed.enc", connect(admin.bucket, "ship")
    path.write_bytes(body := bytes(9 << 20))
    ship._single_put_limit = 1
    with pytest.raises(StorageError, match="set the lock"):
        ship.put_locked(
            "consent/r", path, sha256=sha256(body).digest(), mode=LockMode.GOVERNANCE, until=UNTIL, metadata={}
        )
    assert [(each.what, each.mendable) for each in left] == [("default retention", False)]


def test_checkpoints_get_a_longer_lock_never_a_shorter(admin, principals):
    bucket.set_up(admin, bucket.checkpoints(admin.bucket, 5, principals))
    bucket.set_up(admin, bucket.checkpoints(admin.bucket, 3, principals))
    assert admin.check().default_retention == DefaultRetention(LockMode.COMPLIANCE, 5, "Years")
    bucket.set_up(admin, bucket.checkpoints(admin.bucket, 7, principals))
    assert admin.check().default_retention == DefaultRetention(LockMode.COMPLIANCE, 7, "Years")


def test_a_weaker_mode_for_longer_is_for_a_person_to_decide(admin, principals):
    there = DefaultRetention(LockMode.GOVERNANCE, 20, "Years")
    admin.create_bucket(there)
    left = bucket.set_up(admin, bucket.checkpoints(admin.bucket, 10, principals))[1]
    assert [(each.what, each.mendable) for each in left] == [("default retention", False)]
    assert admin.check().default_retention == there


def test_a_bucket_without_lock_is_for_a_person_to_decide(admin, plan):
    admin._client.make_bucket(bucket_name=admin.bucket)
    done, left = bucket.set_up(admin, plan)
    assert done == []
    assert [(each.what, each.mendable) for each in left] == [("object lock", False)]


def test_caps_follow_from_the_calendar():
    """3 months are 92 days at most, 3 years 1096 (C1, C2); one more for an hour of summer time."""
    plan = bucket.recordings("b", BASES, dict.fromkeys(ROLES, "arn:aws:iam:::user/x"))
    caps = {
        key.removeprefix("arn:aws:s3:::b/"): each["Condition"]["NumericGreaterThan"][
            "s3:object-lock-remaining-retention-days"
        ]
        for each in plan.statements
        if each["Sid"].startswith("CallrecNoLockAbove")
        for key in each["Resource"]
    }
    assert caps == {
        "consent/*": "93", "segments/consent/*": "93",
        "market-transaction/*": "1097", "segments/market-transaction/*": "1097",
        "probe/*": "1",
    }  # fmt: skip
    never = next(each for each in plan.statements if each["Sid"] == "CallrecConsentIsNeverSealed")
    assert never["Resource"] == ["arn:aws:s3:::b/consent/*", "arn:aws:s3:::b/segments/consent/*"]


def test_sids_are_what_aws_takes_and_unlike_each_other(principals):
    for plan in (bucket.recordings("b", BASES, principals), bucket.checkpoints("c", 10, principals)):
        sids = [each["Sid"] for each in plan.statements]
        assert len(set(sids)) == len(sids)
        assert all(sid.isalnum() for sid in sids)
        assert len(json.dumps(plan.statements)) < 20_000  # AWS: 20 KB


def test_lifecycle_of_the_plan_is_the_net(admin, plan):
    bucket.set_up(admin, plan)
    assert set(lifecycle.read(admin)) == set(lifecycle.rules(BASES))
