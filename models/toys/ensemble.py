"""Many small networks side by side, so that several seeds or problems train in the time of one.

Axes: M members, B batch, D values of one input.
"""

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn


class EnsembleMLP(nn.Module):
    """M independent multilayer perceptrons of one shape, with weights (M, inputs, outputs).

    Args:
        members: M.
        inputs: values in.
        outputs: values out.
        width: units of each hidden layer.
        depth: hidden layers.
        head: factor on the last layer's weights; if small, a new network gives almost 0.
        generator: random numbers of the weights, by Kaiming's fan-in, as the discriminator needs.
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
        """Map (M, B, inputs) to (M, B, outputs)."""
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, F.silu(x) if i else x, weight)
        return x


def clip_members(network: EnsembleMLP, limit: float) -> None:
    """Scale each member's gradient down to a norm of at most `limit`, in place: no member slows down another."""
    gradients = [p.grad for p in network.parameters()]
    norm = sum(reduce(g.square(), "m a b -> m 1 1", "sum") for g in gradients).sqrt()
    for gradient in gradients:
        gradient.mul_((limit / norm).clamp(max=1))
