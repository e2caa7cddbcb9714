"""The storage probe: a real Ceph RGW passes, moto is told exactly what it lets through, and no answer is no pass."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fix_stack import wait_until

from callrec import metrics
from callrec.call.policy import LockMode
from callrec.config import load
from callrec.demo.process import free_port
from callrec.errors import StorageError
from callrec.process import die_with_parent
from callrec.recording import bucket
from callrec.recording.exchange import Answer
from callrec.recording.objects import DefaultRetention, S3Objects
from callrec.recording.probe import probe

BASES = load(Path(__file__).parents[2] / "callrec.example.toml", {}).bases.values()
MOTO_LETS_THROUGH = {
    f"{how}: {attempt}" for how in ("single", "multipart") for attempt in ("shorten", "downgrade", "clear")
} | {
    "wrong secret key: read", "wrong secret key: put", "wrong secret key: delete", "anonymous: read", "anonymous: put",
}  # fmt: skip


def connect(name, s3, keys=None):
    keys = keys or s3
    return S3Objects(
        endpoint=s3.endpoint, region=s3.region, bucket=name, access_key=keys.access_key, secret_key=keys.secret_key
    )


@pytest.fixture(scope="module")
def sweep(s3):
    """The eraser's credential in a bucket set up as operators do it."""
    users, ids = s3.users("ship", "sweep", "api")
    arns = {name: f"arn:aws:iam:::user/{user}" for name, user in ids.items()}
    name = s3.bucket_name()
    admin = connect(name, s3)
    plan = bucket.recordings(name, BASES, arns | {"checkpoint": arns["sweep"]}, https=False)
    assert bucket.set_up(admin, plan)[1] == []
    admin.close()
    objects = connect(name, s3, users["sweep"])
    yield objects
    objects.close()


@pytest.fixture
def admin(s3):
    objects = connect(s3.bucket_name(), s3)
    objects.create_bucket(DefaultRetention(LockMode.GOVERNANCE, 1))
    yield objects
    objects.close()


@pytest.fixture(scope="module")
def moto():
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent(),  # noqa: PLW1509 # one prctl; it takes no lock
    )
    endpoint = f"http://127.0.0.1:{port}"

    def answers():
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=2) as answer:
                return answer.status
        except OSError:
            return None

    wait_until(answers, 60, "moto answers")
    objects = S3Objects(endpoint=endpoint, region="us-east-1", bucket="probed", access_key="a", secret_key="b")
    objects.create_bucket(DefaultRetention(LockMode.GOVERNANCE, 1))
    yield objects
    objects.close()
    process.kill()
    process.wait()


def failed(report):
    return {each.check for each in report.failures}


def test_ceph_rgw_keeps_its_word(sweep):
    noted = []
    report = probe(sweep, note=lambda kind, body: noted.append((kind, body)))
    assert failed(report) == set()
    assert report.passed
    assert len(report.findings) == 27
    told = next(each for each in report.findings if not each.judged and each.check.startswith("multipart"))
    assert (told.check, told.found) == ("multipart: lock headers at its creation", "dropped")
    [(kind, body)] = noted
    assert kind == "storage_probed"
    assert body["passed"] is True
    assert body["bucket"] == sweep.bucket
    assert len(body["checks"]) == 27
    for check in ("single: delete", "multipart: downgrade", "hold: delete with bypass"):
        assert metrics.WORM_PROBE.labels(check)._value.get() == 1
    assert abs(metrics.WORM_PROBE_AT._value.get() - time.time()) < 60


def test_moto_is_told_what_it_lets_through(moto):
    report = probe(moto, lock_seconds=10)
    assert failed(report) == MOTO_LETS_THROUGH
    found = {each.check: each.found for each in report.findings}
    assert found["single: downgrade"] == "accepted, then deleted with bypass, then gone"
    assert found["multipart: lock headers at its creation"] == "dropped"
    assert found["single: delete"] == "refused (AccessDenied)"
    assert report.as_record()["failed"] == [each.check for each in report.failures]
    assert metrics.WORM_PROBE.labels("single: shorten")._value.get() == 0


