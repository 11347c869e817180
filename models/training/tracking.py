"""W&B: the only file of the project that knows wandb, which is imported when a run starts, not before."""

import json
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from degrain.models.core.errors import InputError

if TYPE_CHECKING:
    from wandb import Run

Picture = np.ndarray | Image.Image | Path | str
Mode = Literal["auto", "online", "offline", "off"]
ENVIRONMENT: dict[str, Mode] = {  # values of WANDB_MODE
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "off",
}


def make_tracker(
    mode: Mode,
    name: str,
    run_dir: Path | str,
    project: str = "degrain",
    run_id: str | None = None,
    **labels: Any,
) -> "Tracker | None":
    """Return the tracker of a run, or None if tracking is off; "auto" follows WANDB_MODE if that is set.

    Lightning takes None for "the default logger": write Trainer(logger=tracker or False). `labels` are the Tracker's.
    """
    if mode == "auto":
        mode = ENVIRONMENT.get(os.environ.get("WANDB_MODE", ""), "auto")
    return None if mode == "off" else Tracker(name, run_dir, project, mode, run_id, **labels)


def run_of_sweep() -> str | None:
    """Return the id that the agent of a W&B sweep has given to this run; None outside of a sweep."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def own_name(name: str) -> str:
    """Return the name of a run, in a sweep with the run's id: all its runs have the same config."""
    run = run_of_sweep()
    return name if run is None or name.endswith(f"-{run}") else f"{name}-{run}"


