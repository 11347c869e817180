"""Closed forms of linear VAEs in d dimensions, in float64: sampling, stationarity, small fits, refusals."""

import math

import pytest
import torch

from degrain.models.toys import linear_gaussian as toy
from degrain.models.toys import linear_vae as vae
from tests.toys.tools import (
    SPECTRUM,
    close,
    fit,
    generator,
    gradient,
    grid,
    random_covariance,
    random_vae,
    refused,
    with_eigenvalues,
)

pytestmark = pytest.mark.usefixtures("float64")


def matrix_loss(encoder, decoder_matrix, covariance, beta):
    """[8] Return E|c z - x|^2 + beta E[KL], (...): the loss of linear_gaussian.py in d dimensions."""
    residual = vae.residual_covariance(encoder, decoder_matrix, covariance)
    return vae.trace(residual) + beta * vae.rate(encoder, covariance)


def test_scalar_loss_is_the_matrix_loss_of_size_one():
    t, beta = grid()
    a, b, c = (torch.randn(3, 6, generator=generator(i)) for i in range(3))
    encoder = vae.LinearEncoder(a[..., None, None], b.square()[..., None])
    matrix = matrix_loss(encoder, c[..., None, None], t.square()[..., None, None], beta)
    close(matrix, toy.loss(a, b, c, t, beta))


@pytest.mark.parametrize("full", [False, True])
def test_elbo_matches_an_average_over_samples_with_exact_moments(full):
    k, d, n = 2, 3, 50
    covariance = random_covariance(d)
    encoder, decoder = random_vae(k, d, full)
    white = torch.randn(n, d + k, generator=generator())
    white = white @ torch.linalg.inv(torch.linalg.cholesky(white.T @ white / n)).T  # second moments are exactly I
    x = white[:, :d] @ torch.linalg.cholesky(covariance).T
    q = torch.distributions.MultivariateNormal(x @ encoder.matrix.T, encoder.full_covariance)
    z = q.mean + white[:, d:] @ torch.linalg.cholesky(encoder.full_covariance).T
    likelihood = torch.distributions.Normal(z @ decoder.matrix.T, decoder.noise_variance.sqrt()).log_prob(x).sum(-1)
    prior = torch.distributions.MultivariateNormal(torch.zeros(k), torch.eye(k))
    elbo = vae.elbo(encoder, decoder, covariance)
    close(elbo.distortion, -likelihood.mean())
    close(elbo.rate, torch.distributions.kl_divergence(q, prior).mean())
    close(vae.aggregate_covariance(encoder, covariance), z.T @ z / n)


def test_squared_error_plus_beta_kl_is_two_sigma_square_elbos_up_to_a_constant():
    d, beta, covariance = 3, 0.8, random_covariance(3)
    noise = toy.fixed_noise_variance(beta)
    for seed in range(3):
        encoder, decoder = random_vae(2, d, full=True, seed=seed)
        elbo = vae.elbo(encoder, vae.LinearDecoder(decoder.matrix, noise), covariance)
        scaled = 2 * noise * (elbo.distortion + elbo.rate) - d * noise * (2 * math.pi * noise).log()
        close(matrix_loss(encoder, decoder.matrix, covariance, beta), scaled)


@pytest.mark.parametrize("latents", [1, 2, 5, 7])
@pytest.mark.parametrize("kl_weight", [1.0, 0.5])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_best_vae_is_stationary_and_no_perturbation_lowers_the_objective(latents, kl_weight, per_pixel):
    covariance = random_covariance(5)
    noise = torch.linspace(0.2, 0.9, 5) if per_pixel else torch.tensor(0.5)
    encoder, decoder = vae.best_vae(covariance, noise, latents, kl_weight)

    def objective(a, v, c):
        parts = vae.elbo(vae.LinearEncoder(a, (v + v.mT) / 2), vae.LinearDecoder(c, noise), covariance)
        return parts.distortion + kl_weight * parts.rate

    best = (encoder.matrix, encoder.full_covariance, decoder.matrix)
    assert gradient(objective, *best) < 1e-10
    lowest = objective(*best)
    close(lowest, vae.best_objective(covariance, noise, latents, kl_weight))
    close(vae.aggregate_covariance(encoder, covariance), torch.eye(latents))
    for scale in (1e-3, 0.05):
        for seed in range(50):
            moves = [scale * torch.randn(p.shape, generator=generator(seed)) for p in best]
            v = best[1] + moves[1] @ moves[1].T + scale * best[1]
            assert objective(best[0] + moves[0], v, best[2] + moves[2]) >= lowest - 1e-12


