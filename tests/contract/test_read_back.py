"""What a real Ceph RGW gives back, where the bytes are not those that were put."""

import random
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest
from fix_rights import connect

from callrec import metrics
from callrec.call.policy import LockMode
from callrec.errors import SpoolError, StorageError
from callrec.recording.objects import S3Objects
from callrec.recording.read_back import BLOCK, read_back

SMALL, LARGE = 3 * BLOCK + 17, 40 * BLOCK + 17


@pytest.fixture(scope="module")
def objects(s3):
    objects = connect(s3, s3.bucket_name())
    objects.create_bucket(None)
    yield objects
    objects.close()


class Put(NamedTuple):
    """A sealed file, and a version that was put for it."""

    objects: S3Objects
    key: str
    version_id: str
    path: Path
    sha256: bytes

    def read_back(self, *, full):
        """Bytes that were read for it."""
        before = metrics.READ_BACK_BYTES._value.get()
        read_back(self.objects, self.key, self.version_id, self.path, self.sha256, full=full)
        return metrics.READ_BACK_BYTES._value.get() - before


@pytest.fixture
def put(objects, tmp_path):
    def put(size, flipped=None):
        """With one byte flipped in what the store holds."""
        path, key = tmp_path / "sealed.enc", f"consent/2026/11/{uuid4()}"
        data = bytearray(sha256(uuid4().bytes).digest() * (size // 32 + 1))[:size]
        path.write_bytes(data)
        right = sha256(data).digest()
        if flipped is not None:
            data[flipped] ^= 1
        there = tmp_path / "there"
        there.write_bytes(data)
        version_id = objects.put_locked(
            key, there, sha256=sha256(data).digest(), mode=LockMode.GOVERNANCE,
            until=datetime.now(UTC) + timedelta(days=1), metadata={"sha256": right.hex()},
        ).version_id  # fmt: skip
        return Put(objects, key, version_id, path, right)

    return put


@pytest.mark.parametrize("size", [1, SMALL, LARGE])
def test_what_is_right_is_right_and_a_sample_is_small(put, size):
    there = put(size)
    assert there.read_back(full=False) == min(size, 6 * BLOCK)
    assert there.read_back(full=True) == size


@pytest.mark.parametrize(
    ("size", "flipped"), [(LARGE, 0), (LARGE, BLOCK - 1), (LARGE, LARGE - BLOCK), (LARGE, LARGE - 1)]
)
def test_a_sample_finds_a_byte_that_differs_in_the_first_and_the_last_block(put, size, flipped):
    there = put(size, flipped)
    with pytest.raises(StorageError, match="SHA-256") as caught:
        there.read_back(full=False)
    assert not caught.value.transient
    assert caught.value.hint


@pytest.mark.parametrize("flipped", [0, SMALL // 2, SMALL - 1])
def test_a_sample_of_a_small_object_is_all_of_it(put, flipped):
    with pytest.raises(StorageError, match="SHA-256"):
        put(SMALL, flipped).read_back(full=False)


def test_a_sample_looks_in_the_middle_where_nobody_foresees_it(put):
    there, found = put(LARGE, LARGE // 2), 0
    random.seed(6)
    for _ in range(60):
        try:
            there.read_back(full=False)
        except StorageError:
            found += 1
    assert 0 < found < 60


@pytest.mark.parametrize("flipped", [0, LARGE // 2, LARGE // 2 + 1, LARGE - 1])
def test_all_of_it_finds_any_byte(put, flipped):
    with pytest.raises(StorageError, match="SHA-256"):
        put(LARGE, flipped).read_back(full=True)


def test_a_file_that_is_damaged_in_the_spool_accuses_no_object(put):
    there = put(LARGE)
    with there.path.open("r+b") as file:
        file.write(b"\x55" * 32)
    assert there.read_back(full=False) > LARGE  # the hash decides
    there.path.unlink()
    with pytest.raises(SpoolError):
        there.read_back(full=False)


def test_a_version_with_other_bytes_is_not_found_whole(put):
    wrong, right = put(SMALL, 5), put(SMALL)
    for there, found in ((wrong, None), (right, right.version_id)):
        assert there.objects.find(there.key, there.sha256) == there.version_id
        assert there.objects.find(there.key, there.sha256, whole=True) == found
