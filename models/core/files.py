"""Locks that end with their process, and atomic replacement of files: a temporary name, a sync, a renaming."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from degrain.models.core.errors import InputError

held: set[BinaryIO] = set()
"""Open files whose locks this process holds."""


def let_go() -> None:
    """Close the locked files in a forked child: else it would hold the locks after this process has ended."""
    while held:
        held.pop().close()


os.register_at_fork(after_in_child=let_go)


@contextmanager
def refuse_unwritable(path: Path | str) -> Iterator[None]:
    """Raise an InputError that names `path` for any OSError: the disk is full, or the folder cannot be written to."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be written ({reason}); make room there or check permissions") from error


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """Make a folder, and at the end remove it and its parents that were made if they are empty."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for place in made:
                place.rmdir()


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[BinaryIO]:
    """Lock a file for this process; yields it, open for appending.

    It is made if it is absent, and removed at the end unless it was renamed meanwhile. The system ends the lock when
    the process ends, however it ends: a file that a kill has left locks nobody out. The file is opened for writing, so
    that the lock holds between the machines of an NFS, too; a file system without locks locks nobody out.

    Raises:
        BlockingIOError: `wait` is False, and another process holds the lock.
    """
    file = acquire(path, wait)
    held.add(file)
    try:
        yield file
    finally:
        if file in held:  # not in a forked child
            with suppress(OSError):
                if lies_at(file, path):
                    path.unlink()
            held.remove(file)
            file.close()


def acquire(path: Path, wait: bool) -> BinaryIO:
    """Open and lock a file; see `locked`."""
    while True:
        file = open(path, "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise
        except OSError:  # a file system without locks
            return file
        if lies_at(file, path):
            return file
        file.close()  # who held the lock has removed or renamed the file


def lies_at(file: BinaryIO, path: Path) -> bool:
    """Return True if the path still names this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace `path` atomically; yields a temporary path with the same suffix, by which libraries choose a format.

    A kill, a power cut or an error at any moment leaves the old file or the whole new one. An error leaves no temporary
    file; a kill leaves one, which the next writer replaces. Two writers take turns. Missing folders are created.

    Raises:
        InputError: the disk is full, or the folder cannot be written to.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    with refuse_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(part):
            yield part
            with open(part, "rb+") as file:
                os.fsync(file.fileno())  # or after a power cut the new name may have no contents
            os.replace(part, path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def remove_dead_parts(folder: Path) -> None:
    """Remove the temporary files that killed writers have left in a folder of ours; those being written stay."""
    for part in folder.glob(".*.part.*"):
        with suppress(OSError), locked(part, wait=False):
            pass  # it is removed with the lock
