"""A second discriminator, which sees images as a frozen classifier does."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import ParametrizationList

WIDTH = 64
"""Channels of a head."""


class FeatureDiscriminator(nn.Module):
    """D(image, mean) -> one logit from features of a frozen network; larger means more like a photograph.

    A classifier of a million photographs knows what a few thousand do not teach D. Heads on several levels see the
    features of an image and those of the decoder's mean side by side; the logit is their average. Alone such a D lets
    through what its features do not see, so it stands beside the one of pixels (Kumari et al. 2022, "Ensembling
    off-the-shelf models for GAN training"; Sauer et al. 2021, "Projected GANs converge faster"). Its heads have
    spectral norm (Miyato et al. 2018) where the other has gradient penalties, which would go through the whole network.
    The norms follow the weights once a step, by `follow`, and not with each pass: a batch in pieces has the same ones.

    Args:
        levels: the frozen network, images (B, 3, H, W) in [0, 1] units to a list of features (B, C, h, w); it has C of
            each as `channels`.
    """

    def __init__(self, levels: nn.Module) -> None:
        super().__init__()
        self.levels = levels
        self.heads = nn.ModuleList(head(2 * channels) for channels in levels.channels)
        self.to(memory_format=torch.channels_last).train()

    def train(self, mode: bool = True) -> "FeatureDiscriminator":
        super().train(mode)
        for weight in self.weights():
            weight[0].eval()
        return self

    def weights(self) -> list[ParametrizationList]:
        """Return the heads' weights, each with its norm."""
        return [module for module in self.modules() if isinstance(module, ParametrizationList)]

    @torch.no_grad()
    def follow(self) -> None:
        """Bring the spectral norms nearer to those of the weights, by one power iteration."""
        for weight in self.weights():
            weight[0].train()(weight.original)
            weight[0].eval()

    def forward(self, image: Tensor, beside: list[Tensor]) -> Tensor:
        """Return logits (B,) of images (B, 3, H, W) in [0, 1] units, whose means have the features `beside`."""
        pairs = zip(self.heads, self.levels(image), beside, strict=True)
        logits = [head(torch.cat([own, theirs], 1)).float().mean((1, 2, 3)) for head, own, theirs in pairs]
        return torch.stack(logits).mean(0)


def head(channels: int) -> nn.Sequential:
    """Return a head: features (B, C, h, w) to a logit for each position, (B, 1, h, w)."""
    layers = nn.Conv2d(channels, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 1, 1)
    first, second, last = (spectral_norm(layer) for layer in layers)
    return nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), last)
