"""Figures: tensors in, a matplotlib Figure out. One colour a word everywhere: data grey, mean blue, sample orange,
denoised green. The toy's are in models/toy_figures.py.
"""

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from models import linear_gaussian as toy

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


def new(width: float, height: float, columns: int = 1, rows: int = 1, **options) -> tuple[Figure, list[Axes]]:
    """A figure in the house's style and its axes, row by row."""
    with mpl.rc_context(STYLE):
        figure = Figure((width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options).flatten().tolist()
    return figure, axes


def styled(draw):
    """A figure function that draws in the house's style."""

    def wrapped(*args, **kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    wrapped.__doc__, wrapped.__name__ = draw.__doc__, draw.__name__
    return wrapped


@styled
def collapse(std: Tensor, live: Tensor, rate: Tensor, eigenvalues: Tensor) -> Figure:
    """Live latents and rate over the fixed std: the linear VAE's as lines, convolutional VAEs as dots.

    Args:
        std: fixed stds, (S,).
        live: latents with Var_x E[z|x] > 0.01, (S,).
        rate: nats per image, (S,).
        eigenvalues: of the data's covariance, the largest k, (k,).
    """
    line = torch.logspace(std.min().log10() - 0.1, std.max().log10() + 0.1, 400, dtype=torch.float64)
    theory = toy.directions(eigenvalues, line[:, None].square(), len(eigenvalues))
    figure, (left, right) = new(10.5, 4.0, 2)
    left.plot(line, theory.live.sum(-1), color=INK, lw=1.4, label="eigenvalues of the data above std²")
    left.plot(std, live, "o", color=MEAN, ms=8, label="convolutional VAE, live latents")
    left.set(xscale="log", xlabel="fixed std of every pixel", ylabel="live latents", ylim=(-1, 1.06 * len(eigenvalues)))
    left.set_title("Latents die one by one as the std grows")
    left.legend()
    right.plot(line, theory.rate.sum(-1), color=INK, lw=1.4, label="linear VAE: sum of log(l/std²)/2")
    right.plot(std, rate, "o", color=SAMPLE, ms=8, label="convolutional VAE")
    right.set(xscale="log", xlabel="fixed std of every pixel", ylabel="rate, nats per image")
    right.set_title("What the code says of an image")
    right.legend()
    return figure
