"""The port to S3 against a real Ceph RGW: what is put under lock stays, and what is not as asked is noticed."""

import socket
import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import uuid4

import gevent
import pytest
from gevent.server import StreamServer

from callrec.call.policy import LockMode
from callrec.errors import ConfigError, SpoolError, StorageError
from callrec.recording.objects import BucketFacts, DefaultRetention, S3Objects

MIB = 1 << 20
UNTIL = datetime.now(UTC).replace(microsecond=0) + timedelta(days=90)
MODES = pytest.mark.parametrize("mode", list(LockMode))


@pytest.fixture(scope="module")
def connect(s3):
    made = []

    def connect(bucket, **options):
        given = {
            "endpoint": s3.endpoint,
            "region": s3.region,
            "access_key": s3.access_key,
            "secret_key": s3.secret_key,
            "connect_seconds": 2,
            "read_seconds": 10,
        }
        made.append(S3Objects(bucket=bucket, **(given | options)))
        return made[-1]

    yield connect
    for objects in made:
        objects.close()


@pytest.fixture(scope="module")
def objects(s3, connect):
    objects = connect(s3.bucket_name(), single_put_limit=6 * MIB, part_bytes=5 * MIB)
    objects.create_bucket(DefaultRetention(LockMode.GOVERNANCE, 1))
    return objects


@pytest.fixture
def bare(s3, connect):
    """A bucket that locks nothing by itself."""
    objects = connect(s3.bucket_name(), single_put_limit=6 * MIB, part_bytes=5 * MIB)
    objects.create_bucket(None)
    return objects


class File:
    """A file to be stored, and how it was put."""

    def __init__(self, directory, size):
        self.data = sha256(uuid4().bytes).digest() * (size // 32)
        self.key = f"consent/2026/11/{uuid4()}"
        self.path = directory / "sealed.enc"
        self.path.write_bytes(self.data)
        self.sha256 = sha256(self.data).digest()

    def put(self, objects, mode=LockMode.GOVERNANCE, until=UNTIL):
        return objects.put_locked(
            self.key, self.path, sha256=self.sha256, mode=mode, until=until, metadata={"recording": "r1"}
        )

    def verify(self, objects, version_id, **other):
        asked = {"sha256": self.sha256, "size": len(self.data), "mode": LockMode.GOVERNANCE, "until": UNTIL}
        objects.verify(self.key, version_id, **(asked | other))


SINGLE, PARTS = 64 * 1024, 12 * MIB


@pytest.fixture(params=[SINGLE, PARTS], ids=["single", "multipart"])
def file(request, tmp_path):
    return File(tmp_path, request.param)


@MODES
def test_what_is_put_can_be_verified_and_read_but_not_deleted(objects, file, mode):
    stored = file.put(objects, mode)
    file.verify(objects, stored.version_id, mode=mode)
    assert b"".join(objects.read(file.key, stored.version_id)) == file.data
    with pytest.raises(StorageError, match="AccessDenied") as caught:
        objects.delete_version(file.key, stored.version_id, bypass_governance=False)
    assert not caught.value.transient
    assert caught.value.hint
    file.verify(objects, stored.version_id, mode=mode)


def test_the_lock_does_not_come_from_the_default_of_the_bucket(bare, file):
    stored = file.put(bare)
    file.verify(bare, stored.version_id)
    with pytest.raises(StorageError):
        bare.delete_version(file.key, stored.version_id, bypass_governance=False)


def test_governance_yields_to_bypass_and_nothing_is_left(objects, file):
    stored = file.put(objects)
    objects.delete_version(file.key, stored.version_id, bypass_governance=True)
    assert objects.versions(file.key) == []
    objects.delete_version(file.key, stored.version_id, bypass_governance=True)  # again: no error


def test_compliance_yields_to_nobody(objects, tmp_path):
    file = File(tmp_path, SINGLE)
    stored = file.put(objects, LockMode.COMPLIANCE)
    with pytest.raises(StorageError):
        objects.delete_version(file.key, stored.version_id, bypass_governance=True)
    with pytest.raises(StorageError):
        objects.lock(file.key, stored.version_id, LockMode.COMPLIANCE, UNTIL - timedelta(days=1))


def test_a_lock_can_be_lengthened_but_not_shortened(objects, tmp_path):
    file = File(tmp_path, SINGLE)
    stored = file.put(objects)
    later = UNTIL + timedelta(days=1)
    objects.lock(file.key, stored.version_id, LockMode.GOVERNANCE, later)
    file.verify(objects, stored.version_id, until=later)
    with pytest.raises(StorageError):
        objects.lock(file.key, stored.version_id, LockMode.GOVERNANCE, UNTIL)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"sha256": bytes(32)}, "SHA-256"),
        ({"size": 1}, "size"),
        ({"mode": LockMode.COMPLIANCE}, "lock mode"),
        ({"until": UNTIL + timedelta(seconds=2)}, "lock date"),
        ({"until": UNTIL - timedelta(seconds=2)}, "lock date"),
    ],
)
def test_verify_says_what_differs(objects, file, other, named):
    stored = file.put(objects)
    with pytest.raises(StorageError, match=named) as caught:
        file.verify(objects, stored.version_id, **other)
    assert not caught.value.transient


