"""The toy-Gaussian laboratory's mathematics in d dimensions: linear VAEs with matrices, every optimum in closed form.

x ~ N(0, S), q(z|x) = N(A x, V), p(x|z) = N(C z, diag noise_variance), prior z ~ N(0, I).
Numbers in square brackets, [1] to [11], are the results as docs/toy.md counts them. Everything is in nats.
Axes: d data dimensions, k latents; matrices broadcast over leading axes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.core.errors import InputError
from models.core.gaussian import soft_floor
from models.toys.linear_gaussian import as_float, directions, require, require_latents, valid_beta, valid_kl_weight

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
            _require_symmetric("posterior covariance", variances)
            variances = variances.diagonal(dim1=-2, dim2=-1)
        require("posterior variance", variances, variances > 0, "give values > 0")

    @property
    def full_covariance(self) -> Tensor:
        """V as a matrix, (..., k, k)."""
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
        """sigma^2 at each pixel, (..., d), also when it is shared."""
        return self.noise_variance + torch.zeros_like(self.matrix[..., 0])

    @property
    def mean_covariance(self) -> Tensor:
        """Cov of the mean images for z ~ N(0, I) = C C^T, (..., d, d)."""
        return self.matrix @ self.matrix.mT

    @property
    def sample_covariance(self) -> Tensor:
        """Cov of the true samples for z ~ N(0, I) = C C^T + diag sigma^2, (..., d, d)."""
        return self.mean_covariance + torch.diag_embed(self.pixel_variance)


@dataclass(frozen=True)
class Elbo:
    """distortion = E[-log p(x|z)] and rate = E[KL(q(z|x) to p(z))], both (...), in nats; their sum bounds -log p(x)."""

    distortion: Tensor
    rate: Tensor


@dataclass(frozen=True)
class Conditional:
    """What the data are given the code, z ~ q(z): E[x|z] = matrix z, matrix (..., d, k), and Cov[x|z] (..., d, d)."""

    matrix: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class NoiseRange:
    """The shared noise variances that minimise the objective: all of [low, high]; one alone when low = high."""

    low: Tensor
    high: Tensor


# --- what is refused, and helpers


def _require_symmetric(name: str, matrix: Tensor) -> None:
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise InputError(f"toy Gaussian: {name} of shape {tuple(matrix.shape)}; give a square matrix")
    if not matrix.isfinite().all():
        raise InputError(f"toy Gaussian: {name} has entries that are not finite; give real numbers")
    gap, scale = (matrix - matrix.mT).detach().abs().max().item(), matrix.detach().abs().max().item()
    if gap > 100 * torch.finfo(matrix.dtype).eps * scale:
        raise InputError(f"toy Gaussian: {name} differs from its transpose by {gap:g}; give a symmetric matrix")


def _eigh(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (..., d), descending, and eigenvectors (..., d, d) in columns, of a positive semi-definite matrix."""
    _require_symmetric("covariance", covariance)
    values, vectors = torch.linalg.eigh(covariance)
    lowest = -100 * torch.finfo(values.dtype).eps * values[..., -1:].clamp(min=0)
    require("eigenvalue of the covariance", values, values >= lowest, "give a positive semi-definite matrix")
    return values.flip(-1).clamp(min=0), vectors.flip(-1)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def spectrum(covariance: Tensor) -> Tensor:
    """Eigenvalues of a covariance matrix (..., d, d), descending, (..., d)."""
    return _eigh(covariance)[0]


# --- d dimensions: losses


def aggregate_covariance(encoder: LinearEncoder, covariance: Tensor) -> Tensor:
    """[6] Cov of q(z) = A S A^T + V, (..., k, k): the identity at every optimum."""
    _require_symmetric("covariance", covariance)
    return encoder.matrix @ covariance @ encoder.matrix.mT + encoder.full_covariance


def residual_covariance(encoder: LinearEncoder, decoder_matrix: Tensor, covariance: Tensor) -> Tensor:
    """E[(C z - x)(C z - x)^T] = (I - C A) S (I - C A)^T + C V C^T with z ~ q(z|x), (..., d, d)."""
    _require_symmetric("covariance", covariance)
    bias = torch.eye(covariance.shape[-1]).to(covariance) - decoder_matrix @ encoder.matrix
    return bias @ covariance @ bias.mT + decoder_matrix @ encoder.full_covariance @ decoder_matrix.mT


def rate(encoder: LinearEncoder, covariance: Tensor) -> Tensor:
    """E[KL(q(z|x) to p(z))] = (tr(A S A^T + V) - log det V - k)/2, (...), in nats."""
    q = encoder.full_covariance
    return 0.5 * (_trace(aggregate_covariance(encoder, covariance)) - torch.logdet(q) - q.shape[-1])


def matrix_loss(encoder: LinearEncoder, decoder_matrix: Tensor, covariance: Tensor, beta: Tensor | float) -> Tensor:
    """[8] E|C z - x|^2 + beta E[KL], (...): `loss` in d dimensions, with A (k, d), V and C (d, k)."""
    squared_error = _trace(residual_covariance(encoder, decoder_matrix, covariance))
    return squared_error + valid_beta(beta) * rate(encoder, covariance)


