"""The training recipes of both stages, one Lightning module each."""

from models.training.gan import GANModule
from models.training.plain_gan import PlainGANModule
from models.training.vae import VAEModule

__all__ = ["GANModule", "PlainGANModule", "VAEModule"]
