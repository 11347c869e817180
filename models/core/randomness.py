"""Random streams that are functions of where one is, not of what was drawn before.

Training noise depends on (seed, images seen), the noise of a sampled image on (seed, its number): a resumed run and
an uninterrupted one, a batch of 1 and a batch of 100 then draw the same numbers with no state to save. The noise of
sampled images is drawn on the CPU always, and so is the same on every device.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for a training step, seeded with a hash of the key's non-negative integers.

    Keys should have one length: zeros at the end do not count, (1,) is (1, 0).
    """
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64).item()
    return torch.Generator(device).manual_seed(seed)


def noise_of_images(seed: int, numbers: Iterable[int], stream: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (B, *shape); row i depends on (seed, numbers[i], stream) alone. Always on the CPU."""
    # numpy, because PyTorch's CPU generator keeps 32 bits of its seed: among 50,000 images two would soon be alike.
    rows = [np.random.default_rng((seed, n, stream)).standard_normal(shape, np.float32) for n in numbers]
    return torch.from_numpy(np.stack(rows))


def shard(
    draw: Callable[..., Tensor], shape: tuple[int, ...], rng: torch.Generator, rank: int = 0, world: int = 1
) -> Tensor:
    """This process's rows of noise: row i of the result is row i * world + rank of the global batch's.

    Every process draws the global batch's noise, (shape[0] * world, *shape[1:]), and keeps its share, so that the
    union over processes is what one process would have drawn.

    Args:
        draw: torch.randn or torch.rand.
        shape: of this process's noise; the batch is the first axis.
        rng: the generator, in the same state on every process.
        rank: this process.
        world: number of processes.
    """
    return draw((shape[0] * world, *shape[1:]), generator=rng, device=rng.device)[rank::world]
