"""The adversarial terms against closed forms."""

import math

import pytest
import torch
from einops import einsum, reduce
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian
from degrain.models.core.layers import PyramidConfig, ResBlock
from degrain.models.gan.discriminator import Discriminator
from degrain.models.gan.objective import (
    AdversarialLoss,
    discriminator_objective,
    generator_objective,
    gradient_penalty,
    spread_loss,
    spread_terms,
    squared_error,
    variance_ratio,
)

P = Gaussian(torch.zeros(()), torch.zeros(()))  # no critic here looks at it
SHAPE = (2, 3, 16, 16)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uneven_std(scale: float = 0.1) -> Tensor:
    """A std that differs from pixel to pixel, (B, C, H, W)."""
    return scale * (0.3 * normal(*SHAPE)).exp()


class Quadratic(nn.Module):
    """D(x) = x A x / 2 + b x over flat images, whose gradient is A x + b."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        root = normal(pixels, pixels, seed=1)
        self.matrix, self.vector = nn.Parameter(root + root.T), nn.Parameter(normal(pixels, seed=2))

    def gradient(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix + self.vector

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return 0.5 * einsum(x, self.matrix, x, "b i, i j, b j -> b") + x @ self.vector


def first_column(logits: Tensor, p: Gaussian) -> Tensor:
    """A critic whose logits are its inputs."""
    return logits.flatten(1)[:, 0]


def losses(loss: AdversarialLoss, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """D's and G's losses per sample for logits (B,)."""
    arguments = (first_column, loss, real[:, None, None, None], fake[:, None, None, None], P)
    return discriminator_objective(*arguments, 0.0)[1]["d_loss"], generator_objective(*arguments)[1]["g_loss"]


def test_relativistic_loss_values():
    real, fake = torch.tensor([0.0, 2.0, -50.0]), torch.tensor([0.0, -1.0, 50.0])
    d_loss, g_loss = losses("relativistic", real, fake)
    torch.testing.assert_close(d_loss, torch.tensor([math.log(2), math.log1p(math.exp(-3)), 100.0]))
    # Both players' losses differ by the margin: softplus(t) - softplus(-t) = t.
    torch.testing.assert_close(g_loss - d_loss, real - fake)


def test_the_classic_losses_are_those_of_a_logistic_regression():
    real, fake = normal(50, seed=5), normal(50, seed=6)
    logits, labels = torch.cat([real, fake]), torch.cat([torch.ones(50), torch.zeros(50)]).double()
    entropies = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    d_loss, g_loss = losses("classic", real, fake)
    torch.testing.assert_close(d_loss, entropies[:50] + entropies[50:])
    wants = nn.functional.binary_cross_entropy_with_logits(fake, torch.ones(50).double(), reduction="none")
    torch.testing.assert_close(g_loss, wants)  # D's error on fakes, labelled real


def test_both_players_of_the_relativistic_loss_want_the_margin():
    real, fake = normal(50, seed=5), normal(50, seed=6)
    d_loss, g_loss = losses("relativistic", real, fake)
    torch.testing.assert_close(losses("relativistic", fake, real), (g_loss, d_loss))


@pytest.mark.parametrize("loss", ["relativistic", "classic"])
def test_penalties_reuse_the_logits_and_have_the_gradients_of_penalties_apart(loss):
    real, fake, weight = normal(5, 3, 2, 2, seed=3), normal(5, 3, 2, 2, seed=4), 0.7
    one, other = Quadratic(12), Quadratic(12)
    calls = []
    total, terms = discriminator_objective(
        lambda x, p: calls.append(x) or one(x), loss, real, fake, P, penalty_weight=weight
    )
    total.backward()
    assert len(calls) == 2 and ("r1" in terms, "r2" in terms) == (True, loss == "relativistic")
    images = [real, fake] if loss == "relativistic" else [real]
    penalties = [gradient_penalty(other(x.requires_grad_()), x).mean() for x in images]
    apart = discriminator_objective(lambda x, p: other(x), loss, real, fake, P, 0.0)[0] + weight * sum(penalties)
    apart.backward()
    torch.testing.assert_close(total, apart)
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("weight", "names"), [(0.0, set()), (0.1, {"r1", "r2"})])
def test_terms_are_per_sample_and_without_a_weight_there_are_no_penalties(weight, names):
    real, fake, critic = normal(5, 3, 2, 2, seed=3), normal(5, 3, 2, 2, seed=4), Quadratic(12)
    total, terms = discriminator_objective(lambda x, p: critic(x), "relativistic", real, fake, P, weight)
    assert terms.keys() == {"margin", "d_loss"} | names and all(term.shape == (5,) for term in terms.values())
    penalties = sum((terms[name].mean() for name in names), torch.tensor(0.0))
    torch.testing.assert_close(total, terms["d_loss"].mean() + weight * penalties)


def gradients_of_objective(net: Discriminator, weight: float, half: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Return the gradient of D's loss by its weights and r1, in float64; under autocast to `half`, if any."""
    net.zero_grad()
    dtype = net.layers[1].weight.dtype
    real, fake, mean, logstd = (normal(4, 3, 32, 32, seed=seed).to(dtype) for seed in range(4))
    with torch.autocast("cpu", half, enabled=half is not None):
        total, terms = discriminator_objective(net, "relativistic", real, fake, Gaussian(mean, logstd), weight)
    total.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    assert all(term.dtype == torch.float32 for term in terms.values())
    return torch.cat([gradient.flatten() for gradient in gradients]).double(), terms.get("r1", total).detach().double()


