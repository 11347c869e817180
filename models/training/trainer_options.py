"""Options of the Trainer: which are refused, with the reason and the way, and how the others reach it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    Checkpoint,
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelPruning,
    ProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    WeightAveraging,
)
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import CheckpointIO, LayerSync
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from degrain.models.core.errors import InputError, first_line
from degrain.models.training.curves import FetchClock
from degrain.models.training.launchers import refuse_launcher
from degrain.models.training.limits import Limits
from degrain.models.training.progress import ImagesProgressBar

DEFAULTS = {
    "max_epochs": -1,  # a leg is an epoch; the module stops the Trainer when its budget of images is seen
    "reload_dataloaders_every_n_epochs": 1,  # each leg has a stream of its own
    "use_distributed_sampler": False,  # the data module divides the images among processes
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 20,
}
"""Defaults of the Trainer's options."""

ONE_IS_ALL = "the parser takes 1 for all batches; leave it out"
NO_NORM = "the networks have no batch norm to synchronise; leave it out"
IN_IMAGES = "model.validate_every says, in images, how often to validate"

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "accumulate_grad_batches": ((1,), "a step is data.batch_size images, and data.micro_batch_size takes it in pieces"),
    "barebones": ((False,), "values are logged; take --wandb off and --trainer.enable_progress_bar false"),
    "default_root_dir": ((None,), "the folder of a run is RUNS/NAME; take --runs and --name"),
    "enable_checkpointing": ((None, True), "nothing could draw from the run; --checkpoint_minutes spaces them out"),
    "gradient_clip_algorithm": ((None,), "stage 1 clips the norm; take model.gradient_clip"),
    "gradient_clip_val": ((None,), "take model.gradient_clip, which stage 1 has"),
    "limit_predict_batches": ((None,), "train.py predicts nothing; sample.py draws --n images"),
    "limit_train_batches": ((None,), "take --trainer.max_steps for a short call, model.validate_every for a leg"),
    "logger": ((None, False), "name the logger by its class_path; W&B has --wandb"),
    "min_epochs": ((None, 0), "model.budget says, in images, how long to train"),
    "min_steps": ((None, 0), "model.budget says, in images, how long to train"),
    "model_registry": ((None,), "checkpoints stay here; `sample.py CHECKPOINT --export FILE` writes one to upload"),
    "overfit_batches": ((0, 0.0), "train on a folder of a few images instead"),
    "reload_dataloaders_every_n_epochs": ((1,), "each leg has a stream of its own; leave it out"),
    "sync_batchnorm": ((False,), NO_NORM),
    "use_distributed_sampler": ((False,), "the data module divides the images among processes; leave it out"),
    "val_check_interval": ((None, 1.0), IN_IMAGES),
}
"""Options that must keep one of a few values because the recipes do this themselves: (values, what to do)."""

REFUSED_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "check_val_every_n_epoch": (lambda value: value is None or value < 1, "must be at least 1, in legs; " + IN_IMAGES),
    "limit_test_batches": (lambda value: value in (0, 1), f"{ONE_IS_ALL} or take 2"),
    "limit_val_batches": (lambda value: value == 1, f"{ONE_IS_ALL}, take 2, or data.limit_valid, in images"),
    "log_every_n_steps": (lambda value: (value or 0) < 0, "must be positive, or 0 for none"),
    "profiler": (lambda value: value == "xla", "is for TPUs, which the recipes are not; take pytorch"),
}
"""Options of which a few values are refused: (whether a value is, what to do)."""

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Precisions in which weights and moments are float32, and likelihoods too."""

CALLBACKS: dict[type[Callback], str] = {
    BaseFinetuning: "the recipes step their optimizers themselves; stage 2 freezes its VAE already",
    BatchSizeFinder: "data.batch_size is part of the recipe; tests/benchmarks/memory.py measures what fits",
    GradientAccumulationScheduler: "data.micro_batch_size takes a step in pieces",
    LearningRateFinder: "the recipes step their optimizers themselves; take model.learning_rate",
    ModelPruning: "the networks are not made to be pruned; leave it out",
    SpikeDetection: "steps that are not finite are skipped and counted anyway; leave it out",
    WeightAveraging: "a resumed run would go on from the averages; stage 2 has model.ema_share",
    StochasticWeightAveraging: "the recipes step their optimizers themselves; stage 2 has model.ema_share",
}
"""Callbacks that need Lightning's own optimization, and what to take instead."""

LOGGING = (DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor)
"""Callbacks that fail without a logger."""


def refuse_options(options: Mapping[str, Any]) -> None:
    """Refuse values of the Trainer's options, as the config has them.

    Raises:
        InputError: names the option and the way.
    """
    for name, (allowed, way) in REFUSED.items():
        value = options[name]
        an_object = name == "logger" and value is not True
        if not an_object and not any(value == ok and type(value) is type(ok) for ok in allowed):  # 1 is no 1.0
            raise InputError(f"trainer.{name} {value}: {way}")
    for name, (refused, way) in REFUSED_VALUES.items():
        if refused(options[name]):
            raise InputError(f"trainer.{name} {options[name]}: {way}")


