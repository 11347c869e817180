"""Read CelebA in its official layout: images in a folder or in the zip as downloaded, and the official splits."""

import os
import threading
import zipfile
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from data.files import files_fingerprint, read_file, root_tag, unreadable
from data.folder import Crop, read_square
from models.core.errors import InputError, first_line

IMAGES, ARCHIVE, PARTITION = "img_align_celeba", "img_align_celeba.zip", "list_eval_partition.txt"
SPLITS = {"0": "train", "1": "valid", "2": "test"}
BY_HAND = f"fetch {ARCHIVE} and {PARTITION} from the CelebA site by hand and put them into"


class CelebASource:
    """Provide CelebA's aligned photographs, 178x218.

    root (or root/celeba, where torchvision puts it) holds list_eval_partition.txt and img_align_celeba/ or
    img_align_celeba.zip, which is read without extracting it. Images that the partition does not name are ignored.
    Arguments are those of data.datamodule.CelebA.
    """

    def __init__(self, root: str | Path, crop: Crop = "c148", download: bool = False, partial: bool = False) -> None:
        self.crop, self.partial = crop, partial
        self.converted: list[str] = []
        if download and not _present(_base(root)):
            _download(Path(root))
        self.base = _base(root)
        if not self.base.is_dir():
            raise InputError(f"CelebA: no folder {root}; pass --data.root DIR or --data.download true")
        if not (self.base / PARTITION).is_file():
            raise InputError(f"CelebA: no {PARTITION} in {self.base}; {BY_HAND} it")
        if (self.base / IMAGES).is_dir():
            self.images = _Folder(self.base / IMAGES)
        elif (self.base / ARCHIVE).is_file():
            self.images = _Zip(self.base / ARCHIVE)
        else:
            raise InputError(f"CelebA: neither {IMAGES}/ nor {ARCHIVE} in {self.base}; {BY_HAND} it")
        self.name = f"celeba-{crop}-{root_tag(self.base)}"

    def items(self, split: str) -> Sequence[str]:
        if not self._splits.get(split):
            raise InputError(f"CelebA: no {split} images under {self.base}; {PARTITION} names none that exist")
        return self._splits[split]

    def fingerprint(self, split: str) -> str:
        return self.images.fingerprint(self.items(split), self.crop)

    def read(self, item: str, size: int) -> dict[str, np.ndarray]:
        where = f"{self.images.path}/{item}"
        return {"image": read_square(self.images.read(item), where, self.crop, size, self.converted)}

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        """Return the file names by split, in the order of the partition file."""
        present = self.images.names()
        if not present:
            raise InputError(f"CelebA: no images in {self.images.path}; {BY_HAND} {self.base}")
        named = self._partition()
        missing = [name for name, _ in named if name not in present]
        if missing and not self.partial:
            raise InputError(
                f"CelebA: {len(missing):,} of {len(named):,} images missing under {self.images.path} "
                f"(first: {missing[0]}); pass --data.partial true to train on the rest"
            )
        return {split: [name for name, s in named if s == split and name in present] for split in SPLITS.values()}

    def _partition(self) -> list[tuple[str, str]]:
        """Return (file name, split) for each line of the partition file."""
        named = []
        text = read_file(self.base / PARTITION).decode(errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            match line.split():
                case [name, code] if code in SPLITS:
                    named.append((name, SPLITS[code]))
                case []:
                    pass
                case _:
                    where = f"{self.base / PARTITION}, line {number}"
                    raise InputError(f"CelebA: {where}: not 'NAME 0|1|2'; fetch the file again")
        return named


class _Folder:
    """Read image files from a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> set[str]:
        return set(os.listdir(self.path))

    def read(self, name: str) -> bytes:
        return read_file(self.path / name)

    def fingerprint(self, names: Sequence[str], crop: Crop) -> str:
        return files_fingerprint((self.path / name for name in names), crop)


class _Zip:
    """Read image files from a zip, whatever their folder in it.

    Raises:
        InputError: The file is no zip, or has paths that lead out of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
        except OSError as error:
            raise unreadable(path, error) from error
        except zipfile.BadZipFile as error:
            with open(path, "rb") as file:
                is_html = file.read(1024).lstrip().startswith(b"<")
            what = "is a web page (quota?), not a zip" if is_html else f"is damaged or cut off ({error})"
            raise InputError(f"CelebA: {path} {what}; fetch it again") from error
        files = {PurePosixPath(info.filename): info for info in self.zip.infolist() if not info.is_dir()}
        for inside in files:  # nothing is extracted, but such a zip is not CelebA's own
            if inside.is_absolute() or ".." in inside.parts:
                raise InputError(f"CelebA: {path}: its path {inside} leads out of it; fetch it again")
        self.members = {inside.name: info for inside, info in files.items()}
        self.lock = threading.Lock()  # a handle for each thread would cost 200,000 entries

    def names(self) -> set[str]:
        return set(self.members)

    def read(self, name: str) -> bytes:
        with self.lock:
            try:
                return self.zip.read(self.members[name])
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:  # the last: a password
                raise InputError(f"{self.path}/{name}: damaged in the zip ({error})") from error

    def fingerprint(self, names: Sequence[str], crop: Crop) -> str:
        return files_fingerprint([self.path], crop, names)


def _base(root: str | Path) -> Path:
    """Return root/celeba if the partition file lies there, else root."""
    below = Path(root) / "celeba"
    return below if (below / PARTITION).is_file() else Path(root)


def _present(base: Path) -> bool:
    return (base / PARTITION).is_file() and ((base / IMAGES).is_dir() or (base / ARCHIVE).is_file())


def _download(root: Path) -> None:
    """Let torchvision download into root/celeba/."""
    import torchvision  # slow to import, and needed only here

    try:
        torchvision.datasets.CelebA(str(root), download=True)
    except Exception as error:  # network, quota, md5, no gdown: the way out is the same
        raise InputError(f"CelebA: download failed ({first_line(error)}); {BY_HAND} {root / 'celeba'}") from error
