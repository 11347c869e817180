"""The ladder of priors that z is drawn from: N(0, I), the Gaussian of q(z), a mixture fitted to q(z).

q(z) is the mixture of q(z|x) over the data. Training pulls each q(z|x) towards N(0, I) and yet leaves q(z) far from it
(the prior hole): draws from N(0, I) decode badly where draws from q(z)'s own Gaussian decode well. A flow may replace
N(0, I); it is trained with the VAE and comes to match q(z) (Chen et al. 2017).
Axes: B batch, D latents, N images, V views of each, K components.
"""

from functools import partial
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, distributions, nn

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import LatentDraws, log_standard_normal
from degrain.models.core.images import check_tensor
from degrain.models.core.precision import full_precision
from degrain.models.core.randomness import shown
from degrain.models.vae.flow import AutoregressiveFlow, FlowConfig
from degrain.models.vae.mixture import Mixture

PriorName = Literal["learned", "fitted", "standard", "flow"]

LEAST_IMAGES = 1000  # with fewer a mixture of many latents memorises them, and too few are held out to tell

UNKNOWN = f"stage 1 learns it when its budget is seen, from {LEAST_IMAGES:,} images, if held-out ones are likelier so"
UNFITTED = "it was not fitted yet, which stage 1 does at each validation and at the end of its budget"
NOT_DUE = "stage 1 learns it when its budget is seen"

multivariate_normal = partial(distributions.MultivariateNormal, validate_args=False)


