"""A trained model from Python: load it, draw, encode, decode, denoise, reconstruct.

>>> import degrain
>>> model = degrain.load("pretrained/gan_portraits32.safetensors", device="cpu")
>>> model  # doctest: +NORMALIZE_WHITESPACE
Model(stage gan, 32x32, 64 latents; rows mean, std, sample, denoised;
      priors standard, fitted, learned; on cpu)
>>> images = model.sample(2, seed=0)
>>> images
Images(mean (2, 3, 32, 32), std (2, 3, 32, 32), sample (2, 3, 32, 32), denoised (2, 3, 32, 32))
>>> panel = images.show()  # a PIL image: panel.save("panel.png")

Image i of a seed depends on (seed, i) alone, as in sample.py:

>>> bool((model.sample(1, seed=0, first=1).mean - images.mean[1:]).abs().max() < 1e-5)
True

From a photograph to its code and back:

>>> q = model.encode(images.denoised.clamp(0, 1))  # q(z|x): mean and std of each latent
>>> p = model.decode(q.mean)  # p(x|z): mean and std of each pixel
>>> p.std.shape, model.denoise(p, seed=1).shape
(torch.Size([2, 3, 32, 32]), torch.Size([2, 3, 32, 32]))
>>> list(model.reconstruct(images.denoised.clamp(0, 1)).rows)
['photograph', 'mean', 'std', 'sample', 'denoised']
"""

from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from degrain.data.decode import Crop
from degrain.images import Images, in_batches, numbered
from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian
from degrain.models.core.images import check_finite, check_tensor
from degrain.models.core.randomness import natural
from degrain.models.inference.checkpoint import Card
from degrain.models.inference.pipeline import DRAW_STREAMS, Pipeline, PlainPipeline, load_pipeline
from degrain.models.inference.variations import variations
from degrain.models.vae.latent_prior import PriorName
from degrain.models.vae.network import Posterior
from degrain.photographs import Photographs, to_batch


def load(source: str | Path, device: str | torch.device = "auto", precision: Literal["32", "bf16"] = "32") -> "Model":
    """Load a model.

    Args:
        source: a checkpoint or an export of either stage or of a plain GAN; a folder with a model.safetensors, as
            `sample.py --export DIR/` writes it; or hf://USER/NAME, such a folder on the Hugging Face Hub.
        device: `cpu`, `cuda`, or `auto`, a GPU if there is one.
        precision: of the networks' products, as in sample.py.

    Raises:
        InputError: the file cannot be read or downloaded, or the device cannot be used.
    """
    if precision not in ("32", "bf16"):
        raise InputError(f"precision {precision}: must be '32' or 'bf16'")
    card, networks = load_pipeline(source)
    networks.bf16 = precision == "bf16"
    return Model(card, networks.moved(device))


