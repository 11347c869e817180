"""What held-out pixels say of p(x|z) by region: skin, hair, background, and whatever the data number.

The sums are torchmetrics states, so that Lightning adds them up over processes.
Axes: B batch, C channels, H height, W width, N images, R regions.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch import Tensor
from torchmetrics import Metric

from models.core.errors import InputError
from models.core.gaussian import Gaussian
from models.evaluation.calibration import inside_intervals

NEARLY_RIGHT = 0.1
"""Largest squared error of a mean that is nearly right, as a share of the variance of the planted noise."""


def members(regions: Tensor, count: int) -> Tensor:
    """Which pixels of regions (B, H, W) lie in each of `count`, 0 or 1, (B, R, H W); larger numbers lie in none."""
    member = torch.nn.functional.one_hot(regions.long().clamp(max=count), count + 1)
    return rearrange(member[..., :-1].float(), "b h w r -> b r (h w)")


@dataclass  # not frozen: torchmetrics walks through what compute() returns
class RegionReport:
    """Per image and region, (N, R); nan where an image has no pixel of it. Stds and errors in [0, 1] units, squared.

    Args:
        names: of the regions, R.
        variance: mean of the decoder's std^2.
        squared_error: mean of (x - mean)^2.
        planted: mean of (x - clean)^2 where the clean image is known, else None.
        excess: mean of (mean - clean)^2 where the clean image is known, else None.
        nearly_right: share of pixels where that is below a tenth of the region's planted variance, else None.
        variance_there: mean of the decoder's std^2 times whether the pixel is one of those, else None.
        inside: share of pixels in the central intervals of LEVELS, (N, R, 3).
        pixels: number of them.
    """

    names: tuple[str, ...]
    variance: Tensor
    squared_error: Tensor
    inside: Tensor
    pixels: Tensor
    planted: Tensor | None = None
    excess: Tensor | None = None
    nearly_right: Tensor | None = None
    variance_there: Tensor | None = None

    def pooled(self, values: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Mean of a per-image quantity over the pixels of each region of the chosen images, (R, ...)."""
        weight = self.pixels.reshape(*self.pixels.shape, *[1] * (values.ndim - 2))
        chosen = torch.arange(len(values)) if chosen is None else chosen
        return (values * weight)[chosen].nansum(0) / weight[chosen].sum(0)

    def interval(self, statistic, draws: int = 1000, level: float = 0.95, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Bootstrap interval over images of statistic(chosen), a function of the images drawn: low and high."""
        rng = torch.Generator().manual_seed(seed)
        n = len(self.pixels)
        values = torch.stack([statistic(torch.randint(n, (n,), generator=rng)) for _ in range(draws)])
        tail = (1 - level) / 2
        return values.nanquantile(tail, dim=0), values.nanquantile(1 - tail, dim=0)


class RegionCalibration(Metric):
    """Mean std and residual of held-out images by region, kept per image, so that images can be resampled.

    Args:
        names: of the regions, in the order of their indices; larger indices belong to none.
    """

    full_state_update = False

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, p: Gaussian, x: Tensor, regions: Tensor, clean: Tensor | None = None) -> None:
        """Add images x (B, C, H, W) in [0, 1], their p(x|z), regions (B, H, W), and the images without their noise."""
        residual = (x - p.mean) / p.std
        maps = [(2 * p.logstd).exp(), (x - p.mean).square(), *[i.float() for i in inside_intervals(residual)]]
        maps = [reduce(m.expand_as(x), "b c h w -> b (h w)", "mean") for m in maps]
        member = members(regions, len(self.names))
        pixels = member.sum(-1, keepdim=True)
        if clean is None:
            maps += [torch.full_like(maps[0], torch.nan)] * 4
        else:
            planted, excess = (reduce(m.square(), "b c h w -> b (h w)", "mean") for m in (x - clean, p.mean - clean))
            noise = torch.einsum("b r p, b p -> b r", member, planted) / pixels[..., 0]
            there = torch.einsum("b r p, b r -> b p", member, noise.nan_to_num())  # of the region that a pixel lies in
            nearly_right = (excess < NEARLY_RIGHT * there).float()
            maps += [planted, excess, nearly_right, nearly_right * maps[0]]
        stacked = torch.stack(maps, -1)  # (B, HW, Q)
        self.rows.append(torch.cat([member @ stacked / pixels, pixels], -1).double())  # (B, R, Q + 1)

    def compute(self) -> RegionReport:
        """All images so far.

        Raises:
            InputError: there are none.
        """
        rows = torch.cat(list(self.rows)) if isinstance(self.rows, list) and self.rows else self.rows
        if not isinstance(rows, Tensor):
            raise InputError("calibration by region: no image had regions")
        rows = rows.cpu()
        variance, error, *inside, planted, excess, share, settled, pixels = rows.unbind(-1)
        known = {"planted": planted, "excess": excess, "nearly_right": share, "variance_there": settled}
        known = {} if planted.isnan().all() else known
        return RegionReport(self.names, variance, error, torch.stack(inside, -1), pixels, **known)


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two vectors without ties."""
    ranks = torch.stack([v.argsort().argsort().double() for v in (a, b)])
    return torch.corrcoef(ranks)[0, 1].item()
