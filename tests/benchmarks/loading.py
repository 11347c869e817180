"""Load and train from JPEG files beside torchvision's CelebA class with two workers, in core seconds.

    python -m tests.benchmarks.loading                   # drawn portraits, written as JPEG of CelebA's size, 178x218
    python -m tests.benchmarks.loading --root DIR        # CelebA's own, of DIR/img_align_celeba/
    python -m tests.benchmarks.loading --scale 6         # 1068x1308 pixels, about FFHQ's size

The files get CelebA's official layout in a temporary folder. Theirs is torchvision.datasets.CelebA, CenterCrop to the
largest square, Resize(64), RandomHorizontalFlip and ToTensor in a DataLoader that shuffles and has two workers; ours is
the data module that configs name, whose first epoch builds the cache. All end in float32 batches, (B, 3, 64, 64).

The training of theirs is the shortest loop: the same networks, likelihood and precision, and Adam, with no clipping,
checks or logging. Ours is the command `train.py fit -c configs/vae_celeba64.yaml`, without W&B.

Core seconds are those of a process of one thread and of its workers: what a busy machine has to give. Waiting is the
share of the wall time between two batches, and depends on how many cores are free. The table has medians of the rounds.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import train
from degrain.data.datamodule import CelebA
from degrain.models.core.gaussian import kl_to_standard_normal
from degrain.models.core.layers import PyramidConfig
from degrain.models.core.memory import keep_freed_memory
from degrain.models.vae.likelihood import log_bin_probability
from degrain.models.vae.network import VAE, VAEConfig
from tests.benchmarks.jpeg_files import write_celeba

CONFIG = Path(__file__).parents[2] / "configs" / "vae_celeba64.yaml"
SIZE, BATCH, WORKERS, EPOCHS = 64, 16, 2, 5
ROWS = ("torchvision's CelebA", "ours, first epoch", "ours, fifth epoch")


@dataclass(frozen=True)
class Net:
    """Networks of stage 1 and the batch that they are trained with."""

    latent: int
    widths: tuple[int, ...]
    batch: int

    def vae(self) -> VAE:
        """Build the networks."""
        pyramid = PyramidConfig(widths=self.widths, patch=4)
        return VAE(SIZE, VAEConfig(latent=self.latent, encoder=pyramid, decoder=pyramid))

    def options(self) -> list[str]:
        """Return them as options of the command line."""
        named = {"latent": self.latent, "encoder.widths": list(self.widths), "decoder.widths": list(self.widths)}
        return [part for name, value in named.items() for part in (f"--model.net.{name}", str(value))]


NETS = {"small": Net(256, (64, 128, 192), BATCH), "tiny": Net(32, (8, 8), 128)}


class Epoch(NamedTuple):
    """What an epoch cost: core seconds, and seconds in which the training waited for data, of all seconds."""

    core: float
    waiting: float = 0.0
    wall: float = 1.0


class Waits:
    """Batches of a loader; `seconds` were spent in waiting for them."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.seconds = loader, 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        batches = iter(self.loader)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class Timed(CelebA):
    """Our data module, which says what each epoch of the run in progress cost.

    Attributes:
        epochs: of the last run. The first one begins before the cache is built.
    """

    epochs: list[Epoch] = []
    start: tuple[float, float, float]

    def prepare_data(self) -> None:
        Timed.epochs, self.waits = [], None
        self.start = self.now()
        super().prepare_data()

    def train_dataloader(self) -> Waits:
        self.waits = Waits(super().train_dataloader())
        return self.waits

    def now(self) -> tuple[float, float, float]:
        return core_seconds(), self.waits.seconds if self.waits else 0.0, time.perf_counter()

    def end_epoch(self) -> None:
        """Count an epoch."""
        now = self.now()
        Timed.epochs.append(Epoch(*(b - a for a, b in zip(self.start, now, strict=True))))
        self.start = now


class EpochEnds(pl.Callback):
    """Tells the data module of every `steps` steps.

    Args:
        steps: of an epoch.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        if (args[-1] + 1) % self.steps == 0:
            trainer.datamodule.end_epoch()


class Theirs(datasets.CelebA):
    """torchvision's class without its check that the lists are those of all 202,599 photographs."""

    def _check_integrity(self) -> bool:
        return True


def core_seconds() -> float:
    """Return the core seconds of this process and of its workers that have ended."""
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + workers.ru_utime + workers.ru_stime


