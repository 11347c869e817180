"""The interface of the evaluators: a subject goes in, findings come out.

An evaluator is a class. `applies(subject)` says if it can measure this subject; `__init__(subject)`, called before the
test, raises InputError if something is missing; `notes` are lines for the reader; `measure()`, called on every process
at the end of the test, returns Findings on the first one. training/evaluator.py has the list of all evaluators.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor

from degrain.models.evaluation.feature_net import FeatureNet
from degrain.models.inference.pipeline import Pipeline, PlainPipeline


@dataclass(frozen=True)
class Subject:
    """The subject of a test: data, networks, settings, and the processes that share the images."""

    data: Any  # the data module
    pipeline: Pipeline | PlainPipeline  # the networks that images are drawn with
    images_seen: Callable[[], int]  # training images that they have seen
    photographs: Callable[[dict[str, Tensor]], Tensor]  # batch -> images (B, 3, H, W) in [0, 1] on the device
    n: int  # images on each side of a comparison
    seeds: int  # number of seeds
    nets: tuple[FeatureNet, ...]  # none if images are not to be compared
    sheet: int  # draws on the sheet of faces to score by eye; 0 for no sheet
    cache: str  # folder of the statistics of real images
    batch_size: int  # images drawn at once
    rank: int  # index of this process
    world: int  # number of processes
    all_gather: Callable[[Tensor], Tensor]  # (...) of every process -> (W, ...) on all of them, on the CPU
    broadcast: Callable[[Any], Any]  # object of the first process -> all processes
    progress: Callable[..., Iterator[Any]]  # (items, name, total, unit) -> items, with a bar; unit `images` or `rows`

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.pipeline.parameters()).device

    def numbers(self, count: int, batch_size: int) -> Iterator[range]:
        """Yield the numbers from 0 to count - 1 that this process takes, in batches: rank, rank + world, ..."""
        share = range(self.rank, max(count, self.world), self.world)  # one at least, as all processes must gather
        return (share[first : first + batch_size] for first in range(0, len(share), batch_size))

    def collect(self, name: str, batches: Iterable[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
        """Join named values (B, ...) of this process's images, taken as in `numbers`, with those of all processes.

        Args:
            name: shown beside the progress bar.
            batches: values of this process's images.
            count: N, images of all processes.

        Returns:
            The values of all images, (N, ...), in the order of their numbers, on the CPU, on every process.
        """
        parts: dict[str, list[Tensor]] = {}
        for batch in self.progress(batches, name, len(range(self.rank, count, self.world)), "images"):
            for key, values in batch.items():
                parts.setdefault(key, []).append(values)
        most = -(-count // self.world)  # a process may have one image fewer, and all must gather the same shape
        collected = {}
        for key, values in parts.items():
            mine = torch.cat(values)
            padded = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
            collected[key] = rearrange(self.all_gather(padded), "w n ... -> (n w) ...")[:count]
        return collected


@dataclass
class Findings:
    """The result of an evaluator."""

    values: dict[str, int | float | str]  # by their path below `test/`, such as ROW/METRIC
    lines: list[str]  # of the table
    figures: dict[str, Figure | Image | str] = field(default_factory=dict)  # a text is a file with the suffix .csv


@dataclass
class EvaluationReport:
    """The findings of all evaluators of a test, in the order of their tables."""

    findings: list[Findings]

    def values(self) -> dict[str, int | float | str]:
        """Return every value by its path: test/NET/ROW/METRIC, test/spectrum/ROW/METRIC, test/about/NAME."""
        return {f"test/{path}": value for found in self.findings for path, value in found.values.items()}

    def table(self) -> str:
        """Return the lines of all evaluators, with an empty line between them."""
        return "\n\n".join("\n".join(found.lines) for found in self.findings)

    def figures(self) -> dict[str, Figure | Image | str]:
        """Return all figures by name."""
        return {name: figure for found in self.findings for name, figure in found.figures.items()}
