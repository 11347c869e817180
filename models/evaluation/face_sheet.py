"""A sheet of faces without labels, to count broken ones by eye: features of networks miss what a person sees at once.

A test writes sheet_1.png, sheet_2.png, ... with numbered faces in random order, and sheet_key.csv. A rater who has not
seen the key writes the numbers of the broken faces into a text file. Then

    python -m degrain.models.evaluation.face_sheet RUN/sheet_key.csv RATER.txt [RATER.txt ...]

prints the share of broken ones among draws, reconstructions and photographs, with 95 % intervals.
"""

import csv
import hashlib
import io
import re
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import binomtest
from torch import Tensor

from degrain.models.core.command_line import fail_if_known
from degrain.models.core.errors import InputError
from degrain.models.core.randomness import generator
from degrain.models.evaluation.feature_collector import chosen_numbers
from degrain.models.evaluation.report import Findings, Subject
from degrain.models.inference.pictures import GAP, INK, PAPER, to_uint8

SCORE = "python -m degrain.models.evaluation.face_sheet"
COLUMNS, LINES, TILE = 8, 8, 128  # faces on a page, and the least side of one in pixels
SHEET_SEED = 1  # of the draws; seed 0 is on every other picture
KINDS = ("draws", "reconstructions", "photographs")


class FaceSheet:
    """Evaluator: a sheet of `subject.sheet` draws, half as many reconstructions and as many photographs.

    With fewer held-out images than draws there are as many draws as those. The draws are denoised after stage 2 and
    means before it. The photographs are not those that were reconstructed.
    """

    @staticmethod
    def applies(subject: Subject) -> bool:
        return subject.sheet > 0

    def __init__(self, subject: Subject) -> None:
        self.subject, held_out = subject, subject.data.describe()["images"]["test"]
        few = f"sheet: {held_out:,} draws and not {subject.sheet:,}, for as many held-out images"
        self.notes = [few] if held_out < subject.sheet else []

    def measure(self) -> Findings | None:
        """Return the pages and the key, on the first process."""
        if self.subject.rank:
            return None
        faces = self.faces()
        kinds = [kind for kind, images in faces.items() for _ in images]
        tiles = torch.cat([images.cpu() for images in faces.values()])
        order = shuffled(tiles)
        tiles = tiles[order]
        key = io.StringIO()
        writer = csv.writer(key, lineterminator="\n")
        writer.writerows([("number", "kind"), *((number, kinds[i]) for number, i in enumerate(order.tolist(), 1))])
        page = COLUMNS * LINES
        pages = {f"sheet_{i // page + 1}": numbered(tiles[i : i + page], i + 1) for i in range(0, len(tiles), page)}
        names = ", ".join(f"{name}.png" for name in pages)
        line = (
            f"sheet: {len(kinds)} faces to score by eye on {names}; write the numbers of broken ones to RATER.txt, "
            f"then {SCORE} RUN/sheet_key.csv RATER.txt"
        )
        return Findings({}, [line], {**pages, "sheet_key": key.getvalue()})

    def faces(self) -> dict[str, Tensor]:
        """Return images (B, 3, H, W) in [0, 1] by kind."""
        subject, pipeline = self.subject, self.subject.pipeline
        row = "denoised" if "denoised" in pipeline.rows else pipeline.rows[0]
        numbers = chosen_numbers(subject.data.describe()["images"]["test"], subject.sheet)
        found = {"draws": pipeline.draw(SHEET_SEED, range(len(numbers)))[row]}
        if pipeline.vae is not None:
            x = self.photographs(numbers[::2])
            found["reconstructions"] = pipeline.reconstruct(SHEET_SEED, numbers[::2], x)[row]
        return found | {"photographs": self.photographs(numbers[1::2])}

    def photographs(self, numbers: list[int]) -> Tensor:
        """Return held-out images (B, 3, H, W) in [0, 1] by number."""
        loader = self.subject.data.numbered_dataloader("test", numbers)
        return torch.cat([self.subject.photographs(batch) for batch in loader])


def shuffled(images: Tensor) -> Tensor:
    """Return an order of the images (B, 3, H, W), (B,) int64, by a hash of them: who knows one key knows no other."""
    digest = hashlib.sha256(to_uint8(images).tobytes()).digest()
    return torch.randperm(len(images), generator=generator(int.from_bytes(digest[:4])))


