"""A batch in parts, over processes or in pieces, equals the whole: losses, weights, averages, optimizer states, values.

Parts add up in another order, so equal is up to rounding. In float32 that is 1e-7 of a gradient, which Adam, dividing
by the gradient's own size, makes a whole step of where the gradient is nothing but rounding. In float64 such gradients
are far below Adam's epsilon, and a few steps leave 1e-9 of any value: a term that is only nearly right cannot hide.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import LatentDraws
from degrain.models.core.randomness import noise_of_images
from degrain.models.inference import pipeline, variations
from degrain.models.training import image_module
from degrain.models.training.image_module import ImageModule, number_of_pieces
from degrain.models.training.trainer_options import refuse_division
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.mixture import Mixture
from tests import tiny
from tests.conftest import Trained
from tests.training.recipes import STEP, Record, fit, gan, metrics, plain, portraits, vae

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New tensors, what networks end in, pixels, and noise of images."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    photographs = ImageModule.photographs
    monkeypatch.setattr(ImageModule, "photographs", lambda module, batch: photographs(module, batch).double())
    for user in (image_module, pipeline, variations):
        monkeypatch.setattr(user, "noise_of_images", lambda *key: noise_of_images(*key).double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- in pieces

RECIPES = {
    "vae": lambda trained, **clock: vae(**clock),
    "vae, density": lambda trained, **clock: vae(rate_warmup=0.0, likelihood="density", **clock),
    "vae, faithful": lambda trained, **clock: vae(gradient="faithful", **clock),
    "gan": lambda trained, **clock: gan(trained, **clock),
    "gan, moved": lambda trained, **clock: gan(trained, translate=0.2, translate_from=0, **clock),
    "l2": lambda trained, **clock: gan(trained, loss="l2", spread_weight=0.0, **clock),
    "plain gan": lambda trained, **clock: plain(loss="classic", **clock),
}


def made(trained: Trained, recipe: str, steps: int) -> ImageModule:
    return RECIPES[recipe](trained, budget=steps * STEP, validate_every=steps * STEP)


def assert_close(one: Any, other: Any, rtol: float = 1e-9, where: str = "") -> None:
    """Nested containers of numbers and tensors agree, values to rtol of themselves and of 1e-3."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_close(one[name], other[name], rtol, f"{where}/{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, rtol, f"{where}/{i}")
    elif isinstance(one, Tensor | float | int):
        a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (one, other))
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-3 * rtol, msg=lambda said: f"{where}: {said}")
    else:
        assert one == other, where


@pytest.mark.parametrize("recipe", RECIPES)
def test_pieces_equal_the_whole_batch(trained, float64, recipe):
    records, modules = [Record(), Record()], []
    for record, most in zip(records, (None, 5), strict=True):  # four pieces of 4
        module = made(trained, recipe, 4)
        modules.append(fit(module, portraits(trained, micro_batch_size=most), record))
    batch = {"image": torch.zeros(STEP, 3, 32, 32)}
    assert len(modules[1].pieces(batch)) == 4 and modules[1].images_seen == 4 * STEP
    assert_close(*(record.steps for record in records), where="steps")
    assert_close(*(dict(module.state_dict()) for module in modules), where="weights")
    states = ([o.state_dict() for o in module.trainer.optimizers] for module in modules)
    assert_close(*states, where="optimizers")
    assert_close(*(module.trainer.callback_metrics for module in modules), where="values")


@pytest.mark.parametrize("settings", [{"free_bits": 0.3}, {"regulariser": "moments"}, {"regulariser": "mmd"}], ids=str)
def test_a_loss_that_couples_the_images_of_a_batch_is_not_taken_in_pieces(trained, settings):
    module = vae(**settings)
    with pytest.raises(InputError, match=r"couples the images of a batch.*micro_batch_size \(5\)") as caught:
        refuse_division(module, portraits(trained, micro_batch_size=5), processes=2)
    assert "\n" not in str(caught.value)
    refuse_division(module, portraits(trained, micro_batch_size=8), processes=2)  # one piece each is the whole
    refuse_division(vae(), portraits(trained, micro_batch_size=5), processes=2)
    with pytest.raises(InputError, match=f"batch_size {STEP}: choose a multiple of the 3 processes"):
        refuse_division(vae(), portraits(trained), processes=3)


