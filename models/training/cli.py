"""The Lightning CLI of train.py: the folder of a run, the checkpoint that it goes on from, its seed and callbacks."""

from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from pytorch_lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from models.core.errors import InputError
from models.core.files import replacing
from models.inference.checkpoint import Card, read_checkpoint
from models.training.checkpoints import Checkpoints
from models.training.evaluator import Evaluator
from models.training.parser import ConfigParser, arguments, refuse_scalars
from models.training.report import Pictures
from models.training.tracking import Mode, make_tracker
from models.training.trainer_options import (
    DEFAULTS,
    check_trainer,
    early_end,
    in_one_line,
    refuse_options,
    trainer_options,
)
from models.training.values import FinalValues


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config to the run's folder and to W&B; a validation or test leaves it as it is."""

    def save_config(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage == "fit":
            text = self.parser.dump(self.config, skip_none=False)
            with replacing(Path(trainer.default_root_dir) / "config.yaml") as part:
                part.write_text(text)
            for logger in trainer.loggers if trainer.enable_autolog_hparams else []:
                if hasattr(logger, "log_config"):
                    logger.log_config(yaml.safe_load(text))


class CLI(LightningCLI):
    """A command line of train.py: parses it, makes seed, data, model and Trainer, and runs the subcommand.

    Args:
        args: the command line; None for that of the process.

    Attributes:
        folder: the run's folder.
        card: card of the checkpoint to go on from or to measure, if there is one.
        state: its state dict.
    """

    folder: Path
    card: Card | None = None
    state: dict[str, Tensor]

    def __init__(self, args: list[str] | None = None) -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults=DEFAULTS,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            auto_configure_optimizers=False,
            parser_class=ConfigParser,
            args=args,
        )

    # The command line.

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed", type=int, default=0, help="seed of model, data and Lightning")

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
        """Do nothing: Lightning looks for hyper-parameters in the checkpoint, ours keeps them in its card."""

    # The seed.

    def _set_seed(self) -> None:
        try:
            seed_everything(self.config[self.subcommand].seed, workers=True)
        except ValueError as error:
            raise InputError(f"--seed {error}") from None

    def _add_instantiators(self) -> None:
        """Give the seed to model and data, if they take one."""
        seed = self.config[self.subcommand].seed

        def instantiate(cls: type, **given: Any) -> Any:
            return cls(**given | ({"seed": seed} if "seed" in arguments(cls) else {}))

        for kind in (LightningModule, LightningDataModule):
            self.parser.add_instantiator(instantiate, kind)

    # The run.

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if not config.name or Path(config.name).name != config.name or config.name == "..":
            raise InputError(
                f"name {config.name}: give the run a name without slashes; its folder is {config.runs}/NAME"
            )
        refuse_options(config.trainer)
        for part in ("model", "data"):
            if given := config[part].get("init_args"):
                refuse_scalars(locate(config[part].class_path), given.as_dict(), part)
        self.folder = Path(config.runs) / config.name
        if config.ckpt_path == "last" or self.subcommand != "fit" and not config.ckpt_path:
            config.ckpt_path = str(self.folder / "last.ckpt")
            if self.subcommand == "fit" and not Path(config.ckpt_path).exists():
                config.ckpt_path = None  # the run was stopped before its first checkpoint, or has not begun
        elif (
            self.subcommand == "fit"
            and not config.trainer.fast_dev_run
            and any((self.folder / name).exists() for name in ("config.yaml", "last.ckpt"))
        ):
            raise InputError(f"{self.folder} exists: go on with it by --ckpt_path last, or choose another --name")
        if config.ckpt_path:
            self.card, self.state = read_checkpoint(config.ckpt_path)
        if self.from_export and "model.init_args.vae" in config:
            config["model.init_args.vae"] = config.ckpt_path  # stage 1 lies in it, and perhaps nowhere else
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

    @property
    def from_export(self) -> bool:
        """True if the checkpoint to go on from or to measure is an export."""
        return self.card is not None and self.card.exported is not None

    def load_export(self, path: str) -> None:
        """Give the model the weights and the position of an export, which holds nothing else.

        Raises:
            InputError: fit of stage 2, which needs its discriminator.
        """
        if self.subcommand == "fit" and self.card.stage != "vae":
            raise InputError(
                f"checkpoint {path}: an export of stage 2 holds no discriminator, without which fit cannot go on; "
                f"go on from the last.ckpt that it was made of, or train a new stage 2 on its VAE by --model.vae {path}"
            )
        self.model.load_export(self.card, self.state, path)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        settings, loggers, trial = self.config[self.subcommand], [], config["fast_dev_run"]
        if not trial:  # which writes nothing
            callbacks = [*callbacks, FinalValues(self.folder / "metrics.json")]
        if self.subcommand == "fit" and not trial:
            if config["logger"] is not False:
                tracked = self.card.tracked_run if self.card else None
                tracker = make_tracker(settings.wandb, settings.name, self.folder, settings.project, tracked)
                loggers += [tracker] if tracker else []
            checkpoints = Checkpoints(self.folder / "last.ckpt", settings.checkpoint_minutes)
            callbacks += [Pictures(self.folder / "pictures"), checkpoints]
        options = trainer_options(config, self.folder, loggers, callbacks, fits=self.subcommand == "fit")
        with in_one_line(options):
            trainer = super()._instantiate_trainer(options, [])
        check_trainer(trainer, options["plugins"], self.model, self.datamodule)
        return trainer

    # The subcommands.

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        settings = super()._prepare_subcommand_kwargs(subcommand)
        return settings | ({"ckpt_path": None} if self.from_export else {})  # the model has it already

    def fit(self, model: LightningModule, **settings: Any) -> None:
        """Train, unless the run has already seen its budget."""
        say, path = rank_zero_only(print), self.config[self.subcommand].ckpt_path
        if self.card is not None and self.card.images_seen >= model.schedule.budget:
            seen = f"{self.card.images_seen:,} of {model.schedule.budget:,} images"
            say(f"{path} has seen {seen}: a larger --model.budget goes on from it")
            return
        if self.from_export:
            say(f"going on from {path}: its weights and {self.card.images_seen:,} images seen, new optimizer states")
        self.trainer.fit(model, **settings)
        if end := early_end(self.trainer, model):
            say(end)

    def test(self, model: LightningModule, **settings: Any) -> None:
        """Measure on held-out images; the module prints the results."""
        self.trainer.test(model, **settings | {"verbose": False})

    def after_run(self) -> None:
        if not self.trainer.fast_dev_run:
            rank_zero_only(print)(f"run: {self.folder}")

    after_fit = after_validate = after_test = after_run
