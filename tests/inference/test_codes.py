"""Codes and paths between them: temperature and noise apart, arcs, latents one at a time, what a latent tells."""

import math

import numpy as np
import pytest
import torch

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian
from degrain.models.gan.generator import Generator, GeneratorConfig
from degrain.models.inference.codes import Codes, clarity, information, interpolate, spherical, traverse
from degrain.models.inference.pipeline import Pipeline, PlainPipeline
from degrain.models.inference.variations import variations
from degrain.models.vae.latent_prior import Mixture
from tests.inference.test_checkpoint import small_pipeline


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    pipeline = small_pipeline(True)
    spread = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    pipeline.prior.fit(torch.arange(5.0), spread @ spread.T + torch.eye(5))
    pipeline.prior.mixture = Mixture(2, 5)
    pipeline.prior.mixture.means += torch.tensor([[0.5], [-1.0]])
    return pipeline


def photographs(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prior", ["standard", "fitted", "learned"])
def test_temperature_scales_z_around_the_mean_of_the_prior_and_leaves_the_noise(pipeline, prior):
    centre = pipeline.prior.mean * (prior != "standard")
    whole, half = (pipeline.codes(3, range(4), prior, temperature) for temperature in (1, 0.5))
    torch.testing.assert_close(half.z - centre, 0.5 * (whole.z - centre))
    assert torch.equal(half.noise, whole.noise)
    assert torch.equal(pipeline.codes(3, range(1), prior, 0).z[0], centre)


def test_noise_scales_the_pixels_and_leaves_z(pipeline):
    whole, none = (pipeline.draw(3, range(2), noise=noise) for noise in (1, 0))
    assert torch.equal(none["sample"], none["mean"]) and torch.equal(none["mean"], whole["mean"])
    twice = pipeline.draw(3, range(2), noise=2)
    torch.testing.assert_close(twice["sample"] - twice["mean"], 2 * (whole["sample"] - whole["mean"]))
    assert not torch.equal(none["denoised"], whole["denoised"])


def test_temperature_scales_z_around_the_posterior_of_a_photograph(pipeline):
    x = photographs(2)
    q = pipeline.vae.encode(x)
    assert torch.equal(pipeline.codes_of(0, range(2), x, temperature=0).z, q.mean)
    z = pipeline.codes_of(0, range(2), x).z
    torch.testing.assert_close(pipeline.codes_of(0, range(2), x, temperature=2).z - q.mean, 2 * (z - q.mean))


def test_best_of_draws_that_code_of_several_whose_mean_stands_clearest_beside_its_std(pipeline):
    whole, chosen = pipeline.codes(3, range(12), temperature=2), pipeline.codes(3, range(4), temperature=2, best_of=3)
    p = pipeline.vae.decode(whole.z)
    mean, std = p.mean[:, :, 8:24, 8:24], p.std[:, :, 8:24, 8:24]
    down, across = mean.diff(dim=2).abs()[..., :-1], mean.diff(dim=3).abs()[:, :, :-1]
    clarity = ((down + across) / std[:, :, :-1, :-1]).flatten(1).mean(1)
    best = [max(range(3 * i, 3 * i + 3), key=clarity.tolist().__getitem__) for i in range(4)]
    assert len({number % 3 for number in best}) > 1
    torch.testing.assert_close(chosen.z, whole.z[best])
    assert torch.equal(chosen.noise, whole.noise[:4])
    alone = Codes.joined([pipeline.codes(3, [i], temperature=2, best_of=3) for i in (2, 0)])
    torch.testing.assert_close(alone.z, whole.z[[best[2], best[0]]])
    assert torch.equal(pipeline.codes(3, range(4), best_of=1).z, pipeline.codes(3, range(4)).z)
    drawn = pipeline.draw(3, range(2), temperature=2, best_of=3)
    assert torch.equal(drawn["mean"], variations(pipeline, 3, range(2), 2, temperature=2, best_of=3)["mean"])
    torch.testing.assert_close(drawn["mean"], pipeline.vae.decode(whole.z[best[:2]]).mean)


def test_best_of_chooses_in_float32_also_of_a_pipeline_in_bf16_and_in_batches(pipeline, monkeypatch):
    want, decode, seen = pipeline.codes(5, range(20), best_of=4).z, pipeline.vae.decode, []

    def watched(z: torch.Tensor) -> Gaussian:
        seen.append((len(z), z.dtype, torch.is_autocast_enabled("cpu")))
        return decode(z)

    monkeypatch.setattr(pipeline.vae, "decode", watched)
    monkeypatch.setattr(pipeline, "_bf16", True)
    torch.testing.assert_close(pipeline.codes(5, range(20), best_of=4).z, want)
    assert seen == [(size, torch.float32, False) for size in (32, 32, 16)]


def test_clarity_is_of_the_middle_in_units_of_the_std():
    mean = torch.zeros(2, 3, 32, 32)
    mean[0] = torch.arange(32) * 0.01  # across; down it is flat
    mean[1, :, :8] = torch.rand(3, 8, 32)  # above the middle
    mean[1, :, 8] = 0.1  # its first line, and one step down from it in 15 lines
    std = torch.full_like(mean, 0.05)
    torch.testing.assert_close(clarity(Gaussian(mean, std.log())), torch.tensor([0.2, 2 / 15]))


@pytest.mark.parametrize("std", ["shared", "fixed"])
def test_best_of_needs_a_std_that_depends_on_z(std):
    pipeline = small_pipeline(False, std)
    with pytest.raises(InputError, match="^best_of 2: chooses by the std that each pixel has given z"):
        pipeline.codes(0, range(2), best_of=2)
    assert pipeline.codes(0, range(2), best_of=1).z.shape == (2, 5)


@pytest.mark.parametrize("count", [0, -1, 1.5, None, 1001])
def test_best_of_is_a_number_of_draws(pipeline, count):
    with pytest.raises(InputError, match=f"^best_of {count}: must be an integer from 1 to 1,000"):
        pipeline.codes(0, range(2), best_of=count)


@pytest.mark.parametrize("count", [torch.tensor(100), np.int8(100), np.uint8(100)])
def test_best_of_is_an_integer_of_any_library(pipeline, count):
    assert torch.equal(pipeline.codes(0, range(2), best_of=count).z, pipeline.codes(0, range(2), best_of=100).z)


def test_best_of_draws_have_numbers_of_63_bits(pipeline):
    last = 2**62 - 1  # of two: 2^63 - 2 and 2^63 - 1
    one = pipeline.codes(0, [last], best_of=2).z
    assert any(torch.equal(one, pipeline.codes(0, [2**63 - number]).z) for number in (1, 2))
    with pytest.raises(InputError, match=f"^number of an image {2**62}: must be below 2.63 / 2, with best_of 2"):
        pipeline.codes(0, [0, 2**62], best_of=2)


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf, None, "1"])
@pytest.mark.parametrize("name", ["temperature", "noise"])
def test_a_scale_is_a_finite_number_from_0_on(pipeline, name, scale):
    with pytest.raises(InputError, match=f"^{name} .*: must be a number from 0 to 1,000"):
        pipeline.draw(0, range(1), **{name: scale})


