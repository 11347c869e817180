"""The adversarial objective of the denoising stage: named terms per sample, no optimiser, no logger, no device.

Relativistic pairing with both zero-centred gradient penalties is R3GAN's ("The GAN is dead; long live the GAN!",
Huang et al. 2024, equations 2 and 5). The spread term is ours: it makes Var_eps[G] what the decoder says it is.
Axes: B batch, K draws of one z, C channels, H height, W width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from models.core.errors import InputError

AdversarialLoss = Literal["relativistic", "classic"]
"""R3GAN's pairing, or the non-saturating loss of 2014 (Goodfellow et al.)."""


def relativistic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """softplus(-(real - fake)), the discriminator's loss per pair of logits; the generator's is the same, swapped."""
    return F.softplus(fake - real)


def discriminator_loss(loss: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    """D's loss per pair of logits, any shape; the classic one is softplus(-real) + softplus(fake)."""
    return relativistic_loss(real, fake) if loss == "relativistic" else F.softplus(-real) + F.softplus(fake)


def generator_loss(loss: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    """G's loss per pair of logits, any shape; the classic one is softplus(-fake), whatever the real one's."""
    return relativistic_loss(fake, real) if loss == "relativistic" else F.softplus(-fake)


def gradient_penalty(logits: Tensor, inputs: Tensor) -> Tensor:
    """|grad_inputs sum(logits)|^2 / 2 per sample, (B,), for inputs (B, C, H, W) that logits (B,) were computed from.

    Zero-centred: on real inputs it is R1, on generated ones R2. Keeps its graph, so that it can be minimised.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return 0.5 * reduce(gradient.float().square(), "b c h w -> b", "sum")


def translated(images: Tensor, offsets: Tensor) -> Tensor:
    """Images (B, C, H, W) moved by whole pixels, zeros in what is left bare.

    DiffAugment's translation (Zhao et al. 2020): what D sees of photographs and of G's images, moved by the same law.
    The bare edge says by how much an image was moved, so that no two laws of images become one.

    Args:
        images: shape (B, C, H, W).
        offsets: down and to the right in pixels, whole numbers, (B, 2).
    """
    most = int(offsets.abs().max())
    height, width = images.shape[-2:]
    wide = F.pad(images, (most,) * 4)
    corners = (most - offsets).long().tolist()
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(wide, corners, strict=True)])


def squared_error(draws: Tensor, target: Tensor) -> Tensor:
    """(draws - target)^2 averaged over draws and pixels, (B,), for (K, B, C, H, W) and (B, C, H, W): no adversary."""
    return reduce((draws - target).square(), "k b c h w -> b", "mean")


def variance_over_noise(draws: Tensor) -> Tensor:
    """Var_eps[G], unbiased, for K >= 2 draws (K, B, C, H, W): (B, C, H, W).

    Raises:
        InputError: fewer than two draws.
    """
    if len(draws) < 2:
        raise InputError("the variance over noise needs at least 2 draws of each z")
    return draws.var(0)


def variance_ratio(draws: Tensor, std: Tensor) -> Tensor:
    """sum Var_eps[G] / sum std^2 over the pixels of an image, (B,): 1 is ideal, near 0 means that G ignores its noise.

    Args:
        draws: G for K >= 2 independent noises of the same z, (K, B, C, H, W).
        std: the decoder's std, (B, C, H, W).

    Raises:
        InputError: fewer than two draws.
    """
    return reduce(variance_over_noise(draws), "b c h w -> b", "sum") / reduce(std.square(), "b c h w -> b", "sum")


def regional_variances(draws: Tensor, std: Tensor, pool: int = 8) -> Tensor:
    """v, the variance of G over its noise, and s, that of the decoder, by region, (2, H / pool, W / pool).

    Both are averaged over the batch, the channels and pool x pool pixels before the log, because the log of a variance
    estimated from few values is biased low. Of equal parts of a batch they average to its own.

    Args:
        draws: G for K >= 2 independent noises of the same z, (K, B, C, H, W).
        std: the decoder's std, (B, C, H, W).
        pool: side of a region in pixels; divides H and W.

    Raises:
        InputError: fewer than two draws.
    """
    pattern = "b c (h p) (w q) -> h w"
    generated = reduce(variance_over_noise(draws), pattern, "mean", p=pool, q=pool)
    return torch.stack([generated, reduce(std.square(), pattern, "mean", p=pool, q=pool)])


def spread_loss(variances: Tensor, epsilon: float = 1e-4) -> Tensor:
    """(log v - log s)^2 averaged over regions, for v and s (2, h, w), (scalar).

    The same epsilon stands on both sides, in units of std^2's own mean, so that equal variances always give 0.

    Args:
        variances: of G over its noise, and of the decoder.
        epsilon: softens the log, as a share of the mean of std^2.
    """
    generated, decoded = variances
    soft = epsilon * decoded.mean()
    return ((generated + soft).log() - (decoded + soft).log()).square().mean()
