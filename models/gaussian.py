"""Gaussian distributions as values: sampling, KL, and likelihoods of 8-bit images.

Pixels live in [0, 1]; an 8-bit value k is k/255 and owns the bin [k - 1/2, k + 1/2]/255. Everything here computes in
the precision of its inputs, and callers pass float32 (tests float64): exp(-logstd) overflows half precision early.
Axes: B batch, C channels, H height, W width, D latents.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HALF_BIN = 0.5 / 255
"""Half the width of an 8-bit value's bin, in [0, 1] pixel units."""


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
        """mean + std * noise: a true draw when noise ~ N(0, I) has the mean's shape."""
        return self.mean + self.std * noise

    def repeat(self, times: int) -> "Gaussian":
        """The whole batch `times` times, one after another: (B, ...) -> (times B, ...)."""
        return Gaussian(torch.cat([self.mean] * times), torch.cat([self.logstd] * times))


def soft_floor(value: Tensor, low: float) -> Tensor:
    """low + softplus(value - low): never below low, and unlike a clamp never without a gradient."""
    return low + torch.nn.functional.softplus(value - low)


def kl_to_standard_normal(q: Gaussian) -> Tensor:
    """KL(N(mean, std^2) to N(0, 1)) = (mean^2 + std^2 - 1) / 2 - log std, elementwise, in nats."""
    return 0.5 * (q.mean.square() + (2 * q.logstd).exp() - 1) - q.logstd


def log_density(p: Gaussian, x: Tensor) -> Tensor:
    """log N(x; mean, std^2) = -((x - mean)/std)^2 / 2 - log std - log(2 pi)/2, elementwise, in nats."""
    return -0.5 * ((x - p.mean) / p.std).square() - p.logstd - 0.5 * math.log(2 * math.pi)


def log_bin_probability(p: Gaussian, x: Tensor) -> Tensor:
    """log P(8-bit value of x) = log[Phi((x + h - mean)/std) - Phi((x - h - mean)/std)], elementwise, in nats.

    The bins of 0 and 255 are open towards infinity, so the 256 probabilities sum to one and the result is never
    positive: the negative is a code length, however small the std.

    Args:
        p: distribution of the pixel in [0, 1] units.
        x: pixels on the 8-bit grid k/255, in [0, 1], the shape of p.mean.
    """
    std = p.std
    low, high = (x - HALF_BIN - p.mean) / std, (x + HALF_BIN - p.mean) / std
    # Phi(high) - Phi(low) cancels in the upper tail, so both bounds are mirrored into the lower: (a, b) -> (-b, -a).
    mirror = low + high > 0
    first, last = x < HALF_BIN, x > 1 - HALF_BIN
    lower, upper = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    log_lower, log_upper = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
    # log(exp(u) - exp(l)) = u + log(-expm1(l - u)); the gap is kept off 0, where a bin holds no probability at all.
    gap = (log_lower - log_upper).clamp(max=-torch.finfo(x.dtype).tiny)
    inside = log_upper + torch.log(-torch.expm1(gap))
    return torch.where(first, torch.special.log_ndtr(high), torch.where(last, torch.special.log_ndtr(-low), inside))


def bits_per_dimension(nats: Tensor, dimensions: int) -> Tensor:
    """nats per image / (dimensions * log 2)."""
    return nats / (dimensions * math.log(2))
