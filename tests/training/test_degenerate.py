"""Images and codes without variance: training on them, and the prior of such codes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from degrain.models.core.gaussian import Gaussian, kl_of_moments
from degrain.models.core.randomness import Noise
from degrain.models.evaluation.calibration import CodeStatistics
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.network import VAEConfig
from tests import tiny
from tests.training.recipes import TINY, attached, metrics, vae

FLOOR = VAEConfig().std_floor


# --- images


def constant(rng: np.random.Generator, i: int) -> np.ndarray:
    return np.full((32, 32, 3), 128, np.uint8)


def black_borders(rng: np.random.Generator, i: int) -> np.ndarray:
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:-8] = rng.integers(0, 256, (16, 32, 3))
    return image


def repeated(rng: np.random.Generator, i: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)


IMAGES = {f.__name__: f for f in (constant, black_borders, repeated)}


def folder(path: Path, kind: str) -> str:
    """Images of a kind."""
    path.mkdir()
    rng = np.random.default_rng(1)
    for i in range(40):
        Image.fromarray(IMAGES[kind](rng, i)).save(path / f"{i}.png")
    return str(path)


@pytest.mark.parametrize(
    ("kind", "precision"), [("constant", "32-true"), ("black_borders", "bf16-mixed"), ("repeated", "bf16-mixed")]
)
def test_both_stages_train_on_degenerate_images(tmp_path, kind, precision):
    data = ["--data", "degrain.data.datamodule.ImageFolder", "--data.root", folder(tmp_path / "images", kind)]
    data += [f"--data.{n}" for n in ("size=32", "batch_size=8", f"cache={tmp_path / 'cache'}", "num_workers=0")]
    data += ["--trainer.precision", precision]
    fast = ["--model.learning_rate=0.01", "--model.decay=0", "--model.budget=320", "--model.validate_every=160"]
    stage_1 = tiny.run(tmp_path, "vae", *data, *fast)
    stage_2 = tiny.run(tmp_path, "gan", *data)
    for run in (stage_1, stage_2):
        values = metrics(run)
        assert all(map(math.isfinite, values.values())), values
        assert values["train/skipped_steps"] == 0
        checkpoint = tiny.checkpoint(run)
        assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    values = metrics(stage_1)
    assert values["val/std"] > FLOOR and 0 <= values["val/at_floor"] <= 1
    if kind == "constant":
        assert values["val/std"] < 0.09  # on its way to the floor, from 0.1


def test_the_floor_holds_where_the_data_would_have_a_std_of_0(trained):
    module = vae(net=VAEConfig(4, TINY, TINY, std_floor=0.01, std_start=0.02), budget=1, learning_rate=1e-2)
    x = torch.full((4, 3, 32, 32), 128 / 255)
    attached(module)
    optimizer = torch.optim.Adam(module.vae.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss, terms = module.loss(x, Noise(0))
        (loss / x[0].numel()).backward()
        optimizer.step()
    p = module.vae.decode(module.vae.encode(x).mean)
    assert loss.isfinite() and p.std.min() >= 0.01 and p.std.mean() < 0.015
    assert all(value.isfinite().all() for value in module.vae.state_dict().values())
    assert terms["at_floor"].mean() > 0.2


# --- codes


def test_a_prior_of_codes_that_are_all_the_same_can_be_drawn_from():
    for mean, covariance in (
        (torch.zeros(3), torch.zeros(3, 3)),
        (torch.full((3,), 1e4), torch.full((3, 3), 2.0) - 1e-5 * torch.eye(3)),  # rounding: an eigenvalue below 0
    ):
        prior = LatentPrior(3)
        prior.fit(mean.double(), covariance.double())
        draw = prior(torch.ones(2, 3), "fitted")
        assert draw.isfinite().all() and prior.log_density(draw, "fitted").isfinite().all()
        torch.testing.assert_close(prior.cholesky @ prior.cholesky.T, covariance, rtol=1e-3, atol=1e-3)


def test_moments_that_are_not_finite_leave_the_prior_as_it_was():
    prior = LatentPrior(2)
    prior.fit(torch.ones(2).double(), 4 * torch.eye(2).double())
    prior.fit(torch.tensor([math.nan, 0]).double(), torch.eye(2).double())
    assert prior.mean.tolist() == [1, 1] and prior.cholesky[0, 0] == pytest.approx(2)


def test_the_gap_of_singular_moments_is_infinite_and_of_equal_codes_that_of_one():
    assert kl_of_moments(torch.zeros(2), torch.ones(2, 2)) == math.inf
    assert kl_of_moments(torch.zeros(2), torch.full((2, 2), math.nan)).isnan()
    code, q = CodeStatistics(3), Gaussian(torch.full((50, 3), 0.5), torch.full((50, 3), -3.0))
    code.update(q)
    report = code.compute()
    torch.testing.assert_close(report.gap, report.rate.sum())  # q(z) is every q(z|x)
    assert report.active == 0
