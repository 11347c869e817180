"""Tell the splits of a folder of images from the names of its subfolders."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

from degrain.data.files import shown
from degrain.models.core.errors import InputError

NAMES = {
    "train": "train trains training trn trainval",
    "valid": "valid valids val vals validation validations validate validating dev devel development eval evaluation",
    "test": "test tests testing tst holdout heldout",
}
WORDS = {word: split for split, words in NAMES.items() for word in words.split()}
FILLERS = set("set sets data dataset split image images img imgs picture pictures pic pics photo photos".split())
WAY_OUT = "put every image below train/, valid/ or test/, or give those folders other names"


@dataclass(frozen=True)
class Named:
    """A folder whose name names a split; `plainly` if it says nothing else: test_images does, test_tube does not."""

    split: str
    folder: str
    depth: int
    plainly: bool


@cache
def split_of(folder: str) -> tuple[str, bool] | None:
    """Return the split that the name of a folder names, and whether it says nothing else; None if it names none.

    Case, numbers, single letters and words such as "set" and "images" do not count: `Training`, `val2017`, `testset`.
    """
    apart = re.sub(r"([a-z])([A-Z])", r"\1 \2", folder)
    words = [
        re.sub(r"(?<=...)(set|data|images|imgs)$", "", word) or word for word in re.findall("[a-z]+", apart.lower())
    ]
    if "".join(words) in WORDS:
        words = ["".join(words)]
    splits = {WORDS[word] for word in words if word in WORDS}
    if splits == {"train", "valid"}:  # train_and_val
        splits = {"train"}
    if len(splits) != 1:
        return None
    plainly = all(word in WORDS or word in FILLERS or word == "and" or len(word) == 1 for word in words)
    return splits.pop(), plainly


@cache
def named(folder: str) -> tuple[Named, ...]:
    """Return the parts of a folder's path that name a split; of the outermost first."""
    parts = PurePosixPath(folder).parts
    found = ((split_of(part), part, depth) for depth, part in enumerate(parts))
    return tuple(Named(split[0], part, depth, split[1]) for split, part, depth in found if split)


def outermost(folder: str) -> Named | None:
    """Return the part of a folder's path that decides on its split: the outermost that plainly names one, or else the
    outermost that names one."""
    candidates = named(folder)
    return next((part for part in candidates if part.plainly), candidates[0] if candidates else None)


def split_folders(folders: Iterable[str]) -> dict[str, str] | None:
    """Return folder -> split for the folders that hold images, paths below the root; None if none of them is a split.

    Folders of classes may lie below those of the splits, and those of the splits below others. Folders of classes one
    of which is called `train station` are no splits, but beside one called `test` nothing can be told.

    Raises:
        InputError: It cannot be told which images are held out.
    """
    folders = sorted(folders)
    chosen = {folder: part for folder in folders if (part := outermost(folder))}
    outside = [folder for folder in folders if folder not in chosen]
    if not chosen or outside and all(part.split == "train" and not part.plainly for part in chosen.values()):
        return None
    spellings = defaultdict(set)
    for part in chosen.values():
        spellings[part.split].add(part.folder)
    for split, names in spellings.items():
        if len(names) > 1:
            both = " and ".join(f"{shown(name)}/" for name in sorted(names)[:2])
            raise InputError(f"{both} both name the {split} split; keep one, or join them")
    if outside:
        where = f"{shown(outside[0])}/ are" if outside[0] else "the folder itself are"
        one = next(iter(chosen.values())).folder
        raise InputError(f"{shown(one)}/ names a split, but images in {where} of none; {WAY_OUT}")
    for folder, part in chosen.items():
        _refuse_a_split_in_a_split(folder, part, folders, len(spellings))
    return {folder: part.split for folder, part in chosen.items()}


def _refuse_a_split_in_a_split(folder: str, part: Named, folders: list[str], splits: int) -> None:
    """Raise InputError for train/test/, unless test is a class: one of several folders, in one of several splits."""
    parts = PurePosixPath(folder).parts
    for inner in named(folder):
        if inner.plainly and inner.depth > part.depth and inner.split != part.split:
            above = parts[: inner.depth]
            lists = [p for f in folders if (p := PurePosixPath(f).parts)[: inner.depth] == above]
            classes = any(len(p) > inner.depth and not split_of(p[inner.depth]) for p in lists)
            if not classes or splits == 1:
                raise InputError(f"{shown('/'.join(parts[: inner.depth + 1]))}/ names two splits; {WAY_OUT}")
