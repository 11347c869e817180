"""Variants of stage 1: what each changes of the gradient and what it leaves alone, and that each of them trains."""

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian, kl_of_moments, kl_to_standard_normal
from degrain.models.training import VAEModule
from degrain.models.vae.likelihood import dequantised, log_bin_probability, log_level_density
from degrain.models.vae.network import VAEConfig
from degrain.models.vae.regulariser import mixture_moments, mmd_in_nats
from tests import tiny
from tests.conftest import Trained
from tests.training.recipes import NET, attached, folder_of_runs, metrics, vae

LIKELIHOODS = {"bin": log_bin_probability, "density": log_level_density}


def photographs(count: int = 6) -> Tensor:
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1)) / 255


def made(monkeypatch: pytest.MonkeyPatch, net: VAEConfig = NET, **settings: Any) -> VAEModule:
    """A module of float64 whose weights are not new, in the same state at every call."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # what networks end in
    module = attached(vae(net, **({"rate_warmup": 0.0} | settings))).double()
    with torch.no_grad():
        for weight in module.vae.parameters():
            weight += 0.05 * torch.randn(weight.shape)
    return module


def gradients(module: VAEModule, half: str) -> dict[str, Tensor]:
    """Of the training loss, by the parameters of the encoder or the decoder."""
    module.vae.zero_grad()
    module.loss(photographs().double(), module.noise())[0].backward()
    return {name: w.grad.clone() for name, w in getattr(module.vae, half).named_parameters()}


def drawn(module: VAEModule, likelihood: str) -> tuple[Gaussian, Tensor, Tensor]:
    """The step's q(z|x), z, and what the likelihood is of, by the module's stream of noise."""
    x, noise = photographs().double(), module.noise()
    q = module.vae.encode(x)
    z = q.sample(noise.normal(*q.mean.shape))
    return q, z, x if likelihood == "bin" else dequantised(x, noise.uniform(*x.shape))


# --- the decoder's gradient


@pytest.mark.parametrize("gradient", ["beta-nll", "faithful"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("std", ["pixel", "shared"])
def test_the_encoder_has_the_elbo_s_gradient_and_the_decoder_the_variant_s(monkeypatch, gradient, likelihood, std):
    settings = {"net": replace(NET, std=std), "likelihood": likelihood}
    plain, module = made(monkeypatch, **settings), made(monkeypatch, **settings, gradient=gradient)
    torch.testing.assert_close(gradients(module, "encoder"), gradients(plain, "encoder"), rtol=1e-9, atol=1e-12)

    decoder, (_, z, x) = module.vae.decoder, drawn(module, likelihood)
    p, parameters = decoder(z.detach()), dict(decoder.named_parameters())
    nll = -LIKELIHOODS[likelihood](p, x) / len(x)
    if gradient == "beta-nll":
        want = torch.autograd.grad((p.std.detach() * nll).sum(), parameters.values())
    else:
        of_mean = torch.autograd.grad(
            (p.mean - x).square().sum() / (2 * len(x)), parameters.values(), retain_graph=True, allow_unused=True
        )
        of_nll = torch.autograd.grad(nll.sum(), parameters.values())
        want = [
            b if name == "shared_logstd" else own_rows_of_the_std(name, a, b, std)
            for name, a, b in zip(parameters, of_mean, of_nll, strict=True)
        ]
    got = gradients(module, "decoder")
    torch.testing.assert_close(got, dict(zip(parameters, want, strict=True)), rtol=1e-9, atol=1e-12)
    assert any(not torch.allclose(value, got[name]) for name, value in gradients(plain, "decoder").items())


def own_rows_of_the_std(name: str, of_mean: Tensor, of_nll: Tensor, std: str) -> Tensor:
    """The squared error's gradient, and in the head's later half, which makes the std, the likelihood's."""
    rows = torch.zeros(len(of_mean), *[1] * (of_mean.ndim - 1))
    if std == "pixel" and len(of_mean) == 6 * 4**2:
        rows[len(of_mean) // 2 :] = 1
    return torch.where(rows > 0, of_nll, of_mean)


@pytest.mark.parametrize("gradient", ["beta-nll", "faithful"])
def test_what_is_logged_is_true_whatever_is_minimised(monkeypatch, gradient):
    modules = made(monkeypatch), made(monkeypatch, gradient=gradient)
    plain, variant = (module.loss(photographs().double(), module.noise())[1] for module in modules)
    torch.testing.assert_close(variant, plain)


# --- the likelihood


def test_the_density_trains_on_dequantised_pixels(monkeypatch):
    module = made(monkeypatch, likelihood="density")
    _, terms = module.loss(photographs().double(), module.noise())
    _, z, x = drawn(module, "density")
    torch.testing.assert_close(terms["distortion"], -log_level_density(module.vae.decode(z), x).sum((1, 2, 3)))


@pytest.mark.parametrize(
    "settings",
    [{"likelihood": "density"}, {"gradient": "faithful"}, {"free_bits": 3.0}, {"regulariser": "mmd"}],
    ids=str,
)
def test_held_out_terms_are_the_same_whatever_is_trained_on(settings):
    x = (255 * photographs()).byte()
    batch = {"image": x, "index": torch.arange(len(x))}
    terms = [attached(vae(**own)).evaluate(batch) for own in ({}, settings)]
    torch.testing.assert_close(*terms, rtol=0, atol=0)


# --- the rate term


def rate_term(module: VAEModule) -> float:
    """What the loss has beside the distortion."""
    loss, terms = module.loss(photographs().double(), module.noise())
    return (loss - terms["distortion"].mean()).item()


def test_free_bits_floor_each_latent_s_kl(monkeypatch):
    module = made(monkeypatch, free_bits=0.4)
    kl = kl_to_standard_normal(drawn(module, "bin")[0]).mean(0)
    assert kl.min() < 0.4 < kl.max()
    assert rate_term(module) == pytest.approx(kl.clamp(min=0.4).sum().item())
    _, terms = module.loss(photographs().double(), module.noise())
    assert terms["rate"].mean().item() == pytest.approx(kl.sum().item())


@pytest.mark.parametrize("regulariser", ["moments", "mmd"])
def test_another_regulariser_takes_the_rate_s_place(monkeypatch, regulariser):
    module = made(monkeypatch, regulariser=regulariser, regulariser_weight=3.0)
    noise = module.noise()
    q = module.vae.encode(photographs().double())
    z = q.sample(noise.normal(*q.mean.shape))
    wants = {"moments": kl_of_moments(*mixture_moments(q)), "mmd": mmd_in_nats(z, noise.normal(*z.shape).double())}
    assert rate_term(module) == pytest.approx(3 * wants[regulariser].item())
    _, terms = module.loss(photographs().double(), module.noise())
    assert terms["regulariser"].item() == pytest.approx(wants[regulariser].item())
    torch.testing.assert_close(terms["rate"], kl_to_standard_normal(q).sum(1))


@pytest.mark.parametrize("regulariser", ["moments", "mmd"])
def test_many_latents_and_few_images_have_a_finite_gradient(regulariser):
    module = attached(vae(replace(NET, latent=64), regulariser=regulariser, rate_warmup=0.0))
    torch.nn.init.constant_(module.vae.encoder.layers[-1].bias[64:], -6)  # posteriors of std 0.002
    module.loss(photographs(), module.noise())[0].backward()
    assert all(w.grad.isfinite().all() for w in module.vae.parameters())


# --- refusals

FIXED, SHARED = replace(NET, std="fixed"), replace(NET, std="shared")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"net": FIXED, "gradient": "beta-nll"}, "gradient beta-nll balances mean and std, and net.std is fixed"),
        ({"net": FIXED, "gradient": "faithful"}, "gradient faithful balances mean and std, and net.std is fixed"),
        ({"rate_weight": 0.5}, r"rate_weight \(0.5\) with net.std pixel: .*falling without bound"),
        ({"net": SHARED, "rate_weight": 2.0}, r"rate_weight \(2.0\) with net.std shared: .*an empty code"),
        ({"net": FIXED, "rate_weight": 0.0}, r"rate_weight \(0.0\) must be positive and finite"),
        ({"net": FIXED, "rate_weight": float("nan")}, r"rate_weight \(nan\) must be positive and finite"),
        ({"free_bits": -0.1}, r"free_bits \(-0.1\) are nats, 0 or more"),
        ({"free_bits": 0.1, "regulariser": "mmd"}, r"free_bits \(0.1\) .*no part of the loss with regulariser mmd"),
        ({"free_bits": 0.1, "regulariser": "moments"}, "no part of the loss with regulariser moments"),
        ({"regulariser_weight": 2.0}, r"regulariser_weight \(2.0\) .*with posterior the weight is rate_weight"),
        ({"regulariser_weight": 0.0, "regulariser": "mmd"}, r"regulariser_weight \(0.0\) must be positive"),
        ({"net": replace(FIXED, std_start=0.001)}, "std_floor 0.002 must lie between 0 and std_start 0.001"),
    ],
    ids=str,
)
def test_contradictions_are_refused_in_one_line(settings, said):
    with pytest.raises(InputError, match=said) as caught:
        vae(**settings)
    assert "\n" not in str(caught.value)


