"""The figure curves.png: values of training and validation against images seen."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from degrain.models.core.files import replacing
from degrain.models.training.metrics_file import POSITION, Row

COLUMNS, MOST_POINTS = 4, 400
COLOURS = {"train": "0.6", "val": "C3", "toy": "C3", "speed": "C0"}
"""Colour of a curve by the first part of its name."""

PANELS = {
    "losses of D and G": "d_loss g_loss",
    "rate under each prior, nats": "rate rate_standard rate_fitted rate_learned rate_flow",
    "norm of the gradient": "gradient_norm d_gradient_norm g_gradient_norm",
    "penalties": "r1 r2",
    "standardised error, of draws and of data": "standardised_error standardised_error_of_data",
    "margin of D": "margin margin_train",
    "coverage of 50, 90, 99 % intervals": "coverage_50 coverage_90 coverage_99",
    "marginal variance": "marginal_variance marginal_variance_gap",
}
"""Title of a panel -> the values on it; every other value has a panel of its own, together with its regions."""

TITLES = {name: title for title, names in PANELS.items() for name in names.split()}


def groups(rows: list[Row]) -> dict[str, list[str]]:
    """Return the panels, title -> names; a quantity of training and validation shares one, with those of its regions.

    A value that is 0 throughout, such as the number of skipped steps, has none.
    """
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for row in rows for name in row if name != POSITION):
        if any(row.get(name) for row in rows):
            quantity = name.split("/")[1]
            found.setdefault(TITLES.get(quantity, quantity.replace("_", " ")), []).append(name)
    return found


def curve(rows: list[Row], name: str) -> tuple[list[float], list[float]]:
    """Return images seen and values of a name; of a long run every k-th point, counted from the last."""
    points = [(row[POSITION], row[name]) for row in rows if name in row]
    every = -(-len(points) // MOST_POINTS)
    images, values = zip(*points[::-every][::-1], strict=True)
    return list(images), list(values)


def draw_curves(rows: list[Row], path: Path) -> None:
    """Draw the panels and write the file: training grey, validation red, its regions pale.

    Args:
        rows: of metrics.csv.
        path: the file.
    """
    panels = groups(rows)
    if not panels:
        return
    lines = -(-len(panels) // COLUMNS)
    height = 1.7 * lines + 0.3
    figure = Figure(figsize=(3.2 * COLUMNS, height), dpi=90)
    figure.subplots_adjust(0.05, 0.5 / height, 0.99, 1 - 0.3 / height, 0.28, 0.55)
    most = max(row[POSITION] for row in rows)
    for number, (title, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, COLUMNS, number)
        ends = {}
        for name in names:
            images, values = curve(rows, name)
            draw_curve(axes, name, images, values)
            if title in PANELS and name.replace("train/", "val/") not in {*names} - {name} and name.count("/") == 1:
                ends[name] = values[-1]
        if len(names) > 1:
            name_curves(axes, ends)
        axes.set_title(title, fontsize=9)
        axes.set_xlim(0, 1.02 * most)
        axes.margins(y=0.12)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    said = "images seen (grey: training, red: validation, pale: its regions; names in the order of the curves' ends)"
    figure.text(0.5, 0.1 / height, said, ha="center", fontsize=9)
    with replacing(path) as part:
        figure.savefig(part)


def name_curves(axes: Axes, ends: dict[str, float]) -> None:
    """Write the names of curves into the upper left corner, the one with the highest end first."""
    for line, name in enumerate(sorted(ends, key=ends.get, reverse=True)):
        kind, quantity = name.split("/")
        place, colour = (3, -3 - 8 * line), COLOURS.get(kind, "C1")
        options = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 6, "va": "top"}
        options["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
        axes.annotate(quantity, (0, 1), place, color=colour, **options)


def draw_curve(axes: Axes, name: str, images: list[float], values: list[float]) -> None:
    """Draw one curve, pale if it is of a region."""
    kind, _, *region = name.split("/")
    marker = "." if len(images) < 30 and not region else ""
    colour, alpha = COLOURS.get(kind, "C1"), 0.25 if region else 1.0
    axes.plot(images, values, color=colour, alpha=alpha, marker=marker, linewidth=1, zorder=1 if region else 2)