def their_loader(folder: Path, batch: int) -> DataLoader:
    """Return torchvision's images, as its users load them."""
    square = transforms.Lambda(lambda image: transforms.functional.center_crop(image, min(image.size)))
    steps = [square, transforms.Resize(SIZE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    images = Theirs(str(folder), transform=transforms.Compose(steps))
    return DataLoader(images, batch_size=batch, shuffle=True, num_workers=WORKERS, drop_last=True)


def our_data(folder: Path, cache: Path, batch: int) -> CelebA:
    """Return our data module as a Trainer sets it up, for an epoch of whole batches; builds the cache."""
    data = CelebA(str(folder), "square", size=SIZE, batch_size=batch, cache=str(cache))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1)
    data.setup("fit")
    images = len(data.datasets["train"])
    data.trainer.lightning_module = SimpleNamespace(images_seen=0, leg_end=images - images % batch)
    return data


def photographs(batch: dict[str, Tensor]) -> Tensor:
    """Convert a batch as the training step does."""
    return batch["image"].to(torch.float32, memory_format=torch.channels_last) / 255


def loading(folder: Path, batch: int) -> list[Epoch]:
    """Return what an epoch of loading alone costs, by rows."""
    marks = [core_seconds()]
    for _ in their_loader(folder, batch):
        pass
    marks.append(core_seconds())
    keep_freed_memory()  # as `fit` does
    with tempfile.TemporaryDirectory() as cache:
        data = our_data(folder, Path(cache), batch)
        for _ in range(2):
            for loaded in data.train_dataloader():
                photographs(loaded)
            marks.append(core_seconds())
    return [Epoch(b - a) for a, b in zip(marks, marks[1:], strict=False)]


def their_training(folder: Path, net: Net) -> list[Epoch]:
    """Train for an epoch by the shortest loop."""
    vae = net.vae()
    adam = torch.optim.Adam(vae.parameters(), 2e-4)
    core, wall = core_seconds(), time.perf_counter()
    batches = Waits(their_loader(folder, net.batch))
    for x, _ in batches:
        with torch.autocast("cpu", torch.bfloat16):
            q = vae.encode(x)
            p = vae.decode(q.sample(torch.randn(len(x), net.latent)))
        loss = kl_to_standard_normal(q).sum(1).mean() - log_bin_probability(p, x).sum((1, 2, 3)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return [Epoch(core_seconds() - core, batches.seconds, time.perf_counter() - wall)]


def our_training(folder: Path, net: Net) -> list[Epoch]:
    """Train for EPOCHS epochs by `train.py fit`; the first one builds the cache. Return the first and the last."""
    steps = len(their_loader(folder, net.batch))
    data = ["--data", f"{Timed.__module__}.Timed", "--data.root", str(folder), "--data.crop", "square"]
    few = ["--model.prior_images", "16", "--model.prior_components", "0", "--trainer.max_steps", str(EPOCHS * steps)]
    ends = ["--trainer.callbacks", f"[{{class_path: {EpochEnds.__module__}.EpochEnds, init_args: {{steps: {steps}}}}}]"]
    with tempfile.TemporaryDirectory() as runs:
        where = ["--runs", runs, "--data.cache", f"{runs}/cache", "--wandb", "off", "--trainer.accelerator", "cpu"]
        where += ["--data.batch_size", str(net.batch)]
        train.main(["fit", "-c", str(CONFIG), *data, *net.options(), *few, *ends, *where])
    return [Timed.epochs[0], Timed.epochs[-1]]


def measured(call: str, folder: Path) -> list[Epoch]:
    """Return what a call of a function of this file returns in a process of its own: memory is kept by process."""
    code = f"from tests.benchmarks.loading import *; folder = Path({str(folder)!r}); found = {call}"
    command = [sys.executable, "-W", "ignore", "-c", f"{code}; print('\\n' + json.dumps(found))"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return [Epoch(*epoch) for epoch in json.loads(done.stdout.splitlines()[-1])]


def show(name: str, runs: list[list[Epoch]], images: int) -> None:
    """Print the rows of a measurement: medians over its runs, and of the ratios to the first row within a run."""
    for number, row in enumerate(ROWS):
        cost = statistics.median(1e3 * run[number].core / images for run in runs)
        times = statistics.median(run[0].core / run[number].core for run in runs)
        waiting = statistics.median(run[number].waiting / run[number].wall for run in runs)
        said = f"{waiting:>9.1%}" if waiting else ""
        print(f"{f'{name}, {row}':<44}{cost:>12.3f}{1e3 / cost:>10,.0f}{times:>7.1f}{said}", flush=True)


def main(root: str | None = None, rounds: int = 3, count: int = 1024, scale: int = 1) -> None:
    """Print core time and ratios of loading alone, and of training with it.

    Args:
        root: folder that holds CelebA's img_align_celeba/; by default portraits are drawn.
        rounds: measurements of each row.
        count: images of an epoch.
        scale: by which the pictures are enlarged.
    """
    print(f"{count} JPEG files of {178 * scale}x{218 * scale}, read as {SIZE} pixels, {rounds} rounds, core seconds")
    print(f"{'':<44}{'ms an image':>12}{'images/s':>10}{'times':>7}{'waiting':>9}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_celeba(folder, root, count, scale)
        show("loading", [measured("loading(folder, BATCH)", folder) for _ in range(rounds)], count // BATCH * BATCH)
        for name, net in NETS.items():
            calls = [f"{function}(folder, NETS[{name!r}])" for function in ("their_training", "our_training")]
            runs = [[epoch for call in calls for epoch in measured(call, folder)] for _ in range(rounds)]
            show(f"training {name}", runs, count // net.batch * net.batch)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
