"""Figures: tensors in, a matplotlib Figure out.

Colours mean the same everywhere: data grey, mean blue, sample orange, denoised green. models/toys has its own.
"""

from functools import partial

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from degrain.models.evaluation.calibration import EDGES, LEVELS, CalibrationReport, CodeReport
from degrain.models.evaluation.regions import RegionReport
from degrain.models.evaluation.spectrum import PowerSpectrum
from degrain.models.evaluation.tables import HEADS, PARTS, Table

DATA, MEAN, SAMPLE, DENOISED, INK = "#8c8c8c", "#2f6fb3", "#e07b27", "#2e9e5b", "#333333"
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "figure.dpi": 110,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
}
styled = mpl.rc_context(STYLE)  # decorator of functions that draw in this style


@styled
def new(width: float, height: float, columns: int = 1, rows: int = 1, **options) -> tuple[Figure, list[Axes]]:
    """Return a new figure and its axes, row by row."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).flatten().tolist()


@styled
def diagnostics(calibration: CalibrationReport, code: CodeReport, prior: str, gap: Tensor) -> Figure:
    """Draw standardised residuals beside N(0, 1), a map of the marginal variance, and the rate of every latent.

    Args:
        calibration: of the pixels.
        code: of the latents.
        prior: name of p(z).
        gap: KL(q(z) to p(z)) by two moments, nats.
    """
    figure, (left, middle, right) = new(13.5, 4.2, 3)
    edges = EDGES.numpy()  # matplotlib warns of tensors where it computes with them
    centre = 0.5 * (edges[1:] + edges[:-1])
    left.stairs(
        calibration.histogram.cpu().numpy(), edges, color=SAMPLE, fill=True, alpha=0.55, label="held-out pixels"
    )
    left.plot(centre, np.exp(-0.5 * centre**2) / (2 * np.pi) ** 0.5, color=INK, lw=1.4, label="N(0, 1)")
    covered = ", ".join(f"{100 * c:.1f}" for c in calibration.coverage)
    claimed = ", ".join(f"{100 * level:g}" for level in LEVELS)
    left.set(xlabel="(x − mean) / std", ylabel="density", xlim=(-5, 5))
    left.set_title(f"Residuals: {claimed} % intervals\ncover {covered} %")
    left.legend()
    ratio = (calibration.model_variance / calibration.data_variance.clamp(min=1e-12)).log2().mean(0).cpu().numpy()
    shown = middle.imshow(ratio, cmap="RdBu_r", vmin=-1, vmax=1)
    middle.set(xticks=[], yticks=[])
    middle.set_title(
        f"Marginal variance: the model's divided\nby the data's, {calibration.marginal_variance:.2f} in all"
    )
    bar = figure.colorbar(shown, ax=middle, ticks=[-1, -0.5, 0, 0.5, 1], shrink=0.85)
    bar.ax.set_yticklabels(["1/2", "1/√2", "1", "√2", "2"])
    values, name, nats = code.covariance_of_means.diagonal().clamp(min=0), "variance of E[z given x]", ""
    if code.rate is not None:
        values, name, nats = code.rate, "rate, nats per image", f", {code.rate.sum():.0f} nats"
    height = values.sort(descending=True).values.cpu().numpy()
    right.fill_between(np.arange(1, len(height) + 1), height, color=MEAN, alpha=0.4, step="mid")
    right.set(xlabel="latent, by rank", ylabel=name, ylim=(0, None), xlim=(0.5, len(height) + 0.5))
    right.set_title(f"{int(code.active)} of {len(height)} latents active{nats};\nq(z) to {prior} {gap:.0f} nats")
    return figure


@styled
def regions(report: RegionReport) -> Figure:
    """Draw the decoder's std of every region beside the actual residual, with bootstrap intervals over images."""
    kinds = {"std": (report.variance, SAMPLE), "actual residual": (report.squared_error, DATA)}
    if report.planted is not None:
        kinds["planted noise"] = (report.planted, INK)
    order = report.present[report.pixel_mean(report.variance)[report.present].argsort()]
    figure, (ax,) = new(1.9 + 0.85 * len(order), 4.2)
    place, width = np.arange(len(order)), 0.8 / len(kinds)
    for i, (name, (values, colour)) in enumerate(kinds.items()):
        height = report.pixel_mean(values)[order].sqrt()
        bounds = report.bootstrap_interval(partial(report.pixel_mean, values), draws=300)
        low, high = (bound[order].sqrt() for bound in bounds)
        error = torch.stack([height - low, high - height]).clamp(min=0).numpy()
        style = {"yerr": error, "error_kw": {"lw": 1, "ecolor": INK}, "label": name, "color": colour, "alpha": 0.75}
        ax.bar(place + (i - (len(kinds) - 1) / 2) * width, height.numpy(), width, **style)
    ax.set(ylabel="std, pixels in [0, 1]", xlim=(-0.6, len(order) - 0.4))
    ax.set_xticks(place, [report.names[i] for i in order], rotation=30, ha="right")
    ax.set_title("The decoder's std of each region, and the actual residual")
    ax.legend()
    return figure


