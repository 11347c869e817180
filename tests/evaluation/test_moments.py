"""Moments of denoised images: an ideal denoiser keeps both, and each kind of loss shows, region by region."""

import pytest
import torch

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian
from degrain.models.evaluation.moments import DenoisingMoments

B, K, SHAPE = 40, 8, (3, 8, 8)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decoded():
    """Return means that vary, and a std that rises from left to right."""
    std = torch.linspace(0.02, 0.2, 8).expand(B, *SHAPE)
    return Gaussian(0.5 + 0.1 * normal(B, *SHAPE), std.log())


def halves():
    """Return regions: the left half is 0, the right half 1, the last column in none."""
    regions = torch.zeros(B, 8, 8, dtype=torch.uint8)
    regions[..., 4:], regions[..., 7:] = 1, 255
    return regions


def measured(draws, p, names=(), regions=None, parts=1):
    metric = DenoisingMoments(names)
    for i in torch.arange(B).chunk(parts):
        some = None if regions is None else regions[i]
        metric.update(draws[:, i], Gaussian(p.mean[i], p.logstd[i]), some)
    return metric.compute()


def test_true_draws_keep_both_moments():
    p = decoded()
    found = measured(p.mean + p.std * normal(K, B, *SHAPE, seed=1), p)
    assert found.names == ("image",)
    assert found.variance_ratio.item() == pytest.approx(1, abs=0.03)
    assert found.shift.item() == pytest.approx(0, abs=0.01)  # with the draws' own share it would be 1/8


def test_the_mean_itself_has_no_variance_and_a_moved_one_its_shift():
    p = decoded()
    same = measured(p.mean.expand(K, B, *SHAPE), p)
    assert same.variance_ratio.item() == 0 and same.shift.item() == pytest.approx(0, abs=1e-9)
    moved = measured((p.mean + 0.5 * p.std).expand(K, B, *SHAPE), p)
    assert moved.shift.item() == pytest.approx(0.25, rel=1e-4)


def test_ratios_are_of_sums_over_pixels_not_means_of_ratios():
    p = decoded()
    only_left = p.mean + p.std * normal(K, B, *SHAPE, seed=1) * (torch.arange(8) < 4)
    share = p.std[..., :4].square().sum() / p.std.square().sum()
    assert measured(only_left, p).variance_ratio.item() == pytest.approx(share.item(), rel=0.05)


def test_regions_are_measured_apart_and_pixels_outside_count_into_the_whole_alone():
    p = decoded()
    strength = torch.ones(8)
    strength[4:7], strength[7] = 0.5, 3.0
    draws = p.mean + p.std * strength * normal(K, B, *SHAPE, seed=1)
    found = measured(draws, p, ("left", "right", "absent"), halves()).scalars()
    assert found["variance_ratio/left"].item() == pytest.approx(1, abs=0.05)
    assert found["variance_ratio/right"].item() == pytest.approx(0.25, abs=0.02)
    assert found["variance_ratio"].item() > 2  # the last column's
    assert "variance_ratio/absent" not in found and "shift/absent" not in found


def test_batches_add_up():
    p = decoded()
    draws = p.mean + p.std * normal(K, B, *SHAPE, seed=1)
    whole, parts = (measured(draws, p, ("left", "right"), halves(), n) for n in (1, 7))
    torch.testing.assert_close(whole.variance_ratio, parts.variance_ratio)
    torch.testing.assert_close(whole.shift, parts.shift)


def test_images_without_regions_count_into_the_whole():
    p = decoded()
    draws = p.mean + p.std * normal(K, B, *SHAPE, seed=1)
    assert set(measured(draws, p, ("left", "right")).scalars()) == {"variance_ratio", "shift"}


def test_a_single_draw_is_refused():
    p = decoded()
    with pytest.raises(InputError, match="at least 2 draws"):
        DenoisingMoments().update(p.mean[None], p)
