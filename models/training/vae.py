"""Stage 1: the VAE, trained on distortion + rate in nats per image."""

import time
from dataclasses import asdict
from typing import Any, Literal

import torch
from einops import rearrange
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor, nn
from tqdm import tqdm

from degrain.models.core.gaussian import Gaussian, LatentDraws, kl_of_moments, kl_to_standard_normal
from degrain.models.core.randomness import Noise, generator
from degrain.models.evaluation.calibration import CodeReport, CodeStatistics
from degrain.models.evaluation.diagnostics import Diagnostics
from degrain.models.inference.checkpoint import Card
from degrain.models.inference.pipeline import PHOTOGRAPH_STREAMS, Pipeline
from degrain.models.training.contradictions import refuse_stage_1
from degrain.models.training.image_module import Batch, ImageModule
from degrain.models.training.schedule import Schedule, warmed_up
from degrain.models.training.update import Update, adam
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.likelihood import dequantised, log_bin_probability, log_level_density
from degrain.models.vae.network import VAE, Posterior, VAEConfig
from degrain.models.vae.objective import DecoderGradient, closed_form_rate, per_image, rate, reconstruct, statistics
from degrain.models.vae.regulariser import floored_kl, mixture_moments, mmd_in_nats

DRAWS = 8
"""Draws of each held-out image's q(z|x), if that is known by draws alone: enough to tell a variance of 0.01."""


