"""Gaussian values: densities, KL and soft bounds against quadrature, torch.distributions or autograd, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import distributions

from degrain.models.core.gaussian import Gaussian, kl_to_standard_normal, log_density, soft_ceiling, soft_floor


def pixel(mean: float, std: float, dtype: torch.dtype = torch.float64, count: int = 256) -> Gaussian:
    """Return the same Gaussian for `count` pixels, with leaves that take a gradient."""
    leaves = (torch.full((count,), value, dtype=dtype) for value in (mean, math.log(std)))
    return Gaussian(*(leaf.requires_grad_() for leaf in leaves))


def normal(mean: float, std: float) -> distributions.Normal:
    """Return torch's normal distribution, in float64."""
    return distributions.Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))


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


def test_a_soft_ceiling_on_log_std_is_an_additive_ceiling_on_the_precision():
    logstd = torch.linspace(-5, 300, 500, dtype=torch.float64, requires_grad=True)
    ceiled = soft_ceiling(logstd, math.log(2))
    torch.testing.assert_close((-ceiled).exp(), (-logstd).exp() + 0.5)
    assert (torch.autograd.grad(ceiled.sum(), logstd)[0] > 0).all()
