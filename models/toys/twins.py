"""One objective in two forms, for a convolutional VAE: a KL weight beta at std 1, and the ELBO at std sqrt(beta)."""

from copy import deepcopy
from typing import Any

import torch
from einops import reduce
from matplotlib.figure import Figure
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian, kl_to_standard_normal, log_density
from degrain.models.evaluation.figures import MEAN, SAMPLE, new, styled
from degrain.models.toys.recipe import ToyModule
from degrain.models.training.schedule import Schedule
from degrain.models.training.update import adam
from degrain.models.vae.likelihood import log_bin_probability
from degrain.models.vae.network import VAE, VAEConfig

LIKELIHOODS = {"density": log_density, "bin": log_bin_probability}
PAIRS = [(name, elbo) for name in LIKELIHOODS for elbo in (False, True)]  # of each optimizer, in their order


class ToyTwinsModule(ToyModule):
    """Train twins from one start on the same images and noise, and measure how far apart they end.

    With the Gaussian density, squared_error/2 + beta KL is beta times the negative ELBO at the fixed std sqrt(beta), up
    to a constant. Adam's steps do not depend on a factor on the loss, so both take the same path, up to Adam's epsilon
    and rounding, which is least if beta is a power of 2. The bin likelihood has no such symmetry.

    Args:
        size: image side in pixels; set by the data.
        net: architecture; the decoder's std is not used.
        beta: KL weight at std 1, and std^2 at KL weight 1.
        epsilon: Adam's; the usual 1e-8 is not small against small gradients and separates the twins.
        schedule: budget, validate_every, learning_rate, warmup, decay, seed.

    Raises:
        InputError: beta is not positive, the posterior not Gaussian, or a schedule out of range.
    """

    def __init__(
        self,
        size: int,
        net: VAEConfig = VAEConfig(),  # noqa: B008 (frozen)
        beta: float = 0.015625,
        epsilon: float = 1e-16,
        **schedule,
    ) -> None:
        super().__init__({"size": size, "beta": beta}, Schedule(**schedule))
        if not 0 < beta < float("inf"):
            raise InputError(f"toy twins: beta = {beta:g}; give a finite beta > 0")
        net.must_be_gaussian("toy twins")
        self.automatic_optimization = False
        self.beta, self.epsilon = beta, epsilon
        first = VAE(size, net)
        self.twins = nn.ModuleDict({f"{name}_{i}": deepcopy(first) for name in LIKELIHOODS for i in (0, 1)})
        self.register_buffer("start", flat(first), persistent=True)
        self.path: list[tuple[int, dict[str, float]]] = []

    def objective(self, name: str, elbo: bool, x: Tensor, noise: Tensor) -> Tensor:
        """Return distortion + w rate per image, (B,): std sqrt(beta) and w = 1 (elbo), or std 1 and w = beta."""
        vae = self.twins[f"{name}_{int(elbo)}"]
        variance, weight = (self.beta, 1.0) if elbo else (1.0, self.beta)
        q = vae.encode(x)
        mean = vae.decode(q.sample(noise)).mean
        p = Gaussian(mean, torch.full_like(mean, variance).log() / 2)
        distortion = -reduce(LIKELIHOODS[name](p, x), "b c h w -> b", "sum")
        return distortion + weight * reduce(kl_to_standard_normal(q), "b d -> b", "sum")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        x = batch["image"].float() / 255
        noise = self.noise().normal(len(x), self.twins["density_0"].config.latent)
        terms, skipped = {}, []
        for optimizer, (name, elbo) in zip(self.optimizers(), PAIRS, strict=True):
            loss = self.objective(name, elbo, x, noise)
            update = self.step(optimizer, loss.mean(), {f"{name}_{'elbo' if elbo else 'beta'}": loss})
            terms |= update.terms
            skipped.append(update.skipped)
        self.count_images(batch, torch.stack(skipped).any())
        self.log_terms("train", terms)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        nets = [self.twins[f"{name}_{int(elbo)}"] for name, elbo in PAIRS]
        return [adam(net, self.schedule.learning_rate, eps=self.epsilon) for net in nets]

    # Results.

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Return |theta_0 - theta_1| / |theta_0 - start| over all parameters, by likelihood."""
        values = {}
        for name in LIKELIHOODS:
            one, other = (flat(self.twins[f"{name}_{i}"]) for i in (0, 1))
            values[f"distance_{name}"] = ((one - other).norm() / (one - self.start).norm().clamp(min=1e-30)).item()
        return values

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.path.append((self.images_seen, self.metrics()))

    def table(self) -> str:
        lines = [f"beta {self.beta:g}: distance of the twins over that from the start"]
        lines += [f"{seen:9,} images: " + ", ".join(f"{k} {v:.2e}" for k, v in m.items()) for seen, m in self.path]
        return "\n".join(lines)

    def figures(self) -> dict[str, Figure]:
        seen = torch.tensor([float(seen) for seen, _ in self.path])
        by_name = {name: torch.tensor([m[f"distance_{name}"] for _, m in self.path]) for name in LIKELIHOODS}
        return {"twins": draw_distances(seen, by_name, self.beta)}

    def data_description(self) -> dict[str, Any] | None:
        """Return nothing: any images serve."""
        return None


@styled
def draw_distances(seen: Tensor, distance: dict[str, Tensor], beta: float) -> Figure:
    """Draw the distance of the twins over that from the start, by likelihood, (P,), over the images `seen`, (P,)."""
    figure, (ax,) = new(6.8, 4.2)
    names = {"density": ("Gaussian density", MEAN), "bin": ("likelihood of the 8-bit value", SAMPLE)}
    for name, values in distance.items():
        label, colour = names[name]
        ax.plot(seen, values.clamp(min=1e-9), "o-", color=colour, label=label)
    ax.set(yscale="log", xlabel="images seen", ylabel="distance / way gone", ylim=(None, 3))
    ax.set_title(
        f"KL weight {beta:g} at std 1, or the ELBO at std {beta**0.5:g}:\none path for the density, two for the bins"
    )
    ax.legend()
    return figure


def flat(network: nn.Module) -> Tensor:
    """Return all parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in network.parameters()])
