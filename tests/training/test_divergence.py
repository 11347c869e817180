"""Numbers stay finite: what a step that is not changes, when a run ends for it, and data that are hardly any."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from models.core.gaussian import Gaussian, kl_of_moments
from models.core.randomness import Noise
from models.evaluation.calibration import CodeStatistics
from models.training import VAEModule
from models.training import gan as gan_file
from models.training.divergence import PATIENCE, fault
from models.training.image_module import ImageModule
from models.training.update import Update
from models.vae.latent_prior import LatentPrior
from models.vae.network import VAEConfig
from tests import tiny
from tests.conftest import Trained
from tests.tiny import BATCH, assert_equal_states
from tests.training.test_controls import plain
from tests.training.test_recipes import STEP, TINY, attached, fit, gan, portraits, vae

FLOOR = VAEConfig().std_floor


class Poison(pl.Callback):
    """Makes pixels of a training step nan: on one process, and of one image alone.

    Args:
        images: seen before the first such step.
        steps: how many.
        rank: of the process.
    """

    def __init__(self, images: int, steps: int = 1, rank: int = 0) -> None:
        self.first, self.steps, self.rank = images, steps, rank

    def on_train_batch_start(self, trainer: pl.Trainer, module: ImageModule, batch: Any, *_) -> None:
        module.__dict__.pop("photographs", None)
        step = (module.images_seen - self.first) // module.global_batch(batch)
        if 0 <= step < self.steps and trainer.global_rank == self.rank:
            clean = type(module).photographs
            module.photographs = lambda batch: clean(module, batch).index_fill(0, torch.tensor(1), math.nan)

    def on_train_batch_end(self, trainer: pl.Trainer, module: ImageModule, *_) -> None:
        module.__dict__.pop("photographs", None)

    def on_train_end(self, trainer: pl.Trainer, module: ImageModule) -> None:
        """Every process has the same weights and counts."""
        facts = torch.stack([p.detach().double().abs().sum() for p in module.parameters()])
        facts = torch.cat([facts, module.skips.double()])
        assert all(torch.equal(row, facts) for row in module.all_gather(facts).reshape(trainer.world_size, -1))


class Snapshots(pl.Callback):
    """Keeps weights, averages and optimizer states before every step, and after the last one."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.counts: list[tuple[int, int]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: ImageModule, *_) -> None:
        optimizers = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
        self.states.append(copy.deepcopy({"weights": dict(module.state_dict()), "optimizers": optimizers}))
        self.counts.append((module.images_seen, int(module.skips[0])))

    on_train_end = on_train_batch_start


RECIPES = {
    "vae": lambda trained, **settings: vae(**settings),
    "gan": gan,
    "l2": lambda trained, **settings: gan(trained, loss="l2", spread_weight=0, **settings),
    "plain_gan": lambda trained, **settings: plain(**settings),
}


def module_of(trained: Trained, recipe: str, steps: int) -> ImageModule:
    return RECIPES[recipe](trained, budget=steps * STEP, validate_every=steps * STEP)


def callback(name: str, **settings: int) -> str:
    """The option that gives train.py a callback of this file."""
    entry = {"class_path": f"tests.training.test_divergence.{name}", "init_args": settings}
    return f"--trainer.callbacks+={json.dumps(entry)}"


def last_error(capsys: pytest.CaptureFixture, command: Callable[[], Any]) -> str:
    """The last line of standard error, behind those on checkpoints and pictures left out; exit code 2."""
    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and len(line) < 450
    return line


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture
def root(trained: Trained, tmp_path: Path) -> Path:
    """A folder for runs of the test's own, on the images and the stage 1 of all tests."""
    (tmp_path / "cache").symlink_to(trained.root / "cache")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/vae").symlink_to(trained.vae)
    return tmp_path


# --- a step that is skipped


