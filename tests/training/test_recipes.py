"""The recipes of both stages: who moves, when, by which noise; what is measured; what is refused."""

import json
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from data.datamodule import Portraits
from data.drawing import REGIONS
from models.core.errors import InputError
from models.core.layers import PyramidConfig
from models.gan.denoiser import Denoiser
from models.inference.pipeline import load_pipeline
from models.training import GANModule, VAEModule
from models.training.image_module import ImageModule
from models.training.update import Update
from models.vae.network import VAEConfig
from tests.conftest import Trained

TINY = PyramidConfig((8, 8), patch=4)
NET = VAEConfig(4, TINY, TINY)
STEP = 16  # images


def vae(net: VAEConfig = NET, **settings: Any) -> VAEModule:
    torch.manual_seed(0)
    return VAEModule(32, net, **({"budget": 10 * STEP, "validate_every": 10 * STEP} | settings))


def gan(trained: Trained, **settings: Any) -> GANModule:
    torch.manual_seed(0)
    few = {"budget": 10 * STEP, "validate_every": 10 * STEP, "penalty_every": 2}
    return GANModule(str(trained.vae / "last.ckpt"), 32, TINY, TINY, **(few | settings))


def portraits(trained: Trained, **settings: Any) -> Portraits:
    common = {"size": 32, "batch_size": STEP, "eval_batch_size": 12, "cache": str(trained.root / "cache")}
    return Portraits(**({"count": 64, "valid_count": 20} | common | settings))


def fit(module: ImageModule, data: Portraits, *callbacks: pl.Callback, **options: Any) -> ImageModule:
    """Train to the module's budget, with the settings of train.py, options of the Trainer, and no files."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    legs = {"max_epochs": -1, "reload_dataloaders_every_n_epochs": 1, "use_distributed_sampler": False}
    few = {"enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    here = {"accelerator": "cpu", "devices": 1, "callbacks": list(callbacks)}
    pl.Trainer(**here, **quiet, **legs, **few, **options).fit(module, data)
    return module


class Record(pl.Callback):
    """Notes metrics and rates of every step, and the images seen at every validation."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.validations: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: ImageModule, *_) -> None:
        values = {name: value.item() for name, value in trainer.callback_metrics.items()}
        rates = {f"rate{i}": optimizer.param_groups[0]["lr"] for i, optimizer in enumerate(trainer.optimizers)}
        self.steps.append(values | rates | {"images_seen": module.images_seen})

    def on_validation_start(self, trainer: pl.Trainer, module: ImageModule) -> None:
        self.validations.append(module.images_seen)


def attached(module: ImageModule, world: int = 1) -> ImageModule:
    """The module with as much of a Trainer as its arithmetic needs."""
    module._fabric = None
    module._trainer = SimpleNamespace(world_size=world, global_rank=0, should_stop=False, datamodule=None)
    return module


# --- learning


def test_the_vae_learns(trained):
    record = Record()
    fit(vae(budget=40 * STEP, validate_every=40 * STEP, learning_rate=3e-3), portraits(trained), record)
    elbo = [step["train/distortion"] + step["train/rate"] for step in record.steps]
    assert len(elbo) == 40 and all(math.isfinite(value) for value in elbo)
    assert sum(elbo[-5:]) < 0.9 * sum(elbo[:5])
    assert record.steps[-1]["train/squared_error"] < 0.8 * record.steps[0]["train/squared_error"]


def test_the_discriminator_learns(trained):
    record = Record()
    fit(gan(trained, budget=25 * STEP, validate_every=25 * STEP, learning_rate=2e-3), portraits(trained), record)
    margins = [step["train/margin"] for step in record.steps]
    assert all(math.isfinite(value) for value in margins)
    assert sum(margins[-5:]) > 1 + sum(margins[:5])  # D tells photographs from draws that G hardly changes


def test_the_spread_term_calms_a_denoiser_that_is_too_loud(trained):
    record = Record()
    module = gan(trained, budget=25 * STEP, validate_every=25 * STEP, learning_rate=2e-3, spread_every=4)
    nn.init.normal_(module.denoiser.head[1].weight, std=0.5)
    fit(module, portraits(trained), record)
    ratio, spread = ([step[f"train/{name}"] for step in record.steps] for name in ("variance_ratio", "spread"))
    assert ratio[0] > 2 and abs(ratio[-1] - 1) < 0.5 * (ratio[0] - 1)
    assert sum(spread[-5:]) < 0.5 * sum(spread[:5])


