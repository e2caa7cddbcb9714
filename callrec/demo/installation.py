"""One whole callrec on a private stack: configuration, keys, prompts, tables, bucket and credentials, and its roles.

What an operator does by hand (README, "Install") is done here by the same functions and commands, in a directory of
its own. The demo, the service tests and the bench stand on it.
"""

import base64
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from callrec.config import Config, load
from callrec.demo.process import free_port, running
from callrec.demo.stack import Stack
from callrec.errors import CallrecError
from callrec.ledger.note import Signer
from callrec.process import die_with_parent
from callrec.prompts import synthesise
from callrec.recording import bucket, envelope
from callrec.recording.objects import S3Objects
from callrec.store.db import migrate, sql_directory

_ROLES = ("listen", "ship", "sweep", "api")
_CREDENTIALS = ("ship", "sweep", "api", "checkpoint")  # of S3
_ORIGIN = "ledger.example.com/calls"
_READY = 30.0  # seconds for all roles to have what they need
_STOP = 40.0


def example() -> Path:
    """The shipped example configuration: in a checkout at its top, inside the package when installed."""
    installed = Path(__file__).parents[1] / "_example.toml"
    return installed if installed.exists() else sql_directory().parent / "callrec.example.toml"


def rewritten(text: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    """The TOML `text` with the values of keys that it has replaced, by table and key; comments stay."""
    lines, table, missing = [], "", {(name, key) for name, keys in values.items() for key in keys}
    for line in text.splitlines():
        if header := re.match(r"\[([^\]]+)\]", line):
            table = header[1]
        key = re.match(r"([a-z_0-9]+)\s*=", line)
        if key and key[1] in values.get(table, {}):
            missing.discard((table, key[1]))
            lines.append(f"{key[1]} = {json.dumps(values[table][key[1]])}")
        else:
            lines.append(line)
    if missing:
        raise CallrecError("The example configuration lacks keys", detail=str(sorted(missing)))
    return "\n".join(lines) + "\n"


class Installation:
    """A callrec in `root`, on `stack`. `changes` are values of the configuration, by table and key.

    `role` is the command that starts it: `run`, or one role alone. `listen` alone gets no bucket. `beside`: a further
    node of that installation, with its stores, keys and secrets.
    """

    def __init__(
        self,
        root: Path,
        stack: Stack,
        *,
        event_socket: tuple[str, int],
        password: str,
        changes: Mapping[str, Mapping[str, Any]] | None = None,
        prompts: Path | None = None,
        role: str = "run",
        beside: "Installation | None" = None,
    ) -> None:
        self.root = root.absolute()
        self.stack = stack
        self.spool = self.root / "spool"
        self.config_path = self.root / "callrec.toml"
        self.listen = ("127.0.0.1", free_port())
        self.http = ("127.0.0.1", free_port())
        self.callbacks = ("127.0.0.1", free_port())
        self.bucket = f"callrec-{secrets.token_hex(4)}"
        self.checkpoints = f"{self.bucket}-checkpoints"
        self.private_key, self.public_key = envelope.generate_keypair()
        self.signer = Signer.generate(_ORIGIN)
        self.secrets: dict[str, str] = {"CALLREC_EVENT_SOCKET_PASSWORD": password}
        self._further = beside is not None
        if beside:
            self.bucket, self.checkpoints, self.signer = beside.bucket, beside.checkpoints, beside.signer
            self.private_key, self.public_key = beside.private_key, beside.public_key
            self.secrets = beside.secrets | self.secrets
        self._event_socket = event_socket
        self._changes = changes or {}
        self._prompts = prompts or self.root / "prompts"
        self._role = role
        self._process: subprocess.Popen[bytes] | None = None
        self._log_path = self.root / "callrec.log"

    @property
    def env(self) -> dict[str, str]:
        """The environment of any callrec command here."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CALLREC_")}
        return kept | self.secrets | {"CALLREC_CONFIG": str(self.config_path)}

    @property
    def config(self) -> Config:
        return load(self.config_path, env=self.secrets)

    def prepare(self) -> None:
        """Everything up to the point where `callrec run` can start."""
        self.root.mkdir(parents=True, exist_ok=True)
        if not self._further:
            self._make_secrets()
        self._write_config()
        synthesise(self.config)
        if self._further:
            return
        self._make_tables()
        if self._role != "listen":
            self._make_bucket()

    def start(self, *, wait_for_event_socket: bool = True) -> None:
        """Start it; returns when every role has what it needs. CallrecError with the end of its log if not.

        A FreeSWITCH that is started later need not be waited for.
        """
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 # our own program
                [sys.executable, "-m", "callrec", self._role],
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop it
                preexec_fn=die_with_parent(),  # noqa: PLW1509 # one prctl; it takes no lock
            )
        deadline = time.monotonic() + _READY
        while time.monotonic() < deadline and self._process.poll() is None:
            if not (missing := self.missing()) or (not wait_for_event_socket and missing == {"listen: event_socket"}):
                return
            time.sleep(0.05)
        self.stop()
        raise CallrecError("callrec did not become ready", detail=self.log_tail())

    @property
    def pid(self) -> int | None:
        """None while it is not started."""
        return self._process.pid if self._process else None

    def missing(self) -> set[str]:
        """What /readyz says is missing; "http" while nobody answers."""
        try:
            with urllib.request.urlopen(self.url("/readyz"), timeout=2) as answer:  # noqa: S310 # our own http address
                return set(json.load(answer)["missing"])
        except urllib.error.HTTPError as answer:
            with answer:
                found = json.load(answer)
                return set(found["missing"] or ["roles"])
        except OSError:
            return {"http"}

    def url(self, page: str) -> str:
        return f"http://{self.http[0]}:{self.http[1]}{page}"

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough. Nothing is left running."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._process = None

    def pids(self) -> dict[str, int]:
        """Process ids by command: "run", the supervisor, and each role that it has running."""
        if self._process is None or self._process.poll() is not None:
            return {}
        found = {"run": self._process.pid}
        folder = Path(f"/proc/{self._process.pid}/task/{self._process.pid}")
        with contextlib.suppress(OSError):  # one that ends while we look
            for child in (folder / "children").read_text().split():
                words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
                if "callrec" in words:  # `python -m callrec ROLE …`; a moment before its exec it is still "run"
                    found.setdefault(words[words.index("callrec") + 1], int(child))
        return {role: pid for role, pid in found.items() if running(pid)}

    def log_tail(self, lines: int = 15) -> str:
        try:
            return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def command(self, *arguments: str, timeout: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """Run `callrec ARGUMENTS` as an operator would."""
        return subprocess.run(  # noqa: S603 # our own program
            [sys.executable, "-m", "callrec", *arguments],
            env=self.env, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def objects(self, name: str = "") -> S3Objects:
        """The recordings' bucket, or the one of this name, as its administrator."""
        s3 = self.stack.s3
        return S3Objects(
            endpoint=s3.endpoint, region=s3.region, bucket=name or self.bucket, access_key=s3.access_key,
            secret_key=s3.secret_key,
        )  # fmt: skip

    def _make_secrets(self) -> None:
        self.secrets |= {
            "CALLREC_API_TOKENS": f"desktop:{secrets.token_urlsafe(32)}",
            "CALLREC_LOOKUP_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
            "CALLREC_PRIVATE_KEY": envelope.encode_key(self.private_key),
            "CALLREC_POSTGRES_PASSWORD_OWNER": str(conninfo_to_dict(self.stack.postgres_url).get("password") or "none"),
        }
        for role in _ROLES:
            self.secrets[f"CALLREC_POSTGRES_PASSWORD_{role.upper()}"] = secrets.token_hex(16)
        self.secrets["CALLREC_LEDGER_KEY"] = self.signer.private_text()
        names = {role: f"{self.bucket}-{role}" for role in _CREDENTIALS}
        users = self.stack.s3_users(*names.values())
        for role, name in names.items():
            self.secrets[f"CALLREC_S3_ACCESS_KEY_{role.upper()}"] = users[name].access_key
            self.secrets[f"CALLREC_S3_SECRET_KEY_{role.upper()}"] = users[name].secret_key

    def _write_config(self) -> None:
        database = conninfo_to_dict(self.stack.postgres_url)
        values: dict[str, dict[str, Any]] = {
            "freeswitch": {"event_socket": f"{self._event_socket[0]}:{self._event_socket[1]}"},
            "listen": {"address": f"{self.listen[0]}:{self.listen[1]}"},
            "spool": {"path": str(self.spool), "min_free": "64MiB", "consent_reserve": "64MiB"},
            "postgres": {"url": f"postgresql://{database['host']}:{database['port']}/{database['dbname']}"},
            "postgres.users": {"owner": database["user"]},
            "redis": {"url": self.stack.redis_url},
            "storage": {
                "endpoint": self.stack.s3.endpoint, "region": self.stack.s3.region,
                "allowed_regions": [self.stack.s3.region], "bucket": self.bucket,
            },
            "storage.checkpoints": {"bucket": self.checkpoints},
            "ledger": {"origin": _ORIGIN, "verifiers": [str(self.signer.verifier)]},
            "encryption": {"public_key": envelope.encode_key(self.public_key)},
            "http": {
                "address": f"{self.http[0]}:{self.http[1]}",
                "callbacks": f"{self.callbacks[0]}:{self.callbacks[1]}",
            },
            "prompts": {"directory": str(self._prompts)},
        }  # fmt: skip
        for table, keys in self._changes.items():
            values.setdefault(table, {}).update(keys)
        self.config_path.write_text(rewritten(example().read_text(encoding="utf-8"), values), encoding="utf-8")

    def _make_tables(self) -> None:
        database = conninfo_to_dict(self.stack.postgres_url)
        migrate(self.config.postgres.url, str(database["user"]), str(database.get("password") or ""))
        with psycopg.connect(self.stack.postgres_url, autocommit=True) as connection:
            for role in _ROLES:
                password = self.secrets[f"CALLREC_POSTGRES_PASSWORD_{role.upper()}"]
                login = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(
                    sql.Identifier(f"callrec_{role}"), sql.Literal(password)
                )
                connection.execute(login)

    def _make_bucket(self) -> None:
        """As `callrec storage init` does it."""
        principals = {role: f"arn:aws:iam:::user/{self.bucket}-{role}" for role in _CREDENTIALS}
        config, https = self.config, self.stack.s3.secure
        kept = config.storage.checkpoints
        assert kept is not None  # the example has them
        for plan in (
            bucket.recordings(self.bucket, config.bases.values(), principals, https=https),
            bucket.checkpoints(self.checkpoints, kept.years, principals, https=https),
        ):
            objects = self.objects(plan.bucket)
            _, differing = bucket.set_up(objects, plan)
            objects.close()
            if differing:
                raise CallrecError("The bucket is not as planned", detail=", ".join(each.what for each in differing))
