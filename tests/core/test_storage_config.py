"""What the configuration says of buckets and credentials, and each way to get it wrong."""

from pathlib import Path

import pytest

from callrec.check import check
from callrec.config import load, parse
from callrec.credentials import ROLES, variables
from callrec.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "callrec.example.toml"
TEXT = EXAMPLE.read_text(encoding="utf-8")
ARN = "arn:aws:iam::111122223333:role/callrec-"


def written(tmp_path, old, new):
    assert old in TEXT
    path = tmp_path / "callrec.toml"
    path.write_text(TEXT.replace(old, new), encoding="utf-8")
    return path


def test_the_example_names_each_credential_and_the_checkpoints_are_sweeps():
    storage = load(EXAMPLE, {}).storage
    assert storage.principals == {
        "ship": f"{ARN}ship", "sweep": f"{ARN}sweep", "api": f"{ARN}api", "checkpoint": f"{ARN}sweep",
    }  # fmt: skip
    assert (storage.checkpoints.bucket, storage.checkpoints.years) == ("callrec-checkpoints", 10)
    assert (storage.worm_probe, storage.read_back) == ("enforce", "sample")


@pytest.mark.parametrize("arn", ["arn:aws:iam:::user/ship", "arn:aws:iam::tenant:user/a", "arn:aws-cn:iam::1:role/p/x"])
def test_arns_of_aws_and_ceph_are_taken(tmp_path, arn):
    assert load(written(tmp_path, f"{ARN}ship", arn), {}).storage.principals["ship"] == arn


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (f"{ARN}api", f"{ARN}ship", "storage.principals.api"),
        (f"{ARN}api", "callrec-api", "storage.principals.api"),
        (f"{ARN}api", "*", "storage.principals.api"),
        (f'api = "{ARN}api"', "", "storage.principals.api"),
        ('bucket = "callrec-checkpoints"', 'bucket = "callrec-recordings"', "storage.checkpoints.bucket"),
        ("years = 10 ", "years = 0 ", "storage.checkpoints.years"),
        ('worm_probe = "enforce"', 'worm_probe = "off"', "storage.worm_probe"),
        ('read_back = "sample"', 'read_back = "none"', "storage.read_back"),
        ('prefix = "consent"', 'prefix = "probe"', "bases.consent.prefix"),
        ('prefix = "consent"', 'prefix = "segments"', "bases.consent.prefix"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path, old, new, said):
    assert [fault.where for fault in parse(written(tmp_path, old, new), {})[1]] == [said]


def test_how_much_is_read_back_is_one_of_two_words(tmp_path):
    assert load(written(tmp_path, 'read_back = "sample"', 'read_back = "full"'), {}).storage.read_back == "full"
    assert load(written(tmp_path, 'read_back = "sample"', ""), {}).storage.read_back == "sample"
    (fault,) = parse(written(tmp_path, 'read_back = "sample"', 'read_back = "samples"'), {})[1]
    assert '"sample"' in str(fault)


def test_without_principals_and_checkpoints_it_can_be_used_and_is_warned_about(tmp_path):
    start, end = TEXT.index("[storage.checkpoints]"), TEXT.index("[encryption]")
    path = written(tmp_path, TEXT[start:end], "")
    storage = load(path, {}).storage
    assert storage.principals == {}
    assert storage.checkpoints is None
    assert "storage.principals" in {finding.where for finding in check(path, {})}
    assert "storage.principals" not in {finding.where for finding in check(EXAMPLE, {})}


def test_a_probe_that_only_warns_is_warned_about(tmp_path):
    path = written(tmp_path, 'worm_probe = "enforce"', 'worm_probe = "warn"')
    assert "storage.worm_probe" in {finding.where for finding in check(path, {})}


def test_the_administrators_keys_are_asked_for_and_belong_to_no_role():
    with pytest.raises(ConfigError, match="CALLREC_S3_ACCESS_KEY_ADMIN"):
        load(EXAMPLE, {}, role="admin")
    keys = {"CALLREC_S3_ACCESS_KEY_ADMIN": "a", "CALLREC_S3_SECRET_KEY_ADMIN": "s"}
    assert load(EXAMPLE, keys, role="admin").secrets.s3_keys("admin") == ("a", "s")
    for role in ROLES:
        assert not set(keys) & set(variables(role))