class VAEModule(ImageModule):
    """-log p(x|z) + KL(q(z|x) to p(z)), with the likelihood of the 8-bit values under a mean and a std for every pixel.

    The variants change what is trained on. Distortion and rate are logged as they are, unweighted, with training's
    likelihood; on held-out images they are always those of the bin likelihood and the posteriors, and so compare.

    Args:
        size: image side in pixels; set by the data.
        net: architecture.
        rate_warmup: share of the budget over which the weight of the rate rises from 0 to rate_weight, where it stays.
        gradient_clip: largest norm of the gradient of the loss in nats per dimension.
        prior_images: training images that the prior is fitted to, every second one mirrored if the data are flipped; it
            is learned from both views of each.
        prior_components: Gaussians in the mixture that is learned as prior when the budget is seen; 0 leaves the fitted
            one.
        prior_diffusion: codes that a diffusion prior learns from at most, after the mixture, such as 2,500,000; 0 for
            none. On a finished run, `fit` with it adds the prior.
        likelihood: training's; `bin`, the probability of the 8-bit value, a code length and so never negative; or
            `density`, of the dequantised pixel per 8-bit level, whose loss goes negative below a std of 0.0016.
        gradient: the decoder's; `plain`; `beta-nll`, every pixel's term times its std (Seitzer et al. 2022); or
            `faithful`, the mean and all below it learn from squared_error/2, the std at its head alone (Stirn et al.
            2023). The encoder always has the true ELBO's gradient.
        rate_weight: of the rate, after the warm-up; other than 1 (a beta-VAE) with a fixed std alone.
        free_bits: nats below which no latent's KL, averaged over the batch, is pushed (Kingma et al. 2016).
        regulariser: the loss's rate term; `posterior`, the rate; `moments`, KL to N(0, I) of the Gaussian with the mean
            and covariance of the batch's mixture of q(z|x), at any batch size an upper bound, on average, on that of
            q(z): from the rate at a batch of 1 down to q(z)'s own at many images a latent; `mmd`, MMD^2 between the
            batch's z ~ q(z|x) and N(0, I), in units in which a small shift of q(z) costs what it does in KL.
        regulariser_weight: of `moments` or `mmd`, times rate_weight.
        schedule: budget, validate_every, learning_rate, warmup, warmup_images, decay, seed.

    Attributes:
        fitted_at: images seen when the prior was last fitted; None if this process has not.

    Raises:
        InputError: an argument out of range, or arguments that contradict each other.
    """

    fitted_at: int | None = None
    watched = "val/bits_per_dimension"

    def __init__(
        self,
        size: int,
        net: VAEConfig = VAEConfig(),  # noqa: B008 (frozen)
        rate_warmup: float = 0.05,
        gradient_clip: float = 1.0,
        prior_images: int = 20_000,
        prior_components: int = 10,
        prior_diffusion: int = 0,
        likelihood: Literal["bin", "density"] = "bin",
        gradient: DecoderGradient = "plain",
        rate_weight: float = 1.0,
        free_bits: float = 0.0,
        regulariser: Literal["posterior", "moments", "mmd"] = "posterior",
        regulariser_weight: float = 1.0,
        **schedule,
    ) -> None:
        super().__init__(Schedule(**schedule))
        self.rate_warmup, self.gradient_clip = rate_warmup, gradient_clip
        self.prior_images, self.prior_components, self.prior_diffusion = prior_images, prior_components, prior_diffusion
        self.likelihood, self.gradient, self.regulariser = likelihood, gradient, regulariser
        self.rate_weight, self.free_bits, self.regulariser_weight = rate_weight, free_bits, regulariser_weight
        self.couples_the_batch = regulariser != "posterior" or free_bits > 0  # no mean of the images' rates
        self.net = net
        refuse_stage_1(self)
        self.vae = VAE(size, net)
        self.prior = LatentPrior(net.latent, net.prior)
        self.diagnostics = Diagnostics(size, net.latent)  # a new one for every evaluation
        self.log_likelihood = log_bin_probability if likelihood == "bin" else log_level_density

    # Training.

    @property
    def networks(self) -> list[nn.Module]:
        return [self.vae.encoder, self.vae.decoder]

    def compile(self, **options: Any) -> None:
        super().compile(**options)
        self.log_likelihood = torch.compile(self.log_likelihood, **options)  # forty elementwise operations

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        update = Update(self, self.optimizers(), clip=self.gradient_clip)
        for piece, noise in update.over(self.pieces(batch)):  # one, unless data.micro_batch_size asks for more
            x = self.photographs(piece)  # (B, 3, H, W) in [0, 1]
            loss, terms = self.loss(x, noise)
            update.backward(loss / x[0].numel(), terms)  # nats per dimension: one gradient_clip for every size
        update.step()
        self.count_images(batch, update.skipped)
        self.log_terms("train", update.terms | {"gradient_norm": update.norm})

    def loss(self, x: Tensor, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of images (B, 3, H, W), (), in nats per image, and named terms, (B,) or ()."""
        q = self.vae.encode(x)  # q(z|x)
        draws = q.draw(noise.normal(len(x), self.vae.config.latent))  # z ~ q(z|x), (B, D)
        target = x if self.likelihood == "bin" else dequantised(x, noise.uniform(*x.shape))
        p, distortion, minimised = reconstruct(self.vae, draws.z, target, self.log_likelihood, self.gradient)
        kl = rate(q, draws, self.prior)  # (B,)
        terms = statistics(p, x, distortion, kl, self.vae.config.std_floor)
        weight = self.rate_weight * warmed_up(self.progress, self.rate_warmup)
        if not self.couples_the_batch:
            return minimised.mean() + weight * kl.mean(), terms
        regulariser = self.regularisation(q, draws.z, noise)
        if self.regulariser != "posterior":
            terms["regulariser"] = regulariser
        return minimised.mean() + weight * self.regulariser_weight * regulariser, terms

    def regularisation(self, q: Posterior, z: Tensor, noise: Noise) -> Tensor:
        """Return the rate term of the global batch in nats per image, (), for this process's q(z|x) and z (B, D)."""
        if self.regulariser == "mmd":
            return mmd_in_nats(self.gather_global(z), self.gather_global(noise.normal(*z.shape)).to(z))
        q = Gaussian(self.gather_global(q.mean), self.gather_global(q.logstd))
        if self.regulariser == "posterior":
            return floored_kl(kl_to_standard_normal(q), self.free_bits)
        # float64: with fewer images than latents most eigenvalues are no more than the posteriors' variances.
        return kl_of_moments(*mixture_moments(Gaussian(q.mean.double(), q.logstd.double())))

    # Validation.

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.fit_prior()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.finished:
            self.fit_prior()

    def on_train_epoch_end(self) -> None:
        """Fit the prior at the end of the run if no validation has, before the last checkpoint is written."""
        if self.trainer.fit_loop.done and self.fitted_at != self.images_seen:
            self.fit_prior()

    @torch.no_grad()
    def fit_prior(self) -> None:
        """Fit the prior to q(z) over training images, and learn it when the budget is seen.

        The processes share the images, and the first one alone learns; all get the same prior.
        """
        learns = max(self.prior_components, self.prior_diffusion) > 0 and self.finished
        report, draws, q = self.encoded(learns)
        fitted, self.fitted_at = self.prior.fit(report.mean, report.covariance), self.images_seen
        if fitted and self.prior_components == 0:
            self.prior.note = "stage 1 was trained with prior_components 0"
        if fitted and learns:
            if self.trainer.is_global_zero:
                self.learn_prior(draws, q)
            learned = [part and part.cpu() for part in (self.prior.mixture, self.prior.diffusion)]
            learned, self.prior.note = self.trainer.strategy.broadcast((learned, self.prior.note))
            self.prior.mixture, self.prior.diffusion = (part and part.to(self.device) for part in learned)

    def encoded(self, keep: bool) -> tuple[CodeReport, LatentDraws | None, Gaussian | None]:
        """Return the moments of q(z) over training images and, to keep, a draw (N, V, D) of each of V views.

        A diffusion needs more than draws: for one, the posteriors (N, V, D) are kept as well.
        """
        data, rng, latent = self.trainer.datamodule, generator(self.schedule.seed), self.vae.config.latent
        mine = slice(self.global_rank, None, self.trainer.world_size)  # of each batch
        code, codes = CodeStatistics(latent).to(self.device), []
        width = latent * (3 if self.prior_diffusion else 1) + 1
        for batch in data.encode_dataloader(self.prior_images):
            x = self.photographs(self.transfer_batch_to_device(batch, self.device, 0))
            views = 2 if keep and data.flip else 1
            noise = torch.randn(2, views, len(x), latent, generator=rng)[:, :, mine].to(self.device)  # drawn on the CPU
            if keep:
                codes.append(noise.new_zeros(len(x), views, width))
            x = x[mine]
            if not len(x):
                continue
            with self.trainer.precision_plugin.forward_context():
                q = self.vae.encode(torch.cat([x, x.flip(3)][:views]))  # (V B, D)
            draws = q.draw(rearrange(noise, "k v b d -> k (v b) d"))  # two: moments need them
            code.update(q[: len(x)] if isinstance(q, Gaussian) else draws[:, : len(x)])
            if keep:
                moments = [q.mean, q.logstd.expand_as(q.mean)] if self.prior_diffusion else []
                drawn = torch.cat([draws.z[0], draws.log_q[0, :, None], *moments], 1)  # (V B, D + 1 or 3 D + 1)
                codes[-1][mine] = rearrange(drawn, "(v b) d -> b v d", v=views)
        if not keep:
            return code.compute(), None, None
        gathered = self.trainer.strategy.reduce(torch.cat(codes), reduce_op="sum")  # the others' rows are 0
        z, log_q, *moments = gathered.split([latent, 1, *[latent] * (width // latent - 1)], dim=-1)
        return code.compute(), LatentDraws(z, log_q[..., 0]), Gaussian(*moments) if moments else None

    def learn_prior(self, draws: LatentDraws, q: Gaussian | None) -> None:
        """Learn the prior from codes (N, V, D), V views of N images, and say in a line what it is worth."""
        start, seed, rates, gains = time.monotonic(), self.schedule.seed, {}, {}
        if self.prior_components:
            rates = self.prior.learn(draws, self.prior_components, seed)
        if q is not None:
            with self.trainer.precision_plugin.forward_context():
                gains = self.prior.learn_diffusion(q, self.prior_diffusion, seed)
        said = [f"rate: {listed(rates)}"] if rates else []
        said += [f"gain over fitted in denoising: {listed(gains)}; diffusion has no rate"] if gains else []
        said += [self.prior.note] if self.prior.note else []
        tqdm.write(f"prior: {self.prior.best} ({'; '.join(said)}; {time.monotonic() - start:.0f} s)")
        if self.prior.diffusion is not None:
            tqdm.write(f"prior: {self.prior.diffusion.memorising()}")

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the ELBO of held-out images, by bin likelihood and the posterior's KL, whatever is trained on."""
        x = self.photographs(batch)
        q = self.vae.encode(x)
        noise = self.held_out_noise(batch, PHOTOGRAPH_STREAMS[0], (DRAWS, self.vae.config.latent))
        draws = q.draw(rearrange(noise, "b k d -> k b d"))
        p = self.vae.decode(draws.z[0], x)
        closed = closed_form_rate(q, self.prior)
        self.diagnostics.update(q if closed else draws, p, x, batch, self.prior.flow)
        distortion, kl = -per_image(log_bin_probability(p, x)), rate(q, draws[0], self.prior)
        others = (name for name in self.prior.densities if name != self.prior.training_prior)
        rates = {f"rate_{name}": self.prior.rate(draws[0], name) for name in others}
        return statistics(p, x, distortion, kl, self.vae.config.std_floor) | rates

    def reset_metrics(self) -> None:
        regions = getattr(self.trainer.datamodule, "regions", ())
        about = (self.vae.size, self.vae.config.latent, regions, self.prior.flow is not None)
        self.diagnostics = Diagnostics(*about).to(self.device)

    def epoch_metrics(self, stage: str) -> dict[str, Tensor]:
        """Return the diagnostics; rmse is that of all pixels together, in [0, 1] units."""
        return self.diagnostics.scalars() | {"rmse": self.trainer.callback_metrics[f"{stage}/squared_error"].sqrt()}

    def table(self) -> str:
        """Return every value, and what held-out images say of the distribution."""
        ahead = "of each pixel given z and those before it:\n" if self.vae.pixel_by_pixel else ""
        diffusion = self.prior.diffusion
        drawn = f"\nprior diffusion, which has no rate: {diffusion.memorising()}" if diffusion is not None else ""
        return f"{super().table()}\n\n{ahead}{self.diagnostics.table()}{drawn}"

    def figures(self) -> dict[str, Figure | Image]:
        """Return figures of the distribution that held-out images found, and of drawn images."""
        return self.diagnostics.figures() | super().figures()

    # Pictures, checkpoints, optimizers.

    def pipeline(self) -> Pipeline:
        return Pipeline(self.vae, self.prior)

    def card(self) -> Card:
        note = self.prior.note or None
        return Card("vae", self.vae.size, self.images_seen, asdict(self.vae.config), prior_note=note)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.prior.note = checkpoint["degrain"].get("prior_note") or ""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adam(self, self.schedule.learning_rate)  # the VAE, and the prior if it is a flow


def listed(values: dict[str, float]) -> str:
    """Return nats by prior in words."""
    return ", ".join(f"{name} {value:.1f} nats" for name, value in values.items())
