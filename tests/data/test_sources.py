"""Test folders and CelebA: their images and refusals."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from degrain.data.cache import cached_arrays
from degrain.data.celeba import ARCHIVE, IMAGES, PARTITION, CelebASource
from degrain.data.folder import FolderSource
from degrain.models.core.errors import InputError

SHARED = Path(__file__).parents[2] / "shared"


def noise(height, width, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.squeeze(pixels)).save(path, **options)


# --- a folder


def fill(root, names):
    for seed, name in enumerate(names):
        save(root / name, noise(8, 8, seed))


def test_folder_is_recursive_sorted_and_sees_images_only(tmp_path):
    fill(tmp_path, ["b/2.PNG", "a.jpg", "b/1.webp", "c.jpeg", ".hidden.png", ".trash/d.png"])
    (tmp_path / "notes.txt").write_text("no image")
    source = FolderSource(tmp_path, valid_share=1e-9)
    assert source.items("train") == ["a.jpg", "b/1.webp", "b/2.PNG", "c.jpeg"]


def test_folder_fingerprint_sees_every_change(tmp_path):
    fill(tmp_path, ["train/1.png", "train/2.png", "valid/3.png"])
    seen = [FolderSource(tmp_path).fingerprint("train")]
    assert FolderSource(tmp_path).fingerprint("train") == seen[0]
    assert FolderSource(tmp_path, crop="none").fingerprint("train") not in seen
    os.utime(tmp_path / "train/1.png", ns=(1, 1))
    seen.append(FolderSource(tmp_path).fingerprint("train"))
    (tmp_path / "train/2.png").rename(tmp_path / "train/4.png")
    seen.append(FolderSource(tmp_path).fingerprint("train"))
    assert len(set(seen)) == 3


def test_names_tell_roots_and_crops_apart(tmp_path):
    for root in ("a/faces", "b/faces"):
        fill(tmp_path / root, ["1.png"])
    roots, crops = ("a/faces", "b/faces"), ("none", "c128")
    names = {FolderSource(tmp_path / root, crop).name for root in roots for crop in crops}
    assert len(names) == 4 and all(name.startswith("folder-faces-") for name in names)


def refused(source, split="train", size=8):
    """Read the whole split; return the one line with which it is refused."""
    with pytest.raises(InputError) as caught:
        source = source()
        for item in source.items(split):
            source.read(item, size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- CelebA


def celeba(root, count=6, images=IMAGES):
    """Write the official layout with 178x218 images, two of each split."""
    lines = [f"{i:06}.jpg {(i - 1) // 2}" for i in range(1, count + 1)]
    root.mkdir(parents=True, exist_ok=True)
    (root / PARTITION).write_text("\n".join(lines) + "\n")
    for seed, line in enumerate(lines):
        save(root / images / line.split()[0], noise(218, 178, seed))
    return root


def zipped(root, prefix=f"{IMAGES}/"):
    """Move the images into the zip."""
    with zipfile.ZipFile(root / ARCHIVE, "w") as archive:
        for file in sorted((root / IMAGES).iterdir()):
            archive.write(file, prefix + file.name)
            file.unlink()
    (root / IMAGES).rmdir()
    return root


def test_celeba_follows_the_official_splits(tmp_path):
    source = CelebASource(celeba(tmp_path))
    save(tmp_path / IMAGES / "999999.jpg", noise(8, 8))
    assert source.items("train") == ["000001.jpg", "000002.jpg"]
    assert source.items("valid") == ["000003.jpg", "000004.jpg"]
    assert source.items("test") == ["000005.jpg", "000006.jpg"]


def test_celeba_default_crop_is_c148(tmp_path):
    source = CelebASource(celeba(tmp_path))
    whole = np.asarray(Image.open(tmp_path / IMAGES / "000001.jpg"))
    assert np.array_equal(source.read("000001.jpg", 148)["image"], whole[35:183, 15:163])
    assert source.name.startswith("celeba-c148-")


@pytest.mark.parametrize("prefix", [f"{IMAGES}/", ""])
def test_celeba_zip_equals_folder(tmp_path, prefix):
    folder = cached_arrays(CelebASource(celeba(tmp_path / "folder")), "train", 16, tmp_path / "cache")
    archive = CelebASource(zipped(celeba(tmp_path / "zip"), prefix))
    assert np.array_equal(folder["image"], cached_arrays(archive, "train", 16, tmp_path / "cache")["image"])


def test_celeba_is_found_where_torchvision_puts_it(tmp_path):
    celeba(tmp_path / "celeba")
    assert CelebASource(tmp_path).items("train") == CelebASource(tmp_path / "celeba").items("train")
    assert CelebASource(tmp_path).name == CelebASource(tmp_path / "celeba").name


def test_celeba_as_kaggle_packs_it(tmp_path):
    """Its images lie in a folder in the folder, and its partition is a table with a head."""
    before = CelebASource(celeba(tmp_path / "official"))
    root = celeba(tmp_path / "kaggle", images=f"{IMAGES}/{IMAGES}")
    lines = [line.replace(" ", ",") for line in (root / PARTITION).read_text().splitlines()]
    (root / PARTITION).unlink()
    (root / "list_eval_partition.csv").write_bytes("\r\n".join(["image_id,partition", *lines, ""]).encode("utf-8-sig"))
    source = CelebASource(root)
    for split in ("train", "valid", "test"):
        assert source.items(split) == before.items(split)
    assert np.array_equal(source.read("000001.jpg", 16)["image"], before.read("000001.jpg", 16)["image"])
    assert "but above it; pass that as --data.root" in refused(lambda: CelebASource(root / IMAGES))
    assert source.remarks() == [] and source.fingerprint("test") != source.fingerprint("valid")


def test_celeba_says_what_it_leaves_out(tmp_path):
    celeba(tmp_path)
    (tmp_path / IMAGES / "odd.jpg").write_text("")
    (line,) = CelebASource(tmp_path).remarks()
    assert line.startswith("1 files of ") and line.endswith(f"left out: not in {PARTITION}")


def test_celeba_missing_images_are_refused_or_left_out(tmp_path):
    celeba(tmp_path)
    (tmp_path / IMAGES / "000002.jpg").unlink()
    message = refused(lambda: CelebASource(tmp_path))
    assert "CelebA: 1 of 6 images missing under" in message
    assert "(first: 000002.jpg); pass --data.partial true" in message
    assert CelebASource(tmp_path, partial=True).items("train") == ["000001.jpg"]
    (tmp_path / IMAGES / "000001.jpg").unlink()
    assert "no train images" in refused(lambda: CelebASource(tmp_path, partial=True))


def test_celeba_download_failure_says_what_to_fetch(tmp_path, monkeypatch):
    def quota(root, download):
        raise RuntimeError("Too many users have viewed\nthis file")

    monkeypatch.setattr("torchvision.datasets.CelebA", quota)
    message = refused(lambda: CelebASource(tmp_path, download=True))
    assert all(part in message for part in (ARCHIVE, PARTITION, str(tmp_path / "celeba"), "Too many users"))
    celeba(tmp_path / "celeba")
    assert len(CelebASource(tmp_path, download=True).items("train")) == 2  # there already: nothing is fetched


def test_celeba_download_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CelebA", lambda root, download: celeba(Path(root) / "celeba"))
    assert len(CelebASource(tmp_path, download=True).items("train")) == 2


# --- real photographs


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_real_celeba_matches_its_64_pixel_set():
    """Compare with a 64x64 set made from the same photographs by crop c148 and an antialiased resize."""
    small = SHARED / "celeba64/train/000086.webp"
    made = CelebASource(SHARED / "celeba").read("000086.jpg", 64)["image"]
    same = FolderSource(SHARED / "celeba64").read("train/000086.webp", 64)["image"]
    assert np.array_equal(same, np.asarray(Image.open(io.BytesIO(small.read_bytes())).convert("RGB")))
    assert np.abs(made.astype(int) - same).mean() < 0.1


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_real_photographs_have_the_sides_that_the_readme_tells():
    """Divide the 3,000 held-out photographs of other people."""
    source = FolderSource(SHARED / "celeba64")
    assert [len(source.items(split)) for split in ("train", "valid", "test")] == [11_960, 903, 2_097]
