"""List the image files of a folder: links are followed, and what is passed over is counted."""

import os
import re
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from degrain.data.files import unreadable

WANTED = (
    ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .tif .tiff .gif .avif .heic .heif .ppm .pgm .pbm .pnm".split()
)
HINTS = {
    "unpack it": r"\.(zip|tar|tgz|gz|bz2|xz|zst|7z|rar)$",
    "write its images as files": r"\.(npz|npy|parquet|arrow|h5|hdf5|lmdb|mdb|tfrecords?|mat|pkl|pt)$",
    "convert them to png": r"\.(hei[cf]|avif|jxl|jp2|j2k|psd|tga|exr|svg|dng|cr[23w]|nef|arw|raw|orf|rw2)$",
}
"""What to do about files that may hold images -> their suffixes."""


@dataclass(frozen=True)
class Found:
    """An image file: its path below the folder, and its path without links."""

    name: str
    real: str
    is_link: bool


@dataclass
class Listing:
    """The image files of a folder, sorted by name, and the number of other files by their suffix."""

    images: list[Found] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def passed_over(self) -> str:
        """Return how many files are passed over, by suffix, and what to do about those that may hold images; or ""."""
        counts = ", ".join(f"{count:,} {kind}" for kind, count in self.others.most_common(12))
        rest = sum(count for _, count in self.others.most_common()[12:])
        hints = [
            f"{', '.join(kinds)}: {hint} to use {'them' if hint.endswith('png') else 'what is in it'}"
            for hint, pattern in HINTS.items()
            if (kinds := sorted(kind for kind in self.others if re.search(pattern, kind)))
        ]
        return "; ".join([counts + (f", {rest:,} more" if rest else ""), *hints])


def suffixes() -> tuple[str, ...]:
    """Return the suffixes of image files that this installation of PIL can read."""
    known = Image.registered_extensions()
    return tuple(suffix for suffix in WANTED if suffix in known)


def list_images(root: Path, group: Callable[[str], Hashable]) -> Listing:
    """List the image files anywhere below root, without hidden files and folders.

    A linked folder is entered once for each `group` of its path (a path below root), after the folders that lie there
    themselves. So a loop of links ends. InputError for a folder that cannot be read.
    """
    listing, read, entered = Listing(), suffixes(), set()
    folders, links = deque([""]), deque()
    while folders or links:
        folder = (folders or links).popleft()
        real = os.path.realpath(root / folder)
        if (real, group(folder)) in entered:
            continue
        entered.add((real, group(folder)))
        for entry in _entries(root / folder):
            name = f"{folder}/{entry.name}".removeprefix("/")
            if entry.name.startswith("."):
                listing.others["hidden"] += 1
            elif _is_folder(entry):
                (links if entry.is_symlink() else folders).append(name)
            elif entry.name.lower().endswith(read) and (entry.is_symlink() or entry.is_file()):
                own = os.path.realpath(entry) if entry.is_symlink() else os.path.join(real, entry.name)
                listing.images.append(Found(name, own, is_link=own != os.path.join(os.path.realpath(root), name)))
            else:
                listing.others[_kind(entry)] += 1
    listing.images.sort(key=lambda image: image.name)
    return listing


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(folder, error) from error


def _is_folder(entry: os.DirEntry) -> bool:
    """Return whether it is a folder or a link to one; a link to itself is neither."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _kind(entry: os.DirEntry) -> str:
    """Return what a file that is passed over is counted as: its suffix, if it has a sensible one."""
    if not (entry.is_symlink() or entry.is_file()):
        return "no files (pipes, sockets)"
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix if re.fullmatch(r"\.[a-z0-9_]{1,12}", suffix) else "without a usual suffix"
