"""Progress counted in images: bars on a terminal, lines in a file."""

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from models.training.image_module import ImageModule

SHOWN = ("distortion", "rate", "d_loss", "g_loss", "l2", "variance_ratio")
"""Training losses that stand behind the bar."""


class ImagesProgressBar(TQDMProgressBar):
    """One bar for the whole run, in images seen of the budget, instead of one for each leg in batches.

    If the output is a file: one line every half minute, and no bar for the validations.
    """

    def init_train_tqdm(self) -> Tqdm:
        module = self.trainer.lightning_module
        return Tqdm(
            initial=module.images_seen,
            total=module.schedule.budget,
            disable=self.is_disabled,
            **bar_options("images"),
            bar_format="training {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
            "[{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        )

    def init_validation_tqdm(self) -> Tqdm:
        in_a_file = self.trainer.state.fn == "fit" and not sys.stdout.isatty()
        return Tqdm(disable=True) if in_a_file else super().init_validation_tqdm()

    def on_train_epoch_start(self, *_) -> None:
        """Keep the bar: an epoch is one leg of the run."""

    on_train_epoch_end = on_train_epoch_start

    def on_exception(self, *_) -> None:
        if self._train_progress_bar is not None:
            self.train_progress_bar.close()

    def on_train_batch_end(self, trainer: pl.Trainer, module: ImageModule, *_) -> None:
        bar = self.train_progress_bar
        bar.update(min(module.images_seen, module.schedule.budget) - bar.n)
        if not bar.disable:
            bar.set_postfix(self.get_metrics(trainer, module), refresh=False)

    def get_metrics(self, trainer: pl.Trainer, module: ImageModule) -> dict[str, str]:
        """Return the last training losses as text, by name."""
        metrics = trainer.callback_metrics  # built anew at every access
        return {name: f"{metrics[f'train/{name}']:.4g}" for name in SHOWN if f"train/{name}" in metrics}


def bar_options(unit: str) -> dict[str, Any]:
    """Return tqdm's options for a bar on standard output that counts units; in a file, a line every half minute."""
    in_a_file = not sys.stdout.isatty()
    pace = {"file": Lines() if in_a_file else sys.stdout, "mininterval": 30 if in_a_file else 0.1, "maxinterval": 60}
    return pace | {"dynamic_ncols": True, "smoothing": 0, "unit": f" {unit}"}


class Lines:
    """A file for tqdm that prints each state of a bar on a line of its own."""

    def write(self, text: str) -> None:
        if "%" in text:  # not what moves the cursor
            print(text.strip(), flush=True)

    def flush(self) -> None:
        pass
