"""Calibration of p(x|z) and moments of q(z) on held-out images, streamed over batches.

Axes: B batch, C channels, H height, W width, D latents, K draws of one image's z.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics import Metric

from degrain.models.core.gaussian import Gaussian, LatentDraws, kl_of_moments, kl_to_standard_normal

LEVELS = (0.5, 0.9, 0.99)  # probabilities of the central intervals whose coverage is counted
EDGES = torch.linspace(-5.0, 5.0, 101)  # of the histogram of residuals; values beyond count into the outermost bins


class SumMetric(Metric):
    """A torchmetrics Metric whose states are float64 sums, which Lightning adds up over processes.

    Args:
        shapes: shape of every state, by name.
    """

    full_state_update = False

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")


def interval_masks(p: Gaussian, x: Tensor) -> list[Tensor]:
    """Return for each of LEVELS which values of x lie inside the central interval of p, in the shape of x."""
    residual = (x - p.mean) / p.std
    half = torch.special.ndtri(0.5 + 0.5 * torch.tensor(LEVELS, dtype=torch.float64)).to(residual)
    return [residual.abs() < h for h in half]


@dataclass  # not frozen: torchmetrics walks through the result of compute()
class CalibrationReport:
    """Result of a Calibration."""

    coverage: Tensor  # share of pixels inside the central intervals of LEVELS, (3,)
    histogram: Tensor  # density of the standardised residuals between EDGES, (100,)
    model_variance: Tensor  # Var_z[mean] + E[std^2] of every pixel, in [0, 1] units squared, (C, H, W)
    data_variance: Tensor  # Var[x] of every pixel, likewise

    @property
    def marginal_variance(self) -> Tensor:
        """The model's variance summed over pixels, divided by the data's: ideally 1."""
        return self.model_variance.sum() / self.data_variance.sum().clamp(min=1e-12)  # 0 for a single image

    @property
    def marginal_variance_gap(self) -> Tensor:
        """Mean over pixels of |log(model variance / data variance)|: ideally 0."""
        return (self.model_variance / self.data_variance.clamp(min=1e-12)).log().abs().mean()


class Calibration(SumMetric):
    """Standardised residuals (x - mean)/std of held-out images, and the marginal variance of their pixels.

    With z ~ q(z|x) a calibrated Gaussian has residuals ~ N(0, 1), central intervals that cover their probability, and
    Var_z[mean_i] + E[std_i^2] = Var[x_i] at every pixel i off the floor of std (factor analysis: docs/toy.md, 10).

    Args:
        shape: (C, H, W).
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        maps = dict.fromkeys(("mean_sum", "mean_square", "variance_sum", "data_sum", "data_square"), shape)
        super().__init__({"inside": (len(LEVELS),), "counts": (len(EDGES) - 1,), "images": (), **maps})

    def update(self, p: Gaussian, x: Tensor) -> None:
        """Add images x (B, C, H, W) in [0, 1] and their p(x|z), mean and logstd of that shape."""
        self.inside += torch.stack([mask.double().mean() for mask in interval_masks(p, x)]) * len(x)
        first, last = EDGES[0].item(), EDGES[-1].item()
        clipped = ((x - p.mean) / p.std).clamp(first, last).float().flatten()
        self.counts += torch.histc(clipped, len(EDGES) - 1, first, last).to(self.counts)
        self.images += len(x)
        mean, data = p.mean.double(), x.double()
        self.mean_sum += mean.sum(0)
        self.mean_square += mean.square().sum(0)
        self.variance_sum += (2 * p.logstd.double()).exp().sum(0)
        self.data_sum += data.sum(0)
        self.data_square += data.square().sum(0)

    def compute(self) -> CalibrationReport:
        n = self.images
        return CalibrationReport(
            coverage=self.inside / n,
            histogram=self.counts / (self.counts.sum() * (EDGES[1] - EDGES[0])),
            # clamp: for large means the difference may round to below 0
            model_variance=(self.mean_square / n - (self.mean_sum / n).square()).clamp(min=0) + self.variance_sum / n,
            data_variance=self.data_square / n - (self.data_sum / n).square(),
        )


@dataclass  # not frozen: torchmetrics walks through the result of compute()
class CodeReport:
    """Result of a CodeStatistics."""

    mean: Tensor  # E[z], (D,)
    covariance_of_means: Tensor  # Cov_x[E[z|x]], (D, D)
    covariance: Tensor  # Cov[z] = Cov_x[E[z|x]] + E_x[Cov[z|x]], (D, D)
    rate: Tensor | None  # KL of every latent to N(0, 1), nats, (D,); None if q(z|x) is known by draws alone
    active: Tensor  # number of latents with Var_x E[z|x] > 0.01, ()

    @property
    def gap(self) -> Tensor:
        """KL(q(z) to p(z)) by the mean and covariance of q(z), nats: the prior hole as far as two moments see it."""
        return kl_of_moments(self.mean, self.covariance)


class CodeStatistics(SumMetric):
    """Moments of the aggregate posterior q(z), rate of every latent, active units.

    Args:
        latent: D.
    """

    def __init__(self, latent: int) -> None:
        square = (latent, latent)
        shapes = {"count": (), "drawn": (), "sum": (latent,), "outer": square, "within": square, "nats": (latent,)}
        super().__init__(shapes)

    def update(self, q: Gaussian | LatentDraws) -> None:
        """Add a batch of posteriors, mean and logstd (B, D), or K >= 2 draws of each, (K, B, D).

        From draws E[z|x] and Cov[z|x] are estimated. The outer product of the estimated mean contains 1/K of that
        covariance, which is subtracted: neither sum is biased.
        """
        if isinstance(q, LatentDraws):
            z = q.z.double()
            mean = z.mean(0)
            centred = rearrange(z - mean, "k b d -> (k b) d")
            within = centred.T @ centred / (len(z) - 1)  # (D, D), sum over images
            self.drawn += len(mean)
            self.outer -= within / len(z)
        else:
            mean, within = q.mean.double(), (2 * q.logstd.double()).exp().sum(0).diag()
            self.nats += kl_to_standard_normal(q).double().sum(0)
        self.count += len(mean)
        self.sum += mean.sum(0)
        self.outer += mean.T @ mean
        self.within += within

    def compute(self) -> CodeReport:
        mean = self.sum / self.count
        covariance_of_means = self.outer / self.count - mean.outer(mean)
        return CodeReport(
            mean=mean,
            covariance_of_means=covariance_of_means,
            covariance=covariance_of_means + self.within / self.count,
            rate=None if self.drawn else self.nats / self.count,
            active=(covariance_of_means.diagonal() > 0.01).sum(),
        )
