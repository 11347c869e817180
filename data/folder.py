"""Read any folder of images; decode, crop and resize photographs to (size, size, 3) uint8."""

import hashlib
import io
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from data.files import files_fingerprint, read_file, root_tag, unreadable
from models.core.errors import InputError, first_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Crop = Literal["c148", "c178", "c140", "c128", "c108", "square", "none"]
"""c148 to c108: the centre square of so many pixels; an image smaller than that is refused.
square: the largest centre square (c178 for CelebA). none: the whole image, squeezed if it is not square."""


def square_crop_resize(image: Image.Image, crop: Crop, size: int) -> np.ndarray:
    """Convert an RGB image to (size, size, 3) uint8: centre crop by name, then bilinear with antialias.

    A crop of exactly size x size passes unchanged, a smaller one is enlarged. An odd margin is rounded down (left and
    top are the smaller), while torchvision's CenterCrop rounds half to even: up to one pixel apart. Bilinear is
    torchvision's default, by which CelebA-64 sets are usually made. InputError if the image is smaller than the crop.
    """
    if crop != "none":
        side = min(image.size) if crop == "square" else int(crop[1:])
        left, top = (image.width - side) // 2, (image.height - side) // 2
        if min(left, top) < 0:
            raise InputError(f"{image.width}x{image.height} is smaller than the crop; change --data.crop")
        image = image.crop((left, top, left + side, top + side))
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _conversions(image: Image.Image, data: bytes) -> list[str]:
    """List what decode_rgb changes: all but upright 8-bit RGB of one frame. `data` is the encoded image."""
    deep = image.mode.startswith("I") or image.format == "PNG" and data[24] == 16  # bits per channel, in PNG's header
    found = {
        "grey": image.mode in ("1", "L", "LA") or image.mode.startswith("I"),
        "with a palette": image.mode in ("P", "PA"),
        "CMYK": image.mode == "CMYK",
        "with alpha (laid over white)": image.has_transparency_data,
        "of 16 bits (rounded to 8)": deep,
        "turned (upright by their EXIF)": image.getexif().get(ExifTags.Base.Orientation, 1) != 1,
        "animated (their first frame)": getattr(image, "is_animated", False),
    }
    return [kind for kind, is_so in found.items() if is_so]


def decode_rgb(data: bytes, converted: list[str]) -> Image.Image:
    """Decode the first frame to 8-bit RGB, upright by its EXIF, transparency laid over white.

    The conversions made are appended to `converted`, unless decoding fails.
    """
    with Image.open(io.BytesIO(data)) as image:
        kinds = _conversions(image, data)
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16-bit grey, which PIL's own conversion clips at 255
            image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        image = image.convert("RGB")
    converted += kinds
    return image


def read_square(data: bytes, where: str | Path, crop: Crop, size: int, converted: list[str]) -> np.ndarray:
    """Convert the bytes of an image file to (size, size, 3) uint8 by decode_rgb and square_crop_resize.

    InputError, naming the file, if they are no image.
    """
    try:
        image = decode_rgb(data, converted)
    except UnidentifiedImageError as error:
        reason = "of no known format" if data else "the file is empty"
        raise InputError(f"{where}: not a readable image ({reason})") from error
    except Exception as error:  # on damaged files PIL's decoders raise anything from OSError to struct.error
        raise InputError(f"{where}: not a readable image ({first_line(error)})") from error
    try:
        return square_crop_resize(image, crop, size)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


class FolderSource:
    """Provide the jpg, png and webp files anywhere under root, without hidden files and folders.

    If root/train and root/valid exist they are the splits, and so is root/test; otherwise a share is held out for
    validation by a hash of each file's relative path, so that no file changes its split when others are added.
    Without root/test, the test split is the validation split. Arguments are those of data.datamodule.ImageFolder.
    """

    def __init__(self, root: str | Path, crop: Crop = "square", valid_share: float = 0.05) -> None:
        self.root, self.crop, self.valid_share = Path(root), crop, valid_share
        self.converted: list[str] = []
        if not self.root.is_dir():
            raise InputError(f"ImageFolder: no folder {root}; pass --data.root DIR")
        if not 0 < valid_share < 1:
            raise InputError(f"ImageFolder: --data.valid_share {valid_share} must be between 0 and 1")
        self.name = f"folder-{self.root.resolve().name}-{root_tag(self.root)}-{crop}"

    def items(self, split: str) -> Sequence[str]:
        names = self._splits.get(split)
        if not names:
            hint = "" if self._has_splits else " or change --data.valid_share"
            raise InputError(f"ImageFolder: no {split} images (jpg, png, webp) in {self.root}; add some{hint}")
        return names

    def fingerprint(self, split: str) -> str:
        return files_fingerprint((self.root / name for name in self.items(split)), self.crop)

    def read(self, item: str, size: int) -> dict[str, np.ndarray]:
        file = self.root / item
        return {"image": read_square(read_file(file), file, self.crop, size, self.converted)}

    @property
    def _has_splits(self) -> bool:
        return (self.root / "train").is_dir() and (self.root / "valid").is_dir()

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        """Return the relative paths, sorted, by split."""
        if self._has_splits:
            present = [split for split in ("train", "valid", "test") if (self.root / split).is_dir()]
            splits = {split: self._images(split) for split in present}
        else:
            splits = {"train": [], "valid": []}
            for name in self._images("."):
                splits["valid" if _unit_hash(name) < self.valid_share else "train"].append(name)
        splits["test"] = splits.get("test") or splits["valid"]
        return splits

    def _images(self, under: str) -> list[str]:
        def refuse(error: OSError) -> None:  # by default os.walk skips such a folder silently
            raise unreadable(error.filename, error) from error

        found = []
        for folder, subfolders, names in os.walk(self.root / under, onerror=refuse):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            relative = Path(folder).relative_to(self.root)
            found += [
                (relative / name).as_posix()
                for name in names
                if name.lower().endswith(SUFFIXES) and not name.startswith(".")
            ]
        return sorted(found)


def _unit_hash(name: str) -> float:
    """Hash the name to a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
