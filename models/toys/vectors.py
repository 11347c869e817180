"""Linear VAEs with full matrices in d dimensions: live and dead latents, learned sigmas, factor analysis.

Axes: W trials, B batch, d data, k latents.
"""

from functools import cached_property
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian, kl_to_standard_normal, log_density
from degrain.models.toys import factor_analysis as fa
from degrain.models.toys import linear_gaussian as toy
from degrain.models.toys import linear_vae, vector_figures
from degrain.models.toys.recipe import ToyModule, row
from degrain.models.training.schedule import Schedule


class ToyVectorsModule(ToyModule):
    """Linear VAEs with full matrices on x ~ N(0, S): A (k, d), V = diag(exp(2 s)), C (d, k) and sigma, many at once.

    A trial is one sigma (fixed, or its start) and one KL weight; a list of one entry serves all trials.

    Args:
        latents: k, at most d.
        sigma: fixed; or learned, shared by all pixels or one for each pixel.
        std: sigma, or its start, one for each trial.
        kl_weight: w in distortion + w rate, one for each trial.
        allow_kl_weight: ask for KL weights other than 1 with a learned sigma.
        floor: lowest sigma, a soft floor, if sigma is learned.
        loss: integrated, or sampled: reparameterised draws in minibatches.
        schedule: budget, validate_every, learning_rate, warmup, decay, seed; draws of x are also the clock of the
            integrated loss.

    Raises:
        InputError: lists of different lengths, a value out of range, k > d, or a KL weight other than 1 with a learned
            sigma that was not asked for.
    """

    def __init__(
        self,
        latents: int = 8,
        sigma: Literal["fixed", "shared", "pixel"] = "fixed",
        std: list[float] = (0.7,),
        kl_weight: list[float] = (1.0,),
        allow_kl_weight: bool = False,
        floor: float = 0.01,
        loss: Literal["integrated", "sampled"] = "integrated",
        **schedule,
    ) -> None:
        std, kl_weight = list(std), list(kl_weight)
        names = ("latents", "sigma", "std", "kl_weight", "floor", "loss")
        settings = {name: value for name, value in locals().items() if name in names}
        super().__init__(settings, Schedule(**schedule))
        trials = max(len(std), len(kl_weight))
        if {len(std), len(kl_weight)} - {1, trials}:
            raise InputError(
                f"toy vectors: std {std} and kl_weight {kl_weight}: give lists of one length, or of one entry"
            )
        toy.valid_std(torch.tensor(std, dtype=torch.float64))
        for weight in kl_weight:
            linear_vae.require_kl_weight(weight, allow_kl_weight or sigma == "fixed")
        if sigma != "fixed" and not 0 < floor < min(std):
            raise InputError(f"toy vectors: floor {floor}: give a value between 0 and the least std {min(std)}")
        self.latents, self.sigma, self.floor, self.loss = latents, sigma, floor, loss
        self.start = torch.tensor(std * (trials // len(std)), dtype=torch.float64)  # (W,)
        self.kl_weight = torch.tensor(kl_weight * (trials // len(kl_weight)), dtype=torch.float64)  # (W,)

    def setup(self, stage: str) -> None:
        d, k, trials = len(self.covariance), self.latents, len(self.start)
        toy.require_latents(k, d)
        rng = torch.Generator().manual_seed(self.schedule.seed)

        def normal(*shape: int) -> Tensor:
            return 0.3 * torch.randn(shape, generator=rng, dtype=torch.float64)

        self.encoder_matrix = nn.Parameter(normal(1, k, d).repeat(trials, 1, 1))
        self.decoder_matrix = nn.Parameter(normal(1, d, k).repeat(trials, 1, 1))
        self.posterior_logstd = nn.Parameter(torch.full((trials, k), -0.5, dtype=torch.float64))
        per_pixel = d if self.sigma == "pixel" else 1
        # The inverse of the soft floor: sigma starts at std.
        start = self.start if self.sigma == "fixed" else self.floor * torch.expm1((self.start / self.floor).log())
        self.noise_logstd = nn.Parameter(start.log()[:, None].repeat(1, per_pixel), self.sigma != "fixed")

    # Training.

    def encoder(self) -> linear_vae.LinearEncoder:
        """Return q(z|x) of every trial."""
        return linear_vae.LinearEncoder(self.encoder_matrix, (2 * self.posterior_logstd).exp())

    def decoder(self) -> linear_vae.LinearDecoder:
        """Return p(x|z) of every trial, with sigma^2 (W, d)."""
        fixed = self.sigma == "fixed"
        noise = (2 * self.noise_logstd).exp() if fixed else fa.noise_above_floor(self.noise_logstd, self.floor)
        return linear_vae.LinearDecoder(self.decoder_matrix, noise.expand(-1, self.decoder_matrix.shape[1]))

    def sampled(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return distortion and rate for draws x (B, d) and noise (B, W, k), each (B, W)."""
        q = Gaussian(torch.einsum("w k d, b d -> b w k", self.encoder_matrix, x), self.posterior_logstd)
        mean = torch.einsum("w d k, b w k -> b w d", self.decoder_matrix, q.sample(noise))
        p = Gaussian(mean, 0.5 * self.decoder().noise_variance.log())
        return -log_density(p, x[:, None]).sum(-1), kl_to_standard_normal(q).sum(-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.loss == "sampled":
            noise = self.noise().normal(len(batch["x"]), len(self.start), self.latents).double()
            distortion, rate = (term.mean(0) for term in self.sampled(batch["x"], noise))
        else:
            parts = linear_vae.elbo(self.encoder(), self.decoder(), self.covariance)
            distortion, rate = parts.distortion, parts.rate
        self.count_images(batch)
        self.log_terms("train", {"distortion": distortion, "rate": rate})
        return (distortion + self.kl_weight * rate).sum()

    # Results.

    def spectra(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the eigenvalues, descending, of the data (d,), and of means and samples of every trial, (W, d)."""
        decoder = self.decoder()
        means, samples = (linear_vae.spectrum(s) for s in (decoder.mean_covariance, decoder.sample_covariance))
        return linear_vae.spectrum(self.covariance), means, samples

    def expected_noise(self) -> list[linear_vae.NoiseRange]:
        """Return the shared sigma^2 that theory allows in each trial."""
        if self.sigma == "fixed":
            return [linear_vae.NoiseRange(v, v) for v in self.start.square()]
        values, weights = linear_vae.spectrum(self.covariance), self.kl_weight.tolist()
        return [linear_vae.best_shared_noise(values, self.latents, w, self.floor) for w in weights]

    def theory(self) -> list[toy.Directions]:
        """Return the closed form of each trial at its trained sigma^2, clipped to the range that theory allows."""
        values, found = linear_vae.spectrum(self.covariance), self.decoder().noise_variance[:, 0]
        return [
            toy.directions(values, noise.clamp(allowed.low, allowed.high), self.latents, weight)
            for noise, allowed, weight in zip(found, self.expected_noise(), self.kl_weight.tolist(), strict=True)
        ]

    @torch.no_grad()
    def excess(self) -> Tensor:
        """Return the objective minus its least value in theory, for each trial, (W,), in nats."""
        trials = zip(self.expected_noise(), self.kl_weight.tolist(), strict=True)
        lowest = [linear_vae.best_objective(self.covariance, r.high, self.latents, w) for r, w in trials]
        bound = linear_vae.elbo(self.encoder(), self.decoder(), self.covariance)
        return bound.distortion + self.kl_weight * bound.rate - torch.stack(lowest)

    @cached_property
    def em(self) -> linear_vae.LinearDecoder:
        """Return EM's solution from another start, to compare sigmas per pixel with; they have no closed form."""
        return fa.factor_analysis(self.covariance, self.latents, self.floor, self.schedule.seed + 1)

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        covariance, encoder, decoder = self.covariance, self.encoder(), self.decoder()
        noise = decoder.noise_variance
        aggregate = linear_vae.aggregate_covariance(encoder, covariance)
        values = {"aggregate_gap": (aggregate - torch.eye(self.latents).to(covariance)).abs().amax()}
        if self.sigma == "pixel":
            em, off_floor = self.em, noise.sqrt() > 1.1 * self.floor
            gap = fa.marginal_variance_gap(encoder, decoder, covariance)
            bound = linear_vae.elbo(encoder, decoder, covariance)
            lowest = fa.negative_log_likelihood(em, covariance)
            return values | {
                "max_marginal_variance_gap": (gap * off_floor).abs().max(),
                "at_floor": (~off_floor).sum(-1).double().mean(),
                "max_error_std_to_em": (noise.sqrt() - em.noise_variance.sqrt()).abs().max(),
                "excess_objective_to_em": (bound.distortion + bound.rate - lowest).max(),
            }
        theory = self.theory()
        expected = torch.stack([s.sample_variance for s in theory]).sort(descending=True).values
        best = [(e.low.clamp(min=self.floor**2), e.high) for e in self.expected_noise()]
        wrong = [torch.maximum(low - v, v - high) for v, (low, high) in zip(noise[:, 0], best, strict=True)]
        _, means, samples = self.spectra()
        return values | {
            "max_error_mean_spectrum": (means - torch.stack([s.mean_variance for s in theory])).abs().max(),
            "max_error_sample_spectrum": (samples - expected).abs().max(),
            "max_error_noise_variance": max(0.0, *(w.item() for w in wrong)) if self.sigma == "shared" else 0.0,
            "excess_objective": self.excess().max(),
            "max_error_live": (self.live().sum(-1) - torch.stack([s.live.sum() for s in theory])).abs().max(),
        }

    @torch.no_grad()
    def live(self) -> Tensor:
        """Return True for latents that code anything, (W, k): KL over 0.01 nats on average."""
        square = torch.einsum("w k d, d e, w k e -> w k", self.encoder_matrix, self.covariance, self.encoder_matrix)
        return kl_to_standard_normal(Gaussian(square.sqrt(), self.posterior_logstd)) > 0.01

    @torch.no_grad()
    def table(self) -> str:
        decoder, live = self.decoder(), self.live().sum(-1)
        values, means, samples = self.spectra()
        lines = [f"sigma {self.sigma}, {self.latents} latents, {self.loss} loss; data's spectrum {row(values)}"]
        theory = self.theory() if self.sigma != "pixel" else []
        allowed = self.expected_noise() if self.sigma != "pixel" else []
        for i, weight in enumerate(self.kl_weight.tolist()):
            lines.append(f"KL weight {weight:g}, sigma from {self.start[i]:g}: {live[i]} live latents")
            lines.append(f"{'means, spectrum':>28} {row(means[i])}")
            lines.append(f"{'samples, spectrum':>28} {row(samples[i])}")
            if theory:
                lines.append(f"{'closed form, means':>28} {row(theory[i].mean_variance)}")
                expected = theory[i].sample_variance.sort(descending=True).values
                lines.append(f"{'closed form, samples':>28} {row(expected)}")
                low, high = max(allowed[i].low.item(), 0), allowed[i].high.item()
                span = f"{low:.4g}" if low == high else f"anything from {low:.4g} to {high:.4g}"
                lines.append(f"{'sigma^2':>28} {decoder.noise_variance[i, 0]:.5g}; closed form {span}")
            else:
                lines.append(f"{'std at each pixel':>28} {row(decoder.noise_variance[i].sqrt())}")
                lines.append(f"{'by EM from another start':>28} {row(self.em.noise_variance.sqrt())}")
                if hasattr(self.data, "noise"):
                    lines.append(f"{'planted':>28} {row(torch.tensor(self.data.noise))}")
        return "\n".join(lines + [f"{name:>28} {value:.3g}" for name, value in self.metrics().items()])

    @torch.no_grad()
    def figures(self) -> dict[str, Figure]:
        values, means, samples = self.spectra()
        decoder = self.decoder()
        drawn = {"spectra": vector_figures.spectra(values, means[0], samples[0], decoder.noise_variance[0].mean())}
        if self.sigma == "pixel":
            mean_variance = decoder.sample_covariance.diagonal(dim1=-2, dim2=-1) - decoder.noise_variance
            planted = torch.tensor(self.data.noise) if hasattr(self.data, "noise") else None
            variances = (self.covariance.diagonal(), mean_variance[0], decoder.noise_variance[0])
            drawn["pixels"] = vector_figures.pixels(*variances, self.floor, planted)
        if self.sigma == "shared" and len(self.start) > 1:
            noise, live = decoder.noise_variance[:, 0], self.live().sum(-1)
            drawn["kl_weight"] = vector_figures.kl_weight(values, self.latents, self.kl_weight, noise, live, self.floor)
        return drawn
