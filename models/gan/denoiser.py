"""The denoiser G: one pass from a noisy draw of p(x|z) to a clean image, a U-Net in the decoder's own units."""

import torch
from einops import rearrange
from torch import Tensor, nn

from models.core.gaussian import Gaussian
from models.core.layers import PyramidConfig, ResBlock, down, kaiming, up


def condition(p: Gaussian) -> Tensor:
    """What both G and D are told of p(x|z): the mean in [-1, 1] and log std, centred and scaled, (B, 6, H, W)."""
    return torch.cat([2 * p.mean - 1, 0.5 * (p.logstd + 3)], dim=1)


class Denoiser(nn.Module):
    """G(x~, mu, sigma) = mu + sigma * (g eps + U(eps, mu, log sigma)), eps = (x~ - mu)/sigma, with U a residual U-Net.

    The output is a standardised residual put back in place: the network works in units where the data have a variance
    of about 1 at every pixel, and where sigma sits at its floor G is deterministic, as it should be. The gain g is one
    learned number. A new G is the identity, U about 0 and g 1: it has the right variance over its noise and is to give
    it structure, where one that starts as the mean would first have to find out that there is noise.

    Args:
        size: image side in pixels, a power of two from 32 to 256.
        config: widths, blocks and patch of both halves.
        noise: whether U sees the noise, or zeros in its place: then G is a function of the mean and the std.
    """

    def __init__(self, size: int, config: PyramidConfig, noise: bool = True) -> None:
        super().__init__()
        self.size, self.config, self.noise = size, config, noise
        widths = config.channels(size)
        stem = nn.Conv2d(9 * config.patch**2, widths[0], 3, padding=1)
        self.stem = nn.Sequential(nn.PixelUnshuffle(config.patch), stem)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths):
            blocks = [ResBlock(width) for _ in range(config.blocks)]
            self.downs.append(nn.Sequential(*([down(widths[i - 1], width)] if i else []), *blocks))
        for i in reversed(range(len(widths) - 1)):
            self.ups.append(up(widths[i + 1], widths[i]))
            self.ups.append(nn.Sequential(*[ResBlock(widths[i]) for _ in range(config.blocks)]))
        kaiming(self)
        head = nn.Conv2d(widths[0], 3 * config.patch**2, 3, padding=1)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        self.head = nn.Sequential(nn.SiLU(), head, nn.PixelShuffle(config.patch))
        self.gain = nn.Parameter(torch.ones(()), requires_grad=noise)
        self.to(memory_format=torch.channels_last)

    def forward(self, noise: Tensor, p: Gaussian) -> Tensor:
        """Denoise the draw p.sample(noise).

        Args:
            noise: (x~ - mu)/sigma, standard normal, (B, 3, H, W).
            p: the decoder's distribution, mean and logstd (B, 3, H, W).

        Returns:
            Images (B, 3, H, W) in [0, 1] units, not clipped.
        """
        noise = noise if self.noise else torch.zeros_like(noise)
        h = self.stem(torch.cat([noise, condition(p)], dim=1))
        skips = []
        for stage in self.downs:
            h = stage(h)
            skips.append(h)
        skips.pop()
        for widen, stage in zip(self.ups[::2], self.ups[1::2], strict=True):
            h = stage(widen(h) + skips.pop())
        return p.mean + p.std * (self.gain * noise + self.head(h).float())

    def draws(self, noise: Tensor, p: Gaussian) -> Tensor:
        """K denoisings of each z: noise (K, B, 3, H, W) and p (B, 3, H, W) -> (K, B, 3, H, W)."""
        k = len(noise)
        images = self(rearrange(noise, "k b c h w -> (k b) c h w"), p.repeat(k))
        return rearrange(images, "(k b) c h w -> k b c h w", k=k)