def test_verify_finds_a_missing_lock(bare, tmp_path):
    file = File(tmp_path, SINGLE)
    plain = bare._client.fput_object(bucket_name=bare.bucket, object_name=file.key, file_path=str(file.path))
    with pytest.raises(StorageError, match="lock mode"):
        file.verify(bare, plain.version_id)
    bare.lock(file.key, plain.version_id, LockMode.GOVERNANCE, UNTIL)
    file.verify(bare, plain.version_id)


def test_the_server_refuses_what_does_not_have_its_hash(objects, tmp_path):
    file = File(tmp_path, SINGLE)
    file.sha256 = bytes(32)
    with pytest.raises(StorageError) as caught:
        file.put(objects)
    assert not caught.value.transient
    assert objects.versions(file.key) == []


def test_an_earlier_put_of_the_same_bytes_is_found(objects, file):
    assert objects.find(file.key, file.sha256) is None
    stored = file.put(objects)
    assert objects.find(file.key, file.sha256) == stored.version_id
    assert objects.find(file.key, bytes(32)) is None
    assert objects.find(file.key[:-1], file.sha256) is None


def test_versions_and_delete_markers_are_listed(objects, tmp_path):
    file = File(tmp_path, SINGLE)
    first, second = file.put(objects), file.put(objects)
    objects._client.remove_object(bucket_name=objects.bucket, object_name=file.key)
    found = objects.versions(file.key)
    assert len(found) == 3
    assert {version.version_id for version in found} >= {first.version_id, second.version_id}
    assert [version.is_delete_marker for version in found].count(True) == 1
    assert {version.size for version in found if not version.is_delete_marker} == {SINGLE}


def test_only_our_own_identifiers_go_along(objects, tmp_path):
    file = File(tmp_path, SINGLE)
    stored = file.put(objects)
    head = objects._head(file.key, stored.version_id)
    kept = {name.lower(): value for name, value in head.metadata.items() if name.lower().startswith("x-amz-meta-")}
    assert kept == {"x-amz-meta-sha256": file.sha256.hex(), "x-amz-meta-recording": "r1"}


def test_check_tells_what_the_bucket_is(objects, bare, s3, connect):
    default = DefaultRetention(LockMode.GOVERNANCE, 1)
    assert objects.check() == BucketFacts(True, object_lock=True, versioning=True, default_retention=default)
    assert bare.check() == BucketFacts(True, object_lock=True, versioning=True, default_retention=None)
    missing = connect(s3.bucket_name())
    assert missing.check() == BucketFacts(exists=False)
    missing._client.make_bucket(bucket_name=missing.bucket)
    assert missing.check() == BucketFacts(exists=True)


def test_a_bucket_without_lock_is_refused_for_good(s3, connect, file):
    plain = connect(s3.bucket_name(), single_put_limit=6 * MIB, part_bytes=5 * MIB)
    plain._client.make_bucket(bucket_name=plain.bucket)
    with pytest.raises(StorageError) as caught:
        file.put(plain)
    assert not caught.value.transient
    assert caught.value.hint


