"""The toy's recipes, trained for seconds: gradient descent finds the closed form; and their data, nets, figures."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from matplotlib.figure import Figure

import train
from data.datamodule import Portraits
from data.gaussian import (
    AutoregressiveVectors,
    FactorVectors,
    GaussianVectors,
    MixtureVectors,
    RandomVectors,
    VectorDataModule,
)
from models.core.errors import InputError
from models.gan.objective import gradient_penalty
from models.inference.pipeline import load_vae
from models.toys import (
    CollapseModule,
    ToyGANModule,
    ToyGridModule,
    ToyMixtureModule,
    ToyTwinsModule,
    ToyVectorsModule,
    linear_vae,
)
from models.toys import figures as toy_figures
from models.toys import linear_gaussian as toy
from models.toys.ensemble import Duel, EnsembleMLP, as_images
from models.toys.metrics import mixture_quality, wasserstein_to_normal
from models.toys.recipe import ToyModule
from models.vae.network import VAEConfig
from tests.tiny import NET

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def fit(module: ToyModule, data: VectorDataModule, root: Path) -> ToyModule:
    """Train without a progress bar; the module keeps its Trainer."""
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet = {"enable_model_summary": False, "accelerator": "cpu", "devices": 1, "default_root_dir": root}
    pl.Trainer(max_epochs=-1, reload_dataloaders_every_n_epochs=1, **options, **quiet).fit(module, datamodule=data)
    return module


def steps(count: int, batch_size: int) -> dict[str, int]:
    """A budget of so many steps in one leg."""
    return {"budget": count * batch_size, "validate_every": count * batch_size}


# --- one dimension


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> ToyGridModule:
    module = ToyGridModule(betas=[0, 0.2, 0.5, 1, 1.9, 2, 2.1, 4], learning_rate=0.03, **steps(1500, 64))
    return fit(module, GaussianVectors(batch_size=64), tmp_path_factory.mktemp("grid"))


def test_grid_trained_on_the_integrated_loss_reaches_the_closed_form(grid):
    found = grid.metrics()
    assert found["max_error_abc"] < 1e-3
    assert found["max_error_abc_near_threshold"] < 0.15  # the slower law, below
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
    module = ToyGridModule(betas=[0.5, 2, 4], regulariser="aggregate", learning_rate=0.03, **steps(1500, 64))
    fit(module, GaussianVectors(std=[0.5, 2], batch_size=64), tmp_path)
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


# --- d dimensions


def test_vectors_reach_water_filling_with_live_and_dead_latents(tmp_path):
    data = GaussianVectors(std=[2, 1.3, 0.8, 0.3], rotation=0, batch_size=16)
    found = fit(ToyVectorsModule(latents=4, std=[0.7, 1.0], **steps(800, 16)), data, tmp_path).metrics()
    assert found["max_error_mean_spectrum"] < 1e-2 and found["max_error_sample_spectrum"] < 1e-2
    assert found["max_error_live"] == 0 and found["aggregate_gap"] < 1e-2


def test_vectors_on_the_sampled_loss_come_near(tmp_path):
    data = GaussianVectors(std=[2, 0.3], rotation=0, batch_size=256)
    module = fit(ToyVectorsModule(latents=2, std=[0.7], loss="sampled", **steps(500, 256)), data, tmp_path)
    assert module.metrics()["max_error_sample_spectrum"] < 0.3
    assert module.live().tolist().count([True, False]) + module.live().tolist().count([False, True]) == 1


def test_a_learned_shared_sigma_follows_the_kl_weight_law(tmp_path):
    data = GaussianVectors(std=[2, 1.2, 0.8, 0.5], rotation=0, batch_size=16)
    weights = [0.7, 1.0, 1.8, 2.9]
    options = {"latents": 2, "sigma": "shared", "kl_weight": weights, "allow_kl_weight": True, "std": [0.7]}
    module = fit(ToyVectorsModule(**options, **steps(1000, 16)), data, tmp_path)
    found = module.metrics()
    assert found["max_error_noise_variance"] < 1e-3 and found["max_error_live"] == 0
    assert module.live().sum(-1).tolist() == [2, 2, 1, 0]
    assert (tmp_path / "kl_weight.png").exists()


def test_with_a_latent_for_every_direction_weight_one_is_flat_below_it_runs_to_the_floor(tmp_path):
    data = GaussianVectors(std=[1.0, 0.8], batch_size=16)
    options = {"latents": 2, "sigma": "shared", "floor": 0.2, "kl_weight": [1, 1, 0.6], "allow_kl_weight": True}
    module = fit(ToyVectorsModule(**options, std=[0.4, 0.6, 0.6], **steps(1000, 16)), data, tmp_path)
    noise = module.decoder().noise_variance[:, 0].detach()
    assert abs(noise[0] - noise[1]) > 0.01  # two ends of one valley
    assert (noise[:2] < 0.8**2 + 0.01).all()
    assert module.excess()[:2].max() < 1e-2  # equally good
    assert 0.2 <= noise[2].sqrt() < 0.22  # held by the floor


def test_per_pixel_sigma_recovers_planted_noise_by_the_marginal_variance_law(tmp_path):
    data = FactorVectors(noise=[0.4, 0.6, 0.8, 1.0, 1.2], factors=1, batch_size=16)
    module = fit(ToyVectorsModule(latents=1, sigma="pixel", **steps(1000, 16)), data, tmp_path)
    found = module.metrics()
    std = module.decoder().noise_variance[0].sqrt().detach()
    torch.testing.assert_close(std, torch.tensor(data.noise, dtype=torch.float64), rtol=0, atol=5e-3)
    assert found["max_marginal_variance_gap"] < 1e-2 and found["at_floor"] == 0
    assert found["max_error_std_to_em"] < 5e-3


def test_a_heywood_case_is_stopped_by_the_floor(tmp_path):
    module = ToyVectorsModule(latents=2, sigma="pixel", floor=0.2, **steps(1000, 16))
    found = fit(module, RandomVectors(batch_size=16), tmp_path).metrics()
    assert found["at_floor"] >= 1
    assert (module.decoder().noise_variance.sqrt() >= 0.2).all()
    assert found["max_marginal_variance_gap"] < 0.02  # off the floor


# --- the convolutional twins


def test_twins_take_one_path_with_the_density_and_two_with_the_bin_likelihood(tmp_path):
    """Tolerance 1e-4 of the way gone: float32 rounding and Adam's epsilon are all that tells the twins apart."""

    class Noise(pl.LightningDataModule):
        def train_dataloader(self):
            rng = torch.Generator().manual_seed(0)
            images = torch.randint(0, 256, (12, 4, 3, 32, 32), generator=rng, dtype=torch.uint8)
            return torch.utils.data.DataLoader([{"image": batch} for batch in images], batch_size=None)

    pyramid = VAEConfig().encoder.__class__(**{**NET, "widths": (8, 8)})
    module = ToyTwinsModule(32, VAEConfig(4, pyramid, pyramid), **steps(12, 4))
    found = fit(module, Noise(), tmp_path).metrics()
    assert found["distance_density"] < 1e-4
    assert found["distance_bin"] > 0.05


