"""What the recipes share: a clock that counts images, a schedule on it, noise from it, and the pictures' interface."""

import math
from abc import abstractmethod
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from PIL.Image import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from models.core.errors import InputError
from models.core.files import replacing
from models.core.randomness import generator, noise_of_images, shard
from models.evaluation import figures
from models.evaluation.report import EvaluationReport
from models.inference.checkpoint import Card, drawing_state
from models.inference.pictures import panel
from models.inference.pipeline import Pipeline, PlainPipeline

TRAIN_STREAM, EVAL_STREAM = 0, 1

CLOCK = ("warm_from", "budget", "skipped_steps", "skipped_in_a_row")
"""What a run's card takes from the recipe's attributes."""

POSITION = ("images_seen", "data", "tracked_run", "exported", *CLOCK)
"""What a card says of a run's position, in which it may differ from the config's."""


class Recipe(pl.LightningModule):
    """A recipe whose position is `images_seen` alone; in the toys an image is a vector.

    An epoch of the Trainer is one leg: the images up to the next multiple of `validate_every`. Data order, noise and
    schedules are functions of (seed, images_seen), so that a checkpoint resumes wherever it was taken and Lightning's
    own counters (which count optimiser steps) are not needed.

    Args:
        budget: training images to see in all; schedules are shares of it. A larger budget continues a finished run.
        validate_every: images between validations.
        learning_rate: Adam's, after the warm-up.
        warmup: share of the budget over which the learning rate rises from 0.
        decay: share of the budget, at its end, over which the learning rate falls to 0 as a half cosine.
        seed: of all noise in training and validation.

    Raises:
        InputError: a budget, interval or share out of range.
    """

    def __init__(
        self, budget: int, validate_every: int, learning_rate: float, warmup: float, decay: float, seed: int
    ) -> None:
        super().__init__()
        if budget < 1 or validate_every < 1:
            raise InputError(f"model: budget ({budget}) and validate_every ({validate_every}) must be at least 1 image")
        if not (0 <= warmup and 0 <= decay and warmup + decay <= 1):
            raise InputError(
                f"model: warmup ({warmup}) and decay ({decay}) are shares of the budget: at most 1 together"
            )
        if not 0 < learning_rate < math.inf or seed < 0:
            raise InputError(
                f"model: learning_rate ({learning_rate}) must be positive and finite and seed ({seed}) not negative"
            )
        self.budget, self.validate_every, self.learning_rate = budget, validate_every, learning_rate
        self.warmup, self.decay, self.seed = warmup, decay, seed
        self.images_seen = self.warm_from = 0
        self.skipped_steps = self.skipped_in_a_row = 0

    # The clock.

    @property
    def progress(self) -> float:
        """Share of the budget that has been seen, from 0 to 1."""
        return min(1.0, self.images_seen / self.budget)

    @property
    def leg_end(self) -> int:
        """Images seen at the next validation."""
        return min(self.budget, (self.images_seen // self.validate_every + 1) * self.validate_every)

    def tick(self, batch: dict[str, Tensor]) -> None:
        """Count a global batch as seen; the Trainer stops after the leg in which the budget is reached."""
        self.images_seen += self.global_batch(batch)
        self.trainer.should_stop = self.images_seen >= self.budget

    def global_batch(self, batch: dict[str, Tensor]) -> int:
        """Images of this step over all processes."""
        return len(next(iter(batch.values()))) * self.trainer.world_size

    def scheduled_rate(self) -> float:
        """The learning rate now: linear warm-up, constant, half-cosine decay to 0; a finished run warms up again."""
        warm = self.progress - self.warm_from / self.budget
        rise = min(1.0, (warm + 1e-3) / (self.warmup + 1e-3))
        fall = max(0.0, (self.progress - (1 - self.decay)) / self.decay) if self.decay else 0.0
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * fall))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.scheduled_rate()

    # Data and noise.

    def train_rng(self) -> torch.Generator:
        """The stream of this training step."""
        return generator(self.seed, TRAIN_STREAM, self.images_seen, device=self.device)

    @property
    def share(self) -> tuple[int, int]:
        """Which part of the global batch is at hand, and of how many: this process's."""
        return self.global_rank, self.trainer.world_size

    def normal(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """This part's share of the global batch's standard normal noise; the batch is the first axis."""
        return shard(torch.randn, shape, rng, *self.share)

    def uniform(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """The same for noise uniform in [0, 1)."""
        return shard(torch.rand, shape, rng, *self.share)

    # Logging: every curve stands against images_seen.

    def log_terms(self, stage: str, terms: dict[str, Tensor]) -> None:
        """Log the global batch's means of per-sample terms as `stage/name`; in evaluation averaged over all images.

        The logger's step is images_seen, in float64: float32 counts exactly only to 16.8 million.
        There may be no terms: the export of a plain GAN has no discriminator to measure it by.
        """
        if not terms:
            return
        # float: Lightning averages the counts over processes too, and would round the mean of whole ones down.
        size = float(next(len(t) for t in terms.values() if t.ndim))
        means = {f"{stage}/{name}": term.detach().mean() for name, term in terms.items()}
        training = stage == "train"
        if training and self.trainer.world_size > 1:  # in one go, where Lightning would wait for all at every name
            of_all = self.trainer.strategy.reduce(torch.stack([mean.float() for mean in means.values()]))
            means = dict(zip(means, of_all, strict=True))
        self.log_dict(means, on_step=training, on_epoch=not training, batch_size=size, sync_dist=not training)
        if training:
            self.log_step()

    def log_step(self) -> None:
        """Tell the logger where on its axis this is."""
        self.log("step", torch.tensor(self.images_seen, dtype=torch.float64), reduce_fx="max")

    def on_validation_epoch_end(self) -> None:
        if self.trainer.state.fn == "fit":
            self.log_step()

    def facts(self) -> dict[str, Any]:
        """What metrics.json shall hold beside what was logged."""
        return {}

    # Checkpoints.

    @abstractmethod
    def card(self) -> Card:
        """What the checkpoint says of its networks."""

    def data_description(self) -> dict[str, Any] | None:
        """What the data module says of its data, where there is one."""
        datamodule = self.trainer.datamodule
        return datamodule.describe() if datamodule is not None else None

    def check(self, card: Card, state: dict[str, Tensor], path: str) -> None:
        """Refuse a checkpoint that was made by another recipe.

        Raises:
            InputError: it is of another stage, image size or architecture.
        """
        own = drawing_state(self.state_dict()) if card.exported else self.state_dict()
        mine, theirs = ({**leaves(asdict(c)), **shapes(s)} for c, s in ((self.card(), own), (card, state)))
        for name in (*theirs, *mine):
            of_the_position = name.split(".")[0] in POSITION
            of_the_position |= name.startswith("prior.mixture.")  # there at the end of stage 1
            if not of_the_position and theirs.get(name) != mine.get(name):
                said = f"its {name} is {theirs.get(name)}, the config says {mine.get(name)}"
                raise InputError(f"checkpoint {path}: {said}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        run = self.logger.version if self.logger is not None else None
        clock = {name: getattr(self, name) for name in CLOCK}
        card = replace(self.card(), data=self.data_description(), tracked_run=run, **clock)
        checkpoint["degrain"] = asdict(card)
        checkpoint.pop("loops", None)  # the position is images_seen; Lightning's counters would contradict it

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        card = Card(**checkpoint["degrain"])
        self.images_seen = card.images_seen
        self.skipped_steps, self.skipped_in_a_row = card.skipped_steps, card.skipped_in_a_row
        # At the end of its budget the learning rate was 0, and Adam's moments are those of small gradients.
        self.warm_from = card.images_seen if card.images_seen >= card.budget else card.warm_from


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested dictionaries, by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a state dict."""
    return {name: tuple(value.shape) for name, value in state.items()}


class ImageModule(Recipe):
    """A recipe on images: pixels in, named terms of held-out images, and the networks that draw its pictures.

    Attributes:
        evaluation: what a test found of drawn images, on the first process; see models.evaluator.
    """

    evaluation: EvaluationReport | None = None

    def pixels(self, batch: dict[str, Tensor]) -> Tensor:
        """The batch's images as float32 (B, 3, H, W) on the grid k/255."""
        return batch["image"].to(dtype=torch.float32, memory_format=torch.channels_last) / 255

    def held_out_noise(self, batch: dict[str, Tensor], stream: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise (B, *shape); a row depends on (seed, number of the image, stream) alone.

        So it is the same at every validation, in any batch and on any number of processes.
        """
        return noise_of_images(self.seed, batch["index"].tolist(), stream, shape).to(self.device)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log_terms("val", self.evaluate(batch))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log_terms("test", self.evaluate(batch))

    @abstractmethod
    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named terms of held-out images, per sample, (B,)."""

    # What is of all held-out images together, and no mean over them.

    def begin(self) -> None:
        """Begin to gather, before the first held-out image of a validation or a test."""

    def over_all(self, stage: str) -> dict[str, Tensor]:
        """What was gathered, by name, in `val` or `test`; to be logged."""
        return {}

    def log_over_all(self, stage: str) -> None:
        """Log what was gathered as `stage/name`."""
        self.log_dict({f"{stage}/{name}": value for name, value in self.over_all(stage).items()})

    def on_validation_epoch_start(self) -> None:
        self.begin()

    def on_test_epoch_start(self) -> None:
        self.begin()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log_over_all("val")

    def on_test_epoch_end(self) -> None:
        self.log_over_all("test")

    # What draws.

    @abstractmethod
    def pipeline(self) -> Pipeline | PlainPipeline:
        """The networks that a reader of the checkpoint would draw with."""

    def take_over(self, card: Card, state: dict[str, Tensor], path: str) -> None:
        """Take over the weights and the position of an export, which was checked before; the warm-up begins anew.

        Without Adam's moments its first step at the full rate would undo much: on CelebA 6.0 bits became 13.4.

        Raises:
            InputError: its learned prior is another architecture's.
        """
        self.pipeline().load(state, path)
        self.images_seen = self.warm_from = card.images_seen

    def configure_callbacks(self) -> list[Callback]:
        return [Report("test")]

    def facts(self) -> dict[str, Any]:
        return self.evaluation.values() if self.evaluation else {}

    def table(self) -> str:
        """What a test found, by name, and of drawn images as rows."""
        values = {k: v for k, v in self.trainer.callback_metrics.items() if k.startswith("test/")}
        named = "\n".join(f"{name:>40} {value:.5g}" for name, value in sorted(values.items()))
        return f"{named}\n\n{self.evaluation.table()}" if self.evaluation else named

    def figures(self) -> dict[str, Figure | Image]:
        """Of the last evaluation, by name."""
        if self.evaluation is None:
            return {}
        drawn = {"spectra": figures.spectra(self.evaluation.spectra)}
        neighbours = self.evaluation.neighbours
        return drawn | ({"neighbours": panel(neighbours)} if neighbours else {})


class Report(Callback):
    """At the end of a training or a test: the table, also as table.txt, and the figures, in the run's folder and W&B.

    Args:
        end: `train` or `test`.
    """

    def __init__(self, end: Literal["train", "test"]) -> None:
        self.end = end

    def on_train_end(self, trainer: pl.Trainer, module: Recipe) -> None:
        if self.end == "train":
            self.write(trainer, module)

    def on_test_end(self, trainer: pl.Trainer, module: Recipe) -> None:
        if self.end == "test":
            self.write(trainer, module)

    def write(self, trainer: pl.Trainer, module: Recipe) -> None:
        """Print and write; all processes compute, the first one writes."""
        table, drawn = module.table(), module.figures()
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            print(f"\n{table}\n")
            with replacing(folder / "table.txt") as part:
                part.write_text(table + "\n")
            write_figures(drawn, {name: folder / f"{name}.png" for name in drawn}, trainer, module.images_seen)


def write_figures(
    figures: dict[str, Figure | Image], paths: dict[str, Path], trainer: pl.Trainer, images_seen: int
) -> None:
    """Write figures to their paths, and log them where there is a logger of pictures."""
    for name, figure in figures.items():
        with replacing(paths[name]) as part:
            (figure.save if isinstance(figure, Image) else figure.savefig)(part)
    for logger in trainer.loggers:
        if hasattr(logger, "log_pictures"):
            logger.log_pictures({name: str(path) for name, path in paths.items()}, images_seen)