def test_only_every_so_many_steps_have_four_draws_of_each_z_and_a_term_so_many_times_as_heavy(trained, monkeypatch):
    counts, draws, backward = [], Denoiser.draws, Update.backward

    def weighed(update: Update, loss: Tensor, terms: dict[str, Tensor]) -> None:
        if "spread" in terms:
            weighted = loss - terms["g_loss"].mean()
            torch.testing.assert_close(weighted, 3 * 0.3 * terms["spread"].mean(), rtol=1e-3, atol=1e-5)
        backward(update, loss, terms)

    monkeypatch.setattr(Denoiser, "draws", lambda net, noise, p: counts.append(len(noise)) or draws(net, noise, p))
    monkeypatch.setattr(Update, "backward", weighed)
    settings = {"ratio_draws": 5, "spread_every": 3, "spread_weight": 0.3}
    fit(gan(trained, budget=7 * STEP, validate_every=7 * STEP, **settings), portraits(trained))
    assert [count for count in counts if count != 5] == [4, 1, 1, 4, 1, 1, 4]


def test_the_discriminator_sees_all_of_a_scene_moved_alike(trained):
    module, seen = attached(gan(trained, translate=0.25)), []
    [scene] = module.scenes({"image": torch.randint(0, 256, (STEP, 3, 32, 32), dtype=torch.uint8)}, 1)
    shift = next(cell.cell_contents for cell in scene.critic.__closure__ if isinstance(cell.cell_contents, partial))
    shift = shift.keywords["offsets"]
    assert shift.unique().numel() > 8 and shift.abs().max() <= 8
    module.discriminator.register_forward_pre_hook(lambda net, inputs: seen.append(inputs))
    residual = scene.residual(scene.generate()[0])
    for image in (scene.real, residual):
        scene.critic(image, scene.p)
    sights = [(seen[0][0], scene.real), (seen[1][0], residual)]
    sights += [(p.mean, scene.p.mean) for _, p in seen] + [(p.logstd, scene.p.logstd) for _, p in seen]
    for i, (down, right) in enumerate(shift.int().tolist()):
        inside = [slice(max(0, by), 32 + min(0, by)) for by in (down, right)]
        before = [slice(max(0, -by), 32 - max(0, by)) for by in (down, right)]
        for seen, whole in sights:
            assert torch.equal(seen[i, :, *inside], whole[i, :, *before])


# --- who moves


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The parts of a module of which something is not as before."""
    now = module.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(now[name], before[name])}


def test_stage_1_moves_the_vae_in_training_and_the_prior_at_validation(trained):
    class Before(pl.Callback):
        def on_validation_start(self, trainer: pl.Trainer, module: ImageModule) -> None:
            self.moved = moved(module, start)  # callbacks come before the module, which fits its prior there

    module, seen = vae(), Before()
    start = snapshot(module)
    fit(module, portraits(trained), seen)
    assert seen.moved == {"vae"} and moved(module, start) == {"vae", "prior"}
    assert all(value.requires_grad for value in module.vae.parameters())


def test_stage_2_moves_both_networks_and_the_average_and_neither_vae_nor_prior(trained):
    module = gan(trained)
    before = snapshot(module)
    fit(module, portraits(trained))
    assert moved(module, before) == {"denoiser", "discriminator", "ema"}
    assert not module.vae.training and not any(value.requires_grad for value in module.vae.parameters())
    assert not any(value.requires_grad for value in module.ema.parameters())
    optimised = [{id(value) for group in o.param_groups for value in group["params"]} for o in module.optimizers()]
    nets = [{id(value) for value in net.parameters()} for net in (module.discriminator, module.denoiser)]
    assert optimised[0] == nets[0] and optimised[1] == nets[1]


def watch(module: ImageModule, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Note the parts that each optimizer step moves, in the order of the steps, as the module trains."""
    moves: list[set[str]] = []
    step = Update.step

    def watched(update: Update, unless: Tensor | None = None) -> None:
        before = snapshot(module)
        step(update, unless)
        moves.append(moved(module, before))

    monkeypatch.setattr(Update, "step", watched)
    return moves


