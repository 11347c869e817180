"""Checkpoints of a run, and signals that stop it with one."""

import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only

from degrain.models.core.files import replacing
from degrain.models.training.divergence import diverged, fault
from degrain.models.training.image_module import ImageModule

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Signals that stop a run: Ctrl-C, the end of a job, and those that clusters send before they take a machine away."""

Upload = Callable[[pl.Trainer, ImageModule, Path], None]


class StopRequest:
    """The first signal that asked the run to stop.

    Attributes:
        number: of the signal; 0 before there is one.
    """

    number = 0

    def listen(self) -> None:
        """Take over the signals, also from Lightning, which on SLURM would save in the middle of a step."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:  # the Trainer restores the old handlers at its end
                signal.signal(number, self.receive)

    def receive(self, number: int, _: Any = None) -> None:
        """Note the signal; a second Ctrl-C raises KeyboardInterrupt at once."""
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number
        with suppress(RuntimeError, OSError):  # the signal may have come in the middle of another print
            rank_zero_only(print)("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, next to the file that they replace; Lightning's pass through /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with replacing(Path(path)) as part, open(part, "wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # of torch's writer, when the file's own error has passed through it
                raise OSError("the disk is full, or failed") from error


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt` in the run's folder: after every validation, and between them every few minutes.

    A kill at any moment leaves a complete one, see models/core/files.py. A state is not written if its weights are not
    finite, or have just failed at a step or in the validation: the last good one stays. A signal that asks to stop ends
    the run with a checkpoint and exit code 128 + its number, after the current batch or validation, including the fit
    of the prior. The last checkpoint is the last file of a run: if it has seen the budget, all other files are there.

    Args:
        path: the file.
        minutes: least time between two checkpoints within a leg.
        at_once: save before the first step, so that a fork can be resumed without the checkpoint that it began with.
        upload: called on the first process with every checkpoint that was just validated and written.
    """

    def __init__(self, path: Path, minutes: float = 5.0, at_once: bool = False, upload: Upload | None = None) -> None:
        self.path, self.seconds, self.saved_at = path, 60 * minutes, time.monotonic()
        self.at_once, self.upload = at_once, upload
        self.group: torch.distributed.ProcessGroup | None = None  # agrees on the CPUs, and so waits for no accelerator
        self.stop = StopRequest()

    def setup(self, trainer: pl.Trainer, module: ImageModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: pl.Trainer, module: ImageModule) -> None:
        self.stop.listen()
        if trainer.world_size > 1:
            self.group = torch.distributed.new_group(backend="gloo")
        if self.at_once:
            self.save_and_stop(trainer, due=True)

    def save(self, trainer: pl.Trainer, validated: bool) -> str | None:
        """Write the checkpoint, or return why it must not be written; all processes take part, the first one writes.

        Args:
            trainer: the module's.
            validated: whether these very weights were just validated.
        """
        wrong = trainer.strategy.broadcast(fault(trainer.lightning_module, validated))
        if wrong:
            return wrong
        trainer.save_checkpoint(self.path, weights_only=False)
        self.saved_at = time.monotonic()
        if validated and self.upload is not None and trainer.is_global_zero:
            self.upload(trainer, trainer.lightning_module, self.path)
        return None

    def on_train_batch_end(self, trainer: pl.Trainer, module: ImageModule, *_) -> None:
        # Not on a leg's last batch: a checkpoint there would resume behind the validation that is still to come.
        if not trainer.is_last_batch:
            late = time.monotonic() - self.saved_at > self.seconds
            self.save_and_stop(trainer, due=late and not module.skips[1])

    def on_train_epoch_end(self, trainer: pl.Trainer, module: ImageModule) -> None:
        if not module.finished:
            self.save_and_stop(trainer, due=True, validated=True)

    def on_train_end(self, trainer: pl.Trainer, module: ImageModule) -> None:
        """Write the last checkpoint.

        Raises:
            InputError: the state at the end of the budget must not be saved.
        """
        if wrong := self.save(trainer, validated=True):
            raise diverged(module, f"{wrong} at the end of the budget")

    def save_and_stop(self, trainer: pl.Trainer, due: bool, validated: bool = False) -> None:
        """Save if it is due, or if a process was asked to stop: then all stop, with the same exit code."""
        number = self.stop.number
        if self.group is not None:
            wishes = torch.tensor([due, number])
            torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX, self.group)
            due, number = wishes.tolist()
        wrong = self.save(trainer, validated) if due or number else None
        if wrong and trainer.is_global_zero:
            seen = f"{trainer.lightning_module.images_seen:,} images seen"
            print(f"{self.path} not written at {seen}: {wrong}; an earlier one, if any, stays", file=sys.stderr)
        if number:
            if trainer.is_global_zero:
                state = "is as it was" if wrong else "is up to date"
                print(f"stopped; {self.path} {state}, and --ckpt_path last goes on from it", file=sys.stderr)
            # The code is the first process's: Lightning kills it when one that it has started fails before it.
            raise SystemExit(128 + number if trainer.is_global_zero else 0)
