"""Sets of images, reduced to features and spectra, and the estimates that compare two of them.

Every row of a table has 2n images and is compared with the same 2n held-out ones, in two halves: its even images with
the odd held-out ones, its odd images with the even ones, and the two values are averaged. So a reconstruction is never
compared with a set that holds its original, and n images are compared with n. Axes: N = 2n images, D features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from degrain.models.evaluation.distances import frechet_at_infinity, frechet_distance, kernel_distance
from degrain.models.evaluation.estimates import Estimate, jackknife
from degrain.models.evaluation.manifold import manifold_scores
from degrain.models.evaluation.spectrum import PowerSpectrum, spectrum_error, spectrum_gap

METRICS = ("frechet", "frechet_infinity", "kernel", "precision", "recall", "density", "coverage")
"""Metrics of a row by one feature network, in the order of the table's columns."""

BUDGETS = ("frechet", "frechet_infinity", "kernel")
"""Metrics whose distance is divided among decoder and prior."""

SPECTRUM_METRICS = ("gap", "error")

FLOOR = "photographs"
"""The row of the held-out images themselves, one half against the other: the best value to expect in every column."""

LEAST_IMAGES = 8  # n: without a group there are still more than the five neighbours that coverage asks for


@dataclass
class ImageSet:
    """A set of images, reduced to what is needed to compare it."""

    features: dict[str, Tensor]  # by name of the network, in the order of the images, float32, (N, D)
    spectrum: PowerSpectrum  # of the pixels


Rows = Mapping[str, Mapping[str, Estimate]]
"""Estimates by row and metric, or by row and part."""

Pairs = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


def crossed(statistics: Pairs, images: Tensor, reference: Tensor) -> dict[str, Estimate]:
    """Return estimates of statistics of n images and n others, averaged over the two ways to cross the halves.

    Args:
        statistics: (n, ...), (n, ...) -> named scalars.
        images: of a row, (2n, ...).
        reference: of the held-out images, (2n, ...).
    """

    def averaged(pairs: Tensor) -> dict[str, Tensor]:
        ways = [statistics(images[2 * pairs + half], reference[2 * pairs + 1 - half]) for half in (0, 1)]
        return {name: (value + ways[1][name]) / 2 for name, value in ways[0].items()}

    return jackknife(averaged, len(reference) // 2)


def compare(features: Tensor, reference: Tensor) -> dict[str, Estimate]:
    """Return METRICS by name for features of a row and of the held-out images, both (2n, D)."""

    def statistics(drawn: Tensor, real: Tensor) -> dict[str, Tensor]:
        frechet = frechet_distance(drawn, real)
        return {
            "frechet": frechet,
            "frechet_infinity": frechet_at_infinity(drawn, real, frechet),
            "kernel": kernel_distance(drawn, real),
            **vars(manifold_scores(drawn, real)),
        }

    return crossed(statistics, features, reference)


def compare_spectra(drawn: PowerSpectrum, real: PowerSpectrum) -> dict[str, Estimate]:
    """Return SPECTRUM_METRICS by name, for 2n images of a row and as many held-out ones."""

    def statistics(one: Tensor, other: Tensor) -> dict[str, Tensor]:
        spectra = PowerSpectrum(one, drawn.size), PowerSpectrum(other, real.size)
        return {"gap": spectrum_gap(*spectra), "error": spectrum_error(*spectra)}

    return crossed(statistics, drawn.powers, real.powers)


def distances(features: Tensor, reference: Tensor) -> dict[str, Estimate]:
    """Return `frechet` and `kernel` of two sets that share their held-out images, both (2n, D)."""

    def statistics(one: Tensor, other: Tensor) -> dict[str, Tensor]:
        return {"frechet": frechet_distance(one, other), "kernel": kernel_distance(one, other)}

    return crossed(statistics, features, reference)


def prior_ladder(draws: dict[str, Tensor], reconstructions: Tensor) -> dict[str, dict[str, Estimate]]:
    """Return `frechet`, `ratio` and `kernel` by prior: distances of images between z ~ the prior and z ~ q(z|x).

    `ratio` divides the Frechet distance by that between the two halves of the reconstructions, the row `halves`. All
    have n images on each side, so that the ratio of a perfect prior is about 1. That of any other grows with n, as the
    halves' distance is bias alone; the kernel distance has no bias.

    Args:
        draws: features of the images, (2n, D), by prior.
        reconstructions: features of the images of held-out photographs, (2n, D).
    """
    ladder = {"halves": distances(reconstructions, reconstructions)}
    halves = ladder["halves"]["frechet"]
    for name, features in draws.items():
        found = distances(features, reconstructions)
        ladder[name] = {"frechet": found["frechet"], "ratio": found["frechet"] / halves, "kernel": found["kernel"]}
    return ladder


def budget(rows: Rows, metric: str, ladders: Mapping[str, Rows] | None = None) -> dict[str, dict[str, Estimate]]:
    """Return how a distance of each row of draws comes about: `floor`, then what is added by `decoder` and `prior`.

    The floor is the distance between photographs. The decoder, with the denoiser for the row `denoised`, adds what
    stands between that and its reconstructions of photographs. The prior adds what stands between those and draws. The
    generator of a plain GAN adds everything above the floor.

    Squared distances do not add: both may move features in one direction. So `prior_alone` is the distance of draws to
    reconstructions, above that of two halves of the reconstructions. It is part of `prior`, or all of it.

    Args:
        rows: estimates by row and metric; with FLOOR.
        metric: `frechet`, `frechet_infinity` or `kernel`.
        ladders: prior_ladder of each row of draws, whose last prior is that of the draws.

    Returns:
        By row of draws; floor, decoder (or generator) and prior add up to `total`.
    """
    floor, parts, ladders = rows[FLOOR][metric], {}, ladders or {}
    for name, row in rows.items():
        if name == "generated":
            parts[name] = {"floor": floor, "generator": row[metric] - floor, "total": row[metric]}
        elif through := rows.get(f"reconstruction_{name}"):
            decoder, prior = through[metric] - floor, row[metric] - through[metric]
            alone = {}
            if (ladder := ladders.get(name)) and metric in ladder["halves"]:
                *_, draws = ladder.values()
                alone = {"prior_alone": draws[metric] - ladder["halves"][metric]}
            parts[name] = {"floor": floor, "decoder": decoder, "prior": prior, **alone, "total": row[metric]}
    return parts


def disagreements(tables: dict[str, dict[str, dict[str, Estimate]]], metric: str = "frechet") -> list[str]:
    """Return a line for every pair of rows that two feature networks order differently, both beyond their intervals.

    Args:
        tables: estimates by network, row and metric.
        metric: the smaller, the better.
    """
    lines = []
    names = list(next(iter(tables.values())))
    for first, second in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :]):
        gaps = {net: rows[first][metric] - rows[second][metric] for net, rows in tables.items()}
        sure = {net: gap for net, gap in gaps.items() if abs(gap.value) > gap.half_width}
        nearer, farther = ([net for net, gap in sure.items() if sign * gap.value > 0] for sign in (-1, 1))
        if nearer and farther:
            lines.append(
                f"the verdict turns with the network: {first} is nearer to photographs than {second} by "
                f"{', '.join(nearer)}, and farther by {', '.join(farther)}"
            )
    return lines


def merged(draws: list[PowerSpectrum]) -> PowerSpectrum:
    """Return the spectra of all images of several sets of one size."""
    return PowerSpectrum(torch.cat([one.powers for one in draws]), draws[0].size)
