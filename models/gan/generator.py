"""The generator of a plain GAN, without a VAE: from z to an image, through the layers of the decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.core.images import check_tensor
from degrain.models.core.layers import PyramidConfig
from degrain.models.vae.network import Decoder, VAEConfig


@dataclass(frozen=True)
class GeneratorConfig(PyramidConfig):
    """The decoder's pyramid and its number of latents.

    Args:
        latent: number of latents D.
    """

    latent: int = 128


class Generator(nn.Module):
    """z -> image: the VAE's decoder with the mean as its only output.

    Args:
        size: image side in pixels, a power of two from 32 to 256.
        config: latents, widths, blocks and patch.

    Raises:
        InputError: size and widths do not fit, or there are no latents.
    """

    def __init__(self, size: int, config: GeneratorConfig) -> None:
        super().__init__()
        if config.latent < 1:
            raise InputError(f"generator: latent {config.latent}: must be at least 1")
        self.size, self.config = size, config
        self.decoder = Decoder(size, VAEConfig(config.latent, decoder=config, std="fixed"))
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] units, not clipped, for standard normal z (B, D).

        Raises:
            InputError: z of another shape or type.
        """
        check_tensor("codes z", z, ("B", self.config.latent), self.decoder.layers[0].weight)
        return self.decoder(z).mean
