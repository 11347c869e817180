"""The ladder of priors that z is drawn from: N(0, I), the Gaussian of q(z), a mixture fitted to q(z).

q(z) is the mixture of q(z|x) over the data. Training pulls each q(z|x) towards N(0, I) and yet leaves q(z) far from it
(the prior hole): draws from N(0, I) decode badly where draws from q(z)'s own Gaussian decode well. A flow may replace
N(0, I); it is trained with the VAE and comes to match q(z) (Chen et al. 2017).
Axes: B batch, D latents, N images, V views of each, K components.
"""

import warnings
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, distributions, nn

from models.core.gaussian import LatentDraws, log_standard_normal
from models.vae.flow import AutoregressiveFlow, FlowConfig

PriorName = Literal["learned", "fitted", "standard", "flow"]

LEAST_IMAGES = 1000  # with fewer a mixture of many latents memorises them, and too few are held out to tell

SHRINKAGE = 0.1
"""Share of the fitted Gaussian's covariance in each component's: some thousand images alone do not settle one."""

multivariate_normal = partial(distributions.MultivariateNormal, validate_args=False)


class Mixture(nn.Module):
    """A mixture of K = `components` Gaussians N(means_k, factors_k factors_k^T) over D = `latent` dimensions."""

    def __init__(self, components: int, latent: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.zeros(components, latent))
        self.register_buffer("factors", torch.eye(latent).repeat(components, 1, 1))  # lower triangular

    @classmethod
    def fitted_to(cls, u: Tensor, components: int, seed: int) -> "Mixture":
        """Fit a mixture to draws u (N, D) whose own covariance is about I, by EM from k-means, on the CPU."""
        shrink = SHRINKAGE / (1 - SHRINKAGE)  # C + shrink I, in units of its own trace: (1 - SHRINKAGE) C + SHRINKAGE I
        model = GaussianMixture(components, reg_covar=shrink, tol=0.1, max_iter=30, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # held-out images judge it
            model.fit(u.double().cpu().numpy())
        mixture = cls(components, u.shape[1])
        mixture.weights.copy_(torch.from_numpy(model.weights_))
        mixture.means.copy_(torch.from_numpy(model.means_))
        mixture.factors.copy_(torch.linalg.cholesky((1 - SHRINKAGE) * torch.from_numpy(model.covariances_)))
        return mixture.to(u.device)

    def forward(self, noise: Tensor) -> Tensor:
        """Draw u for standard normal noise, both (B, D).

        The first noise chooses the component: the one whose interval of the cumulated weights contains Phi(noise). The
        position of Phi(noise) in that interval is uniform again and becomes the first noise of the component.
        """
        edges = self.weights.double().cumsum(0)
        uniform = torch.special.ndtr(noise[:, 0].double()) * edges[-1]
        chosen = torch.searchsorted(edges[:-1], uniform, right=True)  # (B,)
        position = 1 - (edges[chosen] - uniform) / self.weights.double()[chosen]
        first = torch.special.ndtri(position.clamp(1e-9, 1 - 1e-9)).to(noise)
        noise = torch.cat([first[:, None], noise[:, 1:]], 1)
        u = torch.empty_like(noise)
        for k in chosen.unique():
            u[chosen == k] = self.means[k] + noise[chosen == k] @ self.factors[k].T
        return u

    def log_density(self, u: Tensor) -> Tensor:
        """log sum_k weights_k N(u; means_k, factors_k factors_k^T) in nats, (B, D) -> (B,)."""
        weights = distributions.Categorical(self.weights, validate_args=False)
        components = multivariate_normal(self.means, scale_tril=self.factors)
        return distributions.MixtureSameFamily(weights, components, validate_args=False).log_prob(u)


class LatentPrior(nn.Module):
    """p(z) in three forms: `standard`, N(0, I); `fitted`, N(mean, covariance); `learned`, a mixture in its units.

    The fitted one is the standard one until `fit` is called; the learned one exists only after `learn`. Both are in the
    state dict, and loading a state dict adds or removes the mixture.

    With a flow the VAE's own p(z) is not `standard` but `flow`, the distribution of the z that the flow takes to
    N(0, I). Its weights are parameters, which the VAE's loss trains; the others are fitted to q(z) afterwards as
    always.

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
        self.register_load_state_dict_pre_hook(match_mixture)

    @property
    def names(self) -> tuple[PriorName, ...]:
        """The available priors, the best one last."""
        fitted = ("fitted",) if self.mixture is None else ("fitted", "learned")
        return (*fitted, "flow") if self.flow is not None else ("standard", *fitted)

    @property
    def best(self) -> PriorName:
        """The default to draw from: the flow, or else the last one that was fitted to q(z)."""
        return self.names[-1]

    @property
    def training_prior(self) -> PriorName:
        """The p(z) of the VAE's loss."""
        return "standard" if self.flow is None else "flow"

    def forward(self, noise: Tensor, name: PriorName | None = None) -> Tensor:
        """Draw z for standard normal noise, both (B, D), from a named prior, by default the best."""
        name = name or self.best
        if name == "standard":
            return noise
        if name == "flow":
            return self.flow.inverse(noise)
        return self.mean + (self.mixture(noise) if name == "learned" else noise) @ self.cholesky.T

    def log_density(self, z: Tensor, name: PriorName | None = None) -> Tensor:
        """log p(z) in nats, (B, D) -> (B,), for a named prior, by default the best."""
        name = name or self.best
        if name == "standard":
            return log_standard_normal(z)
        if name == "flow":
            u, log_determinant = self.flow(z)
            return log_standard_normal(u) + log_determinant
        if name == "fitted":
            return multivariate_normal(self.mean, scale_tril=self.cholesky).log_prob(z)
        return self.mixture.log_density(self.whitened(z)) - self.cholesky.diagonal().log().sum()

    def whitened(self, z: Tensor) -> Tensor:
        """Return z in units of the fitted Gaussian, which becomes N(0, I) in them; both (B, D)."""
        return torch.linalg.solve_triangular(self.cholesky, (z - self.mean).T, upper=False).T

    def rate(self, draws: LatentDraws, name: PriorName | None = None) -> Tensor:
        """log q(z|x) - log p(z) in nats, (B,), for draws (B, D): its expectation is KL(q(z|x) to p(z))."""
        with torch.autocast(draws.z.device.type, enabled=False):
            return draws.log_q - self.log_density(draws.z, name)

    def fit(self, mean: Tensor, covariance: Tensor) -> None:
        """Take over the moments of q(z), (D,) and (D, D), with a jitter of 1e-6 of the mean variance.

        A covariance that is singular in spite of it gets the smallest larger jitter that helps. Moments that none
        helps, or that are not finite, change nothing. The learned prior is dropped: it is in units of the Gaussian
        before.
        """
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            return
        variance = covariance.diagonal().mean().clamp(min=1e-12)  # it is 0 for codes that are all the same
        unit = variance * torch.eye(len(covariance)).to(covariance)
        for jitter in (1e-6, 1e-4, 1e-2, 1.0):
            factor, failed = torch.linalg.cholesky_ex(covariance + jitter * unit)
            if not failed:
                self.mean.copy_(mean)
                self.cholesky.copy_(factor)
                self.mixture = None
                return

    def learn(self, draws: LatentDraws, components: int, seed: int = 0) -> dict[PriorName, float]:
        """Learn q(z) from a draw of each posterior; every tenth image is held out to judge the mixture.

        The mixture is kept only if the held-out images are likelier under it than under the Gaussian.

        Args:
            draws: of the posteriors, (N, V, D).
            components: K, at least 1.
            seed: of the mixture's start.

        Returns:
            The rate of the held-out images under each prior, in nats; empty if there are fewer than LEAST_IMAGES
            images, from which no mixture is learned.
        """
        self.mixture = None
        if len(draws.z) < max(LEAST_IMAGES, 2 * components):
            return {}
        held = torch.arange(len(draws.z), device=draws.z.device) % 10 == 0
        self.mixture = Mixture.fitted_to(self.whitened(rearrange(draws.z[~held], "n v d -> (n v) d")), components, seed)
        valid = LatentDraws(rearrange(draws.z[held], "n v d -> (n v) d"), rearrange(draws.log_q[held], "n v -> (n v)"))
        rates = {name: self.rate(valid, name).mean().item() for name in self.names}
        if not rates["learned"] < rates["fitted"]:
            self.mixture = None
        return rates


def match_mixture(prior: LatentPrior, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Add or remove the prior's mixture, so that it has the shapes of the state dict that is about to be loaded."""
    means = state.get(f"{prefix}mixture.means")
    prior.mixture = Mixture(*means.shape).to(prior.mean.device) if means is not None else None
