"""The adversarial objective: tensors and networks in, named terms per sample out; no optimizer, logger or device.

Relativistic pairing with both zero-centred gradient penalties is R3GAN's ("The GAN is dead; long live the GAN!",
Huang et al. 2024, equations 2 and 5). The spread term is ours: it holds Var_eps[G] at the decoder's std^2.
Axes: B batch, K draws of one z, C channels, H height, W width.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian
from degrain.models.core.second_order import InputGradients

AdversarialLoss = Literal["relativistic", "classic"]
"""R3GAN's pairing, or the non-saturating loss of 2014 (Goodfellow et al.)."""

Critic = Callable[[Tensor, Gaussian], Tensor]
"""D: residuals (B, C, H, W) and their Gaussian -> logits (B,)."""

SPREAD_DRAWS = 4
"""Draws of each z that the spread term needs: two independent pairs."""


@dataclass(frozen=True)
class Scene:
    """B photographs, and the generator's images under the same Gaussians.

    Attributes:
        real: standardised residuals (x - mean)/std of photographs, (B, 3, H, W).
        p: the Gaussians that residuals are of.
        critic: D, from residuals and their p to logits.
        generate: gives images of G, K for each p, (K, B, 3, H, W), in [0, 1] units.
        feature_critic: as critic, the discriminator on features, if there is one.
    """

    real: Tensor
    p: Gaussian
    critic: Critic
    generate: Callable[[], Tensor]
    feature_critic: Critic | None = None

    def residual(self, image: Tensor) -> Tensor:
        """Return (image - mean)/std, (B, 3, H, W)."""
        return (image - self.p.mean) / self.p.std


