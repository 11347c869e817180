"""The toy's figures: tensors in, a matplotlib Figure out. Theory is a line, what was trained is a dot."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from models.evaluation.figures import DATA, DENOISED, INK, MARKERS, MEAN, SAMPLE, new, styled
from models.toys import linear_gaussian as toy
from models.toys import linear_vae

# --- one dimension


def trained(ax: Axes, x: Tensor, y: Tensor, t: Tensor) -> None:
    """Dots of what was trained: one shape a t, open for the sampled loss, filled for the integrated one.

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
    """L over (a, c) at the optimal b: two mirrored minima, and a saddle where the code is empty."""
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
    """a t, b and c/t over beta/t^2: theory as lines, trained values as dots; the pitchfork at beta = 2t^2.

    Args:
        t: data stds, (T,).
        relative: beta/t^2, (N,).
        found: trained on the integrated and on the sampled loss, each (2, T, N).
    """
    figure, axes = new(11, 3.9, 3)
    end = 1.04 * relative.max().item()
    line = torch.linspace(0.0, end, 800, dtype=torch.float64)
    best = toy.optimum(1.0, line)
    names = ("encoder slope, a t", "encoder std, b", "decoder slope, c / t")
    curves, scale = (best.a, best.b, best.c), (t, torch.ones_like(t), 1 / t)
    for ax, name, curve, values, unit in zip(axes, names, curves, (found.a, found.b, found.c), scale, strict=True):
        ax.plot(line, curve, color=INK, lw=1.4, label="closed form")
        if "slope" in name:
            ax.plot(line, -curve, color=INK, lw=1.4, alpha=0.35, label="its mirror image")
            ax.plot([0, 2], [0, 0], color=INK, lw=1.2, ls=":", label="saddle")
        ax.axvline(2, color=DATA, lw=1, ls="--")
        shown = relative > 0 if "b" not in name.split(",")[1] else relative >= 0
        trained(ax, relative[shown], values[..., shown] * unit[:, None], t)
        ax.set(xlabel="beta / t²", xlim=(-0.05, end))
        ax.set_title(name)
    axes[1].text(
        2.06, 0.04, "code collapse:\nbeta ≥ 2 t²", color=INK, fontsize=9, transform=axes[1].get_xaxis_transform()
    )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    figure.suptitle("The KL weight shrinks the code until nothing is left of it", x=0.01, ha="left", fontsize=13)
    return figure


def nearest(values: Tensor, wanted: float) -> int:
    """Index of the value closest to the one that is wanted."""
    return int((values - wanted).abs().argmin())


@styled
def histograms(t: Tensor, relative: Tensor, found: toy.Optimum, count: int = 200_000, seed: int = 0) -> Figure:
    """Data, mean images and true samples of the trained model, z ~ N(0, 1), before and after the collapse.

    Args:
        t: data stds, (T,).
        relative: beta/t^2, (N,).
        found: trained on the integrated and on the sampled loss, each (2, T, N).
        count: draws.
        seed: of the draws.
    """
    i = nearest(t, 1.0)
    std = t[i].item()
    rng = torch.Generator().manual_seed(seed)
    x, z, eps = torch.randn(3, count, generator=rng, dtype=torch.float64)
    figure, axes = new(11, 4.0, 2, sharey=True)
    edges = torch.linspace(-4.5 * std, 4.5 * std, 121, dtype=torch.float64)
    stages = (
        ("Before collapse", 1.0, "means too narrow, samples exact"),
        ("After", 4.0, "means empty, samples too wide"),
    )
    for ax, (when, wanted, verdict) in zip(axes, stages, strict=True):
        j = nearest(relative, wanted)
        noise = (relative[j] * std**2 / 2).sqrt()
        means = found.c[0, i, j] * z
        samples = means + noise * eps
        ax.hist(std * x, edges, density=True, color=DATA, alpha=0.45, label=f"data, std {std:.2f}")
        if means.std() > 0.05 * std:
            ax.hist(means, edges, density=True, histtype="step", lw=2, color=MEAN, label=named("mean images", means))
        else:
            ax.axvline(0, color=MEAN, lw=2.5, label=named("mean images", means))
        ax.hist(samples, edges, density=True, histtype="step", lw=2, color=SAMPLE, label=named("true samples", samples))
        ax.set(xlabel="x", xlim=(-4 * std, 4 * std), ylim=(0, 0.72 / std))
        ax.set_title(f"{when}, beta = {relative[j]:g} t²: {verdict}")
        ax.legend(loc="upper left")
    axes[0].set_ylabel("density")
    title = "A Gaussian VAE is not blurry, it is noisy: the narrow law is that of its means"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    return figure


def named(name: str, values: Tensor) -> str:
    """A legend's entry with the std of the values."""
    return f"{name}, std {values.std():.2f}"


