"""A prior that diffusion learns: a network that denoises codes, and the deterministic path from noise to a code.

Coordinates: y = R^T ((z - mean) / noise), where noise^2 is the average variance of q(z|x), so that the posteriors have
about the covariance I, and R turns to the axes of q(z), whose variances are Lambda = spread^2. In whitened coordinates,
where every direction weighs the same, a network finds nothing (docs/ablations.md). y_t = y + t n has the noise level t,
n ~ N(0, I) (Karras et al. 2022). With r^2 = Lambda + t^2 and u = y_t / r, whose covariance is I, the network F corrects
the denoiser of the Gaussian N(0, Lambda):

    E[y | y_t] = Lambda / r u + t spread / r F(u, t)

With the angle a = arctan(t / spread) of each direction, the probability-flow ODE dy_t/dt = (y_t - E[y | y_t]) / t is
du/da = -F. So F = 0 is the Gaussian exactly, in any number of steps. Axes: B batch, N images, V views, D latents.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from degrain.models.core.gaussian import Gaussian
from degrain.models.core.precision import full_precision
from degrain.models.core.randomness import generator

WIDTH, BLOCKS = 256, 4  # of the network

LEAST_NOISE, MOST_SPREADS = 0.2, 2.0  # noise levels: from 0.2 of the posteriors' to twice the largest spread

STEPS = 32  # of the path, on a logarithmic scale of noise levels

BATCH, LEARNING_RATE, WARMUP = 1024, 1e-3, 200  # codes a step; of AdamW; steps over which it rises

CHECK, PATIENCE = 262_144, 4  # draws between two looks at held-out codes; looks without a gain that end the training

NEAREST = 2000  # draws, and held-out codes, whose nearest training code is looked for

FREQUENCIES = 16  # of the noise level's embedding


class Block(nn.Module):
    """h + W2 (silu(a) * b) with (a, b) = W1 norm(h), which the noise level scales and shifts before W1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.level = nn.Linear(4 * FREQUENCIES, 2 * width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(width, width)
        nn.init.zeros_(self.level.weight)
        nn.init.zeros_(self.level.bias)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.level(level).chunk(2, -1)
        a, b = self.inner(self.norm(h) * (1 + scale) + shift).chunk(2, -1)
        return h + self.outer(silu(a) * b)


class Network(nn.Module):
    """F(u, level), (B, D), for u (B, D) and levels (B,) or (1,) in [0, 1]; 0 before it has learned."""

    def __init__(self, latent: int, width: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(2 * FREQUENCIES, 4 * FREQUENCIES), nn.SiLU())
        self.first, self.last = nn.Linear(latent, width), nn.Linear(width, latent)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, u: Tensor, level: Tensor) -> Tensor:
        angles = level[:, None] * math.pi * 2 ** torch.linspace(-1, 5, FREQUENCIES).to(level)
        embedded = self.embedding(torch.cat([angles.sin(), angles.cos()], 1))
        with full_precision():  # bf16 would round away noise that is small beside the spread
            h = self.first(u)
        for block in self.blocks:
            h = block(h, embedded)
        return self.last(self.norm(h))


@dataclass(frozen=True)
class NoisyCodes:
    """Codes with noise, and what they are without it.

    Args:
        y: noisy codes y_t, (B, D), in the coordinates of the prior.
        clean: E[y | y_t, x], (B, D), which has the expectation of y, and less variance.
        level: place of log t in its range, (B,), in [0, 1].
    """

    y: Tensor
    clean: Tensor
    level: Tensor


Denoiser = Callable[[Tensor, Tensor], Tensor]
"""y_t (B, D), t (B, 1) -> E[y | y_t] (B, D)."""