@pytest.mark.parametrize("recipe", ["vae", "gan"])
def test_pieces_have_the_gradients_of_the_whole_in_half_precision_too(trained, recipe):
    norms = []
    for most in (None, 4):
        module = fit(made(trained, recipe, 1), portraits(trained, micro_batch_size=most), precision="bf16-mixed")
        states = [state for o in module.trainer.optimizers for state in o.state.values()]
        norms.append(torch.stack([state["exp_avg_sq"].norm() for state in states]).sqrt())  # of each weight's gradient
    assert norms[0].count_nonzero() > 0.6 * len(norms[0])  # layers that end in 0 pass nothing on at first
    assert ((norms[0] - norms[1]).abs() < 0.1 * norms[0] + 0.01 * norms[0].max()).all()


@pytest.mark.parametrize("recipe", ["vae", "gan"])
def test_a_step_in_quarters_keeps_less_than_half_of_the_tensors_for_its_gradient(trained, recipe):
    peaks = [
        kept_at_once(lambda most=most: fit(made(trained, recipe, 1), portraits(trained, micro_batch_size=most)))
        for most in (None, 4)
    ]
    assert peaks[1] < 0.4 * peaks[0]


def kept_at_once(train: Callable[[], Any]) -> int:
    """The most values that autograd keeps for backward passes at a time, over images: of tensors of a batch alone."""
    now, most = 0, 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, most
            self.tensor, self.size = tensor, tensor.numel() if tensor.ndim == 4 and not tensor.is_leaf else 0
            now += self.size
            most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            now -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        train()
    return most


@pytest.mark.parametrize(("images", "most", "pieces"), [(16, 16, 1), (16, 99, 1), (16, 5, 4), (7, 3, 7), (12, 5, 3)])
def test_pieces_are_equal_and_as_few_as_can_be(images, most, pieces):
    assert number_of_pieces(images, most) == pieces


# --- over processes


class Losses(pl.Callback):
    """Appends the values of every step to rank0.jsonl and so on.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer: pl.Trainer, module: ImageModule, *_) -> None:
        values = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        with (self.folder / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(values | {"images_seen": module.images_seen}) + "\n")


def losses(root: Path, name: str, rank: int = 0) -> list[dict[str, float]]:
    """The values of every step of a run, as a process has them."""
    return [json.loads(line) for line in (root / name / f"rank{rank}.jsonl").read_text().splitlines()]


def short(root: Path, stage: str, name: str, *options: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Four steps, two validations: the checkpoint and metrics.json."""
    (root / name).mkdir()
    callback = {"class_path": "tests.training.test_parallel.Losses", "init_args": {"folder": str(root / name)}}
    clock = ["--model.budget=32", "--model.validate_every=16"]
    tiny.run(root, stage, "--name", name, *clock, f"--trainer.callbacks={json.dumps([callback])}", *options)
    folder = root / "runs" / name
    return tiny.checkpoint(folder), metrics(folder)


NO_WARMUP, TWO = "--model.rate_warmup=0", ["--trainer.devices=2", "--trainer.strategy=ddp_fork"]
PARALLEL = {  # the stage, options of both runs, pieces, and the strategy: losses that couple the images are not cut
    "vae": ("vae", [NO_WARMUP], ["--data.micro_batch_size=2"], "ddp_fork"),  # 2 x 2 pieces of 2
    "free bits": ("vae", ["--model.free_bits=0.3", NO_WARMUP], [], "ddp_fork"),
    "moments": ("vae", ["--model.regulariser=moments", NO_WARMUP], [], "ddp_fork"),
    "mmd": ("vae", ["--model.regulariser=mmd", NO_WARMUP], [], "ddp_fork"),
    "gan, features": ("gan", ["--model.feature_weight=0.5"], ["--data.micro_batch_size=2"], "ddp_fork"),
    "gan": ("gan", [], ["--data.micro_batch_size=2"], "ddp_fork_find_unused_parameters_false"),
}


