"""Frechet and kernel distance against closed forms, naive implementations and the libraries."""

import math
from collections.abc import Iterable
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from models.core.errors import InputError
from models.evaluation.distances import FeatureMoments, frechet_distance, kernel_distance

D = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(seed: int, size: int = D) -> Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed))[0]


def gaussian(mean: Tensor, covariance: Tensor, count: int = 5000) -> FeatureMoments:
    """Return a set with exactly these moments."""
    return FeatureMoments(torch.tensor(count), mean, covariance * (count - 1))


def close(a, b, atol: float = 1e-10) -> None:
    a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (a, b))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=atol)


def same(a: object, b: object, atol: float = 1e-9) -> None:
    """Assert that the tensors of two dataclasses are close."""
    for name, value in vars(a).items():
        close(value, vars(b)[name], atol)


def moments_of_batches(batches: Iterable[Tensor]) -> FeatureMoments:
    return reduce(add, map(FeatureMoments.of, batches))


def test_streaming_moments_equal_those_at_once():
    features = 3 + normal(1001, D) @ normal(D, D, seed=1)
    moments = moments_of_batches((features[:0], features[:0], *features.split(128), features[:0]))
    same(moments, FeatureMoments.of(features))
    assert moments.count == 1001
    close(moments.mean, features.mean(0))
    close(moments.covariance, features.T.cov())


def test_added_moments_equal_those_of_the_whole():
    features = normal(300, D)
    parts = features.tensor_split([10, 10, 200])  # one of them empty
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        same(moments_of_batches(parts[i] for i in order), FeatureMoments.of(features))


def test_moments_far_from_zero_lose_no_digits():
    features = normal(500, D)
    close(moments_of_batches((features + 1e7).split(50)).covariance, features.T.cov(), 1e-7)


def test_frechet_distance_of_a_translation_is_its_square():
    covariance, shift = normal(D, D) @ normal(D, D).T, normal(D, seed=1)
    close(frechet_distance(gaussian(shift, covariance), gaussian(0 * shift, covariance)), shift.square().sum())


def test_frechet_distance_of_commuting_covariances():
    """|m1 - m2|^2 + sum (s1 - s2)^2, s the stds along the common axes; some of them 0."""
    axes, (m1, m2) = rotation(0), normal(2, D, seed=1)
    s1, s2 = torch.tensor([[1, 2, 3, 0.5, 0, 0], [2, 2, 1, 0, 4, 0]]).double()
    first, second = (gaussian(m, axes * s.square() @ axes.T) for m, s in ((m1, s1), (m2, s2)))
    want = (m1 - m2).square().sum() + (s1 - s2).square().sum()
    close(frechet_distance(first, second), want, 1e-6)  # 1e-8 of a std: what rounding makes of a variance of 0
    close(frechet_distance(second, first), want, 1e-6)


def test_frechet_distance_in_the_plane():
    """tr (C1 C2)^(1/2) = (tr C1 C2 + 2 (det C1 C2)^(1/2))^(1/2) for 2x2, that do not commute."""
    c1, c2 = (a @ a.T for a in normal(2, 2, 2))
    overlap = ((c1 @ c2).trace() + 2 * (c1.det() * c2.det()).sqrt()).sqrt()
    zero = torch.zeros(2).double()
    close(frechet_distance(gaussian(zero, c1), gaussian(zero, c2)), c1.trace() + c2.trace() - 2 * overlap)


def test_frechet_distance_of_equal_sets_is_zero_even_if_features_are_dead_or_dependent():
    features = normal(2048, 40) @ normal(40, 64, seed=1) * torch.logspace(0, -6, 64)
    features[:, -5:] = 0
    moments = FeatureMoments.of(features)
    assert abs(frechet_distance(moments, moments)) < 1e-11 * moments.covariance.trace()


def test_frechet_distance_equals_the_library():
    x, y = normal(300, D), 0.3 + normal(200, D, seed=1) @ normal(D, D, seed=2)
    library = FrechetInceptionDistance(identity())
    library.update(x, real=True)
    library.update(y, real=False)
    close(frechet_distance(FeatureMoments.of(x), FeatureMoments.of(y), minimum=2), library.compute(), 1e-7)


