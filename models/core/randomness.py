"""Random numbers as functions of a position, not of what was drawn before.

Training noise depends on (seed, images seen), the noise of a sampled image on (seed, its number): a resumed run and
an uninterrupted one, a batch of 1 and a batch of 100 then draw the same numbers with no state to save. The noise of
sampled images is drawn where the networks are, and is the same on every device but for the last bits.
"""

import math
from collections.abc import Iterable
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.philox import CHUNK, normal, words_of_images


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator that is seeded with a hash of the key's non-negative integers.

    Keys should have one length: zeros at the end do not count, (1,) is (1, 0).
    """
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64).item()
    return torch.Generator(device).manual_seed(seed)


def noise_of_images(seed: int, numbers: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal noise (B, *shape), float32; row i depends on (seed, numbers[i], stream) alone.

    It is drawn on the device of the numbers, from the same random words on each: see degrain.models.core.philox. Their
    key is a hash of the seed, their counters are of the stream and the number, so no two images or streams share one.
    Noise of a smaller shape is the beginning of that of a larger one, value by value.

    Args:
        seed: non-negative.
        numbers: of the images, (B,), int64, non-negative.
        stream: non-negative.
        shape: of the noise of one image.

    Raises:
        InputError: a seed that is no integer or negative.
    """
    key = np.random.SeedSequence(natural(seed, "seed")).generate_state(2, np.uint64).tolist()
    size = math.prod(shape)
    count = -(-size // (2 * CHUNK)) * CHUNK  # of words: each gives two values
    rows = max(1, values_at_once(numbers.device) // size)
    parts = [normal(words_of_images(key, some, stream, count))[:, :size] for some in numbers.split(rows)]
    return torch.cat(parts).unflatten(1, shape)


def values_at_once(device: torch.device) -> int:
    """Return how many values to draw at once: few enough for a CPU's cache, on a GPU enough to occupy it."""
    return 2**19 if device.type == "cpu" else 2**22


def image_numbers(numbers: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
    """Return numbers of images, int64 (B,): of a range, a list, a one-dimensional array or tensor.

    Raises:
        InputError: a single number or none at all, or one that is no integer, negative, or 2^63 or more.
    """
    try:
        given = list(numbers)
    except TypeError:
        given = []
    if not given:
        raise InputError(f"numbers {shown(numbers)}: give several numbers of images, such as range(4) or [3, 7]")
    given = [natural(number, "number of an image") for number in given]
    if max(given) >= 2**63:
        raise InputError(f"number of an image {max(given)}: must be below 2^63")
    return torch.tensor(given, device=device)


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