@pytest.mark.parametrize("value", [1.5, math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_spoils_its_gradient_and_no_other(value):
    weight = torch.tensor([0.3, 0.0], requires_grad=True)
    update = Update(SimpleNamespace(manual_backward=Tensor.backward), None)
    update.pieces = 1
    update.backward((2 * weight).sum() + value, {})
    expected = torch.full((2,), 2.0 if math.isfinite(value) else math.nan)
    torch.testing.assert_close(weight.grad, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_poisoned_batch_changes_no_weight_no_moment_and_no_average_and_is_counted(trained, recipe):
    seen = Snapshots()
    module = fit(module_of(trained, recipe, 4), portraits(trained), seen, Poison(2 * STEP))
    assert seen.counts == [(0, 0), (STEP, 0), (2 * STEP, 0), (3 * STEP, 1), (4 * STEP, 1)]
    assert_equal_states(seen.states[3], seen.states[2])
    for before, after in ((0, 1), (1, 2), (3, 4)):  # the others move it all
        moved = {
            n for n, v in seen.states[after]["weights"].items() if not torch.equal(v, seen.states[before]["weights"][n])
        }
        assert moved
        assert str(seen.states[after]["optimizers"]) != str(seen.states[before]["optimizers"])
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert module.skips[1] == 0


def test_a_step_of_g_alone_that_is_not_finite_leaves_g_and_its_average(trained, monkeypatch):
    module, seen, objective = module_of(trained, "gan", 3), Snapshots(), gan_file.generator_objective

    def infinite_once(*args: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = objective(*args)
        return loss * (math.inf if module.images_seen == STEP else 1), terms

    monkeypatch.setattr(gan_file, "generator_objective", infinite_once)
    fit(module, portraits(trained), seen)
    assert seen.counts[1:] == [(STEP, 0), (2 * STEP, 1), (3 * STEP, 1)]
    (before, after), d = seen.states[1:3], "discriminator."
    kept = [{n: v for n, v in s["weights"].items() if not n.startswith(d)} for s in (before, after)]
    assert_equal_states(*kept)
    assert_equal_states(before["optimizers"][1], after["optimizers"][1])
    assert any(not torch.equal(v, after["weights"][n]) for n, v in before["weights"].items() if n.startswith(d))


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_a_run_that_goes_on_has_the_same_count_and_weights(root, stage):
    poison = callback("Poison", images=16, steps=2)
    whole = tiny.run(root, stage, "--name", "whole", poison).with_name("whole")
    kill = f"--trainer.callbacks+={json.dumps({'class_path': 'tests.tiny.Kill', 'init_args': {'images': 56}})}"
    with pytest.raises(SystemExit):
        tiny.run(root, stage, "--name", "mine", "--checkpoint_minutes", "0", poison, kill)
    mine = whole.with_name("mine")
    assert tiny.checkpoint(mine)["degrain"]["skipped_steps"] == 2
    tiny.run(root, stage, "--name", "mine", "--ckpt_path", "last", poison)
    one, other = tiny.checkpoint(whole), tiny.checkpoint(mine)
    assert one["degrain"]["skipped_steps"] == 2 and metrics(whole)["train/skipped_steps"] == 2
    for what in ("state_dict", "optimizer_states", "degrain"):
        assert_equal_states(one[what], other[what])
    assert metrics(whole) == metrics(mine)


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_two_processes_skip_together(root, stage):
    several = ["--trainer.devices=2", "--trainer.strategy=ddp_fork_find_unused_parameters_true"]
    tiny.run(root, stage, "--name", "two", *several, "--model.budget=32", callback("Poison", images=16, rank=1))
    checkpoint = tiny.checkpoint(root / "runs/two")
    assert checkpoint["degrain"]["skipped_steps"] == 1 and checkpoint["degrain"]["images_seen"] == 32
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert {int(s["step"]) for o in checkpoint["optimizer_states"] for s in o["state"].values()} == {3}


# --- many of them


def test_many_in_a_row_end_the_run_with_its_last_good_checkpoint(root, capsys):
    command = ["--name", "mine", "--model.budget=400", "--model.validate_every=400", "--trainer.precision=bf16-mixed"]
    poison = callback("Poison", images=64, steps=PATIENCE)
    line = last_error(capsys, lambda: tiny.run(root, "vae", *command, "--checkpoint_minutes=0", poison))
    assert f"{PATIENCE} steps in a row" in line and f"at {64 + PATIENCE * BATCH} images seen" in line
    assert "--model.learning_rate 0.001)" in line and "--trainer.precision bf16-mixed" in line
    folder = root / "runs/mine"
    assert f"{folder / 'last.ckpt'}, has 64: go on from it with --ckpt_path last --model.learning_rate 0.0001" in line
    assert tiny.checkpoint(folder)["degrain"]["images_seen"] == 64  # none of the steps that failed
    lower = ["--ckpt_path", "last", "--model.learning_rate", "0.0001", "--model.budget=80"]
    tiny.run(root, "vae", "--name", "mine", *lower)
    assert tiny.checkpoint(folder)["degrain"]["images_seen"] == 80


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_a_rate_of_1000_ends_in_one_line(root, capsys, stage):
    command = ["--name", "mine", "--model.learning_rate", "1e3", "--model.budget=240", "--model.validate_every=80"]
    line = last_error(capsys, lambda: tiny.run(root, stage, *command))
    assert "--model.learning_rate 1000)" in line
    path = root / "runs/mine/last.ckpt"
    if stage == "vae":
        assert "begin again with another --name" in line and not path.exists()
    else:  # no step is finite after the first, whose weights are, and what they say of held-out images is
        assert f"{path}, has 160: go on from it with --ckpt_path last --model.learning_rate 0.001" in line
        assert all(value.isfinite().all() for value in tiny.checkpoint(path.parent)["state_dict"].values())


def test_a_checkpoint_of_weights_that_are_not_finite_is_not_written(root, capsys):
    poison = callback("Spoil", images=BATCH * 8)
    line = last_error(capsys, lambda: tiny.run(root, "vae", "--name", "mine", "--checkpoint_minutes=0", poison))
    assert "weights are not finite at the end of the budget" in line
    checkpoint = tiny.checkpoint(root / "runs/mine")
    assert checkpoint["degrain"]["images_seen"] == BATCH * 7
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


class Spoil(tiny.AtImages):
    """Makes a weight infinite."""

    def act(self, trainer: pl.Trainer) -> None:
        next(trainer.lightning_module.parameters()).data[0] = math.inf


# --- degenerate images


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
    data = ["--data", "data.datamodule.ImageFolder", "--data.root", folder(tmp_path / "images", kind)]
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


# --- degenerate codes


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


def test_a_fault_is_named():
    module = attached(VAEModule(32, VAEConfig(4, TINY, TINY)))
    module._trainer.callback_metrics = {"val/distortion": torch.tensor(1.0)}
    assert fault(module, validated=True) is None
    module.skips[1] = 2
    assert fault(module, validated=True) is None and "(2) were not finite" in fault(module, validated=False)
    module._trainer.callback_metrics["val/rate"] = torch.tensor(math.inf)
    assert "val/rate is not finite" in fault(module, validated=True)
    next(module.parameters()).data.fill_(math.nan)
    assert "weights are not finite" in fault(module, validated=False)
