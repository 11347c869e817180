"""Finished runs of the controls: their values and pictures, what goes on from them, and what draws from them."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

import sample
import train
from degrain.data.drawing import REGIONS
from degrain.models.core.errors import InputError
from degrain.models.inference.checkpoint import read_checkpoint, substate
from degrain.models.inference.pipeline import ROWS, load_pipeline, load_vae
from tests import tiny
from tests.conftest import Trained
from tests.tiny import assert_equal_states, error_of, stopped
from tests.training.recipes import callback_option, folder_of_runs

NAMES = tuple(tiny.CONTROLS)


class CountBatches(pl.Callback):
    """Says how many batches a test had."""

    batches = 0

    def on_test_batch_end(self, *_) -> None:
        self.batches += 1

    def on_test_end(self, *_) -> None:
        print(f"tested {self.batches} batches")


@pytest.fixture(scope="module")
def controls(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each control."""
    root = folder_of_runs(trained, tmp_path_factory.mktemp("controls"))
    return {name: tiny.run(root, name) for name in NAMES}


# --- what a run leaves

TRAIN = {
    "l2": {"l2", "spread", "variance_ratio"},
    "mean": {"margin", "d_loss", "g_loss", "r1", "r2"},
    "plain_gan": {"margin", "d_loss", "g_loss", "r1", "r2"},
}
ERRORS = {"standardised_error", "standardised_error_of_data"}
HELD_OUT = {
    "l2": ERRORS
    | {"l2"}
    | {f"{name}{of}" for name in ("variance_ratio", "shift") for of in ("", *(f"/{region}" for region in REGIONS))},
    "mean": ERRORS | {"margin", "margin_train"},
    "plain_gan": {"margin", "margin_train"},
}


OF_EVERY_STEP = {
    name: ("skipped_steps", "learning_rate", "g_gradient_norm", *(() if name == "l2" else ("d_gradient_norm",)))
    for name in NAMES
}


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_a_control_has_its_path_and_is_finite(controls, name):
    metrics = json.loads((controls[name] / "metrics.json").read_text())
    paths = {f"train/{term}" for term in (*TRAIN[name], *OF_EVERY_STEP[name])} | {
        f"val/{term}" for term in HELD_OUT[name]
    }
    assert metrics.keys() == paths | {"images_seen"} and metrics["images_seen"] == tiny.BUDGET
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_control_leaves_its_pictures(controls, name):
    kinds = ("draws",) if name == "plain_gan" else ("draws", "reconstructions")
    kinds += ("denoisings",) if name == "l2" else ()  # the others have one answer to each z, or no VAE
    folder = controls[name] / "pictures"
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{n:09d}-{kind}.png" for n in (tiny.LEG, tiny.BUDGET) for kind in kinds}
    first, last = (np.asarray(Image.open(folder / f"{n:09d}-draws.png")) for n in (tiny.LEG, tiny.BUDGET))
    assert first.shape == last.shape and not np.array_equal(first, last)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_control_goes_on_as_if_nothing_had_happened(controls, root, name):
    assert stopped(root, name, "Kill", 64, "--checkpoint_minutes", "0") == 130
    folder = root / "runs/mine"
    assert tiny.checkpoint(folder)["degrain"]["images_seen"] == 64 - tiny.BATCH
    tiny.run(root, name, "--name", "mine", "--ckpt_path", "last")
    ours, theirs = tiny.checkpoint(folder), tiny.checkpoint(controls[name])
    for key in ("state_dict", "optimizer_states", "degrain"):
        assert_equal_states(ours[key], theirs[key])
    assert (folder / "metrics.json").read_text() == (controls[name] / "metrics.json").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_control_is_tested(controls, root, capsys, name):
    shutil.copytree(controls[name], root / "runs" / name)
    tiny.run(root, name, subcommand="test")
    metrics = json.loads((root / "runs" / name / "metrics.json").read_text())
    tested, said = {f"test/{term}" for term in HELD_OUT[name] - {"margin_train"}}, capsys.readouterr().out
    assert {key for key in metrics if key.startswith("test/")} == tested
    assert all(key in said for key in tested)


