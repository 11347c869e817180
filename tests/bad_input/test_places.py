"""Bad places to write to: one line answers each, and nothing is changed."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from degrain.models.inference.writing import save_single
from tests.bad_input.cases import LAST, PHOTOS, RESUME, VAE, Case, everything, refused
from tests.bad_input.spoil import cut, denied, folders, full_disk, holding, small_files, without

CASES = {
    "two runs of one name": Case("train fit -c vae.yaml", "runs/vae exists: go on with it by --ckpt_path last, or"),
    "a run that only began": Case(
        "train fit -c vae.yaml", "runs/vae exists: go on with it by --ckpt_path last, or", without(LAST)
    ),
    "runs that are a file": Case(f"{VAE} --runs vae.yaml", r"vae.yaml/new/.*: cannot be written \(.*\); make room"),
    "a damaged metrics.json": Case(
        "train test -c vae.yaml --evaluation.off true",
        "runs/vae/metrics.json: not as degrain writes it .*; move it away",
        cut("runs/vae/metrics.json"),
    ),
    "a full disk at the first file of a run": Case(
        VAE, r"runs/new/config.yaml: cannot be written \(No space left on device\); make room", fails=full_disk
    ),
    "a full disk at a checkpoint": Case(
        f"{RESUME} --checkpoint_minutes 0",
        rf"{LAST}: cannot be written \(.*\); make room",
        fails=partial(small_files, 20_000),
        begun=True,
    ),
    "a full disk at the cache": Case(
        f"{PHOTOS} --data.cache mine", "cannot build mine/.*No space left.*check space", fails=full_disk
    ),
    "a full disk at samples": Case(
        f"sample {LAST} --n 1 --out new.png", r"new.png: cannot be written \(No space.*make room", fails=full_disk
    ),
    "a full disk at single images": Case(
        f"sample {LAST} --n 4 --out photos/train/ --overwrite true",
        r"photos/train/: cannot be written \(File too large\); make room",
        lambda: save_single(np.zeros((8, 8, 3), np.uint8), Path("photos/train/000000.png")),
        fails=partial(small_files, 100),
    ),
    "a full disk at an export": Case(
        f"sample {LAST} --export vae.safetensors --overwrite true",
        "vae.safetensors: cannot be written .No space left on device.; make room",
        fails=full_disk,
    ),
    "runs that may not be written": Case(
        VAE, r"runs/new/.*: cannot be written \(Permission denied\).*permissions", fails=partial(denied, "runs")
    ),
    "a cache that may not be written": Case(
        f"{PHOTOS} --data.cache mine",
        "cannot build mine/.*Permission denied.*permissions",
        folders("mine"),
        fails=partial(denied, "mine"),
    ),
    "samples that may not be written": Case(
        f"sample {LAST} --n 1 --out mine/a.png",
        r"mine/a.png: cannot be written \(Permission denied\)",
        folders("mine"),
        fails=partial(denied, "mine"),
    ),
    "single images that may not be written": Case(
        f"sample {LAST} --n 1 --out mine/",
        r"mine/: cannot be written \(Permission denied\)",
        folders("mine"),
        fails=partial(denied, "mine"),
    ),
    "samples below a file": Case(f"sample {LAST} --n 1 --out vae.yaml/s.png", "vae.yaml/s.png: cannot be written"),
    "single images below a file": Case(f"sample {LAST} --n 1 --out vae.yaml/s/", "vae.yaml/s/: cannot be written"),
    "samples that exist": Case(
        f"sample {LAST} --out there.png",
        "there.png exists; choose another --out or pass --overwrite true",
        holding("there.png", b"mine"),
    ),
    "samples that exist by default": Case(
        f"sample {LAST}", "samples.png exists; choose another --out", holding("samples.png", b"mine")
    ),
    "arrays that exist": Case(f"sample {LAST} --out a.npz", "a.npz exists; choose", holding("a.npz", b"mine")),
    "a folder that holds something": Case(f"sample {LAST} --out photos", "photos exists; choose another --out"),
    "an export that exists": Case(
        f"sample {LAST} --export gan.safetensors", "gan.safetensors exists; choose another --export"
    ),
    "an export that exists, and samples": Case(
        f"sample {LAST} --export gan.safetensors --out new.png", "gan.safetensors exists; choose another --export"
    ),
    "an export onto a folder": Case(
        f"sample {LAST} --export dir.safetensors", "dir.safetensors: cannot be written", folders("dir.safetensors")
    ),
    "what exists, with a wrong row": Case(
        f"sample {LAST} --row denoised --out photos --overwrite true", "is of stage vae and has mean, std, sample"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_changes_nothing(home, capsys, name):
    CASES[name].check(home, capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="for root permissions do not hold; above they are replaced")
@pytest.mark.parametrize(
    ("place", "mode", "command"),
    [
        ("photos/train/1.png", 0o000, PHOTOS),
        ("photos/train", 0o000, PHOTOS),
        (LAST, 0o000, f"sample {LAST}"),
        ("runs", 0o500, VAE),
        ("photos/valid", 0o500, f"sample {LAST} --n 1 --out photos/valid/a.png"),
    ],
)
def test_permissions_that_hold_are_one_line(home, capsys, place, mode, command):
    before = everything(home.parent)
    Path(place).chmod(mode)
    try:
        assert f"{place}" in (line := refused(capsys, command)) and "Permission denied" in line
    finally:
        Path(place).chmod(0o700)
    assert everything(home.parent) == before
