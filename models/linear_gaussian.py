"""The toy-Gaussian laboratory's mathematics: linear VAEs on Gaussian data, every optimum in closed form.

One dimension: x ~ N(0, t^2), encoder z ~ N(a x, b^2), decoder mean c z, and a weight beta on the KL term.
d dimensions:  x ~ N(0, S), q(z|x) = N(A x, V), p(x|z) = N(C z, diag noise_variance), prior z ~ N(0, I).
Numbers in square brackets, [1] to [11], are the results as the toy's documentation counts them. Everything is in nats.
Axes: d data dimensions, k latents; scalars broadcast over grids, matrices over leading axes. Floats become float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import InputError
from models.gaussian import soft_floor

LOG_2PI = math.log(2 * math.pi)


# --- values


@dataclass(frozen=True)
class Optimum:
    """Encoder slope a, encoder std b and decoder slope c, elementwise; the sign of (a, c) is free, here c >= 0."""

    a: Tensor
    b: Tensor
    c: Tensor


@dataclass(frozen=True)
class Directions:
    """What the optimal VAE does along each principal direction of the data, elementwise.

    Args:
        live: whether a latent codes this direction.
        optimum: a, b, c along it.
        slope: a c, so that E[reconstruction | x] = slope x; 1 is unbiased, 0 is collapsed.
        squared_error: E|c z - x|^2 with z ~ q(z|x), what the decoder leaves unexplained.
        rate: KL(q(z|x) to p(z)), in nats.
        mean_variance: variance of the mean images c z, z ~ N(0, 1).
        sample_variance: variance of the true samples c z + std eps.
        variance_ratio: ideal Var_eps[G] / std^2: what the ideal denoiser keeps of the noise's variance.
    """

    live: Tensor
    optimum: Optimum
    slope: Tensor
    squared_error: Tensor
    rate: Tensor
    mean_variance: Tensor
    sample_variance: Tensor
    variance_ratio: Tensor


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
        _require("posterior variance", variances, variances > 0, "give values > 0")

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
        _require("noise variance", noise, noise > 0, "give values > 0")

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


# --- what is refused


def _require(name: str, value: Tensor, valid: Tensor, way_out: str) -> None:
    if not valid.all():
        worst = value.detach().expand(valid.shape)[~valid].flatten()[0].item()
        raise InputError(f"toy Gaussian: {name} = {worst:g}; {way_out}")


def _require_symmetric(name: str, matrix: Tensor) -> None:
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise InputError(f"toy Gaussian: {name} of shape {tuple(matrix.shape)}; give a square matrix")
    if not matrix.isfinite().all():
        raise InputError(f"toy Gaussian: {name} has entries that are not finite; give real numbers")
    gap, scale = (matrix - matrix.mT).detach().abs().max().item(), matrix.detach().abs().max().item()
    if gap > 100 * torch.finfo(matrix.dtype).eps * scale:
        raise InputError(f"toy Gaussian: {name} differs from its transpose by {gap:g}; give a symmetric matrix")


def _require_latents(latents: int, most: int | None = None) -> None:
    if latents < 0 or (most is not None and latents > most):
        bound = "k >= 0" if most is None else f"0 <= k <= d = {most}, sigma is not determined by more"
        raise InputError(f"toy Gaussian: {latents} latents; give {bound}")


def _tensor(value: Tensor | float) -> Tensor:
    value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    return value if value.is_floating_point() else value.double()


def _std(t: Tensor | float) -> Tensor:
    t = _tensor(t)
    _require("data std t", t, (t > 0) & t.isfinite(), "give a finite t > 0")
    return t


def _weight(beta: Tensor | float) -> Tensor:
    beta = _tensor(beta)
    _require("beta", beta, (beta >= 0) & beta.isfinite(), "give a finite beta >= 0")
    return beta


def _kl_weight(weight: float) -> float:
    if not 0 < weight < math.inf:
        raise InputError(f"toy Gaussian: KL weight = {weight:g}; give a finite weight > 0")
    return weight


def _eigh(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (..., d), descending, and eigenvectors (..., d, d) in columns, of a positive semi-definite matrix."""
    _require_symmetric("covariance", covariance)
    values, vectors = torch.linalg.eigh(covariance)
    lowest = -100 * torch.finfo(values.dtype).eps * values[..., -1:].clamp(min=0)
    _require("eigenvalue of the covariance", values, values >= lowest, "give a positive semi-definite matrix")
    return values.flip(-1).clamp(min=0), vectors.flip(-1)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


# --- one dimension: losses


def _weighted_kl(beta: Tensor, mean_square: Tensor, variance: Tensor) -> Tensor:
    """beta (mean_square + variance - 1 - log variance)/2: beta times the KL of N(mean, variance) to N(0, 1)."""
    # xlogy: with beta = 0 a variance of 0 costs nothing.
    return 0.5 * (beta * (mean_square + variance - 1) - torch.xlogy(beta, variance))


