"""Training of the controls: the L2 denoiser, the GAN on the mean only, and the plain GANs that know no VAE."""

import math
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import train
from degrain.models.core.layers import PyramidConfig
from degrain.models.gan.denoiser import Denoiser
from degrain.models.gan.generator import Generator, GeneratorConfig
from degrain.models.training.update import Update
from degrain.models.vae.network import Decoder, VAEConfig
from tests import tiny
from tests.benchmarks.memory import parameters
from tests.tiny import folder_of_images, untrained_vae
from tests.training.recipes import CONFIGS, STEP, Record, fit, gan, module_of, moved, plain, portraits, snapshot, watch
from tests.vae.test_networks import distribution, shaken

PLAIN = ("plain_gan", "classic")
AT_32 = {  # what the heads of the configs say
    "control_l2": ["--model.denoiser.widths=[48,96,128]"],
    "control_mean": ["--model.denoiser.widths=[48,96,128]", "--model.discriminator.widths=[48,96,128]"],
    "control_gan": ["--model.generator.widths=[112,144,256]", "--model.discriminator.widths=[48,96,128]"],
}


# --- configs


def written(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


@pytest.mark.parametrize("size", [64, 32])
def test_the_plain_gan_has_the_parameters_latents_and_images_of_both_stages(size):
    stage_1, stage_2, control = (
        written(name)["model"]["init_args"] for name in ("vae_celeba64", "gan_celeba64", "control_gan")
    )
    net, generator, widths = dict(stage_1["net"]), dict(control["generator"]), stage_2["denoiser"]["widths"]
    if size == 32:
        net["decoder"] = net["decoder"] | {"patch": 2}
        generator["widths"], widths = [112, 144, 256], [48, 96, 128]
    denoiser = PyramidConfig(**stage_2["denoiser"] | {"widths": widths})
    with torch.device("meta"):
        decoder = Decoder(size, VAEConfig(net["latent"], decoder=PyramidConfig(**net["decoder"])))
        both = parameters(decoder) + parameters(Denoiser(size, denoiser))
        assert parameters(Generator(size, GeneratorConfig(**generator))) == pytest.approx(both, rel=0.02)
    assert generator["latent"] == net["latent"]
    assert control["budget"] == stage_1["budget"] + stage_2["budget"]


@pytest.mark.parametrize(("name", "size"), [(name, 32) for name in AT_32] + [("control_gan", 64)])
def test_a_config_of_a_control_trains_a_step(root, name, size):
    head = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    assert head[0] == f"# python train.py fit -c configs/gan_celeba64.yaml -c configs/{name}.yaml --data.root DIR"
    said = " ".join(line.lstrip("# ") for line in head)
    assert all(option.replace("=", ' "') + '"' in said for option in AT_32[name])
    data = {"root": folder_of_images(root / "images", size), "size": size, "cache": root / "own", "batch_size": 2}
    options = [f"--data.{key}={value}" for key, value in (data | {"valid_share": 0.2}).items()]
    options += AT_32[name] if size == 32 else []
    if name != "control_gan":
        options += [f"--model.vae={untrained_vae(root, size)}", "--model.ratio_draws=2"]
    options += ["--model.budget=2", "--model.validate_every=2", f"--runs={root}/runs", "--wandb=off"]
    overlay = ["-c", str(CONFIGS / "gan_celeba64.yaml"), "-c", str(CONFIGS / f"{name}.yaml")]
    train.main(["fit", *overlay, *options, "--trainer.accelerator=cpu", "--trainer.devices=1"])
    folder = root / "runs" / name
    assert tiny.checkpoint(folder)["degrain"]["images_seen"] == 2
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    given = {"generator", "budget", "validate_every"}
    asked = {key: value for key, value in written(name)["model"]["init_args"].items() if key not in given}
    assert resolved["model"]["init_args"] | asked == resolved["model"]["init_args"]
    assert resolved["trainer"]["precision"] == written("gan_celeba64")["trainer"]["precision"]


# --- learning


def test_the_l2_denoiser_forgets_its_noise_and_beats_the_sample(trained):
    settings = {"budget": 40 * STEP, "learning_rate": 1e-2, "ratio_images": 20}
    record, module = Record(), gan(trained, loss="l2", spread_weight=0.0, **settings)
    shaken(module.denoiser)
    nn.init.constant_(module.denoiser.gain, 0.2)  # Adam takes it a hundredth a step
    before = snapshot(module)
    fit(module, portraits(trained), record)
    first, last = record.steps[0], module.trainer.callback_metrics
    assert first["train/variance_ratio"] > 1 and last["val/variance_ratio"] < 0.02
    of_the_mean = last["val/standardised_error_of_data"]  # |mu - x|^2 / sigma^2; of the sample it is 1 more on average
    assert last["val/l2"] < of_the_mean + 0.1 < first["train/l2"] - 1
    assert moved(module, before) == {"denoiser", "ema"} and module.discriminator is None


def test_the_l2_step_s_gradient_is_that_of_the_standardised_squared_error(trained, monkeypatch):
    images, gradients, generate = distribution(32).mean[:1].repeat(STEP, 1, 1, 1).requires_grad_(), [], Denoiser.draws
    monkeypatch.setattr(Denoiser, "draws", lambda net, noise, p: generate(net, noise, p) * 0 + images)
    module, scenes = gan(trained, loss="l2", spread_weight=0.0, budget=STEP), []
    made_scenes = module.scenes
    monkeypatch.setattr(module, "scenes", lambda *args: scenes.extend(made_scenes(*args)) or scenes)
    images.register_hook(gradients.append)
    fit(module, portraits(trained), limit_val_batches=0)
    p, x = scenes[0].p, scenes[0].p.sample(scenes[0].real)
    torch.testing.assert_close(gradients[0], 2 * (images - x).detach() / p.std.square() / images.numel())


@pytest.mark.parametrize("player", ["d", "g"])
@pytest.mark.parametrize("name", ["mean", *PLAIN])
def test_each_player_of_a_control_gains_while_the_other_stands_still(trained, monkeypatch, name, player):
    settings = {"learning_rate": 2e-3, "penalty_weight": 0.1}
    record, module = Record(), module_of(trained, name, 12, **settings)
    shaken(module.discriminator)
    step, theirs = Update.step, module.player if player == "d" else module.discriminator

    def unless_the_other_s(update: Update, unless: Tensor | None = None) -> None:
        moves = id(update.optimizer.param_groups[0]["params"][0]) not in map(id, theirs.parameters())
        step(update, unless if moves else torch.tensor(True))
        update.skipped = update.skipped & moves

    monkeypatch.setattr(Update, "step", unless_the_other_s)
    monkeypatch.setattr("degrain.models.training.divergence.PATIENCE", 100)
    monkeypatch.setattr("degrain.models.training.image_module.PATIENCE", 100)
    fit(module, portraits(trained), record)
    losses = [step[f"train/{player}_loss"] for step in record.steps]
    assert all(map(math.isfinite, losses)) and sum(losses[-3:]) < 0.8 * sum(losses[:3])


@pytest.mark.parametrize("name", ["mean", *PLAIN])
def test_each_step_of_a_control_moves_its_own_network_alone(trained, monkeypatch, name):
    module = module_of(trained, name, 3, penalty_every=1)
    moves = watch(module, monkeypatch)
    before = snapshot(module)
    fit(module, portraits(trained))
    player = "generator" if name in PLAIN else "denoiser"
    assert moves == [{"discriminator"}, {player}] * 3
    assert moved(module, before) == {"discriminator", player, "ema"}
    assert not any(value.requires_grad for value in module.ema.parameters())


def test_a_plain_gan_s_residuals_are_images_from_minus_one_to_one(trained):
    seen: list[Tensor] = []
    module = plain(budget=STEP)
    module.discriminator.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0].detach()))
    fit(module, portraits(trained))
    photographs = seen[0]
    assert len(photographs) == STEP and photographs.abs().max() <= 1 + 1 / 255 and photographs.std() > 0.2
