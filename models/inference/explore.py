"""What the page of `sample.py --explore` shows: one image by its seeds, scales and latents, or a photograph's."""

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.randomness import natural, shown
from degrain.models.inference.codes import MOST_SCALE, Codes, positions, traverse
from degrain.models.inference.drawing import FARTHEST, latents_by_information
from degrain.models.inference.pictures import STD_LIMIT, as_pictures
from degrain.models.inference.pipeline import Pipeline, PlainPipeline

SLIDERS = 12  # latents that have a slider, the most informative ones

PNG = "data:image/png;base64,"

ReadPhotograph = Callable[[bytes], tuple[np.ndarray, str]]
"""Content of an image file -> (photograph (3, S, S) uint8, what was done to it); InputError if it cannot be read."""


@dataclass(frozen=True)
class Choice:
    """What to draw: image 0 of a seed, or the reconstruction of a photograph.

    Args:
        seed: of z.
        noise_seed: of the noise of the pixels.
        temperature: scale of z, as in sample.py.
        noise: scale of the noise of the pixels.
        prior: that z comes from, by default the best.
        photograph: a data URI of a PNG of the model's size, as `Explorer.photograph` returns it; None for a draw.
        latents: latents to move: number of the latent -> position in std of q(z) from its mean.
    """

    seed: int = 0
    noise_seed: int = 0
    temperature: float = 1.0
    noise: float = 1.0
    prior: str | None = None
    photograph: str | None = None
    latents: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(given: Any) -> "Choice":
        """Return what the page asks for. InputError for unknown names; values are checked where they are used."""
        names = [choice.name for choice in fields(Choice)]
        if not isinstance(given, dict) or not given.keys() <= set(names):
            raise InputError(f"draw: give a mapping with names among {', '.join(names)}")
        return Choice(**given)


class Explorer:
    """Draws what the page asks for.

    Args:
        networks: draw.
        title: of the page, such as the checkpoint's path.
        begin: what is drawn first.
        read: reads a photograph.
    """

    def __init__(self, networks: Pipeline | PlainPipeline, title: str, begin: Choice, read: ReadPhotograph) -> None:
        self.networks, self.title, self.begin, self.read = networks, title, begin, read
        self.order: list[int] = []
        self.nats: list[float] = []
        if isinstance(networks, Pipeline):
            order, nats = latents_by_information(networks)
            self.order, self.nats = order[:SLIDERS], nats[:SLIDERS].tolist()
        self.draw(begin)  # refuses what the networks do not take

    def model(self) -> dict[str, Any]:
        """Return what the page needs to know of the model."""
        latents = zip(self.order, self.nats, strict=True)
        return {
            "title": self.title,
            "rows": self.networks.rows,
            "priors": self.networks.priors[::-1],  # the best one first
            "has_vae": self.networks.vae is not None,
            "latents": [{"number": number, "nats": round(nats, 2)} for number, nats in latents],
            "farthest": FARTHEST,
            "std_limit": STD_LIMIT,
            "begin": {"seed": self.begin.seed, "noise_seed": self.begin.noise_seed}
            | {"temperature": self.begin.temperature, "noise": self.begin.noise, "prior": self.begin.prior},
        }

    @torch.inference_mode()
    def draw(self, choice: Choice) -> dict[str, Any]:
        """Return the rows as data URIs of PNG, and the positions of the latents that have sliders.

        Raises:
            InputError: a value that the networks do not take.
        """
        codes = self.moved(self.codes(choice), choice.latents)
        images = self.networks.render(*codes)
        rows = {name: data_uri(as_pictures(name, row)[0]) for name, row in images.items()}
        where = positions(codes.z, self.networks.prior)[0, self.order].tolist() if self.order else []
        return {"rows": rows, "positions": [round(position, 3) for position in where]}

    def codes(self, choice: Choice) -> Codes:
        """Return z by one seed and the noise of the pixels by another."""
        seeds = [natural(choice.seed, "seed"), natural(choice.noise_seed, "noise_seed")]
        scales = choice.temperature, choice.noise
        if choice.photograph is None:
            z, noise = (self.networks.codes(seed, [0], choice.prior, *scales) for seed in seeds)
        else:
            x = self.encodable(choice.photograph)
            z, noise = (self.networks.codes_of(seed, [0], x, *scales) for seed in seeds)
        return Codes(z.z, noise.noise)

    def moved(self, codes: Codes, latents: dict[str, float]) -> Codes:
        """Move latents; InputError unless each is a number of a latent, with a position up to MOST_SCALE std."""
        known = {str(number): number for number in range(codes.z.shape[1] if self.order else 0)}
        for name, position in latents.items() if isinstance(latents, dict) else [(latents, None)]:
            if str(name) not in known or not isinstance(position, int | float) or not abs(position) <= MOST_SCALE:
                known_numbers = f"numbers from 0 to {len(known) - 1}"
                raise InputError(f"latents {name}: {shown(position)}: give {known_numbers} with positions in std")
            codes = traverse(codes, torch.tensor([known[name]]), torch.tensor([position]), self.networks.prior)
        return codes

    def photograph(self, content: bytes) -> dict[str, str]:
        """Return the photograph in a file as a data URI, cropped and resized, and what was done to it.

        Raises:
            InputError: no image, or the model has no encoder.
        """
        self.check_encoder()
        photograph, words = self.read(content)
        return {"photograph": data_uri(photograph.transpose(1, 2, 0)), "words": words}

    def encodable(self, photograph: str) -> Tensor:
        """Return a photograph (1, 3, S, S) in [0, 1] from its data URI. InputError if it is none of this size."""
        self.check_encoder()
        size = self.networks.vae.size
        try:
            content = base64.b64decode(photograph.removeprefix(PNG), validate=True)
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                sized = image.size == (size, size)
                x = torch.from_numpy(np.array(image.convert("RGB"))) if sized else None  # (H, W, 3)
        except (AttributeError, TypeError, binascii.Error, OSError, ValueError, SyntaxError):
            sized = False
        if not sized:
            raise InputError(f"photograph: give a data URI of a PNG of {size}x{size} pixels")
        device = next(self.networks.parameters()).device
        return x.permute(2, 0, 1)[None].to(device).float() / 255

    def check_encoder(self) -> None:
        """Raise an InputError if photographs cannot be encoded."""
        if self.networks.vae is None:
            raise InputError("photograph: a plain GAN has no encoder; open a VAE's checkpoint to reconstruct")


def data_uri(picture: np.ndarray) -> str:
    """Return a picture (H, W, 3) uint8 as a data URI of a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "png")
    return PNG + base64.b64encode(file.getvalue()).decode()
