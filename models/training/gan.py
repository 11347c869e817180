"""Stage 2: the GAN that denoises draws from the frozen VAE's distribution p(x|z), and two of its controls."""

from dataclasses import asdict
from typing import Literal

import torch
from einops import rearrange, reduce
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor, nn

from models.core.errors import InputError
from models.core.gaussian import Gaussian
from models.core.layers import PyramidConfig
from models.evaluation.moments import DenoisingMoments
from models.gan.denoiser import Denoiser
from models.gan.discriminator import Discriminator
from models.gan.objective import AdversarialLoss, regional_variances, spread_loss, squared_error, variance_ratio
from models.inference.checkpoint import Card
from models.inference.pictures import panel
from models.inference.pipeline import PHOTOGRAPH_STREAMS, Pipeline, load_vae
from models.training.adversary import DRAWS, Adversary, Scene, Scenes

VARIED = 8
"""Draws of z whose denoisings are pictured."""


class GANModule(Adversary):
    """Relativistic GAN with both zero-centred gradient penalties, conditional on p(x|z), and a spread term.

    Positives are photographs' residuals (x - mu)/sigma for z ~ q(z|x), negatives the denoiser's for the same z.
    Its controls are the L2 denoiser (`loss` l2), which ends at about the mean of x given the draw's z, and the GAN on
    the mean only (`noise` false), which has one answer to each z: a variance ratio of 0, and so none is logged.

    Args:
        vae: checkpoint of stage 1 (or of stage 2, whose VAE is taken); it is frozen.
        size: image side in pixels; set by the data, must be the VAE's.
        denoiser: widths, blocks and patch of the denoiser G.
        discriminator: widths, blocks and patch of the discriminator D; with loss l2 there is none.
        budget: training images to see in all; schedules are shares of it. A larger budget continues a finished run.
        validate_every: images between validations.
        learning_rate: Adam's for both networks, after the warm-up.
        warmup: share of the budget over which the learning rate rises from 0.
        decay: share of the budget, at its end, over which the learning rate falls to 0 as a half cosine.
        penalty_weight: gamma, the weight of the gradient penalties, in units of the standardised residual.
        penalty_every: steps between gradient penalties, whose weight is multiplied by it.
        translate: share of the side by which D sees photographs, draws and conditions moved at most, alike; 0 for none.
        spread_weight: weight of the term that holds Var_eps[G] at the decoder's std^2.
        spread_every: steps between those with it, whose weight is multiplied by it. It needs two draws of each z; the
            other steps have one, and take little more than half the time.
        ema_images: half-life of the denoiser's moving average, in images.
        ratio_images: held-out images for the variance ratio at validation.
        ratio_draws: denoisings of each z for the variance ratio at validation.
        seed: of all noise in training and validation.
        loss: `relativistic`, with both penalties; `classic`, the non-saturating one of 2014, with R1 alone; or `l2`,
            the squared error |G - x|^2 / sigma^2 to the photograph, without a discriminator.
        noise: whether G sees the draw's noise, or zeros in its place.

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
        budget: int = 60_000,
        validate_every: int = 10_000,
        learning_rate: float = 4e-4,
        warmup: float = 0.01,
        decay: float = 0.5,
        penalty_weight: float = 10.0,
        penalty_every: int = 4,
        translate: float = 0.0,
        spread_weight: float = 0.2,
        spread_every: int = 4,
        ema_images: int = 1_000,
        ratio_images: int = 64,
        ratio_draws: int = 8,
        seed: int = 0,
        loss: AdversarialLoss | Literal["l2"] = "relativistic",
        noise: bool = True,
    ) -> None:
        clock = (budget, validate_every, learning_rate, warmup, decay, seed)
        super().__init__(loss, penalty_weight, penalty_every, translate, ema_images, *clock)
        if ratio_images < 1 or ratio_draws < 2:
            raise InputError(
                f"model: ratio_images ({ratio_images}) must be at least 1, ratio_draws ({ratio_draws}) at least 2"
            )
        self.spread_weight, self.spread_every = spread_weight, spread_every
        self.ratio_images, self.ratio_draws = ratio_images, ratio_draws
        self.refuse_contradictions(noise)
        card, self.vae, self.prior = load_vae(vae)
        if card.size != size:
            raise InputError(f"model.vae {vae}: made for {card.size} pixels, the data have {size}; set data.size")
        if self.vae.pixel_by_pixel:
            raise InputError(
                f"model.vae {vae}: is a PixelVAE, whose samples have no noise that is independent from pixel to pixel "
                f"and so nothing to denoise; take a stage 1 with net.pixels.blocks 0"
            )
        self.vae.requires_grad_(False).eval()
        self.prior.requires_grad_(False)
        self.denoiser = Denoiser(size, denoiser, noise)
        self.discriminator = None if loss == "l2" else Discriminator(size, discriminator)
        self.ema = self.average()

    def refuse_contradictions(self, noise: bool) -> None:
        """Refuse a spread term that is out of range or works against the loss, and what the loss has no use for.

        Raises:
            InputError: which, and the way out.
        """
        if self.spread_weight < 0 or self.spread_every < 1:
            raise InputError(
                f"model: spread_weight ({self.spread_weight}) must not be negative, spread_every ({self.spread_every}) "
                f"at least 1"
            )
        if self.spread_weight and self.loss == "l2":
            raise InputError(
                f"model: spread_weight ({self.spread_weight}) holds the variance over noise that loss l2 takes away; "
                f"take spread_weight 0 or another loss"
            )
        if self.translate and self.loss == "l2":
            raise InputError(
                f"model: translate ({self.translate}) moves what a discriminator sees, and loss l2 has none; take "
                f"translate 0 or another loss"
            )
        if self.spread_weight and not noise:
            raise InputError(
                f"model: spread_weight ({self.spread_weight}) holds a variance over noise, and with noise false G sees "
                f"none; take spread_weight 0 or noise true"
            )

    def train(self, mode: bool = True) -> "GANModule":
        super().train(mode)
        self.vae.eval()  # frozen
        return self

    # Loss terms.

    @property
    def player(self) -> nn.Module:
        return self.denoiser

    def condition(self, x: Tensor, rng: torch.Generator) -> Gaussian:
        """p(x|z) for one z ~ q(z|x) of each image."""
        return self.decoded(x, self.normal((len(x), self.vae.config.latent), rng))

    @torch.no_grad()
    def decoded(self, x: Tensor, noise: Tensor) -> Gaussian:
        """p(x|z) for the z ~ q(z|x) of each image that standard normal noise (B, D) makes."""
        return self.vae.decode(self.vae.encode(x).sample(noise))

    @property
    def paired(self) -> bool:
        """Whether this step has several draws of each z; where G sees no noise all would be the same."""
        return self.denoiser.noise and self.due(self.spread_every)

    def draws(self, p: Gaussian, rng: torch.Generator) -> Tensor:
        """Denoisings of one draw of each z, or in a paired step of several."""
        batch, *shape = p.mean.shape
        noise = self.normal((batch, DRAWS if self.paired else 1, *shape), rng)
        return self.denoiser.draws(rearrange(noise, "b k c h w -> k b c h w"), p)

    def beside(self, draws: Tensor, p: Gaussian) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The spread term, in a paired step."""
        if not self.paired:
            return super().beside(draws, p)
        spread = spread_loss(self.whole(regional_variances(draws, p.std)[None]).mean(0))
        weight = self.spread_weight * self.spread_every
        return weight * spread, {"spread": spread, "variance_ratio": variance_ratio(draws, p.std)}

    # Training.

    def play(self, batch: dict[str, Tensor], scenes: Scenes) -> dict[str, Tensor]:
        return self.l2_step(batch, scenes) if self.loss == "l2" else super().play(batch, scenes)

    def foresee_spread(self, batch: dict[str, Tensor], scenes: Scenes) -> None:
        """Foresee what the spread term pools over the whole batch; of each piece it is one row, (1, 2, h, w)."""

        def variances(piece: dict[str, Tensor]) -> Tensor:
            scene = scenes(piece)
            return regional_variances(scene.draws, scene.p.std)[None]

        if self.paired:
            self.foresee(batch, variances)

    def generator_step(self, batch: dict[str, Tensor], scenes: Scenes) -> dict[str, Tensor]:
        self.foresee_spread(batch, scenes)
        return super().generator_step(batch, scenes)

    def l2_step(self, batch: dict[str, Tensor], scenes: Scenes) -> dict[str, Tensor]:
        """One step of G towards the photographs, alone."""
        self.foresee_spread(batch, scenes)
        return self.step(self.optimizers(), batch, lambda piece: self.l2_loss(scenes(piece)))

    def l2_loss(self, scene: Scene) -> tuple[Tensor, dict[str, Tensor]]:
        """The squared error, and what is to be logged."""
        draws, p = scene.draws, scene.p
        error = squared_error((draws - p.mean) / p.std, scene.real)
        return error.mean(), {"l2": error, **self.beside(draws, p)[1]}

    # Validation.

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x, (latents, pixels) = self.pixels(batch), PHOTOGRAPH_STREAMS
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
        terms |= {"l2": squared_error(fake[None], real)} if self.loss == "l2" else self.margins(real, fake, p)
        if count:
            first = p[:count]
            regions = batch["regions"][:count] if "regions" in batch else None
            self.moments.update(self.ema.module.draws(noise[:, :count], first), first, regions)
        return terms

    def begin(self) -> None:
        self.moments = DenoisingMoments(getattr(self.trainer.datamodule, "regions", ())).to(self.device)

    def over_all(self, stage: str) -> dict[str, Tensor]:
        """Whether the first held-out images' denoisings keep the decoder's moments, where they see noise."""
        values = self.moments.compute().scalars() if self.denoiser.noise else {}
        return {name: value.float() for name, value in values.items()}

    # Pictures, checkpoints, optimizers.

    def pipeline(self) -> Pipeline:
        return Pipeline(self.vae, self.prior, self.ema.module)

    @torch.no_grad()
    def figures(self) -> dict[str, Figure | Image]:
        """What drawn images say, and denoisings of the same z with different noise, where G sees it."""
        rows = self.pipeline().variations(self.seed, range(VARIED), self.ratio_draws) if self.denoiser.noise else {}
        return super().figures() | ({"denoisings": panel(rows)} if rows else {})

    def card(self) -> Card:
        vae, denoiser = asdict(self.vae.config), asdict(self.denoiser.config)
        of_stage_2 = {"denoiser": denoiser, "noise": self.denoiser.noise, "loss": self.loss}
        return Card("gan", self.vae.size, self.images_seen, vae, **of_stage_2)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.adam(self.denoiser)] if self.loss == "l2" else super().configure_optimizers()
