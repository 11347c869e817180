"""The toy's closed forms in float64: quadrature, autograd stationarity, small fits, and every refusal."""

import math

import numpy as np
import pytest
import torch

from models import linear_gaussian as toy
from models.errors import InputError

SCALES = (0.5, 1.0, 2.0)
BETAS = (0.05, 0.5, 1.0, 1.9, 2.1, 4.0)  # times t^2: the threshold is at 2


@pytest.fixture(autouse=True)
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def grid():
    """t and beta over SCALES x BETAS, each (3, 6)."""
    t = torch.tensor(SCALES)[:, None].expand(3, 6)
    return t, t.square() * torch.tensor(BETAS)


def hermite(n=40):
    """Nodes and weights of E f(x), x ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def random_covariance(d, seed=0):
    g = torch.randn(d, 2 * d, generator=generator(seed))
    return g @ g.T / (2 * d)


def with_eigenvalues(values, seed=0):
    values = torch.as_tensor(values, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator(seed))).Q
    s = q * values @ q.T
    return (s + s.T) / 2


def autoregressive(d, rho):
    i = torch.arange(float(d))
    return rho ** (i[:, None] - i).abs()


def free(*tensors):
    return [v.detach().clone().requires_grad_() for v in tensors]


def gradient(objective, *parameters):
    """Largest entry of the gradient of objective(*parameters).sum()."""
    parameters = free(*parameters)
    return max(g.abs().max().item() for g in torch.autograd.grad(objective(*parameters).sum(), parameters))


def fit(objective, *start, steps=400):
    """LBFGS from the start: the parameters and the value reached."""
    parameters = free(*start)
    options = {"line_search_fn": "strong_wolfe", "tolerance_grad": 1e-11, "tolerance_change": 1e-15}
    optimizer = torch.optim.LBFGS(parameters, max_iter=steps, history_size=30, **options)

    def closure():
        optimizer.zero_grad()
        value = objective(*parameters)
        value.backward()
        return value

    optimizer.step(closure)
    return [p.detach() for p in parameters], objective(*parameters).item()


def close(a, b, tolerance=1e-10):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    torch.testing.assert_close(a, b.expand_as(a), rtol=tolerance, atol=tolerance)


# --- one dimension


@pytest.mark.parametrize("t, beta", [(0.5, 0.3), (1.0, 1.0), (2.0, 9.0)])
def test_loss_matches_quadrature(t, beta):
    a, b, c = torch.tensor(0.7), torch.tensor(-0.4), torch.tensor(1.3)
    nodes, weights = hermite()
    x, noise = t * nodes[:, None], nodes
    weight = weights[:, None] * weights
    z = a * x + b * noise
    log_ratio = (z.square() - noise.square()) / 2 - b.abs().log()  # log q(z|x) - log p(z)
    expected = (weight * ((c * z - x).square() + beta * log_ratio)).sum()
    close(toy.loss(a, b, c, t, beta), expected)


def test_expectation_of_the_sampled_loss_is_the_integrated_loss():
    t, beta = grid()
    a, b, c = torch.tensor(0.7), torch.tensor(0.4), torch.tensor(1.3)
    nodes, weights = hermite()
    x, noise = t * nodes[:, None, None, None], nodes[:, None, None].expand(40, 3, 6)
    per_sample = toy.sampled_loss(a, b, c, x, noise, beta)  # (40, 40, 3, 6)
    close(torch.einsum("i,j,ijtb->tb", weights, weights, per_sample), toy.loss(a, b, c, t, beta))


def test_minibatches_of_the_sampled_loss_average_to_the_integrated_loss():
    draws = torch.randn(2, 200_000, generator=generator())
    a, b, c = torch.tensor(0.7), torch.tensor(0.4), torch.tensor(1.3)
    per_sample = toy.sampled_loss(a, b, c, 2.0 * draws[0], draws[1], 1.0)
    error = (per_sample.mean() - toy.loss(a, b, c, 2.0, 1.0)).abs()
    assert error < 4 * per_sample.std() / math.sqrt(200_000)  # four standard errors


def test_optimum_is_stationary_and_no_perturbation_lowers_the_loss():
    t, beta = grid()
    best = toy.optimum(t, beta)
    assert gradient(lambda a, b, c: toy.loss(a, b, c, t, beta), best.a, best.b, best.c) < 1e-10
    lowest = toy.loss(best.a, best.b, best.c, t, beta)
    for scale in (1e-3, 0.1, 1.0):
        moves = scale * torch.randn(2000, 3, *t.shape, generator=generator())
        moved = toy.loss(best.a + moves[:, 0], best.b + moves[:, 1], best.c + moves[:, 2], t, beta)
        assert (moved >= lowest - 1e-12).all()


def test_t_beta_one_is_biased_and_noisy():
    best = toy.optimum(1.0, 1.0)
    for value in (best.a, best.b, best.c):
        close(value, math.sqrt(2) / 2)
    close(toy.statistics(1.0, 1.0).slope, 0.5)


def test_no_kl_weight_gives_the_perfect_reconstruction_in_the_limit():
    for beta in (0.0, 1e-12):
        best = toy.optimum(2.0, beta)
        close(best.a * best.c, 1.0)
        close(best.b, 0.0, 1e-6)
    # With beta = 0 the scale of the code is free and b = 0 costs nothing.
    close(toy.loss(torch.tensor(5.0), torch.tensor(0.0), torch.tensor(0.2), 2.0, 0.0), 0.0)
    close(toy.minimum_loss(2.0, 0.0), 0.0)


def test_minimum_loss_is_the_loss_at_the_optimum():
    t, beta = grid()
    best = toy.optimum(t, beta)
    close(toy.minimum_loss(t, beta), toy.loss(best.a, best.b, best.c, t, beta))
    close(toy.minimum_loss(t, toy.collapse_threshold(t)), t.square())


def test_collapse_hessian_matches_autograd_and_turns_at_the_threshold():
    for t in SCALES:
        for beta in (0.5 * t**2, 3 * t**2):
            state = torch.zeros(2)
            hessian = torch.autograd.functional.hessian(
                lambda ac, t=t, beta=beta: toy.loss(ac[0], torch.tensor(1.0), ac[1], t, beta), state
            )
            close(toy.collapse_hessian(t, beta), hessian)
            close(toy.collapse_determinant(t, beta), torch.linalg.det(hessian))
            assert (torch.linalg.eigvalsh(hessian)[0] > 0) == (beta > toy.collapse_threshold(t))
    assert toy.collapse_hessian(*grid()).shape == (3, 6, 2, 2)


def test_statistics_are_those_of_the_optimum():
    t, beta = grid()
    best, s = toy.optimum(t, beta), toy.statistics(t, beta)
    close(s.slope, best.a * best.c)
    close(s.squared_error, toy.loss(best.a, best.b, best.c, t, 0.0))
    close(beta * s.rate, toy.minimum_loss(t, beta) - s.squared_error)
    close(s.mean_variance, best.c.square())
    close(toy.aggregate_variance(best.a, best.b, t), torch.ones(3, 6))  # q(z) is the prior, collapsed or not


def test_means_are_too_narrow_and_true_samples_exact_until_the_collapse():
    t, beta = grid()
    s = toy.statistics(t, beta)
    close(s.mean_variance, (t.square() - beta / 2).clamp(min=0))
    close(s.sample_variance, torch.where(beta < 2 * t.square(), t.square(), beta / 2))
    assert (s.sample_variance[:, -1] > t[:, -1].square()).all()  # past the threshold: too wide


def test_regularising_the_aggregate_reaches_the_perfect_solution_for_every_beta():
    best = toy.aggregate_optimum(2.0)
    for beta in (0.01, 1.0, 8.0, 100.0):

        def objective(a, b, c, beta=beta):
            return toy.aggregate_loss(a, b, c, 2.0, beta)

        close(objective(best.a, best.b, best.c), 0.0)
        assert gradient(objective, best.a, best.b, best.c) < 1e-10
        start = (torch.tensor(0.3), torch.tensor(0.5), torch.tensor(0.4))
        fitted, lowest = fit(objective, *start)
        assert lowest < 1e-10
        for value, expected in zip(fitted, (0.5, 0.0, 2.0), strict=True):
            close(value, expected, 1e-4)


def test_optimum_lies_on_the_rate_distortion_curve_with_slope_minus_beta():
    t, beta = grid()
    s = toy.statistics(t, beta)
    close(toy.rate_at_distortion(t, s.squared_error), s.rate)
    close(toy.rate_at_distortion(1.0, 2.0), 0.0)
    d = torch.tensor(0.3, requires_grad=True)  # beta = 2 D = 0.6
    (slope,) = torch.autograd.grad(toy.rate_at_distortion(1.0, d), d)
    close(1 / slope, -0.6)


# --- d dimensions


def random_vae(k, d, full, seed=0):
    a, c, root = (torch.randn(s, generator=generator(seed)) for s in ((k, d), (d, k), (k, k)))
    covariance = root @ root.T + 0.1 * torch.eye(k) if full else root[0].square() + 0.1
    return toy.LinearEncoder(a, covariance), toy.LinearDecoder(c, torch.rand(d, generator=generator(seed)) + 0.1)


def test_scalar_loss_is_the_matrix_loss_of_size_one():
    t, beta = grid()
    a, b, c = (torch.randn(3, 6, generator=generator(i)) for i in range(3))
    encoder = toy.LinearEncoder(a[..., None, None], b.square()[..., None])
    matrix = toy.matrix_loss(encoder, c[..., None, None], t.square()[..., None, None], beta)
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
    elbo = toy.elbo(encoder, decoder, covariance)
    close(elbo.distortion, -likelihood.mean())
    close(elbo.rate, torch.distributions.kl_divergence(q, prior).mean())
    close(toy.aggregate_covariance(encoder, covariance), z.T @ z / n)


def test_squared_error_plus_beta_kl_is_two_sigma_square_elbos_up_to_a_constant():
    d, beta, covariance = 3, 0.8, random_covariance(3)
    noise = toy.fixed_noise_variance(beta)
    for seed in range(3):
        encoder, decoder = random_vae(2, d, full=True, seed=seed)
        elbo = toy.elbo(encoder, toy.LinearDecoder(decoder.matrix, noise), covariance)
        scaled = 2 * noise * (elbo.distortion + elbo.rate) - d * noise * (2 * math.pi * noise).log()
        close(toy.matrix_loss(encoder, decoder.matrix, covariance, beta), scaled)


@pytest.mark.parametrize("latents", [1, 2, 5, 7])
@pytest.mark.parametrize("kl_weight", [1.0, 0.5])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_best_vae_is_stationary_and_no_perturbation_lowers_the_objective(latents, kl_weight, per_pixel):
    covariance = random_covariance(5)
    noise = torch.linspace(0.2, 0.9, 5) if per_pixel else torch.tensor(0.5)
    encoder, decoder = toy.best_vae(covariance, noise, latents, kl_weight)

    def objective(a, v, c):
        parts = toy.elbo(toy.LinearEncoder(a, (v + v.mT) / 2), toy.LinearDecoder(c, noise), covariance)
        return parts.distortion + kl_weight * parts.rate

    best = (encoder.matrix, encoder.full_covariance, decoder.matrix)
    assert gradient(objective, *best) < 1e-10
    lowest = objective(*best)
    close(lowest, toy.best_objective(covariance, noise, latents, kl_weight))
    close(toy.aggregate_covariance(encoder, covariance), torch.eye(latents))
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
        return toy.matrix_loss(toy.LinearEncoder(a, v), c, covariance, beta)

    (a, c, _), lowest = fit(objective, *start, spread)
    close(lowest, (best.squared_error + beta * best.rate).sum(), 1e-9)
    decoder = toy.LinearDecoder(c, torch.tensor(beta / 2))
    close(toy.spectrum(decoder.mean_covariance), best.mean_variance, 1e-4)
    close(toy.spectrum(decoder.sample_covariance), best.sample_variance, 1e-4)
    if not full:  # a diagonal posterior picks the principal axes, up to order and sign
        gram = c.T @ c
        close(gram - torch.diag(gram.diagonal()), torch.zeros(latents, latents), 1e-4)


def test_true_samples_have_the_spectrum_max_of_eigenvalue_and_noise():
    values = torch.tensor([3.0, 1.5, 0.6, 0.1])
    covariance = with_eigenvalues(values)
    for latents, expected in ((3, [3.0, 1.5, 0.6, 0.3]), (4, [3.0, 1.5, 0.6, 0.3]), (1, [3.0, 0.3, 0.3, 0.3])):
        _, decoder = toy.best_vae(covariance, 0.3, latents)
        close(toy.spectrum(decoder.sample_covariance), expected)
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
    encoder, decoder = toy.best_vae(covariance, noise, 4, kl_weight)
    close(toy.spectrum(decoder.sample_covariance), best.sample_variance)
    close(best.sample_variance, [2.85, 1.35, 0.45, 0.3])  # l + (1 - w) sigma^2: no longer exact where it is live
    given = toy.conditional_moments(encoder, covariance)
    close(toy.spectrum(given.covariance) / noise, best.variance_ratio)


def test_best_encoder_makes_the_bound_tight_and_the_likelihood_is_right():
    covariance = random_covariance(4)
    _, decoder = random_vae(2, 4, full=False)
    parts = toy.elbo(toy.best_encoder(decoder), decoder, covariance)
    close(parts.distortion + parts.rate, toy.negative_log_likelihood(decoder, covariance))
    data, model = (
        torch.distributions.MultivariateNormal(torch.zeros(4), s) for s in (covariance, decoder.sample_covariance)
    )
    cross_entropy = data.entropy() + torch.distributions.kl_divergence(data, model)
    close(toy.negative_log_likelihood(decoder, covariance), cross_entropy)


def test_best_encoder_is_stationary_for_any_kl_weight():
    covariance = random_covariance(4)
    _, decoder = random_vae(2, 4, full=False)
    for kl_weight in (0.3, 1.0, 2.0):
        encoder = toy.best_encoder(decoder, kl_weight)

        def objective(a, v, kl_weight=kl_weight):
            parts = toy.elbo(toy.LinearEncoder(a, (v + v.mT) / 2), decoder, covariance)
            return parts.distortion + kl_weight * parts.rate

        assert gradient(objective, encoder.matrix, encoder.covariance) < 1e-10


# --- learned shared sigma


SPECTRUM = torch.tensor([4.0, 2.0, 1.0, 0.4, 0.2], dtype=torch.float64)


def shared_objective(noise, latents, kl_weight=1.0, values=SPECTRUM):
    """The profiled objective at each of the noise variances, (n,)."""
    return toy.best_objective(torch.diag(values), noise[..., None], latents, kl_weight)


def test_learned_noise_is_the_mean_of_the_discarded_eigenvalues():
    for latents in (0, 1, 2, 4):
        best = toy.best_shared_noise(SPECTRUM, latents)
        assert best.low == best.high
        close(best.low, SPECTRUM[latents:].mean())


def test_objective_is_flat_up_to_the_smallest_eigenvalue_when_every_direction_has_a_latent():
    best = toy.best_shared_noise(SPECTRUM, 5)
    assert (best.low.item(), best.high.item()) == (0.0, 0.2)
    values = shared_objective(torch.tensor([1e-6, 1e-3, 0.1, 0.2]), 5)
    close(values, values[0])
    assert shared_objective(torch.tensor([0.21]), 5) > values[0] + 1e-4
    held = toy.best_shared_noise(SPECTRUM, 5, floor=1.0)
    assert (held.low.item(), held.high.item()) == (1.0, 1.0)
    scalar = toy.best_shared_noise(torch.tensor([2.25]), 1)  # t = 1.5: flat for all sigma^2 <= t^2
    assert (scalar.low.item(), scalar.high.item()) == (0.0, 2.25)


def test_kl_weight_with_learned_sigma_runs_away_below_one_and_collapses_above():
    one = torch.tensor([2.25])

    def best(values, latents, weight, floor=0.0):
        return toy.best_shared_noise(values, latents, weight, floor, allow_kl_weight=True).low

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
def test_learned_noise_beats_every_other_and_follows_the_kl_weight_law(latents, kl_weight):
    floor = 1e-2
    best = toy.best_shared_noise(SPECTRUM, latents, kl_weight, floor, allow_kl_weight=True)
    scan = torch.logspace(-4, 2, 4001)
    values = shared_objective(scan, latents, kl_weight)
    lowest = shared_objective(best.low[None], latents, kl_weight)
    assert (values >= lowest - 1e-12).all()
    assert (values.diff().diff() > -1e-10).all()  # convex in log sigma
    live = toy.directions(SPECTRUM, best.low, latents, kl_weight).live
    if best.low == best.high > floor**2:
        close(best.low, SPECTRUM[~live].sum() / (5 - kl_weight * live.sum()))


def test_fit_with_a_learned_sigma_finds_the_law():
    covariance = with_eigenvalues(SPECTRUM)
    start = [0.3 * torch.randn(s, generator=generator(2)) for s in ((2, 5), (5, 2), (2,), ())]
    for kl_weight in (1.0, 0.7, 1.3):

        def objective(a, c, s, logstd, kl_weight=kl_weight):
            encoder, decoder = toy.LinearEncoder(a, (2 * s).exp()), toy.LinearDecoder(c, (2 * logstd).exp())
            parts = toy.elbo(encoder, decoder, covariance)
            return parts.distortion + kl_weight * parts.rate

        fitted, _ = fit(objective, *start)
        expected = toy.best_shared_noise(SPECTRUM, 2, kl_weight, allow_kl_weight=True).low
        close((2 * fitted[3]).exp(), expected, 1e-6)
        close(expected, 1.6 / (5 - 2 * kl_weight))


# --- per-pixel sigma: factor analysis


def factor_analysis(covariance, latents, floor):
    """Descent on log sigma alone, C in closed form: encoder, decoder and the negative log likelihood reached."""
    start = 0.5 * (0.5 * covariance.diagonal()).log()

    def objective(logstd):
        return toy.best_objective(covariance, toy.noise_above_floor(logstd, floor), latents)

    (logstd,), value = fit(objective, start, steps=600)
    encoder, decoder = toy.best_vae(covariance, toy.noise_above_floor(logstd, floor), latents)
    return encoder, decoder, value


def heywood_covariance():
    g = torch.randn(5, 5, generator=generator(0))
    return g @ g.T / 5


def planted(d=8, k=2):
    truth = torch.linspace(0.2, 1.5, d)
    matrix = torch.randn(d, k, generator=generator(3))
    return truth, toy.LinearDecoder(matrix, truth).sample_covariance


def test_planted_pixel_noise_is_recovered():
    truth, covariance = planted()
    encoder, decoder, value = factor_analysis(covariance, 2, 1e-3)
    close(decoder.noise_variance, truth, 1e-5)
    close(decoder.sample_covariance, covariance, 1e-5)
    close(value, toy.negative_log_likelihood(decoder, covariance))
    close(toy.marginal_variance_gap(encoder, decoder, covariance), torch.zeros(8), 1e-6)


def test_marginal_variance_gap_is_that_of_any_model_with_z_from_the_aggregate():
    covariance = random_covariance(4)
    encoder, decoder = random_vae(2, 4, full=True)
    root = torch.linalg.cholesky(
        toy.aggregate_covariance(encoder, covariance)
    )  # not I: q(z) is far from the prior here
    expected = (decoder.matrix @ root).square().sum(-1) + decoder.noise_variance - covariance.diagonal()
    close(toy.marginal_variance_gap(encoder, decoder, covariance), expected)


def test_heywood_case_goes_to_the_floor_and_the_floor_holds():
    covariance = heywood_covariance()
    lowest = []
    for floor in (1e-1, 1e-2, 1e-3):
        encoder, decoder, value = factor_analysis(covariance, 2, floor)
        std = decoder.noise_variance.sqrt()
        at_floor = std < 1.1 * floor
        assert at_floor.tolist() == [True, False, False, True, False]
        assert (std > floor).all()
        gap = toy.marginal_variance_gap(encoder, decoder, covariance)
        close(gap[~at_floor], torch.zeros(3), 1e-5)
        assert (gap > -1e-5).all()
        lowest.append(value)
    assert lowest[0] > lowest[1] > lowest[2]  # every lower floor is used


def test_floor_leaves_a_positive_variance_gap():
    covariance = heywood_covariance()
    encoder, decoder, _ = factor_analysis(covariance, 2, 0.3)
    at_floor = decoder.noise_variance.sqrt() < 0.303
    gap = toy.marginal_variance_gap(encoder, decoder, covariance)
    assert at_floor.any()
    assert (gap[at_floor] > 1e-3).all()
    close(gap[~at_floor], torch.zeros(int((~at_floor).sum())), 1e-5)


@pytest.mark.parametrize("d, k", [(5, 1), (6, 2), (8, 2)])
def test_autoregressive_covariance_stays_off_the_floor(d, k):
    covariance = autoregressive(d, 0.6)
    encoder, decoder, _ = factor_analysis(covariance, k, 1e-3)
    assert (decoder.noise_variance.sqrt() > 0.4).all()
    close(toy.marginal_variance_gap(encoder, decoder, covariance), torch.zeros(d), 1e-6)


def test_autoregressive_covariance_with_d_5_and_k_2_is_an_exact_heywood_case():
    # Given x_2 and x_4 a Markov chain's x_1, x_3 and x_5 are independent: z = (x_2, x_4) explains S without a rest.
    covariance = autoregressive(5, 0.6)
    entropy = torch.distributions.MultivariateNormal(torch.zeros(5), covariance).entropy()
    _, decoder, value = factor_analysis(covariance, 2, 1e-3)
    assert (decoder.noise_variance.sqrt()[[1, 3]] < 0.02).all()
    close(decoder.noise_variance.sqrt()[[0, 2, 4]], [0.8, math.sqrt((1 - 0.36) / (1 + 0.36)), 0.8], 1e-3)
    close(value, entropy, 1e-5)


def test_em_never_lowers_the_likelihood_and_finds_the_same_optimum():
    truth, covariance = planted()
    decoder, values = toy.LinearDecoder(torch.randn(8, 2, generator=generator(4)), torch.ones(8)), []
    for _ in range(1500):
        values.append(toy.negative_log_likelihood(decoder, covariance))
        decoder = toy.em_step(decoder, covariance, 1e-3)
    assert (torch.stack(values).diff() < 1e-12).all()
    close(decoder.noise_variance, truth, 1e-4)


def test_em_of_the_heywood_case_is_held_by_the_floor():
    covariance, floor = heywood_covariance(), 0.1
    *_, lowest = factor_analysis(covariance, 2, floor)
    decoder = toy.LinearDecoder(torch.randn(5, 2, generator=generator(4)), torch.ones(5))
    for _ in range(1500):
        decoder = toy.em_step(decoder, covariance, floor)
    close(decoder.noise_variance.sqrt()[[0, 3]], floor)
    close(toy.negative_log_likelihood(decoder, covariance), lowest, 1e-4)


def test_em_with_a_shared_sigma_is_probabilistic_pca():
    covariance = with_eigenvalues(SPECTRUM)
    decoder = toy.LinearDecoder(torch.randn(5, 2, generator=generator(4)), torch.tensor(1.0))
    for _ in range(500):
        decoder = toy.em_step(decoder, covariance, shared=True)
    close(decoder.noise_variance, toy.best_shared_noise(SPECTRUM, 2).low, 1e-6)


def test_noise_above_floor_keeps_a_gradient():
    logstd = torch.tensor([-20.0, 0.0], requires_grad=True)
    noise = toy.noise_above_floor(logstd, 0.01)
    assert (noise >= 1e-4).all()
    assert (torch.autograd.grad(noise.sum(), logstd)[0] > 0).all()


# --- the ideal denoiser


def test_converged_decoder_is_the_conditional_mean_and_learned_sigma_its_variance():
    _, covariance = planted()
    encoder, decoder, _ = factor_analysis(covariance, 2, 1e-3)
    given = toy.conditional_moments(encoder, covariance)
    close(given.matrix, decoder.matrix, 1e-6)
    close(given.covariance.diagonal(), decoder.noise_variance, 1e-6)
    # Not a factor model: the variances are right, and the correlation is what the denoiser has to restore.
    covariance = autoregressive(8, 0.6)
    encoder, decoder, _ = factor_analysis(covariance, 2, 1e-3)
    given = toy.conditional_moments(encoder, covariance)
    close(given.covariance.diagonal(), decoder.noise_variance, 1e-6)
    assert (given.covariance - torch.diag(given.covariance.diagonal())).abs().max() > 0.05


def test_fixed_sigma_has_an_excess_in_dead_directions_and_learned_shared_sigma_the_right_total():
    covariance = with_eigenvalues(SPECTRUM)
    encoder, decoder = toy.best_vae(covariance, 0.7, 5)
    given = toy.conditional_moments(encoder, covariance)
    close(given.matrix[:, :3], decoder.matrix[:, :3])
    best = toy.directions(SPECTRUM, 0.7, 5)
    close(toy.spectrum(given.covariance), best.squared_error)
    close(best.variance_ratio, [1.0, 1.0, 1.0, 0.4 / 0.7, 0.2 / 0.7])
    learned = toy.best_shared_noise(SPECTRUM, 3).low
    close(toy.directions(SPECTRUM, learned, 3).variance_ratio.mean(), 1.0)


def test_ideal_denoiser_gives_the_data_back():
    for noise in (torch.tensor(0.7), torch.linspace(0.3, 1.2, 5)):
        covariance = random_covariance(5)
        encoder, decoder = toy.best_vae(covariance, noise, 3)
        given = toy.conditional_moments(encoder, covariance)
        gain = toy.ideal_denoiser(noise, given.covariance)
        close(gain, gain.T)
        spread = gain * decoder.pixel_variance @ gain.T  # Cov_eps[G]
        close(spread, given.covariance)
        close(decoder.mean_covariance + spread, covariance)  # G over z ~ p(z) has the data's law
        raw = torch.linalg.eigvalsh(gain)
        assert (raw > 0).all()  # the gradient of a convex function: it moves x~ the least


def test_one_dimensional_ideal_denoiser_is_the_identity_until_the_collapse():
    t, beta = grid()
    gain = toy.ideal_gain(t, beta)
    close(gain, (t / (beta / 2).sqrt()).clamp(max=1))
    s = toy.statistics(t, beta)
    close(s.mean_variance + gain.square() * beta / 2, t.square())  # the denoised have the data's variance everywhere
    noise = toy.fixed_noise_variance(3.0)
    encoder, _ = toy.best_vae(torch.eye(1), noise, 1)
    matrix = toy.ideal_denoiser(noise, toy.conditional_moments(encoder, torch.eye(1)).covariance)
    close(matrix[0, 0], toy.ideal_gain(1.0, 3.0))


# --- what is refused


ONE = torch.tensor(1.0)
SKEW = torch.tensor([[1.0, 0.5], [0.2, 1.0]])
DECODER = toy.LinearDecoder(torch.ones(2, 3), ONE)


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: toy.optimum(0.0, 1.0), "data std t = 0; give a finite t > 0"),
        (lambda: toy.loss(ONE, ONE, ONE, torch.tensor([1.0, -2.0]), 1.0), "data std t = -2"),
        (lambda: toy.optimum(math.nan, 1.0), "data std t = nan"),
        (lambda: toy.minimum_loss(1.0, -0.5), "beta = -0.5; give a finite beta >= 0"),
        (lambda: toy.sampled_loss(ONE, ONE, ONE, ONE, ONE, -1.0), "beta = -1"),
        (lambda: toy.rate_at_distortion(1.0, -1.0), "squared error = -1"),
        (lambda: toy.directions(torch.tensor([-1.0]), 1.0), "eigenvalue = -1"),
        (lambda: toy.directions(torch.ones(2), -1.0), "noise variance = -1"),
        (lambda: toy.directions(torch.ones(2), 1.0, -1), "-1 latents; give k >= 0"),
        (lambda: toy.directions(torch.ones(2), 1.0, 1, 0.0), "KL weight = 0"),
        (lambda: toy.spectrum(SKEW), "differs from its transpose by 0.3"),
        (lambda: toy.spectrum(torch.ones(2, 3)), "give a square matrix"),
        (lambda: toy.spectrum(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "positive semi-definite"),
        (lambda: toy.best_vae(torch.full((2, 2), math.inf), 1.0, 1), "not finite"),
        (lambda: toy.best_vae(torch.eye(2), 0.0, 1), "noise variance = 0"),
        (lambda: toy.LinearEncoder(torch.ones(2, 2), SKEW), "posterior covariance differs"),
        (lambda: toy.LinearEncoder(torch.ones(2, 3), torch.ones(3)), "posterior covariance of shape (3,)"),
        (lambda: toy.LinearEncoder(torch.ones(1, 3), torch.zeros(1)), "posterior variance = 0"),
        (lambda: toy.LinearDecoder(torch.ones(3, 1), torch.ones(2)), "noise variance of shape (2,)"),
        (lambda: toy.LinearDecoder(torch.ones(3, 1), -ONE), "noise variance = -1"),
        (lambda: toy.best_shared_noise(torch.ones(2), 3), "3 latents; give 0 <= k <= d = 2"),
        (lambda: toy.em_step(DECODER, torch.eye(2)), "3 latents; give 0 <= k <= d = 2"),
        (lambda: toy.best_shared_noise(torch.ones(2), 1, 0.5), "KL weight = 0.5 with a learned sigma: sigma runs"),
        (lambda: toy.require_kl_weight(2.0), "KL weight = 2 with a learned sigma: latents collapse"),
        (lambda: toy.require_kl_weight(-1.0, True), "KL weight = -1"),
        (lambda: toy.noise_above_floor(ONE, 0.0), "floor = 0"),
    ],
)
def test_invalid_input_is_refused_in_one_line_with_the_reason(call, reason):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message
