"""Augmentation of what the discriminator sees."""

import torch
import torch.nn.functional as F
from torch import Tensor


def offsets(uniform: Tensor, most: int) -> Tensor:
    """Return whole numbers of pixels, equally likely from -most to most, for uniform noise in [0, 1) of any shape."""
    return (uniform * (2 * most + 1)).floor() - most


def translated(images: Tensor, offsets: Tensor) -> Tensor:
    """Move images (B, C, H, W) by whole pixels, with zeros where nothing was: DiffAugment's translation.

    Zhao et al. 2020. The zeros at the edge show by how much an image was moved, so that images of different
    distributions stay different.

    Args:
        images: shape (B, C, H, W).
        offsets: down and to the right in pixels, whole numbers, (B, 2).
    """
    most = int(offsets.abs().max())
    height, width = images.shape[-2:]
    wide = F.pad(images, (most,) * 4)
    corners = (most - offsets).long().tolist()
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(wide, corners, strict=True)])
