"""The toy's closed forms in d dimensions, in float64: sampling, stationarity, small fits, refusals."""

import math

import pytest
import torch

from models.core.errors import InputError
from models.toys import linear_gaussian as toy
from models.toys import linear_vae as vae
from tests.toys.tools import autoregressive, close, fit, generator, gradient, grid, random_covariance, with_eigenvalues


@pytest.fixture(autouse=True)
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


# --- d dimensions


def random_vae(k, d, full, seed=0):
    a, c, root = (torch.randn(s, generator=generator(seed)) for s in ((k, d), (d, k), (k, k)))
    covariance = root @ root.T + 0.1 * torch.eye(k) if full else root[0].square() + 0.1
    return vae.LinearEncoder(a, covariance), vae.LinearDecoder(c, torch.rand(d, generator=generator(seed)) + 0.1)


def test_scalar_loss_is_the_matrix_loss_of_size_one():
    t, beta = grid()
    a, b, c = (torch.randn(3, 6, generator=generator(i)) for i in range(3))
    encoder = vae.LinearEncoder(a[..., None, None], b.square()[..., None])
    matrix = vae.matrix_loss(encoder, c[..., None, None], t.square()[..., None, None], beta)
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
        close(vae.matrix_loss(encoder, decoder.matrix, covariance, beta), scaled)


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
        return vae.matrix_loss(vae.LinearEncoder(a, v), c, covariance, beta)

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
    encoder, decoder = vae.best_vae(covariance, noise, 4, kl_weight)
    close(vae.spectrum(decoder.sample_covariance), best.sample_variance)
    close(best.sample_variance, [2.85, 1.35, 0.45, 0.3])  # l + (1 - w) sigma^2: no longer exact where it is live
    given = vae.conditional_moments(encoder, covariance)
    close(vae.spectrum(given.covariance) / noise, best.variance_ratio)


def test_best_encoder_makes_the_bound_tight_and_the_likelihood_is_right():
    covariance = random_covariance(4)
    _, decoder = random_vae(2, 4, full=False)
    parts = vae.elbo(vae.best_encoder(decoder), decoder, covariance)
    close(parts.distortion + parts.rate, vae.negative_log_likelihood(decoder, covariance))
    data, model = (
        torch.distributions.MultivariateNormal(torch.zeros(4), s) for s in (covariance, decoder.sample_covariance)
    )
    cross_entropy = data.entropy() + torch.distributions.kl_divergence(data, model)
    close(vae.negative_log_likelihood(decoder, covariance), cross_entropy)


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


SPECTRUM = torch.tensor([4.0, 2.0, 1.0, 0.4, 0.2], dtype=torch.float64)


def shared_objective(noise, latents, kl_weight=1.0, values=SPECTRUM):
    """The profiled objective at each of the noise variances, (n,)."""
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
        return vae.best_shared_noise(values, latents, weight, floor, allow_kl_weight=True).low

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
    best = vae.best_shared_noise(SPECTRUM, latents, kl_weight, floor, allow_kl_weight=True)
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
            encoder, decoder = vae.LinearEncoder(a, (2 * s).exp()), vae.LinearDecoder(c, (2 * logstd).exp())
            parts = vae.elbo(encoder, decoder, covariance)
            return parts.distortion + kl_weight * parts.rate

        fitted, _ = fit(objective, *start)
        expected = vae.best_shared_noise(SPECTRUM, 2, kl_weight, allow_kl_weight=True).low
        close((2 * fitted[3]).exp(), expected, 1e-6)
        close(expected, 1.6 / (5 - 2 * kl_weight))


# --- per-pixel sigma: factor analysis


def factor_analysis(covariance, latents, floor):
    """Descent on log sigma alone, C in closed form: encoder, decoder and the negative log likelihood reached."""
    start = 0.5 * (0.5 * covariance.diagonal()).log()

    def objective(logstd):
        return vae.best_objective(covariance, vae.noise_above_floor(logstd, floor), latents)

    (logstd,), value = fit(objective, start, steps=600)
    encoder, decoder = vae.best_vae(covariance, vae.noise_above_floor(logstd, floor), latents)
    return encoder, decoder, value