def discriminator_objective(
    critic: Critic, loss: AdversarialLoss, real: Tensor, fake: Tensor, p: Gaussian, penalty_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return D's loss, (), and its terms, each (B,): `d_loss`, `margin` = D(real) - D(fake), penalties `r1` and `r2`.

    The penalties reuse the logits of the loss. Under autocast to bfloat16 D runs in it for them, too, and their sums
    are of float32; float16 is too narrow for gradients that no scaler has scaled, and D then runs in float32. The
    classic loss has R1 alone, as is usual (Mescheder et al. 2018).

    Args:
        critic: D.
        loss: relativistic, softplus(-(D(real) - D(fake))); or classic, softplus(-D(real)) + softplus(D(fake)).
        real: residuals of photographs, (B, C, H, W).
        fake: residuals of G's images, (B, C, H, W).
        p: the Gaussians that they are residuals of.
        penalty_weight: of r1 + r2; at 0 there are none.
    """
    penalised, both = penalty_weight > 0, penalty_weight > 0 and loss == "relativistic"
    real, fake = real.detach().requires_grad_(penalised), fake.detach().requires_grad_(both)
    narrow = torch.get_autocast_dtype(real.device.type) == torch.float16
    full = torch.autocast(real.device.type, enabled=False) if penalised and narrow else nullcontext()
    with full, InputGradients() if penalised else nullcontext():
        real_logits, fake_logits = critic(real, p), critic(fake, p)  # (B,)
        margin = real_logits - fake_logits
        classic = F.softplus(-real_logits) + F.softplus(fake_logits)
        terms = {"margin": margin, "d_loss": F.softplus(-margin) if loss == "relativistic" else classic}
        total = terms["d_loss"].mean()
        if penalised:
            penalties = {"r1": gradient_penalty(real_logits, real)}
            penalties |= {"r2": gradient_penalty(fake_logits, fake)} if both else {}
            total, terms = total + penalty_weight * sum(penalties.values()).mean(), terms | penalties
    return total, terms


def generator_objective(
    critic: Critic, loss: AdversarialLoss, real: Tensor, fake: Tensor, p: Gaussian
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return G's adversarial loss, (), and its term `g_loss`, (B,); arguments as in `discriminator_objective`.

    Relativistic, it is softplus(-(D(fake) - D(real))); classic, softplus(-D(fake)), whatever the photographs.
    """
    fake_logits = critic(fake, p)
    with torch.no_grad():
        real_logits = critic(real, p) if loss == "relativistic" else torch.zeros_like(fake_logits)
    g_loss = F.softplus(real_logits - fake_logits)
    return g_loss.mean(), {"g_loss": g_loss}


def gradient_penalty(logits: Tensor, inputs: Tensor) -> Tensor:
    """Return |grad_inputs sum(logits)|^2 / 2 per sample, (B,), for inputs (B, C, H, W) that gave the logits (B,).

    Zero-centred: on real inputs it is R1, on generated ones R2. Keeps its graph, so that it can be minimised. Inputs
    may have any axes after those of the logits: (M, B, D) for logits (M, B).
    """
    (gradient,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return 0.5 * gradient.float().square().sum(tuple(range(logits.ndim, inputs.ndim)))


def squared_error(image: Tensor, target: Tensor) -> Tensor:
    """Return (image - target)^2 averaged over pixels, (B, C, H, W) -> (B,): the objective without an adversary."""
    return reduce((image - target).square(), "b c h w -> b", "mean")


def variance_over_noise(draws: Tensor) -> Tensor:
    """Return Var_eps[G], unbiased, for K >= 2 draws (K, B, C, H, W): (B, C, H, W).

    Raises:
        InputError: fewer than two draws.
    """
    if len(draws) < 2:
        raise InputError("the variance over noise needs at least 2 draws of each z")
    apart = draws - draws[0]  # exactly 0 if all are equal
    return (apart - apart.mean(0)).square().sum(0) / (len(draws) - 1)  # `var(0)` is not vectorised on a CPU


def variance_ratio(draws: Tensor, std: Tensor) -> Tensor:
    """Return sum Var_eps[G] / sum std^2 over the pixels of an image, (B,): 1 is ideal, near 0 G ignores its noise.

    Args:
        draws: G for K >= 2 independent noises of the same z, (K, B, C, H, W).
        std: the decoder's std, (B, C, H, W).

    Raises:
        InputError: fewer than two draws.
    """
    return reduce(variance_over_noise(draws), "b c h w -> b", "sum") / reduce(std.square(), "b c h w -> b", "sum")


def spread_loss(draws: Tensor, std: Tensor, pool: int = 8) -> Tensor:
    """Estimate (v/s - 1)^2 averaged over the regions of an image, (B,), without bias; at times it is negative.

    v and s are Var_eps[G] and std^2 averaged over the channels and pool x pool pixels of a region. Half the squared
    difference of two draws estimates v; a product of two independent estimates less s estimates (v - s)^2. Four draws
    make two independent pairs in three ways, which are averaged.

    Args:
        draws: G for 4 independent noises of the same z, (4, B, C, H, W).
        std: the decoder's std, (B, C, H, W).
        pool: side of a region in pixels; divides H and W.
    """
    a, b, c, d = draws  # (B, C, H, W) each
    pairs = [(a, b), (a, c), (a, d), (c, d), (b, d), (b, c)]  # the last three are what the first three leave over
    squares = [0.5 * (one - other).square() for one, other in pairs] + [std.square()]
    regions = [reduce(x, "b c (h p) (w q) -> b h w", "mean", p=pool, q=pool) for x in squares]
    excess = torch.stack(regions[:-1]) / regions[-1] - 1  # (6, B, h, w)
    return reduce(excess[:3] * excess[3:], "n b h w -> b", "mean")


def spread_terms(draws: Tensor, std: Tensor) -> dict[str, Tensor]:
    """Return `spread`, the loss that holds Var_eps[G] at std^2, and `variance_ratio`, (B,); see `spread_loss`."""
    return {"spread": spread_loss(draws, std), "variance_ratio": variance_ratio(draws.detach(), std)}
