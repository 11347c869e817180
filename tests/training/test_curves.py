"""metrics.csv, curves.png, speed and the run-time estimate, and metrics.json of what is not finite."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from degrain.models.core.errors import InputError
from degrain.models.training import curves
from degrain.models.training.curve_figure import draw_curves, groups
from degrain.models.training.curves import Curves, FetchClock, duration
from degrain.models.training.metrics_file import MetricsFile, best
from degrain.models.training.values import FinalValues
from tests.tiny import BATCH, BUDGET, LEG

NAN = float("nan")


@pytest.fixture
def file(tmp_path: Path) -> MetricsFile:
    """Return a file with two training rows and the row of a validation."""
    file = MetricsFile(tmp_path / "metrics.csv")
    file.append(8, {"train/rate": 1.5, "train/norm": math.inf})
    file.append(16, {"train/rate": 0.1})
    file.append(16, {"val/rate": NAN})
    return file


# --- the file


def test_a_file_grows_by_columns_and_keeps_its_values(file):
    first, second, third = file.rows()
    assert first == {"images_seen": 8, "train/rate": 1.5, "train/norm": math.inf}
    assert second == {"images_seen": 16, "train/rate": 0.1}
    assert third["images_seen"] == 16 and math.isnan(third["val/rate"])
    assert file.path.read_text().splitlines()[0] == "images_seen,train/rate,train/norm,val/rate"


def test_a_resumed_file_loses_what_was_after_the_checkpoint_and_half_a_line(file):
    with open(file.path, "a") as raw:
        raw.write("24,0.2,0.3,0.4\n1")  # of 160, where the kill came
    again = MetricsFile(file.path)
    again.cut(8)
    again.append(16, {"train/rate": 0.7})
    assert again.rows() == [file.rows()[0], {"images_seen": 16, "train/rate": 0.7}]
    again.cut(0)
    assert again.rows() == []


def test_a_damaged_file_is_refused_and_left(file):
    file.path.write_text("images_seen,train/rate\n8,much\n")
    with pytest.raises(InputError, match="metrics.csv: not as degrain writes it .*move it away"):
        Curves(file.path.parent).setup(None, None, "fit")
    assert "much" in file.path.read_text()


def test_the_best_is_the_least_that_is_finite():
    rows = [{"images_seen": n, "v": value} for n, value in enumerate((NAN, 3.0, -math.inf, 2.0, 2.0, NAN))]
    assert best([*rows, {"images_seen": 9}], "v")["images_seen"] == 3
    assert best(rows[:1], "v") is best([], "v") is None


# --- a run


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_a_run_has_a_row_for_each_step_and_each_validation(trained, stage):
    rows = MetricsFile(getattr(trained, stage) / "metrics.csv").rows()
    held_out = [row["images_seen"] for row in rows if any(name.startswith("val/") for name in row)]
    steps = [row for row in rows if "train/learning_rate" in row]
    assert held_out == [LEG, BUDGET] and [row["images_seen"] for row in steps] == [*range(BATCH, BUDGET + 1, BATCH)]
    assert len(rows) == len(steps) + len(held_out)
    norms = {"vae": ["gradient_norm"], "gan": ["d_gradient_norm", "g_gradient_norm"]}[stage]
    for row in steps:
        assert all(row[f"train/{norm}"] > 0 for norm in norms) and row["train/skipped_steps"] == 0
        assert row["speed/images_per_second"] > 0 and 0 <= row["speed/waiting_for_data"] <= 1
    final = json.loads((getattr(trained, stage) / "metrics.json").read_text())
    assert not any(name.startswith("speed/") for name in final)  # of a resumed run it would differ
    assert final[f"train/{norms[0]}"] == pytest.approx(steps[-1][f"train/{norms[0]}"], rel=1e-8)


def test_the_clock_counts_the_time_of_fetching_alone(monkeypatch):
    times = iter([10.0, 12.5, 20.0, 20.5])
    monkeypatch.setattr(curves.time, "perf_counter", lambda: next(times))
    clock = FetchClock()
    for action in (FetchClock.FETCH, "optimizer_step", FetchClock.FETCH):
        with clock.profile(action):
            pass
    assert clock.seconds == 3.0


def test_the_estimate_is_printed_once_after_the_warm_up(tmp_path, monkeypatch):
    said, now = [], [0.0]
    monkeypatch.setattr(curves.time, "perf_counter", lambda: now[0])
    trainer = SimpleNamespace(
        log_every_n_steps=1, is_global_zero=True, callback_metrics={}, profiler=FetchClock(), fast_dev_run=False
    )
    module = SimpleNamespace(
        images_seen=0, schedule=SimpleNamespace(budget=300_000), print=said.append, log=lambda *_, **__: None
    )
    module.steps_done = lambda batch: module.images_seen // 50
    callback = Curves(tmp_path)
    callback.on_train_epoch_start(trainer, module)
    for seconds in (30.0, 33.0, 36.0, 40.0):  # the first step is slow
        now[0], module.images_seen = seconds, module.images_seen + 150
        callback.on_train_batch_end(trainer, module, None, None, 0)
    assert said == ["about 1 h 40 min for 299,550 images at 50 images/s"]
    rows = callback.file.rows()
    assert [row["speed/images_per_second"] for row in rows] == pytest.approx([5, 50, 50, 37.5])


def test_a_time_is_said_in_words():
    assert [duration(s) for s in (40, 119, 725, 6_600)] == ["40 s", "2 min", "12 min", "1 h 50 min"]


# --- the figure


def test_a_quantity_has_one_panel_and_the_figure_is_drawn(tmp_path):
    rows = [{"images_seen": n, "train/rate": n / 2, "train/skipped_steps": 0.0} for n in range(8, 8_000, 8)]
    rows += [{"images_seen": 8_000, "val/rate": 2.0, "val/rate_fitted": 1.0, "val/std/hair": 0.1, "val/std": NAN}]
    assert groups(rows) == {
        "rate under each prior, nats": ["train/rate", "val/rate", "val/rate_fitted"],
        "std": ["val/std/hair", "val/std"],
    }
    draw_curves(rows, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    draw_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_drawing_takes_a_small_share_of_the_time_and_the_last_is_always_drawn(tmp_path, monkeypatch):
    now, drawn = [1_000.0], []

    def slow(rows: object, path: Path) -> None:
        drawn.append(now[0])
        now[0] += 1

    monkeypatch.setattr(curves.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(curves, "draw_curves", slow)
    trainer = SimpleNamespace(sanity_checking=False, is_global_zero=True, callback_metrics={}, loggers=[])
    module, callback = SimpleNamespace(images_seen=8, watched=None), Curves(tmp_path)
    for pause in (0, 50, 100, 100):
        now[0] += pause
        callback.on_validation_end(trainer, module)
    callback.on_train_end(trainer, module)
    assert drawn == [1_000, 1_251, 1_252]


# --- metrics.json


def test_what_is_not_finite_is_null(tmp_path):
    metrics = {"val/rate": torch.tensor(NAN), "val/std": torch.tensor(0.5)}
    trainer = SimpleNamespace(sanity_checking=False, callback_metrics=metrics)
    module = SimpleNamespace(extra_metrics=lambda: {"test/fid": math.inf, "test/about/net": "x"}, images_seen=8)
    values = FinalValues(tmp_path / "metrics.json")
    values.write(trainer, module)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert found == {
        **{"images_seen": 8, "test/about/net": "x", "test/fid": None, "val/rate": None, "val/std": 0.5},
    }
    values.write(trainer, module)  # reads what it wrote
