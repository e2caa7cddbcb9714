"""The sequencer on a real Postgres, as `sweep`: every entry once, gap-free, provable, and no rewriting unnoticed."""

import contextlib
import hashlib
import json

import gevent
import psycopg
import pytest
from fix_ledger import ORIGIN, TABLES, run_out
from psycopg import errors

from callrec.errors import LedgerError, StatementRefusedError, StoreError
from callrec.ledger import note, tree
from callrec.ledger.entry import Entry, Leaf
from callrec.ledger.note import Signer
from callrec.ledger.tree import Frontier
from callrec.store.rights import RightsRecords

# What it does


def test_every_entry_has_its_place_and_its_proof(ledger):
    for size in (1, 2, 7, 13):
        ledger.append(size)
        run_out(ledger.sequencer)
        ledger.verify()
    checkpoint = ledger.checkpoint()
    assert checkpoint.size == 23
    for row in ledger.rows():
        proven = ledger.records.leaf(row["entry_id"])
        proof = tree.inclusion_proof(proven.leaf_index, checkpoint.size, ledger.records.read)
        leaf = Entry.of_row(row).leaf_hash()
        tree.verify_inclusion(leaf, proven.leaf_index, checkpoint.size, proof, checkpoint.root)


def test_every_checkpoint_is_consistent_with_every_later_one(ledger):
    for _ in range(5):
        ledger.append(3)
        run_out(ledger.sequencer)
    signed = [
        note.open_checkpoint(row["note"], [ledger.signer.verifier], ORIGIN)
        for row in ledger.stores.rows("SELECT note FROM ledger_checkpoint ORDER BY size")
    ]
    assert [checkpoint.size for checkpoint in signed] == [3, 6, 9, 12, 15]
    for first in signed:
        for second in signed[signed.index(first) :]:
            proof = tree.consistency_proof(first.size, second.size, ledger.records.read)
            tree.verify_consistency(first.size, second.size, proof, first.root, second.root)


def test_nothing_new_is_nothing_signed(ledger):
    assert ledger.sequencer.step() is False
    assert ledger.records.last_checkpoint() is None
    ledger.append(2)
    run_out(ledger.sequencer)
    before = ledger.stores.rows("SELECT * FROM ledger_checkpoint")
    run_out(ledger.sequencer)
    run_out(ledger.another())
    assert ledger.stores.rows("SELECT * FROM ledger_checkpoint") == before


def test_batches_follow_each_other(ledger):
    ledger.append(11)
    sequencer = ledger.another(batch=4)
    assert [sequencer.step() for _ in range(3)] == [True, True, False]
    ledger.verify()


def test_an_entry_whose_transaction_ends_late_finds_its_place_later(ledger):
    """Ids are given when a statement runs, and become visible when its transaction ends."""
    with psycopg.connect(ledger.stores.url) as slow:
        slow.execute("INSERT INTO ledger (kind, body, node, at) VALUES ('slow', '{}', 'node-2', now())")
        ledger.append(3)
        run_out(ledger.sequencer)
        assert ledger.checkpoint().size == 3
        slow.commit()
    run_out(ledger.sequencer)
    ledger.verify()
    assert ledger.stores.rows("SELECT kind FROM ledger JOIN ledger_leaf USING (entry_id) WHERE leaf_index = 3") == [
        {"kind": "slow"}
    ]


def test_one_that_ends_later_than_is_usual_is_found_by_the_hourly_look(ledger):
    """What is older than ten minutes is not looked at in each step, or a step would cost more with every entry."""
    now, begun = [0.0], []
    sequencer = ledger.another(clock=lambda: now[0], batch=2)
    pending = sequencer._records.pending
    sequencer._records.pending = lambda after, limit: begun.append(after) or pending(after, limit)
    old = (
        "INSERT INTO ledger (kind, body, node, at, noted_at) VALUES (%s, '{}', 'node-2', now(), now() - interval '1 h')"
    )
    with psycopg.connect(ledger.stores.url) as slow:
        slow.execute(old, ("slow",))
        for _ in range(3):
            ledger.stores.admin.execute(old, ("old",))
        run_out(sequencer)
        slow.commit()
    ledger.append(1)
    for _ in range(50):
        run_out(sequencer)
        assert ledger.checkpoint().size == 4, "the late one is not looked for"
        assert begun[-1] == ledger.rows()[3]["entry_id"], "a step begins behind the last that is old"
        now[0] += 70
    now[0] += 100
    run_out(sequencer)
    ledger.verify()
    assert ledger.checkpoint().size == 5


