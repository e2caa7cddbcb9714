"""`callrec verify --ledger` as an inspector runs it, against a real Postgres and anchors in a real Ceph RGW."""

import json
from urllib.parse import urlsplit

import pytest

from callrec import cli
from callrec.demo.installation import example, rewritten
from callrec.ledger.archive import leaves_key, leaves_since
from callrec.ledger.checkpoint import object_key
from callrec.ledger.note import Signer
from callrec.ledger.sequencer import Sequencer
from callrec.recording import bucket
from callrec.recording.objects import S3Objects
from callrec.store.reading import LedgerReading
from callrec.store.rights import RightsRecords
from callrec.store.tree import TreeRecords

ORIGIN = "ledger.example.com/calls"
SIZES = (4, 9, 10)


class Inspector:
    """A ledger whose anchors lie in S3, and who verifies it."""

    def __init__(self, stores, s3, objects):
        self.stores, self.objects, self.s3 = stores, objects, s3
        self.signer = Signer.generate(ORIGIN)
        reading = LedgerReading(stores.database("api"))
        sequencer = Sequencer(TreeRecords(stores.database("sweep")), [self.signer], ORIGIN)
        appender = RightsRecords(stores.database("sweep"), node="node-1")
        self.content = {}
        for before, size in zip((0, *SIZES), SIZES, strict=False):
            for number in range(before, size):
                appender.entry("tested", {"number": number})
            while sequencer.step():
                pass
            self.content[object_key(1, size)] = reading.last_checkpoint()
            self.content[leaves_key(1, size)] = leaves_since(before, size, reading.leaves)
        for key, content in self.content.items():
            self.put(key, content)

    def put(self, key, content):
        assert self.objects.exchange.ask("PUT", key, body=content).accepted

    def configuration(self, user):
        s3, url = self.s3, urlsplit(self.stores.url)
        return {
            "postgres": {"url": url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()},
            "postgres.users": {"api": user},
            "storage": {
                "endpoint": s3.endpoint, "region": s3.region, "allowed_regions": [s3.region], "bucket": "recordings",
            },
            "storage.checkpoints": {"bucket": self.objects.bucket},
            "ledger": {"origin": ORIGIN, "verifiers": [str(self.signer.verifier)]},
        }  # fmt: skip

    def tamper(self, statement):
        self.stores.admin.execute("ALTER TABLE ledger DISABLE TRIGGER USER")
        self.stores.admin.execute(statement)


@pytest.fixture
def inspector(stores, s3, tmp_path, monkeypatch, capsys):
    name = s3.bucket_name()
    users, ids = s3.users("ship", "sweep", "api", "checkpoint")
    objects = S3Objects(
        endpoint=s3.endpoint, region=s3.region, bucket=name, access_key=s3.access_key, secret_key=s3.secret_key
    )
    principals = {role: f"arn:aws:iam:::user/{user}" for role, user in ids.items()}
    bucket.set_up(objects, bucket.checkpoints(name, 1, principals, https=False))
    made = Inspector(stores, s3, objects)
    user, password = stores.login("api")
    path = tmp_path / "callrec.toml"
    path.write_text(rewritten(example().read_text(encoding="utf-8"), made.configuration(user)), encoding="utf-8")
    monkeypatch.setenv("CALLREC_CONFIG", str(path))
    monkeypatch.setenv("CALLREC_POSTGRES_PASSWORD_API", password)
    monkeypatch.setenv("CALLREC_S3_ACCESS_KEY_API", users["api"].access_key)
    monkeypatch.setenv("CALLREC_S3_SECRET_KEY_API", users["api"].secret_key)

    def run(*arguments):
        try:
            status = cli.main(("verify", *arguments))
        except SystemExit as end:
            status = end.code
        seen = capsys.readouterr()
        return status, seen.out, seen.err

    made.run = run
    yield made
    objects.close()


