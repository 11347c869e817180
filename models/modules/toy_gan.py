"""The GAN stage in the toy: a denoiser of the linear VAE's draws, and mixtures in the plane with every control.

The terms are models/adversarial.py's. Axes: M members (problems x seeds), B batch, d data, k latents, K draws of one z.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models import figures, linear_vae
from models import linear_gaussian as toy
from models.adversarial import gradient_penalty, relativistic_loss, spread_loss
from models.ensemble import Duel, EnsembleMLP, as_images
from models.errors import InputError
from models.gaussian import Gaussian, kl_to_standard_normal, log_density, soft_floor
from models.modules.toy import ToyModule, row
from models.randomness import generator
from models.toy_metrics import mixture_quality, wasserstein_to_normal

EVALUATION = 2  # a stream of its own beside training's 0 and evaluation's 1


class ToyAdversary(ToyModule):
    """A recipe with a Duel or several, each of which has two optimizers and a moving average of its generator.

    Args:
        settings: what a checkpoint must share with the config that goes on from it.
        penalty_weight: gamma, the weight of both gradient penalties.
        penalty_every: steps between gradient penalties, whose weight is multiplied by it.
        spread_weight: weight of the term that holds Var_eps[G] at sigma^2.
    """

    def __init__(
        self, settings: dict[str, Any], penalty_weight: float, penalty_every: int, spread_weight: float, *clock: Any
    ) -> None:
        super().__init__(settings, *clock)
        self.automatic_optimization = False
        self.penalty_weight, self.penalty_every, self.spread_weight = penalty_weight, penalty_every, spread_weight

    def average(self, network: nn.Module, steps: float = 500) -> AveragedModel:
        """A moving average of a network, with a half-life in steps."""
        return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5 ** (1 / steps)))

    def step(self, optimizer: Any, loss: Tensor) -> None:
        """One optimiser step on a loss."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def adam(self, *networks: nn.Module) -> list[torch.optim.Optimizer]:
        """One optimizer a network, with the momentum off, as the relativistic loss wants it."""
        return [torch.optim.Adam(net.parameters(), self.learning_rate, betas=(0.0, 0.99)) for net in networks]

    def play(
        self, duel: Duel, optimizers: Any, real: Tensor, noise: Tensor, condition: Tensor, index: int, spread: bool
    ) -> dict[str, Tensor]:
        """One relativistic step of D and of G.

        Args:
            duel: the two networks.
            optimizers: of G and of D.
            real: what the data say under the condition, (M, B, D).
            noise: K draws of each condition, (K, M, B, N); the first is D's.
            condition: (M, B, C).
            index: of the step.
            spread: whether to hold the variance over the noise at 1.
        """
        draws = torch.stack([duel.generate(n, condition) for n in noise])
        penalise = index % self.penalty_every == 0
        x, fake = as_images(real).requires_grad_(penalise), as_images(draws[0]).detach().requires_grad_(penalise)
        real_logits, fake_logits = duel.judge(x, condition), duel.judge(fake, condition)
        terms = {"d_loss": relativistic_loss(real_logits, fake_logits)}
        loss = terms["d_loss"].mean()
        if penalise:
            penalties = gradient_penalty(real_logits, x) + gradient_penalty(fake_logits, fake)
            loss = loss + self.penalty_weight * self.penalty_every * penalties.mean()
        self.step(optimizers[1], loss)

        duel.discriminator.requires_grad_(False)
        fake_logits = duel.judge(as_images(draws[0]), condition)
        terms["g_loss"] = relativistic_loss(fake_logits, duel.judge(x.detach(), condition))
        loss = terms["g_loss"].mean()
        if spread and self.spread_weight:
            by_member = rearrange(draws, "k m b d -> k b 1 m d")
            loss = loss + self.spread_weight * spread_loss(by_member, torch.ones_like(by_member[0]), pool=1)
        self.step(optimizers[0], loss)
        duel.discriminator.requires_grad_(True)
        return terms


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
        penalty_every: steps between gradient penalties, whose weight is multiplied by it.
        spread_weight: weight of the term that holds Var_eps[G] at sigma^2; 0 where sigma is fixed, as that is too much
            in dead directions.
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
        penalty_weight: float = 0.05,
        penalty_every: int = 4,
        spread_weight: float = 0.0,
        budget: int = 1_024_000,
        validate_every: int = 256_000,
        learning_rate: float = 3e-3,
        warmup: float = 0.01,
        decay: float = 0.7,
        count: int = 100_000,
        seed: int = 0,
    ) -> None:
        std = list(std)
        settings = {"latents": latents, "std": std, "seeds": seeds, "width": width, "depth": depth}
        clock = (budget, validate_every, learning_rate, warmup, decay, seed)
        super().__init__(settings, penalty_weight, penalty_every, spread_weight, *clock)
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
        rng, d = torch.Generator().manual_seed(self.seed), len(covariance)
        self.duel = Duel(members, d, d, d, self.width, self.depth, rng)
        self.ema = self.average(self.duel.generator)

    def condition(self, z: Tensor) -> Tensor:
        """mu(z), (M, B, d)."""
        return torch.einsum("m d k, m b k -> m b d", self.decoder_matrix, z)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        x, rng = repeat(batch["x"].float(), "b d -> m b d", m=len(self.std)), self.train_rng()
        noise = self.normal((x.shape[1], len(x), self.latents), rng).transpose(0, 1)
        z = torch.einsum("m k d, m b d -> m b k", self.encoder_matrix, x) + self.posterior_std[:, None] * noise
        mean = self.condition(z)
        eps = rearrange(self.normal((x.shape[1], 2, *x.shape[::2]), rng), "b k m d -> k m b d")
        eps = eps if self.spread_weight else eps[:1]
        index = self.images_seen // x.shape[1]
        real = (x - mean) / self.sigma
        terms = self.play(self.duel, self.optimizers(), real, eps, mean / self.scale, index, spread=True)
        self.ema.update_parameters(self.duel.generator)
        self.tick(batch)
        self.log_terms("train", terms)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return self.adam(self.duel.generator, self.duel.discriminator)

    # What was found.

    @torch.no_grad()
    def draw(self) -> dict[str, Tensor]:
        """Means, samples and denoised for z ~ N(0, I), each (M, count, d)."""
        rng = generator(self.seed, EVALUATION, device=self.device)
        members, d = self.decoder_matrix.shape[:2]
        mean = self.condition(torch.randn(members, self.count, self.latents, generator=rng))
        eps = torch.randn(members, self.count, d, generator=rng)
        pieces = zip(eps.split(10_000, 1), mean.split(10_000, 1), strict=True)
        residual = torch.cat([self.ema.module(torch.cat([e, m / self.scale], -1)) for e, m in pieces], 1)
        return {"means": mean, "samples": mean + self.sigma * eps, "denoised": mean + self.sigma * residual}

    def spectra(self) -> dict[str, Tensor]:
        """Eigenvalues, descending, of the covariances of the draws, each (M, d)."""
        return {name: linear_vae.spectrum(covariance_of(values)) for name, values in self.draw().items()}

    def errors(self) -> dict[str, Tensor]:
        """By name, (M,): W1 above exact samples', over t (d = 1), or the worst relative error of an eigenvalue."""
        values, drawn = linear_vae.spectrum(self.covariance), self.draw()
        if len(values) == 1:
            t = values[0].sqrt().item()
            rng = generator(self.seed, EVALUATION, 1, device=self.device)
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
            return {"denoised": figures.denoised(t, self.std[first], {n: x[first, :, 0] for n, x in drawn.items()})}
        values = linear_vae.spectrum(self.covariance)
        s = {name: linear_vae.spectrum(covariance_of(x))[0] for name, x in drawn.items()}
        noise = self.std[0].square()
        return {"spectra": figures.spectra(values, s["means"], s["samples"], noise, s["denoised"])}


