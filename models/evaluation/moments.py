"""Moments of denoised images: an ideal denoiser keeps the mean and std of p(x|z), in all and by region.

Axes: K draws of one z, B batch, C channels, H height, W width, R regions and, last, the whole image.
"""

from dataclasses import dataclass

import torch
from einops import reduce
from torch import Tensor

from degrain.models.core.gaussian import Gaussian
from degrain.models.evaluation.calibration import SumMetric
from degrain.models.evaluation.regions import region_masks
from degrain.models.gan.objective import variance_over_noise

WHOLE = "image"  # name of all pixels together


@dataclass  # not frozen: torchmetrics walks through the result of compute()
class DenoisingReport:
    """Result of a DenoisingMoments, both (R + 1,), relative to the decoder's std^2; nan for a region that no image had.

    The variance ratio is ideally 1; near 0 it means that G ignores its noise. The shift is ideally 0; the expected part
    due to few draws is subtracted, so it may be a little below 0.
    """

    names: tuple[str, ...]  # of the regions and, last, WHOLE
    variance_ratio: Tensor  # sum of Var_eps[G] / sum of std^2
    shift: Tensor  # sum of (E_eps[G] - mean)^2 / sum of std^2

    def scalars(self) -> dict[str, Tensor]:
        """Return `variance_ratio` and `shift` of the whole image, and `NAME/REGION` of every region that images had."""
        values = {}
        for name in ("variance_ratio", "shift"):
            *regions, whole = getattr(self, name).reshape(-1).unbind()  # torchmetrics makes a scalar of a single value
            values[name] = whole
            named = zip(self.names, regions, strict=False)
            values |= {f"{name}/{region}": value for region, value in named if not value.isnan()}
        return values


class DenoisingMoments(SumMetric):
    """E_eps[G] and Var_eps[G] over several denoisings of the same z, compared with the decoder's mean and std^2.

    For a converged decoder and z ~ q(z|x) the ideal denoiser replaces white noise by structure and changes neither
    moment of a pixel (docs/toy.md, 11).

    Args:
        names: of the regions, in the order of their indices; pixels with larger indices belong to no region.
    """

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        super().__init__(dict.fromkeys(("variance", "claimed", "shift"), (len(names) + 1,)))
        self.names = (*names, WHOLE)

    def update(self, draws: Tensor, p: Gaussian, regions: Tensor | None = None) -> None:
        """Add K >= 2 denoisings (K, B, C, H, W) of each z, their p(x|z) (B, C, H, W), and regions (B, H, W) if any.

        Raises:
            InputError: fewer than two draws.
        """
        variance = variance_over_noise(draws)
        shift = (draws.mean(0) - p.mean).square() - variance / len(draws)  # E of the first is that much too large
        batch, _, height, width = p.mean.shape
        outside = torch.full((batch, height, width), 255)
        masks = region_masks(outside if regions is None else regions, len(self.names) - 1)
        masks = torch.cat([masks, masks.new_ones(batch, 1, height * width)], 1).to(self.variance)  # (B, R + 1, H W)
        for name, values in {"variance": variance, "claimed": p.std.square(), "shift": shift}.items():
            per_pixel = reduce(values.double(), "b c h w -> b (h w)", "sum")
            setattr(self, name, getattr(self, name) + torch.einsum("b r p, b p -> r", masks, per_pixel))

    def compute(self) -> DenoisingReport:
        return DenoisingReport(self.names, self.variance / self.claimed, self.shift / self.claimed)
