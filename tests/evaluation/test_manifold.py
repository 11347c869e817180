"""Precision, recall, density, coverage and nearest neighbours against their definitions."""

import numpy as np
import pytest
from einops import repeat
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.evaluation.manifold import copies, manifold_scores, nearest_neighbours
from tests.evaluation.test_distances import D, normal


def naive_scores(drawn: Tensor, real: Tensor, k: int, wide: int) -> list[float]:
    """Compute the four definitions by loops."""
    drawn, real = drawn.numpy(), real.numpy()

    def reach(points: np.ndarray, i: int, k: int) -> float:
        return sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[k - 1]

    def share(points: np.ndarray, centres: np.ndarray) -> float:
        reaches = [reach(centres, i, k) for i in range(len(centres))]
        return float(np.mean([any(np.linalg.norm(p - centres, axis=1) <= reaches) for p in points]))

    inside = np.array([[np.linalg.norm(x - y) <= reach(real, i, wide) for y in drawn] for i, x in enumerate(real)])
    density, coverage = inside.sum(0).mean() / wide, inside.any(1).mean()
    return [share(drawn, real), share(real, drawn), density, coverage]


def scores(*args, **kwargs) -> list[float]:
    return [value.item() for value in vars(manifold_scores(*args, **kwargs)).values()]


@pytest.mark.parametrize("chunk", [1, 7, 1024])
@pytest.mark.parametrize(("k", "wide"), [(3, 5), (2, 1)])
def test_manifold_scores_equal_their_definition(chunk, k, wide):
    drawn, real = 0.8 * normal(23, 3), normal(17, 3, seed=1)
    want = naive_scores(drawn, real, k, wide)
    assert all(0 < value < 1.5 for value in want)
    assert scores(drawn, real, k, wide, chunk) == pytest.approx(want)


def test_manifold_scores_of_disjoint_sets_are_zero():
    assert scores(100 + normal(50, D), normal(60, D, seed=1)) == [0, 0, 0, 0]


@pytest.mark.parametrize("offset", [0, 1000])
def test_ties_count_so_that_copies_are_covered(offset):
    copies = repeat(offset + normal(30, 300), "n d -> (n k) d", k=8)
    precision, recall, density, coverage = scores(copies, copies)
    assert (precision, recall, coverage) == (1, 1, 1) and density == pytest.approx(8 / 5)


def test_manifold_scores_of_one_distribution_are_as_documented():
    pairs = [scores(normal(1000, D, seed=i), normal(1000, D, seed=100 + i)) for i in range(4)]
    precision, recall, density, coverage = np.mean(pairs, 0)
    assert 0.85 < precision < 1 and 0.85 < recall < 1
    assert density == pytest.approx(1, abs=0.03)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.01)


def modes(count: int, number: int, seed: int) -> Tensor:
    """Return points spread evenly over the first of eight distant modes."""
    centres = 20 * normal(8, D, seed=99)[:number]
    return repeat(centres, "m d -> (m n) d", n=count // number) + normal(count, D, seed=seed)


def test_dropped_modes_lower_recall_and_coverage_only():
    real = modes(800, 8, 1)
    whole, half = scores(modes(800, 8, 2), real), scores(modes(800, 4, 2), real)
    assert half[0] == pytest.approx(whole[0], abs=0.03) and half[2] == pytest.approx(whole[2], abs=0.1)
    assert half[1] == pytest.approx(whole[1] / 2, abs=0.03) and half[3] == pytest.approx(0.5, abs=0.01)


def test_noise_in_other_directions_lowers_precision_and_density_only():
    """Every fourth image is far off and does not look real, but no kind of image is missing."""
    real, fine = modes(800, 8, 1), modes(800, 8, 2)
    noisy = fine.clone()
    noisy[::4] += 300 + 30 * normal(200, D, seed=3)
    before, after = scores(fine, real), scores(noisy, real)
    assert after[0] == pytest.approx(0.75 * before[0], abs=0.02) and after[2] == pytest.approx(0.75, abs=0.06)
    assert after[1] > before[1] - 0.03 and after[3] > before[3] - 0.05


def test_manifold_scores_in_float32_are_those_in_float64():
    drawn, real = 50 + normal(300, 64), 50 + normal(300, 64, seed=1)
    assert scores(drawn.float(), real.float()) == pytest.approx(scores(drawn, real), abs=0.005)


def test_manifold_scores_of_too_few_images_are_refused():
    with pytest.raises(InputError, match="5 images have no 5 neighbours"):
        manifold_scores(normal(5, D), normal(50, D))
    with pytest.raises(InputError, match=r"\(50, 6\) and \(50, 7\)"):
        manifold_scores(normal(50, D), normal(50, 7))


@pytest.mark.parametrize("chunk", [1, 8, 1024])
def test_nearest_neighbours_are_the_nearest(chunk):
    features, bank = normal(20, D), normal(33, D, seed=1)
    want = [sorted(range(33), key=lambda j: (x - bank[j]).norm().item())[:4] for x in features]
    assert nearest_neighbours(features, bank, 4, chunk).tolist() == want
    assert nearest_neighbours(bank.float(), bank.float(), chunk=chunk).flatten().tolist() == list(range(33))
    for k in (0, 34):
        with pytest.raises(InputError, match=f"k = {k} must lie between 1 and the 33"):
            nearest_neighbours(features, bank, k)


def test_copies_are_counted_up_to_the_rounding_of_another_batch():
    features = normal(50, D) + 3
    assert copies(features) == 0
    features[7], features[8] = features[3] * (1 + 1e-7), features[3]
    assert copies(features) == 3
    assert copies(features[:1].expand(20, -1)) == 20