class Diffusion(nn.Module):
    """Distribution of codes with D = `latent` dimensions, drawn from by one noise; it has no density in closed form.

    Attributes:
        nearest: median distances to the nearest training code, (2,), of draws and of held-out codes, in units of the
            posteriors' noise: draws that are much nearer are memorised.
    """

    def __init__(self, latent: int, width: int, blocks: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("noise", torch.ones(latent))
        self.register_buffer("axes", torch.eye(latent))
        self.register_buffer("spread", torch.ones(latent))
        self.register_buffer("nearest", torch.zeros(2))
        self.network = Network(latent, width, blocks)
        self.requires_grad_(False)  # no optimizer but that of `learn` moves it

    @classmethod
    def with_shapes_of(cls, state: dict[str, Tensor]) -> "Diffusion":
        """Return a new one that takes this state dict."""
        width, latent = state["network.first.weight"].shape
        return cls(latent, width, sum(name.endswith("outer.bias") for name in state))

    @classmethod
    @full_precision()
    def gaussian_of(cls, q: Gaussian, width: int, blocks: int, seed: int = 0) -> "Diffusion":
        """Return the Gaussian of q(z), for posteriors (N, D), with a network that has not learned."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = cls(q.mean.shape[1], width, blocks).to(q.mean)
        mean, variance = q.mean.double(), q.std.double().square()
        made.mean.copy_(mean.mean(0))
        made.noise.copy_(variance.mean(0).sqrt().clamp(min=1e-12))
        covariance = ((mean - made.mean) / made.noise).T.cov(correction=0) + torch.eye(mean.shape[1]).to(mean)
        eigenvalues, axes = torch.linalg.eigh(covariance)
        made.spread.copy_(eigenvalues.sqrt())
        made.axes.copy_(axes)
        return made

    # Noise levels.

    def noise_level(self, level: Tensor) -> Tensor:
        """Return t (B, 1) for levels (B,) in [0, 1]: LEAST_NOISE at 0, MOST_SPREADS times the largest spread at 1."""
        ends = math.log(LEAST_NOISE), (MOST_SPREADS * self.spread.max()).log()
        return torch.lerp(torch.full_like(level, ends[0]), ends[1].to(level), level).exp()[:, None]

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return r, Lambda / r^2 and t spread / r, all (B, D), for noise levels (B, 1)."""
        r = torch.hypot(self.spread, t)
        return r, (self.spread / r).square(), t * self.spread / r

    # Drawing.

    @full_precision()
    def forward(self, noise: Tensor, steps: int = STEPS) -> Tensor:
        """Draw z for standard normal noise, both (B, D), along the ODE, by Adams-Bashforth of second order in log t."""
        levels = torch.linspace(1, 0, steps + 1).to(noise)
        angles = torch.atan(self.noise_level(levels) / self.spread)  # (S, D), the first of them largest
        turns = -torch.cat([angles, torch.zeros_like(angles[:1])]).diff(dim=0)
        u, before = noise, None
        for i, (level, turn) in enumerate(zip(levels, turns, strict=True)):
            now = self.network(u, level[None])
            straight = before is None or i == steps  # the last step goes from LEAST_NOISE to none
            u = u + turn * (now if straight else 1.5 * now - 0.5 * before)
            before = now
        return self.mean + self.noise * ((self.spread * u) @ self.axes.T)

    # Learning.

    @full_precision()
    def coordinates(self, z: Tensor) -> Tensor:
        """Return y for z, both (N, D)."""
        return ((z - self.mean) / self.noise) @ self.axes

    @full_precision()
    def noisy(self, q: Gaussian, level: Tensor, rng: torch.Generator) -> NoisyCodes:
        """Draw y from posteriors (B, D), and add the noise of levels (B,)."""
        eps = torch.randn(2, *q.mean.shape, generator=rng).to(q.mean)  # drawn on the CPU
        t, std, mean = self.noise_level(level), q.std / self.noise, (q.mean - self.mean) / self.noise
        y = mean + std * eps[0] + t * eps[1]
        clean = mean + std.square() / (std.square() + t.square()) * (y - mean)
        return NoisyCodes(y @ self.axes, clean @ self.axes, level)

    def loss(self, codes: NoisyCodes, network: nn.Module) -> Tensor:
        """|E[y | y_t] - clean|^2 / t^2 with a network for F, (B, D) -> (B,)."""
        t = self.noise_level(codes.level)
        r, kept, scale = self.scales(t)
        found = network(codes.y / r, codes.level).float()
        return ((kept * codes.y + scale * found - codes.clean) / t).square().sum(1)

    @torch.no_grad()
    def nats(self, codes: NoisyCodes, network: nn.Module | None = None, denoiser: Denoiser | None = None) -> float:
        """Return the loss of a network, or of a denoiser, times the range of log t, in nats up to a constant.

        With levels that are even over the range, differences of it are those of the denoisers' bounds on -log p(z)
        (Song et al. 2021, "Maximum likelihood training of score-based diffusion models").
        """
        t = self.noise_level(codes.level)
        if denoiser is None:
            loss = self.loss(codes, network or self.network)
        else:
            with full_precision():
                loss = ((denoiser(codes.y, t) - codes.clean) / t).square().sum(1)
        ends = self.noise_level(torch.tensor([0.0, 1.0]).to(self.spread)).log()
        return (loss.mean() * (ends[1] - ends[0]).sum()).item()

    @torch.no_grad()
    @full_precision()
    def nearest_codes(self, q: Gaussian, held: Gaussian, seed: int) -> Tensor:
        """Return `nearest` for the posteriors of training and of held-out images, (N, D) and (M, D)."""
        rng, few = generator(seed), len(held.mean[:NEAREST])
        codes, other = (
            self.coordinates(of.sample(torch.randn(of.mean.shape, generator=rng).to(of.mean)))
            for of in (q, held[:NEAREST])
        )
        drawn = self.coordinates(self(torch.randn(few, codes.shape[1], generator=rng).to(codes)))
        return torch.stack([torch.cdist(of, codes).amin(1).median() for of in (drawn, other)])

    def memorising(self) -> str:
        """Say in words how near to training codes its draws are."""
        drawn, held = self.nearest.tolist()
        said = f"draws are {drawn:.1f} from the nearest training code, held-out codes {held:.1f}"
        return f"{said} (medians, in units of the posteriors' noise)"

    def held_out(self, q: Gaussian, seed: int) -> NoisyCodes:
        """Return noisy codes of held-out posteriors (N, D), their noise levels evenly over the range."""
        rng = generator(seed)
        order = torch.randperm(len(q.mean), generator=rng)
        return self.noisy(q, ((order + 0.5) / len(order)).to(q.mean), rng)

    def learn(self, q: Gaussian, held: NoisyCodes, draws: int, seed: int) -> int:
        """Train the network on posteriors (N, D), a new draw each time; stop when held-out codes gain no more.

        Args:
            q: of training images.
            held: of `held_out`, whose least loss decides which average of the weights is taken.
            draws: codes to see, at most.
            seed: of codes and noise.

        Returns:
            The codes seen when it was best.
        """
        rng, best, best_at = generator(seed), self.nats(held), 0
        network, average = deepcopy(self.network).requires_grad_(True), deepcopy(self.network)
        optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, betas=(0.9, 0.99))
        for step in range(1, draws // BATCH + 1):
            chosen = torch.randint(len(q.mean), (BATCH,), generator=rng).to(q.mean.device)
            level = ((torch.arange(BATCH) + torch.rand(BATCH, generator=rng)) / BATCH).to(q.mean)
            loss = self.loss(self.noisy(q[chosen], level, rng), network).mean()
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, step / WARMUP)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            torch.clear_autocast_cache()  # the caller's autocast would keep the weights of the first step
            with torch.no_grad():  # the average over the last tenth of the steps, 1,000 at most
                for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
                    mean.lerp_(weight, max(1 - (1 - 1 / step) ** 10, 1e-3))
            if step % (CHECK // BATCH) == 0 or step == draws // BATCH:
                now = self.nats(held, average)
                if now < best:
                    best, best_at = now, step * BATCH
                    self.network.load_state_dict(average.state_dict())
                elif step * BATCH - best_at >= PATIENCE * CHECK:
                    break
        return best_at
