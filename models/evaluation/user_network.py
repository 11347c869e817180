"""A user's own feature network, named by its import path."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from degrain.models.core.errors import InputError, first_line
from degrain.models.evaluation.feature_net import FeatureNet, probe_images

TOLERANCE = 1e-3  # of the largest feature: by this much an image's features may depend on its batch


class UserFeatures(FeatureNet):
    """Features of `package.module:factory`; docs/evaluation.md gives an example.

    `factory()` returns the network, an nn.Module or any callable: uint8 images (B, 3, H, W), RGB, of any B, H and W, to
    finite floats (B, D) on any device. It may write to its input. A module is put into evaluation mode and moved to
    the device of the images; any other callable gets images on the CPU. The module is found as by `python -m`: in the
    current folder or among the installed packages.

    It is tried on four images when it is built: whatever is wrong with it is said before anything long begins.

    Raises:
        InputError: it cannot be found, imported or built, or does not keep to what is said above.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        with _current_folder_first():
            self.net = self._call("the factory", _find(name))
        if not callable(self.net):
            raise self._error(f"the factory returns {type(self.net).__name__}, not a callable")
        if isinstance(self.net, nn.Module):
            self.net.requires_grad_(False)
        self.eval()
        self._try()

    def features(self, levels: Tensor) -> Tensor:
        # A copy, as another network may look at the same images.
        features = self._call(f"the network on images {tuple(levels.shape)}", lambda: self.net(levels.clone()))
        if not isinstance(features, Tensor):
            raise self._error(f"the network returns {type(features).__name__}, not a tensor (B, D)")
        if features.ndim != 2 or not features.shape[1]:
            raise self._error(f"features {tuple(features.shape)} of {len(levels)} images are not (B, D)")
        if len(features) != len(levels):
            raise self._error(f"{len(features)} rows of features for {len(levels)} images")
        if not features.is_floating_point():
            raise self._error(f"features of {features.dtype}; must be floats")
        if (dimension := getattr(self, "dimension", features.shape[1])) != features.shape[1]:
            raise self._error(f"{dimension} features per image, and {features.shape[1]} on other images")
        if bad := int((~features.float().isfinite()).sum()):
            raise self._error(f"{bad:,} of {features.numel():,} features are not finite")
        return features

    def _try(self) -> None:
        """Learn D, and refuse features that depend on chance or on the other images of the batch."""
        images = probe_images()
        first, again = self(images), self(images)
        self.dimension = first.shape[1]
        if not first.equal(again):
            raise self._error("the same images have other features at a second call; make it deterministic")
        alone = torch.cat([self(image[None]) for image in images])
        if (alone - first).abs().max() > TOLERANCE * first.abs().max():
            raise self._error("an image has other features alone than among others; they must not depend on the batch")

    def _call(self, what: str, function: Callable[[], object]) -> object:
        try:
            return function()
        except torch.OutOfMemoryError:  # not the fault of the network
            raise
        except Exception as error:
            raise self._error(f"{what} fails: {type(error).__name__}: {first_line(error)}") from error

    def _error(self, what: str) -> InputError:
        return InputError(f"feature network `{self.name}`: {what}")


def _find(name: str) -> Callable[[], object]:
    """Import the factory `package.module:factory`."""
    module_name, _, attribute = name.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(f"feature network `{name}`: must be package.module:factory")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            place = f"neither in the current folder {Path.cwd()} nor among the installed packages"
            raise InputError(f"feature network `{name}`: no module {error.name} {place}") from None
        raise InputError(f"feature network `{name}`: its module needs {error.name}; install it") from error
    except Exception as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"feature network `{name}`: its module cannot be imported: {what}") from error
    place = getattr(module, "__file__", None) or "a folder without __init__.py"
    if not hasattr(module, attribute):
        near = get_close_matches(attribute, [known for known in vars(module) if not known.startswith("_")], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"feature network `{name}`: no {attribute} in {place}{hint}")
    if not callable(factory := getattr(module, attribute)):
        kind = type(factory).__name__
        raise InputError(f"feature network `{name}`: {attribute} in {place} is of type {kind}, not a function")
    return factory


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """Import from the current folder first; afterwards from it last, for imports that happen in the network's calls."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)
