"""Whether the denoised images keep p(x|z)'s two moments, as an ideal denoiser does, in all and by region.

The sums are torchmetrics states, so that Lightning adds them up over processes.
Axes: K draws of one z, B batch, C channels, H height, W width, R regions and, last, the whole image.
"""

from dataclasses import dataclass

import torch
from einops import reduce
from torch import Tensor
from torchmetrics import Metric

from models.core.gaussian import Gaussian
from models.evaluation.regions import members
from models.gan.objective import variance_over_noise

WHOLE = "image"
"""The name of all pixels together."""


@dataclass  # not frozen: torchmetrics walks through what compute() returns
class DenoisingReport:
    """What a DenoisingMoments found; nan where no image had the region.

    Args:
        names: of the regions and, last, WHOLE.
        variance_ratio: sum of Var_eps[G] by the sum of the decoder's std^2, (R + 1,): 1 is ideal, near 0 means that G
            ignores its noise.
        shift: sum of (E_eps[G] - mean)^2 by the sum of the decoder's std^2, (R + 1,): 0 is ideal. Without the share
            that the few draws of each z have in it, and so at times a little below 0.
    """

    names: tuple[str, ...]
    variance_ratio: Tensor
    shift: Tensor

    def scalars(self) -> dict[str, Tensor]:
        """`variance_ratio` and `shift` of the whole image, and `NAME/REGION` of every region that images had."""
        values = {}
        for name in ("variance_ratio", "shift"):
            *regions, whole = getattr(self, name).reshape(-1).unbind()  # torchmetrics makes a scalar of a single value
            values[name] = whole
            named = zip(self.names, regions, strict=False)
            values |= {f"{name}/{region}": value for region, value in named if not value.isnan()}
        return values


class DenoisingMoments(Metric):
    """E_eps[G] and Var_eps[G] over several denoisings of the same z, beside the mean and std^2 that the decoder said.

    For a converged decoder and z ~ q(z|x) the ideal denoiser has both: it puts structure in the place of white noise
    and changes neither moment of a pixel (docs/toy.md, 11).

    Args:
        names: of the regions, in the order of their indices; larger indices belong to none.
    """

    full_state_update = False

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.names = (*names, WHOLE)
        for name in ("variance", "claimed", "shift"):
            self.add_state(name, torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, draws: Tensor, p: Gaussian, regions: Tensor | None = None) -> None:
        """Add K >= 2 denoisings (K, B, C, H, W) of each z, their p(x|z) (B, C, H, W), and regions (B, H, W) if any.

        Raises:
            InputError: fewer than two draws.
        """
        variance = variance_over_noise(draws)
        shift = (draws.mean(0) - p.mean).square() - variance / len(draws)  # the draws' own share has that mean
        batch, _, height, width = p.mean.shape
        outside = torch.full((batch, height, width), 255)
        member = members(outside if regions is None else regions, len(self.names) - 1)
        member = torch.cat([member, member.new_ones(batch, 1, height * width)], 1).to(self.variance)  # (B, R + 1, H W)
        for name, values in {"variance": variance, "claimed": p.std.square(), "shift": shift}.items():
            per_pixel = reduce(values.double(), "b c h w -> b (h w)", "sum")
            setattr(self, name, getattr(self, name) + torch.einsum("b r p, b p -> r", member, per_pixel))

    def compute(self) -> DenoisingReport:
        return DenoisingReport(self.names, self.variance / self.claimed, self.shift / self.claimed)
