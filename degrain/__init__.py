"""degrain: a VAE whose decoder gives a distribution for every pixel, and a GAN that denoises its samples.

    import degrain

    model = degrain.load("pretrained/gan_celeba64.safetensors")
    model.sample(8, seed=0).show()

The names of `__all__` are imported when they are first used: train.py and sample.py measure the machine's load before
they import torch.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from degrain.api import Model, load
    from degrain.images import Images
    from degrain.models.core.errors import InputError
    from degrain.models.core.gaussian import Gaussian

__version__ = "0.2.0"
__all__ = ["Gaussian", "Images", "InputError", "Model", "load"]

HOMES = {
    "Gaussian": "degrain.models.core.gaussian",
    "Images": "degrain.images",
    "InputError": "degrain.models.core.errors",
    "Model": "degrain.api",
    "load": "degrain.api",
}
"""Name -> module that defines it."""

if not (Path(__file__).parent / "models").is_dir():  # a checkout: the packages are beside this folder, not in it
    __path__.append(str(Path(__file__).parent.parent))


def __getattr__(name: str) -> Any:
    """Import a name of `__all__`."""
    if name not in HOMES:
        raise AttributeError(f"module 'degrain' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    """List the names that are not imported yet, too."""
    return sorted({*globals(), *HOMES})
