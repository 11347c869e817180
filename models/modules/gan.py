"""Stage 2: the GAN that denoises draws from the frozen VAE's distribution p(x|z)."""

from dataclasses import asdict
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.adversarial import gradient_penalty, relativistic_loss, spread_loss, variance_ratio
from models.denoiser import Denoiser
from models.discriminator import Discriminator
from models.errors import InputError
from models.gaussian import Gaussian, dequantised
from models.layers import PyramidConfig
from models.modules.base import ImageModule
from models.pipeline import PHOTOGRAPH_STREAMS, Card, Pipeline, load_vae

DRAWS = 2
"""Denoisings of each z in a training step: the least that a variance over noise can be estimated from."""


class GANModule(ImageModule):
    """Relativistic GAN with both zero-centred gradient penalties, conditional on p(x|z), and a spread term.

    Positives are photographs' residuals (x - mu)/sigma for z ~ q(z|x), negatives the denoiser's for the same z.

    Args:
        vae: checkpoint of stage 1 (or of stage 2, whose VAE is taken); it is frozen.
        size: image side in pixels; set by the data, must be the VAE's.
        denoiser: widths, blocks and patch of the denoiser G.
        discriminator: widths, blocks and patch of the discriminator D.
        budget: training images to see in all; schedules are shares of it. A larger budget continues a finished run.
        validate_every: images between validations.
        learning_rate: Adam's for both networks, after the warm-up.
        warmup: share of the budget over which the learning rate rises from 0.
        decay: share of the budget, at its end, over which the learning rate falls to 0 as a half cosine.
        penalty_weight: gamma, the weight of both gradient penalties, in units of the standardised residual.
        penalty_every: steps between gradient penalties, whose weight is multiplied by it.
        spread_weight: weight of the term that holds Var_eps[G] at the decoder's std^2.
        ema_images: half-life of the denoiser's moving average, in images.
        ratio_images: held-out images for the variance ratio at validation.
        ratio_draws: denoisings of each z for the variance ratio at validation.
        seed: of all noise in training and validation.

    Raises:
        InputError: an argument out of range, no readable stage-1 checkpoint at `vae`, or one of another size.
    """

    def __init__(
        self,
        vae: str,
        size: int,
        denoiser: PyramidConfig = PyramidConfig(),  # noqa: B008 (frozen)
        discriminator: PyramidConfig = PyramidConfig(),  # noqa: B008 (frozen)
        budget: int = 60_000,
        validate_every: int = 10_000,
        learning_rate: float = 4e-4,
        warmup: float = 0.01,
        decay: float = 0.5,
        penalty_weight: float = 10.0,
        penalty_every: int = 4,
        spread_weight: float = 0.2,
        ema_images: int = 1_000,
        ratio_images: int = 64,
        ratio_draws: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(budget, validate_every, learning_rate, warmup, decay, seed)
        if penalty_weight < 0 or spread_weight < 0:
            raise InputError(
                f"model: penalty_weight ({penalty_weight}) and spread_weight ({spread_weight}) must not be negative"
            )
        if min(penalty_every, ema_images, ratio_images) < 1 or ratio_draws < 2:
            raise InputError(
                f"model: penalty_every ({penalty_every}), ema_images ({ema_images}), ratio_images ({ratio_images}) "
                f"must be at least 1, ratio_draws ({ratio_draws}) at least 2"
            )
        self.automatic_optimization = False
        self.penalty_weight, self.penalty_every, self.spread_weight = penalty_weight, penalty_every, spread_weight
        self.ratio_images, self.ratio_draws = ratio_images, ratio_draws
        card, self.vae, self.prior = load_vae(vae)
        if card.size != size:
            raise InputError(f"model.vae {vae}: made for {card.size} pixels, the data have {size}; set data.size")
        self.vae.requires_grad_(False).eval()
        self.denoiser = Denoiser(size, denoiser)
        self.discriminator = Discriminator(size, discriminator)
        self.ema_images = ema_images
        self.ema = AveragedModel(self.denoiser).requires_grad_(False)

    def train(self, mode: bool = True) -> "GANModule":
        super().train(mode)
        self.vae.eval()  # frozen
        return self

    # Loss terms.

    @torch.no_grad()
    def condition(self, x: Tensor, noise: Tensor) -> Gaussian:
        """p(x|z) for one z ~ q(z|x) of each image, made of standard normal noise (B, D)."""
        return self.vae.decode(self.vae.encode(x).sample(noise))

    def penalties(self, real: Tensor, fake: Tensor, p: Gaussian) -> dict[str, Tensor]:
        """R1 on the photographs' residuals and R2 on the denoiser's, per sample; in float32 whatever the precision."""
        with torch.autocast(self.device.type, enabled=False):
            return {
                name: gradient_penalty(self.discriminator(leaf, p), leaf)
                for name, leaf in (("r1", real.detach().requires_grad_()), ("r2", fake.detach().requires_grad_()))
            }

    # Training.

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        x, rng = self.pixels(batch), self.train_rng()
        p = self.condition(x, self.normal((len(x), self.vae.config.latent), rng))
        # Dequantised, or D would tell photographs by the 8-bit grid.
        real = (dequantised(x, self.uniform(x.shape, rng)) - p.mean) / p.std
        noise = rearrange(self.normal((len(x), DRAWS, *x.shape[1:]), rng), "b k c h w -> k b c h w")
        draws = self.denoiser.draws(noise, p)  # (K, B, C, H, W)
        fakes = (draws - p.mean) / p.std
        pair = p.repeat(DRAWS)
        fake = rearrange(fakes, "k b c h w -> (k b) c h w")

        penalise = self.images_seen // self.global_batch(batch) % self.penalty_every == 0
        d_terms = self.discriminator_step(real, fake.detach(), p, pair, penalise)
        g_terms = self.generator_step(real, fake, draws, p, pair)
        self.ema.multi_avg_fn = get_ema_multi_avg_fn(0.5 ** (self.global_batch(batch) / self.ema_images))
        self.ema.update_parameters(self.denoiser)
        self.tick(batch)
        self.log_terms("train", {**d_terms, **g_terms, "variance_ratio": variance_ratio(draws, p.std)})

    def discriminator_step(
        self, real: Tensor, fake: Tensor, p: Gaussian, pair: Gaussian, penalise: bool
    ) -> dict[str, Tensor]:
        """One step of D; `fake` and `pair` are (K B, ...), draws of the B conditions p one after another."""
        optimizer, _ = self.optimizers()
        real_logits, fake_logits = self.discriminator(real, p).repeat(DRAWS), self.discriminator(fake, pair)
        adversarial = relativistic_loss(real_logits, fake_logits)
        terms = {"margin": real_logits - fake_logits, "d_loss": adversarial}
        loss = adversarial.mean()
        if penalise:
            penalties = self.penalties(real, fake[: len(real)], p)
            loss = loss + self.penalty_weight * self.penalty_every * sum(penalties.values()).mean()
            terms |= penalties
        self.step(optimizer, loss)
        return terms

    def generator_step(
        self, real: Tensor, fake: Tensor, draws: Tensor, p: Gaussian, pair: Gaussian
    ) -> dict[str, Tensor]:
        """One step of G, against the discriminator as it now is."""
        _, optimizer = self.optimizers()
        self.discriminator.requires_grad_(False)
        with torch.no_grad():
            real_logits = self.discriminator(real, p).repeat(DRAWS)
        adversarial = relativistic_loss(self.discriminator(fake, pair), real_logits)
        spread = spread_loss(draws, p.std)
        self.step(optimizer, adversarial.mean() + self.spread_weight * spread)
        self.discriminator.requires_grad_(True)
        return {"g_loss": adversarial, "spread": spread}

    def step(self, optimizer: Any, loss: Tensor) -> None:
        """One optimiser step on a loss."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    # Validation.

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x, (latents, pixels) = self.pixels(batch), PHOTOGRAPH_STREAMS
        p = self.condition(x, self.held_out_noise(batch, latents, (self.vae.config.latent,)))
        count = int((batch["index"] < self.ratio_images).sum())  # the first of all held-out images
        draws = self.ratio_draws if count else 1
        noise = rearrange(self.held_out_noise(batch, pixels, (draws, *x.shape[1:])), "b k c h w -> k b c h w")
        denoised = self.ema.module(noise[0], p)
        real, fake = (x - p.mean) / p.std, (denoised - p.mean) / p.std
        terms = {
            "standardised_error": reduce(fake.square(), "b c h w -> b", "mean"),
            "standardised_error_of_data": reduce(real.square(), "b c h w -> b", "mean"),
        }
        if self.discriminator is not None:
            terms["margin"] = self.discriminator(real, p) - self.discriminator(fake, p)
        few, ratio = Gaussian(p.mean[:count], p.logstd[:count]), torch.zeros((), device=self.device)
        if count:
            ratio = variance_ratio(self.ema.module.draws(noise[:, :count], few), few.std).mean()
        # In every batch, of no weight in most: a process that never logged it would keep the others waiting.
        name = f"{'test' if self.trainer.testing else 'val'}/variance_ratio"
        self.log(name, ratio, batch_size=float(count), sync_dist=True, on_epoch=True, on_step=False)
        return terms

    # Pictures, checkpoints, optimizers.

    def pipeline(self) -> Pipeline:
        return Pipeline(self.vae, self.prior, self.ema.module)

    def take_over(self, card: Card, state: dict[str, Tensor], path: str) -> None:
        super().take_over(card, state, path)
        self.discriminator = None  # an export has none, and a new one's margin would say nothing

    def card(self) -> Card:
        vae, denoiser = asdict(self.vae.config), asdict(self.denoiser.config)
        return Card("gan", self.vae.size, self.images_seen, vae, denoiser)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.adam(network, betas=(0.0, 0.99)) for network in (self.discriminator, self.denoiser)]
