"""Figures of draws: histograms of data, means, samples and denoised samples in one dimension; points in the plane."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from degrain.models.evaluation.figures import DATA, DENOISED, INK, MEAN, SAMPLE, new, styled
from degrain.models.toys import linear_gaussian as toy


def outline(ax: Axes, name: str, values: Tensor, t: float, edges: Tensor, colour: str) -> None:
    """Draw the outline of a histogram of values (n,) beside data of std t; a line if nearly all are 0."""
    label = f"{name}, std {values.std():.2f}"
    if values.std() > 0.05 * t:
        ax.hist(values.double(), edges, density=True, histtype="step", lw=2, color=colour, label=label)
    else:
        ax.axvline(0, color=colour, lw=2.5, label=label)
    ax.set(xlabel="x", xlim=(-4 * t, 4 * t), ylim=(0, 0.72 / t))


@styled
def histograms(t: Tensor, relative: Tensor, found: toy.Optimum) -> Figure:
    """Draw data, mean images and true samples of the trained model, z ~ N(0, 1), before and after the collapse.

    Args:
        t: data stds, (T,); the one nearest to 1 is shown.
        relative: beta/t^2, (N,); those nearest to 1 and to 4 are shown.
        found: trained on the integrated and on the sampled loss, each (2, T, N).
    """
    i = int((t - 1).abs().argmin())
    std = t[i].item()
    x, z, eps = torch.randn(3, 200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    figure, axes = new(11, 4.0, 2, sharey=True)
    edges = torch.linspace(-4.5 * std, 4.5 * std, 121, dtype=torch.float64)
    before = ("Before collapse", 1.0, "means too narrow, samples exact")
    after = ("After", 4.0, "means empty, samples too wide")
    for ax, (when, wanted, verdict) in zip(axes, (before, after), strict=True):
        j = int((relative - wanted).abs().argmin())
        noise = (relative[j] * std**2 / 2).sqrt()
        means = found.c[0, i, j] * z
        ax.hist(std * x, edges, density=True, color=DATA, alpha=0.45, label=f"data, std {std:.2f}")
        outline(ax, "mean images", means, std, edges, MEAN)
        outline(ax, "true samples", means + noise * eps, std, edges, SAMPLE)
        ax.set_title(f"{when}, beta = {relative[j]:g} t²: {verdict}")
        ax.legend(loc="upper left")
    axes[0].set_ylabel("density")
    title = "A Gaussian VAE is not blurry, it is noisy: the narrow law is that of its means"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    return figure


@styled
def denoised(t: float, sigma: Tensor, draws: dict[str, Tensor]) -> Figure:
    """Draw histograms of means, samples and denoised samples against the data's density, one panel for each sigma.

    Args:
        t: std of the data.
        sigma: the decoder's fixed std, (P,).
        draws: of means, samples and denoised, each (P, n).
    """
    figure, axes = new(5.5 * len(sigma), 4.0, len(sigma), sharey=True)
    edges, x = (torch.linspace(-4 * t, 4 * t, n, dtype=torch.float64) for n in (121, 400))
    density = torch.distributions.Normal(0.0, t).log_prob(x).exp()
    colours = {"means": MEAN, "samples": SAMPLE, "denoised": DENOISED}
    for i, ax in enumerate(axes):
        ax.fill_between(x, density, color=DATA, alpha=0.45, lw=0, label=f"data, std {t:.2f}")
        for name, values in draws.items():
            outline(ax, name, values[i], t, edges, colours[name])
        verdict = "collapsed, G narrows the samples" if sigma[i] >= t else "G keeps them"
        ax.set_title(f"sigma = {sigma[i]:.2f}: {verdict}")
        ax.legend(loc="upper left")
    axes[0].set_ylabel("density")
    figure.suptitle("The denoiser gives the data's law back, whatever sigma", x=0.01, ha="left", fontsize=13)
    return figure


@styled
def mixture(points: dict[str, Tensor], quality: dict[str, tuple[Tensor, Tensor]], modes: int) -> Figure:
    """Draw points of every method in the plane, with modes found and the share of high-quality points.

    Args:
        points: by method, (n, 2); at most 3,000 are shown.
        quality: by method, modes found and the share of points within 3 std of one.
        modes: in all.
    """
    columns = -(-len(points) // 2)
    figure, axes = new(3.0 * columns, 6.8, columns, 2, sharex=True, sharey=True)
    figure.get_layout_engine().set(h_pad=0.1)
    colours = {"data": DATA, "VAE mean": MEAN, "VAE sample": SAMPLE, "VAE + GAN": DENOISED}
    reach = 1.25 * points["data"].abs().max().item()
    for ax, (name, xy) in zip(axes, points.items(), strict=False):
        ax.scatter(*xy[:3000].T, s=2, alpha=0.35, color=colours.get(name, INK), linewidths=0, rasterized=True)
        found, share = quality[name]
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        ax.set_title(f"{name}\n{found:.0f} of {modes} modes, {100 * share:.0f} % within 3 std", fontsize=9.5)
    for ax in axes[len(points) :]:
        ax.set_visible(False)
    return figure
