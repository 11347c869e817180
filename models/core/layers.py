"""Building blocks shared by all networks. Axes: B batch, C channels, H height, W width."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import log2

import torch.nn.functional as F
from torch import Tensor, nn

from degrain.models.core.errors import InputError

Resize = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class PyramidConfig:
    """Widths of a stack of resolutions, each half the one before, from size/patch down to 4x4.

    Args:
        widths: channels at each resolution, finest first; the last entry holds for all coarser ones.
        blocks: residual blocks at each resolution.
        patch: side of the squares of pixels that enter and leave as one position (space to depth).
    """

    widths: tuple[int, ...] = (64, 96, 128, 192)
    blocks: int = 1
    patch: int = 2

    def channels(self, size: int) -> list[int]:
        """Return the channels from the finest resolution, size/patch, to 4x4.

        Raises:
            InputError: the size is no power of two from 32 to 256, or widths, blocks or patch cannot fill it.
        """
        if size not in (32, 64, 128, 256):
            raise InputError(f"image size {size}: must be 32, 64, 128 or 256")
        if not self.widths or min(self.widths) < 1 or self.blocks < 1 or self.patch not in (1, 2, 4):
            raise InputError(f"network {self}: widths and blocks must be positive and patch 1, 2 or 4")
        levels = int(log2(size // self.patch // 4)) + 1
        if len(self.widths) > levels:
            raise InputError(
                f"{len(self.widths)} widths, but {size} pixels with patch {self.patch} have {levels} levels"
            )
        return [*self.widths, *[self.widths[-1]] * (levels - len(self.widths))]


class ResBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the identity in a new network, whose last convolution is zero.

    There is no normalisation: it costs a third of the time on a CPU, and batch statistics would couple the images
    of a batch, which a per-image likelihood and a gradient penalty both forbid.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))  # (B, C, H, W)


def down(inputs: int, outputs: int) -> nn.Sequential:
    """Halve the resolution: (B, inputs, H, W) -> (B, outputs, H/2, W/2)."""
    return nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1))


def up(inputs: int, outputs: int) -> nn.Sequential:
    """Double the resolution: (B, inputs, H, W) -> (B, outputs, 2H, 2W). The convolution runs at the lower one."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.Upsample(scale_factor=2, mode="nearest"))


def levels(
    widths: Iterable[int], blocks: int, resize: Resize, before: int | None = None, blocks_first: bool = False
) -> Iterator[list[nn.Module]]:
    """Yield the layers of each level of a pyramid: `resize` from the level before, then residual blocks.

    Args:
        widths: channels of the levels, in the order in which the network passes them.
        blocks: residual blocks of each level.
        resize: `down` or `up`.
        before: channels of the level before the first; None if there is nothing to resize.
        blocks_first: build the blocks before `resize`; changes the initial weights of a seed and nothing else.
    """
    for width in widths:
        built = [ResBlock(width) for _ in range(blocks)] if blocks_first else []
        resized = [resize(before, width)] if before else []
        yield resized + (built or [ResBlock(width) for _ in range(blocks)])
        before = width


def kaiming(network: nn.Module) -> None:
    """Give every layer but those that start at zero Kaiming fan-in weights, in place.

    A discriminator needs them: PyTorch's default shrinks the signal layer by layer, and D learns nothing for hundreds
    of steps.
    """
    zero = {block.conv2 for block in network.modules() if isinstance(block, ResBlock)}
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module not in zero:
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
