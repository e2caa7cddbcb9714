"""Postgres: a pool with deadlines, the named statements of sql/, and the migrations.

Foreign exceptions stop here: whatever psycopg raises leaves as StoreError, counted in a metric. Statements run in
autocommit, one statement one transaction, so that what has to be atomic is written as one statement.
"""

import hashlib
import os
import random
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Self

import gevent
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from callrec.errors import StatementRefusedError, StoreError
from callrec.log import Log
from callrec.metrics import STORE_ERRORS
from callrec.store.wait import Connection

log = Log(__name__)

Row = dict[str, Any]
Statement = tuple[str, Mapping[str, Any]]

_MIGRATION_LOCK = 0x63616C6C726563  # "callrec": one migration at a time, whoever starts it
_FILES = "[0-9][0-9][0-9][0-9]_*.sql"
_SERVER_SECONDS = 30  # that the server gives a statement whose client is gone; more only to one that asks for more
_TRIES = 60  # of a migration whose tables others use; a second apart


_STATEMENTS = (
    "queries.sql", "rights.sql", "segments.sql", "tree.sql", "verify.sql", "audit.sql", "evidence.sql",
)  # fmt: skip


def sql_directory() -> Path:
    """Where sql/ is: beside the package in a checkout, inside it when installed."""
    installed = Path(__file__).parent.parent / "_sql"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "sql"


