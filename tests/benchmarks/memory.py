"""Measure parameters and peak memory of a training step of both stages, by preset.

    python -m tests.benchmarks.memory --preset base --size 256 --batch_size 2
    python -m tests.benchmarks.memory --preset base --size 256 --batch_size "[1, 2]"    # fixed part and images apart

On a GPU it is what PyTorch allocated at most; on a CPU (Linux) the growth of the process's peak resident memory. Each
step runs in a process of its own, with Adam's moments in place. In stage 2 it is the larger of the peaks of a step with
gradient penalties and of one with the spread term, which has four draws of each z.
"""

import contextlib
import io
import math
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import auto_cli
from torch import nn
from torch.utils.data import DataLoader

import train
from degrain.models.core.layers import PyramidConfig
from degrain.models.gan.denoiser import Denoiser
from degrain.models.gan.discriminator import Discriminator
from degrain.models.inference.checkpoint import Card
from degrain.models.training import GANModule, VAEModule
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.network import VAE

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = {
    "small": {"vae": ("vae_celeba64",), "gan": ("gan_celeba64",)},
    "base": {"vae": ("vae_celeba64", "base"), "gan": ("gan_celeba64", "base_gan")},
}
STAGES = ("vae", "gan")
EVERY = {
    "vae": [{}],
    "gan": [{"penalty_every": 1, "spread_every": 2}, {"penalty_every": 2, "spread_every": 1}],  # the second step's
}
GIB = 2**30
NOISE = 4 * 2**20  # bytes: peaks of the same batch differ by up to so much


def command(preset: str, stage: str) -> list[str]:
    """Return the arguments of train.py that name a preset's configs."""
    return ["fit", *(part for name in PRESETS[preset][stage] for part in ("-c", str(CONFIGS / f"{name}.yaml")))]


