"""Mixtures in the plane, where modes can be counted: the VAE + GAN beside every control."""

import re
from typing import Any

import numpy as np
import torch
from einops import repeat
from matplotlib.figure import Figure
from torch import Tensor, nn

from models.core.errors import InputError
from models.core.gaussian import Gaussian, kl_to_standard_normal, log_density, soft_floor
from models.core.randomness import Noise, generator
from models.toys import figures as toy_figures
from models.toys.ensemble import Duel, EnsembleMLP, clip_members
from models.toys.flow_prior import FlowPrior
from models.toys.gan import EVALUATION, ToyAdversary
from models.toys.metrics import mixture_quality

FLOW_EVERY = 4
"""Steps between those of the flow, which learns faster than the GAN, and would take as long as all else together."""

GRADIENT_CLIP = 10.0
"""Largest gradient of one VAE, in nats: the density of a narrow mode has none."""


class ToyMixtureModule(ToyAdversary):
    """Six ways to draw from a mixture in the plane, with the same nets and the same images seen, several seeds at once.

    The plain GANs train for the whole budget; of the VAE + GAN's, the VAE takes a share, and then stands still, while
    a flow learns q(z), the GAN to denoise, and the control to predict x from the same draw.

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
        width: int = 128,
        depth: int = 3,
        std_start: float = 0.1,
        std_floor: float = 0.01,
        vae_share: float = 0.5,
        rate_warmup: float = 0.3,
        penalty_weight: float = 0.05,
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
        super().__init__(settings, penalty_weight, *clock)
        if not 0 < std_floor < std_start or not 0 < vae_share < 1:
            raise InputError("toy mixture: give 0 < std_floor < std_start and 0 < vae_share < 1")
        if min(seeds, latents, width, depth, count) < 1:
            raise InputError("toy mixture: seeds, latents, width, depth and count must be at least 1")
        self.seeds, self.latents, self.count = seeds, latents, count
        self.std_start, self.std_floor, self.vae_share = std_start, std_floor, vae_share
        self.rate_warmup = rate_warmup
        rng, shape = torch.Generator().manual_seed(seed), {"width": width, "depth": depth}
        self.encoder = EnsembleMLP(seeds, 2, 2 * latents, **shape, head=0.1, generator=rng)
        self.decoder = EnsembleMLP(seeds, latents, 4, **shape, head=0.1, generator=rng)
        noise = 2 + latents
        self.classic = Duel(seeds, noise, 2, 0, width, depth, rng)
        self.relativistic = Duel(seeds, noise, 2, 0, width, depth, rng)
        self.denoiser = Duel(seeds, 2, 2, 4, width, depth, rng, skip=True)
        self.l2 = EnsembleMLP(seeds, 6, 2, **shape, head=0.3, generator=rng)
        self.flow = FlowPrior(latents, conditions=seeds, seed=seed)
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

    def noise_of_members(self, batch: int, values: int, rng: Noise) -> Tensor:
        """Draw standard normal noise, (M, B, values)."""
        return rng.normal(batch, self.seeds, values).transpose(0, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        rng, count = self.noise(), len(batch["x"])
        x = repeat(batch["x"].float() / self.scale, "b d -> m b d", m=self.seeds)
        optimizers, nothing = self.optimizers(), x[..., :0]
        noise = self.noise_of_members(count, 2 + self.latents, rng)
        terms = named(self.play(self.classic, optimizers[1:3], x, noise, nothing, "classic"), "classic")
        noise = self.noise_of_members(count, 2 + self.latents, rng)
        terms |= named(self.play(self.relativistic, optimizers[3:5], x, noise, nothing), "relativistic")
        if self.progress < self.vae_share:
            terms |= self.vae_step(x, self.noise_of_members(count, self.latents, rng), optimizers[0])
        else:
            with torch.no_grad():
                z = self.encode(x).sample(self.noise_of_members(count, self.latents, rng))
                p = self.decode(z)
            condition, real, eps = self.condition(p), (x - p.mean) / p.std, self.noise_of_members(count, 2, rng)
            terms |= named(self.play(self.denoiser, optimizers[5:7], real, eps, condition), "denoiser")
            terms["l2"] = (self.l2(torch.cat([eps, condition], -1)) - real).square().sum(-1).flatten()
            self.step(optimizers[7], terms["l2"].mean())
            if self.images_seen // count % FLOW_EVERY == 0:
                terms["flow"] = -self.flow.log_density(z, self.member(count)).flatten()
                self.step(optimizers[8], terms["flow"].mean())
        for name, average in self.averages.items():
            average.update_parameters(getattr(self, name).generator)
        self.count_images(batch)
        self.log_terms("train", terms)

    def member(self, count: int) -> Tensor:
        """Which member each of `count` codes belongs to, one-hot, (M, count, M)."""
        return repeat(torch.eye(self.seeds, device=self.device), "m n -> m b n", b=count)

    def vae_step(self, x: Tensor, noise: Tensor, optimizer: Any) -> dict[str, Tensor]:
        """distortion + rate in nats; the rate's weight rises to 1 and stays there."""
        q = self.encode(x)
        distortion = -log_density(self.decode(q.sample(noise)), x).sum(-1).flatten()
        rate = kl_to_standard_normal(q).sum(-1).flatten()
        weight = min(1.0, self.progress / self.vae_share / self.rate_warmup) if self.rate_warmup else 1.0
        optimizer.zero_grad()
        self.manual_backward((distortion + weight * rate).sum() / x.shape[1])
        for network in (self.encoder, self.decoder):
            clip_members(network, GRADIENT_CLIP)
        optimizer.step()
        return {"distortion": distortion, "rate": rate}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        vae, duels = nn.ModuleList([self.encoder, self.decoder]), (self.classic, self.relativistic, self.denoiser)
        players = [net for duel in duels for net in (duel.generator, duel.discriminator)]
        alone = [torch.optim.Adam(net.parameters(), self.schedule.learning_rate) for net in (vae, self.l2, self.flow)]
        return [alone[0], *self.adam(*players), *alone[1:]]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The VAE has a schedule of its own, within its share of the budget."""
        super().on_train_batch_start(batch, batch_idx)
        done = min(1.0, self.progress / self.vae_share)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.schedule.learning_rate * min(1.0, 50 * done + 1e-3) * (1 - done) ** 0.5

    # What was found.

    @torch.no_grad()
    def draw(self) -> dict[str, Tensor]:
        """Points of every method, (M, count, 2), in data units; of the VAE's for z from the flow, N(0, I) and q(z)."""
        rng = generator(self.schedule.seed, EVALUATION, device=self.device)

        def normal(values: int) -> Tensor:
            return torch.randn(self.seeds, self.count, values, generator=rng)

        points = {}
        both, nothing = normal(2 + self.latents), normal(0)
        z, eps = both.split([self.latents, 2], -1)
        x = self.data.draw(numpy_rng(self.schedule.seed), self.count).float() / self.scale
        q = self.encode(repeat(x, "b d -> m b d", m=self.seeds))
        learned = self.flow(z, self.member(self.count))
        codes = {"": learned, ", z from N(0, I)": z, ", z from q(z)": q.sample(normal(self.latents))}
        for origin, code in codes.items():
            p = self.decode(code)
            condition = self.condition(p)
            points |= {
                f"VAE mean{origin}": p.mean,
                f"VAE sample{origin}": p.sample(eps),
                f"L2 denoiser{origin}": p.sample(self.l2(torch.cat([eps, condition], -1))),
                f"VAE + GAN{origin}": p.sample(self.averages["denoiser"].module(eps, condition)),
            }
        for name in ("classic", "relativistic"):
            points[f"plain GAN, {name}"] = self.averages[name].module(both, nothing)
        return {name: self.scale * value for name, value in points.items()}

    def quality(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Modes found and share of high-quality points, (M,) each, by method; the data's own for the scale."""
        centres, std = self.data.centres.float(), self.data.std
        drawn = {"data": self.data.draw(numpy_rng(self.schedule.seed + 1), self.count).float()[None], **self.draw()}
        return {name: mixture_quality(points, centres, std) for name, points in drawn.items()}

    def metrics(self) -> dict[str, float]:
        values = {}
        for name, (modes, share) in self.quality().items():
            key = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
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
        data = self.data.draw(numpy_rng(self.schedule.seed + 1), self.count)
        quality = {name: (modes[0], share[0]) for name, (modes, share) in self.quality().items()}
        ordered = {"data": data} | {name: points[name] for name in self.METHODS}
        return {"mixture": toy_figures.mixture(ordered, quality, len(self.data.centres))}


def named(terms: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Terms with a prefix."""
    return {f"{prefix}_{name}": value for name, value in terms.items()}


def numpy_rng(seed: int) -> np.random.Generator:
    """What a data module draws from, in a stream that no training sees."""
    return np.random.default_rng((seed, EVALUATION, 1 << 40))
