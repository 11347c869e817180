"""The adversarial terms against closed forms."""

import math

import pytest
import torch
from einops import einsum, reduce
from torch import Tensor, nn

from models.core.errors import InputError
from models.gan.objective import (
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    regional_variances,
    relativistic_loss,
    spread_loss,
    squared_error,
    translated,
    variance_ratio,
)

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


def test_relativistic_loss_values():
    real, fake = torch.tensor([0.0, 2.0, -50.0]), torch.tensor([0.0, -1.0, 50.0])
    want = torch.tensor([math.log(2), math.log1p(math.exp(-3)), 100.0])
    torch.testing.assert_close(relativistic_loss(real, fake), want)
    # Both players' losses differ by the margin: softplus(t) - softplus(-t) = t.
    torch.testing.assert_close(relativistic_loss(fake, real) - relativistic_loss(real, fake), real - fake)


def test_the_classic_losses_are_those_of_a_logistic_regression():
    real, fake = normal(50, seed=5), normal(50, seed=6)
    logits, labels = torch.cat([real, fake]), torch.cat([torch.ones(50), torch.zeros(50)]).double()
    entropies = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    torch.testing.assert_close(discriminator_loss("classic", real, fake), entropies[:50] + entropies[50:])
    wants = nn.functional.binary_cross_entropy_with_logits(fake, torch.ones(50).double(), reduction="none")
    torch.testing.assert_close(generator_loss("classic", real, fake), wants)  # D's error on fakes, labelled real


def test_both_players_of_the_relativistic_loss_want_the_margin():
    real, fake = normal(50, seed=5), normal(50, seed=6)
    torch.testing.assert_close(discriminator_loss("relativistic", real, fake), relativistic_loss(real, fake))
    torch.testing.assert_close(generator_loss("relativistic", real, fake), relativistic_loss(fake, real))


def test_translated_images_are_moved_by_whole_pixels_and_bare_where_nothing_was():
    images = normal(3, 2, 4, 6).requires_grad_()
    moved = translated(images, torch.tensor([[0, 0], [1, -2], [-3, 0]]))
    by_hand = torch.zeros(3, 2, 4, 6, dtype=torch.float64)
    by_hand[0] = images[0].detach()
    by_hand[1, :, 1:, :4] = images[1, :, :3, 2:].detach()
    by_hand[2, :, :1] = images[2, :, 3:].detach()
    assert torch.equal(moved.detach(), by_hand)
    moved.sum().backward()
    assert images.grad[2].sum() == 2 * 6 and images.grad[0].eq(1).all()  # what left the picture is not judged


def test_squared_error_is_the_mean_over_draws_and_pixels():
    draws, target = normal(4, *SHAPE, seed=3), normal(*SHAPE, seed=4)
    want = [(draws[:, i] - target[i]).square().mean() for i in range(SHAPE[0])]
    torch.testing.assert_close(squared_error(draws, target), torch.stack(want))


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


def draws_with_variance(std: Tensor) -> Tensor:
    """Two draws whose unbiased variance is std^2 exactly, at every pixel: (2, B, C, H, W)."""
    return normal(*SHAPE, seed=3) + torch.stack([std, -std]) / math.sqrt(2)


def spread(draws: Tensor, std: Tensor, pool: int = 8) -> Tensor:
    return spread_loss(regional_variances(draws, std, pool))


@pytest.mark.parametrize("scale", [1e-3, 0.1, 10.0])
def test_spread_loss_is_zero_at_equal_variances_and_positive_otherwise(scale):
    std = uneven_std(scale)
    assert spread(draws_with_variance(std), std).item() == pytest.approx(0, abs=1e-20)
    assert spread(draws_with_variance(0.5 * std), std) > 0.1
    assert spread(draws_with_variance(2 * std), std) > 0.1
    # It compares regions of a batch, not pixels: the same variance in other places of a region is right too.
    region_mean = reduce(std.square(), "b c (h p) (w q) -> h w", "mean", p=8, q=8).sqrt()
    even = region_mean.repeat_interleave(8, 0).repeat_interleave(8, 1).expand(SHAPE)
    assert spread(draws_with_variance(even), std).item() == pytest.approx(0, abs=1e-20)


def test_spread_loss_has_no_unit():
    std, noise = uneven_std(), normal(2, *SHAPE, seed=4)
    small, large = (spread(s * 0.3 * std * noise, s * std, pool=4) for s in (1e-3, 100.0))
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize(("share", "sign"), [(0.01, -1), (0.5, -1), (2.0, 1)])
def test_spread_loss_pushes_the_spread_the_right_way(share, sign):
    share = torch.tensor(share, dtype=torch.float64, requires_grad=True)
    std = uneven_std()
    (slope,) = torch.autograd.grad(spread(share * std * normal(2, *SHAPE, seed=4), std), share)
    assert slope * sign > 0  # a descent raises too small a spread and lowers too large a one


def test_spread_loss_of_a_deterministic_denoiser_is_finite_with_finite_gradients():
    draws = normal(*SHAPE).expand(2, *SHAPE).clone().requires_grad_()
    loss = spread(draws, uneven_std())
    loss.backward()
    assert loss.isfinite() and draws.grad.isfinite().all()
