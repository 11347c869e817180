"""Test the cache: built once, completely or not at all, and rebuilt when its source changes."""

import json
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest

from degrain.data import cache
from degrain.data.cache import cached_arrays
from degrain.models.core.errors import InputError


class Numbers:
    """Fill image i with i; count the reads."""

    def __init__(self, count=5, bad=(), version="1"):
        self.name, self.count, self.bad, self.version = "numbers", count, bad, version
        self.reads, self.converted = 0, ()

    def items(self, split):
        return range(self.count)

    def fingerprint(self, split):
        return f"{self.count} {self.version}"

    def read(self, item, size):
        self.reads += 1
        if item in self.bad:
            raise InputError(f"numbers: {item} is bad")
        return {
            "image": np.full((size, size, 3), item % 256, np.uint8),
            "regions": np.full((size, size), item % 7, np.uint8),
        }


def values(arrays):
    return arrays["image"][:, 0, 0, 0].tolist()


def test_builds_once_and_maps(tmp_path, capsys):
    source = Numbers()
    arrays = cached_arrays(source, "train", 4, tmp_path)
    again = cached_arrays(source, "train", 4, tmp_path)
    assert source.reads == 5
    assert isinstance(again["image"], np.memmap)
    assert again["image"].shape == (5, 4, 4, 3) and again["regions"].shape == (5, 4, 4)
    assert values(arrays) == values(again) == [0, 1, 2, 3, 4]
    assert "rebuilding" not in capsys.readouterr().out


def test_each_split_and_size_has_its_folder(tmp_path):
    for split, size in (("train", 4), ("train", 8), ("valid", 4)):
        cached_arrays(Numbers(), split, size, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "numbers-train-4",
        "numbers-train-8",
        "numbers-valid-4",
    ]


def change_source(folder, source):
    source.version = "2"


def change_format(folder, source):
    about = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").write_text(json.dumps(about | {"format": cache.FORMAT - 1}))


def truncate(folder, source):
    with open(folder / "image.npy", "r+b") as file:
        file.truncate(200)


def empty(folder, source):
    (folder / "image.npy").write_bytes(b"")


def remove(folder, source):
    (folder / "regions.npy").unlink()


def shorten(folder, source):
    np.save(folder / "regions.npy", np.zeros((2, 4, 4), np.uint8))


def garble(folder, source):
    (folder / "cache.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change_source, "the source has changed"),
        (change_format, "it has format"),
        *((damage, "it is damaged") for damage in (truncate, empty, remove, shorten, garble)),
    ],
)
def test_stale_or_damaged_is_rebuilt_and_says_why(tmp_path, capsys, damage, reason):
    source = Numbers()
    cached_arrays(source, "train", 4, tmp_path)
    damage(tmp_path / "numbers-train-4", source)
    arrays = cached_arrays(source, "train", 4, tmp_path)
    assert values(arrays) == [0, 1, 2, 3, 4]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cache: ")]
    assert len(printed) == 1 and "numbers-train-4" in printed[0] and reason in printed[0]
    assert source.reads == 10


def test_corrupt_image_is_refused_or_left_out_and_counted(tmp_path, capsys):
    source = Numbers(bad=(1, 3))
    with pytest.raises(InputError, match="numbers: 1 is bad; .*skip_corrupt"):
        cached_arrays(source, "train", 4, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    arrays = cached_arrays(source, "train", 4, tmp_path, skip_corrupt=True)
    assert values(arrays) == [0, 2, 4] and len(arrays["regions"]) == 3
    assert "2 of 5 images (first: 1)" in capsys.readouterr().out
    with pytest.raises(InputError, match="1 is bad"):  # a cache with gaps serves only with skip_corrupt
        cached_arrays(source, "train", 4, tmp_path)
    with pytest.raises(InputError, match="none of its 2 images"):
        cached_arrays(Numbers(2, bad=(0, 1)), "train", 4, tmp_path, skip_corrupt=True)


def test_memory_is_bounded_for_any_count(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "IN_FLIGHT", 6)
    taken, lock, written, ahead = [0], threading.Lock(), [0], [0]

    class Watched(Numbers):
        def read(self, item, size):
            with lock:
                taken[0] += 1
                ahead[0] = max(ahead[0], taken[0] - written[0])
            return super().read(item, size)

    class SlowWriter(cache._NpyWriter):
        def append(self, row):
            time.sleep(0.0005)  # decoding is faster than writing, so the window fills
            super().append(row)
            written[0] += self.file.name.endswith("regions.npy")

    monkeypatch.setattr(cache, "_NpyWriter", SlowWriter)
    arrays = cached_arrays(Watched(300), "train", 2, tmp_path)
    assert values(arrays) == [i % 256 for i in range(300)]
    assert 1 < ahead[0] <= 6 + 1  # the window, and the image being written


class Slow(Numbers):
    """Write a line to a file for each image read."""

    def __init__(self, marks, count=20):
        super().__init__(count)
        self.marks = marks

    def read(self, item, size):
        with open(self.marks, "a") as file:
            file.write(f"{item}\n")
        time.sleep(0.02)
        return super().read(item, size)


def build(marks, directory):
    assert values(cached_arrays(Slow(marks), "train", 4, directory)) == list(range(20))


def kill_in_the_middle(marks, directory):
    source = Slow(marks)
    read = source.read

    def read_and_die(item, size):
        if item == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(item, size)

    source.read = read_and_die
    cached_arrays(source, "train", 4, directory)


def run(target, *args, processes=1):
    context = multiprocessing.get_context("fork")  # spawn would have to import this module by name
    started = [context.Process(target=target, args=args) for _ in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(20)
    return [process.exitcode for process in started]


def test_one_of_several_processes_builds(tmp_path):
    assert run(build, tmp_path / "marks", tmp_path / "cache", processes=3) == [0, 0, 0]
    assert len((tmp_path / "marks").read_text().split()) == 20


def test_a_killed_build_is_not_used(tmp_path):
    directory = tmp_path / "cache"
    assert run(kill_in_the_middle, tmp_path / "marks", directory) == [-signal.SIGKILL]
    assert not (directory / "numbers-train-4").exists()
    source = Numbers(20)
    assert values(cached_arrays(source, "train", 4, directory)) == list(range(20)) and source.reads == 20
    assert not list(directory.glob("*.partial"))
