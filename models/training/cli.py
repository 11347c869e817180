"""The Lightning CLI of train.py: the folder of a run, the checkpoint that it goes on from, its seed and callbacks."""

import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from pydoc import locate
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.threads import set_threads
from degrain.models.inference.checkpoint import Card, read_checkpoint
from degrain.models.training import device
from degrain.models.training.checkpoints import Checkpoints
from degrain.models.training.curves import Curves
from degrain.models.training.evaluator import Evaluator
from degrain.models.training.launchers import launched
from degrain.models.training.next_step import after_fit, after_test, measure
from degrain.models.training.parser import ConfigParser, arguments, class_parser, refuse_nulls, refuse_scalars
from degrain.models.training.prior_only import add_prior, lacks_prior
from degrain.models.training.recipe import Recipe
from degrain.models.training.report import Pictures
from degrain.models.training.run_folder import (
    SaveConfig,
    checkpoint_of,
    claimed,
    is_own,
    run_folder,
    starts_the_job,
)
from degrain.models.training.stage_1 import group_of, refuse_missing, source_of_prior
from degrain.models.training.tracking import Mode, Tracker, make_tracker, own_name
from degrain.models.training.trainer_options import (
    DEFAULTS,
    check_trainer,
    early_end,
    in_one_line,
    refuse_options,
    trainer_options,
)
from degrain.models.training.values import FinalValues


