"""The training recipes, one Lightning module a stage, and those of the toys."""

from models.modules.collapse import CollapseModule
from models.modules.gan import GANModule
from models.modules.plain_gan import PlainGANModule
from models.modules.toy import ToyGridModule
from models.modules.toy_gan import ToyGANModule
from models.modules.toy_mixture import ToyMixtureModule
from models.modules.toy_twins import ToyTwinsModule
from models.modules.toy_vectors import ToyVectorsModule
from models.modules.vae import VAEModule

__all__ = [
    "CollapseModule",
    "GANModule",
    "PlainGANModule",
    "ToyGANModule",
    "ToyGridModule",
    "ToyMixtureModule",
    "ToyTwinsModule",
    "ToyVectorsModule",
    "VAEModule",
]
