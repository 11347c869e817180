"""Train and measure, from a config.

    python train.py fit -c configs/demo_vae.yaml                     # a run lives in runs/NAME/
    python train.py fit -c configs/demo_vae.yaml --ckpt_path last    # go on with it, also after a kill
    python train.py test -c configs/demo_vae.yaml --ckpt_path last   # held-out figures into its metrics.json
    python train.py test -c configs/demo_vae.yaml --ckpt_path FILE.safetensors    # or those of an export, see sample.py
    python train.py fit -c configs/vae_celeba64.yaml --data.root DIR --print_config

Every entry of a config can be given on the command line; `fit --help` and `fit --model.help CLASS` list them.
"""

import logging
import sys
import warnings
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.strategies import DDPStrategy, StrategyRegistry
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from models.core.errors import InputError
from models.core.files import replacing
from models.inference.checkpoint import Card, read_checkpoint
from models.training.callbacks import Checkpoints, FinalValues, ImagesProgressBar, Pictures
from models.training.cli import OneLineParser, fail, fail_if_known, lost_process, refuse_scalars
from models.training.evaluator import Evaluator
from models.training.tracking import Mode, make_tracker

TRAINER_DEFAULTS = {
    "max_epochs": -1,  # a leg is an epoch; the module stops the Trainer when its budget of images is seen
    "reload_dataloaders_every_n_epochs": 1,  # each leg has a stream of its own
    "use_distributed_sampler": False,  # the data module deals the images out itself
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 20,
}

OURS_INSTEAD = {
    "accumulate_grad_batches": (1, "a step is data.batch_size images, and data.micro_batch_size takes it in pieces"),
    "gradient_clip_val": (None, "take model.gradient_clip, which stage 1 has"),
}
"""Of the Trainer's options those that recipes do otherwise: the value that leaves it to them, and the way."""


