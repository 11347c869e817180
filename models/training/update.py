"""Optimiser steps on a global batch that is dealt out, to processes and in each to pieces, and that equal one whole.

A mean over images needs nothing: gradients are averaged over parts of one size. A term that is none, as the log of a
mean, is the whole batch's too: each part has from all others, as numbers, what the term is made of, and adds its own
share of the gradient. The pieces of a process, one in memory at a time, need a pass without gradients for that.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from einops import rearrange
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from models.training.finite import PATIENCE, diverged, drop_unless_finite, gradient_norm, poisoned
from models.training.recipe import ImageModule

Batch = dict[str, Tensor]


class SteppedModule(ImageModule):
    """A recipe on images that takes its optimisers' steps itself, on `data.micro_batch_size` images at a time.

    Args:
        clock: see Recipe.

    Attributes:
        finite: whether the last step of an optimizer was.
        pieces: of this process's batch.
        piece: number of the one at hand.
    """

    def __init__(self, *clock: Any) -> None:
        super().__init__(*clock)
        self.automatic_optimization = False
        self.finite, self.pieces, self.piece = True, 1, 0
        self.foreseen: Tensor | None = None

    # The parts of a batch.

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        images = len(batch["image"])
        most = getattr(self.trainer.datamodule, "micro_batch_size", None)  # there may be loaders alone
        self.pieces = number_of_pieces(images, most or images)
        self.foreseen = None

    @property
    def share(self) -> tuple[int, int]:
        rank, world = super().share
        return self.piece * world + rank, self.pieces * world

    def deal(self, batch: Batch) -> Iterator[Batch]:
        """The pieces of this process's batch; while one is at hand, noise is that of its images."""
        for piece in range(self.pieces):
            self.piece = piece
            yield {name: values[piece :: self.pieces] for name, values in batch.items()}
            torch.clear_autocast_cache()  # it would give weights cast without gradients to those who need them
        self.piece = 0

    @torch.no_grad()
    def foresee(self, batch: Batch, rows: Callable[[Batch], Tensor]) -> None:
        """Keep what `whole` will be asked for of every piece, rows (R, ...); one piece needs no pass of its own."""
        if self.pieces > 1:
            self.foreseen = self.gathered(torch.stack([rows(piece) for piece in self.deal(batch)]))

    def gathered(self, rows: Tensor) -> Tensor:
        """(P, R, ...) of the P pieces of this process -> (P W, R, ...) of those of all W, in the order of `share`."""
        of_all = self.all_gather(rows.detach()).reshape(self.trainer.world_size, *rows.shape)
        return rearrange(of_all, "w p ... -> (p w) ...")

    def whole(self, own: Tensor) -> Tensor:
        """Rows (R, ...) of this part -> (R N, ...) of all N parts, as they stand in the global batch.

        Gradients flow to its own, N times as large, for they will be averaged over N parts; the others add theirs.
        """
        number, count = self.share
        if count == 1:
            return own
        rows = [*(self.gathered(own[None]) if self.foreseen is None else self.foreseen)]
        rows[number] = own + (count - 1) * (own - own.detach())
        return rearrange(rows, "n r ... -> (r n) ...")

    # Steps.

    def step(
        self, optimizer: LightningOptimizer, batch: Batch, loss: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """One step on a loss averaged over the pieces of a batch; one that is not finite changes nothing.

        Args:
            optimizer: whose parameters alone get gradients.
            batch: this process's.
            loss: of a piece, a mean over its images, and named terms to log.

        Returns:
            The terms without their graphs, the pieces along a new first axis.
        """
        optimizer.zero_grad()
        found = []
        for piece in self.deal(batch):
            with optimizer.toggle_model(sync_grad=self.piece == self.pieces - 1):
                found.append(self.learned(*loss(piece)))
        optimizer.step()
        return {name: torch.stack([terms[name] for terms in found]) for name in found[0]}

    def learned(self, loss: Tensor, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the gradients of a piece's loss; gives its terms without their graphs, which else would be kept."""
        self.manual_backward(poisoned(loss / self.pieces))
        return {name: term.detach() for name, term in terms.items()}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.finite = drop_unless_finite(optimizer, self.limited(optimizer))

    def limited(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """The norm of an optimizer's gradients, (); a recipe may clip them here."""
        return gradient_norm(optimizer)

    def count_step(self, taken: bool) -> None:
        """Count a training step as taken or skipped, see models.training.finite; its images are seen either way."""
        self.skipped_steps += not taken
        self.skipped_in_a_row = 0 if taken else self.skipped_in_a_row + 1

    def on_train_batch_end(self, *_: Any) -> None:
        """Log the skipped steps.

        Raises:
            InputError: too many in a row.
        """
        self.log("train/skipped_steps", float(self.skipped_steps), on_step=True, on_epoch=False)
        if self.skipped_in_a_row >= PATIENCE:
            raise diverged(self, f"{self.skipped_in_a_row} steps in a row were not finite and skipped")

    def adam(self, network: nn.Module, **options: Any) -> torch.optim.Adam:
        """Adam in one pass over the parameters, a third of the time; not where it would hide a gradient scaler's work.

        Args:
            network: whose parameters are moved.
            options: of torch.optim.Adam.
        """
        fused = getattr(self.trainer.precision_plugin, "scaler", None) is None
        return torch.optim.Adam(network.parameters(), self.learning_rate, fused=fused, **options)


def number_of_pieces(images: int, most: int) -> int:
    """The least number of equal pieces of at most so many images."""
    return next(pieces for pieces in range(-(-images // most), images + 1) if images % pieces == 0)
