"""The discriminator D: tells residuals of photographs from the denoiser's, given the decoder's distribution."""

from itertools import chain

import torch
from torch import Tensor, nn

from degrain.models.core.gaussian import Gaussian
from degrain.models.core.layers import PyramidConfig, down, kaiming, levels
from degrain.models.gan.denoiser import condition_channels


class Discriminator(nn.Module):
    """D(r, mu, sigma) -> one logit, where r = (image - mu)/sigma; larger means more like a photograph.

    D sees the condition and the residual in units of the std: fine texture has a size of about 1 everywhere, and the
    gradient penalty measures distances as p(x|z) does. Every training image has its own condition: D still sees the
    images of a mode that G drops. No normalisation layers; Kaiming weights.

    Args:
        size: image side in pixels, a power of two from 32 to 256.
        config: widths, blocks and patch, as of the denoiser's first half.
        conditional: whether D sees the condition; a plain GAN's D does not.
    """

    def __init__(self, size: int, config: PyramidConfig, conditional: bool = True) -> None:
        super().__init__()
        self.size, self.config, self.conditional = size, config, conditional
        widths = config.channels(size)
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(config.patch),  # (B, 12 p^2 or 3 p^2, H/p, W/p)
            nn.Conv2d((12 if conditional else 3) * config.patch**2, widths[0], 3, padding=1),
            *chain.from_iterable(levels(widths, config.blocks, down)),  # (B, C, 4, 4)
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(16 * widths[-1], 1),
        )
        kaiming(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, residual: Tensor, p: Gaussian) -> Tensor:
        """Return logits (B,) for standardised residuals (B, 3, H, W) under p, mean and logstd (B, 3, H, W)."""
        seen = [residual, 2 * p.sample(residual) - 1, condition_channels(p)] if self.conditional else [residual]
        return self.layers(torch.cat(seen, dim=1)).float().squeeze(1)