def heywood_covariance():
    g = torch.randn(5, 5, generator=generator(0))
    return g @ g.T / 5


def planted(d=8, k=2):
    truth = torch.linspace(0.2, 1.5, d)
    matrix = torch.randn(d, k, generator=generator(3))
    return truth, vae.LinearDecoder(matrix, truth).sample_covariance


def test_planted_pixel_noise_is_recovered():
    truth, covariance = planted()
    encoder, decoder, value = factor_analysis(covariance, 2, 1e-3)
    close(decoder.noise_variance, truth, 1e-5)
    close(decoder.sample_covariance, covariance, 1e-5)
    close(value, vae.negative_log_likelihood(decoder, covariance))
    close(vae.marginal_variance_gap(encoder, decoder, covariance), torch.zeros(8), 1e-6)


def test_marginal_variance_gap_is_that_of_any_model_with_z_from_the_aggregate():
    covariance = random_covariance(4)
    encoder, decoder = random_vae(2, 4, full=True)
    root = torch.linalg.cholesky(
        vae.aggregate_covariance(encoder, covariance)
    )  # not I: q(z) is far from the prior here
    expected = (decoder.matrix @ root).square().sum(-1) + decoder.noise_variance - covariance.diagonal()
    close(vae.marginal_variance_gap(encoder, decoder, covariance), expected)


def test_heywood_case_goes_to_the_floor_and_the_floor_holds():
    covariance = heywood_covariance()
    lowest = []
    for floor in (1e-1, 1e-2, 1e-3):
        encoder, decoder, value = factor_analysis(covariance, 2, floor)
        std = decoder.noise_variance.sqrt()
        at_floor = std < 1.1 * floor
        assert at_floor.tolist() == [True, False, False, True, False]
        assert (std > floor).all()
        gap = vae.marginal_variance_gap(encoder, decoder, covariance)
        close(gap[~at_floor], torch.zeros(3), 1e-5)
        assert (gap > -1e-5).all()
        lowest.append(value)
    assert lowest[0] > lowest[1] > lowest[2]  # every lower floor is used


def test_floor_leaves_a_positive_variance_gap():
    covariance = heywood_covariance()
    encoder, decoder, _ = factor_analysis(covariance, 2, 0.3)
    at_floor = decoder.noise_variance.sqrt() < 0.303
    gap = vae.marginal_variance_gap(encoder, decoder, covariance)
    assert at_floor.any()
    assert (gap[at_floor] > 1e-3).all()
    close(gap[~at_floor], torch.zeros(int((~at_floor).sum())), 1e-5)


@pytest.mark.parametrize("d, k", [(5, 1), (6, 2), (8, 2)])
def test_autoregressive_covariance_stays_off_the_floor(d, k):
    covariance = autoregressive(d, 0.6)
    encoder, decoder, _ = factor_analysis(covariance, k, 1e-3)
    assert (decoder.noise_variance.sqrt() > 0.4).all()
    close(vae.marginal_variance_gap(encoder, decoder, covariance), torch.zeros(d), 1e-6)


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
    decoder, values = vae.LinearDecoder(torch.randn(8, 2, generator=generator(4)), torch.ones(8)), []
    for _ in range(1500):
        values.append(vae.negative_log_likelihood(decoder, covariance))
        decoder = vae.em_step(decoder, covariance, 1e-3)
    assert (torch.stack(values).diff() < 1e-12).all()
    close(decoder.noise_variance, truth, 1e-4)


def test_em_of_the_heywood_case_is_held_by_the_floor():
    covariance, floor = heywood_covariance(), 0.1
    *_, lowest = factor_analysis(covariance, 2, floor)
    decoder = vae.LinearDecoder(torch.randn(5, 2, generator=generator(4)), torch.ones(5))
    for _ in range(1500):
        decoder = vae.em_step(decoder, covariance, floor)
    close(decoder.noise_variance.sqrt()[[0, 3]], floor)
    close(vae.negative_log_likelihood(decoder, covariance), lowest, 1e-4)


