"""The folder of a user who makes mistakes."""

import shutil
from pathlib import Path

import pytest

import sample
from degrain.data.celeba import IMAGES, PARTITION
from tests import tiny
from tests.bad_input.cases import photograph
from tests.conftest import Trained


@pytest.fixture(scope="package")
def template(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a user's folder: a run of each stage and its export, photographs, CelebA, and a config for each."""
    home = tmp_path_factory.mktemp("template")
    for stage in ("vae", "gan"):
        run = home / "runs" / stage
        shutil.copytree(getattr(trained, stage), run, ignore=shutil.ignore_patterns("wandb", "pictures"))
        sample.main([str(run / "last.ckpt"), "--export", str(home / f"{stage}.safetensors")])
    for name in ("train/0.png", "train/1.png", "train/2.jpg", "valid/3.png"):
        photograph(home / "photos" / name, 40)
    lines = [f"{number:06d}.jpg {split}" for number, split in enumerate("0012", start=1)]
    for line in lines:
        photograph(home / "celeba" / IMAGES / line.split()[0], (178, 218))
    (home / "celeba" / PARTITION).write_text("\n".join(lines))
    for stage, write in (("vae", tiny.vae_config), ("gan", tiny.gan_config)):
        config = write(Path())
        config["data"]["init_args"]["cache"] = "../cache"
        tiny.write(home / f"{stage}.yaml", config)
    for name, kind in (("photos", "ImageFolder"), ("celeba", "CelebA")):
        options = {"root": name, "size": 32, "batch_size": tiny.BATCH, "cache": "../own-cache"}
        data = {"class_path": f"degrain.data.datamodule.{kind}", "init_args": options}
        tiny.write(home / f"{name}.yaml", tiny.vae_config(Path()) | {"name": name, "data": data})
    return home


@pytest.fixture
def home(template: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the template and make it the current folder."""
    (tmp_path / "cache").symlink_to(trained.root / "cache")
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "home"))
    return tmp_path / "home"
