"""Rows for people, as a table, and for scripts, as one JSON object a line."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

CALLS = ("arrived_at", "call_id", "line", "decision", "state", "recording")
RECORDINGS = (
    "started_at", "recording_id", "line", "basis", "state", "incomplete", "duration_seconds", "lock_mode",
    "retain_until",
)  # fmt: skip
LEDGER = ("entry_id", "at", "kind", "body")
HOLDS = ("hold_id", "recording_id", "reason", "case_reference", "owner", "review_at")
EPOCHS = ("epoch", "callers", "codes", "state")
ERASURES = ("requested_at", "recording_id", "cause", "state", "done", "deadline", "erased_at", "last_error")
FINDINGS = ("kind", "subject", "version_id", "detail", "quarantined", "scope", "first_seen_at")


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print `columns` of the rows as a table, or all of each row as JSON."""
    if as_json:
        for row in rows:
            sys.stdout.write(json.dumps(row, default=_plain, ensure_ascii=False) + "\n")
        return
    from rich.console import Console  # noqa: PLC0415 # a large library, and scripts do without
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name.removesuffix("_id").replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_text(row.get(name)) for name in columns))
    console = Console(markup=False, emoji=False)  # what stands in a row is no markup
    console.width = max(console.width, 200)  # a narrow terminal breaks the lines; what rich cut off would be lost
    console.print(table)
    console.print(f"{len(rows)} listed", style="dim")


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    return str(value)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone().isoformat(sep=" ", timespec="seconds")
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, dict):
        return ", ".join(f"{name}={_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return "".join(sign if sign.isprintable() else "?" for sign in str(value))  # nothing that steers a terminal
