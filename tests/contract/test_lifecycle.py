"""The lifecycle rules: never before the calendar says so, seen when they drift, and real on a Ceph RGW."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from dateutil.relativedelta import relativedelta
from fix_stack import wait_until
from hypothesis import example, given
from hypothesis import strategies as st

from callrec import metrics
from callrec.call.policy import LockMode, Retention
from callrec.config import load
from callrec.errors import StorageError
from callrec.recording import lifecycle
from callrec.recording.lifecycle import NetRule, drift, kept_days, longest_days, merged, rules
from callrec.recording.objects import S3Objects, lock_headers
from callrec.rights.retention import retain_until

BASES = list(load(Path(__file__).parents[2] / "callrec.example.toml", {}).bases.values())
WANTED = rules(BASES)
RETENTIONS = st.builds(Retention, years=st.integers(0, 30), months=st.integers(0, 40)).filter(
    lambda period: period.years or period.months
)
ZONES = st.sampled_from(["Europe/Ljubljana", "UTC", "Pacific/Apia", "America/New_York", "Australia/Lord_Howe"])
STARTS = st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 # bounds are naive


def connect(at):
    return S3Objects(
        endpoint=at.endpoint,
        region=at.region,
        bucket=f"test-{uuid4().hex[:16]}",
        access_key=at.access_key,
        secret_key=at.secret_key,
    )


@pytest.fixture
def objects(s3):
    objects = connect(s3)
    objects.create_bucket(None)
    yield objects
    objects.close()


@pytest.mark.parametrize(
    ("retention", "days"),
    [
        (Retention(months=3), 92),
        (Retention(years=3), 1096),
        (Retention(months=1), 31),
        (Retention(months=2), 62),
        (Retention(years=1), 366),
        (Retention(years=4), 1461),
        (Retention(years=8), 2922),
        (Retention(years=100), 36525),
    ],
)
def test_the_longest_that_a_period_can_be(retention, days):
    assert longest_days(retention) == days


@pytest.mark.parametrize("retention", [Retention(months=3), Retention(years=3), Retention(months=11)])
def test_the_longest_is_that_of_some_start_and_of_none_more(retention):
    """Another way to it: every day of eight years, by the arithmetic that dates recordings (C1, C2)."""
    period = relativedelta(years=retention.years, months=retention.months)
    starts = (date(2024, 1, 1) + timedelta(days=day) for day in range(8 * 366))
    assert max((start + period - start).days for start in starts) == longest_days(retention)


@given(start=STARTS, retention=RETENTIONS, zone=ZONES)
@example(start=datetime(2027, 11, 30, 23, 30, tzinfo=UTC), retention=Retention(months=3), zone="Europe/Ljubljana")
def test_no_rule_acts_before_the_recording_has_to_go(start, retention, zone):
    """A lifecycle counts from the upload, which is never before the start."""
    due = retain_until(start, retention, zone)
    basis = replace(BASES[0], retention=retention)
    for rule in rules([basis]):
        if rule.prefix.startswith((basis.prefix, f"segments/{basis.prefix}")):
            for days in (rule.expire_days, rule.noncurrent_days):
                assert days is None or start + timedelta(days=days) > due
        else:
            assert not rule.removes or rule.prefix == "probe/"


def test_the_net_covers_every_basis_and_says_what_it_does():
    said = {rule.id: str(rule) for rule in WANTED}
    assert said["callrec:consent/"] == "consent/: marks after 106 days, removes replaced versions after 106 days"
    assert said["callrec:market-transaction/"].startswith("market-transaction/: marks after 1110 days")
    assert said["callrec:segments/consent/"].startswith("segments/consent/: marks after 106 days")
    assert said["callrec:consent/:markers"] == "consent/: removes lone delete markers"
    assert said["abort-stale-uploads"] == "all keys: aborts uploads after 1 days"
    assert len(said) == len(WANTED)


def changed(name, **values):
    return [replace(rule, **values) if rule.id == name else rule for rule in WANTED]


THEIRS = NetRule("archive", "consent/2026/", expire_days=30)
DRIFTS = {
    "nothing there": ([], False),
    "one is missing": ([rule for rule in WANTED if rule.id != "callrec:consent/"], False),
    "switched off": (changed("callrec:consent/", enabled=False), False),
    "too early": (changed("callrec:consent/", noncurrent_days=30), True),
    "too late": (changed("callrec:consent/", expire_days=4000), False),
    "sales too early on all keys": (changed("callrec:market-transaction/", prefix="", expire_days=106), True),
    "narrowed by a tag": (changed("callrec:consent/", more="Tag"), False),
    "a foreign rule below a prefix": ([*WANTED, THEIRS], True),
    "a foreign rule on everything": ([*WANTED, NetRule("all", "", noncurrent_days=200)], True),
    "a foreign rule that waits": ([*WANTED, NetRule("late", "consent/", expire_days=9999)], False),
    "a foreign transition": ([*WANTED, NetRule("cold", "", more="Transition")], True),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_drift_is_seen_and_told_by_its_danger(name):
    found, dangerous = DRIFTS[name]
    seen = drift(WANTED, found)
    assert seen
    assert any(each.dangerous for each in seen) == dangerous


@pytest.mark.parametrize("beside", [NetRule("logs", "access-logs/", expire_days=1), NetRule("up", "", abort_days=2)])
def test_what_touches_no_recording_is_no_drift(beside):
    assert drift(WANTED, [*WANTED, beside]) == []


@given(expire=st.integers(1, 5000), noncurrent=st.integers(1, 5000))
def test_applying_never_shortens_and_never_stays_too_early(expire, noncurrent):
    found = [*changed("callrec:consent/", expire_days=expire, noncurrent_days=noncurrent), THEIRS]
    after = {rule.id: rule for rule in merged(WANTED, found)}
    assert after["callrec:consent/"].expire_days == max(expire, 106)
    assert after["callrec:consent/"].noncurrent_days == max(noncurrent, 106)
    assert after["archive"] == THEIRS
    assert merged(WANTED, found, shorten=True) == [*WANTED, THEIRS]


def test_written_and_read_back_is_the_same(objects):
    assert len(lifecycle.check(objects, WANTED)) == len(WANTED) - 1  # a new bucket has the rule for stale uploads
    assert metrics.LIFECYCLE_DRIFT._value.get() == len(WANTED) - 1
    assert lifecycle.apply(objects, WANTED) == []
    assert set(lifecycle.read(objects)) == set(WANTED)
    assert lifecycle.check(objects, WANTED) == []
    assert metrics.LIFECYCLE_DRIFT._value.get() == 0


def test_the_rules_of_others_stay_and_are_told(objects):
    theirs = (
        b"<LifecycleConfiguration><Rule><ID>theirs</ID><Filter><And><Prefix>consent/</Prefix><Tag><Key>a</Key>"
        b"<Value>b</Value></Tag></And></Filter><Status>Enabled</Status><Expiration><Days>5</Days></Expiration></Rule>"
        b"<Rule><ID>logs</ID><Filter><Prefix>logs/</Prefix></Filter><Status>Enabled</Status>"
        b"<Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>"
    )
    assert objects.exchange.ask("PUT", "", query={"lifecycle": ""}, body=theirs).accepted
    left = lifecycle.apply(objects, WANTED)
    assert [(each.rule, each.dangerous) for each in left] == [("theirs", True)]
    assert {rule.id for rule in lifecycle.read(objects)} == {rule.id for rule in WANTED} | {"theirs", "logs"}
    assert lifecycle.apply(objects, WANTED) == left


def test_no_bucket_is_an_error_not_an_empty_net(s3, objects):
    objects.exchange._bucket = s3.bucket_name()
    with pytest.raises(StorageError, match="NoSuchBucket"):
        lifecycle.check(objects, WANTED)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_net_takes_what_is_free_and_leaves_what_is_locked_or_held(own_stack):
    """A day of this server's lifecycle is ten seconds; the rules are the real ones with a day in place of 106.

    The server is this test's own: it takes the buckets one after the other, and the session's has many.
    """
    objects = connect(own_stack("s3", lifecycle_day_seconds=10).s3)
    objects.create_bucket(None)
    quick = [
        replace(rule, expire_days=rule.expire_days and 1, noncurrent_days=rule.noncurrent_days and 1) for rule in WANTED
    ]
    assert lifecycle.apply(objects, quick) == []
    until = datetime.now(UTC) + timedelta(hours=1)
    versions = {}
    for name, headers in (
        ("free", {}),
        ("held", {}),
        ("governance", lock_headers(LockMode.GOVERNANCE, until)),
        ("compliance", lock_headers(LockMode.COMPLIANCE, until)),
    ):
        answer = objects.exchange.ask("PUT", f"consent/{name}", headers=headers, body=b"x")
        versions[name] = answer.headers["x-amz-version-id"]
    objects.hold("consent/held", versions["held"], on=True)
    assert objects.exchange.ask("DELETE", "consent/free").accepted  # now a version under a marker

    def markers(name):
        return sum(each.is_delete_marker for each in objects.versions(f"consent/{name}"))

    wait_until(lambda: objects.versions("consent/free") == [], 100, "version and marker of the free one gone")
    for name in ("held", "governance", "compliance"):  # a marker tells that the rule has passed by
        wait_until(lambda name=name: markers(name), 60, f"a marker above the {name} one")
    wait_until(lambda: objects.exchange.ask("GET", "consent/held").status == 404, 10, "the held one out of sight")
    for name in ("held", "governance", "compliance"):
        assert b"".join(objects.read(f"consent/{name}", versions[name])) == b"x"
    objects.close()


def test_kept_days_leave_time_to_mend_the_sweeper():
    assert kept_days(Retention(months=3)) - longest_days(Retention(months=3)) >= 7
