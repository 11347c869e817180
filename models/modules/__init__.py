"""The training recipes, one Lightning module a stage."""

from models.modules.gan import GANModule
from models.modules.vae import VAEModule

__all__ = ["GANModule", "VAEModule"]
