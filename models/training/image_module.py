"""The base of the recipes on images: pieces of a batch, held-out images, pictures, and skipped steps."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from matplotlib.figure import Figure
from PIL.Image import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from degrain.models.core.images import readable
from degrain.models.core.memory import keep_freed_memory
from degrain.models.core.randomness import Noise, noise_of_images
from degrain.models.evaluation.report import EvaluationReport
from degrain.models.inference.checkpoint import Card
from degrain.models.inference.pipeline import Pipeline, PlainPipeline
from degrain.models.training.divergence import PATIENCE, diverged
from degrain.models.training.recipe import Recipe
from degrain.models.training.report import Report
from degrain.models.training.schedule import Schedule

Batch = dict[str, Tensor]


class ImageModule(Recipe):
    """A recipe on images that takes its optimizers' steps itself; see degrain.models.training.update.

    Args:
        schedule: budget, validations, learning rate, seed.

    Attributes:
        evaluation: what a test found of drawn images, on the first process; see degrain.models.training.evaluator.
    """

    evaluation: EvaluationReport | None = None

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.automatic_optimization = False

    # Training.

    def on_fit_start(self) -> None:
        keep_freed_memory()  # 9 to 19 % of a step of stage 1

    @property
    @abstractmethod
    def networks(self) -> list[nn.Module]:
        """The networks that a training step runs."""

    def compile(self, **options: Any) -> None:
        """Compile the networks of a training step, in place; the options are torch.compile's.

        Only `forward` changes: names of weights, checkpoints and the moving average stay. Validation is not compiled,
        because each size of batch would be compiled anew.
        """
        for network in self.networks:
            network.forward = self.in_training(network.forward, torch.compile(network.forward, **options))

    def in_training(self, function: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is compiled while this module trains, and the function itself while it validates."""
        return lambda *inputs: (compiled if self.training else function)(*inputs)

    def photographs(self, batch: Batch) -> Tensor:
        """Return the batch's images as float32 (B, 3, H, W) on the grid k/255."""
        return batch["image"].to(dtype=torch.float32, memory_format=torch.channels_last) / 255

    def pieces(self, batch: Batch) -> list[tuple[Batch, Noise]]:
        """Cut this process's batch into equal pieces of at most `data.micro_batch_size` images, each with its noise."""
        images = len(batch["image"])
        count = number_of_pieces(images, getattr(self.trainer.datamodule, "micro_batch_size", None) or images)
        return [({n: values[i::count] for n, values in batch.items()}, self.noise(i, count)) for i in range(count)]

    def count_images(self, batch: Batch, skipped: Tensor | None = None) -> None:
        super().count_images(batch, skipped)
        self.log("train/skipped_steps", self.skips[0].float(), on_step=True, on_epoch=False)

    def gather_global(self, rows: Tensor) -> Tensor:
        """Return the rows of the whole global batch in its order, (B, ...) -> (B W, ...) for W processes.

        A loss of all rows is the same on every process, and gradients are averaged over processes: so those that flow
        to this process's own rows are W times as large.
        """
        rank, world = self.global_rank, self.trainer.world_size
        if world == 1:
            return rows
        parts = list(self.all_gather(rows.detach()))
        parts[rank] = rows + (world - 1) * (rows - rows.detach())
        return rearrange(parts, "w b ... -> (b w) ...")

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """End a run in which too many steps in a row were skipped.

        Where the host would have to wait for it, it looks every PATIENCE steps and at the end of a leg alone.

        Raises:
            InputError: PATIENCE steps or more in a row.
        """
        number = self.steps_done(batch)
        if readable(self.device) or number % PATIENCE == 0 or self.trainer.is_last_batch:
            in_a_row = int(self.skips[1])
            if in_a_row >= PATIENCE:
                raise diverged(self, f"{in_a_row} steps in a row were not finite and skipped")

    # Held-out images.

    def held_out_noise(self, batch: Batch, stream: int, shape: tuple[int, ...]) -> Tensor:
        """Draw standard normal noise (B, *shape); a row depends on (seed, number of the image, stream) alone.

        So it is the same at every validation, in any batch and on any number of processes.
        """
        return noise_of_images(self.schedule.seed, batch["index"], stream, shape)

    @abstractmethod
    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Return named terms of held-out images, per sample, (B,)."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log_terms("val", self.evaluate(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.log_terms("test", self.evaluate(batch))

    def reset_metrics(self) -> None:
        """Forget what was gathered, before the first held-out image of a validation or a test."""

    def epoch_metrics(self, stage: str) -> dict[str, Tensor]:
        """Return what was gathered over all held-out images and is no mean of terms, by name; stage `val` or `test`."""
        return {}

    def on_validation_epoch_start(self) -> None:
        self.reset_metrics()

    def on_test_epoch_start(self) -> None:
        self.reset_metrics()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log_dict({f"val/{name}": value for name, value in self.epoch_metrics("val").items()})

    def on_test_epoch_end(self) -> None:
        self.log_position()
        self.log_dict({f"test/{name}": value for name, value in self.epoch_metrics("test").items()})

    # Drawing and reporting.

    @abstractmethod
    def pipeline(self) -> Pipeline | PlainPipeline:
        """Return the networks that a reader of the checkpoint would draw with."""

    def load_export(self, card: Card, state: dict[str, Tensor], path: str, fit: bool) -> None:
        """Take the weights and the position of an export, which was checked before, to fit or to measure them.

        A fit's warm-up begins anew.

        Without Adam's moments the first step at the full rate would undo much: on CelebA 6.0 bits became 13.4.

        Raises:
            InputError: its learned prior is another architecture's.
        """
        self.pipeline().load(state, path)
        self.images_seen = self.warm_from = card.images_seen

    def configure_callbacks(self) -> list[Callback]:
        return [Report("test")]

    def extra_metrics(self) -> dict[str, Any]:
        return self.evaluation.values() if self.evaluation else {}

    def table(self) -> str:
        """Return what a test found, by name, and of drawn images as rows."""
        values = {k: v for k, v in self.trainer.callback_metrics.items() if k.startswith("test/")}
        named = "\n".join(f"{name:>40} {value:.5g}" for name, value in sorted(values.items()))
        return f"{named}\n\n{self.evaluation.table()}" if self.evaluation else named

    def figures(self) -> dict[str, Figure | Image]:
        """Return figures of the last evaluation by name."""
        return self.evaluation.figures() if self.evaluation else {}


def number_of_pieces(images: int, most: int) -> int:
    """Return the least number of equal pieces of at most `most` images."""
    return next(pieces for pieces in range(-(-images // most), images + 1) if images % pieces == 0)