def trainer_options(
    given: Mapping[str, Any],
    folder: Path,
    loggers: list[Logger],
    callbacks: list[Callback],
    fits: bool,
) -> dict[str, Any]:
    """Return the Trainer's arguments: those that were given, with our bar, limits, loggers and callbacks.

    Args:
        given: arguments of the config, as objects.
        folder: folder of the run.
        loggers: loggers besides those given.
        callbacks: callbacks after those given.
        fits: whether the Trainer is to fit, and callbacks to log.

    Raises:
        InputError: a callback or a plugin that does not work here, or a limit that leaves nothing to do.
    """
    theirs = listed(given["callbacks"])
    loggers = [] if given["fast_dev_run"] else [*loggers, *listed(given["logger"] or None)]
    refuse_parts(theirs, listed(given["plugins"]), bool(loggers or given["fast_dev_run"] or not fits))
    bars = [ImagesProgressBar()]
    if given["enable_progress_bar"] is False or any(isinstance(callback, ProgressBar) for callback in theirs):
        bars = []
    benchmark = True if given["benchmark"] is None and not given["deterministic"] else given["benchmark"]
    limits = {name: given[name] for name in ("max_steps", "max_epochs", "max_time")}
    return dict(given) | {
        "default_root_dir": folder,
        "logger": loggers or False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in [*theirs, *callbacks]),
        "benchmark": benchmark,  # cuDNN's, of a GPU
        "callbacks": [*theirs, *bars, Limits(**limits), *callbacks],
        "profiler": given["profiler"] or FetchClock(),
        **{"max_steps": -1, "max_epochs": -1, "max_time": None},  # counted by Limits
    }


def listed(value: Any) -> list[Any]:
    """Return what an option that takes one or several objects was given."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def refuse_parts(callbacks: list[Callback], plugins: list[Any], logged: bool) -> None:
    """Refuse callbacks and plugins whose work the recipes do themselves, and those that log if there is no logger.

    Raises:
        InputError: names the class and the way.
    """
    for callback in callbacks:
        for kind, way in CALLBACKS.items():
            if isinstance(callback, kind):
                raise InputError(f"trainer.callbacks: {type(callback).__name__}: {way}")
        if isinstance(callback, LOGGING) and not logged:
            raise InputError(f"trainer.callbacks: {type(callback).__name__} needs a logger; take --wandb offline")
    for plugin in plugins:
        if isinstance(plugin, CheckpointIO | LayerSync):
            way = NO_NORM if isinstance(plugin, LayerSync) else "checkpoints are written atomically; leave it out"
            raise InputError(f"trainer.plugins: {type(plugin).__name__}: {way}")


@contextmanager
def in_one_line(options: Mapping[str, Any]) -> Iterator[None]:
    """Turn what the Trainer's constructor says of its options into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError, MisconfigurationException) as error:
        if isinstance(error, RuntimeError) and str(options["devices"]).isdigit():  # srun without --ntasks-per-node
            refuse_launcher(int(options["devices"]), options["num_nodes"])
        raise InputError(f"trainer: {first_line(error)}") from error


def check_trainer(
    trainer: pl.Trainer,
    plugins: Any,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
) -> None:
    """Refuse a Trainer that the recipe or the data cannot work with, before anything is written; adapt it otherwise.

    Raises:
        InputError: strategy, precision, number of processes or division of a batch.
    """
    refuse_launcher(trainer.num_devices, trainer.num_nodes, listed(plugins))
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise InputError(f"trainer.strategy {type(strategy).__name__}: networks are not divided; take auto or ddp")
    if getattr(strategy, "_start_method", None) in ("spawn", "forkserver"):
        raise InputError(f"trainer.strategy with start method {strategy._start_method}: take ddp, which starts anew")
    if trainer.precision not in PRECISIONS:
        raise InputError(
            f"trainer.precision {trainer.precision}: weights and likelihoods are float32; take bf16-mixed, 16-mixed or "
            f"32-true"
        )
    refuse_division(module, data, trainer.world_size)
    adapt(trainer)


def adapt(trainer: pl.Trainer) -> None:
    """Change what the constructor has no argument for: where a profile goes, and how a trial counts its steps."""
    profiler = trainer.profiler
    if not profiler.filename and not isinstance(profiler, PassThroughProfiler):  # Lightning would only log the report
        profiler.dirpath, profiler.filename = profiler.dirpath or trainer.default_root_dir, "profile"
    if trainer.fast_dev_run:  # one leg of so many batches; Lightning counts the steps of each network
        trainer.fit_loop.epoch_loop.max_steps = -1


def refuse_division(module: pl.LightningModule, data: pl.LightningDataModule, processes: int) -> None:
    """Refuse to divide a batch that does not divide: among processes, or in pieces for a loss that couples its images.

    Raises:
        InputError: data.batch_size or data.micro_batch_size.
    """
    batch, most = getattr(data, "batch_size", processes), getattr(data, "micro_batch_size", None)
    if batch % processes:
        raise InputError(f"--data.batch_size {batch}: choose a multiple of the {processes} processes")
    if getattr(module, "couples_the_batch", False) and most is not None and most * processes < batch:
        name = "free_bits" if module.free_bits else f"regulariser {module.regulariser}"
        raise InputError(
            f"model: {name} couples the images of a batch, which data.micro_batch_size ({most}) would take in "
            f"pieces; take a batch that fits and micro_batch_size null, or regulariser posterior without free_bits"
        )


def early_end(trainer: pl.Trainer, module: pl.LightningModule) -> str | None:
    """Return what to say of a call of fit that ended before the budget was seen, and how to go on; None otherwise."""
    if trainer.fast_dev_run:
        return f"trainer.fast_dev_run {int(trainer.fast_dev_run)}: training and validation work; nothing was written"
    if getattr(module, "finished", True):
        return None
    limits = next(callback for callback in trainer.callbacks if isinstance(callback, Limits))
    seen, reason = f"{module.images_seen:,} of {module.schedule.budget:,} images", limits.reached or "a callback"
    return f"{reason} ended this call after {seen}: the same command with --ckpt_path last goes on"
