"""Tables of estimates as lines of text, and their values by path."""

from collections.abc import Iterator

from degrain.models.evaluation.estimates import Estimate
from degrain.models.evaluation.image_sets import METRICS, SPECTRUM_METRICS

Table = dict[str, dict[str, Estimate]]
"""Estimates by row and metric."""

PARTS = {
    "floor": "photographs (the floor)",
    "decoder": "decoder and denoiser add",
    "prior": "the prior adds",
    "prior_alone": "of which it alone",
    "generator": "the generator adds",
    "total": "draws",
}
HEADS = {"frechet_infinity": "extrapolated"}

HEAD, CELL = 24, 19
"""Characters of the first column of a line, and of each other one with the blank before it."""


def metric_lines(rows: Table, spectra: Table, spread: dict[str, dict[str, float]]) -> list[str]:
    """Return a table of rows x METRICS and the spectrum's; the std over seeds, if there are several, below a row.

    Args:
        rows: estimates by one network.
        spectra: the spectrum's.
        spread: std over seeds, by row and metric.
    """
    of_spectrum = [f"spectrum {name}" for name in SPECTRUM_METRICS]
    lines = [_line("row", [HEADS.get(name, name) for name in METRICS] + of_spectrum)]
    for row, found in rows.items():
        lines.append(_line(row, [str(found[name]) for name in METRICS] + [str(e) for e in spectra[row].values()]))
        if row in spread:
            lines.append(_line("std over seeds", [f"{spread[row][name]:.2g}" for name in METRICS]))
    return lines


def budget_lines(budgets: dict[str, Table]) -> list[str]:
    """Return the budget of each distance, by metric: a column for each row of draws and metric."""
    columns = [(row, metric) for row in next(iter(budgets.values())) for metric in budgets]
    heads = [row if n % len(budgets) == 0 else HEADS.get(metric, metric) for n, (row, metric) in enumerate(columns)]
    lines = [_line("budget of the distance", heads)]
    for part, words in PARTS.items():
        cells = [budgets[metric][row].get(part, "") for row, metric in columns]
        if any(cells):
            lines.append(_line(words, [str(cell) for cell in cells]))
    return lines


def ladder_lines(ladder: Table) -> list[str]:
    """Return the priors by the distance of their images to reconstructions."""
    names = ["frechet", "ratio", "kernel"]
    lines = [_line("prior, its means", names)]
    return lines + [_line(prior, [str(found.get(name, "")) for name in names]) for prior, found in ladder.items()]


def values_of(prefix: str, table: Table) -> Iterator[tuple[str, float]]:
    """Yield PREFIX/ROW/METRIC with its value, and its 95 % interval as METRIC_low and METRIC_high."""
    for row, found in table.items():
        for name, estimate in found.items():
            yield from ((f"{prefix}/{row}/{key}", value) for key, value in estimate.values(name).items())


def _line(head: str, cells: list[str]) -> str:
    return f"{head:>{HEAD}}" + "".join(f" {cell:>{CELL - 1}}" for cell in cells)


def cells_of(line: str) -> list[str]:
    """Return the head and the cells of a line of these tables; [] of another line, or where a cell is too long."""
    if len(line) <= HEAD or (len(line) - HEAD) % CELL:
        return []
    starts = [0, *range(HEAD, len(line), CELL)]
    return [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
