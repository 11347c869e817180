"""Comparison of drawn images and reconstructions with held-out images."""

from collections.abc import Iterator
from functools import partial

import torch
from einops import rearrange
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.evaluation import figures
from degrain.models.evaluation.estimates import Estimate, average
from degrain.models.evaluation.feature_collector import FeatureCollector, chosen_numbers, image_rows
from degrain.models.evaluation.image_sets import (
    BUDGETS,
    FLOOR,
    LEAST_IMAGES,
    METRICS,
    ImageSet,
    budget,
    compare,
    compare_spectra,
    disagreements,
    merged,
    prior_ladder,
)
from degrain.models.evaluation.manifold import copies, nearest_neighbours
from degrain.models.evaluation.report import Findings, Subject
from degrain.models.evaluation.tables import Table, budget_lines, ladder_lines, metric_lines, values_of
from degrain.models.inference.pictures import panel
from degrain.models.inference.pipeline import Pipeline

NEIGHBOURS = ("nearest", "2nd nearest", "3rd nearest")
SHOWN = 16  # draws whose nearest training images are shown
FRECHET_FEW = 1000  # images a side below which most of a Frechet distance is its bias


class DrawComparison:
    """Evaluator: images drawn from the prior, and reconstructions, compared with held-out images, n with n.

    Values: NET/ROW/METRIC with NET/ROW/METRIC_low and _high, over seeds NET/ROW/METRIC_std, NET/prior/NAME/METRIC,
    NET/budget/METRIC/ROW/PART, spectrum/ROW/METRIC, about/NAME. Figures: the budgets, spectra of all rows, and draws
    beside the nearest training images.

    Raises:
        InputError: too few held-out images.
    """

    @staticmethod
    def applies(subject: Subject) -> bool:
        return bool(subject.nets)

    def __init__(self, subject: Subject) -> None:
        self.subject, data = subject, subject.data
        held_out, least = data.describe()["images"]["test"], max(LEAST_IMAGES, subject.world)
        if held_out < 2 * least:
            raise InputError(
                f"evaluation: {held_out:,} held-out images are too few; give at least {2 * least}, or "
                "--evaluation.off true"
            )
        if held_out < 2 * subject.n:
            raise InputError(
                f"evaluation: {held_out:,} held-out images are too few for n {subject.n:,}, 2n are compared in two "
                f"halves; give more, --evaluation.n {held_out // 2} or --evaluation.off true"
            )
        if subject.n < least:
            raise InputError(f"evaluation: n {subject.n:,} must be at least {least}; or pass --evaluation.off true")
        self.held_out = chosen_numbers(held_out, 2 * subject.n)
        self.train_missing = data.open_train()  # the reason, or None
        train = 0 if self.train_missing else data.describe()["images"]["train"]
        self.train = chosen_numbers(train, 2 * subject.n)
        if not self.train_missing and len(self.train) < 2 * subject.n:
            self.train_missing = f"{train:,} training images are fewer than 2n, {2 * subject.n:,}"
        self.notes = list(self.remarks(held_out, train))

    def remarks(self, held_out: int, train: int) -> Iterator[str]:
        """Yield what limits the results, a line each; of the numbers of all held-out and all training images."""
        n = self.subject.n
        if 2 * n < held_out:
            yield f"{2 * n:,} of {held_out:,} held-out images, chosen with seed 0"
        wide = [net.name for net in self.subject.nets if net.dimension > n]
        if n < FRECHET_FEW or wide:
            than = f", fewer than the features of {', '.join(wide)}" if wide else ""
            yield (
                f"n {n:,}{than}: much of a Frechet distance is bias; read it above that of row {FLOOR}, or take the "
                "kernel's, which has none"
            )
        if self.train_missing:
            yield f"no row train and no nearest neighbours: {self.train_missing}"
        else:
            yield f"row train and neighbours.png: {len(self.train):,} of {train:,} training images"

    def measure(self) -> Findings | None:
        """Collect all sets on all processes, and compare them on the first."""
        subject, pipeline, collector = self.subject, self.subject.pipeline, FeatureCollector(self.subject)
        rows, real = image_rows(subject), collector.real("test", self.held_out)
        train = None if self.train_missing else collector.real("train", self.train)
        drawn = [collector.draws(f"draws of seed {seed}", pipeline, rows, seed) for seed in range(subject.seeds)]
        sets = {row: [of_seed[row] for of_seed in drawn] for row in rows}
        means: dict[str, ImageSet] = {}
        if pipeline.vae is not None:
            sets |= {row: [images] for row, images in collector.reconstructions(self.held_out).items()}
            *others, best = pipeline.priors
            decoder, row = Pipeline(pipeline.vae, pipeline.prior), rows[0]  # mean, or a PixelVAE's sample
            draw = partial(collector.draws, pipeline=decoder, rows=[row], seed=0)
            means = {prior: draw(f"{prior} prior", prior=prior)[row] for prior in others} | {best: drawn[0][row]}
        sets |= {FLOOR: [real]} | ({"train": [train]} if train else {})
        return Comparison(subject, sets, means).findings(self) if subject.rank == 0 else None


class Comparison:
    """The sets of a test, compared on the first process.

    Args:
        subject: of the test.
        sets: by row, one of each seed; with FLOOR, the held-out images themselves.
        means: draws by prior, compared with the first row of reconstructions.
    """

    def __init__(self, subject: Subject, sets: dict[str, list[ImageSet]], means: dict[str, ImageSet]) -> None:
        self.subject, self.sets, self.means = subject, sets, means
        self.real, self.budgets = sets[FLOOR][0], dict[str, dict[str, Table]]()  # of each network, by metric
        self.spectra = {
            row: over_seeds([compare_spectra(of_seed.spectrum, self.real.spectrum) for of_seed in images])
            for row, images in sets.items()
        }

    def findings(self, evaluator: DrawComparison) -> Findings:
        """Return tables, values and figures."""
        subject, data = self.subject, self.subject.data.describe()
        about = {
            "n": subject.n,
            "seeds": subject.seeds,
            "nets": ", ".join(net.name for net in subject.nets),
            "crop": data["crop"] or "none",
            "size": data["size"],
            "images_seen": subject.images_seen(),
        }
        head = (
            f"{subject.n:,} images on each side, {subject.seeds} {'seed' if subject.seeds == 1 else 'seeds'} of draws, "
            f"± half of a 95 % interval over images; crop {about['crop']}, {about['size']} pixels"
        )
        values: dict[str, int | float | str] = {f"about/{name}": value for name, value in about.items()}
        values |= values_of("spectrum", self.spectra)
        lines, tables = [head, *evaluator.notes], {}
        for net in subject.nets:
            tables[net.name], found, said = self.by_network(net.name)
            values, lines = values | found, [*lines, "", *said]
        return Findings(values, [*lines, *disagreements(tables)], self.pictures(evaluator.train))

    def by_network(self, net: str) -> tuple[Table, dict[str, float], list[str]]:
        """Return the estimates by row, every value by its path, and the lines of the tables, by one network."""
        rows: Table = {}
        spread: dict[str, dict[str, float]] = {}
        for row, images in self.subject.progress(self.sets.items(), f"comparing by {net}", len(self.sets), "rows"):
            seeds = [compare(of_seed.features[net], self.real.features[net]) for of_seed in images]
            rows[row] = over_seeds(seeds)
            if len(seeds) > 1:
                spread[row] = {n: torch.tensor([found[n].value for found in seeds]).std().item() for n in METRICS}
        ladders = {row: prior_ladder(draws, through) for row, draws, through in self.ladders(net)}
        budgets = self.budgets[net] = {metric: budget(rows, metric, ladders) for metric in BUDGETS}
        lines = [f"features of {net}:", *copy_lines(self.real.features[net])]
        lines += [*metric_lines(rows, self.spectra, spread), "", *budget_lines(budgets)]
        values = dict(values_of(net, rows))
        for metric, parts in budgets.items():
            values |= values_of(f"{net}/budget/{metric}", parts)
        values |= {f"{net}/{row}/{name}_std": std for row, found in spread.items() for name, std in found.items()}
        if ladders:
            ladder = next(iter(ladders.values()))
            values |= values_of(f"{net}/prior", ladder)
            lines += ["", *ladder_lines(ladder)]
        return rows, values, lines

    def ladders(self, net: str) -> Iterator[tuple[str, dict[str, Tensor], Tensor]]:
        """Yield every row of draws with features of its images by prior, and of its reconstructions, of seed 0.

        The first row has all priors, the others the best one. A plain GAN has none.
        """
        for row, images in self.sets.items():
            if through := self.sets.get(f"reconstruction_{row}"):
                draws = self.means if row == next(iter(self.sets)) else {"best": images[0]}
                yield row, {prior: of.features[net] for prior, of in draws.items()}, through[0].features[net]

    def pictures(self, chosen: list[int]) -> dict[str, Figure | Image]:
        """Return the budgets, the spectra and, beside draws, the nearest of the training images of these numbers."""
        spectra = {row: merged([of_seed.spectrum for of_seed in images]) for row, images in self.sets.items()}
        pictures: dict[str, Figure | Image] = {"budget": figures.budget(self.budgets)}
        pictures["spectra"] = figures.spectra(spectra, FLOOR)
        if "train" in self.sets:
            row, net = self.subject.pipeline.rows[-1], self.subject.nets[0].name
            drawn, bank = self.sets[row][0].features[net], self.sets["train"][0].features[net]
            neighbours = nearest_training_images(self.subject, row, drawn, bank, torch.tensor(chosen))
            pictures["neighbours"] = panel(neighbours)
        return pictures


def copy_lines(held_out: Tensor) -> list[str]:
    """Return a line if several held-out images have the same features (N, D), which lowers the row of photographs."""
    if not (same := copies(held_out)):
        return []
    return [
        f"{same:,} of {len(held_out):,} held-out images have the features of another: distances are too small; remove "
        "copies, or take another network"
    ]


def over_seeds(found: list[dict[str, Estimate]]) -> dict[str, Estimate]:
    """Return the mean of every named estimate over seeds."""
    return {name: average([of_seed[name] for of_seed in found]) for name in found[0]}


def nearest_training_images(
    subject: Subject, row: str, features: Tensor, bank: Tensor, chosen: Tensor
) -> dict[str, Tensor]:
    """Return draws of a row, and the training images with the nearest features: rows (S, 3, H, W) of a panel.

    Args:
        subject: its pipeline drew the row, its data have the training images.
        row: name of the row.
        features: of the draws of seed 0, (n, D).
        bank: features of the chosen training images, (N, D).
        chosen: their numbers, (N,).
    """
    nearest = chosen[nearest_neighbours(features[:SHOWN], bank, k=len(NEIGHBOURS))]  # (S, K)
    loader = subject.data.numbered_dataloader("train", rearrange(nearest, "s k -> (k s)").tolist())
    images = rearrange(torch.cat([batch["image"] for batch in loader]), "(k s) c h w -> k s c h w", s=len(nearest))
    return {row: subject.pipeline.draw(0, range(len(nearest)))[row]} | dict(zip(NEIGHBOURS, images, strict=True))
