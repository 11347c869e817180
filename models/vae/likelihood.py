"""Likelihoods of 8-bit images under a Gaussian for every pixel, and the losses that are made of them.

Pixels lie in [0, 1]; an 8-bit value k is k/255 and owns the bin [k - 1/2, k + 1/2]/255.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from degrain.models.core.gaussian import Gaussian, log_density

HALF_BIN = 0.5 / 255  # half the width of an 8-bit value's bin, in [0, 1] pixel units
LOG_PEAK = -0.5 * math.log(2 * math.pi)  # log phi(0)
LogLikelihood = Callable[[Gaussian, Tensor], Tensor]  # of every pixel: (p, x) -> nats, elementwise


def log_bin_probability(p: Gaussian, x: Tensor) -> Tensor:
    """log P(8-bit value of x) = log[Phi((x + h - mean)/std) - Phi((x - h - mean)/std)], elementwise, in nats.

    The bins of 0 and 255 are open towards infinity, so the 256 probabilities sum to one and the result is never
    positive: the negative is a code length, however small the std. It can be differentiated once.

    Args:
        p: distribution of the pixel in [0, 1] units.
        x: pixels on the 8-bit grid k/255, in [0, 1], the shape of p.mean.
    """
    return BinProbability.apply(*torch.broadcast_tensors(p.mean, p.logstd, x))


class BinProbability(torch.autograd.Function):
    """`log_bin_probability` of (mean, logstd, x), with its derivative in closed form.

    By symmetry the bin lies above the mean, from `near` to `far` stds away: P = Q(near) - Q(far) with Q = 1 - Phi. An
    open bin has no far end. All is computed without branches, by functions that PyTorch vectorises on a CPU (`where`,
    `expm1`, `log_ndtr` and `softplus` it does not).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, mean: Tensor, logstd: Tensor, x: Tensor) -> Tensor:
        precision = (-logstd).exp()
        u, half = (x - mean) * precision, HALF_BIN * precision
        outward = (x > 1 - HALF_BIN).to(x.dtype) - (x < HALF_BIN).to(x.dtype)  # 1 at 255, -1 at 0, otherwise 0
        open_bin = outward.square()
        closed = 1 - open_bin
        side = outward + closed * u.sign()  # of the mean on which the bin lies
        distance = side * u
        near, far = distance - half, distance + half
        scaled = log_scaled_tail(near)
        # log Q(far)/Q(near). It stays off 0, where a bin would have probability 0.
        a, b = near.relu(), far.relu()
        gap = (log_scaled_tail(far) - scaled - 0.5 * (b - a) * (b + a)).clamp(max=-2 * torch.finfo(x.dtype).tiny)
        t = (-0.5 * gap).tanh()  # 1 - exp(gap) = 2 t/(1 + t) keeps the digits of a small gap
        log_share = (open_bin + closed * (2 * t / (1 + t))).log()  # log P/Q(near)
        if any(ctx.needs_input_grad):  # phi(near)/P and phi(far)/P: the derivatives by -near and far
            at_near = (LOG_PEAK - 0.5 * (-near).relu().square() - scaled - log_share).exp()
            at_far = closed * at_near * (-2 * distance.relu() * half).exp()
            ctx.save_for_backward(side * precision * (at_near - at_far), near * at_near - far * at_far)
        return scaled - 0.5 * a.square() + log_share

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("log_bin_probability has no second derivative; leave out create_graph")
        by_mean, by_logstd = ctx.saved_tensors
        return gradient * by_mean, gradient * by_logstd, None


def log_scaled_tail(z: Tensor) -> Tensor:
    """log Q(z) + max(z, 0)^2 / 2 for Q = 1 - Phi, elementwise; it falls as slowly as -log z.

    Up to an edge by erfc, from there on by the asymptotic series of Mills' ratio, which is exact there up to rounding:
    Q(z)/phi(z) = (1/z)(1 - 1/z^2 + 3/z^4 - 15/z^6 + ...) (Abramowitz and Stegun 1964, 26.2.12).
    """
    edge, orders = (12.0, (7, 5, 3, 1)) if z.dtype == torch.float32 else (30.0, (13, 11, 9, 7, 5, 3, 1))
    inner, outer = z.clamp(max=edge), z.clamp(min=edge)  # erfc underflows at 14 and 38
    ratios = []
    for x in (outer, torch.tensor(edge, dtype=z.dtype)):
        inverse = x.reciprocal()
        step, series = inverse.square(), torch.ones_like(x)
        for order in orders:
            series.mul_(step).mul_(-order).add_(1)
        ratios.append(series.mul_(inverse))
    tail = torch.erfc(inner * math.sqrt(0.5)).mul_(0.5).log_().add_(inner.relu().square_(), alpha=0.5)
    return tail.add_((ratios[0] / ratios[1]).log_())


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
