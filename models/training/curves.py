"""Curves of a run without W&B: metrics.csv and curves.png, speed and the share of time that waits for data."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import PassThroughProfiler

from degrain.models.training.curve_figure import draw_curves
from degrain.models.training.metrics_file import MetricsFile, Row, best
from degrain.models.training.recipe import Recipe

WARM_UP_SECONDS, DRAWING_SHARE = 5.0, 0.005
"""Least time between the first log and the run-time estimate; largest share of the time that drawing may take."""

SPEED = "speed/"
"""Prefix of values that differ from run to run, and so are not in metrics.json."""


class FetchClock(PassThroughProfiler):
    """Adds up the time that the training waits for its next batch; Lightning calls profilers around it.

    Attributes:
        seconds: waited so far.
    """

    FETCH = "[_TrainingEpochLoop].train_dataloader_next"

    def __init__(self) -> None:
        super().__init__()
        self.seconds = self.started = 0.0

    def start(self, action_name: str) -> None:
        if action_name == self.FETCH:
            self.started = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name == self.FETCH:
            self.seconds += time.perf_counter() - self.started


@dataclass(frozen=True)
class Mark:
    """A moment of a run: time, images seen, seconds waited for data."""

    seconds: float
    images: int
    waited: float


class Curves(Callback):
    """Writes metrics.csv at every log interval and validation, and draws it as curves.png.

    The host reads values from the device at log intervals alone. The figure is left out of a validation if drawing
    would take more than DRAWING_SHARE of the time; the last one is always drawn.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.file, self.figure = MetricsFile(folder / "metrics.csv"), folder / "curves.png"
        self.mark = self.first = Mark(0.0, 0, 0.0)
        self.estimated = False
        self.drawn_at = self.drawing_took = 0.0

    def setup(self, trainer: pl.Trainer, module: Recipe, stage: str) -> None:
        """Read the file, so that an unreadable one is refused before the work."""
        self.file.rows()

    def on_train_start(self, trainer: pl.Trainer, module: Recipe) -> None:
        if trainer.is_global_zero:
            self.file.cut(module.images_seen)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Recipe) -> None:
        self.mark = self.now(trainer, module)  # a validation is no time of training
        self.first = Mark(0.0, 0, 0.0)

    @staticmethod
    def now(trainer: pl.Trainer, module: Recipe) -> Mark:
        """Return this moment."""
        return Mark(time.perf_counter(), module.images_seen, getattr(trainer.profiler, "seconds", 0.0))

    def on_train_batch_end(self, trainer: pl.Trainer, module: Recipe, outputs: Any, batch: Any, *_: Any) -> None:
        every = trainer.log_every_n_steps
        if not trainer.is_global_zero or not every or module.steps_done(batch) % every:
            return
        values = current(trainer, "train/")  # the host waits for the device here
        before, self.mark = self.mark, self.now(trainer, module)
        seconds = self.mark.seconds - before.seconds
        speed = {"images_per_second": (self.mark.images - before.images) / seconds}
        if isinstance(trainer.profiler, FetchClock):
            speed["waiting_for_data"] = (self.mark.waited - before.waited) / seconds
        speed = {SPEED + name: value for name, value in speed.items()}
        for name, value in speed.items():
            module.log(name, torch.tensor(value), on_step=True, on_epoch=False)
        self.file.append(module.images_seen, values | speed)
        self.estimate(trainer, module)

    def estimate(self, trainer: pl.Trainer, module: Recipe) -> None:
        """Print once, some seconds after the first log, how long the rest of the training takes."""
        if self.estimated or trainer.fast_dev_run:
            return
        if not self.first.images:
            self.first = self.mark
        elif (seconds := self.mark.seconds - self.first.seconds) >= WARM_UP_SECONDS:
            rate, left = (self.mark.images - self.first.images) / seconds, module.schedule.budget - module.images_seen
            self.estimated = True
            if left > 0:
                more = " more" if module.images_seen > module.schedule.budget / 2 else ""
                shown = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
                module.print(f"about {duration(left / rate)} for {left:,}{more} images at {shown} images/s")

    def on_validation_end(self, trainer: pl.Trainer, module: Recipe) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        self.file.append(module.images_seen, current(trainer, "val/"))
        rows = self.file.rows()
        if found := module.watched and best(rows, module.watched):
            summary = {f"best/{module.watched}": found[module.watched], "best/images_seen": found["images_seen"]}
            for logger in trainer.loggers:
                if hasattr(logger, "log_summary"):
                    logger.log_summary(summary)
        if (time.perf_counter() - self.drawn_at) * DRAWING_SHARE >= self.drawing_took:
            self.draw(rows)

    def on_train_end(self, trainer: pl.Trainer, module: Recipe) -> None:
        if trainer.is_global_zero:
            if values := current(trainer, "toy/"):
                self.file.append(module.images_seen, values)
            self.draw(self.file.rows())

    def draw(self, rows: list[Row]) -> None:
        """Draw the rows of the file."""
        start = time.perf_counter()
        draw_curves(rows, self.figure)
        self.drawn_at = time.perf_counter()
        self.drawing_took = self.drawn_at - start

    def upload(self, trainer: pl.Trainer, module: Recipe, checkpoint: Path) -> None:
        """Let W&B keep a checkpoint that was just validated, as `latest`, and as `best` if it is."""
        found = module.watched and best(self.file.rows(), module.watched)
        aliases = ["latest"] + (["best"] if found and found["images_seen"] == module.images_seen else [])
        about = {"images_seen": module.images_seen, **current(trainer, "val/")}
        for logger in trainer.loggers:
            if hasattr(logger, "log_checkpoint"):
                logger.log_checkpoint(checkpoint, aliases, about)


def current(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
    """Return the Trainer's values whose names begin so."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def duration(seconds: float) -> str:
    """Return a time in words: 1 h 50 min, 12 min, 40 s."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
