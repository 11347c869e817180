"""Stage 2: the GAN that denoises draws from the frozen VAE's distribution p(x|z), and two of its controls."""

from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange, reduce
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor, nn

from degrain.models.core.gaussian import Gaussian
from degrain.models.core.layers import PyramidConfig
from degrain.models.evaluation.moments import DenoisingMoments
from degrain.models.gan.denoiser import Denoiser
from degrain.models.gan.discriminator import Discriminator
from degrain.models.gan.objective import SPREAD_DRAWS, AdversarialLoss, Scene, spread_terms, squared_error
from degrain.models.inference.checkpoint import Card
from degrain.models.inference.pictures import panel
from degrain.models.inference.pipeline import PHOTOGRAPH_STREAMS, Pipeline, load_vae
from degrain.models.inference.variations import variations
from degrain.models.training.adversarial import AdversarialModule
from degrain.models.training.contradictions import refuse_stage_2, refuse_vae
from degrain.models.training.image_module import Batch
from degrain.models.training.schedule import Schedule
from degrain.models.training.update import MovingAverage, Update, adam
from degrain.models.vae.likelihood import dequantised

VARIED = 8
"""Draws of z whose denoisings are pictured."""


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
        translate_from: images seen from which on `translate` acts; moving from the start slows learning.
        feature_weight: weight of a second discriminator, of features of a frozen EfficientNet-Lite1, in the losses of D
            and G; 0 for none.
        spread_weight: weight of the term that holds Var_eps[G] at the decoder's std^2 in every image.
        spread_every: steps between those with it, whose weight is multiplied by it. They need four draws of each z
            where the others have one.
        ema_share: half-life of the denoiser's moving average, as a share of the images seen.
        ratio_images: held-out images for the variance ratio at validation.
        ratio_draws: denoisings of each z for the variance ratio at validation.
        loss: `relativistic`, with both penalties; `classic`, the non-saturating one of 2014, with R1 alone; or `l2`,
            the squared error |G - x|^2 / sigma^2 to the photograph, without a discriminator.
        noise: whether G sees the draw's noise, or zeros instead.
        schedule: budget, validate_every, learning_rate (of both networks), warmup, warmup_images, decay, seed.

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
        translate_from: int = 100_000,
        feature_weight: float = 0.0,
        spread_weight: float = 0.2,
        spread_every: int = 8,
        ema_share: float = 0.1,
        ratio_images: int = 64,
        ratio_draws: int = 8,
        loss: AdversarialLoss | Literal["l2"] = "relativistic",
        noise: bool = True,
        learning_rate: float = 4e-4,
        **schedule,
    ) -> None:
        refuse_stage_2(loss, noise, translate, feature_weight, spread_weight, spread_every, ratio_images, ratio_draws)
        adversary = (loss, penalty_weight, penalty_every, translate, translate_from, feature_weight, ema_share)
        spread = (spread_weight, spread_every if noise else 0)
        super().__init__(Schedule(learning_rate=learning_rate, **schedule), *adversary, *spread)
        self.ratio_images, self.ratio_draws = ratio_images, ratio_draws
        self.watched = "val/l2" if loss == "l2" else None
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

    @property
    def networks(self) -> list[nn.Module]:
        players = [self.denoiser, self.discriminator] if self.discriminator else [self.denoiser]
        return [self.vae.encoder, self.vae.decoder, *players]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        if self.loss == "l2":
            self.l2_step(batch)
        else:
            super().training_step(batch, batch_idx)

    def l2_step(self, batch: Batch) -> None:
        """Take one step of G towards the photographs, without an adversary."""
        spread = self.spread_due(self.steps_done(batch))
        g = Update(self, self.optimizers())
        for scene in g.over(self.scenes(batch, SPREAD_DRAWS if spread else 1)):
            images = scene.generate()
            l2 = squared_error(scene.residual(images[0]), scene.real)
            g.backward(l2.mean(), {"l2": l2} | (spread_terms(images, scene.p.std) if spread else {}))
        g.step()
        self.count_images(batch, g.skipped)
        self.average(batch, g.skipped)
        self.log_terms("train", g.terms | {"g_gradient_norm": g.norm})

    def scenes(self, batch: Batch, draws: int) -> list[Scene]:
        scenes = []
        for piece, noise in self.pieces(batch):
            x = self.photographs(piece)  # (B, 3, H, W) in [0, 1]
            p = self.decoded(x, noise.normal(len(x), self.vae.config.latent))  # p(x|z), z ~ q(z|x)
            # Dequantised, or D would tell photographs by the 8-bit grid.
            real = (dequantised(x, noise.uniform(*x.shape)) - p.mean) / p.std
            eps = rearrange(noise.normal(len(x), draws, *x.shape[1:]), "b k c h w -> k b c h w")
            critic = self.critic(noise, len(x), x.shape[-1])
            generate = partial(self.denoiser.draws, eps, p)
            scenes.append(Scene(real, p, critic, generate, self.feature_critic(noise, p)))
        return scenes

    @torch.no_grad()
    def decoded(self, x: Tensor, noise: Tensor) -> Gaussian:
        """Return p(x|z) for the z ~ q(z|x) of images (B, 3, H, W) that standard normal noise (B, D) makes."""
        return self.vae.decode(self.vae.encode(x).sample(noise))

    # Validation.

    def held_out_scene(self, batch: Batch) -> Scene:
        x, (latents, pixels) = self.photographs(batch), PHOTOGRAPH_STREAMS
        p = self.decoded(x, self.held_out_noise(batch, latents, (self.vae.config.latent,)))
        eps = self.held_out_noise(batch, pixels, x.shape[1:])
        real = self.dequantised_residual(x, p, batch)
        return Scene(real, p, self.discriminator, lambda: self.denoiser(eps, p)[None])

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        x, scene = self.photographs(batch), self.held_out_scene(batch)
        p = scene.p
        # The first of all held-out images, which batches have in order.
        count = int((batch["index"] < self.ratio_images).sum()) if self.denoiser.noise else 0
        draws = self.ratio_draws if count else 1
        noise = self.held_out_noise(batch, PHOTOGRAPH_STREAMS[1], (draws, *x.shape[1:]))
        noise = rearrange(noise, "b k c h w -> k b c h w")
        real, fake = ((images - p.mean) / p.std for images in (x, self.ema.module(noise[0], p)))
        terms = {
            "standardised_error": reduce(fake.square(), "b c h w -> b", "mean"),
            "standardised_error_of_data": reduce(real.square(), "b c h w -> b", "mean"),
        }
        terms |= {"l2": squared_error(fake, real)} if self.loss == "l2" else self.margins(scene)
        if count:
            first = p[:count]
            regions = batch["regions"][:count] if "regions" in batch else None
            self.moments.update(self.ema.module.draws(noise[:, :count], first), first, regions)
        return terms

    def reset_metrics(self) -> None:
        self.moments = DenoisingMoments(getattr(self.trainer.datamodule, "regions", ())).to(self.device)

    def epoch_metrics(self, stage: str) -> dict[str, Tensor]:
        """Return variance ratio and shift of the first held-out images' denoisings, if G sees noise, and the margin."""
        values = self.moments.compute().scalars() if self.denoiser.noise else {}
        return super().epoch_metrics(stage) | {name: value.float() for name, value in values.items()}

    # Pictures, checkpoints.

    def pipeline(self) -> Pipeline:
        return Pipeline(self.vae, self.prior, self.ema.module)

    @torch.no_grad()
    def figures(self) -> dict[str, Figure | Image]:
        """Return figures of drawn images, and denoisings of the same z with different noise, if G sees it."""
        rows = variations(self.pipeline(), self.schedule.seed, range(VARIED), self.ratio_draws)
        return super().figures() | ({"denoisings": panel(rows)} if self.denoiser.noise else {})

    def card(self) -> Card:
        vae, denoiser = asdict(self.vae.config), asdict(self.denoiser.config)
        of_stage_2 = {"denoiser": denoiser, "noise": self.denoiser.noise, "loss": self.loss}
        of_stage_2["prior_note"] = self.prior.note or None
        return Card("gan", self.vae.size, self.images_seen, vae, **of_stage_2)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the prior of `vae`: that is the checkpoint itself, or a stage 1 with a prior that it lacks."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        others = {name: value for name, value in state.items() if not name.startswith("prior.")}
        checkpoint["state_dict"] = others | {f"prior.{name}": value for name, value in self.prior.state_dict().items()}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        if self.loss == "l2":
            return [adam(self.denoiser, self.schedule.learning_rate)]
        return super().configure_optimizers()
