"""Closed forms of linear VAEs with matrices in d dimensions: the ELBO, its optimum, and a learned shared sigma.

x ~ N(0, S), q(z|x) = N(A x, V), p(x|z) = N(C z, diag noise_variance), prior z ~ N(0, I).
Numbers in square brackets, [1] to [11], are the results of docs/toy.md. Rates and losses are in nats.
Axes: d data dimensions, k latents; matrices broadcast over leading axes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.toys.linear_gaussian import as_float, directions, require, require_latents, valid_kl_weight

LOG_2PI = math.log(2 * math.pi)


# --- values


@dataclass(frozen=True)
class LinearEncoder:
    """q(z|x) = N(A x, V).

    Args:
        matrix: A, (..., k, d).
        covariance: V, either its diagonal (..., k) or full (..., k, k).

    Raises:
        InputError: shapes that do not fit, V not symmetric, or a variance that is not positive.
    """

    matrix: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        diagonal, full = self.matrix.shape[:-1], (*self.matrix.shape[:-1], self.matrix.shape[-2])
        if self.covariance.shape not in (diagonal, full):
            expected = f"give {tuple(diagonal)} or {full} beside the matrix {tuple(self.matrix.shape)}"
            raise InputError(
                f"linear encoder: posterior covariance of shape {tuple(self.covariance.shape)}; {expected}"
            )
        variances = self.covariance
        if variances.shape == full:
            require_symmetric("posterior covariance", variances)
            variances = variances.diagonal(dim1=-2, dim2=-1)
        require("posterior variance", variances, variances > 0, "give values > 0")

    @property
    def full_covariance(self) -> Tensor:
        """Return V as a matrix, (..., k, k)."""
        return torch.diag_embed(self.covariance) if self.covariance.ndim < self.matrix.ndim else self.covariance


@dataclass(frozen=True)
class LinearDecoder:
    """p(x|z) = N(C z, diag noise_variance); with z ~ N(0, I), x ~ N(0, C C^T + diag noise_variance).

    Args:
        matrix: C, (..., d, k).
        noise_variance: sigma^2, shared (a 0-d tensor) or per pixel (..., d).

    Raises:
        InputError: a noise variance that is not positive, or neither shared nor per pixel.
    """

    matrix: Tensor
    noise_variance: Tensor

    def __post_init__(self) -> None:
        d, noise = self.matrix.shape[-2], self.noise_variance
        if noise.ndim and noise.shape[-1] != d:
            raise InputError(f"linear decoder: noise variance of shape {tuple(noise.shape)}; give () or (..., {d})")
        require("noise variance", noise, noise > 0, "give values > 0")

    @property
    def pixel_variance(self) -> Tensor:
        """Return sigma^2 at each pixel, (..., d), also if it is shared."""
        return self.noise_variance + torch.zeros_like(self.matrix[..., 0])

    @property
    def mean_covariance(self) -> Tensor:
        """Return C C^T, (..., d, d), the covariance of the mean images for z ~ N(0, I)."""
        return self.matrix @ self.matrix.mT

    @property
    def sample_covariance(self) -> Tensor:
        """Return C C^T + diag sigma^2, (..., d, d), the covariance of the true samples for z ~ N(0, I)."""
        return self.mean_covariance + torch.diag_embed(self.pixel_variance)


@dataclass(frozen=True)
class Elbo:
    """distortion = E[-log p(x|z)] and rate = E[KL(q(z|x) to p(z))], both (...), in nats; their sum bounds -log p(x)."""

    distortion: Tensor
    rate: Tensor


@dataclass(frozen=True)
class NoiseRange:
    """The shared noise variances that minimise the objective: all of [low, high]; one alone when low = high."""

    low: Tensor
    high: Tensor


# --- checks and helpers


def require_symmetric(name: str, matrix: Tensor) -> None:
    """Raise an InputError unless the matrix, (..., n, n), is square, finite and symmetric up to rounding."""
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise InputError(f"toy Gaussian: {name} of shape {tuple(matrix.shape)}; give a square matrix")
    if not matrix.isfinite().all():
        raise InputError(f"toy Gaussian: {name} has entries that are not finite; give real numbers")
    gap, scale = (matrix - matrix.mT).detach().abs().max().item(), matrix.detach().abs().max().item()
    if gap > 100 * torch.finfo(matrix.dtype).eps * scale:
        raise InputError(f"toy Gaussian: {name} differs from its transpose by {gap:g}; give a symmetric matrix")


def _eigh(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (..., d), descending, and eigenvectors (..., d, d) in columns, of a covariance matrix."""
    require_symmetric("covariance", covariance)
    values, vectors = torch.linalg.eigh(covariance)
    lowest = -100 * torch.finfo(values.dtype).eps * values[..., -1:].clamp(min=0)
    require("eigenvalue of the covariance", values, values >= lowest, "give a positive semi-definite matrix")
    return values.flip(-1).clamp(min=0), vectors.flip(-1)


