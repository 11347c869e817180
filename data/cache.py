"""Decode, crop and resize images once into memory-mapped uint8 arrays; training reads only these."""

import json
import os
import shutil
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from degrain.data.decode import ENLARGED
from degrain.data.files import printable, say, shown, sync
from degrain.models.core.errors import InputError
from degrain.models.core.files import locked

FORMAT = 1  # raise it when the contents of a cache change, the resampling filter included
WORKERS = min(8, os.cpu_count() or 1)
IN_FLIGHT = 64  # most decoded images in memory at once


class Source(Protocol):
    """Provide images one at a time, to several threads; a source knows nothing of the cache.

    Attributes:
        name: Names the source, its place and its crop; the cache folder's name begins with it.
        converted: The conversions made so far, as a list of words such as "grey" and ENLARGED; `read` appends to it.
    """

    name: str
    converted: Sequence[str]

    def items(self, split: str) -> Sequence[Any]:
        """Return keys of the images of "train", "valid" or "test", in a fixed order. InputError if there are none."""
        ...

    def fingerprint(self, split: str) -> str:
        """Return a hash of all that the pixels depend on: files' names, sizes, times; options. Opens no file."""
        ...

    def read(self, item: Any, size: int) -> dict[str, np.ndarray]:
        """Return {"image": (size, size, 3)} and the arrays that belong to it, uint8. InputError for a bad image."""
        ...

    def remarks(self) -> Sequence[str]:
        """Return lines on what a user may not expect of the splits, and what the source passes over."""
        ...


def cached_arrays(
    source: Source, split: str, size: int, directory: str | Path, skip_corrupt: bool = False
) -> dict[str, np.ndarray]:
    """Return the split as memory-mapped uint8 arrays {"image": (N, size, size, 3), ...}; build them if necessary.

    They lie in directory/NAME-SPLIT-SIZE/, one .npy each, with cache.json. One process builds, the others wait.
    With skip_corrupt, bad images are left out and counted; otherwise the first one raises InputError.
    """
    folder = Path(directory) / f"{source.name}-{split}-{size}"
    try:
        fingerprint = source.fingerprint(split)
        try:
            return _open(folder, fingerprint, skip_corrupt)  # without the lock: a read-only cache serves too
        except _Unusable:
            pass
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(Path(f"{folder}.lock")):
            try:
                return _open(folder, fingerprint, skip_corrupt)  # built by another process meanwhile
            except _Unusable as reason:
                if folder.exists():
                    say(f"cache: rebuilding {shown(folder)}: {reason}")
            _build(folder, source, split, size, fingerprint, skip_corrupt)
            return _open(folder, fingerprint, skip_corrupt)
    except OSError as error:
        way_out = "check space and permissions or pass --data.cache DIR"
        raise InputError(f"cache: cannot build {shown(folder)}: {error.strerror or error}; {way_out}") from error


class _Unusable(Exception):
    """Say why a cache on disk cannot be used."""


def _open(folder: Path, fingerprint: str, skip_corrupt: bool) -> dict[str, np.ndarray]:
    """Return the arrays of a complete and current cache; raise _Unusable for any other."""
    try:
        about = json.loads((folder / "cache.json").read_text())
        if about["format"] != FORMAT:
            raise _Unusable(f"it has format {about['format']}, this version writes {FORMAT}")
        if about["fingerprint"] != fingerprint:
            raise _Unusable("the source has changed")
        if about["skipped"] and not skip_corrupt:
            raise _Unusable(f"it leaves out {len(about['skipped'])} corrupt images and skip_corrupt is off")
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in about["arrays"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError, EOFError) as error:
        raise _Unusable(f"it is damaged ({error})") from error
    if any(len(array) != about["count"] for array in arrays.values()):
        raise _Unusable("it is damaged (its arrays differ in length)")
    return arrays


