"""Numbers that are not finite: which state must not be saved, and the message that ends a run."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from degrain.models.core.errors import InputError
from degrain.models.inference.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from degrain.models.training.recipe import Recipe

PATIENCE = 20
"""Skipped steps in a row that end a run: a bad batch or fp16's search for its scale skips a few, dead weights all."""

HELD_OUT = ("distortion", "rate", "standardised_error", "l2", "margin")
"""Held-out values without which a network is of no use."""

SAFE_RATE = 1e-3
"""Learning rate above which none is proposed to go on with."""


def fault(module: "Recipe", validated: bool) -> str | None:
    """Return why this state must not be saved, or None.

    Args:
        module: the recipe to be saved.
        validated: whether these very weights were just validated. Otherwise a step that was skipped just now makes them
            suspect.
    """
    if not torch.stack([p.isfinite().all() for p in module.parameters()]).all():
        return "weights are not finite"
    metrics = module.trainer.callback_metrics
    values = {name: metrics[name] for name in (f"val/{name}" for name in HELD_OUT) if validated and name in metrics}
    if values:
        return next((f"{name} is not finite" for name, value in values.items() if not value.isfinite()), None)
    skipped = int(module.skips[1])
    return f"the last steps ({skipped}) were not finite and skipped" if skipped else None


def diverged(module: "Recipe", happened: str) -> InputError:
    """Return the error that ends a run: what happened, when, likely why, and what to go on from."""
    trainer, rate = module.trainer, module.schedule.learning_rate
    half = "" if trainer.precision.startswith("32") else f", half precision (--trainer.precision {trainer.precision})"
    path, lower = Path(trainer.default_root_dir) / "last.ckpt", f"--model.learning_rate {min(rate / 10, SAFE_RATE):g}"
    way = f"there is no good checkpoint yet: begin again with another --name and {lower}"
    if path.exists():
        way = f"the last good checkpoint, {path}, has {read_checkpoint(path)[0].images_seen:,}: go on from it with "
        way += f"--ckpt_path last {lower}"
    return InputError(
        f"{happened} at {module.images_seen:,} images seen; likely: a learning rate too high "
        f"(--model.learning_rate {rate:g}){half}, data that are not finite; {way}"
    )