class CLI(LightningCLI):
    """A command line of train.py: parses it, makes seed, data, model and Trainer, and runs the subcommand.

    Args:
        args: the command line; None for that of the process.

    Attributes:
        folder: the run's folder.
        card: card of the checkpoint to go on from or to measure, if there is one.
        state: its state dict.
        compiles: whether the networks of a fit are compiled.
    """

    folder: Path
    card: Card | None = None
    state: dict[str, Tensor]

    def __init__(self, args: list[str] | None = None) -> None:
        self.line = sys.argv[1:] if args is None else args
        with ExitStack() as self.claim:
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
        parser.add_argument(
            "--threads", type=int | None, help="of each process; by default OMP_NUM_THREADS, or one for each free core"
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, help="name of the run; its folder is RUNS/NAME")
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--wandb", type=Mode, default="auto", help="auto: online when logged in, else offline")
        parser.add_argument("--project", type=str, default="degrain", help="W&B project")
        parser.add_argument("--group", type=str | None, help="W&B group; by default that of its stage 1, or its name")
        parser.add_argument("--tags", type=list[str] | str, default=[], help="W&B tags: a,b or [a, b]")
        parser.add_argument("--notes", type=str | None, help="W&B notes")
        parser.add_argument("--wandb_artifacts", type=bool, default=False, help="upload every validated checkpoint")
        parser.add_argument("--checkpoint_minutes", type=float, default=5.0, help="least time between checkpoints")
        parser.add_argument("--compile", type=bool, default=False, help="torch.compile for the networks of fit's steps")
        parser.add_argument(
            "--float32_matmul_precision", type=device.MatmulPrecision | None, help="PyTorch's; high (TF32) on a GPU"
        )
        parser.link_arguments("data.init_args.size", "model.init_args.size")

    def subcommands(self) -> dict[str, set[str]]:
        """Return the subcommands, or only that with which the command line begins: each parser takes time to build."""
        ours = {name: LightningCLI.subcommands()[name] for name in ("fit", "validate", "test")}
        return {name: skipped for name, skipped in ours.items() if self.line[:1] == [name]} or ours

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
        """Give the seed to model and data, if they take one, and its VAE to stage 2."""
        seed = self.config[self.subcommand].seed

        def instantiate(cls: type, **given: Any) -> Any:
            if "vae" in given:
                given["vae"] = self.stage_1(given["vae"], given.get("size", 0))
            return cls(**given | ({"seed": seed} if "seed" in arguments(cls) else {}))

        for kind in (LightningModule, LightningDataModule):
            self.parser.add_instantiator(instantiate, kind)

    def stage_1(self, path: str, size: int) -> str:
        """Return where stage 2 takes its VAE from: its own checkpoint, if there is one, or the file of `model.vae`."""
        config = self.config[self.subcommand]
        if self.card is None or not self.card.vae:
            refuse_missing(path, size, config.runs)
            return path
        return source_of_prior(path, config.ckpt_path, self.state, self.subcommand == "fit")

    # The run.

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.trainer is None:
            raise InputError("config: trainer is empty; give it options or leave it out")
        refuse_nulls(self._parser(self.subcommand), config)
        config.name = own_name(config.name) if config.name else config.name
        self.folder = run_folder(config)
        refuse_options(config.trainer)
        device.avoid_emulation(config.trainer)
        for part in ("model", "data"):
            if given := config[part].get("init_args"):
                cls = locate(config[part].class_path)
                refuse_scalars(cls, given.as_dict(), part)
                refuse_nulls(class_parser(cls), given, f"{part}.")
        fit, trial = self.subcommand == "fit", bool(config.trainer.fast_dev_run)
        if fit and not trial and starts_the_job():
            self.claim.enter_context(claimed(self.folder))
        self.asked_for_last = fit and config.ckpt_path == "last"
        config.ckpt_path = checkpoint_of(self.folder, config.ckpt_path, fit, trial)
        if config.ckpt_path:
            self.card, self.state = read_checkpoint(config.ckpt_path)
        config.weights_only = True  # a checkpoint is data, never code
        config.group = config.group or group_of(config)

    def after_instantiate_classes(self) -> None:
        if self.subcommand != "fit" and not is_overridden("test_step", self.model):
            recipe = type(self.model).__name__
            raise InputError(f"{self.subcommand}: {recipe} has no held-out images; its fit ends with all its figures")
        if self.card is not None:
            path = self.config[self.subcommand].ckpt_path
            self.model.check(self.card, self.state, path)
            self.model.loaded_from, self.model.loaded_card = str(path), self.card
            self.model.lacks_prior = lacks_prior(self.model, self.state)
            if self.from_export:
                self.model.load_export(self.card, self.state, path, self.subcommand == "fit")
        self.model.tracked_run = self.tracked_run

    @property
    def forks(self) -> bool:
        """True if fit goes on from the checkpoint of another run."""
        return self.card is not None and not is_own(self.folder, self.config[self.subcommand].ckpt_path)

    @property
    def tracked_run(self) -> str | None:
        """Id of the run in W&B, if this goes on with one; a fork has one of its own."""
        return self.card.tracked_run if self.card is not None and not self.forks else None

    @property
    def from_export(self) -> bool:
        """True if the checkpoint to go on from or to measure is an export."""
        return self.card is not None and self.card.exported is not None

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        settings, trial = self.config[self.subcommand], config["fast_dev_run"]
        tracker = None if trial or config["logger"] is False else self.tracker()
        if not trial:
            callbacks = [*callbacks, FinalValues(self.folder / "metrics.json")]
        if self.subcommand == "fit" and not trial:
            curves = Curves(self.folder)
            upload = curves.upload if settings.wandb_artifacts else None
            if upload and tracker is None:
                raise InputError("--wandb_artifacts true: W&B is off; pass --wandb offline, or leave it out")
            path, minutes = self.folder / "last.ckpt", settings.checkpoint_minutes
            checkpoints = Checkpoints(path, minutes, at_once=self.forks, upload=upload)
            callbacks += [curves, Pictures(self.folder / "pictures"), checkpoints]
        loggers = [tracker] if tracker else []
        options = trainer_options(config, self.folder, loggers, callbacks, fits=self.subcommand == "fit")
        with in_one_line(options):
            trainer = super()._instantiate_trainer(options, [])
        check_trainer(trainer, options["plugins"], self.model, self.datamodule)
        self._set_threads(trainer.num_devices)
        self._set_device(trainer)
        return trainer

    def tracker(self) -> Tracker | None:
        """Return the logger of W&B; a test logs to the run that it measures, if that was tracked."""
        logs = self.subcommand == "fit" or self.subcommand == "test" and self.tracked_run
        c = self.config[self.subcommand]
        labels = {"group": c.group, "tags": c.tags, "notes": c.notes}
        return make_tracker(c.wandb, c.name, self.folder, c.project, self.tracked_run, **labels) if logs else None

    def _set_threads(self, processes: int) -> None:
        """Set the number of threads and say it; a run that is gone on with keeps its own if as many cores are free."""
        goes_on = self.subcommand == "fit" and self.card is not None and not self.forks
        settings = {"processes": processes, "own_processes": processes if launched() else 1}
        settings["before"] = self.card.threads if goes_on else 0
        rank_zero_only(print)(set_threads(self.config[self.subcommand].threads, **settings))

    def _set_device(self, trainer: Trainer) -> None:
        """Set the precision of products, compile the networks of a fit, and say what a GPU does."""
        settings, say = self.config[self.subcommand], rank_zero_only(print)
        if line := device.set_products(trainer.strategy.root_device, settings.float32_matmul_precision):
            say(line)
        self.compiles = settings.compile and self.subcommand == "fit"
        if self.compiles:
            device.compile_networks(self.model, trainer)
            say("compile: the networks of a training step; the first steps of each kind take longer")

    # The subcommands.

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        settings = super()._prepare_subcommand_kwargs(subcommand)
        return settings | ({"ckpt_path": None} if self.from_export else {})  # the model has it already

    def fit(self, model: LightningModule, **settings: Any) -> None:
        """Train, unless the run has already seen its budget."""
        say, path = rank_zero_only(print), self.config[self.subcommand].ckpt_path
        if self.card is not None and self.card.images_seen >= model.schedule.budget:
            seen = f"{path} has seen {self.card.images_seen:,} of {model.schedule.budget:,} images"
            added = isinstance(model, Recipe) and add_prior(self.trainer, model, **settings)
            say(f"{seen}: {'its priors were renewed' if added else 'a larger --model.budget goes on from it'}")
            return
        if self.card is not None:
            fork = f"; {self.folder} is a run of its own" if self.forks else ""
            what = "its weights and {} images seen, new optimizer states" if self.from_export else "{} images seen"
            say(f"going on from {path}: {what.format(f'{self.card.images_seen:,}')}{fork}")
        elif self.asked_for_last:
            say(f"{self.folder} has no checkpoint yet: beginning at 0 images")
        if note := isinstance(model, Recipe) and model.note():
            say(note)
        with device.compile_errors("torch.compile failed") if self.compiles else nullcontext():
            self.trainer.fit(model, **settings)
        if end := early_end(self.trainer, model):
            say(end)

    def test(self, model: LightningModule, **settings: Any) -> None:
        """Measure on held-out images; the module prints the results."""
        self.trainer.test(model, **settings | {"verbose": False})

    def after_run(self) -> None:
        """Print the folder of the run and the commands to type next."""
        if self.trainer.fast_dev_run:
            return
        commands = {"fit": [], "validate": [measure(self.folder)], "test": after_test(self.folder)}
        if isinstance(self.model, Recipe) and self.model.finished and self.subcommand == "fit":
            commands["fit"] = after_fit(self.config.fit, self.model.card().stage)
        for line in (f"run: {self.folder}", *(f"next: {command}" for command in commands[self.subcommand])):
            rank_zero_only(print)(line)

    after_fit = after_validate = after_test = after_run
