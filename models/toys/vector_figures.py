"""Figures of linear VAEs in d dimensions: spectra, sigma at every pixel, and a KL weight. Theory is a line."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from degrain.models.evaluation.figures import DATA, DENOISED, INK, MEAN, SAMPLE, new, styled
from degrain.models.toys import linear_gaussian as toy
from degrain.models.toys import linear_vae


@styled
def spectra(data: Tensor, means: Tensor, samples: Tensor, noise: Tensor, denoised: Tensor | None = None) -> Figure:
    """Draw the eigenvalues, descending, of the covariances of data, means, samples and denoised, each (d,).

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
            low = torch.full_like(values[gone], lowest)
            ax.plot(x[gone], low, "v", color=colour, ms=10, label=f"{name}: no variance")
    ax.set(yscale="log", xlabel="principal direction", ylabel="variance", xticks=number.tolist())
    ax.set_ylim(0.8 * lowest, None)
    verdict = "the denoiser removes the excess" if denoised is not None else "means are too narrow everywhere"
    where = "samples are right where the code lives,\nwhite noise elsewhere"
    ax.set_title(f"Variance by direction: {where}; {verdict}")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def pixels(data: Tensor, mean_variance: Tensor, noise: Tensor, floor: float, planted: Tensor | None = None) -> Figure:
    """Draw factor analysis: the means' variance and sigma^2 beside the data's variance, and sigma, by pixel.

    Args:
        data: variance of the data at each pixel, (d,).
        mean_variance: variance of the mean images there.
        noise: sigma^2 there.
        floor: lowest sigma.
        planted: std of the planted noise, if any, (d,).
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
    """Draw the learned shared sigma^2 and the number of live latents over the KL weight.

    Args:
        eigenvalues: of the data, (d,).
        latents: k.
        weight: KL weights, (W,).
        noise: learned sigma^2, (W,).
        live: live latents, (W,).
        floor: lowest sigma.
    """
    line = torch.linspace(0.8 * weight.min().item(), 1.05 * weight.max().item(), 300).tolist()
    theory = [linear_vae.best_shared_noise(eigenvalues, latents, w, floor) for w in line]
    count = [toy.directions(eigenvalues, r.low, latents, w).live.sum() for r, w in zip(theory, line, strict=True)]
    figure, (left, right) = new(10.5, 4.0, 2)
    left.plot(line, [r.low for r in theory], color=INK, lw=1.4, label="closed form")
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