def test_no_bucket_no_key_no_version(objects, s3, connect, file):
    with pytest.raises(StorageError, match="NoSuchBucket") as caught:
        file.put(connect(s3.bucket_name(), single_put_limit=6 * MIB))
    assert not caught.value.transient
    with pytest.raises(StorageError):
        list(objects.read("consent/none", "none"))
    with pytest.raises(StorageError):
        file.verify(objects, "none")


@pytest.mark.parametrize("wrong", [{"secret_key": "wrong"}, {"access_key": "nobody"}])
def test_wrong_credentials_are_not_a_passing_trouble(objects, connect, file, wrong):
    stranger = connect(objects.bucket, single_put_limit=6 * MIB, part_bytes=5 * MIB, **wrong)
    for fails in (lambda: file.put(stranger), stranger.check, lambda: stranger.versions("")):
        with pytest.raises(StorageError) as caught:
            fails()
        assert not caught.value.transient
    assert objects.versions(file.key) == []


def every_operation(objects, file):
    yield lambda: file.put(objects)
    yield lambda: file.verify(objects, "v")
    yield lambda: list(objects.read(file.key, "v"))
    yield lambda: objects.versions("")
    yield lambda: objects.lock(file.key, "v", LockMode.GOVERNANCE, UNTIL)
    yield objects.check
    yield lambda: objects.delete_version(file.key, "v", bypass_governance=True)


def test_nobody_listens(connect, tmp_path):
    file = File(tmp_path, SINGLE)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        down = connect("bucket", endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}", single_put_limit=6 * MIB)
        for fails in every_operation(down, file):
            began = time.monotonic()
            with pytest.raises(StorageError) as caught:
                fails()
            assert caught.value.transient
            assert time.monotonic() - began < 2


def test_a_server_that_accepts_and_stays_silent(connect, tmp_path):
    file = File(tmp_path, SINGLE)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        mute = connect("bucket", endpoint=endpoint, connect_seconds=0.15, read_seconds=0.15, single_put_limit=6 * MIB)
        for fails in every_operation(mute, file):
            began = time.monotonic()
            with pytest.raises(StorageError) as caught:
                fails()
            assert caught.value.transient
            assert time.monotonic() - began < 3


@pytest.mark.parametrize(("status", "transient"), [(503, True), (500, True), (404, False), (200, False)])
def test_a_server_that_speaks_something_else(connect, tmp_path, status, transient):
    def answer(connection, _):
        connection.recv(65536)
        connection.sendall(f"HTTP/1.1 {status} x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello".encode())
        connection.close()

    server = StreamServer(("127.0.0.1", 0), answer)
    server.start()
    try:
        odd = connect("bucket", endpoint=f"http://127.0.0.1:{server.server_port}")
        for fails in (lambda: odd.versions(""), lambda: File(tmp_path, 64).put(odd)):
            with pytest.raises(StorageError) as caught:
                fails()
            assert caught.value.transient is transient
    finally:
        server.stop()


def test_other_greenlets_go_on_while_an_object_is_put(objects, tmp_path):
    file = File(tmp_path, 5 * MIB)
    ticks = []

    def ticker():
        while True:
            ticks.append(time.monotonic())
            gevent.sleep(0.001)

    beside = gevent.spawn(ticker)
    try:
        gevent.sleep(0)
        before = len(ticks)
        file.put(objects)
        assert len(ticks) > before + 2
    finally:
        beside.kill()


def test_a_file_that_is_gone_is_no_fault_of_the_store(objects, tmp_path):
    file = File(tmp_path, 64)
    file.path.unlink()
    with pytest.raises(SpoolError):
        file.put(objects)


@pytest.mark.parametrize("endpoint", ["s3.example.net", "ftp://s3.example.net", "http://", "https://host/path"])
def test_an_endpoint_is_a_url(endpoint):
    with pytest.raises(ConfigError):
        S3Objects(endpoint=endpoint, region="r", bucket="b", access_key="a", secret_key="s")
