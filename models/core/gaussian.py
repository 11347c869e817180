"""Gaussian distributions as values: sampling, densities and KL divergences.

Everything here computes in the precision of its inputs, and callers pass float32 (tests float64): exp(-logstd)
overflows half precision early. Axes: B batch, C channels, H height, W width, D latents.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian with independent components, N(mean, diag exp(logstd)^2).

    Args:
        mean: any shape, (B, D) for a posterior, (B, C, H, W) for an image.
        logstd: log of the standard deviation, broadcastable to the mean.
    """

    mean: Tensor
    logstd: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation, the shape of logstd, in the units of the mean."""
        return self.logstd.exp()

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + std * noise: a true draw when noise ~ N(0, I) has the mean's shape."""
        return self.mean + self.std * noise

    def draw(self, noise: Tensor) -> "LatentDraws":
        """Return `sample(noise)` with its log density, for a posterior and standard normal noise (..., B, D)."""
        return LatentDraws(self.sample(noise), log_standard_normal(noise) - self.logstd.sum(-1))

    def __getitem__(self, index: slice) -> "Gaussian":
        """Select images of the batch."""
        return Gaussian(self.mean[index], self.logstd[index])

    def repeat(self, times: int) -> "Gaussian":
        """Repeat the whole batch, one copy after another: (B, ...) -> (times B, ...)."""
        return Gaussian(torch.cat([self.mean] * times), torch.cat([self.logstd] * times))


@dataclass(frozen=True)
class LatentDraws:
    """Codes drawn from posteriors with their log densities, which is all that a flowed posterior gives.

    Args:
        z: codes, (..., D).
        log_q: log q(z|x) in nats, (...).
    """

    z: Tensor
    log_q: Tensor

    def __getitem__(self, index: object) -> "LatentDraws":
        """Select draws by the leading axes."""
        return LatentDraws(self.z[index], self.log_q[index])


class Softplus(torch.autograd.Function):
    """log(1 + exp(x)), elementwise: torch's own has no vectorised kernel on a CPU, and takes seven times as long."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu() - x.abs().sigmoid_().log_()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x.sigmoid()


def soft_floor(value: Tensor, low: float) -> Tensor:
    """low + softplus(value - low): never below low and, unlike a clamp, never without a gradient."""
    return low + Softplus.apply(value - low)


def soft_ceiling(value: Tensor, high: float) -> Tensor:
    """high - softplus(high - value): never above high and, unlike a clamp, never without a gradient."""
    return -soft_floor(-value, -high)


def log_standard_normal(u: Tensor) -> Tensor:
    """log N(u; 0, I) = -|u|^2 / 2 - D log(2 pi) / 2, in nats, (..., D) -> (...)."""
    return -0.5 * u.square().sum(-1) - 0.5 * u.shape[-1] * math.log(2 * math.pi)


def log_density(p: Gaussian, x: Tensor) -> Tensor:
    """log N(x; mean, std^2) = -((x - mean)/std)^2 / 2 - log std - log(2 pi)/2, elementwise, in nats."""
    return -0.5 * ((x - p.mean) / p.std).square() - p.logstd - 0.5 * math.log(2 * math.pi)


def kl_to_standard_normal(q: Gaussian) -> Tensor:
    """KL(N(mean, std^2) to N(0, 1)) = (mean^2 + std^2 - 1) / 2 - log std, elementwise, in nats."""
    return 0.5 * (q.mean.square() + (2 * q.logstd).exp() - 1) - q.logstd


def kl_of_moments(mean: Tensor, covariance: Tensor) -> Tensor:
    """KL(N(m, S) to N(0, I)) = (tr S + |m|^2 - D - log det S) / 2, in nats, for m (D,) and S (D, D).

    Infinite where S is singular up to rounding, nan where S is nan.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    log_determinant = 2 * factor.diagonal().log().sum()
    log_determinant = log_determinant.masked_fill(failed > 0, -math.inf)
    return 0.5 * (covariance.trace() + mean.square().sum() - len(mean) - log_determinant)
