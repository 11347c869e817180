"""Train stage 1 beside pythae's own trainer: the same networks, batch and pictures, one thread, core seconds.

    pip install --no-deps pythae==0.1.2 cloudpickle imageio    # what is compared, and what it needs beside our own
    python -m tests.benchmarks.peers
    python -m tests.benchmarks.peers --root DIR                # a folder of photographs instead of drawn portraits

Ours is the command `train.py fit -c configs/vae_celeba64.yaml` in this process, without W&B: with flips, clipping,
skipped steps, logging and its progress lines. Theirs is BaseTrainer with the encoder and the decoder of that config and
its own defaults: Adam, float32, pictures in memory as one float tensor. Its loss is a squared error, with which it
learns no std; with our likelihood instead, the second contender, both minimise the same.

Each round runs every contender once. A run counts the core seconds of the process from one step to another, after some
steps to warm up. The table has medians, and ratios to the first contender in the same round.
"""

import contextlib
import io
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

import train
from models.core.gaussian import Gaussian
from models.core.layers import PyramidConfig
from models.vae.likelihood import log_bin_probability
from models.vae.network import VAE, VAEConfig

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
SIZE, BATCH, LATENT = 64, 16, 256
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what a run prints to itself."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def theirs(model: type[PeerVAE], pictures: np.ndarray, steps: int, folder: str) -> float:
    """Train by pythae's trainer on pictures (N, H, W, 3) uint8; return the core milliseconds of a step."""
    nets = VAE(SIZE, VAEConfig(latent=LATENT, encoder=PYRAMID, decoder=PYRAMID))
    nets.to(memory_format=torch.contiguous_format)  # as PyTorch makes networks
    config = PeerConfig(input_dim=(3, SIZE, SIZE), latent_dim=LATENT)
    whole = torch.from_numpy(np.resize(pictures, ((WARM_UP + steps) * BATCH, SIZE, SIZE, 3)))
    data = BaseDataset(whole.permute(0, 3, 1, 2).contiguous() / 255, torch.ones(len(whole)))
    options = BaseTrainerConfig(folder, per_device_train_batch_size=BATCH, num_epochs=1, no_cuda=True)
    clock = Clock(steps)
    with quiet():
        peer = model(config, PeerEncoder(nets.encoder), PeerDecoder(nets.decoder))
        BaseTrainer(peer, data, training_config=options, callbacks=[PeerClock(clock)]).train()
    return clock.milliseconds()


def ours(precision: str, root: str | None, steps: int, folder: str) -> float:
    """Train by `train.py fit`; return the core milliseconds of a step."""
    data = ["--data.root", root] if root else ["--data", "data.datamodule.Portraits"]
    counts = [] if root else ["--data.count", "1000", "--data.valid_count", "16"]
    few = ["--data.limit_valid", "16", "--model.prior_images", "16", "--model.prior_components", "0"]
    where = ["--runs", folder, "--name", f"run{time.monotonic_ns()}", "--data.cache", f"{folder}/cache"]
    how = ["--trainer.precision", precision, "--trainer.accelerator", "cpu", "--data.batch_size", str(BATCH)]
    end = ["--trainer.max_steps", str(WARM_UP + steps), "--wandb", "off"]
    clocks = ["--trainer.callbacks", f"[{{class_path: {OurClock.__module__}.OurClock}}]"]
    OurClock.clock = clock = Clock(steps)
    with quiet():
        train.main(["fit", "-c", str(CONFIG), *data, *counts, *few, *where, *how, *end, *clocks])
    return clock.milliseconds()


def main(root: str | None = None, rounds: int = 3, steps: int = 100) -> None:
    """Print the core time of a step, images per second of a core, and the ratio to pythae, for each contender.

    Args:
        root: folder of photographs; by default 1,000 portraits are drawn.
        rounds: runs of each contender.
        steps: measured in each run.
    """
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)  # pythae's
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ours("32-true", root, 1, folder)  # makes the cache
        pictures = np.load(next(Path(folder, "cache").glob("*-train-64/image.npy")), mmap_mode="r")
        contenders: dict[str, Callable[[], float]] = {
            "pythae, float32, squared error": partial(theirs, PeerVAE, pictures, steps, folder),
            "pythae, float32, our likelihood": partial(theirs, PeerWithOurLikelihood, pictures, steps, folder),
            "degrain, float32": partial(ours, "32-true", root, steps, folder),
            "degrain, bf16": partial(ours, "bf16-mixed", root, steps, folder),
        }
        runs = [{name: run() for name, run in contenders.items()} for _ in range(rounds)]
    first, second = list(contenders)[:2]
    print(f"stage 1, {SIZE} pixels, batch {BATCH}, one thread, {rounds} rounds of {steps} steps, core seconds")
    print(f"{'':<34}{'ms a step':>10}{'images/s':>10}{'times pythae':>14}{'with our likelihood':>21}")
    for name in contenders:
        step = statistics.median(run[name] for run in runs)
        ratios = [statistics.median(run[other] / run[name] for run in runs) for other in (first, second)]
        print(f"{name:<34}{step:>10.1f}{1e3 * BATCH / step:>10.0f}{ratios[0]:>14.2f}{ratios[1]:>21.2f}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
