"""The page of a test: report.html, one file that needs no network."""

import base64
import io
import json
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment
from matplotlib.figure import Figure
from PIL.Image import Image

HEAD, CELL = 24, 19
"""Characters of the first column of a line of table.txt, and of the others."""

WORDS = {
    "mean, std": "the two parameters that the decoder gives to every pixel",
    "sample": "a true draw from the decoder's distribution p(x|z): mean + std times noise",
    "denoised": "the GAN's image for that draw",
    "reconstruction_*": "the same for codes z ~ q(z|x) of held-out photographs; other rows are drawn from the prior",
    "photographs": "held-out photographs against others: what a perfect model would have, the floor",
    "frechet, kernel": "distances of features to those of photographs; lower is nearer; the kernel's has no bias",
    "extrapolated": "the Frechet distance for an infinite number of images",
    "precision, recall": "share of draws that photographs surround, and of photographs that draws surround",
    "variance ratio, shift": "variance over noise (1 is ideal) and squared shift of the mean (0), by the decoder's",
}
"""What stands in the tables, in short; docs/evaluation.md has the definitions."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .5rem 0 1.5rem }
th, td { border-bottom: 1px solid #8886; padding: .2rem .7rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
img { height: auto; max-width: 100% }
pre { font-size: .85rem; white-space: pre-wrap }
figure { margin: 1.5rem 0 }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<table>
{% for name, value in facts.items() %}<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
<p>Measured again by:</p>
<pre>{{ command }}</pre>
<h2>Figures of the test</h2>
{% for block in blocks %}
{% if block.cells %}<div class="wide"><table>
<thead><tr>{% for cell in block.cells[0] %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in block.cells[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% else %}<pre>{{ block.text }}</pre>
{% endif %}{% endfor %}
<h2>Pictures</h2>
{% for name, picture, caption in pictures %}<figure><h3>{{ name }}</h3>
<img src="data:image/png;base64,{{ picture }}" alt="{{ caption }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
<h2>Words</h2>
<dl>{% for word, meaning in words.items() %}<dt><b>{{ word }}</b></dt><dd>{{ meaning }}</dd>{% endfor %}</dl>
<details><summary>Config</summary><pre>{{ config }}</pre></details>
</body>
</html>
"""


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
    """Divide a test's table into blocks; one of lines with columns of equal width is a table, others are text."""
    found = []
    for text in filter(None, table.split("\n\n")):
        lines = text.rstrip("\n").split("\n")
        said = [line for line in lines if (len(line) - HEAD) % CELL or len(line) <= HEAD]
        rows = [line for line in lines if line not in said]
        even = len({len(line) for line in rows}) == 1 and len(rows) > 1
        if said or not even:
            found.append(Block("\n".join(said if even else lines), []))
        if even:
            found.append(Block("\n".join(rows), [cells(line) for line in rows]))
    return found


def cells(line: str) -> list[str]:
    """Return the cells of a line of a table."""
    ends = range(HEAD, len(line) + 1, CELL)
    return [line[end - (HEAD if end == HEAD else CELL) : end].strip() for end in ends]


def png(picture: Figure | Image) -> str:
    """Return a picture as base64 of a PNG."""
    file = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(file, format="png", dpi=100, bbox_inches="tight")
    else:
        picture.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


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
    shown = [(name, png(picture), caption) for name, (picture, caption) in pictures.items()]
    values = {"title": title, "facts": facts, "command": command, "blocks": blocks(table), "pictures": shown}
    text = json.dumps(config, indent=2, default=str)
    return Environment(autoescape=True).from_string(PAGE).render(**values, words=WORDS, config=text)
