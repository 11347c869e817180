"""DINOv2 as feature network, from a file of weights that the user gives."""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.evaluation.feature_net import FeatureNet, read_weights

SIZES = {384: "small", 768: "base", 1024: "large"}  # width -> size of the transformer; the large one is ViT-L/14
SIDE, PATCH = 224, 14  # pixels
OFFSET = 0.1  # of the positions' resampling in DINOv2's own code
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of values in [0, 1]


class DinoFeatures(FeatureNet):
    """DINOv2 (Oquab et al. 2023): the class token after the last norm, D = 1,024 for ViT-L/14.

    Stein et al. 2023 found that distances of its ViT-L/14 agree with people's judgement of generated images where those
    of Inception do not. Input as there: 224 pixels (bicubic), ImageNet's mean and std. Positions are resampled from the
    518 pixels of the training as DINOv2's own code does.

    Args:
        weights: dinov2_vitl14_pretrain.pth or timm's weights as safetensors; the small and base sizes work too.

    Raises:
        InputError: timm is not installed; no weights; they cannot be read or are of another network.
    """

    name = "dinov2"

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        if weights is None:
            raise InputError(
                f"{self.name}: brings no weights; give the file by weights, such as dinov2_vitl14_pretrain.pth of "
                "DINOv2's release or model.safetensors of timm's vit_large_patch14_dinov2.lvd142m"
            )
        try:
            import timm
        except ImportError as error:
            raise InputError(f"{self.name}: no package {error.name}; pip install timm") from None
        state = read_weights(self.name, Path(weights))
        state.pop("mask_token", None)  # of the training alone
        try:
            self.dimension = state["cls_token"].shape[-1]
            state["pos_embed"] = _resample_positions(state["pos_embed"].float())
            architecture = f"vit_{SIZES[self.dimension]}_patch14_dinov2"
            net = timm.create_model(architecture, pretrained=False, num_classes=0, img_size=SIDE)
            net.load_state_dict(state)
        except (KeyError, RuntimeError, IndexError, AttributeError, ValueError):
            raise InputError(
                f"{self.name}: {weights} holds the weights of another network; must be those of DINOv2's ViT-S/14, "
                "ViT-B/14 or ViT-L/14 without registers"
            ) from None
        self.net = net.requires_grad_(False)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, rearrange(torch.tensor(values), "c -> c 1 1"), persistent=False)
        self.eval()

    def features(self, levels: Tensor) -> Tensor:
        x = levels.float()
        if x.shape[2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)  # Pillow's, unrounded
        tokens = self.net.forward_features((x / 255 - self.mean) / self.std)  # (B, 1 + patches, D)
        return tokens[:, 0]


def _resample_positions(positions: Tensor) -> Tensor:
    """Resample positions (1, 1 + n n, D) to the patches of 224 pixels: (1, 1 + 256, D)."""
    side, here = round((positions.shape[1] - 1) ** 0.5), SIDE // PATCH
    if side == here:
        return positions
    grid = rearrange(positions[:, 1:], "1 (h w) d -> 1 d h w", h=side)
    scale = (here + OFFSET) / side
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], rearrange(grid, "1 d h w -> 1 (h w) d")], 1)
