"""Progress counted in images: bars on a terminal, lines in a file."""

import sys
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from degrain.models.training.image_module import Batch, ImageModule

SHOWN = {
    "distortion": "dist",
    "rate": "rate",
    "d_loss": "D",
    "g_loss": "G",
    "l2": "l2",
    "variance_ratio": "var",
}
"""Training losses that stand behind the bar, and their short names on a terminal."""

IN_A_FILE = "training {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
ON_A_TERMINAL = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining} left, {rate_noinv_fmt}{postfix}]"
"""Formats of the bar; 80 columns hold seven digits of images, hours, three values and some of the bar."""


class ImagesProgressBar(TQDMProgressBar):
    """One bar for the whole run, in images seen of the budget, instead of one for each leg in batches.

    If the output is a file: a line every half minute and at each validation, and no bars for the validations.
    """

    def init_train_tqdm(self) -> Tqdm:
        module, terminal = self.trainer.lightning_module, sys.stdout.isatty()
        return Tqdm(
            initial=module.images_seen,
            total=module.schedule.budget,
            disable=self.is_disabled,
            **bar_options("" if terminal else "images"),
            bar_format=ON_A_TERMINAL if terminal else IN_A_FILE,
        )

    def init_sanity_tqdm(self) -> Tqdm:
        return super().init_sanity_tqdm() if sys.stdout.isatty() else Tqdm(disable=True)

    def init_validation_tqdm(self) -> Tqdm:
        if sys.stdout.isatty():
            return super().init_validation_tqdm()
        return Tqdm(disable=True) if self.trainer.state.fn == "fit" else self.bar_of_batches("validation")

    def init_test_tqdm(self) -> Tqdm:
        return super().init_test_tqdm() if sys.stdout.isatty() else self.bar_of_batches("test")

    def bar_of_batches(self, name: str) -> Tqdm:
        """Return a bar of batches that prints lines."""
        form = name + " {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
        return Tqdm(disable=self.is_disabled, **bar_options("batches"), bar_format=form)

    def on_validation_batch_end(self, *args: Any) -> None:
        if sys.stdout.isatty():
            super().on_validation_batch_end(*args)
        else:  # at tqdm's own pace, where Lightning would print a line at each batch
            self.val_progress_bar.update()

    def on_test_batch_end(self, *args: Any) -> None:
        if sys.stdout.isatty():
            super().on_test_batch_end(*args)
        else:
            self.test_progress_bar.update()

    def on_train_epoch_start(self, *_) -> None:
        """Keep the bar: an epoch is one leg of the run."""

    on_train_epoch_end = on_train_epoch_start

    def on_exception(self, *_) -> None:
        if self._train_progress_bar is not None:
            self.train_progress_bar.close()

    def on_train_batch_end(self, trainer: pl.Trainer, module: ImageModule, outputs: Any, batch: Batch, *_) -> None:
        """Count the images; show losses at the Trainer's log intervals alone, as the host waits to read them."""
        bar, every = self.train_progress_bar, trainer.log_every_n_steps
        bar.update(min(module.images_seen, module.schedule.budget) - bar.n)
        if not bar.disable and every and module.steps_done(batch) % every == 0:
            self.show(bar, self.get_metrics(trainer, module), refresh=False)

    def on_validation_end(self, trainer: pl.Trainer, module: ImageModule) -> None:
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()
        if self._train_progress_bar is not None and trainer.state.fn == "fit":
            self.show(self.train_progress_bar, self.get_metrics(trainer, module))

    def get_metrics(self, trainer: pl.Trainer, module: ImageModule) -> dict[str, str]:
        """Return the last training losses as text, by name."""
        metrics = trainer.callback_metrics  # built anew at every access
        return {name: f"{metrics[f'train/{name}']:.4g}" for name in SHOWN if f"train/{name}" in metrics}

    @staticmethod
    def show(bar: Tqdm, values: Mapping[str, str], refresh: bool = True) -> None:
        """Put values behind a bar, on a terminal under short names."""
        if sys.stdout.isatty():
            bar.set_postfix_str(" ".join(f"{SHOWN[name]} {value}" for name, value in values.items()), refresh)
        else:
            bar.set_postfix(values, refresh=refresh)


def bar_options(unit: str) -> dict[str, Any]:
    """Return tqdm's options for a bar on standard output that counts units; in a file, a line every half minute."""
    in_a_file = not sys.stdout.isatty()
    pace = {"file": Lines() if in_a_file else sys.stdout, "mininterval": 30 if in_a_file else 0.1, "maxinterval": 60}
    return pace | {"dynamic_ncols": True, "smoothing": 0, "unit": f" {unit}" if unit else ""}


class Lines:
    """A file for tqdm that prints each state of a bar on a line of its own."""

    def write(self, text: str) -> None:
        if "%" in text and "/?" not in text:  # not what moves the cursor, and not before the total is known
            print(text.strip(), flush=True)

    def flush(self) -> None:
        pass
