"""Conversion of images to 8 bits, as a picture file stores them."""

import torch
from torch import Tensor

from models.core.errors import InputError


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
