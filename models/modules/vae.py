"""Stage 1: the VAE, trained on distortion + rate in nats per image."""

from dataclasses import asdict
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from models.errors import InputError
from models.gaussian import Gaussian, bits_per_dimension, kl_to_standard_normal, log_bin_probability
from models.latent_prior import GaussianPrior, LatentMoments
from models.modules.base import ImageModule
from models.pipeline import Card, Pipeline
from models.vae import VAE, VAEConfig


class VAEModule(ImageModule):
    """-log p(x|z) + KL(q(z|x) to p(z)), with the likelihood of the 8-bit values under a mean and a std for every pixel.

    Args:
        size: image side in pixels; set by the data.
        net: architecture.
        budget: training images to see in all; schedules are shares of it. A larger budget continues a finished run.
        validate_every: images between validations.
        learning_rate: Adam's, after the warm-up.
        warmup: share of the budget over which the learning rate rises from 0.
        decay: share of the budget, at its end, over which the learning rate falls to 0 as a half cosine.
        rate_warmup: share of the budget over which the weight of the rate rises from 0 to 1, where it stays.
        gradient_clip: largest norm of the gradient of the loss in nats per dimension.
        prior_images: training images that the prior is fitted to, each with its mirror image if the data are flipped.
        seed: of all noise in training and validation.

    Raises:
        InputError: an argument out of range.
    """

    def __init__(
        self,
        size: int,
        net: VAEConfig = VAEConfig(),  # noqa: B008 (frozen)
        budget: int = 400_000,
        validate_every: int = 40_000,
        learning_rate: float = 1e-3,
        warmup: float = 0.01,
        decay: float = 0.5,
        rate_warmup: float = 0.05,
        gradient_clip: float = 1.0,
        prior_images: int = 20_000,
        seed: int = 0,
    ) -> None:
        super().__init__(budget, validate_every, learning_rate, warmup, decay, seed)
        if not 0 <= rate_warmup <= 1:
            raise InputError(f"model: rate_warmup ({rate_warmup}) is a share of the budget, from 0 to 1")
        if gradient_clip <= 0 or prior_images < 1:
            raise InputError(
                f"model: gradient_clip ({gradient_clip}) must be positive, prior_images ({prior_images}) at least 1"
            )
        self.rate_warmup, self.gradient_clip, self.prior_images = rate_warmup, gradient_clip, prior_images
        self.vae = VAE(size, net)
        self.prior = GaussianPrior(net.latent)

    # Loss terms.

    def terms(self, x: Tensor, rng: torch.Generator) -> tuple[dict[str, Tensor], Gaussian]:
        """Distortion and rate in nats per image, (B,), and p(x|z) for one draw of z."""
        q = self.vae.encode(x)
        p = self.vae.decode(q.sample(self.normal(q.mean.shape, rng)))
        distortion = -reduce(log_bin_probability(p, x), "b c h w -> b", "sum")
        rate = reduce(kl_to_standard_normal(q), "b d -> b", "sum")
        return {"distortion": distortion, "rate": rate}, p

    def statistics(self, terms: dict[str, Tensor], p: Gaussian, x: Tensor) -> dict[str, Tensor]:
        """The terms and what is watched beside them, per image, (B,); errors and stds in [0, 1] pixel units."""
        squared_error = reduce((p.mean - x).square(), "b c h w -> b", "mean")
        at_floor = (p.std < 1.1 * self.vae.config.std_floor).float()
        return {
            **terms,
            "bits_per_dimension": bits_per_dimension(terms["distortion"] + terms["rate"], x[0].numel()),
            "squared_error": squared_error,
            "std": reduce(p.std, "b c h w -> b", "mean"),
            "at_floor": reduce(at_floor, "b c h w -> b", "mean"),
        }

    # Training.

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        x = self.pixels(batch)
        terms, p = self.terms(x, self.train_rng())
        rate_weight = min(1.0, self.progress / self.rate_warmup) if self.rate_warmup else 1.0
        loss = (terms["distortion"] + rate_weight * terms["rate"]).mean()
        self.tick(batch)
        self.log_terms("train", self.statistics(terms, p, x))
        return loss / x[0].numel()  # nats per dimension, so that one gradient_clip serves every size

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        self.clip_gradients(optimizer, self.gradient_clip, "norm")

    # Validation.

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == "fit":
            self.fit_prior()

    @torch.no_grad()
    def fit_prior(self) -> None:
        """Fit the prior to q(z) over training images; every process sees them all and gets the same one."""
        moments = LatentMoments(self.vae.config.latent)
        for batch in self.trainer.datamodule.encode_dataloader(self.prior_images):
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            with self.trainer.precision_plugin.forward_context():
                moments.update(self.vae.encode(self.pixels(batch)))
        self.prior.fit(moments)
        self.active_units = (moments.covariance_of_means().diagonal() > 0.01).sum()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.trainer.state.fn == "fit":
            self.log("val/active_units", self.active_units.float())

    def evaluate(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        x = self.pixels(batch)
        terms, p = self.terms(x, self.eval_rng(batch_idx))
        return self.statistics(terms, p, x)

    # Pictures, checkpoints, optimizers.

    def pipeline(self) -> Pipeline:
        return Pipeline(self.vae, self.prior)

    def card(self) -> Card:
        return Card("vae", self.vae.size, self.images_seen, asdict(self.vae.config))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.vae.parameters(), self.learning_rate)
