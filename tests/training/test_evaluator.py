"""`train.py test` compares drawn images with held-out ones, here by a small feature network."""

import html
import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import train
from degrain.data.datamodule import Portraits
from degrain.models.evaluation import comparison
from degrain.models.evaluation.distances import kernel_distance
from degrain.models.evaluation.feature_collector import chosen_numbers
from degrain.models.evaluation.image_sets import BUDGETS, METRICS
from degrain.models.evaluation.report import Findings, Subject
from degrain.models.evaluation.spectrum import PowerSpectrum, spectrum_gap
from degrain.models.inference.pipeline import Pipeline, load_pipeline
from degrain.models.training import evaluator
from degrain.models.training.values import FinalValues
from tests import tiny
from tests.training.conftest import Patches

N, SEEDS, HELD_OUT = 9, 2, 19
DRAWN = {"vae": ["mean", "sample"], "gan": ["mean", "sample", "denoised"]}
ROWS = {
    stage: [*rows, *(f"reconstruction_{row}" for row in rows), "photographs", "train"] for stage, rows in DRAWN.items()
}


@pytest.fixture(scope="module")
def root(trained, tmp_path_factory):
    """Copy the finished runs, so that tests may write to them."""
    return Path(shutil.copytree(trained.root, tmp_path_factory.mktemp("evaluated"), dirs_exist_ok=True))


def evaluated(root: Path, stage: str, *options: str, n: int = N) -> Path:
    """Run `test` with an odd number of held-out images and of draws in each half."""
    settings = {"n": n, "seeds": SEEDS, "cache": root / "statistics", "batch_size": 8}
    arguments = [f"--evaluation.{name}={value}" for name, value in settings.items()]
    return tiny.run(root, stage, f"--data.valid_count={HELD_OUT}", *arguments, *options, subcommand="test")


def metrics(folder: Path) -> dict[str, float | str]:
    return json.loads((folder / "metrics.json").read_text())


# --- files of a test


def test_a_plain_gan_has_one_row_of_draws_and_no_ladder(root, net):
    tiny.run(root, "plain_gan", f"--model.budget={tiny.BATCH}", "--runs", str(root / "plain"))
    folder = evaluated(root, "plain_gan", "--runs", str(root / "plain"))
    found = metrics(root / "plain/plain_gan")
    rows = {name.split("/")[2] for name in found if name.endswith("/kernel")}
    assert rows == {"generated", "photographs", "train"}
    assert "test/patches/budget/frechet/generated/generator" in found
    assert not any("/prior/" in name for name in found) and folder.name == "plain_gan"


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_a_test_writes_rows_a_budget_a_ladder_and_pictures(root, net, capsys, figures, stage):
    folder = evaluated(root, stage)
    values, table = metrics(folder), (folder / "table.txt").read_text()
    page = html.unescape((folder / "report.html").read_text())
    assert all(cell in page for cell in table.split()) and page.count("data:image/png") >= 3
    assert f"<td>runs/{stage}/last.ckpt" in page.replace(f"{root}/", "") and f"<td>{N}</td>" in page
    assert f'"budget": {tiny.BUDGET},' in page and '"source": "portraits-s0"' in page  # of the checkpoint's card
    assert (folder / "budget.png").exists() and len(page) < 5e6
    spread = {f"test/patches/{row}/{name}_std" for row in DRAWN[stage] for name in METRICS}
    assert spread == {path for path in values if path.endswith("_std") and "/patches/" in path}
    ends = ("", "_low", "_high")
    assert {
        f"test/patches/{row}/{name}{end}" for row in ROWS[stage] for name in METRICS for end in ends
    } <= values.keys()
    assert {f"test/spectrum/{row}/{name}" for row in ROWS[stage] for name in ("gap", "error")} <= values.keys()
    assert {f"test/patches/prior/{name}/ratio" for name in ("standard", "fitted")} <= values.keys()
    for row in DRAWN[stage]:
        for metric in BUDGETS:
            parts = [values[f"test/patches/budget/{metric}/{row}/{part}"] for part in ("floor", "decoder", "prior")]
            assert sum(parts) == pytest.approx(values[f"test/patches/{row}/{metric}"], rel=1e-9)
        assert f"test/patches/budget/kernel/{row}/prior_alone" in values
    about = {"n": N, "seeds": SEEDS, "nets": "patches", "crop": "none", "size": 32}
    assert {name: values[f"test/about/{name}"] for name in about} == about
    assert f"{N} images on each side, {SEEDS} seeds of draws" in table and "crop none, 32 pixels" in table
    said = capsys.readouterr().out
    assert (
        table.strip() in said and "n 9, fewer than the features of patches: much of a Frechet distance is bias" in table
    )
    assert "18 of 19 held-out images, chosen with seed 0" in table
    assert f"test/{'distortion' if stage == 'vae' else 'margin'}" in table  # the module's own terms
    lines = [line.split()[0] for line in table.splitlines() if line.strip()]
    places = [lines.index(row) for row in ROWS[stage]]
    assert places == sorted(places)
    for doing in ("draws of seed 1", "comparing by patches", "reconstructions", "standard prior"):
        assert f"evaluation: {doing}" in said
    with Image.open(folder / "spectra.png") as spectra, Image.open(folder / "neighbours.png") as neighbours:
        assert spectra.size[0] > 500 and neighbours.size[0] > 16 * 96 and neighbours.size[1] > 4 * 96


