"""Reads TOML tables strictly: every key is asked for by name, and whatever is left over is a fault.

Faults are collected, not raised, so that one run names them all. After a fault a reader gives an empty value
("", 0 or ()), which later checks leave alone.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

from callrec.errors import ConfigError

# Keys that would hold a secret. Secrets come from the environment or a file, never from the configuration.
_SECRET = re.compile(r"passw|passphrase|secret|token|credential|private|access_?key|api_?key|lookup_?key|signing_?key")
_SIZE = re.compile(r"(\d+) ?(B|KiB|MiB|GiB|TiB)")
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_TYPES = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a table"}
_LONGEST_QUOTE = 60  # a fault quotes what it found no longer than this


class Address(NamedTuple):
    """A TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: what, where, why, and how to mend it."""

    where: str  # the key's dotted path, or the file
    what: str
    why: str = ""
    how: str = ""

    def __str__(self) -> str:
        return ". ".join(part.rstrip(".") for part in (f"{self.where}: {self.what}", self.why, self.how) if part)


class ConfigErrors(ConfigError):  # noqa: N818 - the plural is the point: it carries every fault
    """All that is wrong with a configuration, in `faults`."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        count = f"{len(self.faults)} faults" if len(self.faults) > 1 else "1 fault"
        super().__init__(f"The configuration has {count}", detail="\n".join(f"  {fault}" for fault in self.faults))

    def __str__(self) -> str:
        return f"{self.message}:\n{self.detail}"


class Faults:
    """The list that readers write to."""

    def __init__(self) -> None:
        self.found: list[Fault] = []

    def add(self, where: str, what: str, why: str = "", how: str = "") -> None:
        self.found.append(Fault(where, what, why, how))


def quoted(value: object) -> str:
    """A value as a fault shows it: short, and on one line."""
    text = f'"{value}"' if isinstance(value, str) else str(value)
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known word, or all of them where none is near."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f'The nearest known one is "{close[0]}"'
    return f"Known here: {', '.join(words)}" if words else "None is known here"


