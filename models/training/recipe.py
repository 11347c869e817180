"""The base of every recipe: a clock that counts images, named values against it, and a card in its checkpoints."""

from abc import abstractmethod
from dataclasses import asdict, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.randomness import Noise
from degrain.models.inference.checkpoint import Card, drawing_state
from degrain.models.training.schedule import Schedule
from degrain.models.training.update import average_over_processes

TRAIN_STREAM, EVAL_STREAM = 0, 1

CLOCK = ("images_seen", "warm_from", "budget", "skipped_steps", "skipped_in_a_row")
"""Fields of a card that a run fills in from its clock."""

POSITION = ("data", "tracked_run", "exported", "prior_note", "threads", *CLOCK)
"""Fields of a card in which a checkpoint may differ from the config that goes on from it."""


class Recipe(pl.LightningModule):
    """A training recipe whose position is `images_seen` alone; in the toys an image is a vector.

    An epoch of the Trainer is one leg: the images up to the next multiple of `validate_every`. Data order, noise and
    learning rate are functions of (seed, images_seen), so that a checkpoint resumes wherever it was taken and
    Lightning's own counters (which count optimizer steps) are not needed.

    Args:
        schedule: budget, validations, learning rate, seed.

    Attributes:
        images_seen: training images seen, over all processes.
        warm_from: images seen when the learning rate last rose from 0.
        skips: steps that were not finite and changed nothing, (2,): in all, and in a row.
        tracked_run: id of the run in W&B that a checkpoint keeps while tracking is off.
        loaded_from: path of the checkpoint that is gone on from or measured, if there is one.
        loaded_card: its card.
        lacks_prior: true if the checkpoint that is gone on from has no prior of a kind that was asked for.
        watched: name of the validation value whose least is best; None if none tells which checkpoint is.
    """

    skips: Tensor
    tracked_run: str | None = None
    watched: str | None = None
    loaded_card: Card | None = None
    lacks_prior: bool = False

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.images_seen = self.warm_from = 0
        self.register_buffer("skips", torch.zeros(2, dtype=torch.int64), persistent=False)

    # The clock.

    @property
    def progress(self) -> float:
        """Share of the budget that has been seen, from 0 to 1."""
        return self.schedule.progress(self.images_seen)

    @property
    def leg_end(self) -> int:
        """Images seen at the next validation."""
        return self.schedule.leg_end(self.images_seen)

    @property
    def finished(self) -> bool:
        """True if the budget has been seen."""
        return self.images_seen >= self.schedule.budget

    def note(self) -> str | None:
        """Return lines to say of the settings before a fit, or None."""
        return self.schedule.note()

    def global_batch(self, batch: dict[str, Tensor]) -> int:
        """Return the images of this step over all processes."""
        return len(next(iter(batch.values()))) * self.trainer.world_size

    def steps_done(self, batch: dict[str, Tensor]) -> int:
        """Return how many steps of such a batch the images seen are."""
        return self.images_seen // self.global_batch(batch)

    def count_images(self, batch: dict[str, Tensor], skipped: Tensor | None = None) -> None:
        """Count a global batch as seen, and whether its step was skipped; at the budget the Trainer stops."""
        self.images_seen += self.global_batch(batch)
        self.trainer.should_stop = self.finished
        if skipped is not None:  # in all; in a row
            self.skips.add_(skipped).mul_(torch.stack([torch.ones_like(skipped), skipped]))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rate = self.schedule.rate(self.images_seen, self.warm_from)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def noise(self, part: int = 0, parts: int = 1) -> Noise:
        """Return this training step's noise for one of the equal parts of this process's batch."""
        rank, world = self.global_rank, self.trainer.world_size
        key = (self.schedule.seed, TRAIN_STREAM, self.images_seen)
        return Noise(*key, part=part * world + rank, parts=parts * world, device=self.device)

    # Values: every curve stands against images_seen.

    def log_terms(self, stage: str, terms: dict[str, Tensor]) -> None:
        """Log the global batch's means of per-sample terms as `stage/name`; in evaluation averaged over all images.

        There may be no terms: the export of a plain GAN has no discriminator to measure it by.
        """
        if not terms:
            return
        # float: Lightning averages the counts over processes too, and would round the mean of whole ones down.
        size = float(next(len(t) for t in terms.values() if t.ndim))
        means = {f"{stage}/{name}": term.mean() for name, term in terms.items()}
        training = stage == "train"
        if training and self.trainer.world_size > 1:  # in one go, where Lightning would wait for all at every name
            of_all = average_over_processes(torch.stack([mean.float() for mean in means.values()]))
            means = dict(zip(means, of_all, strict=True))
        self.log_dict(means, on_step=training, on_epoch=not training, batch_size=size, sync_dist=not training)
        if training:  # on the CPU: a value that went to the device would make the host wait for it
            rate = torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"])
            self.log("train/learning_rate", rate, on_step=True, on_epoch=False)
            self.log_position()

    def log_position(self) -> None:
        """Tell the logger where on its axis this is, in float64: float32 counts exactly only to 16.8 million."""
        self.log("step", torch.tensor(self.images_seen, dtype=torch.float64), reduce_fx="max")

    def on_validation_epoch_end(self) -> None:
        if self.trainer.state.fn == "fit":
            self.log_position()

    def extra_metrics(self) -> dict[str, Any]:
        """Return what metrics.json holds beside what was logged."""
        return {}

    # Checkpoints.

    @abstractmethod
    def card(self) -> Card:
        """Return what the checkpoint says of its networks."""

    def data_description(self) -> dict[str, Any] | None:
        """Return what the data module says of its data, if there is one."""
        datamodule = self.trainer.datamodule
        return datamodule.describe() if datamodule is not None else None

    def check(self, card: Card, state: dict[str, Tensor], path: str) -> None:
        """Refuse a checkpoint of another recipe.

        Raises:
            InputError: it is of another stage, image size or architecture.
        """
        own = drawing_state(self.state_dict()) if card.exported else self.state_dict()
        mine, theirs = ({**leaves(asdict(c)), **shapes(s)} for c, s in ((self.card(), own), (card, state)))
        for name in (*theirs, *mine):
            of_the_position = name.split(".")[0] in POSITION
            of_the_position |= name.startswith(("prior.mixture.", "prior.diffusion."))  # from the end of stage 1 on
            if not of_the_position and theirs.get(name) != mine.get(name):
                said = f"its {name} is {theirs.get(name)}, the config says {mine.get(name)}"
                raise InputError(f"checkpoint {path}: {said}; give its own config or another --name")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        skipped_steps, skipped_in_a_row = self.skips.tolist()
        card = replace(
            self.card(),
            images_seen=self.images_seen,
            warm_from=self.warm_from,
            budget=self.schedule.budget,
            skipped_steps=skipped_steps,
            skipped_in_a_row=skipped_in_a_row,
            data=self.data_description(),
            threads=torch.get_num_threads(),
            tracked_run=getattr(self.logger, "run_id", self.tracked_run),
        )
        checkpoint["degrain"] = asdict(card)
        checkpoint.pop("loops", None)  # the position is images_seen; Lightning's counters would contradict it

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        card = Card(**checkpoint["degrain"])
        self.images_seen = card.images_seen
        self.skips.copy_(torch.tensor([card.skipped_steps, card.skipped_in_a_row]))
        # At the end of its budget the learning rate was 0, and Adam's moments are those of small gradients.
        self.warm_from = card.images_seen if card.images_seen >= card.budget else card.warm_from


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dictionaries by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a state dict."""
    return {name: tuple(value.shape) for name, value in state.items()}
