"""The sheet of faces: every face once, in an order that the key alone knows; shares and intervals of the scores."""

from types import SimpleNamespace

import pytest
import torch

from degrain.models.evaluation.face_sheet import FaceSheet, kappa, main, read_key, shuffled
from tests.tiny import error_of


class Data:
    """Held-out images whose red is their number."""

    def describe(self) -> dict:
        return {"images": {"test": 40}, "size": 16}

    def numbered_dataloader(self, split: str, numbers: list[int]) -> list[dict]:
        return [{"image": torch.stack([flat(0.1 + number / 100) for number in numbers])}]


def flat(level: float) -> torch.Tensor:
    return torch.full((3, 16, 16), level)


class Drawer:
    """Draws are 0.9 and reconstructions their originals, a little darker."""

    rows, vae = ("mean", "std", "sample", "denoised"), True

    def draw(self, seed: int, numbers: range) -> dict[str, torch.Tensor]:
        return {"denoised": torch.stack([flat(0.9) for _ in numbers])}

    def reconstruct(self, seed: int, numbers: list[int], x: torch.Tensor) -> dict[str, torch.Tensor]:
        assert len(numbers) == len(x)
        return {"denoised": x - 0.05}


@pytest.fixture
def made(tmp_path):
    """Write the key of a sheet of 10 draws, 5 reconstructions and 5 photographs; return it with the pages."""
    subject = SimpleNamespace(
        data=Data(), pipeline=Drawer(), sheet=10, rank=0, photographs=lambda batch: batch["image"]
    )
    figures = FaceSheet(subject).measure().figures
    (tmp_path / "sheet_key.csv").write_text(figures.pop("sheet_key"))
    return tmp_path / "sheet_key.csv", figures


def test_every_face_is_on_the_sheet_under_the_number_that_the_key_has(made):
    path, pages = made
    key = read_key(path)
    assert sorted(key) == list(range(1, 21)) and list(pages) == ["sheet_1"]
    kinds = list(key.values())
    assert {kind: kinds.count(kind) for kind in kinds} == {"draws": 10, "reconstructions": 5, "photographs": 5}
    assert kinds != sorted(kinds)  # shuffled
    page = pages["sheet_1"]
    levels = {n: page.getpixel(((n - 1) % 8 * 130 + 64, (n - 1) // 8 * 154 + 88))[0] for n in key}
    assert {levels[n] for n in key if key[n] == "draws"} == {230}
    originals = {round(255 * (0.1 + number / 100)) for number in range(40)}
    photographs = {levels[n] for n in key if key[n] == "photographs"}
    assert len(photographs) == 5 and photographs <= originals


def test_scores_become_shares_with_wilsons_intervals(made, tmp_path, capsys):
    path, _ = made
    draws = [number for number, kind in read_key(path).items() if kind == "draws"]
    (tmp_path / "one.txt").write_text(f"# broken\n{draws[0]}, {draws[1]};{draws[2]}\n")
    (tmp_path / "two.txt").write_text(f"{draws[0]}\n{draws[1]}\n")
    main([str(path), str(tmp_path / "one.txt"), str(tmp_path / "two.txt")])
    said = capsys.readouterr().out
    assert "30 (11 to 60)" in said and "20 (6 to 51)" in said  # Wilson's of 3 and 2 of 10
    assert "0 (0 to 43)" in said and "kappa 0.77, of draws alone 0.74" in said


def test_another_models_sheet_has_another_order():
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    order, other = shuffled(images), shuffled(images.flip(3))
    assert order.equal(shuffled(images)) and not order.equal(other)
    assert sorted(order.tolist()) == sorted(other.tolist()) == list(range(64))


def test_fewer_draws_than_asked_for_are_said():
    assert FaceSheet(SimpleNamespace(data=Data(), sheet=40)).notes == []
    assert FaceSheet(SimpleNamespace(data=Data(), sheet=41)).notes == [
        "sheet: 40 draws and not 41, for as many held-out images"
    ]


def test_kappa_is_agreement_beyond_chance_or_undefined():
    """Of 10 faces both mark 2, one marks a third: observed 0.9, by chance 0.3 * 0.2 + 0.7 * 0.8 = 0.62."""
    assert kappa(set(range(10)), {0, 1, 2}, {0, 1}) == f"{(0.9 - 0.62) / 0.38:.2f}"
    assert kappa(set(range(10)), set(), set()) == "undefined" == kappa({1, 2}, {1, 2}, {1, 2})


WRONG_SCORES = {
    "absent": ("3 99", "no face 99; its numbers are 1 to 20"),
    "zero": ("0", "no face 0"),
    "range": ("3-7", "`3-7` is no number"),
    "words": ("none of 20", "`none` is no number"),
    "fraction": ("1.5", "`1.5` is no number"),
    "no file": (None, "one.txt"),
    "no text": (bytes(range(128, 256)), "is no text"),
}


@pytest.mark.parametrize("case", WRONG_SCORES)
def test_wrong_scores_are_refused_in_a_line(made, tmp_path, capsys, case):
    content, said = WRONG_SCORES[case]
    if content is not None:
        (tmp_path / "one.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in error_of(capsys, lambda: main([str(made[0]), str(tmp_path / "one.txt")]))


def test_raters_of_one_name_are_refused(made, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    raters = [tmp_path / "one.txt", tmp_path / "other/one.txt"]
    for rater in raters:
        rater.write_text("1, 2;\n 3 # 4\n")
    assert "another rater is called one" in error_of(capsys, lambda: main([str(made[0]), *map(str, raters)]))


@pytest.mark.parametrize("change", [("\n3,", "\n4,"), ("\n3,", "\n-3,"), (",draws", ",drawn"), ("number", "n"), None])
def test_a_damaged_key_is_refused(made, tmp_path, capsys, change):
    (tmp_path / "one.txt").write_text("1")
    text = made[0].read_text()
    made[0].write_text(text.replace(*change, 1) if change else "")
    assert "is no key of a sheet" in error_of(capsys, lambda: main([str(made[0]), str(tmp_path / "one.txt")]))