class Tracker(WandbLogger):
    """Lightning's W&B logger with every curve against `images_seen` and all its files under RUN_DIR/wandb.

    A module logs its position as `self.log("step", images_seen, reduce_fx="max")` beside its curves: Lightning passes
    the value of "step" to `log_metrics` as the step.

    To go on with a run, pass the `run_id` of its first part. Online, W&B appends to that run. Offline, each
    part has a folder of its own with the same id, and `wandb sync RUN_DIR/wandb` uploads the parts that are
    not uploaded yet, oldest first, into one run.

    Args:
        name: name of the run, as W&B shows it.
        run_dir: folder of the run; W&B makes RUN_DIR/wandb.
        project: W&B project.
        mode: "online", "offline", or "auto": online if W&B finds an API key, else offline.
        run_id: id of the run to go on with; None starts a new one, or that of the sweep's agent.
        group: name under which W&B shows runs together.
        tags: labels by which W&B selects runs; a text has commas between them.
        notes: a text about the run.
    """

    def __init__(
        self,
        name: str,
        run_dir: Path | str,
        project: str = "degrain",
        mode: Literal["auto", "online", "offline"] = "auto",
        run_id: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | str = (),
        notes: str | None = None,
    ) -> None:
        # The id is drawn here, so that it is known (to a checkpoint) before W&B has started.
        tags = [tag.strip() for tag in tags.split(",")] if isinstance(tags, str) else list(tags)
        labels = {"group": group, "tags": [tag for tag in tags if tag] or None, "notes": notes}
        run_id = run_id or run_of_sweep() or token_hex(4)
        super().__init__(name=name, save_dir=run_dir, project=project, id=run_id, **labels)
        del self._wandb_init["anonymous"]  # Lightning passes it on, and wandb warns that it is deprecated
        if run_of_sweep():  # W&B would warn that the agent has chosen these
            del self._wandb_init["project"], self._wandb_init["id"]
        self.mode = mode

    @property
    def run_id(self) -> str:
        """Id of the run; a checkpoint keeps it, so that training that goes on from it goes on with this run."""
        return self.version

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """W&B's run, started at first use.

        Raises:
            InputError: W&B did not start: no API key or a wrong one, no network, no answer.
        """
        import wandb

        if self._experiment is None:
            try:
                self._experiment = self._start_run()
            except (wandb.Error, OSError) as error:
                reason, other = " ".join(str(error).split()), "off" if isinstance(error, OSError) else "offline"
                raise InputError(f"W&B did not start ({reason}); pass --wandb {other}") from error
            self._experiment.define_metric("*", step_metric="images_seen", step_sync=True)
        return self._experiment

    def _start_run(self) -> "Run":
        import wandb

        Path(self.save_dir).mkdir(parents=True, exist_ok=True)  # W&B looks for the git commit from there
        # Without a key, login() answers False and asks nobody: neither the user nor the network.
        online = self.mode == "online" or self.mode == "auto" and wandb.login(prompt=False, verify=False)
        settings = wandb.Settings(
            mode="online" if online else "offline",
            silent=not online,  # online, W&B prints the run's address; offline, finalize() says how to sync
            quiet=True,
            console="off",  # progress bars would fill the log
            disable_code=True,
            save_code=False,
            reinit="create_new",  # a run left open elsewhere in the process is not ours to write to
        )
        # force: "online" without a key is an error, where W&B would offer to go on offline
        return wandb.init(**self._wandb_init, settings=settings, force=online)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write one row at images_seen = step.

        W&B's own step stays out of it: W&B drops rows whose step goes back, as it does after a resume. Numbers that are
        not finite stay out, too: the last and the least value of a name, by which sweeps choose, are always numbers.
        """
        row = {name: value for name, value in metrics.items() if not not_finite(value)}
        self.experiment.log(row if step is None else {**row, "images_seen": step})

    @rank_zero_only
    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record the resolved config; a value that JSON does not know, such as a path, as its text."""
        self.experiment.config.update(json.loads(json.dumps(config, default=str)), allow_val_change=True)

    @rank_zero_only
    def log_pictures(
        self, pictures: Mapping[str, Picture], images_seen: int, captions: Mapping[str, str] | None = None
    ) -> None:
        """Write pictures by name: uint8 arrays (H, W, C), PIL images or paths of image files, with captions by name."""
        import wandb

        captions = captions or {}
        images = {name: wandb.Image(picture, caption=captions.get(name)) for name, picture in pictures.items()}
        self.log_metrics(images, step=images_seen)

    @rank_zero_only
    def log_results(self, results: Mapping[str, Any], images_seen: int) -> None:
        """Write what a test found, by path: as a table, a row for each value, and into the run's summary.

        The table has the parts of a path `test/MEASURE/ROW/METRIC` as columns, so that W&B can group and filter it.
        """
        import wandb

        table = wandb.Table(["measure", "row", "metric", "value"])
        numbers = {name: value for name, value in results.items() if isinstance(value, int | float)}
        for name, value in numbers.items():
            kind, *between, metric = name.split("/")
            measure, *row = between or [kind]
            table.add_data(measure, "/".join(row), metric, None if not_finite(value) else float(value))
        self.log_metrics({"results": table}, step=images_seen)
        self.log_summary({name: value for name, value in results.items() if not not_finite(value)})

    @rank_zero_only
    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Set values of the run's summary."""
        self.experiment.summary.update(dict(values))

    @rank_zero_only
    def log_checkpoint(self, path: Path, aliases: Sequence[str], about: Mapping[str, Any]) -> None:
        """Keep a copy of a checkpoint as the next version of the artifact NAME, of type `model`.

        Args:
            path: the checkpoint.
            aliases: names of this version; W&B takes them from the version that had them.
            about: its metadata.
        """
        import wandb

        name = re.sub(r"[^\w.-]", "-", self._name, flags=re.ASCII)  # all that W&B takes
        artifact = wandb.Artifact(name, type="model", metadata=dict(about))
        artifact.add_file(str(path))
        self.experiment.log_artifact(artifact, aliases=list(aliases))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run and, if it is offline, print how to sync it; what is logged later goes on with it.

        Left to itself, W&B ends the run when Python exits, after train.py's last line.
        """
        super().finalize(status)
        if self._experiment is None:
            return
        run, self._experiment = self._experiment, None
        run.finish(exit_code=0 if status == "success" else 1)
        if run.offline:
            folder = shlex.quote(os.path.join(self.save_dir, "wandb"))
            print(f"W&B run {run.id} is offline; to upload it: wandb sync {folder}")


def not_finite(value: Any) -> bool:
    """Return True for a number that is not finite."""
    return isinstance(value, float) and not math.isfinite(value)
