"""Pictures in no time: drawing a figure and packing a PNG each take as long as a tiny training does."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from degrain.models.training import curves

DRAW = Figure.savefig
KNOWN: set[str] = set()
"""Kinds of figures that this process has drawn."""


@contextmanager
def pictures() -> Iterator[None]:
    """Draw each kind of figure once and write a digest of its numbers, no curves, and pack PNGs loosely."""
    pack = Image.SAVE["PNG"]

    def digest(figure: Figure, file: Path | BytesIO, **options: Any) -> None:
        kind = file.name.lstrip(".0123456789-") if isinstance(file, Path) else "a page's"
        if kind not in KNOWN:
            KNOWN.add(kind)
            DRAW(figure, BytesIO(), **options)
        values = b"".join(np.asarray(part, np.float64).tobytes() for part in numbers(figure))
        Image.frombytes("L", (8, 4), sha256(values).digest()).save(file, "png")

    def loosely(image: Image.Image, *rest: Any, **options: Any) -> None:
        image.encoderinfo |= {"compress_level": 1, "optimize": False}
        pack(image, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", digest)
        patch.setattr(curves, "draw_curves", lambda rows, path: path.write_bytes(b""))
        patch.setitem(Image.SAVE, "PNG", loosely)
        yield


def numbers(figure: Figure) -> Iterator[np.ndarray]:
    """Yield what the images, lines, bars and areas of a figure show."""
    for ax in figure.axes:
        yield from (image.get_array() for image in ax.images)
        yield from (line.get_xydata() for line in ax.lines)
        yield from (bar.get_patch_transform().transform_path(bar.get_path()).vertices for bar in ax.patches)
        yield from (path.vertices for area in ax.collections for path in area.get_paths())
