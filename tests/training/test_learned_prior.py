"""The learned prior in training: from the end of stage 1 to stage 2, and learned again by a longer run."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sample
from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import LatentDraws
from degrain.models.core.layers import PyramidConfig
from degrain.models.inference.checkpoint import read_checkpoint, substate
from degrain.models.inference.pipeline import load_pipeline
from degrain.models.training import GANModule, VAEModule
from degrain.models.vae import latent_prior
from degrain.models.vae.latent_prior import LatentPrior, Mixture
from tests import tiny


@pytest.fixture
def teachable(monkeypatch) -> list[tuple[torch.Size, int, int]]:
    """Let 64 images teach a mixture, and record the shape of the draws, the components and the seed of each call."""
    calls, learn = [], LatentPrior.learn

    def recorded(prior: LatentPrior, draws: LatentDraws, components: int, seed: int) -> dict[str, float]:
        calls.append((draws.z.shape, components, seed))
        rates = learn(prior, draws, components, seed)
        assert rates.keys() == {"standard", "fitted", "learned"} and all(map(math.isfinite, rates.values()))
        prior.mixture = prior.mixture or Mixture(2, 4)
        prior.mixture.means.add_(len(calls))
        return rates

    monkeypatch.setattr(latent_prior, "LEAST_IMAGES", 64)
    monkeypatch.setattr(LatentPrior, "learn", recorded)
    return calls


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Compare names and values."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def mixture_of(path: Path) -> dict[str, Tensor]:
    """Return the learned prior's state in a checkpoint, and check that the prior lists it if there is one."""
    prior = load_pipeline(path)[1].prior
    state = {name: value for name, value in prior.state_dict().items() if name.startswith("mixture.")}
    assert ("learned" in prior.names) == bool(state)
    return state


def test_the_prior_is_learned_when_the_budget_is_seen_and_stage_2_takes_it_over(trained, teachable, bare_root, capsys):
    few, path = ("--model.prior_components", "2"), bare_root / "runs/vae/last.ckpt"
    kill = json.dumps([{"class_path": "tests.tiny.Kill", "init_args": {"images": tiny.LEG + tiny.BATCH}}])
    with pytest.raises(SystemExit):
        tiny.run(bare_root, "vae", *few, "--trainer.callbacks", kill)
    assert not mixture_of(path) and not teachable
    tiny.run(bare_root, "vae", *few, "--ckpt_path", "last")
    first = mixture_of(path)
    assert first and teachable == [((64, 2, 4), 2, 0)]  # 64 images and their mirror images
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("prior: ")]
    assert re.search(r"standard \S+ nats, fitted \S+ nats, learned \S+ nats", line)

    assert math.isfinite(json.loads(path.with_name("metrics.json").read_text())["val/rate_learned"])

    gan = tiny.run(bare_root, "gan", "--model.budget", str(tiny.BATCH)) / "last.ckpt"
    assert same(mixture_of(gan), first) and len(teachable) == 1
    net = PyramidConfig((8, 8), patch=4)
    module = GANModule(str(trained.vae / "last.ckpt"), 32, net, net)  # its stage 1 has none
    card, state = read_checkpoint(gan)
    module.check(card, state, str(gan))
    module.load_state_dict(state)
    assert same(substate(module.state_dict(), "prior."), substate(state, "prior."))

    tiny.run(bare_root, "vae", *few, "--ckpt_path", "last", "--model.budget", str(tiny.BUDGET + tiny.BATCH))
    assert len(teachable) == 2 and mixture_of(path).keys() == first.keys() and not same(mixture_of(path), first)


def test_no_components_no_learned_prior(trained, teachable, bare_root):
    folder = tiny.run(bare_root, "vae", "--model.prior_components", "0", "--model.budget", str(tiny.BATCH))
    assert not mixture_of(folder / "last.ckpt") and not teachable
    with pytest.raises(InputError, match=r"prior_components \(-1\)"):
        VAEModule(32, prior_components=-1)


# --- fitted in any case

VALIDATIONS = {  # of two legs: none, the second alone, none
    "off": ("--trainer.limit_val_batches", "0"),
    "every second": ("--trainer.check_val_every_n_epoch", "2"),
    "every fourth": ("--trainer.check_val_every_n_epoch", "4"),
}


