"""How the core time of an image grows with pixels, batch and data set, as tables and a log-log plot.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.growth --figure docs/growth.png    # 3 minutes of one core

Training steps are those of the preset `small`, bf16-mixed, one thread, on random images in memory: two to warm up, then
8, of which two have gradient penalties and one the spread term. Pixels grow at a batch of 4, the batch at 64 pixels. At
32 pixels the networks lack their last width, for which there is no level.

Loading is that of a whole cached epoch at 64 pixels in batches of 16, from the page cache; the images of the data set
are copies of 100 drawn portraits. Each round measures every point once, one after the other. Printed are medians over
the rounds so far, and of the ratios to the first point of a curve within a round.
"""

import math
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from degrain.data.datamodule import ImageDataModule
from degrain.data.portraits import PortraitSource
from degrain.models.evaluation.figures import INK, MEAN, SAMPLE, new, styled
from tests.benchmarks.memory import bare_trainer, build, untrained_vae

STAGES = {"stage 1": "vae", "stage 2": "gan"}
LOADING = "loading"
COLOURS = {"stage 1": MEAN, "stage 2": SAMPLE, LOADING: INK}
PIXELS, BATCHES, COUNTS = (32, 64, 128, 256), (4, 8, 16, 32, 64), (1_000, 3_000, 10_000, 30_000, 100_000)
SIZE, BATCH, FEW = 64, 16, 4  # where the others grow: pixels, batch of the loader, batch of the steps
WARM_UP, STEPS = 2, 8
DISTINCT = 100  # images of a data set
LEAST = 20_000  # images that are loaded for a point, in several epochs if the data set is smaller


class Point(NamedTuple):
    """A point of a curve: what it depends on (`pixels`, `batch` or `images`), whose cost, and where."""

    axis: str
    curve: str
    x: int


POINTS = [
    *(Point("pixels", stage, x) for stage in STAGES for x in PIXELS),
    *(Point("batch", stage, x) for stage in STAGES for x in BATCHES),
    *(Point("images", LOADING, x) for x in COUNTS),
]


class Copies(PortraitSource):
    """Copies of a few portraits, as many as asked for."""

    @lru_cache(DISTINCT)  # noqa: B019 (lives as long as the data set)
    def portrait(self, item: int, size: int) -> dict[str, np.ndarray]:
        return {"image": super().read(item, size)["image"]}

    def read(self, item: int, size: int) -> dict[str, np.ndarray]:
        return self.portrait(item % DISTINCT, size)


