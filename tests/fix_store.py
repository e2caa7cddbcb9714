"""The stores as the roles see them: a migrated database with a login for each role, and calls to put into it.

stores        .url, .admin (a superuser's connection), .login("listen") -> (user, password), .database("listen", ...)
own_stores    the same on a Postgres of this module's own, which a test may kill, restart and freeze (.stack)
make_facts    imported: a call on a line of either basis
make_notes    imported: notes of a call from given kinds
ticking       imported: a context in which a greenlet counts; proves that nothing held the hub
"""

import contextlib
import secrets
import shutil
import time
import uuid
from datetime import UTC, datetime

import gevent
import psycopg
import pytest
from fix_stack import Databases, stack_directory
from psycopg import sql
from psycopg.rows import dict_row

from callrec.call.policy import Basis, BasisKind, Line, LockMode, Notice, Policy, Prompt, Retention
from callrec.demo.stack import Stack
from callrec.store.db import Database
from callrec.store.records import CallFacts, Noted

ZONE = "Europe/Ljubljana"


class Stores:
    def __init__(self, url, stack=None):
        self.url, self.stack = url, stack
        self._stack = contextlib.ExitStack()
        self._logins = {}
        self.admin = self._stack.enter_context(psycopg.connect(url, autocommit=True, row_factory=dict_row))

    def login(self, role):
        """A login of this test's own that is a member of the role, as sql/roles.sql tells an operator to make it."""
        if role not in self._logins:
            user, password = f"test_{role}_{uuid.uuid4().hex[:8]}", secrets.token_hex(8)
            self.admin.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}").format(
                    sql.Identifier(user), sql.Literal(password), sql.Identifier(f"callrec_{role}")
                )
            )
            self._logins[role] = user, password
        return self._logins[role]

    def database(self, role, **options):
        database = Database(self.url, *self.login(role), **options)
        database.open()
        self._stack.callback(database.close)
        return database

    def rows(self, statement, *values):
        return self.admin.execute(statement, values).fetchall()

    def kinds(self, call_id):
        return [
            row["kind"] for row in self.rows("SELECT kind FROM ledger WHERE call_id = %s ORDER BY entry_id", call_id)
        ]

    def reconnect(self):
        """After a restart of Postgres."""
        self.admin.close()
        self.admin = self._stack.enter_context(psycopg.connect(self.url, autocommit=True, row_factory=dict_row))

    def close(self):
        with contextlib.suppress(psycopg.Error):
            for user, _ in self._logins.values():
                self.admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(user)))
        self._stack.close()


@pytest.fixture
def stores(postgres_url):
    made = Stores(postgres_url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def own_postgres():
    directory = stack_directory()
    with Stack(directory / "stack", services=["postgres"], env={}) as stack:
        yield stack
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def own_stores(own_postgres):
    databases = Databases(own_postgres.postgres_url)
    made = Stores(databases.url(databases.create(migrate=True)), own_postgres)
    yield made
    made.close()


def make_line(kind=BasisKind.CONSENT):
    retention = Retention(months=3) if kind is BasisKind.CONSENT else Retention(years=3)
    prompt = Prompt("/prompts/notice.wav", "notice", "00" * 32, "11" * 32, 3.0)
    basis = Basis(
        id="consent" if kind is BasisKind.CONSENT else "market_transaction",
        kind=kind,
        citation="citation",
        gdpr_article_6="6(1)(a)",
        retention=retention,
        lock=LockMode.GOVERNANCE,
        prefix="consent/",
        purposes=frozenset({"service_quality.information_accuracy", "complaint_handling"}),
    )
    notice = Notice("notice-b", "1", prompt, retention, "https://example.com", "2019", basis.purposes)
    return Line("service", "+38640404040", basis, notice)


def make_policy(line):
    return Policy("SI", {line.number: line})


def make_facts(line=None, **other):
    values = {
        "call_id": uuid.uuid4(),
        "recording_id": uuid.uuid4(),
        "channel": str(uuid.uuid4()),
        "line": line or make_line(),
        "arrived_at": datetime.now(UTC),
    }
    return CallFacts(**values | other)


def make_notes(*kinds, first=1, **body):
    return [Noted(first + place, kind, dict(body), datetime.now(UTC)) for place, kind in enumerate(kinds)]


@contextlib.contextmanager
def ticking(most=0.25):
    """Fails when the hub stood still for more than `most` seconds inside."""
    gaps = [0.0]

    def tick():
        while True:
            begun = time.monotonic()
            gevent.sleep(0.005)
            gaps.append(time.monotonic() - begun)

    ticker = gevent.spawn(tick)
    gevent.sleep(0)
    try:
        yield gaps
    finally:
        ticker.kill()
    assert len(gaps) > 1, "the hub never ran"
    assert max(gaps) < most, f"the hub stood still for {max(gaps):.3f} s"
