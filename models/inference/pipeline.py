"""From seeds to pictures: the VAE, its prior and, after stage 2, the denoiser, as one network.
Beside it the control that has none of them, the generator of a plain GAN.

A checkpoint of either stage says what it is under the key `degrain`, so that it loads with nothing but itself. It is
what training wrote, or an export of that: the weights that images are drawn with, in the file of models/export.py.
"""

import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor, nn

from models.core.errors import InputError
from models.core.layers import PyramidConfig
from models.core.randomness import noise_of_images
from models.gan.denoiser import Denoiser
from models.gan.generator import Generator, GeneratorConfig
from models.inference import export
from models.vae.flow import FlowConfig
from models.vae.latent_prior import LatentPrior, PriorName
from models.vae.network import VAE, VAEConfig
from models.vae.pixel_decoder import PixelConfig

ROWS = ("mean", "std", "sample", "denoised")
"""The rows of every picture of generated images, in this order; a plain GAN's have one, `generated`."""

DRAW_STREAMS, PHOTOGRAPH_STREAMS = (0, 1), (2, 3)
"""Streams of the noise of an image: of its latents and of its pixels; of draws, and of photographs by their number."""

VARIATION_STREAM = 4
"""Stream of the noises that the same draw is denoised with."""

PARTS = {"vae": "vae.", "prior": "prior.", "denoiser": "ema.module.", "generator": "ema.module."}
"""Where a checkpoint has the networks of a pipeline; of what was trained against a discriminator its moving average."""

UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    KeyError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    SafetensorError,
)
"""What readers of files raise at bytes that are not theirs."""


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself.

    Args:
        stage: `vae`, `gan`, `plain_gan` or `toy`.
        size: image side in pixels.
        images_seen: training images seen in this stage.
        vae: fields of the VAEConfig; of a toy its settings, of a plain GAN nothing.
        denoiser: fields of the denoiser's PyramidConfig, after stage 2.
        data: what the data module says of its data.
        tracked_run: id of the run in W&B, which training goes on with.
        exported: of an export what it holds, in words.
        warm_from: images seen when the learning rate last rose from 0: not 0 after an export or a finished run.
        budget: training images that were to be seen in all.
        noise: whether the denoiser sees the draw's noise.
        loss: of the denoiser or the generator: `relativistic`, `classic` or `l2`.
        generator: fields of a plain GAN's GeneratorConfig.
        skipped_steps: training steps that were not finite and changed nothing.
        skipped_in_a_row: of them, those since the last step that was taken.
    """

    stage: str
    size: int
    images_seen: int
    vae: dict[str, Any]
    denoiser: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    tracked_run: str | None = None
    exported: str | None = None
    warm_from: int = 0
    budget: int = 0
    noise: bool = True
    loss: str = "relativistic"
    generator: dict[str, Any] | None = None
    skipped_steps: int = 0
    skipped_in_a_row: int = 0

    def vae_config(self) -> VAEConfig:
        """The VAE's architecture."""
        pyramids = {half: PyramidConfig(**self.vae[half]) for half in ("encoder", "decoder")}
        kinds = {"posterior": FlowConfig, "prior": FlowConfig, "pixels": PixelConfig}
        variants = {name: kind(**self.vae[name]) for name, kind in kinds.items() if name in self.vae}
        return VAEConfig(**self.vae | pyramids | variants)

    def completed(self) -> "Card":
        """With the defaults of what there was no choice of when the checkpoint was written."""
        return replace(self, vae=asdict(self.vae_config())) if self.stage in ("vae", "gan") else self


class Drawer(nn.Module):
    """Networks that a checkpoint has by name."""

    def load(self, state: dict[str, Tensor], path: str | Path) -> None:
        """Take over the weights of a checkpoint of either stage.

        Raises:
            InputError: they are another architecture's.
        """
        try:
            for name, network in self.named_children():
                network.load_state_dict(part(state, PARTS[name]))
        except RuntimeError:
            raise of_another_version(path, f"its {name} ") from None


