"""`callrec migrate` on a real Postgres, and the rights that the roles have after it (A9; the ledger only grows)."""

import json
import secrets
import uuid
from urllib.parse import urlsplit

import gevent
import psycopg
import pytest
from fix_stack import wait_until
from fix_store import make_facts, make_notes
from psycopg import errors, sql

from callrec.errors import StoreError
from callrec.ledger.caller import LookupKeys, conceal
from callrec.recording import envelope
from callrec.store.db import Database, migrate, sql_directory
from callrec.store.records import CallRecords
from callrec.store.scribe import Scribe
from callrec.store.shipping import ShipRecords

FILES = sorted(path.name for path in sql_directory().glob("0*_*.sql"))
ROLES = ("listen", "ship", "sweep", "api")


def owner_of(url):
    at = urlsplit(url)
    return at.username, at.password


def copy_of_sql(directory):
    for path in sql_directory().glob("*.sql"):
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


def test_applies_everything_once(fresh_database):
    url = fresh_database(migrate=False)
    assert migrate(url, *owner_of(url)) == FILES
    assert migrate(url, *owner_of(url)) == []


def test_a_role_knows_whether_the_schema_is_its_versions(fresh_database, tmp_path):
    """As /readyz asks it, of a role that was started before `callrec migrate`, or before all of it was."""
    url, directory = fresh_database(migrate=False), copy_of_sql(tmp_path)
    with Database(url, *owner_of(url)) as store:
        with pytest.raises(StoreError):
            store.current()
        (directory / FILES[-1]).unlink()
        migrate(url, *owner_of(url), directory)
        assert not store.current()
        migrate(url, *owner_of(url))
        assert store.current()


def test_several_at_once_apply_each_file_once(fresh_database):
    url, other = fresh_database(migrate=False), fresh_database(migrate=False)
    runs = [gevent.spawn(migrate, at, *owner_of(at)) for at in (url, other) * 3]
    gevent.joinall(runs, raise_error=True)
    assert sorted(name for run in runs for name in run.value) == sorted(FILES * 2)


def test_a_migration_that_waits_for_a_table_keeps_no_call_waiting(fresh_database, tmp_path):
    """A1: it runs while calls come in; what comes to a table behind one who waits for all of it would wait as long."""
    url, directory = fresh_database(migrate=True), copy_of_sql(tmp_path)
    (directory / "9999_more.sql").write_text("ALTER TABLE recording ADD COLUMN more integer;")
    with psycopg.connect(url) as report, psycopg.connect(url, autocommit=True) as call:
        report.execute("SELECT FROM recording")  # a transaction that stays open
        run = gevent.spawn(migrate, url, *owner_of(url), directory)
        waits = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'recording'::regclass"
        wait_until(lambda: call.execute(waits).fetchall(), 20, "a migration that waits")
        call.execute("SET statement_timeout = '2s'")
        call.execute("SELECT FROM recording")
        assert not run.ready()
        report.rollback()
        run.join(timeout=30)
    assert run.value == ["9999_more.sql"]


def test_an_edited_file_is_refused_by_name(fresh_database, tmp_path):
    url, directory = fresh_database(migrate=False), copy_of_sql(tmp_path)
    migrate(url, *owner_of(url), directory)
    (directory / FILES[0]).write_text((directory / FILES[0]).read_text() + "\n-- a word more")
    with pytest.raises(StoreError, match=f"{FILES[0]} was edited") as refused:
        migrate(url, *owner_of(url), directory)
    assert refused.value.hint


def test_a_file_that_fails_leaves_nothing_and_those_before_it_stay(fresh_database, tmp_path):
    url, directory = fresh_database(migrate=False), copy_of_sql(tmp_path)
    (directory / "9998_good.sql").write_text("CREATE TABLE good (n integer);")
    (directory / "9999_bad.sql").write_text("CREATE TABLE half (n integer); SELECT no_such_function();")
    with pytest.raises(StoreError, match=r"9999_bad\.sql could not be applied") as refused:
        migrate(url, *owner_of(url), directory)
    assert "no_such_function" in refused.value.detail
    assert "\n" not in str(refused.value)
    with psycopg.connect(url) as connection:
        half, good = connection.execute("SELECT to_regclass('half'), to_regclass('good')").fetchone()
    assert (half, good) == (None, "good")
    (directory / "9999_bad.sql").write_text("CREATE TABLE half (n integer);")
    assert migrate(url, *owner_of(url), directory) == ["9999_bad.sql"]


