"""The controls of stage 2: the L2 denoiser, the GAN on the mean only, and the plain GANs that know no VAE."""

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
import yaml
from PIL import Image
from torch import Tensor, nn

import sample
import train
from data.drawing import REGIONS
from models.core.errors import InputError
from models.core.gaussian import Gaussian
from models.core.layers import PyramidConfig
from models.gan.denoiser import Denoiser
from models.gan.discriminator import Discriminator
from models.gan.generator import Generator, GeneratorConfig
from models.gan.objective import discriminator_objective
from models.inference.checkpoint import substate
from models.inference.pipeline import ROWS, load_pipeline, load_vae
from models.training import GANModule, PlainGANModule
from models.training.update import Update
from models.vae.network import VAE, Decoder, VAEConfig
from tests import tiny
from tests.conftest import Trained
from tests.tiny import assert_equal_states, error_of, folder_of_images, stopped, untrained_vae
from tests.training.test_recipes import STEP, TINY, Record, fit, gan, moved, portraits, snapshot, watch
from tests.vae.test_networks import distribution, shaken

CONFIGS = Path(__file__).parent.parent.parent / "configs"
NAMES = tuple(tiny.CONTROLS)
PLAIN = ("plain_gan", "classic")
AT_32 = {  # what the heads of the configs say
    "control_l2": ["--model.denoiser.widths=[48,96,128]"],
    "control_mean": ["--model.denoiser.widths=[48,96,128]", "--model.discriminator.widths=[48,96,128]"],
    "control_gan": ["--model.generator.widths=[112,144,256]", "--model.discriminator.widths=[48,96,128]"],
}


class CountBatches(pl.Callback):
    """Says how many batches a test had."""

    batches = 0

    def on_test_batch_end(self, *_) -> None:
        self.batches += 1

    def on_test_end(self, *_) -> None:
        print(f"tested {self.batches} batches")


@pytest.fixture
def root(trained: Trained, tmp_path: Path) -> Path:
    """A folder of runs of the test's own, with the trained stage 1 and the caches in it."""
    return room(trained, tmp_path)


def room(trained: Trained, path: Path) -> Path:
    (path / "runs").mkdir()
    (path / "runs/vae").symlink_to(trained.vae)
    (path / "cache").symlink_to(trained.root / "cache")
    return path


