"""Test folders and CelebA: their images, splits and pixels, and refusals."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.cache import cached_arrays
from data.celeba import ARCHIVE, IMAGES, PARTITION, CelebASource
from data.folder import FolderSource, square_crop_resize
from models.core.errors import InputError

SHARED = Path(__file__).parents[2] / "shared"


def noise(height, width, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.squeeze(pixels)).save(path, **options)


def one(path, size=8, crop="square"):
    """Return the pixels that a folder source makes of one file."""
    return FolderSource(path.parent, crop).read(path.name, size)["image"]


# --- pixels


def test_image_of_the_right_size_passes_unchanged():
    pixels = noise(64, 64)
    for crop in ("square", "none"):
        assert np.array_equal(square_crop_resize(Image.fromarray(pixels), crop, 64), pixels)


@pytest.mark.parametrize("crop", ["c178", "c148", "c140", "c128", "c108"])
def test_named_crop_is_the_centre_of_that_size(crop):
    pixels, side = noise(218, 178), int(crop[1:])
    top, left = (218 - side) // 2, (178 - side) // 2
    by_hand = pixels[top : top + side, left : left + side]
    assert np.array_equal(square_crop_resize(Image.fromarray(pixels), crop, side), by_hand)


def test_square_is_the_largest_and_none_is_the_whole():
    striped = np.zeros((4, 8, 3), np.uint8)
    striped[:, 2:6] = 255
    assert square_crop_resize(Image.fromarray(striped), "square", 4).min() == 255
    assert square_crop_resize(Image.fromarray(striped), "none", 4).mean() == pytest.approx(127.5, abs=3)


def test_resizing_is_antialiased():
    checkerboard = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    small = square_crop_resize(Image.fromarray(checkerboard), "square", 16)
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_every_kind_of_pixel_becomes_rgb(tmp_path):
    grey, colour = noise(8, 8, channels=1), noise(8, 8)
    save(tmp_path / "grey.png", grey)
    assert np.array_equal(one(tmp_path / "grey.png"), grey.repeat(3, 2))
    Image.fromarray(grey[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(one(tmp_path / "deep.png"), grey.repeat(3, 2))
    alpha = np.where(np.arange(8) < 4, 0, 255).astype(np.uint8)[None, :, None].repeat(8, 0)
    save(tmp_path / "alpha.png", np.concatenate([colour, alpha], 2))
    assert np.array_equal(one(tmp_path / "alpha.png"), np.where(alpha == 0, 255, colour))
    Image.fromarray(colour).quantize(256).save(tmp_path / "palette.png")
    assert np.abs(one(tmp_path / "palette.png").astype(int) - colour).max() < 128
    frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(3)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(one(tmp_path / "moving.webp"), np.asarray(frames[0]))


def test_exif_orientation_is_applied(tmp_path):
    pixels = noise(8, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    save(tmp_path / "turned.png", pixels, exif=exif)
    assert np.array_equal(one(tmp_path / "turned.png"), np.rot90(pixels, -1))


# --- a folder


def fill(root, names):
    for seed, name in enumerate(names):
        save(root / name, noise(8, 8, seed))


def test_folder_is_recursive_sorted_and_sees_images_only(tmp_path):
    fill(tmp_path, ["b/2.PNG", "a.jpg", "b/1.webp", "c.jpeg", ".hidden.png", ".trash/d.png"])
    (tmp_path / "notes.txt").write_text("no image")
    source = FolderSource(tmp_path, valid_share=1e-9)
    assert source.items("train") == ["a.jpg", "b/1.webp", "b/2.PNG", "c.jpeg"]


def test_held_out_share_is_stable_when_files_are_added(tmp_path):
    fill(tmp_path, [f"{i:03}.png" for i in range(100)])
    before = FolderSource(tmp_path, valid_share=0.3)
    valid = before.items("valid")
    assert 15 < len(valid) < 45 and sorted([*valid, *before.items("train")]) == sorted(os.listdir(tmp_path))
    assert before.items("test") == valid
    fill(tmp_path, [f"more/{i:03}.png" for i in range(20)])
    assert set(valid) <= set(FolderSource(tmp_path, valid_share=0.3).items("valid"))


def test_folders_train_and_valid_are_the_splits(tmp_path):
    fill(tmp_path, ["train/1.png", "train/2.png", "valid/3.png", "4.png"])
    source = FolderSource(tmp_path)
    assert source.items("train") == ["train/1.png", "train/2.png"]
    assert source.items("valid") == source.items("test") == ["valid/3.png"]
    fill(tmp_path, ["test/5.png"])
    assert FolderSource(tmp_path).items("test") == ["test/5.png"]


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


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_cut_off_image_is_named(tmp_path, suffix):
    save(tmp_path / f"whole.{suffix}", noise(64, 64))
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=f"cut.{suffix}: not a readable image"):
        one(tmp_path / f"cut.{suffix}")


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
