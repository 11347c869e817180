"""Read the user's files; derive fingerprints and tags from them for the cache."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from models.core.errors import InputError


def unreadable(path: str | Path, error: OSError) -> InputError:
    """Return the error for a file or folder that the system does not let us read."""
    return InputError(f"{path}: cannot be read ({error.strerror}); check that it is there and may be read")


def read_file(path: Path) -> bytes:
    """Return the contents of a file. InputError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def files_fingerprint(files: Iterable[Path], *options: object) -> str:
    """Return a hash over the options and the names, sizes and times of the files. Opens none of them.

    InputError if one does not exist or may not be looked at.
    """
    digest = hashlib.sha256(repr(options).encode())
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:
            raise unreadable(file, error) from error
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def root_tag(root: Path) -> str:
    """Return 8 hexadecimal digits of a hash of the path, so that two data sets never share a cache."""
    return hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
