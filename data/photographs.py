"""Read a user's photographs to reconstruct: a file or a folder, cropped and resized as those of the training."""

import io
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from degrain.data.decode import Crop, read_square
from degrain.data.files import read_file, say, shown
from degrain.data.listing import list_images, suffixes
from degrain.models.core.errors import InputError

CELEBA = (178, 218)
"""Width and height of CelebA's aligned photographs, for which the crops of so many pixels are."""


def read_photographs(
    path: str | Path, trained_crop: Crop | None, size: int, count: int | None, quiet: bool
) -> np.ndarray:
    """Read photographs by their path, and say in a line how they were cropped and what was converted.

    Each is cropped to its centre square. But one of CelebA's size is cropped as those of the training, and so is each
    one if the training squeezed whole images.

    Args:
        path: an image file, or a folder with images anywhere below it.
        trained_crop: the crop of the training's images; None if they were drawn.
        size: side of the images in pixels.
        count: how many of them, the first by path; None for all.
        quiet: whether nothing is said.

    Returns:
        Images (N, 3, size, size), uint8.

    Raises:
        InputError: no such file, none or too few images, or one that cannot be read.
    """
    files, passed = image_files(Path(path), count)
    crops, converted, images = Counter[str](), [], []
    for file in files:
        photograph, crop = read_photograph(read_file(file), file, trained_crop, size, converted)
        images.append(photograph)
        crops[crop] += 1
    if not quiet:
        cropped = ", ".join(f"{number:,} {in_words(crop)}" for crop, number in crops.items())
        kinds = "".join(f", {number:,} {kind}" for kind, number in sorted(Counter(converted).items()))
        say(f"photographs: {shown(path)}: {cropped}, resized to {size}x{size} pixels{kinds}{passed}")
    return np.stack(images)


def read_photograph(
    data: bytes, name: str | Path, trained_crop: Crop | None, size: int, converted: list[str]
) -> tuple[np.ndarray, Crop]:
    """Read one photograph from the content of its file, as `read_photographs` does.

    Args:
        data: content of the file.
        name: of the file, for errors.
        trained_crop: the crop of the training's images; None if they were drawn.
        size: side of the image in pixels.
        converted: what was converted is added to it.

    Returns:
        The image (3, size, size), uint8, and its crop.

    Raises:
        InputError: it cannot be read.
    """
    crop = crop_of(data, trained_crop)
    return read_square(data, name, crop, size, converted).transpose(2, 0, 1), crop


def image_files(path: Path, count: int | None) -> tuple[list[Path], str]:
    """Return the image files and, in words, what is passed over."""
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{shown(path)}: no such file or folder; correct --images")
        return numbered([path], path, count), ""
    listing = list_images(path, lambda folder: None)
    if not listing.images:
        kinds = ", ".join(suffix[1:] for suffix in suffixes())
        has = f"; it has {listing.passed_over()}" if listing.others else ""
        raise InputError(f"{shown(path)}: no images{has}; give a folder with some ({kinds})")
    passed = f"; passed over: {listing.passed_over()}" if listing.others else ""
    return numbered([path / image.name for image in listing.images], path, count), passed


def numbered(files: list[Path], path: Path, count: int | None) -> list[Path]:
    """Return the first `count` files. InputError if there are fewer."""
    if count is not None and count > len(files):
        raise InputError(f"{shown(path)}: {len(files):,} images, and --n {count:,} asks for more; leave it out for all")
    return files[:count]


def crop_of(data: bytes, trained: Crop | None) -> Crop:
    """Return the crop of an image."""
    if trained == "none":
        return trained
    with suppress(Exception), Image.open(io.BytesIO(data)) as image:  # what is no image is refused when it is decoded
        if image.size == CELEBA and trained is not None:
            return trained
    return "square"


def in_words(crop: Crop) -> str:
    """Name a crop."""
    names = {"square": "cropped to the centre square", "none": "whole, as in the training"}
    return names.get(crop, f"cropped to the centre square of {crop[1:]} pixels, as in the training")
