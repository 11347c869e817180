"""Gaussian distributions as values: sampling, divergences, and likelihoods of 8-bit images.

Pixels live in [0, 1]; an 8-bit value k is k/255 and owns the bin [k - 1/2, k + 1/2]/255. Everything here computes in
the precision of its inputs, and callers pass float32 (tests float64): exp(-logstd) overflows half precision early.
Axes: B batch, C channels, H height, W width, D latents.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.core.errors import InputError

HALF_BIN = 0.5 / 255
"""Half the width of an 8-bit value's bin, in [0, 1] pixel units."""

KERNEL_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""The scales s of the kernel of `mmd`, times 2 D: the squared distance that two draws of N(0, I) have on average."""


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

    def draw(self, noise: Tensor) -> "Draws":
        """Of a posterior over codes: the z of standard normal noise (..., B, D), and log q(z|x)."""
        return Draws(self.sample(noise), log_standard_normal(noise) - self.logstd.sum(-1))

    def __getitem__(self, which: slice) -> "Gaussian":
        """Some of the batch."""
        return Gaussian(self.mean[which], self.logstd[which])

    def repeat(self, times: int) -> "Gaussian":
        """The whole batch `times` times, one after another: (B, ...) -> (times B, ...)."""
        return Gaussian(torch.cat([self.mean] * times), torch.cat([self.logstd] * times))


@dataclass(frozen=True)
class Draws:
    """Codes drawn from posteriors, and how likely each was: all that is known of a posterior without a closed form.

    Args:
        z: codes, (..., D).
        log_q: log q(z|x) in nats, (...).
    """

    z: Tensor
    log_q: Tensor

    def __getitem__(self, which: object) -> "Draws":
        """Some of them, by the first axes."""
        return Draws(self.z[which], self.log_q[which])


def soft_floor(value: Tensor, low: float) -> Tensor:
    """low + softplus(value - low): never below low, and unlike a clamp never without a gradient."""
    return low + torch.nn.functional.softplus(value - low)


def soft_ceiling(value: Tensor, high: float) -> Tensor:
    """high - softplus(high - value): never above high, and unlike a clamp never without a gradient."""
    return -soft_floor(-value, -high)


def kl_to_standard_normal(q: Gaussian) -> Tensor:
    """KL(N(mean, std^2) to N(0, 1)) = (mean^2 + std^2 - 1) / 2 - log std, elementwise, in nats."""
    return 0.5 * (q.mean.square() + (2 * q.logstd).exp() - 1) - q.logstd


def floored_kl(kl: Tensor, least: float) -> Tensor:
    """Free bits: sum_d max(least, mean_b kl_bd), in nats per image: no latent gains by coding less than `least`.

    Kingma et al. 2016, with each latent a group of its own.

    Args:
        kl: of every posterior and latent, (B, D).
        least: lambda, in nats per latent; 0 gives the mean KL.
    """
    return kl.mean(0).clamp(min=least).sum()


def mixture_moments(q: Gaussian) -> tuple[Tensor, Tensor]:
    """E_b[mean_b] and Cov_b[mean_b] + diag E_b[std_b^2]: mean (D,) and covariance (D, D) of a batch's mixture of q."""
    mean = q.mean.mean(0)
    centred = q.mean - mean
    return mean, centred.T @ centred / len(centred) + q.std.square().mean(0).diag()


def kl_of_moments(mean: Tensor, covariance: Tensor) -> Tensor:
    """KL(N(m, S) to N(0, I)) = (tr S + |m|^2 - D - log det S) / 2, in nats, for m (D,) and S (D, D).

    It is infinite where S is singular, as far as rounding tells, and nan where S is.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    log_determinant = 2 * factor.diagonal().log().sum()
    log_determinant = log_determinant.masked_fill(failed > 0, -math.inf)
    return 0.5 * (covariance.trace() + mean.square().sum() - len(mean) - log_determinant)


def mmd(a: Tensor, b: Tensor) -> Tensor:
    """MMD^2 = E k(a, a') + E k(b, b') - 2 E k(a, b), k = sum_s s C / (s C + |a - b|^2), C = 2 D; without a unit.

    The estimate over all pairs of two samples, none of a draw with itself: unbiased, and so at times below 0. The
    inverse multiquadric kernel has heavy tails, so that draws far out still feel a pull (Tolstikhin et al. 2018).

    Args:
        a: draws of one law, (B, D).
        b: draws of the other, as many.

    Raises:
        InputError: there are no pairs in a sample of one.
    """
    n, scale = len(a), 2 * a.shape[1]
    if n < 2:
        raise InputError("regulariser mmd compares pairs of codes: give data.batch_size 2 or more")

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        square = u.square().sum(1)[:, None] + v.square().sum(1) - 2 * u @ v.T  # (B, B)
        return sum(s * scale / (s * scale + square) for s in KERNEL_SCALES)

    others = 1 - torch.eye(n, dtype=a.dtype, device=a.device)
    within = ((kernel(a, a) + kernel(b, b)) * others).sum() / (n * (n - 1))
    return within - 2 * kernel(a, b).mean()


def mmd_in_nats(a: Tensor, b: Tensor) -> Tensor:
    """D / (2 sum_s s/(1 + s)^2) MMD^2: where b ~ N(0, I) and a ~ N(m, I), |m|^2 / 2 for small m and large D, as KL."""
    return a.shape[1] / sum(2 * s / (1 + s) ** 2 for s in KERNEL_SCALES) * mmd(a, b)


def log_standard_normal(u: Tensor) -> Tensor:
    """log N(u; 0, I) = -|u|^2 / 2 - D log(2 pi) / 2, (..., D) -> (...)."""
    return -0.5 * u.square().sum(-1) - 0.5 * u.shape[-1] * math.log(2 * math.pi)


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
    first, last = x < HALF_BIN, x > 1 - HALF_BIN
    # Phi(high) - Phi(low) cancels in the upper tail, so both bounds are mirrored into the lower: (a, b) -> (-b, -a).
    mirror = last | (low + high > 0) & ~first
    lower, upper = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    log_lower, log_upper = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
    # log(exp(u) - exp(l)) = u + log(-expm1(l - u)); the gap is kept off 0, where a bin holds no probability at all,
    # and of an open bin it is infinite.
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


LogLikelihood = Callable[[Gaussian, Tensor], Tensor]
"""A log likelihood of every pixel: (p, x) -> nats, elementwise."""


def beta_nll(nll: Tensor, std: Tensor, beta: float = 0.5) -> Tensor:
    """stopgrad(std^(2 beta)) nll, elementwise: at beta 1/2 the mean's gradient is divided by std, no more by std^2.

    Seitzer et al. 2022. At beta 0 it is nll itself.
    """
    return std.detach() ** (2 * beta) * nll


def faithful_nll(p: Gaussian, x: Tensor, log_likelihood: LogLikelihood) -> Tensor:
    """(x - mean)^2 / 2 - log p(x; stopgrad(mean), std), elementwise: the mean learns as if there were no std.

    Stirn et al. 2023. To be faithful the logstd must come of features whose gradient is stopped, too.
    """
    return 0.5 * (x - p.mean).square() - log_likelihood(Gaussian(p.mean.detach(), p.logstd), x)


def bits_per_dimension(nats: Tensor, dimensions: int) -> Tensor:
    """nats per image / (dimensions * log 2)."""
    return nats / (dimensions * math.log(2))
