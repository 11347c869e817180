"""Whether p(x|z) can be believed: what held-out pixels say of the decoder's mean and std, streamed over batches.

The sums are torchmetrics states, so that Lightning adds them up over processes.
Axes: B batch, C channels, H height, W width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics import Metric

from models.core.gaussian import Gaussian, LatentDraws, kl_of_moments, kl_to_standard_normal

LEVELS = (0.5, 0.9, 0.99)
"""Probabilities of the central intervals whose coverage is counted."""

EDGES = torch.linspace(-5.0, 5.0, 101)
"""Edges of the histogram of standardised residuals; what lies beyond counts into the outermost bins."""


def inside_intervals(residual: Tensor) -> list[Tensor]:
    """Which standardised residuals lie in the central interval of N(0, 1) for each of LEVELS, in their shape."""
    half = torch.special.ndtri(0.5 + 0.5 * torch.tensor(LEVELS, dtype=torch.float64)).to(residual)
    return [residual.abs() < h for h in half]


@dataclass  # not frozen: torchmetrics walks through what compute() returns
class CalibrationReport:
    """What a Calibration found.

    Args:
        coverage: share of pixels inside the central intervals of LEVELS, (3,).
        histogram: density of the standardised residuals between EDGES, (100,).
        model_variance: Var_z[mean] + E[std^2] of every pixel, in [0, 1] units squared, (C, H, W).
        data_variance: Var[x] there.
    """

    coverage: Tensor
    histogram: Tensor
    model_variance: Tensor
    data_variance: Tensor

    @property
    def marginal_variance(self) -> Tensor:
        """Sum of the model's variance over all pixels, by the sum of the data's: 1 by the marginal variance law."""
        return self.model_variance.sum() / self.data_variance.sum().clamp(min=1e-12)  # 0 for a single image

    @property
    def marginal_variance_gap(self) -> Tensor:
        """Mean over pixels of |log(model variance / data variance)|: 0 by the law, at every pixel."""
        return (self.model_variance / self.data_variance.clamp(min=1e-12)).log().abs().mean()


class Calibration(Metric):
    """Standardised residuals (x - mean)/std of held-out images, and the marginal variance law of their pixels.

    With z ~ q(z|x) a calibrated Gaussian has residuals ~ N(0, 1), central intervals that cover what they claim, and
    Var_z[mean_i] + E[std_i^2] = Var[x_i] at every pixel i off the floor (factor analysis: docs/toy.md, 10).

    Args:
        shape: (C, H, W).
    """

    full_state_update = False

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        zeros = {
            "inside": torch.zeros(len(LEVELS), dtype=torch.float64),
            "counts": torch.zeros(len(EDGES) - 1, dtype=torch.float64),
            "images": torch.zeros((), dtype=torch.float64),
        } | {
            name: torch.zeros(shape, dtype=torch.float64)
            for name in ("mean_sum", "mean_square", "variance_sum", "data_sum", "data_square")
        }
        for name, value in zeros.items():
            self.add_state(name, value, dist_reduce_fx="sum")

    def update(self, p: Gaussian, x: Tensor) -> None:
        """Add images x (B, C, H, W) in [0, 1] and their p(x|z), mean and logstd of that shape."""
        residual = (x - p.mean) / p.std
        self.inside += torch.stack([i.double().mean() for i in inside_intervals(residual)]) * len(x)
        clipped = residual.clamp(EDGES[0].item(), EDGES[-1].item()).float().flatten()
        self.counts += torch.histc(clipped, len(EDGES) - 1, EDGES[0].item(), EDGES[-1].item()).to(self.counts)
        self.images += len(x)
        mean, data = p.mean.double(), x.double()
        self.mean_sum += mean.sum(0)
        self.mean_square += mean.square().sum(0)
        self.variance_sum += (2 * p.logstd.double()).exp().sum(0)
        self.data_sum += data.sum(0)
        self.data_square += data.square().sum(0)

    def compute(self) -> CalibrationReport:
        n = self.images
        density = self.counts / (self.counts.sum() * (EDGES[1] - EDGES[0]))
        return CalibrationReport(
            coverage=self.inside / n,
            histogram=density,
            # clamp: of means far out the difference rounds, and not always to 0 or more
            model_variance=(self.mean_square / n - (self.mean_sum / n).square()).clamp(min=0) + self.variance_sum / n,
            data_variance=self.data_square / n - (self.data_sum / n).square(),
        )


@dataclass  # not frozen: torchmetrics walks through what compute() returns
class CodeReport:
    """What a CodeStatistics found.

    Args:
        mean: E[z], (D,).
        covariance_of_means: Cov_x[E[z|x]], (D, D).
        covariance: Cov[z] = Cov_x[E[z|x]] + E_x[Cov[z|x]], (D, D).
        rate: of every latent, nats, (D,), beside N(0, I); None where q(z|x) is known by draws, whose rate is no sum
            over latents.
        active: latents with Var_x E[z|x] > 0.01.
    """

    mean: Tensor
    covariance_of_means: Tensor
    covariance: Tensor
    rate: Tensor | None
    active: Tensor

    @property
    def gap(self) -> Tensor:
        """KL(q(z) to p(z)) by q(z)'s mean and covariance, nats: the prior hole as far as two moments see it."""
        return kl_of_moments(self.mean, self.covariance)


class CodeStatistics(Metric):
    """Moments of the aggregate posterior q(z) and how far they are from N(0, I)'s, rate of every latent, active units.

    Args:
        latent: D.
        options: torchmetrics'; `sync_on_compute=False` where every process sees all images.
    """

    full_state_update = False

    def __init__(self, latent: int, **options: Any) -> None:
        super().__init__(**options)
        square = (latent, latent)
        shapes = {"count": (), "drawn": (), "sum": (latent,), "outer": square, "within": square, "nats": (latent,)}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, q: Gaussian | LatentDraws) -> None:
        """Add a batch of posteriors, mean and logstd (B, D), or K >= 2 draws of each, (K, B, D).

        Of draws E[z|x] and Cov[z|x] are estimates, and the outer product of the one is freed of the other's K-th part,
        so that neither sum is biased.
        """
        if isinstance(q, LatentDraws):
            mean, within = moments_of_draws(q.z.double())
            self.drawn += len(mean)
            self.outer -= within / len(q.z)
        else:
            mean, within = q.mean.double(), (2 * q.logstd.double()).exp().sum(0).diag()
            self.nats += kl_to_standard_normal(q).double().sum(0)
        self.count += len(mean)
        self.sum += mean.sum(0)
        self.outer += mean.T @ mean
        self.within += within

    def compute(self) -> CodeReport:
        mean = self.sum / self.count
        of_means = self.outer / self.count - mean.outer(mean)
        return CodeReport(
            mean=mean,
            covariance_of_means=of_means,
            covariance=of_means + self.within / self.count,
            rate=None if self.drawn else self.nats / self.count,
            active=(of_means.diagonal() > 0.01).sum(),
        )


def moments_of_draws(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of every image's draws, (B, D), and the sum over images of their covariance, (D, D), for z (K, B, D)."""
    mean = z.mean(0)
    apart = rearrange(z - mean, "k b d -> (k b) d")
    return mean, apart.T @ apart / (len(z) - 1)