class LatentPrior(nn.Module):
    """p(z) in three forms: `standard`, N(0, I); `fitted`, N(mean, covariance); `learned`, a mixture in its units.

    The fitted one exists from a call of `fit` on, the learned one after `learn`. Both are in the state dict;
    loading one adds or removes the mixture.

    With a flow the VAE's own p(z) is not `standard` but `flow`, the distribution of the z that the flow takes to
    N(0, I). Its weights are parameters, which the VAE's loss trains; the others are fitted to q(z) afterwards as
    always.

    Args:
        latent: D.
        flow: its steps, if any.

    Attributes:
        note: why there is no fitted or no learned prior, in words; "" if there are both, or nobody knows.
    """

    mixture: Mixture | None
    note: str = ""

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
        fitted = ("fitted",) if self.fitted else ()
        learned = ("learned",) if self.mixture is not None else ()
        return (*fitted, *learned, "flow") if self.flow is not None else ("standard", *fitted, *learned)

    @property
    def fitted(self) -> bool:
        """True if there is a fitted Gaussian: `fit` adds a jitter, and so never leaves N(0, I) itself."""
        unit = torch.eye(len(self.mean)).to(self.cholesky)
        return bool(self.mean.any()) or not torch.equal(self.cholesky, unit)

    @property
    def best(self) -> PriorName:
        """The default to draw from: the flow, or else the last one that was fitted to q(z)."""
        return self.names[-1]

    @property
    def training_prior(self) -> PriorName:
        """The p(z) of the VAE's loss."""
        return "standard" if self.flow is None else "flow"

    def checked(self, name: PriorName | None, owner: str = "the checkpoint") -> PriorName:
        """Return the name of an available prior, None as the best.

        Raises:
            InputError: there is no such prior; it says which there are, and why not this one.
        """
        if name is None:
            return self.best
        if name in self.names:
            return name
        why = f"the names of priors are {', '.join(sorted(get_args(PriorName)))}"
        if name == "standard":
            why = "its VAE was trained with the flow instead of N(0, I)"
        elif name == "flow":
            why = "its VAE was trained with N(0, I), without net.prior.steps"
        elif name in ("fitted", "learned"):
            why = self.note or (UNKNOWN if self.fitted else UNFITTED)
        given = name if isinstance(name, str) else shown(name)
        raise InputError(f"prior {given}: {owner} has {', '.join(self.names)}; {why}")

    @full_precision()
    def forward(self, noise: Tensor, name: PriorName | None = None) -> Tensor:
        """Draw z for standard normal noise, both (B, D), from a named prior, by default the best.

        Raises:
            InputError: no such prior, or noise of another shape or type.
        """
        name = name if name == "standard" else self.checked(name)  # N(0, I) there always is
        check_tensor("noise of the prior", noise, ("B", len(self.mean)), self.mean)
        if name == "standard":
            return noise
        if name == "flow":
            return self.flow.inverse(noise)
        return self.coloured(self.mixture(noise) if name == "learned" else noise)

    @full_precision()
    def log_density(self, z: Tensor, name: PriorName | None = None) -> Tensor:
        """log p(z) in nats, (B, D) -> (B,), for a named prior, by default the best.

        Raises:
            InputError: no such prior.
        """
        name = name if name == "standard" else self.checked(name)
        if name == "standard":
            return log_standard_normal(z)
        if name == "flow":
            u, log_determinant = self.flow(z)
            return log_standard_normal(u) + log_determinant
        if name == "fitted":
            return multivariate_normal(self.mean, scale_tril=self.cholesky).log_prob(z)
        return self.mixture.log_density(self.whitened(z)) - self.cholesky.diagonal().log().sum()

    @full_precision()
    def whitened(self, z: Tensor) -> Tensor:
        """Return z in units of the fitted Gaussian, which becomes N(0, I) in them; both (B, D)."""
        return torch.linalg.solve_triangular(self.cholesky, (z - self.mean).T, upper=False).T

    @full_precision()
    def coloured(self, u: Tensor) -> Tensor:
        """Return the z that `whitened` maps to u, both (B, D)."""
        return self.mean + u @ self.cholesky.T

    def rate(self, draws: LatentDraws, name: PriorName | None = None) -> Tensor:
        """log q(z|x) - log p(z) in nats, (B,), for draws (B, D): its expectation is KL(q(z|x) to p(z))."""
        return draws.log_q - self.log_density(draws.z, name)

    @full_precision()
    def fit(self, mean: Tensor, covariance: Tensor) -> bool:
        """Take over the moments of q(z), (D,) and (D, D), with a jitter of 1e-6 of the mean variance.

        A covariance that is singular in spite of it gets the smallest larger jitter that helps. Moments that none
        helps, or that are not finite, change nothing. The learned prior is dropped: it is in units of the Gaussian
        before.

        Returns:
            True if the moments were taken over.
        """
        if mean.isfinite().all() and covariance.isfinite().all():
            variance = covariance.diagonal().mean().clamp(min=1e-12)  # it is 0 for codes that are all the same
            unit = variance * torch.eye(len(covariance)).to(covariance)
            for jitter in (1e-6, 1e-4, 1e-2, 1.0):
                factor, failed = torch.linalg.cholesky_ex(covariance + jitter * unit)
                if not failed:
                    self.mean.copy_(mean)
                    self.cholesky.copy_(factor)
                    self.mixture, self.note = None, NOT_DUE
                    return True
        self.note = "the codes of the training images have no finite mean and covariance"
        return False

    def learn(self, draws: LatentDraws, components: int, seed: int = 0) -> dict[PriorName, float]:
        """Learn q(z) from a draw of each posterior; every tenth image is held out to judge the mixture.

        The mixture is kept only if the held-out images are likelier under it than under the Gaussian. Otherwise `note`
        says why there is none.

        Args:
            draws: of the posteriors, (N, V, D).
            components: K, at least 1.
            seed: of the mixture's start.

        Returns:
            The rate of the held-out images under each prior, in nats; empty if there are fewer than LEAST_IMAGES
            images or two a component, from which no mixture is learned, or codes that are not finite.
        """
        self.mixture = None
        images, least = len(draws.z), max(LEAST_IMAGES, 2 * components)
        if images < least:
            self.note = f"stage 1 had {images:,} of the {least:,} images that a mixture is learned from"
            return {}
        if not draws.z.isfinite().all():
            self.note = "not all codes of the training images are finite"
            return {}
        held = torch.arange(images, device=draws.z.device) % 10 == 0
        self.mixture = Mixture.fitted_to(self.whitened(rearrange(draws.z[~held], "n v d -> (n v) d")), components, seed)
        valid = LatentDraws(rearrange(draws.z[held], "n v d -> (n v) d"), rearrange(draws.log_q[held], "n v -> (n v)"))
        rates = {name: self.rate(valid, name).mean().item() for name in self.names}
        self.note = ""
        if not rates["learned"] < rates["fitted"]:
            self.mixture = None
            self.note = "the mixture was no better than the Gaussian on held-out images ("
            self.note += f"rate {rates['learned']:.1f} and {rates['fitted']:.1f} nats)"
        return rates


def match_mixture(prior: LatentPrior, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Add or remove the prior's mixture, so that it has the shapes of the state dict that is about to be loaded."""
    means = state.get(f"{prefix}mixture.means")
    prior.mixture = Mixture(*means.shape).to(prior.mean.device) if means is not None else None
