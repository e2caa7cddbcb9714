"""`callrec storage`, `lifecycle` and `worm-probe`, as an operator runs them against a real Ceph RGW."""

import argparse
import json
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql

from callrec import cli, storage_cli
from callrec.call.policy import Retention
from callrec.config import load
from callrec.demo.installation import example, rewritten
from callrec.errors import CallrecError
from callrec.recording import lifecycle
from callrec.recording.objects import S3Objects


@pytest.fixture
def operator(s3, tmp_path, monkeypatch, capsys):
    """Runs a command with the configuration of a new installation: (exit status, what it printed)."""
    users, ids = s3.users("ship", "sweep", "api")
    values = {
        "storage": {
            "endpoint": s3.endpoint, "region": s3.region, "allowed_regions": [s3.region], "bucket": s3.bucket_name(),
        },
        "storage.checkpoints": {"bucket": s3.bucket_name()},
        "storage.principals": {name: f"arn:aws:iam:::user/{user}" for name, user in ids.items()},
    }  # fmt: skip
    path = tmp_path / "callrec.toml"
    path.write_text(rewritten(example().read_text(encoding="utf-8"), values), encoding="utf-8")
    monkeypatch.setenv("CALLREC_CONFIG", str(path))
    for role, keys in {"admin": s3, **users}.items():
        monkeypatch.setenv(f"CALLREC_S3_ACCESS_KEY_{role.upper()}", keys.access_key)
        monkeypatch.setenv(f"CALLREC_S3_SECRET_KEY_{role.upper()}", keys.secret_key)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        parser = argparse.ArgumentParser()
        storage_cli.add_commands(parser.add_subparsers(required=True), cli._command)
        args = parser.parse_args(arguments)
        status = int(args.run(args) or 0)
        return status, capsys.readouterr().out

    run.path = path
    run.bucket = values["storage"]["bucket"]
    run.bucket_of = lambda: S3Objects(
        endpoint=s3.endpoint, region=s3.region, bucket=run.bucket, access_key=s3.access_key, secret_key=s3.secret_key
    )
    return run


def test_from_nothing_to_a_store_that_is_proved(operator):
    status, said = operator("storage", "check")
    assert status == 1
    assert "no such bucket" in said
    status, said = operator("storage", "init")
    assert status == 0
    assert f"created {operator.bucket} with object lock" in said
    status, said = operator("storage", "init")
    assert status == 0
    assert f"{operator.bucket} was as planned" in said
    status, said = operator("storage", "check", "--json")
    assert status == 0
    assert list(json.loads(said).values()) == [[], []]
    status, said = operator("worm-probe")
    assert status == 0
    assert f"{operator.bucket} keeps its word" in said
    assert "FAILED" not in said
    status, said = operator("worm-probe", "--json")
    assert status == 0
    assert json.loads(said)["passed"] is True


def test_drift_is_told_and_mended(operator):
    operator("storage", "init")
    status, said = operator("lifecycle", "check")
    assert (status, said) == (0, "the rules are as they should be\n")
    objects = operator.bucket_of()
    assert objects.exchange.ask("DELETE", "", query={"lifecycle": ""}).accepted
    status, said = operator("lifecycle", "check", "--json")
    assert status == 1
    assert "callrec:consent/" in {each["rule"] for each in json.loads(said)}
    status, said = operator("storage", "check")
    assert status == 1
    assert "lifecycle rule callrec:consent/" in said
    assert operator("lifecycle", "apply")[0] == 0
    status, said = operator("lifecycle", "show", "--json")
    assert status == 0
    assert {"callrec:consent/", "abort-stale-uploads"} <= {each["id"] for each in json.loads(said)}
    assert operator("lifecycle", "check")[0] == 0
    objects.close()


def test_sweep_can_check_the_lifecycle_by_itself(operator, monkeypatch):
    operator("storage", "init")
    for name in ("ACCESS", "SECRET"):
        monkeypatch.delenv(f"CALLREC_S3_{name}_KEY_ADMIN")
    assert operator("lifecycle", "check")[0] == 0
    with pytest.raises(CallrecError, match="CALLREC_S3_ACCESS_KEY_ADMIN"):
        operator("lifecycle", "apply")


def test_a_shortened_retention_shortens_no_rule_unless_told(operator):
    operator("storage", "init")
    objects = operator.bucket_of()
    bases = [
        replace(each, retention=Retention(years=5)) if each.id == "market_transaction" else each
        for each in load(operator.path, {}).bases.values()
    ]
    lifecycle.apply(objects, lifecycle.rules(bases))  # as it was when the notice still said five years
    objects.close()
    status, said = operator("lifecycle", "apply")
    assert status == 1
    assert "1841 days" in said
    assert operator("lifecycle", "apply", "--shorten")[0] == 0
    assert operator("lifecycle", "check")[0] == 0


def test_what_the_probe_found_is_in_the_ledger_and_in_what_listen_asks(operator, postgres_url, monkeypatch):
    """Where sweep's database password is given. Else a store that was mended would go on being refused for a day."""
    operator("storage", "init")
    at = psycopg.conninfo.conninfo_to_dict(postgres_url)
    url = f"postgresql://{at['host']}:{at['port']}/{at['dbname']}"
    text = operator.path.read_text(encoding="utf-8")
    operator.path.write_text(rewritten(text, {"postgres": {"url": url}}), encoding="utf-8")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        login = sql.SQL("ALTER ROLE callrec_sweep LOGIN PASSWORD {}").format(sql.Literal("swept"))
        connection.execute(login)
        monkeypatch.setenv("CALLREC_POSTGRES_PASSWORD_SWEEP", "swept")
        connection.execute(
            "INSERT INTO storage_probe VALUES (%s, now() - interval '1 hour', 'n', false, '{single: delete}')",
            (operator.bucket,),
        )
        assert operator("worm-probe")[0] == 0
        assert connection.execute("SELECT passed, failed FROM storage_probe").fetchall() == [(True, [])]
        [(passed, bucket)] = connection.execute(
            "SELECT body->>'passed', body->>'bucket' FROM ledger WHERE kind = 'storage_probed'"
        ).fetchall()
    assert (passed, bucket) == ("true", operator.bucket)
