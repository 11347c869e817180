"""More expressive posteriors, priors and decoders: each is a config of stage 1, and every command takes it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import sample
import train
from degrain.models.core.errors import InputError
from degrain.models.inference.checkpoint import read_checkpoint
from degrain.models.inference.pipeline import load_pipeline
from degrain.models.toys import CollapseModule, ToyTwinsModule
from degrain.models.vae.flow import FlowConfig
from degrain.models.vae.network import VAEConfig
from degrain.models.vae.pixel_decoder import PixelConfig
from tests import tiny
from tests.conftest import Trained
from tests.tiny import error_of, folder_of_images, stopped
from tests.training.recipes import CONFIGS, folder_of_runs, metrics

VARIANTS = {
    "iaf": ["--model.net.posterior.steps=2", "--model.net.posterior.width=16"],
    "vlae": ["--model.net.prior.steps=2", "--model.net.prior.width=16"],
    "pixelvae": ["--model.net.pixels.blocks=1", "--model.net.pixels.width=8", "--model.net.pixels.context=2"],
}
ONE_VALIDATION = f"--model.validate_every={tiny.BUDGET}"
MEASURED = {"val/rate", "val/active_units", "val/prior_gap", "val/bits_per_dimension", "val/coverage_90", "val/rmse"}


@pytest.fixture(scope="module")
def runs(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each variant."""
    folder = folder_of_runs(trained, tmp_path_factory.mktemp("expressive"), stage_1=False)
    common = ("vae", ONE_VALIDATION, "--name")
    return {name: tiny.run(folder, *common, name, *VARIANTS[name]).with_name(name) for name in VARIANTS}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_measured_like_the_rest(runs, trained, name):
    found = metrics(runs[name])
    assert MEASURED <= found.keys() and all(np.isfinite(list(found.values())))
    assert found["val/bits_per_dimension"] < metrics(trained.vae)["val/bits_per_dimension"] + 0.5


