"""Gaussians: every formula against quadrature, torch.distributions or numerical gradients, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, distributions

from models.core.errors import InputError
from models.core.gaussian import (
    HALF_BIN,
    KERNEL_SCALES,
    Gaussian,
    beta_nll,
    bits_per_dimension,
    dequantised,
    faithful_nll,
    floored_kl,
    kl_of_moments,
    kl_to_standard_normal,
    log_bin_probability,
    log_density,
    log_level_density,
    mixture_moments,
    mmd,
    mmd_in_nats,
    soft_ceiling,
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


def mean_level_density(mean: float, std: float) -> Tensor:
    """The log density per level of dequantised pixels, averaged over the uniform noise by quadrature: (256,)."""
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


# --- gradients of the decoder


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


# --- divergences


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


def test_free_bits_floor_the_batch_mean_of_each_latent_and_stop_its_gradient():
    kl = torch.tensor([[0.1, 3.0, 0.0], [0.5, 1.0, 0.9]], dtype=torch.float64, requires_grad=True)
    floored = floored_kl(kl, 0.4)
    assert floored.item() == pytest.approx(0.4 + 2.0 + 0.45)
    assert torch.autograd.grad(floored, kl)[0].tolist() == [[0, 0.5, 0.5]] * 2
    assert floored_kl(kl, 0.0).item() == pytest.approx(kl.sum(1).mean().item())


def some_posteriors(count: int = 50, latent: int = 4) -> Gaussian:
    rng = torch.Generator().manual_seed(0)
    draw = torch.randn(2, count, latent, generator=rng, dtype=torch.float64)
    mixing = torch.tensor([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0.8, 0.1, 0], [0, 0, 0, 2]], dtype=torch.float64)
    return Gaussian(draw[0] @ mixing + 0.3, 0.3 * draw[1] - 1)


def test_kl_of_moments_matches_torch():
    mean, covariance = mixture_moments(some_posteriors())
    want = distributions.kl_divergence(
        distributions.MultivariateNormal(mean, covariance),
        distributions.MultivariateNormal(torch.zeros_like(mean), torch.eye(4, dtype=torch.float64)),
    )
    torch.testing.assert_close(kl_of_moments(mean, covariance), want)
    one = pixel(0.7, 0.3, count=3)
    torch.testing.assert_close(kl_of_moments(one.mean, one.std.square().diag()), kl_to_standard_normal(one).sum())


def test_mixture_moments_are_those_of_draws_of_the_mixture():
    q, rng = some_posteriors(), torch.Generator().manual_seed(1)
    z = torch.cat([q.sample(torch.randn(q.mean.shape, generator=rng, dtype=torch.float64)) for _ in range(4000)])
    mean, covariance = mixture_moments(q)
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(z.T.cov(), covariance, rtol=0.01, atol=0.01)


def test_kl_of_a_batch_s_moments_falls_from_the_rate_at_a_batch_of_1_to_that_of_all_images():
    q = some_posteriors(count=64)

    def mean_kl(batch: int) -> float:
        pairs = zip(q.mean.split(batch), q.logstd.split(batch), strict=True)
        return sum(kl_of_moments(*mixture_moments(Gaussian(*pair))).item() for pair in pairs) * batch / 64

    values = [mean_kl(batch) for batch in (1, 2, 4, 16, 64)]
    assert values[0] == pytest.approx(kl_to_standard_normal(q).sum(1).mean().item())
    assert values == sorted(values, reverse=True) and values[0] > 2 * values[-1]


def draws(count: int, latent: int, seed: int, shift: float = 0.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, latent, generator=rng, dtype=torch.float64) + shift


def test_mmd_matches_a_loop_over_pairs():
    a, b = draws(5, 3, seed=0, shift=0.5), draws(5, 3, seed=1)

    def kernel(u: Tensor, v: Tensor) -> float:
        return sum(6 * s / (6 * s + (u - v).square().sum().item()) for s in KERNEL_SCALES)

    pairs = [(i, j) for i in range(5) for j in range(5)]
    within = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) for i, j in pairs if i != j) / 20
    assert mmd(a, b).item() == pytest.approx(within - 2 * sum(kernel(a[i], b[j]) for i, j in pairs) / 25, abs=1e-12)


def test_mmd_is_unbiased_at_any_batch_and_grows_with_a_shift():
    def mean(shift: float, count: int) -> tuple[float, float]:
        """The average over 1,600 draws in batches, and its standard error."""
        batches = range(1600 // count)
        values = torch.stack([mmd(draws(count, 8, 2 * i, shift), draws(count, 8, 2 * i + 1)) for i in batches])
        return values.mean().item(), (values.std() / len(values) ** 0.5).item()

    for shift, want in ((0.0, 0.0), (0.5, mean(0.5, 400)[0])):
        for count in (2, 4, 16):
            got, error = mean(shift, count)
            assert abs(got - want) < 3 * error < 0.2
    assert mean(1.0, 16)[0] > 3 * mean(0.5, 16)[0] > 0.5


def test_mmd_of_a_small_shift_costs_in_nats_what_it_does_in_kl():
    a, b = draws(600, 64, seed=0, shift=0.3), draws(600, 64, seed=1)
    assert mmd_in_nats(a, b).item() == pytest.approx(0.5 * 64 * 0.3**2, rel=0.2)


def test_mmd_of_single_draws_is_refused():
    with pytest.raises(InputError, match="batch_size 2 or more"):
        mmd(torch.zeros(1, 3), torch.zeros(1, 3))


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


def test_bits_per_dimension_of_a_uniform_byte_is_8():
    nats = torch.full((2,), 3 * math.log(256))
    torch.testing.assert_close(bits_per_dimension(nats, 3), torch.full((2,), 8.0))
