"""Gaussian vectors and mixtures: their draws are distributed as declared, and what is refused."""

import numpy as np
import pytest
import torch

from degrain.data.gaussian import AutoregressiveVectors, FactorVectors, GaussianVectors, MixtureVectors, RandomVectors
from degrain.models.core.errors import InputError


@pytest.mark.parametrize(
    "data",
    [
        GaussianVectors(std=[2, 0.5], rotation=1),
        FactorVectors(),
        RandomVectors(),
        AutoregressiveVectors(),
    ],
    ids=lambda data: type(data).__name__,
)
def test_draws_have_the_declared_covariance(data):
    x = data.draw(np.random.default_rng(0), 100_000)
    torch.testing.assert_close(x.T @ x / len(x), data.covariance, rtol=0, atol=0.03 * data.covariance.diagonal().max())
    assert data.describe()["covariance"] == data.covariance.tolist()


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: GaussianVectors(std=[1, 0]), "--data.std 0: give finite values"),
        (lambda: FactorVectors(noise=[1, -1]), "give stds > 0"),
        (lambda: AutoregressiveVectors(correlation=1), "a value in"),
        (lambda: MixtureVectors(std=-1), "--data.std -1"),
        (lambda: GaussianVectors(batch_size=0), "batch_size 0"),
    ],
)
def test_invalid_input_is_refused_with_the_reason(call, reason):
    with pytest.raises(InputError, match=reason):
        call()
