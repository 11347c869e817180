"""Feed cached images to Lightning: one data module for each source, named in configs by its class path."""

from collections.abc import Callable, Sequence
from functools import cache

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, default_convert

from degrain.data.cache import Source, cached_arrays
from degrain.data.celeba import CelebASource
from degrain.data.decode import Crop
from degrain.data.drawing import REGIONS
from degrain.data.files import say
from degrain.data.folder import FolderSource
from degrain.data.masked import REGIONS as MASKED_REGIONS
from degrain.data.masked import MaskedSource
from degrain.data.portraits import PortraitSource
from degrain.data.stream import CachedImages, DeviceImages, ShuffledStream
from degrain.models.core.errors import InputError

PURPOSES = {"train": "train on", "valid": "validate on", "test": "test on"}
SPLITS = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",)}


class ImageDataModule(pl.LightningDataModule):
    """Give batches {"image": (B, 3, H, W) uint8, "index": (B,), ...} of one source.

    Training follows the images seen, not epochs: the stream continues from the Lightning module's `images_seen` up to
    its `leg_end`, the images seen at the next validation. The Trainer needs reload_dataloaders_every_n_epochs=1, as
    its epoch ends there, and use_distributed_sampler=False, as the stream itself gives each process its share.

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
        device_share: Most of a GPU's free memory, as a share, that the training images may take. If they fit in, they
            are kept and flipped there; otherwise each batch is copied there in the background.

    Raises:
        InputError: A number is out of range.
    """

    source: Callable[[], Source]  # set by subclasses; opened only when needed: a config can be read without its data
    crop: Crop | None = None
    regions: tuple[str, ...] = ()  # names of the values of a batch's "regions"

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
        device_share: float = 0.25,
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
        if not 0 <= device_share <= 1:
            raise InputError(f"--data.device_share {device_share}: a share of a GPU's free memory, from 0 to 1")
        self.batch_size, self.micro_batch_size, self.eval_batch_size = batch_size, micro_batch_size, eval_batch_size
        self.size, self.flip, self.seed, self.num_workers = size, flip, seed, num_workers
        self.cache, self.skip_corrupt, self.limit_valid = cache, skip_corrupt, limit_valid
        self.device_share = device_share
        self.source_name: str | None = None
        self.datasets: dict[str, CachedImages] = {}
        self.training_images: CachedImages | DeviceImages | None = None  # chosen when they are first loaded

    def prepare_data(self) -> None:
        """Say what the splits are and build the caches, in one process, while the others wait."""
        splits = SPLITS[self.trainer.state.fn.value]
        self._describe_splits(splits)
        self._open(splits)

    def setup(self, stage: str) -> None:
        self.datasets |= self._open(SPLITS[stage])
        self.training_images = None

    def train_dataloader(self) -> DataLoader:
        if self.training_images is None:
            self.training_images = self._place(self.datasets["train"])
        run, images = self.trainer.lightning_module, self.training_images
        rank, world = self.trainer.global_rank, self.trainer.world_size
        stream = ShuffledStream(
            len(images), self.batch_size, run.images_seen, run.leg_end, self.seed, self.flip, rank, world
        )
        workers = self.num_workers if isinstance(images, CachedImages) else 0
        return self._loader(images, batch_sampler=stream, num_workers=workers)

    def encode_dataloader(self, count: int) -> DataLoader:
        """Load the first `count` training images in order, every second one flipped if training flips.

        Every process gets all of them.
        """
        images = self.datasets["train"]
        elements = [(i, self.flip and i % 2 == 1) for i in range(min(count, len(images)))]
        return self._loader(images, sampler=elements, batch_size=self.eval_batch_size)

    def numbered_dataloader(self, split: str, numbers: Sequence[int]) -> DataLoader:
        """Load images by their numbers, in that order, unflipped. Every process gets all of them."""
        return self._loader(self.datasets[split], sampler=numbers, batch_size=self.eval_batch_size)

    def open_train(self) -> str | None:
        """Open the training images, also in a test. Return the source's refusal if it has none, else None."""
        try:
            self.source().items("train")
        except InputError as error:
            return str(error)
        self.datasets |= self._open(("train",))
        return None

    def identity(self, split: str) -> str:
        """Return a string that changes with anything that the images of a split depend on, to key statistics by."""
        source = self.source()
        return f"{source.name} {source.fingerprint(split)} {len(self.datasets[split])} images"

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("valid")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def describe(self) -> dict[str, str | int | None | dict[str, int]]:
        """Describe the images in plain types, for checkpoints and W&B."""
        images = {split: len(dataset) for split, dataset in self.datasets.items()}
        return {"source": self.source_name, "crop": self.crop, "size": self.size, "images": images}

    def _describe_splits(self, needed: Sequence[str]) -> None:
        """Print how many images each split has, and what the source remarks. InputError if a needed one has none."""
        source, counts = self.source(), {}
        for split, purpose in PURPOSES.items():
            try:
                counts[purpose] = len(source.items(split))
            except InputError:
                if split in needed:
                    raise
                counts[purpose] = 0
        limit = "" if self.limit_valid is None else f" (--data.limit_valid {self.limit_valid:,})"
        said = ", ".join(f"{count:,} to {purpose}" for purpose, count in counts.items())
        say(f"data: {source.name}: images: {said}".replace(PURPOSES["valid"], PURPOSES["valid"] + limit))
        for line in source.remarks():
            say(f"data: {line}")

    def _open(self, splits: Sequence[str]) -> dict[str, CachedImages]:
        """Open the caches of the splits; build those that are missing."""
        source = self.source()
        self.source_name = source.name
        datasets = {}
        for split in splits:
            arrays = cached_arrays(source, split, self.size, self.cache, self.skip_corrupt)
            limit = self.limit_valid if split == "valid" else None
            datasets[split] = CachedImages({name: array[:limit] for name, array in arrays.items()})
        return datasets

    def _eval_loader(self, split: str) -> DataLoader:
        """Load every image once, in order; each process takes its share."""
        images, world = len(self.datasets[split]), self.trainer.world_size
        if images < world:  # a process without an image would keep the others waiting
            raise InputError(f"{images} images in {split} for {world} processes: at least one each; start fewer")
        return self.numbered_dataloader(split, range(self.trainer.global_rank, images, world))

    def _place(self, images: CachedImages) -> CachedImages | DeviceImages:
        """Return the training images, on the device if it is a GPU with room for them; say which."""
        device = self.trainer.strategy.root_device
        free = free_memory(device)
        if not free:
            return images
        fit = images.bytes <= self.device_share * free
        where = "kept there, and flipped there" if fit else "each batch is copied there from pinned memory"
        where += f"; --data.num_workers {self.num_workers} has nothing to load" if fit and self.num_workers else ""
        if self.trainer.is_global_zero:
            share = f"--data.device_share {self.device_share:g} of the {free / 2**30:.1f} GiB free on the GPU"
            say(f"data: training images: {images.bytes / 2**30:.2f} GiB; {share}: {where}")
        return DeviceImages(images, device) if fit else images

    def _loader(self, images: CachedImages | DeviceImages, **options) -> DataLoader:
        pinned = self.trainer.strategy.root_device.type == "cuda" and isinstance(images, CachedImages)
        return DataLoader(images, collate_fn=default_convert, pin_memory=pinned, **options)  # a batch is collated


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a GPU; 0 elsewhere, where images are on the device already."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


