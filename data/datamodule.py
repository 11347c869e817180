"""From cached arrays to batches: the shuffled stream, and one Lightning data module for each source."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data.cache import Source, cached_arrays
from data.celeba import CelebASource
from data.drawing import REGIONS
from data.folder import Crop, FolderSource
from data.masked import REGIONS as MASKED_REGIONS
from data.masked import MaskedSource
from data.portraits import PortraitSource
from models.core.errors import InputError

SPLITS = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",)}


class ShuffledStream(Sampler[list[tuple[int, bool]]]):
    """Batches of (index, flip) cut from an endless stream: one seeded shuffle of the n images after another.

    What stands at position p of the stream depends on (seed, p) alone, so a run that goes on from a
    checkpoint, or on another number of processes, sees what it would have seen. Batches run across the border
    between two shuffles, so no image is dropped. The last batch is whole, although it may go beyond stop.

    Args:
        n: Number of images.
        batch_size: Images of one batch over all processes together.
        start: First position: the images seen so far.
        stop: Position to stop at: the images to see in all.
        seed: Seed of the shuffles and flips.
        flip: Whether half the images are to be flipped.
        rank: This process: it takes positions rank, rank + world, ... of each batch.
        world: Number of processes.
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
        """All n images in this epoch's order."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.n)
        flips = (rng.random(self.n) < 0.5) & self.flip
        return list(zip(order.tolist(), flips.tolist(), strict=True))


class CachedImages(Dataset):
    """The arrays of a cache, {"image": (N, H, W, 3), ...} uint8, read a batch at a time.

    An element is asked for by index or by (index, flip).
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["image"])

    def __getitem__(self, item: int | tuple[int, bool]) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([item]).items()}

    def __getitems__(self, items: Sequence[int | tuple[int, bool]]) -> dict[str, Tensor]:
        """{"index": (B,), "image": (B, 3, H, W) uint8} and the cache's other arrays: "regions": (B, H, W)."""
        pairs = [item if isinstance(item, tuple) else (item, False) for item in items]
        index, flip = (np.array(column) for column in zip(*pairs, strict=True))
        batch = {"index": torch.from_numpy(index)}
        for name, array in self.arrays.items():
            values = array[index]  # a copy, (B, H, W, 3) or (B, H, W)
            values[flip] = values[flip, :, ::-1]
            tensor = torch.from_numpy(values)
            batch[name] = rearrange(tensor, "B H W C -> B C H W").contiguous() if tensor.ndim == 4 else tensor
        return batch


class ImageDataModule(pl.LightningDataModule):
    """Batches {"image": (B, 3, H, W) uint8, "index": (B,), ...} of one source.

    Training follows the run, not the epoch: of the Lightning module it reads `images_seen`, from which the
    stream goes on, and `leg_end`, the images seen at the next validation. The Trainer needs
    reload_dataloaders_every_n_epochs=1, as a leg is its epoch, and use_distributed_sampler=False, as the
    stream deals the images out to the processes itself.

    Args:
        size: Height and width of the images.
        batch_size: Training images of one step, over all processes together.
        micro_batch_size: Most training images that go through the networks at once in each process; by default all.
            A step of more goes through them in equal pieces, with the result of one, in less memory and more time.
        eval_batch_size: Images of one batch of validation and test, in each process.
        flip: Flip half the training images horizontally.
        seed: Seed of the order and the flips of training images.
        cache: Folder of the decoded images.
        skip_corrupt: Leave out images that cannot be read, and count them, instead of stopping at the first.
        num_workers: Processes that load training batches; a cache needs none.
        limit_valid: Validate on the first so many images only.
    """

    crop: Crop | None = None
    regions: tuple[str, ...] = ()  # names of what a batch's "regions" number

    def __init__(
        self,
        size: int = 64,
        batch_size: int = 64,
        micro_batch_size: int | None = None,
        eval_batch_size: int = 128,
        flip: bool = True,
        seed: int = 0,
        cache: str = ".cache/degrain",
        skip_corrupt: bool = False,
        num_workers: int = 0,
        limit_valid: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "micro_batch_size": micro_batch_size, "eval_batch_size": eval_batch_size}
        for name, images in sizes.items():
            if images is not None and images < 1:
                raise InputError(f"--data.{name} {images}: at least 1 image")
        if seed < 0 or num_workers < 0 or limit_valid is not None and limit_valid < 1:
            raise InputError(
                f"--data.seed {seed}, --data.num_workers {num_workers}: not negative; "
                f"--data.limit_valid {limit_valid}: at least 1, or null for all"
            )
        self.size = size
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.eval_batch_size = eval_batch_size
        self.flip = flip
        self.seed = seed
        self.cache = cache
        self.skip_corrupt = skip_corrupt
        self.num_workers = num_workers
        self.limit_valid = limit_valid
        self.source_name: str | None = None
        self.datasets: dict[str, CachedImages] = {}

    def source(self) -> Source:
        """The source, which is looked at when it is needed: a config can be read where its data is not."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Builds the caches; one process does it, and the others wait."""
        self._open(SPLITS[self.trainer.state.fn.value])

    def setup(self, stage: str) -> None:
        self.datasets |= self._open(SPLITS[stage])

    def train_dataloader(self) -> DataLoader:
        run, images = self.trainer.lightning_module, self.datasets["train"]
        rank, world = self.trainer.global_rank, self.trainer.world_size
        stream = ShuffledStream(
            len(images), self.batch_size, run.images_seen, run.leg_end, self.seed, self.flip, rank, world
        )
        return self._loader(images, batch_sampler=stream, num_workers=self.num_workers)

    def encode_dataloader(self, count: int) -> DataLoader:
        """The first `count` training images in order, every second one flipped if training flips; on every process."""
        images = self.datasets["train"]
        elements = [(i, self.flip and i % 2 == 1) for i in range(min(count, len(images)))]
        return self._loader(images, sampler=elements, batch_size=self.eval_batch_size)

    def numbered_dataloader(self, split: str, numbers: Sequence[int]) -> DataLoader:
        """Images by their numbers, in that order, as they are; on every process."""
        return self._loader(self.datasets[split], sampler=numbers, batch_size=self.eval_batch_size)

    def open_train(self) -> str | None:
        """Open the training images, in a test too; where the source has none, what it says of that."""
        try:
            self.source().items("train")
        except InputError as error:
            return str(error)
        self.datasets |= self._open(("train",))
        return None

    def identity(self, split: str) -> str:
        """All that the images of a split depend on: what statistics of them are kept under."""
        source = self.source()
        return f"{source.name} {source.fingerprint(split)} {len(self.datasets[split])} images"

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("valid")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def describe(self) -> dict[str, str | int | None | dict[str, int]]:
        """What the images are, in plain types: for checkpoints and W&B."""
        images = {split: len(dataset) for split, dataset in self.datasets.items()}
        return {"source": self.source_name, "crop": self.crop, "size": self.size, "images": images}

    def _open(self, splits: Sequence[str]) -> dict[str, CachedImages]:
        source = self.source()
        self.source_name = source.name
        datasets = {}
        for split in splits:
            arrays = cached_arrays(source, split, self.size, self.cache, self.skip_corrupt)
            limit = self.limit_valid if split == "valid" else None
            datasets[split] = CachedImages({name: array[:limit] for name, array in arrays.items()})
        return datasets

    def _eval_loader(self, split: str) -> DataLoader:
        """Every image once, in order; each process takes its share."""
        images, world = len(self.datasets[split]), self.trainer.world_size
        if images < world:  # a process without any would keep the others waiting
            raise InputError(f"{images} images in {split} for {world} processes: at least one each; start fewer")
        share = range(self.trainer.global_rank, images, world)
        return self.numbered_dataloader(split, share)

    def _loader(self, images: CachedImages, **options) -> DataLoader:
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(images, collate_fn=_as_it_is, pin_memory=on_gpu, **options)


