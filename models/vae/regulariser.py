"""Rate terms that replace the mean KL of the posteriors to N(0, I): free bits, KL of a batch's moments, MMD.

Axes: B batch, D latents.
"""

import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian
from degrain.models.core.precision import full_precision

# Scales s of the kernel of `mmd`, in units of 2 D: the mean squared distance between two draws of N(0, I).
KERNEL_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def floored_kl(kl: Tensor, least: float) -> Tensor:
    """Free bits: sum_d max(least, mean_b kl_bd), in nats per image: no latent gains by coding less than `least`.

    Kingma et al. 2016, with each latent a group of its own.

    Args:
        kl: of every posterior and latent, (B, D).
        least: lambda, in nats per latent; 0 gives the mean KL.
    """
    return kl.mean(0).clamp(min=least).sum()


@full_precision()
def mixture_moments(q: Gaussian) -> tuple[Tensor, Tensor]:
    """E_b[mean_b] and Cov_b[mean_b] + diag E_b[std_b^2]: mean (D,) and covariance (D, D) of a batch's mixture of q."""
    mean = q.mean.mean(0)
    centred = q.mean - mean
    return mean, centred.T @ centred / len(centred) + q.std.square().mean(0).diag()


@full_precision()
def mmd(a: Tensor, b: Tensor) -> Tensor:
    """MMD^2 = E k(a, a') + E k(b, b') - 2 E k(a, b), k = sum_s s C / (s C + |a - b|^2), C = 2 D; without a unit.

    The estimate averages over all pairs of two samples, without pairs of a draw with itself: it is unbiased, and so
    sometimes negative. The inverse multiquadric kernel has heavy tails, so that draws far out still have a gradient
    (Tolstikhin et al. 2018).

    Args:
        a: draws of one distribution, (B, D).
        b: draws of the other, as many.

    Raises:
        InputError: B is 1, which leaves no pairs.
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
    """D / (2 sum_s s/(1 + s)^2) MMD^2: for b ~ N(0, I) and a ~ N(m, I) the KL |m|^2 / 2, at small m and large D."""
    return a.shape[1] / sum(2 * s / (1 + s) ** 2 for s in KERNEL_SCALES) * mmd(a, b)
