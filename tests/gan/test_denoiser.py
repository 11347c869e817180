"""The denoiser and its discriminator: new weights, the std's floor, draws, one training step."""

import pytest
import torch
from torch import nn

from degrain.models.gan.denoiser import Denoiser
from degrain.models.gan.discriminator import Discriminator
from degrain.models.gan.objective import discriminator_objective, generator_objective
from tests.vae.test_networks import CONFIG, TINY, distribution, shaken


@pytest.mark.parametrize("size", [128, 256])
def test_a_training_step_of_the_gan(size):
    denoiser, discriminator, p = shaken(Denoiser(size, TINY)), shaken(Discriminator(size, TINY)), distribution(size)
    real, noise = torch.randn_like(p.mean), torch.randn_like(p.mean)
    fake = (denoiser(noise, p) - p.mean) / p.std
    discriminator_objective(discriminator, "relativistic", real, fake, p, 1.0)[0].backward()
    discriminator.requires_grad_(False)
    generator_objective(discriminator, "relativistic", real, fake, p)[0].backward()
    gradients = {
        f"{net._get_name()}.{name}": w.grad for net in (denoiser, discriminator) for name, w in net.named_parameters()
    }
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    # The pairing sees differences of logits alone, so that D's last bias cancels; all else learns.
    idle = {name for name, gradient in gradients.items() if gradient.abs().max() < 1e-7}
    assert idle <= {f"Discriminator.layers.{len(discriminator.layers) - 1}.bias"}


@pytest.mark.parametrize("noise", [True, False])
def test_a_new_denoiser_gives_the_draw_or_without_noise_the_mean(noise):
    p = distribution(64)
    eps = torch.randn_like(p.mean)
    expected = p.sample(eps) if noise else p.mean
    torch.testing.assert_close(Denoiser(64, TINY, noise)(eps, p), expected, rtol=0, atol=0.02)


def test_the_denoiser_is_deterministic_where_the_std_is_at_its_floor():
    denoiser, p = Denoiser(64, TINY), distribution(64)
    nn.init.kaiming_normal_(denoiser.head[1].weight, nonlinearity="linear")  # residuals of about one std
    p.logstd[..., :32] = torch.tensor(CONFIG.std_floor).log()
    with torch.no_grad():
        change = (denoiser(torch.randn_like(p.mean), p) - denoiser(torch.randn_like(p.mean), p)).abs()
    assert change[..., :32].max() < 10 * CONFIG.std_floor < change[..., 32:].mean()


def test_draws_equal_separate_calls():
    denoiser, p = shaken(Denoiser(32, TINY)), distribution(32, batch=3)
    noise = torch.randn(4, *p.mean.shape)
    torch.testing.assert_close(denoiser.draws(noise, p), torch.stack([denoiser(n, p) for n in noise]))