@cache
def resolved(preset: str, stage: str) -> dict[str, Any]:
    """Return the config that train.py makes of a preset's files."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit), warnings.catch_warnings(action="ignore"):
        train.main([*command(preset, stage), "--print_config"])
    return yaml.safe_load(out.getvalue())


def pyramid(settings: dict[str, Any], size: int) -> PyramidConfig:
    """Return a preset's pyramid without the widths for which images of a size have no level: at 32 pixels the last."""
    levels = int(math.log2(size // settings["patch"] // 4)) + 1
    return PyramidConfig(**settings | {"widths": settings["widths"][:levels]})


def networks(preset: str, size: int) -> dict[str, nn.Module]:
    """Return a preset's networks, without memory for their weights."""
    gan = resolved(preset, "gan")["model"]["init_args"]
    with torch.device("meta"):
        return {
            "vae": VAE(size, card(preset, size).vae_config()),
            "denoiser": Denoiser(size, pyramid(gan["denoiser"], size)),
            "discriminator": Discriminator(size, pyramid(gan["discriminator"], size)),
        }


def parameters(net: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in net.parameters())


def card(preset: str, size: int) -> Card:
    """Return the card of an untrained stage 1."""
    net = resolved(preset, "vae")["model"]["init_args"]["net"]
    return Card("vae", size, 0, net | {part: asdict(pyramid(net[part], size)) for part in ("encoder", "decoder")})


def untrained_vae(preset: str, size: int, folder: str) -> str:
    """Write a checkpoint of an untrained stage 1 and return its path."""
    made, path = card(preset, size), f"{folder}/vae.ckpt"
    parts = {"vae": VAE(size, made.vae_config()), "prior": LatentPrior(made.vae["latent"])}
    state = {f"{part}.{name}": value for part, net in parts.items() for name, value in net.state_dict().items()}
    torch.save({"degrain": asdict(made), "state_dict": state}, path)
    return path


def resident(which: Literal["VmRSS", "VmHWM"]) -> int:
    """Return the bytes in memory of this process, now or at most; getrusage's maximum is the parent's, if larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))


def bare_trainer(**settings: Any) -> pl.Trainer:
    """Return a Trainer of one process that takes training steps alone: no validation, files or bars."""
    return pl.Trainer(
        devices=1,
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def build(
    preset: str, stage: str, size: int, images: int, vae: str | None = None, **settings: Any
) -> VAEModule | GANModule:
    """Return a preset's module, to be trained on so many images in one leg by a Trainer without a data module.

    Args:
        preset: whose networks and settings.
        stage: `vae` or `gan`.
        size: image side in pixels.
        images: budget.
        vae: checkpoint of stage 1, for stage 2.
        settings: of the module, in place of the preset's.
    """
    given = resolved(preset, stage)["model"]["init_args"] | {"budget": images, "validate_every": images} | settings
    if stage == "vae":
        module = VAEModule(size, **given | {"net": card(preset, size).vae_config()})
    else:
        pyramids = {net: pyramid(given[net], size) for net in ("denoiser", "discriminator")}
        module = GANModule(size=size, **given | pyramids | {"vae": vae})
    module.on_train_epoch_end = lambda: None  # no prior is fitted: there is no data module
    return module


def step(preset: str, stage: str, size: int, batch_size: int, vae: str, **every: int) -> int:
    """Return the peak memory of the second of two training steps in bytes, measured in this process.

    Args:
        preset: whose networks and precision.
        stage: which training step.
        size: image side in pixels.
        batch_size: images of the step.
        vae: checkpoint of stage 1, for stage 2.
        every: penalty_every and spread_every of stage 2.
    """
    before = resident("VmRSS")
    module = build(preset, stage, size, 2 * batch_size, vae, **every)
    images = torch.randint(256, (batch_size, 3, size, size), dtype=torch.uint8)
    batches = DataLoader([{"image": images}] * 2, batch_size=None)
    bare_trainer(precision=resolved(preset, stage)["trainer"]["precision"]).fit(module, batches)
    assert module.images_seen == 2 * batch_size
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM") - before


def measured(preset: str, stage: str, size: int, batch_size: int, vae: str, **every: int) -> int:
    """Return the same, measured in a fresh process."""
    arguments = (preset, stage, size, batch_size, vae)
    code = f"from tests.benchmarks.memory import step; print(step(*{arguments!r}, **{every!r}))"
    # The C library is told to give memory back at once, or freed blocks would count as used.
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=settings, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return int(done.stdout.split()[-1])


def apart(sizes: list[int], peaks: list[int]) -> str:
    """Return the fixed part and the memory of an image as text, by the peaks in bytes of batches in rising order.

    On a CPU a few images may be less than what a step loads anyway, or than the noise of the measurement.
    """
    growth = peaks[-1] - peaks[0]
    if growth < NOISE:
        return f"{sizes[-1] - sizes[0]} images more do not show beside the fixed part; give larger batches"
    each = growth / (sizes[-1] - sizes[0])
    return f"{(peaks[0] - sizes[0] * each) / GIB:.2f} GiB and {each / 2**20:.1f} MiB an image"


def main(
    preset: Literal["small", "base"] = "small",
    size: Literal[32, 64, 128, 256] = 64,
    batch_size: int | list[int] = 2,
    stage: Literal["vae", "gan", "both"] = "both",
) -> None:
    """Print parameters and the peak memory of a training step.

    Args:
        preset: whose networks and precision.
        size: image side in pixels.
        batch_size: images of the step; of two or more, the first and the last give the fixed part and bytes per image.
        stage: which training step.
    """
    sizes = sorted(set(batch_size if isinstance(batch_size, list) else [batch_size]))
    if not sizes or sizes[0] < 1:
        sys.exit(f"error: --batch_size {batch_size}: give at least 1 image")
    counts = {name: f"{parameters(net) / 1e6:.1f} M" for name, net in networks(preset, size).items()}
    where = "GPU" if torch.cuda.is_available() else "CPU"
    print(f"{preset}, {size} pixels, {where}. Parameters: " + ", ".join(f"{n} {c}" for n, c in counts.items()))
    with tempfile.TemporaryDirectory() as folder:
        vae = untrained_vae(preset, size, folder)
        for name in STAGES if stage == "both" else (stage,):
            peaks = [max(measured(preset, name, size, images, vae, **e) for e in EVERY[name]) for images in sizes]
            for images, peak in zip(sizes, peaks, strict=True):
                print(f"{name}: {images} images, peak {peak / GIB:.2f} GiB", flush=True)
            if len(sizes) > 1:
                print(f"{name}: {apart(sizes, peaks)}", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
