"""What held-out images say of stage 1's distribution: scalars, a table, and figures where people would rather look."""

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from models.core.gaussian import Gaussian, LatentDraws
from models.evaluation import figures
from models.evaluation.calibration import LEVELS, Calibration, CodeStatistics
from models.evaluation.regions import RegionCalibration, RegionReport, spearman
from models.vae.flow import AutoregressiveFlow

COMPARED = "skin"
"""The region that others are compared with, where there is one."""


class Diagnostics(nn.Module):
    """Streams over the held-out images of one evaluation, on every process; what it returns is over all of them.

    Args:
        size: image side in pixels.
        latent: D.
        regions: names of the regions that batches number, if they do.
        flowed: whether p(z) is a flow.
    """

    def __init__(self, size: int, latent: int, regions: tuple[str, ...] = (), flowed: bool = False) -> None:
        super().__init__()
        self.calibration, self.code = Calibration((3, size, size)), CodeStatistics(latent)
        self.noise = CodeStatistics(latent) if flowed else None
        self.regions = RegionCalibration(regions) if regions else None

    def update(
        self,
        q: Gaussian | LatentDraws,
        p: Gaussian,
        x: Tensor,
        batch: dict[str, Tensor],
        flow: AutoregressiveFlow | None = None,
    ) -> None:
        """Add images x (B, C, H, W) in [0, 1], their q(z|x) and p(x|z), and the batch's "regions" and "clean".

        Where p(z) is a flow, for which draws of q are needed, the gap between q(z) and it is measured in its noise: it
        is N(0, I) there, and a KL is the same before and after an invertible map.
        """
        self.code.update(q)
        if self.noise is not None:
            self.noise.update(LatentDraws(flow(q.z)[0], q.log_q))
        self.calibration.update(p, x)
        if self.regions is not None and "regions" in batch:
            clean = batch["clean"].float() / 255 if "clean" in batch else None
            self.regions.update(p, x, batch["regions"], clean)

    def scalars(self) -> dict[str, Tensor]:
        """Values by name, without the stage."""
        code, calibration = self.code.compute(), self.calibration.compute()
        values = {
            "active_units": code.active.float(),
            "prior_gap": self.gap()[1],
            "marginal_variance": calibration.marginal_variance,
            "marginal_variance_gap": calibration.marginal_variance_gap,
        }
        values |= {
            f"coverage_{100 * level:g}": share for level, share in zip(LEVELS, calibration.coverage, strict=True)
        }
        report = self.by_region()
        if report is not None:
            std, error = (report.pooled(v).sqrt() for v in (report.variance, report.squared_error))
            for i, name in enumerate(report.names):
                if report.pixels[:, i].sum() > 0:
                    values |= {f"std/{name}": std[i], f"rmse/{name}": error[i]}
            if report.planted is not None:
                expected = (report.pooled(report.planted) + report.pooled(report.excess)).sqrt()
                values["planted_std_error"] = (std / expected - 1).abs().nan_to_num().max()
                values["planted_rank_correlation"] = spearman(std, report.pooled(report.planted).sqrt())
        return {name: torch.as_tensor(value, dtype=torch.float32) for name, value in values.items()}

    def gap(self) -> tuple[str, Tensor]:
        """What p(z) is, and KL(q(z) to p(z)) by the mean and covariance of q(z), nats."""
        if self.noise is not None:
            return "the flow p(z)", self.noise.compute().gap
        return "N(0, I)", self.code.compute().gap

    def by_region(self) -> RegionReport | None:
        """The report by region, where batches had regions."""
        if self.regions is None or not len(self.regions.rows):
            return None
        return self.regions.compute()

    def table(self) -> str:
        """What a person would ask first, and the regions with 95 % bootstrap intervals over images."""
        code, calibration, (p, gap) = self.code.compute(), self.calibration.compute(), self.gap()
        coverage = ", ".join(f"{100 * c:.1f} %" for c in calibration.coverage)
        lines = [
            f"{int(self.calibration.images):,} images",
            f"central 50, 90, 99 % intervals cover {coverage}",
            f"variance of means + std^2, by that of the data: {calibration.marginal_variance:.3f}; "
            f"mean |log ratio| of a pixel {calibration.marginal_variance_gap:.3f}",
            f"{int(code.active)} of {len(code.mean)} latents active, "
            + (f"rate {code.rate.sum():.1f} nats, " if code.rate is not None else "")
            + f"q(z) to {p} {gap:.1f} nats by its moments",
        ]
        report = self.by_region()
        return "\n".join(lines + (region_lines(report) if report is not None else []))

    def figures(self) -> dict[str, Figure]:
        """Figures by name."""
        drawn = {"diagnostics": figures.diagnostics(self.calibration.compute(), self.code.compute(), *self.gap())}
        report = self.by_region()
        return drawn | ({"regions": figures.regions(report)} if report is not None else {})


def region_lines(report: RegionReport) -> list[str]:
    """Rows of a table: std, its ratio to the skin's with an interval, residual, coverage, planted noise."""
    present = report.pixels.sum(0) > 0
    base = report.names.index(COMPARED) if COMPARED in report.names else int(present.int().argmax())

    def ratio(chosen: Tensor) -> Tensor:
        std = report.pooled(report.variance, chosen).sqrt()
        return std / std[base]

    low, high = report.interval(ratio)
    every = ratio(torch.arange(len(report.pixels)))
    std, error, inside = (report.pooled(v) for v in (report.variance, report.squared_error, report.inside))
    head = f"{'region':>12} {'std':>7} {'to ' + report.names[base]:>8} {'95 % interval':>16} {'residual':>8} "
    head += f"{'90 % covers':>11}"
    planted = report.planted is not None
    lines = [
        head + (f" {'planted':>8} {'+ error':>8} {'std/that':>8} {'where right, std/planted':>25}" if planted else "")
    ]
    for i in torch.where(present)[0][std[present].argsort()].tolist():
        interval = f"{low[i]:.2f} to {high[i]:.2f}"
        line = f"{report.names[i]:>12} {std[i].sqrt():7.4f} {every[i]:8.2f} {interval:>16} {error[i].sqrt():8.4f} "
        line += f"{100 * inside[i, 1]:9.1f} %"
        if planted:
            noise, excess, share, there = (
                report.pooled(v)[i] for v in (report.planted, report.excess, report.nearly_right, report.variance_there)
            )
            line += f" {noise.sqrt():8.4f} {(noise + excess).sqrt():8.4f} {(std[i] / (noise + excess)).sqrt():8.3f}"
            line += f" {(there / share / noise).sqrt():11.3f} on {100 * share:4.1f} %"
        lines.append(line)
    return lines
