"""Stage 1: the VAE, trained on distortion + rate in nats per image."""

import time
from dataclasses import asdict
from typing import Literal

import torch
from einops import rearrange, reduce
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor

from models.core.errors import InputError
from models.core.gaussian import Gaussian, LatentDraws, kl_of_moments, kl_to_standard_normal
from models.core.randomness import generator, shard
from models.evaluation.calibration import CodeStatistics
from models.evaluation.diagnostics import Diagnostics
from models.inference.checkpoint import Card
from models.inference.pipeline import PHOTOGRAPH_STREAMS, Pipeline
from models.training.contradictions import refuse_contradictions
from models.training.update import SteppedModule
from models.vae.latent_prior import LatentPrior
from models.vae.likelihood import (
    LogLikelihood,
    beta_nll,
    bits_per_dimension,
    dequantised,
    faithful_nll,
    log_bin_probability,
    log_level_density,
)
from models.vae.network import VAE, Posterior, VAEConfig
from models.vae.regulariser import floored_kl, mixture_moments, mmd_in_nats

DRAWS = 8
"""Of each held-out image's q(z|x), where that is known by draws alone: enough to tell a variance of 0.01."""


class VAEModule(SteppedModule):
    """-log p(x|z) + KL(q(z|x) to p(z)), with the likelihood of the 8-bit values under a mean and a std for every pixel.

    The variants change what is trained on. Distortion and rate are logged as they are, unweighted, with training's
    likelihood; on held-out images they are those of the bin likelihood and the posteriors always, and so compare.

    Args:
        size: image side in pixels; set by the data.
        net: architecture.
        budget: training images to see in all; schedules are shares of it. A larger budget continues a finished run.
        validate_every: images between validations.
        learning_rate: Adam's, after the warm-up.
        warmup: share of the budget over which the learning rate rises from 0.
        decay: share of the budget, at its end, over which the learning rate falls to 0 as a half cosine.
        rate_warmup: share of the budget over which the weight of the rate rises from 0 to rate_weight, where it stays.
        gradient_clip: largest norm of the gradient of the loss in nats per dimension.
        prior_images: training images that the prior is fitted to, every second one mirrored if the data are flipped; it
            is learned from both views of each.
        prior_components: Gaussians in the mixture that is learned as prior when the budget is seen; 0 leaves the fitted
            one.
        seed: of all noise in training and validation.
        likelihood: training's; `bin`, the probability of the 8-bit value, a code length and so never negative; or
            `density`, of the dequantised pixel per 8-bit level, whose loss goes negative where std < 0.0016.
        gradient: the decoder's; `plain`; `beta-nll`, every pixel's term times its std (Seitzer et al. 2022); or
            `faithful`, the mean and all below it learn from squared_error/2, the std at its head alone (Stirn et al.
            2023). The encoder has the true ELBO's gradient always.
        rate_weight: of the rate, after the warm-up; other than 1 (a beta-VAE) with a fixed std alone.
        free_bits: nats below which no latent's KL, averaged over the batch, is pushed (Kingma et al. 2016).
        regulariser: the loss's rate term; `posterior`, the rate; `moments`, KL to N(0, I) of the Gaussian with the mean
            and covariance of the batch's mixture of q(z|x), at any batch size an upper bound, on average, on that of
            q(z): from the rate at a batch of 1 down to q(z)'s own at many images a latent; `mmd`, MMD^2 between the
            batch's z ~ q(z|x) and N(0, I), in units in which a small shift of q(z) costs what it does in KL.
        regulariser_weight: of `moments` or `mmd`, times rate_weight.

    Raises:
        InputError: an argument out of range, or arguments that contradict each other.
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
        prior_components: int = 10,
        seed: int = 0,
        likelihood: Literal["bin", "density"] = "bin",
        gradient: Literal["plain", "beta-nll", "faithful"] = "plain",
        rate_weight: float = 1.0,
        free_bits: float = 0.0,
        regulariser: Literal["posterior", "moments", "mmd"] = "posterior",
        regulariser_weight: float = 1.0,
    ) -> None:
        super().__init__(budget, validate_every, learning_rate, warmup, decay, seed)
        if not 0 <= rate_warmup <= 1:
            raise InputError(f"model: rate_warmup ({rate_warmup}) is a share of the budget, from 0 to 1")
        if gradient_clip <= 0 or prior_images < 1 or prior_components < 0:
            raise InputError(
                f"model: gradient_clip ({gradient_clip}) must be positive, prior_images ({prior_images}) at least 1, "
                f"prior_components ({prior_components}) at least 0"
            )
        self.rate_warmup, self.gradient_clip = rate_warmup, gradient_clip
        self.prior_images, self.prior_components = prior_images, prior_components
        self.likelihood, self.gradient, self.regulariser = likelihood, gradient, regulariser
        self.rate_weight, self.free_bits, self.regulariser_weight = rate_weight, free_bits, regulariser_weight
        self.vae = VAE(size, net)
        self.prior = LatentPrior(net.latent, net.prior)
        self.diagnostics = Diagnostics(size, net.latent)  # a new one for every evaluation
        refuse_contradictions(self)

    # Loss terms.

    def reconstruct(self, z: Tensor, x: Tensor, log_likelihood: LogLikelihood) -> tuple[Gaussian, Tensor, Tensor]:
        """p(x|z), the distortion, and what training minimises in its place, both per image, (B,).

        Their gradients by the decoder differ as `gradient` says, and by z, and so by the encoder, never: the decoder
        runs on a copy of z, and z has the true distortion's gradient from a term that is linear in z.
        """
        if self.gradient == "plain":
            p = self.vae.decode(z, x)
            distortion = -per_image(log_likelihood(p, x))
            return p, distortion, distortion
        copy = z.detach().requires_grad_()
        features = self.vae.decoder.features(copy)
        p = self.vae.decoder.head(features)
        nll = -log_likelihood(p, x)
        distortion = per_image(nll)
        (slope,) = torch.autograd.grad(distortion.sum(), copy, retain_graph=True)
        if self.gradient == "beta-nll":
            variant = beta_nll(nll, p.std)
        else:
            apart = self.vae.decoder.head(features.detach())
            variant = faithful_nll(Gaussian(p.mean, apart.logstd), x, log_likelihood)
        return p, distortion, per_image(variant) + reduce(slope * z, "b d -> b", "sum")

    def in_closed_form(self, q: Posterior) -> bool:
        """Whether KL(q(z|x) to p(z)) is known and a sum over latents."""
        return isinstance(q, Gaussian) and self.prior.flow is None

    def rate(self, q: Posterior, draws: LatentDraws) -> Tensor:
        """KL(q(z|x) to p(z)) in nats per image, (B,); where it has no closed form, of the draw, log q - log p."""
        if self.in_closed_form(q):
            return reduce(kl_to_standard_normal(q), "b d -> b", "sum")
        return self.prior.rate(draws, self.prior.training_prior)

    @property
    def regularises_the_batch(self) -> bool:
        """Whether the loss's rate term is of the batch as a whole, no mean over its images."""
        return self.regulariser != "posterior" or self.free_bits > 0

    def code(self, x: Tensor, rng: torch.Generator) -> tuple[Posterior, LatentDraws]:
        """q(z|x) and one z of each from it."""
        q = self.vae.encode(x)
        return q, q.draw(self.normal((len(x), self.vae.config.latent), rng))

    def coupled(self, q: Posterior, draws: LatentDraws) -> Tensor:
        """What a rate term of the batch is made of, a row an image: draws, or means and logstds, (B, D) or (B, 2 D)."""
        return draws.z if self.regulariser == "mmd" else torch.cat([q.mean, q.logstd], 1)

    def regularisation(self, q: Posterior, draws: LatentDraws, rate: Tensor, rng: torch.Generator) -> Tensor:
        """The loss's rate term, in nats per image; where it is no mean of the rates (B,), that of the global batch."""
        if not self.regularises_the_batch:
            return rate.mean()
        rows = self.whole(self.coupled(q, draws))
        with torch.autocast(self.device.type, enabled=False):
            if self.regulariser == "mmd":
                return mmd_in_nats(rows, shard(torch.randn, rows.shape, rng).to(rows))
            q = Gaussian(*rows.chunk(2, 1))
            if self.regulariser == "posterior":
                return floored_kl(kl_to_standard_normal(q), self.free_bits)
            # float64: with fewer images than latents most eigenvalues are no more than the posteriors' variances.
            return kl_of_moments(*mixture_moments(Gaussian(q.mean.double(), q.logstd.double())))

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

    @property
    def rate_weight_now(self) -> float:
        """The weight of the rate: a linear rise to rate_weight, then constant."""
        return self.rate_weight * (min(1.0, self.progress / self.rate_warmup) if self.rate_warmup else 1.0)

    def loss(self, x: Tensor, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor], Gaussian]:
        """What is minimised, in nats per image; the true distortion and rate, (B,); and p(x|z)."""
        q, draws = self.code(x, rng)
        target, log_likelihood = x, log_bin_probability
        if self.likelihood == "density":
            target, log_likelihood = dequantised(x, self.uniform(x.shape, rng)), log_level_density
        p, distortion, variant = self.reconstruct(draws.z, target, log_likelihood)
        rate = self.rate(q, draws)
        regularisation = self.regularisation(q, draws, rate, rng)
        terms = {"distortion": distortion, "rate": rate}
        if self.regulariser != "posterior":
            terms["regulariser"] = regularisation
        weight = self.rate_weight_now * self.regulariser_weight
        return variant.mean() + weight * regularisation, terms, p

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if self.regularises_the_batch:
            self.foresee(batch, lambda piece: self.coupled(*self.code(self.pixels(piece), self.train_rng())))
        terms = self.step(self.optimizers(), batch, self.loss_of_piece)
        self.count_step(self.finite)
        self.tick(batch)
        self.log_terms("train", terms)

    def loss_of_piece(self, piece: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, and what is logged."""
        x = self.pixels(piece)
        loss, terms, p = self.loss(x, self.train_rng())
        return loss / x[0].numel(), self.statistics(terms, p, x)  # nats per dimension: one gradient_clip for every size

    def limited(self, optimizer: torch.optim.Optimizer) -> Tensor:
        # Lightning's refuses a fused Adam
        return torch.nn.utils.clip_grad_norm_(self.parameters(), self.gradient_clip)

    # Validation.

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == "fit":
            self.fit_prior()

    @torch.no_grad()
    def fit_prior(self) -> None:
        """Fit the prior to q(z) over training images, and learn it when the budget is seen.

        Every process sees all of them and gets the same one.
        """
        data, codes, rng = self.trainer.datamodule, [], generator(self.seed)
        code = CodeStatistics(self.vae.config.latent, sync_on_compute=False).to(self.device)
        learns = self.prior_components > 0 and self.images_seen >= self.budget
        for batch in data.encode_dataloader(self.prior_images):
            x = self.pixels(self.transfer_batch_to_device(batch, self.device, 0))
            views = [x, x.flip(3)] if learns and data.flip else [x]
            with self.trainer.precision_plugin.forward_context():
                q = self.vae.encode(torch.cat(views))  # (V B, D)
            noise = torch.randn(2, len(views) * len(x), self.vae.config.latent, generator=rng)  # as on every device
            draws = q.draw(noise.to(self.device))  # two are the least that moments can be estimated from
            code.update(q[: len(x)] if isinstance(q, Gaussian) else draws[:, : len(x)])
            if learns:
                codes.append([rearrange(t, "(v b) ... -> b v ...", v=len(views)) for t in vars(draws[0]).values()])
        report = code.compute()
        self.prior.fit(report.mean, report.covariance)
        if learns:
            self.learn_prior(LatentDraws(*(torch.cat(t) for t in zip(*codes, strict=True))))

    def learn_prior(self, draws: LatentDraws) -> None:
        """Learn the prior from codes (N, V, D), V views of N images, and say in a line what it is worth."""
        start = time.monotonic()
        rates = self.prior.learn(draws, self.prior_components, self.seed)
        said = ", ".join(f"{name} {rate:.1f} nats" for name, rate in rates.items())
        said = said or f"{len(draws.z):,} images are few"
        self.print(f"prior: {self.prior.best} (rate: {said}; {time.monotonic() - start:.0f} s)")

    def begin(self) -> None:
        regions = getattr(self.trainer.datamodule, "regions", ())
        about = (self.vae.size, self.vae.config.latent, regions, self.prior.flow is not None)
        self.diagnostics = Diagnostics(*about).to(self.device)

    def over_all(self, stage: str) -> dict[str, Tensor]:
        """The diagnostics; rmse is that of all pixels together, in [0, 1] units."""
        return self.diagnostics.scalars() | {"rmse": self.trainer.callback_metrics[f"{stage}/squared_error"].sqrt()}

    def table(self) -> str:
        """Every value, and what held-out images say of the distribution."""
        ahead = "of each pixel given z and those before it:\n" if self.vae.pixel_by_pixel else ""
        return f"{super().table()}\n\n{ahead}{self.diagnostics.table()}"

    def figures(self) -> dict[str, Figure | Image]:
        """What held-out images say of the distribution, and what drawn ones do."""
        return self.diagnostics.figures() | super().figures()

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The ELBO of held-out images, by bin likelihood and the posterior's KL, however training weighs its terms."""
        x = self.pixels(batch)
        q = self.vae.encode(x)
        noise = self.held_out_noise(batch, PHOTOGRAPH_STREAMS[0], (DRAWS, self.vae.config.latent))
        draws = q.draw(rearrange(noise, "b k d -> k b d"))
        p = self.vae.decode(draws.z[0], x)
        self.diagnostics.update(q if self.in_closed_form(q) else draws, p, x, batch, self.prior.flow)
        terms = {"distortion": -per_image(log_bin_probability(p, x)), "rate": self.rate(q, draws[0])}
        rates = {
            f"rate_{name}": self.prior.rate(draws[0], name)
            for name in self.prior.names
            if name != self.prior.training_prior
        }
        return self.statistics(terms | rates, p, x)

    # Pictures, checkpoints, optimizers.

    def pipeline(self) -> Pipeline:
        return Pipeline(self.vae, self.prior)

    def card(self) -> Card:
        return Card("vae", self.vae.size, self.images_seen, asdict(self.vae.config))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.adam(self)  # the VAE, and where it is a flow the prior


def per_image(values: Tensor) -> Tensor:
    """The sum over pixels and channels, (B, C, H, W) -> (B,)."""
    return reduce(values, "b c h w -> b", "sum")
