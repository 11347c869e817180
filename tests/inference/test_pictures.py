"""Panels: exact pixels, rows in order, a visible scale."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from torch import Tensor

from degrain.models.inference.pictures import GAP, PAPER, as_pictures, colours, enlarged, heat_map, panel, to_uint8

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
    coloured = heat_map(std)[0, 0]
    ends = colormaps["inferno"]([0.0, 0.5, 1.0], bytes=True)[:, :3]
    assert np.array_equal(coloured, ends[[0, 1, 2, 2]])


def test_heat_map_is_of_the_mean_over_channels():
    std = torch.tensor([0.3, 0.0, 0.0]).reshape(1, 3, 1, 1)
    assert np.array_equal(heat_map(std)[0, 0, 0], colormaps["inferno"](0.5, bytes=True)[:3])


def test_every_std_becomes_a_heat_map_and_nothing_else():
    images = grey(0.1)
    assert np.array_equal(as_pictures("mean", images), to_uint8(images))
    for name in ("std", "std of denoised"):
        assert np.array_equal(as_pictures(name, images), heat_map(images))


def test_a_panel_shows_its_rows_in_order_and_every_picture_in_its_column():
    rng = torch.Generator().manual_seed(0)
    rows = {name: torch.rand(3, 3, 32, 32, generator=rng) for name in ROWS}
    canvas = np.asarray(panel(rows, columns=3, scale=1))
    places = [[found(canvas, p) for p in as_pictures(name, images)] for name, images in rows.items()]
    step, (top, left) = 32 + GAP, places[0][0]
    assert places == [[(top + i * step, left + j * step) for j in range(3)] for i in range(4)]


def test_a_panel_breaks_into_blocks_and_leaves_unused_places_blank():
    canvas = np.asarray(panel({"a": grey(0.2, 3), "b": grey(0.7, 3)}, columns=2, scale=1))
    column = canvas[:, -GAP - 1]  # the right one of two: filled in the first block, blank in the second
    levels = [level for level, before in zip(column[1:, 0], column[:-1, 0], strict=True) if level != before]
    assert levels == [255, 178, 255]
    assert canvas.shape[0] == 2 * (2 * (32 + GAP) + 4 * GAP)


@pytest.mark.parametrize(
    ("size", "scale", "side"), [(32, None, 96), (64, None, 128), (128, None, 128), (64, 1, 64), (32, 5, 160)]
)
def test_a_picture_has_96_pixels_at_least_or_the_scale_asked_for(size, scale, side):
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, size, size)
    canvas = np.asarray(panel({"mean": red}, scale=scale))
    assert (canvas == (255, 0, 0)).all(-1).sum() == side**2


def test_a_pixel_becomes_a_square():
    picture = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    large = enlarged(picture, 3)
    assert large.shape == (1, 6, 6, 3)
    assert all(np.array_equal(large[0, i, j], picture[0, i // 3, j // 3]) for i in range(6) for j in range(6))


def test_a_panel_without_labels_is_its_pictures_alone():
    rng = torch.Generator().manual_seed(0)
    rows = {name: torch.rand(3, 3, 32, 32, generator=rng) for name in ("mean", "std")}
    canvas = np.asarray(panel(rows, scale=1, labels=False))
    assert canvas.shape == (2 * (32 + GAP) + 4 * GAP, GAP + 3 * (32 + GAP), 3)
    for i, (name, images) in enumerate(rows.items()):
        top = i * (32 + GAP)
        for j, picture in enumerate(as_pictures(name, images)):
            left = GAP + j * (32 + GAP)
            assert np.array_equal(canvas[top : top + 32, left : left + 32], picture)


@pytest.mark.parametrize("count", [1, 3, 16])
def test_the_scale_of_the_std_is_drawn_whole(count):
    wide = np.asarray(panel({"std": grey(0.123, 40)}, columns=40, scale=1))
    canvas = np.asarray(panel({"std": grey(0.123, count)}, scale=1))
    places = [(foot[-22:] != PAPER).any(-1).nonzero() for foot in (wide, canvas)]  # the foot: two lines of 11 pixels
    assert all(np.array_equal(a, b) for a, b in zip(*places, strict=True))
    found(canvas, colours(np.linspace(0, 1, 160))[None])
    without = np.asarray(panel({"mean": grey(0.123, count)}, scale=1))
    assert without.shape[0] == canvas.shape[0] - 22
