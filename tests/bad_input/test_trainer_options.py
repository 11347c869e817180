"""Every option of the Trainer works, or is refused before anything is written; one table goes through all of them."""

import csv
import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer

import train
from tests import tiny
from tests.bad_input.cases import GAN, VAE, Case, everything

LOGGED = {"class_path": "CSVLogger", "init_args": {"save_dir": "csv", "name": "curves"}}
CALLBACKS = [
    {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "best", "monitor": "val/MONITOR"}},
    {"class_path": "EarlyStopping", "init_args": {"monitor": "val/MONITOR", "patience": 9}},
    {"class_path": "LearningRateMonitor", "init_args": {}},
]
WORKS = {
    "accelerator": "cpu",
    "strategy": "ddp",
    "devices": "1",
    "num_nodes": "1",
    "precision": "bf16-mixed",
    "logger": json.dumps(LOGGED),
    "callbacks": json.dumps(CALLBACKS),
    "max_epochs": "1",
    "max_steps": "9",
    "max_time": "01:00:00:00",
    "limit_test_batches": "2",
    "limit_val_batches": "3",
    "check_val_every_n_epoch": "1",
    "num_sanity_val_steps": "1",
    "log_every_n_steps": "2",
    "enable_progress_bar": "false",
    "enable_model_summary": "true",
    "deterministic": "true",
    "benchmark": "false",
    "inference_mode": "false",
    "profiler": "simple",
    "detect_anomaly": "true",
    "plugins": "pytorch_lightning.plugins.environments.LightningEnvironment",
    "enable_autolog_hparams": "false",
}
"""Options that work, with the value that the test gives all of them together."""

REFUSED = {
    "accelerator": {"abacus": "abacus"},
    "strategy": {
        "fsdp": "fsdp",
        "ddp_spawn": "start method spawn: take ddp",
        "deepspeed": "DeepSpeed",
        "parallel": "parallel",
    },
    "devices": {"0": "devices", "3": "batch_size 8: choose a multiple of the 3 processes"},
    "num_nodes": {"2": "nothing has started the processes of the other machines", "0": "num_nodes"},
    "precision": {f"{name}-true": "take bf16-mixed, 16-mixed or 32-true" for name in ("bf16", "16", "64")},
    "logger": {"true": "name the logger by its class_path; W&B has --wandb"},
    "callbacks": {
        "StochasticWeightAveraging --trainer.callbacks.swa_lrs 1": "StochasticWeightAveraging: the recipes step",
        "WeightAveraging": "go on from the averages",
        "EMAWeightAveraging": "go on from the averages",
        "SpikeDetection": "skipped and counted",
        "LearningRateFinder": "LearningRateFinder: .*take model.learning_rate",
        "BatchSizeFinder": "BatchSizeFinder: data.batch_size",
        "LearningRateMonitor": "LearningRateMonitor needs a logger",
    },
    "plugins": {"HalfPrecision": "precision 16-true", "TorchCheckpointIO": "checkpoints are written atomically"},
    "fast_dev_run": {"-1": "fast_dev_run"},
    "max_steps": {"0": "must be at least 1, or -1 for no limit", "-2": "must be at least 1"},
    "max_epochs": {"0": "must be at least 1, or -1 for no limit"},
    "max_time": {"soon": "give it as DD:HH:MM:SS"},
    "min_epochs": {"2": "model.budget says"},
    "min_steps": {"2": "model.budget says"},
    "limit_train_batches": {"2": "take --trainer.max_steps", "1": "take --trainer.max_steps", "0.5": "max_steps"},
    "limit_val_batches": {"1": "takes 1 for all batches"},
    "limit_test_batches": {"1": "takes 1 for all batches", "0": "leave it out or take 2"},
    "limit_predict_batches": {"1": "sample.py draws"},
    "overfit_batches": {"1": "a folder of a few images"},
    "val_check_interval": {"0.5": "model.validate_every says", "2": "model.validate_every says"},
    "check_val_every_n_epoch": {"0": "at least 1, in legs", "null": "model.validate_every says"},
    "log_every_n_steps": {"-1": "must be positive, or 0"},
    "enable_checkpointing": {"false": "--checkpoint_minutes"},
    "accumulate_grad_batches": {"2": "data.micro_batch_size takes it in pieces"},
    "gradient_clip_val": {"1": "take model.gradient_clip"},
    "gradient_clip_algorithm": {"value": "take model.gradient_clip"},
    "use_distributed_sampler": {"true": "the data module divides the images"},
    "profiler": {"xla": "take pytorch", "stopwatch": "profiler"},
    "barebones": {"true": "take --wandb off and --trainer.enable_progress_bar false"},
    "sync_batchnorm": {"true": "no batch norm"},
    "reload_dataloaders_every_n_epochs": {"0": "each leg has a stream of its own", "2": "each leg"},
    "default_root_dir": {"elsewhere": "take --runs and --name"},
    "model_registry": {"mine": "writes one to upload"},
}
"""Option -> value -> what the line says of it."""


