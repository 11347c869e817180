"""Closed forms of the linear VAE in one dimension, in float64: quadrature, stationarity, small fits, refusals."""

import math

import pytest
import torch

from degrain.models.toys import linear_gaussian as toy
from tests.toys.tools import SCALES, close, fit, generator, gradient, grid, hermite, refused

pytestmark = pytest.mark.usefixtures("float64")


def minimum_loss(t, beta):
    """Return min L = (beta/2)(1 + log(2t^2/beta)) below the threshold beta = 2t^2, else t^2; 0 at beta = 0."""
    t, beta = torch.as_tensor(t), torch.as_tensor(beta)
    live = 0.5 * (beta + torch.xlogy(beta, 2 * t.square()) - torch.xlogy(beta, beta))
    return torch.where(beta < 2 * t.square(), live, t.square())


@pytest.mark.parametrize("t, beta", [(0.5, 0.3), (1.0, 1.0), (2.0, 9.0)])
def test_loss_matches_quadrature(t, beta):
    a, b, c = torch.tensor(0.7), torch.tensor(-0.4), torch.tensor(1.3)
    nodes, weights = hermite()
    x, noise = t * nodes[:, None], nodes
    weight = weights[:, None] * weights
    z = a * x + b * noise
    log_ratio = (z.square() - noise.square()) / 2 - b.abs().log()  # log q(z|x) - log p(z)
    expected = (weight * ((c * z - x).square() + beta * log_ratio)).sum()
    close(toy.loss(a, b, c, t, beta), expected)


def test_expectation_of_the_sampled_loss_is_the_integrated_loss():
    t, beta = grid()
    a, b, c = torch.tensor(0.7), torch.tensor(0.4), torch.tensor(1.3)
    nodes, weights = hermite()
    x, noise = t * nodes[:, None, None, None], nodes[:, None, None].expand(40, 3, 6)
    per_sample = toy.sampled_loss(a, b, c, x, noise, beta)  # (40, 40, 3, 6)
    close(torch.einsum("i,j,ijtb->tb", weights, weights, per_sample), toy.loss(a, b, c, t, beta))


def test_minibatches_of_the_sampled_loss_average_to_the_integrated_loss():
    draws = torch.randn(2, 200_000, generator=generator())
    a, b, c = torch.tensor(0.7), torch.tensor(0.4), torch.tensor(1.3)
    per_sample = toy.sampled_loss(a, b, c, 2.0 * draws[0], draws[1], 1.0)
    error = (per_sample.mean() - toy.loss(a, b, c, 2.0, 1.0)).abs()
    assert error < 4 * per_sample.std() / math.sqrt(200_000)  # four standard errors


def test_optimum_is_stationary_and_no_perturbation_lowers_the_loss():
    t, beta = grid()
    best = toy.optimum(t, beta)
    assert gradient(lambda a, b, c: toy.loss(a, b, c, t, beta), best.a, best.b, best.c) < 1e-10
    lowest = toy.loss(best.a, best.b, best.c, t, beta)
    for scale in (1e-3, 0.1, 1.0):
        moves = scale * torch.randn(2000, 3, *t.shape, generator=generator())
        moved = toy.loss(best.a + moves[:, 0], best.b + moves[:, 1], best.c + moves[:, 2], t, beta)
        assert (moved >= lowest - 1e-12).all()


def test_t_beta_one_is_biased_and_noisy():
    best = toy.optimum(1.0, 1.0)
    for value in (best.a, best.b, best.c):
        close(value, math.sqrt(2) / 2)
    close(best.a * best.c, 0.5)


def test_no_kl_weight_gives_the_perfect_reconstruction_in_the_limit():
    for beta in (0.0, 1e-12):
        best = toy.optimum(2.0, beta)
        close(best.a * best.c, 1.0)
        close(best.b, 0.0, 1e-6)
    # With beta = 0 the scale of the code is free and b = 0 costs nothing.
    close(toy.loss(torch.tensor(5.0), torch.tensor(0.0), torch.tensor(0.2), 2.0, 0.0), 0.0)
    close(minimum_loss(2.0, 0.0), 0.0)


def test_minimum_loss_is_the_loss_at_the_optimum():
    t, beta = grid()
    best = toy.optimum(t, beta)
    close(minimum_loss(t, beta), toy.loss(best.a, best.b, best.c, t, beta))
    close(minimum_loss(t, 2 * t.square()), t.square())


