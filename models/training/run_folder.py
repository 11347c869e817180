"""The folder of a run: it belongs to one fit at a time, and says which checkpoint a command goes on from."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from socket import gethostname

import yaml
from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.utilities import rank_zero_only

from degrain.models.core.errors import InputError
from degrain.models.core.files import folder_made, locked, refuse_unwritable, remove_dead_parts, replacing
from degrain.models.inference.artifact import local_checkpoint
from degrain.models.training.recipe import leaves


def run_folder(config: Namespace) -> Path:
    """Return the folder RUNS/NAME of a command.

    Raises:
        InputError: the name is no name of a folder.
    """
    for option in ("name", "runs"):
        if config[option] and any("\ud800" <= letter <= "\udfff" for letter in config[option]):
            shown = config[option].encode("ascii", "backslashreplace").decode()
            raise InputError(f"{option} {shown}: is not UTF-8, which its config cannot hold; choose another --{option}")
    if not config.name or Path(config.name).name != config.name or config.name == "..":
        raise InputError(f"name {config.name}: give the run a name without slashes; its folder is {config.runs}/NAME")
    return Path(config.runs) / config.name


def starts_the_job() -> bool:
    """Return True in the process that claims the folder: the first of those that Lightning, torchrun or srun starts."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return rank_zero_only.rank == 0 and node == "0"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process; a folder that is empty at the end is removed, if it was made here.

    The claim is a lock, which ends with the process: after a kill the next job takes the folder. Only `fit` claims it,
    so that a run can be measured while it trains.

    Raises:
        InputError: another process trains in it, or it cannot be written to.
    """
    lock = folder / ".lock"
    with ExitStack() as claim:
        with refuse_unwritable(lock):
            claim.enter_context(folder_made(folder))
            try:
                file = claim.enter_context(locked(lock, wait=False))
            except BlockingIOError:
                raise InputError(in_use(folder, lock)) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {gethostname()}".encode())
            file.flush()
        for place in (folder, folder / "pictures"):
            remove_dead_parts(place)
        yield


def in_use(folder: Path, lock: Path) -> str:
    """Return the message for a folder that another process trains in."""
    with suppress(OSError):
        if holder := lock.read_text():
            return f"{folder} is in use: {holder} trains in it; wait for its end, stop it, or choose another --name"
    return f"{folder} is in use: another job trains in it; wait for its end, stop it, or choose another --name"


def checkpoint_of(folder: Path, given: str | None, fit: bool, trial: bool = False) -> str | None:
    """Return the checkpoint that a command goes on from or measures; None begins a new run.

    Args:
        folder: folder of the run.
        given: `ckpt_path`; `last` is that of the run, which measuring takes by default.
        fit: whether the command trains.
        trial: whether it writes nothing.

    Raises:
        InputError: fit would overwrite a run.
    """
    last = folder / "last.ckpt"
    if not fit:
        return str(last) if given in (None, "last") else local_checkpoint(given)
    if given == "last":
        return str(last) if last.exists() else None  # stopped before its first checkpoint, or not begun
    given = given and local_checkpoint(given)
    if is_own(folder, given) and last.exists():
        return given
    if not trial and (last.exists() or (folder / "config.yaml").exists()):
        raise InputError(f"{folder} exists: go on with it by --ckpt_path last, or choose another --name")
    return given


def is_own(folder: Path, checkpoint: str | None) -> bool:
    """Return True if a checkpoint is the run's own; fit from any other is a fork."""
    return checkpoint is not None and Path(checkpoint).resolve() == (folder / "last.ckpt").resolve()


def as_template(config: Namespace) -> Namespace:
    """Return a config without what belongs to one call alone, so that it can be used for another run."""
    template = config.clone()
    template.ckpt_path = template.weights_only = None
    template.trainer.max_steps, template.trainer.max_epochs, template.trainer.max_time = -1, -1, None
    return template


def changes(path: Path, text: str) -> str:
    """Return the options, with their values, in which a saved config differs from a new one; "" if there is none.

    Args:
        path: the saved config.
        text: the new one, as YAML.
    """
    try:
        before, after = (leaves(yaml.safe_load(config) or {}) for config in (path.read_text(encoding="utf-8"), text))
    except (OSError, ValueError, yaml.YAMLError, AttributeError):  # none yet, or changed by hand
        return ""
    names = [name for name in after if name in before and before[name] != after[name]]
    return ", ".join(f"{name.replace('init_args.', '')} {before[name]} -> {after[name]}" for name in names)


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config to the run's folder and to W&B; a validation or test leaves it as it is."""

    def save_config(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage == "fit":
            text = self.parser.dump(as_template(self.config), skip_none=False)
            path = Path(trainer.default_root_dir) / "config.yaml"
            if changed := changes(path, text):
                print(f"changed since the last fit of this run: {changed}")
            with replacing(path) as part:
                part.write_text(text, encoding="utf-8")
            for logger in trainer.loggers if trainer.enable_autolog_hparams else []:
                if hasattr(logger, "log_config"):
                    logger.log_config(yaml.safe_load(text))
