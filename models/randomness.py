"""Random streams that are functions of where one is, not of what was drawn before.

Training noise depends on (seed, images seen), the noise of a sampled image on (seed, its number): a resumed run and
an uninterrupted one, a batch of 1 and a batch of 100, a CPU and a GPU then draw the same numbers with no state to save.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a hash of the key's non-negative integers: (0, 12) and (1, 2) share nothing."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64).item()
    return torch.Generator(device).manual_seed(seed)


def noise_of_images(seed: int, numbers: Iterable[int], stream: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (B, *shape); row i depends on (seed, numbers[i], stream) alone. Always on the CPU."""
    return torch.stack([torch.randn(shape, generator=generator(seed, n, stream)) for n in numbers])


def shard_of_normal(shape: tuple[int, ...], rng: torch.Generator, rank: int = 0, world: int = 1) -> Tensor:
    """This process's rows of standard normal noise: row i of the result is row i * world + rank of the global batch's.

    Every process draws the global batch's noise, (shape[0] * world, *shape[1:]), and keeps its share, so that the
    union over processes is what one process would have drawn.
    """
    noise = torch.randn((shape[0] * world, *shape[1:]), generator=rng, device=rng.device)
    return noise[rank::world]
