"""The command line as a person meets it: what it teaches, how it ends, what it says when it can't."""

import argparse
import base64
import getpass
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from fix_stack import wait_until
from nacl.public import PrivateKey

from callrec import adapters, cli, rights_cli, tables
from callrec.check import check
from callrec.credentials import decode_key
from callrec.demo.installation import example
from callrec.errors import AccessDeniedError, EnvelopeError, RightsError, StoreError
from callrec.ledger.note import Signer
from callrec.store import db

COMMANDS = [
    "run", "listen", "ship", "check", "migrate", "prompts", "keys", "calls", "recordings", "ledger", "play", "mask",
    "unmask", "stop", "withdraw", "demo", "sweep", "api", "revoke", "identify", "dispose", "hold", "release", "holds",
    "erase", "erasures", "adopt", "audit", "replay-erasures", "accept-restore", "storage", "lifecycle", "worm-probe",
    "evidence", "lookup-keys",
    "verify",
]  # fmt: skip
SECRETS = {
    "CALLREC_POSTGRES_PASSWORD_API": "p", "CALLREC_S3_ACCESS_KEY_API": "a", "CALLREC_S3_SECRET_KEY_API": "s",
    "CALLREC_PRIVATE_KEY": base64.b64encode(b"k" * 32).decode(),
}  # fmt: skip


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    for name in [name for name in os.environ if name.startswith("CALLREC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CALLREC_CONFIG", str(example()))
    monkeypatch.setenv("COLUMNS", "100")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def call(capsys):
    """Run a command line; gives (status, standard output, standard error)."""

    def run(*arguments):
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = end.code
        seen = capsys.readouterr()
        return status, seen.out, seen.err

    return run


def one_line(text):
    assert text.startswith("callrec: ")
    assert text.count("\n") == 1
    return text


# Help and usage


def test_help_lists_every_command_with_what_it_does(call):
    status, out, _ = call("--help")
    assert status == 0
    for command in COMMANDS:
        assert re.search(rf"^    {command}\s+\w+", out, flags=re.MULTILINE), command
    assert "First steps" in out
    parser = cli._parser()
    (action,) = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    assert set(action.choices) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_each_of_its_options(call, command):
    status, out, _ = call(command, "--help")
    assert status == 0
    assert f"usage: callrec {command}" in out
    parser = cli._parser()
    (commands,) = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    for action in commands.choices[command]._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue  # `storage init` and its like have pages of their own
        assert action.help, f"{command} {action.option_strings or action.dest} has no help"


@pytest.mark.parametrize(
    "wrong",
    [
        (), ("no-such-command",), ("play", "not-an-id", "-o", "x", "-p", "y"), ("play", str(uuid4()), "-o", "x.wav"),
        ("calls", "--limit", "0"), ("calls", "--limit", "-1"), ("calls", "--limit", "many"), ("mask",),
        ("erasures", "--limit", "-1"), ("erase",), ("erase", str(uuid4()), "--line", "sales"),
        ("hold", str(uuid4()), "--reason=dispute", "--case=c", "--review-at=2026-12-01", "--owner=Ana Novak"),
        ("listen", "--log-level", "LOUD"), ("play", str(uuid4()), "-o", "x", "-p", "dsar", "--account", "Ana Novak"),
        ("accept-restore", "--reason", "disk", "--account", "Ana Novak"),
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_2_and_a_hint_at_the_right_one(call, wrong):
    status, out, err = call(*wrong)
    assert (status, out) == (2, "")
    assert err.startswith("usage: callrec")


def test_the_version(call):
    assert call("--version")[:2] == (0, "callrec 0.1.0\n")


def test_no_command_needs_a_user_name(call, monkeypatch):
    """In a container the user often has none; once every command failed there."""

    def nameless():
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert call("--help")[0] == 0
    assert rights_cli.own_account() == str(os.getuid())


# Faults


def test_a_missing_configuration_is_named_with_a_hint(call):
    status, out, err = call("calls", "-c", "/no/such/callrec.toml")
    assert (status, out) == (1, "")
    assert "/no/such/callrec.toml" in err
    assert "callrec.example.toml" in err


@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_a_missing_secret_is_named(call, monkeypatch, tmp_path, missing):
    monkeypatch.delenv(missing)
    status, _, err = call("play", str(uuid4()), "-p", "dsar", "-o", str(tmp_path / "out.wav"))
    assert status == 1
    assert missing in err
    assert f"{missing}_FILE" in err


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:x", ":80", "127.0.0.1:0"])
def test_an_http_address_that_is_none_is_said(call, address):
    status, _, err = call("api", "--http", address)
    assert status == 2
    assert f"{address!r} is no address: give HOST:PORT or none" in err


def test_an_http_address_and_none():
    config = argparse.Namespace(http=("192.0.2.1", 9470))
    given = {"127.0.0.1:80": ("127.0.0.1", 80), "[::1]:80": ("::1", 80), "none": None}
    for text, address in given.items():
        assert cli._http(cli._parser().parse_args(["run", "--http", text]), config) == address
    assert cli._http(cli._parser().parse_args(["run"]), config) == ("192.0.2.1", 9470)


def test_a_postgres_that_is_away_is_one_line_with_a_hint(call, monkeypatch):
    def unreachable(settings, role):
        return db.Database("postgresql://127.0.0.1:1/none", "u", "p", timeout=0.3)

    monkeypatch.setattr(adapters, "database", unreachable)
    for command in (("calls",), ("recordings",), ("ledger", "x"), ("mask", "x")):
        status, out, err = call(*command)
        assert (status, out) == (1, "")
        assert "Is it up" in one_line(err)


# check and keys


def test_check_ends_with_1_for_a_configuration_with_faults_and_names_them(call, tmp_path):
    faulty = tmp_path / "callrec.toml"
    faulty.write_text(example().read_text().replace('country = "SI"', 'country = "XX"'))
    status, out, _ = call("check", "-c", str(faulty))
    assert status == 1
    assert "country" in out
    status, out, _ = call("check", "-c", str(faulty), "--json")
    assert status == 1
    assert json.loads(out)


def test_check_ends_with_0_when_it_only_warns(call, monkeypatch):
    warnings = [found for found in check(example()) if not cli.failed([found])]
    monkeypatch.setattr(cli, "check", lambda _path: warnings)
    assert call("check")[0] == 0


def test_the_keys_that_are_made_can_be_used(call):
    status, out, _ = call("keys")
    assert status == 0
    values = dict(re.findall(r'^(\w+) ?= ?"?([^"\n]+)"?$', out, flags=re.MULTILINE))
    assert set(values) == {"public_key", "CALLREC_PRIVATE_KEY", "CALLREC_LOOKUP_KEY", "CALLREC_LEDGER_KEY"}
    private = PrivateKey(decode_key(values["CALLREC_PRIVATE_KEY"]))
    assert bytes(private.public_key) == decode_key(values["public_key"])
    assert len(decode_key(values["CALLREC_LOOKUP_KEY"])) == 32
    signer = Signer.parse(values["CALLREC_LEDGER_KEY"])
    assert signer.verifier.name == "ledger.a1.si/callrec", "as the configuration says"
    assert f'verifiers = ["{signer.verifier}"]' in out
    assert call("keys")[1] != out


def test_a_key_that_replaces_the_ledgers_is_made_alone(call):
    status, out, _ = call("keys", "--ledger", "--origin", "ledger.example.com/other")
    assert status == 0
    assert Signer.parse(re.search("CALLREC_LEDGER_KEY=(.*)", out)[1]).verifier.name == "ledger.example.com/other"
    assert "PRIVATE_KEY" not in out
    assert "callrec keys --ledger --origin" in call("keys", "-c", "/nowhere")[1], "and without a name it is said how"
    status, _, err = call("keys", "--ledger", "--origin", "not a name")
    assert (status, "This is no key" in err) == (1, True)


def test_a_reader_who_goes_away_is_no_fault(tmp_path):
    """`callrec keys | head -0`"""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "callrec", "keys"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_answer_that_can_not_be_written_is_one_line():
    """`callrec keys >FILE` on a full disk, buffered and not."""
    for buffering in ("", "1"):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "callrec", "keys"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=60,
                env=os.environ | {"PYTHONUNBUFFERED": buffering},
            )
        assert (done.returncode, done.stderr) == (1, "callrec: The answer can't be written. No space left on device\n")


def test_an_answer_that_the_terminal_has_no_letters_for_is_given_all_the_same(tmp_path):
    """A terminal of before UTF-8: the law that a ledger quotes, in Slovenian."""
    program = "from callrec import cli; cli.check, cli.render = lambda _: [], lambda _: 'člen'; cli.main(['check'])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, timeout=60,
        env=os.environ | {"PYTHONIOENCODING": "iso-8859-1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\u010dlen\n", b"")


def test_a_person_who_has_enough_is_told_nothing(tmp_path):
    """Ctrl-C while a command waits for an answer: gevent's loop reports it as a fault of its own."""
    program = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a script's & has it ignored
        "import gevent\nfrom callrec import cli\n"
        "def wait(_path): gevent.spawn(print, 'waits', flush=True); gevent.sleep(60)\n"
        "cli.check = wait\nraise SystemExit(cli.main(['check']))"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = subprocess.Popen([sys.executable, "-c", program], **pipes, text=True)
    assert command.stdout.readline() == "waits\n"
    about = Path(f"/proc/{command.pid}/stat")
    wait_until(lambda: about.read_text().rpartition(") ")[2].startswith("S"), 30, "the command to wait")
    command.send_signal(signal.SIGINT)
    assert (*command.communicate(timeout=30), command.returncode) == ("", "", 130)


# verify


@pytest.mark.parametrize("bundle", ["/no/such.zip", "/"])
def test_a_bundle_that_is_not_there_is_not_called_false(call, bundle):
    """What an inspector is shown about a name that was mistyped must not read as a verdict."""
    status, out, err = call("verify", bundle)
    assert (status, out) == (2, "")
    assert f"directory: '{bundle}'" in err


# play


class Recording:
    """What opens recordings, with pieces of our choice; an exception among them is raised in its place."""

    def __init__(self, *pieces, denied=False):
        self.pieces, self.denied, self.heard = pieces, denied, []

    def open(self, listening):
        self.heard.append(listening)
        if self.denied:
            raise AccessDeniedError("This recording may not be heard for this purpose", hint="Purposes: dsar")
        return self._all()

    def _all(self):
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


@pytest.fixture
def play(call, monkeypatch):
    def run(recording, output, *more):
        @contextmanager
        def player(_config):
            yield recording

        monkeypatch.setattr(adapters, "player", player)
        return call("play", str(UUID(int=1)), "-o", str(output), "-p", "dsar", *more)

    return run


def test_play_writes_the_file_for_its_owner_alone(play, tmp_path):
    recording, out = Recording(b"RIFF", b"rest"), tmp_path / "call.wav"
    status, said, _ = play(recording, out, "--account", "agent-7")
    assert (status, said) == (0, f"wrote {out}\n")
    assert out.read_bytes() == b"RIFFrest"
    assert out.stat().st_mode & 0o777 == 0o600
    (listening,) = recording.heard
    assert (listening.recording_id, listening.purpose, listening.account) == (UUID(int=1), "dsar", "agent-7")
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    "recording",
    [
        Recording(b"RIFF", EnvelopeError("What is stored is not what was recorded")),
        Recording(StoreError("Postgres is away")),
        Recording(denied=True),
    ],
)
def test_play_leaves_no_file_when_anything_is_wrong_and_keeps_an_older_one(play, tmp_path, recording):
    out = tmp_path / "call.wav"
    status, said, err = play(recording, out)
    assert (status, said) == (1, "")
    one_line(err)
    assert list(tmp_path.iterdir()) == []
    out.write_bytes(b"older")
    assert play(recording, out)[0] == 1
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == b"older"


def test_play_to_a_place_that_cannot_be_written_notes_no_listening(play, tmp_path):
    recording = Recording(b"RIFF")
    status, _, err = play(recording, tmp_path / "none" / "call.wav")
    assert status == 1
    assert "can't be written. No such file or directory" in one_line(err)
    assert "can't be written. File name too long" in play(recording, tmp_path / ("x" * 300))[2]
    os.mkfifo(fifo := tmp_path / "fifo")
    (link := tmp_path / "null").symlink_to("/dev/null")
    for place in (tmp_path, "/", ".", "..", fifo, link):  # `-o /dev/null`, by root, once took the place of that
        status, _, err = play(recording, place)
        assert status == 1
        assert "can't be written. It is there, and no regular file" in one_line(err)
    assert fifo.is_fifo()
    assert link.is_symlink()
    assert recording.heard == []


# Times


class Said:
    """A desk that keeps what it is told, and takes nothing."""

    def __init__(self):
        self.times = {}

    def revoke(self, intake):
        self.times["received_at"] = intake.received_at
        raise RightsError("enough")

    def hold(self, *_, review_at, **__):
        self.times["review_at"] = review_at
        raise RightsError("enough")

    def release(self, _hold, _why, _account, person_told_at=None):
        self.times["person_told_at"] = person_told_at
        raise RightsError("enough")

    def bulk(self, *, since, until, **_):
        self.times |= {"since": since, "until": until}
        return []


@pytest.mark.parametrize("machine", ["UTC", "Pacific/Auckland"])
def test_a_time_without_an_offset_is_the_operators_wherever_the_machine_is_c4(call, monkeypatch, machine):
    """A withdrawal of 23:30 that counts as the next day's has its deadline a working day too late."""
    desk = Said()
    monkeypatch.setattr(adapters, "database", lambda *_: nullcontext())
    monkeypatch.setattr(adapters, "desk", lambda *_: desk)
    monkeypatch.setattr(adapters, "rights", lambda *_: desk)
    monkeypatch.setenv("TZ", machine)
    time.tzset()
    try:
        local, some = "2026-12-22T23:30", str(uuid4())
        call("revoke", "--recording", some, "--channel", "phone", "--received-at", local)
        call("hold", some, "--reason", "dispute", "--case", "c", "--review-at", local)
        call("release", some, "--why", "over", "--person-told-at", local)
        call("erase", "--since", local, "--until", local)
    finally:
        monkeypatch.undo()
        time.tzset()
    meant = datetime(2026, 12, 22, 22, 30, tzinfo=UTC)
    assert desk.times == dict.fromkeys(("received_at", "review_at", "person_told_at", "since", "until"), meant)


# Tables

ROW = {
    "arrived_at": datetime(2026, 11, 30, 10, tzinfo=UTC), "call_id": UUID(int=7), "line": "service", "decision": None,
    "state": "ended", "recording": "stored", "duration": 1.5, "hash": b"\x01\xff", "purposes": ["a", "b"],
    "body": {"reason": "čšž [red]x[/red]", "n": 1},
}  # fmt: skip


def test_json_is_one_object_a_line_with_plain_types(capsys):
    tables.show([ROW, ROW | {"line": "a\nb"}], tables.CALLS, as_json=True)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "arrived_at": "2026-11-30T10:00:00+00:00", "call_id": str(UUID(int=7)), "line": "service", "decision": None,
        "state": "ended", "recording": "stored", "duration": 1.5, "hash": "01ff", "purposes": ["a", "b"],
        "body": {"reason": "čšž [red]x[/red]", "n": 1},
    }  # fmt: skip
    assert second["line"] == "a\nb"