@styled
def rate_distortion(t: Tensor, relative: Tensor, found: toy.Optimum) -> Figure:
    """Squared error over rate: every beta is a point of the Gaussian rate-distortion curve, where the slope is -beta.

    Args:
        t: data stds, (T,).
        relative: beta/t^2, (N,).
        found: trained on the integrated and on the sampled loss, each (2, T, N).
    """
    std, shown = t[:, None], relative > 0
    error = toy.loss(found.a, found.b, found.c, std, 0.0) / std.square()
    rate = 0.5 * ((found.a * std).square() + found.b.square() - 1) - found.b.log()
    figure, (ax,) = new(6.8, 4.6)
    line = torch.linspace(0.02, 1, 400, dtype=torch.float64)
    ax.plot(toy.rate_at_distortion(1.0, line), line, color=INK, lw=1.4, label="rate-distortion curve of N(0, t²)")
    trained(ax, rate[..., shown], error[..., shown], t)
    at = toy.statistics(1.0, 1.0)
    x, y = at.rate.item(), at.squared_error.item()
    ax.plot([x - 0.33, x + 0.33], [y + 0.33, y - 0.33], color=DENOISED, lw=1.2)
    ax.annotate("beta = t²: slope −beta", (x + 0.2, y - 0.2), xytext=(30, 22), textcoords="offset points", fontsize=9,
                color=DENOISED, arrowprops={"arrowstyle": "-", "color": DENOISED, "lw": 0.8})  # fmt: skip
    ax.annotate("collapsed:\nbeta ≥ 2 t²", (0, 1), xytext=(14, -4), textcoords="offset points", fontsize=9, va="top")
    ax.set(xlabel="rate, KL(q(z|x) to p(z)) in nats", ylabel="squared error / t²", ylim=(0, 1.06), xlim=(-0.06, None))
    ax.set_title("No code is cheaper: the linear VAE reaches the rate-distortion bound")
    ax.legend()
    return figure


@styled
def aggregate(t: Tensor, relative: Tensor, found: toy.Optimum) -> Figure:
    """a t, b and c/t over beta/t^2 with the regulariser on q(z): the perfect solution for every beta.

    Args:
        t: data stds, (T,).
        relative: beta/t^2, (N,).
        found: trained on the integrated and on the sampled loss, each (2, T, N).
    """
    figure, axes = new(11, 3.7, 3, sharey=True)
    line = torch.linspace(0.0, relative.max().item(), 600, dtype=torch.float64)
    best = toy.optimum(1.0, line)
    perfect = (1.0, 0.0, 1.0)
    names = ("encoder slope, a t", "encoder std, b", "decoder slope, c / t")
    scale = (t, torch.ones_like(t), 1 / t)
    both = zip(axes, names, (best.a, best.b, best.c), (found.a, found.b, found.c), scale, perfect, strict=True)
    for ax, name, usual, values, unit, level in both:
        ax.axhline(level, color=INK, lw=1.4, label="closed form, KL(q(z) to p(z))")
        ax.plot(line, usual, color=DATA, lw=1.2, ls="--", label="the usual KL(q(z|x) to p(z))")
        trained(ax, relative[relative > 0], values[..., relative > 0] * unit[:, None], t)
        ax.set(xlabel="beta / t²", ylim=(-0.08, 1.12))
        ax.set_title(name)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    title = "Regularising the codes' sum instead of each code: perfect reconstruction for every beta"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    return figure


# --- d dimensions


