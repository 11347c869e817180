"""From seeds to images: the VAE, its prior and, after stage 2, the denoiser; or the generator of a plain GAN."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from degrain.models.core.errors import InputError, first_line
from degrain.models.core.images import check_tensor
from degrain.models.core.layers import PyramidConfig
from degrain.models.core.precision import cpu_emulates_bf16
from degrain.models.core.randomness import image_numbers, noise_of_images, shown
from degrain.models.gan.denoiser import Denoiser
from degrain.models.gan.generator import Generator, GeneratorConfig
from degrain.models.inference.checkpoint import PREFIXES, Card, read_checkpoint, substate, version_error
from degrain.models.inference.codes import Codes, candidates, checked_count, checked_scale, clearest
from degrain.models.vae.latent_prior import LatentPrior, PriorName
from degrain.models.vae.network import VAE

ROWS = ("mean", "std", "sample", "denoised")
"""Rows of every picture of generated images, in this order; a plain GAN's have one, `generated`."""

DRAW_STREAMS, PHOTOGRAPH_STREAMS = (0, 1), (2, 3)
"""Noise streams of an image, (latents, pixels): for draws, and for photographs by their number."""

DEQUANTISING_STREAM = 5  # noise stream of held-out photographs between the levels of their 8 bits

Numbers = Iterable[int]  # of images, such as range(4)


