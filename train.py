"""Train and measure, from a config.

    python train.py fit -c configs/demo_vae.yaml                     # a run lives in runs/NAME/
    python train.py fit -c configs/demo_vae.yaml --ckpt_path last    # go on with it, also after a kill
    python train.py test -c configs/demo_vae.yaml --ckpt_path last   # held-out figures into its metrics.json
    python train.py fit -c configs/vae_celeba64.yaml --data.root DIR --print_config

Every option of the config can be given on the command line; `fit --help` lists them.
"""

import difflib
import re
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities import rank_zero_only

from data.cache import DataError
from models.callbacks import Checkpoints, FinalValues, ImagesProgressBar, Pictures
from models.errors import InputError
from models.pipeline import read_checkpoint
from models.tracking import Mode, make_tracker

TRAINER_DEFAULTS = {
    "max_epochs": -1,  # a leg is an epoch; the module stops the Trainer when its budget of images is seen
    "reload_dataloaders_every_n_epochs": 1,
    "use_distributed_sampler": False,  # the data module deals the images out itself
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 20,
}


class OneLineParser(LightningArgumentParser):
    """Says what is wrong with a config in one line, with the nearest right name for a wrong one."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        reason = " ".join(str(ex or message).split())
        if wrong := re.findall(r"[Kk]ey [\"']([\w.]+)[\"'] is not expected|Unrecognized arguments: --([\w.]+)", reason):
            key = (wrong[-1][0] or wrong[-1][1]).rsplit(".")[-1]
            near = difflib.get_close_matches(key, self.known_names(), n=1, cutoff=0.5)
            reason = f"config: unknown key `{key}`" + (f"; did you mean `{near[0]}`?" if near else "")
        fail(reason)

    def known_names(self) -> set[str]:
        """Every name that a config may hold, of the modules in the house as of the parser itself."""
        import inspect

        from data import datamodule
        from models import layers, modules, vae

        classes = [c for m in (datamodule, modules, layers, vae) for _, c in inspect.getmembers(m, inspect.isclass)]
        names = {name for c in classes for base in c.__mro__[:-1] for name in inspect.signature(base).parameters}
        return names | {part for action in self._actions for part in action.dest.split(".")} - {"help"}


class SaveConfig(SaveConfigCallback):
    """The resolved config, beside the checkpoint and in W&B; only a fit writes it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        text = self.parser.dump(self.config, skip_none=False)
        (Path(trainer.default_root_dir) / "config.yaml").write_text(text)
        for logger in trainer.loggers:
            logger.log_config(yaml.safe_load(text))


class CLI(LightningCLI):
    """Adds what a run is: a name, a folder of its own, tracking, and what to go on from."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, help="name of the run; its folder is RUNS/NAME")
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--wandb", type=Mode, default="auto", help="auto: online when logged in, else offline")
        parser.add_argument("--project", type=str, default="degrain", help="W&B project")
        parser.add_argument("--checkpoint_minutes", type=float, default=5.0, help="least time between checkpoints")
        parser.link_arguments("data.init_args.size", "model.init_args.size")

    def _parse_ckpt_path(self) -> None:
        """Nothing: what Lightning looks for here, hyper-parameters in the checkpoint, ours keep in their card."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if not config.name or "/" in config.name:
            raise InputError(
                f"--name {config.name}: a run needs a name without slashes; its folder is {config.runs}/NAME"
            )
        self.folder = Path(config.runs) / config.name
        last = self.folder / "last.ckpt"
        if config.ckpt_path == "last":
            config.ckpt_path = str(last) if last.exists() or self.subcommand != "fit" else None
        elif self.subcommand == "fit" and self.folder.exists():
            raise InputError(f"{self.folder} exists: go on with --ckpt_path last, or choose another --name")
        if config.ckpt_path:
            card, _ = read_checkpoint(config.ckpt_path)
            if card.stage not in config.model.class_path.lower():
                raise InputError(
                    f"{config.ckpt_path}: is of stage {card.stage}, but the config is {config.model.class_path}"
                )
        config.weights_only = True  # a checkpoint is data, never code
        self.folder.mkdir(parents=True, exist_ok=True)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config[self.subcommand]
        fitting = self.subcommand == "fit"
        tracker = (
            make_tracker(config.wandb, config.name, self.folder, config.project, self.tracked_run())
            if fitting
            else None
        )
        trainer = super().instantiate_trainer(
            logger=tracker or False, enable_checkpointing=False, default_root_dir=self.folder, **kwargs
        )
        trainer.callbacks += [FinalValues(self.folder / "metrics.json")]
        if fitting:
            trainer.callbacks += [
                Pictures(self.folder / "pictures"),
                Checkpoints(self.folder / "last.ckpt", config.checkpoint_minutes),
            ]
        return trainer

    def tracked_run(self) -> str | None:
        """W&B's id of the run to go on with."""
        ...

    def after_run(self) -> None:
        rank_zero_only(print)(f"run: {self.folder}")

    after_fit = after_validate = after_test = after_run

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: LightningCLI.subcommands()[name] for name in ("fit", "validate", "test")}


def fail(message: str) -> None:
    """One line to standard error, exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def main(args: list[str] | None = None) -> None:
    """Run the command line; what the user can mend ends in one line and exit code 2."""
    try:
        CLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            parser_kwargs={},
            auto_configure_optimizers=False,
            parser_class=OneLineParser,
            args=args,
        )
    except (DataError, InputError) as error:
        fail(str(error))


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
