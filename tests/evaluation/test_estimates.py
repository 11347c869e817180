"""Intervals by leaving images out: exact for a mean, and they cover the truth as often as they claim."""

import pytest
import torch
from scipy.stats import t as student

from degrain.models.evaluation.distances import frechet_distance
from degrain.models.evaluation.estimates import Estimate, average, jackknife
from degrain.models.evaluation.image_sets import crossed
from tests.evaluation.test_distances import normal


def test_the_interval_of_a_mean_is_that_of_the_groups_means():
    x = normal(200)
    found = jackknife(lambda rows: {"mean": x[rows].mean()}, 200)["mean"]
    groups = torch.stack([x[group::10].mean() for group in range(10)])
    assert found.value == pytest.approx(x.mean().item())
    assert found.half_width == pytest.approx(student.ppf(0.975, 9) * groups.std().item() / 10**0.5)
    values = found.values("mean")
    assert (values["mean_low"] + values["mean_high"]) / 2 == pytest.approx(values["mean"])


def test_differences_and_means_know_that_their_images_are_the_same():
    x = normal(50)
    found = jackknife(
        lambda rows: {"one": x[rows].mean(), "shifted": x[rows].mean() + 3, "twice": 2 * x[rows].mean()}, 50
    )
    assert (found["shifted"] - found["one"]).value == pytest.approx(3)
    assert (found["shifted"] - found["one"]).half_width == pytest.approx(0, abs=1e-12)
    assert (found["twice"] / found["one"]).half_width == pytest.approx(0, abs=1e-9)
    assert average([found["one"], found["twice"]]).value == pytest.approx(1.5 * found["one"].value)


@pytest.mark.parametrize(
    ("replicates", "shown"),
    [([2.0, 1.0, 3.0], "2 ±13"), ([0.5, 0.5, 0.5], "0.5"), ([-1e-17] * 3, "0"), ([2e7, 1e7, 3e7], "2e+07 ±1.3e+08")],
)
def test_an_estimate_is_shown_with_two_digits_of_its_half_width(replicates, shown):
    assert str(Estimate(torch.tensor(replicates, dtype=torch.float64))) == shown


def test_intervals_of_the_frechet_distance_cover_its_expectation():
    """95 % of them should; of 60, fewer than 50 would be a chance of 1 in 10,000."""
    found = []
    for seed in range(60):
        drawn, real = normal(400, 8, seed=seed) * 1.2, normal(400, 8, seed=1000 + seed)
        found.append(crossed(lambda a, b: {"frechet": frechet_distance(a, b)}, drawn, real)["frechet"])
    mean = sum(one.value for one in found) / len(found)
    assert 50 <= sum(abs(one.value - mean) < one.half_width for one in found)
    spread = torch.tensor([one.value for one in found]).std().item()
    widths = sum(one.half_width for one in found) / len(found)
    assert widths / student.ppf(0.975, 9) == pytest.approx(spread, rel=0.35)
