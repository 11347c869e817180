"""`test` lets the evaluators of models/evaluation measure what a checkpoint draws."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor
from tqdm import tqdm

from models.core.errors import InputError
from models.evaluation.comparison import DrawComparison
from models.evaluation.features import DEFAULT_NET, feature_net
from models.evaluation.image_sets import LEAST_IMAGES
from models.evaluation.modes import ModeCounts
from models.evaluation.report import EvaluationReport, Subject
from models.training.image_module import ImageModule
from models.training.progress import bar_options

EVALUATORS = (DrawComparison, ModeCounts)
"""All evaluators, in the order of their tables; see evaluation/report.py for their interface."""


class Evaluator(Callback):
    """Run all evaluators at the end of a test: drawn images compared with held-out images, and counts of modes.

    Args:
        n: images drawn per seed; as many training images are compared, too.
        seeds: how often they are drawn, for the spread of every metric: seeds 0, 1, ...
        net: feature network: efficientnet-lite0, -lite1 or -lite2, which work offline, inception, of which published
            values are, dinov2, or your own by its import path `package.module:factory` (docs/evaluation.md).
        weights: file of the weights of dinov2 or inception; by default Inception's in PyTorch's folder of downloads.
        download: fetch Inception's weights (95 MB) if they are missing.
        cache: folder of the statistics of real images, which are measured once.
        batch_size: images drawn at once.
        off: compare no images; modes are counted all the same.

    Raises:
        InputError: a number out of range, or no feature network.
    """

    def __init__(
        self,
        n: int = 3000,
        seeds: int = 3,
        net: str = DEFAULT_NET,
        weights: str | None = None,
        download: bool = False,
        cache: str = ".cache/degrain/statistics",
        batch_size: int = 64,
        off: bool = False,
    ) -> None:
        if n < LEAST_IMAGES or seeds < 1 or batch_size < 1:
            raise InputError(
                f"evaluation: n ({n}) must be at least {LEAST_IMAGES}, seeds ({seeds}) and batch_size ({batch_size}) "
                "at least 1"
            )
        self.options = {"n": n, "seeds": seeds, "cache": cache, "batch_size": batch_size}
        self.net = None if off else feature_net(net, weights, download)

    def setup(self, trainer: pl.Trainer, module: ImageModule, stage: str) -> None:
        """Choose the evaluators that apply, and print their notes before anything long begins.

        Raises:
            InputError: something that an evaluator needs is missing.
        """
        subject = self.subject(trainer, module)
        self.evaluators = [evaluator(subject) for evaluator in EVALUATORS if evaluator.applies(subject)]
        for note in (note for evaluator in self.evaluators for note in evaluator.notes):
            rank_zero_only(print)(f"evaluation: {note}")

    def on_test_end(self, trainer: pl.Trainer, module: ImageModule) -> None:
        """Measure on all processes; the first one leaves the report with the module."""
        findings = [evaluator.measure() for evaluator in self.evaluators]
        if findings and trainer.is_global_zero:
            module.evaluation = EvaluationReport(findings)

    def subject(self, trainer: pl.Trainer, module: ImageModule) -> Subject:
        """Describe the run to the evaluators."""

        def photographs(batch: dict[str, Tensor]) -> Tensor:
            return module.photographs(module.transfer_batch_to_device(batch, module.device, 0))

        def all_gather(values: Tensor) -> Tensor:
            return (module.all_gather(values) if trainer.world_size > 1 else values[None]).cpu()

        def progress(items: Iterable[Any], name: str, total: int, unit: str) -> Iterator[Any]:
            hidden = trainer.global_rank > 0
            with tqdm(total=total, desc=f"evaluation: {name}", disable=hidden, **bar_options(unit)) as bar:
                for item in items:
                    yield item
                    bar.update(len(next(iter(item.values()))) if unit == "images" else 1)
                    if trainer.received_sigterm:  # Lightning heeds it in its own loops alone
                        raise SIGTERMException

        return Subject(
            data=trainer.datamodule,
            pipeline=module.pipeline(),
            images_seen=lambda: module.images_seen,
            photographs=photographs,
            net=self.net,
            rank=trainer.global_rank,
            world=trainer.world_size,
            all_gather=all_gather,
            broadcast=trainer.strategy.broadcast,
            progress=progress,
            **self.options,
        )