@pytest.mark.parametrize("penalty_every", [1, 1000])
def test_each_step_moves_its_own_network_alone(trained, monkeypatch, penalty_every):
    module = gan(trained, budget=3 * STEP, penalty_every=penalty_every)
    moves = watch(module, monkeypatch)
    fit(module, portraits(trained))
    assert moves == [{"discriminator"}, {"denoiser"}] * 3
    assert all(value.requires_grad for value in module.discriminator.parameters())


def test_the_average_follows_the_denoiser_with_its_half_life_in_images(trained):
    class Follow(pl.Callback):
        average: dict[str, Tensor] | None = None

        def on_train_batch_end(self, trainer: pl.Trainer, module: GANModule, *_) -> None:
            now, keep = module.denoiser.state_dict(), 0.5 ** (STEP / 24)
            self.average = {name: keep * self.average[name] + (1 - keep) * now[name] for name in now}

    module, follow = gan(trained, ema_images=24), Follow()
    follow.average = snapshot(module.denoiser)
    fit(module, portraits(trained), follow)
    torch.testing.assert_close(dict(module.ema.module.state_dict()), follow.average)
    assert moved(module.ema.module, dict(module.denoiser.state_dict()))


# --- the clock and its schedules


def rate_of(module: ImageModule) -> float:
    return module.schedule.rate(module.images_seen, module.warm_from)


def test_the_rate_warms_up_stays_and_falls_as_a_cosine():
    module = vae(budget=1000, learning_rate=2.0, warmup=0.1, decay=0.4)
    rates = {}
    for module.images_seen in range(0, 1101, 50):
        rates[module.images_seen] = rate_of(module)
    assert 0 < rates[0] < 0.03 and rates[50] == pytest.approx(1.0, rel=0.02)
    assert all(rates[n] == 2.0 for n in range(100, 601, 50))
    for n in range(600, 1001, 50):
        assert rates[n] == pytest.approx(1 + math.cos(math.pi * (n - 600) / 400))
    assert rates[1000] == rates[1100] == pytest.approx(0)
    constant = vae(budget=1000, learning_rate=2.0, warmup=0, decay=0)
    assert {rate_of(constant) for constant.images_seen in (0, 500, 1000)} == {2.0}


def test_every_optimiser_follows_the_schedule(trained):
    record = Record()
    module = fit(gan(trained, warmup=0.2, decay=0.5), portraits(trained), record)
    for step in record.steps:
        module.images_seen = step["images_seen"] - STEP
        assert step["rate0"] == step["rate1"] == rate_of(module)


@pytest.mark.parametrize("weight", [1.0, 0.3, 4.0])
def test_the_weight_of_the_rate_rises_for_its_share_and_stays(weight):
    module = attached(vae(replace(NET, std="fixed"), budget=1000, rate_warmup=0.2, rate_weight=weight))
    torch.nn.init.constant_(module.vae.encoder.layers[-1].bias, 2)  # a rate that float32 tells beside the distortion
    x, weights = torch.rand(2, 3, 32, 32), {}
    for n in (0, 50, 100, 200, 600, 990):
        module.images_seen = n
        loss, terms = module.loss(x, module.noise())
        weights[n] = ((loss - terms["distortion"].mean()) / terms["rate"].mean()).item() / weight
    assert weights == pytest.approx({0: 0, 50: 0.25, 100: 0.5, 200: 1, 600: 1, 990: 1}, abs=1e-3)


def test_noise_depends_on_seed_and_images_seen_alone():
    def noise(seen: int, seed: int = 0) -> Tensor:
        module = attached(vae(seed=seed))
        module.images_seen = seen
        torch.rand(seen % 7)  # the global stream is no part of it
        return module.noise().normal(4, 5)

    assert torch.equal(noise(48), noise(48))
    assert not torch.equal(noise(48), noise(64)) and not torch.equal(noise(48), noise(48, seed=1))