def trace(matrix: Tensor) -> Tensor:
    """Return the trace of (..., n, n), (...)."""
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def spectrum(covariance: Tensor) -> Tensor:
    """Return the eigenvalues, (..., d) and descending, of a covariance matrix (..., d, d)."""
    return _eigh(covariance)[0]


# --- losses


def aggregate_covariance(encoder: LinearEncoder, covariance: Tensor) -> Tensor:
    """[6] Return A S A^T + V, (..., k, k), the covariance of q(z): the identity at every optimum."""
    require_symmetric("covariance", covariance)
    return encoder.matrix @ covariance @ encoder.matrix.mT + encoder.full_covariance


def residual_covariance(encoder: LinearEncoder, decoder_matrix: Tensor, covariance: Tensor) -> Tensor:
    """Return E[(C z - x)(C z - x)^T] = (I - C A) S (I - C A)^T + C V C^T with z ~ q(z|x), (..., d, d)."""
    require_symmetric("covariance", covariance)
    bias = torch.eye(covariance.shape[-1]).to(covariance) - decoder_matrix @ encoder.matrix
    return bias @ covariance @ bias.mT + decoder_matrix @ encoder.full_covariance @ decoder_matrix.mT


def rate(encoder: LinearEncoder, covariance: Tensor) -> Tensor:
    """Return E[KL(q(z|x) to p(z))] = (tr(A S A^T + V) - log det V - k)/2, (...), in nats."""
    q = encoder.full_covariance
    return 0.5 * (trace(aggregate_covariance(encoder, covariance)) - torch.logdet(q) - q.shape[-1])


def elbo(encoder: LinearEncoder, decoder: LinearDecoder, covariance: Tensor) -> Elbo:
    """[4, 8, 9, 10] Return distortion = sum_i (R_ii/sigma_i^2 + log(2 pi sigma_i^2))/2, R the `residual_covariance`."""
    residual = residual_covariance(encoder, decoder.matrix, covariance).diagonal(dim1=-2, dim2=-1)
    noise = decoder.pixel_variance
    return Elbo(0.5 * (residual / noise + noise.log() + LOG_2PI).sum(-1), rate(encoder, covariance))


# --- optima


