"""The control without a VAE: a plain GAN, from z to images, against the same discriminator, which sees images only."""

from dataclasses import asdict
from math import log

import torch
from einops import rearrange
from torch import Tensor, nn

from models.core.gaussian import Gaussian
from models.core.layers import PyramidConfig
from models.gan.discriminator import Discriminator
from models.gan.generator import Generator, GeneratorConfig
from models.gan.objective import AdversarialLoss
from models.inference.checkpoint import Card
from models.inference.pipeline import PHOTOGRAPH_STREAMS, PlainPipeline
from models.training.adversary import DRAWS, Adversary


class PlainGANModule(Adversary):
    """GAN from z ~ N(0, I), with the steps, penalties and average of the GAN that denoises, and no condition.

    There is one p for all images, N(1/2, (1/2)^2): the residuals that D sees are the images in [-1, 1].

    Args:
        size: image side in pixels; set by the data.
        generator: latents, widths, blocks and patch of the generator G; for a fair comparison as many latents as the
            VAE and as many parameters as its decoder and the denoiser together.
        discriminator: widths, blocks and patch of the discriminator D.
        budget: training images to see in all; schedules are shares of it. A larger budget continues a finished run.
            For a fair comparison that of both stages together.
        validate_every: images between validations.
        learning_rate: Adam's for both networks, after the warm-up.
        warmup: share of the budget over which the learning rate rises from 0.
        decay: share of the budget, at its end, over which the learning rate falls to 0 as a half cosine.
        penalty_weight: gamma, the weight of the gradient penalties, in units of images in [-1, 1]; R3GAN's falls from 2
            to 0.2 for faces of 64 pixels.
        penalty_every: steps between gradient penalties, whose weight is multiplied by it.
        translate: share of the side by which D sees photographs and draws moved at most; 0 for none.
        ema_images: half-life of the generator's moving average, in images.
        seed: of all noise in training and validation.
        loss: `relativistic`, with both penalties, or `classic`, the non-saturating one of 2014, with R1 alone.

    Raises:
        InputError: an argument out of range.
    """

    def __init__(
        self,
        size: int,
        generator: GeneratorConfig = GeneratorConfig(),  # noqa: B008 (frozen)
        discriminator: PyramidConfig = PyramidConfig(),  # noqa: B008 (frozen)
        budget: int = 460_000,
        validate_every: int = 40_000,
        learning_rate: float = 4e-4,
        warmup: float = 0.01,
        decay: float = 0.5,
        penalty_weight: float = 1.0,
        penalty_every: int = 4,
        translate: float = 0.0,
        ema_images: int = 1_000,
        seed: int = 0,
        loss: AdversarialLoss = "relativistic",
    ) -> None:
        clock = (budget, validate_every, learning_rate, warmup, decay, seed)
        super().__init__(loss, penalty_weight, penalty_every, translate, ema_images, *clock)
        self.generator = Generator(size, generator)
        self.discriminator = Discriminator(size, discriminator, conditional=False)
        self.ema = self.average()

    # Loss terms.

    @property
    def player(self) -> nn.Module:
        return self.generator

    def condition(self, x: Tensor, rng: torch.Generator) -> Gaussian:
        return unconditional(x)

    def draws(self, p: Gaussian, rng: torch.Generator) -> Tensor:
        """As many images for a photograph as the GAN that denoises makes of one."""
        z = self.normal((len(p.mean), DRAWS, self.generator.config.latent), rng)
        return rearrange(self.generator(rearrange(z, "b k d -> (k b) d")), "(k b) c h w -> k b c h w", k=DRAWS)

    # Validation.

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.pixels(batch)
        p = unconditional(x)
        z = self.held_out_noise(batch, PHOTOGRAPH_STREAMS[0], (self.generator.config.latent,))
        return self.margins((x - p.mean) / p.std, (self.ema.module(z) - p.mean) / p.std, p)

    # Pictures, checkpoints.

    def pipeline(self) -> PlainPipeline:
        return PlainPipeline(self.ema.module)

    def card(self) -> Card:
        generator = asdict(self.generator.config)
        return Card("plain_gan", self.generator.size, self.images_seen, {}, generator=generator, loss=self.loss)


def unconditional(x: Tensor) -> Gaussian:
    """N(1/2, (1/2)^2) for every image (B, 3, H, W)."""
    return Gaussian(torch.full_like(x, 0.5), torch.full_like(x, log(0.5)))