def test_the_rows_measure_the_images_that_the_checkpoint_draws(root, net):
    folder = evaluated(root, "gan")
    values, pipeline = metrics(folder), load_pipeline(folder / "last.ckpt")[1]
    data = Portraits(valid_count=HELD_OUT, size=32, cache=str(root / "cache"))
    data.setup("test")
    chosen = chosen_numbers(HELD_OUT, 2 * N)
    real = data.datasets["test"].__getitems__(chosen)["image"]

    def crossed(images: Tensor) -> tuple[float, float]:
        """Return kernel distance and spectrum gap, each half of the images against the other half of `real`."""
        halves = [(images[half::2], real[1 - half :: 2]) for half in (0, 1)]
        kernels = [kernel_distance(net(one), net(other)).item() for one, other in halves]
        gaps = [spectrum_gap(PowerSpectrum.of(one), PowerSpectrum.of(other)).item() for one, other in halves]
        return np.mean(kernels), np.mean(gaps)

    for row in ("mean", "sample", "denoised"):
        found = [crossed(pipeline.draw(seed, range(2 * N))[row]) for seed in range(SEEDS)]
        kernels, gaps = zip(*found, strict=True)
        assert values[f"test/patches/{row}/kernel"] == pytest.approx(np.mean(kernels), rel=1e-4)
        assert values[f"test/patches/{row}/kernel_std"] == pytest.approx(np.std(kernels, ddof=1), rel=1e-2, abs=1e-9)
        assert values[f"test/spectrum/{row}/gap"] == pytest.approx(np.mean(gaps), rel=1e-4)
    mean = pipeline.reconstruct(0, chosen, real.float() / 255)["mean"]
    assert values["test/patches/reconstruction_mean/kernel"] == pytest.approx(crossed(mean)[0], rel=1e-4)


def test_n_is_by_default_half_of_the_held_out_images(root, net):
    folder = tiny.run(
        root, "vae", "--data.valid_count=17", f"--evaluation.cache={root}/half", "--name=half",
        f"--ckpt_path={root}/runs/vae/last.ckpt", subcommand="test",
    ).with_name("half")  # fmt: skip
    assert metrics(folder)["test/about/n"] == 8


def test_nearest_neighbours_are_training_images_and_the_nearest(root, net):
    data = Portraits(count=64, valid_count=HELD_OUT, size=32, cache=str(root / "cache"))
    data.trainer = type("Trainer", (), {"strategy": type("S", (), {"root_device": torch.device("cpu")})})
    assert data.open_train() is None
    chosen = torch.arange(1, 60, 2)
    images = data.datasets["train"].__getitems__(chosen.tolist())["image"]
    pipeline = load_pipeline(root / "runs/gan/last.ckpt")[1]
    subject = SimpleNamespace(data=data, pipeline=pipeline)
    bank = net(images)
    drawn = bank[[4, 9]] + 1e-4  # as if two training images had been drawn
    found = comparison.nearest_training_images(subject, "denoised", drawn, bank, chosen)
    assert list(found) == ["denoised", "nearest", "2nd nearest", "3rd nearest"]
    assert found["nearest"].equal(images[[4, 9]])
    assert found["denoised"].equal(pipeline.draw(0, range(2))["denoised"])