def test_one_that_is_held_back_for_a_minute_is_found_within_half_a_minute(ledger):
    """And not by each step: what a step looks through would be ten minutes of entries."""
    now, begun = [0.0], []
    sequencer = ledger.another(clock=lambda: now[0])
    pending = sequencer._records.pending
    sequencer._records.pending = lambda after, limit: begun.append(after) or pending(after, limit)
    columns = "INSERT INTO ledger (kind, body, node, at, noted_at)"
    old = f"{columns} VALUES (%s, '{{}}', 'node-2', now(), now() - interval '1 min')"
    with psycopg.connect(ledger.stores.url) as slow:
        slow.execute(old, ("slow",))
        ledger.stores.admin.execute(old, ("old",))
        run_out(sequencer)
        slow.commit()
    run_out(sequencer)
    assert begun[-1] == 2, "behind all that is older than a moment"
    assert ledger.checkpoint().size == 1
    now[0] += 31
    run_out(sequencer)
    ledger.verify()
    assert ledger.checkpoint().size == 2


def test_what_a_rolled_back_transaction_leaves_is_no_gap_in_the_tree(ledger):
    ledger.append(2)
    with psycopg.connect(ledger.stores.url) as other:
        other.execute("INSERT INTO ledger (kind, body, node, at) VALUES ('never', '{}', 'node-2', now())")
        other.rollback()
    ledger.append(2)
    run_out(ledger.sequencer)
    ledger.verify()


# Several at once, and crashes


def test_several_sequencers_and_appenders_at_once(ledger):
    appenders = [RightsRecords(ledger.stores.database("sweep"), node=f"node-{n}") for n in range(4)]
    sequencers = [ledger.another(batch=5) for _ in range(3)]

    def append(appender):
        for number in range(25):
            appender.entry("tested", {"number": number})

    writing = [gevent.spawn(append, appender) for appender in appenders]

    def sequence(sequencer):
        while sequencer.step() or not all(greenlet.ready() for greenlet in writing):
            gevent.sleep(0.001)

    working = [gevent.spawn(sequence, sequencer) for sequencer in sequencers]
    gevent.joinall(writing + working, timeout=90, raise_error=True)
    assert all(greenlet.ready() for greenlet in writing + working)
    run_out(ledger.sequencer)
    ledger.verify()
    assert ledger.checkpoint().size == 100


def test_of_two_on_the_same_size_one_adds_nothing(ledger):
    ledger.append(3)
    entries = [Entry.of_row(row) for row in ledger.rows()]
    leaves = [Leaf(entry.entry_id, entry.body_sha256, entry.leaf_hash()) for entry in entries]
    full = Frontier().append(entry.leaf_hash() for entry in entries)
    assert ledger.records.extend(0, leaves, full)
    assert not ledger.records.extend(0, leaves, full)
    with pytest.raises(StoreError):
        ledger.records.extend(3, leaves, full)  # an entry has one place
    assert ledger.records.size() == 3


@pytest.mark.parametrize("call", ["size", "pending", "extend", "read", "last_checkpoint", "checkpoint"])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_sequencer_that_dies_between_any_two_steps_is_followed_by_another(ledger, monkeypatch, call, done):
    ledger.append(5)
    run_out(ledger.sequencer)
    ledger.append(3)
    real = getattr(ledger.records, call)

    def dying(*arguments, **options):
        if done:
            real(*arguments, **options)
        raise StoreError("killed here")

    dead = ledger.another()
    monkeypatch.setattr(dead._records, call, dying)
    with pytest.raises(StoreError, match="killed here"):
        dead.step()
    ledger.append(1)
    monkeypatch.undo()
    for follower in (ledger.another(), dead, ledger.sequencer):  # also where the same process goes on
        run_out(follower)
    ledger.verify()
    assert ledger.checkpoint().size == 9


def test_a_sequencer_does_not_trust_what_it_only_tried_to_store(ledger):
    """It was cut off, and another gave the same place to another entry: the sizes agree, the trees do not."""
    with psycopg.connect(ledger.stores.url) as slow:
        slow.execute("INSERT INTO ledger (kind, body, node, at) VALUES ('slow', '{}', 'node-2', now())")
        ledger.append(1)
        cut_off, real = ledger.another(batch=1), ledger.records.extend

        def dying(*_, **__):
            raise StoreError("killed here")

        cut_off._records.extend = dying
        with pytest.raises(StoreError, match="killed here"):
            cut_off.step()
        slow.commit()
    ledger.another(batch=1).step()
    assert ledger.records.size() == 1
    cut_off._records.extend = real
    run_out(cut_off)
    ledger.verify()
    assert ledger.checkpoint().size == 2


