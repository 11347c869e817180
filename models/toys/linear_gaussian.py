"""Closed forms of the linear VAE in one dimension: its loss and its optimum for every (t, beta).

x ~ N(0, t^2), encoder z ~ N(a x, b^2), decoder mean c z, weight beta on the KL term. `directions` applies the same
formulas to every principal direction of data in d dimensions, whose matrices are in linear_vae.py.
Numbers in square brackets, [1] to [11], are the results of docs/toy.md. Rates and losses are in nats.
Scalars broadcast over grids; floats become float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from degrain.models.core.errors import InputError

# --- values


@dataclass(frozen=True)
class Optimum:
    """Encoder slope a, encoder std b and decoder slope c, elementwise; the sign of (a, c) is free, here c >= 0."""

    a: Tensor
    b: Tensor
    c: Tensor


@dataclass(frozen=True)
class Directions:
    """The optimal VAE along each principal direction of the data, elementwise.

    Args:
        live: True if a latent codes this direction.
        optimum: a, b, c along it; E[reconstruction | x] = a c x.
        squared_error: E|c z - x|^2 with z ~ q(z|x).
        rate: KL(q(z|x) to p(z)), in nats.
        mean_variance: variance of the mean images c z, z ~ N(0, 1).
        sample_variance: variance of the true samples c z + sigma eps.
    """

    live: Tensor
    optimum: Optimum
    squared_error: Tensor
    rate: Tensor
    mean_variance: Tensor
    sample_variance: Tensor


# --- checks of arguments


def require(name: str, value: Tensor, valid: Tensor, way_out: str) -> None:
    """Raise an InputError that names the first value that is not valid, and the way out."""
    if not valid.all():
        worst = value.detach().expand(valid.shape)[~valid].flatten()[0].item()
        raise InputError(f"toy Gaussian: {name} = {worst:g}; {way_out}")


def require_latents(latents: int, most: int | None = None) -> None:
    """Raise an InputError for fewer than 0 latents, or more than `most`."""
    if latents < 0 or (most is not None and latents > most):
        bound = "k >= 0" if most is None else f"0 <= k <= d = {most}, sigma is not determined by more"
        raise InputError(f"toy Gaussian: {latents} latents; give {bound}")


def as_float(value: Tensor | float) -> Tensor:
    """Return a number as a float64 tensor, a floating-point tensor as it is."""
    value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    return value if value.is_floating_point() else value.double()


def valid_std(t: Tensor | float) -> Tensor:
    """Return t; it must be finite and > 0."""
    t = as_float(t)
    require("data std t", t, (t > 0) & t.isfinite(), "give a finite t > 0")
    return t


def valid_beta(beta: Tensor | float) -> Tensor:
    """Return beta; it must be finite and >= 0."""
    beta = as_float(beta)
    require("beta", beta, (beta >= 0) & beta.isfinite(), "give a finite beta >= 0")
    return beta


def valid_kl_weight(weight: float) -> float:
    """Return w; it must be finite and > 0."""
    if not 0 < weight < math.inf:
        raise InputError(f"toy Gaussian: KL weight = {weight:g}; give a finite weight > 0")
    return weight


# --- one dimension: losses


def _weighted_kl(beta: Tensor, mean_square: Tensor, variance: Tensor) -> Tensor:
    """Return beta (mean_square + variance - 1 - log variance)/2, beta times the KL of N(mean, variance) to N(0, 1)."""
    # xlogy: with beta = 0 a variance of 0 costs nothing.
    return 0.5 * (beta * (mean_square + variance - 1) - torch.xlogy(beta, variance))


def loss(a: Tensor, b: Tensor, c: Tensor, t: Tensor | float, beta: Tensor | float) -> Tensor:
    """Return the integrated loss L = E|c z - x|^2 + beta E[KL].

    L = b^2 c^2 + (1 - a c)^2 t^2 + (beta/2)(a^2 t^2 + b^2 - log b^2 - 1).
    """
    t, beta = valid_std(t), valid_beta(beta)
    squared_error = (b * c).square() + ((1 - a * c) * t).square()
    return squared_error + _weighted_kl(beta, (a * t).square(), b.square())


def sampled_loss(a: Tensor, b: Tensor, c: Tensor, x: Tensor, noise: Tensor, beta: Tensor | float) -> Tensor:
    """Return (c (a x + b noise) - x)^2 + beta KL(N(a x, b^2) to N(0, 1)) per sample; its expectation is `loss`.

    Args:
        a, b, c: parameters, of a shape that broadcasts with x: (...) against (B, ...).
        x: draws of N(0, t^2), (B, ...).
        noise: draws of N(0, 1), (B, ...).
        beta: weight of the KL term.
    """
    beta = valid_beta(beta)
    z = a * x + b * noise
    return (c * z - x).square() + _weighted_kl(beta, (a * x).square(), b.square())


def aggregate_variance(a: Tensor, b: Tensor, t: Tensor | float) -> Tensor:
    """[6] Return the variance of q(z), a^2 t^2 + b^2: 1 at every optimum, where q(z) is the prior."""
    return (a * valid_std(t)).square() + b.square()


def aggregate_loss(a: Tensor, b: Tensor, c: Tensor, t: Tensor | float, beta: Tensor | float) -> Tensor:
    """[6] Return E|c z - x|^2 + beta KL(q(z) to p(z)) with q(z) = N(0, a^2 t^2 + b^2)."""
    beta, variance = valid_beta(beta), aggregate_variance(a, b, t)
    return loss(a, b, c, t, 0.0) + _weighted_kl(beta, torch.zeros_like(variance), variance)


def sampled_aggregate_loss(a: Tensor, b: Tensor, c: Tensor, x: Tensor, noise: Tensor, beta: Tensor | float) -> Tensor:
    """[6] Estimate `aggregate_loss` from a batch: the mean of (c z - x)^2 and the KL of N(0, mean of z^2).

    Its expectation differs from the integrated loss by about beta/(2B): the log of an estimated variance is biased.
    Arguments are those of `sampled_loss`.
    """
    variance = (a * x + b * noise).square().mean(0)
    squared_error = sampled_loss(a, b, c, x, noise, 0.0).mean(0)
    return squared_error + _weighted_kl(valid_beta(beta), torch.zeros_like(variance), variance)


# --- one dimension: closed forms


def fixed_noise_variance(beta: Tensor | float) -> Tensor:
    """[4] Return sigma^2 = beta/2: E|c z - x|^2 + beta KL = 2 sigma^2 (negative ELBO) - d sigma^2 log(2 pi sigma^2).

    With a fixed sigma the last term is constant, so both losses have the same minima.
    """
    return valid_beta(beta) / 2


def statistics(t: Tensor | float, beta: Tensor | float) -> Directions:
    """[1, 2, 5, 7] Return the optimum in one dimension: `directions` with l = t^2 and sigma^2 = beta/2.

    a c = (1 - beta/(2t^2))+, squared_error = min(beta/2, t^2), rate = log+(2t^2/beta)/2. Mean images have variance
    (t^2 - beta/2)+, which is too small; true samples max(t^2, beta/2), exact until the collapse and too wide after it.
    """
    return directions(valid_std(t).square(), fixed_noise_variance(beta))


def optimum(t: Tensor | float, beta: Tensor | float) -> Optimum:
    """[1, 2, 3] Return c^2 = t^2 - beta/2, a = c/t^2, b^2 = beta/(2t^2) below beta = 2t^2; else a = c = 0, b = 1.

    With beta = 0 the limit a = 1/t, b = 0, c = t is one of many: only a c = 1 and b = 0 are determined.
    """
    return statistics(t, beta).optimum


def aggregate_optimum(t: Tensor | float) -> Optimum:
    """[6] Return a = 1/t, b = 0, c = t: `aggregate_loss` is 0 for every beta, with perfect reconstruction."""
    t = valid_std(t)
    return Optimum(1 / t, torch.zeros_like(t), t)


def rate_at_distortion(t: Tensor | float, squared_error: Tensor | float) -> Tensor:
    """[7] Return log+(t^2/D)/2 nats, the Gaussian rate-distortion curve; its slope dD/dR is -2D = -beta."""
    squared_error = as_float(squared_error)
    require("squared error", squared_error, squared_error >= 0, "give values >= 0")
    return 0.5 * (valid_std(t).square() / squared_error).log().clamp(min=0)


# --- d dimensions: the same formulas for every eigenvalue


def directions(
    eigenvalues: Tensor, noise_variance: Tensor | float, latents: int | None = None, kl_weight: float = 1.0
) -> Directions:
    """[8] Return the optimum by reverse water-filling (probabilistic PCA): with n = w sigma^2, l_i > n is live.

    Live: c^2 = l - n, b^2 = n/l, a = c/l, rate = log(l/n)/2, squared error n. Dead: a = c = 0, b = 1, squared error l.
    True samples have variance l - n + sigma^2 (l for KL weight 1) in live directions, sigma^2 in dead ones: with enough
    latents their spectrum is max(l, sigma^2).

    Args:
        eigenvalues: variances l of the data along their principal directions, (..., d), in any order.
        noise_variance: sigma^2, shared, broadcastable to the eigenvalues; beta/2 for a squared error + beta KL.
        latents: k; only the k largest along the last axis can be live. None: as many as directions.
        kl_weight: w in distortion + w rate, with the likelihood's sigma fixed.

    Raises:
        InputError: a negative or infinite eigenvalue, noise variance or number of latents, or a KL weight <= 0.
    """
    l, noise = eigenvalues, as_float(noise_variance)  # noqa: E741, the formulas' own name
    require("eigenvalue", l, (l >= 0) & l.isfinite(), "give finite values >= 0")
    require("noise variance", noise, (noise >= 0) & noise.isfinite(), "give finite values >= 0")
    level = valid_kl_weight(kl_weight) * noise
    live = l > level
    if latents is not None:
        require_latents(latents)
        live = live & (l.argsort(-1, descending=True).argsort(-1) < latents)
    safe = torch.where(live, l, 1.0)  # dead directions may have l = 0, and where() alone would not stop its gradient
    mean_variance = torch.where(live, l - level, 0.0)
    b_square, c = torch.where(live, level / safe, 1.0), mean_variance.sqrt()
    return Directions(
        live=live,
        optimum=Optimum(a=c / safe, b=b_square.sqrt(), c=c),
        squared_error=torch.where(live, level, l),
        rate=0.5 * torch.where(live, safe / level, 1.0).log(),
        mean_variance=mean_variance,
        sample_variance=mean_variance + noise,
    )