def covariance_of(values: Tensor) -> Tensor:
    """Second moments about 0 of (M, B, d), in float64: (M, d, d)."""
    values = values.double()
    return values.mT @ values / values.shape[-2]


class ToyMixtureModule(ToyAdversary):
    """Six ways to draw from a mixture in the plane, with the same nets and the same images seen, several seeds at once.

    The plain GANs train for the whole budget; of the VAE + GAN's, the VAE takes a share, and then stands still.

    Args:
        seeds: members of every method.
        latents: of the VAE.
        width: units of each hidden layer of every network.
        depth: hidden layers.
        std_start: the decoder's std in a new network, in units of the data; low, or the code collapses.
        std_floor: least std.
        vae_share: share of the budget that trains the VAE.
        rate_warmup: share of the VAE's part over which the weight of the rate rises to 1.
        penalty_weight: gamma, the weight of both gradient penalties.
        penalty_every: steps between gradient penalties, whose weight is multiplied by it.
        spread_weight: weight of the term that holds Var_eps[G] at sigma^2.
        budget: draws of x to see in all.
        validate_every: draws between measurements.
        learning_rate: Adam's, after the warm-up.
        warmup: share of the budget over which the learning rate rises from 0.
        decay: share of the budget, at its end, over which the learning rate falls to 0 as a half cosine.
        count: samples to measure with.
        seed: of the start and of the noise.
    """

    METHODS = ("VAE mean", "VAE sample", "plain GAN, classic", "plain GAN, relativistic", "L2 denoiser", "VAE + GAN")

    def __init__(
        self,
        seeds: int = 5,
        latents: int = 2,
        width: int = 64,
        depth: int = 3,
        std_start: float = 0.1,
        std_floor: float = 0.01,
        vae_share: float = 0.3,
        rate_warmup: float = 0.3,
        penalty_weight: float = 0.05,
        penalty_every: int = 4,
        spread_weight: float = 0.1,
        budget: int = 1_024_000,
        validate_every: int = 256_000,
        learning_rate: float = 2e-3,
        warmup: float = 0.01,
        decay: float = 0.5,
        count: int = 10_000,
        seed: int = 0,
    ) -> None:
        names = ("seeds", "latents", "width", "depth", "std_start", "std_floor", "vae_share")
        settings = {name: value for name, value in locals().items() if name in names}
        clock = (budget, validate_every, learning_rate, warmup, decay, seed)
        super().__init__(settings, penalty_weight, penalty_every, spread_weight, *clock)
        if not 0 < std_floor < std_start or not 0 < vae_share < 1:
            raise InputError("toy mixture: give 0 < std_floor < std_start and 0 < vae_share < 1")
        if min(seeds, latents, width, depth, count) < 1:
            raise InputError("toy mixture: seeds, latents, width, depth and count must be at least 1")
        self.seeds, self.latents, self.count = seeds, latents, count
        self.std_start, self.std_floor, self.vae_share = std_start, std_floor, vae_share
        self.rate_warmup = rate_warmup
        rng, shape = torch.Generator().manual_seed(seed), {"width": width, "depth": depth}
        self.encoder = EnsembleMLP(seeds, 2, 2 * latents, **shape, generator=rng)
        self.decoder = EnsembleMLP(seeds, latents, 4, **shape, head=0.1, generator=rng)
        noise = 2 + latents
        self.classic = Duel(seeds, noise, 2, 0, width, depth, rng)
        self.relativistic = Duel(seeds, noise, 2, 0, width, depth, rng)
        self.denoiser = Duel(seeds, 2, 2, 4, width, depth, rng)
        self.l2 = EnsembleMLP(seeds, 6, 2, **shape, head=0.3, generator=rng)
        self.averages = nn.ModuleDict(
            {
                "classic": self.average(self.classic.generator),
                "relativistic": self.average(self.relativistic.generator),
                "denoiser": self.average(self.denoiser.generator),
            }
        )

    # The VAE. Everything is in units of the data's std; `scale` leads back.

    @property
    def scale(self) -> float:
        """Std of one coordinate of the data."""
        return (self.data.centres.square().mean() + self.data.std**2).sqrt().item()

    def encode(self, x: Tensor) -> Gaussian:
        """q(z|x) for (M, B, 2)."""
        mean, logstd = self.encoder(x).chunk(2, -1)
        return Gaussian(mean, logstd)

    def decode(self, z: Tensor) -> Gaussian:
        """p(x|z) for (M, B, k)."""
        mean, logstd = self.decoder(z).chunk(2, -1)
        low = torch.tensor(self.std_floor).log().item()
        return Gaussian(mean, soft_floor(logstd + torch.tensor(self.std_start).log(), low))

    def condition(self, p: Gaussian) -> Tensor:
        """What G and D are told of p(x|z), (M, B, 4)."""
        return torch.cat([p.mean, 0.5 * (p.logstd + 2)], -1)

    # Training.

    def noise(self, batch: int, values: int, rng: torch.Generator) -> Tensor:
        """Standard normal noise, (M, B, values)."""
        return self.normal((batch, self.seeds, values), rng).transpose(0, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        rng, count = self.train_rng(), len(batch["x"])
        x = repeat(batch["x"].float() / self.scale, "b d -> m b d", m=self.seeds)
        optimizers, index = self.optimizers(), self.images_seen // count
        terms = self.classic_step(x, self.noise(count, 2 + self.latents, rng), optimizers[1:3])
        nothing = x[..., :0]
        noise = self.noise(count, 2 + self.latents, rng)[None]
        terms |= named(self.play(self.relativistic, optimizers[3:5], x, noise, nothing, index, False), "relativistic")
        if self.progress < self.vae_share:
            terms |= self.vae_step(x, self.noise(count, self.latents, rng), optimizers[0])
        else:
            with torch.no_grad():
                p = self.decode(self.encode(x).sample(self.noise(count, self.latents, rng)))
            condition, real = self.condition(p), (x - p.mean) / p.std
            eps = torch.stack([self.noise(count, 2, rng) for _ in range(2)])
            terms |= named(self.play(self.denoiser, optimizers[5:7], real, eps, condition, index, True), "denoiser")
            terms["l2"] = (self.l2(torch.cat([eps[0], condition], -1)) - real).square().sum(-1).flatten()
            self.step(optimizers[7], terms["l2"].mean())
        for name, average in self.averages.items():
            average.update_parameters(getattr(self, name).generator)
        self.tick(batch)
        self.log_terms("train", terms)

    def vae_step(self, x: Tensor, noise: Tensor, optimizer: Any) -> dict[str, Tensor]:
        """distortion + rate in nats; the rate's weight rises to 1 and stays there."""
        q = self.encode(x)
        distortion = -log_density(self.decode(q.sample(noise)), x).sum(-1).flatten()
        rate = kl_to_standard_normal(q).sum(-1).flatten()
        weight = min(1.0, self.progress / self.vae_share / self.rate_warmup) if self.rate_warmup else 1.0
        self.step(optimizer, distortion.mean() + weight * rate.mean())
        return {"distortion": distortion, "rate": rate}

    def classic_step(self, x: Tensor, noise: Tensor, optimizers: Any) -> dict[str, Tensor]:
        """The non-saturating loss of 2014: D tells data from fakes by a logistic regression, G maximises D's error."""
        duel, nothing = self.classic, x[..., :0]
        fake = duel.generate(noise, nothing)
        real_logits, fake_logits = duel.judge(as_images(x), nothing), duel.judge(as_images(fake.detach()), nothing)
        d_loss = F.softplus(-real_logits) + F.softplus(fake_logits)
        self.step(optimizers[1], d_loss.mean())
        duel.discriminator.requires_grad_(False)
        g_loss = F.softplus(-duel.judge(as_images(fake), nothing))
        self.step(optimizers[0], g_loss.mean())
        duel.discriminator.requires_grad_(True)
        return {"classic_d_loss": d_loss, "classic_g_loss": g_loss}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        vae, duels = nn.ModuleList([self.encoder, self.decoder]), (self.classic, self.relativistic, self.denoiser)
        players = [net for duel in duels for net in (duel.generator, duel.discriminator)]
        usual = [torch.optim.Adam(net.parameters(), self.learning_rate) for net in (vae, self.l2)]  # these play no game
        return [usual[0], *self.adam(*players), usual[1]]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The VAE has a schedule of its own, within its share of the budget."""
        super().on_train_batch_start(batch, batch_idx)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.learning_rate * (1 - min(1.0, self.progress / self.vae_share)) ** 0.5

    # What was found.

    @torch.no_grad()
    def draw(self) -> dict[str, Tensor]:
        """Points of every method for z ~ N(0, I), of the VAE's also for z ~ q(z): (M, count, 2), in data units."""
        rng = generator(self.seed, EVALUATION, device=self.device)

        def normal(values: int) -> Tensor:
            return torch.randn(self.seeds, self.count, values, generator=rng)

        points = {}
        both, nothing = normal(2 + self.latents), normal(0)
        z, eps = both.split([self.latents, 2], -1)
        x = self.data.draw(numpy_rng(self.seed), self.count).float() / self.scale
        q = self.encode(repeat(x, "b d -> m b d", m=self.seeds))
        for origin, code in {"": z, ", z from q(z)": q.sample(normal(self.latents))}.items():
            p = self.decode(code)
            told = torch.cat([eps, self.condition(p)], -1)
            points |= {
                f"VAE mean{origin}": p.mean,
                f"VAE sample{origin}": p.sample(eps),
                f"L2 denoiser{origin}": p.sample(self.l2(told)),
                f"VAE + GAN{origin}": p.sample(self.averages["denoiser"].module(told)),
            }
        for name in ("classic", "relativistic"):
            points[f"plain GAN, {name}"] = self.averages[name].module(torch.cat([both, nothing], -1))
        return {name: self.scale * value for name, value in points.items()}

    def quality(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Modes found and share of high-quality points, (M,) each, by method; the data's own for the scale."""
        centres, std = self.data.centres.float(), self.data.std
        drawn = {"data": self.data.draw(numpy_rng(self.seed + 1), self.count).float()[None], **self.draw()}
        return {name: mixture_quality(points, centres, std) for name, points in drawn.items()}

    def metrics(self) -> dict[str, float]:
        values = {}
        for name, (modes, share) in self.quality().items():
            key = name.lower().replace(" + ", "_").replace(", ", "_").replace(" ", "_").replace("(z)", "")
            values |= {f"{key}_modes": modes.mean(), f"{key}_high_quality": share.mean()}
        return values

    def table(self) -> str:
        centres = len(self.data.centres)
        lines = [f"{self.data.layout}: {centres} modes, {self.count:,} points, {self.seeds} seeds: mean (least, most)"]
        for name, (modes, share) in self.quality().items():
            lines.append(
                f"{name:>28}: modes {modes.mean():5.1f} ({modes.min():.0f}, {modes.max():.0f}), within 3 std "
                f"{100 * share.mean():5.1f} % ({100 * share.min():.1f}, {100 * share.max():.1f})"
            )
        return "\n".join(lines)

    def figures(self) -> dict[str, Figure]:
        points = {name: value[0] for name, value in self.draw().items() if name in self.METHODS}
        data = self.data.draw(numpy_rng(self.seed + 1), self.count)
        quality = {name: (modes[0], share[0]) for name, (modes, share) in self.quality().items()}
        ordered = {"data": data} | {name: points[name] for name in self.METHODS}
        return {"mixture": figures.mixture(ordered, quality, len(self.data.centres))}


def named(terms: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Terms with a prefix."""
    return {f"{prefix}_{name}": value for name, value in terms.items()}


def numpy_rng(seed: int) -> np.random.Generator:
    """What a data module draws from, in a stream that no training sees."""
    return np.random.default_rng((seed, EVALUATION, 1 << 40))
