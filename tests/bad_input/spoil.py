"""Ways to spoil files and folders, and disks that fail.

A function with arguments returns one without, which does it in the current folder.
"""

import errno
import io
import os
import pickle
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from degrain.data.celeba import ARCHIVE, IMAGES


def holding(path: str, content: bytes) -> Callable[[], Any]:
    """Overwrite a file."""
    return lambda: Path(path).write_bytes(content)


def cut(path: str) -> Callable[[], Any]:
    """Cut off the second half of a file."""
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[: Path(path).stat().st_size // 2])


def flipped(path: str, place: int) -> Callable[[], Any]:
    """Change one byte of a file, counted from its end; from its start if negative."""

    def spoil() -> None:
        content = bytearray(Path(path).read_bytes())
        content[-place] ^= 0x81
        Path(path).write_bytes(content)

    return spoil


def without(path: str) -> Callable[[], Any]:
    """Remove a file."""
    return lambda: Path(path).unlink()


def folders(*paths: str) -> Callable[[], Any]:
    """Make folders, also instead of files that are there."""

    def spoil() -> None:
        for path in map(Path, paths):
            path.unlink(missing_ok=True)
            path.mkdir(parents=True)

    return spoil


def zipped(folder: str = IMAGES, encrypted: bool = False) -> Callable[[], Any]:
    """Move CelebA's images into the zip, below a folder of it."""

    def spoil() -> None:
        with zipfile.ZipFile(Path("celeba", ARCHIVE), "w") as archive:
            for path in sorted(Path("celeba", IMAGES).iterdir()):
                archive.writestr(f"{folder}/{path.name}", path.read_bytes())
            for member in archive.infolist():
                member.flag_bits |= encrypted
        shutil.rmtree(Path("celeba", IMAGES))

    return spoil


class RunsCode:
    """An object that makes a folder `ran` when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def evil(path: str, write: Callable[[Any, str], Any] = torch.save) -> Callable[[], Any]:
    """Write a checkpoint that runs code when it is unpickled."""
    return lambda: write({"degrain": RunsCode(), "state_dict": {}}, path)


def plain_pickle(thing: Any, path: str) -> None:
    """Write Python's own format."""
    Path(path).write_bytes(pickle.dumps(thing))


def foreign_weights() -> None:
    """Write a safetensors file of another program."""
    safetensors.torch.save_file({"w": torch.zeros(2)}, "foreign.safetensors", {"format": "pt"})


def changed_card(path: str, **fields: Any) -> Callable[[], Any]:
    """Change fields of a checkpoint's card."""

    def spoil() -> None:
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["degrain"] |= fields
        torch.save(checkpoint, path)

    return spoil


@contextmanager
def denied(name: str) -> Iterator[None]:
    """Deny reading files and folders of a name, and writing below a folder of that name.

    The system calls are replaced: permissions do not hold for root, and tests may run as root.
    """
    opened, scanned, made = io.open, os.scandir, os.mkdir

    def refuse(path: Any, also_below: bool) -> None:
        if isinstance(path, str | os.PathLike):
            if Path(path).name == name or also_below and name in Path(path).parts:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def open_or_not(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        refuse(file, also_below=mode[0] in "wxa")
        return opened(file, mode, *args, **options)

    def scan_or_not(path: Any = ".") -> Any:
        refuse(path, also_below=False)
        return scanned(path)

    def make_or_not(path: Any, *args: Any) -> None:
        refuse(path, also_below=not Path(path).exists())
        made(path, *args)

    with pytest.MonkeyPatch.context() as patch:
        for place, stand_in in (
            ("io.open", open_or_not),
            ("builtins.open", open_or_not),
            ("os.scandir", scan_or_not),
            ("os.mkdir", make_or_not),
        ):
            patch.setattr(place, stand_in)
        yield


@contextmanager
def full_disk() -> Iterator[None]:
    """Fail when a file is synced to the disk: with delayed allocation a full disk shows there."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        yield


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """Limit the size of files in bytes: a write beyond really fails, also in the middle of a library's writer."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
