"""Train stage 1 beside pythae's own trainer: the same networks, batch and pictures, one thread, core seconds.

    pip install --no-deps pythae==0.1.2 cloudpickle imageio    # what is compared, and what it needs beside our own
    python -m tests.benchmarks.peers
    python -m tests.benchmarks.peers --root DIR                # a folder of photographs instead of drawn portraits

Ours is the command `train.py fit -c configs/vae_celeba64.yaml`, without W&B: with flips, clipping,
skipped steps, logging and its progress lines. Theirs is BaseTrainer with the encoder and the decoder of that config and
its own defaults: Adam, float32, pictures in memory as one float tensor. Its loss is a squared error, with which it
learns no std; with our likelihood instead, the second contender, both minimise the same.

Each round runs every contender once, in a process of its own, which counts its core seconds from one step to another
after some steps to warm up. The table has medians, and medians of the ratios within a round.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

import train
from degrain.models.core.gaussian import Gaussian
from degrain.models.core.layers import PyramidConfig
from degrain.models.vae.likelihood import log_bin_probability
from degrain.models.vae.network import VAE, VAEConfig

try:
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE as PeerVAE
    from pythae.models import VAEConfig as PeerConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback
except ModuleNotFoundError as error:
    way = "pip install --no-deps pythae==0.1.2 cloudpickle imageio"
    sys.exit(f"error: no package {error.name}, which degrain is compared with; {way}")

CONFIG = Path(__file__).parents[2] / "configs" / "vae_celeba64.yaml"
SIZE, BATCH, LATENT = 64, 16, 64  # those of CONFIG
PYRAMID = PyramidConfig(widths=(64, 128, 192), patch=4)
WARM_UP = 20  # steps


class Clock:
    """Measures the core seconds of this process between two steps of a run."""

    def __init__(self, steps: int) -> None:
        self.marks, self.step, self.at = (WARM_UP, WARM_UP + steps), 0, []

    def count(self) -> None:
        """Count a step."""
        self.step += 1
        if self.step in self.marks:
            self.at.append(time.process_time())

    def milliseconds(self) -> float:
        """Return the core time of a step."""
        return 1e3 * (self.at[1] - self.at[0]) / (self.marks[1] - self.marks[0])


class OurClock(pl.Callback):
    """Counts the steps of Lightning's Trainer.

    Attributes:
        clock: of the run in progress; the command line makes the callback.
    """

    clock: Clock

    def on_train_batch_end(self, *_) -> None:
        self.clock.count()


class PeerClock(TrainingCallback):
    """Counts the steps of pythae's trainer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_step_end(self, *_, **__) -> None:
        self.clock.count()


class PeerEncoder(BaseEncoder):
    """Our encoder as pythae takes one."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> ModelOutput:
        q = self.encoder(x)
        return ModelOutput(embedding=q.mean, log_covariance=2 * q.logstd)


class PeerDecoder(BaseDecoder):
    """Our decoder as pythae takes one: its mean is the reconstruction."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> ModelOutput:
        p = self.decoder(z)
        return ModelOutput(reconstruction=p.mean, logstd=p.logstd)


class PeerWithOurLikelihood(PeerVAE):
    """pythae's VAE with degrain's likelihood instead of a squared error."""

    def forward(self, inputs: dict[str, Tensor], **_) -> ModelOutput:
        x, q = inputs["data"], self.encoder(inputs["data"])
        z, _ = self._sample_gauss(q.embedding, torch.exp(0.5 * q.log_covariance))
        p = self.decoder(z)
        nll = -log_bin_probability(Gaussian(p.reconstruction, p.logstd), x).sum((1, 2, 3))
        kl = -0.5 * torch.sum(1 + q.log_covariance - q.embedding.square() - q.log_covariance.exp(), dim=-1)
        return ModelOutput(recon_loss=nll.mean(), reg_loss=kl.mean(), loss=(nll + kl).mean())


