"""The ladder of priors over latents that samples are drawn from: N(0, I), the Gaussian of q(z), a mixture on q(z).

q(z) is the mixture of q(z|x) over the data. Training pulls each q(z|x) towards N(0, I) and yet leaves q(z) far from it
(the prior hole), so that draws from N(0, I) decode badly where draws from q(z)'s own Gaussian decode well. In the place
of N(0, I) there may be a flow that is trained with the VAE and comes to meet q(z) (Chen et al. 2017).
Axes: B batch, D latents, N images, V views of each, K components.
"""

import warnings
from typing import Any, Literal

import torch
from einops import rearrange
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from models.core.gaussian import LatentDraws, log_standard_normal
from models.vae.flow import AutoregressiveFlow, FlowConfig

PriorName = Literal["learned", "fitted", "standard", "flow"]

HELD_OUT_EVERY = 10
"""Of so many images one judges the learned prior, and is not learned from."""

LEAST_IMAGES = 1000
"""With fewer a mixture of many latents memorises them, and too few are held out to tell."""

SHRINKAGE = 0.1
"""Share of the fitted Gaussian's covariance in each component's: some thousand images alone do not settle one."""


JITTERS = (1e-6, 1e-4, 1e-2, 1.0)
"""Shares of the mean variance on the fitted Gaussian's covariance, tried one after another until it has a root."""

LEAST_VARIANCE = 1e-12
"""Least mean variance that these are shares of; codes that are all the same have none."""


