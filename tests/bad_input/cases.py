"""A user's mistakes: the command, how the folder is spoilt, and the one line that answers it."""

import re
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import sample
import train
from tests import tiny

CACHES = ("cache", "own-cache")
"""Folders next to the user's that may change: a cache of good data is of use to the next try."""


def photograph(path: Path, size: int | tuple[int, int]) -> None:
    """Write an image of noise."""
    width, height = (size, size) if isinstance(size, int) else size
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def everything(folder: Path) -> dict[str, bytes | None]:
    """Return the content of every file below a folder by its path, None for a folder; without the caches."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))}
    own = {name: path for name, path in paths.items() if not name.startswith(CACHES)}
    return {name: path.read_bytes() if path.is_file() else None for name, path in own.items()}


def refused(capsys: pytest.CaptureFixture, command: str) -> str:
    """Run a command line that must fail, and return the one line of its error."""
    script, *args = shlex.split(command)
    return tiny.error_of(capsys, lambda: {"train": train, "sample": sample}[script].main(args))


@dataclass(frozen=True)
class Case:
    """A user's mistake, and the answer to it.

    Args:
        command: the command line, in the user's folder.
        said: a part of the line that answers it, as a regular expression.
        spoil: changes the user's folder before.
        config: values of the command's first config, by dotted names; `...` takes one out.
        fails: context in which the command runs.
        begun: true if the run had begun: its config is written anew, and its checkpoint may be being written.
    """

    command: str
    said: str
    spoil: Callable[[], Any] = lambda: None
    config: dict[str, Any] = field(default_factory=dict)
    fails: Callable[[], AbstractContextManager] = nullcontext
    begun: bool = False

    def prepare(self) -> None:
        """Spoil the folder and change the config."""
        self.spoil()
        if self.config:
            path = Path(re.search(r"-c (\S+)", self.command)[1])
            config = yaml.safe_load(path.read_text())
            for names, value in self.config.items():
                *parents, last = names.split(".")
                place = config
                for name in parents:
                    place = place[name]
                place[last] = value
                if value is ...:
                    del place[last]
            tiny.write(path, config)

    def check(self, home: Path, capsys: pytest.CaptureFixture) -> None:
        """Run the command: one line must answer it, and no file may appear or change."""
        self.prepare()
        before = everything(home.parent)
        with self.fails():
            line = refused(capsys, self.command)
        assert re.search(self.said, line), line
        after = everything(home.parent)
        assert "home/ran" not in after
        new = {path for path in after.keys() - before.keys() if after[path] is not None}  # an empty folder is no file
        changed = {path for path in before if path not in after or after[path] != before[path]}
        if self.begun:
            new = {path for path in new if ".part" in path}
            changed -= {f"home/runs/vae/{name}" for name in ("config.yaml", "metrics.csv", "curves.png")}
        assert (new, changed) == (set(), set()), (new, changed)


LAST = "runs/vae/last.ckpt"
VAE = "train fit -c vae.yaml --name new"
GAN = "train fit -c gan.yaml --name new"
RESUME = "train fit -c vae.yaml --ckpt_path last --model.budget 192"
PHOTOS = "train fit -c photos.yaml"
CELEBA = "train fit -c celeba.yaml"
DATA, MODEL = "data.init_args", "model.init_args"


def of_vae(names: str, value: Any, said: str) -> Case:
    """Return a case of a wrong value in the config of stage 1."""
    return Case(VAE, said, config={names: value})
