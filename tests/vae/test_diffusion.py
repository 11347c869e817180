"""The diffusion prior: its Gaussian, its path, its denoising loss, and what it learns."""

import math

import pytest
import torch
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian
from degrain.models.vae import diffusion, latent_prior
from degrain.models.vae.diffusion import Diffusion
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.mixture import Mixture
from tests.vae.test_latent_prior import BENT, TURN, bent, drawn, fitted, views

LATENT = 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posteriors(count: int = 4000) -> Gaussian:
    """Return posteriors with correlated means, whose noise differs from latent to latent."""
    mixing = torch.tensor([[5.0, 1, 0], [0, 2, 1], [0, 0, 0.5]], dtype=torch.float64)
    logstd = torch.tensor([0.1, -0.5, -1.5], dtype=torch.float64)
    return Gaussian(2 + normal(count, LATENT) @ mixing, logstd.expand(count, LATENT))


def covariance_of(q: Gaussian) -> Tensor:
    return q.mean.T.cov(correction=0) + q.std.square().mean(0).diag()


def three_humps() -> Mixture:
    """Return a mixture of three well separated Gaussians."""
    mixture = Mixture(3, LATENT).double()
    mixture.weights.copy_(torch.tensor([0.2, 0.3, 0.5]))
    mixture.means.copy_(8 * torch.eye(LATENT))
    mixture.factors.copy_(mixture.factors + 0.5 * normal(3, LATENT, LATENT).tril(-1))
    return mixture


class Exact(nn.Module):
    """F of a mixture whose mean is 0 and whose covariance is that of a diffusion, in its coordinates."""

    def __init__(self, owner: Diffusion, mixture: Mixture) -> None:
        super().__init__()
        self.scales, self.noise_level, self.denoised = owner.scales, owner.noise_level, mixture.denoiser()

    def forward(self, u: Tensor, level: Tensor) -> Tensor:
        t = self.noise_level(level).expand(len(u), 1)
        r, kept, scale = self.scales(t)
        return (self.denoised(r * u, t) - kept * r * u) / scale


@pytest.fixture(scope="module")
def exact() -> tuple[Diffusion, Mixture]:
    """Return a diffusion that knows the denoiser of a mixture, and the mixture in the units of z."""
    truth = three_humps()
    mean = truth.weights @ truth.means
    spread = (truth.means - mean).T @ (truth.weights[:, None] * (truth.means - mean))
    covariance = spread + torch.einsum("k,kij,klj->il", truth.weights, truth.factors, truth.factors)
    made = Diffusion(LATENT, 8, 1).double()
    eigenvalues, axes = torch.linalg.eigh(covariance)
    for name, value in {"mean": mean, "spread": eigenvalues.sqrt(), "axes": axes}.items():
        getattr(made, name).copy_(value)
    made.network = Exact(made, truth.mapped(axes, -mean @ axes))
    return made, truth


@pytest.mark.parametrize("steps", [1, 32])
def test_without_a_correction_it_is_the_gaussian_exactly(steps):
    q = posteriors()
    made = Diffusion.gaussian_of(q, 8, 1)
    offset = made(torch.zeros(1, LATENT).double(), steps)
    matrix = (made(torch.eye(LATENT).double(), steps) - offset).T
    torch.testing.assert_close(offset[0], q.mean.mean(0))
    torch.testing.assert_close(matrix @ matrix.T, covariance_of(q))


def test_the_mixtures_denoiser_is_tweedies():
    """E[u | u + t n] = y + t^2 grad log p(y), p the density of y = u + t n."""
    mixture, t = three_humps(), torch.tensor(1.7).double()
    y = (4 * normal(20, LATENT)).requires_grad_(True)
    blurred = three_humps()
    blurred.factors.copy_(torch.linalg.cholesky(mixture.factors @ mixture.factors.mT + t.square() * torch.eye(LATENT)))
    [score] = torch.autograd.grad(blurred.log_density(y).sum(), y)
    found = mixture.denoiser()(y.detach(), t.expand(20, 1))
    torch.testing.assert_close(found, y.detach() + t.square() * score)


