"""Test the splits of a folder: what is held out is never trained on, and what cannot be told is refused."""

import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from degrain.data import held_out
from degrain.data.files import unit_hash
from degrain.data.folder import FolderSource
from degrain.data.held_out import divide
from degrain.data.splits import split_folders, split_of
from degrain.models.core.errors import InputError
from tests.data.test_sources import fill, refused

SPLITS = ("train", "valid", "test")


def splits(root, **options):
    """Return the images of each split; none if it is refused."""
    found = {}
    for split in SPLITS:
        try:
            found[split] = list(FolderSource(root, **options).items(split))
        except InputError:
            found[split] = []
    return found


def many(folder, count, start=0):
    return [f"{folder}{start + i:03}.png" for i in range(count)]


# --- names


@pytest.mark.parametrize(
    "split, names",
    [
        ("train", "train Training TRAIN train_set trainset train2017 images_train train-images trainA Train_Data"),
        ("valid", "valid val Val validation Validation_Set dev VAL2017 valset eval"),
        ("test", "test Testing test_images testset Test1 held-out holdout"),
    ],
)
def test_usual_names_are_splits(split, names):
    assert {split_of(name) for name in names.split()} == {(split, True)}


def test_other_names_are_not():
    for name in ("cats", "valley", "contest", "attest", "trainer", "latest", "device", "train_test", "images", "1"):
        assert split_of(name) is None, name
    assert split_of("train_station") == ("train", False) and split_of("DIV2K_valid_HR") == ("valid", False)


@pytest.mark.parametrize(
    "folders",
    [
        {"train": "train", "val": "valid", "test": "test"},
        {"train/cat": "train", "train/dog": "train", "val/cat": "valid", "test/dog": "test"},
        {"images/train": "train", "images/val": "valid"},
        {"cat/train": "train", "dog/train": "train", "cat/test": "test"},
        {"train/train": "train", "test/test": "test"},  # an archive unpacked into a folder of its name
        {"trains": "train", "vals": "valid", "tests": "test"},
        {"DIV2K_train_HR": "train", "DIV2K_valid_HR": "valid"},
        {"train/cat": "train", "train/test": "train", "test/cat": "test", "test/train": "test"},  # classes
    ],
)
def test_splits_lie_above_or_below_other_folders(folders):
    assert split_folders(folders) == folders


@pytest.mark.parametrize("folders", [[""], ["cats", "dogs"], ["train_station", "bus_station"], ["a/x", "b"]])
def test_folders_of_classes_are_no_splits(folders):
    assert split_folders(folders) is None


@pytest.mark.parametrize(
    "folders, said",
    [
        (["train", "val", "validation"], "val/ and validation/ both name the valid split; keep one"),
        (["Train", "train"], "both name the train split"),
        (["trainA", "trainB", "testA"], "trainA/ and trainB/ both name"),
        (["", "train", "test"], "images in the folder itself are of none; put every"),
        (["cats", "dogs", "test"], "test/ names a split, but images in cats/ are of none; put every"),
        (["faces", "faces_test"], "faces_test/ names a split, but images in faces/"),
        (["train/train", "train/val", "test"], "train/val/ names two splits; put every"),
        (["train/cat", "train/test"], "train/test/ names two splits"),
    ],
)
def test_what_cannot_be_told_is_refused(folders, said):
    with pytest.raises(InputError, match=said):
        split_folders(folders)


# --- what is trained on


def test_training_and_test_images_alone_hold_out_a_share_of_the_training_images(tmp_path):
    fill(tmp_path, many("train/", 30) + many("test/", 10))
    found = splits(tmp_path, valid_share=0.2)
    assert found["test"] == many("test/", 10) and sorted(found["train"] + found["valid"]) == many("train/", 30)
    assert 0 < len(found["valid"]) < 15
    assert "0.2 of the images to train on is held out" in FolderSource(tmp_path, valid_share=0.2).remarks()[0]


@pytest.mark.parametrize("folder, least", [("", 1), ("train/", 0)])
def test_few_images_are_held_out_too(tmp_path, folder, least):
    fill(tmp_path, many(folder, 20) + (many("test/", 3) if folder else []))
    found = splits(tmp_path, valid_share=0.03)
    assert len(found["valid"]) == 1 and len(found["train"]) == 19 - least
    assert len(found["test"]) == (3 if folder else 1)


def test_held_out_share_is_stable_when_files_are_added(tmp_path):
    fill(tmp_path, many("", 100))
    before = splits(tmp_path, valid_share=0.3)
    out = {*before["valid"], *before["test"]}
    assert 15 < len(out) < 45 and sorted([*out, *before["train"]]) == sorted(os.listdir(tmp_path))
    fill(tmp_path, many("more/", 20))
    after = splits(tmp_path, valid_share=0.3)
    assert set(before["valid"]) <= set(after["valid"]) and set(before["test"]) <= set(after["test"])


