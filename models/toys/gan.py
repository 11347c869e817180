"""The denoiser of a linear VAE's draws, trained as a GAN.

Axes: M members (problems x seeds), B batch, d data, k latents.
"""

import torch
from einops import repeat
from matplotlib.figure import Figure
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.randomness import generator
from degrain.models.toys import draw_figures, linear_vae, vector_figures
from degrain.models.toys import linear_gaussian as toy
from degrain.models.toys.duel import EVALUATION, Duel
from degrain.models.toys.metrics import wasserstein_to_normal
from degrain.models.toys.recipe import ToyModule, row
from degrain.models.training.schedule import Schedule


class ToyGANModule(ToyModule):
    """The denoiser of a linear VAE at its optimum, with a fixed sigma: x ~ N(0, S), one GAN for every member.

    G(x~, mu) = mu + sigma g(eps, mu); D sees ((x - mu)/sigma, mu). Samples of G should be distributed as the data.

    Args:
        latents: k, at most d.
        std: the fixed sigmas; each is a problem of its own.
        seeds: members for each sigma.
        width: units of each hidden layer of both networks.
        depth: hidden layers.
        penalty_weight: gamma, the weight of both gradient penalties.
        count: samples to measure with.
        schedule: budget, validate_every, learning_rate (of both networks), warmup, decay, seed.

    Raises:
        InputError: an argument out of range.
    """

    def __init__(
        self,
        latents: int = 1,
        std: list[float] = (0.7071, 1.4142),
        seeds: int = 3,
        width: int = 64,
        depth: int = 2,
        penalty_weight: float = 3.0,
        count: int = 100_000,
        **schedule,
    ) -> None:
        std = list(std)
        settings = {"latents": latents, "std": std, "seeds": seeds, "width": width, "depth": depth}
        super().__init__(settings, Schedule(**schedule))
        toy.valid_std(torch.tensor(std))
        if min(seeds, width, depth, count) < 1 or not std or penalty_weight < 0:
            raise InputError(
                f"toy GAN: seeds, width, depth, count and the number of stds must be at least 1, penalty_weight "
                f"({penalty_weight}) not negative"
            )
        self.automatic_optimization = False
        self.latents, self.count, self.width, self.depth = latents, count, width, depth
        self.penalty_weight = penalty_weight
        self.std = torch.tensor(std).repeat_interleave(seeds)  # (M,)

    def setup(self, stage: str) -> None:
        covariance, k, members = self.covariance, self.latents, len(self.std)
        toy.require_latents(k, len(covariance))
        best = [linear_vae.best_vae(covariance, std.double() ** 2, k) for std in self.std]
        self.register_buffer("encoder_matrix", torch.stack([e.matrix for e, _ in best]).float(), persistent=False)
        self.register_buffer("posterior_std", torch.stack([e.covariance for e, _ in best]).sqrt().float(), False)
        self.register_buffer("decoder_matrix", torch.stack([d.matrix for _, d in best]).float(), persistent=False)
        self.register_buffer("sigma", self.std[:, None, None], persistent=False)
        self.scale = covariance.diagonal().mean().sqrt().item()
        rng, d = torch.Generator().manual_seed(self.schedule.seed), len(covariance)
        shape = {"members": members, "width": self.width, "depth": self.depth, "generator": rng}
        self.duel = Duel(d, d, d, skip=True, penalty_weight=self.penalty_weight, **shape)

    def mean(self, z: Tensor) -> Tensor:
        """Return mu(z), (M, B, d), for codes (M, B, k)."""
        return torch.einsum("m d k, m b k -> m b d", self.decoder_matrix, z)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        x, rng = repeat(batch["x"].float(), "b d -> m b d", m=len(self.std)), self.noise()
        noise = rng.normal(x.shape[1], len(x), self.latents).transpose(0, 1)
        z = torch.einsum("m k d, m b d -> m b k", self.encoder_matrix, x) + self.posterior_std[:, None] * noise
        mean = self.mean(z)
        eps = rng.normal(x.shape[1], len(x), x.shape[2]).transpose(0, 1)
        d, g = self.duel.train_step(self, self.optimizers(), (x - mean) / self.sigma, eps, mean / self.scale)
        self.count_images(batch, g.skipped)
        self.log_terms("train", d.terms | g.terms)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return self.duel.optimizers(self.schedule.learning_rate)

    # Results.

    @torch.no_grad()
    def draw(self) -> dict[str, Tensor]:
        """Return means, samples and denoised samples for z ~ N(0, I), each (M, count, d)."""
        rng = generator(self.schedule.seed, EVALUATION, device=self.device)
        members, d = self.decoder_matrix.shape[:2]
        mean = self.mean(torch.randn(members, self.count, self.latents, generator=rng))
        eps = torch.randn(members, self.count, d, generator=rng)
        pieces = zip(eps.split(10_000, 1), mean.split(10_000, 1), strict=True)
        residual = torch.cat([self.duel.ema.module(e, m / self.scale) for e, m in pieces], 1)
        return {"means": mean, "samples": mean + self.sigma * eps, "denoised": mean + self.sigma * residual}

    def spectra(self) -> dict[str, Tensor]:
        """Return the eigenvalues, descending, of the covariances of the draws, each (M, d)."""
        draws = {name: values.double() for name, values in self.draw().items()}
        return {name: linear_vae.spectrum(x.mT @ x / self.count) for name, x in draws.items()}  # moments about 0

    def errors(self) -> dict[str, Tensor]:
        """Return by name, (M,), W1 above that of exact samples, over t (d = 1), or the worst relative eigenvalue."""
        values = linear_vae.spectrum(self.covariance)
        if len(values) == 1:
            t = values[0].sqrt().item()
            rng = generator(self.schedule.seed, EVALUATION, 1, device=self.device)
            exact = wasserstein_to_normal(t * torch.randn(self.count, generator=rng), t)
            return {name: (wasserstein_to_normal(x[..., 0], t) - exact) / t for name, x in self.draw().items()}
        return {name: (s / values - 1).abs().amax(-1) for name, s in self.spectra().items()}

    def metrics(self) -> dict[str, float]:
        kind = "excess_wasserstein" if len(self.covariance) == 1 else "max_eigenvalue_error"
        return {f"{kind}_{name}": value.max() for name, value in self.errors().items()}

    def table(self) -> str:
        one = len(self.covariance) == 1
        measure = "Wasserstein distance to N(0, t^2) above that of exact samples, over t" if one else "eigenvalues"
        lines = [f"{measure}; {self.count:,} draws, {len(self.std)} members; data {row(self.covariance.diagonal())}"]
        errors, spectra = self.errors(), self.spectra()
        lines.append(f"{'data, spectrum':>28} {row(linear_vae.spectrum(self.covariance))}")
        for i, std in enumerate(self.std.tolist()):
            lines.append(f"sigma {std:g}")
            lines += [f"{n:>28} {row(s[i])}  error {errors[n][i]:.4f}" for n, s in spectra.items()]
        return "\n".join(lines + [f"{name:>38} {value:.3g}" for name, value in self.metrics().items()])

    def figures(self) -> dict[str, Figure]:
        if len(self.covariance) == 1:
            t = self.covariance[0, 0].sqrt().item()
            first = slice(None, None, self.settings["seeds"])  # one member of each sigma
            drawn = {name: x[first, :, 0] for name, x in self.draw().items()}
            return {"denoised": draw_figures.denoised(t, self.std[first], drawn)}
        values = linear_vae.spectrum(self.covariance)
        s = {name: spectrum[0] for name, spectrum in self.spectra().items()}
        noise = self.std[0].square()
        return {"spectra": vector_figures.spectra(values, s["means"], s["samples"], noise, s["denoised"])}
