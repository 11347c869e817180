"""Factor analysis in float64: planted noise, Heywood cases, EM, and refusals."""

import math

import pytest
import torch

from degrain.models.toys import factor_analysis as fa
from degrain.models.toys import linear_vae as vae
from tests.toys.tools import (
    SPECTRUM,
    autoregressive,
    close,
    fit_factor_analysis,
    generator,
    planted_covariance,
    random_covariance,
    random_vae,
    refused,
    with_eigenvalues,
)

pytestmark = pytest.mark.usefixtures("float64")


def test_best_encoder_makes_the_bound_tight_and_the_likelihood_is_right():
    covariance = random_covariance(4)
    _, decoder = random_vae(2, 4, full=False)
    parts = vae.elbo(vae.best_encoder(decoder), decoder, covariance)
    close(parts.distortion + parts.rate, fa.negative_log_likelihood(decoder, covariance))
    data, model = (
        torch.distributions.MultivariateNormal(torch.zeros(4), s) for s in (covariance, decoder.sample_covariance)
    )
    cross_entropy = data.entropy() + torch.distributions.kl_divergence(data, model)
    close(fa.negative_log_likelihood(decoder, covariance), cross_entropy)


def heywood_covariance():
    g = torch.randn(5, 5, generator=generator(0))
    return g @ g.T / 5


def test_planted_pixel_noise_is_recovered():
    truth, covariance = planted_covariance()
    encoder, decoder, value = fit_factor_analysis(covariance, 2, 1e-3)
    close(decoder.noise_variance, truth, 1e-5)
    close(decoder.sample_covariance, covariance, 1e-5)
    close(value, fa.negative_log_likelihood(decoder, covariance))
    close(fa.marginal_variance_gap(encoder, decoder, covariance), torch.zeros(8), 1e-6)


def test_marginal_variance_gap_is_that_of_any_model_with_z_from_the_aggregate():
    covariance = random_covariance(4)
    encoder, decoder = random_vae(2, 4, full=True)
    root = torch.linalg.cholesky(
        vae.aggregate_covariance(encoder, covariance)
    )  # not I: q(z) is far from the prior here
    expected = (decoder.matrix @ root).square().sum(-1) + decoder.noise_variance - covariance.diagonal()
    close(fa.marginal_variance_gap(encoder, decoder, covariance), expected)


def test_heywood_case_goes_to_the_floor_and_the_floor_holds():
    covariance = heywood_covariance()
    lowest = []
    for floor in (1e-1, 1e-2, 1e-3):
        encoder, decoder, value = fit_factor_analysis(covariance, 2, floor)
        std = decoder.noise_variance.sqrt()
        at_floor = std < 1.1 * floor
        assert at_floor.tolist() == [True, False, False, True, False]
        assert (std > floor).all()
        gap = fa.marginal_variance_gap(encoder, decoder, covariance)
        close(gap[~at_floor], torch.zeros(3), 1e-5)
        assert (gap > -1e-5).all()
        lowest.append(value)
    assert lowest[0] > lowest[1] > lowest[2]  # every lower floor is used


def test_floor_leaves_a_positive_variance_gap():
    covariance = heywood_covariance()
    encoder, decoder, _ = fit_factor_analysis(covariance, 2, 0.3)
    at_floor = decoder.noise_variance.sqrt() < 0.303
    gap = fa.marginal_variance_gap(encoder, decoder, covariance)
    assert at_floor.any()
    assert (gap[at_floor] > 1e-3).all()
    close(gap[~at_floor], torch.zeros(int((~at_floor).sum())), 1e-5)


@pytest.mark.parametrize("d, k", [(5, 1), (6, 2), (8, 2)])
def test_autoregressive_covariance_stays_off_the_floor(d, k):
    covariance = autoregressive(d, 0.6)
    encoder, decoder, _ = fit_factor_analysis(covariance, k, 1e-3)
    assert (decoder.noise_variance.sqrt() > 0.4).all()
    close(fa.marginal_variance_gap(encoder, decoder, covariance), torch.zeros(d), 1e-6)


def test_autoregressive_covariance_with_d_5_and_k_2_is_an_exact_heywood_case():
    # Given x_2 and x_4 a Markov chain's x_1, x_3 and x_5 are independent: z = (x_2, x_4) explains S without a rest.
    covariance = autoregressive(5, 0.6)
    entropy = torch.distributions.MultivariateNormal(torch.zeros(5), covariance).entropy()
    _, decoder, value = fit_factor_analysis(covariance, 2, 1e-3)
    assert (decoder.noise_variance.sqrt()[[1, 3]] < 0.02).all()
    close(decoder.noise_variance.sqrt()[[0, 2, 4]], [0.8, math.sqrt((1 - 0.36) / (1 + 0.36)), 0.8], 1e-3)
    close(value, entropy, 1e-5)


def test_em_never_lowers_the_likelihood_and_finds_the_same_optimum():
    truth, covariance = planted_covariance()
    decoder, values = vae.LinearDecoder(torch.randn(8, 2, generator=generator(4)), torch.ones(8)), []
    for _ in range(1500):
        values.append(fa.negative_log_likelihood(decoder, covariance))
        decoder = fa.em_step(decoder, covariance, 1e-3)
    assert (torch.stack(values).diff() < 1e-12).all()
    close(decoder.noise_variance, truth, 1e-4)


def test_em_of_the_heywood_case_is_held_by_the_floor():
    covariance, floor = heywood_covariance(), 0.1
    *_, lowest = fit_factor_analysis(covariance, 2, floor)
    decoder = vae.LinearDecoder(torch.randn(5, 2, generator=generator(4)), torch.ones(5))
    for _ in range(1500):
        decoder = fa.em_step(decoder, covariance, floor)
    close(decoder.noise_variance.sqrt()[[0, 3]], floor)
    close(fa.negative_log_likelihood(decoder, covariance), lowest, 1e-4)


def test_em_with_a_shared_sigma_is_probabilistic_pca():
    covariance = with_eigenvalues(SPECTRUM)
    decoder = vae.LinearDecoder(torch.randn(5, 2, generator=generator(4)), torch.tensor(1.0))
    for _ in range(500):
        decoder = fa.em_step(decoder, covariance, shared=True)
    close(decoder.noise_variance, vae.best_shared_noise(SPECTRUM, 2).low, 1e-6)


def test_noise_above_floor_keeps_a_gradient():
    logstd = torch.tensor([-20.0, 0.0], requires_grad=True)
    noise = fa.noise_above_floor(logstd, 0.01)
    assert (noise >= 1e-4).all()
    assert (torch.autograd.grad(noise.sum(), logstd)[0] > 0).all()


def test_invalid_input_is_refused_in_one_line_with_the_reason():
    decoder = vae.LinearDecoder(torch.ones(2, 3), torch.tensor(1.0))
    refused(lambda: fa.em_step(decoder, torch.eye(2)), "3 latents; give 0 <= k <= d = 2")
    refused(lambda: fa.noise_above_floor(torch.tensor(1.0), 0.0), "floor = 0")
