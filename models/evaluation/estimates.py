"""Statistics of images with their uncertainty, by leaving out a tenth of the images at a time.

Resampling with replacement (the bootstrap) would put copies of an image beside it. Distances between sets and nearest
neighbours see copies, so images are left out instead: the delete-a-group jackknife (Kott 2001).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, inf, log10

import torch
from scipy.stats import t as student
from torch import Tensor

GROUPS = 10
"""Groups of images that are left out in turn."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A statistic with its replicates; differences of estimates over the same images know that they are the same.

    Attributes:
        replicates: the statistic of all images, then without each group, (1 + G,), float64.
    """

    replicates: Tensor

    @property
    def value(self) -> float:
        """The statistic of all images."""
        return self.replicates[0].item()

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval over images: Student's t times sqrt((G - 1) / G sum (r - mean r)^2)."""
        left_out = self.replicates[1:]
        groups = len(left_out)
        error = ((groups - 1) / groups * (left_out - left_out.mean()).square().sum()).sqrt().item()
        return student.ppf(0.5 + CONFIDENCE / 2, groups - 1).item() * error

    def __sub__(self, other: "Estimate") -> "Estimate":
        """Return the difference."""
        return Estimate(self.replicates - other.replicates)

    def __truediv__(self, other: "Estimate") -> "Estimate":
        """Return the ratio."""
        return Estimate(self.replicates / other.replicates)

    def __str__(self) -> str:
        """Return `value ±half_width` with two digits of the half width; huge numbers as 1.2e+07 ±3.4e+06."""
        value, width = self.value, self.half_width
        if not 1e-9 < width < inf:
            return f"{0 if abs(value) < 1e-12 else value:.4g}"
        if max(abs(value), width) >= 1e6:
            return f"{value:.2g} ±{width:.2g}"
        decimals = max(1 - floor(log10(width)), 0)
        return f"{value:.{decimals}f} ±{width:.{decimals}f}"

    def values(self, name: str) -> dict[str, float]:
        """Return value and 95 % interval as NAME, NAME_low and NAME_high."""
        return {
            name: self.value,
            f"{name}_low": self.value - self.half_width,
            f"{name}_high": self.value + self.half_width,
        }


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of estimates over the same images."""
    return Estimate(torch.stack([estimate.replicates for estimate in estimates]).mean(0))


def jackknife(statistics: Callable[[Tensor], dict[str, Tensor]], images: int) -> dict[str, Estimate]:
    """Return estimates of named statistics.

    Args:
        statistics: of the images whose numbers it is given, (K,) int64, in order: named scalars.
        images: N, at least 2. Group g holds the images i with i % G = g.
    """
    numbers, groups = torch.arange(images), min(GROUPS, images)
    kept = [numbers, *(numbers[numbers % groups != group] for group in range(groups))]
    found = [statistics(rows) for rows in kept]
    return {name: Estimate(torch.stack([one[name].double().cpu() for one in found])) for name in found[0]}
