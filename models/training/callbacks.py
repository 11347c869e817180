"""What happens beside the training: progress counted in images, checkpoints, pictures, the file of final values."""

import json
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from models.core.errors import InputError
from models.core.files import replacing
from models.inference.pictures import panel
from models.inference.pipeline import Pipeline
from models.training.divergence import diverged, fault
from models.training.image_module import ImageModule
from models.training.report import write_figures


class ImagesProgressBar(TQDMProgressBar):
    """One bar for the whole run, in images seen of the budget, instead of one a leg in batches.

    Where the output is a file, a line every half minute, and no bar of the validations.
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
        """Nothing: a leg is no unit of its own."""

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
        """The last training losses, named."""
        shown = ("distortion", "rate", "d_loss", "g_loss", "l2", "variance_ratio")
        values = {name: trainer.callback_metrics.get(f"train/{name}") for name in shown}
        return {name: f"{value:.4g}" for name, value in values.items() if value is not None}


def bar_options(unit: str) -> dict[str, Any]:
    """Of a bar on standard output that counts units; in a file it is a line every half minute."""
    in_a_file = not sys.stdout.isatty()
    pace = {"file": Lines() if in_a_file else sys.stdout, "mininterval": 30 if in_a_file else 0.1, "maxinterval": 60}
    return pace | {"dynamic_ncols": True, "smoothing": 0, "unit": f" {unit}"}


class Lines:
    """A file for tqdm that puts what would be written over the bar on a line of its own."""

    def write(self, text: str) -> None:
        if "%" in text:  # not what moves the cursor
            print(text.strip(), flush=True)

    def flush(self) -> None:
        pass


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""What asks a run to stop: Ctrl-C, the end of a job, and what clusters can send before they take a machine away."""


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that are whole or not there, beside what they replace; Lightning's pass through the system's /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with replacing(Path(path)) as part, open(part, "wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # of torch's writer, when the file's own error has passed through it
                raise OSError("the disk is full, or failed") from error


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt` in the run's folder: after every validation, and between them every few minutes.

    A kill at any moment leaves a whole one, see models/files.py. One whose weights are not finite, or have just failed
    at a step or at the validation, is not written: the last good one stays. A signal that asks to stop ends the run
    with a checkpoint and exit code 128 + its number, after the batch or the validation that is under way, the prior's
    fit included. The last checkpoint is the last file to be written: who has seen the budget has all other files, too.

    Args:
        path: the file.
        minutes: least time between two checkpoints within a leg.
    """

    def __init__(self, path: Path, minutes: float = 5.0) -> None:
        self.path, self.seconds, self.saved_at = path, 60 * minutes, time.monotonic()
        self.signal = 0  # that asked the run to stop

    def setup(self, trainer: pl.Trainer, module: ImageModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = WholeFiles()

    def on_train_start(self, *_) -> None:
        """Take over the signals, also from Lightning, which on SLURM would save in the midst of a step."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:  # the Trainer puts the old handlers back at its end
                signal.signal(number, self.interrupt)

    def interrupt(self, number: int, _: Any = None) -> None:
        """Ask the run to stop; a second Ctrl-C stops it where it stands."""
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
        with suppress(RuntimeError, OSError):  # the signal may have come in the midst of another print
            rank_zero_only(print)("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)

    def save(self, trainer: pl.Trainer, measured: bool) -> str | None:
        """Write the checkpoint, or say why it is none to go on from; all processes take part, the first one writes.

        Args:
            trainer: of the module.
            measured: whether it was validated as it is.
        """
        wrong = trainer.strategy.broadcast(fault(trainer.lightning_module, measured))
        if wrong:
            return wrong
        trainer.save_checkpoint(self.path, weights_only=False)
        self.saved_at = time.monotonic()
        return None

    def on_train_batch_end(self, trainer: pl.Trainer, module: ImageModule, *_) -> None:
        # Not on a leg's last batch: a checkpoint there would resume behind the validation that is still to come.
        if not trainer.is_last_batch:
            late = time.monotonic() - self.saved_at > self.seconds
            self.save_and_stop(trainer, due=late and not module.skips[1])

    def on_train_epoch_end(self, trainer: pl.Trainer, module: ImageModule) -> None:
        if not module.finished:
            self.save_and_stop(trainer, due=True, measured=True)

    def on_train_end(self, trainer: pl.Trainer, module: ImageModule) -> None:
        """Write the last one.

        Raises:
            InputError: what came of the budget is not to be saved.
        """
        if wrong := self.save(trainer, measured=True):
            raise diverged(module, f"{wrong} at the end of the budget")

    def save_and_stop(self, trainer: pl.Trainer, due: bool, measured: bool = False) -> None:
        """Save if it is due or a process was asked to stop, which all then do, with the same exit code."""
        wishes = torch.tensor([due, self.signal], device=trainer.strategy.root_device)
        due, number = trainer.strategy.reduce(wishes, reduce_op="max").tolist()
        wrong = self.save(trainer, measured) if due or number else None
        if wrong and trainer.is_global_zero:
            seen = f"{trainer.lightning_module.images_seen:,} images seen"
            print(f"{self.path} not written at {seen}: {wrong}; an earlier one, if any, stays", file=sys.stderr)
        if number:
            if trainer.is_global_zero:
                state = "is as it was" if wrong else "is up to date"
                print(f"stopped; {self.path} {state}, and --ckpt_path last goes on from it", file=sys.stderr)
            # The code is the first process's: Lightning kills it when one that it has started fails before it.
            raise SystemExit(128 + number if trainer.is_global_zero else 0)


class Pictures(Callback):
    """At validation, panels of prior draws, of reconstructions where there is a VAE, and the module's figures; from the
    same z and photographs every time.

    Args:
        folder: where the pictures are written, as IMAGES_SEEN-draws.png and IMAGES_SEEN-reconstructions.png.
        count: images on each panel.
        seed: of the draws.
    """

    def __init__(self, folder: Path, count: int = 16, seed: int = 0) -> None:
        self.folder, self.count, self.seed = folder, count, seed

    @rank_zero_only
    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, module: ImageModule) -> None:
        pipeline = module.pipeline()
        rows = {"draws": pipeline.draw(self.seed, range(self.count))}
        if pipeline.vae is not None:
            rows["reconstructions"] = self.reconstructions(pipeline, self.photographs(trainer, module))
        if not all(images.isfinite().all() for drawn in rows.values() for images in drawn.values()):
            print(f"no pictures at {module.images_seen:,} images seen: not all of them are finite", file=sys.stderr)
            return
        drawn = {name: panel(images) for name, images in rows.items()} | module.figures()
        paths = {name: self.folder / f"{module.images_seen:09d}-{name}.png" for name in drawn}
        write_figures(drawn, paths, trainer, module.images_seen)

    def reconstructions(self, pipeline: Pipeline, photographs: Tensor) -> dict[str, Tensor]:
        """The photographs, and the rows for the middle of each one's q(z|x): its mean, where it is Gaussian."""
        noise = torch.randn(photographs.shape, generator=torch.Generator().manual_seed(self.seed))
        middle = photographs.new_zeros(len(photographs), pipeline.vae.config.latent)
        z = pipeline.vae.encode(photographs).sample(middle)
        return {"data": photographs, **pipeline.render(z, noise.to(photographs.device))}

    def photographs(self, trainer: pl.Trainer, module: ImageModule) -> Tensor:
        """The first held-out images, (count, 3, H, W)."""
        batch = next(iter(trainer.datamodule.val_dataloader()))
        batch = module.transfer_batch_to_device(batch, module.device, 0)
        return module.photographs(batch)[: self.count]


class FinalValues(Callback):
    """Writes `metrics.json`: the final values by name; a test adds its own to those of the training.

    A checkpoint holds the values at hand: what is not logged at every step would be older after a kill than without.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.before = path, {}

    def setup(self, trainer: pl.Trainer, module: ImageModule, stage: str) -> None:
        """Read the file, which is needed at the end: what is wrong with it shall be known before the work."""
        self.written()

    def written(self) -> dict[str, Any]:
        """What the file holds by now.

        Raises:
            InputError: it is not ours.
        """
        if not self.path.exists():
            return {}
        try:
            return dict(json.loads(self.path.read_text()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.path}: not as degrain writes it ({error}); move it away") from None

    def at_hand(self, trainer: pl.Trainer) -> dict[str, float]:
        """The Trainer's metrics, and those of before a kill that were not logged again."""
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if "/" in k and not k.endswith("_step")}
        return self.before | metrics

    def on_save_checkpoint(self, trainer: pl.Trainer, module: ImageModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["values"] = self.at_hand(trainer)

    def on_load_checkpoint(self, trainer: pl.Trainer, module: ImageModule, checkpoint: dict[str, Any]) -> None:
        self.before = checkpoint.get("values", {}) if trainer.state.fn == "fit" else {}

    @rank_zero_only
    def write(self, trainer: pl.Trainer, module: ImageModule) -> None:
        """Merge the Trainer's metrics into the file."""
        values = self.written()
        extra = module.extra_metrics()
        if extra:  # of a test: what is left of an earlier one may be of other images
            values = {name: value for name, value in values.items() if not name.startswith("test/")}
        values |= self.at_hand(trainer) | extra | {"images_seen": module.images_seen}
        self.before = {}  # the file has them
        with replacing(self.path) as part:
            part.write_text(json.dumps(dict(sorted(values.items())), indent=2) + "\n")

    on_validation_end = on_train_end = on_test_end = write