@pytest.fixture(autouse=True)
def settings_of_torch():
    yield
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)


def test_every_option_of_the_trainer_is_decided_on():
    options = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert options == WORKS.keys() | REFUSED.keys()  # a new one: try it with fit, validate and test in both stages


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_work_is_refused_before_anything_is_written(home, capsys, monkeypatch, name):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for number, (value, said) in enumerate(REFUSED[name].items()):
        Case(f"{(VAE, GAN)[number % 2]} --trainer.{name} {value}", said).check(home, capsys)


@pytest.mark.parametrize("stage, term", [("vae", "distortion"), ("gan", "standardised_error")])
def test_what_works_works_together_in_fit_validate_and_test(home, capsys, caplog, monkeypatch, stage, term):
    options = [f"--trainer.{name}={value.replace('MONITOR', term)}" for name, value in WORKS.items()]
    for variable in ("MASTER_ADDR", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK"):
        monkeypatch.delenv(variable, raising=False)
    train.main(["fit", "-c", f"{stage}.yaml", "--name", "new", *options])
    said, folder = capsys.readouterr().out, home / "runs/new"
    assert f"trainer.max_epochs 1 ended this call after {tiny.LEG} of {tiny.BUDGET} images" in said
    assert "Trainable params" in caplog.text and "%|" not in said  # the summary, and no bar
    [profile] = folder.glob("fit-profile*.txt")
    assert "run_training_batch" in profile.read_text()
    assert not (folder / "pictures/000000000-draws.png").exists()  # of the sanity check
    assert list(Path("best").glob("*.ckpt"))
    with next(Path("csv/curves").rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert {float(row["step"]) for row in rows if row[f"val/{term}"]} == {tiny.LEG}
    assert tiny.checkpoint(folder)["degrain"]["tracked_run"] is None  # W&B's, and there is none
    for subcommand, key in (("validate", "val/"), ("test", "test/")):
        evaluation = ["--evaluation.off=true"] if subcommand == "test" else []
        options[:] = [option for option in options if "--trainer.logger" not in option]  # none is needed here
        train.main([subcommand, "-c", f"{stage}.yaml", "--name", "new", *evaluation, *options])
        said = capsys.readouterr().out
        assert f"{key}{term}" in said and not re.search(r"(validation|test) +\d+%", said)
    assert "held-out values are of the first batches alone (trainer.limit_test_batches)" in said


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_a_trial_run_goes_through_everything_and_writes_nothing(home, capsys, stage):
    before = everything(home)
    for name in ("new", stage):  # also where there is a run already
        command = ["-c", f"{stage}.yaml", "--name", name, "--trainer.fast_dev_run", "3"]
        train.main(["fit", *command])
        said = capsys.readouterr().out
        assert "trainer.fast_dev_run 3: training and validation work; nothing was written" in said
        assert f"| {3 * tiny.BATCH}/{tiny.BUDGET} [" in said  # steps of both networks
    train.main(["validate", *command])
    train.main(["test", *command])
    assert everything(home) == before