class Timer(pl.Callback):
    """Takes the core seconds of the steps after the first ones."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: object, step: int) -> None:
        if step == WARM_UP:
            self.start = time.process_time()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.seconds = time.process_time() - self.start


def step_cost(stage: str, size: int, batch: int, vae: str) -> float:
    """Return the core seconds of an image in a training step of a stage, on the VAE of that size."""
    images = {"image": torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)}
    timer = Timer()
    module = build("small", stage, size, batch * (WARM_UP + STEPS), vae)
    trainer = bare_trainer(accelerator="cpu", precision="bf16-mixed", callbacks=[timer])
    trainer.fit(module, DataLoader([images] * (WARM_UP + STEPS), batch_size=None))
    return timer.seconds / (batch * STEPS)


def data_set(count: int, cache: str) -> ImageDataModule:
    """Return a data module of so many images, set up as a Trainer does; builds its cache."""
    data = ImageDataModule(size=SIZE, batch_size=BATCH, cache=f"{cache}/{count}")
    data.source = lambda: Copies(count, valid_count=BATCH)
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        global_rank=0,
        world_size=1,
        lightning_module=SimpleNamespace(images_seen=0, leg_end=max(count, LEAST)),
    )
    data.setup("fit")
    return data


def loading_cost(data: ImageDataModule) -> float:
    """Return the core seconds of an image that is loaded."""
    start, images = time.process_time(), 0
    for batch in data.train_dataloader():
        images += len(batch["image"])
    return (time.process_time() - start) / images


class Bench:
    """Everything that is measured, made once.

    Args:
        folder: for caches and checkpoints.
    """

    def __init__(self, folder: str) -> None:
        self.vaes = {}
        for size in PIXELS:
            Path(folder, str(size)).mkdir()
            self.vaes[size] = untrained_vae("small", size, f"{folder}/{size}")
        self.data = {count: data_set(count, folder) for count in COUNTS}

    def cost(self, point: Point) -> float:
        """Measure a point: ms of a core, an image."""
        if point.axis == "images":
            return 1e3 * loading_cost(self.data[point.x])
        size, batch = (point.x, FEW) if point.axis == "pixels" else (SIZE, point.x)
        return 1e3 * step_cost(STAGES[point.curve], size, batch, self.vaes[size])


def curves(axis: str) -> dict[str, list[Point]]:
    """Return the points of each curve over an axis."""
    names = dict.fromkeys(point.curve for point in POINTS if point.axis == axis)
    return {name: [point for point in POINTS if point[:2] == (axis, name)] for name in names}


def exponent(points: list[Point], cost: dict[Point, float]) -> float:
    """Return the slope of a curve between its ends on log-log axes."""
    first, last = points[0], points[-1]
    return math.log(cost[last] / cost[first]) / math.log(last.x / first.x)


@styled
def drawn(cost: dict[Point, float]) -> Figure:
    """Draw ms of a core an image against each axis; each panel says the exponents."""
    figure, axes = new(11.5, 3.9, 3, sharey=True)
    labels = {"pixels": "pixels a side (batch 4)", "batch": "batch (64 pixels)", "images": "images of the data set"}
    for ax, (axis, label) in zip(axes, labels.items(), strict=True):
        for name, points in curves(axis).items():
            said = f"{name}: {axis}$^{{{exponent(points, cost):.2f}}}$"
            ax.loglog([p.x for p in points], [cost[p] for p in points], "o-", color=COLOURS[name], label=said)
        if axis == "images":
            for name, colour in list(COLOURS.items())[:2]:
                ax.axhline(
                    cost[Point("batch", name, BATCH)], color=colour, ls=":", label=f"{name}, 64 pixels, batch 16"
                )
        ticks = sorted({point.x for point in POINTS if point.axis == axis})
        ax.set_xticks(ticks, [f"{x // 1000}k" if x >= 1000 else str(x) for x in ticks])
        ax.minorticks_off()
        ax.set_xlabel(label)
        ax.grid(alpha=0.25)
        ax.legend(loc="best")
    axes[0].set_ylabel("ms of a core, an image")
    return figure


def table(found: dict[Point, list[float]]) -> str:
    """Return the medians as Markdown, a line for each point."""
    lines = [
        "| grows | | at | ms of a core, an image | images/s of a core | times the first |",
        "|---|---|---|---|---|---|",
    ]
    for point, values in found.items():
        first = found[curves(point.axis)[point.curve][0]]
        times = median(here / there for here, there in zip(values, first, strict=True))
        ms = median(values)
        lines.append(f"| {point.axis} | {point.curve} | {point.x:,} | {ms:.4g} | {1e3 / ms:,.4g} | {times:.3g} |")
    return "\n".join(lines)


def main(figure: Path | None = None, rounds: int = 3) -> None:
    """Print what an image costs by pixels, batch and data set.

    Args:
        figure: PNG to draw.
        rounds: measurements of each point.
    """
    torch.set_num_threads(1)
    began = time.process_time()
    found: dict[Point, list[float]] = {point: [] for point in POINTS}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder)
        bench.cost(POINTS[0])  # PyTorch sets itself up
        for number in range(rounds):
            for point in POINTS:
                found[point].append(bench.cost(point))
            print(f"\nround {number + 1} of {rounds}, {time.process_time() - began:.0f} core seconds\n\n{table(found)}")
            if figure is not None:
                drawn({point: median(values) for point, values in found.items()}).savefig(figure)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
