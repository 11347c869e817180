"""By region: each is measured apart, and planted noise is recovered."""

import pytest
import torch

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian
from degrain.models.evaluation.regions import RegionCalibration
from tests.evaluation.test_calibration import SHAPE, draws


def regions(n):
    """Return regions: the left half is 0, the right half 1, the last column in none."""
    map_ = torch.zeros(n, *SHAPE[1:], dtype=torch.uint8)
    map_[:, :, 4:], map_[:, :, 7:] = 1, 255
    return map_


def test_regions_are_measured_apart_and_pixels_outside_not_at_all():
    p, x = draws(200)
    where = regions(200)
    logstd = p.logstd.clone()
    logstd[:, :, :, 4:7] += 1.0
    x = x.clone()
    x[:, :, :, 7:] = 99.0
    metric = RegionCalibration(("left", "right"))
    for i in range(0, 200, 50):
        metric.update(Gaussian(p.mean[i : i + 50], logstd[i : i + 50]), x[i : i + 50], where[i : i + 50])
    found = metric.compute()
    assert found.pixels[0].tolist() == [32, 24] and found.planted is None
    std = found.pixel_mean(found.variance).sqrt()
    assert std[0].item() == pytest.approx(0.05, rel=1e-5)
    assert std[1].item() == pytest.approx(0.05 * torch.e, rel=1e-5)
    torch.testing.assert_close(
        found.pixel_mean(found.squared_error).sqrt().float(), torch.full((2,), 0.05), rtol=0.05, atol=0
    )
    coverage = found.pixel_mean(found.inside)
    assert coverage[0, 1].item() == pytest.approx(0.9, abs=0.01)
    assert coverage[1, 1].item() > 0.99


def test_planted_noise_and_the_error_of_the_mean_add_up_to_the_residual():
    p, clean = draws(500, std=0.03)
    x = clean + 0.04 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    metric = RegionCalibration(("left", "right"))
    metric.update(p, x, regions(500), clean)
    found = metric.compute()
    means = map(found.pixel_mean, (found.planted, found.mean_error, found.squared_error))
    planted, error, total = (mean.float() for mean in means)
    torch.testing.assert_close(planted.sqrt(), torch.full((2,), 0.04), rtol=0.03, atol=0)
    torch.testing.assert_close(error.sqrt(), torch.full((2,), 0.03), rtol=0.03, atol=0)
    torch.testing.assert_close(planted + error, total, rtol=0.03, atol=0)


def test_where_the_mean_is_nearly_right_the_variance_is_taken_apart():
    clean = torch.full((20, *SHAPE), 0.5)
    mean, logstd = clean.clone(), torch.full_like(clean, 0.04).log()
    mean[:, :, 4:], logstd[:, :, 4:] = 0.7, torch.tensor(0.2).log()  # the lower half is wrong, and known to be
    x = clean + 0.04 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    metric = RegionCalibration(("left", "right"))
    metric.update(Gaussian(mean, logstd), x, regions(20), clean)
    found = metric.compute()
    share, there = found.pixel_mean(found.nearly_right), found.pixel_mean(found.variance_nearly_right)
    torch.testing.assert_close(share, torch.full((2,), 0.5, dtype=torch.float64))
    torch.testing.assert_close((there / share).sqrt().float(), torch.full((2,), 0.04))


def test_an_image_without_a_region_does_not_count_for_it():
    p, x = draws(4)
    where = torch.zeros(4, *SHAPE[1:], dtype=torch.uint8)
    where[0, 0, 0] = 1
    metric = RegionCalibration(("all", "dot"))
    metric.update(p, x, where)
    found = metric.compute()
    assert found.pixels[:, 1].tolist() == [1, 0, 0, 0]
    torch.testing.assert_close(found.pixel_mean(found.variance), torch.full((2,), 0.05**2, dtype=torch.float64))


def test_the_bootstrap_interval_of_a_mean_is_that_of_the_central_limit_theorem():
    p, x = draws(400)
    spread = torch.linspace(-1, 1, 400)[:, None, None, None]
    metric = RegionCalibration(("left", "right"))
    metric.update(Gaussian(p.mean, p.logstd + 0.3 * spread), x, regions(400))
    found = metric.compute()
    low, high = found.bootstrap_interval(lambda chosen: found.pixel_mean(found.variance, chosen))
    width = 2 * 1.96 * found.variance[:, 0].std() / 400**0.5
    assert (high - low)[0].item() == pytest.approx(width.item(), rel=0.1)
    assert (low < found.pixel_mean(found.variance)).all() and (found.pixel_mean(found.variance) < high).all()


def test_no_regions_at_all_is_an_error():
    with pytest.raises(InputError, match="no image had regions"):
        RegionCalibration(("skin",)).compute()
