"""Autoregressive flows, flowed posteriors and priors: exact densities against autograd and torch.distributions."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian, kl_to_standard_normal
from degrain.models.core.layers import PyramidConfig
from degrain.models.evaluation.calibration import CodeStatistics
from degrain.models.evaluation.diagnostics import Diagnostics
from degrain.models.vae.flow import AutoregressiveFlow, FlowConfig, FlowedGaussian
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.network import VAE, VAEConfig
from tests.training.recipes import NET, attached, vae
from tests.vae.test_networks import photographs, shaken

D, C = 5, 3
TINY = PyramidConfig((4, 6), patch=4)


def flow(steps: int = 3, context: int = C) -> AutoregressiveFlow:
    """Return a flow far from the identity, in float64."""
    torch.manual_seed(0)
    net = AutoregressiveFlow(D, FlowConfig(steps, 8), context).double()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return net


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def posterior(net: AutoregressiveFlow, count: int = 4) -> FlowedGaussian:
    return FlowedGaussian(Gaussian(doubles(count, D), 0.3 * doubles(count, D)), net, doubles(count, C))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_log_determinant_is_that_of_autograd(steps):
    net, z, context = flow(steps), doubles(4, D), doubles(4, C)
    _, got = net(z, context)
    for one, c, log_determinant in zip(z, context, got, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v, c=c: net(v, c)[0], one)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_determinant, rtol=1e-9, atol=1e-9)
        assert abs(log_determinant) > 1e-3


def test_a_step_knows_what_came_before_alone_and_the_next_one_turns_round():
    z, context = doubles(D), doubles(C)
    first, second = (torch.autograd.functional.jacobian(lambda v, s=step: s(context)(v), z) for step in flow(2).steps)
    assert first.triu(1).eq(0).all() and first.tril(-1).count_nonzero() == D * (D - 1) / 2
    assert second.tril(-1).eq(0).all() and second.triu(1).count_nonzero() == D * (D - 1) / 2


@pytest.mark.parametrize("context", [0, C])
def test_the_inverse_is_one(context):
    net, z = flow(context=context), doubles(4, D)
    c = doubles(4, C) if context else None
    u, _ = net(z, c)
    assert (u - z).abs().max() > 0.1
    torch.testing.assert_close(net.inverse(u, c), z)


def test_a_new_flow_is_the_identity_and_so_leaves_the_gaussian():
    q = posterior(AutoregressiveFlow(D, FlowConfig(3, 8), C).double())
    got, want = q.draw(noise := doubles(2, 4, D)), q.base.draw(noise)
    assert torch.equal(got.z, want.z) and torch.equal(got.log_q, want.log_q)


def test_log_q_is_the_density_of_the_draws():
    """Compare with the change of variables of the inverse flow, and torch's normal distribution."""
    q = posterior(flow())
    draws = q.draw(doubles(4, D))
    start = q.flow.inverse(draws.z, q.context)
    jacobians = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda v, c=c: q.flow.inverse(v[None], c[None])[0], z)
            for z, c in zip(draws.z, q.context, strict=True)
        ]
    )
    normal = torch.distributions.Normal(q.base.mean, q.base.std)
    want = normal.log_prob(start).sum(1) + torch.linalg.slogdet(jacobians).logabsdet
    torch.testing.assert_close(draws.log_q, want)


def test_a_draw_depends_on_its_own_noise_and_image_alone():
    q, noise = posterior(flow()), doubles(3, 4, D)
    whole = q.draw(noise)
    for k, b in ((0, 1), (2, 3)):
        one = FlowedGaussian(q.base[b : b + 1], q.flow, q.context[b : b + 1]).draw(noise[k, b : b + 1])
        torch.testing.assert_close(one.z[0], whole.z[k, b])
        torch.testing.assert_close(one.log_q[0], whole.log_q[k, b])


def test_zero_steps_are_the_gaussian_posterior():
    torch.manual_seed(0)
    plain = VAE(32, VAEConfig(D, TINY, TINY))
    torch.manual_seed(0)
    none = VAE(32, VAEConfig(D, TINY, TINY, posterior=FlowConfig(0, 8)))
    assert none.state_dict().keys() == plain.state_dict().keys()
    x = photographs(32)
    got, want = none.encode(x), plain.encode(x)
    assert isinstance(got, Gaussian) and torch.equal(got.mean, want.mean) and torch.equal(got.logstd, want.logstd)


def test_the_rate_of_draws_is_the_gaussian_s_on_average_where_the_flow_is_new():
    vae = shaken(VAE(32, VAEConfig(D, TINY, TINY, posterior=FlowConfig(2, 8))))
    for step in vae.encoder.flow.steps:
        torch.nn.init.zeros_(step.hyper[-1].weight)
        torch.nn.init.zeros_(step.hyper[-1].bias)
    with torch.no_grad():
        q = vae.encode(photographs(32, 1))
        rate = LatentPrior(D).rate(q.draw(torch.randn(100_000, 1, D))[:, 0])
        want = kl_to_standard_normal(q.base).sum()
    torch.testing.assert_close(rate.mean(), want, rtol=0, atol=5 * (rate.std() / len(rate) ** 0.5).item())


