"""Decode, crop and resize photographs of any usual kind to (size, size, 3) uint8."""

import io
import sys
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from degrain.data.files import shown
from degrain.models.core.errors import InputError, first_line

ORIENTATION = ExifTags.Base.Orientation
ENLARGED = "enlarged"  # the word that read_square leaves for an image smaller than `size`

NATIVE = {"little": "B", "big": "L"}[sys.byteorder]
SWAPPED = (("B", "L"), ("L", "B"), ("N", NATIVE))
LOW_BYTES = {f"{mode};16{one}": f"{mode};16{other}" for mode in ("RGB", "RGBA") for one, other in SWAPPED}
GREY_ALPHA = "LA;16B"
LOW_BYTES[GREY_ALPHA] = "RGBA"
"""How PIL stores 16-bit colours, of which it keeps the upper bytes -> what it must take them for to keep the lower."""

Crop = Literal["c148", "c178", "c140", "c128", "c108", "square", "none"]
"""c148 to c108: the centre square of so many pixels; an image smaller than that is refused.
square: the largest centre square (c178 for CelebA). none: the whole image, squeezed if it is not square."""


def square_crop(image: Image.Image, crop: Crop) -> Image.Image:
    """Return the part of an image that its crop names. InputError if the image is smaller.

    An odd margin is rounded down (left and top are the smaller), while torchvision's CenterCrop rounds half to even: up
    to one pixel apart.
    """
    if crop == "none":
        return image
    side = min(image.size) if crop == "square" else int(crop[1:])
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if min(left, top) < 0:
        raise InputError(f"{image.width}x{image.height} is smaller than the crop; change --data.crop")
    return image.crop((left, top, left + side, top + side))


def square_crop_resize(image: Image.Image, crop: Crop, size: int) -> np.ndarray:
    """Convert an RGB image to (size, size, 3) uint8: centre crop by name, then bilinear with antialias.

    A crop of exactly size x size passes unchanged, a smaller one is enlarged. Bilinear is torchvision's default, by
    which CelebA-64 sets are usually made. InputError if the image is smaller than the crop.
    """
    image = square_crop(image, crop)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _raw_mode(image: Image.Image) -> str:
    """Return PIL's name for how the pixels are stored, such as "RGB;16B"; "" if that is not known."""
    names = {tile.args if isinstance(tile.args, str) else (tile.args or ("",))[0] for tile in image.tile}
    return str(names.pop()) if len(names) == 1 else ""


def _conversions(image: Image.Image) -> list[str]:
    """List what decode_rgb changes: all but upright 8-bit RGB of one frame."""
    raw, several = _raw_mode(image), getattr(image, "is_animated", False)
    found = {
        "grey": image.mode in ("1", "L", "LA") or image.mode.startswith("I") or raw == GREY_ALPHA,
        "with a palette": image.mode in ("P", "PA"),
        "CMYK": image.mode == "CMYK",
        "with alpha (laid over white)": image.has_transparency_data,
        "of 16 bits (rounded to 8)": image.mode.startswith("I") or raw in LOW_BYTES,
        "turned (upright by their EXIF)": image.getexif().get(ORIENTATION, 1) != 1,
        "animated (their first frame)": several and image.format != "TIFF",
        "of several pages (their first)": several and image.format == "TIFF",
    }
    return [kind for kind, is_so in found.items() if is_so]


def _refuse_other_numbers(image: Image.Image) -> None:
    """Raise InputError for pixels whose white is unknown, or that PIL would cut to their upper 8 bits."""
    bits = image.tag_v2.get(258, (8,)) if image.format == "TIFF" else (8,)
    if image.mode == "F" or image.mode == "I" and image.format == "TIFF":
        what = "32-bit float" if image.mode == "F" else "signed or 32-bit"
    elif max(bits) > 8 and not (set(bits) == {16} and (image.mode.startswith("I") or _raw_mode(image) in LOW_BYTES)):
        what = f"{max(bits)}-bit TIFF"
    else:
        return
    raise InputError(f"{what} pixels cannot be brought to 8 bits without loss; convert it to an 8-bit or 16-bit PNG")


