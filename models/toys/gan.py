"""The GAN stage in the toy: what its recipes share, and the denoiser of the linear VAE's draws.

The terms are models/adversarial.py's. Axes: M members (problems x seeds), B batch, d data, k latents.
"""

from typing import Any

import torch
from einops import repeat
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.core.errors import InputError
from models.core.randomness import generator
from models.gan.objective import AdversarialLoss, discriminator_objective, generator_objective
from models.toys import figures as toy_figures
from models.toys import linear_gaussian as toy
from models.toys import linear_vae
from models.toys.ensemble import Duel, as_images
from models.toys.metrics import wasserstein_to_normal
from models.toys.recipe import ToyModule, row

EVALUATION = 2  # a stream of its own beside training's 0 and evaluation's 1


class ToyAdversary(ToyModule):
    """A recipe with a Duel or several, each of which has two optimizers and a moving average of its generator.

    Three things decided whether the toys converge: a denoiser that starts as the identity, the penalty at every step
    and a second moment of Adam that is averaged long (0.999). Without them it ends 3 to 10 times as far off.

    Args:
        settings: what a checkpoint must share with the config that goes on from it.
        penalty_weight: gamma, the weight of both gradient penalties.
    """

    def __init__(self, settings: dict[str, Any], penalty_weight: float, *clock: Any) -> None:
        super().__init__(settings, *clock)
        if penalty_weight < 0:
            raise InputError(f"toy GAN: penalty_weight {penalty_weight} must not be negative")
        self.automatic_optimization = False
        self.penalty_weight = penalty_weight

    def average(self, network: nn.Module, steps: float = 100) -> AveragedModel:
        """A moving average of a network, with a half-life in steps: longer, it averages over answers that differ."""
        return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5 ** (1 / steps)))

    def step(self, optimizer: Any, loss: Tensor) -> None:
        """One optimiser step on a loss."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def adam(self, *networks: nn.Module) -> list[torch.optim.Optimizer]:
        """One optimizer a network, with the momentum off, as the relativistic loss wants it."""
        return [torch.optim.Adam(net.parameters(), self.schedule.learning_rate, betas=(0.0, 0.999)) for net in networks]

    def play(
        self,
        duel: Duel,
        optimizers: Any,
        real: Tensor,
        noise: Tensor,
        condition: Tensor,
        loss: AdversarialLoss = "relativistic",
    ) -> dict[str, Tensor]:
        """Take one step of D and one of G; the classic loss has no penalty here.

        Args:
            duel: the two networks.
            optimizers: of G and of D.
            real: what the data say under the condition, (M, B, D).
            noise: (M, B, N).
            condition: (M, B, C).
            loss: what both play.
        """
        fake, x = as_images(duel.generator(noise, condition)), as_images(real)
        penalty_weight = self.penalty_weight if loss == "relativistic" else 0.0
        d_loss, d_terms = discriminator_objective(duel.judge, loss, x, fake, condition, penalty_weight)
        self.step(optimizers[1], d_loss)

        duel.discriminator.requires_grad_(False)
        g_loss, g_terms = generator_objective(duel.judge, loss, x, fake, condition)
        self.step(optimizers[0], g_loss)
        duel.discriminator.requires_grad_(True)
        return {"d_loss": d_terms["d_loss"], **g_terms}


class ToyGANModule(ToyAdversary):
    """The denoiser of a linear VAE that stands at its optimum, with sigma fixed: x ~ N(0, S), a duel for every member.

    G(x~, mu) = mu + sigma g(eps, mu), D sees ((x - mu)/sigma, mu). Its samples should have the data's law.

    Args:
        latents: k, at most d.
        std: the fixed sigmas; each is a problem of its own.
        seeds: members for each sigma.
        width: units of each hidden layer of both networks.
        depth: hidden layers.
        penalty_weight: gamma, the weight of both gradient penalties.
        budget: draws of x to see in all.
        validate_every: draws between measurements.
        learning_rate: Adam's, after the warm-up.
        warmup: share of the budget over which the learning rate rises from 0.
        decay: share of the budget, at its end, over which the learning rate falls to 0 as a half cosine.
        count: samples to measure with.
        seed: of the start and of the noise.
    """

    def __init__(
        self,
        latents: int = 1,
        std: list[float] = (0.7071, 1.4142),
        seeds: int = 3,
        width: int = 64,
        depth: int = 2,
        penalty_weight: float = 3.0,
        budget: int = 1_024_000,
        validate_every: int = 256_000,
        learning_rate: float = 1e-3,
        warmup: float = 0.01,
        decay: float = 0.7,
        count: int = 100_000,
        seed: int = 0,
    ) -> None:
        std = list(std)
        settings = {"latents": latents, "std": std, "seeds": seeds, "width": width, "depth": depth}
        clock = (budget, validate_every, learning_rate, warmup, decay, seed)
        super().__init__(settings, penalty_weight, *clock)
        toy.valid_std(torch.tensor(std))
        if min(seeds, width, depth, count) < 1 or not std:
            raise InputError("toy GAN: seeds, width, depth, count and the number of stds must be at least 1")
        self.latents, self.count, self.width, self.depth = latents, count, width, depth
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
        self.duel = Duel(members, d, d, d, self.width, self.depth, rng, skip=True)
        self.ema = self.average(self.duel.generator)

    def condition(self, z: Tensor) -> Tensor:
        """mu(z), (M, B, d)."""
        return torch.einsum("m d k, m b k -> m b d", self.decoder_matrix, z)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        x, rng = repeat(batch["x"].float(), "b d -> m b d", m=len(self.std)), self.noise()
        noise = rng.normal(x.shape[1], len(x), self.latents).transpose(0, 1)
        z = torch.einsum("m k d, m b d -> m b k", self.encoder_matrix, x) + self.posterior_std[:, None] * noise
        mean = self.condition(z)
        eps = rng.normal(x.shape[1], len(x), x.shape[2]).transpose(0, 1)
        terms = self.play(self.duel, self.optimizers(), (x - mean) / self.sigma, eps, mean / self.scale)
        self.ema.update_parameters(self.duel.generator)
        self.count_images(batch)
        self.log_terms("train", terms)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return self.adam(self.duel.generator, self.duel.discriminator)

    # What was found.

    @torch.no_grad()
    def draw(self) -> dict[str, Tensor]:
        """Means, samples and denoised for z ~ N(0, I), each (M, count, d)."""
        rng = generator(self.schedule.seed, EVALUATION, device=self.device)
        members, d = self.decoder_matrix.shape[:2]
        mean = self.condition(torch.randn(members, self.count, self.latents, generator=rng))
        eps = torch.randn(members, self.count, d, generator=rng)
        pieces = zip(eps.split(10_000, 1), mean.split(10_000, 1), strict=True)
        residual = torch.cat([self.ema.module(e, m / self.scale) for e, m in pieces], 1)
        return {"means": mean, "samples": mean + self.sigma * eps, "denoised": mean + self.sigma * residual}

    def spectra(self) -> dict[str, Tensor]:
        """Eigenvalues, descending, of the covariances of the draws, each (M, d)."""
        return {name: linear_vae.spectrum(covariance_of(values)) for name, values in self.draw().items()}

    def errors(self) -> dict[str, Tensor]:
        """By name, (M,): W1 above exact samples', over t (d = 1), or the worst relative error of an eigenvalue."""
        values, drawn = linear_vae.spectrum(self.covariance), self.draw()
        if len(values) == 1:
            t = values[0].sqrt().item()
            rng = generator(self.schedule.seed, EVALUATION, 1, device=self.device)
            exact = wasserstein_to_normal(t * torch.randn(self.count, generator=rng), t)
            return {name: (wasserstein_to_normal(x[..., 0], t) - exact) / t for name, x in drawn.items()}
        spectra = {name: linear_vae.spectrum(covariance_of(x)) for name, x in drawn.items()}
        return {name: (s / values - 1).abs().amax(-1) for name, s in spectra.items()}

    def metrics(self) -> dict[str, float]:
        kind = "excess_wasserstein" if len(self.covariance) == 1 else "max_eigenvalue_error"
        return {f"{kind}_{name}": value.max() for name, value in self.errors().items()}

    def table(self) -> str:
        one = len(self.covariance) == 1
        what = "Wasserstein distance to N(0, t^2) above that of exact samples, over t" if one else "eigenvalues"
        lines = [f"{what}; {self.count:,} draws, {len(self.std)} members; data {row(self.covariance.diagonal())}"]
        errors, spectra = self.errors(), self.spectra()
        lines.append(f"{'data, spectrum':>28} {row(linear_vae.spectrum(self.covariance))}")
        for i, std in enumerate(self.std.tolist()):
            lines.append(f"sigma {std:g}")
            lines += [f"{n:>28} {row(s[i])}  error {errors[n][i]:.4f}" for n, s in spectra.items()]
        return "\n".join(lines + [f"{name:>38} {value:.3g}" for name, value in self.metrics().items()])

    def figures(self) -> dict[str, Figure]:
        drawn = self.draw()
        if len(self.covariance) == 1:
            t = self.covariance[0, 0].sqrt().item()
            first = list(range(0, len(self.std), self.settings["seeds"]))
            return {"denoised": toy_figures.denoised(t, self.std[first], {n: x[first, :, 0] for n, x in drawn.items()})}
        values = linear_vae.spectrum(self.covariance)
        s = {name: linear_vae.spectrum(covariance_of(x))[0] for name, x in drawn.items()}
        noise = self.std[0].square()
        return {"spectra": toy_figures.spectra(values, s["means"], s["samples"], noise, s["denoised"])}


def covariance_of(values: Tensor) -> Tensor:
    """Second moments about 0 of (M, B, d), in float64: (M, d, d)."""
    values = values.double()
    return values.mT @ values / values.shape[-2]
