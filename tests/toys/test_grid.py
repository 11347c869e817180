"""The grid of linear VAEs finds the closed form in seconds of training; its figures are functions of its values."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from degrain.data.gaussian import GaussianVectors
from degrain.models.toys import ToyGridModule, grid_figures, linear_vae, vector_figures
from degrain.models.toys import linear_gaussian as toy
from degrain.models.toys.twins import draw_distances
from tests.toys.tools import linear_steps, train_on


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> ToyGridModule:
    module = ToyGridModule(betas=[0, 0.2, 0.5, 1, 1.9, 2, 2.1, 4], **linear_steps(1500, 64))
    return train_on(module, GaussianVectors(batch_size=64), tmp_path_factory.mktemp("grid"))


def test_grid_trained_on_the_integrated_loss_reaches_the_closed_form(grid):
    found = grid.metrics()
    assert found["max_error_abc"] < 1e-3
    assert found["max_error_abc_near_threshold"] < 0.15  # slower, see below
    assert found["beta_0_error_ac"] < 2e-3 and found["beta_0_b"] < 0.05


def test_grid_trained_on_the_sampled_loss_comes_as_near_as_its_noise_allows(grid):
    away = (grid.relative - 2).abs() > 0.15
    assert grid.errors()[1][:, away & (grid.relative > 0)].max() < 0.08
    assert grid.metrics()["beta_0_error_ac_sampled"] < 5e-3


def test_true_samples_of_the_trained_grid_have_the_variance_of_the_data(grid):
    below = (grid.relative > 0) & (grid.relative < 1.95)
    variance = grid.trained().c[0].square() + grid.beta / 2
    torch.testing.assert_close(variance[:, below], grid.t.square()[:, below], rtol=1e-3, atol=0)
    assert (variance[:, -1] > 1.9 * grid.t[:, -1].square()).all()  # beta = 4t^2: collapsed, variance 2t^2


def test_the_report_is_a_table_and_figures_in_the_folder(grid):
    folder = Path(grid.trainer.default_root_dir)
    names = {path.name for path in folder.iterdir()}
    assert names == {"table.txt", "loss_surface.png", "bifurcation.png", "rate_distortion.png", "histograms.png"}
    lines = (folder / "table.txt").read_text().splitlines()
    assert len([line for line in lines if line.count("|") == 3]) == 1 + 3 * 8
    assert any("max_error_abc " in line for line in lines)


def test_regularising_the_aggregate_trains_to_the_perfect_solution(tmp_path):
    module = ToyGridModule(betas=[0.5, 2, 4], regulariser="aggregate", **linear_steps(1500, 64))
    train_on(module, GaussianVectors(std=[0.5, 2], batch_size=64), tmp_path)
    found = module.trained()
    assert (found.a * found.c - 1)[0].abs().max() < 1e-2
    assert (found.c - module.t)[0].abs().max() < 0.05
    assert found.b[0].max() < 0.1  # where the usual VAE has b from 0.5 to 1
    assert (Path(tmp_path) / "aggregate.png").exists()


def test_at_the_threshold_gradient_descent_slows_down_to_one_over_the_root_of_its_steps():
    """c^2 ~ 1/steps at beta = 2t^2, where the minimum is quartic; 5 % below it the error falls exponentially."""
    errors = {}
    for beta in (1.9, 2.0):
        p = torch.tensor([0.5, 0.8, 0.5], dtype=torch.float64, requires_grad=True)  # a, b, c
        best, seen = toy.optimum(1.0, beta), []
        for step in range(4001):
            if step in (1000, 4000):
                seen.append(max(abs(p[0].item() - best.a.item()), abs(p[2].item() - best.c.item())))
            (gradient,) = torch.autograd.grad(toy.loss(p[0], p[1], p[2], 1.0, beta), p)
            p = (p - 0.05 * gradient).detach().requires_grad_()
        errors[beta] = seen
    assert errors[2.0][0] / errors[2.0][1] == pytest.approx(2.0, rel=0.1)
    assert errors[1.9][1] < 1e-3 * errors[2.0][1]


def test_the_sampled_aggregate_loss_is_the_integrated_one_for_large_batches():
    rng = torch.Generator().manual_seed(0)
    x, noise = 2 * torch.randn(400_000, generator=rng).double(), torch.randn(400_000, generator=rng).double()
    a, b, c = (torch.tensor(v, dtype=torch.float64) for v in (0.4, 0.3, 1.5))
    sampled = toy.sampled_aggregate_loss(a, b, c, x, noise, 1.5)
    torch.testing.assert_close(sampled, toy.aggregate_loss(a, b, c, 2.0, 1.5), rtol=0.01, atol=0)


def test_figures_are_functions_of_their_data(grid, tmp_path):
    t, found = grid.t[:, 0], grid.trained()
    values = torch.tensor([2.0, 1.0, 0.2], dtype=torch.float64)
    best = toy.directions(values, 0.5)
    for figure in (
        grid_figures.loss_surface(),
        grid_figures.bifurcation(t, grid.relative, found),
        grid_figures.aggregate(t, grid.relative, found),
        vector_figures.spectra(values, best.mean_variance, best.sample_variance, torch.tensor(0.5), values),
        vector_figures.pixels(values, values / 2, values / 2, 0.01),
        draw_distances(torch.tensor([1.0, 2.0]), {"density": torch.tensor([0.0, 1e-6])}, 0.1),
    ):
        assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "f.png")
    assert linear_vae.spectrum(torch.diag(values)).tolist() == values.tolist()