class Model:
    """Trained networks, in evaluation mode. All images are in [0, 1] units.

    Weights have no gradients; `networks.requires_grad_()` gives them some. `encode`, `decode` and `denoise` pass
    gradients to an input that requires them, as torch does; `sample`, `reconstruct` and `variations` never do.

    Photographs may be tensors (B, 3, H, W) or (3, H, W), arrays (B, H, W, 3) or (H, W, 3), both uint8 or floats in
    [0, 1]; PIL images; paths of files; and lists of these. They have the model's size, or `crop` says what to take:
    `square`, the largest centre square, `none`, all of it, squeezed, or `c148` to `c108`, so many pixels from the
    centre. What is wrong with them is an InputError.

    Args:
        card: what the checkpoint says of itself.
        networks: its networks.
    """

    def __init__(self, card: Card, networks: Pipeline | PlainPipeline) -> None:
        self.card, self.networks = card, networks.eval().requires_grad_(False)

    @property
    def size(self) -> int:
        """Side S of the images, in pixels."""
        return self.card.size

    @property
    def latents(self) -> int:
        """Number D of latents."""
        return (self.networks.vae or self.networks.generator).config.latent

    @property
    def rows(self) -> tuple[str, ...]:
        """Rows of the images that `sample` returns."""
        return self.networks.rows

    @property
    def priors(self) -> tuple[PriorName, ...]:
        """Priors that `sample` can draw z from, the best one last."""
        return self.networks.priors

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._weight.device

    def to(self, device: str | torch.device) -> "Model":
        """Move the weights to a device, and return this model. InputError if it cannot be used."""
        self.networks.moved(device)
        return self

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        first: int = 0,
        prior: PriorName | None = None,
        temperature: float = 1,
        noise: float = 1,
        best_of: int = 1,
        batch_size: int = 32,
    ) -> Images:
        """Draw images `first` to `first + n - 1` of a seed: those of sample.py, bit for bit with its batch size.

        Args:
            n: number of images.
            seed: 0 or more; image i depends on (seed, i) alone.
            first: number of the first image.
            prior: of z, one of `priors`; by default the best.
            temperature: scale of z around the prior's mean.
            noise: scale of the noise of the pixels; a plain GAN has none.
            best_of: K; choose the z of each image among K by how clear its mean stands beside its std.
            batch_size: images computed at once.

        Raises:
            InputError: an argument out of range, or no such prior.
        """

        def rows(numbers: range) -> dict[str, Tensor]:
            return self.networks.draw(seed, numbers, prior, temperature=temperature, noise=noise, best_of=best_of)

        return in_batches(rows, n, first, batch_size)

    def codes(
        self,
        n: int,
        seed: int = 0,
        *,
        first: int = 0,
        prior: PriorName | None = None,
        temperature: float = 1,
        best_of: int = 1,
    ) -> Tensor:
        """Return the codes z (n, D) of the images that `sample` draws for the same arguments."""
        numbers = numbered(first, n)
        return self.networks.codes(seed, numbers, prior, temperature, best_of=best_of).z.clone()  # see in_batches

    def encode(self, photographs: Photographs, *, crop: Crop | None = None) -> Posterior:
        """Return q(z|x): mean and std (B, D), and `sample(noise)`; with a flow its `base` has them, before the flow."""
        vae = self._pipeline.vae
        with self.networks.precision():
            return vae.encode(self._batch(photographs, crop))

    def decode(self, z: Tensor) -> Gaussian:
        """Return p(x|z) for codes (B, D): mean and std (B, 3, S, S), and `sample(noise)`.

        Raises:
            InputError: no such codes, or codes that are not finite; a plain GAN, or a PixelVAE, which has no p(x|z) of
                independent pixels.
        """
        vae = self._pipeline.vae
        if vae.pixel_by_pixel:
            raise InputError("decode: the pixels of a PixelVAE depend on each other; take sample or reconstruct")
        check_tensor("codes z", z, ("B", self.latents), self._weight)
        check_finite("codes z", z)
        with self.networks.precision():
            return vae.decode(z)

    def denoise(self, p: Gaussian, draw: Tensor | None = None, *, seed: int = 0, first: int = 0) -> Tensor:
        """Denoise draws of p(x|z): images (B, 3, S, S).

        Args:
            p: what `decode` returns.
            draw: to denoise, (B, 3, S, S), such as p.sample(noise); by default draws `first` on of a seed, with the
                noise of `sample`.
            seed: of the draws.
            first: number of the first draw.

        Raises:
            InputError: the model has no denoiser, or the draw does not have the shape of p or is not finite.
        """
        pipeline = self._pipeline
        if pipeline.denoiser is None:
            raise InputError("denoise: a model of stage 1 has no denoiser; load one of stage 2")
        check_tensor("mean of p", p.mean, ("B", 3, self.size, self.size), self._weight)
        if draw is None:
            numbers = pipeline.image_numbers(numbered(first, len(p.mean)))
            noise = pipeline.pixel_noise(seed, numbers, DRAW_STREAMS[1])
        else:
            check_tensor("draw", draw, tuple(p.mean.shape), self._weight)
            check_finite("draw", draw)
            noise = (draw - p.mean) / p.std
        with pipeline.precision():
            return pipeline.denoiser(noise, p)

    def reconstruct(
        self,
        photographs: Photographs,
        seed: int = 0,
        *,
        first: int = 0,
        crop: Crop | None = None,
        temperature: float = 1,
        noise: float = 1,
        batch_size: int = 32,
    ) -> Images:
        """Draw z from q(z|x) of each photograph, and images from p(x|z): the rows of `sample` below the photographs.

        Photograph i depends on (seed, first + i) alone. The temperature scales the noise of z: 0 gives the mean of a
        Gaussian q(z|x). InputError as in `encode` and `sample`.
        """
        pipeline, x, first = self._pipeline, self._batch(photographs, crop).detach(), natural(first, "first")

        def rows(numbers: range) -> dict[str, Tensor]:
            part = x[numbers.start - first : numbers.stop - first]
            return {"photograph": part} | pipeline.reconstruct(seed, numbers, part, temperature, noise)

        return in_batches(rows, len(x), first, batch_size)

    def variations(
        self,
        n: int | None = None,
        seed: int = 0,
        *,
        photographs: Photographs | None = None,
        count: int = 4,
        first: int = 0,
        crop: Crop | None = None,
        batch_size: int = 8,
    ) -> Images:
        """Return rows `mean`, `denoised 1` to `denoised COUNT`, one for each noise, `std of denoised` and `std`.

        Args:
            n: number of draws, those of `sample`.
            seed: 0 or more.
            photographs: instead of n: to reconstruct, as `reconstruct` does, with their `crop`.
            count: number of noises, at least 2.
            first: number of the first image.
            batch_size: images computed at once, with all their noises.

        Raises:
            InputError: an argument out of range, or the model has no denoiser.
        """
        pipeline, first = self._pipeline, natural(first, "first")
        x = None if photographs is None else self._batch(photographs, crop).detach()
        if (n is None) == (x is None):
            raise InputError("variations: give either n, of draws, or photographs")

        def rows(numbers: range) -> dict[str, Tensor]:
            part = None if x is None else x[numbers.start - first : numbers.stop - first]
            return variations(pipeline, seed, numbers, count, part)

        return in_batches(rows, n or 0 if x is None else len(x), first, batch_size)

    def show(
        self, images: Images | Tensor, columns: int = 8, scale: int | None = None, labels: bool = True
    ) -> Image.Image:
        """Draw a panel of images, or of a tensor (B, 3, H, W) or (3, H, W), clipped to [0, 1]; see `Images.show`."""
        if isinstance(images, Tensor):
            images = images[None] if images.ndim == 3 else images
            if images.ndim != 4 or images.shape[1] != 3:
                raise InputError(f"images {tuple(images.shape)}: must be (B, 3, H, W) or (3, H, W)")
            images = Images({"images": images})
        if not isinstance(images, Images):
            raise InputError(f"images: {type(images).__name__}; give what a method returned, or a tensor (B, 3, H, W)")
        return images.show(columns, scale, labels)

    def __repr__(self) -> str:
        names = f"rows {', '.join(self.rows)}; priors {', '.join(self.priors)}"
        size = f"{self.size}x{self.size}, {self.latents} latents"
        return f"Model(stage {self.card.stage}, {size}; {names}; on {self.device})"

    @property
    def _pipeline(self) -> Pipeline:
        if not isinstance(self.networks, Pipeline):
            raise InputError("a plain GAN has no VAE and no denoiser: it can only sample")
        return self.networks

    @property
    def _weight(self) -> Tensor:
        return next(self.networks.parameters())

    def _batch(self, photographs: Photographs, crop: Crop | None) -> Tensor:
        return to_batch(photographs, self.size, crop, self._weight)