class Portraits(ImageDataModule):
    """Draw faces by data/portraits.py, with the masks of their regions.

    Args:
        count: Number of training images.
        valid_count: Number of validation images.
        draw_seed: Seed of the drawing.
        noise: Std of the noise to plant, by name of the region, in units of [0, 1]; at most 0.1.
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
        self.source = lambda: PortraitSource(count, valid_count, draw_seed, noise)


class CelebA(ImageDataModule):
    """Load CelebA in its official layout.

    Args:
        root: Folder that holds list_eval_partition.txt (or .csv) and img_align_celeba/ or img_align_celeba.zip.
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
        self.crop = crop
        self.source = cache(lambda: CelebASource(root, crop, download, partial))


class ImageFolder(ImageDataModule):
    """Load any folder of images.

    Args:
        root: Folder of images, in subfolders or not; folders train, valid and test, or the like, are the splits.
        crop: Centre crop of so many pixels, "square" for the largest, "none" to squeeze the whole image.
        valid_share: Share held out if there is no folder of images to validate on.
    """

    def __init__(self, root: str, crop: Crop = "square", valid_share: float = 0.05, **common) -> None:
        super().__init__(**common)
        self.crop = crop
        self.source = cache(lambda: FolderSource(root, crop, valid_share, self.cache))


class MaskedImages(ImageDataModule):
    """Load photographs with masks, to measure a checkpoint on by region (`test`), not to train on.

    Args:
        root: .npz file with images (N, S, S, 3) and CelebAMask-HQ's classes as masks (N, S, S), uint8.
    """

    regions = MASKED_REGIONS

    def __init__(self, root: str, **common) -> None:
        super().__init__(**common)
        self.source = lambda: MaskedSource(root)
