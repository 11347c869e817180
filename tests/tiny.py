"""Runs of both stages and the controls that a test can afford: 32-pixel portraits, networks of 8 channels, one core."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import nn

import train
from degrain.models.core.layers import PyramidConfig
from degrain.models.inference.checkpoint import Card
from degrain.models.training.curves import SPEED
from degrain.models.training.metrics_file import MetricsFile
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.network import VAE, VAEConfig

Where = Literal["training", "validation", "checkpoint"]
BATCH, BUDGET, LEG = 8, 96, 48  # images: 12 steps, two legs
NET = {"widths": [8, 8], "patch": 4}


def vae_config(root: Path) -> dict[str, Any]:
    """Return a config of stage 1, as read from a YAML file; everything is written below `root`."""
    data = {"count": 64, "valid_count": 20, "batch_size": BATCH, "eval_batch_size": 12, "size": 32}
    return {
        "name": "vae",
        "runs": str(root / "runs"),
        "wandb": "off",
        "data": {"class_path": "degrain.data.datamodule.Portraits", "init_args": data | {"cache": str(root / "cache")}},
        "model": {
            "class_path": "degrain.models.training.VAEModule",
            "init_args": {
                "net": {"latent": 4, "encoder": dict(NET), "decoder": dict(NET)},
                "budget": BUDGET,
                "validate_every": LEG,
            },
        },
        "trainer": {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
    }


def gan_config(root: Path) -> dict[str, Any]:
    """Return a config of stage 2, on the run `vae`."""
    networks = {"vae": str(root / "runs/vae/last.ckpt"), "denoiser": dict(NET), "discriminator": dict(NET)}
    few = {"budget": BUDGET, "validate_every": LEG, "ratio_images": 15, "ratio_draws": 4, "penalty_every": 2}
    model = {"class_path": "degrain.models.training.GANModule", "init_args": networks | few}
    return vae_config(root) | {"name": "gan", "model": model}


def control_config(root: Path, **settings: Any) -> dict[str, Any]:
    """Return a config of a control of stage 2, without its spread term."""
    config = gan_config(root)
    config["model"]["init_args"] |= {"spread_weight": 0, **settings}
    return config


def plain_gan_config(root: Path) -> dict[str, Any]:
    """Return a config of the GAN from z."""
    networks = {"generator": NET | {"latent": 4}, "discriminator": dict(NET)}
    model = {"budget": BUDGET, "validate_every": LEG, "penalty_every": 2, **networks}
    return vae_config(root) | {"model": {"class_path": "degrain.models.training.PlainGANModule", "init_args": model}}


CONTROLS = {
    "l2": partial(control_config, loss="l2"),
    "mean": partial(control_config, noise=False),
    "plain_gan": plain_gan_config,
}
CONFIGS = {"vae": vae_config, "gan": gan_config, **CONTROLS}


class Levels(nn.Module):
    """Frozen layers with the interface of EfficientNetLevels, always the same, at 1/4 and 1/8 of the side."""

    channels = (4, 6)

    def __init__(self, name: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(len(name))
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(out, into, stride, stride, generator=generator) / (stride * into**0.5), False)
            for into, out, stride in ((3, self.channels[0], 4), (*self.channels, 2))
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        first = F.conv2d(images, self.weights[0], stride=4).tanh()
        return [first, F.conv2d(first, self.weights[1], stride=2)]


def write(path: Path, config: dict[str, Any]) -> Path:
    """Write a config as YAML."""
    path.write_text(yaml.safe_dump(config))
    return path


def run(root: Path, stage: str, *options: str, subcommand: str = "fit") -> Path:
    """Run `train.py SUBCOMMAND` with the tiny config of a stage and options after it; return the config's run folder.

    A test draws no images unless an option asks for it.
    """
    config = CONFIGS[stage](root) | {"name": stage}
    if subcommand == "test" and not any(option.startswith("--evaluation") for option in options):
        options = ("--evaluation.off", "true", *options)
    train.main([subcommand, "-c", str(write(root / f"{stage}.yaml", config)), *options])
    return root / "runs" / config["name"]


def stopped(root: Path, stage: str, callback: str, images: int, *options: str, **settings: str) -> int | str | None:
    """Train with a callback that ends the run early, and return the exit code."""
    callbacks = json.dumps([{"class_path": f"tests.tiny.{callback}", "init_args": {"images": images} | settings}])
    with pytest.raises(SystemExit) as caught:
        run(root, stage, "--name", "mine", "--trainer.callbacks", callbacks, *options)
    return caught.value.code


def untrained_vae(root: Path, size: int) -> Path:
    """Write an untrained checkpoint of stage 1 for images of a size."""
    net = VAEConfig(4, PyramidConfig(**NET), PyramidConfig(**NET))
    vae, prior = VAE(size, net), LatentPrior(4)
    state = {f"vae.{name}": value for name, value in vae.state_dict().items()}
    state |= {f"prior.{name}": value for name, value in prior.state_dict().items()}
    torch.save({"degrain": asdict(Card("vae", size, 0, asdict(net))), "state_dict": state}, root / "untrained.ckpt")
    return root / "untrained.ckpt"


def folder_of_images(path: Path, size: int) -> str:
    """Write a few images of noise to train on."""
    path.mkdir()
    for i in range(24):
        Image.effect_noise((size, size), 40 + i).convert("RGB").save(path / f"{i}.png")
    return str(path)


def checkpoint(folder: Path) -> dict[str, Any]:
    """Return the last checkpoint of a run."""
    return torch.load(folder / "last.ckpt", weights_only=True)


def assert_equal_states(one: Any, other: Any, where: str = "") -> None:
    """Assert that nested containers of tensors are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal_states(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal_states(a, b, f"{where}/{i}")
    else:
        assert one == other, where


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that two finished runs are equal, bit for bit, and that a kill has left no part of a file.

    Compared are weights, averages, optimizer states, position, values, curves and pictures.
    """
    whole, theirs = checkpoint(one), checkpoint(other)
    for state in (whole, theirs):
        state["degrain"]["tracked_run"] = None
    for key in ("state_dict", "optimizer_states", "degrain"):
        assert_equal_states(whole[key], theirs[key], key)
    assert_equal_states(*(json.loads((run / "metrics.json").read_text()) for run in (one, other)), "metrics.json")
    rows = [MetricsFile(run / "metrics.csv").rows() for run in (one, other)]
    for mine, theirs in zip(*rows, strict=True):  # but for terms of some steps alone, which a resumed run has not yet
        shared = {name for name in mine.keys() & theirs.keys() if not name.startswith(SPEED)}
        assert len(shared) > 5
        assert {name: mine[name] for name in shared} == {name: theirs[name] for name in shared}, "metrics.csv"
    drawn = [{path.name: path.read_bytes() for path in (run / "pictures").iterdir()} for run in (one, other)]
    assert drawn[0] == drawn[1], "pictures"
    assert not list(one.rglob(".*.part*"))


def error_of(capsys: pytest.CaptureFixture, command: Callable[[], Any]) -> str:
    """Run a command that must end in one line of standard error and exit code 2, and return the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        command()
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    assert len(error) < 400 and "Subtypes" not in error and "object at 0x" not in error, error
    return error.strip()


def fit_error(capsys: pytest.CaptureFixture, path: Path, *options: str) -> str:
    """Return the line of error of `train.py fit` with a config file."""
    return error_of(capsys, lambda: train.main(["fit", "-c", str(path), *options]))


class AtImages(pl.Callback):
    """Do something to a run when it has seen so many images, before the checkpoint of that step can be written.

    Args:
        images: images seen.
        rank: rank of the process; None for every process.
    """

    def __init__(self, images: int, rank: int | None = None) -> None:
        self.images, self.rank = images, rank

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        if module.images_seen == self.images and self.rank in (None, trainer.global_rank):
            self.act(trainer)

    def act(self, trainer: pl.Trainer) -> None:
        raise NotImplementedError


class Kill(AtImages):
    """End the run there, with nothing saved."""

    def act(self, trainer: pl.Trainer) -> None:
        raise KeyboardInterrupt


class Send(AtImages):
    """Send this process a signal when it has seen so many images.

    Args:
        images: images seen.
        name: name of the signal.
        where: after that training step, in the validation that follows it, or between the write of the next checkpoint
            and its renaming.
        rank: rank of the process; None for every process.
    """

    def __init__(self, images: int, name: str, where: Where = "training", rank: int | None = None) -> None:
        super().__init__(images, rank)
        self.name, self.where = name, where

    def send(self) -> None:
        signal.raise_signal(signal.Signals[self.name])

    def act(self, trainer: pl.Trainer) -> None:
        if self.where == "training":
            self.send()
        elif self.where == "checkpoint":
            replace = os.replace

            def or_not(part: Path, path: Path) -> None:
                if path.name == "last.ckpt":
                    self.send()
                replace(part, path)

            os.replace = or_not  # for a process that ends there

    def on_validation_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        if self.where == "validation" and module.images_seen == self.images:
            self.send()
