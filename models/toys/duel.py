"""The GAN stage of the toys: a generator, its moving average and a discriminator, for M members at once.

The losses are those of models/gan/objective.py. Axes: M members, B batch, D data, N noise, C condition.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.gan.objective import AdversarialLoss, discriminator_objective, generator_objective
from degrain.models.toys.ensemble import EnsembleMLP
from degrain.models.toys.recipe import ToyModule
from degrain.models.training.update import MovingAverage, Update, adam

EVALUATION = 2  # random stream of the toys' measurements; training has 0, evaluation 1
AVERAGED_STEPS = 100  # half-life of the average; a longer one averages over answers that differ


class EnsembleGenerator(nn.Module):
    """G(noise, condition), for M members; its arguments are those of Duel."""

    def __init__(self, noise: int, size: int, condition: int, skip: bool, **shape: Any) -> None:
        super().__init__()
        if skip and noise != size:
            raise InputError(f"a generator that starts as the identity needs {size} values of noise, not {noise}")
        self.skip, self.net = skip, EnsembleMLP(inputs=noise + condition, outputs=size, head=0.3, **shape)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Map (M, B, N) and (M, B, C) to (M, B, D)."""
        correction = self.net(torch.cat([noise, condition], -1))
        return noise + correction if self.skip else correction


class Duel(nn.Module):
    """A generator and a discriminator that both see the condition, and the generator's moving average.

    Three choices make the toys converge: a denoiser that starts as the identity, the gradient penalty at every step,
    and a long average of Adam's second moment (0.999). Without them the error is 3 to 10 times as large.

    Args:
        noise: N.
        size: D.
        condition: C; 0 makes a plain GAN.
        skip: G is the noise plus a correction, so that a new denoiser returns the sample that it was given.
        loss: of both networks.
        penalty_weight: gamma, the weight of the gradient penalties.
        shape: members, width, depth and generator of the networks.
    """

    def __init__(
        self,
        noise: int,
        size: int,
        condition: int,
        skip: bool = False,
        loss: AdversarialLoss = "relativistic",
        penalty_weight: float = 0.0,
        **shape: Any,
    ) -> None:
        super().__init__()
        self.loss, self.penalty_weight = loss, penalty_weight
        self.generator = EnsembleGenerator(noise, size, condition, skip, **shape)
        self.discriminator = EnsembleMLP(inputs=size + condition, outputs=1, **shape)
        self.ema = MovingAverage(self.generator)

    def logits(self, values: Tensor, condition: Tensor) -> Tensor:
        """Return D's logits, (M, B), of values (M, B, D) under their condition (M, B, C)."""
        return rearrange(self.discriminator(torch.cat([values, condition], -1)), "m b 1 -> m b")

    def optimizers(self, learning_rate: float) -> list[torch.optim.Adam]:
        """Return one optimizer for G and one for D, without momentum, as the relativistic loss needs it."""
        return [adam(net, learning_rate, betas=(0.0, 0.999)) for net in (self.generator, self.discriminator)]

    def train_step(
        self, module: ToyModule, optimizers: Any, real: Tensor, noise: Tensor, condition: Tensor
    ) -> tuple[Update, Update]:
        """Take one step of D, then one of G against it; return both, with their terms d_loss and g_loss.

        Args:
            module: the recipe, with manual optimization.
            optimizers: of G and of D.
            real: data under the condition, (M, B, D).
            noise: (M, B, N).
            condition: (M, B, C).
        """
        g, d = (Update(module, optimizer) for optimizer in optimizers)
        fake = self.generator(noise, condition)  # with a graph for both steps
        for x in d.over([real]):
            loss, terms = discriminator_objective(self.logits, self.loss, x, fake, condition, self.penalty_weight)
            d.backward(loss, {"d_loss": terms["d_loss"]})
        d.step()
        for x in g.over([real]):
            g.backward(*generator_objective(self.logits, self.loss, x, fake, condition))
        g.step(unless=d.skipped)
        self.ema.update(self.generator, keep=0.5 ** (1 / AVERAGED_STEPS), unless=g.skipped)
        return d, g
