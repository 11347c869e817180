"""Read any folder of images: its splits, which images are held out, and what is passed over."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from degrain.data.decode import Crop, read_square
from degrain.data.files import files_fingerprint, read_file, root_tag, shown, slug, unit_hash
from degrain.data.held_out import CHOOSE, Identities, content_number, divide, remembered
from degrain.data.listing import Found, Listing, list_images, suffixes
from degrain.data.splits import outermost, split_folders, split_of
from degrain.models.core.errors import InputError

HELD_OUT = "held out"  # images that are neither of `valid` nor of `test` yet
HELD_FIRST = ("test", "valid", "train")  # an image that lies in several splits is of the first of these
LISTS = (".txt", ".csv", ".tsv", ".json", ".lst")  # of such a file, named like a split, a user may expect one
VALID_SHARE = 0.05


class FolderSource:
    """Provide the image files anywhere under root, links followed, without hidden files and folders.

    Folders named train, valid and test, or the like (data/splits.py), are the splits. Otherwise, or if there is no
    valid, a share of the images to train on is held out by a hash of each file's path below root, so that no file
    changes its split when others are added. If there is no test, the held-out images are divided (data/held_out.py).
    Where root has a file of identities, a person is held out, and divided, as a whole.

    Arguments are those of degrain.data.datamodule.ImageFolder.

    Args:
        memory: Folder to write down how held-out images are divided, so that their files are read once.

    Raises:
        InputError: root or valid_share is wrong. The methods raise it if it cannot be told which images are held out.
    """

    def __init__(
        self,
        root: str | Path,
        crop: Crop = "square",
        valid_share: float = VALID_SHARE,
        memory: str | Path | None = None,
    ) -> None:
        self.root, self.crop, self.valid_share = Path(root), crop, valid_share
        self.converted: list[str] = []
        if not self.root.is_dir():
            raise InputError(f"ImageFolder: no folder {shown(root)}; pass --data.root DIR")
        if not 0 < valid_share < 1:
            raise InputError(f"ImageFolder: --data.valid_share {valid_share} must be between 0 and 1")
        share = "" if valid_share == VALID_SHARE else f"-v{valid_share:g}"
        self.name = f"folder-{slug(self.root.resolve().name)}-{root_tag(self.root)}-{crop}{share}"
        self.memory = None if memory is None else Path(memory) / f"{self.name}-held-out.json"

    def items(self, split: str) -> Sequence[str]:
        names = self._splits.get(split)
        if names is None and split != "train" and HELD_OUT in self._splits:
            names = self._sides[split]
        if not names:
            raise InputError(f"ImageFolder: no {split} images in {shown(self.root)}; {self._way_out(split)}")
        return names

    def fingerprint(self, split: str) -> str:
        shared = split != "train" and HELD_OUT in self._splits
        options = (split, CHOOSE, self.identity.text) if shared else ()
        return files_fingerprint(
            self.root, self._splits[HELD_OUT] if shared else self.items(split), self.crop, *options
        )

    def read(self, item: str, size: int) -> dict[str, np.ndarray]:
        file = self.root / item
        return {"image": read_square(read_file(file), file, self.crop, size, self.converted)}

    def remarks(self) -> list[str]:
        """Return lines on what a user may not expect: what is held out how, what is passed over or not its own."""
        lines = []
        if self._share_of is not None:
            lines.append(f"no images to validate on of its own: {self.valid_share:g} of {self._share_of} is held out")
        if self._splits.get(HELD_OUT):
            count, own = len(self._splits[HELD_OUT]), [n for n in self._splits[HELD_OUT] if self.identity(n)]
            by = "their bytes" if not own else f"identity ({count - len(own):,} without one: by their bytes)"
            lines.append(
                f"no images to test on of its own: the {count:,} held out are divided by a hash of {by}, "
                f"{CHOOSE:g} of them to choose on (valid) and the rest to report on (test)"
            )
        if (twice := len(self._listing.images) - sum(map(len, self._splits.values()))) > 0:
            lines.append(f"{twice:,} links to images that are there already are left out")
        places = Counter(
            PurePosixPath(image.name).parts[0] + "/" for image in self._listing.images if "/" in image.name
        )
        if 1 < len(places) <= 4 and self._share_of == "the images":
            lines.append("used are " + ", ".join(f"{n:,} images in {shown(place)}" for place, n in places.items()))
        if any(list(self.root.glob("list_eval_partition.*"))):
            lines.append("this is CelebA: --data degrain.data.datamodule.CelebA uses the splits of list_eval_partition")
        if lists := [path.name for path in self.root.glob("*.*") if path.suffix in LISTS and split_of(path.stem)]:
            lines.append(f"not read: {shown(', '.join(sorted(lists)))}; folders alone are splits")
        if self._listing.others:
            lines.append(f"passed over: {self._listing.passed_over()}")
        return lines

    @cached_property
    def identity(self) -> Identities:
        return Identities(self.root)

    @cached_property
    def _listing(self) -> Listing:
        def split(folder: str) -> str | None:
            part = outermost(folder)
            return part and part.split

        return list_images(self.root, split)

    @property
    def _share_of(self) -> str | None:
        """Return what a share is held out of to validate on; None if nothing is."""
        if self._given is None:
            return "the images"
        return (
            "the images to train on"
            if "train" in self._given.values() and "valid" not in self._given.values()
            else None
        )

    @cached_property
    def _given(self) -> dict[str, str] | None:
        """Return folder -> split, None if the folder has no splits."""
        try:
            return split_folders({os.path.dirname(image.name) for image in self._listing.images})
        except InputError as error:
            raise InputError(f"ImageFolder: {shown(self.root)}: {error}") from None

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        """Return the paths below root, sorted, by split; the held-out ones together if there is no test split."""
        splits: dict[str, list[str]] = {}
        for split, image in self._once():
            splits.setdefault(split, []).append(image.name)
        if self._share_of is not None:
            splits |= self._hold_out(splits.pop("train", []), 1 if "test" in splits else 2)
        if "test" not in splits and "valid" in splits:
            splits[HELD_OUT] = splits.pop("valid")
        return {split: sorted(names) for split, names in splits.items()}

    def _hold_out(self, names: list[str], least: int) -> dict[str, list[str]]:
        """Return the images to train on, and those held out by the hash of their path or identity.

        Of few images the `least` lowest hashes are held out, if that is nearer to the share than none.
        """
        hashes = {}
        for name in names:
            who = self.identity(name)
            hashes[name] = unit_hash(os.fsencode(name) if who is None else f"person {who}".encode())
        cut, distinct = self.valid_share, sorted(set(hashes.values()))
        if self.valid_share * len(names) >= 0.5 and len(distinct) > least:
            cut = max(cut, (distinct[least - 1] + distinct[least]) / 2)
        kept = [name for name in names if hashes[name] >= cut]
        return {"train": kept, "valid": [name for name in names if hashes[name] < cut]}

    def _once(self) -> list[tuple[str, Found]]:
        """Return (split, image) for each image that is reached; one that is reached twice counts as held out, if it is
        anywhere, and as itself rather than as a link."""
        given = self._given
        found = [("train" if given is None else given[os.path.dirname(i.name)], i) for i in self._listing.images]
        found.sort(key=lambda pair: (HELD_FIRST.index(pair[0]), pair[1].is_link))
        once: dict[str, tuple[str, Found]] = {}
        for split, image in found:
            once.setdefault(image.real, (split, image))
        return list(once.values())

    @cached_property
    def _sides(self) -> dict[str, list[str]]:
        """Return the held-out images to choose on and to report on."""
        names = self._splits[HELD_OUT]

        def compute() -> list[bool]:
            people = [self.identity(name) for name in names]
            pairs = zip(names, people, strict=True)
            return divide(
                [content_number(self.root / n) if w is None else unit_hash(f"side {w}".encode()) for n, w in pairs]
            )

        choose = remembered(self.memory, self.fingerprint(HELD_OUT), compute)
        sides: dict[str, list[str]] = {"valid": [], "test": []}
        for name, of_valid in zip(names, choose, strict=True):
            sides["valid" if of_valid else "test"].append(name)
        return sides

    def _way_out(self, split: str) -> str:
        """Return what to do if a split has no images."""
        if not self._listing.images:
            kinds = ", ".join(suffix[1:] for suffix in suffixes())
            passed = f"it has {self._listing.passed_over()}; " if self._listing.others else ""
            return f"{passed}add some ({kinds})"
        if split == "train" and self._share_of is None:
            return "it has folders to hold out alone; add a folder train/"
        if self._share_of is not None:
            return "add some or change --data.valid_share"
        return f"add some: {split} has too few different images to divide" if HELD_OUT in self._splits else "add some"
