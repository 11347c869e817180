"""The schedule of a run, counted in images."""

import math
from dataclasses import dataclass

from degrain.models.core.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """Everything that depends on the number of images seen.

    Args:
        budget: training images to see in all; warmup and decay are shares of it. A larger budget continues a finished
            run.
        validate_every: images between validations.
        learning_rate: Adam's, after the warm-up.
        warmup: share of the budget over which the learning rate rises from 0.
        warmup_images: images over which it rises at least, whatever the budget: wide networks need 100 steps.
        decay: share of the budget, at its end, over which the learning rate falls to 0 as a half cosine.
        seed: of all noise in training and validation.

    Raises:
        InputError: a budget, interval, share, rate or seed out of range.
    """

    budget: int = 400_000
    validate_every: int = 40_000
    learning_rate: float = 1e-3
    warmup: float = 0.01
    warmup_images: int = 0
    decay: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget < 1 or self.validate_every < 1:
            raise InputError(
                f"model: budget ({self.budget}) and validate_every ({self.validate_every}) must be at least 1 image"
            )
        if not (0 <= self.warmup and 0 <= self.decay and self.warmup + self.decay <= 1):
            raise InputError(
                f"model: warmup ({self.warmup}) and decay ({self.decay}) are shares of the budget: at most 1 together"
            )
        if self.warmup_images < 0:
            raise InputError(f"model: warmup_images ({self.warmup_images}) must not be negative")
        if not 0 < self.learning_rate < math.inf or self.seed < 0:
            raise InputError(
                f"model: learning_rate ({self.learning_rate}) must be positive and finite and seed ({self.seed}) not "
                f"negative"
            )

    def note(self) -> str | None:
        """Return a line if the budget ends before the learning rate has risen, or None."""
        if self.warmup_images <= self.budget:
            return None
        return (
            f"model.warmup_images {self.warmup_images:,} is above model.budget {self.budget:,}: the learning rate ends "
            f"its rise at {max(self.rate(images) for images in range(0, self.budget, -(-self.budget // 100))):.2g} of "
            f"{self.learning_rate:g}"
        )

    def progress(self, images_seen: int) -> float:
        """Return the share of the budget that has been seen, from 0 to 1."""
        return min(1.0, images_seen / self.budget)

    def leg_end(self, images_seen: int) -> int:
        """Return the number of images seen at the next validation."""
        return min(self.budget, (images_seen // self.validate_every + 1) * self.validate_every)

    @property
    def rise(self) -> float:
        """Images over which the learning rate rises."""
        return max(self.warmup * self.budget, self.warmup_images)

    def rate(self, images_seen: int, warm_from: int = 0) -> float:
        """Return the learning rate: a linear rise from `warm_from` on, constant, a half cosine down to 0."""
        progress = self.progress(images_seen)
        warmup = self.rise / self.budget
        rise = min(1.0, (progress - warm_from / self.budget + 1e-3) / (warmup + 1e-3))
        fall = max(0.0, (progress - (1 - self.decay)) / self.decay) if self.decay else 0.0
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * fall))


def warmed_up(progress: float, share: float) -> float:
    """Return a weight that rises linearly from 0 to 1 over the first `share` of the budget; 1 without a share."""
    return min(1.0, progress / share) if share else 1.0
