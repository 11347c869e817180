"""Sets of images, reduced to features and a spectrum, and the metrics that compare two of them.

Axes: N images, D features.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.evaluation.distances import FRECHET_LEAST, FeatureMoments, frechet_distance, kernel_distance
from models.evaluation.manifold import manifold_scores
from models.evaluation.spectrum import PowerSpectrum, spectrum_error, spectrum_gap

# Metrics of a row, in the order of the table's columns, and of a prior, see prior_ladder.
METRICS = ("frechet", "kernel", "precision", "recall", "density", "coverage", "spectrum_gap", "spectrum_error")
LADDER_METRICS = ("frechet", "ratio", "ratio_equal_n")
LEAST_IMAGES = 6  # least size of a set: every image needs five neighbours
SUBSET = 1000  # images in a subset of the kernel distance; all of a smaller set


@dataclass
class ImageSet:
    """A set of images, reduced to what is needed to compare it."""

    features: Tensor  # from one network, in the order of the images, float32, (N, D)
    spectrum: PowerSpectrum  # of the pixels

    @cached_property
    def moments(self) -> FeatureMoments:
        """Moments of the features."""
        return FeatureMoments.of(self.features)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as named tensors, to be written to disk."""
        return {"features": self.features} | {f"spectrum.{name}": value for name, value in vars(self.spectrum).items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "ImageSet":
        """Return the set from the result of `tensors`."""
        names = (name for name in tensors if name.startswith("spectrum."))
        return cls(tensors["features"], PowerSpectrum(**{name.split(".")[1]: tensors[name] for name in names}))


def compare(drawn: ImageSet, real: ImageSet) -> dict[str, float]:
    """Return METRICS by name; without `frechet` if either set has fewer than FRECHET_LEAST images."""
    fewest = min(len(drawn.features), len(real.features))
    enough = fewest >= FRECHET_LEAST
    values = {
        **({"frechet": frechet_distance(drawn.moments, real.moments, FRECHET_LEAST)} if enough else {}),
        "kernel": kernel_distance(drawn.features, real.features, subset_size=min(SUBSET, fewest)).mean,
        **vars(manifold_scores(drawn.features, real.features)),
        "spectrum_gap": spectrum_gap(drawn.spectrum, real.spectrum),
        "spectrum_error": spectrum_error(drawn.spectrum, real.spectrum),
    }
    return {name: float(value) for name, value in values.items()}


class ResultTable:
    """Rows of metrics, collected seed by seed; every row is compared with the same images, `real`."""

    def __init__(self, real: ImageSet) -> None:
        self.real = real
        self.values: dict[str, list[dict[str, float]]] = {}
        self.spectra = {"held-out": real.spectrum}

    def add(self, row: str, drawn: ImageSet) -> None:
        """Add one seed to a row."""
        self.values.setdefault(row, []).append(compare(drawn, self.real))
        self.spectra[row] = self.spectra[row] + drawn.spectrum if row in self.spectra else drawn.spectrum

    def summary(self) -> dict[str, dict[str, float]]:
        """Return the metrics over seeds by row."""
        return {row: summarise_seeds(values) for row, values in self.values.items()}


def summarise_seeds(seeds: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of every metric over seeds and, of two or more seeds, the unbiased std as NAME_std."""
    columns = {name: torch.tensor([seed[name] for seed in seeds], dtype=torch.float64) for name in seeds[0]}
    values = {name: column.mean().item() for name, column in columns.items()}
    if len(seeds) > 1:
        values |= {f"{name}_std": column.std().item() for name, column in columns.items()}
    return values


def prior_ladder(draws: dict[str, Tensor], reconstructions: Tensor) -> dict[str, float]:
    """Return distances of mean images between z ~ each prior and z ~ q(z|x): `PRIOR/frechet`.

    `PRIOR/ratio` is that distance divided by `halves/frechet`, the distance between the even and the odd
    reconstructions. For a perfect prior it is about 1/2, as twice the images have half the bias. `PRIOR/ratio_equal_n`
    takes as many draws and reconstructions as a half has, and is about 1. The first two are left out below
    FRECHET_LEAST images.

    Args:
        draws: features of the mean images, (n, D), by prior.
        reconstructions: features of the mean images of held-out photographs, (M, D).
    """
    even, odd = reconstructions[::2], reconstructions[1::2]
    values = {"halves/frechet": _distance(even, odd)}
    for name, drawn in draws.items():
        if min(len(drawn), len(reconstructions)) >= FRECHET_LEAST:
            values[f"{name}/frechet"] = _distance(drawn, reconstructions)
            values[f"{name}/ratio"] = values[f"{name}/frechet"] / values["halves/frechet"]
        few = min(len(drawn), len(odd))
        floor = values["halves/frechet"] if few == len(odd) else _distance(even[:few], odd[:few])
        values[f"{name}/ratio_equal_n"] = _distance(drawn[:few], even[:few]) / floor
    return values


def _distance(features: Tensor, reference: Tensor) -> float:
    """Return the Frechet distance of features (N, D) and (M, D), however few."""
    return float(frechet_distance(FeatureMoments.of(features), FeatureMoments.of(reference), minimum=2))


def table_lines(rows: dict[str, dict[str, float]], ladder: dict[str, float]) -> list[str]:
    """Return a table: rows x METRICS, the std over seeds below a row's means, and the ladder of priors."""
    lines = [_line("row", METRICS)]
    for row, values in rows.items():
        lines.append(_line(row, _cells(values, METRICS)))
        if any(name.endswith("_std") for name in values):
            lines.append(_line("std over seeds", _cells(values, [f"{name}_std" for name in METRICS])))
    if ladder:
        lines.append(_line("prior, its means", LADDER_METRICS))
    for prior in dict.fromkeys(name.split("/")[0] for name in ladder):
        lines.append(_line(prior, _cells(ladder, [f"{prior}/{name}" for name in LADDER_METRICS])))
    return lines


def _cells(values: dict[str, float], names: list[str] | tuple[str, ...]) -> list[str]:
    """Format the named values; a dash for a missing one."""
    return [f"{values[name]:.4g}" if name in values else "-" for name in names]


def _line(head: str, cells: list[str] | tuple[str, ...]) -> str:
    return f"{head:>24}" + "".join(f"{cell:>15}" for cell in cells)
