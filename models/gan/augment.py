"""Augmentation of what the discriminator sees."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def offsets(uniform: Tensor, most: int) -> Tensor:
    """Return whole numbers of pixels, equally likely from -most to most, for uniform noise in [0, 1) of any shape."""
    return (uniform * (2 * most + 1)).floor() - most


def translated(images: Tensor, offsets: Tensor, most: int) -> Tensor:
    """Move images (B, C, H, W) by whole pixels, with zeros where nothing was: DiffAugment's translation.

    Zhao et al. 2020. The zeros at the edge show by how much an image was moved, so that images of different
    distributions stay different. The offsets stay on the device: the host waits for nothing.

    Args:
        images: shape (B, C, H, W).
        offsets: down and to the right in pixels, whole numbers, (B, 2).
        most: largest absolute offset.
    """
    channels, height, width = images.shape[1:]
    top, left = (most - offsets).long()[:, :, None].unbind(1)  # (B, 1) each, in the padded image
    rows = top + torch.arange(height, device=images.device)  # (B, H)
    columns = left + torch.arange(width, device=images.device)  # (B, W)
    pixels = rearrange(rows * (width + 2 * most), "b h -> b h 1") + rearrange(columns, "b w -> b 1 w")
    padded = rearrange(F.pad(images, (most,) * 4), "b c h w -> b c (h w)")
    moved = padded.gather(2, rearrange(pixels, "b h w -> b 1 (h w)").expand(-1, channels, -1))
    return rearrange(moved, "b c (h w) -> b c h w", h=height)