def test_a_new_key_takes_over_at_once_or_by_and_by(ledger):
    old, new, newest = ledger.signer, Signer.generate(ORIGIN), Signer.generate(ORIGIN)
    for signers, retired in (([old], []), ([old, new], []), ([new], []), ([newest], [new.verifier])):
        ledger.append(1)
        run_out(ledger.another(*signers, retired=retired))
    ledger.signer = newest
    ledger.verify()
    ledger.append(1)
    for stranger in (old, new):
        with pytest.raises(LedgerError, match="Nobody known"):
            ledger.another(stranger).step()


# What must not be


REWRITTEN = {
    "a node changed": "UPDATE ledger_node SET hash = sha256('x') WHERE (level, position) = (1, 4)",
    "a leaf gone": "DELETE FROM ledger_leaf WHERE leaf_index = 9",
    "cut off": "DELETE FROM ledger_leaf WHERE leaf_index >= 6; DELETE FROM ledger WHERE entry_id > 6",
}


@pytest.mark.parametrize("how", REWRITTEN)
def test_a_rewritten_store_is_not_signed(ledger, how):
    """The end of the tree, which is what a signature stands on. Deeper changes are what `callrec verify` looks for."""
    ledger.append(10)
    run_out(ledger.sequencer)
    signed = ledger.records.last_checkpoint()
    ledger.as_superuser(*REWRITTEN[how].split(";"))
    ledger.append(1)
    for _ in range(2):
        with pytest.raises(LedgerError):
            run_out(ledger.another())
    assert ledger.records.last_checkpoint() == signed


def test_a_tree_made_anew_over_other_entries_is_not_signed(ledger):
    """With every hash recomputed: only what was signed before tells."""
    ledger.append(10)
    run_out(ledger.sequencer)
    ledger.as_superuser(
        "UPDATE ledger SET kind = 'rewritten' WHERE entry_id = 4", "DELETE FROM ledger_leaf", "DELETE FROM ledger_node"
    )
    with pytest.raises(LedgerError, match="rewritten"):
        run_out(ledger.another())
    ledger.append(5)
    with pytest.raises(LedgerError, match="rewritten"):
        run_out(ledger.another())
    assert ledger.checkpoint().size == 10


def test_a_checkpoint_that_somebody_else_signed_is_not_built_upon(ledger):
    ledger.append(3)
    run_out(ledger.another(Signer.generate(ORIGIN)))
    ledger.append(1)
    with pytest.raises(LedgerError, match="Nobody known"):
        ledger.sequencer.step()


@pytest.mark.parametrize(
    "body",
    [
        "[]", '"text"', "null", "1", json.dumps({"a": "x" * 70_000}),
    ],
    ids=lambda body: body[:20],
)  # fmt: skip
def test_what_is_no_entry_is_not_taken(ledger, body):
    with pytest.raises(StatementRefusedError):
        ledger.appender._database.run(
            "entry", {"call_id": None, "recording_id": None, "kind": "k", "body": body, "node": "n"}
        )


@pytest.mark.parametrize("at", ["infinity", "-infinity", "9000-01-01", "1969-12-31"])
def test_what_happened_at_no_time_is_not_taken(ledger, at):
    database = ledger.appender._database
    database.queries["entry"] = database.queries["entry"].replace("now()", f"'{at}'")
    with pytest.raises(StatementRefusedError):
        ledger.appender.entry("k", {})


@pytest.mark.parametrize(
    "body", [{"a": 2**53 - 1, "b": [1.5, 1e-9, True, None]}, {"a": '\u2028 \\ " ž \U0001f600'}, {"": {"x": [[[]]]}}, {}]
)
def test_what_is_taken_can_be_hashed(ledger, body):
    ledger.appender.entry("k", body)
    run_out(ledger.sequencer)
    ledger.verify()


@pytest.mark.parametrize(
    "body",
    ['{"a": 9007199254740993}', '{"a": [{"b": -1e17}]}', '{"a": 1e400}', '{"a": ' + "[" * 2000 + "]" * 2000 + "}"],
    ids=lambda body: body[:20],
)  # fmt: skip
def test_what_has_no_canonical_form_is_hashed_as_it_is_written(ledger, body):
    """Or one entry could keep all later ones out of the tree."""
    ledger.appender._database.run(
        "entry", {"call_id": None, "recording_id": None, "kind": "k", "body": body, "node": "n"}
    )
    ledger.append(1)
    run_out(ledger.sequencer)
    odd, _ = ledger.stores.rows("SELECT e.body::text AS body, l.* FROM ledger e JOIN ledger_leaf l USING (entry_id)")
    assert odd["body_sha256"] == hashlib.sha256(odd["body"].encode()).digest()
    assert ledger.checkpoint().size == 2