def load_queries(path: Path) -> dict[str, str]:
    """The statements of a file, each under its `-- name:` line."""
    parts = re.split(r"^-- name: (\w+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: text.strip().rstrip(";") for name, text in zip(parts[1::2], parts[2::2], strict=True)}


class Database:
    """One role's connections. `size` bounds them; every statement has a deadline, its own or `timeout` seconds."""

    def __init__(self, url: str, user: str, password: str, *, size: int = 4, timeout: float = 5.0) -> None:
        self.timeout = timeout
        self.queries = {k: v for name in _STATEMENTS for k, v in load_queries(sql_directory() / name).items()}
        self.conninfo = conninfo(url, user, password)
        self._current = False
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            self.conninfo,
            connection_class=Connection,
            min_size=1,
            max_size=size,
            open=False,
            timeout=timeout,
            reconnect_timeout=2.0,  # then the next statement tries afresh, rather than waiting out a long back-off
            kwargs={"autocommit": True, "row_factory": dict_row},
        )

    def open(self) -> None:
        """Start connecting; does not wait, and does not fail while Postgres is away."""
        self._pool.open(wait=False)

    def close(self) -> None:
        self._pool.close(timeout=1.0)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, name: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> list[Row]:
        """Run one named statement, give its rows.

        StoreError when Postgres is away or late, and then it may or may not have been done; StatementRefusedError when
        it was refused and sent again would be refused again.
        """
        with self._connection(name, timeout) as connection:
            longer = timeout if timeout is not None and timeout > _SERVER_SECONDS else 0
            with connection.transaction() if longer else nullcontext():
                if longer:  # for this statement alone: the connection is others' next
                    connection.execute(f"SET LOCAL statement_timeout = {longer * 1000:.0f}")
                cursor = connection.execute(self.queries[name], params)
            return cursor.fetchall() if cursor.description else []

    def one(self, name: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> Row | None:
        rows = self.run(name, params, timeout=timeout)
        return rows[0] if rows else None

    def run_all(self, statements: Sequence[Statement], *, timeout: float | None = None) -> None:
        """Run several named statements in one transaction, in order. All or none. Errors as of `run`."""
        with self._connection("batch", timeout) as connection:
            if len(statements) == 1:  # a transaction by itself, and two round trips fewer
                connection.execute(self.queries[statements[0][0]], statements[0][1])
                return
            with connection.transaction(), connection.pipeline():
                for name, params in statements:
                    connection.execute(self.queries[name], params)

    def current(self) -> bool:
        """Whether the schema has every migration of this version; looked up until it has. StoreError as of `run`."""
        if not self._current:
            known = {row["name"] for row in self.run("migrations", timeout=1.0)}
            self._current = known.issuperset(path.name for path in sql_directory().glob(_FILES))
        return self._current

    def alive(self, timeout: float = 1.0) -> bool:
        try:
            self.run("alive", timeout=timeout)
        except StoreError:
            return False
        return True

    @contextmanager
    def _connection(self, what: str, timeout: float | None) -> Iterator[Connection]:
        """A connection, for as long as the deadline allows: then its socket is shut, which ends whatever waits on it.

        An exception thrown into psycopg instead would leave it to clean up behind a server that says nothing, and to
        wait for that without an end.
        """
        limit = self.timeout if timeout is None else timeout
        watch = _Watch(limit)
        try:
            connection = self._take(limit)
            try:
                watch.begin(connection)
                yield connection
            finally:
                if connection.pgconn.transaction_status != TransactionStatus.IDLE:
                    connection.close()  # the pool would ask the server to tidy up, without a deadline
                self._pool.putconn(connection)
        except PoolTimeout:
            STORE_ERRORS.labels("postgres", what).inc()
            raise StoreError(
                "No connection to Postgres",
                detail=f"{what} waited {limit:.3f} s",
                hint="Is it up, and do [postgres] url, user and password fit?",
            ) from None
        except (psycopg.Error, UnicodeError) as error:
            if (interruption := _interruption(error)) is not None:
                raise interruption from None
            STORE_ERRORS.labels("postgres", what).inc()
            if watch.barked:
                raise StoreError("Postgres did not answer in time", detail=f"{what} had {limit:.3f} s") from None
            # The server's text may quote a row; its class and code say enough.
            detail = f"{what}: {_what(error)}"
            if _lies_in_the_statement(error):
                raise StatementRefusedError("Postgres refused", detail=detail) from None
            raise StoreError("Postgres failed", detail=detail) from None
        finally:
            watch.end()

    def _take(self, limit: float) -> Connection:
        """A connection that the server has not closed. PoolTimeout.

        Otherwise every connection of the pool would fail a statement after a restart of Postgres, and each of these may
        be a call's legal basis. The socket is asked, not the server: that takes microseconds. (The pool's own `check`
        pauses ever longer between one dead connection and the next.)
        """
        deadline = time.monotonic() + limit
        while True:
            connection = self._pool.getconn(timeout=max(0.0, deadline - time.monotonic()))
            try:
                for _ in range(2):  # the first may find the server's farewell, the second that nothing follows it
                    connection.pgconn.consume_input()
            except psycopg.OperationalError:
                connection.close()
                self._pool.putconn(connection)
            else:
                return connection


class _Watch:
    """Shuts a connection's socket when its time is over."""

    __slots__ = ("_deadline", "_timer", "barked")

    def __init__(self, seconds: float) -> None:
        self.barked = False
        self._deadline = time.monotonic() + seconds
        self._timer: Any = None

    def begin(self, connection: Connection) -> None:
        self._timer = gevent.get_hub().loop.timer(max(0.0, self._deadline - time.monotonic()))
        self._timer.start(self._bark, connection)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.close()

    def _bark(self, connection: Connection) -> None:
        self.barked = True
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as twin:
            twin.shutdown(socket.SHUT_RDWR)


def conninfo(url: str, user: str, password: str) -> str:
    """A connection string for one role, with the deadlines that a dead peer needs."""
    return make_conninfo(
        url,
        user=user,
        password=password or None,
        connect_timeout=2,
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        tcp_user_timeout=10_000,
        application_name=f"callrec {user}",
        options=f"-c statement_timeout={_SERVER_SECONDS * 1000} -c idle_in_transaction_session_timeout=30000",
    )


def _interruption(error: BaseException) -> BaseException | None:
    """The timeout or the kill of a greenlet that psycopg, tidying up after it, has covered with an error of its own."""
    cause = error.__context__
    while cause is not None and isinstance(cause, Exception):
        cause = cause.__context__
    return cause


def _lies_in_the_statement(error: Exception) -> bool:
    """Whether its values are at fault. What is wrong with tables or rights (class 42), someone mends."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):  # the same code for a right and for a row
        return error.diag.source_function == "ExecWithCheckOptions"
    if isinstance(error, psycopg.ProgrammingError):
        return error.sqlstate is None  # a value that psycopg can't send
    return isinstance(error, psycopg.DataError | psycopg.IntegrityError | UnicodeError)


def _what(error: Exception) -> str:
    name = type(error).__name__
    code = error.sqlstate if isinstance(error, psycopg.Error) else None
    return f"{name} ({code})" if code else name


@contextmanager
def _foreign(what: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise StoreError(what, detail=" ".join(str(error).split()), hint=hint) from None


def _connect(url: str, user: str, password: str) -> psycopg.Connection[TupleRow]:
    with _foreign("Postgres could not be reached", "Check [postgres] url, the owner's name and its password"):
        return psycopg.connect(conninfo(url, user, password), autocommit=True)


def migrate(url: str, user: str, password: str, directory: Path | None = None) -> list[str]:
    """Bring the schema up to date; give the names of the files that were applied now.

    Files `NNNN_*.sql` run once each, in order, each in a transaction of its own, under an advisory lock, so that two
    nodes may start together. The SHA-256 of each is recorded: a file that was edited after it was applied is refused.
    The user must own the database and be able to create roles; a superuser is.
    """
    directory = directory or sql_directory()
    files = sorted(directory.glob(_FILES))
    if not files:
        raise StoreError("No migrations found", detail=str(directory), hint="Is callrec installed whole?")
    applied = []
    with _connect(url, user, password) as connection:
        with _foreign("Another migration is under way, and takes long", "Try again when it has ended"):
            connection.execute("SELECT pg_advisory_lock(%s)", (_MIGRATION_LOCK,))
        connection.execute("SET statement_timeout = 0")  # a large table takes as long as it takes
        with _foreign("The roles could not be made", "Run `callrec migrate` as a superuser or a role with CREATEROLE"):
            connection.execute((directory / "roles.sql").read_bytes())
        with _foreign("The list of migrations can't be kept", "The owner must own the database, or be a superuser"):
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migration "
                "(name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            known: dict[str, str] = dict(connection.execute("SELECT name, sha256 FROM schema_migration").fetchall())
        for path in files:
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if path.name in known:
                if known[path.name] != digest:
                    raise StoreError(
                        f"{path.name} was edited after it was applied",
                        detail=f"applied {known[path.name][:12]}…, found {digest[:12]}…",
                        hint="Restore the file and put the change into a new one",
                    )
                continue
            with _foreign(f"{path.name} could not be applied", "Nothing of it is left"):
                _apply(connection, path.name, content, digest)
            applied.append(path.name)
    return applied


def _apply(connection: psycopg.Connection[TupleRow], name: str, content: bytes, digest: str) -> None:
    """Run one file. While it waits for a table, what comes later waits behind it, and calls have 250 ms for that."""
    for left in reversed(range(_TRIES)):
        try:
            with connection.transaction():
                connection.execute("SET LOCAL lock_timeout = '150ms'")
                connection.execute(content)
                connection.execute("INSERT INTO schema_migration (name, sha256) VALUES (%s, %s)", (name, digest))
        except psycopg.errors.LockNotAvailable:
            if not left:
                hint = "A long transaction or VACUUM holds it (pg_stat_activity): try again when it has ended"
                raise StoreError(f"{name} could not be applied: a table is in use", hint=hint) from None
            log.info("migration_waits", file=name)
            time.sleep(random.uniform(0.5, 1.5))  # noqa: S311 # jitter
        else:
            return
