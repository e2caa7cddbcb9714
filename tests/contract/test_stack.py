"""The private stack: everything answers, is private, survives what it must, and leaves nothing behind."""

import io
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import minio
import psycopg
import pytest
import redis
import urllib3
from fix_stack import stack_directory, wait_until

from callrec.demo.process import Child, PortTakenError, running
from callrec.demo.stack import Stack
from callrec.errors import CallrecError, ConfigError

PROGRAMS = {"postgres", "redis-server", "ceph-mon", "ceph-osd", "radosgw"}
LISTENING = "0A"
LOOPBACK = "0100007F"


def s3_client(at):
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(5), retries=False)
    return minio.Minio(
        endpoint=at.host, access_key=at.access_key, secret_key=at.secret_key, region=at.region, secure=False,
        http_client=pool,
    )  # fmt: skip


def processes_under(root):
    """Pids of living processes whose command line names `root`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and running(int(entry.name)):
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(root) in line:
                found.append(int(entry.name))
    return found


def listening_addresses(pids):
    """Hexadecimal local addresses on which any of these processes listens, from /proc."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                match = re.match(r"socket:\[(\d+)\]", os.readlink(descriptor))  # noqa: PTH115 - not a path
            except OSError:
                continue
            if match:
                inodes.add(match[1])
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()]
    return [row[1].split(":")[0] for row in rows if row[3] == LISTENING and row[9] in inodes]


def test_everything_answers_on_loopback_only_and_nothing_is_left(own_stack):
    stack = own_stack()
    with psycopg.connect(stack.postgres_url, connect_timeout=5) as connection:
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
        assert connection.execute("SELECT current_database()").fetchone() == ("callrec",)
    with redis.Redis.from_url(stack.redis_url, socket_timeout=5) as client:
        assert client.ping()
    s3_client(stack.s3).make_bucket(bucket_name="locked", object_lock=True)

    pids = stack.pids()
    assert set(pids) == PROGRAMS
    # One each for Postgres, Redis, monitor and gateway; four for the OSD.
    addresses = listening_addresses(pids.values())
    assert len(addresses) >= len(PROGRAMS)
    assert set(addresses) == {LOOPBACK}

    stack.stop(remove=True)
    assert not [pid for pid in pids.values() if running(pid)]
    assert processes_under(stack.root) == []
    assert not stack.root.exists()


def test_a_wrong_postgres_password_is_refused(stack):
    url = re.sub(r":[^:@/]+@", ":wrong@", stack.postgres_url)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url, connect_timeout=5)


def test_a_fresh_database_is_another_each_time_and_empty(fresh_database):
    first, second = fresh_database(migrate=False), fresh_database(migrate=False)
    with psycopg.connect(first, connect_timeout=5) as connection:
        connection.execute("CREATE TABLE mine (figure int)")
    with psycopg.connect(second, connect_timeout=5) as connection:
        assert connection.execute("SELECT to_regclass('mine')").fetchone() == (None,)


def test_migrated_databases_have_the_schema_and_share_nothing(fresh_database):
    first, second = fresh_database(migrate=True), fresh_database(migrate=True)
    assert first != second
    for url in (first, second):
        with psycopg.connect(url, connect_timeout=5) as connection:
            assert connection.execute("SELECT count(*) > 0 FROM schema_migration").fetchone() == (True,)
            connection.execute("CREATE TABLE mine (figure int)")


def test_killed_postgres_and_gateway_keep_what_was_committed(own_stack):
    stack = own_stack()
    with psycopg.connect(stack.postgres_url, connect_timeout=5) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS figure")
    objects = s3_client(stack.s3)
    objects.make_bucket(bucket_name="kept")
    objects.put_object(bucket_name="kept", object_name="letter", data=io.BytesIO(b"dear"), length=4)
    with redis.Redis.from_url(stack.redis_url, socket_timeout=5) as client:
        client.set("gone", "1")

    for service in ("postgres", "redis", "s3"):
        before = stack.pids()
        stack.kill(service)
        assert len(stack.pids()) == len(PROGRAMS) - 1
        stack.restart(service)
        assert set(stack.pids()) == PROGRAMS
        assert stack.pids() != before

    with psycopg.connect(stack.postgres_url, connect_timeout=5) as connection:
        assert connection.execute("SELECT figure FROM kept").fetchone() == (7,)
    assert objects.get_object(bucket_name="kept", object_name="letter").data == b"dear"
    with redis.Redis.from_url(stack.redis_url, socket_timeout=5) as client:
        assert client.get("gone") is None