def test_an_arc_between_independent_draws_keeps_their_distance_from_0():
    a, b = torch.randn(2, 3, 20_000, generator=torch.Generator().manual_seed(0)).double()
    for t in (0.0, 0.25, 0.5, 1.0):
        x = spherical(a, b, torch.full((3,), t))
        assert torch.allclose(x.square().mean(1), torch.ones(3).double(), atol=0.05)
    assert torch.allclose(spherical(a, b, torch.zeros(3)), a) and torch.allclose(spherical(a, b, torch.ones(3)), b)


def test_an_arc_has_equal_angles_and_is_straight_where_there_is_none():
    a, b = torch.eye(2).double()[:1], torch.eye(2).double()[1:]
    for t in (0.1, 0.7):
        want = torch.tensor([[math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)]]).double()
        torch.testing.assert_close(spherical(a, b, torch.tensor([t])), want)
    for end in (3 * a, -a, 0 * a):
        torch.testing.assert_close(spherical(a, end, torch.tensor([0.25])), 0.75 * a + 0.25 * end)


def test_a_path_begins_and_ends_with_its_codes(pipeline):
    codes = pipeline.codes(0, range(4))
    for t, ends in ((0, codes[:2]), (1, codes[2:])):
        got = interpolate(codes[:2], codes[2:], torch.full((2,), float(t)), pipeline.prior)
        torch.testing.assert_close(got.z, ends.z, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got.noise, ends.noise, atol=1e-4, rtol=1e-4)
    got = interpolate(codes[:2], codes[2:], torch.full((2,), 0.5), pipeline.prior)
    ends = [pipeline.prior.whitened(part.z) for part in (codes[:2], codes[2:])]
    torch.testing.assert_close(pipeline.prior.whitened(got.z), spherical(*ends, torch.full((2,), 0.5)))


