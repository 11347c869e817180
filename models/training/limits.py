"""Limits of one call of fit: steps, legs and time."""

from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from degrain.models.core.errors import InputError


class Limits(Timer):
    """Ends a call of fit after so many steps or legs, or so much time; a validation and a checkpoint come first.

    All are counted from the start of the call, and no checkpoint knows them. A step is a global batch, also where it
    moves two networks. A leg, the images up to the next validation, is Lightning's epoch.

    Args:
        max_steps: steps; -1 for no limit.
        max_epochs: legs; -1 or None for no limit.
        max_time: DD:HH:MM:SS, or as timedelta takes it; None for no limit.

    Attributes:
        reached: the option that ended the call, with its value; None before.

    Raises:
        InputError: a limit that leaves nothing to do, or cannot be read.
    """

    def __init__(
        self,
        max_steps: int = -1,
        max_epochs: int | None = None,
        max_time: str | timedelta | dict[str, int] | None = None,
    ) -> None:
        try:
            super().__init__(max_time, verbose=False)
        except (MisconfigurationException, TypeError, OverflowError):
            raise InputError(f"trainer.max_time {max_time}: give it as DD:HH:MM:SS") from None
        self.limits = {"max_steps": max_steps, "max_epochs": -1 if max_epochs is None else max_epochs}
        for name, limit in self.limits.items():
            if limit != -1 and limit < 1:
                raise InputError(f"trainer.{name} {limit}: must be at least 1, or -1 for no limit")
        if self._duration is not None and self._duration <= 0:
            raise InputError(f"trainer.max_time {max_time}: must be positive, or null for no limit")
        self.max_time = max_time
        self.done = {"max_steps": 0, "max_epochs": 0}
        self.reached: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a limit is one of this call."""
        return {}

    def count(self, trainer: pl.Trainer, name: str) -> None:
        """Count a step or a leg, and stop the Trainer at the limit."""
        self.done[name] += 1
        if self.done[name] == self.limits[name]:
            self.reached = f"trainer.{name} {self.limits[name]}"
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.count(trainer, "max_steps")
        already = trainer.should_stop
        super().on_train_batch_end(trainer)
        if trainer.should_stop and not already:
            self.reached = f"trainer.max_time {self.max_time}"

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.reached is None:  # otherwise another limit has cut the leg
            self.count(trainer, "max_epochs")