class Networks(nn.Module):
    """The networks of a checkpoint, which draw images."""

    rows: tuple[str, ...]  # of the images that `draw` returns
    priors: tuple[PriorName, ...]  # that z can be drawn from, the best one last
    vae: VAE | None  # without one there are no reconstructions
    prior: LatentPrior | None
    bf16: bool = False  # whether the networks' products are computed in bf16

    def load(self, state: dict[str, Tensor], path: str | Path) -> None:
        """Load the weights of a checkpoint, or raise an InputError if they belong to another architecture."""
        try:
            for name, network in self.named_children():
                network.load_state_dict(substate(state, PREFIXES[name]))
        except RuntimeError:
            raise version_error(path, f"its {name} ") from None

    def moved(self, device: str | torch.device) -> Self:
        """Move to a device: `cpu`, `cuda`, where each process of torchrun takes its own GPU, or `auto`.

        Raises:
            InputError: the device cannot be used.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        try:
            return self.to(device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise InputError(f"device {device} cannot be used: {first_line(error)}") from None

    def precision(self) -> AbstractContextManager:
        """Return the context in which the networks compute."""
        device = next(self.parameters()).device.type
        return torch.autocast(device, torch.bfloat16) if self.bf16 else nullcontext()

    @property
    def emulates_bf16(self) -> bool:
        """True if the networks are to compute in bf16 on a processor that has no instructions for it."""
        return self.bf16 and next(self.parameters()).device.type == "cpu" and cpu_emulates_bf16()

    @torch.inference_mode()
    def draw(self, seed: int, numbers: Numbers, prior: PriorName | None = None, **how: float) -> dict[str, Tensor]:
        """Draw images `numbers` of a seed: the rows of `render`, for the codes that `codes` returns, whose arguments
        and errors it has.

        Both noises of image i are functions of (seed, i), for every batch size, and on every device but for last bits.
        """
        return self.render(*self.codes(seed, numbers, prior, **how))


class Pipeline(Networks):
    """VAE and prior of stage 1 and, for the row `denoised`, the denoiser of stage 2."""

    _bf16 = False

    def __init__(self, vae: VAE, prior: LatentPrior, denoiser: nn.Module | None = None) -> None:
        super().__init__()
        self.vae, self.prior, self.denoiser = vae, prior, denoiser

    @property
    def rows(self) -> tuple[str, ...]:
        if self.vae.pixel_by_pixel:
            return ("sample",)
        return ROWS if self.denoiser is not None else ROWS[:3]

    @property
    def priors(self) -> tuple[PriorName, ...]:
        return self.prior.names

    @property
    def bf16(self) -> bool:
        """True if the networks' products are computed in bf16, and z in float64: the last bits of a product depend on
        the batch, and bf16 would make levels of a picture of them."""
        return self._bf16

    @bf16.setter
    def bf16(self, on: bool) -> None:
        self._bf16 = on
        self.prior.to(torch.float64 if on else torch.float32)

    def check_prior(self, prior: PriorName | None, source: str = "the checkpoint") -> None:
        """Raise an InputError for a prior that is not there, with the names of those that are and the reason."""
        self.prior.checked(prior, source)

    def render(self, z: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the rows (B, 3, H, W) for codes z (B, D) and standard normal noise (B, 3, H, W).

        They are in [0, 1] units, not clipped, and the VAE's own come first; a PixelVAE has but one.

        Raises:
            InputError: z or noise of another shape or type.
        """
        weight = next(self.vae.parameters())
        check_tensor("codes z", z, ("B", self.vae.config.latent), weight)
        check_tensor("noise of the pixels", noise, (len(z), 3, self.vae.size, self.vae.size), weight)
        with self.precision():
            noise = noise.contiguous(memory_format=torch.channels_last) if self.bf16 else noise
            if self.vae.pixel_by_pixel:
                return {"sample": self.vae.decoder.draw(z, noise)[0]}
            p = self.vae.decode(z)
            images = {"mean": p.mean, "std": p.std.expand_as(p.mean), "sample": p.sample(noise)}
            if self.denoiser is not None:
                images["denoised"] = self.denoiser(noise, p)
        return images

    @torch.no_grad()
    def codes(
        self,
        seed: int,
        numbers: Numbers,
        prior: PriorName | None = None,
        temperature: float = 1,
        noise: float = 1,
        best_of: int = 1,
    ) -> Codes:
        """Draw the codes of images `numbers` of a seed from the prior.

        Args:
            seed: non-negative.
            numbers: of the images, such as range(4).
            prior: one of `self.priors`, by default the best.
            temperature: scale of z around the prior's mean: 0 for N(0, I), that of q(z) for all others.
            noise: scale of the noise of the pixels.
            best_of: K; image i has that code of draws K i to K i + K - 1 whose mean stands clearest, see `clearest`.

        Raises:
            InputError: another seed or prior, no numbers of images, a negative scale, or no K that the codes allow.
        """
        name, numbers, count = self.prior.checked(prior), self.image_numbers(numbers), checked_count(best_of)
        latent = self.latent_noise(seed, candidates(numbers, count), DRAW_STREAMS[0])
        z = self.prior(latent.to(self.prior.mean), name)
        centre = self.prior.mean * (name != "standard")
        z = torch.lerp(centre.expand_as(z), z, checked_scale("temperature", temperature)).float()
        pixels = checked_scale("noise", noise) * self.pixel_noise(seed, numbers, DRAW_STREAMS[1])
        return Codes(clearest(self.vae, z, count), pixels)

    @torch.no_grad()
    def codes_of(self, seed: int, numbers: Numbers, x: Tensor, temperature: float = 1, noise: float = 1) -> Codes:
        """Draw the codes of photographs `numbers`, x (B, 3, H, W) in [0, 1]: z ~ q(z|x).

        Both noises of photograph i are functions of (seed, i), independent of those of draw i. The temperature scales
        the noise of z, so that 0 gives the mean of a Gaussian q(z|x).

        Raises:
            InputError: another seed, other photographs than VAE.encode takes, not a number for each, a negative scale.
        """
        numbers = self.image_numbers(numbers)
        with self.precision():
            q = self.vae.encode(x)
        if len(numbers) != len(x):
            given = f"{shown(numbers.tolist())}: {len(numbers)}"
            raise InputError(f"numbers {given} for {len(x)} photographs; give one for each")
        latent, pixels = PHOTOGRAPH_STREAMS
        z = q.sample(checked_scale("temperature", temperature) * self.latent_noise(seed, numbers, latent))
        return Codes(z, checked_scale("noise", noise) * self.pixel_noise(seed, numbers, pixels))

    @torch.inference_mode()
    def reconstruct(
        self, seed: int, numbers: Numbers, x: Tensor, temperature: float = 1, noise: float = 1
    ) -> dict[str, Tensor]:
        """Reconstruct photographs `numbers`, x (B, 3, H, W) in [0, 1]: the rows of `render`, for z ~ q(z|x).

        Arguments and errors are those of `codes_of`.
        """
        return self.render(*self.codes_of(seed, numbers, x, temperature, noise))

    def image_numbers(self, numbers: Numbers) -> Tensor:
        """Return numbers of images (B,) on the device of the networks."""
        return image_numbers(numbers, self.prior.mean.device)

    def latent_noise(self, seed: int, numbers: Tensor, stream: int) -> Tensor:
        """Return standard normal noise of the latents, (B, D)."""
        return noise_of_images(seed, numbers, stream, (self.vae.config.latent,))

    def pixel_noise(self, seed: int, numbers: Tensor, stream: int) -> Tensor:
        """Return standard normal noise of the pixels, (B, 3, H, W)."""
        return noise_of_images(seed, numbers, stream, (3, self.vae.size, self.vae.size))