def test_little_stays_and_the_next_probe_removes_it(admin):
    probe(admin, lock_seconds=5, spare_seconds=0)
    left = admin.versions("probe/")
    assert left
    for each in left:
        assert admin.lock_of(each.key, each.version_id)[0] == "COMPLIANCE"  # all else went at once
    ends = max(admin.lock_of(each.key, each.version_id)[1] for each in left)
    wait_until(lambda: datetime.now(UTC) > ends, 10, "the end of the locks")
    report = probe(admin, lock_seconds=5, spare_seconds=0)
    assert report.passed
    assert report.findings[0].found == f"{len(left)} went"
    assert report.findings[0].judged
    assert not {each.key for each in left} & {each.key for each in admin.versions("probe/")}


def test_canaries_of_a_probe_that_runs_elsewhere_are_left(admin):
    answer = admin.exchange.ask("PUT", "probe/another/canary", body=b"x")
    probe(admin, lock_seconds=10)
    assert [each.version_id for each in admin.versions("probe/another/")] == [answer.headers["x-amz-version-id"]]
    probe(admin, lock_seconds=10, spare_seconds=-5)
    assert admin.versions("probe/another/") == []


def test_a_canary_can_be_waited_for(admin):
    report = probe(admin, lock_seconds=5, wait=True)
    assert report.passed
    assert report.findings[-1].check == "single: delete after the lock's end"


class Lying:
    """A store that answers some requests in its own way: `lie(method, query, headers)` gives an Answer, or None."""

    def __init__(self, objects, monkeypatch, lie):
        self._ask, self._lie = objects.exchange.ask, lie
        monkeypatch.setattr(objects.exchange, "ask", self.ask)

    def ask(self, method, key, *, query=None, headers=None, **more):
        lied = self._lie(method, query or {}, headers or {})
        return lied or self._ask(method, key, query=query, headers=headers, **more)


REFUSES = Answer(403, "AccessDenied", {}, b"")


def test_a_no_that_deletes_all_the_same_is_seen(admin, monkeypatch):
    gone = []

    def lie(method, query, headers):
        if method == "DELETE" and headers and "versionId" in query:
            gone.append(query["versionId"])
            return REFUSES
        return Answer(404, "", {}, b"") if method == "GET" and query.get("versionId") in gone else None

    Lying(admin, monkeypatch, lie)
    report = probe(admin, lock_seconds=10)
    assert failed(report) == {"single: delete", "multipart: delete", "hold: delete with bypass"}
    assert next(each for each in report.failures).found == "refused (AccessDenied), then gone"


def test_a_store_that_lets_nothing_go_fails_too(admin, monkeypatch):
    """What must go has to go (D1, C1): a GOVERNANCE lock that yields to nobody is a fault."""

    def refuse(*_, **__):
        raise StorageError("no", detail="AccessDenied")

    monkeypatch.setattr(admin, "delete_version", refuse)
    assert {"governance: delete with bypass", "hold: delete after its release"} <= failed(probe(admin, lock_seconds=10))


@pytest.mark.parametrize("attempt", [("DELETE", "versionId"), ("PUT", "retention")])
def test_a_store_that_fails_has_refused_nothing(admin, monkeypatch, attempt):
    method, about = attempt
    fails = Answer(503, "SlowDown", {}, b"")
    Lying(admin, monkeypatch, lambda asked, query, _: fails if asked == method and about in query else None)
    with pytest.raises(StorageError) as caught:
        probe(admin, lock_seconds=10)
    assert caught.value.transient


def test_nobody_listens_and_nothing_is_noted():
    noted = []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        down = S3Objects(endpoint=endpoint, region="r", bucket="bucket", access_key="a", secret_key="s")
        with pytest.raises(StorageError) as caught:
            probe(down, note=lambda *entry: noted.append(entry))
    assert caught.value.transient
    assert noted == []


def test_a_bucket_without_lock_is_refused(s3):
    plain = connect(s3.bucket_name(), s3)
    plain._client.make_bucket(bucket_name=plain.bucket)
    with pytest.raises(StorageError) as caught:
        probe(plain)
    assert not caught.value.transient
    assert caught.value.hint
