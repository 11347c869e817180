"""Folders in which tests of the training make runs of their own, and a small network of features."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import wandb
from torch import Tensor, nn

from degrain.models.evaluation.feature_net import FeatureNet
from degrain.models.training import evaluator
from tests.conftest import Trained
from tests.training.recipes import folder_of_runs


class Patches(FeatureNet):
    """The mean colour of four by four patches; it counts the images that it has seen."""

    name, dimension = "patches", 48

    def __init__(self) -> None:
        super().__init__()
        self.anchor, self.seen = nn.Parameter(torch.zeros(())), 0

    def features(self, levels: Tensor) -> Tensor:
        self.seen += len(levels)
        return F.adaptive_avg_pool2d(levels.float() / 255, 4).flatten(1)


@pytest.fixture
def net(monkeypatch) -> Patches:
    """Replace the named network."""
    net = Patches()
    assert net.identity.startswith("patches-")
    net.seen = 0
    monkeypatch.setattr(evaluator, "feature_nets", lambda *_: [net])
    return net


@pytest.fixture
def root(trained: Trained, tmp_path: Path) -> Path:
    """Return a folder with the cached images and the trained run `vae`."""
    return folder_of_runs(trained, tmp_path)


@pytest.fixture
def bare_root(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with the cached images and no run, and return it."""
    monkeypatch.chdir(tmp_path)
    return folder_of_runs(trained, tmp_path, stage_1=False)


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Hide W&B credentials and settings; wandb reads its environment only after a teardown."""
    wandb.teardown()  # first, or the address of another test's W&B process would be put back at the end
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home/netrc"))
    yield
    wandb.teardown()
