"""The package as pip installs it: a wheel, in a folder beside a user's own models/ and data/."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import degrain

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import numpy as np
import data, models  # the user's
import degrain

assert (data.owner, models.owner) == ("user", "user")
model = degrain.load("weights/last.ckpt", device="cpu")
images = model.sample(2, seed=0)
q = model.encode(np.zeros((1, 32, 32, 3), np.uint8))
model.reconstruct(images.denoised.clamp(0, 1)).show().save("panel.png")
print(degrain.__version__, degrain.__file__, *q.mean.shape)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel in a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("degrain", "models", "data", "pretrained"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "controls"))
    for file in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / file, source / file)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    [built] = (source / "dist").iterdir()
    return built


def test_the_wheel_holds_every_module_and_no_weights(wheel):
    assert wheel.name == f"degrain-{degrain.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {"degrain/py.typed", "degrain/models/inference/explore.html", "degrain/models/training/page.html"}
    files |= {str(p.relative_to(ROOT)) for p in (ROOT / "degrain").glob("*.py")}
    for folder in ("models", "data"):
        files |= {f"degrain/{p.relative_to(ROOT)}" for p in (ROOT / folder).rglob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == files


def test_it_works_beside_own_models_and_data(wheel, trained, tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(site)  # what pip does with a wheel of pure Python
    for package in ("models", "data"):
        (work / package).mkdir(parents=True)
        (work / package / "__init__.py").write_text("owner = 'user'")
    (work / "weights").mkdir()
    shutil.copy(trained.gan / "last.ckpt", work / "weights")
    (work / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "script.py"], cwd=work, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.split() == [degrain.__version__, str(site / "degrain/__init__.py"), "1", "4"]
    assert (work / "panel.png").exists()