def test_em_with_a_shared_sigma_is_probabilistic_pca():
    covariance = with_eigenvalues(SPECTRUM)
    decoder = vae.LinearDecoder(torch.randn(5, 2, generator=generator(4)), torch.tensor(1.0))
    for _ in range(500):
        decoder = vae.em_step(decoder, covariance, shared=True)
    close(decoder.noise_variance, vae.best_shared_noise(SPECTRUM, 2).low, 1e-6)


def test_noise_above_floor_keeps_a_gradient():
    logstd = torch.tensor([-20.0, 0.0], requires_grad=True)
    noise = vae.noise_above_floor(logstd, 0.01)
    assert (noise >= 1e-4).all()
    assert (torch.autograd.grad(noise.sum(), logstd)[0] > 0).all()


# --- the ideal denoiser


def test_converged_decoder_is_the_conditional_mean_and_learned_sigma_its_variance():
    _, covariance = planted()
    encoder, decoder, _ = factor_analysis(covariance, 2, 1e-3)
    given = vae.conditional_moments(encoder, covariance)
    close(given.matrix, decoder.matrix, 1e-6)
    close(given.covariance.diagonal(), decoder.noise_variance, 1e-6)
    # Not a factor model: the variances are right, and the correlation is what the denoiser has to restore.
    covariance = autoregressive(8, 0.6)
    encoder, decoder, _ = factor_analysis(covariance, 2, 1e-3)
    given = vae.conditional_moments(encoder, covariance)
    close(given.covariance.diagonal(), decoder.noise_variance, 1e-6)
    assert (given.covariance - torch.diag(given.covariance.diagonal())).abs().max() > 0.05


def test_fixed_sigma_has_an_excess_in_dead_directions_and_learned_shared_sigma_the_right_total():
    covariance = with_eigenvalues(SPECTRUM)
    encoder, decoder = vae.best_vae(covariance, 0.7, 5)
    given = vae.conditional_moments(encoder, covariance)
    close(given.matrix[:, :3], decoder.matrix[:, :3])
    best = toy.directions(SPECTRUM, 0.7, 5)
    close(vae.spectrum(given.covariance), best.squared_error)
    close(best.variance_ratio, [1.0, 1.0, 1.0, 0.4 / 0.7, 0.2 / 0.7])
    learned = vae.best_shared_noise(SPECTRUM, 3).low
    close(toy.directions(SPECTRUM, learned, 3).variance_ratio.mean(), 1.0)


def test_ideal_denoiser_gives_the_data_back():
    for noise in (torch.tensor(0.7), torch.linspace(0.3, 1.2, 5)):
        covariance = random_covariance(5)
        encoder, decoder = vae.best_vae(covariance, noise, 3)
        given = vae.conditional_moments(encoder, covariance)
        gain = vae.ideal_denoiser(noise, given.covariance)
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
    encoder, _ = vae.best_vae(torch.eye(1), noise, 1)
    matrix = vae.ideal_denoiser(noise, vae.conditional_moments(encoder, torch.eye(1)).covariance)
    close(matrix[0, 0], toy.ideal_gain(1.0, 3.0))


# --- what is refused


ONE = torch.tensor(1.0)
SKEW = torch.tensor([[1.0, 0.5], [0.2, 1.0]])
DECODER = vae.LinearDecoder(torch.ones(2, 3), ONE)


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
        (lambda: vae.em_step(DECODER, torch.eye(2)), "3 latents; give 0 <= k <= d = 2"),
        (lambda: vae.best_shared_noise(torch.ones(2), 1, 0.5), "KL weight = 0.5 with a learned sigma: sigma runs"),
        (lambda: vae.require_kl_weight(2.0), "KL weight = 2 with a learned sigma: latents collapse"),
        (lambda: vae.require_kl_weight(-1.0, True), "KL weight = -1"),
        (lambda: vae.noise_above_floor(ONE, 0.0), "floor = 0"),
    ],
)
def test_invalid_input_is_refused_in_one_line_with_the_reason(call, reason):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message
