"""A file that has its name only when it is whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from callrec.errors import CallrecError


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file to write and read, for this user alone; at the end of the block it is `path`, after an error nothing.

    CallrecError when it can't be written.
    """
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):  # a device would be gone for everybody
            raise CallrecError(f"{path} can't be written", detail="It is there, and no regular file")
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
        with os.fdopen(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as out:
            try:
                yield out
                out.close()  # before it gets its name: a full disk is noticed now at the latest
                unfinished.rename(path)
            finally:
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise CallrecError(f"{path} can't be written", detail=error.strerror or "") from None
