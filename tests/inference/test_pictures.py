"""Panels: exact pixels, rows in order, a visible scale."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from torch import Tensor

from degrain.models.inference.pictures import GAP, PAPER, as_pictures, colours, heat_limit, heat_map, panel, to_uint8

ROWS = ("mean", "std", "sample", "denoised")


def grey(level: float, count: int = 3, size: int = 32) -> Tensor:
    return torch.full((count, 3, size, size), level)


def found(canvas: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """Return (top, left) of the first place of a picture on the canvas."""
    height, width = picture.shape[:2]
    corners = np.argwhere((canvas == picture[0, 0]).all(-1))
    hits = [(t, w) for t, w in corners if np.array_equal(canvas[t : t + height, w : w + width], picture)]
    assert hits, "the picture is not on the panel"
    return tuple(int(i) for i in hits[0])


def test_to_uint8_is_exact_on_the_grid_and_rounds_to_the_nearest_level():
    levels = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    want = np.broadcast_to(np.arange(256).reshape(1, 16, 16, 1), (1, 16, 16, 3))
    for shift in (-0.49, 0.0, 0.49):
        assert np.array_equal(to_uint8((levels + shift) / 255), want)


def test_to_uint8_clips_and_puts_channels_last():
    image = torch.tensor([-3.0, 0.5, 7.0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 4)
    assert to_uint8(image).shape == (1, 2, 4, 3) and to_uint8(image).dtype == np.uint8
    assert to_uint8(image)[0, 0, 0].tolist() == [0, 128, 255]
    assert to_uint8(image.bfloat16())[0, 0, 0].tolist() == [0, 128, 255]


def test_heat_map_runs_from_zero_to_its_limit():
    std = torch.tensor([0.0, 0.1, 0.2, 0.9]).expand(1, 3, 1, 4)
    coloured = heat_map(std, 0.2)[0, 0]
    ends = colormaps["inferno"]([0.0, 0.5, 1.0], bytes=True)[:, :3]
    assert np.array_equal(coloured, ends[[0, 1, 2, 2]])


def test_heat_limit_is_a_percentile_of_the_mean_over_channels():
    std = torch.linspace(0, 1, 2001).expand(1, 3, 1, 2001).clone()
    std[:, 0] += 0.3
    assert heat_limit(std) == pytest.approx(0.995 + 0.1)


def test_std_alone_becomes_a_heat_map():
    images = grey(0.1)
    assert np.array_equal(as_pictures("mean", images), to_uint8(images))
    assert np.array_equal(as_pictures("std", images, limit=0.3), heat_map(images, 0.3))


def test_a_panel_shows_its_rows_in_order_and_every_picture_in_its_column():
    rng = torch.Generator().manual_seed(0)
    rows = {name: torch.rand(3, 3, 32, 32, generator=rng) for name in ROWS}
    canvas = np.asarray(panel(rows, columns=3, tile=32))
    limit = heat_limit(rows["std"])
    places = [[found(canvas, p) for p in as_pictures(name, images, limit)] for name, images in rows.items()]
    step, (top, left) = 32 + GAP, places[0][0]
    assert places == [[(top + i * step, left + j * step) for j in range(3)] for i in range(4)]


def test_a_panel_breaks_into_blocks_and_leaves_unused_places_blank():
    canvas = np.asarray(panel({"a": grey(0.2, 3), "b": grey(0.7, 3)}, columns=2, tile=32))
    column = canvas[:, -GAP - 1]  # the right one of two: filled in the first block, blank in the second
    levels = [level for level, before in zip(column[1:, 0], column[:-1, 0], strict=True) if level != before]
    assert levels == [255, 178, 255]
    assert canvas.shape[0] == 2 * (2 * (32 + GAP) + 4 * GAP)


@pytest.mark.parametrize(("size", "tile", "side"), [(32, 96, 96), (64, 96, 128), (64, 80, 128), (128, 96, 128)])
def test_tile_is_the_least_side_of_a_picture(size, tile, side):
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, size, size)
    canvas = np.asarray(panel({"mean": red}, tile=tile))
    assert (canvas == (255, 0, 0)).all(-1).sum() == side**2


@pytest.mark.parametrize("count", [1, 3, 16])
def test_the_scale_of_the_std_is_drawn_whole(count):
    wide = np.asarray(panel({"std": grey(0.123, 40)}, columns=40, tile=32))
    canvas = np.asarray(panel({"std": grey(0.123, count)}, tile=32))
    places = [(foot[-22:] != PAPER).any(-1).nonzero() for foot in (wide, canvas)]  # the foot: two lines of 11 pixels
    assert all(np.array_equal(a, b) for a, b in zip(*places, strict=True))
    found(canvas, colours(np.linspace(0, 1, 160))[None])
    without = np.asarray(panel({"mean": grey(0.123, count)}, tile=32))
    assert without.shape[0] == canvas.shape[0] - 22
