"""The model from Python: what sample.py draws, codes and images, gradients only where an input asks, clear refusals."""

import doctest
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import degrain
from degrain import api
from degrain.models.gan.generator import Generator, GeneratorConfig
from degrain.models.inference.checkpoint import Card
from degrain.models.inference.pictures import to_uint8
from degrain.models.inference.pipeline import Pipeline, PlainPipeline
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.network import VAE
from degrain.models.vae.pixel_decoder import PixelConfig
from tests.conftest import Trained
from tests.inference.test_bad_calls import refusal
from tests.inference.test_checkpoint import small_pipeline
from tests.test_sample import ROWS, images
from tests.vae.test_networks import CONFIG, photographs

ROOT = Path(__file__).parent.parent.parent


def model_of(networks: Pipeline | PlainPipeline) -> degrain.Model:
    return degrain.Model(Card("gan", 32, 0, {}), networks)


@pytest.fixture(scope="module")
def model(trained: Trained) -> degrain.Model:
    return degrain.load(trained.gan / "last.ckpt", device="cpu")


@pytest.fixture(scope="module")
def stage_1() -> degrain.Model:
    return model_of(small_pipeline(False))


@pytest.fixture(scope="module")
def plain() -> degrain.Model:
    return model_of(PlainPipeline(Generator(32, GeneratorConfig((8, 8), patch=4, latent=4))))