def discriminator_with_live_blocks() -> Discriminator:
    """Return a small D whose residual blocks are no identities."""
    torch.manual_seed(0)
    net = Discriminator(32, PyramidConfig((8, 16), patch=4))
    for block in net.modules():
        if isinstance(block, ResBlock):
            nn.init.kaiming_normal_(block.conv2.weight)
    return net


def test_penalties_in_bfloat16_are_about_as_near_to_float64_as_the_loss():
    nets = (discriminator_with_live_blocks(), discriminator_with_live_blocks().double())
    loss, exact_loss = (
        gradients_of_objective(net, 0.0, half)[0] for net, half in zip(nets, (torch.bfloat16, None), strict=True)
    )
    (both, r1), (exact_both, exact_r1) = (
        gradients_of_objective(net, 10.0, half) for net, half in zip(nets, (torch.bfloat16, None), strict=True)
    )
    penalty, exact = both - loss, exact_both - exact_loss
    torch.testing.assert_close(r1, exact_r1, rtol=0.02, atol=0)
    assert (penalty - exact).norm() < 0.02 * exact.norm()
    assert (penalty - exact).norm() / exact.norm() < 1.5 * (loss - exact_loss).norm() / exact_loss.norm()


def test_penalties_under_autocast_to_float16_are_those_of_float32():
    net = discriminator_with_live_blocks()
    got, want = (gradients_of_objective(net, 10.0, half) for half in (torch.float16, None))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_squared_error_is_the_mean_over_pixels():
    image, target = normal(*SHAPE, seed=3), normal(*SHAPE, seed=4)
    want = [(image[i] - target[i]).square().mean() for i in range(SHAPE[0])]
    torch.testing.assert_close(squared_error(image, target), torch.stack(want))


def test_gradient_penalty_of_a_quadratic():
    critic, x = Quadratic(12), normal(5, 3, 2, 2).requires_grad_()
    want = 0.5 * critic.gradient(x).square().sum(1)
    torch.testing.assert_close(gradient_penalty(critic(x), x).double(), want.detach(), rtol=1e-5, atol=0)