def test_several_networks_measure_the_same_images_and_a_verdict_that_turns_is_said(root, net, monkeypatch):
    class Opposite(Patches):
        name = "opposite"

        def features(self, levels: Tensor) -> Tensor:
            """Return features in which photographs are at 0 and everything else far away, but less so a noisy image."""
            rough = (levels.float().diff(dim=3).abs().mean((1, 2, 3)) / 255)[:, None]
            return torch.cat([super().features(levels) * 1e-3, rough.clamp(max=1) * 100], 1)

    monkeypatch.setattr(evaluator, "feature_nets", lambda *_: [net, Opposite()])
    folder = evaluated(root, "vae", "--name=eyes", f"--ckpt_path={root}/runs/vae/last.ckpt").with_name("eyes")
    values, table = metrics(folder), (folder / "table.txt").read_text()
    assert values["test/about/nets"] == "patches, opposite"
    for name in ("patches", "opposite"):
        assert f"features of {name}:" in table
        assert {f"test/{name}/{row}/{metric}" for row in ROWS["vae"] for metric in METRICS} <= values.keys()
    assert values["test/patches/mean/kernel"] != values["test/opposite/mean/kernel"]


def test_a_test_says_that_a_network_cannot_tell_held_out_images_apart(root, net, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(Patches, "features", lambda self, levels: torch.ones(len(levels), self.dimension))
    evaluated(root, "vae", "--evaluation.seeds=1", f"--evaluation.cache={tmp_path}")  # other features: another cache
    assert f"{2 * N} of {2 * N} held-out images have the features of another" in capsys.readouterr().out


def test_copies_among_the_held_out_images_are_said():
    one = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert comparison.copy_lines(one) == []
    (line,) = comparison.copy_lines(one[[0, 1, 2, 3, 4, 4]])
    assert line.startswith("2 of 6 held-out images have the features of another")


# --- being stopped


def test_a_test_that_is_told_to_end_ends_while_it_measures(root, net, monkeypatch):
    draw = Pipeline.draw

    def terminated(*args) -> dict[str, Tensor]:
        signal.raise_signal(signal.SIGTERM)
        return draw(*args)

    monkeypatch.setattr(Pipeline, "draw", terminated)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        evaluated(root, "vae", "--name=stopped", f"--ckpt_path={root}/runs/vae/last.ckpt")
    signal.signal(signal.SIGTERM, handler)
    assert caught.value.code == 143 and not (root / "runs/stopped/metrics.json").exists()


# --- real images are measured once


def test_statistics_of_real_images_are_kept_under_all_that_they_depend_on(root, net, tmp_path):
    def seen(*options: str, n: int = N) -> int:
        net.seen = 0
        evaluated(root, "vae", f"--evaluation.cache={tmp_path / 'new'}", *options, n=n)
        return net.seen

    drawn = (2 * SEEDS + 1 + 2) * 2 * N  # mean and sample of two seeds, the standard prior, reconstructions
    assert seen() == drawn + 4 * N
    assert seen() == drawn
    assert seen(f"--data.valid_count={HELD_OUT + 1}") == drawn + 2 * N  # other held-out images
    assert seen("--data.count=63") == drawn + 2 * N  # other training images


# --- several processes


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_two_processes_find_what_one_does(root, net, stage, tmp_path):
    evaluated(root, stage)
    one = metrics(root / "runs" / stage)
    parallel = ["--trainer.devices=2", "--trainer.strategy=ddp_fork", f"--evaluation.cache={tmp_path / 'two'}"]
    last = root / "runs" / stage / "last.ckpt"
    folder = evaluated(root, stage, *parallel, "--name=two", f"--ckpt_path={last}")
    two = metrics(folder.with_name("two"))
    shutil.rmtree(folder.with_name("two"))
    names = [name for name in one if name.startswith("test/")]
    assert len(names) > 40 and set(names) == {name for name in two if name.startswith("test/")}
    for name in names:
        assert two[name] == (one[name] if isinstance(one[name], str) else pytest.approx(one[name], rel=1e-4)), name


# --- refusals


def test_without_training_images_the_rest_is_measured_and_a_line_says_so(root, net, tmp_path, capsys):
    rng = np.random.default_rng(0)
    masks = np.repeat(np.array([[1] * 16 + [13] * 16], np.uint8), 32, 0)
    np.savez(
        tmp_path / "f.npz", images=rng.integers(0, 256, (16, 32, 32, 3), np.uint8), masks=np.tile(masks, (16, 1, 1))
    )
    shutil.copytree(root / "runs/vae", tmp_path / "runs/vae")
    (tmp_path / "runs/vae/neighbours.png").unlink(missing_ok=True)
    options = ["--data", "degrain.data.datamodule.MaskedImages", "--data.root", str(tmp_path / "f.npz")]
    options += ["--evaluation.n=8", "--data.cache", str(tmp_path / "cache"), f"--runs={tmp_path / 'runs'}"]
    tiny.run(root, "vae", *options, f"--evaluation.cache={tmp_path}", subcommand="test")
    table = (tmp_path / "runs/vae/table.txt").read_text()
    assert "no row train and no nearest neighbours: masked images" in table and "hair" in table
    values = metrics(tmp_path / "runs/vae")
    assert values["test/patches/mean/kernel"] > 0 and not any("/train/" in name for name in values)
    assert not (tmp_path / "runs/vae/neighbours.png").exists()


REFUSED = {
    "few images": (["--evaluation.n=7"], "n (7) must be at least 8"),
    "less than no sheet": (["--evaluation.sheet=-1"], "sheet (-1)"),
    "a sheet of one": (["--evaluation.sheet=1"], "sheet (1) at least 2, or 0 for none"),
    "hardly any held-out images": (["--data.valid_count=11"], "11 held-out images are too few; give at least 16"),
    "no seeds": (["--evaluation.seeds=0"], "seeds (0)"),
    "few held-out images": (["--data.valid_count=17"], "17 held-out images are too few for n 9"),
    "no weights": (
        ["--evaluation.net=inception", "--evaluation.weights=absent.pth"],
        "inception: no weights absent.pth",
    ),
    "weights of nothing": (["--evaluation.weights=absent.pth"], "takes no such option"),
    "no such net": (["--evaluation.net=vgg"], "vgg"),
    "a typo": (["--evaluation.sedes=1"], "unknown name `sedes`; did you mean `seeds`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line_before_anything_is_measured(root, capsys, monkeypatch, case):
    options, said = REFUSED[case]
    monkeypatch.setattr(FinalValues, "write", lambda *_: pytest.fail("was measured"))
    with pytest.raises(SystemExit) as caught:
        evaluated(root, "vae", *options)
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]  # behind the bar of the images that were drawn for it
    assert line.startswith("error: ") and said in line


def test_evaluation_can_be_left_out(root, net):
    folder = evaluated(root, "vae", "--evaluation.off=true", "--name=off", f"--ckpt_path={root}/runs/vae/last.ckpt")
    values = metrics(folder.with_name("off"))
    assert net.seen == 0 and "test/distortion" in values and "test/patches/mean/kernel" not in values


def test_another_evaluator_is_an_entry_in_the_list(root, monkeypatch):
    class Brightness:
        """The mean of the decoder's means, for a VAE."""

        def __init__(self, subject: Subject) -> None:
            self.subject, self.notes = subject, ["brightness of 4 images"]

        @staticmethod
        def applies(subject: Subject) -> bool:
            return "mean" in subject.pipeline.rows

        def measure(self) -> Findings:
            brightness = self.subject.pipeline.draw(0, range(4))["mean"].mean().item()
            return Findings({"mean/brightness": brightness}, [f"brightness {brightness:.4f}"])

    monkeypatch.setattr(evaluator, "EVALUATORS", (*evaluator.EVALUATORS, Brightness))
    options = ["--evaluation.off=true", "--name=brightness", f"--ckpt_path={root}/runs/vae/last.ckpt"]
    folder = evaluated(root, "vae", *options).with_name("brightness")
    assert 0 < metrics(folder)["test/mean/brightness"] < 1 and "\n\nbrightness 0." in (folder / "table.txt").read_text()


def test_every_option_is_explained_by_the_help_of_test_alone(capsys):
    for subcommand, there in (("test", True), ("fit", False)):
        with pytest.raises(SystemExit):
            train.main([subcommand, "--help", "all"])
        shown = " ".join(capsys.readouterr().out.split())
        assert ("--evaluation.seeds SEEDS how often images are drawn" in shown) == there
        assert ("--evaluation.off" in shown) == there
