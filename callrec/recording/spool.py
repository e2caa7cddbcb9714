"""The local disk between FreeSWITCH and the object store.

    root/rec/<recording>.wav      written by FreeSWITCH, plain; gone once the locked object is verified (A11)
    root/sealed/<recording>.enc   ciphertext ready to be put
    root/sealed/<recording>.key   the note of that ciphertext: its sealed key and hashes
    root/withdrawn/<recording>    an empty marker: this recording must go
    root/quarantine/              for a person to decide about: what the audit found to be of no recording, and
                                  <recording>.… where a file is not the one that was begun; that goes with the recording

Names are our own random identifiers, never caller data. A note is in place before its ciphertext appears, so an `.enc`
always belongs to the `.key` beside it. What has another name is counted, and set apart by the audit alone.

A full disk: room() and left() see it coming, and no new recording starts (the call goes on), first by consent and then
at all. The reserve, `min_free_bytes`, is what running recordings and the ciphertext of finished ones grow into: an
upload needs as many bytes again as its recording until the object is verified. When even that is used up, SpoolError;
nothing is removed.
"""

import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID, uuid4

from callrec.errors import OtherFileError, SpoolError

_MODE = 0o2770  # FreeSWITCH is another user of the same group; setgid hands that group on to its files
_RATES = frozenset({"8000", "11025", "12000", "16000", "22050", "24000", "32000", "44100", "48000", "96000"})
_PLAIN = re.compile(r"/[A-Za-z0-9._/-]*")
_BLOCK = 64 * 1024
_RECORDING = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.wav")
# How long left() believes its last count: so many times what it took, but within these bounds.
_BELIEVED_FOR, _ROOM_SECONDS, _STALE_SECONDS = 50, 0.5, 10.0


@dataclass(frozen=True, slots=True)
class Room:
    """What the spool holds and what it may still take."""

    bytes_used: int  # plain and sealed
    files: int  # recordings, plain ones
    free: int  # bytes on the file system, without what it keeps for root
    left: int  # bytes that recordings may still take; negative when they took more
    oldest_age: float  # seconds since the oldest recording was last written; 0 when there is none


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """A plain recording in the spool."""

    recording_id: UUID
    path: Path
    size: int
    mtime: float  # seconds since the epoch


