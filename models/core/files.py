"""Atomic replacement of files: written under a temporary name, synced, renamed."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.core.errors import InputError


@contextmanager
def refuse_unwritable(path: Path | str) -> Iterator[None]:
    """Raise an InputError that names `path` for any OSError: the disk is full, or the folder cannot be written to."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be written ({reason}); make room there or check permissions") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace `path` atomically; yields a temporary path with the same suffix, by which libraries choose a format.

    A kill, a power cut or an error at any moment leaves the old file or the whole new one. An error leaves no temporary
    file; a kill leaves one, which the next writer replaces. Missing folders are created.

    Raises:
        InputError: the disk is full, or the folder cannot be written to.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    with refuse_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(folder, fcntl.LOCK_EX)  # one writer at a time; filelock would leave its file there
            try:
                yield part
                with open(part, "rb+") as file:
                    os.fsync(file.fileno())  # or after a power cut the new name may have no contents
                os.replace(part, path)
                os.fsync(folder)
            finally:
                part.unlink(missing_ok=True)
        finally:
            os.close(folder)