def test_services_die_with_a_killed_owner():
    directory = stack_directory()
    root = directory / "stack"
    program = f"""
        import time
        from pathlib import Path
        from callrec.demo.stack import Stack
        stack = Stack(Path({str(root)!r}), env={{}})
        stack.start()
        print(*stack.pids().values(), flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    pids = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as owner:
        try:
            pids = [int(word) for word in owner.stdout.readline().split()]
            assert len(pids) == len(PROGRAMS)
            assert all(map(running, pids))
            owner.kill()
            owner.wait(5)
            wait_until(lambda: not any(map(running, pids)), 5, "the end of every service")
            wait_until(lambda: not processes_under(root), 5, "the end of every helper")
        finally:
            owner.kill()
            for pid in filter(running, pids):
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(directory, ignore_errors=True)


def test_postgres_boots_where_its_user_can_not_go(own_stack):
    directory = stack_directory()
    directory.chmod(stat.S_IRWXU)
    with Stack(directory / "stack", services=["postgres"], env={}) as stack:
        psycopg.connect(stack.postgres_url, connect_timeout=5).close()
    assert list(directory.iterdir()) == []
    directory.rmdir()


def test_a_role_may_do_nothing_until_a_bucket_policy_lets_it(s3):
    users, ids = s3.users("ship", "sweep")
    bucket = s3.bucket_name()
    admin, ship = s3_client(s3), s3_client(users["ship"])
    admin.make_bucket(bucket_name=bucket)
    with pytest.raises(minio.S3Error, match="AccessDenied"):
        list(ship.list_objects(bucket_name=bucket))
    with pytest.raises(minio.S3Error):
        ship.make_bucket(bucket_name=s3.bucket_name())
    admin.set_bucket_policy(
        bucket_name=bucket,
        policy=f"""{{"Version": "2012-10-17", "Statement": [{{"Effect": "Allow", "Action": ["s3:ListBucket"],
            "Principal": {{"AWS": ["arn:aws:iam:::user/{ids["ship"]}"]}}, "Resource": ["arn:aws:s3:::{bucket}"]}}]}}""",
    )
    assert list(ship.list_objects(bucket_name=bucket)) == []
    with pytest.raises(minio.S3Error, match="AccessDenied"):
        list(s3_client(users["sweep"]).list_objects(bucket_name=bucket))


def test_a_missing_program_names_its_package(own_stack, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name, **_: None if name == "radosgw" else f"/usr/bin/{name}")
    with pytest.raises(CallrecError, match="radosgw is not installed") as caught:
        own_stack("s3")
    assert "install --no-install-recommends radosgw" in caught.value.hint


def test_a_failed_service_shows_the_end_of_its_log_and_stops_the_others(own_stack, monkeypatch, tmp_path):
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    stack = Stack(stack_directory() / "stack", services=["postgres", "redis"], env={})
    with pytest.raises(CallrecError, match="starting Redis failed") as caught:
        stack.start()
    assert "no such luck" in caught.value.detail
    assert "status 3" in caught.value.detail
    assert stack.pids() == {}
    assert processes_under(stack.root) == []
    stack.stop(remove=True)
    stack.root.parent.rmdir()


def test_a_collision_of_ports_is_told_from_other_failures(tmp_path, stack):
    port = stack.redis_url.rsplit(":", 1)[1].split("/")[0]
    child = Child(["redis-server", "--port", port, "--bind", "127.0.0.1"], tmp_path / "redis.out")
    wait_until(lambda: child.exit_status() is not None, 5, "the end of a Redis on a taken port")
    assert isinstance(child.failure("starting"), PortTakenError)


def test_what_the_environment_names_is_used_and_not_booted(tmp_path):
    env = {
        "CALLREC_DEMO_POSTGRES_URL": "postgresql://a:b@db.example/c",
        "CALLREC_DEMO_REDIS_URL": "redis://cache.example/1",
        "CALLREC_DEMO_S3_ENDPOINT": "https://s3.example",
        "CALLREC_DEMO_S3_ACCESS_KEY": "key",
        "CALLREC_DEMO_S3_SECRET_KEY": "hidden",
    }
    with Stack(tmp_path / "stack", env=env) as stack:
        assert stack.pids() == {}
        assert stack.postgres_url == "postgresql://a:b@db.example/c"
        assert stack.redis_url == "redis://cache.example/1"
        assert (stack.s3.host, stack.s3.secure, stack.s3.region) == ("s3.example", True, "default")
        assert "hidden" not in repr(stack.s3)
        with pytest.raises(CallrecError, match="not run by this stack"):
            stack.kill("postgres")
    del env["CALLREC_DEMO_S3_SECRET_KEY"]
    with pytest.raises(ConfigError, match="CALLREC_DEMO_S3_SECRET_KEY"):
        Stack(tmp_path / "other", env=env)


def test_a_directory_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    stack = Stack(tmp_path, services=["redis"], env={})
    with pytest.raises(CallrecError, match="holds something else"):
        stack.start()
    stack.stop(remove=True)
    assert (tmp_path / "letter.txt").read_text() == "dear"
