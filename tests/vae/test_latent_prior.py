"""The ladder of priors: N(0, I), the Gaussian fitted to q(z), the mixture learned in its units."""

import math

import pytest
import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian, LatentDraws
from degrain.models.evaluation.calibration import CodeReport, CodeStatistics
from degrain.models.vae import latent_prior, mixture
from degrain.models.vae.latent_prior import LatentPrior, Mixture

LATENT = 6


def posteriors(count: int = 500) -> Gaussian:
    """Return the posteriors of `count` images, with correlated means far from zero."""
    rng = torch.Generator().manual_seed(0)
    mixing = torch.randn(LATENT, LATENT, generator=rng)
    return Gaussian(
        3 + torch.randn(count, LATENT, generator=rng) @ mixing, torch.randn(count, LATENT, generator=rng) - 1
    )


def moments(q: Gaussian, batch: int) -> CodeReport:
    stream = CodeStatistics(q.mean.shape[-1])
    for mean, logstd in zip(q.mean.split(batch), q.logstd.split(batch), strict=True):
        stream.update(Gaussian(mean, logstd))
    return stream.compute()


def fitted(q: Gaussian) -> LatentPrior:
    """Return a prior with the moments of posteriors (..., D)."""
    latent = q.mean.shape[-1]
    report = moments(Gaussian(q.mean.reshape(-1, latent), q.logstd.reshape(-1, latent)), 1000)
    prior = LatentPrior(latent)
    prior.fit(report.mean, report.covariance)
    return prior


@pytest.mark.parametrize("batch", [1, 64, 500])
def test_streaming_moments_are_those_of_all_at_once(batch):
    q = posteriors()
    stream, mean = moments(q, batch), q.mean.double()
    torch.testing.assert_close(stream.mean, mean.mean(0))
    torch.testing.assert_close(stream.covariance_of_means, mean.T.cov(correction=0))
    variance = torch.diag(q.std.double().square().mean(0))
    torch.testing.assert_close(stream.covariance, mean.T.cov(correction=0) + variance, rtol=1e-6, atol=1e-6)


def test_covariance_is_that_of_draws_from_the_aggregate_posterior():
    q = posteriors()
    rng = torch.Generator().manual_seed(1)
    z = torch.cat([q.sample(torch.randn(q.mean.shape, generator=rng)) for _ in range(400)]).double()
    want = moments(q, 100).covariance
    torch.testing.assert_close(z.T.cov(), want, rtol=0, atol=0.02 * want.diagonal().max().item())


def test_draws_are_standard_normal_before_the_fit():
    noise = torch.randn(5, LATENT)
    assert torch.equal(LatentPrior(LATENT)(noise), noise)