def test_frechet_distance_equals_scipys_root():
    x, y = normal(300, D), 0.3 + normal(200, D, seed=1) @ normal(D, D, seed=2)
    c1, c2 = x.T.cov().numpy(), y.T.cov().numpy()
    want = (x.mean(0) - y.mean(0)).square().sum() + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    close(frechet_distance(FeatureMoments.of(x), FeatureMoments.of(y), minimum=2), want, 1e-9)


def test_frechet_distance_of_one_distribution_is_its_documented_bias():
    def distance(seed: int) -> Tensor:
        first, second = (FeatureMoments.of(half) for half in normal(4096, 16, seed=seed).chunk(2))
        return frechet_distance(first, second)

    mean = torch.stack([distance(seed) for seed in range(20)]).mean()
    assert mean.item() == pytest.approx(16 * (16 + 4) / (2 * 2048), rel=0.05)


def test_frechet_distance_of_too_few_images_is_refused_and_offers_kid():
    few, many = FeatureMoments.of(normal(2047, D)), FeatureMoments.of(normal(2048, D))
    for pair in ((few, many), (many, few)):
        with pytest.raises(InputError, match="fid: 2,047 images.*below 2,048.*kid"):
            frechet_distance(*pair)
    assert frechet_distance(many, many).isfinite() and frechet_distance(few, many, minimum=100).isfinite()
    with pytest.raises(InputError, match="fid: 1 images"):
        frechet_distance(FeatureMoments.of(normal(1, D)), many, minimum=0)
    with pytest.raises(InputError, match="fid: 6 and 7 features"):
        frechet_distance(many, FeatureMoments.of(normal(2048, 7)))


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
    found = kernel_distance(torch.tensor(x), torch.tensor(y), subsets=3, subset_size=7)
    close(found.mean, want)
    close(found.std, 0.0)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kernel_distance_equals_the_library():
    x, y = normal(60, D), 0.3 + normal(60, D, seed=1)
    library = KernelInceptionDistance(identity(), subsets=2, subset_size=60)
    library.update(y, real=True)
    library.update(x, real=False)
    close(kernel_distance(x, y, subsets=2, subset_size=60).mean, library.compute()[0])


def test_kernel_distance_of_known_distributions():
    """In one dimension MMD^2 = sum_j binom(3, j) (E x^j - E y^j)^2, here of N(0, 1) and N(1/2, 1)."""
    x, y = normal(4000, 1), 0.5 + normal(4000, 1, seed=1)
    want = 3 * 0.5**2 + 3 * 0.25**2 + (0.5**3 + 3 * 0.5) ** 2
    assert kernel_distance(x, y, subsets=40, subset_size=500).mean.item() == pytest.approx(want, rel=0.15)


def test_kernel_distance_is_unbiased_at_any_number_of_images():
    for size in (4, 64):
        found = torch.stack(
            [kernel_distance(normal(size, D, seed=s), normal(size, D, seed=1000 + s), 1, size).mean for s in range(300)]
        )
        assert abs(found.mean()) < 3 * found.std() / math.sqrt(len(found))
        assert (found < 0).any()


def test_kernel_distance_draws_from_its_generator_alone():
    x, y = normal(100, D), 0.3 + normal(80, D, seed=1)
    torch.manual_seed(1)
    first = kernel_distance(x, y, 5, 20)
    torch.manual_seed(2)
    assert kernel_distance(x, y, 5, 20) == first and first.std > 0
    other = kernel_distance(x, y, 5, 20, torch.Generator().manual_seed(1))
    assert other != first
    close(kernel_distance(x.float(), y.float(), 5, 20).mean, first.mean, 1e-6)


@pytest.mark.parametrize("size", [1, 81])
def test_kernel_distance_of_too_few_images_is_refused(size):
    with pytest.raises(InputError, match=rf"kid: subset_size {size} must lie between 2 and the 80 images"):
        kernel_distance(normal(100, D), normal(80, D), subset_size=size)
