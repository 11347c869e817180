"""Compare draws with a known distribution: Wasserstein distance in one dimension, modes and quality of mixtures."""

import torch
from torch import Tensor


def wasserstein_to_normal(draws: Tensor, std: float) -> Tensor:
    """Return W1 = mean |x_(i) - std Phi^-1((i - 1/2)/n)|, (...), between draws (..., n), sorted, and N(0, std^2).

    Exact samples have about std/sqrt(n), not 0: compare with theirs. scipy.stats.wasserstein_distance compares two
    samples, and its target would add noise of its own.
    """
    n = draws.shape[-1]
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    quantiles = std * torch.special.ndtri(levels)
    return (draws.double().sort(-1).values - quantiles).abs().mean(-1)


def mixture_quality(points: Tensor, centres: Tensor, std: float) -> tuple[Tensor, Tensor]:
    """Return the number of modes found and the share of high-quality points, each (M,), under an equal mixture.

    A point is of high quality within 3 std of a centre: of the mixture's own points 1 - exp(-9/2) = 98.9 % are.
    A mode is found if high-quality points near it are at least a tenth of its fair share of all points.

    Args:
        points: (M, n, 2).
        centres: (C, 2).
        std: of each mode.
    """
    distance, nearest = torch.cdist(points.double(), centres.double()).min(-1)  # (M, n)
    good = distance < 3 * std
    counts = torch.zeros(len(points), len(centres), dtype=torch.float64).scatter_add_(1, nearest, good.double())
    found = counts >= 0.1 * points.shape[1] / len(centres)
    return found.double().sum(-1), good.double().mean(-1)