def test_a_table_shows_the_columns_the_number_of_rows_and_no_control_signs(capsys):
    tables.show([ROW | {"line": "\x1b[2Jgone\nnext"}], (*tables.CALLS, "body", "duration"), as_json=False)
    out = capsys.readouterr().out
    assert "arrived at" in out
    assert "[red]x[/red]" in out
    assert "1.50" in out
    assert "1 listed" in out
    assert "\x1b[2J" not in out
    assert "?[2Jgone?next" in out


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_narrow_terminal_cuts_nothing_off(capsys, monkeypatch, columns):
    """What is listed is copied into the next command."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich: this is a terminal
    monkeypatch.setenv("COLUMNS", str(columns))
    row = {"recording_id": UUID(int=7), "started_at": ROW["arrived_at"], "line": "service-40", "basis": "consent"}
    tables.show([row], tables.RECORDINGS, as_json=False)
    out = capsys.readouterr().out
    assert str(UUID(int=7)) in out
    assert "…" not in out


def test_erasures_show_what_each_waits_for_as_the_alerts_say(capsys):
    tables.show([{"state": "waits", "last_error": "waits for the release of a hold"}], tables.ERASURES, as_json=False)
    assert "waits for the release of a hold" in capsys.readouterr().out


def test_an_empty_table_says_so(capsys):
    tables.show([], tables.CALLS, as_json=False)
    assert "0 listed" in capsys.readouterr().out
    tables.show([], tables.CALLS, as_json=True)
    assert capsys.readouterr().out == ""