def test_an_unreachable_postgres_and_a_wrong_password_are_said_in_one_line(fresh_database):
    url = fresh_database(migrate=False)
    user, _ = owner_of(url)
    for at, password in ((url, "wrong"), ("postgresql://127.0.0.1:1/none", "any")):
        with pytest.raises(StoreError, match="could not be reached") as refused:
            migrate(at, user, password)
        assert "\n" not in str(refused.value)
        assert refused.value.hint


class Owner:
    """A login that is no superuser, with a database of its own."""

    def __init__(self, admin_url, *, createrole):
        self.user, self.password = f"owner_{uuid.uuid4().hex[:8]}", secrets.token_hex(8)
        self._admin = psycopg.connect(admin_url, autocommit=True)
        options = sql.SQL("CREATEROLE" if createrole else "NOCREATEROLE")
        self._admin.execute(
            sql.SQL("CREATE ROLE {} LOGIN {} PASSWORD {}").format(
                sql.Identifier(self.user), options, sql.Literal(self.password)
            )
        )
        self._admin.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(self.user)))
        self.url = urlsplit(admin_url)._replace(path=f"/{self.user}").geturl()

    def connect(self):
        return psycopg.connect(self.url, user=self.user, password=self.password, autocommit=True)

    def close(self):
        self._admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(self.user)))
        self._admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(self.user)))
        self._admin.close()


@pytest.fixture
def owner(stack):
    made = Owner(stack.postgres_url, createrole=True)
    yield made
    made.close()


def test_a_migrating_owner_who_is_no_superuser_does_not_own_the_ledger(owner):
    assert migrate(owner.url, owner.user, owner.password) == FILES
    assert migrate(owner.url, owner.user, owner.password) == []
    with owner.connect() as connection:
        for statement in (
            "DELETE FROM ledger",
            "UPDATE ledger SET kind = 'x'",
            "TRUNCATE ledger",
            "ALTER TABLE ledger DISABLE TRIGGER ALL",
        ):  # it can drop the whole database: that it can't rewrite one entry is what a forger would have needed
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement)


def test_an_owner_who_may_not_make_roles_is_told_so(stack, own_stack):
    bare = own_stack("postgres")
    poor = Owner(bare.postgres_url, createrole=False)
    with pytest.raises(StoreError, match="The roles could not be made") as refused:
        migrate(poor.url, poor.user, poor.password)
    assert "CREATEROLE" in refused.value.hint
    poor.close()


# Rights


@pytest.fixture
def recorded(stores):
    """A call with everything that there can be of it: caller, recording, key, ledger."""
    listen, ship = stores.database("listen"), stores.database("ship")
    facts = make_facts()
    records = CallRecords(listen, Scribe(listen), node="n", timezone="Europe/Ljubljana")
    concealed = conceal("+38640123456", LookupKeys({1: b"l" * 32}), envelope.generate_keypair()[1])
    records.authorise(facts, "granted", make_notes("notice_played", "basis_established"), concealed, timeout=5)
    over = {"recording_id": str(facts.recording_id), "stopped_at": "now", "samples": 1, "abrupt": False}
    listen.run("finished", {"rows": json.dumps([over])})
    ShipRecords(ship, node="n").sealed(facts.recording_id, b"sealed", "id")
    return facts


@pytest.fixture
def as_role(stores):
    made = {}

    def run(role, statement):
        if role not in made:
            user, password = stores.login(role)
            made[role] = psycopg.connect(stores.url, user=user, password=password, autocommit=True)
        return made[role].execute(statement)

    yield run
    for connection in made.values():
        connection.close()


LEDGER_ENTRY = "INSERT INTO ledger (kind, body, node, at) VALUES ('k', '{}', 'n', now())"
TABLES = ("call", "caller", "recording", "recording_key", "ledger", "schema_migration")
READABLE = {
    "listen": {"call", "recording", "ledger", "schema_migration"},
    "ship": {"call", "recording", "recording_key", "ledger", "schema_migration"},
    "sweep": {"call", "caller", "recording", "recording_key", "ledger", "schema_migration"},
    "api": {"call", "recording", "recording_key", "ledger", "schema_migration"},
}


@pytest.mark.parametrize("role", ROLES)
def test_what_each_role_may_read(role, recorded, as_role):
    for table in TABLES:
        if table in READABLE[role]:
            as_role(role, f"SELECT * FROM {table}")
        else:
            with pytest.raises(errors.InsufficientPrivilege):
                as_role(role, f"SELECT * FROM {table}")


