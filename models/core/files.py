"""Files that are whole or not there: written under another name, synced, renamed."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.core.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what shall stand at `path`; at the end of the block it does.

    A kill or a power cut at any moment leaves what was there before or the whole new file, and so does an error, which
    leaves nothing else. What a killed write left behind is written over by the next one. Folders are made if need be.

    Yields:
        A hidden name beside it, with the same ending, by which libraries choose a format.

    Raises:
        InputError: the disk is full, or the place cannot be written to.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(folder, fcntl.LOCK_EX)  # one writer at a time, of all processes
            try:
                yield part
                with open(part, "rb+") as file:
                    os.fsync(file.fileno())  # or a power cut may find the new name before the contents
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be written ({reason}); make room there or check permissions") from error
