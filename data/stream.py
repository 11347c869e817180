"""Deal out training images in a seeded endless order, and read batches from cached arrays."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from degrain.models.core.errors import InputError


class ShuffledStream(Sampler[list[tuple[int, bool]]]):
    """Cut batches of (index, flip) from an endless stream: one seeded shuffle of the n images after another.

    The element at position p of the stream depends on (seed, p) alone. A run that continues from a checkpoint, or on
    another number of processes, therefore sees the same images. Batches run across the border between two shuffles, so
    no image is dropped. The last batch is complete, even if it goes beyond stop.

    Args:
        n: Number of images.
        batch_size: Images of one batch over all processes together.
        start: First position: the images seen so far.
        stop: Position to stop at: the images to see in all.
        seed: Seed of the shuffles and flips.
        flip: Flip half the images.
        rank: This process: it takes positions rank, rank + world, ... of each batch.
        world: Number of processes.

    Raises:
        InputError: batch_size is no multiple of world.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        start: int,
        stop: int,
        seed: int,
        flip: bool,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            raise InputError(f"--data.batch_size {batch_size}: choose a multiple of the {world} processes")
        self.n, self.batch_size, self.seed, self.flip = n, batch_size, seed, flip
        self.rank, self.world = rank, world
        self.firsts = range(start, stop, batch_size)

    def __len__(self) -> int:
        return len(self.firsts)

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        current = None
        for first in self.firsts:
            batch = []
            for position in range(first + self.rank, first + self.batch_size, self.world):
                epoch, place = divmod(position, self.n)
                if epoch != current:
                    current, elements = epoch, self._epoch(epoch)
                batch.append(elements[place])
            yield batch

    def _epoch(self, epoch: int) -> list[tuple[int, bool]]:
        """Return all n images in this epoch's order."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.n)
        flips = (rng.random(self.n) < 0.5) & self.flip
        return list(zip(order.tolist(), flips.tolist(), strict=True))


class CachedImages(Dataset):
    """Read batches from the arrays of a cache, {"image": (N, H, W, 3), ...} uint8.

    An element is requested by its index or by (index, flip).
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["image"])

    @property
    def bytes(self) -> int:
        """Size of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def __getitem__(self, item: int | tuple[int, bool]) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([item]).items()}

    def __getitems__(self, items: Sequence[int | tuple[int, bool]]) -> dict[str, Tensor]:
        """Return {"index": (B,), "image": (B, 3, H, W) uint8} and the cache's other arrays: "regions": (B, H, W).

        Arrays of colours have the strides of channels_last, the networks' format: a copy less in each training step.
        """
        index, flip = columns(items)
        flipped = np.flatnonzero(flip)
        batch = {"index": torch.from_numpy(index)}
        for name, array in self.arrays.items():
            values = array[index]  # a copy, (B, H, W, 3) or (B, H, W)
            if len(flipped):
                values[flipped] = _mirrored(values[flipped])
            tensor = torch.from_numpy(values)
            batch[name] = rearrange(tensor, "B H W C -> B C H W") if tensor.ndim == 4 else tensor
        return batch


class DeviceImages(Dataset):
    """Read the same batches as CachedImages, from a copy of its arrays on a device, where they are also made.

    A training step then waits for no copy of images: only indices and flips are sent, without a wait.

    Args:
        images: what to copy.
        device: where to.
    """

    def __init__(self, images: CachedImages, device: torch.device) -> None:
        self.device = device
        self.arrays = {name: on_device(array, device) for name, array in images.arrays.items()}

    def __len__(self) -> int:
        return len(self.arrays["image"])

    def __getitems__(self, items: Sequence[int | tuple[int, bool]]) -> dict[str, Tensor]:
        """Return what CachedImages returns, on the device."""
        index, flip = (self.sent(torch.from_numpy(column)) for column in columns(items))
        batch = {"index": index}
        for name, array in self.arrays.items():
            values = array[index]  # (B, H, W, 3) or (B, H, W)
            flipped = flip.view(-1, *[1] * (values.ndim - 1))
            values = torch.where(flipped, values.flip(2), values)
            batch[name] = rearrange(values, "B H W C -> B C H W") if values.ndim == 4 else values
        return batch

    def sent(self, values: Tensor) -> Tensor:
        """Return values on the device; the host does not wait until they are there."""
        values = values.pin_memory() if self.device.type == "cuda" else values
        return values.to(self.device, non_blocking=True)


def columns(items: Sequence[int | tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices and the flips of requested elements, (B,) each."""
    pairs = [item if isinstance(item, tuple) else (item, False) for item in items]
    index, flip = (np.array(column) for column in zip(*pairs, strict=True))
    return index, flip


def on_device(array: np.ndarray, device: torch.device, rows: int = 4096) -> Tensor:
    """Copy an array (N, ...) to a device, so many rows at a time: it may be larger than the host's memory."""
    copy = torch.empty(array.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(array), rows):
        copy[start : start + rows] = torch.from_numpy(array[start : start + rows].copy())
    return copy


def _mirrored(values: np.ndarray) -> np.ndarray:
    """Mirror (B, H, W, 3) or (B, H, W) uint8 horizontally: by PyTorch, whose loop is 5 times as fast as numpy's."""
    images = torch.from_numpy(values)
    if images.ndim == 3:
        return images.flip(2).numpy()
    channels_last = rearrange(images, "B H W C -> B C H W")  # the fast loop is for this layout
    return rearrange(channels_last.flip(3), "B C H W -> B H W C").numpy()
