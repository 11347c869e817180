"""Diagnostics of stage 1's distribution on held-out images: scalars, a table and figures."""

import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from degrain.models.core.gaussian import Gaussian, LatentDraws
from degrain.models.evaluation import figures
from degrain.models.evaluation.calibration import LEVELS, Calibration, CodeStatistics
from degrain.models.evaluation.regions import RegionCalibration, RegionReport
from degrain.models.vae.flow import AutoregressiveFlow

REFERENCE_REGION = "skin"  # others' std is divided by its std; without it, by that of the first region present


class Diagnostics(nn.Module):
    """Metrics streamed over the held-out images of one evaluation; results are over the images of all processes.

    Args:
        size: image side in pixels.
        latent: D.
        regions: names of the regions that batches number, if they do.
        flowed: True if p(z) is a flow.
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

        If p(z) is a flow, q must be draws: they are mapped to the flow's noise, in which p(z) is N(0, I), and the gap
        between q(z) and p(z) is measured there. A KL does not change under an invertible map.
        """
        self.code.update(q)
        if self.noise is not None:
            self.noise.update(LatentDraws(flow(q.z)[0], q.log_q))
        self.calibration.update(p, x)
        if self.regions is not None and "regions" in batch:
            clean = batch["clean"].float() / 255 if "clean" in batch else None
            self.regions.update(p, x, batch["regions"], clean)

    def scalars(self) -> dict[str, Tensor]:
        """Return values by name, without the stage."""
        code, calibration = self.code.compute(), self.calibration.compute()
        values = {
            "active_units": code.active.float(),
            "prior_gap": self.gap()[1],
            "marginal_variance": calibration.marginal_variance,
            "marginal_variance_gap": calibration.marginal_variance_gap,
        }
        for level, share in zip(LEVELS, calibration.coverage, strict=True):
            values[f"coverage_{100 * level:g}"] = share
        report = self.region_report()
        if report is not None:
            present = report.present
            std, error = (report.pixel_mean(v)[present].sqrt() for v in (report.variance, report.squared_error))
            for i, region in enumerate(present.tolist()):
                values |= {f"std/{report.names[region]}": std[i], f"rmse/{report.names[region]}": error[i]}
            if report.planted is not None:
                noise, mean_error = (report.pixel_mean(v)[present] for v in (report.planted, report.mean_error))
                values["planted_std_error"] = (std / (noise + mean_error).sqrt() - 1).abs().nan_to_num().max()
                values["planted_rank_correlation"] = spearmanr(std, noise.sqrt()).statistic
        return {name: torch.as_tensor(value, dtype=torch.float32) for name, value in values.items()}

    def gap(self) -> tuple[str, Tensor]:
        """Return the name of p(z), and KL(q(z) to p(z)) by the mean and covariance of q(z), nats."""
        if self.noise is not None:
            return "the flow p(z)", self.noise.compute().gap
        return "N(0, I)", self.code.compute().gap

    def region_report(self) -> RegionReport | None:
        """Return the report by region, or None if no batch had regions."""
        if self.regions is None or not len(self.regions.rows):
            return None
        return self.regions.compute()

    def table(self) -> str:
        """Return the main values, and the regions with 95 % bootstrap intervals over images."""
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
        report = self.region_report()
        return "\n".join(lines + (region_lines(report) if report is not None else []))

    def figures(self) -> dict[str, Figure]:
        """Return figures by name."""
        found = {"diagnostics": figures.diagnostics(self.calibration.compute(), self.code.compute(), *self.gap())}
        report = self.region_report()
        return found | ({"regions": figures.regions(report)} if report is not None else {})


def region_lines(report: RegionReport) -> list[str]:
    """Return a table, a row per region: std, its ratio to the reference, residual, coverage, planted noise."""
    base = report.names.index(REFERENCE_REGION) if REFERENCE_REGION in report.names else int(report.present[0])

    def ratio(chosen: Tensor | None = None) -> Tensor:
        std = report.pixel_mean(report.variance, chosen).sqrt()
        return std / std[base]

    low, high = report.bootstrap_interval(ratio)
    ratios, planted = ratio(), report.planted is not None
    variance, error, inside = map(report.pixel_mean, (report.variance, report.squared_error, report.inside))
    head = f"{'region':>12} {'std':>7} {'to ' + report.names[base]:>8} {'95 % interval':>16} {'residual':>8} "
    head += f"{'90 % covers':>11}"
    if planted:
        head += f" {'planted':>8} {'+ error':>8} {'std/that':>8} {'where right, std/planted':>25}"
        quantities = (report.planted, report.mean_error, report.nearly_right, report.variance_nearly_right)
        noise, mean_error, share, settled = map(report.pixel_mean, quantities)
    lines = [head]
    for i in report.present[variance[report.present].argsort()].tolist():
        interval = f"{low[i]:.2f} to {high[i]:.2f}"
        line = f"{report.names[i]:>12} {variance[i].sqrt():7.4f} {ratios[i]:8.2f} {interval:>16} "
        line += f"{error[i].sqrt():8.4f} {100 * inside[i, 1]:9.1f} %"
        if planted:
            expected = noise[i] + mean_error[i]
            line += f" {noise[i].sqrt():8.4f} {expected.sqrt():8.4f} {(variance[i] / expected).sqrt():8.3f}"
            line += f" {(settled[i] / share[i] / noise[i]).sqrt():11.3f} on {100 * share[i]:4.1f} %"
        lines.append(line)
    return lines
