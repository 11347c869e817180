"""Steps that are not finite: what they leave as it was, and when a run ends for them."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from degrain.models.training import VAEModule, adversarial
from degrain.models.training.divergence import PATIENCE, fault
from degrain.models.training.image_module import ImageModule
from degrain.models.vae.network import VAEConfig
from tests import tiny
from tests.tiny import BATCH, assert_equal_states
from tests.training.recipes import STEP, TINY, attached, callback_option, fit, metrics, module_of, portraits


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


class Spoil(tiny.AtImages):
    """Makes a weight infinite."""

    def act(self, trainer: pl.Trainer) -> None:
        next(trainer.lightning_module.parameters()).data[0] = math.inf


RECIPES = ("vae", "gan", "l2", "plain_gan")


def callback(name: str, **settings: int) -> str:
    """Return the option that gives train.py a callback of this file."""
    return callback_option(f"tests.training.test_divergence.{name}", **settings)


def last_error(capsys: pytest.CaptureFixture, command: Callable[[], Any]) -> str:
    """The last line of standard error, behind those on checkpoints and pictures left out; exit code 2."""
    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and len(line) < 450
    return line


# --- a step that is skipped


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
    module, seen, objective = module_of(trained, "gan", 3), Snapshots(), adversarial.generator_objective

    def infinite_once(*args: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = objective(*args)
        return loss * (math.inf if module.images_seen == STEP else 1), terms

    monkeypatch.setattr(adversarial, "generator_objective", infinite_once)
    fit(module, portraits(trained), seen)
    assert seen.counts[1:] == [(STEP, 0), (2 * STEP, 1), (3 * STEP, 1)]
    (before, after), d = seen.states[1:3], "discriminator."
    kept = [{n: v for n, v in s["weights"].items() if not n.startswith(d)} for s in (before, after)]
    assert_equal_states(*kept)
    assert_equal_states(before["optimizers"][1], after["optimizers"][1])
    assert any(not torch.equal(v, after["weights"][n]) for n, v in before["weights"].items() if n.startswith(d))


def test_a_step_of_d_that_is_not_finite_leaves_g_and_its_average_too(trained, monkeypatch):
    module, seen, objective = module_of(trained, "gan", 3), Snapshots(), adversarial.discriminator_objective

    def infinite_once(*args: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = objective(*args)
        return loss * (math.inf if module.images_seen == STEP else 1), terms

    monkeypatch.setattr(adversarial, "discriminator_objective", infinite_once)
    fit(module, portraits(trained), seen)
    assert seen.counts[1:] == [(STEP, 0), (2 * STEP, 1), (3 * STEP, 1)]
    assert_equal_states(seen.states[2], seen.states[1])


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_a_run_that_goes_on_has_the_same_count_and_weights(root, stage):
    poison = callback("Poison", images=16, steps=2)
    whole = tiny.run(root, stage, "--name", "whole", poison).with_name("whole")
    kill = callback_option("tests.tiny.Kill", images=56)
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
    several = ["--trainer.devices=2", "--trainer.strategy=ddp_fork"]
    tiny.run(root, stage, "--name", "two", *several, "--model.budget=32", callback("Poison", images=16, rank=1))
    checkpoint = tiny.checkpoint(root / "runs/two")
    assert checkpoint["degrain"]["skipped_steps"] == 1 and checkpoint["degrain"]["images_seen"] == 32
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert {int(s["step"]) for o in checkpoint["optimizer_states"] for s in o["state"].values()} == {3}


# --- many of them


@pytest.mark.parametrize(("stage", "rate", "tenth"), [("vae", "0.001", "0.0001"), ("gan", "0.0004", "4e-05")])
def test_many_in_a_row_end_the_run_with_its_last_good_checkpoint(root, capsys, stage, rate, tenth):
    command = ["--name", "mine", "--model.budget=400", "--model.validate_every=400", "--trainer.precision=bf16-mixed"]
    poison = callback("Poison", images=64, steps=PATIENCE)
    line = last_error(capsys, lambda: tiny.run(root, stage, *command, "--checkpoint_minutes=0", poison))
    assert f"{PATIENCE} steps in a row" in line and f"at {64 + PATIENCE * BATCH} images seen" in line
    assert f"--model.learning_rate {rate})" in line and "--trainer.precision bf16-mixed" in line
    folder = root / "runs/mine"
    assert f"{folder / 'last.ckpt'}, has 64: go on from it with --ckpt_path last --model.learning_rate {tenth}" in line
    kept = tiny.checkpoint(folder)
    assert kept["degrain"]["images_seen"] == 64  # none of the steps that failed
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    lower = ["--ckpt_path", "last", "--model.learning_rate", tenth, "--model.budget=80"]
    tiny.run(root, stage, "--name", "mine", *lower)
    assert tiny.checkpoint(folder)["degrain"]["images_seen"] == 80


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_a_rate_of_1000_ends_in_one_line(root, capsys, stage):
    command = ["--name", "mine", "--model.learning_rate", "1e3", "--model.budget=240", "--model.validate_every=80"]
    line = last_error(capsys, lambda: tiny.run(root, stage, *command))
    assert "--model.learning_rate 1000)" in line
    # of stage 2 no step is finite after the first, whose weights the average takes over
    assert "begin again with another --name" in line and not (root / "runs/mine/last.ckpt").exists()


def test_a_checkpoint_of_weights_that_are_not_finite_is_not_written(root, capsys):
    poison = callback("Spoil", images=BATCH * 8)
    line = last_error(capsys, lambda: tiny.run(root, "vae", "--name", "mine", "--checkpoint_minutes=0", poison))
    assert "weights are not finite at the end of the budget" in line
    checkpoint = tiny.checkpoint(root / "runs/mine")
    assert checkpoint["degrain"]["images_seen"] == BATCH * 7
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


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
