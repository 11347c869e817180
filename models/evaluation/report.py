"""What drawn images are worth beside real ones: rows of values from sets of images that were measured once.

Axes: N images, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.evaluation.distances import (
    FRECHET_LEAST,
    FeatureMoments,
    frechet_distance,
    kernel_distance,
    manifold_scores,
)
from models.evaluation.spectrum import PowerSpectrum, spectrum_error, spectrum_gap

METRICS = ("frechet", "kernel", "precision", "recall", "density", "coverage", "spectrum_gap", "spectrum_error")
"""The columns, in this order."""

LEAST_IMAGES = 6
"""Of a set: every one needs five neighbours."""

SUBSET = 1000
"""Images in a subset of the kernel distance, or all where there are fewer."""

RUNG = ("frechet", "ratio", "ratio_equal_n")
"""What the ladder says of a prior."""


@dataclass
class ImageSet:
    """A set of images, by what is kept of it.

    Args:
        features: from one network, in the images' order, float32, (N, D).
        moments: of the features.
        spectrum: of the pixels.
    """

    features: Tensor
    moments: FeatureMoments
    spectrum: PowerSpectrum

    @classmethod
    def of(cls, features: Tensor, spectrum: PowerSpectrum) -> "ImageSet":
        """With the moments of its features."""
        return cls(features, FeatureMoments.of(features), spectrum)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, as it is kept on disk."""
        parts = {"moments": self.moments, "spectrum": self.spectrum}
        named = {f"{part}.{name}": tensor for part, whole in parts.items() for name, tensor in vars(whole).items()}
        return {"features": self.features} | named

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "ImageSet":
        """Back from what `tensors` gave."""
        moments, spectrum = (
            {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
            for part in ("moments.", "spectrum.")
        )
        return cls(tensors["features"], FeatureMoments(**moments), PowerSpectrum(**spectrum))


def compare(drawn: ImageSet, real: ImageSet) -> dict[str, float]:
    """METRICS by name; without `frechet` where either set has fewer than FRECHET_LEAST images."""
    fewest = min(len(drawn.features), len(real.features))
    distance = (
        {"frechet": frechet_distance(drawn.moments, real.moments, FRECHET_LEAST)} if fewest >= FRECHET_LEAST else {}
    )
    values = {
        **distance,
        "kernel": kernel_distance(drawn.features, real.features, subset_size=min(SUBSET, fewest)).mean,
        **vars(manifold_scores(drawn.features, real.features)),
        "spectrum_gap": spectrum_gap(drawn.spectrum, real.spectrum),
        "spectrum_error": spectrum_error(drawn.spectrum, real.spectrum),
    }
    return {name: float(value) for name, value in values.items()}


class Rows:
    """Rows of values beside real images, gathered seed by seed.

    Args:
        real: what every row is compared with.
    """

    def __init__(self, real: ImageSet) -> None:
        self.real = real
        self.values: dict[str, list[dict[str, float]]] = {}
        self.spectra = {"held-out": real.spectrum}

    def add(self, row: str, drawn: ImageSet) -> None:
        """Add one seed of a row."""
        self.values.setdefault(row, []).append(compare(drawn, self.real))
        self.spectra.setdefault(row, PowerSpectrum.empty(int(self.real.spectrum.size))).merge(drawn.spectrum)

    def summary(self) -> dict[str, dict[str, float]]:
        """Metrics by row, over the seeds."""
        return {row: over_seeds(values) for row, values in self.values.items()}


def over_seeds(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every metric over the seeds, and as NAME_std the unbiased std, where there are two or more."""
    columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
    values = {name: column.mean().item() for name, column in columns.items()}
    if len(rows) > 1:
        values |= {f"{name}_std": column.std().item() for name, column in columns.items()}
    return values


def prior_ladder(draws: dict[str, Tensor], reconstructions: Tensor) -> dict[str, float]:
    """How far mean images drawn from each prior are from mean images of q(z)'s codes: `PRIOR/frechet`, the distance.

    `PRIOR/ratio` is that by `halves/frechet`, the distance between the even and the odd reconstructions. It falls to
    about 1/2 for a perfect prior, as twice the images have half the bias; `PRIOR/ratio_equal_n`, of as many draws and
    reconstructions as a half has, falls to 1. The first two are left out below FRECHET_LEAST images.

    Args:
        draws: features of the mean images, (n, D), by prior.
        reconstructions: features of the mean images of held-out photographs, (M, D).
    """
    even, odd = reconstructions[::2], reconstructions[1::2]
    values = {"halves/frechet": distance(even, odd)}
    for name, drawn in draws.items():
        if min(len(drawn), len(reconstructions)) >= FRECHET_LEAST:
            values[f"{name}/frechet"] = distance(drawn, reconstructions)
            values[f"{name}/ratio"] = values[f"{name}/frechet"] / values["halves/frechet"]
        few = min(len(drawn), len(odd))
        floor = values["halves/frechet"] if few == len(odd) else distance(even[:few], odd[:few])
        values[f"{name}/ratio_equal_n"] = distance(drawn[:few], even[:few]) / floor
    return values


def distance(features: Tensor, reference: Tensor) -> float:
    """The Frechet distance of two sets of features, (N, D) and (M, D), however few."""
    return float(frechet_distance(FeatureMoments.of(features), FeatureMoments.of(reference), minimum=2))


@dataclass
class EvaluationReport:
    """What a test found of drawn images.

    Args:
        about: what was compared: numbers of images, feature network, crop, size.
        notes: what a reader must know, a line each.
        rows: metrics by row.
        ladder: what prior_ladder gives.
        spectra: of the held-out images, which come first, and of every row.
        neighbours: draws and the training images nearest to them, rows of a picture.
    """

    about: dict[str, int | str]
    notes: list[str]
    rows: dict[str, dict[str, float]]
    ladder: dict[str, float]
    spectra: dict[str, PowerSpectrum]
    neighbours: dict[str, Tensor]

    def values(self) -> dict[str, int | float | str]:
        """Every value by its path: test/ROW/METRIC, test/prior/NAME/METRIC, test/about/NAME."""
        groups = {**self.rows, "prior": self.ladder, "about": self.about}
        return {f"test/{group}/{name}": value for group, values in groups.items() for name, value in values.items()}

    def table(self) -> str:
        """What was compared, rows x metrics with the std over seeds below a row's means, and the ladder of priors."""
        a = self.about
        lines = [
            f"drawn images: {a['n']:,} of each of {a['seeds']} seeds beside {a['held_out']:,} held-out images; "
            f"features of {a['net']}; crop {a['crop']}, {a['size']} pixels",
            *self.notes,
            f"{'row':>24}" + "".join(f"{name:>15}" for name in METRICS),
        ]
        for row, values in self.rows.items():
            lines.append(f"{row:>24}" + cells(values, METRICS))
            if any(name.endswith("_std") for name in values):
                lines.append(f"{'std over seeds':>24}" + cells(values, [f"{name}_std" for name in METRICS]))
        if self.ladder:
            lines.append(f"{'prior, its means':>24}" + "".join(f"{name:>15}" for name in RUNG))
        for prior in dict.fromkeys(name.split("/")[0] for name in self.ladder):
            lines.append(f"{prior:>24}" + cells(self.ladder, [f"{prior}/{name}" for name in RUNG]))
        return "\n".join(lines)


def cells(values: dict[str, float], names: list[str] | tuple[str, ...]) -> str:
    """The named values as columns; a dash where there is none."""
    return "".join(f"{values[name]:15.4g}" if name in values else f"{'-':>15}" for name in names)
