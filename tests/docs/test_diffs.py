"""The diffs of CONTRIBUTING.md apply to this revision, each alone and all together, and pass their own tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIFFS = sorted((ROOT / "docs/diffs").glob("*.diff"))
COPIED = ("degrain", "models", "data", "tests/core", "tests/data", "tests/evaluation", "tests/gan", "tests/vae")


def git_apply(folder: Path, *arguments: str | Path) -> None:
    """Run `git apply` in a folder that belongs to no repository, without a step to a parent that is one."""
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    command = ["git", "apply", *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def new_tests(diff: Path) -> list[str]:
    """Return file::name of every test that a diff adds."""
    found, file = [], ""
    for line in diff.read_text().splitlines():
        if line.startswith("+++ b/"):
            file = line.removeprefix("+++ b/")
        elif name := re.match(r"\+def (test_\w+)", line):
            found.append(f"{file}::{name[1]}")
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the package and of the tests that the diffs touch, without what a run leaves."""
    folder = tmp_path_factory.mktemp("diffs") / "degrain"
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_each_diff_applies_alone_and_adds_a_test(copy):
    assert len(DIFFS) == 4
    for diff in DIFFS:
        git_apply(copy, "--check", diff)
        assert new_tests(diff), f"{diff.name} adds no test"


def test_all_diffs_together_pass_their_tests(copy):
    """One process for all: to import PyTorch takes longer than the tests do."""
    git_apply(copy, *DIFFS)
    names = [name for diff in DIFFS for name in new_tests(diff)]
    command = ("-m", "pytest", "-q", "--noconftest", "--import-mode=importlib", "-p", "no:cacheprovider", *names)
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout[-3000:]}{result.stderr[-1000:]}"


def test_every_diff_is_on_the_page():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert [diff.name for diff in DIFFS if f"(docs/diffs/{diff.name})" not in page] == []