@styled
def spectra(data: Tensor, means: Tensor, samples: Tensor, noise: Tensor, denoised: Tensor | None = None) -> Figure:
    """Eigenvalues, descending, of the covariances of data, mean images, true samples and denoised, each (d,).

    Args:
        data: l_i.
        means: of C C^T.
        samples: of C C^T + sigma^2.
        noise: sigma^2, or its mean over pixels.
        denoised: of the GAN stage's output.
    """
    number = torch.arange(1, len(data) + 1)
    figure, (ax,) = new(7.2, 4.6)
    ax.bar(number, data, 0.86, color=DATA, alpha=0.4, label="data")
    ax.axhline(noise.item(), color=SAMPLE, lw=1.2, ls="--", label=f"pixel variance sigma² = {noise.item():.3g}")
    offsets = {"means": (means, MEAN, "o", -0.2), "true samples": (samples, SAMPLE, "s", 0.0)}
    if denoised is not None:
        offsets["denoised"] = (denoised, DENOISED, "D", 0.2)
    lowest = min(data.min().item(), noise.item()) / 3
    for name, (values, colour, marker, offset) in offsets.items():
        x = number + offset
        gone = values < lowest
        ax.plot(x[~gone], values[~gone], marker, color=colour, ms=7.5, label=name)
        if gone.any():
            ax.plot(
                x[gone], torch.full_like(values[gone], lowest), "v", color=colour, ms=10, label=f"{name}: no variance"
            )
    ax.set(
        yscale="log", xlabel="principal direction", ylabel="variance", xticks=number.tolist(), ylim=(0.8 * lowest, None)
    )
    told = "samples are right where the code lives,\nwhite noise elsewhere"
    told += "; the denoiser removes the excess" if denoised is not None else "; means are too narrow everywhere"
    ax.set_title(f"Variance by direction: {told}")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def pixels(data: Tensor, mean_variance: Tensor, noise: Tensor, floor: float, planted: Tensor | None = None) -> Figure:
    """Factor analysis: at every pixel the means' variance and sigma^2 add up to the data's; sigma by pixel.

    Args:
        data: variance of the data at each pixel, (d,).
        mean_variance: variance of the mean images there.
        noise: sigma^2 there.
        floor: lowest sigma.
        planted: std of the noise that was planted, where there was any.
    """
    number = torch.arange(1, len(data) + 1)
    figure, (left, right) = new(10.5, 4.0, 2)
    left.bar(number, mean_variance, 0.6, color=MEAN, label="variance of the means")
    left.bar(number, noise, 0.6, bottom=mean_variance, color=SAMPLE, label="sigma²")
    left.plot(number, data, "_", color=INK, ms=26, mew=2.2, label="variance of the data")
    left.set(xlabel="pixel", ylabel="variance", xticks=number.tolist())
    left.set_title("Marginal variance law: the two add up to the data")
    left.legend()
    right.axhline(floor, color=INK, lw=1, ls="--", label=f"floor {floor:g}")
    if planted is not None:
        right.plot(number, planted, "_", color=INK, ms=26, mew=2.2, label="planted")
    right.plot(number, noise.sqrt(), "o", color=SAMPLE, ms=8, label="learned sigma")
    right.set(xlabel="pixel", ylabel="std", xticks=number.tolist(), yscale="log")
    found = "Planted noise is recovered" if planted is not None else "Some sigmas go to the floor (Heywood case)"
    right.set_title(found if planted is not None or (noise.sqrt() < 1.1 * floor).any() else "Sigma at every pixel")
    right.legend()
    return figure


@styled
def kl_weight(eigenvalues: Tensor, latents: int, weight: Tensor, noise: Tensor, live: Tensor, floor: float) -> Figure:
    """The learned shared sigma^2 and the number of live latents over the KL weight: theory as lines, trained as dots.

    Args:
        eigenvalues: of the data, (d,).
        latents: k.
        weight: KL weights, (W,).
        noise: learned sigma^2, (W,).
        live: live latents, (W,).
        floor: lowest sigma.
    """
    line = torch.linspace(0.8 * weight.min().item(), 1.05 * weight.max().item(), 300).tolist()
    law = [linear_vae.best_shared_noise(eigenvalues, latents, w, floor, allow_kl_weight=True) for w in line]
    count = [toy.directions(eigenvalues, r.low, latents, w).live.sum() for r, w in zip(law, line, strict=True)]
    figure, (left, right) = new(10.5, 4.0, 2)
    left.plot(line, [r.low for r in law], color=INK, lw=1.4, label="closed form")
    left.plot(weight, noise, "o", color=SAMPLE, ms=8, label="trained")
    flat = linear_vae.best_shared_noise(eigenvalues, latents, 1.0, floor)
    if flat.low < flat.high:
        left.plot([1, 1], [flat.low, flat.high], color=INK, lw=4, alpha=0.4, label="flat valley at weight 1")
    left.axhline(floor**2, color=DATA, ls="--", lw=1, label="floor²")
    left.axhline(eigenvalues.mean(), color=DATA, ls=":", lw=1.4, label="total collapse: mean eigenvalue")
    left.set(xlabel="KL weight", ylabel="learned shared sigma²", yscale="log")
    left.set_title(f"{len(eigenvalues)} dimensions, {latents} latents: a KL weight moves sigma")
    left.legend(loc="lower right", bbox_to_anchor=(1, 0.08))
    right.step(line, count, color=INK, lw=1.4, where="mid", label="closed form")
    right.plot(weight, live, "o", color=MEAN, ms=8, label="trained")
    right.set(xlabel="KL weight", ylabel="live latents", ylim=(-0.3, latents + 0.5))
    right.set_title("Latents die one by one above weight 1")
    right.legend()
    return figure


# --- the GAN stage