class Mixture(nn.Module):
    """A mixture of K Gaussians N(means_k, factors_k factors_k^T) with weights.

    Args:
        components: K.
        latent: D.
    """

    def __init__(self, components: int, latent: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.zeros(components, latent))
        self.register_buffer("factors", torch.eye(latent).repeat(components, 1, 1))  # lower triangular

    @classmethod
    def of(cls, u: Tensor, components: int, seed: int) -> "Mixture":
        """The likeliest one for draws u (N, D) whose own covariance is about I, by EM from k-means, on the CPU."""
        shrink = SHRINKAGE / (1 - SHRINKAGE)  # C + shrink I, in units of its own trace: (1 - SHRINKAGE) C + SHRINKAGE I
        model = GaussianMixture(components, reg_covar=shrink, tol=0.1, max_iter=30, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # held-out images judge it
            model.fit(u.double().cpu().numpy())
        mixture = cls(components, u.shape[1])
        weights, means, covariances = (
            torch.from_numpy(value) for value in (model.weights_, model.means_, model.covariances_)
        )
        factors = torch.linalg.cholesky((1 - SHRINKAGE) * covariances)
        for name, value in (("weights", weights), ("means", means), ("factors", factors)):
            getattr(mixture, name).copy_(value)
        return mixture.to(u.device)

    def forward(self, noise: Tensor) -> Tensor:
        """A draw for standard normal noise, both (B, D).

        The first noise chooses the component, as the interval of the cumulated weights that Phi(noise) lies in, and
        where in it Phi(noise) lies is uniform again, and gives that noise back.
        """
        edges = self.weights.double().cumsum(0)
        uniform = torch.special.ndtr(noise[:, 0].double()) * edges[-1]
        chosen = torch.searchsorted(edges[:-1], uniform, right=True)  # (B,)
        place = 1 - (edges[chosen] - uniform) / self.weights.double()[chosen]
        first = torch.special.ndtri(place.clamp(1e-9, 1 - 1e-9)).to(noise)
        noise = torch.cat([first[:, None], noise[:, 1:]], 1)
        u = torch.empty_like(noise)
        for k in chosen.unique():
            u[chosen == k] = self.means[k] + noise[chosen == k] @ self.factors[k].T
        return u

    def log_density(self, u: Tensor) -> Tensor:
        """log sum_k weights_k N(u; means_k, factors_k factors_k^T) in nats, (B, D) -> (B,)."""
        terms = [w.log() + log_normal(u, m, f) for w, m, f in zip(self.weights, self.means, self.factors, strict=True)]
        return torch.stack(terms).logsumexp(0)


class LatentPrior(nn.Module):
    """p(z) in three forms: `standard`, N(0, I); `fitted`, N(mean, covariance); `learned`, a mixture in its units.

    The fitted one is the standard until `fit` is called, and the learned one is there after `learn` alone. Both travel
    in the state, whose loading builds the mixture or takes it away.

    With a flow the VAE's own p(z) is not `standard` but `flow`, the law of the z that the flow takes to N(0, I). Its
    weights are parameters, which the VAE's loss trains; the others are fitted to q(z) afterwards, as ever.

    Args:
        latent: D.
        flow: its steps, if any.
    """

    mixture: Mixture | None

    def __init__(self, latent: int, flow: FlowConfig = FlowConfig()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.flow = AutoregressiveFlow(latent, flow) if flow.steps else None
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("cholesky", torch.eye(latent))
        self.mixture = None
        self.register_load_state_dict_pre_hook(make_room)

    @property
    def names(self) -> tuple[PriorName, ...]:
        """The priors that there are, the one to draw from last: the best, or the one that the VAE was trained with."""
        to_codes = ("fitted",) if self.mixture is None else ("fitted", "learned")
        return (*to_codes, "flow") if self.flow is not None else ("standard", *to_codes)

    @property
    def own(self) -> PriorName:
        """The p(z) of the VAE's loss."""
        return "standard" if self.flow is None else "flow"

    def forward(self, noise: Tensor, name: PriorName | None = None) -> Tensor:
        """A draw for standard normal noise, both (B, D), from the best prior or a named one."""
        name = name or self.names[-1]
        if name == "standard":
            return noise
        if name == "flow":
            return self.flow.inverse(noise)
        return self.mean + (self.mixture(noise) if name == "learned" else noise) @ self.cholesky.T

    def log_density(self, z: Tensor, name: PriorName | None = None) -> Tensor:
        """log p(z) in nats, (B, D) -> (B,), of the best prior or a named one."""
        name = name or self.names[-1]
        if name == "standard":
            return log_standard_normal(z)
        if name == "flow":
            u, log_determinant = self.flow(z)
            return log_standard_normal(u) + log_determinant
        if name == "fitted":
            return log_normal(z, self.mean, self.cholesky)
        return self.mixture.log_density(self.whitened(z)) - self.cholesky.diagonal().log().sum()

    def whitened(self, z: Tensor) -> Tensor:
        """z in units of the fitted Gaussian, in which it is N(0, I); both (B, D)."""
        return torch.linalg.solve_triangular(self.cholesky, (z - self.mean).T, upper=False).T

    def rate(self, draws: LatentDraws, name: PriorName | None = None) -> Tensor:
        """log q(z|x) - log p(z) in nats, (B,), of draws (B, D): on average KL(q(z|x) to p(z))."""
        with torch.autocast(draws.z.device.type, enabled=False):
            return draws.log_q - self.log_density(draws.z, name)

    def fit(self, mean: Tensor, covariance: Tensor) -> None:
        """Take over the moments of q(z), (D,) and (D, D), with a jitter of 1e-6 of the mean variance on it.

        A covariance that is singular even so (rounding, of codes that are all the same) gets the least of larger ones
        that helps; moments beyond that, or not finite, leave everything as it is. What was learned is dropped: it stood
        in units of another Gaussian.
        """
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            return
        unit = covariance.diagonal().mean().clamp(min=LEAST_VARIANCE) * torch.eye(len(covariance)).to(covariance)
        for jitter in JITTERS:
            factor, failed = torch.linalg.cholesky_ex(covariance + jitter * unit)
            if not failed:
                self.mean.copy_(mean)
                self.cholesky.copy_(factor)
                self.mixture = None
                return

    def learn(self, draws: LatentDraws, components: int, seed: int = 0) -> dict[PriorName, float]:
        """Learn q(z) from a draw of each posterior; every tenth image is held out to judge the mixture.

        It is not kept where those are no likelier than under the Gaussian.

        Args:
            draws: of the posteriors, (N, V, D).
            components: K, at least 1.
            seed: of the mixture's start.

        Returns:
            The rate of the held-out images under each prior, in nats; nothing where none is learned, from fewer than
            LEAST_IMAGES images.
        """
        self.mixture = None
        if len(draws.z) < max(LEAST_IMAGES, 2 * components):
            return {}
        held = torch.arange(len(draws.z), device=draws.z.device) % HELD_OUT_EVERY == 0
        self.mixture = Mixture.of(self.whitened(rearrange(draws.z[~held], "n v d -> (n v) d")), components, seed)
        valid = LatentDraws(rearrange(draws.z[held], "n v d -> (n v) d"), rearrange(draws.log_q[held], "n v -> (n v)"))
        rates = {name: self.rate(valid, name).mean().item() for name in self.names}
        if not rates["learned"] < rates["fitted"]:
            self.mixture = None
        return rates


def make_room(prior: LatentPrior, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Give the prior a mixture, or none, as the state that is about to be loaded has."""
    means = state.get(f"{prefix}mixture.means")
    prior.mixture = Mixture(*means.shape).to(prior.mean.device) if means is not None else None


def log_normal(z: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """log N(z; mean, F F^T) = log N(F^-1 (z - mean); 0, I) - log det F, (B, D) -> (B,), for a triangular F (D, D)."""
    u = torch.linalg.solve_triangular(factor, (z - mean).T, upper=False).T
    return log_standard_normal(u) - factor.diagonal().log().sum()
