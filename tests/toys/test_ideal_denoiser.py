"""[11] The ideal denoiser of linear VAEs in closed form, in float64: it restores the data's distribution."""

from collections import namedtuple

import pytest
import torch

from degrain.models.toys import linear_gaussian as toy
from degrain.models.toys import linear_vae as vae
from tests.toys.tools import (
    SPECTRUM,
    autoregressive,
    close,
    fit_factor_analysis,
    grid,
    planted_covariance,
    random_covariance,
    with_eigenvalues,
)

pytestmark = pytest.mark.usefixtures("float64")

Conditional = namedtuple("Conditional", "matrix covariance")


def conditional_moments(encoder, covariance):
    """Return E[x|z] = S A^T Q^-1 z, as its matrix, and Cov[x|z] = S - S A^T Q^-1 A S; z ~ q(z|x), Q = A S A^T + V."""
    across = covariance @ encoder.matrix.mT  # (d, k)
    matrix = torch.linalg.solve(vae.aggregate_covariance(encoder, covariance), across, left=False)
    return Conditional(matrix, covariance - matrix @ across.mT)


def ideal_denoiser(noise_variance, conditional_covariance):
    """Return T in G = mu + T (x~ - mu): symmetric, T diag(sigma^2) T = Cov[x|z], (d, d).

    T = N^-1/2 (N^1/2 Cov N^1/2)^1/2 N^-1/2 with N = diag sigma^2. Many maps give G the distribution of x given z; this
    one moves x~ the least (optimal transport). Then E_eps[G] = mu, and Var_eps[G] = sigma^2 wherever sigma is learned.
    """
    std = noise_variance.expand(conditional_covariance.shape[:-1]).sqrt()
    outer = std[:, None] * std
    values, vectors = torch.linalg.eigh(conditional_covariance * outer)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT / outer


def ideal_variance_ratio(directions, eigenvalues, noise_variance, kl_weight=1.0):
    """Return the ideal Var_eps[G]/sigma^2: w in live directions, l/sigma^2 in dead ones, an excess to remove."""
    return torch.where(directions.live, kl_weight, eigenvalues / noise_variance)


def ideal_gain(t, beta):
    """Return g = min(1, t/sqrt(beta/2)) in G = mu + g (x~ - mu): the identity below the threshold."""
    t, beta = torch.as_tensor(t), torch.as_tensor(beta)
    return ideal_variance_ratio(toy.statistics(t, beta), t.square(), beta / 2).sqrt()


def test_converged_decoder_is_the_conditional_mean_and_learned_sigma_its_variance():
    _, covariance = planted_covariance()
    encoder, decoder, _ = fit_factor_analysis(covariance, 2, 1e-3)
    given = conditional_moments(encoder, covariance)
    close(given.matrix, decoder.matrix, 1e-6)
    close(given.covariance.diagonal(), decoder.noise_variance, 1e-6)
    # Not a factor model: the variances are right, and the correlation is what the denoiser has to restore.
    covariance = autoregressive(8, 0.6)
    encoder, decoder, _ = fit_factor_analysis(covariance, 2, 1e-3)
    given = conditional_moments(encoder, covariance)
    close(given.covariance.diagonal(), decoder.noise_variance, 1e-6)
    assert (given.covariance - torch.diag(given.covariance.diagonal())).abs().max() > 0.05


def test_fixed_sigma_has_an_excess_in_dead_directions_and_learned_shared_sigma_the_right_total():
    covariance = with_eigenvalues(SPECTRUM)
    encoder, decoder = vae.best_vae(covariance, 0.7, 5)
    given = conditional_moments(encoder, covariance)
    close(given.matrix[:, :3], decoder.matrix[:, :3])
    best = toy.directions(SPECTRUM, 0.7, 5)
    close(vae.spectrum(given.covariance), best.squared_error)
    close(ideal_variance_ratio(best, SPECTRUM, 0.7), [1.0, 1.0, 1.0, 0.4 / 0.7, 0.2 / 0.7])
    learned = vae.best_shared_noise(SPECTRUM, 3).low
    close(ideal_variance_ratio(toy.directions(SPECTRUM, learned, 3), SPECTRUM, learned).mean(), 1.0)


def test_ideal_denoiser_gives_the_data_back():
    for noise in (torch.tensor(0.7), torch.linspace(0.3, 1.2, 5)):
        covariance = random_covariance(5)
        encoder, decoder = vae.best_vae(covariance, noise, 3)
        given = conditional_moments(encoder, covariance)
        gain = ideal_denoiser(noise, given.covariance)
        close(gain, gain.T)
        spread = gain * decoder.pixel_variance @ gain.T  # Cov_eps[G]
        close(spread, given.covariance)
        close(decoder.mean_covariance + spread, covariance)  # G over z ~ p(z) is distributed as the data
        raw = torch.linalg.eigvalsh(gain)
        assert (raw > 0).all()  # the gradient of a convex function: it moves x~ the least


def test_one_dimensional_ideal_denoiser_is_the_identity_until_the_collapse():
    t, beta = grid()
    gain = ideal_gain(t, beta)
    close(gain, (t / (beta / 2).sqrt()).clamp(max=1))
    s = toy.statistics(t, beta)
    close(s.mean_variance + gain.square() * beta / 2, t.square())  # the denoised have the data's variance everywhere
    noise = toy.fixed_noise_variance(3.0)
    encoder, _ = vae.best_vae(torch.eye(1), noise, 1)
    matrix = ideal_denoiser(noise, conditional_moments(encoder, torch.eye(1)).covariance)
    close(matrix[0, 0], ideal_gain(1.0, 3.0))


def test_kl_weight_with_a_fixed_sigma_scales_the_ideal_variance_in_live_directions():
    values, noise, kl_weight = torch.tensor([3.0, 1.5, 0.6, 0.1]), 0.3, 1.5
    covariance = with_eigenvalues(values)
    encoder, _ = vae.best_vae(covariance, noise, 4, kl_weight)
    _, given = conditional_moments(encoder, covariance)
    best = toy.directions(values, noise, kl_weight=kl_weight)
    close(vae.spectrum(given) / noise, ideal_variance_ratio(best, values, noise, kl_weight))
