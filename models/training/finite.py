"""Numbers that are not finite: steps that are dropped for them, what is no checkpoint, and the message that ends a run.

A step is judged by the norm of its gradient alone, one scalar: a loss that is not finite is made to spoil its gradient,
and several processes, which add up their gradients, so find the same without a word to each other.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.core.errors import InputError
from models.inference.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from models.training.recipe import Recipe

PATIENCE = 20
"""Skipped steps in a row that end a run: a bad batch or fp16's search for its scale skips a few, dead weights all."""

HELD_OUT = ("distortion", "rate", "standardised_error", "l2", "margin")
"""Held-out values without which a network is of no use."""

SAFE_RATE = 1e-3
"""Learning rate above which none is proposed to go on with."""


def poisoned(loss: Tensor) -> Tensor:
    """loss * (1 + 0 * loss): the loss itself, bit for bit; where it is inf or nan, so is nan its whole gradient."""
    return loss * (1 + 0 * loss.detach())


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Euclidean norm of the gradients of all parameters of an optimizer, ()."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def drop_unless_finite(optimizer: torch.optim.Optimizer, norm: Tensor) -> bool:
    """Whether the gradients' norm is finite; where it is not they are gone, and the optimizer's step changes nothing.

    Adam passes over parameters without a gradient: their moments and counts of steps stay, too. The step itself is
    still called, so that a gradient scaler (fp16) hears of it and lowers its scale.
    """
    finite = bool(norm.isfinite())
    if not finite:
        optimizer.zero_grad(set_to_none=True)
    return finite


def fault(module: "Recipe", measured: bool) -> str | None:
    """What makes a checkpoint of this moment none to go on from; nothing if it is good.

    Args:
        module: what would be saved.
        measured: whether the validation of these very weights is at hand. Without it, a step that was skipped just now
            makes them suspect.
    """
    if not torch.stack([p.isfinite().all() for p in module.parameters()]).all():
        return "weights are not finite"
    metrics = module.trainer.callback_metrics
    values = {name: metrics[name] for name in (f"val/{name}" for name in HELD_OUT) if measured and name in metrics}
    if values:
        return next((f"{name} is not finite" for name, value in values.items() if not value.isfinite()), None)
    skipped = module.skipped_in_a_row
    return f"the last steps ({skipped}) were not finite and skipped" if skipped else None


def diverged(module: "Recipe", what: str) -> InputError:
    """What ends a run: what happened, when, likely why, and what to go on from."""
    trainer, rate = module.trainer, module.learning_rate
    half = "" if trainer.precision.startswith("32") else f", half precision (--trainer.precision {trainer.precision})"
    path, lower = Path(trainer.default_root_dir) / "last.ckpt", f"--model.learning_rate {min(rate / 10, SAFE_RATE):g}"
    way = f"there is no good checkpoint yet: begin again with another --name and {lower}"
    if path.exists():
        way = f"the last good checkpoint, {path}, has {read_checkpoint(path)[0].images_seen:,}: go on from it with "
        way += f"--ckpt_path last {lower}"
    return InputError(
        f"{what} at {module.images_seen:,} images seen; likely: a learning rate too high "
        f"(--model.learning_rate {rate:g}){half}, data that are not finite; {way}"
    )