def loss(a: Tensor, b: Tensor, c: Tensor, t: Tensor | float, beta: Tensor | float) -> Tensor:
    """L = b^2 c^2 + (1 - a c)^2 t^2 + (beta/2)(a^2 t^2 + b^2 - log b^2 - 1) = E|c z - x|^2 + beta E[KL], integrated."""
    t, beta = _std(t), _weight(beta)
    squared_error = (b * c).square() + ((1 - a * c) * t).square()
    return squared_error + _weighted_kl(beta, (a * t).square(), b.square())


def sampled_loss(a: Tensor, b: Tensor, c: Tensor, x: Tensor, noise: Tensor, beta: Tensor | float) -> Tensor:
    """(c (a x + b noise) - x)^2 + beta KL(N(a x, b^2) to N(0, 1)) per sample; its expectation is `loss`.

    Args:
        a, b, c: parameters, of a shape that broadcasts with x: (...) against (B, ...).
        x: draws of N(0, t^2), (B, ...).
        noise: draws of N(0, 1), (B, ...).
        beta: weight of the KL term.
    """
    beta = _weight(beta)
    z = a * x + b * noise
    return (c * z - x).square() + _weighted_kl(beta, (a * x).square(), b.square())


def aggregate_variance(a: Tensor, b: Tensor, t: Tensor | float) -> Tensor:
    """[6] Variance of q(z) = a^2 t^2 + b^2: 1 at every optimum, so that q(z) is the prior."""
    return (a * _std(t)).square() + b.square()


def aggregate_loss(a: Tensor, b: Tensor, c: Tensor, t: Tensor | float, beta: Tensor | float) -> Tensor:
    """[6] E|c z - x|^2 + beta KL(q(z) to p(z)), q(z) = N(0, a^2 t^2 + b^2): the regulariser sees q(z), not q(z|x)."""
    beta, variance = _weight(beta), aggregate_variance(a, b, t)
    return loss(a, b, c, t, 0.0) + _weighted_kl(beta, torch.zeros_like(variance), variance)


# --- one dimension: closed forms


def fixed_noise_variance(beta: Tensor | float) -> Tensor:
    """[4] sigma^2 = beta/2: E|c z - x|^2 + beta KL = 2 sigma^2 (negative ELBO) - d sigma^2 log(2 pi sigma^2).

    The same minima as long as sigma is fixed: the last term is then a constant, and all that a learned sigma adds.
    """
    return _weight(beta) / 2


def statistics(t: Tensor | float, beta: Tensor | float) -> Directions:
    """[1, 2, 5, 7] Everything about the optimum in one dimension: `directions` with l = t^2 and sigma^2 = beta/2.

    slope = (1 - beta/(2t^2))+, squared_error = min(beta/2, t^2), rate = log+(2t^2/beta)/2; mean images have variance
    (t^2 - beta/2)+, too small, true samples max(t^2, beta/2): exact until the collapse, too wide after it.
    """
    return directions(_std(t).square(), fixed_noise_variance(beta))


def optimum(t: Tensor | float, beta: Tensor | float) -> Optimum:
    """[1, 2, 3] c^2 = t^2 - beta/2, a = c/t^2, b^2 = beta/(2t^2) below beta = 2t^2; else a = c = 0, b = 1.

    With beta = 0 the limit a = 1/t, b = 0, c = t is one of many: only a c = 1 and b = 0 are determined.
    """
    return statistics(t, beta).optimum


def collapse_threshold(t: Tensor | float) -> Tensor:
    """[2] beta = 2 t^2: from here on the code is empty."""
    return 2 * _std(t).square()


def minimum_loss(t: Tensor | float, beta: Tensor | float) -> Tensor:
    """[1, 2] min L = (beta/2)(1 + log(2t^2/beta)) below the threshold, else t^2; 0 at beta = 0."""
    t, beta = _std(t), _weight(beta)
    live = 0.5 * (beta + torch.xlogy(beta, 2 * t.square()) - torch.xlogy(beta, beta))
    return torch.where(beta < collapse_threshold(t), live, t.square())


def collapse_hessian(t: Tensor | float, beta: Tensor | float) -> Tensor:
    """[2] Hessian of L in (a, c) at a = c = 0, b = 1: ((beta t^2, -2t^2), (-2t^2, 2)), (..., 2, 2)."""
    variance, beta = torch.broadcast_tensors(_std(t).square(), _weight(beta))
    across = -2 * variance
    first, second = (beta * variance, across), (across, torch.full_like(across, 2.0))
    return torch.stack([torch.stack(first, -1), torch.stack(second, -1)], -2)


