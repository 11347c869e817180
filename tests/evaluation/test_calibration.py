"""Calibration: a model that is right by construction scores as right, and each kind of error shows."""

import pytest
import torch

from degrain.models.core.gaussian import Gaussian
from degrain.models.evaluation.calibration import EDGES, LEVELS, Calibration

SHAPE = (3, 8, 8)


def draws(n=4000, std=0.05, told=1.0, seed=0):
    """Return p(x|z) that claims a std of told * std, and images x ~ N(mean, std^2) whose means vary."""
    rng = torch.Generator().manual_seed(seed)
    mean = 0.5 + 0.1 * torch.randn(n, *SHAPE, generator=rng)
    x = mean + std * torch.randn(n, *SHAPE, generator=rng)
    return Gaussian(mean, torch.full_like(mean, told * std).log()), x


def measured(p, x, parts=1):
    metric = Calibration(SHAPE)
    for mean, logstd, images in zip(*(t.chunk(parts) for t in (p.mean, p.logstd, x)), strict=True):
        metric.update(Gaussian(mean, logstd), images)
    return metric.compute()


def test_intervals_of_a_calibrated_model_cover_their_probability():
    found = measured(*draws())
    torch.testing.assert_close(found.coverage, torch.tensor(LEVELS, dtype=torch.float64), rtol=0, atol=2e-3)
    centre = 0.5 * (EDGES[1:] + EDGES[:-1])
    normal = (-0.5 * centre.square()).exp() / (2 * torch.pi) ** 0.5
    torch.testing.assert_close(found.histogram.float(), normal, rtol=0, atol=6e-3)


def test_a_std_that_is_too_small_covers_less_and_one_too_large_more():
    claimed = torch.tensor(LEVELS, dtype=torch.float64)
    assert (measured(*draws(told=0.5)).coverage < claimed).all()
    assert (measured(*draws(told=2.0)).coverage > claimed).all()


def test_the_marginal_variance_is_that_of_the_data_for_the_true_model_alone():
    right, wide = measured(*draws()), measured(*draws(told=2.0))
    assert right.marginal_variance.item() == pytest.approx(1, abs=0.01)
    assert right.marginal_variance_gap.item() < 0.03
    expected = (0.1**2 + 0.1**2) / (0.1**2 + 0.05**2)
    assert wide.marginal_variance.item() == pytest.approx(expected, rel=0.02)
    assert wide.marginal_variance_gap.item() == pytest.approx(torch.tensor(expected).log().item(), rel=0.05)


def test_batches_add_up():
    p, x = draws(64)
    for one, many in zip(vars(measured(p, x)).values(), vars(measured(p, x, parts=5)).values(), strict=True):
        torch.testing.assert_close(one, many)
