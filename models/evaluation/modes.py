"""How many modes generated images reach, and how evenly: the two figures of Stacked MNIST."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.core.errors import InputError


@dataclass(frozen=True)
class ModeCoverage:
    """Each (), float64.

    Attributes:
        modes: with at least one image.
        kl: to the uniform law, in nats.
    """

    modes: Tensor
    kl: Tensor


def mode_coverage(labels: Tensor, modes: int = 1000) -> ModeCoverage:
    """Modes that are hit at least once, and KL(p to uniform) = sum_k p_k log(p_k modes), where p_k is mode k's share.

    As in PacGAN (Lin et al. 2018) and since: 1,000 modes, 26,000 images, the KL from what was generated to the uniform
    law, and not to the data's own shares. It runs from 0 to log(modes), 6.908 for 1,000. Of N images of the uniform law
    its mean is about (modes - 1) / 2N, 0.0192 in this protocol: no honest figure of so many images is much lower.

    Args:
        labels: mode of every image, (N,), integers from 0 to modes - 1.
        modes: how many there are.

    Raises:
        InputError: no labels, or one out of range.
    """
    if not len(labels) or not 0 <= labels.min() <= labels.max() < modes:
        found = f"from {labels.min()} to {labels.max()}" if len(labels) else "none"
        raise InputError(f"mode coverage: labels must run from 0 to {modes - 1:,}, there are {found}")
    share = torch.bincount(labels, minlength=modes).double() / len(labels)
    return ModeCoverage((share > 0).sum().double(), torch.xlogy(share, share * modes).sum())