def _numbers(data: bytes, raw: str | None = None) -> np.ndarray:
    """Decode the pixels as PIL does, (H, W, C), or as if they were stored as `raw`."""
    with Image.open(io.BytesIO(data)) as image:
        if raw:
            tiles = [(tile, raw if isinstance(tile.args, str) else (raw, *tile.args[1:])) for tile in image.tile]
            image.tile = [tile._replace(args=args) for tile, args in tiles]
        return np.asarray(image).astype(np.float64)


def _deep(image: Image.Image, raw: str, data: bytes) -> Image.Image:
    """Decode an image of 16 bits per channel, laid over white and rounded to 8 bits.

    PIL keeps the upper 8 bits of colours alone. The lower ones are had by decoding them in the other order of bytes.
    """
    if raw == GREY_ALPHA:
        four = _numbers(data, LOW_BYTES[raw])  # both bytes of grey, both of alpha
        pixels = 256 * four[..., ::2] + four[..., 1::2]
    elif raw in LOW_BYTES:
        pixels = 256 * _numbers(data) + _numbers(data, LOW_BYTES[raw])
    else:
        pixels = np.asarray(image)[..., None].astype(np.float64)  # grey
    alpha = pixels[..., -1:] / 65535 if pixels.shape[2] in (2, 4) else np.ones((*pixels.shape[:2], 1))
    colour = pixels[..., : 3 if pixels.shape[2] > 2 else 1]
    if (clear := image.info.get("transparency")) is not None:  # the colour, or grey, that is transparent
        alpha = alpha * (colour != np.array(clear)).any(2, keepdims=True)
    levels = np.round((alpha * colour + (1 - alpha) * 65535) / 257).astype(np.uint8)
    return Image.fromarray(levels.repeat(3 // levels.shape[2], 2))


def decode_rgb(data: bytes, converted: list[str]) -> Image.Image:
    """Decode the first frame to 8-bit RGB, upright by its EXIF, transparency laid over white.

    The conversions made are appended to `converted`, unless decoding fails.

    Raises:
        InputError: The pixels are numbers that have no fixed white, or have other numbers of bits than 8 and 16.
    """
    with Image.open(io.BytesIO(data)) as image:
        _refuse_other_numbers(image)
        raw = _raw_mode(image)  # now: it is gone once the pixels are read
        kinds, orientation = _conversions(image), image.getexif().get(ORIENTATION, 1)
        if image.mode.startswith("I") or raw in LOW_BYTES:
            image = _deep(image, raw, data)
        elif image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        # Both calls copy where they have nothing to do, a quarter of the time of a small JPEG.
        if image.mode != "RGB":
            image = image.convert("RGB")
        if orientation != 1:
            image.getexif()[ORIENTATION] = orientation
            image = ImageOps.exif_transpose(image)
        image.load()  # while the file is open
    converted += kinds
    return image


def read_square(data: bytes, where: str | Path, crop: Crop, size: int, converted: list[str]) -> np.ndarray:
    """Convert the bytes of an image file to (size, size, 3) uint8 by decode_rgb and square_crop_resize.

    InputError, naming the file, if they are no image.
    """
    where = shown(where)
    try:
        image = square_crop(decode_rgb(data, converted), crop)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except UnidentifiedImageError as error:
        reason = "of no known format" if data else "the file is empty"
        raise InputError(f"{where}: not a readable image ({reason})") from error
    except Exception as error:  # on damaged files PIL's decoders raise anything from OSError to struct.error
        raise InputError(f"{where}: not a readable image ({first_line(error)})") from error
    if min(image.size) < size:
        converted.append(ENLARGED)
    return square_crop_resize(image, "none", size)
