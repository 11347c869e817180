"""Factor analysis: linear VAEs with a learned sigma at every pixel, by EM on a covariance and with a floor on sigma.

scikit-learn's FactorAnalysis needs data instead of their covariance and has no floor. Notation is linear_vae.py's.
"""

import math

import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import soft_floor
from degrain.models.toys import linear_vae
from degrain.models.toys.linear_gaussian import require_latents
from degrain.models.toys.linear_vae import LinearDecoder, LinearEncoder, aggregate_covariance


def negative_log_likelihood(decoder: LinearDecoder, covariance: Tensor) -> Tensor:
    """[10] Return E[-log p(x)] = (d log(2 pi) + log det M + tr(M^-1 S))/2, M = C C^T + diag sigma^2, (...), in nats."""
    linear_vae.require_symmetric("covariance", covariance)
    model = decoder.sample_covariance
    distance = linear_vae.trace(torch.linalg.solve(model, covariance))
    return 0.5 * (model.shape[-1] * linear_vae.LOG_2PI + torch.logdet(model) + distance)


def noise_above_floor(logstd: Tensor, floor: float) -> Tensor:
    """[10] Return sigma^2, (...), for unbounded `logstd` (...): log sigma is that with a soft floor at log(floor)."""
    if not floor > 0:
        raise InputError(f"toy Gaussian: floor = {floor:g} on sigma; give a floor > 0")
    return (2 * soft_floor(logstd, math.log(floor))).exp()


def em_step(decoder: LinearDecoder, covariance: Tensor, floor: float = 0.0, shared: bool = False) -> LinearDecoder:
    """[9, 10] Return the decoder after one EM step of factor analysis (shared: probabilistic PCA).

    With A, V = `best_encoder` and Q = A S A^T + V: C <- S A^T Q^-1, sigma_i^2 <- max(floor^2, (S - C A S)_ii), which is
    the exact maximum under the constraint sigma >= floor. The likelihood never falls.

    Args:
        decoder: the current C (d, k) and sigma^2.
        covariance: S, (d, d).
        floor: lowest sigma allowed; 0 is unsafe, as most random covariances send some sigma_i to 0 (a Heywood case).
        shared: one sigma^2 for all pixels.

    Raises:
        InputError: more latents than dimensions, or a covariance that is not symmetric.
    """
    require_latents(decoder.matrix.shape[-1], decoder.matrix.shape[-2])
    encoder = linear_vae.best_encoder(decoder)
    across = covariance @ encoder.matrix.mT  # (d, k)
    matrix = torch.linalg.solve(aggregate_covariance(encoder, covariance), across, left=False)
    noise = (covariance - matrix @ across.mT).diagonal(dim1=-2, dim2=-1)
    return LinearDecoder(matrix, (noise.mean(-1) if shared else noise).clamp(min=floor**2))


def factor_analysis(covariance: Tensor, latents: int, floor: float, seed: int, steps: int = 3000) -> LinearDecoder:
    """[10] Return the decoder after EM from a random start.

    Args:
        covariance: S, (d, d) float64.
        latents: k.
        floor: lowest sigma allowed.
        seed: of the start.
        steps: of EM.
    """
    rng = torch.Generator().manual_seed(seed)
    matrix = torch.randn(len(covariance), latents, generator=rng, dtype=torch.float64)
    decoder = LinearDecoder(matrix, covariance.diagonal() / 2)
    for _ in range(steps):
        decoder = em_step(decoder, covariance, floor)
    return decoder


def marginal_variance_gap(encoder: LinearEncoder, decoder: LinearDecoder, covariance: Tensor) -> Tensor:
    """[10] Return Var_z[mu_i] + sigma_i^2 - Var_data[x_i] per pixel with z ~ q(z), (..., d).

    At an optimum it is 0 at every pixel off the floor, and positive at the floor.
    """
    q, matrix = aggregate_covariance(encoder, covariance), decoder.matrix
    mean_variance = (matrix @ q * matrix).sum(-1)
    return mean_variance + decoder.pixel_variance - covariance.diagonal(dim1=-2, dim2=-1)