def test_the_collapse_sweep_counts_live_latents_beside_the_eigenvalues_above_the_variance(tmp_path):
    pyramid = VAEConfig().encoder.__class__(**{**NET, "widths": (8, 8)})
    net, data = VAEConfig(4, pyramid, pyramid), Portraits(64, 4, size=32, batch_size=8, cache=str(tmp_path))
    torch.manual_seed(0)
    module = CollapseModule(32, net, std=[20.0, 0.02], images=64, **steps(40, 8))
    found = fit(module, data, tmp_path)
    assert found.std.tolist() == pytest.approx([0.02, 20.0])
    eigenvalues = found.measured()["eigenvalues"]
    flat = torch.cat([b["image"] for b in data.encode_dataloader(64)]).double().flatten(1) / 255
    expected = torch.linalg.eigvalsh(torch.cov(flat.T)).flip(0)[:4]
    torch.testing.assert_close(eigenvalues, expected, rtol=1e-3, atol=0)
    live, rate = found.theory(eigenvalues)
    assert live.tolist() == [4, 0] and rate[1] == 0
    assert found.metrics()["live_at_0.02"] > found.metrics()["live_at_20"] == 0
    assert (tmp_path / "collapse.png").exists()


# --- the GAN stage


def test_the_denoiser_of_the_toy_trains_and_measures(tmp_path):
    module = ToyGANModule(std=[0.7, 1.4], seeds=1, width=8, count=50_000, **steps(5, 32))
    found = fit(module, GaussianVectors(std=[1], batch_size=32), tmp_path).metrics()
    assert found["excess_wasserstein_means"] == pytest.approx(math.sqrt(2 / math.pi), abs=0.05)  # collapsed: all at 0
    assert found["excess_wasserstein_samples"] == pytest.approx(0.4 * math.sqrt(2 / math.pi), abs=0.05)
    assert math.isfinite(found["excess_wasserstein_denoised"])
    assert (tmp_path / "denoised.png").exists()


