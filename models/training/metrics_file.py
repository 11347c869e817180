"""The file metrics.csv of a run: the values of every log interval and every validation, counted in images seen."""

import csv
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path

from degrain.models.core.errors import InputError
from degrain.models.core.files import refuse_unwritable, replacing

POSITION = "images_seen"

Row = dict[str, float]


class MetricsFile:
    """A CSV file that grows by lines and goes on after a resume; a value that a row has not is an empty field.

    Lightning's CSVLogger deletes the file of an earlier call.

    Args:
        path: the file.

    Attributes:
        columns: the header, as far as this process knows it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []

    def lines(self) -> Iterator[dict[str, str]]:
        """Yield every complete line as text by column: a kill may leave a part of the last one."""
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8")
        for line in csv.DictReader(StringIO(text[: text.rfind("\n") + 1])):
            yield {name: value for name, value in line.items() if value}

    def rows(self) -> list[Row]:
        """Return every row: its values by name, `images_seen` first.

        Raises:
            InputError: the file holds something else.
        """
        try:
            return [{POSITION: int(line.pop(POSITION)), **as_numbers(line)} for line in self.lines()]
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise InputError(f"{self.path}: not as degrain writes it ({error}); move it away") from None

    def cut(self, images_seen: int) -> None:
        """Remove rows behind the checkpoint that a run goes on from: it passes there again."""
        if self.path.exists():
            self.rows()  # or its error
            kept = [line for line in self.lines() if int(line[POSITION]) <= images_seen]
            self.columns = list(dict.fromkeys(name for line in kept for name in line))
            self.rewrite(kept)

    def rewrite(self, lines: list[dict[str, str]]) -> None:
        """Replace the file by these lines under the header."""
        with replacing(self.path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)

    def append(self, images_seen: int, values: Mapping[str, float]) -> None:
        """Add a row; only for a new column is the file written anew."""
        line = {POSITION: str(images_seen)} | {name: f"{value:.9g}" for name, value in values.items()}
        if new := [name for name in line if name not in self.columns]:
            self.columns += new
            self.rewrite([*self.lines(), line])
            return
        with refuse_unwritable(self.path), open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(line)


def as_numbers(line: Mapping[str, str]) -> Row:
    """Return the values of a line as numbers."""
    return {name: float(value) for name, value in line.items()}


def best(rows: list[Row], name: str) -> Row | None:
    """Return the row with the least finite value of a name, the first of several; None without one."""
    finite = [row for row in rows if abs(row.get(name, float("nan"))) < float("inf")]
    return min(finite, key=lambda row: row[name], default=None)
