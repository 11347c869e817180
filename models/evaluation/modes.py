"""Modes that generated images reach, and how evenly: the two metrics of Stacked MNIST."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.evaluation.digit_classifier import DigitClassifier, digit_classifier
from degrain.models.evaluation.report import Findings, Subject

SEED, BATCH = 0, 100  # of the draws; images drawn at once


@dataclass(frozen=True)
class ModeCoverage:
    """Modes that images reach; each a float64 ()."""

    modes: Tensor  # number of modes with at least one image
    kl: Tensor  # KL(shares of the modes to uniform), nats


def mode_coverage(labels: Tensor, modes: int = 1000) -> ModeCoverage:
    """Count modes with an image, and compute KL(p to uniform) = sum_k p_k log(p_k modes), p_k the share of mode k.

    The protocol is that of PacGAN (Lin et al. 2018): 1,000 modes, 26,000 images, the KL from the generated shares to
    the uniform distribution, not to the shares of the data. It runs from 0 to log(modes), 6.908 for 1,000. For N images
    of the uniform distribution its expectation is about (modes - 1) / 2N, 0.0192 in this protocol: a much lower value
    of so many images is a mistake.

    Args:
        labels: mode of every image, (N,), integers from 0 to modes - 1.
        modes: number of modes.

    Raises:
        InputError: no labels, or one out of range.
    """
    if not len(labels) or not 0 <= labels.min() <= labels.max() < modes:
        found = f"from {labels.min()} to {labels.max()}" if len(labels) else "none"
        raise InputError(f"mode coverage: labels must run from 0 to {modes - 1:,}, there are {found}")
    share = torch.bincount(labels, minlength=modes).double() / len(labels)
    return ModeCoverage((share > 0).sum().double(), torch.xlogy(share, share * modes).sum())


class ModeCounts:
    """Evaluator: modes and KL of every row of draws, and of as many held-out images of the data.

    It applies to data modules with `digits(held_out)`, `stacks(numbers)` and `draws`, the number of images. The draws
    are those of sample.py for the same seed, from the checkpoint's best prior.
    Values: ROW/modes, and ROW/kl in nats, ROW also `data`; and digit_accuracy of the classifier.
    """

    notes: tuple[str, ...] = ()

    @staticmethod
    def applies(subject: Subject) -> bool:
        return hasattr(subject.data, "digits")

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @torch.no_grad()
    def measure(self) -> Findings:
        data = self.subject.data
        classifier = digit_classifier(data.digits(held_out=False), data.digits(held_out=True), data.cache)
        labels = self.subject.collect("counting modes", self.labels(classifier.to(self.subject.device)), data.draws)
        values = {"digit_accuracy": classifier.accuracy.item()}
        for row, modes in labels.items():
            values |= {f"{row}/{name}": value.float().item() for name, value in vars(mode_coverage(modes)).items()}
        return Findings(values, [f"{f'test/{path}':>40} {value:.5g}" for path, value in sorted(values.items())])

    def labels(self, classifier: DigitClassifier) -> Iterator[dict[str, Tensor]]:
        """Yield the modes (B,) of this process's draws and held-out images, by row."""
        data, pipeline, device = self.subject.data, self.subject.pipeline, self.subject.device
        for numbers in self.subject.numbers(data.draws, BATCH):
            images = {"data": data.stacks(numbers).to(device), **pipeline.draw(SEED, numbers)}
            yield {row: classifier.modes(images[row]) for row in images if row != "std"}
