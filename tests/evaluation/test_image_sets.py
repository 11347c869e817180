"""Estimates of sets of images whose true values are known, and the tables that show them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from degrain.models.evaluation import figures
from degrain.models.evaluation.distances import frechet_distance
from degrain.models.evaluation.estimates import Estimate
from degrain.models.evaluation.image_sets import (
    FLOOR,
    METRICS,
    budget,
    compare,
    compare_spectra,
    crossed,
    disagreements,
    prior_ladder,
)
from degrain.models.evaluation.spectrum import PowerSpectrum
from degrain.models.evaluation.tables import budget_lines, ladder_lines, metric_lines, values_of


def features(n: int, shift: float = 0.0, seed: int = 0) -> Tensor:
    """Return (n, 4) draws of N(shift, I)."""
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) + shift


def spectrum(n: int, contrast: float = 0.1, seed: int = 0) -> PowerSpectrum:
    """Return the spectra of n images of white noise with a std of `contrast`."""
    noise = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return PowerSpectrum.of(0.5 + contrast * noise)


def certain(value: float) -> Estimate:
    return Estimate(torch.full((11,), value, dtype=torch.float64))


def test_a_row_has_the_values_of_its_distribution():
    real = features(1000)
    values = compare(features(1000, shift=1.0, seed=1), real)
    assert tuple(values) == METRICS
    for name in ("frechet", "frechet_infinity"):
        assert values[name].value == pytest.approx(4, abs=0.4) and 0.1 < values[name].half_width < 0.8  # 4 * 1^2
    same = compare(features(1000, seed=2), real)
    assert same["frechet"].value < 0.08 and abs(same["kernel"].value) < 0.02 < values["kernel"].value
    assert same["density"].value == pytest.approx(1, abs=0.08) and same["coverage"].value > 0.93
    assert same["precision"].value > values["precision"].value and same["recall"].value > values["recall"].value


def test_a_spectrum_of_half_the_contrast_is_two_octaves_below():
    found = compare_spectra(spectrum(60, contrast=0.05, seed=1), spectrum(60))
    assert found["gap"].value == pytest.approx(-2, abs=0.15) and found["error"].value == pytest.approx(2, abs=0.15)
    assert 0 < found["gap"].half_width < 0.3


def test_no_image_meets_its_original():
    """Reconstructions that are their originals stand exactly where other photographs stand."""
    real = features(400, seed=50)
    copies, floor = compare(real.clone(), real), compare(real, real)
    assert copies["frechet"].value == floor["frechet"].value > 0
    independent = [frechet_distance(*features(400, seed=seed).chunk(2)).item() for seed in range(1, 41)]
    assert min(independent) < copies["frechet"].value < max(independent)
    assert copies["precision"].value < 1


def test_each_half_is_compared_with_the_other_half():
    seen = []

    def statistics(drawn: Tensor, real: Tensor) -> dict[str, Tensor]:
        seen.append((drawn.tolist(), real.tolist()))
        return {"sum": (drawn * 100 + real).sum()}

    numbers = torch.arange(40.0)
    crossed(statistics, numbers, numbers)
    even, odd = list(range(0, 40, 2)), list(range(1, 40, 2))
    assert seen[:2] == [(even, odd), (odd, even)] and len(seen) == 22
    assert seen[2] == ([n for n in even if n % 20], [n for n in odd if n % 20 != 1])  # without pairs 0 and 10


def test_the_budget_adds_up_to_the_distance_of_the_draws():
    values = {FLOOR: 5.0, "mean": 60.0, "denoised": 30.0, "reconstruction_mean": 40.0, "reconstruction_denoised": 16.0}
    rows = {row: {"frechet": certain(value)} for row, value in values.items()}
    ladder = {"halves": {"frechet": certain(6.0)}, "standard": {"frechet": certain(90.0)}}
    ladders = {"denoised": ladder | {"learned": {"frechet": certain(13.0)}}}
    parts = {row: {p: e.value for p, e in found.items()} for row, found in budget(rows, "frechet", ladders).items()}
    assert parts == {
        "mean": {"floor": 5, "decoder": 35, "prior": 20, "total": 60},
        "denoised": {"floor": 5, "decoder": 11, "prior": 14, "prior_alone": 7, "total": 30},
    }
    plain = budget({FLOOR: rows[FLOOR], "generated": rows["mean"]}, "frechet")
    assert {part: e.value for part, e in plain["generated"].items()} == {"floor": 5, "generator": 55, "total": 60}
    lines = budget_lines({"frechet": budget(rows, "frechet", ladders), "kernel": budget(rows, "frechet")})
    assert lines[0].split()[-4:] == ["mean", "kernel", "denoised", "kernel"]
    cells = {line[:24].strip(): line[24:].split() for line in lines[1:]}
    assert cells["the prior adds"] == ["20", "20", "14", "14"] and cells["of which it alone"] == ["7"]
    assert cells["draws"] == ["60", "60", "30", "30"] and len(cells) == 5


def test_what_the_prior_alone_adds_is_less_where_the_decoder_shifts_the_same_way():
    """Reconstructions 1 and draws 2 from photographs in each of 4 directions: 4, then 12 more, of which 4 alone."""
    real, through, drawn = (features(2000, shift, seed) for seed, shift in enumerate((0.0, 1.0, 2.0)))
    sets = {FLOOR: real, "reconstruction_mean": through, "mean": drawn}
    rows = {row: compare(found, real) for row, found in sets.items()}
    ladders = {"mean": prior_ladder({"learned": drawn}, through)}
    parts = budget(rows, "frechet", ladders)["mean"]
    for part, right in {"decoder": 4, "prior": 12, "prior_alone": 4, "total": 16}.items():
        assert parts[part].value == pytest.approx(right, abs=0.8), part
    assert "prior_alone" in budget(rows, "kernel", ladders)["mean"]
    assert "prior_alone" not in budget(rows, "frechet_infinity", ladders)["mean"]


def test_long_cells_stand_apart():
    rows = {FLOOR: {"frechet": Estimate(torch.tensor([-1.123456e-3, -1.1e-3, -1.2e-3], dtype=torch.float64))}}
    cell = str(rows[FLOOR]["frechet"])
    line = budget_lines(dict.fromkeys(("frechet", "kernel"), {"mean": {"total": rows[FLOOR]["frechet"]}}))[1]
    assert line.split()[1:] == cell.split() * 2


def test_the_ladder_tells_a_right_prior_from_wrong_ones():
    held_out = features(2000)
    draws = {"standard": features(2000, shift=1.0, seed=1), "fitted": features(2000, seed=2)}
    found = prior_ladder(draws, held_out)
    assert list(found) == ["halves", "standard", "fitted"]
    assert found["standard"]["frechet"].value == pytest.approx(4, abs=0.3)
    assert found["standard"]["ratio"].value > 50 and 0.1 < found["fitted"]["ratio"].value < 4
    assert (
        "ratio" not in found["halves"] and abs(found["fitted"]["kernel"].value) < found["fitted"]["kernel"].half_width
    )
    lines = ladder_lines(found)
    assert [line.split()[0] for line in lines] == ["prior,", "halves", "standard", "fitted"]


def test_a_right_prior_is_on_average_at_one():
    found = [prior_ladder({"right": features(400, seed=2 * s)}, features(400, seed=2 * s + 1)) for s in range(20)]
    right, halves = (sum(f[name]["frechet"].value for f in found) for name in ("right", "halves"))
    assert right / halves == pytest.approx(1, abs=0.15)


def test_networks_that_order_two_rows_differently_are_reported():
    def rows(one: float, other: float, width: float = 0.1) -> dict[str, dict[str, Estimate]]:
        noisy = Estimate(torch.tensor([one, one - width, one + width], dtype=torch.float64))
        return {"mean": {"frechet": noisy}, "sample": {"frechet": certain(other)}}

    tables = {"lite0": rows(1.0, 5.0), "face": rows(5.0, 1.0)}
    tables = {
        net: {row: {"frechet": Estimate(e["frechet"].replicates[:3])} for row, e in t.items()}
        for net, t in tables.items()
    }
    said = "mean is nearer to photographs than sample by lite0, and farther by face"
    assert disagreements(tables) == [f"the verdict turns with the network: {said}"]
    assert disagreements({"lite0": tables["lite0"], "other": tables["lite0"]}) == []
    unsure = {row: {"frechet": Estimate(e["frechet"].replicates[:3])} for row, e in rows(5.0, 1.0, width=9.0).items()}
    assert disagreements({"lite0": tables["lite0"], "face": unsure}) == []


def test_every_value_has_its_place_in_the_table_and_in_the_metrics():
    real = features(40)
    rows = {"mean": compare(features(40, 0.5, seed=1), real), FLOOR: compare(real, real)}
    spectra = {row: compare_spectra(spectrum(40, seed=1), spectrum(40)) for row in rows}
    lines = metric_lines(rows, spectra, {"mean": dict.fromkeys(METRICS, 0.25)})
    assert lines[0].split()[:2] == ["row", "frechet"] and len(lines) == 4
    assert lines[1].split()[0] == "mean" and lines[2].split()[:4] == ["std", "over", "seeds", "0.25"]
    values = dict(values_of("net", rows))
    assert len(values) == 2 * 3 * len(METRICS)
    assert values["net/mean/kernel_low"] < values["net/mean/kernel"] < values["net/mean/kernel_high"]


def test_the_figure_shows_the_spectra_as_they_are():
    made = {"mean": spectrum(20, seed=1), "train": spectrum(20, seed=2), FLOOR: spectrum(20)}
    left, right = figures.spectra(made, FLOOR).axes
    drawn = {line.get_label(): line.get_ydata() for line in left.get_lines()}
    assert list(drawn) == [FLOOR, "mean", "train"]
    np.testing.assert_allclose(drawn["mean"], made["mean"].power)
    ratio = (made["mean"].power / made[FLOOR].power).log2()
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), ratio)
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")


def test_the_figure_shows_the_parts_of_each_budget_with_their_intervals():
    scales = {"mean": 1, "denoised": 2}
    parts = {"floor": 8.0, "decoder": 3.0, "prior": -1.0, "total": 10.0}
    replicates = {part: torch.linspace(0, 0.1, 11).double() + value for part, value in parts.items()}
    rows = {row: {part: Estimate(found * scale) for part, found in replicates.items()} for row, scale in scales.items()}
    figure = figures.budget({"net": {"frechet": rows, "kernel": rows}})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["frechet, net", "kernel, net"]
    for ax in figure.axes:
        widths = [bar.get_width() for bar in ax.patches]
        np.testing.assert_allclose(widths, [value * scale for scale in scales.values() for value in parts.values()])
        errors = [np.ptp(lines.get_segments()[0][:, 0]) / 2 for lines in ax.collections]
        np.testing.assert_allclose(errors, [row[part].half_width for row in rows.values() for part in parts])
        assert [label.get_text() for label in ax.get_yticklabels()] == list(rows)
