"""Mixtures in the plane, where modes can be counted: the VAE + GAN and all its controls.

Axes: M members (seeds), B batch, k latents.
"""

import re
from itertools import chain
from typing import Any

import numpy as np
import torch
from einops import repeat
from matplotlib.figure import Figure
from torch import Tensor, nn
from zuko.flows import NSF

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian, kl_to_standard_normal, log_density, soft_floor
from degrain.models.core.randomness import Noise, generator
from degrain.models.toys import draw_figures
from degrain.models.toys.duel import EVALUATION, Duel
from degrain.models.toys.ensemble import EnsembleMLP, clip_members
from degrain.models.toys.metrics import mixture_quality
from degrain.models.toys.recipe import ToyModule
from degrain.models.training.schedule import Schedule, warmed_up
from degrain.models.training.update import Update, adam

FLOW_EVERY = 4  # steps: the flow learns faster than the GAN, and its step takes as long as all others together
GRADIENT_CLIP = 10.0  # largest norm of one network's gradient, in nats: a narrow mode's density has no bound


class ToyMixtureModule(ToyModule):
    """Six ways to draw from a mixture in the plane, with the same nets and the same images seen, several seeds at once.

    The plain GANs train for the whole budget. The VAE trains for a share of it and is then frozen; in the rest a flow
    learns q(z), the GAN learns to denoise, and the L2 control learns to predict x from the same draw.

    Args:
        seeds: members of every method.
        latents: of the VAE.
        width: units of each hidden layer of every network.
        depth: hidden layers.
        std_start: the decoder's std in a new network, in units of the data; low, or the code collapses.
        std_floor: least std.
        vae_share: share of the budget that trains the VAE.
        rate_warmup: share of the VAE's part over which the weight of the rate rises to 1.
        penalty_weight: gamma, the weight of both gradient penalties; the classic GAN has none.
        count: samples to measure with.
        schedule: budget, validate_every, learning_rate, warmup, decay, seed.

    Raises:
        InputError: an argument out of range.
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
        count: int = 10_000,
        **schedule,
    ) -> None:
        names = ("seeds", "latents", "width", "depth", "std_start", "std_floor", "vae_share")
        settings = {name: value for name, value in locals().items() if name in names}
        super().__init__(settings, Schedule(**schedule))
        if not 0 < std_floor < std_start or not 0 < vae_share < 1:
            raise InputError("toy mixture: give 0 < std_floor < std_start and 0 < vae_share < 1")
        if min(seeds, latents, width, depth, count) < 1 or penalty_weight < 0:
            raise InputError(
                f"toy mixture: seeds, latents, width, depth and count must be at least 1, penalty_weight "
                f"({penalty_weight}) not negative"
            )
        self.automatic_optimization = False
        self.seeds, self.latents, self.count = seeds, latents, count
        self.std_start, self.std_floor = std_start, std_floor
        self.vae_share, self.rate_warmup = vae_share, rate_warmup
        rng = torch.Generator().manual_seed(self.schedule.seed)
        shape = {"members": seeds, "width": width, "depth": depth, "generator": rng}
        self.encoder = EnsembleMLP(inputs=2, outputs=2 * latents, head=0.1, **shape)
        self.decoder = EnsembleMLP(inputs=latents, outputs=4, head=0.1, **shape)
        self.classic = Duel(2 + latents, 2, 0, loss="classic", **shape)
        self.relativistic = Duel(2 + latents, 2, 0, penalty_weight=penalty_weight, **shape)
        self.denoiser = Duel(2, 2, 4, skip=True, penalty_weight=penalty_weight, **shape)
        self.l2 = EnsembleMLP(inputs=6, outputs=2, head=0.3, **shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.schedule.seed)  # zuko draws its weights from the global stream
            self.flow = NSF(latents, context=seeds, bins=16, transforms=3, hidden_features=(128, 128))

    # The VAE, in units of the data's std.

    @property
    def scale(self) -> float:
        """Return the std of one coordinate of the data."""
        return (self.data.centres.square().mean() + self.data.std**2).sqrt().item()

    def encode(self, x: Tensor) -> Gaussian:
        """Return q(z|x) for x (M, B, 2)."""
        mean, logstd = self.encoder(x).chunk(2, -1)
        return Gaussian(mean, logstd)

    def decode(self, z: Tensor) -> Gaussian:
        """Return p(x|z) for z (M, B, k)."""
        mean, logstd = self.decoder(z).chunk(2, -1)
        low = torch.tensor(self.std_floor).log().item()
        return Gaussian(mean, soft_floor(logstd + torch.tensor(self.std_start).log(), low))

    def condition(self, p: Gaussian) -> Tensor:
        """Return the condition of G and D, mean and scaled log std of p(x|z), (M, B, 4)."""
        return torch.cat([p.mean, 0.5 * (p.logstd + 2)], -1)

    # Training.

    def noise_of_members(self, batch: int, values: int, rng: Noise) -> Tensor:
        """Draw standard normal noise, (M, B, values)."""
        return rng.normal(batch, self.seeds, values).transpose(0, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        rng, count, optimizers = self.noise(), len(batch["x"]), self.optimizers()
        x = repeat(batch["x"].float() / self.scale, "b d -> m b d", m=self.seeds)
        updates = []  # (prefix of its terms, update) of every network
        for name, pair in (("classic", optimizers[1:3]), ("relativistic", optimizers[3:5])):
            noise = self.noise_of_members(count, 2 + self.latents, rng)
            steps = getattr(self, name).train_step(self, pair, x, noise, x[..., :0])
            updates += [(f"{name}_", update) for update in steps]
        noise = self.noise_of_members(count, self.latents, rng)
        if self.progress < self.vae_share:
            updates.append(("", self.vae_step(x, noise, optimizers[0])))
        else:
            with torch.no_grad():
                z = self.encode(x).sample(noise)
                p = self.decode(z)
            real, condition, eps = (x - p.mean) / p.std, self.condition(p), self.noise_of_members(count, 2, rng)
            denoiser = self.denoiser.train_step(self, optimizers[5:7], real, eps, condition)
            updates += [("denoiser_", update) for update in denoiser]
            error = (self.l2(torch.cat([eps, condition], -1)) - real).square().sum(-1)  # (M, B)
            updates.append(("", self.step(optimizers[7], error.mean(), {"l2": error})))
            if self.images_seen // count % FLOW_EVERY == 0:
                surprise = -self.flow(self.member(count)).log_prob(z)  # (M, B)
                updates.append(("", self.step(optimizers[8], surprise.mean(), {"flow": surprise})))
        self.count_images(batch, torch.stack([update.skipped for _, update in updates]).any())
        self.log_terms("train", {prefix + n: term for prefix, update in updates for n, term in update.terms.items()})

    def vae_step(self, x: Tensor, noise: Tensor, optimizer: Any) -> Update:
        """Take a step on distortion + w rate in nats; w rises to 1 and stays there."""
        update, weight = Update(self, optimizer), warmed_up(self.progress / self.vae_share, self.rate_warmup)
        for piece in update.over([x]):
            q = self.encode(piece)
            distortion = -log_density(self.decode(q.sample(noise)), piece).sum(-1)  # (M, B)
            rate = kl_to_standard_normal(q).sum(-1)
            loss = (distortion + weight * rate).sum() / x.shape[1]
            update.backward(loss, {"distortion": distortion, "rate": rate})
        for network in (self.encoder, self.decoder):
            clip_members(network, GRADIENT_CLIP)
        update.step()
        return update

    def member(self, count: int) -> Tensor:
        """Return the flow's context for `count` codes of every member, one-hot, (M, count, M)."""
        return repeat(torch.eye(self.seeds, device=self.device), "m n -> m b n", b=count)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        rate, vae = self.schedule.learning_rate, nn.ModuleList([self.encoder, self.decoder])
        pairs = [duel.optimizers(rate) for duel in (self.classic, self.relativistic, self.denoiser)]
        return [adam(vae, rate), *chain(*pairs), adam(self.l2, rate), adam(self.flow, rate)]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rates; the VAE has a schedule of its own, within its share of the budget."""
        super().on_train_batch_start(batch, batch_idx)
        done = min(1.0, self.progress / self.vae_share)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.schedule.learning_rate * min(1.0, 50 * done + 1e-3) * (1 - done) ** 0.5

    # Results.

    @torch.no_grad()
    def draw(self) -> dict[str, Tensor]:
        """Return points of every method, (M, count, 2); those from codes with z of the flow, N(0, I) and q(z)."""
        rng = generator(self.schedule.seed, EVALUATION, device=self.device)

        def normal(values: int) -> Tensor:
            return torch.randn(self.seeds, self.count, values, generator=rng)

        points = {}
        both, nothing = normal(2 + self.latents), normal(0)
        z, eps = both.split([self.latents, 2], -1)
        x = self.data.draw(numpy_rng(self.schedule.seed), self.count).float() / self.scale
        q = self.encode(repeat(x, "b d -> m b d", m=self.seeds))
        learned = self.flow(self.member(self.count)).transform.inv(z)
        codes = {"": learned, ", z from N(0, I)": z, ", z from q(z)": q.sample(normal(self.latents))}
        for origin, code in codes.items():
            p = self.decode(code)
            condition = self.condition(p)
            points |= {
                f"VAE mean{origin}": p.mean,
                f"VAE sample{origin}": p.sample(eps),
                f"L2 denoiser{origin}": p.sample(self.l2(torch.cat([eps, condition], -1))),
                f"VAE + GAN{origin}": p.sample(self.denoiser.ema.module(eps, condition)),
            }
        for name in ("classic", "relativistic"):
            points[f"plain GAN, {name}"] = getattr(self, name).ema.module(both, nothing)
        return {name: self.scale * value for name, value in points.items()}

    def quality(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return modes found and the share of high-quality points, (M,) each, by method and for the data themselves."""
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
        return {"mixture": draw_figures.mixture(ordered, quality, len(self.data.centres))}


def numpy_rng(seed: int) -> np.random.Generator:
    """Return random numbers for a data module, of a stream that no training sees."""
    return np.random.default_rng((seed, EVALUATION, 1 << 40))
