"""Read the user's files, show their names, and derive fingerprints and tags from them for the cache.

Names of files are bytes: Python keeps those that are not UTF-8 as surrogates, which neither `encode` nor `print` takes.
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from degrain.models.core.errors import InputError

LONGEST = 200  # characters of a path in a message


def shown(path: str | Path) -> str:
    r"""Return a path for a message, in one line: what cannot be printed is escaped (\xe9, \n), the middle of a long
    one is left out."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"


def printable(line: str) -> str:
    """Return the line with all characters escaped that standard output cannot encode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def say(line: str) -> None:
    """Print a line about the data, whatever the encoding of standard output."""
    print(printable(line), flush=True)


def unreadable(path: str | Path, error: OSError) -> InputError:
    """Return the error for a file or folder that the system does not let us read."""
    return InputError(f"{shown(path)}: cannot be read ({error.strerror}); check that it is there and may be read")


def read_file(path: Path) -> bytes:
    """Return the contents of a file. InputError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def files_fingerprint(folder: Path, names: Iterable[str], *options: object) -> str:
    """Return a hash over the options and the names, sizes and times of files of a folder. Opens none of them.

    It is the same however the path of the folder is written. InputError if a file does not exist or may not be looked
    at.
    """
    digest = hashlib.sha256(repr(options).encode())
    for name in names:
        try:
            stat = os.stat(folder / name)
        except OSError as error:
            raise unreadable(folder / name, error) from error
        digest.update(os.fsencode(name) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def root_tag(root: Path) -> str:
    """Return 8 hexadecimal digits of a hash of the path without links, so that two data sets never share a cache."""
    return hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]


def slug(name: str) -> str:
    """Return the beginning of a name as a part of a file's name: letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^\w.-]", "_", name)[:40]


def unit_hash(content: bytes) -> float:
    """Hash bytes to a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8]) / 2**64


def sync(file: IO) -> None:
    """Put the file on disk, so that even after a power cut no rename precedes the contents."""
    file.flush()
    os.fsync(file.fileno())
