"""After real calls everything is there; what is missing afterwards, `callrec audit` says and exits with 1."""

import time

import pytest
from fix_stack import wait_until

from callrec.demo.scenarios import SCENARIOS
from callrec.recording.objects import S3Objects

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def audits(callrec):
    return callrec.inspector.rows("SELECT body FROM ledger WHERE kind = 'audit_completed' ORDER BY entry_id")


def test_a_clean_installation_is_complete_after_calls_of_every_kind(callrec):
    verdicts, calls = callrec.judged(*SCENARIOS)
    assert [verdict.wrong for verdict in verdicts] == [[]] * len(SCENARIOS)
    recording = next(row for call in calls if (row := callrec.recording(call)) and row["state"] == "stored")
    done = callrec.command("audit", "--full")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "everything is there" in done.stdout
    told = [entry["body"] for entry in audits(callrec) if entry["body"]["full"]]
    assert told[0]["calls"] == len(SCENARIOS)
    assert told[0]["objects"] == sum(1 for call in calls if (callrec.recording(call) or {}).get("state") == "stored")
    # What `sweep` did by itself when it started.
    at = wait_until(lambda: callrec.metric("callrec_audit_timestamp_seconds"), 60, "the audit of the start")
    assert at <= time.time()
    assert callrec.metric("callrec_audit_findings") == 0
    s3 = callrec.stack.s3
    admin = S3Objects(
        endpoint=s3.endpoint, region=s3.region, bucket=callrec.installation.bucket, access_key=s3.access_key,
        secret_key=s3.secret_key,
    )  # fmt: skip
    admin.delete_version(recording["object_key"], recording["version_id"], bypass_governance=True)
    admin.close()
    done = callrec.command("audit")
    assert done.returncode == 1
    assert "object_missing" in done.stdout
    assert str(recording["recording_id"]) in done.stdout
    wait_until(lambda: callrec.metric("callrec_audit_findings", kind="object_missing") == 1, 90, "the metric")