# --- by config


@pytest.fixture(scope="module")
def untrained(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The held-out values of a network that is as good as new."""
    root = folder_of_runs(trained, tmp_path_factory.mktemp("untrained"), stage_1=False)
    return metrics(tiny.run(root, "vae", "--model.budget=8", "--model.learning_rate=1e-9"))


VARIANTS = {
    "shared": ["--model.net.std=shared"],
    "fixed": ["--model.net.std=fixed", "--model.rate_weight=4"],
    "density": ["--model.likelihood=density"],
    "beta-nll": ["--model.gradient=beta-nll"],
    "faithful density": ["--model.gradient=faithful", "--model.likelihood=density"],
    "free bits": ["--model.free_bits=0.5"],
    "moments": ["--model.regulariser=moments", "--model.gradient=beta-nll"],
    "mmd": ["--model.regulariser=mmd", "--model.regulariser_weight=10"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_from_a_config(bare_root, untrained, variant):
    options = ["--model.learning_rate=3e-3", "--model.validate_every=96", *VARIANTS[variant]]
    found = metrics(tiny.run(bare_root, "vae", *options))
    names = found.keys() - {"train/regulariser"}
    assert names == untrained.keys() and ("train/regulariser" in found) == (variant in ("moments", "mmd"))
    assert found["val/bits_per_dimension"] < untrained["val/bits_per_dimension"] - 0.02


@pytest.mark.parametrize(
    "variant", [["--model.net.std=shared", "--model.likelihood=density", "--model.regulariser=mmd"], VARIANTS["fixed"]]
)
def test_a_variant_goes_on_after_a_kill_as_if_nothing_had_happened(bare_root, variant):
    options = [*variant, "--model.budget=32", "--model.validate_every=32", "--checkpoint_minutes=0"]
    whole = tiny.checkpoint(tiny.run(bare_root, "vae", *options))
    shutil.rmtree(bare_root / "runs")
    kill = json.dumps([{"class_path": "tests.tiny.Kill", "init_args": {"images": 24}}])
    with pytest.raises(SystemExit):
        tiny.run(bare_root, "vae", *options, "--trainer.callbacks", kill)
    resumed = tiny.checkpoint(tiny.run(bare_root, "vae", *options, "--ckpt_path=last"))
    assert whole["degrain"] == resumed["degrain"] and whole["state_dict"].keys() == resumed["state_dict"].keys()
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())


def test_a_checkpoint_of_another_std_is_refused(bare_root, capsys):
    tiny.run(bare_root, "vae", "--model.net.std=shared", "--model.budget=8")
    with pytest.raises(SystemExit):
        tiny.run(bare_root, "vae", "--ckpt_path=last")
    assert "its vae.std is shared, the config says pixel" in capsys.readouterr().err
