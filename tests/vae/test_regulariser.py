"""Rate terms of a batch: free bits, KL of moments, MMD, against torch.distributions, loops or draws, in float64."""

import pytest
import torch
from torch import Tensor, distributions

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian, kl_of_moments, kl_to_standard_normal
from degrain.models.vae.regulariser import KERNEL_SCALES, floored_kl, mixture_moments, mmd, mmd_in_nats
from tests.core.test_gaussian import pixel


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


def codes(count: int, latent: int, seed: int, shift: float = 0.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, latent, generator=rng, dtype=torch.float64) + shift


def test_mmd_matches_a_loop_over_pairs():
    a, b = codes(5, 3, seed=0, shift=0.5), codes(5, 3, seed=1)

    def kernel(u: Tensor, v: Tensor) -> float:
        return sum(6 * s / (6 * s + (u - v).square().sum().item()) for s in KERNEL_SCALES)

    pairs = [(i, j) for i in range(5) for j in range(5)]
    within = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) for i, j in pairs if i != j) / 20
    assert mmd(a, b).item() == pytest.approx(within - 2 * sum(kernel(a[i], b[j]) for i, j in pairs) / 25, abs=1e-12)


def test_mmd_is_unbiased_at_any_batch_and_grows_with_a_shift():
    def mean(shift: float, count: int) -> tuple[float, float]:
        """Return the average over 1,600 draws in batches, and its standard error."""
        batches = range(1600 // count)
        values = torch.stack([mmd(codes(count, 8, 2 * i, shift), codes(count, 8, 2 * i + 1)) for i in batches])
        return values.mean().item(), (values.std() / len(values) ** 0.5).item()

    for shift, want in ((0.0, 0.0), (0.5, mean(0.5, 400)[0])):
        for count in (2, 4, 16):
            got, error = mean(shift, count)
            assert abs(got - want) < 3 * error < 0.2
    assert mean(1.0, 16)[0] > 3 * mean(0.5, 16)[0] > 0.5


def test_mmd_of_a_small_shift_costs_in_nats_what_it_does_in_kl():
    a, b = codes(600, 64, seed=0, shift=0.3), codes(600, 64, seed=1)
    assert mmd_in_nats(a, b).item() == pytest.approx(0.5 * 64 * 0.3**2, rel=0.2)


def test_mmd_of_single_draws_is_refused():
    with pytest.raises(InputError, match="batch_size 2 or more"):
        mmd(torch.zeros(1, 3), torch.zeros(1, 3))
