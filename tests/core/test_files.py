"""Atomic replacement of files: errors, kills, the order of syncs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from models.core.errors import InputError
from models.core.files import replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "new/values.json"
    for content in ("first", "second"):
        with replacing(path) as part:
            part.write_text(content)
            assert part.parent == path.parent and part.suffix == path.suffix
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content and names(path.parent) == ["values.json"]


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(28, "No space left on device")])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "values.json"
    path.write_text("kept")
    with pytest.raises(ValueError) as caught, replacing(path) as part:  # an InputError is one
        part.write_text("ha")
        raise error
    assert path.read_text() == "kept" and names(tmp_path) == ["values.json"]
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path}: cannot be written (No space left on device); " + (
            "make room there or check permissions"
        )


def test_a_place_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file/values.json", tmp_path / "folder"):
        with pytest.raises(InputError, match=f"{path}: cannot be written"), replacing(path) as part:
            part.write_text("lost")
    assert names(tmp_path) == ["file", "folder"]


KILLED = """
import os, signal
from pathlib import Path
from models.core.files import replacing
with replacing(Path("values.json")) as part:
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_write_is_no_obstacle_to_the_next(tmp_path):
    path = tmp_path / "values.json"
    path.write_text("kept")
    search = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=search)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "kept" and len(names(tmp_path)) == 2
    with replacing(path) as part:  # waits for no one: a lock ends with its process
        part.write_text("whole")
    assert path.read_text() == "whole" and names(tmp_path) == ["values.json"]


def test_contents_are_on_disk_before_the_name_is_and_the_name_after_it(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}")), sync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("renamed"), replace(a, b)))
    with replacing(tmp_path / "values.json") as part:
        part.write_text("whole")
    assert done == [str(part), "renamed", str(tmp_path)]