def test_draws_of_the_fitted_prior_have_the_moments():
    stream, prior = moments(posteriors(), 100), LatentPrior(LATENT)
    prior.fit(stream.mean, stream.covariance)
    # The prior is linear in its noise, so its moments are seen without drawing: b and A A^T of A noise + b.
    offset = prior(torch.zeros(1, LATENT))
    matrix = (prior(torch.eye(LATENT)) - offset).T
    torch.testing.assert_close(offset[0].double(), stream.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((matrix @ matrix.T).double(), stream.covariance, rtol=1e-4, atol=1e-4)


def test_a_collapsed_code_still_gives_a_finite_prior():
    means = torch.cat([torch.ones(3, 1) * torch.arange(LATENT), torch.zeros(3, LATENT)])
    prior = fitted(Gaussian(means, torch.full((6, LATENT), -30.0)))  # rank 1, with next to no variance of its own
    assert prior(torch.randn(2, LATENT)).isfinite().all()


def test_the_fit_travels_in_the_state_dict():
    prior, other, noise = fitted(posteriors()), LatentPrior(LATENT), torch.randn(3, LATENT)
    other.load_state_dict(prior.state_dict())
    assert torch.equal(prior(noise), other(noise)) and not torch.equal(prior(noise), noise)


# --- the learned prior

BENT = 4
TURN = torch.linalg.qr(torch.randn(BENT, BENT, generator=torch.Generator().manual_seed(9))).Q


def bent(count: int, seed: int = 0) -> Tensor:
    """Draw from a distribution in 4-D that is far from Gaussian, (count, 4): a banana of changing width, turned."""
    rng = torch.Generator().manual_seed(seed)
    u = torch.randn(count, BENT, generator=rng)
    u = torch.stack([u[:, 0], u[:, 0].square() + 0.3 * u[:, 1], u[:, 2], (0.8 * u[:, 2]).exp() * u[:, 3]], 1)
    return 2 + u @ TURN


def views(z: Tensor, std: float = 0.1) -> Gaussian:
    """Return narrow posteriors (N, 1, D) around z (N, D)."""
    return Gaussian(z[:, None], torch.full_like(z[:, None], math.log(std)))


def drawn(q: Gaussian) -> LatentDraws:
    """Draw one z of each."""
    return q.draw(torch.randn(q.mean.shape, generator=torch.Generator().manual_seed(5)))


@pytest.fixture(scope="module")
def learned() -> tuple[LatentPrior, dict[str, float]]:
    """Return a prior that learned the bent distribution, and its rates."""
    q = views(bent(2000))
    prior = fitted(q)
    return prior, prior.learn(drawn(q), 8)


def mixed(prior: LatentPrior) -> LatentPrior:
    """Give the prior a mixture of three that is far from its Gaussian."""
    rng = torch.Generator().manual_seed(0)
    mixture = prior.mixture = Mixture(3, len(prior.mean)).to(prior.mean)
    mixture.weights.copy_(torch.tensor([0.2, 0.3, 0.5]))
    mixture.means.copy_(torch.randn(mixture.means.shape, generator=rng))
    mixture.factors.copy_(0.5 * mixture.factors + 0.1 * torch.randn(mixture.factors.shape, generator=rng).tril())
    return prior


def test_the_log_density_of_the_gaussian_is_that_of_torch():
    prior, z = fitted(views(bent(500))), bent(50, seed=1)
    known = torch.distributions.MultivariateNormal(prior.mean, scale_tril=prior.cholesky)
    torch.testing.assert_close(prior.log_density(z), known.log_prob(z))
    unit = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(prior.log_density(z, "standard"), unit.log_prob(z).sum(1))


def test_the_rate_is_the_kl_on_average():
    q = Gaussian(torch.tensor([[1.0, -0.5]]).expand(100_000, 2), torch.tensor([[-1.0, 0.2]]).expand(100_000, 2))
    kl = ((q.mean.square() + q.std.square() - 1) / 2 - q.logstd)[0].sum()
    torch.testing.assert_close(LatentPrior(2).rate(drawn(q), "standard").mean(), kl, rtol=0, atol=0.01)


def test_a_mixture_of_one_is_the_gaussian():
    prior, z, noise = fitted(views(bent(500))), bent(50), torch.randn(50, BENT)
    drawn, density = prior(noise), prior.log_density(z)
    prior.mixture = Mixture(1, BENT)
    assert prior.names == ("standard", "fitted", "learned")
    torch.testing.assert_close(prior(noise), drawn, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prior.log_density(z), density, rtol=1e-5, atol=1e-5)
    assert torch.equal(prior(noise, "fitted"), drawn) and torch.equal(prior(noise, "standard"), noise)


def test_the_log_density_of_the_mixture_is_that_of_torch():
    prior, z = mixed(fitted(views(bent(500))).double()), bent(50, seed=1).double()
    factors, means = prior.cholesky @ prior.mixture.factors, prior.mean + prior.mixture.means @ prior.cholesky.T
    parts = torch.distributions.MultivariateNormal(means, factors @ factors.mT)
    known = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(prior.mixture.weights), parts)
    torch.testing.assert_close(prior.log_density(z), known.log_prob(z))


def test_one_noise_chooses_the_component_and_is_normal_within_it():
    """Weights, means and covariances of the components are those of draws from well separated ones."""
    mixture = mixed(LatentPrior(3)).mixture
    mixture.means.copy_(100 * torch.eye(3))
    noise = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(1))
    u = mixture(noise)
    chosen = u.argmax(1)
    torch.testing.assert_close(chosen.bincount() / len(u), mixture.weights, rtol=0, atol=5e-3)
    for k in range(3):
        there, covariance = u[chosen == k], mixture.factors[k] @ mixture.factors[k].T
        torch.testing.assert_close(there.mean(0), mixture.means[k], rtol=0, atol=0.02)
        torch.testing.assert_close(there.T.cov(), covariance, rtol=0, atol=0.02)
    assert mixture(torch.tensor([[-40.0, 0, 0], [40.0, 0, 0]])).isfinite().all()