@pytest.mark.parametrize("role", ROLES)
def test_no_role_can_take_anything_away_but_the_eraser_keys_and_callers(role, recorded, as_role, stores):
    for table in TABLES:
        if role == "sweep" and table in {"caller", "recording_key"}:
            continue
        for statement in (f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE", f"DROP TABLE {table}"):
            with pytest.raises(errors.InsufficientPrivilege):
                as_role(role, statement)
    for table in TABLES:
        assert stores.rows(f"SELECT 1 FROM {table}"), table


@pytest.mark.parametrize("role", ROLES)
def test_every_role_may_add_to_the_ledger_and_nothing_else(role, recorded, as_role):
    as_role(role, LEDGER_ENTRY)
    for statement in (
        "UPDATE ledger SET kind = 'rewritten'",
        "INSERT INTO ledger (kind, body, node, at, noted_at) VALUES ('k', '{}', 'n', now(), '2020-01-01')",
        "INSERT INTO ledger (entry_id, kind, body, node, at) OVERRIDING SYSTEM VALUE VALUES (1, 'k', '{}', 'n', now())",
        "ALTER TABLE ledger DISABLE TRIGGER ALL",
        "SET ROLE callrec_ledger",
        "CREATE TABLE public.mine (n integer)",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            as_role(role, statement)


FORBIDDEN = {
    "listen": (
        "UPDATE recording SET basis = 'market_transaction'",
        "UPDATE recording SET version_id = 'v'",
        "INSERT INTO recording (recording_id, state) VALUES (gen_random_uuid(), 'stored')",
        "INSERT INTO recording_key (recording_id, sealed, key_id) SELECT recording_id, '', '' FROM recording",
        "UPDATE caller SET salt = ''",
        "UPDATE call SET line = 'other'",
    ),
    "ship": (
        "UPDATE recording SET basis = 'market_transaction'",
        "UPDATE recording SET retain_until = now()",
        "UPDATE recording SET purposes = '{anything}'",
        "UPDATE recording_key SET recording_id = gen_random_uuid()",
        "UPDATE call SET state = 'ended'",
        "INSERT INTO call (call_id) VALUES (gen_random_uuid())",
        "INSERT INTO caller (call_id, lookup, salt, sealed) SELECT call_id, '', '', '' FROM call",
    ),
    "sweep": (
        "UPDATE ledger SET pruned_at = now()",
        "INSERT INTO ledger (kind, body, node, at, pruned_at) VALUES ('k', NULL, 'n', now(), now())",
        "UPDATE caller SET epoch = 2",
        "UPDATE recording SET retain_until = now()",
        "UPDATE recording SET basis = 'x'",
        "UPDATE call SET node = 'x'",
    ),
    "api": (
        "UPDATE ledger SET body = NULL",
        "UPDATE recording SET state = 'discarded'",
        "UPDATE recording SET purposes = '{agent_supervision}'",
        "UPDATE call SET state = 'ended'",
        "UPDATE recording_key SET sealed = ''",
        "INSERT INTO call (call_id) VALUES (gen_random_uuid())",
    ),
}


@pytest.mark.parametrize(("role", "statement"), [(role, text) for role in ROLES for text in FORBIDDEN[role]])
def test_what_a_role_may_not_write(role, statement, recorded, as_role):
    with pytest.raises(errors.InsufficientPrivilege):
        as_role(role, statement)


def test_nobody_can_change_a_basis_a9(recorded, stores):
    """Not even a superuser, who passes every check of rights."""
    for change in (
        "basis = 'market_transaction'", "notice = 'other'", "notice_version = '2'", "purposes = '{agent_supervision}'",
        "call_id = gen_random_uuid()",
    ):  # fmt: skip
        with pytest.raises(errors.IntegrityError, match="keeps the basis"):
            stores.admin.execute(f"UPDATE recording SET {change}")


def test_nobody_can_rewrite_the_ledger(recorded, stores):
    for silenced in ("origin", "replica"):
        stores.admin.execute(f"SET session_replication_role = {silenced}")
        for statement in ("UPDATE ledger SET kind = 'x'", "DELETE FROM ledger", "TRUNCATE ledger"):
            with pytest.raises(errors.InsufficientPrivilege, match="the ledger only grows"):
                stores.admin.execute(statement)


def test_a_table_of_the_same_name_does_not_divert_what_has_to_go(recorded, stores):
    """What takes key and caller along runs with its owner's rights: names that a role makes must not reach it."""
    user, password = stores.login("listen")
    with psycopg.connect(stores.url, user=user, password=password, autocommit=True) as connection:
        connection.execute("CREATE TEMP TABLE caller (call_id uuid)")
        connection.execute("CREATE TEMP TABLE recording_key (recording_id uuid)")
        connection.execute("UPDATE recording SET state = 'discarded'")
    assert stores.rows("SELECT 1 FROM public.caller") == []
    assert stores.rows("SELECT 1 FROM public.recording_key") == []
