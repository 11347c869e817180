"""Counts the modes that draws reach, where the data have modes that can be counted: Stacked MNIST."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from models.evaluation.digit_classifier import DigitClassifier, digit_classifier
from models.evaluation.modes import mode_coverage
from models.training.image_module import ImageModule
from models.training.progress import bar_options


class CountModes(Callback):
    """At the end of a test, modes and KL of every row of draws and of as many held-out images of the data.

    It does so where the data module offers `digits(held_out)`, `stacks(numbers)` and `draws`, and nothing elsewhere.
    The draws are those of sample.py for the same seed, from the checkpoint's best prior; processes share them out.
    Values: `test/ROW/modes` and `test/ROW/kl` in nats, ROW also `data`, and `test/digit_accuracy`, the classifier's.

    Args:
        seed: of the draws.
        batch_size: images drawn at once.
    """

    def __init__(self, seed: int = 0, batch_size: int = 100) -> None:
        self.seed, self.batch_size = seed, batch_size

    @torch.no_grad()
    def on_test_epoch_end(self, trainer: pl.Trainer, module: ImageModule) -> None:
        data = trainer.datamodule
        if not hasattr(data, "digits"):
            return
        classifier = digit_classifier(data.digits(held_out=False), data.digits(held_out=True), Path(data.cache))
        values = {"digit_accuracy": classifier.accuracy}
        for row, labels in self.labels(trainer, module, classifier.to(module.device)).items():
            coverage = mode_coverage(labels)
            values |= {f"{row}/modes": coverage.modes, f"{row}/kl": coverage.kl}
        module.log_dict({f"test/{name}": value.float() for name, value in values.items()})

    def labels(self, trainer: pl.Trainer, module: ImageModule, classifier: DigitClassifier) -> dict[str, Tensor]:
        """The mode of every draw by row, (N,) each, on every process."""
        data, pipeline = trainer.datamodule, module.pipeline()
        rows = ["data", *(row for row in pipeline.rows if row != "std")]
        labels = {row: torch.zeros(data.draws, dtype=torch.int64, device=module.device) for row in rows}
        firsts = range(trainer.global_rank * self.batch_size, data.draws, trainer.world_size * self.batch_size)
        for first in tqdm(firsts, "counting modes", disable=not trainer.is_global_zero, **bar_options("batches")):
            numbers = range(first, min(data.draws, first + self.batch_size))
            images = {"data": data.stacks(numbers).to(module.device), **pipeline.draw(self.seed, numbers)}
            for row in rows:
                labels[row][numbers.start : numbers.stop] = classifier.modes(images[row])
        # Each process knows its own draws' and has zeros for the others'.
        return {row: trainer.strategy.reduce(mine, reduce_op="sum") for row, mine in labels.items()}