class Pipeline(Drawer):
    """Decoder, prior and denoiser, and how images are drawn from them.

    Args:
        vae: stage 1.
        prior: where z is drawn from.
        denoiser: stage 2, or None: then there is no row `denoised`.
    """

    def __init__(self, vae: VAE, prior: LatentPrior, denoiser: nn.Module | None = None) -> None:
        super().__init__()
        self.vae, self.prior, self.denoiser = vae, prior, denoiser

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows that `render` gives, the first one that of the VAE alone; of PixelVAE there is but one."""
        if self.vae.pixel_by_pixel:
            return ("sample",)
        return ROWS if self.denoiser is not None else ROWS[:3]

    @property
    def priors(self) -> tuple[PriorName, ...]:
        """The priors that z can be drawn from, the best one last."""
        return self.prior.names

    def render(self, z: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The rows for one draw of each p(x|z), z (B, D); noise and every row are (B, 3, H, W), in [0, 1] units, not
        clipped.
        """
        if self.vae.pixel_by_pixel:
            return {"sample": self.vae.decoder.draw(z, noise)[0]}
        p = self.vae.decode(z)
        images = {"mean": p.mean, "std": p.std.expand_as(p.mean), "sample": p.sample(noise)}
        if self.denoiser is not None:
            images["denoised"] = self.denoiser(noise, p)
        return images

    @torch.inference_mode()
    def draw(self, seed: int, numbers: range, prior: PriorName | None = None) -> dict[str, Tensor]:
        """Images number `numbers` of a seed: the rows of `render`, for z from the prior.

        Both noises of image i are functions of (seed, i), drawn on the CPU, whatever the batch or device.

        Args:
            seed: non-negative.
            numbers: which images.
            prior: one of `self.priors`, by default the best.
        """
        latent_noise, pixel_noise = self.noises(seed, numbers, DRAW_STREAMS)
        return self.render(self.prior(latent_noise, prior), pixel_noise)

    @torch.inference_mode()
    def reconstruct(self, seed: int, numbers: Sequence[int], x: Tensor) -> dict[str, Tensor]:
        """Photographs number `numbers`, x (B, 3, H, W) in [0, 1]: the rows of `render`, for z ~ q(z|x).

        Both noises of photograph i are functions of (seed, i), and others than those of draw i.
        """
        latent_noise, pixel_noise = self.noises(seed, numbers, PHOTOGRAPH_STREAMS)
        return self.render(self.vae.encode(x).sample(latent_noise), pixel_noise)

    @torch.inference_mode()
    def variations(self, seed: int, numbers: range, count: int) -> dict[str, Tensor]:
        """Draws number `numbers` of a seed with `count` noises of the pixels in turn: rows of a panel.

        Args:
            seed: non-negative.
            numbers: which draws; each one's z and mean are those of `draw`.
            count: at least 2.
        """
        latent_noise, _ = self.noises(seed, numbers, DRAW_STREAMS)
        p = self.vae.decode(self.prior(latent_noise))
        noise = noise_of_images(seed, numbers, VARIATION_STREAM, (count, *p.mean.shape[1:])).to(p.mean.device)
        draws = self.denoiser.draws(rearrange(noise, "b k c h w -> k b c h w"), p)
        denoised = {f"denoised {k}": images for k, images in enumerate(draws, 1)}
        return {"mean": p.mean, **denoised, "std of denoised": draws.std(0), "std": p.std.expand_as(p.mean)}

    def noises(self, seed: int, numbers: Sequence[int], streams: tuple[int, int]) -> list[Tensor]:
        """Standard normal noise of the latents (B, D) and of the pixels (B, 3, H, W)."""
        shapes = (self.vae.config.latent,), (3, self.vae.size, self.vae.size)
        pairs = zip(streams, shapes, strict=True)
        return [noise_of_images(seed, numbers, stream, shape).to(self.prior.mean.device) for stream, shape in pairs]