@pytest.fixture(scope="module")
def controls(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each control."""
    root = room(trained, tmp_path_factory.mktemp("controls"))
    return {name: tiny.run(root, name) for name in NAMES}


def plain(**settings: Any) -> PlainGANModule:
    torch.manual_seed(0)
    few = {"budget": 10 * STEP, "validate_every": 10 * STEP, "penalty_every": 2}
    return PlainGANModule(32, GeneratorConfig((8, 8), patch=4, latent=4), TINY, **(few | settings))


def made(trained: Trained, name: str, **settings: Any) -> GANModule | PlainGANModule:
    """The module of a control."""
    if name in PLAIN:
        return plain(loss="classic" if name == "classic" else "relativistic", **settings)
    own = {"l2": {"loss": "l2"}, "mean": {"noise": False}}[name]
    return gan(trained, spread_weight=0.0, **own, **settings)


# --- networks


def test_a_denoiser_without_noise_ignores_it_exactly_and_has_the_same_parameters():
    net, p = shaken(Denoiser(32, TINY, noise=False)), distribution(32)
    one, other = (net(torch.randn_like(p.mean), p) for _ in range(2))
    assert torch.equal(one, other) and torch.equal(one, net(torch.full_like(p.mean, math.nan), p))
    elsewhere = Gaussian(p.mean, p.logstd + 0.1 * torch.randn_like(p.logstd))
    assert not torch.equal(one, net(torch.zeros_like(p.mean), elsewhere))
    with_noise = Denoiser(32, TINY)
    with_noise.load_state_dict(net.state_dict())
    assert torch.equal(with_noise(torch.zeros_like(p.mean), p), one)


def test_an_unconditional_discriminator_sees_the_image_alone():
    net, image = shaken(Discriminator(32, TINY, conditional=False)), torch.randn(2, 3, 32, 32)
    one, other = (net(image, distribution(32, std)) for std in (0.1, 0.3))
    assert torch.equal(one, other) and not torch.equal(one, net(image.flip(3), distribution(32)))
    conditional = Discriminator(32, TINY)
    stem = 9 * 9 * TINY.patch**2 * TINY.widths[0]  # kernels of 3 x 3 for nine channels less
    assert count(conditional) - count(net) == stem


@pytest.mark.parametrize("size", [32, 64])
def test_a_generator_is_the_decoder_s_mean(size):
    config = GeneratorConfig((4, 6), patch=2, latent=5)
    net, z = Generator(size, config), torch.randn(3, 5)
    assert net(z).shape == (3, 3, size, size)
    torch.testing.assert_close(net(z), torch.full((3, 3, size, size), 0.5), rtol=0, atol=0.05)  # grey, when new
    vae = VAE(size, VAEConfig(5, config, config, std="fixed"))
    vae.decoder.load_state_dict(shaken(net).decoder.state_dict())
    assert torch.equal(net(z), vae.decode(z).mean)
    (gradient,) = torch.autograd.grad(net(z.requires_grad_())[1].sum(), z)
    assert [bool(row.any()) for row in gradient] == [False, True, False]


# --- configs


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


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
        both = count(decoder) + count(Denoiser(size, denoiser))
        assert count(Generator(size, GeneratorConfig(**generator))) == pytest.approx(both, rel=0.02)
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
    settings = {"budget": 40 * STEP, "learning_rate": 1e-2, "ema_images": 4 * STEP, "ratio_images": 20}
    record, module = Record(), made(trained, "l2", **settings)
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
    record, module = Record(), made(trained, name, budget=12 * STEP, learning_rate=2e-3, penalty_weight=0.1)
    shaken(module.discriminator)
    step, theirs = Update.step, module.player if player == "d" else module.discriminator

    def unless_the_other_s(update: Update, unless: Tensor | None = None) -> None:
        moves = update.optimizer.param_groups[0]["params"][0] is not next(theirs.parameters())
        step(update, unless if moves else torch.tensor(True))
        update.skipped = update.skipped & moves

    monkeypatch.setattr(Update, "step", unless_the_other_s)
    monkeypatch.setattr("models.training.divergence.PATIENCE", 100)
    monkeypatch.setattr("models.training.image_module.PATIENCE", 100)
    fit(module, portraits(trained), record)
    losses = [step[f"train/{player}_loss"] for step in record.steps]
    assert all(map(math.isfinite, losses)) and sum(losses[-3:]) < 0.8 * sum(losses[:3])


@pytest.mark.parametrize("name", ["mean", *PLAIN])
def test_each_step_of_a_control_moves_its_own_network_alone(trained, monkeypatch, name):
    module = made(trained, name, budget=3 * STEP, penalty_every=1)
    moves = watch(module, monkeypatch)
    before = snapshot(module)
    fit(module, portraits(trained))
    player = "generator" if name in PLAIN else "denoiser"
    assert moves == [{"discriminator"}, {player}] * 3
    assert moved(module, before) == {"discriminator", player, "ema"}
    assert not any(value.requires_grad for value in module.ema.parameters())


def test_a_plain_gan_is_penalised_by_its_loss(trained):
    x, p, d = torch.randn(2, 3, 32, 32), distribution(32), plain().discriminator
    penalties = {}
    for loss in ("relativistic", "classic"):
        _, terms = discriminator_objective(d, loss, x, x, p, 1.0)
        penalties[loss] = terms.keys() & {"r1", "r2"}
    assert penalties == {"relativistic": {"r1", "r2"}, "classic": {"r1"}}


def test_a_plain_gan_s_residuals_are_images_from_minus_one_to_one(trained):
    seen: list[Tensor] = []
    module = plain(budget=STEP)
    module.discriminator.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0].detach()))
    fit(module, portraits(trained))
    photographs = seen[0]
    assert len(photographs) == STEP and photographs.abs().max() <= 1 + 1 / 255 and photographs.std() > 0.2


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
    "mean": ERRORS | {"margin"},
    "plain_gan": {"margin"},
}


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_a_control_has_its_path_and_is_finite(controls, name):
    metrics = json.loads((controls[name] / "metrics.json").read_text())
    paths = {f"train/{term}" for term in (*TRAIN[name], "skipped_steps")} | {f"val/{term}" for term in HELD_OUT[name]}
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
    assert {key for key in metrics if key.startswith("test/")} == {f"test/{term}" for term in HELD_OUT[name]}
    assert all(f"test/{term}" in capsys.readouterr().out for term in list(HELD_OUT[name])[:1])


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


# --- what a user can mend

CONTRADICTIONS = {
    "spread of l2": ({"loss": "l2"}, "spread_weight (0.2) holds the variance over noise that loss l2 takes away"),
    "spread of no noise": ({"noise": False}, "spread_weight (0.2) holds a variance over noise, and with noise false"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_with_the_reason(trained, case):
    settings, said = CONTRADICTIONS[case]
    with pytest.raises(InputError) as refusal:
        gan(trained, **settings)
    assert said in str(refusal.value) and "take spread_weight 0" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_moving_what_no_discriminator_sees_is_refused(trained):
    with pytest.raises(InputError, match=r"translate \(0.1\) moves what a discriminator sees.*; take translate 0"):
        gan(trained, loss="l2", spread_weight=0.0, translate=0.1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"penalty_weight": -1.0}, r"penalty_weight \(-1.0\)"), ({"ema_images": 0}, r"ema_images \(0\)")],
    ids=str,
)
def test_nonsense_of_a_plain_gan_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        plain(**settings)
    with pytest.raises(InputError, match="latent 0"):
        Generator(32, GeneratorConfig((8, 8), patch=4, latent=0))


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


def test_the_export_of_a_plain_gan_is_tested_to_the_last_image(root, capsys):
    """It has no discriminator and so no terms, which must not end the loop at its first batch."""
    folder = tiny.run(root, "plain_gan", f"--model.budget={tiny.BATCH}")
    sample.main([str(folder / "last.ckpt"), "--export", str(root / "plain.safetensors")])
    seen = json.dumps([{"class_path": "tests.training.test_controls.CountBatches"}])
    options = ("--ckpt_path", str(root / "plain.safetensors"), "--trainer.callbacks", seen)
    tiny.run(root, "plain_gan", *options, subcommand="test")
    assert "tested 2 batches" in capsys.readouterr().out  # 20 images, 12 at a time
