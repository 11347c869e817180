"""One objective written twice, for a convolutional VAE: a KL weight beta at std 1, and the ELBO at std sqrt(beta)."""

from copy import deepcopy
from typing import Any

import torch
from einops import reduce
from matplotlib.figure import Figure
from torch import Tensor, nn

from models.core.errors import InputError
from models.core.gaussian import Gaussian, kl_to_standard_normal, log_density
from models.toys import figures as toy_figures
from models.toys.recipe import ToyModule
from models.vae.likelihood import log_bin_probability
from models.vae.network import VAE, VAEConfig

LIKELIHOODS = {"density": log_density, "bin": log_bin_probability}


class ToyTwinsModule(ToyModule):
    """Trains twins from one start on the same images and noise, and measures how far their paths part.

    With the Gaussian density, squared_error/2 + beta KL is beta times the ELBO's loss at the fixed std sqrt(beta), but
    for a constant. Adam does not see a factor on the loss, so the twins take the same path: exactly, but for rounding
    (a power of 2 as beta scales without any) and Adam's epsilon. The bin likelihood has no such symmetry.

    Args:
        size: image side in pixels; set by the data.
        net: architecture; the decoder's std is not used.
        beta: KL weight beside std 1, and std^2 beside KL weight 1.
        budget: training images to see in all.
        validate_every: images between measurements.
        learning_rate: Adam's.
        epsilon: Adam's; the usual 1e-8 is a scale on small gradients, and parts the twins.
        seed: of the start and of the noise.

    Raises:
        InputError: beta is not positive, or the posterior not Gaussian.
    """

    def __init__(
        self,
        size: int,
        net: VAEConfig = VAEConfig(),  # noqa: B008 (frozen)
        beta: float = 0.015625,
        budget: int = 3_200,
        validate_every: int = 320,
        learning_rate: float = 1e-3,
        epsilon: float = 1e-16,
        seed: int = 0,
    ) -> None:
        super().__init__({"size": size, "beta": beta}, budget, validate_every, learning_rate, 0.0, 0.0, seed)
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
        """distortion + w rate per image, (B,): at std sqrt(beta) and w = 1 (elbo), or at std 1 and w = beta."""
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
        terms = {}
        for optimizer, (name, elbo) in zip(self.optimizers(), self.pairs(), strict=True):
            loss = self.objective(name, elbo, x, noise)
            optimizer.zero_grad()
            self.manual_backward(loss.mean())
            optimizer.step()
            terms[f"{name}_{'elbo' if elbo else 'beta'}"] = loss
        self.count_images(batch)
        self.log_terms("train", terms)

    def pairs(self) -> list[tuple[str, bool]]:
        """(likelihood, elbo) of every network, in the order of the optimizers."""
        return [(name, elbo) for name in LIKELIHOODS for elbo in (False, True)]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        nets = [self.twins[f"{name}_{int(elbo)}"] for name, elbo in self.pairs()]
        return [torch.optim.Adam(net.parameters(), self.schedule.learning_rate, eps=self.epsilon) for net in nets]

    # What was found.

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """|theta_0 - theta_1| / |theta_0 - start| over all parameters, by likelihood."""
        values = {}
        for name in LIKELIHOODS:
            one, other = (flat(self.twins[f"{name}_{i}"]) for i in (0, 1))
            values[f"distance_{name}"] = ((one - other).norm() / (one - self.start).norm().clamp(min=1e-30)).item()
        return values

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.path.append((self.images_seen, self.metrics()))

    def table(self) -> str:
        lines = [f"beta {self.beta:g}: distance of the twins over the way they went"]
        lines += [f"{seen:9,} images: " + ", ".join(f"{k} {v:.2e}" for k, v in m.items()) for seen, m in self.path]
        return "\n".join(lines)

    def figures(self) -> dict[str, Figure]:
        seen = torch.tensor([float(seen) for seen, _ in self.path])
        by_name = {name: torch.tensor([m[f"distance_{name}"] for _, m in self.path]) for name in LIKELIHOODS}
        return {"twins": toy_figures.twins(seen, by_name, self.beta)}

    def data_description(self) -> dict[str, Any] | None:
        """Nothing: any images serve."""
        return None


def flat(network: nn.Module) -> Tensor:
    """All parameters in one row."""
    return torch.cat([p.detach().flatten() for p in network.parameters()])
