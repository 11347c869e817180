"""Metrics of sets of images whose true values are known; sets of few images have no FID."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.evaluation import figures, image_sets
from models.evaluation.distances import FRECHET_LEAST
from models.evaluation.image_sets import (
    METRICS,
    ImageSet,
    ResultTable,
    compare,
    prior_ladder,
    summarise_seeds,
    table_lines,
)
from models.evaluation.spectrum import PowerSpectrum


@pytest.fixture(autouse=True)
def small_subsets(monkeypatch):
    """Take smaller subsets for the kernel distance: those of 1,000 images would take half a minute."""
    monkeypatch.setattr(image_sets, "SUBSET", 200)


def features(n: int, shift: float = 0.0, seed: int = 0) -> Tensor:
    """Return (n, 4) draws of N(shift, I)."""
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) + shift


def images(n: int, contrast: float = 0.2, seed: int = 0) -> Tensor:
    """Return white noise (n, 3, 16, 16) with a std of `contrast`."""
    return 0.5 + contrast * torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def image_set(n: int, shift: float = 0.0, contrast: float = 0.1, seed: int = 0) -> ImageSet:
    return ImageSet(features(n, shift, seed), PowerSpectrum.of(images(32, contrast, seed)))


def test_a_row_has_the_values_of_its_distribution():
    real = image_set(2500)
    values = compare(image_set(2500, shift=1.0, contrast=0.05, seed=1), real)
    assert tuple(values) == METRICS
    assert values["frechet"] == pytest.approx(4, abs=0.4)  # |m1 - m2|^2 = 4 * 1^2
    assert values["spectrum_gap"] == pytest.approx(-2, abs=0.15)  # half the amplitude
    assert values["spectrum_error"] == pytest.approx(2, abs=0.15) and values["kernel"] > 0.1
    same = compare(image_set(2500, seed=2), real)
    assert same["frechet"] < 0.02 and abs(same["kernel"]) < 0.02 and abs(same["spectrum_gap"]) < 0.1
    assert same["density"] == pytest.approx(1, abs=0.05) and same["coverage"] > 0.93
    assert same["precision"] > values["precision"] and same["recall"] > values["recall"]


def test_no_frechet_distance_of_few_images_on_either_side():
    few, enough = image_set(FRECHET_LEAST - 1), image_set(FRECHET_LEAST, seed=1)
    for drawn, real in ((few, enough), (enough, few)):
        assert set(METRICS) - compare(drawn, real).keys() == {"frechet"}
    assert "frechet" in compare(enough, image_set(FRECHET_LEAST, seed=2))


def test_a_set_comes_back_from_its_tensors():
    one = image_set(20)
    other = ImageSet.from_tensors({name: torch.from_numpy(t.numpy()) for name, t in one.tensors().items()})
    assert compare(one, one) == compare(other, one)
    assert other.moments.count == 20 and other.spectrum.power.equal(one.spectrum.power)


def test_mean_and_std_over_seeds_are_numpys():
    rows = [{"kernel": 1.0, "recall": 0.5}, {"kernel": 2.0, "recall": 0.5}, {"kernel": 4.5, "recall": 0.5}]
    found = summarise_seeds(rows)
    assert found == pytest.approx(
        {"kernel": 2.5, "kernel_std": np.std([1, 2, 4.5], ddof=1), "recall": 0.5, "recall_std": 0}
    )
    assert summarise_seeds(rows[:1]) == rows[0]


def test_a_row_is_collected_over_seeds():
    real = image_set(50)
    table, sets = ResultTable(real), [image_set(30, seed=seed) for seed in (1, 2)]
    for one in sets:
        table.add("mean", one)
    assert table.summary() == {"mean": summarise_seeds([compare(one, real) for one in sets])}
    assert list(table.spectra) == ["held-out", "mean"] and table.spectra["mean"].count == 64
    assert sets[0].spectrum.count == real.spectrum.count == 32  # unchanged


def test_the_ladder_tells_a_right_prior_from_wrong_ones():
    held_out = features(5001)
    draws = {"standard": features(5000, shift=1.0, seed=1), "fitted": features(5000, seed=2)}
    found = prior_ladder(draws, held_out)
    assert found["standard/frechet"] == pytest.approx(4, abs=0.3)
    assert found["standard/ratio"] == pytest.approx(found["standard/frechet"] / found["halves/frechet"])
    assert found["standard/ratio_equal_n"] > 100
    assert found["fitted/frechet"] < 0.02 and 0.1 < found["fitted/ratio_equal_n"] < 4


def test_a_right_prior_is_on_average_at_one_half_and_at_one(monkeypatch):
    monkeypatch.setattr(image_sets, "FRECHET_LEAST", 100)
    found = [prior_ladder({"right": features(200, seed=2 * s)}, features(200, seed=2 * s + 1)) for s in range(60)]
    average = {name: sum(f[name] for f in found) / len(found) for name in found[0]}
    assert average["right/frechet"] / average["halves/frechet"] == pytest.approx(0.5, abs=0.1)
    assert average["right/ratio_equal_n"] == pytest.approx(1, abs=0.3)  # a mean of ratios is above their ratio


def test_the_ladder_of_few_images_has_only_its_ratio_at_equal_n():
    for n, held_out in ((40, 3000), (3000, 40)):
        found = prior_ladder({"fitted": features(n, seed=1)}, features(held_out))
        assert found.keys() == {"halves/frechet", "fitted/ratio_equal_n"} and 0 < found["fitted/ratio_equal_n"] < 6


def result_table() -> ResultTable:
    table = ResultTable(image_set(50))
    for seed in (1, 2):
        table.add("mean", image_set(40, shift=0.5, seed=seed))
    table.add("train", image_set(40, seed=3))
    return table


def test_every_value_has_its_place_in_the_table():
    rows, ladder = result_table().summary(), prior_ladder({"standard": features(40, seed=1)}, features(50))
    assert rows["mean"]["kernel_std"] > 0
    assert "standard/ratio_equal_n" in ladder and "kernel_std" not in rows["train"]
    lines = table_lines(rows, ladder)
    assert lines[0].split() == ["row", *METRICS]
    cells = {line[:24].strip(): line[24:].split() for line in lines[1:]}
    assert list(cells) == ["mean", "std over seeds", "train", "prior, its means", "halves", "standard"]
    assert cells["mean"][0] == "-" and float(cells["mean"][1]) == pytest.approx(rows["mean"]["kernel"], rel=1e-3)
    assert float(cells["standard"][2]) == pytest.approx(ladder["standard/ratio_equal_n"], rel=1e-3)


def test_the_figure_shows_the_spectra_as_they_are():
    made = result_table()
    left, right = figures.spectra(made.spectra).axes
    drawn = {line.get_label(): line.get_ydata() for line in left.get_lines()}
    assert list(drawn) == ["held-out", "mean", "train"]
    np.testing.assert_allclose(drawn["mean"], made.spectra["mean"].power)
    ratio = (made.spectra["mean"].power / made.spectra["held-out"].power).log2()
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), ratio)
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
