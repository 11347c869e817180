"""report.html: one valid page with every value of the table, escaped, and no address but its own data."""

import re
from html.parser import HTMLParser

from PIL import Image

from degrain.models.training.page import as_picture, blocks, page

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
    [named] = blocks(f"{'test/shift':>40} 0.1\n{'test/shift/hair':>40} -2e+03")
    assert named.cells == [["metric", "value"], ["test/shift", "0.1"], ["test/shift/hair", "-2e+03"]]


def test_values_are_escaped_and_nothing_comes_from_elsewhere():
    picture = Image.new("RGB", (4, 4))
    text = page("<b>", {"data": "a&b"}, "python x <y>", "1 < 2", {"draws": (picture, '"16"')}, {"net": "</pre>"})
    found = Page(text)
    assert ("h1", "<b>") in found.texts and ("td", "a&b") in found.texts and ("p", "1 < 2") in found.texts
    (image,) = found.pictures
    assert image["src"].startswith("data:image/png;base64,iVBOR") and image["alt"] == '"16"'
    assert ("pre", "python x <y>") in found.texts and ("pre", '{\n  "net": "</pre>"\n}') in found.texts
    assert not re.search(r'(src|href)="(?!data:)|url\(|https?:', text) and "<script" not in text
    assert text.startswith("<!doctype html>")


def test_numbers_have_the_heads_of_their_row_and_column():
    line, head = f"{'a':>24} {'1 ±2':>18}", f"{'row':>24} {'x y':>18}"
    found = Page(page("t", {}, "c", f"{head}\n{line}", {}, {}))
    assert [text for text in found.texts if text[0] in ("th", "td")] == [
        ("th", "row"),
        ("th", "x y"),
        ("th", "a"),
        ("td", "1 ±2"),
    ]
    assert found.texts[-2:] == [("summary", "Config of the checkpoint"), ("pre", "{}")]


def test_aligned_lines_keep_their_columns():
    found = Page(page("t", {}, "c", "5 images\n  eyes  0.1\n  brows 0.2\n\none\ntwo", {}, {}))
    assert ("pre", "5 images\n  eyes  0.1\n  brows 0.2") in found.texts
    assert ("p", "one") in found.texts and ("p", "two") in found.texts


def test_the_budget_and_samples_stand_above_the_tables_and_large_pictures_are_smaller_there(monkeypatch):
    noise = Image.effect_noise((200, 200), 90).convert("RGB")
    text = page("t", {}, "c", "x", {name: (noise, "") for name in ("spectra", "samples", "budget")}, {})
    heads = [text for tag, text in Page(text).texts if tag in ("h2", "h3")]
    assert heads == ["In short", "Samples", "Budget", "Tables", "Figures", "Spectra", "Words", "Measure it again"]
    monkeypatch.setattr("degrain.models.training.page.LARGEST", 1000)
    small = as_picture("samples", noise, "")
    assert small.uri.startswith("data:image/webp;base64,UklGR") and small.width == 200
    assert len(small.uri) < len(Page(text).pictures[0]["src"])