def test_the_denoiser_in_d_dimensions_starts_from_max_of_eigenvalue_and_noise(tmp_path):
    module = ToyGANModule(latents=3, std=[0.7], seeds=2, width=8, count=20_000, **steps(3, 32))
    fit(module, GaussianVectors(std=[2, 1, 0.3], rotation=0, batch_size=32), tmp_path)
    samples = module.spectra()["samples"]
    expected = torch.tensor([4, 1, 0.49], dtype=torch.float64).expand(2, 3)
    torch.testing.assert_close(samples, expected, rtol=0.05, atol=0)
    assert (tmp_path / "spectra.png").exists()


def test_the_mixture_trains_every_method_and_measures_them(tmp_path):
    module = ToyMixtureModule(seeds=2, width=8, depth=1, count=500, vae_share=0.5, **steps(8, 32))
    found = fit(module, MixtureVectors("ring", batch_size=32), tmp_path).metrics()
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
    duel = Duel(2, 1, 3, 1, 4, 1, torch.Generator().manual_seed(0))
    values, condition = torch.randn(2, 5, 3), torch.randn(2, 5, 1)
    pictures = as_images(values).requires_grad_()
    penalty = gradient_penalty(duel.judge(pictures, condition), pictures)
    direct = values.clone().requires_grad_()
    duel.discriminator(torch.cat([direct, condition], -1)).sum().backward()
    torch.testing.assert_close(penalty, 0.5 * direct.grad.square().sum(-1).flatten())


# --- data and metrics


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
def test_draws_have_the_covariance_that_is_told(data):
    x = data.draw(np.random.default_rng(0), 100_000)
    torch.testing.assert_close(x.T @ x / len(x), data.covariance, rtol=0, atol=0.03 * data.covariance.diagonal().max())
    assert data.describe()["covariance"] == data.covariance.tolist()


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


def test_the_sampled_aggregate_loss_is_the_integrated_one_for_large_batches():
    rng = torch.Generator().manual_seed(0)
    x, noise = 2 * torch.randn(400_000, generator=rng).double(), torch.randn(400_000, generator=rng).double()
    a, b, c = (torch.tensor(v, dtype=torch.float64) for v in (0.4, 0.3, 1.5))
    sampled = toy.sampled_aggregate_loss(a, b, c, x, noise, 1.5)
    torch.testing.assert_close(sampled, toy.aggregate_loss(a, b, c, 2.0, 1.5), rtol=0.01, atol=0)


# --- figures


def test_figures_are_functions_of_their_data(grid, tmp_path):
    t, found = grid.t[:, 0], grid.trained()
    values = torch.tensor([2.0, 1.0, 0.2], dtype=torch.float64)
    best = toy.directions(values, 0.5)
    for figure in (
        toy_figures.loss_surface(),
        toy_figures.bifurcation(t, grid.relative, found),
        toy_figures.aggregate(t, grid.relative, found),
        toy_figures.spectra(values, best.mean_variance, best.sample_variance, torch.tensor(0.5), values),
        toy_figures.pixels(values, values / 2, values / 2, 0.01),
        toy_figures.twins(torch.tensor([1.0, 2.0]), {"density": torch.tensor([0.0, 1e-6])}, 0.1),
    ):
        assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "f.png")
    assert linear_vae.spectrum(torch.diag(values)).tolist() == values.tolist()


