"""Secrets: from environment variables, or from files that NAME_FILE points at, never from the configuration.

Each role needs a few and is given no others (design, "roles are processes"): `variables(role)` names them, so that
whoever starts a role passes on these alone.
"""

import base64
import binascii
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from nacl.public import PrivateKey

from callrec.errors import ConfigError
from callrec.ledger.caller import LookupKeys
from callrec.ledger.note import Signer

LEDGER_KEY = "CALLREC_LEDGER_KEY"
_KEY_BYTES = 32
_LAST_EPOCH = 32_767  # what a smallint holds
_REQUIRED = {
    "listen": ("CALLREC_EVENT_SOCKET_PASSWORD", "CALLREC_POSTGRES_PASSWORD_LISTEN", "CALLREC_LOOKUP_KEY"),
    "ship": ("CALLREC_POSTGRES_PASSWORD_SHIP", "CALLREC_S3_ACCESS_KEY_SHIP", "CALLREC_S3_SECRET_KEY_SHIP"),
    "sweep": (
        "CALLREC_POSTGRES_PASSWORD_SWEEP", "CALLREC_S3_ACCESS_KEY_SWEEP", "CALLREC_S3_SECRET_KEY_SWEEP", LEDGER_KEY,
    ),
    "api": ("CALLREC_POSTGRES_PASSWORD_API", "CALLREC_LOOKUP_KEY"),
    "owner": ("CALLREC_POSTGRES_PASSWORD_OWNER",),
    "admin": ("CALLREC_S3_ACCESS_KEY_ADMIN", "CALLREC_S3_SECRET_KEY_ADMIN"),  # owns the buckets; sets them up
}  # fmt: skip
_OPTIONAL = {
    "listen": ("CALLREC_REDIS_PASSWORD",),
    # Without the last two, sweep's own credential writes the checkpoints.
    "sweep": (
        "CALLREC_REDIS_PASSWORD", "CALLREC_S3_ACCESS_KEY_CHECKPOINT", "CALLREC_S3_SECRET_KEY_CHECKPOINT",
    ),
    # Without tokens nobody may call back; without the others nobody may listen.
    "api": (
        "CALLREC_API_TOKENS", "CALLREC_S3_ACCESS_KEY_API", "CALLREC_S3_SECRET_KEY_API", "CALLREC_PRIVATE_KEY",
    ),
}  # fmt: skip
ROLES = tuple(role for role in _REQUIRED if role != "admin")  # those that have a user in Postgres


def variables(role: str) -> tuple[str, ...]:
    """The environment variables that a role may hold; each may also be given as NAME_FILE."""
    return _REQUIRED[role] + _OPTIONAL.get(role, ())


