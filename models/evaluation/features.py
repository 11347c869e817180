"""Feature networks by name. The metrics compare the features that they make of images."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from degrain.models.core.errors import InputError
from degrain.models.evaluation.dinov2 import DinoFeatures
from degrain.models.evaluation.efficientnet import SIDES, EfficientNetFeatures
from degrain.models.evaluation.feature_net import FeatureNet
from degrain.models.evaluation.inception import InceptionFeatures
from degrain.models.evaluation.user_network import UserFeatures

DEFAULT_NET = "efficientnet-lite0"
FEATURE_NETS = (*SIDES, "inception", "dinov2")
"""Names of the built-in networks."""

WITH_WEIGHTS = ("inception", "dinov2")
"""Networks that read a file of weights."""


def feature_nets(
    names: Sequence[str], weights: Mapping[str, str | Path] | None = None, download: bool = False
) -> list[FeatureNet]:
    """Return the networks of the names, in their order, on the CPU, each tried on a few images.

    Args:
        names: of FEATURE_NETS, or import paths `package.module:factory` (see UserFeatures); at least one, each once.
        weights: name -> file, for networks of WITH_WEIGHTS.
        download: fetch Inception's weights if they are missing.

    Raises:
        InputError: no names, an unknown one or one twice; weights for another network; a network cannot be built. All
            names are checked before the first network is built.
    """
    names, weights = [names] if isinstance(names, str) else list(names), weights or {}
    if not names:
        raise InputError(f"feature networks: none named; name at least one, such as {DEFAULT_NET}")
    for name in names:
        _check_name(name)
        if names.count(name) > 1:
            raise InputError(f"feature network `{name}`: named twice; name each once")
    for name in weights:
        if name not in names:
            raise InputError(f"weights of `{name}`: it is none of the named networks, {', '.join(names)}")
    if download and "inception" not in names:
        raise InputError("download: fetches Inception's weights, and inception is none of the named networks")
    return [feature_net(name, weights.get(name), download and name == "inception") for name in names]


def feature_net(name: str, weights: str | Path | None = None, download: bool = False) -> FeatureNet:
    """Return the network of a name, on the CPU, with its identity computed there.

    Args:
        name: of FEATURE_NETS, or `package.module:factory`.
        weights: file of the weights of a network of WITH_WEIGHTS.
        download: fetch Inception's weights if they are missing.

    Raises:
        InputError: no such network, its package or weights are missing, or it takes no weights.
    """
    _check_name(name)
    if (weights and name not in WITH_WEIGHTS) or (download and name != "inception"):
        raise InputError(f"{name}: takes no such option; weights is for inception and dinov2, download for inception")
    if name in SIDES:
        net = EfficientNetFeatures(name)
    elif name == "inception":
        net = InceptionFeatures(weights, download)
    elif name == "dinov2":
        net = DinoFeatures(weights)
    else:
        net = UserFeatures(name)
    _ = net.identity  # here and not on a GPU, which rounds differently
    return net


def _check_name(name: str) -> None:
    """Refuse a name that is neither known nor an import path."""
    if name in FEATURE_NETS or ":" in name:
        return
    near = get_close_matches(name.lower(), FEATURE_NETS, 1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    known = ", ".join(FEATURE_NETS)
    raise InputError(f"feature network `{name}`: {hint}must be one of {known}, or package.module:factory")