def test_noise_of_held_out_images_depends_on_seed_and_number_alone():
    def noise(*numbers: int, seed: int = 0, seen: int = 0) -> Tensor:
        module = attached(vae(seed=seed))
        module.images_seen = seen
        return module.held_out_noise({"index": torch.tensor(numbers)}, 2, (5,))

    whole = noise(0, 1, 2, 3)
    assert torch.equal(torch.cat([noise(3, 1, seen=99), noise(0)]), whole[[3, 1, 0]])
    assert len(whole.unique()) == 20 and not torch.equal(noise(0, seed=1), whole[:1])


@pytest.mark.parametrize(("every", "validations"), [(48, [48, 96, 128]), (40, [48, 80, 128]), (500, [128])])
def test_legs_end_at_multiples_of_validate_every(trained, every, validations):
    record = Record()
    module = fit(vae(budget=128, validate_every=every), portraits(trained), record)
    assert record.validations == validations  # at the first whole batch from there on
    assert [step["images_seen"] for step in record.steps] == list(range(STEP, 129, STEP))
    assert module.images_seen == 128


def test_images_are_counted_over_all_processes():
    module = attached(vae(), world=3)
    module.count_images({"image": torch.zeros(4, 3, 32, 32)})
    assert module.images_seen == 12 and not module.trainer.should_stop
    module.images_seen = module.schedule.budget - 12
    module.count_images({"image": torch.zeros(4, 3, 32, 32)})
    assert module.trainer.should_stop


# --- the prior


@pytest.mark.parametrize("count", [20, 64, 20_000])
def test_the_prior_has_the_moments_of_q_over_the_images_it_is_fitted_to(trained, count):
    data = portraits(trained)
    module = fit(vae(prior_images=count), data)
    images, n = data.datasets["train"].arrays["image"], min(count, 64)
    x = torch.from_numpy(images[:n].copy()).permute(0, 3, 1, 2).float() / 255
    x[1::2] = x[1::2].flip(3)  # every second one, as the training flips
    with torch.no_grad():
        q = module.vae.encode(x)
    mean, variance = q.mean.double(), (2 * q.logstd.double()).exp()
    covariance = mean.T.cov(correction=0) + variance.mean(0).diag()
    torch.testing.assert_close(module.prior.mean, mean.mean(0).float(), rtol=1e-4, atol=1e-5)
    factor = module.prior.cholesky
    torch.testing.assert_close(factor @ factor.T, covariance.float(), rtol=1e-4, atol=1e-4)


# --- what is measured

TERMS = {
    "vae": {"distortion", "rate", "bits_per_dimension", "squared_error", "std", "at_floor"},
    "gan": {"margin", "d_loss", "g_loss", "r1", "r2", "spread", "variance_ratio"},
}
DIAGNOSTICS = {"rmse", "active_units", "prior_gap", "marginal_variance", "marginal_variance_gap"}
DIAGNOSTICS |= {f"coverage_{share}" for share in (50, 90, 99)} | {f"{k}/{r}" for k in ("std", "rmse") for r in REGIONS}
HELD_OUT = {
    "vae": TERMS["vae"] | DIAGNOSTICS | {"rate_fitted"},
    "gan": {"margin", "standardised_error", "standardised_error_of_data"}
    | {f"{name}{of}" for name in ("variance_ratio", "shift") for of in ("", *(f"/{region}" for region in REGIONS))},
}


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_every_value_has_its_path_in_metrics_json(trained, stage):
    metrics = json.loads((getattr(trained, stage) / "metrics.json").read_text())
    paths = {f"train/{name}" for name in (*TERMS[stage], "skipped_steps")}
    paths |= {f"val/{name}" for name in HELD_OUT[stage]}
    assert metrics.keys() == paths | {"images_seen"}
    assert all(math.isfinite(value) for value in metrics.values())


def held_out(data: Portraits) -> Tensor:
    return torch.from_numpy(data.datasets["valid"].arrays["image"].copy()).permute(0, 3, 1, 2).float() / 255