def test_its_docstring_is_true(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert doctest.testmod(api) == (0, 11)


def test_the_names_of_the_package_exist():
    assert all(getattr(degrain, name).__name__ == name for name in degrain.__all__)
    assert set(degrain.__all__) <= set(dir(degrain)) and set(degrain.HOMES) == set(degrain.__all__)
    with pytest.raises(AttributeError, match="module 'degrain' has no attribute 'laod'"):
        _ = degrain.laod


# --- sample


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_sample_draws_what_sample_py_draws(trained, stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = getattr(trained, stage) / "last.ckpt"
    drawn = degrain.load(checkpoint, "cpu").sample(35, seed=7)
    assert list(drawn.rows) == ROWS[stage] and len(drawn) == 35
    for row in set(ROWS[stage]) - {"std"}:
        assert np.array_equal(to_uint8(drawn.rows[row]), images(checkpoint, "--n", "35", "--seed", "7", "--row", row))
    near = degrain.load(checkpoint, "cpu", precision="bf16").sample(2).mean
    assert np.array_equal(to_uint8(near), images(checkpoint, "--n", "2", "--row", "mean", "--precision", "bf16"))


def test_the_first_number_and_the_prior_can_be_chosen(model):
    whole = model.sample(5, seed=3)
    for name, row in model.sample(3, seed=3, first=2, batch_size=2).rows.items():
        torch.testing.assert_close(row, whole.rows[name][2:], atol=1e-5, rtol=0)
    assert not torch.equal(model.sample(5, seed=4).mean, whole.mean)
    assert not torch.equal(model.sample(5, seed=3, prior="standard").mean, whole.mean)
    assert torch.equal(model.sample(5, seed=3, prior=model.priors[-1]).mean, whole.mean)


def test_a_plain_gan_samples_and_does_nothing_else(plain):
    assert torch.equal(plain.sample(3).generated, plain.networks.draw(0, range(3))["generated"])
    assert (plain.latents, plain.rows, plain.priors) == (4, ("generated",), ("standard",))
    for call in (plain.encode, plain.decode, plain.denoise, plain.reconstruct):
        assert refusal(lambda call=call: call(None)) == "a plain GAN has no VAE and no denoiser: it can only sample"


def test_a_pixel_vae_samples_and_reconstructs():
    config = replace(CONFIG, pixels=PixelConfig(1))
    model = model_of(Pipeline(VAE(32, config), LatentPrior(CONFIG.latent)))
    assert list(model.sample(1).rows) == ["sample"]
    assert list(model.reconstruct(photographs(32, 1)).rows) == ["photograph", "sample"]
    assert "pixels of a PixelVAE depend on each other" in refusal(lambda: model.decode(torch.zeros(1, 5)))


# --- codes and images


def test_encode_decode_and_denoise_are_the_steps_of_reconstruct(model):
    x = photographs(32, 3)
    whole, q = model.reconstruct(x, seed=2), model.encode(x)
    numbers = torch.arange(3)
    latent, noise = model.networks.latent_noise(2, numbers, 2), model.networks.pixel_noise(2, numbers, 3)
    p = model.decode(q.sample(latent))
    assert torch.equal(whole.photograph, x)
    assert torch.equal(whole.mean, p.mean) and torch.equal(whole.std, p.std)
    assert torch.equal(whole.sample, p.sample(noise))
    torch.testing.assert_close(model.denoise(p, p.sample(noise)), whole.denoised, atol=1e-5, rtol=0)
    for name, row in model.networks.reconstruct(2, range(3), x).items():
        assert torch.equal(whole.rows[name], row)


def test_a_reconstruction_depends_on_seed_and_number_alone(model):
    x = photographs(32, 5)
    whole = model.reconstruct(x, seed=1, first=4)
    for name, row in model.reconstruct(x[2:], seed=1, first=6, batch_size=2).rows.items():
        torch.testing.assert_close(row, whole.rows[name][2:], atol=1e-5, rtol=0)


def test_denoise_draws_by_seed_as_sample_does(model):
    drawn = model.sample(4, seed=5)
    z = model.codes(4, seed=5)
    assert torch.equal(model.denoise(model.decode(z), seed=5), drawn.denoised)
    torch.testing.assert_close(
        model.denoise(model.decode(z[1:]), seed=5, first=1), drawn.denoised[1:], atol=1e-5, rtol=0
    )


def test_variations_share_z_and_mean(model):
    made = model.variations(3, seed=2, count=2, batch_size=2)
    assert list(made.rows) == ["mean", "denoised 1", "denoised 2", "std of denoised", "std"]
    torch.testing.assert_close(made.mean, model.sample(3, seed=2).mean, atol=1e-5, rtol=0)
    assert not torch.equal(made.rows["denoised 1"], made.rows["denoised 2"])
    x = photographs(32, 3)
    of_photographs = model.variations(photographs=x, seed=2, count=2, batch_size=2)
    torch.testing.assert_close(of_photographs.mean, model.reconstruct(x, seed=2).mean, atol=1e-5, rtol=0)


def test_best_of_chooses_the_z_of_each_image(model):
    z, best = model.codes(6, seed=5), model.codes(2, seed=5, best_of=3)
    assert all(any(torch.equal(best[i], z[3 * i + k]) for k in range(3)) for i in range(2))
    torch.testing.assert_close(model.sample(2, seed=5, best_of=3).mean, model.decode(best).mean)


def test_numbers_are_integers_of_any_library(model):
    first, count, two = np.int8(100), np.uint8(40), torch.tensor(2)
    assert torch.equal(model.codes(count, first=first), model.codes(40, first=100))
    x, p = photographs(32, 40), model.decode(model.codes(40))
    want = model.reconstruct(x, first=100, batch_size=32)
    assert torch.equal(model.reconstruct(x, first=first, batch_size=np.int8(32)).denoised, want.denoised)
    assert torch.equal(model.denoise(p, first=first), model.denoise(p, first=100))
    images = model.variations(photographs=x, first=first, count=two, batch_size=16)
    assert torch.equal(images.mean, model.variations(photographs=x, first=100, count=2, batch_size=16).mean)
    assert want.show(np.int8(16), np.int8(3)).size == want.show(16, 3).size


def test_temperature_and_noise_are_scales(model):
    cold, x = model.sample(2, temperature=0, noise=0), photographs(32)
    assert torch.equal(cold.mean[0], cold.mean[1]) and torch.equal(cold.sample, cold.mean)
    assert torch.equal(model.decode(model.codes(2, temperature=0)).mean, cold.mean)
    cold = model.reconstruct(x, temperature=0, noise=0)
    assert torch.equal(cold.mean, model.decode(model.encode(x).mean).mean) and torch.equal(cold.sample, cold.mean)


def test_bf16_holds_for_every_step(trained):
    model, x = degrain.load(trained.gan / "last.ckpt", "cpu", precision="bf16"), photographs(32)
    whole, p = model.reconstruct(x, temperature=0), model.decode(model.encode(x).mean)
    assert p.mean.dtype == whole.denoised.dtype == torch.float32
    assert torch.equal(p.mean, whole.mean)
    assert model.denoise(p, whole.sample).sub(whole.denoised).abs().max() < 0.02  # bf16, of a noise that is rounded


# --- gradients


def test_nothing_has_gradients_unless_an_input_asks(model):
    x = photographs(32)
    p, q = model.decode(torch.zeros(2, 4)), model.encode(x)
    tensors = [q.mean, q.std, p.mean, p.std, model.denoise(p), *model.sample(2).rows.values()]
    tensors += model.reconstruct(x.clone().requires_grad_()).rows.values()
    assert not any(t.requires_grad for t in tensors) and not model.networks.training
    assert not any(weight.requires_grad for weight in model.networks.parameters())


def test_a_code_that_asks_gets_gradients_through_decoder_and_denoiser(model):
    z = torch.zeros(2, 4, requires_grad=True)
    model.denoise(model.decode(z)).square().sum().backward()
    assert z.grad.isfinite().all() and z.grad.any()
    assert all(weight.grad is None for weight in model.networks.parameters())
    x = photographs(32).requires_grad_()
    model.encode(x).mean.sum().backward()
    assert x.grad.any()


def test_drawn_images_can_train_another_network(model):
    drawn = model.sample(2).denoised  # inference tensors could not
    nn.Conv2d(3, 1, 3)(drawn).sum().backward()


# --- pictures


def test_images_show_as_a_panel(model, tmp_path):
    drawn = model.sample(3)
    panel = drawn.show(columns=2, scale=1)
    assert isinstance(panel, Image.Image) and panel.height > 2 * 4 * 32
    assert drawn._repr_png_().startswith(b"\x89PNG")
    for same in (drawn, drawn.denoised, drawn.denoised[0], torch.zeros(1, 3, 32, 32, requires_grad=True)):
        assert isinstance(model.show(same), Image.Image)
    assert refusal(lambda: drawn.show(columns=0)) == "columns 0: must be at least 1"
    assert refusal(lambda: drawn.show(scale=0.5)) == "scale 0.5: must be an integer, 0 or more"
    broken = degrain.Images({"mean": torch.full((1, 3, 32, 32), torch.nan)})
    assert "values are not finite" in refusal(broken.show)


def test_a_row_that_is_not_there_is_named(stage_1):
    drawn = stage_1.sample(2)
    with pytest.raises(AttributeError, match="no row denoised: these images have mean, std, sample$"):
        _ = drawn.denoised
    assert not hasattr(drawn, "generated") and repr(drawn).startswith("Images(mean (2, 3, 32, 32), std")


# --- refusals

CALLS: dict[str, tuple[Callable[[degrain.Model], Any], str]] = {
    "no images": (lambda m: m.sample(0), "n 0 and batch_size 32: must be at least 1"),
    "no batch": (lambda m: m.sample(2, batch_size=0), "n 2 and batch_size 0: must be"),
    "half an image": (lambda m: m.sample(0.5), "n 0.5: must be an integer"),
    "before the first": (lambda m: m.sample(1, first=-1), "first -1: must be an integer, 0 or more"),
    "no seed": (lambda m: m.sample(1, seed="1"), "seed '1': must be an integer"),
    "no prior": (lambda m: m.sample(1, prior="learnt"), "prior learnt: the checkpoint has standard, fitted"),
    "other codes": (lambda m: m.decode(torch.zeros(2, 7)), "codes z (2, 7): must be (B, 5)"),
    "broken codes": (lambda m: m.decode(torch.full((2, 5), torch.inf)), "codes z: 10 of 10 values are not finite"),
    "no denoiser": (lambda m: m.denoise(m.decode(torch.zeros(1, 5))), "denoise: a model of stage 1 has no denoiser"),
    "no variations": (lambda m: m.variations(1), "variations: this checkpoint has no denoiser"),
    "variations of what": (lambda m: m.variations(), "variations: give either n, of draws, or photographs"),
    "no draws": (lambda m: m.variations(0), "n 0 and batch_size 8: must be at least 1"),
    "variations of both": (lambda m: m.variations(1, photographs=photographs(32)), "variations: give either n, of dr"),
    "no codes": (lambda m: m.codes(0), "numbers range(0, 0): give several numbers of images"),
    "temperature": (lambda m: m.sample(1, temperature=-1), "temperature -1: must be"),
    "best of none": (lambda m: m.sample(1, best_of=0), "best_of 0: must be an integer from 1 to 1,000"),
    "noise": (lambda m: m.reconstruct(photographs(32), noise="loud"), "noise 'loud': must be"),
    "other photographs": (lambda m: m.encode(torch.zeros(2, 32, 32, 3)), "images (2, 32, 32, 3): a tensor must be"),
    "fewer after": (lambda m: m.reconstruct(photographs(32), first=-1), "first -1: must be an integer"),
    "a panel of nothing": (lambda m: m.show(torch.zeros(0, 3, 8, 8)), "images: there are none to show"),
    "a panel of an array": (
        lambda m: m.show(photographs(32).numpy()),
        "images: ndarray; give what a method returned",
    ),
    "a panel of a plane": (lambda m: m.show(torch.zeros(8, 8)), "images (8, 8): must be (B, 3, H, W) or (3, H, W)"),
    "temperature beyond float32": (lambda m: m.sample(1, temperature=1e308), "temperature 1e+308: must be a number"),
    "no device": (lambda m: m.to("gpu"), "device gpu cannot be used: "),
    "no such device": (lambda m: m.to("cuda:99"), "device cuda:99 cannot be used: "),
    "no file": (lambda m: degrain.load("runs/none.ckpt"), "checkpoint runs/none.ckpt: no such file"),
    "precision": (lambda m: degrain.load("runs/none.ckpt", precision="16"), "precision 16: must be '32' or 'bf16'"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_refused_in_a_line(stage_1, name):
    call, said = CALLS[name]
    assert refusal(lambda: call(stage_1)).startswith(said)


def test_a_draw_to_denoise_has_the_shape_of_p(model):
    p = model.decode(torch.zeros(2, 4))
    assert refusal(lambda: model.denoise(p, p.mean[:1])) == "draw (1, 3, 32, 32): must be (2, 3, 32, 32)"
    broken = p.mean.clone()
    broken[0, 0, 0] = torch.nan
    assert refusal(lambda: model.denoise(p, broken)) == "draw: 32 of 6,144 values are not finite"


def test_importing_the_package_imports_no_torch():
    code = "import sys, degrain; print(degrain.__version__, 'load' in dir(degrain), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [degrain.__version__, "True", "False"], done.stderr
