"""Photographs of every kind become the same tensor; what cannot be one is refused in a line that names it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from degrain.data.decode import square_crop_resize
from degrain.photographs import to_batch
from tests.inference.test_bad_calls import refusal

WEIGHT = torch.zeros(())
PICTURES = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
X = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 255  # (2, 3, 32, 32)
WIDE = np.random.default_rng(1).integers(256, size=(40, 60, 3), dtype=np.uint8)


def batch(given: Any, crop: str | None = None) -> torch.Tensor:
    return to_batch(given, 32, crop, WEIGHT)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, picture in zip(paths, PICTURES, strict=True):
        Image.fromarray(picture).save(path)
    return paths


SAME = {
    "floats": X,
    "doubles": X.double(),
    "bytes": (255 * X).round().byte(),
    "a list of tensors": [X[0], X[1:]],
    "array of bytes": PICTURES,
    "array of floats": PICTURES / np.float32(255),
    "array of doubles": PICTURES / 255,
    "another order of bytes": (PICTURES / 255).astype(">f8"),
    "a view": PICTURES[:, ::-1][:, ::-1],
    "a list of arrays": list(PICTURES),
    "PIL images": tuple(map(Image.fromarray, PICTURES)),
    "mixed": [Image.fromarray(PICTURES[0]), X[1]],
}


@pytest.mark.parametrize("kind", SAME)
def test_photographs_of_every_kind_are_the_same_tensor(kind):
    made = batch(SAME[kind])
    assert made.dtype == torch.float32 and made.shape == X.shape
    torch.testing.assert_close(made, X, atol=1e-7, rtol=0)


def test_files_are_read(files):
    assert torch.equal(batch(files), X) and torch.equal(batch(str(files[0])), X[:1])


@pytest.mark.parametrize("one", [X[0], PICTURES[0], Image.fromarray(PICTURES[0])])
def test_a_single_photograph_is_a_batch_of_one(one):
    assert torch.equal(batch(one), X[:1])


def test_photographs_of_another_size_are_cropped_and_resized_as_in_training(tmp_path):
    Image.fromarray(WIDE).save(tmp_path / "wide.png")
    for crop in ("square", "none"):
        expected = torch.tensor(square_crop_resize(Image.fromarray(WIDE), crop, 32)).permute(2, 0, 1) / 255
        tensor = torch.from_numpy(WIDE).permute(2, 0, 1)
        for given in (WIDE, tensor, Image.fromarray(WIDE), tmp_path / "wide.png"):
            assert torch.equal(batch(given, crop)[0], expected)


def test_pil_images_are_treated_as_their_files_are(tmp_path):
    deep = Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64)
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 128))
    turned = Image.fromarray(PICTURES[0])
    turned.getexif()[0x0112] = 3
    for i, image in enumerate((deep, clear, turned, clear.convert("P"), clear.convert("LA"))):
        image.save(tmp_path / f"{i}.png", exif=image.getexif())
        assert torch.equal(batch(image), batch(tmp_path / f"{i}.png")), image.mode
    assert torch.equal(batch(turned), X[:1].flip(2, 3))
    assert batch(Image.new("CMYK", (32, 32))).eq(1).all()


def test_gradients_pass(files):
    x = X.clone().requires_grad_()
    batch([x[0], files[0]]).sum().backward()
    assert torch.equal(x.grad, torch.stack([torch.ones_like(x[0]), torch.zeros_like(x[0])]))


BROKEN = X.clone()
BROKEN[1, 0, :2] = torch.nan
REFUSED = {
    "nothing": (None, "images: NoneType; give a tensor (B, 3, H, W), an array (B, H, W, 3), a PIL image, a path, or"),
    "an empty list": ([], "images []: give at least one"),
    "a list of numbers": ([0.5], "images[0]: float; give a tensor"),
    "channels last": (X.permute(0, 2, 3, 1), "images (2, 32, 32, 3): a tensor must be (B, 3, H, W) or (3, H, W); for"),
    "channels first": (X.numpy(), "images (2, 3, 32, 32): an array must be (B, H, W, 3) or (H, W, 3); for channels f"),
    "grey": (X[:, :1], "images (2, 1, 32, 32): a tensor must be"),
    "grey array": (PICTURES[0, :, :, 0], "images (32, 32): an array must be"),
    "no image": (X[:0], "images (0, 3, 32, 32): is empty; give at least one image"),
    "alpha": (np.zeros((32, 32, 4), np.uint8), "images (32, 32, 4): an array must be"),
    "integers": (X.long(), "images of torch.int64: must be uint8, or floats in [0, 1]"),
    "integer array": (PICTURES.astype(np.int32), "images of int32: must be uint8, or floats in [0, 1]"),
    "booleans": (X > 0, "images of torch.bool: must be uint8"),
    "0 to 255": (255 * X, "images, image 0: values from 0 to 255: floats must lie in [0, 1]; give x / 255, or uint8"),
    "-1 to 1": (2 * X[0] - 1, "images: values from -1 to 1: floats must lie in [0, 1]; for [-1, 1] give (x + 1) / 2"),
    "a last bit above": (X[:1] * 0 + 1.0000001, "images: values from 1.0000001 to 1.0000001: floats must lie in [0,"),
    "second of a list": ([X[0], 2 * X[1] - 1], "images[1]: values from -1 to 1"),
    "nan": (BROKEN, "images, image 1: 64 of 3,072 values are not finite"),
    "floats of another size": (
        torch.rand(1, 3, 40, 60),
        "images (1, 3, 40, 60): floats must be 32x32, uncropped; give",
    ),
    "bytes of another size": (WIDE, "images: 60x40; the model's images are 32x32: resize it, or pass crop='square' f"),
    "PIL image of another size": ([Image.fromarray(WIDE)], "images[0]: 60x40; the model's images are 32x32"),
    "PIL image of floats": (Image.new("F", (32, 32)), "images: PIL image of mode F, whose white is unknown; convert"),
    "no file": ("none.png", "none.png: cannot be read (No such file or directory); give the path of an image file"),
    "a folder": (Path("/"), "/: cannot be read (Is a directory)"),
    "an address": ("a\0b", "a\\x00b: cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_photograph_is_refused(name):
    given, said = REFUSED[name]
    assert refusal(lambda: batch(given)).startswith(said)


def test_files_that_are_none_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"text")
    (tmp_path / "b.png").write_bytes(b"")
    said = [refusal(lambda name=name: batch(tmp_path / name)) for name in ("a.png", "b.png")]
    assert said[0].endswith("a.png: not a readable image (of no known format)")
    assert said[1].endswith("b.png: not a readable image (the file is empty)")
    Image.fromarray(WIDE).save(tmp_path / "c.png")
    assert "c.png: 60x40; the model's images are 32x32" in refusal(lambda: batch(tmp_path / "c.png"))


def test_a_crop_must_exist_and_fit():
    for crop in ("middle", 148):
        assert refusal(lambda crop=crop: batch(X, crop)).startswith(f"crop {crop!r}: must be one of c148, c178")
    for given in (PICTURES, [Image.fromarray(PICTURES[0])]):
        assert "32x32 is smaller than the crop, c148; pass" in refusal(lambda given=given: batch(given, "c148"))
    assert "floats must be 32x32, uncropped" in refusal(lambda: batch(X, "c148"))
