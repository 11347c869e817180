"""Autoregressive flows: an invertible map with a known log determinant, and the posterior of a flow on a Gaussian.

Axes: B batch, K draws, D latents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian, LatentDraws


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
    """u_i = exp(s_i) z_i + m_i, with s_i and m_i functions of z_<i and a context.

    Every second step takes the latents in reverse order. From z to u one pass computes all i; from u to z each step
    needs D passes. A new flow is the identity. |s_i| has a smooth bound, log 1000. Float32, also under autocast.

    Args:
        latent: D.
        config: steps, at least one, and their width.
        context: size C of the context, a further input of every step.

    Raises:
        InputError: steps or width < 1, or a single latent, which has none before it.
    """

    def __init__(self, latent: int, config: FlowConfig, context: int = 0) -> None:
        super().__init__()
        if min(config.steps, config.width) < 1 or latent < 2:
            raise InputError(f"flow: steps {config.steps} and width {config.width} must be at least 1, latent 2")
        from zuko.flows.autoregressive import MaskedAutoregressiveTransform  # here: few checkpoints have a flow

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
        """Return u (..., D) and log |det du/dz| (...), for z (..., D) and a context (..., C)."""
        log_determinant = z.new_zeros(z.shape[:-1])
        with torch.autocast(z.device.type, enabled=False):
            for step in self.steps:
                z, ladj = step(context).call_and_ladj(z)
                log_determinant = log_determinant + ladj
        return z, log_determinant

    def inverse(self, u: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the z (..., D) that the flow maps to u."""
        with torch.autocast(u.device.type, enabled=False):
            for step in reversed(self.steps):
                u = step(context).inv(u)
        return u


@dataclass(frozen=True)
class FlowedGaussian:
    """The distribution of z = f(z0; context) for z0 ~ N(mean, std^2): log q(z) = log N(z0) - log |det df/dz0|.

    Its density is known only at its own draws, and its moments are unknown. Kingma et al. 2016.

    Args:
        base: the distribution of z0, (B, D).
        flow: f.
        context: features of each image, (B, C).
    """

    base: Gaussian
    flow: AutoregressiveFlow
    context: Tensor

    def draw(self, noise: Tensor) -> LatentDraws:
        """Return z and log q(z|x) for standard normal noise (..., B, D)."""
        start = self.base.draw(noise)
        z, log_determinant = self.flow(start.z, self.context)
        return LatentDraws(z, start.log_q - log_determinant)

    def sample(self, noise: Tensor) -> Tensor:
        """Return z for standard normal noise, both (..., B, D)."""
        return self.draw(noise).z
