"""Pictures of generated images: labelled panels with rows such as mean, std (a heat map with its scale), sample."""

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from degrain.models.core.images import eight_bit

GAP, INK, PAPER = 2, (40, 40, 40), (255, 255, 255)


def to_uint8(images: Tensor) -> np.ndarray:
    """Clip images (B, 3, H, W) to [0, 1] and round them to the nearest 8-bit level: (B, H, W, 3) uint8."""
    return rearrange(eight_bit(images).cpu(), "b c h w -> b h w c").numpy()


def heat_limit(std: Tensor) -> float:
    """Return the upper end of the heat map's scale: the 99.5th percentile of the std averaged over channels."""
    return float(np.quantile(std.float().mean(1).cpu().numpy(), 0.995))


def heat_map(std: Tensor, limit: float) -> np.ndarray:
    """Colour the std (B, 3, H, W), averaged over channels, on a scale from 0 to `limit`: (B, H, W, 3) uint8."""
    return colours(std.float().mean(1).cpu().numpy() / limit)


def colours(values: np.ndarray) -> np.ndarray:
    """Colour values (...) in [0, 1] from black by red to yellow: (..., 3) uint8."""
    from matplotlib import colormaps  # here: images without a heat map do not wait for it

    return colormaps["inferno"](values, bytes=True)[..., :3]


def as_pictures(name: str, images: Tensor, limit: float = 0.2) -> np.ndarray:
    """Convert a row (B, 3, H, W) to 8-bit pictures (B, H, W, 3), a std to a heat map from 0 to `limit`."""
    return heat_map(images, limit) if name.startswith("std") else to_uint8(images)


def panel(rows: dict[str, Tensor], columns: int = 16, tile: int = 96) -> Image.Image:
    """Draw a labelled panel: one line of pictures a row, in blocks of `columns`, and the scale of the row `std`.

    Args:
        rows: name -> images (B, 3, H, W) in [0, 1], the same B for all.
        columns: pictures a line.
        tile: least side of a picture on the panel; small ones are enlarged by a whole factor, pixel by pixel.
    """
    limit = heat_limit(rows["std"]) if "std" in rows else 0.0
    pictures = {name: as_pictures(name, images, limit) for name, images in rows.items()}
    count, side = next(iter(pictures.values())).shape[:2]
    columns, zoom = min(columns, count), -(-tile // side)
    step, font = side * zoom + GAP, ImageFont.load_default(max(11, side * zoom // 7))
    margin = int(max(font.getlength(name) for name in pictures)) + 12
    blocks = -(-count // columns)
    block_height = len(pictures) * step + 4 * GAP
    foot = _scale(font, limit) if "std" in rows else Image.new("RGB", (0, 0))
    size = (margin + max(columns * step, foot.width), blocks * block_height + foot.height)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for line, (name, images) in enumerate(pictures.items()):
        for block in range(blocks):
            top = block * block_height + line * step
            draw.text((6, top + step // 2), name, INK, font, anchor="lm")
            for column, image in enumerate(images[block * columns : (block + 1) * columns]):
                enlarged = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
                canvas.paste(Image.fromarray(enlarged), (margin + column * step, top))
    canvas.paste(foot, (margin, blocks * block_height))
    return canvas


def _scale(font: ImageFont.FreeTypeFont, limit: float) -> Image.Image:
    """Draw the heat map's colours from 0 to `limit`, with both ends labelled in [0, 1] pixel units."""
    bar = colours(np.linspace(0, 1, 160))[None].repeat(font.size, axis=0)
    start, label = int(font.getlength("std 0 ")), f"{limit:.3f}  (pixels in [0, 1])"
    picture = Image.new("RGB", (start + 166 + int(font.getlength(label)) + 2, 2 * font.size), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((0, 0), "std 0", INK, font)
    picture.paste(Image.fromarray(bar), (start, 2))
    draw.text((start + 166, 0), label, INK, font)
    return picture