def prior_of(path: Path) -> dict[str, Tensor]:
    """Return the prior's state in a checkpoint."""
    return substate(read_checkpoint(path)[1], "prior.")


@pytest.mark.parametrize("validations", VALIDATIONS.values(), ids=VALIDATIONS)
def test_the_prior_is_fitted_at_the_end_whether_a_validation_ran_or_not(trained, bare_root, monkeypatch, validations):
    fits, fit = [], LatentPrior.fit
    monkeypatch.setattr(LatentPrior, "fit", lambda prior, *moments: fits.append(1) or fit(prior, *moments))
    folder = tiny.run(bare_root, "vae", *validations)
    assert len(fits) == 1 and same(prior_of(folder / "last.ckpt"), prior_of(trained.vae / "last.ckpt"))


def test_a_run_that_its_trainer_ends_has_a_fitted_prior_and_learns_none(teachable, bare_root):
    folder = tiny.run(bare_root, "vae", "--trainer.max_steps", "3")
    pipeline = load_pipeline(folder / "last.ckpt")[1]
    assert pipeline.priors == ("standard", "fitted") and not teachable
    with pytest.raises(InputError, match="has standard, fitted; stage 1 learns it when its budget is seen"):
        pipeline.draw(0, range(2), "learned")


def test_a_signal_in_the_last_step_still_leaves_a_fitted_prior(trained, bare_root):
    send = {"class_path": "tests.tiny.Send", "init_args": {"images": tiny.BUDGET, "name": "SIGTERM"}}
    folder = tiny.run(bare_root, "vae", *VALIDATIONS["off"], f"--trainer.callbacks={json.dumps([send])}")
    assert same(prior_of(folder / "last.ckpt"), prior_of(trained.vae / "last.ckpt"))


def test_a_checkpoint_from_before_the_first_fit_offers_none_and_says_so(bare_root, capsys):
    off = VALIDATIONS["off"]
    assert tiny.stopped(bare_root, "vae", "Send", tiny.LEG + tiny.BATCH, *off, name="SIGTERM") == 143
    path = bare_root / "runs/mine/last.ckpt"
    assert load_pipeline(path)[1].priors == ("standard",)
    sample.main([str(path), "--n", "2", "--out", "a.npz", "--row", "mean", "--export", "a.safetensors"])
    sample.main([str(path), "--n", "2", "--out", "b.npz", "--row", "mean", "--prior", "standard"])
    assert (bare_root / "a.npz").read_bytes() == (bare_root / "b.npz").read_bytes()
    for file in (path, "a.safetensors"):
        line = tiny.error_of(capsys, lambda file=file: sample.main([str(file), "--prior", "fitted", "--out", "c.png"]))
        assert f"prior fitted: {file} has standard; it was not fitted yet" in line
    tiny.run(bare_root, "gan", "--model.vae", str(path), "--model.budget", str(tiny.BATCH), *off)
    assert load_pipeline(bare_root / "runs/gan/last.ckpt")[1].priors == ("standard",)


REASONS = {
    "images": ((), "stage 1 had 64 of the 1,000 images that a mixture is learned from"),
    "components": (("--model.prior_components", "0"), "stage 1 was trained with prior_components 0"),
}


@pytest.mark.parametrize(("options", "said"), REASONS.values(), ids=REASONS)
def test_the_reason_why_none_was_learned_travels_in_checkpoint_and_export(bare_root, capsys, options, said):
    path = tiny.run(bare_root, "vae", "--model.budget", str(tiny.BATCH), *options, *VALIDATIONS["off"]) / "last.ckpt"
    sample.main([str(path), "--export", "a.safetensors"])
    stage_2 = tiny.run(bare_root, "gan", "--model.budget", str(tiny.BATCH), *VALIDATIONS["off"]) / "last.ckpt"
    for file in (path, "a.safetensors", stage_2):
        line = tiny.error_of(capsys, lambda file=file: sample.main([str(file), "--prior", "learned", "--out", "c.png"]))
        assert f"prior learned: {file} has standard, fitted; {said}" in line
