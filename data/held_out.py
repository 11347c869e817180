"""Divide held-out images into those to choose on (valid) and those to report on (test), by their content or identity.

The rule: hash the bytes of a file, or who is on it, to a number in [0, 1); below CHOOSE it is of `valid`. So equal
files lie on one side, wherever they lie and however they are called, and so do all photographs of a person.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from degrain.data.files import read_file, shown, sync, unit_hash
from degrain.models.core.errors import InputError

CHOOSE = 0.3  # of the held-out images


def divide(numbers: Sequence[float]) -> list[bool]:
    """Return for each image's number whether it is one to choose on. Of two different numbers, each side gets one."""
    distinct, cut = sorted(set(numbers)), CHOOSE
    if distinct and distinct[0] >= cut:
        cut = (distinct[0] + distinct[1]) / 2 if len(distinct) > 1 else 1
    elif len(distinct) > 1 and distinct[-1] < cut:
        cut = distinct[-1]
    return [number < cut for number in numbers]


def content_number(path: Path) -> float:
    """Hash the bytes of a file to a number in [0, 1); the name of one that cannot be read, which is reported later."""
    try:
        return unit_hash(read_file(path))
    except InputError:
        return unit_hash(os.fsencode(path.name))


def remembered(path: Path | None, fingerprint: str, compute: Callable[[], list[bool]]) -> list[bool]:
    """Return what is in a file for this fingerprint; otherwise compute it, and write it there if that is possible."""
    try:
        about = json.loads(path.read_text()) if path else {}
        if about.get("fingerprint") == fingerprint:
            return [side == "v" for side in about["sides"]]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        pass
    sides = compute()
    if path:
        about = {"fingerprint": fingerprint, "sides": "".join("v" if side else "t" for side in sides)}
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "w") as file:
                json.dump(about, file)
                sync(file)
            partial.replace(path)
        except OSError:  # no space or no permission: computed anew next time
            partial.unlink(missing_ok=True) if path.parent.is_dir() else None
    return sides


class Identities:
    """Tell who is on an image, by a file `identity*.txt` in the root with lines `NAME IDENTITY`, as CelebA has it.

    NAME is an image's path below the root, its name, or its name with another suffix.

    Raises:
        InputError: There are several such files, or a line has another form.
    """

    def __init__(self, root: Path) -> None:
        files = sorted(root.glob("identity*.txt"))
        if len(files) > 1:
            raise InputError(f"{shown(root)}: several files identity*.txt; keep the one that tells who is on an image")
        self.text = read_file(files[0]) if files else b""
        self.of: dict[str, str] = {}
        self.by_stem: dict[str, str | None] = {}
        for number, line in enumerate(os.fsdecode(self.text).splitlines(), start=1):
            match line.rsplit(maxsplit=1):
                case [name, who]:
                    self.of[name] = who
                    stem = PurePosixPath(name).stem
                    self.by_stem[stem] = who if self.by_stem.get(stem, who) == who else None  # None: two persons
                case []:
                    pass
                case _:
                    raise InputError(f"{shown(files[0])}, line {number}: not 'NAME IDENTITY'; correct or remove it")

    def __call__(self, name: str) -> str | None:
        """Return who is on the image of a path below the root, or None if that is not known."""
        path = PurePosixPath(name)
        return self.of.get(name) or self.of.get(path.name) or self.by_stem.get(path.stem)
