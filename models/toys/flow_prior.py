"""A normalising flow as a prior, for the mixtures in the plane."""

import torch
from torch import Tensor, nn
from zuko.flows import NSF


class FlowPrior(nn.Module):
    """A neural spline flow (Durkan et al. 2019) between standard normal noise and latents of about unit scale.

    Args:
        latent: D.
        conditions: how many flows of that shape there are, told apart by a one-hot context; 0 means one.
        transforms: spline transformations, each of which moves all latents.
        width: units of both hidden layers of the networks that say how.
        bins: of each spline.
        seed: of the weights.
    """

    def __init__(
        self, latent: int, conditions: int = 0, transforms: int = 3, width: int = 128, bins: int = 16, seed: int = 0
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # zuko draws its weights from the global stream
            self.flow = NSF(latent, conditions, bins, transforms=transforms, hidden_features=(width, width))

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """A draw for standard normal noise, both (..., D), under a one-hot context (..., conditions)."""
        return self.flow(context).transform.inv(noise)

    def log_density(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(z) in nats, (...), for (..., D)."""
        return self.flow(context).log_prob(z)