def test_em_finds_a_mixture():
    truth = mixed(LatentPrior(3)).mixture
    truth.means.mul_(4)
    truth.factors.mul_(0.3)
    u = truth(torch.randn(6000, 3, generator=torch.Generator().manual_seed(2)))
    found = Mixture.fitted_to(u, 3, seed=0)
    other = truth(torch.randn(6000, 3, generator=torch.Generator().manual_seed(3)))
    order = torch.cdist(truth.means, found.means).argmin(1)
    torch.testing.assert_close(found.weights[order], truth.weights, rtol=0, atol=0.03)
    torch.testing.assert_close(found.means[order], truth.means, rtol=0, atol=0.05)
    covariances, mass = truth.factors @ truth.factors.mT, 6000 * truth.weights[:, None, None]
    shrunk = (mass * covariances + 12 * torch.eye(3)) / (mass + 12)  # 12 codes of covariance I beside its own
    torch.testing.assert_close((found.factors @ found.factors.mT)[order], shrunk, rtol=0, atol=0.01)
    assert found.log_density(other).mean() > other.shape[1] * -1.5


def test_em_ends_where_another_step_changes_nothing(monkeypatch):
    """Weights, means and covariances are those of one model, to which the shrinkage belongs."""
    u, objectives, log_prior = bent(1000).double(), [], Mixture.log_prior

    def recorded(found: Mixture) -> Tensor:
        objectives.append((found.log_density(u).sum() + log_prior(found)).item())
        return log_prior(found)

    monkeypatch.setattr(Mixture, "log_prior", recorded)
    monkeypatch.setattr(mixture, "TOLERANCE", 1e-9)
    monkeypatch.setattr(mixture, "ITERATIONS", 2000)
    found = Mixture.fitted_to(u, 3, seed=0)
    gains = torch.tensor(objectives, dtype=torch.float64).diff()
    assert len(gains) > 10 and (gains > 0).all()  # as of an EM of this objective, and of no other
    before = {name: value.clone() for name, value in found.state_dict().items()}
    found.maximise(u, found.log_joint(u).softmax(1))
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-3)


def test_a_prior_that_was_not_fitted_is_not_there():
    prior, noise = LatentPrior(3), torch.randn(2, 3)
    assert prior.names == ("standard",) and prior.best == "standard"
    with pytest.raises(InputError, match="^prior fitted: the checkpoint has standard; it was not fitted yet, which"):
        prior(noise, "fitted")
    assert not prior.fit(torch.full((3,), math.nan), torch.eye(3)) and prior.names == ("standard",)
    with pytest.raises(InputError, match="has standard; the codes of the training images have no finite mean"):
        prior.log_density(noise, "learned")
    assert prior.fit(torch.zeros(3), torch.eye(3)) and prior.names == ("standard", "fitted")
    assert prior.fit(torch.zeros(3), torch.zeros(3, 3)) and prior(noise).isfinite().all()  # all codes are the same
    draws = LatentDraws(torch.full((1000, 1, 3), math.nan), torch.zeros(1000, 1))
    assert prior.learn(draws, 2) == {} and prior.names == ("standard", "fitted")
    assert prior.learn(LatentDraws(torch.zeros(1000, 1, 3), torch.zeros(1000, 1)), 2)["learned"] < math.inf


