"""Reads of a device's values by the host in a training step: each is a wait on an accelerator."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from degrain.data import datamodule
from tests import tiny
from tests.tiny import BATCH
from tests.training.reads import ASKING, Methods, Operators, found
from tests.training.recipes import callback_option

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 8, 4  # of a run; between two logs
MOVED = ("--model.translate", "0.125", "--model.translate_from", "0")


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
    for module in ASKING:
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
        ("gan", (*MOVED, "--model.penalty_every", "1", "--model.spread_every", "1")),
        ("gan", ("--data.micro_batch_size", "4")),
        ("gan", ("--model.feature_weight", "0.5", "--trainer.precision", "32-true")),  # slow where bf16 is emulated
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
