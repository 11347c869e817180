"""Frechet and kernel distance against closed forms, naive implementations and the libraries."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from degrain.models.core.errors import InputError
from degrain.models.evaluation.distances import frechet_at_infinity, frechet_distance, kernel_distance

D = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(seed: int, size: int = D) -> Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed))[0]


def with_moments(mean: Tensor, factor: Tensor, count: int = 50) -> Tensor:
    """Return features (count, D) with exactly this mean and the unbiased covariance factor factor^T."""
    x = normal(count, len(mean), seed=len(mean))
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return white @ factor.T + mean


def close(a, b, atol: float = 1e-10) -> None:
    a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (a, b))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=atol)


def test_frechet_distance_of_a_translation_is_its_square():
    factor, shift = normal(D, D), normal(D, seed=1)
    close(frechet_distance(with_moments(shift, factor), with_moments(0 * shift, factor)), shift.square().sum())


def test_frechet_distance_of_commuting_covariances():
    """|m1 - m2|^2 + sum (s1 - s2)^2, s the stds along the common axes; some of them 0."""
    axes, (m1, m2) = rotation(0), normal(2, D, seed=1)
    s1, s2 = torch.tensor([[1, 2, 3, 0.5, 0, 0], [2, 2, 1, 0, 4, 0]]).double()
    first, second = with_moments(m1, axes * s1), with_moments(m2, axes * s2, count=80)
    want = (m1 - m2).square().sum() + (s1 - s2).square().sum()
    close(frechet_distance(first, second), want, 1e-8)
    close(frechet_distance(second, first), want, 1e-8)


def test_frechet_distance_in_the_plane():
    """tr (C1 C2)^(1/2) = (tr C1 C2 + 2 (det C1 C2)^(1/2))^(1/2) for 2x2, that do not commute."""
    factors = normal(2, 2, 2)
    c1, c2 = (a @ a.T for a in factors)
    overlap = ((c1 @ c2).trace() + 2 * (c1.det() * c2.det()).sqrt()).sqrt()
    first, second = (with_moments(torch.zeros(2).double(), factor) for factor in factors)
    close(frechet_distance(first, second), c1.trace() + c2.trace() - 2 * overlap)


def test_frechet_distance_of_equal_sets_is_zero_even_if_features_are_dead_or_dependent():
    features = normal(2048, 40) @ normal(40, 64, seed=1) * torch.logspace(0, -6, 64)
    features[:, -5:] = 0
    assert abs(frechet_distance(features, features)) < 1e-11 * features.var(0).sum()


def test_frechet_distance_equals_the_library():
    x, y = normal(300, D), 0.3 + normal(200, D, seed=1) @ normal(D, D, seed=2)
    library = FrechetInceptionDistance(identity())
    library.update(x, real=True)
    library.update(y, real=False)
    close(frechet_distance(x, y), library.compute(), 1e-7)


@pytest.mark.parametrize("count", [4, 300])  # fewer and more images than features
def test_frechet_distance_equals_scipys_root(count):
    x, y = normal(count, D), 0.3 + normal(count + 1, D, seed=1) @ normal(D, D, seed=2)
    c1, c2 = x.T.cov().numpy(), y.T.cov().numpy()
    want = (x.mean(0) - y.mean(0)).square().sum() + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    close(frechet_distance(x, y), want, 1e-9 if count > D else 1e-5)  # scipy's root of a singular matrix


def test_frechet_distance_of_one_distribution_is_its_documented_bias():
    found = [frechet_distance(*normal(4096, 16, seed=seed).chunk(2)) for seed in range(20)]
    assert torch.stack(found).mean().item() == pytest.approx(16 * (16 + 4) / (2 * 2048), rel=0.05)


@pytest.mark.parametrize(("images", "decay"), [(800, 0.0), (400, 0.5), (250, 0.5)])
def test_the_distance_at_infinity_is_that_of_the_gaussians(decay, images):
    """|m1 - m2|^2 + sum (s1 - s2)^2, within 4 % of the bias at n and the error of the mean over draws."""
    std = torch.arange(1, 201).double() ** -decay
    shift, truth = 0.3 * std, (0.3 * std).square().sum() + (0.2 * std).square().sum()
    pairs = [
        (normal(images, 200, seed=s) * std, normal(images, 200, seed=50 + s) * 1.2 * std + shift) for s in range(8)
    ]
    biased = torch.stack([frechet_distance(x, y) for x, y in pairs])
    found = torch.stack([frechet_at_infinity(x, y) for x, y in pairs])
    bias = (biased.mean() - truth).item()
    assert bias > 0.1 * truth
    assert found.mean().item() == pytest.approx(truth.item(), abs=0.04 * bias + 3 * found.std().item() / 8**0.5)


def test_a_frechet_distance_of_other_features_or_of_too_few_images_is_refused():
    with pytest.raises(InputError, match="fid: 1 images"):
        frechet_distance(normal(1, D), normal(5, D))
    with pytest.raises(InputError, match="fid: features"):
        frechet_distance(normal(5, D), normal(5, 7))
    for one, other in ((3, 3), (5, 6)):
        with pytest.raises(InputError, match=f"fid: {one} and {other} images"):
            frechet_at_infinity(normal(one, D), normal(other, D))


def identity() -> nn.Module:
    """Return a feature network for the library that passes features through."""
    net = nn.Identity()
    net.num_features = D
    return net


def test_kernel_distance_equals_its_definition():
    x, y = normal(7, D).numpy(), normal(7, D, seed=1).numpy()

    def mean_kernel(a: np.ndarray, b: np.ndarray, different: bool) -> float:
        pairs = [(i, j) for i in range(7) for j in range(7) if not different or i != j]
        return sum((a[i] @ b[j] / D + 1) ** 3 for i, j in pairs) / len(pairs)

    want = mean_kernel(x, x, True) + mean_kernel(y, y, True) - 2 * mean_kernel(x, y, False)
    close(kernel_distance(torch.tensor(x), torch.tensor(y)), want)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kernel_distance_equals_the_library():
    x, y = normal(60, D), 0.3 + normal(60, D, seed=1)
    library = KernelInceptionDistance(identity(), subsets=2, subset_size=60)
    library.update(y, real=True)
    library.update(x, real=False)
    close(kernel_distance(x, y), library.compute()[0])


def test_kernel_distance_of_known_distributions():
    """In one dimension MMD^2 = sum_j binom(3, j) (E x^j - E y^j)^2, here of N(0, 1) and N(1/2, 1)."""
    x, y = normal(2000, 1), 0.5 + normal(2000, 1, seed=1)
    want = 3 * 0.5**2 + 3 * 0.25**2 + (0.5**3 + 3 * 0.5) ** 2
    assert kernel_distance(x, y).item() == pytest.approx(want, rel=0.15)


def test_kernel_distance_is_unbiased_at_any_number_of_images():
    for size in (4, 64):
        found = torch.stack(
            [kernel_distance(normal(size, D, seed=s), normal(size, D, seed=1000 + s)) for s in range(300)]
        )
        assert abs(found.mean()) < 3 * found.std() / math.sqrt(len(found))
        assert (found < 0).any()


def test_kernel_distance_of_too_few_images_or_of_other_numbers_is_refused():
    for one, other in ((1, 1), (80, 81)):
        with pytest.raises(InputError, match=f"kid: {one} and {other} images"):
            kernel_distance(normal(one, D), normal(other, D))
