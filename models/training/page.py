"""The page of a test: report.html, one file that needs no network."""

import base64
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from matplotlib.figure import Figure
from PIL.Image import Image

from degrain.models.evaluation.tables import cells_of

WORDS = {
    "mean, std": "the two parameters that the decoder gives to every pixel",
    "sample": "a true draw from the decoder's distribution p(x|z): mean + std times noise",
    "denoised": "the GAN's image for that draw",
    "reconstruction_*": "the same for codes z ~ q(z|x) of held-out photographs; other rows are drawn from the prior",
    "photographs": "held-out photographs against others: what a perfect model would have, the floor",
    "frechet, kernel": "distances of features to those of photographs; lower is nearer; the kernel's has no bias",
    "extrapolated": "the Frechet distance for an infinite number of images",
    "precision, recall": "share of draws that photographs surround, and of photographs that draws surround",
    "density, coverage": "how many photographs surround a draw, and the share of photographs with a draw beside them",
    "spectrum gap, error": "of the upper frequencies, in octaves from the photographs'; a gap below 0 is too smooth",
    "budget": "what the decoder and then the prior add to the distance between photographs; an order, not a cause",
    "ratio": "distance of a prior's mean images to those of reconstructions, by that of halves of these; 1 is ideal",
    "variance ratio, shift": "variance over noise (1 is ideal) and squared shift of the mean (0), by the decoder's",
}
"""What stands in the tables, in short; docs/evaluation.md has the definitions."""

FIRST = ("samples", "budget")
"""Pictures above the tables."""

PAGE = Path(__file__).with_name("page.html")

LARGEST = 2**20  # bytes of a PNG on the page; a larger picture is a WebP of quality 90


@dataclass
class Block:
    """Lines of table.txt between empty lines.

    Attributes:
        text: the lines.
        cells: of a table its rows, of which the first holds the heads; otherwise empty.
    """

    text: str
    cells: list[list[str]]


def blocks(table: str) -> list[Block]:
    """Divide a test's table into blocks: named values, lines with columns of equal width, and texts."""
    found = []
    for text in filter(None, table.split("\n\n")):
        lines = text.rstrip("\n").split("\n")
        if all(named := [re.fullmatch(r"\s*(test/\S+) (\S+)", line) for line in lines]):
            found.append(Block(text, [["metric", "value"], *([*match.groups()] for match in named)]))
            continue
        rows = [cells for line in lines if (cells := cells_of(line))]
        said = [line for line in lines if not cells_of(line)]
        even = len({len(cells) for cells in rows}) == 1 and len(rows) > 1
        if said or not even:
            found.append(Block("\n".join(said if even else lines), []))
        if even:
            found.append(Block("\n".join(line for line in lines if line not in said), rows))
    return found


@dataclass
class Picture:
    """A picture of the page.

    Attributes:
        name: its head.
        uri: a data URI.
        width: in pixels.
        caption: what it shows.
    """

    name: str
    uri: str
    width: int
    caption: str


def as_picture(name: str, picture: Figure | Image, caption: str) -> Picture:
    """Return a picture for the page: a PNG, or a WebP where that would be larger than 1 MiB."""
    file, kind = io.BytesIO(), "png"
    if isinstance(picture, Figure):
        picture.savefig(file, format="png", dpi=100, bbox_inches="tight")
        width = int(picture.get_figwidth() * 100)
    else:
        picture.save(file, "png", optimize=True)
        width = picture.width
        if file.tell() > LARGEST:
            file, kind = io.BytesIO(), "webp"
            picture.save(file, "webp", quality=90)
    return Picture(name, f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", width, caption)


def page(
    title: str,
    facts: dict[str, Any],
    command: str,
    table: str,
    pictures: dict[str, tuple[Figure | Image, str]],
    config: dict[str, Any],
) -> str:
    """Return the page of a test as HTML; every value is escaped.

    Args:
        title: its head.
        facts: what was measured, by name.
        command: that makes the page again.
        table: of table.txt.
        pictures: name -> (picture, what it shows).
        config: of the checkpoint, in plain types.
    """
    shown = [as_picture(name, *picture) for name, picture in pictures.items()]
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE.read_text())
    return template.render(
        title=title,
        facts=facts,
        command=command,
        blocks=blocks(table),
        pictures=shown,
        first=FIRST,
        words=WORDS,
        config=json.dumps(config, indent=2, default=str),
    ).lstrip()