def test_gradient_penalty_can_be_minimised():
    critic, x = Quadratic(12), normal(5, 3, 2, 2).requires_grad_()
    penalty = gradient_penalty(critic(x), x).sum()
    (by_vector,) = torch.autograd.grad(penalty, critic.vector)
    torch.testing.assert_close(by_vector, critic.gradient(x).sum(0).detach(), rtol=1e-5, atol=1e-5)
    optimizer = torch.optim.SGD(critic.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        gradient_penalty(critic(x), x).sum().backward()
        optimizer.step()
    assert gradient_penalty(critic(x), x).sum() < 0.1 * penalty


def test_variance_ratio_of_true_draws_is_one_and_of_a_deterministic_denoiser_zero():
    mean, std, noise = normal(*SHAPE, seed=3), uneven_std(), normal(64, *SHAPE, seed=4)
    torch.testing.assert_close(variance_ratio(mean + std * noise, std), torch.ones(2).double(), rtol=0, atol=0.03)
    torch.testing.assert_close(
        variance_ratio(mean + 2 * std * noise, std), 4 * torch.ones(2).double(), rtol=0, atol=0.1
    )
    assert variance_ratio(mean.expand(8, *SHAPE), std).eq(0).all()


def test_variance_ratio_of_one_draw_is_refused():
    with pytest.raises(InputError, match="2 draws"):
        variance_ratio(normal(1, *SHAPE), uneven_std())


def draws_of(std: Tensor, seed: int = 3) -> Tensor:
    """Four draws of N(0, std^2), (4, B, C, H, W)."""
    return std * normal(4, *std.shape, seed=seed)


def test_spread_terms_are_per_sample_and_only_the_spread_has_a_gradient():
    terms = spread_terms(draws_of(uneven_std()).requires_grad_(), uneven_std())
    assert {name: (tuple(t.shape), t.requires_grad) for name, t in terms.items()} == {
        "spread": ((2,), True),
        "variance_ratio": ((2,), False),
    }


MANY = (400, 3, 16, 16)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize(("ratio", "want"), [(0.0, 1.0), (0.5, 0.25), (1.0, 0.0), (2.0, 1.0)])
def test_spread_loss_is_the_square_of_the_relative_error_of_the_variance(ratio, want, scale):
    std = scale * (0.3 * normal(*MANY)).exp()
    found = spread_loss(draws_of(math.sqrt(ratio) * std), std)
    assert found.shape == (400,)
    assert found.mean().item() == pytest.approx(want, abs=5 * found.std().item() / 20 + 1e-9)


def test_spread_loss_sees_that_half_of_the_images_are_deterministic_and_the_others_twice_as_loud():
    std = 0.1 * (0.3 * normal(*MANY)).exp()
    share = torch.where(torch.arange(400) % 2 == 0, 0.0, math.sqrt(2))[:, None, None, None].double()
    draws = draws_of(share * std)
    assert variance_ratio(draws, std).mean().item() == pytest.approx(1, abs=0.01)  # of all together nothing is wrong
    assert spread_loss(draws, std).mean().item() == pytest.approx(1, abs=0.02)


def test_spread_loss_compares_regions_of_an_image_not_pixels():
    std = 0.1 * (0.3 * normal(*MANY)).exp()
    region_mean = reduce(std.square(), "b c (h p) (w q) -> b 1 h w", "mean", p=8, q=8).sqrt()
    even = region_mean.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(MANY)
    found = spread_loss(draws_of(even), std)
    assert found.mean().item() == pytest.approx(0, abs=5 * found.std().item() / 20)


def test_spread_loss_has_no_unit():
    std = uneven_std()
    small, large = (spread_loss(draws_of(0.3 * s * std), s * std, pool=4) for s in (1e-3, 100.0))
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize(("share", "sign"), [(0.01, -1), (0.5, -1), (2.0, 1)])
def test_spread_loss_pushes_the_spread_the_right_way(share, sign):
    share = torch.tensor(share, dtype=torch.float64, requires_grad=True)
    std = uneven_std()
    (slope,) = torch.autograd.grad(spread_loss(draws_of(share * std), std).mean(), share)
    assert slope * sign > 0  # a descent raises too small a spread and lowers too large a one


def test_spread_loss_of_a_deterministic_denoiser_is_one_with_finite_gradients():
    draws = normal(*SHAPE).expand(4, *SHAPE).clone().requires_grad_()
    loss = spread_loss(draws, uneven_std()).mean()
    loss.backward()
    assert loss.item() == pytest.approx(1) and draws.grad.isfinite().all()
