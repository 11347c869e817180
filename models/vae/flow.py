"""Autoregressive flows: an invertible map whose log determinant is known, and the posterior that one makes of a draw.

Axes: B batch, K draws, D latents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from zuko.flows.autoregressive import MaskedAutoregressiveTransform

from models.core.errors import InputError
from models.core.gaussian import Gaussian, LatentDraws


@dataclass(frozen=True)
class FlowConfig:
    """A stack of affine autoregressive steps.

    Args:
        steps: how many; 0 for no flow.
        width: units of both hidden layers of a step's masked network.
    """

    steps: int = 0
    width: int = 256


class AutoregressiveFlow(nn.Module):
    """u_i = exp(s_i) z_i + m_i, with s_i and m_i functions of z_<i and a context, `steps` times in turning order.

    From z to u all i at once, from u to z one after another: D passes a step. A new one is the identity. |s_i| is kept
    below log 1000, softly. Float32, also under autocast.

    Args:
        latent: D.
        config: steps, at least one, and their width.
        context: numbers that every step sees beside z.

    Raises:
        InputError: steps or width < 1, or one latent alone, which has nothing before it.
    """

    def __init__(self, latent: int, config: FlowConfig, context: int = 0) -> None:
        super().__init__()
        if min(config.steps, config.width) < 1 or latent < 2:
            raise InputError(f"flow: steps {config.steps} and width {config.width} must be at least 1, latent 2")
        order = torch.arange(latent)
        hidden = {"hidden_features": (config.width, config.width), "activation": nn.SiLU}
        self.steps = nn.ModuleList(
            MaskedAutoregressiveTransform(latent, context, order=order.flip(0) if i % 2 else order, **hidden)
            for i in range(config.steps)
        )
        for step in self.steps:
            nn.init.zeros_(step.hyper[-1].weight)
            nn.init.zeros_(step.hyper[-1].bias)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u (..., D) and log |det du/dz| (...), for z (..., D) and a context (..., C)."""
        log_determinant = z.new_zeros(z.shape[:-1])
        with torch.autocast(z.device.type, enabled=False):
            for step in self.steps:
                z, ladj = step(context).call_and_ladj(z)
                log_determinant = log_determinant + ladj
        return z, log_determinant

    def inverse(self, u: Tensor, context: Tensor | None = None) -> Tensor:
        """The z whose u this is, (..., D)."""
        with torch.autocast(u.device.type, enabled=False):
            for step in reversed(self.steps):
                u = step(context).inv(u)
        return u


@dataclass(frozen=True)
class FlowedGaussian:
    """The law of z = f(z0; context) for z0 ~ N(mean, std^2): log q(z) = log N(z0) - log |det df/dz0|.

    Its density is known at its own draws alone, and its moments are not. Kingma et al. 2016.

    Args:
        base: the law of z0, (B, D).
        flow: f.
        context: what f knows of each image, (B, C).
    """

    base: Gaussian
    flow: AutoregressiveFlow
    context: Tensor

    def draw(self, noise: Tensor) -> LatentDraws:
        """The z of standard normal noise (..., B, D), and log q(z|x)."""
        start = self.base.draw(noise)
        z, log_determinant = self.flow(start.z, self.context)
        return LatentDraws(z, start.log_q - log_determinant)

    def sample(self, noise: Tensor) -> Tensor:
        """The z of standard normal noise, both (..., B, D)."""
        return self.draw(noise).z
