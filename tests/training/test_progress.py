"""The bar on a terminal of 80 columns, and the lines of a log file."""

import io
import sys
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from tqdm import tqdm

from degrain.models.core.command_line import tolerant_output
from degrain.models.training.progress import ON_A_TERMINAL, ImagesProgressBar

STAGE_1 = {"train/distortion": 44_464.71, "train/rate": 826.123}
STAGE_2 = {"train/d_loss": 0.69314, "train/g_loss": 0.693147, "train/variance_ratio": 0.75123}


class Terminal(io.StringIO):
    """A standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


def postfix(values: dict[str, float]) -> str:
    """Return what stands behind the bar for the Trainer's metrics."""
    bar = Tqdm(total=1, file=io.StringIO())
    metrics = {name: torch.tensor(value) for name, value in values.items()}
    ImagesProgressBar.show(bar, ImagesProgressBar().get_metrics(SimpleNamespace(callback_metrics=metrics), None))
    return bar.postfix


@pytest.mark.parametrize("values, said", [(STAGE_1, "rate 826.1"), (STAGE_2, "var 0.7512")], ids=["stage 1", "stage 2"])
def test_80_columns_hold_every_value_and_some_of_the_bar(monkeypatch, values, said):
    monkeypatch.setattr(sys, "stdout", Terminal())
    line = tqdm.format_meter(
        n=1_000_000,
        total=1_500_000,
        elapsed=1_000_000 / 24,
        initial=0,
        unit="",
        ncols=80,
        bar_format=ON_A_TERMINAL,
        postfix=postfix(values),
    )
    assert len(line) <= 80 and line.endswith(f"{said}]") and "1000000/1500000 [5:47:13 left, 24.00/s" in line
    assert line.startswith(" 67%|")


def test_a_log_file_has_the_names_in_full(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert postfix(STAGE_2) == "d_loss=0.6931, g_loss=0.6931, variance_ratio=0.7512"


def test_a_log_file_has_few_lines_of_a_long_test(monkeypatch):
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    bar = ImagesProgressBar()
    bar.setup(SimpleNamespace(is_global_zero=True), None, "test")
    monkeypatch.setattr(ImagesProgressBar, "total_test_batches_current_dataloader", 1_000)
    bar.on_test_start(None, None)
    bar.on_test_batch_start(None, None, None, 0)
    for number in range(1_000):
        bar.on_test_batch_end(None, None, None, None, number)
    bar.on_test_end(None, None)
    lines = out.getvalue().splitlines()
    assert 2 <= len(lines) <= 4 and "\r" not in out.getvalue()
    assert "| 0/1000 [" in lines[0] and "test 100%|##########| 1000/1000 [" in lines[-1]


def test_a_name_that_the_output_cannot_show_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    tolerant_output()
    print("run: runs/café", flush=True)
    assert raw.getvalue() == b"run: runs/caf\\xe9\n"