def test_an_untouched_ledger_is_what_was_signed(inspector):
    status, out, err = inspector.run("--ledger")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"{ORIGIN}: 10 entries, 3 anchors"
    assert [line[:7] for line in out.splitlines()[1:-1]] == ["holds  "] * 6
    assert out.splitlines()[-1] == "The ledger is what was signed."


def test_a_changed_one_is_not_and_the_first_bad_entry_is_named(inspector):
    inspector.tamper("UPDATE ledger SET body = '{}' WHERE entry_id IN (6, 8)")
    status, out, _ = inspector.run("--ledger")
    assert status == 1
    assert "FAILS  Each of 10 entries" in out
    assert "The first bad entry: entry 6, place 5, noted 20" in out
    assert out.splitlines()[-1].startswith("The ledger is NOT")
    status, out, _ = inspector.run("--ledger", "--json")
    said = json.loads(out)
    assert status == 1
    assert (said["ledger"], said["holds"], said["entries"], said["anchors"]) == (ORIGIN, False, 10, 3)
    assert [bad["entry"] for bad in said["bad"]] == [6, 8]
    assert said["first_bad"] == said["bad"][0]
    assert [claim["claim"] for claim in said["claims"] if not claim["holds"]] == ["rows"]


def test_the_leaves_in_the_bucket_name_what_was_rewritten_whole(inspector):
    admin = inspector.stores.admin
    inspector.tamper("UPDATE ledger SET body = '{}' WHERE entry_id = 7")
    for table in ("ledger_leaf", "ledger_node", "ledger_checkpoint"):
        admin.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        admin.execute(f"DELETE FROM {table}")
    forger = Sequencer(TreeRecords(inspector.stores.database("sweep")), [Signer.generate(ORIGIN)], ORIGIN)
    while forger.step():
        pass
    status, out, _ = inspector.run("--ledger")
    assert status == 1
    assert "The first bad entry: entry 7, place 6, " in out
    assert "Nobody known has signed this" in out


def test_a_later_version_hides_no_anchor(inspector):
    """Whoever may put may put over it, and delete what is put; the first version is locked."""
    key = object_key(1, 9)
    inspector.put(key, b"nothing")
    status, out, _ = inspector.run("--ledger")
    assert (status, out.splitlines()[0]) == (0, f"{ORIGIN}: 10 entries, 3 anchors")
    assert inspector.objects.exchange.ask("DELETE", key).accepted
    status, out, _ = inspector.run("--ledger")
    assert (status, out.splitlines()[0]) == (1, f"{ORIGIN}: 10 entries, 3 anchors")
    assert f"{key} was deleted" in out


def test_with_a_copy_and_a_key_neither_the_bucket_nor_the_configuration_is_believed(inspector, tmp_path, monkeypatch):
    monkeypatch.setenv("CALLREC_S3_SECRET_KEY_API", "wrong")
    for key, content in inspector.content.items():
        path = tmp_path / "copy" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    arguments = ("--ledger", "--anchors", str(tmp_path / "copy"))
    assert inspector.run(*arguments)[0] == 0
    assert inspector.run(*arguments, "--key", str(inspector.signer.verifier))[0] == 0
    status, out, _ = inspector.run(*arguments, "--key", str(Signer.generate(ORIGIN).verifier))
    assert status == 1
    assert "0 anchors" in out
    status, _, err = inspector.run("--ledger", "--anchors", str(tmp_path / "none"))
    assert status == 1
    assert "no directory" in err
    status, _, err = inspector.run("--ledger")
    assert status == 1
    assert err.startswith("callrec: ")


def test_wrong_usage_is_told(inspector):
    other = Signer.generate("ledger.example.com/other").verifier
    for wrong in ((), ("--ledger", "--key", "nonsense"), ("--ledger", "--anchored-within", "0")):
        status, out, err = inspector.run(*wrong)
        assert (status, out) == (2, "")
        assert "usage: callrec verify" in err
    status, _, err = inspector.run("--ledger", "--key", str(other), "--key", str(inspector.signer.verifier))
    assert status == 1
    assert "several ledgers" in err