def test_empty_code_turns_from_a_saddle_into_a_minimum_at_the_threshold():
    """[2] Hessian of L in (a, c) at a = c = 0, b = 1: ((beta t^2, -2t^2), (-2t^2, 2)), det 2t^2 (beta - 2t^2)."""
    for t in SCALES:
        for beta in (0.5 * t**2, 3 * t**2):
            hessian = torch.autograd.functional.hessian(
                lambda ac, t=t, beta=beta: toy.loss(ac[0], torch.tensor(1.0), ac[1], t, beta), torch.zeros(2)
            )
            close(torch.tensor([[beta * t**2, -2 * t**2], [-2 * t**2, 2]]), hessian)
            close(2 * t**2 * (beta - 2 * t**2), torch.linalg.det(hessian))
            assert (torch.linalg.eigvalsh(hessian)[0] > 0) == (beta > 2 * t**2)


def test_statistics_are_those_of_the_optimum():
    t, beta = grid()
    best, s = toy.optimum(t, beta), toy.statistics(t, beta)
    close(best.a * best.c, (1 - beta / (2 * t.square())).clamp(min=0))
    close(s.squared_error, toy.loss(best.a, best.b, best.c, t, 0.0))
    close(beta * s.rate, minimum_loss(t, beta) - s.squared_error)
    close(s.mean_variance, best.c.square())
    close(toy.aggregate_variance(best.a, best.b, t), torch.ones(3, 6))  # q(z) is the prior, collapsed or not


def test_means_are_too_narrow_and_true_samples_exact_until_the_collapse():
    t, beta = grid()
    s = toy.statistics(t, beta)
    close(s.mean_variance, (t.square() - beta / 2).clamp(min=0))
    close(s.sample_variance, torch.where(beta < 2 * t.square(), t.square(), beta / 2))
    assert (s.sample_variance[:, -1] > t[:, -1].square()).all()  # past the threshold: too wide


def test_regularising_the_aggregate_reaches_the_perfect_solution_for_every_beta():
    best = toy.aggregate_optimum(2.0)
    for beta in (0.01, 1.0, 8.0, 100.0):

        def objective(a, b, c, beta=beta):
            return toy.aggregate_loss(a, b, c, 2.0, beta)

        close(objective(best.a, best.b, best.c), 0.0)
        assert gradient(objective, best.a, best.b, best.c) < 1e-10
        start = (torch.tensor(0.3), torch.tensor(0.5), torch.tensor(0.4))
        fitted, lowest = fit(objective, *start)
        assert lowest < 1e-10
        for value, expected in zip(fitted, (0.5, 0.0, 2.0), strict=True):
            close(value, expected, 1e-4)


def test_optimum_lies_on_the_rate_distortion_curve_with_slope_minus_beta():
    t, beta = grid()
    s = toy.statistics(t, beta)
    close(toy.rate_at_distortion(t, s.squared_error), s.rate)
    close(toy.rate_at_distortion(1.0, 2.0), 0.0)
    d = torch.tensor(0.3, requires_grad=True)  # beta = 2 D = 0.6
    (slope,) = torch.autograd.grad(toy.rate_at_distortion(1.0, d), d)
    close(1 / slope, -0.6)


# --- refusals


ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: toy.optimum(0.0, 1.0), "data std t = 0; give a finite t > 0"),
        (lambda: toy.loss(ONE, ONE, ONE, torch.tensor([1.0, -2.0]), 1.0), "data std t = -2"),
        (lambda: toy.optimum(math.nan, 1.0), "data std t = nan"),
        (lambda: toy.optimum(1.0, -0.5), "beta = -0.5; give a finite beta >= 0"),
        (lambda: toy.sampled_loss(ONE, ONE, ONE, ONE, ONE, -1.0), "beta = -1"),
        (lambda: toy.rate_at_distortion(1.0, -1.0), "squared error = -1"),
        (lambda: toy.directions(torch.tensor([-1.0]), 1.0), "eigenvalue = -1"),
        (lambda: toy.directions(torch.ones(2), -1.0), "noise variance = -1"),
        (lambda: toy.directions(torch.ones(2), 1.0, -1), "-1 latents; give k >= 0"),
        (lambda: toy.directions(torch.ones(2), 1.0, 1, 0.0), "KL weight = 0"),
    ],
)
def test_invalid_input_is_refused_in_one_line_with_the_reason(call, reason):
    refused(call, reason)
