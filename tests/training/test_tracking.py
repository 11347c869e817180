"""The W&B files of a run, read from the disk: no network, no account."""

import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from degrain.models.core.errors import InputError
from degrain.models.training.tracking import Tracker, make_tracker
from tests.wandb_records import config, history, read_records, run_ids

BATCH, BATCHES = 4, 6

pytestmark = pytest.mark.usefixtures("no_account")


class Line(pl.LightningModule):
    """y = w x, fitted by hand-made steps that count images, as our own modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.images_seen = 0
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, x: torch.Tensor) -> None:
        loss = (self.weight * x - x).square().mean()
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.images_seen += len(x)
        self.log_dict({"train/loss": loss.detach(), "step": float(self.images_seen)})

    def validation_step(self, x: torch.Tensor) -> None:
        self.log("val/loss", (self.weight * x - x).square().mean())
        self.log("step", float(self.images_seen), reduce_fx="max")

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            pictures = {"val/panel": np.full((8, 8, 3), 255, np.uint8), "val/std": Image.new("L", (8, 8))}
            self.logger.log_pictures(pictures, self.images_seen)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tracker: Tracker) -> None:
    images = torch.utils.data.DataLoader(torch.ones(BATCH * BATCHES, 1), batch_size=BATCH)
    trainer = pl.Trainer(
        max_epochs=1,
        logger=tracker,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Line(), images, images)


def test_offline_run_keeps_scalars_pictures_and_config(tmp_path, capfd):
    tracker = Tracker("line", tmp_path / "run", mode="offline")
    resolved = {"model": {"lr": 0.1, "vae": Path("runs/vae")}, "batch": BATCH}
    tracker.log_config(resolved)
    assert "wandb sync" not in capfd.readouterr().out
    fit(tracker)
    printed = capfd.readouterr()
    assert printed.out.count("wandb sync") == 1
    assert printed.out.strip().endswith(f"wandb sync {tmp_path / 'run/wandb'}")
    assert "wandb" not in printed.err

    records = read_records(tmp_path / "run")
    rows = history(records)
    losses = {row["images_seen"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert list(losses) == [BATCH * (i + 1) for i in range(BATCHES)]
    assert losses[BATCH] == 1 and losses[BATCH * BATCHES] < 0.2
    assert [row["images_seen"] for row in rows if "val/loss" in row] == [BATCH * BATCHES]
    assert not any("trainer/global_step" in row or "step" in row for row in rows)
    metrics = [record.metric for record in records if record.HasField("metric")]
    assert [(metric.glob_name, metric.step_metric) for metric in metrics] == [("*", "images_seen")]

    [row] = [row for row in rows if "val/panel/path" in row]
    assert row["images_seen"] == BATCH * BATCHES
    [part] = (tmp_path / "run/wandb").glob("offline-run-*")
    with Image.open(part / "files" / row["val/panel/path"]) as panel:
        assert panel.size == (8, 8) and panel.getpixel((0, 0)) == (255, 255, 255)
    assert (part / "files" / row["val/std/path"]).is_file()

    assert config(records) == {"model": {"lr": 0.1, "vae": "runs/vae"}, "batch": BATCH}


def test_run_id_continues_the_run(tmp_path):
    first = Tracker("line", tmp_path, mode="offline")
    first.log_metrics({"train/loss": 1.0}, step=8)
    first.finalize("failed")
    second = Tracker("line", tmp_path, mode="offline", run_id=first.run_id)
    second.log_metrics({"train/loss": 0.5}, step=4)  # back to a checkpoint from before the failure
    second.finalize("success")
    second.log_metrics({"test/loss": 0.25}, step=4)  # trainer.test after trainer.fit
    second.finalize("success")

    records = read_records(tmp_path)
    assert run_ids(records) == [first.run_id] * 3
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{first.run_id}*"))) == 3
    assert [row["images_seen"] for row in history(records)] == [8, 4, 4]
    assert all(record.run.resume for record in records if record.HasField("run"))  # tells sync to append


def test_records_longer_than_a_block_are_read(tmp_path):
    tracker = Tracker("long", tmp_path, mode="offline")
    texts = {f"text{i}": "x" * 30_000 for i in range(5)}
    tracker.log_config(texts)
    tracker.log_config({"last": 1})
    tracker.finalize("success")
    assert config(read_records(tmp_path)) == {**texts, "last": 1}


def test_off_neither_imports_nor_writes(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it now raises
    assert make_tracker("off", "line", tmp_path / "run") is None
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert make_tracker("auto", "line", tmp_path / "run") is None
    assert not (tmp_path / "run").exists()


def test_a_tracker_not_used_neither_imports_nor_writes(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = make_tracker("auto", "line", tmp_path / "run")
    assert tracker.run_id
    tracker.finalize("success")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("environment", [{}, {"WANDB_MODE": "offline", "WANDB_API_KEY": "0" * 40}])
def test_auto_is_offline_without_a_key_or_when_the_environment_says_so(tmp_path, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracker = make_tracker("auto", "line", tmp_path)
    assert tracker.experiment.offline
    tracker.finalize("success")


@pytest.mark.parametrize("mode, key, reason", [("online", "", "No API key"), ("auto", "0", "KEY invalid")])
def test_online_that_fails_says_the_way_out_in_one_line(tmp_path, monkeypatch, mode, key, reason):
    monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(InputError, match=f"W&B did not start .*{reason}.*--wandb offline") as caught:
        make_tracker(mode, "line", tmp_path).log_metrics({"train/loss": 1.0}, step=1)
    assert "\n" not in str(caught.value)