def test_with_the_right_denoiser_the_path_ends_in_the_distribution(exact):
    made, truth = exact
    z = made(normal(20_000, LATENT, seed=1))
    nearest = torch.cdist(z, truth.means).argmin(1)
    torch.testing.assert_close(nearest.bincount() / len(z), truth.weights.float(), rtol=0, atol=0.012)
    for k in range(3):
        factor = truth.factors[k]
        torch.testing.assert_close(z[nearest == k].mean(0), truth.means[k], rtol=0, atol=0.15)
        torch.testing.assert_close(z[nearest == k].T.cov(), factor @ factor.T, rtol=0, atol=0.15)


def test_more_steps_hardly_move_a_draw(exact):
    noise = normal(200, LATENT, seed=2)
    few, more, many = (exact[0](noise, steps) for steps in (diffusion.STEPS, 2 * diffusion.STEPS, 500))
    errors = [(some - many).norm(dim=1).median() for some in (few, more)]
    assert errors[0] < 0.05 and errors[1] < 0.5 * errors[0]


def test_the_loss_of_the_right_denoiser_is_known():
    """sum_i [Lambda_i / (Lambda_i + t^2) - 1 / (1 + t^2)], for posteriors of covariance I and a Gaussian q(z)."""
    spread, level = torch.tensor([5.0, 2.0, 1.2]).double(), torch.tensor([0.3]).double()
    made = Diffusion(LATENT, 8, 1).double()
    made.spread.copy_(spread)
    means = (spread.square() - 1).sqrt() * normal(50_000, LATENT)
    rng = torch.Generator().manual_seed(1)
    codes = made.noisy(Gaussian(means, torch.zeros_like(means)), level.expand(len(means)), rng)
    t2 = made.noise_level(level).square()
    want = (spread.square() / (spread.square() + t2) - 1 / (1 + t2)).sum()
    torch.testing.assert_close(made.loss(codes, made.network).mean(), want, rtol=0.02, atol=0)
    known = made.nats(codes, denoiser=lambda y, t: made.scales(t)[1] * y)
    assert made.nats(codes) == pytest.approx(known) == pytest.approx(want.item() * math.log(10 / 0.2), rel=0.02)


def test_a_mixture_has_the_same_denoiser_in_other_coordinates():
    prior = fitted(views(bent(500)))
    prior.mixture = Mixture(2, BENT)
    prior.mixture.means.copy_(torch.tensor([[0.5] * BENT, [-1.0] * BENT]))
    made = Diffusion.gaussian_of(Gaussian(bent(500), torch.full((500, BENT), -2.3)), 8, 1)
    there, z = prior.mixture_in(made), bent(20, seed=1)
    y = made.coordinates(z)
    scaled = torch.linalg.slogdet(made.axes / made.noise[:, None]).logabsdet
    factors = torch.linalg.cholesky(there.factors @ there.factors.mT)
    parts = torch.distributions.MultivariateNormal(there.means, scale_tril=factors)
    density = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(there.weights), parts).log_prob(y)
    torch.testing.assert_close(density + scaled, prior.log_density(z, "learned"), rtol=1e-3, atol=1e-3)


# --- learned

DRAWS = 40_960


