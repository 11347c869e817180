"""Images of a model, by row."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.randomness import natural
from degrain.models.inference.pictures import panel


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Rows of B images each, (B, 3, H, W) in [0, 1] units, not clipped. A notebook shows them as `show` draws them.

    A row that the model does not have is an AttributeError: a VAE has no `denoised`, a plain GAN `generated` alone, and
    a PixelVAE `sample` alone.

    Args:
        rows: name -> images, in the order of the panel.
    """

    rows: Mapping[str, Tensor]

    @property
    def photograph(self) -> Tensor:
        """What was reconstructed."""
        return self._row("photograph")

    @property
    def mean(self) -> Tensor:
        """Mean of p(x|z)."""
        return self._row("mean")

    @property
    def std(self) -> Tensor:
        """Standard deviation of p(x|z), of every pixel and channel."""
        return self._row("std")

    @property
    def sample(self) -> Tensor:
        """Draw from p(x|z): mean + std * noise."""
        return self._row("sample")

    @property
    def denoised(self) -> Tensor:
        """The denoiser's output for the draw."""
        return self._row("denoised")

    @property
    def generated(self) -> Tensor:
        """Output of a plain GAN."""
        return self._row("generated")

    def _row(self, name: str) -> Tensor:
        if name not in self.rows:
            raise AttributeError(f"no row {name}: these images have {', '.join(self.rows)}")
        return self.rows[name]

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def __repr__(self) -> str:
        return f"Images({', '.join(f'{name} {tuple(images.shape)}' for name, images in self.rows.items())})"

    def show(self, columns: int = 8, scale: int | None = None, labels: bool = True) -> Image.Image:
        """Draw the panel of all rows, the std as a heat map; no screen is needed.

        Args:
            columns: images a line.
            scale: enlargement of the images; by default the least that brings them to 96 pixels.
            labels: whether names of the rows and the heat map's scale are drawn.

        Raises:
            InputError: there are values that are not finite, or columns or scale are no numbers from 1 on.
        """
        rows = {name: images.detach() for name, images in self.rows.items()}
        if not rows or not all(images.numel() for images in rows.values()):
            raise InputError("images: there are none to show")
        columns, scale = natural(columns, "columns"), None if scale is None else natural(scale, "scale")
        for name, value in (("columns", columns), ("scale", scale)):
            if value is not None and value < 1:
                raise InputError(f"{name} {value}: must be at least 1")
        return panel(rows, columns, scale, labels)

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.show().save(content, "PNG", optimize=True)  # half the size of what PIL gives a notebook
        return content.getvalue()


def numbered(first: int, n: int) -> range:
    """Return the numbers of n images from `first` on, ints of Python. InputError for what is no integer from 0 on."""
    n, first = natural(n, "n"), natural(first, "first")
    return range(first, first + n)


def in_batches(draw: Callable[[range], dict[str, Tensor]], n: int, first: int, batch_size: int) -> Images:
    """Draw images `first` to `first + n - 1` in batches, and join these row by row.

    The joined tensors are normal ones, which autograd may save; those of the pipeline are inference tensors.
    """
    numbers, batch_size = numbered(first, n), natural(batch_size, "batch_size")
    if not numbers or not batch_size:
        raise InputError(f"n {n} and batch_size {batch_size}: must be at least 1")
    batches = [draw(numbers[start : start + batch_size]) for start in range(0, len(numbers), batch_size)]
    return Images({name: torch.cat([batch[name] for batch in batches]) for name in batches[0]})
