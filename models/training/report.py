"""Tables, figures and pictures of a run, written into its folder and sent to W&B."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from PIL.Image import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from degrain.models.core.files import replacing
from degrain.models.inference.pictures import panel
from degrain.models.inference.pipeline import Pipeline
from degrain.models.training.page import page

if TYPE_CHECKING:
    from degrain.models.training.image_module import ImageModule
    from degrain.models.training.recipe import Recipe

CAPTIONS = {
    "diagnostics": "held-out images: what the decoder's distribution and the codes tell",
    "denoisings": "one latent a column; denoisings of several draws of its noise",
    "regions": "held-out images: errors and std by region of the face",
    "budget": "how far draws stand from photographs, and what decoder and prior add to it",
    "spectra": "power spectra of drawn images and of photographs",
    "neighbours": "draws, and below them the training images with the nearest features; do not publish photographs",
}
"""What W&B says below a picture, by its name."""


class Report(Callback):
    """At the end of a training or a test, print the module's table and write table.txt and its figures.

    After a test report.html holds them on one page.

    Args:
        end: `train` or `test`.
    """

    def __init__(self, end: Literal["train", "test"]) -> None:
        self.end = end

    def on_train_end(self, trainer: pl.Trainer, module: "Recipe") -> None:
        if self.end == "train":
            self.write(trainer, module)

    def on_test_end(self, trainer: pl.Trainer, module: "Recipe") -> None:
        if self.end == "test":
            self.write(trainer, module)

    def write(self, trainer: pl.Trainer, module: "Recipe") -> None:
        """Print and write; all processes compute, the first one writes."""
        table, drawn = module.table(), module.figures()
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            print(f"\n{table}\n")
            if trainer.fast_dev_run:  # a trial writes nothing
                return
            with replacing(folder / "table.txt") as part:
                part.write_text(table + "\n", encoding="utf-8")
            suffixes = {name: ".csv" if isinstance(figure, str) else ".png" for name, figure in drawn.items()}
            write_figures(drawn, {n: folder / f"{n}{suffixes[n]}" for n in drawn}, trainer, module.images_seen)
            if self.end == "test":
                with replacing(folder / "report.html") as part:
                    part.write_text(self.page(module, table, drawn), encoding="utf-8")
            self.log_results(trainer, module)

    def page(self, module: "ImageModule", table: str, drawn: Mapping[str, Figure | Image | str]) -> str:
        """Return report.html; what is on the face sheets, and texts, stay files of their own."""
        card = module.loaded_card or module.card()
        rows = module.pipeline().draw(0, range(16))
        captions = CAPTIONS | {"samples": f"16 draws of seed 0; rows from top to bottom: {', '.join(rows)}"}
        shown = {"samples": panel(rows)} | drawn
        pictures = {
            name: (picture, captions.get(name, name))
            for name, picture in shown.items()
            if not isinstance(picture, str) and not name.startswith("sheet")
        }
        title = f"degrain: test of {Path(module.trainer.default_root_dir).name}"
        return page(title, facts(module), shlex.join(["python", *sys.argv]), table, pictures, asdict(card))

    def log_results(self, trainer: pl.Trainer, module: "Recipe") -> None:
        """Send the values of a test, or of a toy, to W&B as a table."""
        prefix = {"train": "toy/", "test": "test/"}[self.end]
        values = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith(prefix)}
        for logger in trainer.loggers:
            if hasattr(logger, "log_results"):
                logger.log_results(values | module.extra_metrics(), module.images_seen)


def facts(module: "ImageModule") -> dict[str, str | int]:
    """Return what was measured, by name."""
    card, data = module.card(), module.data_description() or {}
    about = module.evaluation.values() if module.evaluation else {}
    held_out = data.get("images", {}).get("test")
    found = {
        "checkpoint": module.loaded_from,
        "stage": card.stage,
        "images seen in training": f"{module.images_seen:,}",
        "data": data.get("source"),
        "crop": data.get("crop") or "none",
        "pixels": f"{card.size} x {card.size}",
        "held-out images": held_out and f"{held_out:,}",
        "images on each side": about.get("test/about/n"),
        "seeds of draws": about.get("test/about/seeds"),
        "feature networks": about.get("test/about/nets"),
    }
    return {name: value for name, value in found.items() if value is not None}


class Pictures(Callback):
    """At every validation, write panels of prior draws, of reconstructions if there is a VAE, and the module's figures.

    Latents and photographs are the same every time.

    Args:
        folder: folder of the pictures, IMAGES_SEEN-draws.png, IMAGES_SEEN-reconstructions.png and so on.
        count: images on each panel.
        seed: seed of the draws.
    """

    def __init__(self, folder: Path, count: int = 16, seed: int = 0) -> None:
        self.folder, self.count, self.seed = folder, count, seed

    @rank_zero_only
    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, module: "ImageModule") -> None:
        if trainer.sanity_checking:
            return
        pipeline = module.pipeline()
        rows = {"draws": pipeline.draw(self.seed, range(self.count))}
        if pipeline.vae is not None:
            batch = next(iter(trainer.datamodule.val_dataloader()))
            x = module.photographs(module.transfer_batch_to_device(batch, module.device, 0))  # (B, 3, H, W)
            rows["reconstructions"] = self.reconstructions(pipeline, x[: self.count])
        if not all(images.isfinite().all() for drawn in rows.values() for images in drawn.values()):
            print(f"no pictures at {module.images_seen:,} images seen: not all of them are finite", file=sys.stderr)
            return
        drawn = {name: panel(images) for name, images in rows.items()} | module.figures()
        paths = {name: self.folder / f"{module.images_seen:09d}-{name}.png" for name in drawn}
        captions = {name: f"rows from top to bottom: {', '.join(images)}" for name, images in rows.items()}
        write_figures(drawn, paths, trainer, module.images_seen, captions)

    def reconstructions(self, pipeline: Pipeline, x: Tensor) -> dict[str, Tensor]:
        """Return photographs (B, 3, H, W) and their rows for the centre of each q(z|x): its mean, if it is Gaussian."""
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(self.seed))
        z = pipeline.vae.encode(x).sample(x.new_zeros(len(x), pipeline.vae.config.latent))  # (B, D)
        return {"data": x, **pipeline.render(z, noise.to(x.device))}


def write_figures(
    figures: dict[str, Figure | Image | str],
    paths: dict[str, Path],
    trainer: pl.Trainer,
    images_seen: int,
    captions: Mapping[str, str] | None = None,
) -> None:
    """Write figures and texts to their paths, and log the figures, with captions, if there is a logger of pictures."""
    for name, figure in figures.items():
        with replacing(paths[name]) as part:
            if isinstance(figure, str):
                part.write_text(figure)
            else:
                (figure.save if isinstance(figure, Image) else figure.savefig)(part)
    pictures = {name: str(path) for name, path in paths.items() if not isinstance(figures[name], str)}
    for logger in trainer.loggers:
        if hasattr(logger, "log_pictures"):
            texts = CAPTIONS | dict(captions or {})
            said = {name: f"{images_seen:,} images seen; {text}" for name, text in texts.items()}
            logger.log_pictures(pictures, images_seen, said)
