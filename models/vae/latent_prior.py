"""The ladder of priors that z is drawn from: N(0, I), the Gaussian of q(z), a mixture and a diffusion that learn q(z).

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
from degrain.models.core.gaussian import Gaussian, LatentDraws, log_standard_normal
from degrain.models.core.images import check_tensor
from degrain.models.core.precision import full_precision
from degrain.models.core.randomness import shown
from degrain.models.vae.diffusion import BLOCKS, WIDTH, Diffusion
from degrain.models.vae.flow import AutoregressiveFlow, FlowConfig
from degrain.models.vae.mixture import Mixture

PriorName = Literal["diffusion", "learned", "fitted", "standard", "flow"]

LEAST_IMAGES = 1000  # with fewer a mixture of many latents memorises them, and too few are held out to tell

UNKNOWN = f"stage 1 learns it when its budget is seen, from {LEAST_IMAGES:,} images, if held-out ones are likelier so"
UNFITTED = "it was not fitted yet, which stage 1 does at each validation and at the end of its budget"
UNASKED = "stage 1 learns it with model.prior_diffusion when its budget is seen, if it denoises held-out codes better"
NOT_DUE = "stage 1 learns it when its budget is seen"

multivariate_normal = partial(distributions.MultivariateNormal, validate_args=False)


class LatentPrior(nn.Module):
    """p(z) in four forms: `standard`, N(0, I); `fitted`, N(mean, covariance); `learned`, a mixture; `diffusion`.

    The fitted one exists from a call of `fit` on, the learned one after `learn`, the diffusion after `learn_diffusion`.
    All are in the state dict; loading one adds or removes mixture and diffusion. The diffusion has no density.

    With a flow the VAE's own p(z) is not `standard` but `flow`, the distribution of the z that the flow takes to
    N(0, I). Its weights are parameters, which the VAE's loss trains; the others are fitted to q(z) afterwards as
    always.

    Args:
        latent: D.
        flow: its steps, if any.

    Attributes:
        note: why there is no fitted or no learned prior, or no diffusion that was asked for, in words; "" if there
            are all, or nobody knows.
    """

    mixture: Mixture | None
    diffusion: Diffusion | None
    note: str = ""

    def __init__(self, latent: int, flow: FlowConfig = FlowConfig()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.flow = AutoregressiveFlow(latent, flow) if flow.steps else None
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("cholesky", torch.eye(latent))
        self.mixture = self.diffusion = None
        self.register_load_state_dict_pre_hook(match_state)

    @property
    def names(self) -> tuple[PriorName, ...]:
        """The available priors, the best one last."""
        fitted = ("fitted",) if self.fitted else ()
        learned = ("learned",) if self.mixture is not None else ()
        learned += ("diffusion",) if self.diffusion is not None else ()
        return (*fitted, *learned, "flow") if self.flow is not None else ("standard", *fitted, *learned)

    @property
    def densities(self) -> tuple[PriorName, ...]:
        """The available priors with a density, the best one last."""
        return tuple(name for name in self.names if name != "diffusion")

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
        elif name == "diffusion":
            why = self.note if "diffusion" in self.note else UNASKED
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
        if name == "diffusion":
            return self.diffusion(noise)
        return self.coloured(self.mixture(noise) if name == "learned" else noise)

    @full_precision()
    def log_density(self, z: Tensor, name: PriorName | None = None) -> Tensor:
        """log p(z) in nats, (B, D) -> (B,), for a named prior, by default the best that has a density.

        Raises:
            InputError: no such prior, or the diffusion.
        """
        name = name or self.densities[-1]
        name = name if name == "standard" else self.checked(name)
        if name == "diffusion":
            raise InputError(f"prior diffusion: has no density in closed form; give {', '.join(self.densities)}")
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
        helps, or that are not finite, change nothing. What was learned is dropped: it belongs to the codes before.

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
                    self.mixture, self.diffusion, self.note = None, None, NOT_DUE
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
        rates = {name: self.rate(valid, name).mean().item() for name in self.densities}
        self.note = ""
        if not rates["learned"] < rates["fitted"]:
            self.mixture = None
            self.note = "the mixture was no better than the Gaussian on held-out images ("
            self.note += f"rate {rates['learned']:.1f} and {rates['fitted']:.1f} nats)"
        return rates

    def learn_diffusion(self, q: Gaussian, draws: int, seed: int = 0) -> dict[PriorName, float]:
        """Learn q(z) by diffusion, from posteriors; every tenth image is held out, as for the mixture.

        It is kept only if it denoises held-out codes better than the Gaussian and the mixture do. Otherwise `note` says
        why there is none.

        Args:
            q: posteriors (N, V, D) of V views of N images.
            draws: codes to learn from, at most; it ends earlier when held-out codes gain no more.
            seed: of weights, codes and noise.

        Returns:
            The gain of the learned priors over the Gaussian on held-out codes, in nats, see `Diffusion.nats`; empty if
            there are too few images, or codes that are not finite.
        """
        self.diffusion = None
        why = f"stage 1 had {len(q.mean):,} of the {LEAST_IMAGES:,} images that a diffusion is learned from"
        if len(q.mean) >= LEAST_IMAGES:
            why = "no diffusion was learned: not all codes of the training images are finite"
            if q.mean.isfinite().all() and q.logstd.isfinite().all():
                with torch.inference_mode(False), torch.enable_grad():  # Lightning validates without gradients
                    return self.learn_from(Gaussian(q.mean.clone(), q.logstd.clone()), draws, seed)
        self.add_note(why)
        return {}

    def learn_from(self, q: Gaussian, draws: int, seed: int) -> dict[PriorName, float]:
        """Learn a diffusion, and keep or drop it; see `learn_diffusion`."""
        held = torch.arange(len(q.mean), device=q.mean.device) % 10 == 0
        kept, held = (Gaussian(q.mean[of].flatten(0, 1), q.logstd[of].flatten(0, 1)) for of in (~held, held))
        made = Diffusion.gaussian_of(kept, WIDTH, BLOCKS, seed)
        codes = made.held_out(held, seed)
        before = {"fitted": made.nats(codes)}
        if self.mixture is not None:
            before["learned"] = made.nats(codes, denoiser=self.mixture_in(made).denoiser())
        made.learn(kept, codes, draws, seed)
        losses = before | {"diffusion": made.nats(codes)}
        gains = {name: losses["fitted"] - loss for name, loss in losses.items() if name != "fitted"}
        if losses["diffusion"] < min(before.values()):
            made.nearest.copy_(made.nearest_codes(kept, held, seed))
            self.diffusion = made
        else:
            said = ", ".join(f"{name} {gain:.1f}" for name, gain in gains.items())
            why = f"the diffusion denoised held-out codes no better (nats gained over the Gaussian: {said})"
            self.add_note(why)
        return gains

    def add_note(self, why: str) -> None:
        """Say one reason more in `note`."""
        self.note = f"{self.note}; {why}" if self.note else why

    @full_precision()
    def mixture_in(self, diffusion: Diffusion) -> Mixture:
        """Return the mixture in the coordinates of a diffusion."""
        matrix = (self.cholesky.T / diffusion.noise) @ diffusion.axes
        return self.mixture.mapped(matrix, diffusion.coordinates(self.mean[None])[0])


def match_state(prior: LatentPrior, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Add or remove mixture and diffusion, so that the prior has the shapes of the state dict about to be loaded."""
    means, start = state.get(f"{prefix}mixture.means"), f"{prefix}diffusion."
    prior.mixture = Mixture(*means.shape).to(prior.mean) if means is not None else None
    learned = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
    prior.diffusion = Diffusion.with_shapes_of(learned).to(prior.mean) if learned else None
