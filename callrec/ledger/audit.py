"""The audit: whether everything that must be there is there, and nothing else, walked both ways.

    calls      every call has the entries that its state demands, notes without a gap, and a key and a caller or neither
    entries    every entry that names a call or a recording has its row
    objects    every stored recording has its version, and every version and delete marker of the bucket its row
    spool      every file of this node's spool has its row

Nothing is held in memory but a page of each: the bucket's listing and the rows are read in the same order and compared
as they come. What seems wrong is judged again after a pause, from rows and versions read anew; only what is then still
so is a finding. Findings are kept in Postgres until a later walk no longer finds them.

A listing has keys, versions and sizes, not locks. Lock mode, date and legal hold of a version are asked for one by one:
each day of a thirtieth of the recordings, a different one each day, and of those that are held or had a finding; of all
of them with `full`.

Nothing is deleted. An object without a row is put under S3's legal hold, so that no lifecycle and no eraser takes it,
and is let go when a later walk finds its row; a spool file without a row is moved to the spool's quarantine. What is at
a recording's key, or is left of an erased one, is told and not held: a hold would keep its erasure from ending.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import unquote
from uuid import UUID

import gevent
from gevent.pool import Pool

from callrec import metrics
from callrec.errors import SpoolError, StorageError
from callrec.ledger import completeness as rules
from callrec.ledger.completeness import Finding, Kind
from callrec.log import Log
from callrec.recording.inventory import pages, versions_of
from callrec.recording.objects import S3Objects, Version
from callrec.recording.spool import Spool, apart_of
from callrec.store.audit import SHARED, AuditRecords, Run
from callrec.store.db import Row

log = Log(__name__)

_DAY = 86_400.0
_LOOK = 60.0  # seconds between looks whether a walk is due
_SHOW = 30.0  # seconds between looks at what is open
_LEASE = 300.0  # seconds without progress after which another node takes a walk over
_PAUSE = 1.0  # seconds until what seems wrong is judged again
_STILL = 3600.0  # seconds after which a file that nobody writes to belongs to no running call
_PAGE = 1000  # calls, keys, recordings
_ENTRIES = 10_000
_DAYS = 30  # in which each recording's lock is looked at once
_AT_ONCE = 8  # looks at locks
_MARKS = "withdrawn"  # where they stand they hold no audio, and their recording may yet come back with a backup
_APART = "in quarantine"
_OURS = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:\.[0-9a-z-]+){0,3}")
_OVER = frozenset({"stored", "discarded", "empty", "lost", "erased"})
_T = TypeVar("_T")
_File = tuple[UUID | None, Path]  # whose it is

Judge = Callable[[Sequence[_T]], Mapping[_T, list[Finding]]]
Walked = Iterator[tuple[str, int, list[Finding]]]  # up to where, how many, and what was found there
Say = Callable[[Mapping[str, int]], None]


class Stage(NamedTuple):
    """A part of a walk. `pages` begins behind a position, which is empty at the beginning."""

    name: str
    pages: Callable[[str], Walked]


class Audit:
    """Walks once a day: the stores on one of the nodes, the spool on each. `objects` has the eraser's credential."""

    def __init__(
        self,
        records: AuditRecords,
        objects: S3Objects,
        spool: Spool,
        *,
        every: float = _DAY,
        page: int = _PAGE,
        pause: float = _PAUSE,
        still: float = _STILL,
    ) -> None:
        """`every`, `pause` and `still` in seconds."""
        self._records = records
        self._objects = objects
        self._spool = spool
        self._every = every
        self._page = page
        self._pause = pause
        self._still = still
        self.chores = ((self.audit_stores, _LOOK), (self.audit_spool, _LOOK), (self.show, _SHOW))

    def audit_stores(self) -> bool:
        """Walk the stores if it is time and no other node does, from where the last one stopped."""
        return self._due(SHARED)

    def audit_spool(self) -> bool:
        """Walk this node's spool, if it is time."""
        return self._due(self._records.node)

    def show(self) -> bool:
        """Show what is open; every node shows the same."""
        found = self._records.open_kinds()
        for kind in Kind:
            metrics.AUDIT_FINDINGS.labels(kind.value).set(found.get(kind.value, 0))
        at = self._records.completed_at()
        if at is not None:
            metrics.AUDIT_AT.set(at.timestamp())
        return False

    def now(self, *, full: bool, say: Say) -> None:
        """Walk all of it now, whatever is due. `say` is told how far it has come."""
        for scope in (SHARED, self._records.node):
            self._walk(scope, self._records.unclaimed(), claimed=False, full=full, say=say)

    def _due(self, scope: str) -> bool:
        run = self._records.claim(scope, self._every, _LEASE)
        if run is not None and self._walk(scope, run, claimed=True, full=False, say=lambda _: None):
            self.show()
        return False

    def _walk(self, scope: str, run: Run, *, claimed: bool, full: bool, say: Say) -> bool:
        """False when another node has taken the walk over."""
        counts = run.counts
        stages = self._stages(scope, run.started_at, full=full)
        names = [stage.name for stage in stages]
        for stage in stages[names.index(run.stage) if run.stage in names else 0 :]:
            for position, looked_at, findings in stage.pages(run.position if stage.name == run.stage else ""):
                counts[stage.name] = counts.get(stage.name, 0) + looked_at
                self._keep(scope, findings)
                if claimed and not self._records.progress(scope, stage.name, position, counts, _LEASE):
                    log.warning("audit_taken_over", scope=scope or "stores")
                    return False
                say(counts)
        if scope == SHARED:
            self._let_go(run.started_at)
        self._records.completed(scope, run, claimed=claimed, full=full)
        log.info("audit_completed", scope=scope or "stores", **counts)
        return True

    def _stages(self, scope: str, started_at: datetime, *, full: bool) -> list[Stage]:
        if scope != SHARED:
            return [Stage("files", self._files)]
        day = None if full else started_at.toordinal() % _DAYS
        return [
            Stage("calls", self._calls),
            Stage("entries", self._entries),
            Stage("objects", partial(self._keys, day)),
        ]

    def _twice(self, judge: Judge[_T], subjects: Sequence[_T], again: Judge[_T] | None = None) -> list[Finding]:
        """What is still so when those that seemed wrong are judged `again`."""
        found = judge(subjects)
        if not found:
            return []
        gevent.sleep(self._pause)
        before = {_which(each) for findings in found.values() for each in findings}
        still = (again or judge)(list(found))
        return [each for findings in still.values() for each in findings if _which(each) in before]

    # Calls and entries

    def _calls(self, position: str) -> Walked:
        after = UUID(position or UUID(int=0).hex)
        while calls := self._records.call_page(after, self._page):
            after = calls[-1]
            yield str(after), len(calls), self._twice(self._judge_calls, calls)

    def _judge_calls(self, calls: Sequence[UUID]) -> dict[UUID, list[Finding]]:
        found = {}
        for row in self._records.calls(calls):
            call = row["call_id"]
            findings = list(rules.of_call(row))
            if row["notes"] != (row["last"] or 0):  # they count from 1, each once
                findings += rules.of_notes(call, self._records.notes(call))
            if findings:
                found[call] = findings
        return found

    def _entries(self, position: str) -> Walked:
        after = int(position or 0)
        while (page := self._records.entry_page(after, _ENTRIES))[0] is not None:
            last, entries = page
            assert last is not None
            yield str(last), entries, self._twice(self._judge_entries, [(after, last)])
            after = last

    def _judge_entries(self, ranges: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[Finding]]:
        """Of each range, without its first and with its last; what is found is a range of one."""
        return {
            (row["entry_id"] - 1, row["entry_id"]): [
                Finding(
                    Kind.ENTRY_WITHOUT_ROW,
                    str(row["entry_id"]),
                    f"call {row['call_id']} recording {row['recording_id']}",
                )
            ]
            for after, last in ranges
            for row in self._records.entries_without_row(after, last)
        }

    # Objects

    def _keys(self, day: int | None, position: str) -> Walked:
        after = position
        for page in pages(self._objects.exchange, position):
            # All that is between two keys, in the bucket or in the rows; rows alone may be many where objects are gone.
            while True:
                rows = self._records.stored_between(after, page.last, self._page)
                last = rows[-1]["object_key"] if len(rows) == self._page else page.last
                keys: dict[str, list[Version]] = {row["object_key"]: [] for row in rows}
                there = (key for key in page.keys if after < key and (last is None or key <= last))
                keys |= {key: page.keys[key] for key in there if not rules.ignored(key)}
                judge = partial(self._judge_keys, keys, day)
                yield last or after, len(keys), self._twice(judge, list(keys), self._judge_keys_again)
                after = last or after
                if last == page.last:
                    break

    def _judge_keys(
        self, versions: Mapping[str, Sequence[Version]], day: int | None, keys: Sequence[str]
    ) -> dict[str, list[Finding]]:
        named = {key: rules.recording_in(key) for key in keys}
        rows = self._records.objects({recording for recording in named.values() if recording})
        bucket = self._objects.bucket
        found: dict[str, list[Finding]] = {}
        to_look_at: list[tuple[str, Row]] = []
        for key, recording in named.items():
            row, there = rows.get(recording) if recording else None, versions.get(key, [])
            found[key] = list(rules.of_key(key, there, row, bucket))
            if row:
                found[key] += rules.of_recording(row, key, there, bucket)
                own = rules.must_be_there(row) and any(rules.is_own(row, key, each, bucket) for each in there)
                if own and (row["look"] or day is None or row["recording_id"].int % _DAYS == day):
                    to_look_at.append((key, row))
        for key, findings in Pool(_AT_ONCE).map(self._judge_lock, to_look_at):
            found[key] += findings
        return {key: findings for key, findings in found.items() if findings}

    def _judge_keys_again(self, keys: Sequence[str]) -> dict[str, list[Finding]]:
        now = Pool(_AT_ONCE).map(partial(versions_of, self._objects.exchange), keys)
        return self._judge_keys(dict(zip(keys, now, strict=True)), None, keys)

    def _judge_lock(self, what: tuple[str, Row]) -> tuple[str, list[Finding]]:
        key, row = what
        try:
            mode, until, held = self._objects.locks_of(key, row["version_id"])
        except StorageError as error:
            if not _absent(error):
                raise
            mode, until, held = "", None, False  # gone since it was listed: judged again
        return key, list(rules.of_lock(row, mode, until, held))

    # The spool

    def _files(self, _position: str) -> Walked:
        files = list(self._spool.at_rest(self._still))
        findings = [each for batch in _batches(files, self._page) for each in self._twice(self._judge_files, batch)]
        paths = {_name(path): path for owner, path in files if owner is None or path.parent.name != _MARKS}
        left = [each for each in findings if not (each.subject in paths and self._set_apart(each, paths[each.subject]))]
        yield "", len(files), [*left, *self._apart()]

    def _apart(self) -> list[Finding]:
        """What is in quarantine: of no recording, or not what was recorded (recording/upload.py)."""
        owners = {path: apart_of(path) for path in self._spool.quarantined()}
        known = self._records.states({whose for whose in owners.values() if whose})
        return [
            Finding(Kind.SPOOL_ALTERED if whose in known else Kind.SPOOL_WITHOUT_ROW, _name(path), _APART)
            for path, whose in owners.items()
        ]

    def _judge_files(self, files: Sequence[_File]) -> dict[_File, list[Finding]]:
        states = self._records.states({owner for owner, _ in files if owner})
        found = {}
        for owner, path in files:
            state = states.get(owner) if owner else None
            if state is None:
                found[owner, path] = [Finding(Kind.SPOOL_WITHOUT_ROW, _name(path), "in the spool")]
            elif state in _OVER:
                found[owner, path] = [Finding(Kind.SPOOL_LEFT, _name(path), f"the recording is {state}")]
        return found

    def _set_apart(self, finding: Finding, path: Path) -> bool:
        if finding.kind is not Kind.SPOOL_WITHOUT_ROW:
            return False
        try:
            self._spool.quarantine(path)
        except SpoolError as error:  # then it is told as it is
            log.warning("audit_not_quarantined", kind=finding.kind.value, why=str(error))
            return False
        return True

    # What becomes of it

    def _keep(self, scope: str, findings: Sequence[Finding]) -> None:
        """Note the findings, then quarantine what can be: a crash in between leaves them noted as not quarantined."""
        if not findings:
            return
        at = {_which(each): each for each in findings}
        for each in self._records.found(scope, list(at.values())):
            detail = at[_which(each)].detail
            held = each.kind is Kind.OBJECT_WITHOUT_ROW and detail != rules.MARKER and self._hold(each)
            if held or detail == _APART:
                self._records.quarantined(scope, each)

    def _hold(self, finding: Finding) -> bool:
        try:
            self._objects.hold(unquote(finding.subject), finding.version_id, on=True)
        except StorageError as error:  # the credential may not, or it is gone: told all the same
            log.warning("audit_not_quarantined", kind=finding.kind.value, why=str(error))
            return False
        return True

    def _let_go(self, started_at: datetime) -> None:
        """Take the hold from what has its row again, or its erasure could never end."""
        while stale := self._records.stale(SHARED, Kind.OBJECT_WITHOUT_ROW, started_at):
            for each in stale:
                key = unquote(each.subject)
                recording = rules.recording_in(key)
                row = self._records.objects([recording]).get(recording) if recording else None
                if not (row and row["standing"]):  # else a hold of a case took it over
                    try:
                        self._objects.hold(key, each.version_id, on=False)
                    except StorageError as error:
                        if not _absent(error):
                            raise
                self._records.quarantined(SHARED, each, on=False)


def _which(finding: Finding) -> tuple[Kind, str, str]:
    return finding.kind, finding.subject, finding.version_id


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def _name(path: Path) -> str:
    """The name of a file that is named as ours are; of another nothing that it might say."""
    if _OURS.fullmatch(path.name):
        return path.name
    return f"stranger {hashlib.sha256(path.name.encode(errors='surrogateescape')).hexdigest()[:12]}"


def _absent(error: StorageError) -> bool:
    return "HTTP 404" in error.detail
