"""The control without a VAE: a plain GAN, from z to images, against the same discriminator, which sees images only."""

from dataclasses import asdict
from functools import partial
from math import log

import torch
from torch import Tensor, nn

from degrain.models.core.gaussian import Gaussian
from degrain.models.core.layers import PyramidConfig
from degrain.models.gan.discriminator import Discriminator
from degrain.models.gan.generator import Generator, GeneratorConfig
from degrain.models.gan.objective import AdversarialLoss, Scene
from degrain.models.inference.checkpoint import Card
from degrain.models.inference.pipeline import PHOTOGRAPH_STREAMS, PlainPipeline
from degrain.models.training.adversarial import AdversarialModule
from degrain.models.training.image_module import Batch
from degrain.models.training.schedule import Schedule
from degrain.models.training.update import MovingAverage
from degrain.models.vae.likelihood import dequantised


class PlainGANModule(AdversarialModule):
    """GAN from z ~ N(0, I), with the steps, penalties and average of the GAN that denoises, and no condition.

    There is one p for all images, N(1/2, (1/2)^2): the residuals that D sees are the images in [-1, 1].

    Args:
        size: image side in pixels; set by the data.
        generator: latents, widths, blocks and patch of the generator G; for a fair comparison as many latents as the
            VAE and as many parameters as its decoder and the denoiser together.
        discriminator: widths, blocks and patch of the discriminator D.
        penalty_weight: gamma, the weight of the gradient penalties, in units of images in [-1, 1]; R3GAN's falls from 2
            to 0.2 for faces of 64 pixels.
        penalty_every: steps between gradient penalties, whose weight is multiplied by it.
        translate: share of the side by which D sees photographs and draws moved at most; 0 for none.
        translate_from: images seen from which on `translate` acts.
        feature_weight: weight of a second discriminator as GANModule's, which sees grey beside each image; 0 for none.
        ema_share: half-life of the generator's moving average, as a share of the images seen.
        loss: `relativistic`, with both penalties, or `classic`, the non-saturating one of 2014, with R1 alone.
        schedule: budget (for a fair comparison that of both stages together), validate_every, learning_rate (of both
            networks), warmup, warmup_images, decay, seed.

    Raises:
        InputError: an argument out of range.
    """

    def __init__(
        self,
        size: int,
        generator: GeneratorConfig = GeneratorConfig(),  # noqa: B008 (frozen)
        discriminator: PyramidConfig = PyramidConfig(),  # noqa: B008 (frozen)
        penalty_weight: float = 1.0,
        penalty_every: int = 4,
        translate: float = 0.0,
        translate_from: int = 100_000,
        feature_weight: float = 0.0,
        ema_share: float = 0.1,
        loss: AdversarialLoss = "relativistic",
        learning_rate: float = 4e-4,
        **schedule,
    ) -> None:
        adversary = (loss, penalty_weight, penalty_every, translate, translate_from, feature_weight, ema_share)
        super().__init__(Schedule(learning_rate=learning_rate, **schedule), *adversary)
        self.generator = Generator(size, generator)
        self.discriminator = Discriminator(size, discriminator, conditional=False)
        self.ema = MovingAverage(self.generator)

    @property
    def player(self) -> nn.Module:
        return self.generator

    @property
    def networks(self) -> list[nn.Module]:
        return [self.generator, self.discriminator]

    def scenes(self, batch: Batch, draws: int) -> list[Scene]:
        scenes = []
        for piece, noise in self.pieces(batch):
            x = self.photographs(piece)  # (B, 3, H, W) in [0, 1]
            p = unconditional(x)
            real = (dequantised(x, noise.uniform(*x.shape)) - p.mean) / p.std
            z = noise.normal(len(x), self.generator.config.latent)
            critic = self.critic(noise, len(x), x.shape[-1])
            scenes.append(Scene(real, p, critic, partial(self.images, z), self.feature_critic(noise, p)))
        return scenes

    def images(self, z: Tensor) -> Tensor:
        """Return G's images of z (B, D) as one draw each, (1, B, 3, H, W)."""
        return self.generator(z)[None]

    def held_out_scene(self, batch: Batch) -> Scene:
        x = self.photographs(batch)
        p = unconditional(x)
        z = self.held_out_noise(batch, PHOTOGRAPH_STREAMS[0], (self.generator.config.latent,))
        return Scene(self.dequantised_residual(x, p, batch), p, self.discriminator, lambda: self.images(z))

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        return self.margins(self.held_out_scene(batch))

    def pipeline(self) -> PlainPipeline:
        return PlainPipeline(self.ema.module)

    def card(self) -> Card:
        generator = asdict(self.generator.config)
        return Card("plain_gan", self.generator.size, self.images_seen, {}, generator=generator, loss=self.loss)


def unconditional(x: Tensor) -> Gaussian:
    """Return N(1/2, (1/2)^2) for every image (B, 3, H, W)."""
    return Gaussian(torch.full_like(x, 0.5), torch.full_like(x, log(0.5)))
