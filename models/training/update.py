"""Optimizer steps on the mean of a loss over pieces of a batch, and the moving average of a network.

A step whose gradient is not finite changes nothing. That is decided on the device: the norm of the gradient is one
number, a loss that is not finite spoils its gradient, and several processes, which add up their gradients, so find the
same without a word to each other.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from math import inf
from typing import TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

T = TypeVar("T")


class Update:
    """One step of an optimizer: a backward pass for each piece, the check of the gradient, the step.

        update = Update(module, optimizer)
        for piece in update.over(pieces):
            update.backward(loss(piece), terms(piece))
        update.step()

    Args:
        module: a module with manual optimization.
        optimizer: one of its optimizers; only its parameters get gradients.
        clip: largest norm of the gradient.

    Attributes:
        terms: named terms of all pieces without their graphs, each piece along a new first axis.
        norm: norm of the gradient before it is clipped, ().
        skipped: whether the step was not finite, or forbidden, and changed nothing: a bool tensor, ().
    """

    terms: dict[str, Tensor]
    norm: Tensor
    skipped: Tensor

    def __init__(self, module: pl.LightningModule, optimizer: LightningOptimizer, clip: float = inf) -> None:
        self.module, self.optimizer, self.clip = module, optimizer, clip
        self.pieces = 0
        self.found: list[dict[str, Tensor]] = []

    def over(self, pieces: Sequence[T]) -> Iterator[T]:
        """Yield the pieces; in each turn only this optimizer's parameters need gradients."""
        self.pieces = len(pieces)
        self.optimizer.zero_grad()
        for piece in pieces:
            with self.optimizer.toggle_model(sync_grad=False):  # `step` does, where DDP would send both networks
                torch.clear_autocast_cache()  # it may hold weights that were cast without gradients
                yield piece

    def backward(self, loss: Tensor, terms: dict[str, Tensor]) -> None:
        """Add the gradient of a piece's loss, (), and keep its named terms."""
        # Times (1 + 0 * loss): the loss itself, bit for bit; where it is inf or nan, its whole gradient is nan.
        self.module.manual_backward(loss / self.pieces * (1 + 0 * loss.detach()))
        self.found.append({name: term.detach() for name, term in terms.items()})

    def average(self, gradients: list[Tensor]) -> None:
        """Average gradients over all processes, in one message; every process has those of the same parameters."""
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        parts = average_over_processes(flat).split([g.numel() for g in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def step(self, unless: Tensor | None = None) -> None:
        """Take the step; where the gradient is not finite, or `unless` is true, change no weight and no moment."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.module.trainer.world_size > 1:
            self.average([p.grad for p in parameters if p.grad is not None])
        scaler = getattr(self.module.trainer.precision_plugin, "scaler", None)
        if self.clip < inf:
            # Under a gradient scaler (fp16) the gradients are scaled still.
            norm = nn.utils.clip_grad_norm_(parameters, self.clip * (scaler.get_scale() if scaler else 1.0))
        else:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.norm = norm if scaler is None else norm / scaler.get_scale()
        self.skipped = ~norm.isfinite() if unless is None else ~norm.isfinite() | unless
        if scaler is None:
            self.optimizer.optimizer.found_inf = self.skipped.to(torch.float32)  # a fused Adam then changes nothing
        elif self.skipped:
            for gradient in (p.grad for p in parameters if p.grad is not None):
                gradient.fill_(inf)  # and so the scaler skips the step, and lowers its scale
        self.optimizer.step()
        self.terms = {name: torch.stack([terms[name] for terms in self.found]) for name in self.found[0]}


def average_over_processes(values: Tensor) -> Tensor:
    """Average values over all processes, in place, and return them.

    Not by `strategy.reduce`: before each message Lightning 2.6 waits at a barrier, on a GPU also for the device.
    """
    torch.distributed.all_reduce(values)  # gloo has no average
    return values.div_(torch.distributed.get_world_size())


def adam(network: nn.Module, learning_rate: float, **options: float | tuple[float, float]) -> torch.optim.Adam:
    """Return a fused Adam: one pass over the parameters, a third of the time, and it skips a step on the device.

    Args:
        network: whose parameters are moved, but for frozen ones.
        learning_rate: before any schedule.
        options: of torch.optim.Adam.
    """
    moved = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.Adam(moved, learning_rate, fused=True, **options)


class MovingAverage(nn.Module):
    """An exponential moving average of a network's parameters, which starts as the network itself.

    Args:
        network: without buffers.

    Attributes:
        module: the average.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.module = deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, keep: float, unless: Tensor | None = None) -> None:
        """Replace the average by keep * average + (1 - keep) * network, on the device; not where `unless` is true."""
        weight = torch.tensor(1 - keep) if unless is None else (1 - keep) * (~unless).float()
        averages = list(self.module.parameters())
        torch._foreach_lerp_(averages, list(network.parameters()), [weight.to(averages[0])] * len(averages))
