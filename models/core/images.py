"""Images as networks and picture files want them: checks with one clear line, and conversion to 8 bits."""

from typing import Any

import torch
from torch import Tensor

from degrain.models.core.errors import InputError


def check_tensor(name: str, value: Any, shape: tuple[int | str, ...], like: Tensor) -> None:
    """Refuse what a network cannot take.

    Args:
        name: of the value, with which the error begins.
        value: should be a tensor of this shape, of the type of `like` and on its device.
        shape: sizes of the axes; a letter stands for any number from 1 on.
        like: a weight of the network.

    Raises:
        InputError: another shape, type or device, or no tensor.
    """
    wanted = f"({', '.join(map(str, shape))})"
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: {type(value).__name__}; give a tensor {wanted}, {like.dtype}")
    sizes = zip(value.shape, shape, strict=False)
    if value.ndim != len(shape) or not all(n == wish if isinstance(wish, int) else n > 0 for n, wish in sizes):
        least = " with at least one" if 0 in value.shape else ""
        raise InputError(f"{name} {tuple(value.shape)}: must be {wanted}{least}")
    if value.device != like.device:
        raise InputError(f"{name} on {value.device}: the network is on {like.device}; move one of them there")
    # Autocast converts what is no float64.
    cast = torch.is_autocast_enabled(value.device.type) and value.is_floating_point() and value.dtype != torch.float64
    if value.dtype != like.dtype and not cast:
        raise InputError(f"{name} of {value.dtype}: must be {like.dtype}, as the network's weights are")


def check_finite(name: str, x: Tensor) -> None:
    """Raise an InputError if a tensor has values that are not finite, with their number."""
    if bad := int((~x.isfinite()).sum()):
        raise InputError(f"{name}: {bad:,} of {x.numel():,} values are not finite")


def readable(device: torch.device) -> bool:
    """Return True on a CPU; on an accelerator the host waits for all that is under way before it reads a value."""
    return device.type == "cpu"


def check_images(x: Any, size: int, like: Tensor) -> None:
    """Refuse photographs that are not (B, 3, size, size) in [0, 1]; `like` is a weight of the network.

    Raises:
        InputError: see check_tensor; or there are values outside [0, 1], which are looked for on a CPU alone.
    """
    if isinstance(x, Tensor) and x.dtype == torch.uint8:
        raise InputError("images of torch.uint8: must be floats in [0, 1]; give x.float() / 255")
    check_tensor("images", x, ("B", 3, size, size), like)
    if readable(x.device) and (x.amin() < 0 or x.amax() > 1):  # false for nan, which training counts and skips
        raise InputError(f"images from {x.amin():.3g} to {x.amax():.3g}: must lie in [0, 1]; scale or clip them")


def eight_bit(images: Tensor) -> Tensor:
    """Convert images (B, 3, H, W) to uint8: floats are clipped to [0, 1] and rounded, uint8 is returned as it is.

    Drawn and real images then have the same rounding error, and values outside [0, 1] count as black or white.

    Raises:
        InputError: not (B, 3, H, W), neither uint8 nor float, or not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images {tuple(images.shape)}: metrics want (B, 3, H, W)")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise InputError(f"images of {images.dtype}: metrics want uint8, or floats in [0, 1]")
    if bad := int((~images.isfinite()).sum()):
        raise InputError(f"images: {bad:,} of {images.numel():,} values are not finite; take an earlier checkpoint")
    return (images.float().clamp(0, 1) * 255).round().byte()
