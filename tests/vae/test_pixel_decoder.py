"""The decoder of PixelVAE: which pixels a pixel depends on, drawing against scoring, the Gaussian special case."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import yaml
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian
from degrain.models.inference.checkpoint import Card
from degrain.models.inference.pipeline import Pipeline
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.likelihood import log_bin_probability
from degrain.models.vae.network import VAE, PixelDecoder
from degrain.models.vae.pixel_decoder import CausalConv, PixelConfig, coloured, eight_bit_draw
from tests.training.recipes import CONFIGS
from tests.vae.test_networks import CONFIG, photographs, shaken

PIXELS = replace(CONFIG, pixels=PixelConfig(2, 6, 3))


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> PixelDecoder:
    """Return a decoder with changed weights, in float64."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # its output
    net = shaken(VAE(32, PIXELS)).decoder.double()
    for weights in net.pixels.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    return net


def codes(batch: int) -> Tensor:
    return torch.randn(batch, 5, dtype=torch.float64)


# --- which pixels a pixel depends on


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 31), (7, 12), (31, 0), (31, 31)])
@pytest.mark.parametrize("colour", range(3))
def test_a_pixel_knows_what_came_before_alone(decoder, row, column, colour):
    x, z = photographs(32, 1).double().requires_grad_(), codes(1).requires_grad_()
    p = decoder(z, x)
    before = torch.arange(32 * 32 * 3) < 3 * (32 * row + column) + colour  # raster order, then red, green, blue
    for value in (p.mean, p.logstd):
        by_x, by_z = torch.autograd.grad(value[0, colour, row, column], (x, z), retain_graph=True)
        assert by_x[0].permute(1, 2, 0).flatten()[~before].eq(0).all() and by_z.ne(0).all()
    (by_x,) = torch.autograd.grad(p.mean[0, colour, row, column], x)
    assert all(by_x[0, :colour, row, column] != 0)
    near = [(row, column - 1), (row - 1, column), (row - 1, column + 1), (row - 2, column - 2)]
    assert all(by_x[0, :, r, c].ne(0).all() for r, c in near if 0 <= r and 0 <= c < 32)


def test_a_causal_convolution_at_a_pixel_is_that_of_the_image():
    conv, x = CausalConv(3, 4, 2, itself=True), torch.randn(2, 3, 6, 6)
    whole = conv(x)
    at = torch.stack([conv.at(conv.padded(x), r, c) for r, c in product(range(6), range(6))], -1)
    torch.testing.assert_close(at.reshape(whole.shape), whole)


def test_slopes_are_what_a_colour_gains_by_the_colours_before():
    p, x = Gaussian(torch.rand(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)), torch.rand(2, 3, 4, 4)
    a, b, c = 0.5, -0.25, 2.0
    got = coloured(p, torch.tensor([a, b, c])[None, :, None, None].expand_as(x), x).mean
    green = p.mean[:, 1] + a * (x[:, 0] - p.mean[:, 0])
    blue = p.mean[:, 2] + b * (x[:, 0] - p.mean[:, 0]) + c * (x[:, 1] - green)
    torch.testing.assert_close(got, torch.stack([p.mean[:, 0], green, blue], 1))


# --- drawing


def test_an_image_is_scored_as_it_was_drawn(decoder):
    z, noise = codes(2), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        x, p = decoder.draw(z, noise)
        forced = decoder(z, x)
    torch.testing.assert_close((255 * x).round() / 255, x, rtol=0, atol=1e-12)
    assert len(x.unique()) > 50
    torch.testing.assert_close((p.mean, p.logstd), (forced.mean, forced.logstd))
    got, want = (log_bin_probability(scored, x).sum((1, 2, 3)) for scored in (p, forced))
    torch.testing.assert_close(got, want)
    off_the_ends = (x > 0) & (x < 1)
    assert (x - p.sample(noise))[off_the_ends].abs().max() <= 0.5 / 255 + 1e-9  # by the noise that was passed in


def test_levels_are_drawn_as_often_as_they_are_likely():
    p = Gaussian(torch.tensor([0.004, 0.5, 0.99]).double(), torch.tensor([0.003, 0.002, 0.01]).double().log())
    noise = torch.randn(100_000, 3, generator=torch.Generator().manual_seed(0)).double()
    drawn = (255 * eight_bit_draw(p, noise)).round().long()
    grid = torch.arange(256).double()[:, None] / 255
    likely = log_bin_probability(Gaussian(p.mean.expand(256, 3), p.logstd.expand(256, 3)), grid.expand(256, 3)).exp()
    often = torch.stack([drawn[:, i].bincount(minlength=256) for i in range(3)], 1) / len(noise)
    torch.testing.assert_close(often.double(), likely, rtol=0, atol=0.008)


def test_a_drawn_image_depends_on_seed_and_number_alone():
    torch.manual_seed(1)
    pipeline = Pipeline(shaken(VAE(32, PIXELS)), LatentPrior(5))
    assert pipeline.rows == ("sample",)
    whole, one, other = (pipeline.draw(*which)["sample"] for which in ((7, range(4)), (7, range(2, 3)), (8, range(1))))
    assert (one[0] != whole[2]).float().mean() < 0.01  # a sum in another order, at the edge of a bin
    assert (other[0] != whole[0]).float().mean() > 0.9


# --- where it is Gaussian


def test_a_new_stack_leaves_the_decoder_as_it_was():
    plain, net = shaken(VAE(32, CONFIG)).decoder, VAE(32, PIXELS).decoder
    state, rows = plain.state_dict(), len(plain.layers[-2].weight)
    for name, value in net.state_dict().items():
        if name in state:
            value[: len(state[name])] = state[name]
    assert len(net.layers[-2].weight) > rows  # the channels of the context come last
    z, noise = torch.randn(2, 5), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        want, got = plain(z), net(z, photographs(32))
        x, _ = net.draw(z, noise)
    torch.testing.assert_close((got.mean, got.logstd), (want.mean, want.logstd))
    assert (x != eight_bit_draw(want, noise)).float().mean() < 1e-3  # rounding at the edge of a bin


# --- configs


def test_the_decoder_of_the_config_has_at_most_two_million_parameters():
    net = dict(yaml.safe_load((CONFIGS / "vae_celeba64.yaml").read_text())["model"]["init_args"]["net"])
    net |= yaml.safe_load((CONFIGS / "pixelvae.yaml").read_text())["model"]["init_args"]["net"]
    with torch.device("meta"):
        vae = VAE(32, Card("vae", 32, 0, net).vae_config())
    assert vae.pixel_by_pixel and sum(weights.numel() for weights in vae.decoder.parameters()) <= 2_000_000


@pytest.mark.parametrize("pixels", [PixelConfig(-1), PixelConfig(2, 0), PixelConfig(2, 8, 0)], ids=str)
def test_nonsense_is_refused(pixels):
    with pytest.raises(InputError, match="blocks, width and context must be at least 1"):
        VAE(32, replace(CONFIG, pixels=pixels))
