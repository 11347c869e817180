"""Photographs to reconstruct: which files, which crop, and what is said of them."""

import numpy as np
import pytest
from PIL import Image

from degrain.data.photographs import read_photographs
from degrain.models.core.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Make images whose red is the distance from the left, in steps of a pixel."""
    for name, (width, height) in {"wide.png": (240, 60), "celeba.png": (178, 218), "z/small.png": (16, 16)}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0] = np.arange(width)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / ".hidden.png").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("crop", "celeba", "wide", "said"),
    [
        (None, (0, 177), (90, 149), "3 cropped to the centre square, resized"),
        ("square", (0, 177), (90, 149), "3 cropped to the centre square, resized"),
        ("c148", (15, 162), (90, 149), "1 cropped to the centre square of 148 pixels, as in the training, 2 cropped"),
        ("none", (0, 177), (0, 239), "3 whole, as in the training, resized"),
    ],
)
def test_each_image_is_cropped_to_its_centre_or_as_those_of_the_training(folder, capsys, crop, celeba, wide, said):
    images = read_photographs(folder, crop, 32, None, quiet=False)
    assert images.shape == (3, 3, 32, 32) and images.dtype == np.uint8
    for image, (left, right) in zip(images, (celeba, wide), strict=False):  # in the order of their paths
        half = (right - left + 1) / 64  # an output pixel averages over about its own width
        assert abs(image[0, :, 0] - (left + half)).max() <= half + 1
        assert abs(image[0, :, -1] - (right - half)).max() <= half + 1
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and said in line
    assert line.endswith("resized to 32x32 pixels, 1 enlarged; passed over: 1 hidden\n")


def test_a_file_and_the_first_of_a_folder(folder, capsys):
    whole = read_photographs(folder, "square", 32, None, quiet=True)
    assert np.array_equal(read_photographs(folder / "wide.png", "square", 32, None, quiet=True), whole[1:2])
    assert np.array_equal(read_photographs(folder, "square", 32, 2, quiet=True), whole[:2])
    assert not capsys.readouterr().out
    with pytest.raises(InputError, match="3 images, and --n 4 asks for more; leave it out for all"):
        read_photographs(folder, "square", 32, 4, quiet=True)
