"""Reads of a device's values by the host in a training step: each is a wait on an accelerator."""

import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from degrain.data import datamodule
from degrain.models.core import images
from degrain.models.training import image_module
from tests import tiny
from tests.tiny import BATCH
from tests.training.recipes import callback_option

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 8, 4  # of a run; between two logs
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}
METHODS = {Tensor.tolist, Tensor.item, Tensor.cpu, Tensor.numpy, Tensor.__array__}  # on a CPU some call no operator

found: list[list[str]] = []
"""Where values were read, step by step."""


def place() -> str:
    """Return the lines of ours or of the Trainer that read the value, innermost first."""
    frames = [f for f in traceback.extract_stack() if f.filename != __file__ and "/torch/" not in f.filename]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[:-4:-1])


class Operators(TorchDispatchMode):
    """Note the operators that read values; those that backward passes and libraries call, too."""

    def __torch_dispatch__(
        self, operator: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if operator.name().partition(".")[0] in READS:
            found[-1].append(f"{operator.name()}: {place()}")
        return operator(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Note the methods that read values."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in METHODS and not (where := place()).startswith("stream.py"):  # batches are made on the host
            found[-1].append(f"{function.__name__}: {where}")
        return function(*args, **(kwargs or {}))


class Watch(pl.Callback):
    """Note what is read in each training step, its hooks included."""

    def __init__(self) -> None:
        self.modes: list[Any] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.leave()
        found.append([])
        self.modes = [Operators(), Methods()]
        for mode in self.modes:
            mode.__enter__()

    def leave(self) -> None:
        """Stop noting."""
        while self.modes:
            self.modes.pop().__exit__(None, None, None)

    def on_train_epoch_end(self, *_: Any) -> None:
        self.leave()

    def on_validation_start(self, *_: Any) -> None:
        self.leave()


def watched(root: Path, stage: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[list[str]]:
    """Train a tiny run as if its device were an accelerator, and return what was read in each step."""
    for module in (images, image_module):
        monkeypatch.setattr(module, "readable", lambda device: False)
    found.clear()
    watch = callback_option("tests.training.test_waits.Watch")
    few = ("--model.budget", str(STEPS * BATCH), "--model.validate_every", str(STEPS * BATCH))
    logs = ("--trainer.log_every_n_steps", str(EVERY), "--trainer.precision", "bf16-mixed")
    tiny.run(root, stage, "--name", "watched", watch, *few, *logs, *options)
    return found


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("vae", ()),
        ("gan", ("--model.translate", "0.125", "--model.penalty_every", "1", "--model.spread_every", "1")),
        ("gan", ("--data.micro_batch_size", "4")),
        ("l2", ()),
    ],
    ids=str,
)
def test_the_host_reads_nothing_from_the_device_between_two_logs(root, monkeypatch, stage, options):
    steps = watched(root, stage, monkeypatch, *options)
    assert len(steps) == STEPS
    assert {n: read for n, read in enumerate(steps, 1) if n % EVERY and read} == {}
    assert steps[EVERY - 1]  # the bar's losses


def test_training_images_on_the_device_are_read_without_a_wait(root, monkeypatch):
    monkeypatch.setattr(datamodule, "free_memory", lambda device: 2**40)
    steps = watched(root, "vae", monkeypatch)
    assert len(steps) == STEPS
    assert {n: read for n, read in enumerate(steps, 1) if n % EVERY and read} == {}


@pytest.mark.parametrize(
    "read", [bool, float, Tensor.tolist, Tensor.cpu, torch.nonzero], ids=lambda read: read.__name__
)
def test_a_read_is_noted(read):
    found.append([])
    with Operators(), Methods():
        read(torch.ones(1).square())
    assert len(found.pop()) == 1
