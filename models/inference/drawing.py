"""What one call of sample.py draws: draws or photographs, each once, varied, along paths, or along latents.

Image i depends on (seed, i) alone, whatever the batches and the processes that draw them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.inference.codes import Codes, information, interpolate, traverse
from degrain.models.inference.pipeline import Networks, Pipeline
from degrain.models.inference.variations import checked_variations, variations
from degrain.models.vae.latent_prior import PriorName

Rows = dict[str, Tensor]
"""Name -> images (B, 3, H, W), in [0, 1] units."""

RANKED, RANKED_BATCH = 256, 32  # draws by which latents are ranked; fixed, so that every call ranks them alike

FARTHEST = 3.0  # ends of a traversal, in std of q(z)


@dataclass(frozen=True)
class Sources:
    """Draws or photographs that images are made of: source s is image s % n of the seed s // n.

    Args:
        networks: draw.
        seeds: of the noise.
        n: images of each seed.
        prior: that draws come from, by default the best.
        temperature: scale of z around its mean.
        noise: scale of the noise of the pixels.
        best_of: draws of which each is chosen.
        photographs: (n, 3, H, W) uint8; None for draws.
    """

    networks: Networks
    seeds: Sequence[int]
    n: int
    prior: PriorName | None = None
    temperature: float = 1
    noise: float = 1
    best_of: int = 1
    photographs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.seeds) * self.n

    def by_seed(self, sources: Iterable[int]) -> list[tuple[int, list[int]]]:
        """Return (seed, numbers) for each run of sources that have one seed."""
        runs = groupby(sources, key=lambda source: source // self.n)
        return [(self.seeds[seed], [source % self.n for source in run]) for seed, run in runs]

    def images(self, numbers: list[int]) -> Tensor:
        """Return photographs (B, 3, H, W) in [0, 1] by their numbers."""
        device = next(self.networks.parameters()).device
        return torch.from_numpy(self.photographs[numbers]).to(device).float() / 255

    def codes(self, sources: Iterable[int]) -> Codes:
        """Return the codes of sources."""
        scales, parts = (self.temperature, self.noise), []
        for seed, numbers in self.by_seed(sources):
            if self.photographs is None:
                parts.append(self.networks.codes(seed, numbers, self.prior, *scales, self.best_of))
            else:
                parts.append(self.networks.codes_of(seed, numbers, self.images(numbers), *scales))
        return Codes.joined(parts)

    def with_photographs(self, sources: Iterable[int], rows: Rows) -> Rows:
        """Return rows with the photographs of their sources before them, if there are any."""
        if self.photographs is None:
            return rows
        return {"photograph": self.images([source % self.n for source in sources])} | rows


@dataclass(frozen=True)
class Plan:
    """Images 0 to count - 1, which batches of any size draw in any order.

    Args:
        draw: numbers of images -> their rows.
        count: how many there are.
        rows: name of each row -> pictures that it has of each image: several of varied ones.
        line: images of one line of a panel, if they form lines.
    """

    draw: Callable[[range], Rows]
    count: int
    rows: dict[str, int]
    line: int | None = None

    @property
    def last_row(self) -> str:
        """The row that is written by default."""
        return next(name for name in reversed(self.rows) if not name.startswith("std"))

    def batches(self, most: int, rank: int = 0, world: int = 1) -> list[range]:
        """Return a process's batches of at most so many pictures of a row, or of one image."""
        size = max(1, most // max(self.rows.values()))
        return [range(self.count)[first : first + size] for first in range(0, self.count, size)[rank::world]]


def row_names(sources: Sources) -> dict[str, int]:
    """Return the rows of `render`, one picture each, with the photograph before them."""
    photograph = () if sources.photographs is None else ("photograph",)
    return dict.fromkeys((*photograph, *sources.networks.rows), 1)


def plain(sources: Sources) -> Plan:
    """Draw or reconstruct each source once."""

    @torch.inference_mode()
    def draw(numbers: range) -> Rows:
        return sources.with_photographs(numbers, sources.networks.render(*sources.codes(numbers)))

    return Plan(draw, len(sources), row_names(sources))


def varied(sources: Sources, count: int) -> Plan:
    """Denoise each source with `count` noises of the pixels; see `variations`.

    Raises:
        InputError: there is no denoiser, or a count below 2.
    """
    count = checked_variations(sources.networks, count)

    def draw(numbers: range) -> Rows:
        parts = []
        for seed, own in sources.by_seed(numbers):
            x = None if sources.photographs is None else sources.images(own)
            how = sources.prior, sources.temperature, sources.noise, sources.best_of
            parts.append(variations(sources.networks, seed, own, count, x, *how))
        rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return sources.with_photographs(numbers, rows)

    photograph = {} if sources.photographs is None else {"photograph": 1}
    return Plan(draw, len(sources), photograph | {"mean": 1, "denoised": count, "std of denoised": 1, "std": 1})


def interpolated(sources: Sources, steps: int) -> Plan:
    """Go from each source to the next one in `steps` images, both ends included.

    Raises:
        InputError: there is but one source.
    """
    if len(sources) < 2:
        what = "draw" if sources.photographs is None else "photograph"
        raise InputError(f"interpolate: from one {what} to the next there must be two; give --n 2 or more")

    @torch.inference_mode()
    def draw(numbers: range) -> Rows:
        lines = [number // steps for number in numbers]
        t = torch.tensor([number % steps / (steps - 1) for number in numbers])
        needed = range(lines[0], lines[-1] + 2)
        ends, first = sources.codes(needed), torch.tensor(lines) - lines[0]
        prior = sources.networks.prior
        return sources.networks.render(*interpolate(ends[first], ends[first + 1], t.to(ends.z.device), prior))

    return Plan(draw, (len(sources) - 1) * steps, dict.fromkeys(sources.networks.rows, 1), steps)


def traversed(sources: Sources, latents: Sequence[int], steps: int) -> Plan:
    """Move each latent of each source from -3 to 3 std of q(z) around its mean, in `steps` images.

    Args:
        sources: images.
        latents: numbers of latents.
        steps: images of a line.
    """

    @torch.inference_mode()
    def draw(numbers: range) -> Rows:
        lines = [number // steps for number in numbers]
        first, last = lines[0] // len(latents), lines[-1] // len(latents)
        codes = sources.codes(range(first, last + 1))[torch.tensor(lines) // len(latents) - first]
        moved = torch.tensor([latents[line % len(latents)] for line in lines])
        positions = torch.tensor([FARTHEST * (2 * (number % steps) / (steps - 1) - 1) for number in numbers])
        return sources.networks.render(*traverse(codes, moved, positions, sources.networks.prior))

    return Plan(draw, len(sources) * len(latents) * steps, dict.fromkeys(sources.networks.rows, 1), steps)


def latents_by_information(pipeline: Networks) -> tuple[list[int], Tensor]:
    """Rank the latents by `information` on draws from the model itself, true samples of p(x|z), seed 0.

    Returns:
        Numbers of the latents, the one that tells most first, and the nats of each of them, (D,).

    Raises:
        InputError: a plain GAN, which has no encoder.
    """
    if not isinstance(pipeline, Pipeline):
        raise InputError("traverse: a plain GAN has no encoder, by which latents are ranked; take a VAE's checkpoint")
    batches = [range(first, first + RANKED_BATCH) for first in range(0, RANKED, RANKED_BATCH)]
    images = (pipeline.draw(0, numbers)["sample"].clamp(0, 1) for numbers in batches)
    nats, order = information(pipeline.vae, images).sort(descending=True)
    return order.tolist(), nats
