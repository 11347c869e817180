"""Tables and figures of a recipe, written into the run's folder and sent to W&B."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytorch_lightning as pl
from matplotlib.figure import Figure
from PIL.Image import Image
from pytorch_lightning.callbacks import Callback

from models.core.files import replacing

if TYPE_CHECKING:
    from models.training.recipe import Recipe


class Report(Callback):
    """At the end of a training or a test, print the module's table and write table.txt and its figures.

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
            with replacing(folder / "table.txt") as part:
                part.write_text(table + "\n")
            write_figures(drawn, {name: folder / f"{name}.png" for name in drawn}, trainer, module.images_seen)


def write_figures(
    figures: dict[str, Figure | Image], paths: dict[str, Path], trainer: pl.Trainer, images_seen: int
) -> None:
    """Write figures to their paths, and log them if there is a logger of pictures."""
    for name, figure in figures.items():
        with replacing(paths[name]) as part:
            (figure.save if isinstance(figure, Image) else figure.savefig)(part)
    for logger in trainer.loggers:
        if hasattr(logger, "log_pictures"):
            logger.log_pictures({name: str(path) for name, path in paths.items()}, images_seen)
