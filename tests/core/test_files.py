"""Atomic replacement of files: errors, kills, the order of syncs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from degrain.models.core.errors import InputError
from degrain.models.core.files import locked, remove_dead_parts, replacing


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
from degrain.models.core.files import replacing
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


# --- locks

HOLDER = """
import sys
from pathlib import Path
from degrain.models.core.files import locked
with locked(Path("lock")) as file:
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds the lock of a file until it is killed or its input ends."""
    search = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, cwd=tmp_path, env=search, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("end", [subprocess.Popen.kill, lambda process: process.communicate()], ids=["kill", "end"])
def test_a_lock_ends_with_its_process(tmp_path, holder, end):
    path = tmp_path / "lock"
    with pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    end(holder)
    holder.wait()
    with locked(path, wait=False):
        assert names(tmp_path) == ["lock"]
    assert names(tmp_path) == []


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    path = tmp_path / "lock"
    ready, done = os.pipe()
    with locked(path):
        if not (child := os.fork()):
            os.close(done)
            os.read(ready, 1)  # until the parent has closed its end
            os._exit(0)
    try:
        with locked(path, wait=False):
            assert path.exists()
    finally:
        os.close(done)
        os.waitpid(child, 0)


def test_parts_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    for name in (".a.part.npz", "values.json", ".mine"):
        (tmp_path / name).write_text("left")
    with replacing(tmp_path / "b.npz") as part:
        part.write_text("half")
        remove_dead_parts(tmp_path)
        assert names(tmp_path) == [".b.part.npz", ".mine", "values.json"]
    assert names(tmp_path) == [".mine", "b.npz", "values.json"]
