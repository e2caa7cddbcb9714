"""`callrec run`: each role a process with its own secrets alone, started again when it ends, gone when it should be."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import gevent
import pytest
from fix_callrec import alive, children, facts, frozen, until_seen
from fix_stack import wait_until

from callrec import supervisor
from callrec.credentials import variables
from callrec.demo.caller import CallScript
from callrec.process import ROLES
from callrec.supervisor import Supervisor, environment


@pytest.fixture
def node(callrec):
    """The module's callrec, running and ready whatever the test before did to it."""
    if "run" not in callrec.installation.pids():
        callrec.installation.start()
    callrec.ready(60)
    return callrec


def environ(pid):
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


def page(node, path):
    try:
        with urllib.request.urlopen(node.installation.url(path), timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, json.load(answer)


# What a role is given


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_given_its_own_secrets_and_no_others(node, role):
    """A hijacked listener finds no S3 credentials in its memory, and a hijacked shipper no event socket."""
    given = environ(node.pid(role))
    secrets = node.installation.secrets
    own = set(variables(role)) & set(secrets)
    assert own
    assert {name for name in given if name.startswith("CALLREC_")} == own
    for name, value in secrets.items():
        if name not in own:
            assert value not in given.values(), name
    assert all(given[name] == secrets[name] for name in own)
    assert given["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("role", ROLES)
def test_a_secret_in_a_file_is_passed_on_as_its_path(role):
    env = {f"{name}_FILE": f"/run/{name}" for other in ("listen", "ship", "sweep", "api") for name in variables(other)}
    given = environment(role, env | {"HOME": "/", "CALLREC_CONFIG": "x"}, "/metrics")
    assert given == {f"{name}_FILE": f"/run/{name}" for name in variables(role)} | {
        "HOME": "/", "PROMETHEUS_MULTIPROC_DIR": "/metrics",
    }  # fmt: skip


# While it runs


def test_one_address_shows_all_roles(node):
    status, body = page(node, "/readyz")
    assert (status, body["missing"]) == (200, [])
    assert {"listen", "ship", "listen: postgres", "listen: redis", "ship: storage"} <= set(body["checked"])
    for role in ROLES:
        assert node.metric("callrec_role_up", role=role) == 1
        assert node.metric("callrec_dependency_up", role=role, dependency="postgres") == 1
        assert node.metric("callrec_hub_lag_seconds", role=role) < 5


@pytest.mark.parametrize("role", ROLES)
def test_a_role_that_ends_is_started_again(node, role):
    other = next(each for each in ROLES if each != role)
    started, beside = node.metric("callrec_role_starts_total", role=role), node.pid(other)
    folder = Path(environ(node.pid(role))["PROMETHEUS_MULTIPROC_DIR"])
    dead = node.kill(role)
    assert wait_until(lambda: node.installation.pids().get(role) not in (None, dead), 20, "a new process")
    node.ready(60)
    assert node.metric("callrec_role_starts_total", role=role) == started + 1
    assert node.metric("callrec_role_up", role=role) == 1
    assert node.pid(other) == beside
    assert [path.name for path in folder.glob(f"gauge_live*_{dead}.db")] == []  # it shows no longer as if it lived
    ended = [json.loads(line) for line in node.logs().splitlines() if '"role_ended"' in line]
    assert (ended[-1]["ended"], ended[-1]["status"]) == (role, -signal.SIGKILL)


def test_a_listener_that_stands_still_is_ended_and_its_callers_go_on(node):
    """FreeSWITCH has no deadline of its own for a connection once it is there."""
    call = node.place(CallScript("040404040", talk=1))
    until_seen(call, "answered")
    still = node.pid("listen")
    os.kill(still, signal.SIGSTOP)
    assert "bridged" in facts(call, 60)
    wait_until(lambda: node.installation.pids().get("listen") not in (None, still), 20, "a new process")
    node.ready(60)
    said = [json.loads(line) for line in node.logs().splitlines() if '"role_stands_still"' in line]
    assert [(each["still"], each["looks"]) for each in said] == [("listen", 5)]


def test_a_role_that_is_gone_is_missing_from_readiness(node):
    """Stopped, the supervisor can't start it again meanwhile: what it says at once afterwards is what it found."""
    os.kill(node.supervisor, signal.SIGSTOP)
    dead = node.kill("ship")
    os.kill(node.supervisor, signal.SIGCONT)
    seen = set()

    def back():
        seen.update(node.installation.missing())
        return not node.installation.missing() and node.installation.pids().get("ship") not in (None, dead)

    wait_until(back, 60, "ship ready again")
    assert "ship" in seen


def test_a_second_one_on_the_same_address_says_so_and_starts_nothing(node):
    before = node.installation.pids()
    done = node.command("run")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("callrec: HTTP can't listen on 127.0.0.1:")
    assert node.installation.pids() == before


# The end


def test_calls_are_taken_until_an_upload_has_ended(node):
    """A stop that waits for `ship` leaves no caller unheard meanwhile."""
    pids, process = node.installation.pids(), node.installation._process
    with frozen(pids["ship"]):
        os.kill(pids["run"], signal.SIGTERM)
        wait_until(lambda: not alive(pids["sweep"]), 10, "the end of sweep")
        call = node.place(CallScript("040404045", talk=1))
        assert "recorded" in facts(call)
    assert process.wait(35) == 0
    node.installation.start()
    node.settled(call)
    assert node.recording(call)["state"] == "stored"


def test_sigterm_ends_all_of_it_and_leaves_nothing(node):
    pids = node.installation.pids()
    folder = Path(environ(pids["ship"])["PROMETHEUS_MULTIPROC_DIR"])
    assert folder.is_dir()
    everything = {pids["run"], *children(pids["run"])}
    process = node.installation._process
    os.kill(pids["run"], signal.SIGTERM)
    assert process.wait(35) == 0
    assert not [pid for pid in everything if alive(pid)]
    assert not folder.exists()
    events = [json.loads(line).get("event") for line in node.logs().splitlines() if line.startswith("{")]
    assert events[-1] == "supervisor_stopped"


def test_roles_die_with_a_supervisor_that_is_killed(node):
    pids = node.installation.pids()
    os.kill(pids["run"], signal.SIGKILL)
    node.installation._process.wait(10)
    wait_until(lambda: not any(alive(pid) for pid in pids.values()), 40, "the end of all roles")


def test_what_run_is_told_of_logs_and_http_holds_for_its_roles_too(node):
    """It once took both options, kept to neither, and filled the log of who wanted warnings alone."""
    installation = node.installation
    installation.stop()
    command = [sys.executable, "-m", "callrec", "run", "--log-level", "WARNING", "--http", "none"]
    run = subprocess.Popen(command, env=installation.env, stderr=subprocess.PIPE, text=True)

    def listens(address):
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=5):
            return True

    try:
        wait_until(lambda: listens(installation.listen) and listens(installation.callbacks), 30, "the roles")
        assert not listens(installation.http)
    finally:
        run.terminate()
        said = run.communicate(timeout=40)[1]
    assert run.returncode == 0
    assert {json.loads(line)["level"] for line in said.splitlines()} <= {"warning", "error"}


# Without processes


class Ended:
    """A process that has ended as soon as it was started."""

    pid = 4711

    def __init__(self, *_, **__):
        self.terminated = False

    def poll(self):
        return 1

    def wait(self):
        return 1

    def terminate(self):
        self.terminated = True


def test_the_back_off_grows_to_its_bound_and_never_ends_the_keeping(monkeypatch):
    """After a thousand ends, an hour and a half of them, the pause was once too large a number to be one."""
    pauses = []
    monkeypatch.setattr(supervisor.subprocess, "Popen", Ended)
    monkeypatch.setattr(supervisor, "mark_process_dead", lambda *_: None)
    monkeypatch.setattr(supervisor.log, "error", lambda *_, **__: None)
    monkeypatch.setattr(supervisor.random, "uniform", lambda _least, most: most)
    kept = Supervisor(type("Config", (), {"path": "x"}), ("127.0.0.1", 0))

    class Stopping:
        def is_set(self):
            return len(pauses) >= 1500

        def wait(self, seconds):
            pauses.append(seconds)
            gevent.sleep(0)

    kept._stopping = Stopping()
    kept._keep("ship")
    assert len(pauses) == 1500
    assert pauses[0] <= 0.2
    assert pauses[:8] == sorted(pauses[:8])
    assert max(pauses) == pauses[-1] == 10.0


def test_the_metrics_that_roles_share_need_no_disk(monkeypatch, tmp_path):
    """They are mapped files: where the disk is full a role that counted something died of SIGBUS, `ship` too."""
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(supervisor.tempfile, "tempdir", None)
    folder = supervisor._directory_of_metrics()
    Path(folder).rmdir()
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    assert max([place, kind] for place, kind in mounts if folder.startswith(place))[1] == "tmpfs"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert Path(supervisor._directory_of_metrics()).parent == tmp_path


def test_a_role_that_could_not_be_started_is_started_when_it_can(monkeypatch):
    """No memory, as after whatever ended the role: the keeper must outlast that."""
    attempts = []
    monkeypatch.setattr(supervisor, "mark_process_dead", lambda *_: None)
    monkeypatch.setattr(supervisor.random, "uniform", lambda *_: 0.0)
    kept = Supervisor(type("Config", (), {"path": "x"}), ("127.0.0.1", 0))

    def start(*_, **__):
        attempts.append(None)
        if len(attempts) < 4:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        kept._stopping.set()
        return Ended()

    monkeypatch.setattr(supervisor.subprocess, "Popen", start)
    kept._keep("listen")
    assert len(attempts) == 4
    assert list(kept._children) == ["listen"]


def test_a_role_that_is_being_started_when_the_end_comes_is_ended_too(monkeypatch):
    made = []
    monkeypatch.setattr(supervisor, "mark_process_dead", lambda *_: None)
    kept = Supervisor(type("Config", (), {"path": "x"}), ("127.0.0.1", 0))

    def start(*_, **__):
        kept._stopping.set()  # SIGTERM arrives while the process is being made
        made.append(Ended())
        return made[-1]

    monkeypatch.setattr(supervisor.subprocess, "Popen", start)
    kept._keep("ship")
    assert [each.terminated for each in made] == [True]
