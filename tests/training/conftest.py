"""Folders in which tests of the training make runs of their own."""

from pathlib import Path

import pytest

from tests.conftest import Trained
from tests.training.recipes import folder_of_runs


@pytest.fixture
def root(trained: Trained, tmp_path: Path) -> Path:
    """Return a folder with the cached images and the trained run `vae`."""
    return folder_of_runs(trained, tmp_path)


@pytest.fixture
def bare_root(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with the cached images and no run, and return it."""
    monkeypatch.chdir(tmp_path)
    return folder_of_runs(trained, tmp_path, stage_1=False)