class SaveConfig(SaveConfigCallback):
    """The resolved config, beside the checkpoint and in W&B; a validation or test leaves it as it is."""

    def save_config(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage == "fit":
            text = self.parser.dump(self.config, skip_none=False)
            with replacing(Path(trainer.default_root_dir) / "config.yaml") as part:
                part.write_text(text)
            for logger in trainer.loggers:
                logger.log_config(yaml.safe_load(text))


class CLI(LightningCLI):
    """Adds what a run is: a name, a folder of its own, tracking, and what to go on from."""

    card: Card | None = None
    state: dict[str, Tensor]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, help="name of the run; its folder is RUNS/NAME")
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--wandb", type=Mode, default="auto", help="auto: online when logged in, else offline")
        parser.add_argument("--project", type=str, default="degrain", help="W&B project")
        parser.add_argument("--checkpoint_minutes", type=float, default=5.0, help="least time between checkpoints")
        parser.link_arguments("data.init_args.size", "model.init_args.size")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: LightningCLI.subcommands()[name] for name in ("fit", "validate", "test")}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **options: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **options)
        if subcommand == "test":
            parser.add_lightning_class_args(Evaluator, "evaluation")
        return parser

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning looks for hyper-parameters in the checkpoint, ours keeps them in its card."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if not config.name or Path(config.name).name != config.name or config.name == "..":
            raise InputError(
                f"name {config.name}: give the run a name without slashes; its folder is {config.runs}/NAME"
            )
        for option, (left_to_us, way) in OURS_INSTEAD.items():
            if config.trainer[option] != left_to_us:
                raise InputError(f"trainer.{option} {config.trainer[option]}: {way}")
        for part in ("model", "data"):
            refuse_scalars(locate(config[part].class_path), config[part].init_args.as_dict(), part)
        self.folder = Path(config.runs) / config.name
        if config.ckpt_path == "last" or self.subcommand != "fit" and not config.ckpt_path:
            config.ckpt_path = str(self.folder / "last.ckpt")
            if self.subcommand == "fit" and not Path(config.ckpt_path).exists():
                config.ckpt_path = None  # the run was stopped before its first checkpoint, or has not begun
        elif self.subcommand == "fit" and any((self.folder / name).exists() for name in ("config.yaml", "last.ckpt")):
            raise InputError(f"{self.folder} exists: go on with it by --ckpt_path last, or choose another --name")
        if config.ckpt_path:
            self.card, self.state = read_checkpoint(config.ckpt_path)
        if self.from_export and "vae" in config.model.init_args:
            config.model.init_args.vae = config.ckpt_path  # stage 1 lies in it, and perhaps nowhere else
        config.weights_only = True  # a checkpoint is data, never code

    def after_instantiate_classes(self) -> None:
        if self.subcommand != "fit" and not is_overridden("test_step", self.model):
            recipe = type(self.model).__name__
            raise InputError(f"{self.subcommand}: {recipe} has no held-out images; its fit ends with all its figures")
        if self.card is not None:
            path = self.config[self.subcommand].ckpt_path
            self.model.check(self.card, self.state, path)
            if self.from_export:
                self.load_export(path)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        settings = self.config[self.subcommand]
        # Two players take turns, and the one that waits has no gradient to send.
        turns = getattr(self.model, "discriminator", None) is not None
        ddp = {"start_method": "popen", "find_unused_parameters": turns}
        StrategyRegistry.register("ddp", DDPStrategy, "what several processes get", override=True, **ddp)
        callbacks = [ImagesProgressBar(), *callbacks, FinalValues(self.folder / "metrics.json")]
        config |= {"logger": False, "enable_checkpointing": False, "default_root_dir": self.folder}
        if self.subcommand == "fit":
            tracked = self.card.tracked_run if self.card else None
            tracker = make_tracker(settings.wandb, settings.name, self.folder, settings.project, tracked)
            config |= {"logger": tracker or False, "enable_checkpointing": True}
            checkpoints = Checkpoints(self.folder / "last.ckpt", settings.checkpoint_minutes)
            callbacks += [Pictures(self.folder / "pictures"), checkpoints]
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (ValueError, TypeError, MisconfigurationException) as error:  # it checks most of its arguments itself
            raise InputError(f"trainer: {error}") from error

    @property
    def from_export(self) -> bool:
        """Whether what is gone on from, or measured, is an export."""
        return self.card is not None and self.card.exported is not None

    def load_export(self, path: str) -> None:
        """Give the model the weights and the position of an export, which has no more than them.

        Raises:
            InputError: fit of stage 2, which needs its discriminator.
        """
        if self.subcommand == "fit" and self.card.stage != "vae":
            raise InputError(
                f"checkpoint {path}: an export of stage 2 holds no discriminator, without which fit cannot go on; "
                f"go on from the last.ckpt that it was made of, or train a new stage 2 on its VAE by --model.vae {path}"
            )
        self.model.load_export(self.card, self.state, path)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        settings = super()._prepare_subcommand_kwargs(subcommand)
        return settings | ({"ckpt_path": None} if self.from_export else {})  # the model has it already

    def fit(self, model: LightningModule, **settings: Any) -> None:
        """Train, unless the run that is gone on with has seen its budget."""
        say, path = rank_zero_only(print), self.config[self.subcommand].ckpt_path
        if self.card is not None and self.card.images_seen >= model.schedule.budget:
            seen = f"{self.card.images_seen:,} of {model.schedule.budget:,} images"
            say(f"{path} has seen {seen}: a larger --model.budget goes on from it")
            return
        if self.from_export:
            say(f"going on from {path}: its weights and {self.card.images_seen:,} images seen, new optimizer states")
        self.trainer.fit(model, **settings)

    def test(self, model: LightningModule, **settings: Any) -> None:
        """Measure on held-out images; the module prints what it found."""
        self.trainer.test(model, **settings | {"verbose": False})

    def after_run(self) -> None:
        rank_zero_only(print)(f"run: {self.folder}")

    after_fit = after_validate = after_test = after_run


def main(args: list[str] | None = None) -> None:
    """Run a command line; what the user can mend ends in one line and exit code 2."""
    for message in (
        "does not have many workers",
        "smaller than the logging interval",
        "LeafSpec",
        "in eval mode",
        "torch.distributed.nn.functional.all_gather is deprecated",  # Lightning uses it
        "It is recommended to use `self.log",  # what it says of values that are of all processes already
        "no `validation_step`",
    ):
        warnings.filterwarnings("ignore", f".*{message}")
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)  # no advertisements, no list of hardware that is absent
    try:
        CLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=OneLineParser,
            args=args,
        )
    except Exception as error:
        if lost := lost_process(error):
            fail(lost)
        fail_if_known(error, (InputError, MisconfigurationException))
        raise
    except SIGTERMException:  # while measuring; its own exit code is 0
        sys.exit(143)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # the Trainer's exit code is 1
            sys.exit(130)
        raise


if __name__ == "__main__":
    main()