# --- drawing


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_of_a_control_are_drawn_from_its_checkpoint_alone(controls, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    checkpoint, drawn = controls[name] / "last.ckpt", {}
    rows = ("generated",) if name == "plain_gan" else ROWS
    card, pipeline = load_pipeline(checkpoint)
    assert pipeline.rows == rows and card.stage == ("plain_gan" if name == "plain_gan" else "gan")
    assert (card.loss, card.noise) == ("l2" if name == "l2" else "relativistic", name != "mean")
    for row in (*rows, None):
        options = ("--row", row) if row else ()
        sample.main([str(checkpoint), "--n", "3", "--out", "s.npz", "--overwrite", "true", "--device", "cpu", *options])
        with np.load("s.npz") as file:
            drawn[row] = file["images"]
    assert np.array_equal(drawn[None], drawn[rows[-1]]) and drawn[None].shape == (3, 32, 32, 3)
    images = pipeline.draw(0, range(3))[rows[-1]].clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(drawn[None] - 255 * images).max() <= 0.5 + 1e-3
    sample.main([str(checkpoint), "--n", "3", "--device", "cpu"])
    with Image.open("samples.png") as panel:
        assert panel.height > 96 * len(rows)


def test_a_plain_gan_s_image_depends_on_seed_and_number_alone(controls):
    _, pipeline = load_pipeline(controls["plain_gan"] / "last.ckpt")
    whole, one = (pipeline.draw(7, numbers)["generated"] for numbers in (range(5), range(3, 4)))
    torch.testing.assert_close(one[0], whole[3], rtol=1e-4, atol=1e-5)
    assert torch.equal(whole, pipeline.draw(7, range(5), "standard")["generated"])
    assert not torch.equal(whole, pipeline.draw(8, range(5))["generated"])
    with pytest.raises(InputError, match="prior fitted: the checkpoint has standard; a plain GAN has no other"):
        pipeline.draw(7, range(5), "fitted")


def test_the_generator_s_moving_average_is_what_is_drawn_with(controls):
    state = tiny.checkpoint(controls["plain_gan"])["state_dict"]
    _, pipeline = load_pipeline(controls["plain_gan"] / "last.ckpt")
    averaged, now = substate(state, "ema.module."), substate(state, "generator.")
    assert all(torch.equal(value, averaged[name]) for name, value in pipeline.generator.state_dict().items())
    assert any(not torch.equal(value, averaged[name]) for name, value in now.items())


# --- what is refused


def test_a_plain_gan_is_no_stage_1_and_has_one_row_and_one_prior(controls, root, capsys):
    checkpoint = controls["plain_gan"] / "last.ckpt"
    path = tiny.write(root / "c.yaml", tiny.gan_config(root))
    line = error_of(capsys, lambda: train.main(["fit", "-c", str(path), "--model.vae", str(checkpoint)]))
    assert f"{checkpoint}: is a plain GAN's, which has no VAE; give one of stage 1 or 2" in line
    commands: dict[str, Callable[[], Any]] = {
        "is of stage plain_gan and has generated": lambda: sample.main([str(checkpoint), "--row", "mean"]),
        "has standard; a plain GAN has no other": lambda: sample.main([str(checkpoint), "--prior", "fitted"]),
    }
    for said, command in commands.items():
        assert said in error_of(capsys, command)
    assert not (root / "runs/gan").exists()


def test_a_control_is_not_gone_on_with_as_another(controls, root, capsys):
    for config, checkpoint, said, *option in (
        ("l2", "mean", "its noise is False, the config says True"),
        ("mean", "l2", "its noise is True, the config says False"),
        ("plain_gan", "plain_gan", "its loss is relativistic, the config says classic", "--model.loss=classic"),
        ("plain_gan", "l2", "its stage is gan, the config says plain_gan"),
    ):
        path = tiny.write(root / "c.yaml", tiny.CONFIGS[config](root) | {"name": "mine"})
        command = ["fit", "-c", str(path), "--ckpt_path", str(controls[checkpoint] / "last.ckpt"), *option]
        assert said in error_of(capsys, lambda command=command: train.main(command))
    load_vae(controls["l2"] / "last.ckpt")  # which has one


# --- exports


def test_the_export_of_a_plain_gan_is_tested_to_the_last_image(root, capsys):
    """It has no discriminator and so no terms, which must not end the loop at its first batch."""
    folder = tiny.run(root, "plain_gan", f"--model.budget={tiny.BATCH}")
    sample.main([str(folder / "last.ckpt"), "--export", str(root / "plain.safetensors")])
    seen = callback_option("tests.training.test_control_runs.CountBatches")
    options = ("--ckpt_path", str(root / "plain.safetensors"), seen)
    tiny.run(root, "plain_gan", *options, subcommand="test")
    assert "tested 2 batches" in capsys.readouterr().out  # 20 images, 12 at a time


@pytest.mark.parametrize("control", ["l2", "plain_gan"])
def test_a_control_goes_on_from_its_export(controls, root, capsys, control):
    """The network that plays G begins as the average, the only one that an export has."""
    sample.main([str(controls[control] / "last.ckpt"), "--export", str(root / "e.safetensors")])
    _, exported = read_checkpoint(root / "e.safetensors")
    player = {"l2": "denoiser", "plain_gan": "generator"}[control]
    options = ("--ckpt_path", str(root / "e.safetensors"), "--model.learning_rate=1e-9", "--model.warmup=0")
    folder = tiny.run(root, control, f"--model.budget={tiny.BUDGET + tiny.BATCH}", *options)
    state = tiny.checkpoint(folder)["state_dict"]
    for name, value in substate(exported, "ema.module.").items():
        torch.testing.assert_close(state[f"{player}.{name}"], value.float(), rtol=0, atol=1e-6)
    assert ("learn alone" in capsys.readouterr().out) == (control == "plain_gan")