def numbered(images: Tensor, first: int) -> Image.Image:
    """Draw a page of images (B, 3, H, W), numbered from `first`; small ones are enlarged by a whole factor."""
    pictures = to_uint8(images)
    side = pictures.shape[1] * -(-TILE // pictures.shape[1])
    font = ImageFont.load_default(18)
    step = side + GAP, side + GAP + 24
    page = Image.new("RGB", (COLUMNS * step[0], -(-len(pictures) // COLUMNS) * step[1]), PAPER)
    draw = ImageDraw.Draw(page)
    for i, picture in enumerate(pictures):
        left, top = i % COLUMNS * step[0], i // COLUMNS * step[1]
        page.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (left, top + 24))
        draw.text((left + side // 2, top + 22), str(first + i), INK, font, anchor="mb")
    return page


# The scores.


def read_key(path: Path) -> dict[int, str]:
    """Return the kind of each face by its number.

    Raises:
        InputError: no such file, or no key of a sheet.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
        key = {int(row["number"]): row["kind"] for row in rows}
        if not rows or sorted(key) != list(range(1, len(rows) + 1)) or not set(key.values()) <= set(KINDS):
            raise ValueError("a number is missing or there twice, or a kind is unknown")
        return key
    except (KeyError, ValueError, TypeError):
        raise InputError(f"{path}: is no key of a sheet; give the sheet_key.csv that `train.py test` wrote") from None


def read_scores(path: Path, faces: int) -> set[int]:
    """Return the numbers of broken faces in a text file: blanks, commas or semicolons between, comments after `#`.

    Raises:
        InputError: something else, such as a range, or a number that is not on the sheet.
    """
    try:
        text = "\n".join(line.partition("#")[0] for line in path.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no text; write the numbers of broken faces into it") from None
    words = re.split(r"[\s,;]+", text.strip(" \t\n,;"))
    words = [] if words == [""] else words
    for word in words:
        if not re.fullmatch("[0-9]{1,9}", word):
            raise InputError(f"{path}: `{word[:40]}` is no number; name every broken face, comments begin with #")
        if not 1 <= int(word) <= faces:
            raise InputError(f"{path}: the sheet has no face {int(word)}; its numbers are 1 to {faces}")
    return {int(word) for word in words}


def read_raters(paths: list[Path], faces: int) -> dict[str, set[int]]:
    """Return the scores of every rater by the name of the file.

    Raises:
        InputError: as read_scores, or two files of one name, whose columns nobody could tell apart.
    """
    raters: dict[str, set[int]] = {}
    for path in paths:
        if path.stem in raters:
            raise InputError(f"{path}: another rater is called {path.stem}; give each file once, by a name of its own")
        raters[path.stem] = read_scores(path, faces)
    return raters


def score_lines(key: dict[int, str], raters: dict[str, set[int]]) -> list[str]:
    """Return a table of the shares of broken faces by kind, with Wilson's 95 % intervals, a column for each rater.

    Below it stands, for every two raters, Cohen's kappa over all faces and over the draws alone. That of all is higher,
    as raters agree easily that photographs are whole.
    """
    lines = ["".join(f"{cell:>30}" for cell in ("broken, % (95 % interval)", *raters))]
    for kind in dict.fromkeys(key[number] for number in sorted(key)):
        numbers = {number for number, name in key.items() if name == kind}
        cells = []
        for broken in raters.values():
            found = binomtest(len(broken & numbers), len(numbers)).proportion_ci(method="wilson")
            share = len(broken & numbers) / len(numbers)
            cells.append(f"{100 * share:.0f} ({100 * found.low:.0f} to {100 * found.high:.0f})")
        lines.append("".join(f"{cell:>30}" for cell in (f"{len(numbers)} {kind}", *cells)))
    names, draws = list(raters), {number for number, kind in key.items() if kind == "draws"}
    for first, second in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :]):
        kappas = (kappa(numbers, raters[first], raters[second]) for numbers in (set(key), draws))
        said = "{}, of draws alone {}".format(*kappas)
        lines.append(f"agreement of {first} and {second}: Cohen's kappa {said}")
    return lines


def kappa(numbers: set[int], first: set[int], second: set[int]) -> str:
    """Return Cohen's kappa of two raters over some faces, as text; it is undefined if both call all or none broken."""
    from sklearn.metrics import cohen_kappa_score  # here: no other command needs it, and it takes half a second

    pair = [[number in broken for number in numbers] for broken in (first, second)]
    return "undefined" if len({*pair[0], *pair[1]}) < 2 else f"{cohen_kappa_score(*pair):.2f}"


def main(arguments: list[str]) -> None:
    """Print the table of a key and the files of its raters."""
    try:
        if len(arguments) < 2:
            raise InputError(f"usage: {SCORE} RUN/sheet_key.csv RATER.txt [RATER.txt ...]")
        key = read_key(Path(arguments[0]))
        raters = read_raters([Path(path) for path in arguments[1:]], len(key))
        print("\n".join(score_lines(key, raters)))
    except (InputError, OSError) as error:
        fail_if_known(error, (InputError,))
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
