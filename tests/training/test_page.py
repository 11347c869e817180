"""report.html: one valid page with every value of the table, escaped, and no address but its own data."""

import re
from html.parser import HTMLParser

from PIL import Image

from degrain.models.training.page import blocks, page

VOID = {"meta", "img"}


class Page(HTMLParser):
    """The texts of a page by tag, and its pictures; fails for tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.texts, self.pictures = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.pictures.append(dict(attrs))
        elif tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))


def test_a_table_of_equal_columns_becomes_rows_and_a_text_stays_text():
    line = "".join(f"{'a':>24}") + f" {'1':>18}" + f" {'':>18}"
    head = f"{'row':>24} {'x y':>18} {'z':>18}"
    text, table = blocks(f"features:\n{head}\n{line}")
    assert text.text == "features:" and not text.cells
    assert table.cells == [["row", "x y", "z"], ["a", "1", ""]]
    assert [block.cells for block in blocks("1,048 images\nn is small")] == [[]]


def test_values_are_escaped_and_nothing_comes_from_elsewhere():
    picture = Image.new("RGB", (4, 4))
    text = page("<b>", {"data": "a&b"}, "python x <y>", "1 < 2", {"draws": (picture, '"16"')}, {"net": "</pre>"})
    found = Page(text)
    assert ("h1", "<b>") in found.texts and ("td", "a&b") in found.texts and ("pre", "1 < 2") in found.texts
    (image,) = found.pictures
    assert image["src"].startswith("data:image/png;base64,iVBOR") and image["alt"] == '"16"'
    assert not re.search(r'(src|href)="(?!data:)', text) and "<script" not in text