class Portraits(ImageDataModule):
    """Faces drawn by data/portraits.py, with the masks of their regions.

    Args:
        count: Number of training images.
        valid_count: Number of validation images.
        draw_seed: Seed of the drawing.
        noise: Std of the noise to plant, by name of the region, in units of [0, 1].
    """

    regions = REGIONS

    def __init__(
        self,
        count: int = 20000,
        valid_count: int = 2000,
        draw_seed: int = 0,
        noise: dict[str, float] | None = None,
        **common,
    ) -> None:
        super().__init__(**common)
        self.count = count
        self.valid_count = valid_count
        self.draw_seed = draw_seed
        self.noise = noise

    def source(self) -> Source:
        return PortraitSource(self.count, self.valid_count, self.draw_seed, self.noise)


class CelebA(ImageDataModule):
    """CelebA in its official layout.

    Args:
        root: Folder that holds list_eval_partition.txt and img_align_celeba/ or img_align_celeba.zip.
        crop: Centre crop of so many pixels, "square" for the largest, "none" to squeeze the whole image.
        download: Try torchvision's download if the files are not there.
        partial: Go on if images that the partition names are missing.
    """

    def __init__(
        self,
        root: str,
        crop: Crop = "c148",
        download: bool = False,
        partial: bool = False,
        **common,
    ) -> None:
        super().__init__(**common)
        self.root = root
        self.crop = crop
        self.download = download
        self.partial = partial

    def source(self) -> Source:
        return CelebASource(self.root, self.crop, self.download, self.partial)


class ImageFolder(ImageDataModule):
    """Any folder of jpg, png and webp images.

    Args:
        root: Folder of images, in subfolders or not; with train/ and valid/ of its own these are the splits.
        crop: Centre crop of so many pixels, "square" for the largest, "none" to squeeze the whole image.
        valid_share: Share held out for validation if there are no train/ and valid/.
    """

    def __init__(
        self,
        root: str,
        crop: Crop = "square",
        valid_share: float = 0.05,
        **common,
    ) -> None:
        super().__init__(**common)
        self.root = root
        self.crop = crop
        self.valid_share = valid_share

    def source(self) -> Source:
        return FolderSource(self.root, self.crop, self.valid_share)


class MaskedImages(ImageDataModule):
    """Photographs with masks, to measure a checkpoint on by region (`test`), not to train on.

    Args:
        root: .npz file with images (N, S, S, 3) and CelebAMask-HQ's classes as masks (N, S, S), uint8.
    """

    regions = MASKED_REGIONS

    def __init__(
        self,
        root: str,
        **common,
    ) -> None:
        super().__init__(**common)
        self.root = root

    def source(self) -> Source:
        return MaskedSource(self.root)


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch
