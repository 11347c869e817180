"""Comparison of drawn images with held-out ones, streaming: only features and sums of a set are kept."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from models.core.errors import InputError
from models.core.randomness import generator
from models.evaluation import figures
from models.evaluation.distances import FRECHET_LEAST
from models.evaluation.feature_net import features_of
from models.evaluation.image_sets import LEAST_IMAGES, ImageSet, ResultTable, prior_ladder, table_lines
from models.evaluation.manifold import nearest_neighbours
from models.evaluation.report import Findings, Subject
from models.evaluation.spectrum import PowerSpectrum
from models.evaluation.statistics_cache import StatisticsKey, cached_statistics
from models.inference.pictures import panel
from models.inference.pipeline import Pipeline
from models.vae.latent_prior import PriorName

NEIGHBOURS = ("nearest", "2nd nearest", "3rd nearest")
SHOWN = 16  # draws whose nearest training images are shown
CPU_BATCH = 16  # images per forward pass of the feature network on a CPU: more overflow its cache


class DrawComparison:
    """Evaluator: images drawn from the prior, and reconstructions, compared with held-out images.

    Values: ROW/METRIC, ROW/METRIC_std over seeds, prior/NAME/METRIC and about/NAME. Figures: spectra of all rows, and
    draws beside the nearest training images.

    Raises:
        InputError: too few held-out images.
    """

    @staticmethod
    def applies(subject: Subject) -> bool:
        return subject.net is not None

    def __init__(self, subject: Subject) -> None:
        self.subject, data, n = subject, subject.data, subject.n
        self.held_out, least = data.describe()["images"]["test"], max(LEAST_IMAGES, subject.world)
        if min(self.held_out, n) < least:
            few = f"{self.held_out:,} held-out images and n {n:,}: drawn images are compared with at least {least} each"
            raise InputError(f"evaluation: {few}; give more, or pass --evaluation.off true")
        self.train_missing = data.open_train()  # the reason, or None
        train = 0 if self.train_missing else data.describe()["images"]["train"]
        self.chosen = torch.randperm(train, generator=generator(0))[:n].sort().values  # numbers of training images
        if not self.train_missing and len(self.chosen) < least:
            self.train_missing = f"{train} training images are fewer than {least}"
        self.notes = list(self.remarks(train))

    def remarks(self, train: int) -> Iterator[str]:
        """Yield what limits the results, a line each; `train` is the number of all training images."""
        if (fewest := min(self.held_out, self.subject.n)) < FRECHET_LEAST:
            few = f"{self.subject.n:,} draws and {self.held_out:,} held-out images"
            yield f"no Frechet distance (FID) of {few}, below {FRECHET_LEAST:,} it is mostly bias: see kernel instead"
            yield "the ladder's ratio_equal_n has that bias in numerator and denominator, which pulls it towards 1"
        if self.train_missing:
            yield f"no row train and no nearest neighbours: {self.train_missing}"
        else:
            yield f"row train and neighbours.png: {len(self.chosen):,} of {train:,} training images"
            if len(self.chosen) < FRECHET_LEAST <= fewest:
                yield f"they are below {FRECHET_LEAST:,}: row train has no Frechet distance"

    def measure(self) -> Findings | None:
        """Collect all sets on all processes, and compare them on the first."""
        subject, pipeline, collector = self.subject, self.subject.pipeline, FeatureCollector(self.subject)
        rows = [row for row in pipeline.rows if row != "std"]  # it is not an image
        table = ResultTable(collector.real("test", range(self.held_out)))
        train = None if self.train_missing else collector.real("train", self.chosen.tolist())
        first: dict[str, Tensor] = {}  # features of seed 0 by row
        for seed in range(subject.seeds):
            drawn = collector.draws(f"draws of seed {seed}", pipeline, rows, seed)
            first = first or {row: images.features for row, images in drawn.items()}
            self.compare(f"draws of seed {seed}", table, drawn)
        once, ladder = {}, {}
        if pipeline.vae is not None:
            once = collector.reconstructions(self.held_out)
            *others, best = pipeline.priors
            decoder, row = Pipeline(pipeline.vae, pipeline.prior), rows[0]  # mean, or a PixelVAE's sample
            draw = partial(collector.draws, pipeline=decoder, rows=[row], seed=0)
            features = {prior: draw(f"{prior} prior", prior=prior)[row].features for prior in others}
            features[best] = first[row]
            ladder = prior_ladder(features, once["reconstruction"].features) if subject.rank == 0 else {}
        self.compare("the other rows", table, once | ({"train": train} if train else {}))
        return self.findings(table, ladder, first, train) if subject.rank == 0 else None

    def compare(self, name: str, table: ResultTable, drawn: dict[str, ImageSet]) -> None:
        """Add one seed of each row to the table, on the first process."""
        if self.subject.rank == 0:
            for row, images in self.subject.progress(drawn.items(), f"comparing {name}", len(drawn), "rows"):
                table.add(row, images)

    def findings(
        self, table: ResultTable, ladder: dict[str, float], first: dict[str, Tensor], train: ImageSet | None
    ) -> Findings:
        """Summarise the table, the ladder of priors, and the draws of seed 0 beside the training images."""
        subject, data = self.subject, self.subject.data.describe()
        about = {
            "n": subject.n,
            "seeds": subject.seeds,
            "held_out": self.held_out,
            "train": len(self.chosen),
            "net": subject.net.name,
            "crop": data["crop"] or "none",
            "size": data["size"],
            "images_seen": subject.images_seen(),
        }
        rows, pictures = table.summary(), {"spectra": figures.spectra(table.spectra)}
        if train is not None:
            pictures["neighbours"] = panel(nearest_training_images(subject, first, train.features, self.chosen))
        head = (
            f"drawn images: {about['n']:,} of each of {about['seeds']} seeds beside {about['held_out']:,} held-out "
            f"images; features of {about['net']}; crop {about['crop']}, {about['size']} pixels"
        )
        groups = {**rows, "prior": ladder, "about": about}
        values = {f"{group}/{name}": value for group, named in groups.items() for name, value in named.items()}
        return Findings(values, [head, *self.notes, *table_lines(rows, ladder)], pictures)


def nearest_training_images(
    subject: Subject, first: dict[str, Tensor], bank: Tensor, chosen: Tensor
) -> dict[str, Tensor]:
    """Return draws of the last row, and the training images with the nearest features: rows (S, 3, H, W) of a panel.

    Args:
        subject: its pipeline drew the rows, its data have the training images.
        first: features of the draws of seed 0 by row, (n, D).
        bank: features of the chosen training images, (N, D).
        chosen: their numbers, (N,).
    """
    row, features = list(first.items())[-1]
    nearest = chosen[nearest_neighbours(features[:SHOWN], bank, k=len(NEIGHBOURS))]  # (S, K)
    loader = subject.data.numbered_dataloader("train", rearrange(nearest, "s k -> (k s)").tolist())
    images = rearrange(torch.cat([batch["image"] for batch in loader]), "(k s) c h w -> k s c h w", s=len(nearest))
    return {row: subject.pipeline.draw(0, range(len(nearest)))[row]} | dict(zip(NEIGHBOURS, images, strict=True))


class FeatureCollector:
    """Draws or reads sets of images and collects their features and spectra; every process measures a share of each."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.net = subject, subject.net.to(subject.device)

    def real(self, split: str, numbers: Sequence[int]) -> ImageSet:
        """Return the images of a split by number, from the cache or measured."""
        subject, data = self.subject, self.subject.data
        about = data.describe()
        dataset = f"{len(numbers)} of {data.identity(split)}"  # which of them: chosen with seed 0, see DrawComparison
        key = StatisticsKey(dataset, split, about["crop"] or "none", about["size"], self.net.identity, "set")

        def measure() -> dict[str, Tensor]:
            loader = data.numbered_dataloader(split, numbers[subject.rank :: subject.world])
            images = ({"real": batch["image"]} for batch in loader)
            return self.measure(f"{split} images", images, len(numbers))["real"].tensors()

        return ImageSet.from_tensors(cached_statistics(subject.cache, key, measure, subject.broadcast))

    def draws(
        self, name: str, pipeline: Pipeline, rows: Sequence[str], seed: int, prior: PriorName | None = None
    ) -> dict[str, ImageSet]:
        """Return rows of images 0 to n - 1 of a seed, for z from a prior, by default the best."""
        batches = self.subject.numbers(self.subject.n, self.subject.batch_size)
        images = (pipeline.draw(seed, numbers, prior) for numbers in batches)
        return self.measure(name, ({row: drawn[row] for row in rows} for drawn in images), self.subject.n)

    def reconstructions(self, count: int) -> dict[str, ImageSet]:
        """Return, for one z ~ q(z|x) of every held-out image, the decoder's mean and, after stage 2, the denoised draw.

        A PixelVAE has a sample instead of the mean.
        """
        pipeline = self.subject.pipeline
        names = {pipeline.rows[0]: "reconstruction", "denoised": "reconstruction_denoised"}

        def rows() -> Iterator[dict[str, Tensor]]:
            for batch in self.subject.data.test_dataloader():
                drawn = pipeline.reconstruct(0, batch["index"].tolist(), self.subject.photographs(batch))
                yield {new: drawn[name] for name, new in names.items() if name in drawn}

        return self.measure("reconstructions", rows(), count)

    def measure(self, name: str, batches: Iterable[dict[str, Tensor]], count: int) -> dict[str, ImageSet]:
        """Return `count` images of every row, of which `batches` has this process's share, (B, 3, H, W) each."""
        spectra: dict[str, list[PowerSpectrum]] = {}

        def features() -> Iterator[dict[str, Tensor]]:
            for rows in batches:
                for row, images in rows.items():
                    spectra.setdefault(row, []).append(PowerSpectrum.of(images.cpu()))
                few = CPU_BATCH if self.subject.device.type == "cpu" else count
                yield {row: features_of(self.net, images, few) for row, images in rows.items()}

        collected = self.subject.collect(name, features(), count)
        return {row: ImageSet(collected[row], self.total(spectra[row])) for row in collected}

    def total(self, spectra: list[PowerSpectrum]) -> PowerSpectrum:
        """Return the spectrum of the images of all processes."""
        mine = sum(spectra[1:], start=spectra[0])
        count, total = (self.subject.all_gather(value).sum(0) for value in (mine.count, mine.total))
        return PowerSpectrum(count, total, mine.size)
