"""Stage 2: the GAN that denoises draws from the frozen VAE's distribution p(x|z), and two of its controls."""

from abc import abstractmethod
from dataclasses import asdict, replace
from functools import partial
from typing import Literal

import torch
from einops import rearrange, reduce
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor, nn

from models.core.gaussian import Gaussian
from models.core.layers import PyramidConfig
from models.core.randomness import Noise
from models.evaluation.moments import DenoisingMoments
from models.gan.augment import offsets, translated
from models.gan.denoiser import Denoiser
from models.gan.discriminator import Discriminator
from models.gan.objective import (
    SPREAD_DRAWS,
    AdversarialLoss,
    Critic,
    Scene,
    discriminator_objective,
    generator_objective,
    spread_terms,
    squared_error,
)
from models.inference.checkpoint import Card
from models.inference.pictures import panel
from models.inference.pipeline import PHOTOGRAPH_STREAMS, Pipeline, load_vae
from models.training.contradictions import refuse_adversary, refuse_stage_2, refuse_vae
from models.training.image_module import Batch, ImageModule
from models.training.schedule import Schedule
from models.training.update import MovingAverage, Update, adam
from models.vae.likelihood import dequantised

VARIED = 8
"""Draws of z whose denoisings are pictured."""


class AdversarialModule(ImageModule):
    """A generator G, whose moving average is what counts, against a discriminator D.

    A recipe makes both networks and the average, and says in `scenes` what they see. Arguments are those of GANModule;
    with spread_every 0 there is no spread term.
    """

    discriminator: Discriminator | None
    ema: MovingAverage

    def __init__(
        self,
        schedule: Schedule,
        loss: AdversarialLoss | Literal["l2"],
        penalty_weight: float,
        penalty_every: int,
        translate: float,
        ema_images: int,
        spread_weight: float = 0.0,
        spread_every: int = 0,
    ) -> None:
        super().__init__(schedule)
        refuse_adversary(penalty_weight, penalty_every, translate, ema_images)
        self.loss, self.penalty_weight, self.penalty_every = loss, penalty_weight, penalty_every
        self.translate, self.ema_images = translate, ema_images
        self.spread_weight, self.spread_every = spread_weight, spread_every

    @property
    @abstractmethod
    def player(self) -> nn.Module:
        """The network that plays G."""

    @abstractmethod
    def scenes(self, batch: Batch, draws: int) -> list[Scene]:
        """Return photographs, p(x|z) and so many draws from it: one scene, or one for each `data.micro_batch_size`."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one step of D, then one of G against it, on the same photographs and draws."""
        number = self.images_seen // self.global_batch(batch)
        penalty = 0 if number % self.penalty_every else self.penalty_weight * self.penalty_every
        spread = self.spread_due(number)
        scenes = self.scenes(batch, SPREAD_DRAWS if spread else 1)  # photographs, p(x|z), draws from it
        if len(scenes) == 1:  # the images are made once, with a graph for both steps; of several pieces for each step
            images = scenes[0].generate()  # (K, B, 3, H, W)
            scenes = [replace(scenes[0], generate=lambda: images)]
        d, g = (Update(self, optimizer) for optimizer in self.optimizers())

        for scene in d.over(scenes):  # D: residuals of photographs against those of G
            with torch.no_grad():
                fake = scene.residual(scene.generate()[0])
            d.backward(*discriminator_objective(scene.critic, self.loss, scene.real, fake, scene.p, penalty))
        d.step()

        for scene in g.over(scenes):  # G: against D as it now is, and Var_eps[G] against sigma^2
            images = scene.generate()
            fake = scene.residual(images[0])
            loss, terms = generator_objective(scene.critic, self.loss, scene.real, fake, scene.p)
            if spread:
                terms |= spread_terms(images, scene.p.std)
                loss = loss + self.spread_weight * self.spread_every * terms["spread"].mean()
            g.backward(loss, terms)
        g.step(unless=d.skipped)  # G would learn from logits that were not finite

        self.ema.update(self.player, keep=0.5 ** (self.global_batch(batch) / self.ema_images), unless=g.skipped)
        self.count_images(batch, g.skipped)
        self.log_terms("train", d.terms | g.terms)

    def spread_due(self, number: int) -> bool:
        """Return whether step `number` has the spread term."""
        return self.spread_every > 0 and number % self.spread_every == 0

    def critic(self, noise: Noise, images: int, side: int) -> Critic:
        """Return D, or D behind a shift of residual and condition alike, by noise, for a batch of images."""
        most = int(self.translate * side)
        if not most:
            return self.discriminator
        moved = partial(translated, offsets=offsets(noise.uniform(images, 2), most), most=most)
        return lambda residual, p: self.discriminator(moved(residual), Gaussian(moved(p.mean), moved(p.logstd)))

    def margins(self, real: Tensor, fake: Tensor, p: Gaussian) -> dict[str, Tensor]:
        """Return `margin`, D(real) - D(fake), (B,), for residuals under the same p; nothing without a D."""
        if self.discriminator is None:
            return {}
        return {"margin": self.discriminator(real, p) - self.discriminator(fake, p)}

    def load_export(self, card: Card, state: dict[str, Tensor], path: str) -> None:
        super().load_export(card, state, path)
        self.discriminator = None  # an export has none, and a new one's margin would say nothing

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        rate = self.schedule.learning_rate
        return [adam(network, rate, betas=(0.0, 0.99)) for network in (self.discriminator, self.player)]