@pytest.mark.parametrize("latents, full", [(2, False), (2, True), (4, False), (4, True), (5, False)])
def test_fit_of_full_matrices_reaches_water_filling(latents, full):
    values, beta = torch.tensor([3.0, 1.5, 0.6, 0.1]), 0.6  # sigma^2 = 0.3: three directions can live
    covariance = with_eigenvalues(values)
    best = toy.directions(values, beta / 2, latents)
    start = [0.3 * torch.randn(s, generator=generator(1)) for s in ((latents, 4), (4, latents))]
    spread = torch.zeros(latents, latents) if full else torch.zeros(latents)

    def objective(a, c, s):
        v = torch.matrix_exp(s + s.T) if full else (2 * s).exp()
        return matrix_loss(vae.LinearEncoder(a, v), c, covariance, beta)

    (a, c, _), lowest = fit(objective, *start, spread)
    close(lowest, (best.squared_error + beta * best.rate).sum(), 1e-9)
    decoder = vae.LinearDecoder(c, torch.tensor(beta / 2))
    close(vae.spectrum(decoder.mean_covariance), best.mean_variance, 1e-4)
    close(vae.spectrum(decoder.sample_covariance), best.sample_variance, 1e-4)
    if not full:  # a diagonal posterior picks the principal axes, up to order and sign
        gram = c.T @ c
        close(gram - torch.diag(gram.diagonal()), torch.zeros(latents, latents), 1e-4)


def test_true_samples_have_the_spectrum_max_of_eigenvalue_and_noise():
    values = torch.tensor([3.0, 1.5, 0.6, 0.1])
    covariance = with_eigenvalues(values)
    for latents, expected in ((3, [3.0, 1.5, 0.6, 0.3]), (4, [3.0, 1.5, 0.6, 0.3]), (1, [3.0, 0.3, 0.3, 0.3])):
        _, decoder = vae.best_vae(covariance, 0.3, latents)
        close(vae.spectrum(decoder.sample_covariance), expected)
        close(toy.directions(values, 0.3, latents).sample_variance, expected)  # k = 1 is too narrow where l > sigma^2
    live = toy.directions(values, 0.3)
    assert live.live.tolist() == [True, True, True, False]
    close(live.rate.sum(), 0.5 * math.log(3.0 * 1.5 * 0.6 / 0.3**3))
    flipped = toy.directions(values.flip(0), 0.3, 2)  # any order of the eigenvalues
    assert flipped.live.tolist() == [False, False, True, True]


def test_kl_weight_with_a_fixed_sigma_moves_the_water_level_and_not_the_noise():
    values, noise, kl_weight = torch.tensor([3.0, 1.5, 0.6, 0.1]), 0.3, 1.5
    covariance = with_eigenvalues(values)
    best = toy.directions(values, noise, kl_weight=kl_weight)
    _, decoder = vae.best_vae(covariance, noise, 4, kl_weight)
    close(vae.spectrum(decoder.sample_covariance), best.sample_variance)
    close(best.sample_variance, [2.85, 1.35, 0.45, 0.3])  # l + (1 - w) sigma^2: no longer exact where it is live


def test_best_encoder_is_stationary_for_any_kl_weight():
    covariance = random_covariance(4)
    _, decoder = random_vae(2, 4, full=False)
    for kl_weight in (0.3, 1.0, 2.0):
        encoder = vae.best_encoder(decoder, kl_weight)

        def objective(a, v, kl_weight=kl_weight):
            parts = vae.elbo(vae.LinearEncoder(a, (v + v.mT) / 2), decoder, covariance)
            return parts.distortion + kl_weight * parts.rate

        assert gradient(objective, encoder.matrix, encoder.covariance) < 1e-10


# --- learned shared sigma


def shared_objective(noise, latents, kl_weight=1.0, values=SPECTRUM):
    """Return the minimum over A, V and C at each of the noise variances, (n,)."""
    return vae.best_objective(torch.diag(values), noise[..., None], latents, kl_weight)


def test_learned_noise_is_the_mean_of_the_discarded_eigenvalues():
    for latents in (0, 1, 2, 4):
        best = vae.best_shared_noise(SPECTRUM, latents)
        assert best.low == best.high
        close(best.low, SPECTRUM[latents:].mean())


def test_objective_is_flat_up_to_the_smallest_eigenvalue_when_every_direction_has_a_latent():
    best = vae.best_shared_noise(SPECTRUM, 5)
    assert (best.low.item(), best.high.item()) == (0.0, 0.2)
    values = shared_objective(torch.tensor([1e-6, 1e-3, 0.1, 0.2]), 5)
    close(values, values[0])
    assert shared_objective(torch.tensor([0.21]), 5) > values[0] + 1e-4
    held = vae.best_shared_noise(SPECTRUM, 5, floor=1.0)
    assert (held.low.item(), held.high.item()) == (1.0, 1.0)
    scalar = vae.best_shared_noise(torch.tensor([2.25]), 1)  # t = 1.5: flat for all sigma^2 <= t^2
    assert (scalar.low.item(), scalar.high.item()) == (0.0, 2.25)