def test_a_traversal_moves_one_latent_in_its_std(pipeline):
    codes = pipeline.codes(0, range(3))
    moved = traverse(codes, torch.tensor([4, 0, 1]), torch.tensor([-2.0, 0.0, 1.0]), pipeline.prior)
    covariance = pipeline.prior.cholesky @ pipeline.prior.cholesky.T
    want = codes.z.clone()
    want[0, 4] = 4 - 2 * covariance[4, 4].sqrt()
    want[1, 0] = 0
    want[2, 1] = 1 + covariance[1, 1].sqrt()
    torch.testing.assert_close(moved.z, want)
    assert torch.equal(moved.noise, codes.noise)


def test_information_is_that_of_a_gaussian_channel(pipeline):
    """Of z = c s + w e with s the image's and e ~ N(0, 1) it is log(1 + c^2 / w^2) / 2, the formula of Shannon."""

    class Channel:
        config = pipeline.vae.config

        def encode(self, x: torch.Tensor) -> "Channel":
            self.signal = x
            return self

        def sample(self, noise: torch.Tensor) -> torch.Tensor:
            return torch.tensor([2.0, 1.0, 0.1, 0.0, 0.5]) * self.signal + torch.tensor([0.5, 1, 1, 1, 0.1]) * noise

    signal = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(2))
    want = torch.tensor([0.5 * math.log(1 + ratio**2) for ratio in (4, 1, 0.1, 0, 5)])
    torch.testing.assert_close(information(Channel(), signal.split(5000)).float(), want, atol=0.02, rtol=0.02)


def test_variations_are_of_the_codes_of_draws_and_photographs(pipeline):
    x = photographs(2)
    rows = variations(pipeline, 0, range(2), 3, temperature=0.5)
    assert torch.equal(rows["mean"], pipeline.draw(0, range(2), temperature=0.5)["mean"])
    stack = torch.stack([rows[f"denoised {k}"] for k in (1, 2, 3)])
    assert torch.equal(rows["std of denoised"], stack.std(0)) and (rows["std of denoised"] > 0).any()
    assert torch.equal(variations(pipeline, 0, range(2), 2, x)["mean"], pipeline.reconstruct(0, range(2), x)["mean"])
    still = variations(pipeline, 0, range(2), 2, noise=0)
    assert torch.equal(still["denoised 1"], still["denoised 2"])


def test_a_plain_gan_has_codes_without_noise():
    networks = PlainPipeline(Generator(32, GeneratorConfig((8, 8), patch=4, latent=4)))
    codes = networks.codes(0, range(2))
    assert codes.noise.shape == (2, 0)
    assert torch.equal(networks.codes(0, range(2), temperature=0.5).z, 0.5 * codes.z)
    middle = interpolate(codes[:1], codes[1:], torch.tensor([0.5]), networks.prior)
    torch.testing.assert_close(middle.z, spherical(codes.z[:1], codes.z[1:], torch.tensor([0.5])))
    assert networks.render(*middle)["generated"].shape == (1, 3, 32, 32)


def test_codes_are_selected_and_joined(pipeline):
    codes = pipeline.codes(0, range(3))
    joined = Codes.joined([codes[[2]], codes[:2]])
    assert torch.equal(joined.z, codes.z[[2, 0, 1]]) and torch.equal(joined.noise, codes.noise[[2, 0, 1]])
    assert Codes.joined([codes]) is codes and len(codes) == 3
