"""Pictures of generated images: labelled panels with rows such as mean, std (a heat map with its scale), sample."""

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from degrain.models.core.images import eight_bit

GAP, INK, PAPER = 2, (40, 40, 40), (255, 255, 255)

TILE = 96  # least side of a picture on a panel, unless a scale is asked for

STD_LIMIT = 0.2  # upper end of the heat map's scale, of every picture, so that they compare; a higher std looks alike


def to_uint8(images: Tensor) -> np.ndarray:
    """Clip images (B, 3, H, W) to [0, 1] and round them to the nearest 8-bit level: (B, H, W, 3) uint8."""
    return rearrange(eight_bit(images).cpu(), "b c h w -> b h w c").numpy()


def heat_map(std: Tensor) -> np.ndarray:
    """Colour the std (B, 3, H, W), averaged over channels, on the scale from 0 to STD_LIMIT: (B, H, W, 3) uint8."""
    return colours(std.float().mean(1).cpu().numpy() / STD_LIMIT)


def colours(values: np.ndarray) -> np.ndarray:
    """Colour values (...) in [0, 1] from black by red to yellow: (..., 3) uint8."""
    from matplotlib import colormaps  # here: images without a heat map do not wait for it

    return colormaps["inferno"](values, bytes=True)[..., :3]


def as_pictures(name: str, images: Tensor) -> np.ndarray:
    """Convert a row (B, 3, H, W) to 8-bit pictures (B, H, W, 3), a std to a heat map."""
    return heat_map(images) if name.startswith("std") else to_uint8(images)


def enlarged(pictures: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge pictures (B, H, W, 3) by a whole factor: each pixel becomes a square."""
    return pictures.repeat(scale, axis=1).repeat(scale, axis=2)


def least_scale(side: int) -> int:
    """Return the least whole factor that enlarges a picture to TILE pixels or more."""
    return -(-TILE // side)


def panel(rows: dict[str, Tensor], columns: int = 16, scale: int | None = None, labels: bool = True) -> Image.Image:
    """Draw a panel: one line of pictures a row, in blocks of `columns`; with the rows' names and the scale of the std.

    Args:
        rows: name -> images (B, 3, H, W) in [0, 1], the same B for all.
        columns: pictures a line.
        scale: enlargement of a picture, pixel by pixel; by default the least that brings it to 96 pixels.
        labels: whether names and scale are drawn.
    """
    pictures = {name: as_pictures(name, images) for name, images in rows.items()}
    count, side = next(iter(pictures.values())).shape[:2]
    columns, zoom = min(columns, count), scale or least_scale(side)
    step, font = side * zoom + GAP, ImageFont.load_default(max(11, side * zoom // 7))
    margin = int(max(font.getlength(name) for name in pictures)) + 12 if labels else GAP
    blocks = -(-count // columns)
    block_height = len(pictures) * step + (4 * GAP if len(pictures) > 1 else 0)
    foot = _scale(font) if labels and any(name.startswith("std") for name in rows) else Image.new("RGB", (0, 0))
    size = (margin + max(columns * step, foot.width), blocks * block_height + foot.height)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for line, (name, images) in enumerate(pictures.items()):
        for block in range(blocks):
            top = block * block_height + line * step
            if labels:
                draw.text((6, top + step // 2), name, INK, font, anchor="lm")
            for column, image in enumerate(enlarged(images[block * columns : (block + 1) * columns], zoom)):
                canvas.paste(Image.fromarray(image), (margin + column * step, top))
    canvas.paste(foot, (margin, blocks * block_height))
    return canvas


def _scale(font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw the heat map's colours from 0 to STD_LIMIT, with both ends labelled in [0, 1] pixel units."""
    bar = colours(np.linspace(0, 1, 160))[None].repeat(font.size, axis=0)
    start, label = int(font.getlength("std 0 ")), f"{STD_LIMIT}  (pixels in [0, 1])"
    picture = Image.new("RGB", (start + 166 + int(font.getlength(label)) + 2, 2 * font.size), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((0, 0), "std 0", INK, font)
    picture.paste(Image.fromarray(bar), (start, 2))
    draw.text((start + 166, 0), label, INK, font)
    return picture