class PlainPipeline(Drawer):
    """The generator of a plain GAN, and how images are drawn from it: the same interface, with one row and one prior.

    Args:
        generator: from z ~ N(0, I).
    """

    rows: tuple[str, ...] = ("generated",)
    priors: tuple[PriorName, ...] = ("standard",)
    vae = None
    """There is none, and so there are no reconstructions."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    @torch.inference_mode()
    def draw(self, seed: int, numbers: range, prior: PriorName | None = None) -> dict[str, Tensor]:
        """Images number `numbers` of a seed; the noise of image i is a function of (seed, i).

        Raises:
            InputError: another prior than `standard`.
        """
        if prior not in (None, *self.priors):
            raise InputError(f"prior {prior}: a plain GAN draws z from N(0, I) alone; take prior standard")
        z = noise_of_images(seed, numbers, DRAW_STREAMS[0], (self.generator.config.latent,))
        return {"generated": self.generator(z.to(next(self.generator.parameters()).device))}


def read_checkpoint(path: str | Path) -> tuple[Card, dict[str, Tensor]]:
    """The card and the weights of a checkpoint or an export, on the CPU; no code in the file is run.

    Raises:
        InputError: no such file, not a checkpoint, truncated, damaged, or not one of degrain's.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path}: no such file; train it first or correct the path")
    try:
        if path.suffix == export.SUFFIX:
            checkpoint = export.read(path)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            f"checkpoint {path}: cannot be read ({why}): truncated or no checkpoint; take a copy or train it anew"
        ) from None
    if not isinstance(checkpoint, dict) or "degrain" not in checkpoint:
        raise InputError(
            f"checkpoint {path}: was not written by degrain (it has no key `degrain`); give the last.ckpt of a run"
        )
    try:
        card, state = Card(**checkpoint["degrain"]).completed(), dict(checkpoint["state_dict"])
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("weights are tensors")
        return card, state
    except (TypeError, KeyError, ValueError):
        raise of_another_version(path) from None


def of_another_version(path: str | Path, what: str = "") -> InputError:
    """The refusal of a checkpoint whose card or weights are not as this version writes them."""
    return InputError(
        f"checkpoint {path}: {what}was written by another version of degrain; take that one or train it anew"
    )


def exported(path: str | Path) -> bytes:
    """What an export of a checkpoint holds, see models/export.py; the same bytes for an export of an export.

    Raises:
        InputError: see load_pipeline.
    """
    load_pipeline(path)  # or it is refused here
    card, state = read_checkpoint(path)
    of_stage = {"vae": "VAE and prior", "gan": "VAE, prior and the denoiser's moving average"}
    networks = of_stage.get(card.stage, "the generator's moving average")
    held = f"{networks}, nothing else of training; {export.PRECISION}"
    card = replace(card, tracked_run=None, warm_from=0, skipped_steps=0, skipped_in_a_row=0, exported=held)
    return export.to_bytes(asdict(card), drawn_with(state))


def drawn_with(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a state dict that images are drawn with."""
    return {name: value for name, value in state.items() if name.startswith(tuple(PARTS.values()))}


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries of a state dict below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def load_vae(path: str | Path) -> tuple[Card, VAE, LatentPrior]:
    """Stage 1 from a checkpoint of either stage.

    Raises:
        InputError: see read_checkpoint; or it is a plain GAN's.
    """
    card, pipeline = load_pipeline(path)
    if pipeline.vae is None:
        raise InputError(f"checkpoint {path}: is a plain GAN's, which has no VAE; give one of stage 1 or 2")
    return card, pipeline.vae, pipeline.prior


def load_pipeline(path: str | Path) -> tuple[Card, Pipeline | PlainPipeline]:
    """Everything that a checkpoint can draw, in evaluation mode on the CPU; of what was trained against a discriminator
    or as a control of it, the moving average.

    Raises:
        InputError: see read_checkpoint.
    """
    card, state = read_checkpoint(path)
    if card.stage == "toy":
        raise InputError(f"checkpoint {path}: is a toy's, which draws no images; its figures lie beside it")
    try:
        pipeline = untrained(card)
    except (TypeError, KeyError):
        raise of_another_version(path) from None
    pipeline.load(state, path)
    return card, pipeline.eval()


def untrained(card: Card) -> Pipeline | PlainPipeline:
    """The networks that a card describes, without their weights."""
    if card.generator is not None:
        return PlainPipeline(Generator(card.size, GeneratorConfig(**card.generator)))
    config = card.vae_config()
    vae, prior, denoiser = VAE(card.size, config), LatentPrior(config.latent, config.prior), None
    if card.denoiser is not None:
        denoiser = Denoiser(card.size, PyramidConfig(**card.denoiser), card.noise)
    return Pipeline(vae, prior, denoiser)
