"""Masked convolutions that condition each pixel on z and the pixels before it in raster order: PixelVAE's decoder.

Gulrajani et al. 2017, with Gaussians instead of softmaxes and, between the colours of a pixel, the linear dependence
of PixelCNN++ (Salimans et al. 2017). Drawing an image takes one pass a pixel.
Axes: B batch, W width of the stack, C context channels, H height and width of the image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian


@dataclass(frozen=True)
class PixelConfig:
    """A stack of masked convolutions over the image.

    Args:
        blocks: residual blocks, each of which sees one pixel further; with 0 there is no stack, and the pixels are
            independent given z.
        width: channels.
        context: channels from the decoder to the stack in addition to each pixel's mean and logstd.
    """

    blocks: int = 0
    width: int = 64
    context: int = 8


class CausalConv(nn.Conv2d):
    """A convolution that sees the pixels above and, in its own row, to the left, up to `reach` pixels away.

    With `itself` it also sees the pixel in its middle.
    """

    def __init__(self, inputs: int, outputs: int, reach: int, itself: bool) -> None:
        super().__init__(inputs, outputs, (reach + 1, 2 * reach + 1))
        self.reach = reach
        visible = torch.ones(self.kernel_size)
        visible[reach, reach + int(itself) :] = 0
        self.register_buffer("visible", visible, persistent=False)

    @property
    def kernel(self) -> Tensor:
        """The weights with zeros under the mask, (outputs, inputs, reach + 1, 2 reach + 1)."""
        return self.weight * self.visible

    def padded(self, x: Tensor) -> Tensor:
        """Pad x (B, C, H, H) with zeros above, to the left and to the right, as `at` needs it."""
        return F.pad(x, (self.reach, self.reach, self.reach, 0))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.padded(x), self.kernel, self.bias)

    def at(self, padded: Tensor, row: int, column: int) -> Tensor:
        """Return the output at one pixel, (B, outputs), from the padded input."""
        seen = padded[:, :, row : row + self.reach + 1, column : column + 2 * self.reach + 1]
        return F.linear(seen.flatten(1), self.kernel.flatten(1), self.bias)


class PixelStack(nn.Module):
    """(x_<i, z) -> 6 corrections of the decoder's mean and logstd at pixel i, and 3 slopes between its colours.

    A new stack corrects nothing. It sees 3 pixels far and one more per block, to the left and above; to the right only
    what lies above within 45 degrees.

    Args:
        config: width, context, and blocks, at least one.

    Raises:
        InputError: blocks, width or context < 1.
    """

    def __init__(self, config: PixelConfig) -> None:
        super().__init__()
        if min(config.blocks, config.width, config.context) < 1:
            raise InputError(f"net.pixels {config}: blocks, width and context must be at least 1")
        width = config.width
        self.first = CausalConv(3, width, 3, itself=False)
        self.condition = nn.Conv2d(6 + config.context, width, 1)
        self.blocks = nn.ModuleList(CausalConv(width, width, 1, itself=True) for _ in range(config.blocks))
        self.head = nn.Conv2d(width, 9, 1)
        for layer in (self.first, self.condition, *self.blocks):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        for weights in self.head.parameters():
            nn.init.zeros_(weights)

    def forward(self, x: Tensor, decoded: Tensor) -> Tensor:
        """Return (B, 9, H, H) for images x (B, 3, H, H) in [0, 1] and the decoder's output for z, (B, 6 + C, H, H)."""
        h = self.first(2 * x - 1) + self.condition(decoded)  # (B, W, H, H)
        for block in self.blocks:
            h = h + block(F.silu(h))
        return self.head(F.silu(h)).float()

    def draw(self, decoded: Tensor, pixel: Callable[[int, int, Tensor], Tensor]) -> Tensor:
        """Draw images (B, 3, H, H), pixel by pixel; every layer keeps its input and computes one output a pixel.

        Args:
            decoded: the decoder's output for z, (B, 6 + C, H, H).
            pixel: (row, column, the stack's output (B, 9) there) -> that pixel, (B, 3) in [0, 1].
        """
        condition = self.condition(decoded)  # (B, W, H, H)
        height, width = condition.shape[2:]
        pixels, image = [], self.first.padded(torch.zeros_like(decoded[:, :3]))
        inputs = [block.padded(torch.zeros_like(condition)) for block in self.blocks]
        for row, column in product(range(height), range(width)):
            h = self.first.at(image, row, column) + condition[:, :, row, column]  # (B, W)
            for block, seen in zip(self.blocks, inputs, strict=True):
                seen[:, :, row + 1, column + 1] = F.silu(h)
                h = h + block.at(seen, row, column)
            output = self.head(rearrange(F.silu(h), "b w -> b w 1 1"))
            pixels.append(pixel(row, column, output.flatten(1).float()))
            image[:, :, row + 3, column + 3] = 2 * pixels[-1] - 1
        return rearrange(torch.stack(pixels), "(h w) b c -> b c h w", h=height)


def coloured(p: Gaussian, slopes: Tensor, x: Tensor) -> Gaussian:
    """Shift means by the colours before: green + a (x_red - red), blue + b (x_red - red) + c (x_green - green).

    Args:
        p: of the pixels, (B, 3, ...).
        slopes: a, b and c, (B, 3, ...).
        x: the pixels, (B, 3, ...); blue is not used.
    """
    (red, green, blue), (a, b, c) = p.mean.unbind(1), slopes.unbind(1)
    off_red = x[:, 0] - red
    green = green + a * off_red
    blue = blue + b * off_red + c * (x[:, 1] - green)
    return Gaussian(torch.stack([red, green, blue], 1), p.logstd)


def eight_bit_draw(p: Gaussian, noise: Tensor) -> Tensor:
    """Draw on the grid k/255 by clipping to [0, 1] and rounding, which gives exactly the probabilities of the bins."""
    return (255 * p.sample(noise).clamp(0, 1)).round() / 255
