"""Collapse on images: convolutional VAEs with one fixed std each; their latents die one by one as the std grows."""

from dataclasses import replace

import torch
from einops import rearrange, reduce
from matplotlib.figure import Figure
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import kl_to_standard_normal, log_density
from degrain.models.core.randomness import generator
from degrain.models.evaluation.figures import INK, MEAN, SAMPLE, new, styled
from degrain.models.toys import linear_gaussian as toy
from degrain.models.toys.recipe import ToyModule
from degrain.models.training.recipe import EVAL_STREAM
from degrain.models.training.schedule import Schedule, warmed_up
from degrain.models.vae.network import VAE, VAEConfig


class CollapseModule(ToyModule):
    """Small VAEs side by side on the same images, each with a fixed std and the Gaussian density.

    A std s is the same as squared error with the KL weight beta = 2 s^2. Theory is that of the linear VAE (docs/toy.md,
    8): latent i lives if the i-th eigenvalue of the data's covariance is above s^2, and the rate is the sum of
    log(l_i/s^2)/2 over those. A convolutional decoder is not linear.

    Args:
        size: image side in pixels; set by the data.
        net: architecture; its own std is not used.
        std: the fixed stds, in [0, 1] units; the code is empty from the root of the data's largest eigenvalue on.
        images: training images that eigenvalues, rates and live latents are measured on.
        rate_warmup: share of the budget over which the weight of the rate rises from 0 to 1.
        schedule: budget, validate_every, learning_rate, warmup, decay, seed.

    Raises:
        InputError: no std, one that is not positive, a posterior that is not Gaussian, or an argument out of range.
    """

    def __init__(
        self,
        size: int,
        net: VAEConfig = VAEConfig(),  # noqa: B008 (frozen)
        std: list[float] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4),
        images: int = 4_000,
        rate_warmup: float = 0.1,
        **schedule,
    ) -> None:
        net.must_be_gaussian("collapse")
        std = sorted(std)
        super().__init__({"size": size, "latents": net.latent, "std": std}, Schedule(**schedule))
        if not std or not 0 < std[0] <= std[-1] < float("inf"):
            raise InputError(f"collapse: std {std}: give at least one, each positive and finite")
        if images < 2 or not 0 <= rate_warmup <= 1:
            raise InputError(f"collapse: images ({images}) must be at least 2, rate_warmup ({rate_warmup}) a share")
        self.std, self.images, self.rate_warmup, self.latents = torch.tensor(std), images, rate_warmup, net.latent
        self.spectrum: Tensor | None = None
        floor = min(net.std_floor, std[0] / 2)
        self.vaes = nn.ModuleList(VAE(size, replace(net, std="fixed", std_start=s, std_floor=floor)) for s in std)

    # Training.

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        x = batch["image"].to(torch.float32, memory_format=torch.channels_last) / 255
        noise = self.noise().normal(len(x), len(self.vaes), self.latents)
        terms, loss, weight = {}, 0.0, warmed_up(self.progress, self.rate_warmup)
        for i, vae in enumerate(self.vaes):
            q = vae.encode(x)
            distortion = -reduce(log_density(vae.decode(q.sample(noise[:, i])), x), "b c h w -> b", "sum")
            rate = reduce(kl_to_standard_normal(q), "b d -> b", "sum")
            terms |= {f"distortion_{i}": distortion, f"rate_{i}": rate}
            loss = loss + (distortion + weight * rate).mean() / x[0].numel()
        self.count_images(batch)
        self.log_terms("train", terms)
        return loss  # a sum: the VAEs do not share parameters

    # Results.

    @torch.no_grad()
    def measured(self) -> dict[str, Tensor]:
        """Measure training images: live latents, rates and squared errors a pixel, (S,) each, and eigenvalues, (k,)."""
        images = torch.cat([b["image"] for b in self.data.encode_dataloader(self.images)]).to(self.device)
        found = {"live": [], "rate": [], "squared_error": [], "eigenvalues": list(self.eigenvalues(images))}
        rng = generator(self.schedule.seed, EVAL_STREAM, device=self.device)
        for vae in self.vaes:
            means, rates, errors = [], [], []
            for chunk in images.split(256):
                x = chunk.float() / 255
                q = vae.encode(x)
                z = q.sample(torch.randn(q.mean.shape, generator=rng, device=self.device))
                means.append(q.mean)
                rates.append(reduce(kl_to_standard_normal(q), "b d -> b", "sum"))
                errors.append(reduce((vae.decode(z).mean - x).square(), "b c h w -> b", "mean"))
            found["live"].append((torch.cat(means).var(0) > 0.01).sum())
            found["rate"].append(torch.cat(rates).mean())
            found["squared_error"].append(torch.cat(errors).mean())
        return {name: torch.stack(values).double().cpu() for name, values in found.items()}

    def eigenvalues(self, images: Tensor) -> Tensor:
        """Return the largest eigenvalues, descending, (k,), of the covariance of uint8 images (N, C, H, W) over 255."""
        if self.spectrum is None:
            flat = rearrange(images, "n c h w -> n (c h w)").float() / 255
            count = min(self.latents, len(flat) - 1)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # pca_lowrank starts from random directions
                singular = torch.pca_lowrank(flat, q=min(count + 20, *flat.shape), niter=10)[1][:count]
            self.spectrum = singular.double().square() / (len(flat) - 1)
        return self.spectrum

    def theory(self, eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
        """Return live latents and rates of the linear VAE, (S,) each."""
        best = toy.directions(eigenvalues, self.std[:, None].double().square(), self.latents)
        return best.live.sum(-1).double(), best.rate.sum(-1)

    def metrics(self) -> dict[str, float]:
        found = self.measured()
        live, rate = self.theory(found["eigenvalues"])
        values = {"max_error_live": (found["live"] - live).abs().max() / self.latents}
        for i, std in enumerate(self.std.tolist()):
            values |= {f"live_at_{std:g}": found["live"][i], f"rate_at_{std:g}": found["rate"][i]}
        return values

    def table(self) -> str:
        found = self.measured()
        live, rate = self.theory(found["eigenvalues"])
        lines = [
            f"{self.latents} latents, {self.images:,} images; theory is the linear VAE's",
            f"{'std':>6} {'beta':>8} | {'live':>5} {'theory':>6} | {'rate':>8} {'theory':>8} | {'rmse':>7}",
        ]
        for i, s in enumerate(self.std.tolist()):
            lines.append(
                f"{s:6g} {2 * s * s:8.4g} | {found['live'][i]:5.0f} {live[i]:6.0f} | {found['rate'][i]:8.2f} "
                f"{rate[i]:8.2f} | {found['squared_error'][i].sqrt():7.4f}"
            )
        return "\n".join(lines)

    @styled
    def figures(self) -> dict[str, Figure]:
        """Draw live latents and rate over the fixed std: the linear VAE's as lines, convolutional VAEs as dots."""
        found, std = self.measured(), self.std
        eigenvalues = found["eigenvalues"]
        line = torch.logspace(std.min().log10() - 0.1, std.max().log10() + 0.1, 400, dtype=torch.float64)
        theory = toy.directions(eigenvalues, line[:, None].square(), len(eigenvalues))
        figure, (left, right) = new(10.5, 4.0, 2)
        left.plot(line, theory.live.sum(-1), color=INK, lw=1.4, label="data: eigenvalues > std²")
        left.plot(std, found["live"], "o", color=MEAN, ms=8, label="convolutional VAE")
        left.set(ylabel="live latents", ylim=(-1, 1.06 * len(eigenvalues)))
        left.set_title("Latents die one by one as the std grows")
        left.legend(loc="lower left")
        right.plot(line, theory.rate.sum(-1), color=INK, lw=1.4, label="linear VAE: sum of log(l/std²)/2")
        right.plot(std, found["rate"], "o", color=SAMPLE, ms=8, label="convolutional VAE")
        right.set(ylabel="rate, nats per image")
        right.set_title("What the code says of an image")
        right.legend()
        for ax in (left, right):
            ax.set(xscale="log", xlabel="fixed std of every pixel")
        return {"collapse": figure}
