"""`test` lets the evaluators of models/evaluation measure what a checkpoint draws."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor
from tqdm import tqdm

from degrain.models.core.errors import InputError
from degrain.models.evaluation.comparison import DrawComparison
from degrain.models.evaluation.face_sheet import FaceSheet
from degrain.models.evaluation.features import DEFAULT_NET, WITH_WEIGHTS, feature_nets
from degrain.models.evaluation.image_sets import LEAST_IMAGES
from degrain.models.evaluation.modes import ModeCounts
from degrain.models.evaluation.report import EvaluationReport, Subject
from degrain.models.training.image_module import ImageModule
from degrain.models.training.progress import bar_options

EVALUATORS = (DrawComparison, FaceSheet, ModeCounts)
"""All evaluators, in the order of their tables; see evaluation/report.py for their interface."""


MOST_IMAGES = 2500
"""The default of n for large sets of held-out images."""

MOST_FACES = 64
"""The default of `sheet`."""


class Evaluator(Callback):
    """Run all evaluators at the end of a test: drawn images compared with held-out images, and counts of modes.

    Args:
        n: images on each side of every comparison; 2n held-out ones and 2n of each row are compared, in two halves. By
            default half of the held-out images, but at most 2,500.
        seeds: how often images are drawn, for the spread of every metric: seeds 0, 1, ...
        net: feature network, or a list of several: efficientnet-lite0, -lite1 or -lite2, which work offline, inception,
            of which published values are, dinov2, or your own by its import path `package.module:factory`
            (docs/evaluation.md).
        weights: file of the weights of dinov2 or inception, for both a mapping `name: file`; by default Inception's in
            PyTorch's folder of downloads.
        download: fetch Inception's weights (95 MB) if they are missing.
        cache: folder of the statistics of real images, which are measured once.
        batch_size: images drawn at once.
        sheet: draws on a sheet of faces to score by eye, see models/evaluation/face_sheet.py; 0 for no sheet; by
            default 64.
        off: compare no images and write no sheet; modes are counted all the same.

    Raises:
        InputError: a number out of range, or no feature network.
    """

    def __init__(
        self,
        n: int | None = None,
        seeds: int = 1,
        net: str | list[str] = DEFAULT_NET,
        weights: str | dict[str, str] | None = None,
        download: bool = False,
        cache: str = ".cache/degrain/statistics",
        batch_size: int = 64,
        sheet: int | None = None,
        off: bool = False,
    ) -> None:
        ignored = {"n": n, "sheet": sheet} if off else {}
        self.ignored = ", ".join(f"--evaluation.{name} {value}" for name, value in ignored.items() if value)
        sheet = MOST_FACES if sheet is None else sheet
        if n is not None and n < LEAST_IMAGES or seeds < 1 or batch_size < 1 or sheet < 0 or sheet == 1:
            raise InputError(
                f"evaluation: n ({n}) must be at least {LEAST_IMAGES}, seeds ({seeds}) and batch_size ({batch_size}) "
                f"at least 1, sheet ({sheet}) at least 2, or 0 for none"
            )
        self.n, self.options = (
            n,
            {"seeds": seeds, "cache": cache, "batch_size": batch_size, "sheet": 0 if off else sheet},
        )
        nets = [net] if isinstance(net, str) else net
        if isinstance(weights, str):
            weights = {(next((name for name in nets if name in WITH_WEIGHTS), nets[0])): weights} if nets else {}
        self.nets = () if off else tuple(feature_nets(nets, weights, download))

    def setup(self, trainer: pl.Trainer, module: ImageModule, stage: str) -> None:
        """Choose the evaluators that apply, and print their notes before anything long begins.

        Raises:
            InputError: something that an evaluator needs is missing.
        """
        say = rank_zero_only(print)
        if trainer.limit_test_batches != 1.0:
            say("evaluation: held-out values are of the first batches alone (trainer.limit_test_batches)")
        if self.ignored:
            say(f"evaluation: {self.ignored}: not used, --evaluation.off true compares no images and writes no sheet")
        if trainer.fast_dev_run:  # a trial draws nothing
            self.evaluators = []
            return
        subject = self.subject(trainer, module)
        self.evaluators = [evaluator(subject) for evaluator in EVALUATORS if evaluator.applies(subject)]
        for note in (note for evaluator in self.evaluators for note in evaluator.notes):
            say(f"evaluation: {note}")

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
            hidden = trainer.global_rank > 0 or trainer.progress_bar_callback is None
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
            nets=self.nets,
            n=self.n or min(trainer.datamodule.describe()["images"].get("test", 0) // 2, MOST_IMAGES),
            rank=trainer.global_rank,
            world=trainer.world_size,
            all_gather=all_gather,
            broadcast=trainer.strategy.broadcast,
            progress=progress,
            **self.options,
        )