@pytest.mark.parametrize("role", ["listen", "ship", "api", "sweep"])
def test_no_role_can_change_what_the_ledger_has_or_become_its_owner(anchored, role):
    """By trying everything that SQL has for it."""
    anchored.anchor(4)
    user, password = anchored.stores.login(role)
    own = [f"SET ROLE {name}" for name in ("callrec_ledger", "postgres")]
    own += [
        "SET SESSION AUTHORIZATION callrec_ledger",
        f"GRANT callrec_ledger TO {user}",
        f"ALTER ROLE {user} SUPERUSER",
    ]
    own += ["SET session_replication_role = replica", "DROP FUNCTION ledger_only_grows CASCADE"]
    own += ["CREATE OR REPLACE FUNCTION ledger_only_grows() RETURNS trigger LANGUAGE sql AS ''"]
    with psycopg.connect(anchored.stores.url, user=user, password=password, autocommit=True) as connection:
        columns = {
            table: anchored.stores.rows(
                "SELECT column_name AS name FROM information_schema.columns WHERE table_name = %s", table
            )
            for table in ("ledger", *TABLES)
        }
        on_each = [
            *(f"UPDATE {table} SET {row['name']} = DEFAULT" for table in columns for row in columns[table]),
            *(
                statement.format(table)
                for table in columns
                for statement in (
                    "DELETE FROM {}", "TRUNCATE {}", "TRUNCATE {} CASCADE", "DROP TABLE {}",
                    "DROP TRIGGER ledger_only_grows ON {}", "DROP TRIGGER ledger_is_not_truncated ON {}",
                    "ALTER TABLE {} DISABLE TRIGGER ALL", "ALTER TABLE {} DISABLE TRIGGER ledger_only_grows",
                    "ALTER TABLE {} OWNER TO CURRENT_USER", "ALTER TABLE {} ADD COLUMN more text",
                    "CREATE RULE r AS ON INSERT TO {} DO INSTEAD NOTHING", "SELECT * FROM {} FOR UPDATE",
                )
            ),
        ]  # fmt: skip
        if role == "sweep":  # which prunes, and so may do these (test_pruning.py)
            on_each.remove("UPDATE ledger SET body = DEFAULT")
            on_each.remove("SELECT * FROM ledger FOR UPDATE")
        for table in columns:
            with contextlib.suppress(errors.InsufficientPrivilege):  # without the right to grant it is a mere warning
                connection.execute(f"GRANT ALL ON {table} TO CURRENT_USER")
        for statement in own + on_each:
            with pytest.raises((errors.InsufficientPrivilege, errors.InvalidGrantOperation)):
                connection.execute(statement)
        if role != "sweep":
            for statement in (
                "INSERT INTO ledger_leaf VALUES (1000, 1000, sha256(''), sha256(''))",
                "INSERT INTO ledger_node VALUES (1, 1000, sha256(''))",
                "INSERT INTO ledger_checkpoint (size, note) VALUES (1000, '')",
                "INSERT INTO ledger_anchor (size, bucket, object_key, version_id, sha256)"
                " VALUES (9, 'b', 'k', 'v', sha256(''))",
            ):
                with pytest.raises(errors.InsufficientPrivilege):
                    connection.execute(statement)
        if role in {"listen", "ship"}:
            for table in TABLES:
                with pytest.raises(errors.InsufficientPrivilege):
                    connection.execute(f"SELECT * FROM {table}")
        with pytest.raises(errors.InsufficientPrivilege):  # when it was noted is Postgres' own to say
            connection.execute(
                "INSERT INTO ledger (kind, body, node, at, noted_at) VALUES ('k', '{}', 'n', now(), now())"
            )
    anchored.verify()


def test_not_even_a_superuser_changes_it_in_passing(anchored):
    """He has to put the triggers away first, which is on purpose."""
    anchored.anchor(4)
    for silenced in ("origin", "replica"):
        anchored.stores.admin.execute(f"SET session_replication_role = {silenced}")
        for table in ("ledger", *TABLES):
            for statement in (f"DELETE FROM {table}", f"TRUNCATE {table}"):
                with pytest.raises(errors.InsufficientPrivilege, match="the ledger only grows"):
                    anchored.stores.admin.execute(statement)
    anchored.verify()
