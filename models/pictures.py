"""Pictures for people: labelled panels whose rows are mean, std (a heat map with its scale), sample, denoised."""

import matplotlib
import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

HEAT = matplotlib.colormaps["inferno"]
GAP, INK, PAPER = 2, (40, 40, 40), (255, 255, 255)


def to_uint8(images: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) in [0, 1], clipped and rounded to the nearest 8-bit level: (B, H, W, 3) uint8."""
    return rearrange((images.float().cpu().clamp(0, 1) * 255).round().byte(), "b c h w -> b h w c").numpy()


def heat_limit(std: Tensor) -> float:
    """Upper end of the heat map's scale: the 99.5th percentile of the std, averaged over channels."""
    return float(np.quantile(std.float().mean(1).cpu().numpy(), 0.995))


def heat_map(std: Tensor, limit: float) -> np.ndarray:
    """The std (B, 3, H, W) averaged over channels as colours from 0 to `limit`: (B, H, W, 3) uint8."""
    return HEAT(std.float().mean(1).cpu().numpy() / limit, bytes=True)[..., :3]


def as_pictures(rows: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Every row (B, 3, H, W) as 8-bit pictures (B, H, W, 3); the row `std` becomes a heat map."""
    return {
        name: heat_map(images, heat_limit(images)) if name == "std" else to_uint8(images)
        for name, images in rows.items()
    }


def panel(rows: dict[str, Tensor], columns: int = 16, tile: int = 96) -> Image.Image:
    """A labelled panel: one line of pictures a row, in blocks of `columns`, and the scale of the row `std`.

    Args:
        rows: name -> images (B, 3, H, W) in [0, 1], the same B for all.
        columns: pictures a line.
        tile: least side of a picture on the panel; small ones are enlarged by a whole factor, pixel by pixel.
    """
    pictures = as_pictures(rows)
    count, side = next(iter(pictures.values())).shape[:2]
    columns, zoom = min(columns, count), max(1, round(tile / side))
    step, font = side * zoom + GAP, ImageFont.load_default(max(11, side * zoom // 7))
    margin = int(max(font.getlength(name) for name in pictures)) + 12
    blocks = -(-count // columns)
    block_height = len(pictures) * step + 4 * GAP
    foot = 2 * font.size if "std" in rows else 0
    canvas = Image.new("RGB", (margin + columns * step, blocks * block_height + foot), PAPER)
    draw = ImageDraw.Draw(canvas)
    for line, (name, images) in enumerate(pictures.items()):
        for block in range(blocks):
            top = block * block_height + line * step
            draw.text((6, top + step // 2), name, INK, font, anchor="lm")
            for column, image in enumerate(images[block * columns : (block + 1) * columns]):
                enlarged = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
                canvas.paste(Image.fromarray(enlarged), (margin + column * step, top))
    if foot:
        _draw_scale(canvas, draw, font, margin, blocks * block_height, heat_limit(rows["std"]))
    return canvas


def _draw_scale(canvas, draw, font, left: int, top: int, limit: float) -> None:
    """The heat map's colours from 0 to `limit`, with both ends named in [0, 1] pixel units."""
    bar = HEAT(np.linspace(0, 1, 160), bytes=True)[None, :, :3].repeat(font.size, axis=0)
    start = left + int(font.getlength("std 0 "))
    draw.text((left, top), "std 0", INK, font)
    canvas.paste(Image.fromarray(bar), (start, top + 2))
    draw.text((start + 166, top), f"{limit:.3f}  (pixels in [0, 1])", INK, font)
