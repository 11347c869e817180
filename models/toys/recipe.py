"""The base of the toys' recipes: many small problems at once, a table, figures and errors against theory at the end."""

from abc import abstractmethod
from typing import Any

import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.inference.checkpoint import Card
from degrain.models.training.recipe import Recipe
from degrain.models.training.report import Report
from degrain.models.training.schedule import Schedule
from degrain.models.training.update import Update, adam


class ToyModule(Recipe):
    """A recipe on vectors from data/gaussian.py. Parameters that depend on the data are made in `setup`.

    Args:
        settings: what a checkpoint must share with the config that continues from it.
        schedule: budget, validate_every, learning_rate, warmup, decay, seed; counted in draws of x.
    """

    def __init__(self, settings: dict[str, Any], schedule: Schedule) -> None:
        super().__init__(schedule)
        self.settings = {"recipe": type(self).__name__, **settings}

    @property
    def data(self) -> Any:
        """The data module, whose distribution is known."""
        return self.trainer.datamodule

    @property
    def covariance(self) -> Tensor:
        """Return the data's covariance, (d, d).

        Raises:
            InputError: the data are not Gaussian.
        """
        if not hasattr(self.data, "covariance"):
            raise InputError(f"{type(self).__name__}: the data is not Gaussian; take one of degrain.data.gaussian")
        return self.data.covariance.to(self.device)

    def step(self, optimizer: LightningOptimizer, loss: Tensor, terms: dict[str, Tensor]) -> Update:
        """Take a step of one optimizer on a loss, (), whose graph is complete; return it with its terms."""
        update = Update(self, optimizer)
        for whole in update.over([loss]):
            update.backward(whole, terms)
        update.step()
        return update

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Return errors against theory by name, without the prefix toy/."""

    @abstractmethod
    def table(self) -> str:
        """Return the measured values beside those of theory, as text."""

    @abstractmethod
    def figures(self) -> dict[str, Figure]:
        """Return figures by name."""

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        self.log_dict({f"toy/{name}": torch.tensor(float(value)) for name, value in self.metrics().items()})
        self.log_position()

    def configure_callbacks(self) -> list[Callback]:
        return [Report("train")]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adam(self, self.schedule.learning_rate)

    def card(self) -> Card:
        return Card("toy", 0, self.images_seen, {}, settings=self.settings)

    def check(self, card: Card, state: dict[str, Tensor], path: str) -> None:
        """Compare the cards; shapes follow from the settings and from the data, see on_load_checkpoint."""
        super().check(card, self.state_dict(), path)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        theirs, mine = checkpoint["degrain"]["data"], self.data_description()
        if theirs != mine:
            raise InputError(f"the checkpoint's data were {theirs}, the config says {mine}")
        super().on_load_checkpoint(checkpoint)


def row(values: Tensor) -> str:
    """Return the numbers of a vector side by side."""
    return " ".join(f"{value:7.4f}" for value in values.tolist())