ROW_STYLES = {
    "mean": {"color": MEAN},
    "sample": {"color": SAMPLE},
    "denoised": {"color": DENOISED},
    "generated": {"color": DENOISED},
    "reconstruction_mean": {"color": MEAN, "ls": "--"},
    "reconstruction_sample": {"color": SAMPLE, "ls": "--"},
    "reconstruction_denoised": {"color": DENOISED, "ls": "--"},
    "train": {"color": INK, "ls": ":"},
}


@styled
def spectra(rows: dict[str, PowerSpectrum], floor: str) -> Figure:
    """Draw radial power spectra: of the photographs, the row `floor`, and of the others, also divided by theirs."""
    data, others = rows[floor], [(row, spectrum) for row, spectrum in rows.items() if row != floor]
    frequencies = data.frequencies.numpy()
    figure, (left, right) = new(11.5, 4.4, 2)
    left.loglog(frequencies, data.power.numpy(), color=DATA, lw=4, alpha=0.6, label=floor)
    for row, spectrum in others:
        style = ROW_STYLES[row] | {"lw": 1.5}
        left.loglog(frequencies, spectrum.power.numpy(), label=row.replace("_", ", "), **style)
        right.semilogx(frequencies, (spectrum.power / data.power).log2().numpy(), **style)
    right.axhline(0, color=DATA, lw=4, alpha=0.6, zorder=0)
    right.axvspan(0.125, 0.5, color=DATA, alpha=0.12, lw=0, label="gap and error")
    periods = [2**k for k in range(1, 9) if 2**-k >= frequencies[0]]
    for ax in (left, right):
        ax.set(xlabel="cycles per pixel", xlim=(frequencies[0], frequencies[-1]))
        ax.set_xticks([1 / period for period in periods], [f"1/{period}" for period in periods])
        ax.set_xticks([], minor=True)
        ax.legend()
    left.set(ylabel="power, pixels in [0, 1]")
    left.set_title("Radial power spectrum of the luminance")
    right.set(ylabel="log2(power / photographs')")
    right.set_title("Divided by that of photographs:\nbelow 0 too smooth, above too noisy")
    return figure


BUDGET_STYLES = {"floor": DATA, "decoder": "#7b5aa6", "generator": "#7b5aa6", "prior": "#b5485d", "total": INK}


@styled
def budget(budgets: dict[str, dict[str, Table]]) -> Figure:
    """Draw how each distance of draws to photographs comes about, as bars with 95 % intervals.

    Args:
        budgets: by feature network and metric, of rows of draws: estimates by part.
    """
    rows = len(next(iter(next(iter(budgets.values())).values())))
    shape = len(next(iter(budgets.values()))), len(budgets)
    figure, axes = new(13, (1.1 + 0.75 * rows) * shape[1], *shape)
    drawn = ((net, metric, table) for net, metrics in budgets.items() for metric, table in metrics.items())
    for ax, (net, metric, table) in zip(axes, drawn, strict=True):
        for place, parts in enumerate(table.values()):
            bars = {part: parts[part] for part in BUDGET_STYLES if part in parts}
            for i, (part, estimate) in enumerate(bars.items()):
                y, width = place + (i - (len(bars) - 1) / 2) * 0.2, estimate.half_width
                style = {"color": BUDGET_STYLES[part], "label": PARTS[part] if place == 0 else None}
                error = width if np.isfinite(width) else 0
                ax.barh(y, estimate.value, 0.18, xerr=error, error_kw={"lw": 1, "ecolor": DATA}, **style)
        ax.axvline(0, color=INK, lw=0.8)
        ax.set(
            yticks=range(rows),
            yticklabels=list(table),
            ylim=(rows - 0.5, -0.5),
            title=f"{HEADS.get(metric, metric)}, {net}",
        )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure
