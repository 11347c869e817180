"""The toy-Gaussian laboratory: linear VAEs trained by gradient, judged by their closed forms.

Each recipe trains many small problems at once, side by side along leading axes, and ends with a table, figures and
its errors against theory.
Axes: L losses (integrated, sampled), T stds t, N betas, B batch.
"""

from abc import abstractmethod
from typing import Any, Literal

import torch
from einops import rearrange
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from models.core.errors import InputError
from models.inference.checkpoint import Card
from models.toys import figures as toy_figures
from models.toys import linear_gaussian as toy
from models.training.recipe import Recipe
from models.training.report import Report
from models.training.schedule import Schedule

LOSSES = ("integrated", "sampled")


class ToyModule(Recipe):
    """A recipe on vectors from data/gaussian.py. Its parameters are made when the data are known.

    Args:
        settings: what a checkpoint must share with the config that goes on from it.
    """

    def __init__(self, settings: dict[str, Any], *clock: Any) -> None:
        super().__init__(Schedule(*clock))
        self.settings = {"recipe": type(self).__name__, **settings}

    @property
    def data(self) -> Any:
        """The data module, whose distribution is known."""
        return self.trainer.datamodule

    @property
    def covariance(self) -> Tensor:
        """The data's covariance, (d, d).

        Raises:
            InputError: the data are not Gaussian.
        """
        if not hasattr(self.data, "covariance"):
            raise InputError(f"{type(self).__name__} needs Gaussian data, data.gaussian.GaussianVectors for one")
        return self.data.covariance.to(self.device)

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Errors against theory by name, without the prefix toy/."""

    @abstractmethod
    def table(self) -> str:
        """What was found beside what theory says."""

    @abstractmethod
    def figures(self) -> dict[str, Figure]:
        """Figures by name."""

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        self.log_dict({f"toy/{name}": torch.tensor(float(value)) for name, value in self.metrics().items()})
        self.log_position()

    def configure_callbacks(self) -> list[Callback]:
        return [Report("train")]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.schedule.learning_rate)

    def card(self) -> Card:
        return Card("toy", 0, self.images_seen, {}, settings=self.settings)

    def check(self, card: Card, state: dict[str, Tensor], path: str) -> None:
        """Compare the cards; shapes follow from the settings and from the data, see on_load_checkpoint."""
        super().check(card, self.state_dict(), path)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        theirs, mine = checkpoint["degrain"]["data"], self.data_description()
        if theirs != mine:
            raise InputError(f"the checkpoint's data were {theirs}, the config says {mine}")
        super().on_load_checkpoint(checkpoint)


class ToyGridModule(ToyModule):
    """The linear VAE (a, b, c) on x ~ N(0, t^2), for every (t, beta) at once, on the integrated and the sampled loss.

    Args:
        betas: KL weights in units of t^2; 2 is the threshold. At 0 only a c = 1 and b = 0 are determined.
        regulariser: posterior, beta KL(q(z|x) to p(z)), or aggregate, beta KL(q(z) to p(z)).
        start: a and c of every problem at the start; not 0, which is stationary.
        budget: draws of x to see in all, which is also the clock of the integrated loss.
        validate_every: draws between measurements.
        learning_rate: Adam's, after the warm-up.
        warmup: share of the budget over which the learning rate rises from 0.
        decay: share of the budget, at its end, over which the learning rate falls to 0 as a half cosine.
        seed: of the noise.

    Raises:
        InputError: no betas, a negative one, or a start at 0.
    """

    def __init__(
        self,
        betas: list[float] = (0, 0.05, 0.2, 0.5, 1, 1.5, 1.8, 1.9, 1.98, 2, 2.02, 2.1, 2.2, 3, 4),
        regulariser: Literal["posterior", "aggregate"] = "posterior",
        start: float = 0.5,
        budget: int = 4_096_000,
        validate_every: int = 409_600,
        learning_rate: float = 0.02,
        warmup: float = 0.0,
        decay: float = 0.8,
        seed: int = 0,
    ) -> None:
        settings = {"betas": list(betas), "regulariser": regulariser, "start": start}
        super().__init__(settings, budget, validate_every, learning_rate, warmup, decay, seed)
        if not betas or start == 0:
            raise InputError(f"toy grid: betas {list(betas)}, start {start}: give at least one beta and a start off 0")
        self.relative = toy.valid_beta(torch.tensor(list(betas), dtype=torch.float64))
        self.regulariser, self.start = regulariser, start

    def setup(self, stage: str) -> None:
        covariance = self.covariance
        if (covariance != torch.diag(covariance.diagonal())).any():
            raise InputError("toy grid: each coordinate is a problem of its own; leave data.rotation at null")
        std = covariance.diagonal().sqrt()[:, None]
        self.register_buffer("t", std.expand(-1, len(self.relative)), persistent=False)  # (T, N)
        self.register_buffer("beta", self.relative * std.square(), persistent=False)  # (T, N)
        shape = (len(LOSSES), *self.t.shape)
        self.a, self.c = (nn.Parameter(torch.full(shape, self.start, dtype=torch.float64)) for _ in range(2))
        self.log_b = nn.Parameter(torch.full(shape, -0.5, dtype=torch.float64))

    # Loss terms and training.

    def integrated(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """The exact expectation, (T, N)."""
        loss = toy.loss if self.regulariser == "posterior" else toy.aggregate_loss
        return loss(a, b, c, self.t, self.beta)

    def sampled(self, a: Tensor, b: Tensor, c: Tensor, x: Tensor, noise: Tensor) -> Tensor:
        """The mean over a batch of reparameterised draws, (T, N), for x (B, T, 1) and noise (B, T, N)."""
        if self.regulariser == "posterior":
            return toy.sampled_loss(a, b, c, x, noise, self.beta).mean(0)
        return toy.sampled_aggregate_loss(a, b, c, x, noise, self.beta)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        x = batch["x"][..., None]  # (B, T, 1)
        noise = self.noise().normal(len(x), *self.t.shape).double()
        a, b, c = self.a, self.log_b.exp(), self.c
        losses = {"integrated": self.integrated(a[0], b[0], c[0]), "sampled": self.sampled(a[1], b[1], c[1], x, noise)}
        self.count_images(batch)
        self.log_terms("train", {f"{name}_loss": loss.flatten() for name, loss in losses.items()})
        return sum(loss.sum() for loss in losses.values())  # a sum: the problems do not share parameters

    # What was found.

    def theory(self) -> toy.Optimum:
        """The closed form, each (T, N)."""
        if self.regulariser == "posterior":
            return toy.optimum(self.t, self.beta)
        return toy.aggregate_optimum(self.t)

    @torch.no_grad()
    def trained(self) -> toy.Optimum:
        """a, b, c after training, each (L, T, N), with the sign of (a, c) that makes c positive."""
        sign = torch.where(self.c < 0, -1.0, 1.0)
        return toy.Optimum(self.a * sign, self.log_b.exp(), self.c * sign)

    def errors(self) -> Tensor:
        """Largest of |a - a*|, |b - b*|, |c - c*|, (L, T, N)."""
        found, best = self.trained(), self.theory()
        return torch.stack([found.a - best.a, found.b - best.b, found.c - best.c]).abs().amax(0)

    def metrics(self) -> dict[str, float]:
        found, errors = self.trained(), self.errors()
        perfect = self.relative == 0
        off = (self.relative - 2).abs()
        near = (off < 0.0999) & (self.regulariser == "posterior")  # 5 % of the threshold
        values = {}
        for i, suffix in enumerate(("", "_sampled")):
            groups = {"max_error_abc": ~near & ~perfect, "max_error_abc_near_threshold": near}
            values |= {name + suffix: errors[i][:, group].max() for name, group in groups.items() if group.any()}
            if perfect.any():
                values[f"beta_0_error_ac{suffix}"] = (found.a * found.c - 1)[i][:, perfect].abs().max()
                values[f"beta_0_b{suffix}"] = found.b[i][:, perfect].max()
        return values

    def table(self) -> str:
        found, best, errors = self.trained(), self.theory(), self.errors()
        lines = [
            f"regulariser: {self.regulariser}. closed form | trained on the integrated loss | on the sampled loss",
            f"{'t':>5} {'beta/t^2':>8} | {'a':>7} {'b':>7} {'c':>7} | {'a':>7} {'b':>7} {'c':>7} {'error':>8} "
            f"| {'a':>7} {'b':>7} {'c':>7} {'error':>8}",
        ]
        free = self.regulariser == "posterior"
        for i, j in torch.cartesian_prod(*(torch.arange(n) for n in self.t.shape)).tolist():
            line = f"{self.t[i, j]:5g} {self.relative[j]:8g} |"
            line += "".join(f" {value[i, j]:7.4f}" for value in (best.a, best.b, best.c))
            for k in range(len(LOSSES)):
                line += " |" + "".join(f" {value[k, i, j]:7.4f}" for value in (found.a, found.b, found.c))
                undetermined = free and self.relative[j] == 0
                line += (
                    f" ac={found.a[k, i, j] * found.c[k, i, j]:5.3f}" if undetermined else f" {errors[k, i, j]:8.1e}"
                )
            lines.append(line)
        return "\n".join(lines + [f"{name:>38} {value:.3g}" for name, value in self.metrics().items()])

    def figures(self) -> dict[str, Figure]:
        found, t = self.trained(), self.t[:, 0]
        if self.regulariser == "aggregate":
            return {"aggregate": toy_figures.aggregate(t, self.relative, found)}
        return {
            "loss_surface": toy_figures.loss_surface(),
            "bifurcation": toy_figures.bifurcation(t, self.relative, found),
            "rate_distortion": toy_figures.rate_distortion(t, self.relative, found),
            "histograms": toy_figures.histograms(t, self.relative, found),
        }


def row(values: Tensor) -> str:
    """Numbers side by side."""
    return " ".join(f"{value:7.4f}" for value in rearrange(values, "d -> d").tolist())
