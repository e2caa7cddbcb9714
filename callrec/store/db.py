"""Postgres: a pool with deadlines, the named statements of sql/queries.sql, and the migrations of sql/.

Foreign exceptions stop here: whatever psycopg raises leaves as StoreError, counted in a metric. Statements run in
autocommit, one statement one transaction, so that what has to be atomic is written as one statement.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import gevent
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from callrec.errors import StoreError
from callrec.log import Log
from callrec.metrics import STORE_ERRORS

log = Log(__name__)

Row = dict[str, Any]
Statement = tuple[str, Mapping[str, Any]]

_MIGRATION_LOCK = 0x63616C6C726563  # "callrec": one migration at a time, whoever starts it


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
        self.queries = load_queries(sql_directory() / "queries.sql")
        self.conninfo = conninfo(url, user, password)
        self._pool: ConnectionPool[psycopg.Connection[Row]] = ConnectionPool(
            self.conninfo,
            connection_class=psycopg.Connection[Row],
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
        """Run one named statement, give its rows. StoreError when Postgres refuses, is away, or is late."""
        limit = self.timeout if timeout is None else timeout
        late = StoreError("Postgres did not answer in time", detail=f"{name} had {limit:.3f} s")
        try:
            with gevent.Timeout(limit, late), self._pool.connection(timeout=limit) as connection:
                cursor = connection.execute(self.queries[name], params)
                return cursor.fetchall() if cursor.description else []
        except StoreError:
            STORE_ERRORS.labels("postgres", name).inc()
            raise
        except PoolTimeout:
            STORE_ERRORS.labels("postgres", name).inc()
            raise StoreError("No connection to Postgres", detail=f"{name} waited {limit:.3f} s") from None
        except psycopg.Error as error:
            STORE_ERRORS.labels("postgres", name).inc()
            # The server's text may quote a row; its class and code say enough.
            raise StoreError("Postgres refused", detail=f"{name}: {_what(error)}") from None

    def one(self, name: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> Row | None:
        rows = self.run(name, params, timeout=timeout)
        return rows[0] if rows else None

    def run_all(self, statements: Sequence[Statement], *, timeout: float | None = None) -> None:
        """Run several named statements in one transaction, in order. All or none."""
        limit = self.timeout if timeout is None else timeout
        late = StoreError("Postgres did not answer in time", detail=f"{len(statements)} statements had {limit:.1f} s")
        try:
            with (
                gevent.Timeout(limit, late),
                self._pool.connection(timeout=limit) as connection,
                connection.transaction(),
                connection.pipeline(),
            ):
                for name, params in statements:
                    connection.execute(self.queries[name], params)
        except StoreError:
            STORE_ERRORS.labels("postgres", "batch").inc()
            raise
        except PoolTimeout:
            STORE_ERRORS.labels("postgres", "batch").inc()
            raise StoreError("No connection to Postgres", detail=f"waited {limit:.1f} s") from None
        except psycopg.Error as error:
            STORE_ERRORS.labels("postgres", "batch").inc()
            raise StoreError("Postgres refused", detail=_what(error)) from None

    def alive(self, timeout: float = 1.0) -> bool:
        try:
            self.run("alive", timeout=timeout)
        except StoreError:
            return False
        return True


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
        application_name=f"callrec {user}",
        options="-c statement_timeout=30000 -c idle_in_transaction_session_timeout=30000",
    )


def _what(error: psycopg.Error) -> str:
    name = type(error).__name__
    return f"{name} ({error.sqlstate})" if error.sqlstate else name


@contextmanager
def _foreign(what: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise StoreError(what, detail=str(error).strip(), hint=hint) from None


def migrate(url: str, user: str, password: str, directory: Path | None = None) -> list[str]:
    """Bring the schema up to date; give the names of the files that were applied now.

    Files `NNNN_*.sql` run once each, in order, each in a transaction of its own, under an advisory lock, so that two
    nodes may start together. The SHA-256 of each is recorded: a file that was edited after it was applied is refused.
    The user must be able to create roles and to give the ledger to `callrec_ledger` (a superuser is).
    """
    directory = directory or sql_directory()
    files = sorted(directory.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    if not files:
        raise StoreError("No migrations found", detail=str(directory), hint="Is callrec installed whole?")
    applied = []
    with (
        _foreign("Postgres could not be reached", "Check [postgres] url, the owner's name and its password"),
        psycopg.connect(conninfo(url, user, password), autocommit=True) as connection,
    ):
        connection.execute("SELECT pg_advisory_lock(%s)", (_MIGRATION_LOCK,))
        with _foreign("The roles could not be made", "Run `callrec migrate` as a superuser or a role with CREATEROLE"):
            connection.execute((directory / "roles.sql").read_bytes())
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
            with _foreign(f"{path.name} could not be applied"), connection.transaction():
                connection.execute(content)
                connection.execute("INSERT INTO schema_migration (name, sha256) VALUES (%s, %s)", (path.name, digest))
            applied.append(path.name)
    return applied


def pending(url: str, user: str, password: str) -> list[str]:
    """The migrations of this version that the database does not have yet."""
    names = [path.name for path in sorted(sql_directory().glob("[0-9][0-9][0-9][0-9]_*.sql"))]
    with _foreign("Postgres could not be reached"), psycopg.connect(conninfo(url, user, password)) as connection:
        exists = connection.execute("SELECT to_regclass('schema_migration')").fetchone()
        if not exists or exists[0] is None:
            return names
        known = {row[0] for row in connection.execute("SELECT name FROM schema_migration").fetchall()}
    return [name for name in names if name not in known]
