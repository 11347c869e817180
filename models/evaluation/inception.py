"""The Inception of FID."""

from pathlib import Path

import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.evaluation.feature_net import FeatureNet, read_weights

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_HASH = "6726825d"  # the first digits of its SHA-256


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
                or_fetch = "" if weights else ", give the file by weights or let it be fetched with download=true"
                raise InputError(f"{self.name}: no weights {path}; put {INCEPTION_FILE} there{or_fetch}")
            _download(URL_INCEPTION_V3, path)
        read_weights(self.name, path)  # torch-fidelity reads them again, and says less when it fails
        try:
            self.net = FeatureExtractorInceptionV3(self.name, ["2048"], feature_extractor_weights_path=str(path))
        except (RuntimeError, TypeError):
            raise InputError(
                f"{self.name}: {path} holds the weights of another network; get {INCEPTION_FILE}"
            ) from None
        self.eval()

    def features(self, levels: Tensor) -> Tensor:
        return self.net(levels)[0]


def _download(url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=INCEPTION_HASH)
    except (OSError, RuntimeError) as error:  # no network or no space; a file of another content
        raise InputError(f"inception: cannot fetch {url} ({error}); put it at {path} by hand") from None
