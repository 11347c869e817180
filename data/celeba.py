"""Read CelebA in its official layout, or as Kaggle packs it: images in a folder or a zip, and their splits."""

import os
import threading
import zipfile
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from degrain.data.decode import Crop, read_square
from degrain.data.files import files_fingerprint, read_file, root_tag, shown, unreadable
from degrain.models.core.errors import InputError, first_line

IMAGES, ARCHIVE, PARTITION = "img_align_celeba", "img_align_celeba.zip", "list_eval_partition.txt"
PARTITIONS = (PARTITION, "list_eval_partition.csv")  # the second is Kaggle's
HEADER = ["image_id", "partition"]
SPLITS = {"0": "train", "1": "valid", "2": "test"}
BY_HAND = f"fetch {ARCHIVE} and {PARTITION} from the CelebA site by hand and put them into"


class CelebASource:
    """Provide CelebA's aligned photographs, 178x218.

    root (or root/celeba, where torchvision puts it) holds list_eval_partition.txt and img_align_celeba/ or
    img_align_celeba.zip, which is read without extracting it. Kaggle's list_eval_partition.csv will do, and so will its
    folder in the folder, img_align_celeba/img_align_celeba/. Images that the partition does not name are left out.
    Arguments are those of degrain.data.datamodule.CelebA.
    """

    def __init__(self, root: str | Path, crop: Crop = "c148", download: bool = False, partial: bool = False) -> None:
        self.crop, self.partial = crop, partial
        self.converted: list[str] = []
        if download and not _present(_base(root)):
            _download(Path(root))
        self.base = _base(root)
        if not self.base.is_dir():
            raise InputError(f"CelebA: no folder {shown(root)}; pass --data.root DIR or --data.download true")
        partition = _partition_file(self.base)
        if partition is None:
            if _partition_file(self.base.parent):
                raise InputError(
                    f"CelebA: no {PARTITION} in {shown(self.base)}, but above it; pass that as --data.root"
                )
            kaggle = f"or Kaggle's {PARTITIONS[1]}"
            raise InputError(f"CelebA: no {PARTITION} in {shown(self.base)}; {BY_HAND} it, {kaggle}")
        self.partition = partition
        if (self.base / IMAGES).is_dir():
            inner = self.base / IMAGES / IMAGES  # Kaggle's
            self.images = _Folder(inner if inner.is_dir() else inner.parent)
        elif (self.base / ARCHIVE).is_file():
            self.images = _Zip(self.base / ARCHIVE)
        else:
            raise InputError(f"CelebA: neither {IMAGES}/ nor {ARCHIVE} in {shown(self.base)}; {BY_HAND} it")
        self.name = f"celeba-{crop}-{root_tag(self.base)}"

    def items(self, split: str) -> Sequence[str]:
        if not self._splits.get(split):
            raise InputError(
                f"CelebA: no {split} images under {shown(self.base)}; {self.partition.name} names none that exist"
            )
        return self._splits[split]

    def fingerprint(self, split: str) -> str:
        return self.images.fingerprint(self.items(split), self.crop)

    def read(self, item: str, size: int) -> dict[str, np.ndarray]:
        where = f"{self.images.path}/{item}"
        return {"image": read_square(self.images.read(item), where, self.crop, size, self.converted)}

    def remarks(self) -> list[str]:
        """Return a line on the files that are left out."""
        others = self.images.names().difference(*self._splits.values())
        return (
            [f"{len(others):,} files of {shown(self.images.path)} left out: not in {self.partition.name}"]
            if others
            else []
        )

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        """Return the file names by split, in the order of the partition file."""
        present = self.images.names()
        if not present:
            raise InputError(f"CelebA: no images in {shown(self.images.path)}; {BY_HAND} {shown(self.base)}")
        named = self._partition()
        missing = [name for name, _ in named if name not in present]
        if missing and not self.partial:
            raise InputError(
                f"CelebA: {len(missing):,} of {len(named):,} images missing under {shown(self.images.path)} "
                f"(first: {shown(missing[0])}); pass --data.partial true to train on the rest"
            )
        return {split: [name for name, s in named if s == split and name in present] for split in SPLITS.values()}

    def _partition(self) -> list[tuple[str, str]]:
        """Return (file name, split) for each line of the partition file."""
        named = []
        text = os.fsdecode(read_file(self.partition)).removeprefix("\ufeff")
        for number, line in enumerate(text.splitlines(), start=1):
            match line.replace(",", " ").split():
                case [name, code] if code in SPLITS:
                    named.append((name, SPLITS[code]))
                case []:
                    pass
                case header if header == HEADER and number == 1:
                    pass
                case _:
                    where = f"{shown(self.partition)}, line {number}"
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
        return files_fingerprint(self.path, names, crop)


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
            raise InputError(f"CelebA: {shown(path)} {what}; fetch it again") from error
        files = {PurePosixPath(info.filename): info for info in self.zip.infolist() if not info.is_dir()}
        for inside in files:  # nothing is extracted, but such a zip is not CelebA's own
            if inside.is_absolute() or ".." in inside.parts:
                raise InputError(
                    f"CelebA: {shown(path)}: its path {shown(str(inside))} leads out of it; fetch it again"
                )
        self.members = {inside.name: info for inside, info in files.items()}
        self.lock = threading.Lock()  # a handle for each thread would cost 200,000 entries

    def names(self) -> set[str]:
        return set(self.members)

    def read(self, name: str) -> bytes:
        with self.lock:
            try:
                return self.zip.read(self.members[name])
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:  # the last: a password
                raise InputError(f"{shown(self.path / name)}: damaged in the zip ({error})") from error

    def fingerprint(self, names: Sequence[str], crop: Crop) -> str:
        return files_fingerprint(self.path.parent, [self.path.name], crop, names)


def _base(root: str | Path) -> Path:
    """Return root/celeba if the partition file lies there, else root."""
    below = Path(root) / "celeba"
    return below if _partition_file(below) else Path(root)


def _partition_file(base: Path) -> Path | None:
    """Return the file of the official splits, None if there is none."""
    return next((base / name for name in PARTITIONS if (base / name).is_file()), None)


def _present(base: Path) -> bool:
    return _partition_file(base) is not None and ((base / IMAGES).is_dir() or (base / ARCHIVE).is_file())


def _download(root: Path) -> None:
    """Let torchvision download into root/celeba/."""
    import torchvision  # slow to import, and needed only here

    try:
        torchvision.datasets.CelebA(str(root), download=True)
    except Exception as error:  # network, quota, md5, no gdown: the way out is the same
        raise InputError(
            f"CelebA: download failed ({first_line(error)}); {BY_HAND} {shown(root / 'celeba')}"
        ) from error
