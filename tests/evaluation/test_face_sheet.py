"""The sheet of faces: every face once, in an order that the key alone knows; shares and intervals of the scores."""

from types import SimpleNamespace

import pytest
import torch

from models.evaluation.face_sheet import FaceSheet, main, read_key


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
    assert "0 (0 to 43)" in said and "kappa 0.77" in said


@pytest.mark.parametrize(("text", "said"), [("3 99", "no face 99; its numbers are 1 to 20"), (None, "one.txt")])
def test_wrong_scores_are_refused_in_a_line(made, tmp_path, capsys, text, said):
    if text is not None:
        (tmp_path / "one.txt").write_text(text)
    with pytest.raises(SystemExit):
        main([str(made[0]), str(tmp_path / "one.txt")])
    assert said in capsys.readouterr().err
    (tmp_path / "key.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "key.csv"), str(made[0])])
    assert "is no key of a sheet" in capsys.readouterr().err
