"""The ladder of priors over latents that samples are drawn from: N(0, I), the Gaussian of q(z), a flow learned on q(z).

q(z) is the mixture of q(z|x) over the data. Training pulls each q(z|x) towards N(0, I) and yet leaves q(z) far from it
(the prior hole), so that draws from N(0, I) decode badly where draws from q(z)'s own Gaussian decode well.
Axes: B batch, D latents, N images, V views of each.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from zuko.flows import NICE, NSF

from models.gaussian import Gaussian, log_density
from models.randomness import generator

PriorName = Literal["learned", "fitted", "standard"]

HELD_OUT_EVERY = 10
"""Of so many images one judges the learned prior, and is not learned from."""

LEAST_IMAGES = 1000
"""With fewer a flow of many latents memorises them, and too few are held out to tell."""

CHECKS = 20
"""How often a prior that learns is judged."""

BATCH = 256
"""Draws in a step of its."""


class LatentMoments:
    """Streaming mean and covariance of q(z), in float64: Cov[z] = Cov_x[E[z|x]] + E_x[diag Var[z|x]]."""

    def __init__(self, latent: int) -> None:
        self.count = 0
        self.sum = torch.zeros(latent, dtype=torch.float64)
        self.outer = torch.zeros(latent, latent, dtype=torch.float64)
        self.variance = torch.zeros(latent, dtype=torch.float64)

    def update(self, q: Gaussian) -> None:
        """Add a batch of posteriors, mean and logstd (B, D)."""
        mean, variance = q.mean.double().cpu(), (2 * q.logstd.double()).exp().cpu()
        self.count += len(mean)
        self.sum += mean.sum(0)
        self.outer += mean.T @ mean
        self.variance += variance.sum(0)

    def mean(self) -> Tensor:
        """E[z], (D,)."""
        return self.sum / self.count

    def covariance_of_means(self) -> Tensor:
        """Cov_x[E[z|x]], (D, D); its diagonal above 0.01 counts the active units."""
        return self.outer / self.count - self.mean().outer(self.mean())

    def covariance(self) -> Tensor:
        """Cov[z], (D, D)."""
        return self.covariance_of_means() + torch.diag(self.variance / self.count)


class CouplingFlow(nn.Module):
    """Affine couplings (RealNVP, Dinh et al. 2017) between noise and latents that are both about N(0, I).

    New, it is the identity, so that learning starts from the prior that it stands in front of.

    Args:
        axes: orthogonal, (D, D), D at least 2; the columns are the directions that are coupled, in random halves.
        transforms: couplings.
        width: units of the hidden layer of each.
        seed: of the halves and the weights; the halves travel in the state, too.
    """

    def __init__(self, axes: Tensor, transforms: int = 6, width: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("axes", axes.clone())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # zuko draws both from the global stream
            self.flow = NICE(len(axes), transforms=transforms, randmask=True, hidden_features=(width,))
        for coupling in self.flow.transform.transforms:
            nn.init.zeros_(coupling.hyper[-1].weight)
            nn.init.zeros_(coupling.hyper[-1].bias)
        self.requires_grad_(False)  # but in LatentPrior.learn

    def forward(self, noise: Tensor) -> Tensor:
        """A draw for standard normal noise, both (B, D)."""
        return self.flow().transform.inv(noise @ self.axes) @ self.axes.T

    def log_density(self, u: Tensor) -> Tensor:
        """log p(u) in nats, (B, D) -> (B,)."""
        return self.flow().log_prob(u @ self.axes)


class LatentPrior(nn.Module):
    """p(z) in three forms: `standard`, N(0, I); `fitted`, N(mean, covariance); `learned`, that behind a flow.

    The fitted one is the standard until `fit` is called, and the learned one is there after `learn` alone. Both travel
    in the state, whose loading builds the flow or takes it away.

    Args:
        latent: D.
    """

    flow: CouplingFlow | None

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("cholesky", torch.eye(latent))
        self.flow = None
        self.register_load_state_dict_pre_hook(make_room)

    @property
    def names(self) -> tuple[PriorName, ...]:
        """The priors that there are, the best one last."""
        return ("standard", "fitted") if self.flow is None else ("standard", "fitted", "learned")

    def forward(self, noise: Tensor, name: PriorName | None = None) -> Tensor:
        """A draw for standard normal noise, both (B, D), from the best prior or a named one."""
        name = name or self.names[-1]
        if name == "standard":
            return noise
        return self.mean + (self.flow(noise) if name == "learned" else noise) @ self.cholesky.T

    def log_density(self, z: Tensor, name: PriorName | None = None) -> Tensor:
        """log p(z) in nats, (B, D) -> (B,), of the best prior or a named one."""
        name = name or self.names[-1]
        if name == "standard":
            return log_standard_normal(z)
        u = torch.linalg.solve_triangular(self.cholesky, (z - self.mean).T, upper=False).T
        log_density = self.flow.log_density(u) if name == "learned" else log_standard_normal(u)
        return log_density - self.cholesky.diagonal().log().sum()

    def rate(self, q: Gaussian, z: Tensor, name: PriorName | None = None) -> Tensor:
        """log q(z|x) - log p(z) in nats, (B,), for draws z (B, D) of q: on average KL(q(z|x) to p(z))."""
        with torch.autocast(z.device.type, enabled=False):
            return reduce(log_density(q, z), "b d -> b", "sum") - self.log_density(z, name)

    def fit(self, moments: LatentMoments) -> None:
        """Take over the moments of q(z). A jitter of 1e-6 of the mean variance keeps the factor finite.

        What was learned is dropped: it stood in front of another Gaussian.
        """
        covariance = moments.covariance()
        jitter = 1e-6 * covariance.diagonal().mean()
        self.mean.copy_(moments.mean())
        self.cholesky.copy_(torch.linalg.cholesky(covariance + jitter * torch.eye(len(covariance))))
        self.flow = None

    @torch.inference_mode(False)  # Lightning validates in it
    @torch.enable_grad()
    def learn(self, q: Gaussian, steps: int, seed: int = 0) -> dict[PriorName, float]:
        """Learn q(z) in front of the fitted Gaussian; every tenth image is held out to judge it.

        The flow is kept as it was when those were likeliest, and not at all where they never are likelier than under
        the Gaussian.

        Args:
            q: posteriors, mean and logstd (N, V, D).
            steps: of the optimizer, at least 1.
            seed: of everything.

        Returns:
            The rate of the held-out images under each prior, in nats; nothing where none is learned, from fewer than
            LEAST_IMAGES images or for a single latent.
        """
        self.flow = None
        if len(q.mean) < LEAST_IMAGES or len(self.mean) == 1:
            return {}
        rng, held = generator(seed), torch.arange(len(q.mean), device=q.mean.device) % HELD_OUT_EVERY == 0
        train, valid = (
            Gaussian(*(rearrange(t[part], "n v d -> (n v) d") for t in (q.mean, q.logstd))) for part in (~held, held)
        )
        z, best = sampled(valid, rng), None
        rates = {name: self.rate(valid, z, name).mean().item() for name in self.names} | {"learned": math.inf}
        self.flow = CouplingFlow(torch.linalg.svd(self.cholesky).Vh.T, seed=seed).to(self.mean.device)
        for _ in self.checks(train, steps, rng):
            with torch.no_grad():
                rate = self.rate(valid, z).mean().item()
            if rate < rates["learned"]:
                rates["learned"], best = rate, copy.deepcopy(self.flow)
        self.flow = best.requires_grad_(False) if rates["learned"] < rates["fitted"] else None
        return rates

    def checks(self, q: Gaussian, steps: int, rng: torch.Generator) -> Iterator[None]:
        """Raise E log p(z) of the flow over fresh draws z ~ q(z|x), stopping to be judged, CHECKS times.

        From some 10,000 images it would soon know each of them, so decay holds its weights down.
        """
        optimizer = torch.optim.AdamW(self.flow.requires_grad_(True).parameters(), 2e-3, weight_decay=1.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(1, steps + 1):
            few = torch.randint(len(q.mean), (BATCH,), generator=rng).to(q.mean.device)
            loss = -self.log_density(sampled(Gaussian(q.mean[few], q.logstd[few]), rng)).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.flow.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            if step * CHECKS // steps > (step - 1) * CHECKS // steps:
                yield


def sampled(q: Gaussian, rng: torch.Generator) -> Tensor:
    """A draw of each, (B, D), the same on every device."""
    return q.sample(torch.randn(q.mean.shape, generator=rng).to(q.mean.device))


def make_room(prior: LatentPrior, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Give the prior a flow, or none, as the state that is about to be loaded has."""
    learned = any(name.startswith(f"{prefix}flow.") for name in state)
    prior.flow = CouplingFlow(torch.zeros_like(prior.cholesky)).to(prior.mean.device) if learned else None


def log_standard_normal(u: Tensor) -> Tensor:
    """log N(u; 0, I) = -|u|^2 / 2 - D log(2 pi) / 2, (B, D) -> (B,)."""
    return -0.5 * u.square().sum(-1) - 0.5 * u.shape[-1] * math.log(2 * math.pi)


class FlowPrior(nn.Module):
    """A neural spline flow (Durkan et al. 2019) between standard normal noise and latents of about unit scale.

    Args:
        latent: D.
        conditions: how many flows of that shape there are, told apart by a one-hot context; 0 means one.
        transforms: spline transformations, each of which moves all latents.
        width: units of both hidden layers of the networks that say how.
        bins: of each spline.
        seed: of the weights.
    """

    def __init__(
        self, latent: int, conditions: int = 0, transforms: int = 3, width: int = 128, bins: int = 16, seed: int = 0
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # zuko draws its weights from the global stream
            self.flow = NSF(latent, conditions, bins, transforms=transforms, hidden_features=(width, width))

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """A draw for standard normal noise, both (..., D), under a one-hot context (..., conditions)."""
        return self.flow(context).transform.inv(noise)

    def log_density(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(z) in nats, (...), for (..., D)."""
        return self.flow(context).log_prob(z)
