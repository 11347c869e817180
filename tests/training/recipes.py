"""Small modules of every recipe, and what tests of the training do with them."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from degrain.data.datamodule import Portraits
from degrain.models.core.layers import PyramidConfig
from degrain.models.gan.generator import GeneratorConfig
from degrain.models.training import GANModule, PlainGANModule, VAEModule
from degrain.models.training.image_module import ImageModule
from degrain.models.training.update import Update
from degrain.models.vae.network import VAEConfig
from tests.conftest import Trained

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = PyramidConfig((8, 8), patch=4)
NET = VAEConfig(4, TINY, TINY)
STEP = 16  # images
CLOCK = {"budget": 10 * STEP, "validate_every": 10 * STEP}


def vae(net: VAEConfig = NET, **settings: Any) -> VAEModule:
    """Return a new module of stage 1."""
    torch.manual_seed(0)
    return VAEModule(32, net, **(CLOCK | settings))


def gan(trained: Trained, **settings: Any) -> GANModule:
    """Return a new module of stage 2 on the trained stage 1."""
    torch.manual_seed(0)
    return GANModule(str(trained.vae / "last.ckpt"), 32, TINY, TINY, **(CLOCK | {"penalty_every": 2} | settings))


def plain(**settings: Any) -> PlainGANModule:
    """Return a new module of the plain GAN."""
    torch.manual_seed(0)
    generator = GeneratorConfig((8, 8), patch=4, latent=4)
    return PlainGANModule(32, generator, TINY, **(CLOCK | {"penalty_every": 2} | settings))


MODULES: dict[str, Callable[..., ImageModule]] = {
    "vae": lambda trained, **settings: vae(**settings),
    "gan": gan,
    "l2": lambda trained, **settings: gan(trained, **{"loss": "l2", "spread_weight": 0.0} | settings),
    "mean": lambda trained, **settings: gan(trained, **{"noise": False, "spread_weight": 0.0} | settings),
    "plain_gan": lambda trained, **settings: plain(**settings),
    "classic": lambda trained, **settings: plain(**{"loss": "classic"} | settings),
}
"""Name -> a function of the trained stage 1 and settings that returns a new module."""


def module_of(trained: Trained, name: str, steps: int, **settings: Any) -> ImageModule:
    """Return a new module whose budget is so many steps, with one validation at its end."""
    return MODULES[name](trained, budget=steps * STEP, validate_every=steps * STEP, **settings)


def portraits(trained: Trained, **settings: Any) -> Portraits:
    """Return 64 images to train on and 20 held-out ones, read from the cache."""
    common = {"size": 32, "batch_size": STEP, "eval_batch_size": 12, "cache": str(trained.root / "cache")}
    return Portraits(**({"count": 64, "valid_count": 20} | common | settings))


def fit(module: ImageModule, data: Portraits, *callbacks: pl.Callback, **options: Any) -> ImageModule:
    """Train to the module's budget, with the settings of train.py, options of the Trainer, and no files."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    legs = {"max_epochs": -1, "reload_dataloaders_every_n_epochs": 1, "use_distributed_sampler": False}
    few = {"enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    here = {"accelerator": "cpu", "devices": 1, "callbacks": list(callbacks)}
    pl.Trainer(**here, **quiet, **legs, **few, **options).fit(module, data)
    return module


def attached(module: ImageModule, world: int = 1, **trainer: Any) -> ImageModule:
    """Give the module as much of a Trainer as its arithmetic needs, and return it."""
    module._fabric = None
    common = {"world_size": world, "global_rank": 0, "should_stop": False, "datamodule": None}
    module._trainer = SimpleNamespace(**common | trainer)
    return module


class Record(pl.Callback):
    """Keep metrics and rates of every step, and the images seen at every validation."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.validations: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: ImageModule, *_) -> None:
        values = {name: value.item() for name, value in trainer.callback_metrics.items()}
        rates = {f"rate{i}": optimizer.param_groups[0]["lr"] for i, optimizer in enumerate(trainer.optimizers)}
        self.steps.append(values | rates | {"images_seen": module.images_seen})

    def on_validation_start(self, trainer: pl.Trainer, module: ImageModule) -> None:
        self.validations.append(module.images_seen)


def rate_of(module: ImageModule) -> float:
    """Return the learning rate of the module's next step."""
    return module.schedule.rate(module.images_seen, module.warm_from)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the module's state."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Return the first part of the name of everything that differs from an earlier state."""
    now = module.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(now[name], before[name])}


def watch(module: ImageModule, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Return a list that grows, as the module trains, by the parts that each optimizer step moves."""
    moves: list[set[str]] = []
    step = Update.step

    def watched(update: Update, unless: Tensor | None = None) -> None:
        before = snapshot(module)
        step(update, unless)
        moves.append(moved(module, before))

    monkeypatch.setattr(Update, "step", watched)
    return moves


def folder_of_runs(trained: Trained, path: Path, stage_1: bool = True) -> Path:
    """Link the cached images and, unless told otherwise, the trained run `vae` into a folder, and return it."""
    (path / "cache").symlink_to(trained.root / "cache")
    if stage_1:
        (path / "runs").mkdir()
        (path / "runs/vae").symlink_to(trained.vae)
    return path


def metrics(folder: Path) -> dict[str, float]:
    """Return the final values of a run."""
    return json.loads((folder / "metrics.json").read_text())


def callback_option(class_path: str, **settings: Any) -> str:
    """Return the option that gives train.py one more callback."""
    return f"--trainer.callbacks+={json.dumps({'class_path': class_path, 'init_args': settings})}"