@pytest.mark.parametrize(
    ("noise", "name", "said"),
    {
        "unknown": (
            torch.randn(2, 6),
            "nonsense",
            "prior nonsense: .*names of priors are diffusion, fitted, flow, learned, stand",
        ),
        "flow": (
            torch.randn(2, 6),
            "flow",
            "prior flow: the checkpoint has standard, fitted; its VAE was trained with",
        ),
        "no name": (torch.randn(2, 6), 3, "prior 3: "),
        "width": (torch.randn(2, 5), None, r"noise of the prior \(2, 5\): must be \(B, 6\)"),
        "one": (torch.randn(6), None, r"noise of the prior \(6,\): must be \(B, 6\)"),
        "none": (torch.randn(0, 6), None, r"noise of the prior \(0, 6\)"),
        "type": (torch.randn(2, 6).double(), None, "noise of the prior of torch.float64: must be torch.float32"),
        "array": (torch.randn(2, 6).numpy(), None, "noise of the prior: ndarray; give a tensor"),
    }.values(),
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_no_draw_is_made_of_is_refused_in_a_line(noise, name, said):
    with pytest.raises(InputError, match=f"^{said}") as caught:
        fitted(posteriors())(noise, name)
    assert "\n" not in str(caught.value)


def test_what_is_not_gaussian_is_learned(learned):
    prior, rates = learned
    q = views(bent(2000, seed=1))
    z = q.sample(torch.randn(q.mean.shape, generator=torch.Generator().manual_seed(2)))[:, 0]
    gain = (prior.log_density(z) - prior.log_density(z, "fitted")).mean().item()
    assert gain > 0.5
    assert rates["fitted"] - rates["learned"] == pytest.approx(gain, abs=0.4)
    assert rates["standard"] > rates["fitted"] > rates["learned"]
    noise = torch.randn(4000, BENT, generator=torch.Generator().manual_seed(3))
    outside = [(((prior(noise, name) - 2) @ TURN.T)[:, 1] < -0.7).float().mean() for name in ("fitted", "learned")]
    assert outside[0] > 0.1 and outside[1] < 0.4 * outside[0]  # behind the banana's back


def test_where_nothing_is_better_the_gaussian_stays(monkeypatch):
    monkeypatch.setattr(latent_prior, "LEAST_IMAGES", 40)
    q = views(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))
    prior = fitted(q)
    rates = prior.learn(drawn(q), 4)
    assert prior.names == ("standard", "fitted") and rates["learned"] >= rates["fitted"]
    assert "no better than the Gaussian on held-out images" in prior.note


def test_few_images_are_not_learned_from():
    q = views(bent(999))
    prior = fitted(q)
    assert prior.learn(drawn(q), 1) == {} and prior.mixture is None
    with pytest.raises(InputError, match="has standard, fitted; stage 1 had 999 of the 1,000 images that a mixture"):
        prior(torch.randn(1, BENT), "learned")


def test_the_same_seed_learns_the_same_whatever_was_drawn_before():
    q, states = views(bent(1000)), []
    for seed in (3, 3, 4):
        torch.rand(5)
        before, prior = torch.get_rng_state(), fitted(q)
        with torch.inference_mode():  # as Lightning validates
            assert prior.learn(drawn(q), 4, seed)["learned"] < math.inf
        assert torch.equal(torch.get_rng_state(), before)
        states.append(torch.cat([value.double().flatten() for value in prior.state_dict().values()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_both_views_of_an_image_are_held_out_together(monkeypatch):
    seen = []
    monkeypatch.setattr(latent_prior.Mixture, "fitted_to", lambda u, *_: seen.append(u) or Mixture(1, 3))
    means, prior = torch.arange(1000.0)[:, None, None].expand(1000, 2, 3), LatentPrior(3)
    prior.fit(torch.zeros(3), torch.eye(3))
    prior.learn(drawn(Gaussian(means, torch.full_like(means, -20))), 1)
    kept = torch.tensor([i for i in range(1000) if i % 10])
    torch.testing.assert_close(seen[0], kept.repeat_interleave(2)[:, None].expand(-1, 3).float())


def test_what_was_learned_travels_in_the_state_and_a_new_fit_drops_it(learned):
    prior, _ = learned
    other, noise = LatentPrior(BENT), torch.randn(3, BENT)
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other(noise), prior(noise)) and not torch.equal(other(noise), other(noise, "fitted"))
    other.fit(torch.zeros(BENT), torch.eye(BENT))
    assert other.names == ("standard", "fitted") and not any("mixture" in name for name in other.state_dict())
    other.load_state_dict(prior.state_dict())
    other.load_state_dict(fitted(views(bent(100))).state_dict())
    assert other.names == ("standard", "fitted")


def test_a_draw_of_the_learned_prior_does_not_depend_on_its_batch(learned):
    prior, noise = learned[0], torch.randn(7, BENT)
    torch.testing.assert_close(torch.cat([prior(one[None]) for one in noise]), prior(noise))
