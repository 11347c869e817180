"""The discriminator D: is this residual a photograph's or the denoiser's, given the decoder's distribution?"""

import torch
from torch import Tensor, nn

from models.core.gaussian import Gaussian
from models.core.layers import PyramidConfig, ResBlock, down, kaiming
from models.gan.denoiser import condition


class Discriminator(nn.Module):
    """D(r, mu, sigma) -> one logit, where r = (image - mu)/sigma; larger means more like a photograph.

    D reads the residual in standard units beside the condition, so that fine texture has the weight of a whole unit
    everywhere and the gradient penalty measures distances as p(x|z) does. Every training image brings its own
    condition: a mode that G drops is an image that D still sees. No normalisation layers; Kaiming weights.

    Args:
        size: image side in pixels, a power of two from 32 to 256.
        config: widths, blocks and patch, the mirror of the denoiser's first half.
        conditional: whether D sees more than the residual; a plain GAN's D does not.
    """

    def __init__(self, size: int, config: PyramidConfig, conditional: bool = True) -> None:
        super().__init__()
        self.size, self.config, self.conditional = size, config, conditional
        widths = config.channels(size)
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.patch),
            nn.Conv2d((12 if conditional else 3) * config.patch**2, widths[0], 3, padding=1),
        ]
        for i, width in enumerate(widths):
            layers += [down(widths[i - 1], width)] if i else []
            layers += [ResBlock(width) for _ in range(config.blocks)]
        layers += [nn.SiLU(), nn.Flatten(), nn.Linear(widths[-1] * 16, 1)]
        self.layers = nn.Sequential(*layers)
        kaiming(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, residual: Tensor, p: Gaussian) -> Tensor:
        """Logits (B,) for standardised residuals (B, 3, H, W) under p, mean and logstd (B, 3, H, W)."""
        seen = [residual, 2 * p.sample(residual) - 1, condition(p)] if self.conditional else [residual]
        return self.layers(torch.cat(seen, dim=1)).float().squeeze(1)
