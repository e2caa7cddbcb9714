"""What `sweep` signs of real calls: within a second, whoever dies meanwhile, and nothing that contradicts an anchor."""

import re
import time

import psycopg
import pytest
from fix_callrec import UNHURRIED, facts, running_node
from fix_stack import wait_until

from callrec.demo.scenarios import by_name
from callrec.ledger.entry import Entry
from callrec.ledger.tree import Frontier

SALE, CONSENT, REFUSAL = by_name("sale"), by_name("consent"), by_name("refusal")
EVERY = 2  # seconds between anchors
TABLES = ("ledger", "ledger_leaf", "ledger_node", "ledger_checkpoint", "ledger_anchor")


@pytest.fixture(scope="module")
def node(stack, databases, short_prompts):
    name = databases.create(migrate=False)
    part = _Stack(stack, databases.url(name))
    with running_node(part, short_prompts, changes=UNHURRIED | {"ledger": {"anchor_seconds": EVERY}}) as made:
        yield made
    databases.drop(name)


class _Stack:
    """The session's stores, with a database of this module's own."""

    def __init__(self, stack, postgres_url):
        self._stack = stack
        self.postgres_url = postgres_url

    def __getattr__(self, name):
        return getattr(self._stack, name)


def newest(node):
    (row,) = node.inspector.rows("SELECT note FROM ledger_checkpoint ORDER BY signed_at DESC LIMIT 1")
    return node.installation.config.ledger.lineage.open(row["note"])


def anchor_sizes(node):
    objects = node.installation.objects(node.installation.checkpoints)
    try:
        keys = [version.key for version in objects.versions("checkpoints/")]
        return [int(key[-20:]) for key in keys if not key.endswith(".leaves")]
    finally:
        objects.close()


def all_signed(node, seconds=20.0):
    """Wait until the last checkpoint covers every entry, and recompute it from the rows alone."""
    entries = node.inspector.rows("SELECT count(*) AS n FROM ledger")[0]["n"]
    wait_until(lambda: newest(node).size >= entries, seconds, "every entry signed")
    signed = newest(node)
    rows = node.inspector.rows("SELECT l.* FROM ledger l JOIN ledger_leaf USING (entry_id) ORDER BY leaf_index")
    frontier = Frontier()
    frontier.append(Entry.of_row(row).leaf_hash() for row in rows[: signed.size])
    assert frontier.root() == signed.root
    return signed


def superuser(node, *statements):
    """What the database's own administrator can do: put the triggers aside."""
    with psycopg.connect(node.stack.postgres_url, autocommit=True) as connection:
        for table in TABLES:
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        with connection.transaction():
            for statement in statements:
                connection.execute(statement)


def test_entries_of_real_calls_are_signed_at_once_and_anchored_soon(node):
    verdicts, _ = node.judged(SALE, CONSENT, REFUSAL)
    assert [verdict.wrong for verdict in verdicts] == [[], [], []], "with a proof for each entry"
    signed = all_signed(node)
    (late,) = node.inspector.rows(
        "SELECT max(s.signed_at - e.noted_at) AS most FROM ledger e JOIN ledger_leaf l USING (entry_id), LATERAL"
        " (SELECT min(signed_at) AS signed_at FROM ledger_checkpoint WHERE size > l.leaf_index) s"
        " WHERE e.call_id IS NOT NULL"
    )
    assert late["most"].total_seconds() < 5, "a second on a machine of one's own"
    wait_until(lambda: signed.size <= max(anchor_sizes(node), default=0), 20, "the anchor")
    wait_until(lambda: node.metric("callrec_ledger_anchor_size") >= signed.size, 10, "its metric")
    wait_until(lambda: node.metric("callrec_ledger_unsequenced") == 0, 20, "nothing waits")
    assert node.metric("callrec_ledger_size") >= signed.size
    assert time.time() - node.metric("callrec_ledger_signed_timestamp_seconds") < 20
    assert time.time() - node.metric("callrec_ledger_anchor_timestamp_seconds") < 60
    assert node.metric("callrec_ledger_refused_total") == 0


def test_a_sweep_that_is_killed_is_followed_by_one_that_signs_the_rest(node):
    for _ in range(3):
        call = node.place(REFUSAL.script)
        node.kill("sweep")
        facts(call)
        node.settled(call)
    node.ready()
    signed = all_signed(node)
    wait_until(lambda: signed.size <= max(anchor_sizes(node)), 30, "the anchor")
    sizes = anchor_sizes(node)
    assert sorted(sizes) == sizes
    assert node.metric("callrec_ledger_refused_total") == 0


def test_a_database_that_was_put_back_is_signed_on_only_when_somebody_accepts_it(node):
    before = all_signed(node)
    node.judged(REFUSAL)
    after = all_signed(node)
    wait_until(lambda: after.size <= max(anchor_sizes(node)), 20, "the anchor")
    superuser(
        node,
        f"DELETE FROM ledger WHERE entry_id IN (SELECT entry_id FROM ledger_leaf WHERE leaf_index >= {before.size})",
        f"DELETE FROM ledger_leaf WHERE leaf_index >= {before.size}",
        f"DELETE FROM ledger_node WHERE (position + 1) << level > {before.size}",
        f"DELETE FROM ledger_checkpoint WHERE size > {before.size}",
        f"DELETE FROM ledger_anchor WHERE size > {before.size}",
    )
    wait_until(lambda: node.metric("callrec_ledger_refused_total") > 0, 20, "the refusal")
    wait_until(lambda: node.installation.missing() == {"sweep: ledger"}, 20, "readiness names it")
    call = node.place(SALE.script)
    facts(call)
    node.settled(call)
    assert node.recording(call)["state"] == "stored", "calls are recorded on"
    assert newest(node) == before, "nothing is signed"
    assert "ledger_not_signed" in node.logs()

    done = node.command("accept-restore", "--reason", "restored from a backup")
    assert done.returncode == 0, done.stderr
    lost = int(re.search(r"--confirm (\d+)", done.stdout)[1])
    assert lost >= after.size - before.size
    assert node.command("accept-restore", "--reason", "r", "--confirm", str(lost + 1)).returncode == 1
    assert newest(node) == before
    done = node.command("accept-restore", "--reason", "restored from a backup", "--confirm", str(lost))
    assert done.returncode == 0, done.stderr
    assert "signed on as ledger.example.com/calls/2" in done.stdout
    node.ready()
    assert node.verdict(SALE, call).wrong == []
    signed = all_signed(node)
    assert signed.generation == 2
    refused = node.command("accept-restore", "--reason", "again")
    assert (refused.returncode, "Nothing was lost" in refused.stderr) == (1, True)