class Table:
    """One TOML table. Ask for each key once; `done` of the root then reports what nobody asked for, in every table."""

    def __init__(self, data: Mapping[str, Any], where: str, faults: Faults) -> None:
        self._data = data
        self._asked: set[str] = set()
        self._inner: list[Table] = []
        self.where = where
        self.faults = faults

    def at(self, key: str) -> str:
        """The dotted path of a key."""
        return f"{self.where}.{key}" if self.where else key

    def fault(self, key: str, what: str, why: str = "", how: str = "") -> None:
        self.faults.add(self.at(key), what, why, how)

    def has(self, key: str) -> bool:
        return key in self._data

    def _take(self, key: str, default: Any, wanted: str, *types: type) -> Any:
        """The key's value, or None after a fault; `default` None means that the key is required."""
        self._asked.add(key)
        if key not in self._data:
            if default is None:
                self.fault(key, "is missing", how=f"Give it {wanted}")
            return default
        value = self._data[key]
        if type(value) not in types:  # exactly: TOML's true is no 1
            found = _TYPES.get(type(value), f"a {type(value).__name__}")
            self.fault(key, f"is {found}, {quoted(value)}", how=f"Give it {wanted}")
            return None
        return value

    def text(self, key: str, default: str | None = None, *, wanted: str = "a text", pattern: str = "") -> str:
        """A text on one line; an empty one only where the default is empty. `pattern` must match the whole of it."""
        value = self._take(key, default, wanted, str)
        if value is None or value == default:
            return value or ""
        if not value.strip() or not value.isprintable():
            self.fault(key, "is empty" if not value.strip() else "holds control characters", how=f"Give it {wanted}")
            return ""
        if pattern and not re.fullmatch(pattern, value):
            self.fault(key, f"is {quoted(value)}", how=f"Give it {wanted}")
            return ""
        return str(value)

    def number(self, key: str, default: float | None, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        wanted = f"a number from {low:g} to {high:g}"
        value = self._take(key, default, wanted, int, float)
        if value is None:
            return 0
        if not low <= value <= high:
            self.fault(key, f"is {value}, out of range", how=f"Give it {wanted}")
            return 0
        return float(value)

    def integer(self, key: str, default: int | None, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        wanted = f"a whole number from {low} to {high}"
        value = self._take(key, default, wanted, int)
        if value is None:
            return 0
        if not low <= value <= high:
            self.fault(key, f"is {value}, out of range", how=f"Give it {wanted}")
            return 0
        return int(value)

    def size(self, key: str, default: str) -> int:
        """Bytes, written as a whole number and a unit: "64MiB"."""
        wanted = 'a size such as "64MiB" (units B, KiB, MiB, GiB, TiB)'
        value = self._take(key, default, wanted, str)
        if value is None:
            return 0
        match = _SIZE.fullmatch(value)
        if not match or not int(match[1]):
            self.fault(key, f"is {quoted(value)}, not a size", how=f"Give it {wanted}")
            return 0
        return int(match[1]) * _UNITS[match[2]]

    def texts(self, key: str, default: tuple[str, ...] | None = None, *, wanted: str, pattern: str) -> tuple[str, ...]:
        """A list of texts, each matching `pattern`."""
        value = self._take(key, default, wanted, list, tuple)
        if value is None or value is default:
            return value or ()
        for item in value:
            if not isinstance(item, str) or not re.fullmatch(pattern, item):
                self.fault(key, f"holds {quoted(item)}", how=f"Give it {wanted}")
        return tuple(item for item in value if isinstance(item, str) and re.fullmatch(pattern, item))

    def dates(self, key: str) -> tuple[date, ...]:
        """A list of TOML's local dates, empty where it is left out."""
        wanted = "a list of dates without quotes, such as [2027-05-03]"
        value = self._take(key, (), wanted, list)
        for item in value or ():
            if type(item) is not date:  # exactly: a date with a time is another thing
                self.fault(key, f"holds {quoted(item)}", how=f"Give it {wanted}")
        return tuple(item for item in value or () if type(item) is date)

    def choice(self, key: str, choices: Iterable[str], default: str | None = None) -> str:
        """One of `choices`."""
        known = tuple(choices)
        value = self._take(key, default, f"one of {', '.join(known)}", str)
        if value is not None and value not in known:
            self.fault(key, f"is {quoted(value)}", nearest(value, known), f"Give it one of {', '.join(known)}")
            return ""
        return value or ""

    def address(self, key: str, default: str) -> Address:
        """HOST:PORT, or [IPV6]:PORT."""
        wanted = 'a host and a port such as "127.0.0.1:8084"'
        value = self._take(key, default, wanted, str)
        if value is None:
            return Address("", 0)
        host, _, port = value.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        good = re.fullmatch(r"[\w.-]+|\[[0-9A-Fa-f:]+\]", host) and re.fullmatch(r"\d{1,5}", port, re.ASCII)
        if not good or not 0 < int(port) < 1 << 16:
            self.fault(key, f"is {quoted(value)}", how=f"Give it {wanted}")
            return Address("", 0)
        return Address(bare, int(port))

    def table(self, key: str, *, required: bool = True) -> "Table":
        """The table under `key`; an empty one where it may be left out."""
        value = self._take(key, None if required else {}, f"a table: [{self.at(key)}]", dict)
        # Of a table that isn't there, one fault is enough: those of its keys go nowhere.
        return self._open(value or {}, key, self.faults if value is not None else Faults())

    def _open(self, data: Mapping[str, Any], key: str, faults: Faults) -> "Table":
        inner = Table(data, self.at(key), faults)
        self._inner.append(inner)
        return inner

    def tables(self, key: str) -> dict[str, "Table"]:
        """The named tables under `key`: [key.name]."""
        named = self.table(key)
        named._asked.update(named._data)
        for name, value in named._data.items():
            if not isinstance(value, dict):
                named.fault(name, f"is {quoted(value)}", how=f"Write a table: [{named.at(name)}]")
            elif not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
                named.fault(name, "is no usable name", how="Use up to 40 letters, digits, - and _")
        return {name: named._open(v, name, self.faults) for name, v in named._data.items() if isinstance(v, dict)}

    def done(self) -> None:
        """Report every key that nobody asked for, here and in the tables within."""
        for inner in self._inner:
            inner.done()
        for key in sorted(self._data.keys() - self._asked):
            if _SECRET.search(key.lower()):
                why = "Whoever reads, copies or backs up this file would have it"
                how = "Remove it, replace the secret, and give it by environment variable (see callrec.example.toml)"
                self.fault(key, "looks like a secret, and this file holds none", why, how)
            else:
                self.fault(key, "is an unknown key", nearest(key, self._asked), "Correct the name or remove the line")
