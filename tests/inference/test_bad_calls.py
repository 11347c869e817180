"""Calls of the networks with something wrong: one line says what was given and what is possible."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian
from degrain.models.gan.generator import Generator, GeneratorConfig
from degrain.models.inference.pipeline import Pipeline, PlainPipeline, load_pipeline, load_vae
from degrain.models.inference.variations import variations
from degrain.models.vae.network import VAE
from degrain.models.vae.pixel_decoder import PixelConfig
from tests.inference.test_checkpoint import small_pipeline
from tests.vae.test_networks import CONFIG


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return small_pipeline(True)


@pytest.fixture(scope="module")
def plain() -> PlainPipeline:
    return PlainPipeline(Generator(32, GeneratorConfig((8, 8), patch=4, latent=4)))


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    return str(caught.value)


X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PHOTOGRAPHS = {
    "another size": (torch.zeros(2, 3, 64, 64), "images (2, 3, 64, 64): must be (B, 3, 32, 32)"),
    "a small one": (torch.zeros(2, 3, 16, 16), "images (2, 3, 16, 16): must be (B, 3, 32, 32)"),
    "grey": (torch.zeros(2, 1, 32, 32), "images (2, 1, 32, 32): must be (B, 3, 32, 32)"),
    "channels last": (torch.zeros(2, 32, 32, 3), "images (2, 32, 32, 3): must be"),
    "one": (X[0], "images (3, 32, 32): must be (B, 3, 32, 32)"),
    "none": (X[:0], "images (0, 3, 32, 32): must be (B, 3, 32, 32)"),
    "bytes": ((255 * X).byte(), "images of torch.uint8: must be floats in [0, 1]; give x.float() / 255"),
    "doubles": (X.double(), "images of torch.float64: must be torch.float32"),
    "integers": (X.long(), "images of torch.int64: must be torch.float32"),
    "0 to 255": (255 * X, "must lie in [0, 1]"),
    "-1 to 1": (2 * X - 1, "must lie in [0, 1]"),
    "an array": (X.numpy(), "images: ndarray; give a tensor (B, 3, 32, 32)"),
    "a path": ("face.png", "images: str; give a tensor"),
    "elsewhere": (X.to("meta"), "images on meta: the network is on cpu"),
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_what_is_no_photograph_of_the_vae_is_not_encoded(pipeline, name):
    x, said = PHOTOGRAPHS[name]
    assert said in refusal(lambda: pipeline.vae.encode(x))
    assert said in refusal(lambda: pipeline.reconstruct(0, range(2), x))


NUMBERS = {
    "one": (4, "numbers 4: give several numbers of images, such as range(4) or [3, 7]"),
    "none": (range(0), "numbers range(0, 0): give several"),
    "no integer": ([0.5], "number of an image 0.5: must be an integer, 0 or more"),
    "a negative one": (range(-1, 1), "number of an image -1: must be"),
    "a word": ("ab", "number of an image 'a': must be"),
    "a table": (np.zeros((2, 2), int), "number of an image array([0, 0]): must be"),
    "a scalar": (torch.tensor(3), "numbers tensor(3): give several"),
    "nothing": (None, "numbers None: give several"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_of_an_image_is_not_drawn(pipeline, plain, name):
    numbers, said = NUMBERS[name]
    assert said in refusal(lambda: pipeline.draw(0, numbers))
    assert said in refusal(lambda: plain.draw(0, numbers))
    assert said in refusal(lambda: pipeline.reconstruct(0, numbers, X))
    assert said in refusal(lambda: variations(pipeline, 0, numbers, 2))


@pytest.mark.parametrize("seed", [-1, 0.5, None, "0"])
def test_a_seed_is_an_integer(pipeline, plain, seed):
    for networks in (pipeline, plain):
        assert f"seed {seed!r}: must be an integer, 0 or more" in refusal(lambda n=networks: n.draw(seed, range(2)))


def test_numbers_of_any_library_draw_the_same(pipeline):
    wanted = pipeline.draw(3, range(2))["denoised"]
    for numbers in ([0, 1], (0, 1), np.arange(2), torch.arange(2), iter((0, 1))):
        assert torch.equal(pipeline.draw(np.int64(3), numbers)["denoised"], wanted)


def distribution(*shape: int) -> Gaussian:
    return Gaussian(torch.zeros(shape), torch.zeros(shape))


CALLS: dict[str, tuple[Callable[[Pipeline, PlainPipeline], Any], str]] = {
    "prior": (
        lambda p, _: p.draw(0, range(2), "nonsense"),
        "prior nonsense: the checkpoint has standard, fitted; the na",
    ),
    "flow": (lambda p, _: p.draw(0, range(2), "flow"), "prior flow: the checkpoint has standard, fitted; its VAE was"),
    "no codes": (lambda p, _: p.vae.decode(torch.zeros(0, 5)), "codes z (0, 5): must be (B, 5) with at least one"),
    "prior of a plain GAN": (
        lambda _, g: g.draw(0, range(2), "fitted"),
        "prior fitted: the checkpoint has standard; a",
    ),
    "codes": (lambda p, _: p.vae.decode(torch.zeros(2, 7)), "codes z (2, 7): must be (B, 5)"),
    "one code": (lambda p, _: p.vae.decode(torch.zeros(5)), "codes z (5,): must be (B, 5)"),
    "codes, doubles": (
        lambda p, _: p.vae.decode(torch.zeros(2, 5).double()),
        "codes z of torch.float64: must be torch.fl",
    ),
    "codes to render": (lambda p, _: p.render(torch.zeros(2, 7), X), "codes z (2, 7): must be (B, 5)"),
    "noise to render": (
        lambda p, _: p.render(torch.zeros(3, 5), X),
        "noise of the pixels (2, 3, 32, 32): must be (3, 3",
    ),
    "codes of a plain GAN": (lambda _, g: g.generator(torch.zeros(2, 5)), "codes z (2, 5): must be (B, 4)"),
    "noise": (
        lambda p, _: p.denoiser(X[:1], distribution(2, 3, 32, 32)),
        "noise (1, 3, 32, 32): must be (2, 3, 32, 32)",
    ),
    "another p": (
        lambda p, _: p.denoiser(X, distribution(2, 3, 64, 64)),
        "mean of p (2, 3, 64, 64): must be (B, 3, 32",
    ),
    "draws": (
        lambda p, _: p.denoiser.draws(X, distribution(2, 3, 32, 32)),
        "noise (2, 3, 32, 32): must be (K, 2, 3, 32",
    ),
    "too few numbers": (lambda p, _: p.reconstruct(0, range(3), X), "numbers [0, 1, 2]: 3 for 2 photographs"),
    "one variation": (lambda p, _: variations(p, 0, range(2), 1), "variations: count 1 must be at least 2"),
    "no file": (lambda *_: load_pipeline("runs/none/last.ckpt"), "checkpoint runs/none/last.ckpt: no such file"),
    "a folder": (lambda *_: load_vae("tests"), "checkpoint tests: no such file, it is a folder; give the last.ckpt"),
    "no path": (lambda *_: load_vae(None), "checkpoint None: must be a path"),
    "no checkpoint": (lambda *_: load_vae("README.md"), "checkpoint README.md: cannot be read"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_refused_in_a_line(pipeline, plain, name):
    call, said = CALLS[name]
    assert refusal(lambda: call(pipeline, plain)).startswith(said)


def test_stage_1_has_no_variations_and_a_pixel_vae_decodes_with_images():
    assert "has no denoiser" in refusal(lambda: variations(small_pipeline(False), 0, range(2), 2))
    vae = VAE(32, replace(CONFIG, pixels=PixelConfig(1)))
    assert "images x, which a PixelVAE decodes with" in refusal(lambda: vae.decode(torch.zeros(2, 5)))
    assert vae.decode(torch.zeros(2, 5), X).mean.shape == X.shape


def test_values_that_are_not_finite_pass_into_training(pipeline):
    """A step on them is counted and skipped; see test_divergence."""
    x: Tensor = X.clone()
    x[0, 0, 0, 0] = torch.nan
    assert pipeline.vae.encode(x).mean.isnan().any()
