"""Statistics on disk: computed once per key, and anew if the file is damaged."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from degrain.models.evaluation.spectrum import PowerSpectrum
from degrain.models.evaluation.statistics_cache import StatisticsKey, cached_statistics
from tests.evaluation.test_features import random_images

KEY = StatisticsKey("folder-faces-1234", "valid", "c148", 64, "efficientnet-lite0", "moments")


class Counted:
    """A computation that counts its calls."""

    def __init__(self, compute: Callable[[], dict[str, Tensor]]) -> None:
        self.compute, self.times = compute, 0

    def __call__(self) -> dict[str, Tensor]:
        self.times += 1
        return self.compute()


def some_features() -> Tensor:
    return torch.randn(50, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def moments() -> Counted:
    return Counted(lambda: {"mean": some_features().mean(0), "scatter": some_features().T @ some_features()})


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].equal(b[name])


def test_statistics_come_back_and_are_computed_once(tmp_path, moments, capsys):
    computed = cached_statistics(tmp_path / "new", KEY, moments)
    kept = cached_statistics(tmp_path / "new", KEY, moments)
    assert moments.times == 1 and capsys.readouterr().out == ""
    assert_equal(kept, computed)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [KEY.filename]  # nothing half written


def test_features_and_spectra_are_kept_as_well(tmp_path):
    for name, compute in {
        "features": lambda: {"features": some_features()},
        "spectrum": lambda: {"powers": PowerSpectrum.of(random_images(3)).powers},
    }.items():
        key = StatisticsKey("faces", "train", "none", 32, "pixels", name)
        assert_equal(cached_statistics(tmp_path, key, compute), compute())
        assert_equal(cached_statistics(tmp_path, key, lambda: pytest.fail("is kept")), compute())


def test_every_part_of_the_key_counts(tmp_path):
    for name, value in vars(KEY).items():
        other = StatisticsKey(**(vars(KEY) | {name: value + type(value)(1)}))
        assert other.filename != KEY.filename
    slashed = StatisticsKey("/some/where: else", "valid", "c148", 64, "inception", "features")
    assert "/" not in slashed.filename


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text", "other key", "pickle"])
def test_damaged_statistics_are_computed_anew_and_say_so_once(tmp_path, moments, capsys, damage):
    computed = cached_statistics(tmp_path, KEY, moments)
    path = tmp_path / KEY.filename
    whole = path.read_bytes()
    if damage == "other key":
        other = StatisticsKey(**(vars(KEY) | {"split": "train"}))
        cached_statistics(tmp_path, other, lambda: {"mean": torch.zeros(6)})
        (tmp_path / other.filename).replace(path)
    elif damage == "flipped":
        middle = whole.index(computed["scatter"].numpy().tobytes()) + 100
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    elif damage == "pickle":
        torch.save(computed, path)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not found"}[damage])
    assert_equal(cached_statistics(tmp_path, KEY, moments), computed)
    said = capsys.readouterr().out
    assert str(path) in said and "anew" in said and said.count("\n") == 1
    assert_equal(cached_statistics(tmp_path, KEY, moments), computed)
    assert moments.times == 2 and capsys.readouterr().out == ""


def test_statistics_that_cannot_be_kept_are_returned_and_say_so(tmp_path, moments, capsys):
    (tmp_path / "file").write_text("in the way")
    computed = cached_statistics(tmp_path / "file", KEY, moments)
    assert_equal(computed, moments())
    said = capsys.readouterr().out
    assert "not kept" in said and said.count("\n") == 1


def test_a_computation_that_fails_leaves_nothing(tmp_path):
    def fails() -> dict[str, Tensor]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cached_statistics(tmp_path, KEY, fails)
    assert list(tmp_path.iterdir()) == []