@pytest.mark.parametrize("name", VARIANTS)
def test_a_killed_variant_goes_on_as_if_nothing_had_happened(runs, bare_root, name):
    options = (ONE_VALIDATION, *VARIANTS[name])
    assert stopped(bare_root, "vae", "Kill", 64, "--checkpoint_minutes", "0", *options) == 130
    tiny.run(bare_root, "vae", "--name", "mine", "--ckpt_path", "last", *options)
    tiny.assert_same_run(bare_root / "runs/mine", runs[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_tested_sampled_and_exported_and_the_export_taken_like_a_checkpoint(
    runs, bare_root, request, name
):
    # The default network once; for the others, as it takes seconds, the small one.
    net = "efficientnet-lite0" if name == "vlae" else request.getfixturevalue("net").name
    shutil.copytree(runs[name], bare_root / "runs" / name)
    options = ["--name", name, ONE_VALIDATION, *VARIANTS[name]]
    tested = ["--evaluation.n=8", "--evaluation.seeds=1", f"--evaluation.cache={runs[name].parent}/statistics"]
    tiny.run(bare_root, "vae", *options, *tested, subcommand="test")
    of_checkpoint = metrics(bare_root / "runs" / name)
    _, pipeline = load_pipeline(runs[name] / "last.ckpt")
    assert f"test/{net}/{pipeline.rows[0]}/kernel" in of_checkpoint
    assert {f"test/{net}/prior/{prior}/ratio" for prior in pipeline.priors} <= of_checkpoint.keys()
    assert (bare_root / "runs" / name / "diagnostics.png").exists()

    sample.main([str(runs[name] / "last.ckpt"), "--n", "3", "--export", "e.safetensors", "--out", "a.npz"])
    sample.main(["e.safetensors", "--n", "3", "--out", "b.npz"])
    drawn = [np.load(path)["images"].astype(int) for path in ("a.npz", "b.npz")]
    assert drawn[0].shape == (3, 32, 32, 3) and drawn[0].std() > 1
    assert np.abs(drawn[0] - drawn[1]).mean() < 1

    tiny.run(bare_root, "vae", *options, "--ckpt_path=e.safetensors", subcommand="test")
    of_export = metrics(bare_root / "runs" / name)
    assert of_export["test/distortion"] == pytest.approx(of_checkpoint["test/distortion"], rel=1e-3)
    folder = tiny.run(bare_root, "vae", *options, "--name=on", "--ckpt_path=e.safetensors", "--model.budget=104")
    assert read_checkpoint(folder.with_name("on") / "last.ckpt")[0].images_seen == 104


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_s_checkpoint_is_not_gone_on_with_as_the_plain_one(runs, bare_root, capsys, name):
    path = tiny.write(bare_root / "c.yaml", tiny.vae_config(bare_root))
    command = ["fit", "-c", str(path), "--name", "mine", "--ckpt_path", str(runs[name] / "last.ckpt")]
    [part] = {option.split(".")[2] for option in VARIANTS[name]}
    assert f"its vae.{part}." in error_of(capsys, lambda: train.main(command))


@pytest.mark.parametrize("name", ["iaf", "vlae"])
def test_stage_2_takes_a_flow_over(runs, bare_root, name):
    folder = tiny.run(bare_root, "gan", f"--model.vae={runs[name]}/last.ckpt", f"--model.budget={tiny.BATCH}")
    assert metrics(folder)["val/standardised_error_of_data"] > 0
    (_, stage_1), (_, stage_2) = (load_pipeline(path / "last.ckpt") for path in (runs[name], folder))
    drawn = [pipeline.draw(0, range(2))["mean"] for pipeline in (stage_1, stage_2)]
    assert torch.equal(*drawn) and stage_2.vae.config == stage_1.vae.config


def test_a_flow_stands_where_n_0_i_stood(runs, bare_root, capsys):
    checkpoint = runs["vlae"] / "last.ckpt"
    _, pipeline = load_pipeline(checkpoint)
    assert pipeline.priors == ("fitted", "flow") and pipeline.prior.training_prior == "flow"
    drawn = [pipeline.draw(0, range(2), prior)["mean"] for prior in (None, "flow", "fitted")]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    line = error_of(capsys, lambda: sample.main([str(checkpoint), "--prior", "standard"]))
    assert "has fitted, flow; its VAE was trained with the flow instead of N(0, I)" in line
    assert "val/rate_fitted" in metrics(runs["vlae"]) and "val/rate_flow" not in metrics(runs["vlae"])


def test_a_checkpoint_from_before_there_were_variants_is_gone_on_with(trained, bare_root):
    old = tiny.checkpoint(trained.vae)
    del old["degrain"]["vae"]["posterior"]
    torch.save(old, "old.ckpt")
    folder = tiny.run(bare_root, "vae", "--ckpt_path=old.ckpt", f"--model.budget={tiny.BUDGET + tiny.BATCH}")
    assert tiny.checkpoint(folder)["degrain"]["images_seen"] == tiny.BUDGET + tiny.BATCH


# --- refusals

PRIOR = {"prior": {"steps": 2, "width": 8}}
FLOWED, PIXELS = {"posterior": {"steps": 2, "width": 8}}, {"pixels": {"blocks": 1, "width": 8}}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "free bits": (FLOWED, {"free_bits": 0.1}, "free_bits (0.1) are of each latent's KL"),
    "moments": (FLOWED, {"regulariser": "moments"}, "regulariser moments takes the posterior's own mean and variance"),
    "free bits beside a flow": (PRIOR, {"free_bits": 0.1}, "with net.prior.steps (2) the KL is no sum"),
    "mmd beside a flow": (PRIOR, {"regulariser": "mmd"}, "regulariser mmd draws q(z) to N(0, I), and with net.prior"),
    "density": (PIXELS, {"likelihood": "density"}, "likelihood density with net.pixels.blocks (1): pixels are drawn"),
    "gradient": (PIXELS, {"gradient": "faithful"}, "gradient faithful with net.pixels.blocks (1): it parts"),
    "fixed std": (PIXELS | {"std": "fixed"}, {}, "net.std fixed with net.pixels.blocks (1)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_combination_is_refused_with_the_reason_and_the_way_out(bare_root, capsys, case):
    net, settings, said = REFUSED[case]
    config = tiny.vae_config(bare_root)
    config["model"]["init_args"] |= {"net": config["model"]["init_args"]["net"] | net, **settings}
    line = error_of(capsys, lambda: train.main(["fit", "-c", str(tiny.write(bare_root / "c.yaml", config))]))
    assert said in line and "; take " in line
    assert not (bare_root / "runs").exists()


@pytest.mark.parametrize("recipe", [CollapseModule, ToyTwinsModule])
def test_a_recipe_that_needs_a_closed_form_refuses_what_has_none(recipe):
    with pytest.raises(InputError, match=r"net.posterior.steps \(2\): .*; take 0"):
        recipe(32, VAEConfig(4, posterior=FlowConfig(2)))
    with pytest.raises(InputError, match=r"net.prior.steps \(2\): .*; take 0"):
        recipe(32, VAEConfig(4, prior=FlowConfig(2)))
    with pytest.raises(InputError, match=r"net.pixels.blocks \(1\): .*; take 0"):
        recipe(32, VAEConfig(4, pixels=PixelConfig(1)))


def test_stage_2_refuses_samples_without_independent_noise(runs, bare_root, capsys):
    path = tiny.write(bare_root / "c.yaml", tiny.gan_config(bare_root))
    command = ["fit", "-c", str(path), "--model.vae", str(runs["pixelvae"] / "last.ckpt")]
    assert "is a PixelVAE, whose samples" in error_of(capsys, lambda: train.main(command))


def test_a_pixelvae_has_samples_and_no_mean_image(runs, bare_root, capsys):
    command = [str(runs["pixelvae"] / "last.ckpt"), "--row", "mean"]
    assert "is of stage vae and has sample" in error_of(capsys, lambda: sample.main(command))
    assert not list(bare_root.glob("*.png"))


# --- configs


@pytest.mark.parametrize("name", VARIANTS)
def test_a_config_of_a_variant_trains_a_step(bare_root, name):
    head = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    assert head[0] == f"# python train.py fit -c configs/vae_celeba64.yaml -c configs/{name}.yaml --data.root DIR"
    assert any("arXiv" in line for line in head)
    data = {"root": folder_of_images(bare_root / "images", 32), "size": 32, "cache": bare_root / "own", "batch_size": 2}
    options = [f"--data.{key}={value}" for key, value in (data | {"valid_share": 0.2}).items()]
    options += [] if name == "pixelvae" else ["--model.net.encoder.patch=2", "--model.net.decoder.patch=2"]
    options += [] if name == "iaf" else ["--model.prior_diffusion=2"]
    options += ["--model.budget=2", "--model.validate_every=2", f"--runs={bare_root}/runs", "--wandb=off"]
    overlay = ["-c", str(CONFIGS / "vae_celeba64.yaml"), "-c", str(CONFIGS / f"{name}.yaml")]
    train.main(["fit", *overlay, *options, "--trainer.accelerator=cpu", "--trainer.devices=1"])
    net = yaml.safe_load((bare_root / "runs" / name / "config.yaml").read_text())["model"]["init_args"]["net"]
    asked = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["init_args"]["net"]
    assert all(net[key] | value == net[key] for key, value in asked.items()) and net["latent"] == 64