@styled
def denoised(t: float, sigma: Tensor, draws: dict[str, Tensor]) -> Figure:
    """Histograms of means, samples and denoised against the data's density, one panel a sigma.

    Args:
        t: std of the data.
        sigma: the decoder's fixed std, (P,).
        draws: of means, samples and denoised, each (P, n).
    """
    figure, axes = new(5.5 * len(sigma), 4.0, len(sigma), sharey=True)
    edges = torch.linspace(-4 * t, 4 * t, 121, dtype=torch.float64)
    x = torch.linspace(-4 * t, 4 * t, 400, dtype=torch.float64)
    density = (-0.5 * (x / t).square()).exp() / (t * (2 * torch.pi) ** 0.5)
    colours = {"means": MEAN, "samples": SAMPLE, "denoised": DENOISED}
    for i, ax in enumerate(axes):
        ax.fill_between(x, density, color=DATA, alpha=0.45, lw=0, label=f"data, std {t:.2f}")
        for name, values in draws.items():
            style = {"density": True, "histtype": "step", "lw": 2, "color": colours[name]}
            if values[i].std() > 0.05 * t:
                ax.hist(values[i].double(), edges, **style, label=named(name, values[i]))
            else:
                ax.axvline(0, color=colours[name], lw=2.5, label=named(name, values[i]))
        ax.set(xlabel="x", xlim=(-4 * t, 4 * t), ylim=(0, 0.72 / t))
        collapsed = sigma[i] >= t
        ax.set_title(
            f"sigma = {sigma[i]:.2f}: " + ("collapsed, G narrows the samples" if collapsed else "G keeps them")
        )
        ax.legend(loc="upper left")
    axes[0].set_ylabel("density")
    figure.suptitle("The denoiser gives the data's law back, whatever sigma", x=0.01, ha="left", fontsize=13)
    return figure


@styled
def mixture(
    points: dict[str, Tensor], quality: dict[str, tuple[Tensor, Tensor]], modes: int, shown: int = 3000
) -> Figure:
    """Draws of every method in the plane, with modes found and the share of high-quality points.

    Args:
        points: by method, (n, 2).
        quality: by method, modes found and the share of points within 3 std of one.
        modes: in all.
        shown: points on each panel.
    """
    columns = -(-len(points) // 2)
    figure, axes = new(3.0 * columns, 6.8, columns, 2, sharex=True, sharey=True)
    figure.get_layout_engine().set(h_pad=0.1)
    colours = {"data": DATA, "VAE mean": MEAN, "VAE sample": SAMPLE, "VAE + GAN": DENOISED}
    reach = 1.25 * points["data"].abs().max().item()
    for ax, (name, xy) in zip(axes, points.items(), strict=False):
        ax.scatter(*xy[:shown].T, s=2, alpha=0.35, color=colours.get(name, INK), linewidths=0, rasterized=True)
        found, share = quality[name]
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        ax.set_title(f"{name}\n{found:.0f} of {modes} modes, {100 * share:.0f} % within 3 std", fontsize=9.5)
    for ax in axes[len(points) :]:
        ax.set_visible(False)
    return figure


@styled
def twins(seen: Tensor, distance: dict[str, Tensor], beta: float) -> Figure:
    """How far twins part that minimise a KL weight beta at std 1, and the ELBO at std sqrt(beta), by likelihood.

    Args:
        seen: training images at each measurement, (P,).
        distance: by likelihood (density, bin), distance of the two over the way that they went, (P,).
        beta: KL weight.
    """
    figure, (ax,) = new(6.8, 4.2)
    names = {"density": ("Gaussian density", MEAN), "bin": ("likelihood of the 8-bit value", SAMPLE)}
    for name, values in distance.items():
        label, colour = names[name]
        ax.plot(seen, values.clamp(min=1e-9), "o-", color=colour, label=label)
    ax.set(yscale="log", xlabel="images seen", ylabel="distance / way gone", ylim=(None, 3))
    ax.set_title(
        f"KL weight {beta:g} at std 1, or the ELBO at std {beta**0.5:g}:\none path for the density, two for the bins"
    )
    ax.legend()
    return figure


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
    left.plot(line, theory.live.sum(-1), color=INK, lw=1.4, label="data: eigenvalues > std²")
    left.plot(std, live, "o", color=MEAN, ms=8, label="convolutional VAE")
    left.set(xscale="log", xlabel="fixed std of every pixel", ylabel="live latents", ylim=(-1, 1.06 * len(eigenvalues)))
    left.set_title("Latents die one by one as the std grows")
    left.legend(loc="lower left")
    right.plot(line, theory.rate.sum(-1), color=INK, lw=1.4, label="linear VAE: sum of log(l/std²)/2")
    right.plot(std, rate, "o", color=SAMPLE, ms=8, label="convolutional VAE")
    right.set(xscale="log", xlabel="fixed std of every pixel", ylabel="rate, nats per image")
    right.set_title("What the code says of an image")
    right.legend()
    return figure