def test_held_out_values_are_means_over_images_and_not_over_batches(trained):
    data = portraits(trained)  # 20 held-out images in batches of 12 and 8
    module = fit(vae(), data)
    x = held_out(data)
    mean = module.pipeline().reconstruct(module.schedule.seed, range(20), x)["mean"]
    got, want = module.trainer.callback_metrics, (mean - x).square().mean()
    torch.testing.assert_close(got["val/squared_error"], want, rtol=1e-5, atol=0)
    torch.testing.assert_close(got["val/rmse"], want.sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("count", [5, 12, 15, 100])
def test_the_variance_ratio_is_over_the_first_images_whatever_the_batches(trained, monkeypatch, count):
    data, seen = portraits(trained), []
    module = gan(trained, budget=STEP, ratio_images=count, ratio_draws=4)
    draws = module.ema.module.draws

    def counted(noise: Tensor, p) -> Tensor:
        seen.append(tuple(noise.shape[:2]))
        return draws(noise, p)

    monkeypatch.setattr(module.ema.module, "draws", counted)
    fit(module, data)
    assert all(k == 4 for k, _ in seen) and sum(b for _, b in seen) == min(count, 20)
    assert module.trainer.callback_metrics["val/variance_ratio"] > 0


def test_the_variance_ratio_is_there_from_the_first_validation(trained):
    class First(pl.Callback):
        values: dict[str, float] | None = None

        def on_validation_end(self, trainer: pl.Trainer, module: ImageModule) -> None:
            self.values = self.values or {name: float(value) for name, value in trainer.callback_metrics.items()}

    first = First()
    fit(gan(trained, budget=4 * STEP, validate_every=STEP), portraits(trained), first)
    assert first.values["val/variance_ratio"] >= 0 and first.values["train/variance_ratio"] >= 0


# --- checkpoints and refusals


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_a_checkpoint_draws_what_its_module_draws(trained, stage):
    module = vae() if stage == "vae" else gan(trained)
    fit(module, portraits(trained))
    path = trained.root / f"drawn-{stage}.ckpt"
    module.trainer.save_checkpoint(path, weights_only=False)
    card, pipeline = load_pipeline(path)
    assert (card.stage, card.size, card.images_seen) == (stage, 32, 10 * STEP)
    assert card.data["source"] == "portraits-s0" and "loops" not in torch.load(path, weights_only=True)
    ours, theirs = module.pipeline().eval().draw(3, range(2)), pipeline.draw(3, range(2))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_stage_2_takes_the_vae_of_a_stage_2_checkpoint_too(trained):
    module = GANModule(str(trained.gan / "last.ckpt"), 32, TINY, TINY)
    stage1 = gan(trained)
    assert all(torch.equal(a, b) for a, b in zip(module.vae.parameters(), stage1.vae.parameters(), strict=True))
    assert torch.equal(module.prior.cholesky, stage1.prior.cholesky)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": 0}, "budget (0)"),
        ({"validate_every": 0}, "validate_every (0)"),
        ({"warmup": -0.1}, "warmup (-0.1)"),
        ({"warmup": 0.6, "decay": 0.6}, "at most 1 together"),
        ({"learning_rate": 0.0}, "learning_rate (0.0)"),
        ({"seed": -1}, "seed (-1)"),
    ],
)
@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_nonsense_is_refused_in_one_line(trained, stage, settings, said):
    with pytest.raises(InputError) as caught:
        vae(**settings) if stage == "vae" else gan(trained, **settings)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"rate_warmup": -0.1}, {"rate_warmup": 1.1}, {"gradient_clip": 0.0}, {"prior_images": 0}], ids=str
)
def test_nonsense_of_stage_1_is_refused_in_one_line(settings):
    [(name, value)] = settings.items()
    with pytest.raises(InputError, match=rf"{name} \({value}\)"):
        vae(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"penalty_weight": -1.0},
        {"penalty_every": 0},
        {"translate": -0.1},
        {"translate": 0.6},
        {"spread_weight": -0.1},
        {"spread_every": 0},
        {"ema_images": 0},
        {"ratio_images": 0},
        {"ratio_draws": 1},
    ],
    ids=str,
)
def test_nonsense_of_stage_2_is_refused_in_one_line(trained, settings):
    [(name, value)] = settings.items()
    with pytest.raises(InputError, match=rf"{name} \({value}\)"):
        gan(trained, **settings)


def test_another_size_is_refused(trained):
    with pytest.raises(InputError, match="made for 32 pixels, the data have 64; set data.size"):
        GANModule(str(trained.vae / "last.ckpt"), 64, TINY, TINY)
