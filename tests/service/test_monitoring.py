"""Each alert fires on a callrec that really has its fault, and no panel of the dashboard is empty.

A Prometheus of Debian's scrapes one callrec on a stack of its own, while one fault after the other is caused. It judges
by monitoring/alerts.yaml, without the patience (`for:`) that keeps people from being woken too early: promtool's tests
have that. The tests are the chapters of one story, and depend on their order.

CALLREC_DASHBOARD_PICTURE names a file in which the dashboard is drawn as it was in this run.
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import gevent
import psycopg
import pytest
from dashboard_picture import draw
from fix_callrec import UNHURRIED, facts, frozen, running_node
from fix_prometheus import DASHBOARD, RULES, Prometheus
from fix_stack import stack_directory, wait_until
from minio import Minio
from psycopg import sql
from psycopg.rows import dict_row

from callrec.demo.scenarios import SCENARIOS, by_name
from callrec.demo.stack import Stack

CONSENT, REFUSAL, SALE = by_name("consent"), by_name("refusal"), by_name("sale")
STEP = 2  # seconds between the points of a curve
CHANGES = {
    "spool": {"max_size": "512MiB"},
    "listen": UNHURRIED["listen"] | {"max_calls": 40},
    "ledger": {"anchor_seconds": 2},
    "bases.market_transaction": {"segment_seconds": 1},
}
STARVED = {"CallrecHubLag"}  # what a machine that others use, too, may raise by itself


class Watched:
    """A callrec that a Prometheus watches."""

    def __init__(self, node, prometheus):
        self.node = node
        self.prometheus = prometheus
        self.start = time.time()
        self.fired = set()

    def alarms(self):
        """What fires now."""
        now = self.prometheus.alarms()
        self.fired |= now
        return now

    def raises(self, *alerts, seconds=60):
        with contextlib.suppress(pytest.fail.Exception):
            wait_until(lambda: set(alerts) <= self.alarms(), seconds, "the alarms", pause=0.2)
        assert set(alerts) <= self.alarms(), self.node.installation.log_tail(30)

    def execute(self, statement, about=()):
        """As the database's administrator; the rows of a SELECT."""
        with psycopg.connect(self.node.stack.postgres_url, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(statement, about)
            return cursor.fetchall() if cursor.description else []

    def again(self, role):
        """Kill a role: the supervisor starts it again, and it looks at everything anew."""
        pid = self.node.kill(role)
        wait_until(lambda: self.node.pid(role) != pid, 20, f"another {role}")

    @property
    def bucket(self):
        """S3 as the administrator, and the name of the bucket."""
        at = self.node.stack.s3
        client = Minio(at.host, access_key=at.access_key, secret_key=at.secret_key, secure=False, region=at.region)
        return client, self.node.installation.bucket


@pytest.fixture(scope="module")
def watched(short_prompts):
    directory = stack_directory()
    rules = re.sub(r"^ +for: .+\n", "", RULES, flags=re.MULTILINE)
    with contextlib.ExitStack() as ends:
        ends.callback(shutil.rmtree, directory, ignore_errors=True)
        stack = ends.enter_context(Stack(directory / "stack", env={}))
        node = ends.enter_context(running_node(stack, short_prompts, changes=CHANGES))
        watched = Watched(node, ends.enter_context(Prometheus(node.installation.http, rules)))
        wait_until(lambda: watched.prometheus.ask("query", query="up == 1")["result"], 30, "a scrape", pause=0.2)
        ends.callback(gevent.spawn(callers, node.switch).kill)
        yield watched


def callers(switch):
    """A call a second of every kind, whatever happens."""
    for scenario in itertools.cycle(SCENARIOS):
        switch.place(scenario.script)
        gevent.sleep(1)


def planted(watched, like, **values):
    """A row of a recording like this one, but for these; without any entry in the ledger."""
    row = like | {"recording_id": uuid.uuid4(), "call_id": uuid.uuid4(), "channel": str(uuid.uuid4())} | values
    watched.execute(
        "INSERT INTO call (call_id, node, channel, state, arrived_at, ended_at) "
        "VALUES (%s, %s, %s, 'ended', now(), now())",
        (row["call_id"], row["node"], row["channel"]),
    )
    names, places = (sql.SQL(", ").join(each) for each in (map(sql.Identifier, row), map(sql.Placeholder, row)))
    row["retention_inputs"] = "{}"
    watched.execute(sql.SQL("INSERT INTO recording ({}) VALUES ({})").format(names, places), row)
    return row["recording_id"]


def test_a_healthy_callrec_raises_no_alarm(watched):
    node = watched.node
    verdicts, calls = node.judged(*SCENARIOS)
    assert [verdict.wrong for verdict in verdicts if verdict.wrong] == []
    stored = [row for call in calls if (row := node.recording(call)) and row["state"] == "stored"]
    sale = next(row for row in stored if row["basis"] == "market_transaction")
    consent = next(row for row in stored if row["basis"] == "consent")
    assert node.command("dispose", str(sale["recording_id"]), "order").returncode == 0
    assert node.command("erase", str(consent["recording_id"])).returncode == 0
    for name in ("callrec_locked_compliance_total", "callrec_erasures_total"):
        wait_until(lambda name=name: node.metric(name) == 1, 30, name)
    wait_until(lambda: watched.alarms() <= STARVED, 30, "peace", pause=0.5)
    watched.fired.clear()


def test_what_the_database_shows_and_a_process_that_hangs(watched):
    node = watched.node
    now = datetime.now(UTC)
    (sale,) = watched.execute("SELECT * FROM recording WHERE lock_mode = 'COMPLIANCE'")
    old = sale | {"authorised_at": now - timedelta(days=2), "kind_known": False}
    with frozen(node.pid("api")):
        planted(watched, sale, authorised_at=now)
        planted(watched, old, stopped_at=now - timedelta(hours=25))
        waits = {"state": "finished", "version_id": None, "stopped_at": now - timedelta(hours=1), "samples": 8000}
        planted(watched, old, **waits, due_at=now + timedelta(days=1))
        planted(watched, old, **waits, due_at=now)  # and there is no file
        apart = uuid.uuid4()
        (node.installation.spool / "rec" / f"{apart}.wav").symlink_to("/etc/hostname")
        planted(watched, old, **waits, due_at=now, recording_id=apart)
        recordings = [planted(watched, old, basis="consent") for _ in range(4)]
        watched.execute(
            "INSERT INTO erasure (recording_id, cause, deadline, due_at) VALUES (%s, 'order', now(), 'infinity')",
            recordings[:1],
        )
        watched.execute(
            "INSERT INTO hold (hold_id, recording_id, reason, case_reference, owner, placed_at, review_at) "
            "VALUES (gen_random_uuid(), %s, 'dispute', 'c', 'o', now(), now())", recordings[1:2],
        )  # fmt: skip
        for recording, deadline in zip(recordings[2:], (now + timedelta(days=1), now - timedelta(days=2)), strict=True):
            watched.execute(
                "WITH v AS (INSERT INTO revocation (revocation_id, request, received_at, channel, identification, "
                "  scope, deadline, deadline_inputs, alarm_at) VALUES (gen_random_uuid(), %s, now(), 'email', "
                "  'unverified', 'one', %s, '{}', now()) RETURNING revocation_id) "
                "INSERT INTO revocation_recording SELECT revocation_id, %s, 'waits', 'unidentified' FROM v",
                (recording.bytes, deadline, recording),
            )
        watched.execute("INSERT INTO node_heartbeat VALUES ('node-gone', now() - interval '1 hour')")
        # The stores are due to be walked again, and find what is planted here; the spool seems to have been left out.
        audited = "SELECT 1 FROM audit_run HAVING count(completed_at) = 2"
        wait_until(lambda: watched.execute(audited), 30, "the first audit", pause=0.2)
        watched.execute("UPDATE audit_run SET started_at = now() - interval '2 days' WHERE scope = ''")
        watched.execute("UPDATE audit_run SET last_complete = now() - interval '3 days' WHERE scope <> ''")
        watched.again("sweep")
        watched.raises("CallrecUploadLag", "CallrecRecordingLost", "CallrecRecordingQuarantined")
        watched.raises("CallrecErasureOverdue", "CallrecHoldReviewOverdue", "CallrecRecordingWithoutBasis")
        watched.raises("CallrecRevocationNear", "CallrecRevocationMissed", "CallrecDispositionMissing")
        watched.raises("CallrecNodeLost", "CallrecAuditOld", "CallrecAuditFindings")
        watched.raises("CallrecRoleHangs")


def test_a_spool_that_fills(watched):
    node = watched.node
    file = node.installation.spool / "rec" / f"{uuid.uuid4()}.wav"  # nobody's
    with file.open("wb") as growing:
        growing.truncate(128 << 20)  # without taking the disk's room
        watched.raises("CallrecSpoolFillsUp")
        growing.truncate(1 << 30)
        watched.raises("CallrecSpoolFull")
    wait_until(lambda: "listen: spool" in node.installation.missing(), 20, "listen to notice")
    assert "bridged" in facts(node.place(CONSENT.script))
    watched.raises("CallrecUnrecordedByFault")
    watched.again("ship")
    watched.raises("CallrecSpoolOrphans")
    file.unlink()


def test_listen_in_trouble(watched):
    node = watched.node

    def late():
        with frozen(node.pid("listen")):
            time.sleep(0.3)  # this is the fault itself: nobody is heard meanwhile
        return "CallrecHubLag" in watched.alarms()

    wait_until(late, 60, "CallrecHubLag", pause=0.2)
    with contextlib.ExitStack() as ends:
        for _ in range(CHANGES["listen"]["max_calls"] + 10):
            ends.enter_context(socket.create_connection(node.installation.listen, timeout=5))
        watched.raises("CallrecCallsRefused")
    with socket.create_connection(node.installation.listen, timeout=5) as garbage:
        garbage.send(b"\n\n\n")
    node.meddler.refusing = True
    node.meddler.hang_up()
    watched.raises("CallrecFreeswitchLinkDown")
    node.meddler.refusing = False
    node.ready()


def test_a_postgres_that_lacks_a_table_and_one_that_refuses_a_note(watched):
    watched.execute("ALTER TABLE erasure RENAME TO elsewhere")
    watched.raises("CallrecChoresFail")
    watched.execute("ALTER TABLE elsewhere RENAME TO erasure")
    watched.execute("ALTER TABLE ledger ADD CONSTRAINT refuses CHECK (kind <> 'consent_refused') NOT VALID")
    assert "bridged" in facts(watched.node.place(replace(REFUSAL.script, talk=1)))
    watched.raises("CallrecNotesLost")
    watched.execute("ALTER TABLE ledger DROP CONSTRAINT refuses")


def test_a_bucket_that_somebody_opened_and_then_an_s3_that_is_down(watched):
    watched.node.place(replace(SALE.script, talk=100_000))  # it goes on to the end of the story
    wait_until(lambda: watched.node.metric("callrec_segments_total", result="put"), 30, "a segment", pause=0.2)
    client, bucket = watched.bucket
    policy = client.get_bucket_policy(bucket)
    everybody = f'{{"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::{bucket}/*"}}'
    client.set_bucket_policy(bucket, policy.replace('"Statement": [', f'"Statement": [{everybody}, ', 1))
    client.delete_bucket_lifecycle(bucket)
    watched.again("sweep")
    watched.raises("CallrecStorageProbeFailed", "CallrecLifecycleDrift")
    watched.node.stack.kill("s3")
    watched.again("sweep")
    watched.raises("CallrecStorageProbeOld", "CallrecDependencyDown", "CallrecAnchorLate")


def test_a_ledger_that_somebody_rewrote(watched):
    """All of it is dated back, with an entry more, and the tree is gone: the one made anew is not what was signed."""
    for table in ("ledger", "ledger_leaf", "ledger_node"):
        watched.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    watched.execute(
        "INSERT INTO ledger (kind, body, node, at) VALUES ('x', '{}', 'n', now());"
        "UPDATE ledger SET noted_at = noted_at - interval '1 hour';"
        "TRUNCATE ledger_leaf, ledger_node"
    )
    watched.again("sweep")
    watched.raises("CallrecLedgerRefused", "CallrecCheckpointLate")


def test_a_role_that_ends_and_one_that_does_not_start_and_a_stream_without_its_store(watched):
    node = watched.node
    for _ in range(4):
        watched.again("api")
    watched.raises("CallrecRoleRestarts")
    config = node.installation.config_path
    config.rename(away := config.with_suffix(".away"))
    node.kill("api")
    watched.raises("CallrecRoleDown")
    away.rename(config)
    watched.raises("CallrecStreamLate")  # since S3 went


def test_no_panel_is_empty(watched):
    end, empty, panels = time.time(), [], []
    for panel in DASHBOARD["panels"]:
        curves = []
        for target in panel["targets"]:
            query = target["expr"].removesuffix(" or vector(0)")  # what stands for nothing is not what is looked for
            query = query.replace("$__rate_interval", "15s").replace("$instance", ".*")
            found = watched.prometheus.curves(query, watched.start, end, STEP)
            if not any(points for _, points in found):
                empty.append((panel["title"], query))
            curves += [(_legend(target["legendFormat"], labels), points) for labels, points in found]
        panels.append((panel, curves))
    assert empty == []
    if path := os.environ.get("CALLREC_DASHBOARD_PICTURE"):
        Path(path).write_text(draw(panels, (watched.start, end)), encoding="utf-8")


def _legend(template, labels):
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)


def test_a_callrec_that_is_gone_and_no_alert_was_left_out(watched):
    os.kill(watched.node.supervisor, signal.SIGKILL)
    watched.raises("CallrecDown")
    assert watched.fired == set(re.findall(r"- alert: (\w+)", RULES))
