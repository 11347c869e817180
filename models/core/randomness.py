"""Random numbers as functions of a position, not of what was drawn before.

Training noise depends on (seed, images seen), the noise of a sampled image on (seed, its number): a resumed run and
an uninterrupted one, a batch of 1 and a batch of 100 then draw the same numbers with no state to save. The noise of
sampled images is always drawn on the CPU, and so is the same on every device.
"""

from collections.abc import Iterable
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from degrain.models.core.errors import InputError


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator that is seeded with a hash of the key's non-negative integers.

    Keys should have one length: zeros at the end do not count, (1,) is (1, 0).
    """
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64).item()
    return torch.Generator(device).manual_seed(seed)


def noise_of_images(seed: int, numbers: Iterable[int], stream: int, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal noise (B, *shape) on the CPU; row i depends on (seed, numbers[i], stream) alone.

    Raises:
        InputError: a seed or a number that is no integer or negative, or no numbers.
    """
    seed, numbers = natural(seed, "seed"), image_numbers(numbers)
    # numpy, because PyTorch's CPU generator keeps 32 bits of its seed: among 50,000 images two would soon be alike.
    rows = [np.random.default_rng((seed, n, stream)).standard_normal(shape, np.float32) for n in numbers]
    return torch.from_numpy(np.stack(rows))


def image_numbers(numbers: Iterable[int]) -> list[int]:
    """Return numbers of images as a list: of a range, a list, a one-dimensional array or tensor.

    Raises:
        InputError: a single number or none at all, or one that is no integer or negative.
    """
    try:
        given = list(numbers)
    except TypeError:
        given = []
    if not given:
        raise InputError(f"numbers {shown(numbers)}: give several numbers of images, such as range(4) or [3, 7]")
    return [natural(number, "number of an image") for number in given]


def natural(value: int, name: str) -> int:
    """Return an integer of any library as an int.

    Raises:
        InputError: no integer, or a negative one; it begins with the name.
    """
    try:
        number = index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise InputError(f"{name} {shown(value)}: must be an integer, 0 or more")
    return number


def shown(value: Any) -> str:
    """Return a value for an error message, in one line of at most 60 characters."""
    return " ".join(repr(value).split())[:60]


class Noise:
    """Noise of one training step for one part of the global batch.

    Every part draws the noise of the global batch and keeps its own rows: row i of part p of P is row i P + p. So the
    parts together have what one process would have drawn for the whole batch.

    Args:
        key: of the generator, such as (seed, stream, images seen).
        part: number of this part.
        parts: number of parts.
        device: where to draw.
    """

    def __init__(self, *key: int, part: int = 0, parts: int = 1, device: torch.device | str = "cpu") -> None:
        self.rng, self.part, self.parts = generator(*key, device=device), part, parts

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal noise of this part; the first axis is the batch."""
        whole = torch.randn(shape[0] * self.parts, *shape[1:], generator=self.rng, device=self.rng.device)
        return whole[self.part :: self.parts]

    def uniform(self, *shape: int) -> Tensor:
        """Draw noise of this part that is uniform in [0, 1); the first axis is the batch."""
        whole = torch.rand(shape[0] * self.parts, *shape[1:], generator=self.rng, device=self.rng.device)
        return whole[self.part :: self.parts]
