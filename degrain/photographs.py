"""Photographs as users have them, to what the networks take: tensors, arrays, PIL images, files, and lists of these.

Axes: B batch, H height, W width, S side of the model's images.
"""

import io
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from degrain.data.decode import Crop, read_square, square_crop_resize
from degrain.data.files import shown
from degrain.models.core.errors import InputError
from degrain.models.core.images import check_finite

Photograph = Tensor | np.ndarray | Image.Image | str | Path
Photographs = Photograph | list[Photograph] | tuple[Photograph, ...]

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # of PIL; PNG keeps their pixels exactly


def to_batch(given: Photographs, size: int, crop: Crop | None, like: Tensor) -> Tensor:
    """Convert photographs to a tensor (B, 3, S, S) in [0, 1], of the type of `like` and on its device.

    Args:
        given: a tensor (B, 3, H, W) or (3, H, W), an array (B, H, W, 3) or (H, W, 3), both uint8 or floats in [0, 1];
            a PIL image, the path of an image file, or a list of photographs.
        size: S.
        crop: what to cut out and to resize to S, as in training; None for photographs that are S x S already. Floats
            are never resized: round them to uint8, or resize them yourself.
        like: a weight of the network.

    Raises:
        InputError: something else, another shape or type, values that are not finite or outside [0, 1], or a
            photograph of another size without a crop.
    """
    if crop is not None and crop not in get_args(Crop):
        raise InputError(f"crop {crop!r}: must be one of {', '.join(get_args(Crop))}")
    if not isinstance(given, list | tuple):
        return _converted(given, "images", size, crop).to(like)
    if not given:
        raise InputError("images []: give at least one")
    return torch.cat([_converted(one, f"images[{i}]", size, crop).to(like) for i, one in enumerate(given)])


def _converted(one: Photograph, name: str, size: int, crop: Crop | None) -> Tensor:
    """Convert one entry of the list to (B, 3, S, S) in [0, 1]."""
    if isinstance(one, str | Path):
        return _levels(_decoded(_content(one), shown(one), size, crop)[None])
    if isinstance(one, Image.Image):
        return _levels(_decoded(_png(one, name), name, size, crop)[None])
    x = _channels_first(one, name)
    if x.dtype == torch.uint8:
        pictures = rearrange(x, "b c h w -> b h w c").cpu().numpy()
        return _levels(np.stack([_resized(picture, name, size, crop) for picture in pictures]))
    return _floats(x, name, size, crop)


def _channels_first(one: Tensor | np.ndarray, name: str) -> Tensor:
    """Check the axes of a tensor or an array, and return it as (B, 3, H, W)."""
    if not isinstance(one, Tensor | np.ndarray):
        kinds = "a tensor (B, 3, H, W), an array (B, H, W, 3), a PIL image, a path, or a list of these"
        raise InputError(f"{name}: {type(one).__name__}; give {kinds}")
    first = isinstance(one, Tensor)
    shape = (1, *one.shape) if one.ndim == 3 else tuple(one.shape)
    if 0 in shape:
        raise InputError(f"{name} {tuple(one.shape)}: is empty; give at least one image")
    if len(shape) != 4 or shape[1 if first else 3] != 3:
        kind = "a tensor must be (B, 3, H, W) or (3, H, W)" if first else "an array must be (B, H, W, 3) or (H, W, 3)"
        turned = len(shape) == 4 and shape[3 if first else 1] == 3
        way = "; for channels last: images.movedim(-1, -3)" if first else "; for channels first: np.moveaxis(x, -3, -1)"
        raise InputError(f"{name} {tuple(one.shape)}: {kind}{way if turned else ''}")
    if isinstance(one, Tensor):
        return one.reshape(shape)
    if one.dtype != np.uint8 and one.dtype.kind != "f":
        raise InputError(f"{name} of {one.dtype}: must be uint8, or floats in [0, 1]")
    plain = np.ascontiguousarray(one if one.dtype == np.uint8 else one.astype(np.float32))  # torch knows few types
    return rearrange(torch.tensor(plain.reshape(shape)), "b h w c -> b c h w")


def _floats(x: Tensor, name: str, size: int, crop: Crop | None) -> Tensor:
    """Check floats (B, 3, H, W): they pass unchanged."""
    if not x.is_floating_point():
        raise InputError(f"{name} of {x.dtype}: must be uint8, or floats in [0, 1]")
    side = (size, size)
    if x.shape[2:] != side or crop not in (None, "none", "square"):
        way = f"torch.nn.functional.interpolate(x, {size}, mode='bilinear', antialias=True).clamp(0, 1)"
        raise InputError(
            f"{name} {tuple(x.shape)}: floats must be {size}x{size}, uncropped; give uint8, or first {way}"
        )
    for i, image in enumerate(x.detach()):
        where = f"{name}, image {i}" if len(x) > 1 else name
        check_finite(where, image)
        low, high = image.amin().item(), image.amax().item()
        if low < 0 or high > 1:
            way = "clip them: x.clamp(0, 1)"
            if high > 2:
                way = "give x / 255, or uint8"
            elif low < -0.1:
                way = "for [-1, 1] give (x + 1) / 2, or clip: x.clamp(0, 1)"
            raise InputError(f"{where}: values from {low:.8g} to {high:.8g}: floats must lie in [0, 1]; {way}")
    return x


def _levels(pictures: np.ndarray) -> Tensor:
    """Convert 8-bit pictures (B, S, S, 3) to floats (B, 3, S, S) in [0, 1]."""
    return rearrange(torch.tensor(pictures), "b h w c -> b c h w").float() / 255


def _resized(picture: np.ndarray, name: str, size: int, crop: Crop | None) -> np.ndarray:
    """Crop and resize an 8-bit picture (H, W, 3) to (S, S, 3), as training does."""
    _refuse_size(picture.shape[1], picture.shape[0], name, size, crop)
    return square_crop_resize(Image.fromarray(picture), crop or "none", size)


def _decoded(data: bytes, name: str, size: int, crop: Crop | None) -> np.ndarray:
    """Decode, crop and resize the content of an image file to (S, S, 3) uint8, as training does."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Exception:
        width = height = size  # read_square says what is wrong
    _refuse_size(width, height, name, size, crop)
    return read_square(data, name, crop or "none", size, [])


def _refuse_size(width: int, height: int, name: str, size: int, crop: Crop | None) -> None:
    """Raise an InputError for a photograph of another size without a crop, or smaller than the crop."""
    if crop not in (None, "square", "none") and min(width, height) < int(crop[1:]):
        raise InputError(f"{name}: {width}x{height} is smaller than the crop, {crop}; pass crop='square' or 'none'")
    if crop is None and (width, height) != (size, size):
        ways = "crop='square' for its largest centre square, 'c148' (CelebA) for another one, 'none' for all of it"
        raise InputError(f"{name}: {width}x{height}; the model's images are {size}x{size}: resize it, or pass {ways}")


def _content(path: str | Path) -> bytes:
    """Read a file."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{shown(path)}: cannot be read ({reason}); give the path of an image file") from None


def _png(image: Image.Image, name: str) -> bytes:
    """Return a PIL image as a PNG file: alpha, 16 bits and EXIF are then treated as those of the user's files."""
    if image.mode.startswith(("I", "F")) and image.mode != "I;16":
        raise InputError(f"{name}: PIL image of mode {image.mode}, whose white is unknown; convert it to 8 bits first")
    content = io.BytesIO()
    exif, plain = image.getexif(), image if image.mode in PNG_MODES else image.convert("RGB")
    plain.save(content, "PNG", exif=exif, compress_level=1)
    return content.getvalue()