# --- as a run


def options(root: Path, *more: str) -> list[str]:
    return [f"--runs={root}", "--wandb=off", "--trainer.accelerator=cpu", "--trainer.devices=1", *more]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("toy_*.yaml")), ids=lambda path: path.stem)
def test_every_toy_config_says_its_command_and_its_name(path):
    text = path.read_text()
    assert text.startswith(f"# python train.py fit -c configs/{path.name}\n")
    assert yaml.safe_load(text)["name"] == path.stem


def test_a_run_leaves_its_metrics_and_goes_on_as_if_never_stopped(tmp_path, capsys):
    few = ["fit", "-c", str(CONFIGS / "toy_gaussian.yaml"), "--data.batch_size=16", "--model.validate_every=64"]
    whole = [*few, "--model.budget=192", "--model.decay=0"]
    train.main([*whole, *options(tmp_path, "--name=whole")])
    assert "max_error_abc" in capsys.readouterr().out
    train.main([*few, "--model.budget=64", "--model.decay=0", *options(tmp_path, "--name=parts")])
    train.main([*whole, *options(tmp_path, "--name=parts", "--ckpt_path=last")])
    one, other = (torch.load(tmp_path / n / "last.ckpt", weights_only=True)["state_dict"] for n in ("whole", "parts"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
    metrics = json.loads((tmp_path / "whole/metrics.json").read_text())
    assert {"toy/max_error_abc", "toy/max_error_abc_sampled", "toy/beta_0_b", "images_seen"} < set(metrics)
    with pytest.raises(InputError, match="is a toy's"):
        load_vae(tmp_path / "whole/last.ckpt")
    with pytest.raises(SystemExit):
        train.main(["test", *few[1:], *options(tmp_path, "--name=whole")])
    assert "test: ToyGridModule has no held-out images" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # other data than the checkpoint's
        train.main(
            [*whole, "--data.std=[1,2,4]", *options(tmp_path, "--name=parts", "--ckpt_path=last", "--model.budget=256")]
        )
    assert "the checkpoint's data were" in capsys.readouterr().err


# --- what is refused


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: GaussianVectors(std=[1, 0]), "--data.std 0: give finite values"),
        (lambda: FactorVectors(noise=[1, -1]), "give stds > 0"),
        (lambda: AutoregressiveVectors(correlation=1), "a value in"),
        (lambda: MixtureVectors(std=-1), "--data.std -1"),
        (lambda: GaussianVectors(batch_size=0), "batch_size 0"),
        (lambda: ToyGridModule(betas=[1, -0.5]), "beta = -0.5"),
        (lambda: ToyGridModule(start=0), "a start off 0"),
        (lambda: ToyVectorsModule(std=[0.0]), "data std t = 0"),
        (lambda: ToyVectorsModule(std=[1, 2], kl_weight=[1, 1, 1]), "lists of one length"),
        (lambda: ToyVectorsModule(sigma="shared", kl_weight=[0.5]), "KL weight = 0.5 with a learned sigma"),
        (lambda: ToyVectorsModule(sigma="pixel", floor=1.0), "floor 1.0"),
        (lambda: ToyMixtureModule(std_start=0.001), "std_floor < std_start"),
        (lambda: ToyTwinsModule(32, beta=0.0), "beta = 0"),
    ],
)
def test_invalid_input_is_refused_with_the_reason(call, reason):
    with pytest.raises((InputError, InputError), match=reason):
        call()


def test_more_latents_than_dimensions_are_refused(tmp_path):
    with pytest.raises(InputError, match="3 latents; give 0 <= k <= d = 2"):
        fit(ToyVectorsModule(latents=3), GaussianVectors(std=[1, 2]), tmp_path)
    with pytest.raises(InputError, match="needs Gaussian data"):
        fit(ToyVectorsModule(), MixtureVectors(), tmp_path)
