"""A test of stage 1 from the command line writes a table and figures, also by region and with planted noise."""

import json
import shutil

import numpy as np
import pytest
import torch

from degrain.data.drawing import REGIONS
from degrain.models.core.gaussian import Gaussian, kl_of_moments
from degrain.models.evaluation.calibration import CodeStatistics
from degrain.models.evaluation.diagnostics import Diagnostics
from tests import tiny


@pytest.fixture(scope="module")
def root(trained, tmp_path_factory):
    """Copy the finished runs, so that tests may write to them."""
    copy = tmp_path_factory.mktemp("diagnosed")
    shutil.copytree(trained.root, copy, dirs_exist_ok=True)
    return copy


def test_a_test_prints_and_writes_diagnostics(root, capsys, figures):
    folder = tiny.run(root, "vae", subcommand="test")
    table = (folder / "table.txt").read_text()
    assert table.strip() in capsys.readouterr().out
    for words in ("20 images", "intervals cover", "to skin", "latents active"):
        assert words in table
    assert all(name in table for name in REGIONS if name != "glasses")
    assert (folder / "diagnostics.png").stat().st_size > 10_000 and (folder / "regions.png").exists()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 < metrics["test/coverage_50"] < metrics["test/coverage_90"] < metrics["test/coverage_99"] <= 1
    assert metrics["test/std/skin"] > 0 and "test/planted_std_error" not in metrics


def test_the_std_is_compared_with_the_planted_noise(root):
    noise = json.dumps(dict.fromkeys(REGIONS, 0.05))
    folder = tiny.run(root, "vae", "--data.noise", noise, subcommand="test")
    assert "planted" in (folder / "table.txt").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test/planted_std_error"] >= 0 and -1 <= metrics["test/planted_rank_correlation"] <= 1


def test_a_checkpoint_is_measured_on_masked_photographs(root, tmp_path):
    rng = np.random.default_rng(0)
    masks = np.repeat(np.array([[1] * 16 + [13] * 16], np.uint8), 32, 0)
    images = rng.integers(0, 256, (5, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "faces.npz", images=images, masks=np.tile(masks, (5, 1, 1)))
    options = ["--data", "degrain.data.datamodule.MaskedImages", "--data.root", str(tmp_path / "faces.npz")]
    folder = tiny.run(root, "vae", *options, "--data.cache", str(tmp_path / "cache"), subcommand="test")
    table = (folder / "table.txt").read_text()
    assert "5 images" in table and "hair" in table and "mouth" not in table


def test_code_statistics_are_those_of_all_batches_at_once():
    rng = torch.Generator().manual_seed(0)
    q = Gaussian(torch.randn(50, 4, generator=rng) * torch.tensor([1.0, 2.0, 0.5, 0.01]), torch.full((50, 4), -1.0))
    metric = CodeStatistics(4)
    for mean, logstd in zip(q.mean.split(20), q.logstd.split(20), strict=True):
        metric.update(Gaussian(mean, logstd))
    found = metric.compute()
    assert found.active == 3
    mean = q.mean.double()
    covariance = torch.cov(mean.T, correction=0) + torch.eye(4) * torch.exp(torch.tensor(-2.0))
    torch.testing.assert_close(found.gap, kl_of_moments(mean.mean(0), covariance.double()), rtol=1e-5, atol=1e-6)


def test_a_true_model_has_ideal_diagnostics(tmp_path):
    rng = torch.Generator().manual_seed(0)
    mean = 0.5 + 0.1 * torch.randn(64, 3, 32, 32, generator=rng)
    clean, p = mean, Gaussian(mean, torch.full_like(mean, 0.05).log())
    regions = torch.arange(32).div(16, rounding_mode="floor").expand(64, 32, 32)
    p.logstd[..., 16:] += 0.5
    x = p.sample(torch.randn(mean.shape, generator=rng))
    q = Gaussian(torch.zeros(64, 2), torch.zeros(64, 2))
    diagnostics = Diagnostics(32, 2, ("left", "right"))
    diagnostics.update(q, p, x, {"regions": regions, "clean": 255 * clean})
    scalars = diagnostics.scalars()
    assert scalars["prior_gap"].item() == pytest.approx(0, abs=1e-6)
    assert scalars["planted_std_error"].item() < 0.02 and scalars["planted_rank_correlation"].item() == pytest.approx(1)
    assert scalars["marginal_variance"].item() == pytest.approx(1, abs=0.02)


def test_the_rank_correlation_sees_the_order_of_the_regions_that_images_have():
    mean, regions = torch.full((4, 3, 32, 32), 0.5), torch.arange(32).div(8, rounding_mode="floor").expand(4, 32, 32)
    std = 0.01 * (1 + regions[:, None]).expand_as(mean)
    for logstd, correlation in ((std.log(), 1), (-std.log(), -1)):
        diagnostics = Diagnostics(32, 2, ("a", "b", "c", "d", "absent"))
        q, p = Gaussian(torch.zeros(4, 2), torch.zeros(4, 2)), Gaussian(mean, logstd)
        diagnostics.update(q, p, mean + std, {"regions": regions, "clean": 255 * mean})
        assert diagnostics.scalars()["planted_rank_correlation"].item() == pytest.approx(correlation)