class PlainPipeline(Networks):
    """The generator of a plain GAN: one row and one prior."""

    rows = ("generated",)
    priors = ("standard",)
    vae = prior = None

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def check_prior(self, prior: PriorName | None, source: str = "the checkpoint") -> None:
        """Raise an InputError for any prior but `standard`."""
        if prior not in (None, *self.priors):
            raise InputError(f"prior {prior}: {source} has {', '.join(self.priors)}; a plain GAN has no other")

    @torch.no_grad()
    def codes(
        self,
        seed: int,
        numbers: Numbers,
        prior: PriorName | None = None,
        temperature: float = 1,
        noise: float = 1,
        best_of: int = 1,
    ) -> Codes:
        """Draw the codes of images `numbers`, as `Pipeline.codes`; the noise of image i is a function of (seed, i)."""
        self.check_prior(prior)
        if best_of != 1:
            raise InputError(f"best_of {shown(best_of)}: a plain GAN has no std to choose by; leave it out")
        if noise != 1:
            raise InputError(f"noise {shown(noise)}: a plain GAN has no noise of the pixels; leave it out")
        numbers = image_numbers(numbers, next(self.generator.parameters()).device)
        z = noise_of_images(seed, numbers, DRAW_STREAMS[0], (self.generator.config.latent,))
        z = checked_scale("temperature", temperature) * z
        return Codes(z, z[:, :0])

    def render(self, z: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the row `generated` (B, 3, H, W) for codes z (B, D), in [0, 1] units, not clipped."""
        with self.precision():
            return {"generated": self.generator(z).float()}


def load_pipeline(path: str | Path) -> tuple[Card, Pipeline | PlainPipeline]:
    """Load the networks that a checkpoint draws with, in evaluation mode on the CPU.

    A denoiser or a generator is loaded as its moving average.

    Raises:
        InputError: see read_checkpoint; or it is a toy's.
    """
    card, state = read_checkpoint(path)
    if card.stage == "toy":
        raise InputError(f"checkpoint {path}: is a toy's, which draws no images; its figures lie beside it")
    try:
        pipeline = build_networks(card)
    except (TypeError, KeyError):
        raise version_error(path) from None
    pipeline.load(state, path)
    return card, pipeline.eval()


def load_vae(path: str | Path) -> tuple[Card, VAE, LatentPrior]:
    """Load stage 1 from a checkpoint of either stage.

    Raises:
        InputError: see load_pipeline; or it is a plain GAN's.
    """
    card, pipeline = load_pipeline(path)
    if pipeline.vae is None:
        raise InputError(f"checkpoint {path}: is a plain GAN's, which has no VAE; give one of stage 1 or 2")
    return card, pipeline.vae, pipeline.prior


def build_networks(card: Card) -> Pipeline | PlainPipeline:
    """Build the networks that a card describes, with new weights."""
    if card.generator is not None:
        return PlainPipeline(Generator(card.size, GeneratorConfig(**card.generator)))
    config = card.vae_config()
    vae, prior, denoiser = VAE(card.size, config), LatentPrior(config.latent, config.prior), None
    if card.denoiser is not None:
        denoiser = Denoiser(card.size, PyramidConfig(**card.denoiser), card.noise)
    prior.note = card.prior_note or ""
    return Pipeline(vae, prior, denoiser)
