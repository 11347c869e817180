"""What users do wrong ends in one line, exit code 2 and nothing changed; what can be used is used, and said once."""

import errno
import io
import json
import os
import pickle
import re
import resource
import shlex
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

import sample
import train
from data.celeba import ARCHIVE, IMAGES, PARTITION
from models.training.cli import CLI
from tests import tiny
from tests.conftest import Trained

CACHES = ("cache", "own-cache")
"""Beside the user's folder, and no part of what must stay as it is: a cache of good data is of use to the next try."""


@pytest.fixture(scope="module")
def template(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a run of each stage and its export, photographs, CelebA, and a config for each."""
    home = tmp_path_factory.mktemp("template")
    for stage in ("vae", "gan"):
        run = home / "runs" / stage
        shutil.copytree(getattr(trained, stage), run, ignore=shutil.ignore_patterns("wandb", "pictures"))
        sample.main([str(run / "last.ckpt"), "--export", str(home / f"{stage}.safetensors")])
    for name in ("train/0.png", "train/1.png", "train/2.jpg", "valid/3.png"):
        photograph(home / "photos" / name, 40)
    lines = [f"{number:06d}.jpg {split}" for number, split in enumerate("0012", start=1)]
    for line in lines:
        photograph(home / "celeba" / IMAGES / line.split()[0], (178, 218))
    (home / "celeba" / PARTITION).write_text("\n".join(lines))
    for stage, write in (("vae", tiny.vae_config), ("gan", tiny.gan_config)):
        config = write(Path())
        config["data"]["init_args"]["cache"] = "../cache"
        tiny.write(home / f"{stage}.yaml", config)
    for name, kind in (("photos", "ImageFolder"), ("celeba", "CelebA")):
        options = {"root": name, "size": 32, "batch_size": tiny.BATCH, "cache": "../own-cache"}
        data = {"class_path": f"data.datamodule.{kind}", "init_args": options}
        tiny.write(home / f"{name}.yaml", tiny.vae_config(Path()) | {"name": name, "data": data})
    return home


@pytest.fixture(scope="module", autouse=True)
def one_parser() -> Iterator[None]:
    """The parser of train.py is the same for every command line, and making it is half of a case's time."""
    made: dict[str, Any] = {}
    set_up = CLI.setup_parser

    def set_up_once(self: CLI, *args: Any) -> None:
        if not made:
            before = set(vars(self))
            set_up(self, *args)
            made.update({name: value for name, value in vars(self).items() if name not in before})
        vars(self).update(made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLI, "setup_parser", set_up_once)
        yield


@pytest.fixture
def home(template: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to be in."""
    (tmp_path / "cache").symlink_to(trained.root / "cache")
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "home"))
    return tmp_path / "home"


def photograph(path: Path, size: int | tuple[int, int]) -> None:
    """A file of noise."""
    width, height = (size, size) if isinstance(size, int) else size
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def everything(folder: Path) -> dict[str, bytes | None]:
    """The content of every file below a folder, the caches aside, by its path; of a folder None."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))}
    own = {name: path for name, path in paths.items() if not name.startswith(CACHES)}
    # A lock of a cache is empty and stays: were it removed, two processes could hold one each.
    return {name: path.read_bytes() if path.is_file() else None for name, path in own.items() if path.suffix != ".lock"}


def refused(capsys: pytest.CaptureFixture, command: str) -> str:
    """The one line of standard error that a command line ends with, exit code 2."""
    script, *args = shlex.split(command)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        {"train": train, "sample": sample}[script].main(args)
    line = capsys.readouterr().err
    assert caught.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1, line
    assert len(line) < 400 and "Subtypes" not in line and "object at 0x" not in line
    return line.strip()


# --- how a folder is spoilt, and how a disk fails


def holding(path: str, content: bytes) -> Callable[[], Any]:
    """A file with other content."""
    return lambda: Path(path).write_bytes(content)


def cut(path: str) -> Callable[[], Any]:
    """A file with its second half lost."""
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[: Path(path).stat().st_size // 2])


def flipped(path: str, place: int) -> Callable[[], Any]:
    """A file with a byte changed, counted from its end; from its start where negative."""

    def spoil() -> None:
        content = bytearray(Path(path).read_bytes())
        content[-place] ^= 0x81
        Path(path).write_bytes(content)

    return spoil


def without(path: str) -> Callable[[], Any]:
    """A file removed."""
    return lambda: Path(path).unlink()


def folders(*paths: str) -> Callable[[], Any]:
    """New folders, which take the place of files."""

    def spoil() -> None:
        for path in map(Path, paths):
            path.unlink(missing_ok=True)
            path.mkdir(parents=True)

    return spoil


def zipped(folder: str = IMAGES, encrypted: bool = False) -> Callable[[], Any]:
    """CelebA's images in the zip, below a folder."""

    def spoil() -> None:
        with zipfile.ZipFile(Path("celeba", ARCHIVE), "w") as archive:
            for path in sorted(Path("celeba", IMAGES).iterdir()):
                archive.writestr(f"{folder}/{path.name}", path.read_bytes())
            for member in archive.infolist():
                member.flag_bits |= encrypted
        shutil.rmtree(Path("celeba", IMAGES))

    return spoil


class RunsCode:
    """What a pickle can hold: it would leave a folder `ran`."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def evil(path: str, write: Callable[[Any, str], Any] = torch.save) -> Callable[[], Any]:
    """A checkpoint that runs code when it is unpickled."""
    return lambda: write({"degrain": RunsCode(), "state_dict": {}}, path)


def plain_pickle(thing: Any, path: str) -> None:
    """Python's own format."""
    Path(path).write_bytes(pickle.dumps(thing))


def foreign_weights() -> None:
    """A safetensors file of someone else."""
    safetensors.torch.save_file({"w": torch.zeros(2)}, "foreign.safetensors", {"format": "pt"})


def changed_card(path: str, **fields: Any) -> Callable[[], Any]:
    """A checkpoint whose card says something else."""

    def spoil() -> None:
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["degrain"] |= fields
        torch.save(checkpoint, path)

    return spoil


@contextmanager
def denied(name: str) -> Iterator[None]:
    """Files and folders of a name may not be read, nor anything below a folder of that name be written.

    The system calls are played: for root, as whom tests may run, permissions do not hold.
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
    """No file reaches the disk: with delayed allocation that is when a full one shows."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        yield


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """Files of at most so many bytes: a write beyond really fails, in the midst of a library's writer, too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- the cases


@dataclass(frozen=True)
class Case:
    """Something that a user does wrong.

    Args:
        command: the command line, in the user's folder.
        said: of the line that answers it, as a regular expression.
        spoil: changes the folder before.
        config: values of the command's first config, by dotted names; `...` takes one out.
        fails: holds while the command runs.
        begun: whether a run had begun, whose config is written anew and whose files may be there.
    """

    command: str
    said: str
    spoil: Callable[[], Any] = lambda: None
    config: dict[str, Any] = field(default_factory=dict)
    fails: Callable[[], AbstractContextManager] = nullcontext
    begun: bool = False

    def prepare(self) -> None:
        """Make the folder what the case starts from."""
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


LAST = "runs/vae/last.ckpt"
VAE = "train fit -c vae.yaml --name new"
GAN = "train fit -c gan.yaml --name new"
PHOTOS = "train fit -c photos.yaml"
CELEBA = "train fit -c celeba.yaml"
DATA, MODEL = "data.init_args", "model.init_args"


def of_vae(names: str, value: Any, said: str) -> Case:
    """A value in the config of stage 1."""
    return Case(VAE, said, config={names: value})


OF_DATA = {
    "absent": Case(f"{PHOTOS} --data.root absent", "no folder absent; pass --data.root DIR"),
    "a file, no folder": Case(f"{PHOTOS} --data.root vae.yaml", "no folder vae.yaml; pass --data.root"),
    "empty": Case(
        f"{PHOTOS} --data.root empty --wandb offline", r"no train images .* in empty; add some", folders("empty")
    ),
    "an empty image": Case(
        PHOTOS,
        r"photos/train/0.png: not a readable image \(the file is empty\); --data.skip_corrupt true leaves such out",
        holding("photos/train/0.png", b""),
    ),
    "a truncated image": Case(PHOTOS, "train/2.jpg: not a readable image .*skip_corrupt", cut("photos/train/2.jpg")),
    "a text as image": Case(
        PHOTOS, r"train/1.png: .*of no known format\).*skip_corrupt", holding("photos/train/1.png", b"<html>")
    ),
    "no image that can be read": Case(
        f"{PHOTOS} --data.skip_corrupt true", "none of its 1 images is readable", holding("photos/valid/3.png", b"")
    ),
    "too small": Case(f"{PHOTOS} --data.crop c108", "0.png: 40x40 is smaller than the crop; change --data.crop"),
    "unreadable": Case(
        PHOTOS, r"1.png: cannot be read \(Permission denied\); check that", fails=partial(denied, "1.png")
    ),
    "an unreadable folder": Case(
        PHOTOS, r"photos/train: cannot be read \(Permission denied\); check that", fails=partial(denied, "train")
    ),
    "a link to nothing": Case(
        PHOTOS,
        r"photos/train/gone.png: cannot be read \(No such file or directory\); check that",
        lambda: Path("photos/train/gone.png").symlink_to("nowhere.png"),
    ),
    "directories named .jpg": Case(
        f"{PHOTOS} --data.root odd", "no train images .* in odd", folders("odd/train/0.jpg", "odd/valid/1.jpg")
    ),
    "nothing to validate on": Case(
        f"{PHOTOS} --data.root photos/train --data.valid_share 1e-9",
        "no valid images .*; add some or change --data.valid",
    ),
    "a share of 1.5": Case(f"{PHOTOS} --data.valid_share 1.5", "valid_share 1.5 must be between 0 and 1"),
    "CelebA in a directory named .jpg": Case(
        CELEBA, r"000001.jpg: cannot be read \(Is a directory\); check that", folders(f"celeba/{IMAGES}/000001.jpg")
    ),
    "CelebA without an image": Case(
        CELEBA, r"1 of 4 images missing .*000002.jpg\); pass --data.partial", without(f"celeba/{IMAGES}/000002.jpg")
    ),
    "no folder of CelebA": Case(
        f"{CELEBA} --data.root absent", "no folder absent; pass --data.root DIR or --data.down"
    ),
    "CelebA without images": Case(
        CELEBA, f"no images in celeba/{IMAGES}; fetch", lambda: (zipped()(), folders(f"celeba/{IMAGES}")())
    ),
    "CelebA without a folder of images": Case(
        CELEBA, f"neither {IMAGES}/ nor {ARCHIVE} in celeba; fetch", lambda: shutil.rmtree(f"celeba/{IMAGES}")
    ),
    "CelebA without its splits": Case(CELEBA, f"no {PARTITION} in celeba; fetch", without(f"celeba/{PARTITION}")),
    "CelebA with a web page for its splits": Case(
        CELEBA, "line 1: not 'NAME 0|1|2'; fetch the file again", holding(f"celeba/{PARTITION}", b"<html>")
    ),
    "CelebA with unreadable splits": Case(
        CELEBA, rf"{PARTITION}: cannot be read \(Permission denied\)", fails=partial(denied, PARTITION)
    ),
    "HTML as zip": Case(
        CELEBA,
        "is a web page .quota.., not a zip; fetch it again",
        lambda: (zipped()(), holding(f"celeba/{ARCHIVE}", b"\n<!DOCTYPE html>")()),
    ),
    "a truncated zip": Case(
        CELEBA, "is damaged or cut off .*; fetch it again", lambda: (zipped()(), cut(f"celeba/{ARCHIVE}")())
    ),
    "a damaged image in a zip": Case(
        CELEBA, "000001.jpg: damaged in the zip", lambda: (zipped()(), flipped(f"celeba/{ARCHIVE}", -1000)())
    ),
    "an unreadable zip": Case(
        CELEBA, rf"{ARCHIVE}: cannot be read \(Permission denied\)", zipped(), fails=partial(denied, ARCHIVE)
    ),
    "a zip with a password": Case(CELEBA, "000001.jpg: damaged in the zip .*encrypted", zipped(encrypted=True)),
    "a zip whose paths climb out": Case(
        CELEBA, r"its path ../../000001.jpg leads out of it; fetch it again", zipped("../..")
    ),
    "a zip with absolute paths": Case(CELEBA, r"its path /etc/000001.jpg leads out of it", zipped("/etc")),
    "masked photographs that are a pickle": Case(
        "train test -c photos.yaml --ckpt_path runs/vae/last.ckpt --evaluation.off true",
        "masked images evil.npz: .*; give --data.root a .npz",
        evil("evil.npz", plain_pickle),
        {
            "data": {
                "class_path": "data.datamodule.MaskedImages",
                "init_args": {"root": "evil.npz", "size": 32, "cache": "../own-cache"},
            }
        },
    ),
    "no batch": Case(f"{VAE} --data.batch_size 0", "batch_size 0"),
    "no images in a piece": Case(f"{VAE} --data.micro_batch_size 0", "micro_batch_size 0: at least 1 image"),
    "no batch of evaluation": of_vae(f"{DATA}.eval_batch_size", 0, "eval_batch_size 0"),
    "no portraits": of_vae(f"{DATA}.count", 0, "count 0 is not in 1.."),
    "noise on no region": of_vae(f"{DATA}.noise", {"beard": 0.1}, "unknown region 'beard'; choose from"),
    "too much noise": of_vae(f"{DATA}.noise", {"hair": 0.5}, "noise 0.5 on hair is not in 0..0.1"),
    "a negative number of workers": Case(f"{VAE} --data.num_workers -1", "--data.num_workers -1"),
    "no validation": Case(f"{VAE} --data.limit_valid 0", "--data.limit_valid 0: at least 1, or null"),
    "a cache that is a file": Case(f"{VAE} --data.cache vae.yaml", "cache: cannot build vae.yaml/.*--data.cache DIR"),
}

OF_CONFIGS = {
    "no file": Case("train fit -c absent.yaml", "absent.yaml"),
    "no YAML": Case(VAE, "Problems parsing config", holding("vae.yaml", b"model: [")),
    "a list": Case(
        VAE, "no mapping of names to values; take one of configs/", holding("vae.yaml", b"- name\n- model\n")
    ),
    "an empty file": Case(VAE, "no mapping of names to values; take one of configs/", holding("vae.yaml", b"")),
    "a binary file": Case(f"train fit -c {LAST} --name new", f"{LAST} is no text; give a YAML file"),
    "a folder": Case("train fit -c runs --name new", "runs"),
    "none": Case("train fit --name new", "model"),
    "an unreadable file": Case(
        VAE, "vae.yaml.*Permission denied|vae.yaml.*readable", fails=partial(denied, "vae.yaml")
    ),
    "a tag that would run code": Case(
        VAE,
        "Problems parsing config|could not determine",
        holding("vae.yaml", b"name: !!python/object/apply:os.mkdir [ran]"),
    ),
    "no subcommand": Case("train", "subcommand|fit"),
    "an unknown subcommand": Case("train tain", "tain.*fit.*validate.*test"),
    "an unknown key": of_vae("nmae", 1, "`nmae`; did you mean `name`"),
    "an unknown key of the model": of_vae(f"{MODEL}.budgte", 1, "`budgte`; did you mean `budget`"),
    "an unknown key of the data": of_vae(f"{DATA}.batchsize", 1, "`batchsize`; did you mean `batch_size`"),
    "an unknown key of a network": of_vae(f"{MODEL}.net.latents", 1, "`latents`; did you mean `latent`"),
    "an unknown key of a pyramid": of_vae(f"{MODEL}.net.encoder.widhts", 1, "`widhts`; did you mean `widths`"),
    "an unknown key of the Trainer": of_vae("trainer.presicion", 1, "`presicion`; did you mean `precision`"),
    "a typo on the command line": Case(f"{VAE} --nmae 1", "`nmae`; did you mean `name`"),
    "a typo of the model on the command line": Case(f"{VAE} --model.budgte 1", "`budgte`; did you mean `budget`"),
    "a typo of the data on the command line": Case(f"{VAE} --data.batchsize 1", "did you mean `batch_size`"),
    "a typo of a network on the command line": Case(f"{VAE} --model.net.encoder.widhts 1", "did you mean `widths`"),
    "a typo of the Trainer on the command line": Case(f"{VAE} --trainer.presicion 1", "did you mean `precision`"),
    "a parameter beside init_args": of_vae("model.init_arg", 1, "below `init_args`, its parameters"),
    "no such model": of_vae("model.class_path", "models.training.VEAModule", "VEAModule"),
    "no such data": of_vae("data.class_path", "data.datamodule.Portrait", "Portrait"),
    "a model that is none": of_vae("model.class_path", "torch.nn.Linear", "torch.nn.Linear"),
    "a string for a number": of_vae(f"{MODEL}.budget", "many", "budget"),
    "a string in a network": of_vae(f"{MODEL}.net.encoder.patch", "x", "patch"),
    "a string in the data": of_vae(f"{DATA}.batch_size", "x", "batch_size"),
    "a string in the Trainer": of_vae("trainer.log_every_n_steps", "x", "Expected a <class 'int'>. Got value: x"),
    "a list for the networks": of_vae(
        f"{MODEL}.net", [1, 2], r"model.net: \[1, 2\] is no mapping; give it latent, encoder, decoder"
    ),
    "a number for a pyramid": of_vae(f"{MODEL}.net.encoder", 8, "model.net.encoder: 8 is no mapping; give it widths"),
    "a fraction of images": of_vae(f"{MODEL}.budget", 1.5, "budget"),
    "a word of tracking": of_vae("wandb", "sometimes", "wandb"),
    "no name": Case("train fit -c vae.yaml", "name None: give the run a name", config={"name": ...}),
    "a name with a slash": Case("train fit -c vae.yaml --name a/b", "name a/b: give the run a name without slashes"),
    "a name that climbs out": Case("train fit -c vae.yaml --name ..", r"name \.\.: give the run a name"),
    "48 pixels": of_vae(f"{DATA}.size", 48, "image size 48: must be 32, 64, 128 or 256"),
    "no pixels": of_vae(f"{DATA}.size", 0, "image size 0: must be 32"),
    "more widths than levels": of_vae(f"{MODEL}.net.encoder.widths", [8] * 9, "9 widths, but 32 pixels"),
    "a width of 0": of_vae(f"{MODEL}.net.encoder.widths", [0], "widths and blocks must be positive"),
    "no latents": of_vae(f"{MODEL}.net.latent", 0, "latent 0 and neck 64: must be at least 1"),
    "more latents than memory": of_vae(f"{MODEL}.net.latent", 10**12, "out of memory .*; take a smaller network"),
    "a floor above the start": of_vae(f"{MODEL}.net.std_floor", 2.0, "std_floor 2.0 must lie between 0 and std_start"),
    "no budget": of_vae(f"{MODEL}.budget", 0, r"budget \(0\)"),
    "a share above 1": of_vae(f"{MODEL}.decay", 1.5, r"decay \(1.5\)"),
    "a negative rate": of_vae(f"{MODEL}.learning_rate", -1.0, r"learning_rate \(-1.0\) must be positive"),
    "a rate that is no number": of_vae(
        f"{MODEL}.learning_rate", float("nan"), r"learning_rate \(nan\) must be positive"
    ),
    "a KL weight with a learned std": of_vae(
        f"{MODEL}.rate_weight", 0.5, r"rate_weight \(0.5\) with net.std pixel: .*take rate_weight 1 or net.std fixed"
    ),
    "a balanced gradient with a fixed std": Case(
        f"{VAE} --model.net.std fixed --model.gradient faithful", "net.std is fixed; take gradient plain"
    ),
    "free bits of no posterior": Case(
        f"{VAE} --model.free_bits 1 --model.regulariser mmd", "take free_bits 0 or regulariser posterior"
    ),
    "a spread term with an L2 loss": Case(f"{GAN} --model.loss l2", "take spread_weight 0 or another loss"),
    "a spread term without noise": Case(f"{GAN} --model.noise false", "take spread_weight 0 or noise true"),
    "a ratio of one draw": Case(f"{GAN} --model.ratio_draws 1", r"ratio_draws \(1\) at least 2"),
    "an accelerator that is none": Case(f"{VAE} --trainer.accelerator abacus", "abacus"),
    "a precision that is none": Case(f"{VAE} --trainer.precision 12", "precision"),
    "a negative seed": Case(f"{VAE} --seed -1", "--seed -1 is not in bounds, numpy accepts from 0 to 4294967295"),
    "a seed of the model": of_vae(f"{MODEL}.seed", 1, "no `seed` here: --seed N .* of model, data and Lightning"),
    "a seed of the data": of_vae(f"{DATA}.seed", 1, "no `seed` here: --seed N"),
    "Lightning's seed": of_vae("seed_everything", 1, "no `seed_everything` here: --seed N"),
    "a seed of the model on the command line": Case(f"{VAE} --model.seed 1", "no `seed` here: --seed N"),
    "a seed of the data on the command line": Case(f"{VAE} --data.seed 1", "no `seed` here: --seed N"),
    "Lightning's seed on the command line": Case(f"{VAE} --seed_everything 1", "no `seed_everything` here: --seed N"),
    "a name of another recipe": of_vae(f"{MODEL}.vae", 1, "unknown name `vae`; --help lists all names"),
    "a name that is far down": of_vae(f"{MODEL}.widths", [8], "`widths`; did you mean `net.decoder.widths`"),
    "a name of the model at the top": Case(f"{VAE} --validate_evry 8", "did you mean `model.validate_every`"),
    "a typo of the schedule": of_vae(f"{MODEL}.learnin_rate", 1, "`learnin_rate`; did you mean `learning_rate`"),
    "a class path from before": of_vae(
        "model.class_path", "models.modules.VAEModule", "models.modules.VAEModule is now models.training.VAEModule"
    ),
    "a toy's class path from before": of_vae(
        "model.class_path", "models.modules.CollapseModule", "is now models.toys.CollapseModule; change class_path"
    ),
    "a class path from before on the command line": Case(
        f"{VAE} --model models.modules.PlainGANModule", "PlainGANModule is now models.training.PlainGANModule"
    ),
    "no devices": Case(f"{VAE} --trainer.devices 0", "devices"),
    "the Trainer's clipping": Case(
        f"{GAN} --trainer.gradient_clip_val 1", "gradient_clip_val 1.0: take model.gradient_c"
    ),
    "the Trainer's accumulation": Case(
        f"{VAE} --trainer.accumulate_grad_batches 2", "accumulate_grad_batches 2: a step is data.batch_size images"
    ),
}

RESUME = "train fit -c vae.yaml --ckpt_path last --model.budget 192"
OF_CHECKPOINTS = {
    "absent": Case(f"{GAN} --model.vae absent.ckpt", "checkpoint absent.ckpt: no such file; train it first"),
    "none to test": Case(
        "train test -c vae.yaml --name new", "runs/new/last.ckpt: no such file; train it first or correct the path"
    ),
    "none to validate": Case("train validate -c vae.yaml --name new", "runs/new/last.ckpt: no such file"),
    "none to sample": Case("sample absent.ckpt", "absent.ckpt: no such file; train it first or correct the path"),
    "a folder": Case("sample runs/vae", "checkpoint runs/vae: no such file"),
    "empty": Case(RESUME, f"{LAST}: cannot be read .*; take a copy", holding(LAST, b"")),
    "truncated": Case(RESUME, f"{LAST}: cannot be read .*: truncated or no checkpoint; take a copy", cut(LAST)),
    "truncated stage 1": Case(GAN, f"{LAST}: cannot be read .*; take a copy", cut(LAST)),
    "truncated, to sample": Case(f"sample {LAST}", f"{LAST}: cannot be read .*; take a copy", cut(LAST)),
    "unreadable": Case(
        f"sample {LAST}", rf"{LAST}: cannot be read \(Permission denied\)", fails=partial(denied, "last.ckpt")
    ),
    "of stage 2 for stage 1": Case(
        f"{VAE} --ckpt_path runs/gan/last.ckpt", "gan/last.ckpt: its stage is gan, the config says vae"
    ),
    "of stage 1 for stage 2": Case(f"{GAN} --ckpt_path {LAST}", "its stage is vae, the config says gan"),
    "of another size": Case(f"{VAE} --ckpt_path {LAST} --data.size 64", "its size is 32, the config says 64"),
    "of stage 1 in another size": Case(f"{GAN} --data.size 64", "made for 32 pixels, the data have 64; set data.size"),
    "of other latents": Case(
        f"{VAE} --ckpt_path {LAST} --model.net.latent 5", "its vae.latent is 4, the config says 5"
    ),
    "of another decoder": Case(
        f"{VAE} --ckpt_path {LAST} --model.net.decoder.patch 2", "its vae.decoder.patch is 4, the config says 2"
    ),
    "of another denoiser": Case(
        f"{GAN} --ckpt_path runs/gan/last.ckpt --model.denoiser.widths [8,4]",
        r"its denoiser.widths is \(8, 8\), the config says \(8, 4\)",
    ),
    "of another discriminator": Case(
        f"{GAN} --ckpt_path runs/gan/last.ckpt --model.discriminator.widths [8,4]", "its discriminator.layers."
    ),
    "a text": Case("sample vae.yaml", "vae.yaml: cannot be read .*truncated or no checkpoint"),
    "a zip": Case("sample photos.npz", "photos.npz: cannot be read", lambda: np.savez("photos.npz", a=np.zeros(2))),
    "weights of someone else": Case(
        f"{GAN} --model.vae other.ckpt",
        "other.ckpt: was not written by degrain .*; give the last.ckpt of a run",
        lambda: torch.save({"state_dict": {}}, "other.ckpt"),
    ),
    "of another version": Case(
        f"sample {LAST}", "written by another version of degrain; take that one", changed_card(LAST, novel=1)
    ),
    "of another version's network": Case(
        f"sample {LAST}", "written by another version of degrain; take that one", changed_card(LAST, vae={"latent": 4})
    ),
    "of a toy": Case(
        f"sample {LAST} --export new.safetensors", "is a toy's, which draws no images", changed_card(LAST, stage="toy")
    ),
    "a pickle that would run code": Case(
        f"{VAE} --ckpt_path evil.ckpt", "evil.ckpt: cannot be read .*truncated or no checkpoint", evil("evil.ckpt")
    ),
    "a plain pickle that would run code": Case(
        "sample evil.ckpt", "evil.ckpt: cannot be read", evil("evil.ckpt", plain_pickle)
    ),
    "a pickle named like an export": Case(
        f"{GAN} --model.vae evil.safetensors", "evil.safetensors: cannot be read", evil("evil.safetensors")
    ),
    "a plain pickle named like an export": Case(
        f"{VAE} --ckpt_path evil.safetensors",
        "evil.safetensors: cannot be read",
        evil("evil.safetensors", plain_pickle),
    ),
    "an export named like a checkpoint": Case(
        "sample gan.ckpt", "gan.ckpt: cannot be read", lambda: Path("gan.safetensors").rename("gan.ckpt")
    ),
    "an export with a byte changed": Case(
        "sample gan.safetensors", "gan.safetensors: cannot be read .*; take a copy", flipped("gan.safetensors", 99)
    ),
    "a truncated export": Case("sample gan.safetensors", "gan.safetensors: cannot be read", cut("gan.safetensors")),
    "safetensors of someone else": Case(
        "sample foreign.safetensors", "foreign.safetensors: was not written by degrain", foreign_weights
    ),
    "an export of stage 2 to go on from": Case(
        f"{GAN} --ckpt_path gan.safetensors", "holds no discriminator.*go on from the last.ckpt that it was made of"
    ),
    "an export of stage 1 for stage 2": Case(f"{GAN} --ckpt_path vae.safetensors", "its stage is vae, the config says"),
    "an export of other widths": Case(
        f"{VAE} --ckpt_path vae.safetensors --model.net.encoder.widths [8,4]",
        r"its vae.encoder.widths is \(8, 8\), the config says \(8, 4\)",
    ),
    "an export of another denoiser to test": Case(
        "train test -c gan.yaml --ckpt_path gan.safetensors --model.denoiser.widths [8,4]",
        r"its denoiser.widths is \(8, 8\), the config says \(8, 4\)",
    ),
    "an export of stage 2 for stage 1": Case(f"{VAE} --ckpt_path gan.safetensors", "its stage is gan, the config says"),
}

OF_PLACES = {
    "two runs of one name": Case("train fit -c vae.yaml", "runs/vae exists: go on with it by --ckpt_path last, or"),
    "a run that only began": Case(
        "train fit -c vae.yaml", "runs/vae exists: go on with it by --ckpt_path last, or", without(LAST)
    ),
    "runs that are a file": Case(f"{VAE} --runs vae.yaml", r"vae.yaml/new/.*: cannot be written \(.*\); make room"),
    "a damaged metrics.json": Case(
        "train test -c vae.yaml --evaluation.off true",
        "runs/vae/metrics.json: not as degrain writes it .*; move it away",
        cut("runs/vae/metrics.json"),
    ),
    "a full disk at the first file of a run": Case(
        VAE, r"runs/new/config.yaml: cannot be written \(No space left on device\); make room", fails=full_disk
    ),
    "a full disk at a checkpoint": Case(
        f"{RESUME} --checkpoint_minutes 0",
        rf"{LAST}: cannot be written \(.*\); make room",
        fails=partial(small_files, 20_000),
        begun=True,
    ),
    "a full disk at the cache": Case(
        f"{PHOTOS} --data.cache mine", "cannot build mine/.*No space left.*check space", fails=full_disk
    ),
    "a full disk at samples": Case(
        f"sample {LAST} --n 1 --out new.png", r"new.png: cannot be written \(No space.*make room", fails=full_disk
    ),
    "a full disk at single images": Case(
        f"sample {LAST} --n 4 --out photos/train/ --overwrite true",
        r"photos/train/: cannot be written \(File too large\); make room",
        lambda: photograph(Path("photos/train/000000.png"), 8),
        fails=partial(small_files, 100),
    ),
    "a full disk at an export": Case(
        f"sample {LAST} --export vae.safetensors --overwrite true",
        "vae.safetensors: cannot be written .No space left on device.; make room",
        fails=full_disk,
    ),
    "runs that may not be written": Case(
        VAE, r"runs/new/.*: cannot be written \(Permission denied\).*permissions", fails=partial(denied, "runs")
    ),
    "a cache that may not be written": Case(
        f"{PHOTOS} --data.cache mine",
        "cannot build mine/.*Permission denied.*permissions",
        folders("mine"),
        fails=partial(denied, "mine"),
    ),
    "samples that may not be written": Case(
        f"sample {LAST} --n 1 --out mine/a.png",
        r"mine/a.png: cannot be written \(Permission denied\)",
        folders("mine"),
        fails=partial(denied, "mine"),
    ),
    "single images that may not be written": Case(
        f"sample {LAST} --n 1 --out mine/",
        r"mine/: cannot be written \(Permission denied\)",
        folders("mine"),
        fails=partial(denied, "mine"),
    ),
    "samples below a file": Case(f"sample {LAST} --n 1 --out vae.yaml/s.png", "vae.yaml/s.png: cannot be written"),
    "single images below a file": Case(f"sample {LAST} --n 1 --out vae.yaml/s/", "vae.yaml/s/: cannot be written"),
    "samples that exist": Case(
        f"sample {LAST} --out there.png",
        "there.png exists; choose another --out or pass --overwrite true",
        holding("there.png", b"mine"),
    ),
    "samples that exist by default": Case(
        f"sample {LAST}", "samples.png exists; choose another --out", holding("samples.png", b"mine")
    ),
    "arrays that exist": Case(f"sample {LAST} --out a.npz", "a.npz exists; choose", holding("a.npz", b"mine")),
    "a folder that holds something": Case(f"sample {LAST} --out photos", "photos exists; choose another --out"),
    "an export that exists": Case(
        f"sample {LAST} --export gan.safetensors", "gan.safetensors exists; choose another --export"
    ),
    "an export that exists, and samples": Case(
        f"sample {LAST} --export gan.safetensors --out new.png", "gan.safetensors exists; choose another --export"
    ),
    "an export onto a folder": Case(
        f"sample {LAST} --export dir.safetensors", "dir.safetensors: cannot be written", folders("dir.safetensors")
    ),
    "what exists, with a wrong row": Case(
        f"sample {LAST} --row denoised --out photos --overwrite true", "is of stage vae and has mean, std, sample"
    ),
}

OF_SAMPLING = {
    "no checkpoint": Case("sample", "checkpoint"),
    "none": Case(f"sample {LAST} --n 0", "--n 0 and --batch_size 64 must be at least 1"),
    "a negative seed": Case(f"sample {LAST} --seed -1", "--seed -1 at least 0"),
    "no batch": Case(f"sample {LAST} --batch_size 0", "--batch_size 0 must be at least 1"),
    "a string for a number": Case(f"sample {LAST} --n many", "many"),
    "a row of stage 2": Case(f"sample {LAST} --row denoised", "is of stage vae and has mean, std, sample"),
    "an unknown row": Case(f"sample {LAST} --row meen", "meen"),
    "an unknown prior": Case(f"sample {LAST} --prior other", "other"),
    "a prior that is not there": Case(
        f"sample {LAST} --prior learned", "has standard, fitted; stage 1 learns its prior when its budget is seen"
    ),
    "an unknown ending": Case(f"sample {LAST} --out picture.jpg", "picture.jpg: end it in .png, .npz or"),
    "an unknown ending beside an export": Case(
        f"sample {LAST} --export new.safetensors --out a.jpg", "--out a.jpg: end it in .png, .npz or"
    ),
    "an unknown ending of an export": Case(f"sample {LAST} --export a.ckpt", "a.ckpt: end it in .safetensors"),
    "no such device": Case(f"sample {LAST} --device gpu", "--device gpu cannot be used"),
    "a typo": Case(f"sample {LAST} --sede 1", "unknown name `sede`; did you mean `seed`"),
    "a typo beside an export": Case(f"sample {LAST} --exports a.safetensors", "did you mean `export`"),
    "a row of stage 2 beside an export": Case(
        f"sample {LAST} --export new.safetensors --row denoised", "is of stage vae and has mean, std, sample"
    ),
    "another typo": Case(f"sample {LAST} --batchsize 1", "unknown name `batchsize`; did you mean `batch_size`"),
}

KINDS = {
    "data": OF_DATA,
    "configs": OF_CONFIGS,
    "checkpoints": OF_CHECKPOINTS,
    "places": OF_PLACES,
    "sampling": OF_SAMPLING,
}
CASES = {f"{kind}: {name}": case for kind, cases in KINDS.items() for name, case in cases.items()}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_one_line_and_changes_nothing(home, capsys, name):
    case = CASES[name]
    case.prepare()
    before = everything(home.parent)
    with case.fails():
        line = refused(capsys, case.command)
    assert re.search(case.said, line), line
    after = everything(home.parent)
    assert "home/ran" not in after
    new = {path for path in after.keys() - before.keys() if after[path] is not None}  # an empty folder is no file
    changed = {path for path in before if path not in after or after[path] != before[path]}
    if case.begun:
        new = {path for path in new if ".part" in path}
        changed -= {"home/runs/vae/config.yaml"}
    assert (new, changed) == (set(), set())


@pytest.mark.skipif(os.geteuid() == 0, reason="for root permissions do not hold; above they are played")
@pytest.mark.parametrize(
    ("place", "mode", "command"),
    [
        ("photos/train/1.png", 0o000, PHOTOS),
        ("photos/train", 0o000, PHOTOS),
        (LAST, 0o000, f"sample {LAST}"),
        ("runs", 0o500, VAE),
        ("photos/valid", 0o500, f"sample {LAST} --n 1 --out photos/valid/a.png"),
    ],
)
def test_permissions_that_hold_are_one_line(home, capsys, place, mode, command):
    before = everything(home.parent)
    Path(place).chmod(mode)
    try:
        assert f"{place}" in (line := refused(capsys, command)) and "Permission denied" in line
    finally:
        Path(place).chmod(0o700)
    assert everything(home.parent) == before


# --- what can be used


def test_what_can_be_used_is_used_and_said_once(home, capsys):
    folder = Path("photos/train")
    noise = Image.open("photos/valid/3.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.asarray(noise.convert("L")).astype(np.uint16) * 257)
    for name, image, options in (
        ("grey.png", noise.convert("L"), {}),
        ("grey.jpg", noise.convert("L"), {}),
        ("alpha.png", noise.convert("RGBA"), {}),
        ("deep.png", deep, {}),
        ("turned.jpg", noise, {"exif": exif}),
        ("moving.webp", noise, {"save_all": True, "append_images": [noise.rotate(90)]}),
        ("palette.png", noise.quantize(16), {}),
        ("cmyk.jpg", noise.convert("CMYK"), {}),
    ):
        image.save(folder / name, **options)
    train.main(shlex.split(f"fit -c photos.yaml --model.budget {tiny.BATCH}"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "made plain RGB" in line]
    assert len(lines) == 1 and lines[0].startswith("cache: ../own-cache/folder-photos-")
    assert "-train-32: of 11 images, made plain RGB: " in lines[0]
    assert set(lines[0].split("RGB: ")[1].split(", ")) == {
        "3 grey",
        "1 with alpha (laid over white)",
        "1 of 16 bits (rounded to 8)",
        "1 turned (upright by their EXIF)",
        "1 animated (their first frame)",
        "1 with a palette",
        "1 CMYK",
    }
    train.main(shlex.split(f"fit -c photos.yaml --name again --model.budget {tiny.BATCH}"))
    assert "made plain RGB" not in capsys.readouterr().out
    assert json.loads(Path("runs/again/metrics.json").read_text())["images_seen"] == tiny.BATCH


# --- trust


def test_nothing_goes_to_the_network_unasked(home, monkeypatch):
    """Python's own sockets are watched; W&B's process beside it is told to be offline, see test_tracking.py."""
    asked: list[Any] = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def here(host: Any) -> bool:
        return host in ("localhost", "127.0.0.1", "::1", None)

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not here(address[0]):
            asked.append(address)
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        connect(self, address)

    def resolve_here(host: Any, *args: Any, **options: Any) -> Any:
        if not here(host):
            asked.append(host)
            raise socket.gaierror(socket.EAI_AGAIN, "no network")
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)
    for stage, tracking in (("vae", "off"), ("gan", "offline")):
        train.main(shlex.split(f"fit -c {stage}.yaml --name new-{stage} --model.budget 8 --wandb {tracking}"))
    train.main(shlex.split("test -c gan.yaml --evaluation.off true"))
    sample.main(shlex.split("runs/new-gan/last.ckpt --n 1 --export new.safetensors --out new.png"))
    assert asked == []
    with pytest.raises(OSError):
        socket.create_connection(("example.invalid", 443))
    assert asked == ["example.invalid"]