def theirs(model: str, steps: int, root: str | None, folder: str) -> float:
    """Train a model of pythae, by name, with its trainer; return the core milliseconds of a step."""
    nets = VAE(SIZE, VAEConfig(latent=LATENT, encoder=PYRAMID, decoder=PYRAMID))
    nets.to(memory_format=torch.contiguous_format)  # as PyTorch makes networks
    config = PeerConfig(input_dim=(3, SIZE, SIZE), latent_dim=LATENT)
    pictures = np.load(next(Path(folder, "cache").glob("*-train-64/image.npy")))  # (N, H, W, 3)
    pictures = torch.from_numpy(np.resize(pictures, ((WARM_UP + steps) * BATCH, SIZE, SIZE, 3)))
    data = BaseDataset(pictures.permute(0, 3, 1, 2).contiguous() / 255, torch.ones(len(pictures)))
    options = BaseTrainerConfig(folder, per_device_train_batch_size=BATCH, num_epochs=1, no_cuda=True)
    clock = Clock(steps)
    peer = globals()[model](config, PeerEncoder(nets.encoder), PeerDecoder(nets.decoder))
    BaseTrainer(peer, data, training_config=options, callbacks=[PeerClock(clock)]).train()
    return clock.milliseconds()


def ours(precision: str, steps: int, root: str | None, folder: str) -> float:
    """Train by `train.py fit`; return the core milliseconds of a step."""
    data = ["--data.root", root] if root else ["--data", "degrain.data.datamodule.Portraits"]
    counts = [] if root else ["--data.count", "1000", "--data.valid_count", "16"]
    few = ["--data.limit_valid", "16", "--model.prior_images", "16", "--model.prior_components", "0"]
    where = ["--runs", folder, "--name", f"run{time.monotonic_ns()}", "--data.cache", f"{folder}/cache"]
    how = ["--trainer.precision", precision, "--trainer.accelerator", "cpu", "--data.batch_size", str(BATCH)]
    end = ["--trainer.max_steps", str(WARM_UP + steps), "--wandb", "off"]
    clocks = ["--trainer.callbacks", f"[{{class_path: {OurClock.__module__}.OurClock}}]"]
    OurClock.clock = clock = Clock(steps)
    train.main(["fit", "-c", str(CONFIG), *data, *counts, *few, *where, *how, *end, *clocks])
    return clock.milliseconds()


CONTENDERS = {
    "pythae, float32, squared error": (theirs, "PeerVAE"),
    "pythae, float32, our likelihood": (theirs, "PeerWithOurLikelihood"),
    "degrain, float32": (ours, "32-true"),
    "degrain, bf16": (ours, "bf16-mixed"),
}


def measured(contender: str, steps: int, root: str | None, folder: str) -> float:
    """Return the core milliseconds of a contender's step, from a process of its own."""
    run, what = CONTENDERS[contender]
    code = f"from tests.benchmarks.peers import {run.__name__}; print({run.__name__}{(what, steps, root, folder)!r})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.split()[-1])


def main(root: str | None = None, rounds: int = 3, steps: int = 100) -> None:
    """Print the core time of a step, images per second of a core, and the ratio to pythae, for each contender.

    Args:
        root: folder of photographs; by default 1,000 portraits are drawn.
        rounds: runs of each contender.
        steps: measured in each run.
    """
    with tempfile.TemporaryDirectory() as folder:
        measured("degrain, float32", 1, root, folder)  # makes the cache, whose pictures all contenders get
        runs = [{name: measured(name, steps, root, folder) for name in CONTENDERS} for _ in range(rounds)]
    first, second = list(CONTENDERS)[:2]
    print(f"stage 1, {SIZE} pixels, batch {BATCH}, one thread, {rounds} rounds of {steps} steps, core seconds")
    print(f"{'':<34}{'ms a step':>10}{'images/s':>10}{'times pythae':>14}{'with our likelihood':>21}")
    for name in CONTENDERS:
        step = statistics.median(run[name] for run in runs)
        ratios = [statistics.median(run[other] / run[name] for run in runs) for other in (first, second)]
        print(f"{name:<34}{step:>10.1f}{1e3 * BATCH / step:>10.0f}{ratios[0]:>14.2f}{ratios[1]:>21.2f}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
