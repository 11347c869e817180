"""Shared by the tests of the toys: seeded draws, covariances, quadrature, a small fit, a training of a recipe."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from degrain.models.core.errors import InputError
from degrain.models.toys import linear_vae as vae
from degrain.models.toys.factor_analysis import noise_above_floor
from degrain.models.toys.recipe import ToyModule

SCALES = (0.5, 1.0, 2.0)
SPECTRUM = torch.tensor([4.0, 2.0, 1.0, 0.4, 0.2], dtype=torch.float64)
BETAS = (0.05, 0.5, 1.0, 1.9, 2.1, 4.0)  # times t^2: the threshold is at 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def grid():
    """Return t and beta over SCALES x BETAS, each (3, 6)."""
    t = torch.tensor(SCALES)[:, None].expand(3, 6)
    return t, t.square() * torch.tensor(BETAS)


def hermite(n=40):
    """Return nodes and weights of E f(x), x ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def random_covariance(d, seed=0):
    g = torch.randn(d, 2 * d, generator=generator(seed))
    return g @ g.T / (2 * d)


def with_eigenvalues(values, seed=0):
    values = torch.as_tensor(values, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator(seed))).Q
    s = q * values @ q.T
    return (s + s.T) / 2


def autoregressive(d, rho):
    i = torch.arange(float(d))
    return rho ** (i[:, None] - i).abs()


def free(*tensors):
    return [v.detach().clone().requires_grad_() for v in tensors]


def gradient(objective, *parameters):
    """Return the largest entry of the gradient of objective(*parameters).sum()."""
    parameters = free(*parameters)
    return max(g.abs().max().item() for g in torch.autograd.grad(objective(*parameters).sum(), parameters))


def fit(objective, *start, steps=400):
    """Minimise by LBFGS from the start; return the parameters and the value reached."""
    parameters = free(*start)
    options = {"line_search_fn": "strong_wolfe", "tolerance_grad": 1e-11, "tolerance_change": 1e-15}
    optimizer = torch.optim.LBFGS(parameters, max_iter=steps, history_size=30, **options)

    def closure():
        optimizer.zero_grad()
        value = objective(*parameters)
        value.backward()
        return value

    optimizer.step(closure)
    return [p.detach() for p in parameters], objective(*parameters).item()


def random_vae(k, d, full, seed=0):
    a, c, root = (torch.randn(s, generator=generator(seed)) for s in ((k, d), (d, k), (k, k)))
    covariance = root @ root.T + 0.1 * torch.eye(k) if full else root[0].square() + 0.1
    return vae.LinearEncoder(a, covariance), vae.LinearDecoder(c, torch.rand(d, generator=generator(seed)) + 0.1)


def fit_factor_analysis(covariance, latents, floor):
    """Minimise over log sigma, C in closed form; return encoder, decoder and the negative log likelihood reached."""
    start = 0.5 * (0.5 * covariance.diagonal()).log()

    def objective(logstd):
        return vae.best_objective(covariance, noise_above_floor(logstd, floor), latents)

    (logstd,), value = fit(objective, start, steps=600)
    encoder, decoder = vae.best_vae(covariance, noise_above_floor(logstd, floor), latents)
    return encoder, decoder, value


def planted_covariance(d=8, k=2):
    """Return noise variances and the covariance of a factor model that has them."""
    truth = torch.linspace(0.2, 1.5, d)
    matrix = torch.randn(d, k, generator=generator(3))
    return truth, vae.LinearDecoder(matrix, truth).sample_covariance


def close(a, b, tolerance=1e-10):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    torch.testing.assert_close(a, b.expand_as(a), rtol=tolerance, atol=tolerance)


def refused(call, reason):
    """Assert that the call raises an InputError of one line that gives the reason."""
    with pytest.raises(InputError) as caught:
        call()
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def train_on(module: ToyModule, data: pl.LightningDataModule, root: Path) -> ToyModule:
    """Train without a progress bar; the module keeps its Trainer."""
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet = {"enable_model_summary": False, "accelerator": "cpu", "devices": 1, "default_root_dir": root}
    pl.Trainer(max_epochs=-1, reload_dataloaders_every_n_epochs=1, **options, **quiet).fit(module, datamodule=data)
    return module


def steps(count: int, batch_size: int) -> dict[str, int]:
    """Return the budget of so many steps in one leg."""
    return {"budget": count * batch_size, "validate_every": count * batch_size}


def linear_steps(count: int, batch_size: int) -> dict[str, float]:
    """Return the schedule of linear VAEs: a high learning rate that falls for most of the budget."""
    return {**steps(count, batch_size), "learning_rate": 0.03, "warmup": 0.0, "decay": 0.8}
