"""Linear VAEs with matrices find the closed forms in seconds: live latents, a learned sigma, factor analysis."""

import pytest
import torch

from degrain.data.gaussian import FactorVectors, GaussianVectors, MixtureVectors, RandomVectors
from degrain.models.core.errors import InputError
from degrain.models.toys import ToyVectorsModule
from tests.toys.tools import linear_steps, train_on


def test_vectors_reach_water_filling_with_live_and_dead_latents(tmp_path):
    data = GaussianVectors(std=[2, 1.3, 0.8, 0.3], rotation=0, batch_size=16)
    found = train_on(ToyVectorsModule(latents=4, std=[0.7, 1.0], **linear_steps(800, 16)), data, tmp_path).metrics()
    assert found["max_error_mean_spectrum"] < 1e-2 and found["max_error_sample_spectrum"] < 1e-2
    assert found["max_error_live"] == 0 and found["aggregate_gap"] < 1e-2


def test_vectors_on_the_sampled_loss_come_near(tmp_path):
    data = GaussianVectors(std=[2, 0.3], rotation=0, batch_size=256)
    module = train_on(ToyVectorsModule(latents=2, std=[0.7], loss="sampled", **linear_steps(500, 256)), data, tmp_path)
    assert module.metrics()["max_error_sample_spectrum"] < 0.3
    assert module.live().tolist().count([True, False]) + module.live().tolist().count([False, True]) == 1


def test_a_learned_shared_sigma_follows_the_kl_weight_formula(tmp_path):
    data = GaussianVectors(std=[2, 1.2, 0.8, 0.5], rotation=0, batch_size=16)
    weights = [0.7, 1.0, 1.8, 2.9]
    options = {"latents": 2, "sigma": "shared", "kl_weight": weights, "allow_kl_weight": True, "std": [0.7]}
    module = train_on(ToyVectorsModule(**options, **linear_steps(1000, 16)), data, tmp_path)
    found = module.metrics()
    assert found["max_error_noise_variance"] < 1e-3 and found["max_error_live"] == 0
    assert module.live().sum(-1).tolist() == [2, 2, 1, 0]
    assert (tmp_path / "kl_weight.png").exists()


def test_with_a_latent_for_every_direction_weight_one_is_flat_below_it_runs_to_the_floor(tmp_path):
    data = GaussianVectors(std=[1.0, 0.8], batch_size=16)
    options = {"latents": 2, "sigma": "shared", "floor": 0.2, "kl_weight": [1, 1, 0.6], "allow_kl_weight": True}
    module = train_on(ToyVectorsModule(**options, std=[0.4, 0.6, 0.6], **linear_steps(1000, 16)), data, tmp_path)
    noise = module.decoder().noise_variance[:, 0].detach()
    assert abs(noise[0] - noise[1]) > 0.01  # two ends of one valley
    assert (noise[:2] < 0.8**2 + 0.01).all()
    assert module.excess()[:2].max() < 1e-2  # equally good
    assert 0.2 <= noise[2].sqrt() < 0.22  # held by the floor


def test_per_pixel_sigma_recovers_planted_noise_with_the_data_s_variance_at_every_pixel(tmp_path):
    data = FactorVectors(noise=[0.4, 0.6, 0.8, 1.0, 1.2], factors=1, batch_size=16)
    module = train_on(ToyVectorsModule(latents=1, sigma="pixel", **linear_steps(1000, 16)), data, tmp_path)
    found = module.metrics()
    std = module.decoder().noise_variance[0].sqrt().detach()
    torch.testing.assert_close(std, torch.tensor(data.noise, dtype=torch.float64), rtol=0, atol=5e-3)
    assert found["max_marginal_variance_gap"] < 1e-2 and found["at_floor"] == 0
    assert found["max_error_std_to_em"] < 5e-3


def test_a_heywood_case_is_stopped_by_the_floor(tmp_path):
    module = ToyVectorsModule(latents=2, sigma="pixel", floor=0.2, **linear_steps(1000, 16))
    found = train_on(module, RandomVectors(batch_size=16), tmp_path).metrics()
    assert found["at_floor"] >= 1
    assert (module.decoder().noise_variance.sqrt() >= 0.2).all()
    assert found["max_marginal_variance_gap"] < 0.02  # off the floor


def test_more_latents_than_dimensions_are_refused(tmp_path):
    with pytest.raises(InputError, match="3 latents; give 0 <= k <= d = 2"):
        train_on(ToyVectorsModule(latents=3), GaussianVectors(std=[1, 2]), tmp_path)
    with pytest.raises(InputError, match="data is not Gaussian"):
        train_on(ToyVectorsModule(), MixtureVectors(), tmp_path)
