"""Networks of the controls: a denoiser without noise, a discriminator without a condition, a generator from z."""

import math

import pytest
import torch

from degrain.models.core.gaussian import Gaussian
from degrain.models.gan.denoiser import Denoiser
from degrain.models.gan.discriminator import Discriminator
from degrain.models.gan.generator import Generator, GeneratorConfig
from degrain.models.gan.objective import discriminator_objective
from degrain.models.vae.network import VAE, VAEConfig
from tests.benchmarks.memory import parameters
from tests.training.recipes import TINY, plain
from tests.vae.test_networks import distribution, shaken


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
    assert parameters(conditional) - parameters(net) == stem


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


def test_a_plain_gan_is_penalised_by_its_loss():
    x, p, d = torch.randn(2, 3, 32, 32), distribution(32), plain().discriminator
    penalties = {}
    for loss in ("relativistic", "classic"):
        _, terms = discriminator_objective(d, loss, x, x, p, 1.0)
        penalties[loss] = terms.keys() & {"r1", "r2"}
    assert penalties == {"relativistic": {"r1", "r2"}, "classic": {"r1"}}
