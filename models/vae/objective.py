"""The objective of stage 1: named terms per image, in nats; no optimizer, logger or device.

Axes: B batch, C channels, H height, W width, D latents.
"""

from typing import Literal

import torch
from einops import reduce
from torch import Tensor

from degrain.models.core.gaussian import Gaussian, LatentDraws, kl_to_standard_normal
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.likelihood import LogLikelihood, beta_nll, bits_per_dimension, faithful_nll
from degrain.models.vae.network import VAE, Posterior

DecoderGradient = Literal["plain", "beta-nll", "faithful"]


def reconstruct(
    vae: VAE, z: Tensor, x: Tensor, log_likelihood: LogLikelihood, gradient: DecoderGradient
) -> tuple[Gaussian, Tensor, Tensor]:
    """Return p(x|z), the distortion -log p(x|z), and what training minimises instead of it, both (B,).

    The variants change the gradient that the decoder's parameters get. z, and so the encoder, always gets that of the
    true distortion: the decoder runs on a copy of z, and a term that is linear in z has the gradient there.

    Args:
        vae: decodes.
        z: codes, (B, D).
        x: images, (B, C, H, W).
        log_likelihood: of every pixel.
        gradient: `plain`; `beta-nll` (Seitzer et al. 2022); `faithful` (Stirn et al. 2023).
    """
    if gradient == "plain":
        p = vae.decode(z, x)
        distortion = -per_image(log_likelihood(p, x))
        return p, distortion, distortion
    copy = z.detach().requires_grad_()
    features = vae.decoder.features(copy)
    p = vae.decoder.head(features)
    nll = -log_likelihood(p, x)
    distortion = per_image(nll)
    (slope,) = torch.autograd.grad(distortion.sum(), copy, retain_graph=True)
    if gradient == "beta-nll":
        variant = beta_nll(nll, p.std)
    else:
        std_head_alone = vae.decoder.head(features.detach())
        variant = faithful_nll(Gaussian(p.mean, std_head_alone.logstd), x, log_likelihood)
    return p, distortion, per_image(variant) + reduce(slope * z, "b d -> b", "sum")


def closed_form_rate(q: Posterior, prior: LatentPrior) -> bool:
    """Return whether KL(q(z|x) to p(z)) is known and a sum over latents: no flow on either side."""
    return isinstance(q, Gaussian) and prior.flow is None


def rate(q: Posterior, draws: LatentDraws, prior: LatentPrior) -> Tensor:
    """Return KL(q(z|x) to p(z)), (B,); without a closed form its estimate from the draw, log q - log p."""
    if closed_form_rate(q, prior):
        return reduce(kl_to_standard_normal(q), "b d -> b", "sum")
    return prior.rate(draws, prior.training_prior)


def statistics(p: Gaussian, x: Tensor, distortion: Tensor, rate: Tensor, std_floor: float) -> dict[str, Tensor]:
    """Return distortion, rate and what is watched beside them, per image, (B,); errors and stds in [0, 1] units.

    Args:
        p: p(x|z).
        x: images, (B, C, H, W).
        distortion: -log p(x|z), (B,).
        rate: KL(q(z|x) to p(z)), (B,).
        std_floor: least std of a pixel; `at_floor` is the share of pixels within a tenth of it.
    """
    p = Gaussian(p.mean.detach(), p.logstd.detach())  # what is watched keeps no graph
    return {
        "distortion": distortion,
        "rate": rate,
        "bits_per_dimension": bits_per_dimension(distortion + rate, x[0].numel()),
        "squared_error": reduce((p.mean - x).square(), "b c h w -> b", "mean"),
        "std": reduce(p.std, "b c h w -> b", "mean"),
        "at_floor": reduce((p.std < 1.1 * std_floor).float(), "b c h w -> b", "mean"),
    }


def per_image(values: Tensor) -> Tensor:
    """Return the sum over pixels and channels, (B, C, H, W) -> (B,)."""
    return reduce(values, "b c h w -> b", "sum")
