"""The training recipes of both stages, one Lightning module each."""

from degrain.models.training.gan import GANModule
from degrain.models.training.plain_gan import PlainGANModule
from degrain.models.training.vae import VAEModule

__all__ = ["GANModule", "PlainGANModule", "VAEModule"]
