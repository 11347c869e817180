"""The toy-Gaussian laboratory: closed forms, and recipes that train towards them. Nothing else imports it."""

from degrain.models.toys.collapse import CollapseModule
from degrain.models.toys.gan import ToyGANModule
from degrain.models.toys.grid import ToyGridModule
from degrain.models.toys.mixture import ToyMixtureModule
from degrain.models.toys.twins import ToyTwinsModule
from degrain.models.toys.vectors import ToyVectorsModule

__all__ = ["CollapseModule", "ToyGANModule", "ToyGridModule", "ToyMixtureModule", "ToyTwinsModule", "ToyVectorsModule"]
