"""Collect features and spectra of drawn and real images, streaming: no image is kept."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from degrain.models.core.randomness import generator
from degrain.models.evaluation.feature_net import features_of
from degrain.models.evaluation.image_sets import ImageSet
from degrain.models.evaluation.report import Subject
from degrain.models.evaluation.spectrum import PowerSpectrum
from degrain.models.evaluation.statistics_cache import StatisticsKey, cached_statistics
from degrain.models.inference.pipeline import Pipeline
from degrain.models.vae.latent_prior import PriorName

CPU_BATCH = 16  # images per forward pass of the feature network on a CPU: more overflow its cache
SPECTRUM = "spectrum"


class FeatureCollector:
    """Draws or reads sets of images and collects their features and spectra; every process measures a share of each."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.nets = {net.name: net.to(subject.device) for net in subject.nets}

    def real(self, split: str, numbers: Sequence[int]) -> ImageSet:
        """Return the images of a split by number; what was measured before is read from the cache."""
        data, found = self.subject.data, {}
        about = data.describe()
        dataset = f"{len(numbers)} of {data.identity(split)}"  # which of them: chosen with seed 0, see DrawComparison
        for name in (*self.nets, SPECTRUM):
            eye = self.nets[name].identity if name in self.nets else name
            key = StatisticsKey(dataset, split, about["crop"] or "none", about["size"], eye, "set")

            def measure(name: str = name) -> dict[str, Tensor]:
                loader = data.numbered_dataloader(split, numbers[self.subject.rank :: self.subject.world])
                images = ({"real": batch["image"]} for batch in loader)
                return {"values": self.measure(f"{split} images, {name}", images, len(numbers), (name,))["real"][name]}

            found |= {name: cached_statistics(self.subject.cache, key, measure, self.subject.broadcast)["values"]}
        return self.image_set(found)

    def draws(
        self, name: str, pipeline: Pipeline, rows: Sequence[str], seed: int, prior: PriorName | None = None
    ) -> dict[str, ImageSet]:
        """Return rows of images 0 to 2n - 1 of a seed, for z from a prior, by default the best."""
        count = 2 * self.subject.n
        batches = self.subject.numbers(count, self.subject.batch_size)
        images = (pipeline.draw(seed, numbers, prior) for numbers in batches)
        return self.sets(name, ({row: drawn[row] for row in rows} for drawn in images), count)

    def reconstructions(self, numbers: Sequence[int]) -> dict[str, ImageSet]:
        """Return the rows of draws, but for one z ~ q(z|x) of each of the held-out images x of these numbers."""
        subject = self.subject

        def images() -> Iterator[dict[str, Tensor]]:
            for batch in subject.data.numbered_dataloader("test", numbers[subject.rank :: subject.world]):
                drawn = subject.pipeline.reconstruct(0, batch["index"].tolist(), subject.photographs(batch))
                yield {f"reconstruction_{row}": drawn[row] for row in image_rows(subject)}

        return self.sets("reconstructions", images(), len(numbers))

    def sets(self, name: str, batches: Iterable[dict[str, Tensor]], count: int) -> dict[str, ImageSet]:
        """Return `count` images of every row, of which `batches` has this process's share, (B, 3, H, W) each."""
        found = self.measure(name, batches, count, (*self.nets, SPECTRUM))
        return {row: self.image_set(values) for row, values in found.items()}

    def image_set(self, values: dict[str, Tensor]) -> ImageSet:
        """Return the set of collected values, (N, ...) by name of the network and of the spectrum."""
        features = {name: values[name] for name in self.nets}
        return ImageSet(features, PowerSpectrum(values[SPECTRUM], self.subject.data.describe()["size"]))

    def measure(
        self, name: str, batches: Iterable[dict[str, Tensor]], count: int, eyes: Sequence[str]
    ) -> dict[str, dict[str, Tensor]]:
        """Return values of `count` images of every row, by each network or the spectrum: row, name -> (count, ...)."""
        few = CPU_BATCH if self.subject.device.type == "cpu" else count

        def seen(images: Tensor, eye: str) -> Tensor:
            return (
                PowerSpectrum.of(images.cpu()).powers if eye == SPECTRUM else features_of(self.nets[eye], images, few)
            )

        values = ({(row, eye): seen(x, eye) for row, x in rows.items() for eye in eyes} for rows in batches)
        found: dict[str, dict[str, Tensor]] = {}
        for (row, eye), collected in self.subject.collect(name, values, count).items():
            found.setdefault(row, {})[eye] = collected
        return found


def image_rows(subject: Subject) -> list[str]:
    """Return the rows that are images: all but the std."""
    return [row for row in subject.pipeline.rows if row != "std"]


def chosen_numbers(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers below `count`, chosen with seed 0, in order."""
    return torch.randperm(count, generator=generator(0))[:most].sort().values.tolist()
