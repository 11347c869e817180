"""The GAN stage of the toys: the denoiser, the mixture's methods, ensembles, and measures of draws."""

import math

import numpy as np
import pytest
import torch

from degrain.data.gaussian import GaussianVectors, MixtureVectors
from degrain.models.gan.objective import gradient_penalty
from degrain.models.toys import ToyGANModule, ToyMixtureModule
from degrain.models.toys.duel import Duel
from degrain.models.toys.ensemble import EnsembleMLP
from degrain.models.toys.metrics import mixture_quality, wasserstein_to_normal
from tests.toys.tools import steps, train_on


def test_the_denoiser_trains_and_measures(tmp_path):
    module = ToyGANModule(std=[0.7, 1.4], seeds=1, width=8, count=50_000, decay=0.7, **steps(5, 32))
    found = train_on(module, GaussianVectors(std=[1], batch_size=32), tmp_path).metrics()
    assert found["excess_wasserstein_means"] == pytest.approx(math.sqrt(2 / math.pi), abs=0.05)  # collapsed: all at 0
    assert found["excess_wasserstein_samples"] == pytest.approx(0.4 * math.sqrt(2 / math.pi), abs=0.05)
    assert math.isfinite(found["excess_wasserstein_denoised"])
    assert (tmp_path / "denoised.png").exists()


def test_the_denoiser_in_d_dimensions_starts_from_max_of_eigenvalue_and_noise(tmp_path):
    module = ToyGANModule(latents=3, std=[0.7], seeds=2, width=8, count=20_000, decay=0.7, **steps(3, 32))
    train_on(module, GaussianVectors(std=[2, 1, 0.3], rotation=0, batch_size=32), tmp_path)
    samples = module.spectra()["samples"]
    expected = torch.tensor([4, 1, 0.49], dtype=torch.float64).expand(2, 3)
    torch.testing.assert_close(samples, expected, rtol=0.05, atol=0)
    assert (tmp_path / "spectra.png").exists()


def test_the_mixture_trains_every_method_and_measures_them(tmp_path):
    module = ToyMixtureModule(seeds=2, width=8, depth=1, count=500, vae_share=0.5, learning_rate=2e-3, **steps(8, 32))
    found = train_on(module, MixtureVectors("ring", batch_size=32), tmp_path).metrics()
    assert found["data_modes"] == 8 and found["data_high_quality"] > 0.95
    methods = ("vae_mean", "vae_sample", "plain_gan_classic", "plain_gan_relativistic", "l2_denoiser", "vae_gan")
    assert {f"{name}_high_quality" for name in methods} < set(found)
    assert (tmp_path / "mixture.png").exists()


def test_members_of_an_ensemble_do_not_see_each_other():
    net = EnsembleMLP(3, 2, 1, width=4, depth=2, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 5, 2, requires_grad=True)
    net(x)[1].sum().backward()
    assert x.grad[1].abs().min() > 0
    assert x.grad[[0, 2]].abs().max() == 0
    alone = x[1]
    for i, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        alone = (torch.nn.functional.silu(alone) if i else alone) @ weight[1] + bias[1]
    torch.testing.assert_close(net(x)[1], alone)


def test_gradient_penalty_of_vectors_is_that_of_their_pictures():
    rng = torch.Generator().manual_seed(0)
    duel = Duel(1, 3, 1, members=2, width=4, depth=1, generator=rng)
    values, condition = torch.randn(2, 5, 3).requires_grad_(), torch.randn(2, 5, 1)
    penalty = gradient_penalty(duel.logits(values, condition), values)  # (M, B)
    pictures = values.detach().reshape(10, 1, 3, 1).requires_grad_()
    logits = duel.logits(pictures.reshape(2, 5, 3), condition).flatten()
    torch.testing.assert_close(penalty.flatten(), gradient_penalty(logits, pictures))
    direct = values.detach().clone().requires_grad_()
    duel.discriminator(torch.cat([direct, condition], -1)).sum().backward()
    torch.testing.assert_close(penalty, 0.5 * direct.grad.square().sum(-1))


@pytest.mark.parametrize("layout, modes", [("grid", 25), ("ring", 8)])
def test_mixture_quality_of_its_own_points(layout, modes):
    data = MixtureVectors(layout)
    x = data.draw(np.random.default_rng(0), 20_000)
    found, share = mixture_quality(torch.stack([x, x + 1]), data.centres, data.std)
    assert found.tolist() == [modes, 0]
    assert share[0] == pytest.approx(1 - math.exp(-4.5), abs=3e-3) and share[1] == 0


def test_wasserstein_distance_of_shifted_and_scaled_quantiles():
    levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    quantiles = 2 * torch.special.ndtri(levels)
    assert wasserstein_to_normal(quantiles.flip(0), 2.0) == pytest.approx(0, abs=1e-12)
    assert wasserstein_to_normal(quantiles + 0.3, 2.0) == pytest.approx(0.3)
    assert wasserstein_to_normal(1.1 * quantiles, 2.0) == pytest.approx(0.2 * math.sqrt(2 / math.pi), rel=0.01)
