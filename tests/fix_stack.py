"""Real stores for tests: a private stack per session, each service booted when a test first asks for it.

stack           .postgres_url .redis_url .s3 .s3_users(...): the session's, shared, never to be killed
fresh_database  fresh_database(migrate=True) -> URL of a database of this test's own, of a superuser
postgres_url    a migrated one
redis_url       an emptied Redis
s3              .endpoint .host .access_key .secret_key .region, .bucket_name(), .users("ship", ...)
own_stack       own_stack("postgres", "s3") -> a Stack of this test's own, to kill and restart services in
wait_until      wait_until(condition, seconds, what): imported from here, no fixture
"""

import contextlib
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from psycopg import sql

from callrec.demo.stack import SERVICES, Stack


def wait_until(condition, seconds=5.0, what="the condition", pause=0.01):
    """Poll `condition` until it returns something true, and return that. Fails the test after `seconds`.

    `pause` is what lies between the first two looks, in seconds: more where a look is dear. It grows with the wait, to
    a twentieth of it: whoever waits long loses little by that, and the processors are what all runs wait for.
    """
    begun = time.monotonic()
    while not (result := condition()):
        waited = time.monotonic() - begun
        if waited > seconds:
            pytest.fail(f"{what}: not within {seconds} s")
        time.sleep(max(pause, min(waited / 20, 0.1)))
    return result


def stack_directory():
    """A new directory which user postgres can reach: pytest's own are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="callrec-test-"))
    path.chmod(0o711)
    return path


class LazyStack:
    """A stack for each service, booted when first needed."""

    def __init__(self, directory):
        self._directory = directory
        self._stacks = {}

    def _with(self, service):
        if service not in self._stacks:
            # Ten seconds for a lifecycle day: a test may see a rule act. Without fsync: hundreds of databases come and
            # go, and only a crash of the machine would show that it is off.
            stack = Stack(self._directory / service, services=[service], lifecycle_day_seconds=10, fsync=False)
            stack.start()
            self._stacks[service] = stack
        return self._stacks[service]

    @property
    def postgres_url(self):
        return self._with("postgres").postgres_url

    @property
    def redis_url(self):
        return self._with("redis").redis_url

    @property
    def s3(self):
        return self._with("s3").s3

    def s3_users(self, *names):
        return self._with("s3").s3_users(*names)

    def stop(self):
        for stack in self._stacks.values():
            stack.stop(remove=True)


@pytest.fixture(scope="session")
def stack():
    directory = stack_directory()
    lazy = LazyStack(directory)
    yield lazy
    lazy.stop()
    shutil.rmtree(directory, ignore_errors=True)


class Databases:
    """Databases made in a second's fraction: an empty one, or a copy of one migrated once."""

    def __init__(self, url):
        self._url = url
        self._migrated = None

    def create(self, *, migrate):
        if migrate and not self._migrated:
            from callrec.store import db

            template = self._create(None)
            at = urlsplit(self._url)
            db.migrate(self.url(template), at.username, at.password)
            self._migrated = template
        return self._create(self._migrated if migrate else None)

    def _create(self, template):
        name = f"test_{uuid.uuid4().hex[:12]}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self._execute(statement.format(sql.Identifier(name), sql.Identifier(template or "template0")))
        return name

    def drop(self, name):
        self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def url(self, name):
        return urlsplit(self._url)._replace(path=f"/{name}").geturl()

    def _execute(self, statement):
        with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)


@pytest.fixture(scope="session")
def databases(stack):
    return Databases(stack.postgres_url)


@pytest.fixture
def fresh_database(databases):
    with contextlib.ExitStack() as made:

        def create(*, migrate):
            name = databases.create(migrate=migrate)
            made.callback(databases.drop, name)
            return databases.url(name)

        yield create


@pytest.fixture
def postgres_url(fresh_database):
    return fresh_database(migrate=True)


@pytest.fixture
def redis_url(stack):
    with redis.Redis.from_url(stack.redis_url, socket_timeout=5) as client:
        client.flushall()
    return stack.redis_url


class S3:
    """The session's S3 server as its administrator; each test names buckets of its own."""

    def __init__(self, stack):
        self._stack = stack
        at = stack.s3
        self.endpoint, self.host, self.region = at.endpoint, at.host, at.region
        self.access_key, self.secret_key, self.secure = at.access_key, at.secret_key, at.secure

    def bucket_name(self):
        return f"test-{uuid.uuid4().hex[:16]}"

    def users(self, *names):
        """New users by the given names, each with a random suffix behind it: {name: S3Endpoint} and their ids.

        A user's principal in a bucket policy is `arn:aws:iam:::user/ID`.
        """
        ids = {name: f"{name}-{uuid.uuid4().hex[:8]}" for name in names}
        made = self._stack.s3_users(*ids.values())
        return {name: made[user_id] for name, user_id in ids.items()}, ids


@pytest.fixture(scope="session")
def s3(stack):
    return S3(stack)


@pytest.fixture
def own_stack():
    with contextlib.ExitStack() as started:

        def start(*services, **options):
            directory = stack_directory()
            started.callback(shutil.rmtree, directory, ignore_errors=True)
            stack = Stack(directory / "stack", services=services or SERVICES, env={}, **options)
            started.callback(stack.stop, remove=True)
            stack.start()
            return stack

        yield start
