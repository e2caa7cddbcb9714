"""Evidence bundles of real calls: made by the command, verified by one file alone, false when anything is changed."""

import io
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import gevent
import nacl
import pytest
from fix_stack import stack_directory, wait_until

from callrec import adapters
from callrec.demo.scenarios import by_name
from callrec.errors import LedgerError
from callrec.ledger import verify
from callrec.ledger.bundle import Container
from callrec.ledger.note import Signer
from callrec.ledger.sequencer import Sequencer
from callrec.store.tree import TreeRecords

NUMBER = "+38640111222"
PURPOSE = {"sale": "dispute", "consent": "dsar", "refusal": "dsar", "erased": "legal_claim"}


@pytest.fixture(scope="module")
def key(callrec):
    """The ledger's public key, while somebody signs."""
    if ledger := getattr(callrec.installation.config, "ledger", None):  # `sweep` signs
        yield str(ledger.lineage.verifiers[-1])
        return
    signer = Signer.generate("ledger.example.com/test")
    store = adapters.database(callrec.installation.config, "sweep")
    store.open()
    sequencer = Sequencer(TreeRecords(store), [signer], signer.verifier.name)

    def work():
        while True:
            gevent.sleep(0 if sequencer.step() else 0.05)

    worker = gevent.spawn(work)
    yield str(signer.verifier)
    worker.kill()
    store.close()


@pytest.fixture(scope="module")
def bundles(callrec, key):
    """The files of four calls, by name, and their calls."""
    consent = by_name("consent")
    scripts = {
        "sale": by_name("sale"),
        "consent": replace(consent, script=replace(consent.script, caller_number=NUMBER)),
        "refusal": by_name("refusal"),
        "erased": replace(consent, script=replace(consent.script, caller_number="+38640111333")),
    }
    _, calls = callrec.judged(*scripts.values())
    calls = dict(zip(scripts, calls, strict=True))
    done = callrec.command("revoke", "--channel", "phone", "--number", "+38640111333", "--proof", "calling_number")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: callrec.recording(calls["erased"])["state"] == "erased", 30, "erasure")
    directory = stack_directory()
    for name, call in calls.items():
        more = ["--with-number"] if name == "consent" else []
        done = export(callrec, key, call, directory / f"{name}.zip", PURPOSE[name], *more)
        assert done.returncode == 0, done.stderr
    yield directory, calls
    shutil.rmtree(directory)


def export(node, key, call, path, purpose, *more):
    return node.command(
        "evidence", call.uuid, "-o", str(path), "-p", purpose, "--account", "dpo-1", "--key", key, *more
    )


@pytest.fixture(scope="module")
def lone_verifier(tmp_path_factory):
    """verify.py in a directory of its own: a Python that knows PyNaCl and nothing else of ours, without a network."""
    directory = tmp_path_factory.mktemp("alone")
    shutil.copy(verify.__file__, directory / "verify.py")
    library = directory / "library"
    library.mkdir()
    installed = Path(nacl.__file__).parents[1]
    for name in ("nacl", "cffi", "_cffi_backend*", "pycparser"):
        for part in installed.glob(name):
            (library / part.name).symlink_to(part)
    start = (
        f"import sys, runpy, socket; sys.path.append({str(library)!r}); socket.socket = None; sys.argv = sys.argv[1:];"
    )
    start += f" runpy.run_path({str(directory / 'verify.py')!r}, run_name='__main__')"

    def run(*arguments):
        command = [sys.executable, "-I", "-S", "-c", start, "verify.py", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=directory, env={})

    return run


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sale", ["The notice A, version 2026-01, was played whole", "The legal basis market_transaction", "started at",
                  "The recording in audio.wav is the one of the ledger", "The sound of the notice in notice.wav is"]),
        ("consent", ["The key 1 was pressed at", "The legal basis consent", "The number in opening.json is the one"]),
        ("refusal", ["The caller refused at", "without a recording", "The call was not recorded"]),
        ("erased", ["A withdrawal of the consent was decided", "Its key was erased at", "found nowhere",
                    "It was erased"]),
    ],
)  # fmt: skip
def test_a_bundle_verifies_where_there_is_nothing_but_one_file(bundles, key, lone_verifier, name, said):
    done = lone_verifier(bundles[0] / f"{name}.zip", "--key", key)
    assert done.returncode == 0, done.stdout + done.stderr
    places = [done.stdout.find(each) for each in said]
    assert -1 not in places, done.stdout
    assert done.stdout.endswith("This bundle holds.\n")


def test_without_the_right_key_it_does_not_hold(bundles, lone_verifier):
    other = Signer.generate("ledger.example.com/test")
    done = lone_verifier(bundles[0] / "sale.zip", "--key", str(other.verifier))
    assert done.returncode == 1
    assert "FALSE  The part checkpoint.txt" in done.stdout
    assert lone_verifier(bundles[0] / "sale.zip").returncode == 2