def test_log_q_is_as_precise_under_autocast():
    net, noise = flow().float(), torch.randn(4, D)
    q = FlowedGaussian(Gaussian(torch.randn(4, D), torch.zeros(4, D)), net, torch.randn(4, C))
    want = q.draw(noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = q.draw(noise)
    assert got.log_q.dtype == torch.float32
    torch.testing.assert_close((got.z, got.log_q), (want.z, want.log_q))


@pytest.mark.parametrize("config", [FlowConfig(-1), FlowConfig(2, 0)], ids=str)
def test_nonsense_is_refused(config):
    with pytest.raises(InputError, match=rf"steps {config.steps} and width {config.width}"):
        VAE(32, VAEConfig(D, TINY, TINY, posterior=config))
    with pytest.raises(InputError, match="latent 2"):
        VAE(32, VAEConfig(1, TINY, TINY, posterior=FlowConfig(1)))


@pytest.mark.parametrize("count", [2, 8])
def test_the_moments_of_draws_are_those_of_the_posteriors(count):
    """The moments are unbiased: 20,000 images tell a dead latent from one whose means vary by 0.01."""
    torch.manual_seed(0)
    q = Gaussian(torch.randn(20_000, 3) * torch.tensor([1.0, 0.15, 0.0]) + 1, torch.tensor([-1.0, -0.01, 0.0]))
    known, drawn = CodeStatistics(3), CodeStatistics(3)
    known.update(Gaussian(q.mean, q.logstd.expand_as(q.mean)))
    draws = q.draw(torch.randn(count, *q.mean.shape))
    for part in range(0, 20_000, 5_000):
        drawn.update(draws[:, part : part + 5_000])
    want, got = known.compute(), drawn.compute()
    tolerance = {"rtol": 0, "atol": 0.03 / count**0.5}
    torch.testing.assert_close(got.covariance, want.covariance, rtol=0, atol=0.04)
    torch.testing.assert_close(got.covariance_of_means[1:, 1:], want.covariance_of_means[1:, 1:], **tolerance)
    assert want.rate is not None and got.rate is None
    assert want.active == 2 and (count == 2 or got.active == 2)


# --- a flow as the prior


def flowed_prior() -> LatentPrior:
    prior = LatentPrior(D, FlowConfig(2, 8))
    prior.flow = flow(2, context=0)
    return prior.double()


def test_the_prior_s_density_is_that_of_its_draws():
    """The density is that of a change of variables by autograd, and the flow takes draws back to their noise."""
    prior, noise = flowed_prior(), doubles(100, D)
    z = prior(noise, "flow")
    torch.testing.assert_close(prior.flow(z)[0], noise)
    jacobian = torch.autograd.functional.jacobian(lambda v: prior(v[None], "flow")[0], noise[0])
    want = torch.distributions.Normal(0.0, 1.0).log_prob(noise[0]).sum() - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(prior.log_density(z, "flow")[0], want)


def test_a_new_flow_is_the_standard_prior():
    prior, z = LatentPrior(D, FlowConfig(2, 8)), torch.randn(4, D)
    assert torch.equal(prior(z), z) and torch.equal(prior.log_density(z), prior.log_density(z, "standard"))
    assert prior.names == ("flow",) and LatentPrior(D).names == ("standard",)
    assert not list(LatentPrior(D).parameters())  # nothing that an optimizer would move


def test_the_loss_trains_the_prior_with_the_vae():
    module = attached(vae(replace(NET, prior=FlowConfig(1, 8)), rate_warmup=0.0))
    x = photographs(32, 4)
    loss, terms = module.loss(x, module.noise())
    loss.backward()
    assert all(weight.grad is not None for weight in module.parameters())
    assert module.prior.flow.steps[0].hyper[-1].bias.grad.abs().sum() > 0
    draws = module.vae.encode(x).draw(module.noise().normal(4, 4))
    torch.testing.assert_close(terms["rate"], module.prior.rate(draws, "flow"))


def test_the_gap_is_measured_in_the_flow_s_noise():
    """Codes drawn from p(z) itself have no gap, however far p(z) is from N(0, I)."""
    prior = flowed_prior()
    z = prior(doubles(20_000, D), "flow")
    q = Gaussian(z, torch.full_like(z, -12))  # narrow posteriors on draws of p(z)
    found = Diagnostics(32, D, flowed=True)
    pixels = Gaussian(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    found.update(q.draw(doubles(2, 20_000, D)), pixels, pixels.mean, {}, prior.flow)
    name, gap = found.gap()
    assert name == "the flow p(z)" and gap < 0.01 < 1 < found.code.compute().gap
