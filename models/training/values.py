"""The file metrics.json of a run."""

import json
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only

from degrain.models.core.errors import InputError
from degrain.models.core.files import replacing
from degrain.models.training.curves import SPEED
from degrain.models.training.image_module import ImageModule


class FinalValues(Callback):
    """Writes `metrics.json`: the final values by name; a test adds its values to those of the training.

    A checkpoint holds the current values: after a kill, values that are not logged at every step would else be older
    than without it. JSON has no number for what is not finite: the file says null.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.before = path, {}

    def setup(self, trainer: pl.Trainer, module: ImageModule, stage: str) -> None:
        """Read the file, so that an unreadable one is refused before the work and not at its end."""
        self.written()

    def written(self) -> dict[str, Any]:
        """Return the content of the file; nothing if there is none.

        Raises:
            InputError: the file holds something else.
        """
        if not self.path.exists():
            return {}
        try:
            return dict(json.loads(self.path.read_text()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.path}: not as degrain writes it ({error}); move it away") from None

    def current(self, trainer: pl.Trainer) -> dict[str, float]:
        """Return the Trainer's metrics, and those from before a kill that were not logged again."""
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if "/" in k and not k.endswith("_step")}
        return self.before | {name: value for name, value in metrics.items() if not name.startswith(SPEED)}

    def on_save_checkpoint(self, trainer: pl.Trainer, module: ImageModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["values"] = self.current(trainer)

    def on_load_checkpoint(self, trainer: pl.Trainer, module: ImageModule, checkpoint: dict[str, Any]) -> None:
        self.before = checkpoint.get("values", {}) if trainer.state.fn == "fit" else {}

    @rank_zero_only
    def write(self, trainer: pl.Trainer, module: ImageModule) -> None:
        """Merge the current values into the file."""
        if trainer.sanity_checking:
            return
        extra = module.extra_metrics()
        with replacing(self.path) as part:  # fit and a test at the same time take turns
            values = self.written()
            if extra:  # of a test: values of an earlier test may be of other images
                values = {name: value for name, value in values.items() if not name.startswith("test/")}
            values |= self.current(trainer) | extra | {"images_seen": module.images_seen}
            values = {name: value if is_json(value) else None for name, value in sorted(values.items())}
            part.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
        self.before = {}  # the file has them

    on_validation_end = on_train_end = on_test_end = write


def is_json(value: Any) -> bool:
    """Return False for a number that is not finite."""
    return not isinstance(value, float) or math.isfinite(value)