def test_the_command_verifies_as_the_file_does(callrec, bundles, key, tmp_path):
    done = callrec.command("verify", str(bundles[0] / "consent.zip"), "--key", key)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "This bundle holds."), done.stderr
    changed = bytearray((bundles[0] / "consent.zip").read_bytes())
    changed[-100] ^= 1
    (tmp_path / "case.zip").write_bytes(changed)
    done = callrec.command("verify", str(tmp_path / "case.zip"), "--key", key)
    assert (done.returncode, done.stdout[:6]) == (1, "FALSE ")


def parts_of(path):
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def repacked(parts):
    """A zip in callrec's own form, as somebody would make it who knows how."""
    out = io.BytesIO()
    container = Container(out)
    for name, data in parts.items():
        container.add(name, [data])
    container.close()
    return out.getvalue()


def fault(data, key):
    with pytest.raises(LedgerError) as found:
        list(verify.claims(io.BytesIO(data), [verify.Verifier.parse(key)]))
    return str(found.value)


@pytest.mark.parametrize("name", list(PURPOSE))
def test_every_part_of_a_real_bundle_counts(bundles, key, name):
    """A byte here and there of each part, in a zip that is made again around it: the part is named."""
    parts = parts_of(bundles[0] / f"{name}.zip")
    assert repacked(parts) == (bundles[0] / f"{name}.zip").read_bytes()  # which holds, as seen above
    for part, data in parts.items():
        for at in {0, len(data) // 3, len(data) - 1}:
            changed = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
            assert part.replace(".proof", ".leaf") in fault(repacked(parts | {part: changed}), key), (part, at)


def test_parts_of_two_real_calls_do_not_mix(bundles, key):
    one, two = (parts_of(bundles[0] / f"{name}.zip") for name in ("sale", "consent"))
    for part in one.keys() & two.keys():
        if one[part] != two[part]:
            assert fault(repacked(one | {part: two[part]}), key)


def test_the_number_is_in_the_copy_for_the_caller_alone(bundles):
    with_it = parts_of(bundles[0] / "consent.zip")
    assert json.loads(with_it["opening.json"])["number"] == NUMBER
    for name in ("sale", "refusal", "erased"):
        data = (bundles[0] / f"{name}.zip").read_bytes()
        assert b"opening.json" not in data.replace(parts_of(bundles[0] / f"{name}.zip")["README.txt"], b"")
        assert b"+38640111" not in data
        assert b"salt" not in data


def test_the_number_of_who_refused_or_was_erased_is_nowhere(callrec, bundles, key, tmp_path):
    for name in ("refusal", "erased"):
        done = export(callrec, key, bundles[1][name], tmp_path / "case.zip", PURPOSE[name], "--with-number")
        assert done.returncode == 1
        assert "number of this call is not known" in done.stderr
        assert not list(tmp_path.iterdir())


def test_the_receipt_says_what_was_decided(bundles):
    def record(name):
        receipt = json.loads(parts_of(bundles[0] / f"{name}.zip")["receipt.json"])
        return receipt["dpv:hasRecordOfActivity"]

    states = {name: [each["@type"] for each in record(name)["dpv:hasConsentStatus"]] for name in PURPOSE}
    assert states == {
        "sale": [], "consent": ["dpv:ConsentGiven"], "refusal": ["dpv:ConsentRefused"],
        "erased": ["dpv:ConsentGiven", "dpv:ConsentWithdrawn"],
    }  # fmt: skip
    assert record("consent")["dpv:hasLegalBasis"] == "eu-gdpr:A6-1-a"
    assert record("sale")["dpv:hasLegalBasis"].startswith("ZEKom-2")
    durations = [
        record(name)["dpv:hasProcess"]["dpv:hasStorageCondition"][1]["dpv:hasDuration"] for name in ("sale", "consent")
    ]
    assert durations == ["P3Y", "P3M"]
    assert "vcon.json" not in parts_of(bundles[0] / "refusal.zip")
    grants = json.loads(parts_of(bundles[0] / "erased.zip")["vcon.json"])["attachments"][0]["body"]["purpose_grants"]
    assert grants
    assert not any(grant["granted"] for grant in grants)


def test_a_purpose_that_is_denied_writes_nothing(callrec, bundles, key, tmp_path):
    done = export(callrec, key, bundles[1]["consent"], tmp_path / "case.zip", "agent_supervision")
    assert done.returncode == 1
    assert "may not be heard for the purpose 'agent_supervision'" in done.stderr
    assert not list(tmp_path.iterdir())
    assert callrec.kinds(bundles[1]["consent"])[-1] == "access_denied"
