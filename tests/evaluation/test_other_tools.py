"""Our metrics against other packages on the same features; docs/evaluation.md has the table of what each one does."""

import numpy as np
import pytest
import torch
from torch import Tensor

from degrain.models.evaluation.distances import frechet_distance, kernel_distance
from degrain.models.evaluation.manifold import manifold_scores
from tests.evaluation.test_distances import D, normal


@pytest.fixture(scope="module")
def real() -> Tensor:
    return normal(400, D)


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    return 0.2 + 0.9 * normal(300, D, seed=1)


def frechet(first: Tensor, second: Tensor) -> float:
    return frechet_distance(first, second).item()


def scores(*args, **kwargs) -> dict[str, float]:
    return {name: value.item() for name, value in vars(manifold_scores(*args, **kwargs)).items()}


def test_frechet_distance_equals_torch_fidelity(real, drawn):
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    first, second = (fid.fid_features_to_statistics(features) for features in (real, drawn))
    theirs = fid.fid_statistics_to_metric(first, second, verbose=False)
    assert theirs["frechet_inception_distance"] == pytest.approx(frechet(drawn, real), rel=1e-9)


def test_frechet_distance_of_fewer_images_than_features_equals_torch_fidelity_up_to_its_square_root():
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    few, other = normal(20, 64), normal(20, 64, seed=1)

    def theirs(first: Tensor, second: Tensor) -> float:
        statistics = (fid.fid_features_to_statistics(features) for features in (first, second))
        return fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]

    assert theirs(few, other) == pytest.approx(frechet(few, other), abs=1e-4)
    assert (
        abs(frechet(few, few)) < 1e-11 < abs(theirs(few, few)) < 1e-4
    )  # of equal sets: it rounds at 1e-8 of a variance


def test_kernel_distance_of_whole_sets_equals_torch_fidelity(real, drawn):
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    theirs = kid.kid_features_to_metric(
        real[:300], drawn, kid_subsets=1, kid_subset_size=300, rng_seed=0, verbose=False
    )
    ours = kernel_distance(drawn, real[:300]).item()
    assert theirs["kernel_inception_distance_mean"] == pytest.approx(ours, rel=1e-9)


def test_kernel_distance_over_subsets_scatters_around_ours(real, drawn):
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    theirs = kid.kid_features_to_metric(
        real[:300], drawn, kid_subsets=1000, kid_subset_size=100, rng_seed=0, verbose=False
    )
    ours, std = kernel_distance(drawn, real[:300]).item(), theirs["kernel_inception_distance_std"]
    assert theirs["kernel_inception_distance_mean"] == pytest.approx(ours, abs=4 * std / 1000**0.5)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_manifold_scores_equal_prdc(real, drawn, k, dtype, capsys):
    prdc = pytest.importorskip("prdc")
    real, drawn = real.to(dtype), drawn.to(dtype)
    theirs = prdc.compute_prdc(real.numpy(), drawn.numpy(), k)
    assert scores(drawn, real, k, k) == pytest.approx({name: float(value) for name, value in theirs.items()})


def test_repeated_images_count_as_precise_here_and_not_in_prdc(capsys):
    """Its radius is 0 where an image occurs more than k times: a copy is at distance 0, which `<` does not count."""
    prdc = pytest.importorskip("prdc")
    points = (4 * normal(5, D).numpy()).round()
    images = np.repeat(np.concatenate([points, -points]), 4, axis=0)  # integers of mean 0: no distance is rounded
    theirs = prdc.compute_prdc(images, images, 3)
    ours = scores(torch.tensor(images), torch.tensor(images), 3, 3)
    assert (theirs["precision"], theirs["recall"]) == (0, 0) and (ours["precision"], ours["recall"]) == (1, 1)
    assert (theirs["density"], theirs["coverage"]) == (0, 0)
    assert ours["density"] == pytest.approx(4 / 3) and ours["coverage"] == 1