class GANModule(AdversarialModule):
    """Relativistic GAN with both zero-centred gradient penalties, conditional on p(x|z), and a spread term.

    Positives are photographs' residuals (x - mu)/sigma for z ~ q(z|x), negatives the denoiser's for the same z.
    Its controls are the L2 denoiser (`loss` l2), which ends at about the mean of x given the draw's z, and the GAN on
    the mean only (`noise` false), which has one answer to each z: a variance ratio of 0, and so none is logged.

    Args:
        vae: checkpoint of stage 1 (or of stage 2, whose VAE is taken); it is frozen.
        size: image side in pixels; set by the data, must be the VAE's.
        denoiser: widths, blocks and patch of the denoiser G.
        discriminator: widths, blocks and patch of the discriminator D; with loss l2 there is none.
        penalty_weight: gamma, the weight of the gradient penalties, in units of the standardised residual.
        penalty_every: steps between gradient penalties, whose weight is multiplied by it.
        translate: share of the side by which D sees photographs, draws and conditions moved at most, alike; 0 for none.
        spread_weight: weight of the term that holds Var_eps[G] at the decoder's std^2 in every image.
        spread_every: steps between those with it, whose weight is multiplied by it. They need four draws of each z
            where the others have one.
        ema_images: half-life of the denoiser's moving average, in images.
        ratio_images: held-out images for the variance ratio at validation.
        ratio_draws: denoisings of each z for the variance ratio at validation.
        loss: `relativistic`, with both penalties; `classic`, the non-saturating one of 2014, with R1 alone; or `l2`,
            the squared error |G - x|^2 / sigma^2 to the photograph, without a discriminator.
        noise: whether G sees the draw's noise, or zeros instead.
        schedule: budget, validate_every, learning_rate (of both networks), warmup, decay, seed.

    Raises:
        InputError: an argument out of range, arguments that contradict each other, no readable stage-1 checkpoint at
            `vae`, or one of another size.
    """

    def __init__(
        self,
        vae: str,
        size: int,
        denoiser: PyramidConfig = PyramidConfig(),  # noqa: B008 (frozen)
        discriminator: PyramidConfig = PyramidConfig(),  # noqa: B008 (frozen)
        penalty_weight: float = 10.0,
        penalty_every: int = 4,
        translate: float = 0.0,
        spread_weight: float = 0.2,
        spread_every: int = 8,
        ema_images: int = 1_000,
        ratio_images: int = 64,
        ratio_draws: int = 8,
        loss: AdversarialLoss | Literal["l2"] = "relativistic",
        noise: bool = True,
        learning_rate: float = 4e-4,
        **schedule,
    ) -> None:
        refuse_stage_2(loss, noise, translate, spread_weight, spread_every, ratio_images, ratio_draws)
        adversary = (loss, penalty_weight, penalty_every, translate, ema_images)
        spread = (spread_weight, spread_every if noise else 0)
        super().__init__(Schedule(learning_rate=learning_rate, **schedule), *adversary, *spread)
        self.ratio_images, self.ratio_draws = ratio_images, ratio_draws
        card, self.vae, self.prior = load_vae(vae)
        refuse_vae(vae, card.size, self.vae.pixel_by_pixel, size)
        self.vae.requires_grad_(False).eval()
        self.prior.requires_grad_(False)
        self.denoiser = Denoiser(size, denoiser, noise)
        self.discriminator = None if loss == "l2" else Discriminator(size, discriminator)
        self.ema = MovingAverage(self.denoiser)

    def train(self, mode: bool = True) -> "GANModule":
        super().train(mode)
        self.vae.eval()  # frozen
        return self

    # Training.

    @property
    def player(self) -> nn.Module:
        return self.denoiser

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        if self.loss == "l2":
            self.l2_step(batch)
        else:
            super().training_step(batch, batch_idx)

    def l2_step(self, batch: Batch) -> None:
        """Take one step of G towards the photographs, without an adversary."""
        spread = self.spread_due(self.images_seen // self.global_batch(batch))
        g = Update(self, self.optimizers())
        for scene in g.over(self.scenes(batch, SPREAD_DRAWS if spread else 1)):
            images = scene.generate()
            l2 = squared_error(scene.residual(images[0]), scene.real)
            g.backward(l2.mean(), {"l2": l2} | (spread_terms(images, scene.p.std) if spread else {}))
        g.step()
        self.ema.update(self.player, keep=0.5 ** (self.global_batch(batch) / self.ema_images), unless=g.skipped)
        self.count_images(batch, g.skipped)
        self.log_terms("train", g.terms)

    def scenes(self, batch: Batch, draws: int) -> list[Scene]:
        scenes = []
        for piece, noise in self.pieces(batch):
            x = self.photographs(piece)  # (B, 3, H, W) in [0, 1]
            p = self.decoded(x, noise.normal(len(x), self.vae.config.latent))  # p(x|z), z ~ q(z|x)
            # Dequantised, or D would tell photographs by the 8-bit grid.
            real = (dequantised(x, noise.uniform(*x.shape)) - p.mean) / p.std
            eps = rearrange(noise.normal(len(x), draws, *x.shape[1:]), "b k c h w -> k b c h w")
            critic = self.critic(noise, len(x), x.shape[-1])
            scenes.append(Scene(real, p, critic, partial(self.denoiser.draws, eps, p)))
        return scenes

    @torch.no_grad()
    def decoded(self, x: Tensor, noise: Tensor) -> Gaussian:
        """Return p(x|z) for the z ~ q(z|x) of images (B, 3, H, W) that standard normal noise (B, D) makes."""
        return self.vae.decode(self.vae.encode(x).sample(noise))

    # Validation.

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        x, (latents, pixels) = self.photographs(batch), PHOTOGRAPH_STREAMS
        p = self.decoded(x, self.held_out_noise(batch, latents, (self.vae.config.latent,)))
        # The first of all held-out images, which batches have in order.
        count = int((batch["index"] < self.ratio_images).sum()) if self.denoiser.noise else 0
        draws = self.ratio_draws if count else 1
        noise = rearrange(self.held_out_noise(batch, pixels, (draws, *x.shape[1:])), "b k c h w -> k b c h w")
        denoised = self.ema.module(noise[0], p)
        real, fake = (x - p.mean) / p.std, (denoised - p.mean) / p.std
        terms = {
            "standardised_error": reduce(fake.square(), "b c h w -> b", "mean"),
            "standardised_error_of_data": reduce(real.square(), "b c h w -> b", "mean"),
        }
        terms |= {"l2": squared_error(fake, real)} if self.loss == "l2" else self.margins(real, fake, p)
        if count:
            first = p[:count]
            regions = batch["regions"][:count] if "regions" in batch else None
            self.moments.update(self.ema.module.draws(noise[:, :count], first), first, regions)
        return terms

    def reset_metrics(self) -> None:
        self.moments = DenoisingMoments(getattr(self.trainer.datamodule, "regions", ())).to(self.device)

    def epoch_metrics(self, stage: str) -> dict[str, Tensor]:
        """Return variance ratio and shift of the first held-out images' denoisings, if G sees noise."""
        values = self.moments.compute().scalars() if self.denoiser.noise else {}
        return {name: value.float() for name, value in values.items()}

    # Pictures, checkpoints.

    def pipeline(self) -> Pipeline:
        return Pipeline(self.vae, self.prior, self.ema.module)

    @torch.no_grad()
    def figures(self) -> dict[str, Figure | Image]:
        """Return figures of drawn images, and denoisings of the same z with different noise, if G sees it."""
        rows = self.pipeline().variations(self.schedule.seed, range(VARIED), self.ratio_draws)
        return super().figures() | ({"denoisings": panel(rows)} if self.denoiser.noise else {})

    def card(self) -> Card:
        vae, denoiser = asdict(self.vae.config), asdict(self.denoiser.config)
        of_stage_2 = {"denoiser": denoiser, "noise": self.denoiser.noise, "loss": self.loss}
        of_stage_2["prior_note"] = self.prior.note or None
        return Card("gan", self.vae.size, self.images_seen, vae, **of_stage_2)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        if self.loss == "l2":
            return [adam(self.denoiser, self.schedule.learning_rate)]
        return super().configure_optimizers()
