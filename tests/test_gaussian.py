"""Gaussians: every formula against quadrature, torch.distributions or numerical gradients, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, distributions

from models.gaussian import (
    HALF_BIN,
    Gaussian,
    bits_per_dimension,
    kl_to_standard_normal,
    log_bin_probability,
    log_density,
    soft_floor,
)

LEVELS = torch.arange(256, dtype=torch.float64) / 255
STDS = (1e-3, 2e-3, 0.01, 0.1, 1.0, 10.0)
MEANS = (-0.5, 0.0, 0.3, 0.5, 1.0, 1.2)
# Nodes enough for the far tail, where a density falls by a factor of exp(6000) over one bin.
LEGENDRE = tuple(torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(400))


def pixel(mean: float, std: float, dtype: torch.dtype = torch.float64, count: int = 256) -> Gaussian:
    """The same Gaussian for `count` pixels, with leaves that take a gradient."""
    leaves = (torch.full((count,), value, dtype=dtype) for value in (mean, math.log(std)))
    return Gaussian(*(leaf.requires_grad_() for leaf in leaves))


def normal(mean: float, std: float) -> distributions.Normal:
    """torch's own, in float64."""
    return distributions.Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))


def gradients(p: Gaussian, x: Tensor) -> Tensor:
    """Of the log probability of each pixel by its mean and its logstd, in units of a std: (2, pixels), float64."""
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
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-4)
    near = (x - p.mean).abs() < 100 * p.std  # beyond, log_ndtr's own gradient loses digits as 1e-7 z^2
    torch.testing.assert_close(gradients(p, x)[:, near], gradients(exact, x.double())[:, near], rtol=2e-3, atol=2e-4)


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


def test_bin_probability_of_a_wide_gaussian_is_density_times_width():
    p = pixel(0.4, 0.5)
    got = log_bin_probability(p, LEVELS)[1:-1]
    torch.testing.assert_close(got, log_density(p, LEVELS)[1:-1] + math.log(2 * HALF_BIN), rtol=0, atol=1e-4)


def test_density_matches_torch():
    x = torch.linspace(-2, 3, 256, dtype=torch.float64)
    for mean, std in ((0.5, 0.01), (0.2, 3.0)):
        want = normal(mean, std).log_prob(x)
        torch.testing.assert_close(log_density(pixel(mean, std), x).detach(), want)


@pytest.mark.parametrize("std", [1e-3, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("mean", [-2.0, 0.0, 0.7])
def test_kl_matches_torch_and_quadrature(mean, std):
    q, prior = normal(mean, std), normal(0.0, 1.0)
    got = kl_to_standard_normal(pixel(mean, std, count=1)).item()
    assert got == pytest.approx(distributions.kl_divergence(q, prior).item(), abs=1e-12)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(20))  # exact to degree 39
    z = mean + std * nodes
    quadrature = (weights * (q.log_prob(z) - prior.log_prob(z))).sum() / math.sqrt(2 * math.pi)
    assert got == pytest.approx(quadrature.item(), abs=1e-10)


def test_kl_is_zero_at_the_standard_normal_alone():
    assert kl_to_standard_normal(pixel(0.0, 1.0)).eq(0).all()
    assert kl_to_standard_normal(pixel(0.0, 1.01)).gt(0).all() and kl_to_standard_normal(pixel(0.01, 1.0)).gt(0).all()


def test_sample_is_mean_plus_std_times_noise():
    p = Gaussian(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]).log())
    torch.testing.assert_close(p.sample(torch.tensor([2.0, -1.0])), torch.tensor([2.0, -1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_floor_is_never_below_and_never_without_a_gradient(dtype):
    low = math.log(0.002)
    value = torch.linspace(low - 80, low + 80, 1001, dtype=dtype, requires_grad=True)
    floored = soft_floor(value, low)
    (slope,) = torch.autograd.grad(floored.sum(), value)
    assert (floored >= torch.tensor(low, dtype=dtype)).all() and (slope > 0).all()
    assert (floored.diff() >= 0).all()
    torch.testing.assert_close(floored[value > low + 40], value[value > low + 40])


def test_a_soft_floor_on_log_std_is_an_additive_floor_on_the_std():
    logstd = torch.linspace(-12, 2, 50, dtype=torch.float64)
    torch.testing.assert_close(soft_floor(logstd, math.log(0.002)).exp(), logstd.exp() + 0.002)


def test_bits_per_dimension_of_a_uniform_byte_is_8():
    nats = torch.full((2,), 3 * math.log(256))
    torch.testing.assert_close(bits_per_dimension(nats, 3), torch.full((2,), 8.0))