def elbo(encoder: LinearEncoder, decoder: LinearDecoder, covariance: Tensor) -> Elbo:
    """[4, 8, 9, 10] distortion = sum_i (R_ii/sigma_i^2 + log(2 pi sigma_i^2))/2, R the `residual_covariance`; rate."""
    residual = residual_covariance(encoder, decoder.matrix, covariance).diagonal(dim1=-2, dim2=-1)
    noise = decoder.pixel_variance
    return Elbo(0.5 * (residual / noise + noise.log() + LOG_2PI).sum(-1), rate(encoder, covariance))


def negative_log_likelihood(decoder: LinearDecoder, covariance: Tensor) -> Tensor:
    """[10] E[-log p(x)] = (d log(2 pi) + log det M + tr(M^-1 S))/2 with M = C C^T + diag sigma^2, (...), in nats."""
    _require_symmetric("covariance", covariance)
    model = decoder.sample_covariance
    return 0.5 * (model.shape[-1] * LOG_2PI + torch.logdet(model) + _trace(torch.linalg.solve(model, covariance)))


def noise_above_floor(logstd: Tensor, floor: float) -> Tensor:
    """[10] sigma^2 = exp(2 soft_floor(logstd, log floor)) of a free parameter: sigma > floor, with a gradient."""
    if not floor > 0:
        raise InputError(f"toy Gaussian: floor = {floor:g} on sigma; give a floor > 0")
    return (2 * soft_floor(logstd, math.log(floor))).exp()


# --- d dimensions: closed forms


