"""`test` draws images and measures them beside real ones, streaming: of a set only features and sums are kept."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from einops import rearrange
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor
from tqdm import tqdm

from models.core.errors import InputError
from models.core.randomness import generator
from models.evaluation.distances import FRECHET_LEAST, nearest_neighbours
from models.evaluation.features import (
    FeatureNet,
    FeatureNetName,
    StatisticsKey,
    cached_statistics,
    feature_net,
    features_of,
)
from models.evaluation.report import LEAST_IMAGES, EvaluationReport, ImageSet, Rows, prior_ladder
from models.evaluation.spectrum import PowerSpectrum
from models.inference.pipeline import Pipeline
from models.training.image_module import ImageModule
from models.training.progress import bar_options
from models.vae.latent_prior import PriorName

NEIGHBOURS = ("nearest", "2nd nearest", "3rd nearest")
SHOWN = 16
"""Draws whose nearest training images are shown."""

CPU_BATCH = 16
"""Images of which a CPU takes features at once: more overflow its cache."""


class Evaluator(Callback):
    """Images drawn from the prior, and reconstructions, beside held-out images: metrics, spectra, nearest neighbours.

    Args:
        n: images drawn of each seed; so many training images are compared, too.
        seeds: how often they are drawn, for the spread of every metric: seeds 0, 1, ...
        net: feature network; `efficientnet-lite0` works offline, published figures are of `inception`.
        weights: file of Inception's weights; by default where PyTorch keeps downloads.
        download: fetch Inception's weights (95 MB) if they are missing.
        cache: folder of the statistics of real images, which are measured once.
        batch_size: images drawn at once.
        off: leave all of this out.

    Raises:
        InputError: a number out of range, or no feature network.
    """

    def __init__(
        self,
        n: int = 3000,
        seeds: int = 3,
        net: FeatureNetName = "efficientnet-lite0",
        weights: str | None = None,
        download: bool = False,
        cache: str = ".cache/degrain/statistics",
        batch_size: int = 64,
        off: bool = False,
    ) -> None:
        if n < LEAST_IMAGES or seeds < 1 or batch_size < 1:
            raise InputError(
                f"evaluation: n ({n}) must be at least {LEAST_IMAGES}, seeds ({seeds}) and batch_size ({batch_size}) "
                "at least 1"
            )
        self.n, self.seeds, self.cache, self.batch_size, self.off = n, seeds, cache, batch_size, off
        self.net = None if off else feature_net(net, weights, download)

    # Before the test.

    def setup(self, trainer: pl.Trainer, module: ImageModule, stage: str) -> None:
        """Say what cannot be measured, before anything long is.

        Raises:
            InputError: there are too few held-out images.
        """
        if self.off:
            return
        data, least = trainer.datamodule, max(LEAST_IMAGES, trainer.world_size)
        held_out = data.describe()["images"]["test"]
        if min(held_out, self.n) < least:
            few = f"{held_out:,} held-out images and n {self.n:,}: drawn images are compared with at least {least} each"
            raise InputError(f"evaluation: {few}; give more, or pass --evaluation.off true")
        self.without_train = data.open_train()
        train = 0 if self.without_train else data.describe()["images"]["train"]
        self.chosen = torch.randperm(train, generator=generator(0))[: self.n].sort().values  # training images
        if not self.without_train and len(self.chosen) < least:
            self.without_train = f"{train} training images are fewer than {least}"
        self.notes = list(self.remarks(held_out, train))
        for note in self.notes:
            rank_zero_only(print)(f"evaluation: {note}")

    def remarks(self, held_out: int, train: int) -> Iterator[str]:
        """What a reader must know, a line each."""
        if min(held_out, self.n) < FRECHET_LEAST:
            few = f"{self.n:,} draws and {held_out:,} held-out images"
            yield f"no Frechet distance (FID) of {few}, below {FRECHET_LEAST:,} it is bias: kernel stands in"
            yield "the ladder's ratio_equal_n has that bias above and below, which draws it to 1"
        if self.without_train:
            yield f"no row train and no nearest neighbours: {self.without_train}"
        else:
            yield f"row train and neighbours.png: {len(self.chosen):,} of {train:,} training images"
            if len(self.chosen) < FRECHET_LEAST <= min(held_out, self.n):
                yield f"they are below {FRECHET_LEAST:,}: row train has no Frechet distance"

    # After it.

    def on_test_end(self, trainer: pl.Trainer, module: ImageModule) -> None:
        """Measure, on all processes; the first one compares and leaves the report with the module."""
        if self.off:
            return
        data, pipeline = trainer.datamodule, module.pipeline()
        sets = Sets(trainer, module, self.net.to(module.device), self.batch_size)
        real = self.real(sets, "test", range(data.describe()["images"]["test"]))
        train = None if self.without_train else self.real(sets, "train", self.chosen.tolist())
        rows, first = Rows(real), {}
        for seed in range(self.seeds):
            drawn = sets.draws(pipeline, seed, self.n)
            first = first or {row: images.features for row, images in drawn.items()}
            self.compare(trainer, f"draws of seed {seed}", rows, drawn)
        once, ladder = {}, {}
        if pipeline.vae is not None:
            once = sets.reconstructions(pipeline, len(real.features))
            *others, best = pipeline.priors
            of_best = {best: first[pipeline.rows[0]]}
            means = {prior: sets.of_the_vae(pipeline, prior, self.n) for prior in others} | of_best
            ladder = prior_ladder(means, once["reconstruction"].features) if trainer.is_global_zero else {}
        self.compare(trainer, "what is there once", rows, once | ({"train": train} if train else {}))
        if trainer.is_global_zero:
            module.evaluation = EvaluationReport(
                about=self.about(data.describe(), module),
                notes=self.notes,
                rows=rows.summary(),
                ladder=ladder,
                spectra=rows.spectra,
                neighbours={} if train is None else self.neighbours(data, pipeline, first, train.features),
            )

    def compare(self, trainer: pl.Trainer, name: str, rows: Rows, drawn: dict[str, ImageSet]) -> None:
        """Add one seed of each row, on the first process."""
        if trainer.is_global_zero:
            for row, images in tqdm(drawn.items(), f"evaluation: comparing {name}", **bar_options("rows")):
                rows.add(row, images)

    def real(self, sets: "Sets", split: str, numbers: range | list[int]) -> ImageSet:
        """Images of a split by number, measured now or earlier."""
        data = sets.trainer.datamodule
        about = data.describe()
        which = f"{len(numbers)} of {data.identity(split)}"  # where they are not all, seed 0 has chosen
        key = StatisticsKey(which, split, about["crop"] or "none", about["size"], self.net.name, "set")

        def measure() -> dict[str, Tensor]:
            loader = data.numbered_dataloader(split, numbers[sets.rank :: sets.world])
            images = ({"real": batch["image"]} for batch in loader)
            return sets.measured(f"{split} images", images, len(numbers))["real"].tensors()

        return ImageSet.from_tensors(cached_statistics(self.cache, key, measure, sets.trainer.strategy.broadcast))

    def about(self, data: dict[str, Any], module: ImageModule) -> dict[str, int | str]:
        """What was compared, in plain types."""
        return {
            "n": self.n,
            "seeds": self.seeds,
            "held_out": data["images"]["test"],
            "train": len(self.chosen),
            "net": self.net.name,
            "crop": data["crop"] or "none",
            "size": data["size"],
            "images_seen": module.images_seen,
        }

    def neighbours(
        self, data: pl.LightningDataModule, pipeline: Pipeline, first: dict[str, Tensor], bank: Tensor
    ) -> dict[str, Tensor]:
        """Draws of the last row, and the training images nearest to each of them by their features, (S, 3, H, W).

        Args:
            data: where the training images are.
            pipeline: what drew them.
            first: features of the draws of seed 0 by row, (n, D).
            bank: features of the chosen training images, (N, D).
        """
        row, features = list(first.items())[-1]
        nearest = self.chosen[nearest_neighbours(features[:SHOWN], bank, k=len(NEIGHBOURS))]  # (S, K)
        loader = data.numbered_dataloader("train", rearrange(nearest, "s k -> (k s)").tolist())
        images = rearrange(torch.cat([batch["image"] for batch in loader]), "(k s) c h w -> k s c h w", s=len(nearest))
        return {row: pipeline.draw(0, range(len(nearest)))[row]} | dict(zip(NEIGHBOURS, images, strict=True))


class Sets:
    """Measures sets of images, which the processes share out by number and then all know the features of.

    Args:
        trainer: knows the processes and the data.
        module: where the networks are.
        net: gives the features.
        batch_size: images drawn at once.
    """

    def __init__(self, trainer: pl.Trainer, module: ImageModule, net: FeatureNet, batch_size: int) -> None:
        self.trainer, self.module, self.net, self.batch_size = trainer, module, net, batch_size
        self.rank, self.world = trainer.global_rank, trainer.world_size

    def draws(self, pipeline: Pipeline, seed: int, n: int) -> dict[str, ImageSet]:
        """The rows of images 0 to n - 1 of a seed; without the std, which is no picture."""
        rows = tuple(row for row in pipeline.rows if row != "std")
        return self.drawn(f"draws of seed {seed}", rows, pipeline, seed, n)

    def of_the_vae(self, pipeline: Pipeline, prior: PriorName, n: int) -> Tensor:
        """Features of the first row, the mean or a PixelVAE's sample, of draws 0 to n - 1 of seed 0, (n, D)."""
        decoder = Pipeline(pipeline.vae, pipeline.prior)  # nothing is denoised
        row = decoder.rows[0]
        return self.drawn(f"{prior} prior", (row,), decoder, 0, n, prior)[row].features

    def drawn(
        self, name: str, rows: tuple[str, ...], pipeline: Pipeline, seed: int, n: int, prior: PriorName | None = None
    ) -> dict[str, ImageSet]:
        """Some rows of images 0 to n - 1."""
        share = range(self.rank, n, self.world)
        numbers = (share[first : first + self.batch_size] for first in range(0, len(share), self.batch_size))
        images = (pipeline.draw(seed, few, prior) for few in numbers)
        return self.measured(name, ({row: drawn[row] for row in rows} for drawn in images), n)

    def reconstructions(self, pipeline: Pipeline, count: int) -> dict[str, ImageSet]:
        """The first row, the decoder's mean, and after stage 2 the denoised draw, of one z ~ q(z|x) of every held-out
        image; of a PixelVAE a sample, in the mean's place.
        """

        def rows() -> Iterator[dict[str, Tensor]]:
            for batch in self.trainer.datamodule.test_dataloader():
                batch = self.module.transfer_batch_to_device(batch, self.module.device, 0)
                drawn = pipeline.reconstruct(0, batch["index"].tolist(), self.module.photographs(batch))
                names = {pipeline.rows[0]: "reconstruction", "denoised": "reconstruction_denoised"}
                yield {new: drawn[name] for name, new in names.items() if name in drawn}

        return self.measured("reconstructions", rows(), count)

    def measured(self, name: str, batches: Iterable[dict[str, Tensor]], count: int) -> dict[str, ImageSet]:
        """All sets, from this process's batches of them: images rank, rank + world, ..., each (B, 3, H, W)."""
        features: dict[str, list[Tensor]] = {}
        spectra: dict[str, PowerSpectrum] = {}
        on_cpu = self.module.device.type == "cpu"
        share = len(range(self.rank, count, self.world))
        with tqdm(total=share, desc=f"evaluation: {name}", disable=self.rank > 0, **bar_options("images")) as bar:
            for rows in batches:
                for row, images in rows.items():
                    few = CPU_BATCH if on_cpu else len(images)
                    features.setdefault(row, []).append(features_of(self.net, images, few))
                    spectra.setdefault(row, PowerSpectrum.empty(images.shape[-1])).update(images)
                bar.update(len(images))
                if self.trainer.received_sigterm:  # Lightning notes it, and looks at it in its own loops alone
                    raise SIGTERMException
        wholes = {row: self.all_of(torch.cat(parts), count) for row, parts in features.items()}
        return {row: ImageSet.of(whole, self.sum_of(spectra[row])) for row, whole in wholes.items()}

    def all_of(self, features: Tensor, count: int) -> Tensor:
        """The features of all processes in the images' order, (N, D)."""
        if self.world == 1:
            return features
        most = -(-count // self.world)  # a process may have one fewer, and all must gather the same shape
        padded = torch.cat([features, features.new_zeros(most - len(features), features.shape[1])])
        gathered = self.module.all_gather(padded).cpu()  # (W, N / W, D)
        return rearrange(gathered, "w n d -> (n w) d")[:count]

    def sum_of(self, spectrum: PowerSpectrum) -> PowerSpectrum:
        """The spectrum of the images of all processes."""
        if self.world == 1:
            return spectrum
        count, total = (self.module.all_gather(t).sum(0).cpu() for t in (spectrum.count, spectrum.total))
        return PowerSpectrum(count, total, spectrum.size)
