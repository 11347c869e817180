"""Calibration of p(x|z) on held-out images by region: skin, hair, background, and others that the data number.

Axes: B batch, C channels, H height, W width, N images, R regions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian
from degrain.models.core.precision import full_precision
from degrain.models.evaluation.calibration import interval_masks

NEARLY_RIGHT = 0.1  # largest squared error of a mean that is nearly right, as a share of the planted variance


def region_masks(regions: Tensor, count: int) -> Tensor:
    """Return masks, 0 or 1, (B, R, H W), of `count` regions from indices (B, H, W); larger indices are in no region."""
    masks = torch.nn.functional.one_hot(regions.long().clamp(max=count), count + 1)
    return rearrange(masks[..., :-1].float(), "b h w r -> b r (h w)")


@dataclass  # not frozen: torchmetrics walks through the result of compute()
class RegionReport:
    """Means per image and region, (N, R), nan if an image lacks the region; in [0, 1] units, squared."""

    names: tuple[str, ...]  # of the regions, R
    variance: Tensor  # decoder's std^2
    squared_error: Tensor  # (x - mean)^2
    inside: Tensor  # share of pixels in the central intervals of LEVELS, (N, R, 3)
    pixels: Tensor  # number of pixels
    # None unless the clean images are known:
    planted: Tensor | None = None  # (x - clean)^2
    mean_error: Tensor | None = None  # (mean - clean)^2
    nearly_right: Tensor | None = None  # share of pixels whose mean_error is below NEARLY_RIGHT of the region's planted
    variance_nearly_right: Tensor | None = None  # decoder's std^2 at those pixels, 0 at the others

    @property
    def present(self) -> Tensor:
        """Indices of the regions that some image has."""
        return torch.where(self.pixels.sum(0) > 0)[0]

    def pixel_mean(self, values: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Average a per-image quantity over the pixels of each region of the chosen images (all): (R, ...)."""
        weight = self.pixels.reshape(*self.pixels.shape, *[1] * (values.ndim - 2))
        chosen = torch.arange(len(values)) if chosen is None else chosen
        return (values * weight)[chosen].nansum(0) / weight[chosen].sum(0)

    def bootstrap_interval(
        self, statistic: Callable[[Tensor], Tensor], draws: int = 1000, level: float = 0.95, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Resample the images and return the interval of statistic(indices of the resampled images): low and high."""
        rng, n = torch.Generator().manual_seed(seed), len(self.pixels)
        values = torch.stack([statistic(torch.randint(n, (n,), generator=rng)) for _ in range(draws)])
        tail = (1 - level) / 2
        return values.nanquantile(tail, dim=0), values.nanquantile(1 - tail, dim=0)


class RegionCalibration(Metric):
    """Mean std and residual of held-out images by region, kept per image, so that images can be resampled.

    Args:
        names: of the regions, in the order of their indices; pixels with larger indices belong to no region.
    """

    full_state_update = False

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.add_state("rows", [], dist_reduce_fx="cat")

    @full_precision()  # a validation in half precision runs it under autocast
    def update(self, p: Gaussian, x: Tensor, regions: Tensor, clean: Tensor | None = None) -> None:
        """Add images x (B, C, H, W) in [0, 1], their p(x|z), regions (B, H, W), and the images without their noise."""
        maps = [(2 * p.logstd).exp(), (x - p.mean).square(), *[mask.float() for mask in interval_masks(p, x)]]
        maps = [reduce(m.expand_as(x), "b c h w -> b (h w)", "mean") for m in maps]
        masks = region_masks(regions, len(self.names)).to(maps[0])
        pixels = masks.sum(-1, keepdim=True)
        if clean is None:
            maps += [torch.full_like(maps[0], torch.nan)] * 4
        else:
            planted, error = (reduce(m.square(), "b c h w -> b (h w)", "mean") for m in (x - clean, p.mean - clean))
            of_region = torch.einsum("b r p, b p -> b r", masks, planted) / pixels[..., 0]
            of_pixel = torch.einsum("b r p, b r -> b p", masks, of_region.nan_to_num())  # that of the pixel's region
            nearly_right = (error < NEARLY_RIGHT * of_pixel).float()
            maps += [planted, error, nearly_right, nearly_right * maps[0]]
        stacked = torch.stack(maps, -1)  # (B, HW, Q)
        self.rows.append(torch.cat([masks @ stacked / pixels, pixels], -1).double())  # (B, R, Q + 1)

    def compute(self) -> RegionReport:
        """Return the report of all images so far.

        Raises:
            InputError: no image had regions.
        """
        if not len(self.rows):
            raise InputError("calibration by region: no image had regions")
        rows = dim_zero_cat(self.rows).cpu()  # one tensor already, if it comes from several processes
        variance, error, *inside, planted, mean_error, share, settled, pixels = rows.unbind(-1)
        known = () if planted.isnan().all() else (planted, mean_error, share, settled)
        return RegionReport(self.names, variance, error, torch.stack(inside, -1), pixels, *known)
