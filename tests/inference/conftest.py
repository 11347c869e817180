"""One export of each kind of checkpoint, and a folder in which tests of them make runs of their own."""

from pathlib import Path

import pytest

import sample
from tests.conftest import Trained
from tests.training.recipes import folder_of_runs

KINDS = ("vae", "learned", "gan")


@pytest.fixture(scope="session")
def checkpoints(trained: Trained, learned: Path) -> dict[str, Path]:
    """Return a checkpoint by kind: stage 1, stage 1 with a learned prior, stage 2."""
    return {"vae": trained.vae / "last.ckpt", "learned": learned, "gan": trained.gan / "last.ckpt"}


@pytest.fixture(scope="session")
def exports(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Export each checkpoint."""
    folder = tmp_path_factory.mktemp("exports")
    for kind, checkpoint in checkpoints.items():
        sample.main([str(checkpoint), "--export", f"{folder}/{kind}.safetensors"])
    return {kind: folder / f"{kind}.safetensors" for kind in checkpoints}


@pytest.fixture
def root(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with the cached images and no run, and return it."""
    monkeypatch.chdir(tmp_path)
    return folder_of_runs(trained, tmp_path, stage_1=False)
