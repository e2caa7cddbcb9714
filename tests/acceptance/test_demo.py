"""`callrec demo`, as a person starts it: what it prints, its exit status, and that nothing is left behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psycopg
import pytest
import redis
from fix_callrec import alive, children
from fix_stack import wait_until
from minio import Minio

DEMO = [sys.executable, "-m", "callrec", "demo"]
NO_STORES = {name: value for name, value in os.environ.items() if not name.startswith("CALLREC_")}

# A demand that no call meets: it must show in the exit status, whatever made it differ.
DIFFERS = """
from gevent import monkey
monkey.patch_all()
import dataclasses, sys
from callrec.demo import scenarios
wanted = scenarios.by_name("refusal")
demand = dataclasses.replace(wanted.demand, decision="granted")
scenarios.SCENARIOS = (dataclasses.replace(wanted, demand=demand),)
from callrec.cli import main
sys.exit(main(["demo", "--scenario", "refusal", "--json"]))
"""


@pytest.fixture
def home(tmp_path):
    """A temporary directory of the demo's own, in which it must leave nothing. Others must reach it: Postgres does."""
    with tempfile.TemporaryDirectory(prefix="callrec-test-demo-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def run(home, *command):
    done = subprocess.run(
        command, env=NO_STORES | {"TMPDIR": str(home)}, capture_output=True, text=True, timeout=100, check=False
    )
    assert list(home.iterdir()) == []
    return done


def test_two_scenarios_are_as_demanded_and_nothing_is_left(home):
    done = run(home, *DEMO, "--scenario", "sale", "--scenario", "refusal", "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["scenario"], line["met"], line["wrong"]) for line in lines] == [
        ("sale", True, []),
        ("refusal", True, []),
    ]
    assert lines[0]["storage"].startswith("1 version, GOVERNANCE until ")
    assert lines[1]["storage"] == "0 versions, 0 keys"


def test_a_call_that_differs_shows_in_the_exit_status(home):
    done = run(home, sys.executable, "-c", DIFFERS)
    assert done.returncode == 1, done.stderr
    (line,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert line["met"] is False
    assert any(wrong.startswith("decision: wanted granted, found refused") for wrong in line["wrong"])
    assert "1 of 1 calls differ" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--scenario", "no-such"), "There is no scenario 'no-such'"),
        (("--event-socket", "127.0.0.1:8021"), "--event-socket needs --serve"),
        (("--serve", "--event-socket", "nonsense"), "is no address"),
    ],
)
def test_wrong_use_is_said_and_leaves_nothing(home, arguments, says):
    done = run(home, *DEMO, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("callrec: ")
    assert says in done.stderr


@contextlib.contextmanager
def serving(home, *arguments):
    """`callrec demo --serve` and the addresses that it prints; killed if the test has not ended it."""
    with subprocess.Popen(
        [*DEMO, "--serve", *arguments],
        env=NO_STORES | {"TMPDIR": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


@contextlib.contextmanager
def ignored(sig):
    """Processes made in the block ignore this signal until they ask for it; so does this one."""
    before = signal.signal(sig, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(sig, before)


def reach(address):
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def test_serve_says_where_everything_is_and_ends_with_all_of_it(home):
    with serving(home) as (process, at):
        assert {"esl_listen", "event_socket", "http", "postgres", "redis", "s3", "spool", "config"} <= set(at)
        assert {"endpoint", "access_key", "secret_key", "bucket"} <= set(at["s3"])
        with reach(at["esl_listen"]) as connection:
            assert connection.recv(100).startswith(b"connect")
        with reach(at["event_socket"]) as connection:
            assert connection.recv(100).startswith(b"Content-Type: auth/request")
        with urllib.request.urlopen(f"{at['http']}/readyz", timeout=5) as answer:
            assert json.load(answer)["ready"]
        with psycopg.connect(at["postgres"]) as connection:
            assert connection.execute("SELECT count(*) FROM recording").fetchone() == (0,)
        with redis.Redis.from_url(at["redis"]) as client:
            assert client.ping()
        s3 = at["s3"]
        client = Minio(
            endpoint=s3["endpoint"].removeprefix("http://"),
            access_key=s3["access_key"],
            secret_key=s3["secret_key"],
            secure=False,
            region="default",
        )
        assert client.get_object_lock_config(bucket_name=s3["bucket"]).mode == "GOVERNANCE"
        assert (Path(at["spool"]) / "rec").is_dir()
        env = NO_STORES | at["environment"]
        calls = subprocess.run(
            [sys.executable, "-m", "callrec", "calls", "--json", "-c", at["config"]],
            env=env, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert (calls.returncode, calls.stdout) == (0, ""), calls.stderr

        left = [process.pid, *children(process.pid)]
        assert len(left) > 8
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, process.stderr.read()
        assert time.monotonic() - begun < 15
        wait_until(lambda: not [pid for pid in left if alive(pid)], 5, "nothing running")
        assert process.stdout.read() == ""
    assert list(home.iterdir()) == []


def test_killed_outright_serve_leaves_nothing_running(home):
    with serving(home) as (process, _):
        left = children(process.pid)
        process.kill()
        wait_until(lambda: not [pid for pid in left if alive(pid)], 30, "nothing running")


def test_serve_waits_for_no_freeswitch_that_comes_later(home):
    """--event-socket: a real FreeSWITCH's, here nobody's yet. The rest is up, /readyz says what is missing; Ctrl-C.

    SIGINT is ignored when it starts, as in a shell script's background job.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
    with ignored(signal.SIGINT), serving(home, "--event-socket", where, "--password", "x") as (process, at):
        assert at["event_socket"] == where
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(f"{at['http']}/readyz", timeout=5)
        with answer.value:
            assert json.load(answer.value)["missing"] == ["listen: event_socket"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert list(home.iterdir()) == []


def test_the_whole_demo_reads_for_a_person(home):
    """Every scenario, the table, the verdict."""
    done = run(home, *DEMO)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "All 10 calls are as the law demands." in done.stdout
    assert done.stdout.count("as demanded") == 10