@pytest.fixture(scope="module")
def small() -> object:
    """Make the network small, and look at held-out codes often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_prior, "WIDTH", 32)
        patch.setattr(latent_prior, "BLOCKS", 1)
        patch.setattr(diffusion, "BATCH", 256)
        patch.setattr(diffusion, "CHECK", 4096)
        patch.setattr(diffusion, "LEARNING_RATE", 3e-3)
        yield patch


@pytest.fixture(scope="module")
def learned(small) -> tuple[LatentPrior, dict[str, float]]:
    """Return a prior that learned the bent distribution, in inference mode as in a validation, and its gains."""
    q = views(bent(2000))
    prior = fitted(q)
    with torch.inference_mode():
        prior.learn(drawn(q), 2)
        return prior, prior.learn_diffusion(q, DRAWS)


def test_it_learns_what_two_gaussians_do_not(learned):
    prior, gains = learned
    assert prior.names == ("standard", "fitted", "learned", "diffusion") and prior.best == "diffusion"
    assert prior.densities == ("standard", "fitted", "learned") and prior.note == ""
    assert gains["diffusion"] > gains["learned"] > 0
    noise = torch.randn(4000, BENT, generator=torch.Generator().manual_seed(3))
    outside = [(((prior(noise, name) - 2) @ TURN.T)[:, 1] < -0.7).float().mean() for name in ("fitted", "diffusion")]
    assert outside[0] > 0.1 and outside[1] < 0.3 * outside[0]  # behind the banana's back


def test_it_has_no_density(learned):
    z = bent(2)
    with pytest.raises(InputError, match=r"^prior diffusion: has no density .*; give standard, fitted, learned$"):
        learned[0].log_density(z, "diffusion")
    assert torch.equal(learned[0].log_density(z), learned[0].log_density(z, "learned"))


def test_its_draws_are_as_far_from_training_codes_as_held_out_codes(learned):
    draws, held = learned[0].diffusion.nearest
    assert 0 < draws == pytest.approx(held.item(), rel=0.5)
    q = views(bent(300))
    copies = learned[0].diffusion.nearest_codes(
        Gaussian(q.mean[:, 0], torch.full((300, BENT), -30.0)),
        Gaussian(q.mean[:, 0], torch.full((300, BENT), -30.0)),
        0,
    )
    assert copies[0] > 0.1 and copies[1] < 1e-2  # held-out codes that are training codes


def test_it_travels_in_the_state_and_a_new_fit_drops_it(learned):
    prior, noise = learned[0], torch.randn(3, BENT)
    other = LatentPrior(BENT)
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other(noise), prior(noise)) and not any(p.requires_grad for p in other.parameters())
    other.load_state_dict(fitted(views(bent(100))).state_dict())
    assert other.names == ("standard", "fitted")
    other.load_state_dict(prior.state_dict())
    other.fit(torch.zeros(BENT), torch.eye(BENT))
    assert other.names == ("standard", "fitted") and "diffusion" not in " ".join(other.state_dict())


def test_a_draw_does_not_depend_on_its_batch(learned):
    noise = torch.randn(7, BENT)
    torch.testing.assert_close(torch.cat([learned[0](one[None], "diffusion") for one in noise]), learned[0](noise))


def test_the_same_seed_learns_the_same_whatever_was_drawn_before(small):
    q, states = views(bent(1000)), []
    for seed in (3, 3, 4):
        torch.rand(5)
        before, prior = torch.get_rng_state(), fitted(q)
        assert prior.learn_diffusion(q, 8192, seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(torch.cat([value.flatten() for value in prior.state_dict().values()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_bf16_is_for_the_network_alone(small):
    q, gains = views(bent(2000)), []
    for bf16 in (False, True):
        prior = fitted(q)
        prior.learn(drawn(q), 2)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            gains.append(prior.learn_diffusion(q, DRAWS))
        assert prior.diffusion is not None, (bf16, prior.note)
        assert prior.diffusion.nearest.dtype == torch.float32 and prior.diffusion.nearest.isfinite().all()
    assert gains[1]["learned"] == pytest.approx(gains[0]["learned"], rel=1e-5)
    assert gains[1]["diffusion"] == pytest.approx(gains[0]["diffusion"], rel=0.2)


def test_where_it_gains_nothing_it_is_dropped_with_the_reason(small):
    prior = fitted(views(torch.randn(1000, 2)))
    gains = prior.learn_diffusion(views(torch.randn(1000, 2)), 0)  # no step
    assert gains.keys() == {"diffusion"} and prior.diffusion is None
    with pytest.raises(InputError, match="has standard, fitted; .*the diffusion denoised held-out codes no better"):
        prior(torch.randn(1, 2), "diffusion")
    assert prior.learn_diffusion(views(torch.randn(999, 2)), 256) == {}
    assert "stage 1 had 999 of the 1,000 images that a diffusion is learned from" in prior.note
    assert prior.learn_diffusion(views(torch.full((1000, 2), math.nan)), 256) == {} and "finite" in prior.note


def test_training_ends_where_held_out_codes_gain_no_more(small):
    q = Gaussian(bent(40).double(), torch.full((40, BENT), -2.3).double())  # it soon knows 40 codes by heart
    made = Diffusion.gaussian_of(q, 32, 1).double()
    held = made.held_out(Gaussian(bent(200, seed=1).double(), torch.full((200, BENT), -2.3).double()), 0)
    before = made.nats(held)
    best_at = made.learn(q, held, 100 * DRAWS, seed=0)
    assert 0 < best_at < 50 * DRAWS and made.nats(held) < before