@pytest.mark.parametrize("case", PARALLEL)
def test_two_processes_in_pieces_equal_one(root, float64, small_levels, case):
    stage, options, pieces, strategy = PARALLEL[case]
    one, values = short(root, stage, "one", *options)
    several = ["--trainer.devices=2", f"--trainer.strategy={strategy}", *pieces]
    two, values_of_two = short(root, stage, "two", *options, *several)
    assert one["degrain"]["images_seen"] == 32 and one["degrain"]["skipped_steps"] == 0
    for what in ("degrain", "state_dict", "optimizer_states"):
        assert_close(one[what], two[what], where=what)
    assert any(name.startswith("val/") for name in values) and len(losses(root, "one")) == 4
    assert_close(values, values_of_two, where="metrics.json")
    for rank in (0, 1):
        assert_close(losses(root, "one"), losses(root, "two", rank), where=f"losses of process {rank}")


def test_the_first_process_alone_learns_the_prior_and_both_have_it(root, float64, monkeypatch):
    def learn(prior: LatentPrior, draws: LatentDraws, *_: int) -> dict[str, float]:
        (root / f"learned by {os.getpid()}").touch()
        prior.mixture = Mixture(2, draws.z.shape[-1])
        prior.mixture.means.copy_(draws.z[20, :, :])  # both views of a photograph
        prior.mixture.weights.copy_(draws.log_q[21].softmax(0))
        return {}

    monkeypatch.setattr(LatentPrior, "learn", learn)
    (one, values), (two, values_of_two) = short(root, "vae", "one"), short(root, "vae", "two", *TWO)
    assert "prior.mixture.means" in one["state_dict"] and "val/rate_learned" in values
    assert_close(one["state_dict"], two["state_dict"], where="state_dict")
    assert_close(values, values_of_two, where="metrics.json")
    assert len(list(root.glob("learned by *"))) == 2  # in each run one


# --- as processes


def launched(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`train.py fit` of stage 1 on two processes that Lightning starts; it must end."""
    config = tiny.write(root / "c.yaml", tiny.vae_config(root) | {"name": "mine"})
    command = [sys.executable, "train.py", "fit", "-c", str(config), "--trainer.devices=2", "--checkpoint_minutes=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)


def sent(images: int, name: str, rank: int) -> str:
    """The option that sends one process a signal at so many images seen."""
    callback = {"class_path": "tests.tiny.Send", "init_args": {"images": images, "name": name, "rank": rank}}
    return f"--trainer.callbacks={json.dumps([callback])}"


def test_a_signal_to_one_process_stops_both_and_a_dead_one_ends_the_other(root):
    folder = root / "runs/mine"
    stopped = launched(root, sent(24, "SIGTERM", rank=1))
    assert stopped.returncode == 143
    assert [line for line in stopped.stderr.splitlines() if "stopped; " in line] == stopped.stderr.splitlines()
    assert len(stopped.stderr.splitlines()) == 1  # the first process alone speaks
    assert len([line for line in stopped.stdout.splitlines() if line.startswith("training   0%")]) == 1
    assert tiny.checkpoint(folder)["degrain"]["images_seen"] == 24

    killed = launched(root, sent(40, "SIGKILL", rank=1), "--ckpt_path=last")
    assert killed.returncode in (2, -signal.SIGKILL)
    if killed.returncode == 2:  # it found out before Lightning's watch over the processes that it has started did
        [line] = killed.stderr.splitlines()
        assert line.startswith("error: another process of this run has ended") and "--ckpt_path last" in line
    assert tiny.checkpoint(folder)["degrain"]["images_seen"] == 32  # the last that was whole
