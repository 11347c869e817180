"""Likelihoods of 8-bit images: every formula against quadrature, closed forms or numerical gradients, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from degrain.models.core.gaussian import Gaussian, log_density
from degrain.models.vae.likelihood import (
    HALF_BIN,
    beta_nll,
    bits_per_dimension,
    dequantised,
    faithful_nll,
    log_bin_probability,
    log_level_density,
)
from tests.core.test_gaussian import normal, pixel

LEVELS = torch.arange(256, dtype=torch.float64) / 255
STDS = (1e-3, 2e-3, 0.01, 0.1, 1.0, 10.0)
MEANS = (-0.5, 0.0, 0.3, 0.5, 1.0, 1.2)
# Nodes enough for the far tail, where a density falls by a factor of exp(6000) over one bin.
LEGENDRE = tuple(torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(400))


def gradients(p: Gaussian, x: Tensor) -> Tensor:
    """Differentiate the log probability by mean and logstd, in units of a std: (2, pixels), float64."""
    by_mean, by_logstd = torch.autograd.grad(log_bin_probability(p, x).sum(), (p.mean, p.logstd))
    return torch.stack([by_mean * p.std, by_logstd]).detach().double()


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("mean", MEANS)
def test_bin_probability_matches_quadrature(mean, std):
    nodes, weights = LEGENDRE
    x = LEVELS[1:-1, None] + HALF_BIN * nodes  # (254 bins, 400 nodes)
    log_terms = normal(mean, std).log_prob(x) + (HALF_BIN * weights).log()
    got = log_bin_probability(pixel(mean, std), LEVELS).detach()
    torch.testing.assert_close(got[1:-1], log_terms.logsumexp(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("mean", MEANS)
def test_tails_are_open_at_0_and_255(mean, std):
    first, last = log_bin_probability(pixel(mean, std, count=2), LEVELS[[0, -1]]).exp().tolist()
    assert first == pytest.approx(0.5 * math.erfc((mean - HALF_BIN) / std / math.sqrt(2)), rel=1e-9)
    assert last == pytest.approx(0.5 * math.erfc((1 - HALF_BIN - mean) / std / math.sqrt(2)), rel=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
@pytest.mark.parametrize("std", STDS)
def test_the_256_probabilities_sum_to_one_and_none_is_above_it(std, dtype, tolerance):
    for mean in (*MEANS, 0.5 + HALF_BIN, -3.0, 4.0):
        log_probability = log_bin_probability(pixel(mean, std, dtype), LEVELS.to(dtype))
        assert log_probability.max() <= 0
        assert log_probability.double().exp().sum().item() == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("std", [1e-3, 2e-3, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("mean", MEANS)
def test_float32_equals_float64(mean, std):
    p, x = pixel(mean, std, torch.float32), LEVELS.float()
    exact = Gaussian(*(t.detach().double().requires_grad_() for t in (p.mean, p.logstd)))
    got, want = log_bin_probability(p, x), log_bin_probability(exact, x.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(gradients(p, x), gradients(exact, x.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("std", STDS)
def test_a_hundred_stds_away_is_finite_with_a_gradient_towards_the_data(std, side):
    p, x = pixel(0.5 + side * 100 * std, std, torch.float32, count=3), torch.tensor([0.0, 128 / 255, 1.0])
    by_mean, by_logstd = gradients(p, x)
    assert log_bin_probability(p, x).isfinite().all() and by_mean.isfinite().all() and by_logstd.isfinite().all()
    assert by_mean[1] * side < -90 and by_logstd[1] > 9000  # (x - mean) / std and its square, as of a density


def test_a_std_too_wide_for_float32_to_tell_the_bin_s_ends_apart_is_finite():
    p, x = pixel(0.5, 1e6, torch.float32), LEVELS.float()
    assert log_bin_probability(p, x).isfinite().all() and gradients(p, x).isfinite().all()


@pytest.mark.parametrize("std", [2e-3, 0.05, 1.0])
def test_gradients_match_numerical_ones(std):
    x = LEVELS[[0, 1, 127, 128, 254, 255]]
    mean = (x + std * torch.tensor([0.3, -0.2, 3.0, 0.1, -5.0, 1.0])).requires_grad_()
    logstd = torch.full_like(x, math.log(std)).requires_grad_()
    step = 1e-4 * std
    assert torch.autograd.gradcheck(
        lambda m, s: log_bin_probability(Gaussian(m, s), x), (mean, logstd), eps=step, rtol=1e-5, atol=1e-5
    )


def test_bin_probability_is_computed_in_float32_under_autocast():
    p, x = pixel(0.4, 0.05, torch.float32), LEVELS.float()
    with torch.autocast("cpu", torch.bfloat16):
        log_probability = log_bin_probability(p, x)
    log_probability.sum().backward()
    assert torch.equal(log_probability, log_bin_probability(p, x))
    assert p.mean.grad.dtype == p.logstd.grad.dtype == torch.float32


def test_a_second_derivative_of_the_bin_probability_is_refused():
    p = pixel(0.4, 0.05)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(log_bin_probability(p, LEVELS).sum(), p.mean, create_graph=True)


def test_bin_probability_of_a_wide_gaussian_is_density_times_width():
    p = pixel(0.4, 0.5)
    got = log_bin_probability(p, LEVELS)[1:-1]
    torch.testing.assert_close(got, log_density(p, LEVELS)[1:-1] + math.log(2 * HALF_BIN), rtol=0, atol=1e-4)


def mean_level_density(mean: float, std: float) -> Tensor:
    """Average the log density per level of dequantised pixels over the uniform noise by quadrature: (256,)."""
    nodes, weights = LEGENDRE
    x = dequantised(LEVELS[:, None], 0.5 * (nodes + 1))  # (256 bins, 400 nodes)
    p = Gaussian(*(torch.tensor(value, dtype=torch.float64) for value in (mean, math.log(std))))
    return (log_level_density(p, x) * weights).sum(1) / 2


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("mean", MEANS)
def test_the_density_of_dequantised_pixels_bounds_the_bin_probability(mean, std):
    gap = log_bin_probability(pixel(mean, std), LEVELS).detach() - mean_level_density(mean, std)
    assert (gap >= -1e-9).all()  # Jensen
    if std >= 1:
        assert gap[1:-1].max() < 1e-5  # a wide density is flat over a bin; the tails' bins have no end


def test_dequantised_pixels_fill_their_bin_and_no_other():
    x = dequantised(LEVELS, torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1, None])
    assert torch.equal((x * 255 + 1e-9).round(), (LEVELS * 255).expand_as(x))
    torch.testing.assert_close(x.amin(0), LEVELS - HALF_BIN)


def test_a_density_below_the_std_of_the_docstring_is_above_one_and_a_bin_probability_never_is():
    edge = 1 / (255 * math.sqrt(2 * math.pi))
    assert edge == pytest.approx(0.0016, abs=5e-5)
    for std, sign in ((0.99 * edge, 1), (1.01 * edge, -1)):
        p = pixel(0.0, std, count=1)
        assert log_level_density(p, torch.zeros(1)).item() * sign > 0 and log_bin_probability(p, LEVELS[:1]) < 0


# --- losses of the decoder


def test_beta_nll_divides_the_gradient_of_the_mean_by_the_std_alone():
    p, x = pixel(0.4, 0.05), LEVELS
    nll = -log_density(p, x)
    by_mean, by_logstd = torch.autograd.grad(beta_nll(nll, p.std).sum(), (p.mean, p.logstd), retain_graph=True)
    torch.testing.assert_close(by_mean, (p.mean - x) / p.std)
    torch.testing.assert_close(by_logstd, p.std * (1 - ((x - p.mean) / p.std).square()))
    assert torch.equal(beta_nll(nll, p.std, beta=0.0), nll)


@pytest.mark.parametrize("log_likelihood", [log_bin_probability, log_density])
def test_faithful_nll_teaches_the_mean_the_squared_error_and_the_std_its_likelihood(log_likelihood):
    p, x = pixel(0.4, 0.05), LEVELS
    by_mean, by_logstd = torch.autograd.grad(faithful_nll(p, x, log_likelihood).sum(), (p.mean, p.logstd))
    (want,) = torch.autograd.grad(-log_likelihood(p, x).sum(), p.logstd)
    torch.testing.assert_close(by_mean, p.mean - x)
    torch.testing.assert_close(by_logstd, want)


def test_bits_per_dimension_of_a_uniform_byte_is_8():
    nats = torch.full((2,), 3 * math.log(256))
    torch.testing.assert_close(bits_per_dimension(nats, 3), torch.full((2,), 8.0))