class Secrets:
    """The accessors raise ConfigError, naming the variable, where a secret isn't there. repr() shows nothing of it."""

    __slots__ = ("_env",)

    def __init__(self, env: Mapping[str, str]) -> None:
        # A copy of ours alone: the rest of the environment is nobody's business here.
        self._env = {name: value for name, value in env.items() if name.startswith("CALLREC_")}

    def __repr__(self) -> str:
        return "Secrets(…)"

    def __reduce__(self) -> str:
        raise TypeError("Secrets are not written anywhere")

    def event_socket_password(self) -> str:
        return self._required("CALLREC_EVENT_SOCKET_PASSWORD", "listen")

    def postgres_password(self, role: str) -> str:
        return self._required(f"CALLREC_POSTGRES_PASSWORD_{role.upper()}", role)

    def redis_password(self) -> str:
        """Empty where Redis asks for none."""
        return self._value("CALLREC_REDIS_PASSWORD")

    def s3_keys(self, role: str) -> tuple[str, str]:
        """Access key and secret key of `ship`, `sweep`, `api` or `admin`."""
        access = self._required(f"CALLREC_S3_ACCESS_KEY_{role.upper()}", role)
        return access, self._required(f"CALLREC_S3_SECRET_KEY_{role.upper()}", role)

    def checkpoint_keys(self) -> tuple[str, str]:
        """Access key and secret key of who writes checkpoints: sweep where no other is given."""
        given = any(self.given(f"CALLREC_S3_{half}_KEY_CHECKPOINT") for half in ("ACCESS", "SECRET"))
        return self.s3_keys("checkpoint" if given else "sweep")

    def ledger_key(self) -> str:
        """The private keys that sign the ledger, as text, one a line."""
        return self._required(LEDGER_KEY, "sweep")

    def api_tokens(self) -> str:
        """`account:token` pairs of those who may call back; empty where nobody may."""
        return self._value("CALLREC_API_TOKENS")

    def private_key(self) -> bytes:
        """32 bytes: opens what was sealed to the configuration's public key."""
        return _checked_key("CALLREC_PRIVATE_KEY", self._required("CALLREC_PRIVATE_KEY", "api"))

    def lookup_keys(self, role: str = "listen") -> LookupKeys:
        """What keys the index in which a caller's own recordings are found: one key, or `epoch:key` pairs.

        A single key without an epoch is that of epoch 1.
        """
        name = "CALLREC_LOOKUP_KEY"
        keys: dict[int, bytes] = {}
        pairs = re.split(r"[\s,]+", self._required(name, role))
        if len(pairs) == 1 and ":" not in pairs[0]:
            pairs = [f"1:{pairs[0]}"]
        for pair in pairs:
            epoch, _, text = pair.partition(":")
            if not re.fullmatch(r"[1-9]\d{0,4}", epoch, re.ASCII) or int(epoch) > _LAST_EPOCH or int(epoch) in keys:
                hint = (
                    f"Write 1:KEY,2:KEY and so on: epochs from 1 to {_LAST_EPOCH}, each once; the highest is the newest"
                )
                raise ConfigError(f"{name} is neither one key nor epoch:key pairs", hint=hint)
            keys[int(epoch)] = _checked_key(name, text)
        return LookupKeys(keys)

    def given(self, name: str) -> bool:
        """Whether a variable, or its _FILE, is set to something."""
        return bool(self._env.get(name) or self._env.get(f"{name}_FILE"))

    def faults(self, role: str) -> list[tuple[str, str, str]]:
        """What a role lacks: (variable, what, how) each."""
        wrong = []
        for name in _REQUIRED[role]:
            try:
                if name == "CALLREC_LOOKUP_KEY":
                    self.lookup_keys(role)
                else:
                    self._required(name, role)
            except ConfigError as error:
                wrong.append((name, error.message, error.hint))
        return wrong

    def _value(self, name: str) -> str:
        path = self._env.get(f"{name}_FILE", "")
        if not path:
            return self._env.get(name, "").strip()
        if self._env.get(name):
            raise ConfigError(f"{name} and {name}_FILE are both given", hint="Give one of the two")
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise ConfigError(f"The file of {name}_FILE can't be read: {why}", hint="Correct path or rights") from None

    def _required(self, name: str, role: str) -> str:
        value = self._value(name)
        if not value:
            hint = f"Set {name}, or {name}_FILE to a file that holds it"
            raise ConfigError(f"{name} is not given, and the role {role} needs it", hint=hint)
        return value


def _checked_key(name: str, text: str) -> bytes:
    try:
        return decode_key(text)
    except ValueError:
        hint = "Give what `callrec keys` made"
        raise ConfigError(f"{name} is not {_KEY_BYTES} bytes in base64", hint=hint) from None


def decode_key(text: str) -> bytes:
    """32 bytes from base64, or ValueError."""
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if len(key) != _KEY_BYTES:
        raise ValueError(f"{len(key)} bytes")
    return key


def generate(origin: str) -> str:
    """New keys, each with the place where it belongs; nothing is kept. `origin`: the ledger's name, if it has one."""
    private = PrivateKey.generate()

    def text(key: bytes) -> str:
        return base64.b64encode(key).decode()

    return "\n".join(
        (
            "# In the configuration, [encryption]; every recording's key is sealed to it:",
            f'public_key = "{text(bytes(private.public_key))}"',
            "# For `api` alone, away from the nodes. Without it nobody can listen to any recording, ever again:",
            f"CALLREC_PRIVATE_KEY={text(bytes(private))}",
            "# For `listen` and `api`: finds a caller's own recordings. It is the first of its kind; how another",
            "# follows it says `callrec lookup-keys`:",
            f"CALLREC_LOOKUP_KEY={text(secrets.token_bytes(_KEY_BYTES))}",
            generate_ledger_key(origin),
        )
    )


def generate_ledger_key(origin: str) -> str:
    """A new key that signs the ledger, and where its halves belong. LedgerError if `origin` can't be a key's name."""
    if not origin:
        return "# The key that signs the ledger bears its name: callrec keys --ledger --origin ledger.example.com/calls"
    signer = Signer.generate(origin)
    return "\n".join(
        (
            "# In the configuration, [ledger]; give it to whoever verifies the ledger, by a way that they trust:",
            f'verifiers = ["{signer.verifier}"]',
            "# For `sweep` alone: signs the ledger. While another takes over, the old and the new one, one a line:",
            f"{LEDGER_KEY}={signer.private_text()}",
        )
    )
