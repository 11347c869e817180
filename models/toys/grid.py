"""Linear VAEs in one dimension on a grid of (t, beta), trained by gradient and compared with their closed form.

Axes: L losses (integrated, sampled), T stds t, N betas, B batch.
"""

from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.toys import draw_figures, grid_figures
from degrain.models.toys import linear_gaussian as toy
from degrain.models.toys.recipe import ToyModule
from degrain.models.training.schedule import Schedule

LOSSES = ("integrated", "sampled")


class ToyGridModule(ToyModule):
    """The linear VAE (a, b, c) on x ~ N(0, t^2), for every (t, beta) at once, on the integrated and the sampled loss.

    Args:
        betas: KL weights in units of t^2; 2 is the threshold. At 0 only a c = 1 and b = 0 are determined.
        regulariser: posterior, beta KL(q(z|x) to p(z)), or aggregate, beta KL(q(z) to p(z)).
        start: a and c of every problem at the start; not 0, which is stationary.
        schedule: budget, validate_every, learning_rate, warmup, decay, seed; draws of x are also the clock of the
            integrated loss.

    Raises:
        InputError: no betas, a negative one, a start at 0, or a schedule out of range.
    """

    def __init__(
        self,
        betas: list[float] = (0, 0.05, 0.2, 0.5, 1, 1.5, 1.8, 1.9, 1.98, 2, 2.02, 2.1, 2.2, 3, 4),
        regulariser: Literal["posterior", "aggregate"] = "posterior",
        start: float = 0.5,
        **schedule,
    ) -> None:
        settings = {"betas": list(betas), "regulariser": regulariser, "start": start}
        super().__init__(settings, Schedule(**schedule))
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

    # Training.

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        x = batch["x"][..., None]  # (B, T, 1)
        noise = self.noise().normal(len(x), *self.t.shape).double()  # (B, T, N)
        integrated, sampled = zip(self.a, self.log_b.exp(), self.c, strict=True)  # a, b, c of each loss, (T, N)
        if self.regulariser == "posterior":
            exact = toy.loss(*integrated, self.t, self.beta)
            drawn = toy.sampled_loss(*sampled, x, noise, self.beta).mean(0)
        else:
            exact = toy.aggregate_loss(*integrated, self.t, self.beta)
            drawn = toy.sampled_aggregate_loss(*sampled, x, noise, self.beta)
        self.count_images(batch)
        self.log_terms("train", {"integrated_loss": exact.flatten(), "sampled_loss": drawn.flatten()})
        return exact.sum() + drawn.sum()  # a sum: the problems do not share parameters

    # Results.

    def theory(self) -> toy.Optimum:
        """Return the closed form, each (T, N)."""
        if self.regulariser == "posterior":
            return toy.optimum(self.t, self.beta)
        return toy.aggregate_optimum(self.t)

    @torch.no_grad()
    def trained(self) -> toy.Optimum:
        """Return a, b, c after training, each (L, T, N), with the sign of (a, c) that makes c positive."""
        sign = torch.where(self.c < 0, -1.0, 1.0)
        return toy.Optimum(self.a * sign, self.log_b.exp(), self.c * sign)

    def errors(self) -> Tensor:
        """Return the largest of |a - a*|, |b - b*|, |c - c*|, (L, T, N)."""
        found, best = self.trained(), self.theory()
        return torch.stack([found.a - best.a, found.b - best.b, found.c - best.c]).abs().amax(0)

    def metrics(self) -> dict[str, float]:
        found, errors = self.trained(), self.errors()
        perfect = self.relative == 0
        near = ((self.relative - 2).abs() < 0.0999) & (self.regulariser == "posterior")  # 5 % of the threshold
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
        for i, j in torch.cartesian_prod(*(torch.arange(n) for n in self.t.shape)).tolist():
            line = f"{self.t[i, j]:5g} {self.relative[j]:8g} |"
            line += "".join(f" {value[i, j]:7.4f}" for value in (best.a, best.b, best.c))
            undetermined = self.regulariser == "posterior" and self.relative[j] == 0
            for k in range(len(LOSSES)):
                a, b, c = (value[k, i, j] for value in (found.a, found.b, found.c))
                line += f" | {a:7.4f} {b:7.4f} {c:7.4f}"
                line += f" ac={a * c:5.3f}" if undetermined else f" {errors[k, i, j]:8.1e}"
            lines.append(line)
        return "\n".join(lines + [f"{name:>38} {value:.3g}" for name, value in self.metrics().items()])

    def figures(self) -> dict[str, Figure]:
        found, t = self.trained(), self.t[:, 0]
        if self.regulariser == "aggregate":
            return {"aggregate": grid_figures.aggregate(t, self.relative, found)}
        return {
            "loss_surface": grid_figures.loss_surface(),
            "bifurcation": grid_figures.bifurcation(t, self.relative, found),
            "rate_distortion": grid_figures.rate_distortion(t, self.relative, found),
            "histograms": draw_figures.histograms(t, self.relative, found),
        }
