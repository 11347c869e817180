"""The presets at 64, 128 and 256 pixels: what they come to, and training steps of both stages at 256 by train.py."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from degrain.models.inference.checkpoint import substate
from degrain.models.inference.pipeline import ROWS, load_pipeline
from tests import tiny
from tests.benchmarks.memory import CONFIGS, GIB, PRESETS, STAGES, apart, command, networks, parameters, resolved
from tests.tiny import folder_of_images

MILLIONS = {  # of parameters at 64, 128 and 256 pixels
    ("small", "vae"): (2.4, 3.8, 5.2),
    ("small", "denoiser"): (1.8, 3.2, 4.6),
    ("small", "discriminator"): (1.2, 1.9, 2.6),
    ("base", "vae"): (46.2, 65.6, 85.0),
    ("base", "denoiser"): (22.4, 33.4, 44.3),
    ("base", "discriminator"): (22.3, 32.0, 41.7),
}
NARROW = {
    "vae": ("net.latent=4", "net.encoder.widths=[8,8,16]", "net.decoder.widths=[8,8,16]"),
    "gan": ("denoiser.widths=[8,8,16]", "discriminator.widths=[8,8,16]", "ratio_draws=2", "ratio_images=2"),
}
SIZE = 256
STEPS, BATCH = 2, 2  # a residual block ends in a zero convolution: the one before it moves in the second step


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_parameters_that_the_readme_says(preset):
    for i, size in enumerate((64, 128, 256)):
        for name, net in networks(preset, size).items():
            assert parameters(net) / 1e6 == pytest.approx(MILLIONS[preset, name][i], abs=0.05), (name, size)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, one laid over the other."""
    return below | {k: merged(below[k], v) if isinstance(v, dict) else v for k, v in above.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_an_overlay_changes_what_it_names_and_nothing_else(stage):
    below, above = (CONFIGS / f"{name}.yaml" for name in PRESETS["base"][stage])
    options = f"# python train.py fit -c configs/{below.name} -c configs/{above.name} --data.root DIR"
    assert above.read_text().startswith(options)
    assert resolved("base", stage) == merged(resolved("small", stage), yaml.safe_load(above.read_text()))


def run(root: Path, stage: str, size: int, *options: str) -> dict[str, Any]:
    """The checkpoint of a few steps of `base`, narrow, by train.py."""
    images = root / "images"
    data = (images if images.exists() else folder_of_images(images, size), f"{root}/cache", str(size), str(BATCH))
    options += tuple(f"--data.{n}={v}" for n, v in zip(("root", "cache", "size", "batch_size"), data, strict=True))
    options += tuple(f"--model.{setting}" for setting in NARROW[stage])
    legs = (f"--model.budget={STEPS * BATCH}", f"--model.validate_every={STEPS * BATCH}", "--data.num_workers=0")
    legs += ("--trainer.precision=32-true",)  # bf16 is slow where a processor emulates it
    here = (f"--runs={root}/runs", f"--name={stage}", "--wandb=off", "--trainer.accelerator=cpu", "--trainer.devices=1")
    train.main([*command("base", stage), *options, *legs, *here])
    return tiny.checkpoint(root / "runs" / stage)


def assert_all_learned(optimizer: dict[str, Any], but: int = 0) -> None:
    """Adam has moved every tensor of its network, which needs finite gradients that are not zero, but so many."""
    moments = [state["exp_avg_sq"] for state in optimizer["state"].values()]
    assert len(moments) == len(optimizer["param_groups"][0]["params"])
    assert all(moment.isfinite().all() for moment in moments)
    assert sum(not moment.any() for moment in moments) <= but


def test_both_stages_train_at_the_largest_size(tmp_path):
    vae = run(tmp_path, "vae", SIZE)
    stage_1 = f"{tmp_path}/runs/vae/last.ckpt"
    gan = run(tmp_path, "gan", SIZE, f"--model.vae={stage_1}")
    (of_the_vae,), (of_d, of_g) = vae["optimizer_states"], gan["optimizer_states"]
    assert_all_learned(of_the_vae)
    assert_all_learned(of_g)
    assert_all_learned(of_d, but=4)  # pairs are differences of logits: the last biases of D and of three heads cancel
    for stage, checkpoint in (("vae", vae), ("gan", gan)):
        values = json.loads((tmp_path / "runs" / stage / "metrics.json").read_text())
        losses = [value for name, value in values.items() if name.startswith("train/")]
        assert values["images_seen"] == STEPS * BATCH and losses and all(map(math.isfinite, losses))
        assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    before, after = (substate(checkpoint["state_dict"], "vae.") for checkpoint in (vae, gan))
    assert all(torch.equal(before[name], after[name]) for name in before)  # stage 1 is frozen
    card, pipeline = load_pipeline(tmp_path / "runs/gan/last.ckpt")
    rows = pipeline.draw(0, range(2))
    assert card.size == SIZE and tuple(rows) == ROWS
    assert all(images.shape == (2, 3, SIZE, SIZE) and images.isfinite().all() for images in rows.values())


def test_memory_of_an_image_is_told_only_if_it_shows():
    mib = 2**20
    assert apart([1, 5], [GIB, GIB + 40 * mib]) == "0.99 GiB and 10.0 MiB an image"
    for growth in (-mib, 0, mib):
        assert apart([1, 2], [GIB, GIB + growth]).startswith("1 images more do not show beside the fixed part; give")
