"""Figures of the grid of linear VAEs in one dimension: theory as lines, trained values as dots.

Arguments are `t`, data stds (T,), `relative`, beta/t^2 (N,), and `found`, the values trained on the integrated and on
the sampled loss, each (2, T, N).
"""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from degrain.models.evaluation.figures import DATA, DENOISED, INK, MARKERS, MEAN, SAMPLE, new, styled
from degrain.models.toys import linear_gaussian as toy

PANELS = ("encoder slope, a t", "encoder std, b", "decoder slope, c / t")


def in_units_of_t(found: toy.Optimum, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the values of PANELS: a t, b and c / t."""
    return found.a * t, found.b, found.c / t


def annotate(figure: Figure, axes: list[Axes], title: str, columns: int) -> None:
    """Add a title, and one legend below all panels."""
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)


def trained(ax: Axes, x: Tensor, y: Tensor, t: Tensor) -> None:
    """Draw trained values as dots: one shape for each t, open for the sampled loss, filled for the integrated one.

    Args:
        ax: where to draw.
        x: (N,), or (2, T, N).
        y: on the integrated and on the sampled loss, (2, T, N).
        t: data stds, (T,).
    """
    x = x.expand_as(y)
    for i, std in enumerate(t.tolist()):
        common = {"ls": "", "marker": MARKERS[i % 6]}
        ax.plot(x[1, i], y[1, i], color=SAMPLE, mfc="none", ms=8, **common, label=f"t = {std:g}, sampled loss")
        ax.plot(x[0, i], y[0, i], color=MEAN, ms=4.5, **common, label=f"t = {std:g}, integrated loss")


@styled
def loss_surface(t: float = 1.0, beta: float = 1.0) -> Figure:
    """Draw L over (a, c) at the optimal b: two mirrored minima, and a saddle where the code is empty."""
    best = toy.optimum(t, beta)
    a, c, b = best.a.item(), best.c.item(), best.b
    axis_a, axis_c = (torch.linspace(-2.2 * v, 2.2 * v, 241, dtype=torch.float64) for v in (a, c))
    height = toy.loss(axis_a, b, axis_c[:, None], t, beta)  # (c, a)
    lowest, saddle = height.min().item(), toy.loss(torch.zeros(()), b, torch.zeros(()), t, beta).item()
    figure, (ax,) = new(6.4, 5.2)
    levels = lowest + (saddle - lowest) * torch.linspace(0, 3.2, 17).square().numpy()
    filled = ax.contourf(axis_a, axis_c, height, levels=levels, cmap="YlGnBu_r", extend="max")
    ax.contour(axis_a, axis_c, height, levels=[saddle], colors="white", linewidths=1.6)
    for sign in (1, -1):
        ax.plot(sign * a, sign * c, "o", color=SAMPLE, markeredgecolor="white", markersize=10)
    ax.plot(0, 0, "X", color="white", markeredgecolor=INK, markersize=11)
    note = {"textcoords": "offset points", "color": INK, "fontsize": 9}
    box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "alpha": 0.85, "edgecolor": "none"}
    ax.annotate(f"minimum: a = c = {a:.3f}\nL = {lowest:.3f}", (a, c), xytext=(-30, 22), bbox=box, **note)
    ax.annotate("its mirror image", (-a, -c), xytext=(-34, -26), bbox=box, **note)
    ax.annotate(f"saddle: empty code\nL = {saddle:.3f}", (0, 0), xytext=(16, -34), bbox=box, **note)
    ax.set(xlabel="encoder slope a", ylabel="decoder slope c", aspect="auto")
    ax.set_title(f"Loss of the linear VAE over (a, c) for t = {t:g}, beta = {beta:g}, b = {b:.3f}")
    figure.colorbar(filled, label="loss (the white line passes through the saddle)", format="%.1f")
    return figure


@styled
def bifurcation(t: Tensor, relative: Tensor, found: toy.Optimum) -> Figure:
    """Draw a t, b and c/t over beta/t^2, with the pitchfork at beta = 2t^2."""
    figure, axes = new(11, 3.9, 3)
    end = 1.04 * relative.max().item()
    line = torch.linspace(0.0, end, 800, dtype=torch.float64)
    curves, dots = in_units_of_t(toy.optimum(1.0, line), 1.0), in_units_of_t(found, t[:, None])
    for ax, name, curve, values in zip(axes, PANELS, curves, dots, strict=True):
        ax.plot(line, curve, color=INK, lw=1.4, label="closed form")
        shown = relative >= 0
        if "slope" in name:
            ax.plot(line, -curve, color=INK, lw=1.4, alpha=0.35, label="its mirror image")
            ax.plot([0, 2], [0, 0], color=INK, lw=1.2, ls=":", label="saddle")
            shown = relative > 0  # at beta = 0 the scale of the code is free
        ax.axvline(2, color=DATA, lw=1, ls="--")
        trained(ax, relative[shown], values[..., shown], t)
        ax.set(xlabel="beta / t²", xlim=(-0.05, end), title=name)
    place = axes[1].get_xaxis_transform()
    axes[1].text(2.06, 0.04, "code collapse:\nbeta ≥ 2 t²", color=INK, fontsize=9, transform=place)
    annotate(figure, axes, "The KL weight shrinks the code until nothing is left of it", 5)
    return figure


@styled
def aggregate(t: Tensor, relative: Tensor, found: toy.Optimum) -> Figure:
    """Draw a t, b and c/t over beta/t^2 with the regulariser on q(z): the perfect solution for every beta."""
    figure, axes = new(11, 3.7, 3, sharey=True)
    line, shown = torch.linspace(0.0, relative.max().item(), 600, dtype=torch.float64), relative > 0
    usual, dots = in_units_of_t(toy.optimum(1.0, line), 1.0), in_units_of_t(found, t[:, None])
    for ax, name, level, curve, values in zip(axes, PANELS, (1.0, 0.0, 1.0), usual, dots, strict=True):
        ax.axhline(level, color=INK, lw=1.4, label="closed form, KL(q(z) to p(z))")
        ax.plot(line, curve, color=DATA, lw=1.2, ls="--", label="the usual KL(q(z|x) to p(z))")
        trained(ax, relative[shown], values[..., shown], t)
        ax.set(xlabel="beta / t²", ylim=(-0.08, 1.12), title=name)
    title = "Regularising the codes' sum instead of each code: perfect reconstruction for every beta"
    annotate(figure, axes, title, 4)
    return figure


@styled
def rate_distortion(t: Tensor, relative: Tensor, found: toy.Optimum) -> Figure:
    """Draw squared error over rate: every beta is the point of the rate-distortion curve where the slope is -beta."""
    std, shown = t[:, None], relative > 0
    error = toy.loss(found.a, found.b, found.c, std, 0.0) / std.square()
    rate = 0.5 * ((found.a * std).square() + found.b.square() - 1) - found.b.log()
    figure, (ax,) = new(6.8, 4.6)
    line = torch.linspace(0.02, 1, 400, dtype=torch.float64)
    ax.plot(toy.rate_at_distortion(1.0, line), line, color=INK, lw=1.4, label="rate-distortion curve of N(0, t²)")
    trained(ax, rate[..., shown], error[..., shown], t)
    best = toy.statistics(1.0, 1.0)
    x, y = best.rate.item(), best.squared_error.item()
    ax.plot([x - 0.33, x + 0.33], [y + 0.33, y - 0.33], color=DENOISED, lw=1.2)
    note = {"textcoords": "offset points", "fontsize": 9}
    arrow = {"arrowstyle": "-", "color": DENOISED, "lw": 0.8}
    at = (x + 0.2, y - 0.2)
    ax.annotate("beta = t²: slope −beta", at, xytext=(30, 22), color=DENOISED, arrowprops=arrow, **note)
    ax.annotate("collapsed:\nbeta ≥ 2 t²", (0, 1), xytext=(14, -4), va="top", **note)
    ax.set(xlabel="rate, KL(q(z|x) to p(z)) in nats", ylabel="squared error / t²", ylim=(0, 1.06), xlim=(-0.06, None))
    ax.set_title("No code is cheaper: the linear VAE reaches the rate-distortion bound")
    ax.legend()
    return figure
