"""Many small networks side by side, so that several seeds or problems train in the time of one.

Axes: M members, B batch, D values of one input.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from models.core.errors import InputError


class EnsembleMLP(nn.Module):
    """M independent multilayer perceptrons of one shape, with weights (M, inputs, outputs).

    Args:
        members: M.
        inputs: values in.
        outputs: values out.
        width: units of each hidden layer.
        depth: hidden layers.
        head: factor on the last layer's weights; small, and a new network says almost 0.
        generator: of the weights; Kaiming fan-in, as the discriminator needs.
    """

    def __init__(
        self,
        members: int,
        inputs: int,
        outputs: int,
        width: int = 64,
        depth: int = 3,
        head: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = [inputs, *[width] * depth, outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            scale = (2 / fan_in) ** 0.5 if i < depth else head / fan_in**0.5
            self.weights.append(scale * torch.randn(members, fan_in, fan_out, generator=generator))
            self.biases.append(torch.zeros(members, 1, fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """(M, B, inputs) -> (M, B, outputs)."""
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, F.silu(x) if i else x, weight)
        return x


class EnsembleGenerator(nn.Module):
    """G(noise, condition), for M members.

    Args:
        noise: values of the noise.
        size: values of what is generated.
        condition: values of the condition; 0 for a plain GAN.
        skip: G is the noise plus a correction, so that a new denoiser hands back the sample that it was given.
        shape: members, width, depth and generator of the network.
    """

    def __init__(self, noise: int, size: int, condition: int, skip: bool, **shape: Any) -> None:
        super().__init__()
        if skip and noise != size:
            raise InputError(f"a generator that starts as the identity needs {size} values of noise, not {noise}")
        self.skip, self.net = skip, EnsembleMLP(inputs=noise + condition, outputs=size, head=0.3, **shape)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """(M, B, noise) and (M, B, condition) -> (M, B, size)."""
        correction = self.net(torch.cat([noise, condition], -1))
        return noise + correction if self.skip else correction


class Duel(nn.Module):
    """A generator and its discriminator, both told the condition, for M members.

    Args:
        members: M.
        noise: values of the generator's noise.
        size: values of what is generated.
        condition: values of the condition; 0 makes a plain GAN.
        width: units of each hidden layer.
        depth: hidden layers.
        generator: of the weights.
        skip: see EnsembleGenerator.
    """

    def __init__(
        self,
        members: int,
        noise: int,
        size: int,
        condition: int,
        width: int,
        depth: int,
        generator: torch.Generator,
        skip: bool = False,
    ) -> None:
        super().__init__()
        shape = {"members": members, "width": width, "depth": depth, "generator": generator}
        self.generator = EnsembleGenerator(noise, size, condition, skip, **shape)
        self.discriminator = EnsembleMLP(inputs=size + condition, outputs=1, **shape)

    def judge(self, values: Tensor, condition: Tensor) -> Tensor:
        """Logits (M B,) of values (M B, 1, D, 1), the shape of images of one column, so that penalties fit."""
        values = rearrange(values, "(m b) 1 d 1 -> m b d", m=len(condition))
        return rearrange(self.discriminator(torch.cat([values, condition], -1)), "m b 1 -> (m b)")


def clip_members(network: nn.Module, limit: float) -> None:
    """Scale each member's gradient down to a norm of at most `limit`, in place: one that bolts stops no other."""
    gradients = [p.grad for p in network.parameters()]
    norm = sum(reduce(g.square(), "m a b -> m 1 1", "sum") for g in gradients).sqrt()
    for gradient in gradients:
        gradient.mul_((limit / norm).clamp(max=1))


def as_images(values: Tensor) -> Tensor:
    """(M, B, D) -> (M B, 1, D, 1), what models/adversarial.py works on."""
    return rearrange(values, "m b d -> (m b) 1 d 1")
