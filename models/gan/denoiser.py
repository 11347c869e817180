"""The denoiser G: one pass from a noisy draw of p(x|z) to a clean image, a U-Net in units of the decoder's std."""

import torch
from einops import rearrange
from torch import Tensor, nn

from degrain.models.core.gaussian import Gaussian
from degrain.models.core.images import check_tensor
from degrain.models.core.layers import PyramidConfig, down, kaiming, levels, up


def condition_channels(p: Gaussian) -> Tensor:
    """Return p(x|z) as an input of G and D: the mean in [-1, 1] and log std, centred and scaled, (B, 6, H, W)."""
    return torch.cat([2 * p.mean - 1, 0.5 * (p.logstd + 3)], dim=1)


class Denoiser(nn.Module):
    """G(x~, mu, sigma) = mu + sigma * (g eps + U(eps, mu, log sigma)), eps = (x~ - mu)/sigma, with U a residual U-Net.

    U predicts a residual in units of sigma, in which the data have a variance of about 1 at every pixel; where sigma is
    at its floor G is deterministic, as it should be. The gain g is one learned number. A new G returns its draw (U is
    about 0, g is 1): it has the right variance over its noise and learns to give it structure, whereas a G that starts
    as the mean would first have to learn to use its noise.

    Args:
        size: image side in pixels, a power of two from 32 to 256.
        config: widths, blocks and patch of both halves.
        noise: whether U sees the noise; otherwise zeros, and G is a function of the mean and the std.
    """

    def __init__(self, size: int, config: PyramidConfig, noise: bool = True) -> None:
        super().__init__()
        self.size, self.config, self.noise = size, config, noise
        widths = config.channels(size)
        stem = nn.Conv2d(9 * config.patch**2, widths[0], 3, padding=1)
        self.stem = nn.Sequential(nn.PixelUnshuffle(config.patch), stem)
        self.downs = nn.ModuleList(
            nn.Sequential(*level) for level in levels(widths, config.blocks, down, blocks_first=True)
        )
        self.ups = nn.ModuleList()
        for widen, *blocks in levels(reversed(widths[:-1]), config.blocks, up, before=widths[-1]):
            self.ups += [widen, nn.Sequential(*blocks)]
        kaiming(self)
        head = nn.Conv2d(widths[0], 3 * config.patch**2, 3, padding=1)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        self.head = nn.Sequential(nn.SiLU(), head, nn.PixelShuffle(config.patch))
        self.gain = nn.Parameter(torch.ones(()), requires_grad=noise)
        self.to(memory_format=torch.channels_last)

    def forward(self, noise: Tensor, p: Gaussian) -> Tensor:
        """Denoise the draw x~ = p.sample(noise).

        Args:
            noise: (x~ - mu)/sigma, standard normal, (B, 3, H, W).
            p: the decoder's distribution, mean and logstd (B, 3, H, W).

        Returns:
            Images (B, 3, H, W) in [0, 1] units, not clipped.

        Raises:
            InputError: p or noise of another shape or type.
        """
        check_tensor("mean of p", p.mean, ("B", 3, self.size, self.size), self.gain)
        check_tensor("noise", noise, p.mean.shape, self.gain)
        noise = noise if self.noise else torch.zeros_like(noise)
        h = self.stem(torch.cat([noise, condition_channels(p)], dim=1))
        skips = []
        for stage in self.downs:
            h = stage(h)
            skips.append(h)
        skips.pop()
        for widen, stage in zip(self.ups[::2], self.ups[1::2], strict=True):
            h = stage(widen(h) + skips.pop())
        return p.mean + p.std * (self.gain * noise + self.head(h).float())

    def draws(self, noise: Tensor, p: Gaussian) -> Tensor:
        """Denoise K draws of each z: noise (K, B, 3, H, W) and p (B, 3, H, W) -> (K, B, 3, H, W)."""
        check_tensor("noise", noise, ("K", *p.mean.shape), self.gain)
        k = len(noise)
        images = self(rearrange(noise, "k b c h w -> (k b) c h w"), p.repeat(k))
        return rearrange(images, "(k b) c h w -> k b c h w", k=k)