def _build(folder: Path, source: Source, split: str, size: int, fingerprint: str, skip_corrupt: bool) -> None:
    """Write the cache under a temporary name, then rename it: a kill at any point leaves no incomplete cache."""
    partial, old = folder.with_name(f"{folder.name}.partial"), folder.with_name(f"{folder.name}.old")
    items, converted_before = source.items(split), len(source.converted)
    for left_by_a_kill in (partial, old):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    partial.mkdir()
    try:
        about = _write(partial, source, items, size, skip_corrupt)
        about |= {"format": FORMAT, "fingerprint": fingerprint}
        with open(partial / "cache.json", "w") as file:
            json.dump(about, file)
            sync(file)
        if folder.exists():
            folder.rename(old)  # a folder that is not empty cannot be renamed over
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    if about["skipped"]:
        left_out = f"{len(about['skipped']):,} of {len(items):,} images (first: {shown(about['skipped'][0])})"
        say(f"cache: {shown(folder)} leaves out {left_out}")
    kinds = Counter(source.converted[converted_before:])
    if enlarged := kinds.pop(ENLARGED, 0):
        say(f"cache: {shown(folder)}: of {len(items):,} images, smaller than {size} pixels and enlarged: {enlarged:,}")
    if kinds:
        made = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
        say(f"cache: {shown(folder)}: of {len(items):,} images, made plain RGB: {made}")


def _write(folder: Path, source: Source, items: Sequence, size: int, skip_corrupt: bool) -> dict[str, Any]:
    """Write one .npy for each array of the source; return this function's part of cache.json."""
    writers: dict[str, _NpyWriter] = {}
    skipped = []
    pace = 0.1 if sys.stdout.isatty() else 30  # seconds; a log file needs few lines
    name = printable(f"cache {folder.name.removesuffix('.partial')}")
    bar = tqdm(items, name, unit=" images", file=sys.stdout, mininterval=pace, maxinterval=60)
    with ExitStack() as files, bar as progress, ThreadPoolExecutor(WORKERS) as pool:
        for item, decoded in zip(progress, _decode(pool, source, items, size), strict=True):
            try:
                arrays = decoded.result()
            except InputError as error:
                if not skip_corrupt:
                    raise InputError(f"{error}; --data.skip_corrupt true leaves such out") from error
                skipped.append(str(item))
                continue
            for name, array in arrays.items():
                if name not in writers:
                    writers[name] = files.enter_context(_NpyWriter(folder / f"{name}.npy", array.shape))
                writers[name].append(array)
    if not writers:
        raise InputError(f"{source.name}: none of its {len(items):,} images is readable; check --data")
    return {"count": len(items) - len(skipped), "skipped": skipped, "arrays": sorted(writers)}


def _decode(pool: ThreadPoolExecutor, source: Source, items: Sequence[Any], size: int) -> Iterator[Future]:
    """Read the images in order by threads (PIL decodes outside the GIL), at most IN_FLIGHT ahead."""
    pending: deque[Future] = deque()
    for item in items:
        if len(pending) == IN_FLIGHT:
            yield pending.popleft()
        pending.append(pool.submit(source.read, item, size))
    yield from pending


class _NpyWriter:
    """Append uint8 rows of one shape to a .npy file whose length is known only at the end.

    Not numpy's open_memmap: on a full disk write() raises, but a memory-mapped page kills the process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.shape, self.count = shape, 0
        self.file = open(path, "xb")
        self._write_header()

    def __enter__(self) -> "_NpyWriter":
        return self

    def append(self, row: np.ndarray) -> None:
        if row.dtype != np.uint8 or row.shape != self.shape:
            raise TypeError(f"{self.file.name}: {row.dtype} {row.shape} among uint8 {self.shape}")
        self.file.write(row.tobytes())
        self.count += 1

    def __exit__(self, *_: object) -> None:
        with self.file:
            self.file.seek(0)
            self._write_header()  # numpy pads it, so that any length fits into the same 128 bytes
            sync(self.file)

    def _write_header(self) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)
