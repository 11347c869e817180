"""Likelihoods of 8-bit images under a Gaussian for every pixel, and the losses that are made of them.

Pixels lie in [0, 1]; an 8-bit value k is k/255 and owns the bin [k - 1/2, k + 1/2]/255.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.core.gaussian import Gaussian, log_density

HALF_BIN = 0.5 / 255  # half the width of an 8-bit value's bin, in [0, 1] pixel units
LogLikelihood = Callable[[Gaussian, Tensor], Tensor]  # of every pixel: (p, x) -> nats, elementwise


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
    first, last = x < HALF_BIN, x > 1 - HALF_BIN
    # Phi(high) - Phi(low) cancels in the upper tail, so both bounds are mirrored into the lower: (a, b) -> (-b, -a).
    mirror = last | (low + high > 0) & ~first
    lower, upper = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    log_lower, log_upper = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
    # log(exp(u) - exp(l)) = u + log(-expm1(l - u)). The gap l - u stays off 0, where a bin would have probability 0;
    # it is -infinity for an open bin.
    gap = (log_lower - log_upper).clamp(max=-torch.finfo(x.dtype).tiny).masked_fill(first | last, -math.inf)
    return log_upper + torch.log(-torch.expm1(gap))


def dequantised(x: Tensor, uniform: Tensor) -> Tensor:
    """x + (uniform - 1/2)/255: for uniform in [0, 1) a point somewhere in the bin of each 8-bit value."""
    return x + HALF_BIN * (2 * uniform - 1)


def log_level_density(p: Gaussian, x: Tensor) -> Tensor:
    """log [N(x; mean, std^2) / 255], the density of a dequantised pixel per 8-bit level, elementwise, in nats.

    Its mean over the bin is at most `log_bin_probability`, and equal to it for a std of many levels. It is no log
    probability: its negative is below 0 where the std is below 1/(255 sqrt(2 pi)) = 0.0016, without a bound.
    """
    return log_density(p, x) + math.log(2 * HALF_BIN)


def beta_nll(nll: Tensor, std: Tensor, beta: float = 0.5) -> Tensor:
    """stopgrad(std^(2 beta)) nll, elementwise: at beta 1/2 the mean's gradient is divided by std instead of std^2.

    Seitzer et al. 2022. At beta 0 it is nll itself.
    """
    return std.detach() ** (2 * beta) * nll


def faithful_nll(p: Gaussian, x: Tensor, log_likelihood: LogLikelihood) -> Tensor:
    """(x - mean)^2 / 2 - log p(x; stopgrad(mean), std), elementwise: the mean learns as if there were no std.

    Stirn et al. 2023. To be faithful the logstd must come from features whose gradient is stopped, too.
    """
    return 0.5 * (x - p.mean).square() - log_likelihood(Gaussian(p.mean.detach(), p.logstd), x)


def bits_per_dimension(nats: Tensor, dimensions: int) -> Tensor:
    """nats per image / (dimensions * log 2)."""
    return nats / (dimensions * math.log(2))
