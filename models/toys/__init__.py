"""The toy-Gaussian laboratory: closed forms, and recipes that train towards them. Nothing else imports it."""

from models.toys.collapse import CollapseModule
from models.toys.gan import ToyGANModule
from models.toys.grid import ToyGridModule
from models.toys.mixture import ToyMixtureModule
from models.toys.twins import ToyTwinsModule
from models.toys.vectors import ToyVectorsModule

__all__ = ["CollapseModule", "ToyGANModule", "ToyGridModule", "ToyMixtureModule", "ToyTwinsModule", "ToyVectorsModule"]