def test_held_out_folders_alone_can_be_measured_on_but_not_trained_on(tmp_path):
    fill(tmp_path, many("val/", 3) + many("test/", 4))
    assert splits(tmp_path) == {"train": [], "valid": many("val/", 3), "test": many("test/", 4)}
    assert "it has folders to hold out alone; add a folder train/" in refused(lambda: FolderSource(tmp_path))
    shutil.rmtree(tmp_path / "val")
    assert splits(tmp_path) == {"train": [], "valid": [], "test": many("test/", 4)}


def test_lists_of_splits_and_folders_of_masks_are_mentioned(tmp_path):
    fill(tmp_path, many("photos/", 3) + many("masks/", 2, start=10))
    (tmp_path / "test.txt").write_text("photos/000.png")
    lines = FolderSource(tmp_path).remarks()
    assert "not read: test.txt; folders alone are splits" in lines
    assert "used are 2 images in masks/, 3 images in photos/" in lines


def test_a_link_never_brings_a_held_out_image_into_training(tmp_path):
    fill(tmp_path, many("train/", 4) + many("test/", 2))
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid/3.png").symlink_to("../train/003.png")  # a usual way to hold some out
    (tmp_path / "train/all").symlink_to("../test")
    source = FolderSource(tmp_path)
    assert source.items("train") == many("train/", 3) and source.items("valid") == ["valid/3.png"]
    assert source.items("test") == many("test/", 2)
    assert "3 links to images that are there already are left out" in source.remarks()


# --- choose on some, report on others


def test_held_out_images_are_divided_by_their_bytes(tmp_path):
    fill(tmp_path, ["train/0.png", *many("valid/", 200)])
    found = splits(tmp_path)
    numbers = {name: unit_hash((tmp_path / name).read_bytes()) for name in many("valid/", 200)}
    assert found["valid"] == [name for name in numbers if numbers[name] < 0.3]
    assert sorted(found["valid"] + found["test"]) == many("valid/", 200) and 40 < len(found["valid"]) < 80
    for name in numbers:  # the same bytes elsewhere, under another name
        place = tmp_path / "moved/valid" / ("a" if int(name[-7:-4]) % 2 else "b") / f"new{name[-7:]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).rename(place)
    moved = splits(tmp_path)
    assert {name[-7:] for name in moved["valid"]} == {name[-7:] for name in found["valid"]}
    (line,) = [line for line in FolderSource(tmp_path).remarks() if "hash of" in line]
    assert "the 200 held out are divided by a hash of their bytes" in line


def test_equal_images_lie_on_one_side_and_no_side_is_empty():
    assert divide([0.9, 0.5, 0.9]) == [False, True, False]
    assert divide([0.1, 0.2, 0.1]) == [True, False, True]
    assert divide([0.7]) == divide([0.1]) == [True]
    assert divide([0.1, 0.4, 0.2]) == [True, False, True] and divide([]) == []


def test_a_person_is_held_out_and_divided_as_a_whole(tmp_path):
    names = many("", 120)
    fill(tmp_path, names)
    people = {name: i % 30 for i, name in enumerate(names)}
    (tmp_path / "identity_CelebA.txt").write_text("".join(f"{n[:3]}.jpg {who}\n" for n, who in people.items()))
    found = splits(tmp_path, valid_share=0.5)
    assert all(found.values()) and sum(map(len, found.values())) == 120
    sides = {split: {people[name] for name in found[split]} for split in SPLITS}
    assert sum(map(len, sides.values())) == 30  # nobody is in two
    lines = FolderSource(tmp_path, valid_share=0.5).remarks()
    assert any("by a hash of identity (0 without one" in line for line in lines)
    (tmp_path / "identity_CelebA.txt").write_text("000.jpg 1\noops\n")
    assert "identity_CelebA.txt, line 2: not 'NAME IDENTITY'" in refused(lambda: FolderSource(tmp_path))


def test_held_out_files_are_read_once(tmp_path, monkeypatch):
    fill(tmp_path / "root", ["train/0.png", *many("valid/", 20)])
    before = splits(tmp_path / "root", memory=tmp_path / "cache")
    read = Counter()
    monkeypatch.setattr(held_out, "read_file", lambda path: read.update([path.name]) or path.read_bytes())
    assert splits(tmp_path / "root", memory=tmp_path / "cache") == before and not read
    assert FolderSource(tmp_path / "root").fingerprint("valid") and not read
    (memory,) = (tmp_path / "cache").glob("*-held-out.json")
    memory.write_text(json.dumps({"fingerprint": 1}))
    assert splits(tmp_path / "root", memory=tmp_path / "cache") == before and read
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file")  # no place to write: computed each time
    assert splits(tmp_path / "root", memory=tmp_path / "cache") == before


def test_the_two_sides_have_fingerprints_of_all_that_is_held_out(tmp_path):
    fill(tmp_path, ["train/0.png", *many("valid/", 6)])
    before = [FolderSource(tmp_path).fingerprint(split) for split in SPLITS]
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "valid/000.png")
    after = [FolderSource(tmp_path).fingerprint(split) for split in SPLITS]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False]
    assert len({*before, *after}) == 5