def test_kl_weight_with_learned_sigma_runs_away_below_one_and_collapses_above():
    one = torch.tensor([2.25])

    def best(values, latents, weight, floor=0.0):
        return vae.best_shared_noise(values, latents, weight, floor).low

    assert best(one, 1, 0.9) == 0
    close(best(one, 1, 0.9, floor=0.01), 1e-4)  # only the floor holds it
    falling = shared_objective(torch.tensor([1e-12, 1e-9, 1e-6, 1e-3, 1.0]), 1, 0.9, one)
    assert (falling.diff() > 0).all()
    close(best(one, 1, 1.1), 2.25)  # total collapse: sigma^2 is the data's variance
    # k = d > 1: w > 1 need not collapse everything. Total collapse takes w >= max l/mean l = 4/1.52.
    assert toy.directions(SPECTRUM, best(SPECTRUM, 5, 1.1), 5, 1.1).live.sum() == 4
    assert toy.directions(SPECTRUM, best(SPECTRUM, 5, 2.63), 5, 2.63).live.sum() == 1
    assert toy.directions(SPECTRUM, best(SPECTRUM, 5, 2.64), 5, 2.64).live.sum() == 0


@pytest.mark.parametrize("latents", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kl_weight", [0.5, 0.9, 1.0, 1.1, 1.7, 3.0])
def test_learned_noise_beats_every_other_and_follows_the_kl_weight_formula(latents, kl_weight):
    floor = 1e-2
    best = vae.best_shared_noise(SPECTRUM, latents, kl_weight, floor)
    scan = torch.logspace(-4, 2, 4001)
    values = shared_objective(scan, latents, kl_weight)
    lowest = shared_objective(best.low[None], latents, kl_weight)
    assert (values >= lowest - 1e-12).all()
    assert (values.diff().diff() > -1e-10).all()  # convex in log sigma
    live = toy.directions(SPECTRUM, best.low, latents, kl_weight).live
    if best.low == best.high > floor**2:
        close(best.low, SPECTRUM[~live].sum() / (5 - kl_weight * live.sum()))


def test_fit_with_a_learned_sigma_finds_the_formula():
    covariance = with_eigenvalues(SPECTRUM)
    start = [0.3 * torch.randn(s, generator=generator(2)) for s in ((2, 5), (5, 2), (2,), ())]
    for kl_weight in (1.0, 0.7, 1.3):

        def objective(a, c, s, logstd, kl_weight=kl_weight):
            encoder, decoder = vae.LinearEncoder(a, (2 * s).exp()), vae.LinearDecoder(c, (2 * logstd).exp())
            parts = vae.elbo(encoder, decoder, covariance)
            return parts.distortion + kl_weight * parts.rate

        fitted, _ = fit(objective, *start)
        expected = vae.best_shared_noise(SPECTRUM, 2, kl_weight).low
        close((2 * fitted[3]).exp(), expected, 1e-6)
        close(expected, 1.6 / (5 - 2 * kl_weight))


# --- refusals


ONE = torch.tensor(1.0)
SKEW = torch.tensor([[1.0, 0.5], [0.2, 1.0]])


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: vae.spectrum(SKEW), "differs from its transpose by 0.3"),
        (lambda: vae.spectrum(torch.ones(2, 3)), "give a square matrix"),
        (lambda: vae.spectrum(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "positive semi-definite"),
        (lambda: vae.best_vae(torch.full((2, 2), math.inf), 1.0, 1), "not finite"),
        (lambda: vae.best_vae(torch.eye(2), 0.0, 1), "noise variance = 0"),
        (lambda: vae.LinearEncoder(torch.ones(2, 2), SKEW), "posterior covariance differs"),
        (lambda: vae.LinearEncoder(torch.ones(2, 3), torch.ones(3)), "posterior covariance of shape (3,)"),
        (lambda: vae.LinearEncoder(torch.ones(1, 3), torch.zeros(1)), "posterior variance = 0"),
        (lambda: vae.LinearDecoder(torch.ones(3, 1), torch.ones(2)), "noise variance of shape (2,)"),
        (lambda: vae.LinearDecoder(torch.ones(3, 1), -ONE), "noise variance = -1"),
        (lambda: vae.best_shared_noise(torch.ones(2), 3), "3 latents; give 0 <= k <= d = 2"),
        (lambda: vae.require_kl_weight(0.5), "KL weight = 0.5 with a learned sigma: sigma runs"),
        (lambda: vae.require_kl_weight(2.0), "KL weight = 2 with a learned sigma: latents collapse"),
        (lambda: vae.require_kl_weight(-1.0, True), "KL weight = -1"),
    ],
)
def test_invalid_input_is_refused_in_one_line_with_the_reason(call, reason):
    refused(call, reason)