def _whitened(covariance: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """diag(1/sigma) S diag(1/sigma), (..., d, d), and sigma at each pixel, (..., d)."""
    _require_symmetric("covariance", covariance)
    require("noise variance", noise, noise > 0, "give values > 0")
    std = (noise + torch.zeros_like(covariance[..., 0])).sqrt()
    return covariance / (std[..., :, None] * std[..., None, :]), std


def best_vae(
    covariance: Tensor, noise_variance: Tensor | float, latents: int, kl_weight: float = 1.0
) -> tuple[LinearEncoder, LinearDecoder]:
    """[8, 10] The global optimum over A, V and C for a fixed sigma: `directions` of diag(1/sigma) S diag(1/sigma).

    With eigenvectors U of that matrix, C = diag(sigma) U diag(c), A = diag(a) U^T diag(1/sigma), V = diag(b^2). Any
    rotation of the latents is as good, but V is then full; latents past the d-th are dead.

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
    """The optimal encoder of a given decoder: V = (I + C^T N^-1 C/w)^-1 and A = V C^T N^-1/w, N = diag sigma^2.

    For the KL weight w = 1 it is the true posterior, where the ELBO is tight: it equals -log p(x).
    """
    scaled = decoder.matrix.mT / decoder.pixel_variance[..., None, :] / valid_kl_weight(kl_weight)  # (..., k, d)
    identity = torch.eye(decoder.matrix.shape[-1]).to(scaled)
    covariance = torch.linalg.inv(identity + scaled @ decoder.matrix)
    covariance = (covariance + covariance.mT) / 2
    return LinearEncoder(covariance @ scaled, covariance)


def best_objective(covariance: Tensor, noise_variance: Tensor | float, latents: int, kl_weight: float = 1.0) -> Tensor:
    """[9, 10] min over A, V and C of distortion + w rate as a function of sigma alone, (...), in nats.

    sum_i (squared_error_i + log(2 pi sigma_i^2))/2 + w rate_i over the `directions` of diag(1/sigma) S diag(1/sigma).
    Shared sigma: convex in log sigma. Differentiable, so that a factor analysis is a descent on log sigma alone.

    Args:
        covariance: S, (d, d).
        noise_variance: sigma^2, shared () or per pixel (..., d).
        latents: k.
        kl_weight: w.
    """
    white, std = _whitened(covariance, as_float(noise_variance).to(covariance))
    best = directions(torch.linalg.eigvalsh(white).clamp(min=0), 1.0, latents, kl_weight)
    return (0.5 * (best.squared_error + LOG_2PI) + std.log() + kl_weight * best.rate).sum(-1)


def best_shared_noise(
    eigenvalues: Tensor,
    latents: int,
    kl_weight: float = 1.0,
    floor: float = 0.0,
    allow_kl_weight: bool = False,
) -> NoiseRange:
    """[9] The learned shared sigma^2 that minimises distortion + w rate: (sum of dead l_i)/(d - w n_live).

    n_live counts the k largest l_i above w sigma^2. KL weight 1: the mean of the discarded eigenvalues, and with
    k = d a flat valley, every sigma^2 up to the smallest eigenvalue. With k = d, w < 1 runs away to sigma = 0, which
    the floor alone stops, and w > 1 collapses latents: all of them once w >= max l/mean l, in one dimension always.
    The objective is convex in log sigma, so nothing else is a minimum, and past a floor the floor is the optimum.

    Args:
        eigenvalues: variances l of the data along their principal directions, (d,).
        latents: k <= d.
        kl_weight: w; 1 is the ELBO.
        floor: lowest sigma allowed (a std, not a variance).
        allow_kl_weight: ask for a KL weight other than 1.

    Raises:
        InputError: k > d, a negative eigenvalue or floor, or a KL weight other than 1 that was not asked for.
    """
    d = len(eigenvalues)
    require("eigenvalue", eigenvalues, (eigenvalues >= 0) & eigenvalues.isfinite(), "give finite values >= 0")
    require_latents(latents, d)
    require_kl_weight(kl_weight, allow_kl_weight)
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
    """[9] Refuse a KL weight other than 1 beside a learned sigma, unless the experiment asks for it.

    Raises:
        InputError: such a weight, with the reason.
    """
    if valid_kl_weight(kl_weight) != 1 and not allowed:
        drift = "sigma runs to its floor" if kl_weight < 1 else "latents collapse"
        reason = f"KL weight = {kl_weight:g} with a learned sigma: {drift}, since sigma already sets the trade-off"
        raise InputError(f"toy Gaussian: {reason}; keep the weight at 1, fix sigma, or ask for this experiment")


# --- factor analysis


def em_step(decoder: LinearDecoder, covariance: Tensor, floor: float = 0.0, shared: bool = False) -> LinearDecoder:
    """[9, 10] One EM step of factor analysis (shared: of probabilistic PCA); the likelihood never falls.

    With A, V = `best_encoder` and Q = A S A^T + V: C <- S A^T Q^-1, sigma_i^2 <- max(floor^2, (S - C A S)_ii), which is
    the exact maximum under the constraint sigma >= floor.

    Args:
        decoder: the current C (d, k) and sigma^2.
        covariance: S, (d, d).
        floor: lowest sigma allowed; 0 is unsafe, most random covariances send some sigma_i to it (a Heywood case).
        shared: one sigma^2 for all pixels.

    Raises:
        InputError: more latents than dimensions, or a covariance that is not symmetric.
    """
    require_latents(decoder.matrix.shape[-1], decoder.matrix.shape[-2])
    encoder = best_encoder(decoder)
    across = covariance @ encoder.matrix.mT  # (d, k)
    matrix = torch.linalg.solve(aggregate_covariance(encoder, covariance), across, left=False)
    noise = (covariance - matrix @ across.mT).diagonal(dim1=-2, dim2=-1)
    return LinearDecoder(matrix, (noise.mean(-1) if shared else noise).clamp(min=floor**2))


def marginal_variance_gap(encoder: LinearEncoder, decoder: LinearDecoder, covariance: Tensor) -> Tensor:
    """[10] Var_z[mu_i] + sigma_i^2 - Var_data[x_i] per pixel with z ~ q(z), (..., d): the marginal variance law.

    At an optimum it is 0 at every pixel off the floor, and positive at the floor, which holds sigma above its wish.
    """
    q, matrix = aggregate_covariance(encoder, covariance), decoder.matrix
    mean_variance = (matrix @ q * matrix).sum(-1)
    return mean_variance + decoder.pixel_variance - covariance.diagonal(dim1=-2, dim2=-1)


# --- the ideal denoiser


def conditional_moments(encoder: LinearEncoder, covariance: Tensor) -> Conditional:
    """[11] E[x|z] = S A^T Q^-1 z and Cov[x|z] = S - S A^T Q^-1 A S with z ~ q(z|x), Q = A S A^T + V.

    Of a converged decoder C is that matrix; learned, sigma_i^2 off the floor is that covariance's diagonal and a shared
    sigma^2 is the diagonal's mean. A fixed sigma^2 is its eigenvalue in live directions only: l_i in dead ones.
    """
    across = covariance @ encoder.matrix.mT  # (..., d, k)
    matrix = torch.linalg.solve(aggregate_covariance(encoder, covariance), across, left=False)
    return Conditional(matrix, covariance - matrix @ across.mT)


def ideal_denoiser(noise_variance: Tensor, conditional_covariance: Tensor) -> Tensor:
    """[11] T in the ideal denoiser G = mu + T (x~ - mu): symmetric, T diag(sigma^2) T = Cov[x|z], (d, d).

    T = N^-1/2 (N^1/2 Cov N^1/2)^1/2 N^-1/2 with N = diag sigma^2. Many maps give G the law of x given z; this one moves
    x~ the least (optimal transport). Then E_eps[G] = mu, and Var_eps[G] = sigma^2 at each pixel where sigma is learned.

    Args:
        noise_variance: sigma^2, shared () or per pixel (d,), > 0.
        conditional_covariance: Cov[x|z], (d, d).
    """
    std = noise_variance.expand(conditional_covariance.shape[:-1]).sqrt()
    outer = std[:, None] * std
    values, vectors = _eigh(conditional_covariance * outer)
    return (vectors * values.sqrt()) @ vectors.mT / outer
