"""The prior fitted to q(z)."""

import pytest
import torch

from models.gaussian import Gaussian
from models.latent_prior import GaussianPrior, LatentMoments

LATENT = 6


def posteriors(count: int = 500) -> Gaussian:
    """Posteriors of `count` images, with correlated means far from zero."""
    rng = torch.Generator().manual_seed(0)
    mixing = torch.randn(LATENT, LATENT, generator=rng)
    return Gaussian(
        3 + torch.randn(count, LATENT, generator=rng) @ mixing, torch.randn(count, LATENT, generator=rng) - 1
    )


def moments(q: Gaussian, batch: int) -> LatentMoments:
    stream = LatentMoments(LATENT)
    for mean, logstd in zip(q.mean.split(batch), q.logstd.split(batch), strict=True):
        stream.update(Gaussian(mean, logstd))
    return stream


@pytest.mark.parametrize("batch", [1, 64, 500])
def test_streaming_moments_are_those_of_all_at_once(batch):
    q = posteriors()
    stream, mean = moments(q, batch), q.mean.double()
    torch.testing.assert_close(stream.mean(), mean.mean(0))
    torch.testing.assert_close(stream.covariance_of_means(), mean.T.cov(correction=0))
    variance = torch.diag(q.std.double().square().mean(0))
    torch.testing.assert_close(stream.covariance(), mean.T.cov(correction=0) + variance, rtol=1e-6, atol=1e-6)


def test_covariance_is_that_of_draws_from_the_aggregate_posterior():
    q = posteriors()
    rng = torch.Generator().manual_seed(1)
    z = torch.cat([q.sample(torch.randn(q.mean.shape, generator=rng)) for _ in range(400)]).double()
    want = moments(q, 100).covariance()
    torch.testing.assert_close(z.T.cov(), want, rtol=0, atol=0.02 * want.diagonal().max().item())


def test_draws_are_standard_normal_before_the_fit():
    noise = torch.randn(5, LATENT)
    assert torch.equal(GaussianPrior(LATENT)(noise), noise)


def test_draws_of_the_fitted_prior_have_the_moments():
    stream, prior = moments(posteriors(), 100), GaussianPrior(LATENT)
    prior.fit(stream)
    # The prior is linear in its noise, so its moments are seen without drawing: b and A A^T of A noise + b.
    offset = prior(torch.zeros(1, LATENT))
    matrix = (prior(torch.eye(LATENT)) - offset).T
    torch.testing.assert_close(offset[0].double(), stream.mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((matrix @ matrix.T).double(), stream.covariance(), rtol=1e-4, atol=1e-4)


def test_a_collapsed_code_still_gives_a_finite_prior():
    stream, prior = LatentMoments(LATENT), GaussianPrior(LATENT)
    stream.update(Gaussian(torch.ones(3, 1) * torch.arange(LATENT), torch.full((3, LATENT), -30.0)))
    stream.update(Gaussian(torch.zeros(3, LATENT), torch.full((3, LATENT), -30.0)))
    prior.fit(stream)  # rank 1, with next to no variance of its own
    assert prior(torch.randn(2, LATENT)).isfinite().all()


def test_the_fit_travels_in_the_state_dict():
    prior, other, noise = GaussianPrior(LATENT), GaussianPrior(LATENT), torch.randn(3, LATENT)
    prior.fit(moments(posteriors(), 100))
    other.load_state_dict(prior.state_dict())
    assert torch.equal(prior(noise), other(noise)) and not torch.equal(prior(noise), noise)
