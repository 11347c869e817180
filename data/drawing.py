"""Painter's primitives for drawn portraits: a canvas with regions, antialiased shapes, textures and colours.

Maps are (H, W) = (size, size); colours are (3, 1, 1) or (3, H, W), in [0, 1]. A texture takes as many numbers from its
generator at one size as at another.
"""

from functools import cache
from math import cos

import numpy as np

REGIONS = ("background", "skin", "hair", "eyes", "brows", "mouth", "glasses", "clothes")  # by value in a region map


class Canvas:
    """Hold image (3, H, W) and regions (H, W); later paint covers earlier paint."""

    def __init__(self, size: int) -> None:
        self.image = np.zeros((3, size, size), np.float32)
        self.regions = np.zeros((size, size), np.uint8)

    def paint(self, cover: np.ndarray, colour: np.ndarray, region: str | None = None) -> None:
        """Mix in `colour` with weight `cover` (H, W); pixels at least half covered become `region`."""
        self.image += cover * (colour - self.image)
        if region is not None:
            self.regions[cover >= 0.5] = REGIONS.index(region)


def inside(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Return the coverage in [0, 1] of the shape `distance` < 0; its edge is one pixel wide."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def line(distance: np.ndarray, half_width: np.ndarray | float, pixel: float) -> np.ndarray:
    """Return the coverage of a line whose middle is `distance` away; it is at least a pixel wide at every size."""
    return inside(np.abs(distance) - np.maximum(half_width, 0.5 * pixel), pixel)


def bump(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    """Return exp(-(x / width)^2 - (y / height)^2), (H, W)."""
    return np.exp(-((x / width) ** 2) - (y / height) ** 2)


@cache
def _blur_weights(size: int, cells: int) -> np.ndarray:
    """Return weights (size, cells + 1) that blur a grid; rows of unit norm keep white noise at variance 1."""
    position = (np.arange(size) + 0.5) / size * cells
    weights = np.exp(-2 * (position[:, None] - np.arange(cells + 1)) ** 2)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def cloud(rng: np.random.Generator, size: int, rows: int, columns: int) -> np.ndarray:
    """Draw smooth noise (H, W) of mean 0 and variance 1, in rows x columns grains."""
    grid = rng.standard_normal((rows + 1, columns + 1), np.float32)
    return _blur_weights(size, rows) @ grid @ _blur_weights(size, columns).T


def white_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw white noise (H, W) of variance 1; it takes one number from `rng`, whatever the size."""
    return np.random.default_rng(rng.integers(2**63)).standard_normal((size, size), np.float32)


def strands(rng: np.random.Generator, across: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Draw noise (H, W) in [-1, 1], random at integers of `across` and `along` and linear in between."""
    table = rng.uniform(-1, 1, (4, 128)).astype(np.float32)
    column, row = np.floor(across), np.floor(along)
    right, down = across - column, along - row
    column, row = column.astype(np.intp), row.astype(np.intp)
    near, far = (
        np.take(table, (r & 3) * 128 + (column & 127)) * (1 - right)
        + np.take(table, (r & 3) * 128 + (column + 1 & 127)) * right
        for r in (row, row + 1)
    )
    return near + down * (far - near)


def palette(colours: str) -> np.ndarray:
    """Convert N hexadecimal colours to (N, 3) in [0, 1]."""
    return np.array([list(bytes.fromhex(colour)) for colour in colours.split()]) / 255


def rgb(*channels: float) -> np.ndarray:
    """Return a colour (3, 1, 1) float32."""
    return np.array(channels, np.float32).reshape(3, 1, 1)


def muted_colour(rng: np.random.Generator, dark: float, bright: float, saturation: float) -> np.ndarray:
    """Draw a colour (3, 1, 1) of low saturation, with a hue from red over green to blue."""
    grey, hue = rng.uniform(dark, bright), rng.uniform(0, 4.4)
    tint = [cos(hue), cos(hue - 2.1), cos(hue + 2.1)]
    strength = rng.uniform(0.1, 1) * saturation
    return rgb(*[grey * (1 + strength * t) for t in tint])
