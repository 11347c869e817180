"""Training recipes of both stages: both learn, each step moves its own network, checkpoints draw the same."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from degrain.models.gan.augment import offsets, translated
from degrain.models.gan.denoiser import Denoiser
from degrain.models.inference.pipeline import load_pipeline
from degrain.models.training import GANModule, adversarial
from degrain.models.training.image_module import ImageModule
from degrain.models.training.update import Update
from tests.training.recipes import (
    MODULES,
    STEP,
    TINY,
    Record,
    attached,
    fit,
    gan,
    moved,
    portraits,
    snapshot,
    vae,
    watch,
)

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


@pytest.mark.parametrize("recipe", ["gan", "plain_gan"])
def test_the_discriminator_on_features_learns_and_only_its_heads_move(trained, recipe):
    record, clock = Record(), {"budget": 25 * STEP, "validate_every": 25 * STEP, "learning_rate": 2e-3}
    module = MODULES[recipe](trained, feature_weight=1.0, **clock)
    before = snapshot(module.feature_discriminator)
    fit(module, portraits(trained), record)
    margins = [step["train/feature_margin"] for step in record.steps]
    assert sum(margins[-5:]) > 0.1 + sum(margins[:5])  # whose last layer's norm is 1: they differ by less than pixels'
    assert all(math.isfinite(step["train/feature_g_loss"]) for step in record.steps)
    assert moved(module.feature_discriminator, before) == {"heads"}


def test_features_weigh_as_much_in_both_losses_as_the_config_says(trained):
    def losses(weight: float) -> tuple[Tensor, Tensor]:
        module = attached(gan(trained, feature_weight=weight))
        [scene] = module.scenes({"image": images}, 1)
        fake = scene.residual(scene.generate()[0]).detach()
        (d, of_d), (g, of_g) = module.d_objective(scene, fake, 0.0), module.g_objective(scene, fake)
        assert torch.allclose(d - of_d["d_loss"].mean(), weight * softplus(-of_d["feature_margin"]).mean())
        assert torch.allclose(g - of_g["g_loss"].mean(), weight * of_g["feature_g_loss"].mean())
        return d, g

    images = torch.randint(0, 256, (STEP, 3, 32, 32), dtype=torch.uint8)
    for weak, strong in zip(losses(0.5), losses(2.0), strict=True):
        assert (strong - weak).item() / 1.5 == pytest.approx(math.log(2), abs=0.1)  # heads that cannot tell yet


def test_without_a_weight_there_is_no_discriminator_on_features(trained):
    module = attached(gan(trained))
    [scene] = module.scenes({"image": torch.zeros(STEP, 3, 32, 32, dtype=torch.uint8)}, 1)
    assert module.feature_discriminator is None and scene.feature_critic is None
    assert not [name for name in module.state_dict() if name.startswith("feature")]


def test_the_discriminator_on_features_sees_image_and_mean_moved_alike(trained, monkeypatch):
    module, seen, shifts = attached(gan(trained, feature_weight=1.0)), [], []
    monkeypatch.setattr(adversarial, "offsets", lambda *args: shifts.append(offsets(*args)) or shifts[-1])
    module.feature_discriminator.levels.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0]))
    [scene] = module.scenes({"image": torch.randint(0, 256, (STEP, 3, 32, 32), dtype=torch.uint8)}, 1)
    scene.feature_critic(scene.real, scene.p)
    [shift], photographs = shifts, scene.p.mean + scene.p.std * scene.real
    assert shift.unique().numel() > 4 and shift.abs().max() == 4
    for images, whole in zip(seen, (scene.p.mean, photographs), strict=True):
        torch.testing.assert_close(images, translated(whole, shift, 4))


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


def test_only_every_so_many_steps_have_penalties_so_many_times_as_heavy(trained, monkeypatch):
    weights, objective = [], adversarial.discriminator_objective
    monkeypatch.setattr(
        adversarial, "discriminator_objective", lambda *args: weights.append(args[-1]) or objective(*args)
    )
    fit(gan(trained, budget=5 * STEP, penalty_weight=2.0, penalty_every=3), portraits(trained))
    assert weights == [6, 0, 0, 6, 0]


@pytest.mark.parametrize(("most", "calls"), [(None, 2), (4, 2 * 2 * 4)])
def test_one_piece_has_its_images_once_for_both_steps_and_several_have_them_twice(trained, monkeypatch, most, calls):
    counts, draws = [], Denoiser.draws
    monkeypatch.setattr(Denoiser, "draws", lambda net, noise, p: counts.append(len(noise)) or draws(net, noise, p))
    fit(gan(trained, budget=2 * STEP), portraits(trained, micro_batch_size=most), limit_val_batches=0)
    assert len(counts) == calls


def test_the_discriminator_sees_all_of_a_scene_moved_alike(trained, monkeypatch):
    module, seen, shifts = attached(gan(trained, translate=0.25, translate_from=0)), [], []
    monkeypatch.setattr(adversarial, "offsets", lambda *args: shifts.append(offsets(*args)) or shifts[-1])
    [scene] = module.scenes({"image": torch.randint(0, 256, (STEP, 3, 32, 32), dtype=torch.uint8)}, 1)
    [shift] = shifts
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


@pytest.mark.parametrize("recipe", ["gan", "plain_gan"])
@pytest.mark.parametrize(("start", "moved_at"), [(3 * STEP, [3 * STEP, 4 * STEP]), (3 * STEP + 1, [4 * STEP])])
def test_what_the_discriminator_sees_is_moved_from_a_number_of_images_on(trained, monkeypatch, recipe, start, moved_at):
    seen, module = [], MODULES[recipe](trained, budget=5 * STEP, translate=0.25, translate_from=start)
    monkeypatch.setattr(adversarial, "offsets", lambda *args: seen.append(module.images_seen) or offsets(*args))
    fit(module, portraits(trained), limit_val_batches=0)
    assert seen == moved_at  # of five steps


def test_a_translation_that_begins_after_the_budget_is_said_to_do_nothing(trained):
    late, short = gan(trained, budget=100, translate=0.25, translate_from=100), "100 is not below model.budget 100"
    assert short in late.note() and late.note().count("\n") == 0
    both = gan(trained, budget=100, translate=0.25, translate_from=100, warmup_images=200).note().splitlines()
    assert "warmup_images" in both[0] and short in both[1] and len(both) == 2
    for said in ({"translate": 0.25, "translate_from": 99}, {"translate": 0.0, "translate_from": 100}):
        assert gan(trained, budget=100, **said).note() is None


# --- who moves


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


@pytest.mark.parametrize("penalty_every", [1, 1000])
def test_each_step_moves_its_own_network_alone(trained, monkeypatch, penalty_every):
    module = gan(trained, budget=3 * STEP, penalty_every=penalty_every)
    moves = watch(module, monkeypatch)
    fit(module, portraits(trained))
    assert moves == [{"discriminator"}, {"denoiser"}] * 3
    assert all(value.requires_grad for value in module.discriminator.parameters())


def test_the_average_s_half_life_is_a_share_of_the_images_seen(trained):
    class Follow(pl.Callback):
        average: dict[str, Tensor] | None = None

        def on_train_batch_end(self, trainer: pl.Trainer, module: GANModule, *_) -> None:
            now, keep = module.denoiser.state_dict(), 0.5 ** (STEP / (0.4 * module.images_seen))
            self.average = {name: keep * self.average[name] + (1 - keep) * now[name] for name in now}

    module, follow = gan(trained, ema_share=0.4), Follow()
    follow.average = snapshot(module.denoiser)
    fit(module, portraits(trained), follow)
    torch.testing.assert_close(dict(module.ema.module.state_dict()), follow.average)
    assert moved(module.ema.module, dict(module.denoiser.state_dict()))


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


# --- checkpoints


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