class Spool:
    """The spool directory `root`. Raises SpoolError for whatever the file system refuses."""

    def __init__(self, root: Path, min_free_bytes: int, max_bytes: int) -> None:
        """New recordings stop when less than `min_free_bytes` are free or the spool holds `max_bytes`.

        SpoolError when FreeSWITCH could not record under `root`: it splits its arguments at spaces and reads braces,
        commas and dollars, and a directory named like a sampling rate changes where it looks for a file.
        """
        if not _PLAIN.fullmatch(str(root)) or ".." in root.parts:
            raise SpoolError(
                f"FreeSWITCH can't record under {str(root)!r}",
                detail="a path with a space or a special character is split or expanded",
                hint="Use an absolute path of letters, digits, dot, hyphen and underscore",
            )
        if rate := next((part for part in root.parts if part in _RATES), None):
            raise SpoolError(
                f"FreeSWITCH can't record under {str(root)!r}",
                detail=f"the directory {rate} is named like a sampling rate",
                hint="Choose another name for it",
            )
        self.root = root
        self.min_free_bytes = min_free_bytes
        self.max_bytes = max_bytes
        self._rec = root / "rec"
        self._sealed = root / "sealed"
        self._withdrawn = root / "withdrawn"
        self._quarantine = root / "quarantine"
        self._counted, self._count_at = 0, 0.0  # bytes, and when to count again

    def prepare(self) -> None:
        """Create what is missing; SpoolError unless this process may write in it."""
        with _spool_errors("The spool can't be prepared", self.root):
            for directory in (self.root, self._rec, self._sealed, self._withdrawn, self._quarantine):
                if not directory.is_dir():
                    directory.mkdir(parents=True, exist_ok=True)
                    directory.chmod(_MODE)  # mkdir's mode is cut by the umask
                    _sync_directory(directory.parent)
        if rates := sorted(_RATES.intersection(entry.name for entry in self._scan(self._rec))):
            raise SpoolError(
                "FreeSWITCH can't record into the spool",
                detail=f"{self._rec / rates[0]} is named like a sampling rate",
                hint="Move it away",
            )
        for directory in (self._rec, self._sealed, self._withdrawn, self._quarantine):
            if not os.access(directory, os.W_OK | os.X_OK):
                raise SpoolError(
                    f"No right to write in {directory}",
                    hint="Give it to the group that callrec and FreeSWITCH share, mode 2770",
                )

    def path(self, recording_id: UUID) -> Path:
        """Where FreeSWITCH writes this recording."""
        return self._rec / f"{recording_id}.wav"

    def open_plain(self, recording_id: UUID) -> BinaryIO | None:
        """The recording as FreeSWITCH wrote it, to be read and closed; None where there is no such file.

        OtherFileError for what FreeSWITCH makes no recording of: a link, a pipe, a directory.
        """
        path = self.path(recording_id)
        with _spool_errors("A recording can't be read", self.root):
            try:
                _must_be_file(path.lstat())  # to open some of them would be to wait for somebody
                audio = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
            except FileNotFoundError:
                return None
            try:
                _must_be_file(os.fstat(audio.fileno()))  # it is this one that is read
            except OtherFileError:
                audio.close()
                raise
            return audio

    # Room

    def left(self) -> int:
        """Bytes that recordings may still take: down to `min_free_bytes`, up to `max_bytes`. At 0 none starts.

        A count looks at each file, and calls notice that when many have piled up: the more it takes the longer it is
        believed. What is free is asked each time.
        """
        if (now := time.monotonic()) >= self._count_at:
            began = time.thread_time()
            self._counted = self.room().bytes_used
            believed = max(_ROOM_SECONDS, _BELIEVED_FOR * (time.thread_time() - began))
            self._count_at = now + min(believed, _STALE_SECONDS)
        return self._left(self._free(), self._counted)

    def _left(self, free: int, used: int) -> int:
        return min(free - self.min_free_bytes, self.max_bytes - used)

    def _free(self) -> int:
        with _spool_errors("The spool can't be counted", self.root):
            disk = os.statvfs(self.root)
        return disk.f_bavail * disk.f_frsize

    def room(self) -> Room:
        """Count now."""
        plain = [status for _, status in self._plain_files()]
        used = sum(status.st_size for status in plain) + sum(size for _, size in self._sealed_files())
        oldest_age = max(0.0, time.time() - min((status.st_mtime for status in plain), default=time.time()))
        free = self._free()
        return Room(used, len(plain), free, self._left(free, used), oldest_age)

    # What is there

    def recordings(self) -> Iterator[SpoolFile]:
        """The plain recordings, growing ones too, in no order."""
        for entry, status in self._plain_files():
            recording_id = UUID(entry.name.removesuffix(".wav"))
            yield SpoolFile(recording_id, Path(entry.path), status.st_size, status.st_mtime)

    def leftovers(self) -> set[UUID]:
        """Every recording that has a file here, plain or sealed."""
        return {file.recording_id for file in self.recordings()} | {known for known, _ in self._sealed_files()}

    def has(self, recording_id: UUID) -> bool:
        """Whether this recording has a file here, plain, sealed or set apart."""
        with _spool_errors("The spool can't be read", self.root):
            plain = os.path.lexists(self.path(recording_id))
        return plain or bool(self._sealed_of(recording_id) or self.set_apart(recording_id))

    def strangers(self) -> list[Path]:
        """What is not ours by its name. The audit alone touches it, and its name may say too much for a log."""
        found = [Path(entry.path) for entry in self._scan(self._rec) if _recording_id(entry.name, ".wav") is None]
        found += [Path(entry.path) for entry in self._scan(self._sealed) if _sealed_id(entry.name) is None]
        found += [Path(entry.path) for entry in self._scan(self._withdrawn) if _recording_id(entry.name, "") is None]
        return found

    def at_rest(self, seconds: float) -> Iterator[tuple[UUID | None, Path]]:
        """Files that nobody has written to for so long, and whose they are; None where the name is not ours."""
        before = time.time() - seconds
        for directory in (self._rec, self._sealed, self._withdrawn):
            for entry in self._scan(directory):
                with suppress(FileNotFoundError):  # as in recordings()
                    if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime <= before:
                        yield (
                            _recording_id(entry.name.removesuffix(".wav"), "") or _sealed_id(entry.name),
                            Path(entry.path),
                        )

    def quarantine(self, path: Path) -> None:
        """Set a file of the spool apart. Nothing reads it again, and it goes with its recording alone (purge)."""
        with _spool_errors("A file can't be set apart", self.root), suppress(FileNotFoundError):
            target = self._quarantine / path.name
            path.rename(self._quarantine / f"{path.name}.{uuid4().hex}" if target.exists() else target)
            _sync_directory(self._quarantine)
            _sync_directory(path.parent)

    def quarantined(self) -> list[Path]:
        """What was set apart."""
        return [Path(entry.path) for entry in self._scan(self._quarantine)]

    def set_apart(self, recording_id: UUID) -> list[Path]:
        """What was set apart of this recording."""
        return [path for path in self.quarantined() if apart_of(path) == recording_id]

    # The sealed form

    def sealed_path(self, recording_id: UUID) -> Path:
        """The ciphertext ready to be put."""
        return self._sealed / f"{recording_id}.enc"

    def store_sealed(self, recording_id: UUID, write: Callable[[BinaryIO], bytes]) -> bytes:
        """Make the sealed form: `write` fills the file it is given and returns the note, which is returned again.

        On disk before this returns, both or neither: a crash leaves at most a note without a ciphertext, which counts
        as nothing. Takes the place of an earlier sealed form.
        """
        self.drop_sealed(recording_id)
        mark = uuid4().hex
        body, note_file = (self._sealed / f"{recording_id}.{mark}.{kind}" for kind in ("enc-part", "key-part"))
        try:
            with _spool_errors("A recording can't be sealed", self.root):
                with body.open("xb") as out:
                    note = write(out)
                    _sync(out)
                with note_file.open("xb") as out:
                    out.write(note)
                    _sync(out)
                note_file.replace(self._note_path(recording_id))
                _sync_directory(self._sealed)
                body.replace(self.sealed_path(recording_id))
                _sync_directory(self._sealed)
        except BaseException:  # also when the greenlet is killed: half a ciphertext is of no use to anyone
            for part in (body, note_file):
                with suppress(OSError):
                    part.unlink()
            raise
        return note

    def sealed_note(self, recording_id: UUID) -> bytes | None:
        """The note of the sealed form, or None where there is none that is whole."""
        with _spool_errors("A sealed recording can't be read", self.root):
            try:
                return self._note_path(recording_id).read_bytes() if self.sealed_path(recording_id).exists() else None
            except FileNotFoundError:
                return None

    def read_sealed(self, recording_id: UUID) -> Iterator[bytes]:
        """The ciphertext in blocks."""
        with (
            _spool_errors("A sealed recording can't be read", self.root),
            self.sealed_path(recording_id).open("rb") as file,
        ):
            while block := file.read(_BLOCK):
                yield block

    def drop_sealed(self, recording_id: UUID) -> None:
        """Remove the sealed form and unfinished attempts at it; the ciphertext first, so that no note outlasts it."""
        self._unlink(self.sealed_path(recording_id))
        for path in self._sealed_of(recording_id):
            self._unlink(path)

    # The way out

    def withdraw(self, recording_id: UUID) -> None:
        """Note durably that this recording must go, then remove all there is of it."""
        marker = self._withdrawn / str(recording_id)
        with _spool_errors("A withdrawal can't be noted", self.root):
            with suppress(FileExistsError), marker.open("xb") as out:  # it may belong to another of callrec's users
                _sync(out)
            _sync_directory(self._withdrawn)
        self.purge(recording_id)

    def withdrawn(self, recording_id: UUID) -> bool:
        with _spool_errors("The withdrawals can't be read", self.root):
            return (self._withdrawn / str(recording_id)).exists()

    def withdrawals(self) -> set[UUID]:
        """Every recording marked to go."""
        names = (_recording_id(entry.name, "") for entry in self._scan(self._withdrawn))
        return {known for known in names if known}

    def clear_withdrawn(self, recording_id: UUID) -> None:
        """Forget the marker: the withdrawal is in the ledger."""
        self._unlink(self._withdrawn / str(recording_id))

    def remove_plain(self, recording_id: UUID) -> None:
        """Remove the plain recording and keep its sealed form."""
        self._unlink(self.path(recording_id))

    def remove(self, recording_id: UUID) -> None:
        """Remove the recording in both forms; its marker stays, and what was set apart. Nothing there is no error."""
        self.remove_plain(recording_id)
        self.drop_sealed(recording_id)

    def purge(self, recording_id: UUID) -> None:
        """Remove every copy of the recording; the marker stays."""
        self.remove(recording_id)
        for path in self.set_apart(recording_id):  # last: what is just being set apart is here by now, or gone
            self._unlink(path)

    # Inside

    def _note_path(self, recording_id: UUID) -> Path:
        return self._sealed / f"{recording_id}.key"

    def _plain_files(self) -> Iterator[tuple["os.DirEntry[str]", os.stat_result]]:
        # `listen` counts them, and its calls wait meanwhile: no object is made for a file here.
        with _spool_errors("The spool can't be read", self.root):
            for entry in self._scan(self._rec):
                if _RECORDING.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # shipped or withdrawn while we look
                        yield entry, entry.stat(follow_symlinks=False)

    def _sealed_files(self) -> Iterator[tuple[UUID, int]]:
        with _spool_errors("The spool can't be read", self.root):
            for entry in self._scan(self._sealed):
                if recording_id := _sealed_id(entry.name):
                    with suppress(FileNotFoundError):  # as in recordings()
                        yield recording_id, entry.stat().st_size

    def _sealed_of(self, recording_id: UUID) -> list[Path]:
        # An erasure asks this of each recording: the names that are others' must cost next to nothing.
        own = [entry for entry in self._scan(self._sealed) if entry.name.startswith(f"{recording_id}.")]
        return [Path(entry.path) for entry in own if _sealed_id(entry.name)]

    def _scan(self, directory: Path) -> list["os.DirEntry[str]"]:
        with _spool_errors("The spool can't be read", self.root), os.scandir(directory) as entries:
            return list(entries)

    def _unlink(self, path: Path) -> None:
        with _spool_errors("A spool file can't be removed", self.root):
            try:
                path.unlink()
            except FileNotFoundError:
                return
            _sync_directory(path.parent)


def _recording_id(name: str, suffix: str) -> UUID | None:
    """The id in a file name of ours; None for any other spelling."""
    stem = name.removesuffix(suffix)
    try:
        known = UUID(stem)
    except ValueError:
        return None
    return known if name == f"{known}{suffix}" else None


def apart_of(path: Path) -> UUID | None:
    """The recording that a file in the quarantine names itself after; None where its name is not ours."""
    return _recording_id(path.name.partition(".")[0], "")


def _sealed_id(name: str) -> UUID | None:
    """The id in <id>.enc, <id>.key and in the unfinished <id>.<random>.enc-part and .key-part."""
    stem, dot, kind = name.partition(".")
    return _recording_id(stem, "") if dot and re.fullmatch(r"enc|key|[0-9a-f]{32}\.(enc|key)-part", kind) else None


def _must_be_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OtherFileError("A recording is no regular file")


def _sync(out: BinaryIO) -> None:
    out.flush()
    os.fsync(out.fileno())


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _spool_errors(message: str, root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # strerror alone: str(error) would repeat the path of the one file in question.
        raise SpoolError(message, detail=error.strerror or type(error).__name__, hint=f"Look at {root}") from error