def _whitened(covariance: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return diag(1/sigma) S diag(1/sigma), (..., d, d), and sigma at each pixel, (..., d)."""
    require_symmetric("covariance", covariance)
    require("noise variance", noise, noise > 0, "give values > 0")
    std = (noise + torch.zeros_like(covariance[..., 0])).sqrt()
    return covariance / (std[..., :, None] * std[..., None, :]), std


def best_vae(
    covariance: Tensor, noise_variance: Tensor | float, latents: int, kl_weight: float = 1.0
) -> tuple[LinearEncoder, LinearDecoder]:
    """[8, 10] Return the optimum over A, V and C for a fixed sigma: `directions` of diag(1/sigma) S diag(1/sigma).

    With eigenvectors U of that matrix, C = diag(sigma) U diag(c), A = diag(a) U^T diag(1/sigma), V = diag(b^2). Every
    rotation of the latents is an optimum too, with a full V. Latents past the d-th are dead.

    Args:
        covariance: S, (d, d).
        noise_variance: sigma^2, shared or per pixel (d,).
        latents: k, below, at or above d.
        kl_weight: w in distortion + w rate.
    """
    require_latents(latents)
    noise = as_float(noise_variance).to(covariance)
    white, std = _whitened(covariance, noise)
    values, vectors = _eigh(white)
    extra = (0, max(0, latents - len(values)))
    values = torch.nn.functional.pad(values, extra)[:latents]  # (k,)
    vectors = torch.nn.functional.pad(vectors, extra)[:, :latents]  # (d, k)
    best = directions(values, 1.0, kl_weight=kl_weight).optimum
    encoder = LinearEncoder(best.a[:, None] * vectors.mT / std, best.b.square())
    return encoder, LinearDecoder(std[:, None] * vectors * best.c, noise)


def best_encoder(decoder: LinearDecoder, kl_weight: float = 1.0) -> LinearEncoder:
    """Return the optimal encoder of a decoder: V = (I + C^T N^-1 C/w)^-1 and A = V C^T N^-1/w, N = diag sigma^2.

    With the KL weight w = 1 it is the true posterior, and the ELBO equals -log p(x).
    """
    scaled = decoder.matrix.mT / decoder.pixel_variance[..., None, :] / valid_kl_weight(kl_weight)  # (..., k, d)
    identity = torch.eye(decoder.matrix.shape[-1]).to(scaled)
    covariance = torch.linalg.inv(identity + scaled @ decoder.matrix)
    covariance = (covariance + covariance.mT) / 2
    return LinearEncoder(covariance @ scaled, covariance)


def best_objective(covariance: Tensor, noise_variance: Tensor | float, latents: int, kl_weight: float = 1.0) -> Tensor:
    """[9, 10] Return the minimum over A, V and C of distortion + w rate, a function of sigma alone, (...), in nats.

    sum_i (squared_error_i + log(2 pi sigma_i^2))/2 + w rate_i over the `directions` of diag(1/sigma) S diag(1/sigma).
    Convex in the log of a shared sigma. Differentiable: a factor analysis is a descent on log sigma alone.

    Args:
        covariance: S, (d, d).
        noise_variance: sigma^2, shared () or per pixel (..., d).
        latents: k.
        kl_weight: w.
    """
    white, std = _whitened(covariance, as_float(noise_variance).to(covariance))
    best = directions(torch.linalg.eigvalsh(white).clamp(min=0), 1.0, latents, kl_weight)
    return (0.5 * (best.squared_error + LOG_2PI) + std.log() + kl_weight * best.rate).sum(-1)


def best_shared_noise(eigenvalues: Tensor, latents: int, kl_weight: float = 1.0, floor: float = 0.0) -> NoiseRange:
    """[9] Return the learned shared sigma^2 that minimises distortion + w rate: (sum of dead l_i)/(d - w n_live).

    n_live counts those of the k largest l_i that are above w sigma^2. With KL weight 1 it is the mean of the discarded
    eigenvalues; with k = d every sigma^2 up to the least eigenvalue is as good (a flat valley). With k = d, w < 1
    sends sigma to 0, where only the floor stops it, and w > 1 collapses latents, all of them from w = max l/mean l on.
    The objective is convex in log sigma: there is no other minimum, and above the optimum a floor is the optimum.

    Args:
        eigenvalues: variances l of the data along their principal directions, (d,).
        latents: k <= d.
        kl_weight: w; 1 is the ELBO.
        floor: lowest sigma allowed (a std, not a variance).

    Raises:
        InputError: k > d, a negative eigenvalue or floor, or a KL weight <= 0.
    """
    d = len(eigenvalues)
    require("eigenvalue", eigenvalues, (eigenvalues >= 0) & eigenvalues.isfinite(), "give finite values >= 0")
    require_latents(latents, d)
    valid_kl_weight(kl_weight)
    lowest = as_float(floor).square().to(eigenvalues)
    require("floor on sigma", as_float(floor), as_float(floor) >= 0, "give a floor >= 0")
    ordered = eigenvalues.sort(descending=True).values
    for n_live in range(latents, -1, -1):
        top = ordered[n_live - 1] / kl_weight if n_live else torch.full_like(lowest, math.inf)
        dead, freedom = ordered[n_live:].sum(), d - kl_weight * n_live
        if freedom == 0 and dead == 0:
            return NoiseRange(lowest, torch.maximum(lowest, top))
        if freedom > 0 and dead / freedom <= top:
            break
    best = torch.maximum(lowest, dead / freedom)
    return NoiseRange(best, best)


def require_kl_weight(kl_weight: float, allowed: bool = False) -> None:
    """[9] Raise an InputError for a KL weight other than 1 with a learned sigma, unless the experiment asks for it."""
    if valid_kl_weight(kl_weight) != 1 and not allowed:
        drift = "sigma runs to its floor" if kl_weight < 1 else "latents collapse"
        reason = f"KL weight = {kl_weight:g} with a learned sigma: {drift}, since sigma already sets the trade-off"
        raise InputError(f"toy Gaussian: {reason}; keep the weight at 1, fix sigma, or ask for this experiment")
