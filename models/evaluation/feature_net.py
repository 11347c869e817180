"""What every feature network has in common: images in, features out, and an identity for caches and reports."""

import hashlib
import pickle
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.core.images import eight_bit
from degrain.models.core.precision import full_precision

PROBE_SIDE = 64  # pixels


class FeatureNet(nn.Module):
    """Images (B, 3, H, W), uint8 or floats in [0, 1], to features (B, D) float32.

    Floats are rounded to 8 bits first (see eight_bit). The network is always in evaluation mode, without gradients and
    in float32, also under autocast and without TF32: an image has the same features in any batch, to about 1e-5.

    Attributes:
        name: its name in options and metrics.
        dimension: D.
    """

    name: str
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

    @property
    def device(self) -> torch.device:
        """The device of its weights; the CPU if it has none."""
        return next((tensor.device for tensor in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    @cached_property
    def identity(self) -> str:
        """Its name and 12 digits of a hash of the features of fixed images: the key of statistics on disk.

        Two networks of one name, such as two versions of a user's function or two files of weights, have different
        identities. It is computed once, on the device where it is first asked for (feature_net asks on the CPU).
        Another kind of processor may round differently: statistics are then measured anew there, but never mixed.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in the same order, however many cores there are
        try:
            features = self(probe_images().to(self.device)).cpu().contiguous()
        finally:
            torch.set_num_threads(threads)
        return f"{self.name}-{hashlib.sha256(features.numpy().tobytes()).hexdigest()[:12]}"


def probe_images(side: int = PROBE_SIDE) -> Tensor:
    """Return four fixed images (4, 3, side, side) uint8: noise, coarse noise, a gradient of colours, stripes.

    They are made of integers alone, so that they are the same on every machine and with every version.
    """
    y, x, channel = torch.meshgrid(*(torch.arange(n) for n in (side, side, 3)), indexing="ij")  # (H, W, C) each

    def noise(y: Tensor, x: Tensor) -> Tensor:
        mixed = (y * 7919 + x * 104729 + channel * 1299709 + 12345) % 65521
        return (mixed * mixed % 65521) % 256

    gradient = torch.where(channel == 0, x, torch.where(channel == 1, y, x + y)) * 255 // (2 * side)
    stripes = (x // 4 + channel) % 2 * 255
    images = torch.stack([noise(y, x), noise(y // 8, x // 8), gradient, stripes])
    return images.permute(0, 3, 1, 2).contiguous().byte()


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
    return torch.cat([net(rows.to(net.device)).cpu() for rows in images.split(batch)])


def read_weights(name: str, path: Path) -> dict[str, Tensor]:
    """Read a state dict to the CPU, of safetensors or of torch.save, without running code of the file.

    Raises:
        InputError: no such file, not such weights, or the file would run code.
    """
    if not path.is_file():
        raise InputError(f"{name}: no weights {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = type(error).__name__
        raise InputError(
            f"{name}: weights {path} cannot be read ({reason}); give another file, or get it anew"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{name}: {path} holds no weights by name; get the file anew")
    return state