def collapse_determinant(t: Tensor | float, beta: Tensor | float) -> Tensor:
    """[2] det of `collapse_hessian` = 2t^2 (beta - 2t^2): a saddle below the threshold, a minimum above (pitchfork)."""
    return 2 * _std(t).square() * (_weight(beta) - collapse_threshold(t))


def aggregate_optimum(t: Tensor | float) -> Optimum:
    """[6] a = 1/t, b = 0, c = t: zero `aggregate_loss`, perfect reconstruction and q(z) = p(z), for every beta."""
    t = _std(t)
    return Optimum(1 / t, torch.zeros_like(t), t)


def rate_at_distortion(t: Tensor | float, squared_error: Tensor | float) -> Tensor:
    """[7] log+(t^2/D)/2 nats: the Gaussian rate-distortion curve, of slope dD/dR = -2D = -beta where D = beta/2."""
    squared_error = _tensor(squared_error)
    _require("squared error", squared_error, squared_error >= 0, "give values >= 0")
    return 0.5 * (_std(t).square() / squared_error).log().clamp(min=0)


def ideal_gain(t: Tensor | float, beta: Tensor | float) -> Tensor:
    """[11] g = min(1, t/sqrt(beta/2)) in the ideal one-dimensional denoiser G = mu + g (x~ - mu).

    Below the threshold samples are exact and G is the identity; above, it shrinks white noise to the data's std.
    """
    return statistics(t, beta).variance_ratio.sqrt()


# --- directions: the same law for every eigenvalue


def directions(
    eigenvalues: Tensor, noise_variance: Tensor | float, latents: int | None = None, kl_weight: float = 1.0
) -> Directions:
    """[8] Reverse water-filling (probabilistic PCA): with n = kl_weight sigma^2, direction i is live iff l_i > n.

    Live: c^2 = l - n, b^2 = n/l, a = c/l, rate = log(l/n)/2, squared error n. Dead: a = c = 0, b = 1, squared error l.
    True samples have variance l - n + sigma^2 (l for KL weight 1) when live, sigma^2 when dead: with latents enough the
    spectrum is max(l, sigma^2). The ideal variance ratio is l/sigma^2 in dead directions: an excess to remove.

    Args:
        eigenvalues: variances l of the data along their principal directions, (..., d), in any order.
        noise_variance: sigma^2, shared, broadcastable to the eigenvalues; beta/2 for a squared error + beta KL.
        latents: k; only the k largest along the last axis can be live. None: as many as directions.
        kl_weight: w in distortion + w rate, with the likelihood's sigma fixed.

    Raises:
        InputError: a negative or infinite eigenvalue, noise variance or number of latents, or a KL weight <= 0.
    """
    l, noise = eigenvalues, _tensor(noise_variance)  # noqa: E741, the formulas' own name
    _require("eigenvalue", l, (l >= 0) & l.isfinite(), "give finite values >= 0")
    _require("noise variance", noise, (noise >= 0) & noise.isfinite(), "give finite values >= 0")
    level = _kl_weight(kl_weight) * noise
    live = l > level
    if latents is not None:
        _require_latents(latents)
        live = live & (l.argsort(-1, descending=True).argsort(-1) < latents)
    safe = torch.where(live, l, 1.0)  # dead directions may have l = 0, and where() alone would not stop its gradient
    mean_variance = torch.where(live, l - level, 0.0)
    b_square, c = torch.where(live, level / safe, 1.0), mean_variance.sqrt()
    return Directions(
        live=live,
        optimum=Optimum(a=c / safe, b=b_square.sqrt(), c=c),
        slope=1 - b_square,
        squared_error=torch.where(live, level, l),
        rate=0.5 * torch.where(live, safe / level, 1.0).log(),
        mean_variance=mean_variance,
        sample_variance=mean_variance + noise,
        variance_ratio=torch.where(live, torch.full_like(safe, kl_weight), l / noise),
    )


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
    return squared_error + _weight(beta) * rate(encoder, covariance)


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
    _require("noise variance", noise, noise > 0, "give values > 0")
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
    _require_latents(latents)
    noise = _tensor(noise_variance).to(covariance)
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
    scaled = decoder.matrix.mT / decoder.pixel_variance[..., None, :] / _kl_weight(kl_weight)  # (..., k, d)
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
    white, std = _whitened(covariance, _tensor(noise_variance).to(covariance))
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
    _require("eigenvalue", eigenvalues, (eigenvalues >= 0) & eigenvalues.isfinite(), "give finite values >= 0")
    _require_latents(latents, d)
    require_kl_weight(kl_weight, allow_kl_weight)
    lowest = _tensor(floor).square().to(eigenvalues)
    _require("floor on sigma", _tensor(floor), _tensor(floor) >= 0, "give a floor >= 0")
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
    if _kl_weight(kl_weight) != 1 and not allowed:
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
    _require_latents(decoder.matrix.shape[-1], decoder.matrix.shape[-2])
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
