"""`train.py test` compares drawn images with held-out ones, here by a small feature network."""

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import train
from data.datamodule import Portraits
from models.evaluation import comparison, image_sets
from models.evaluation.distances import kernel_distance
from models.evaluation.feature_net import FeatureNet
from models.evaluation.image_sets import METRICS
from models.evaluation.report import Findings, Subject
from models.evaluation.spectrum import PowerSpectrum, spectrum_gap
from models.inference.pipeline import Pipeline, load_pipeline
from models.training import evaluator
from models.training.values import FinalValues
from tests import tiny

N, SEEDS, HELD_OUT = 25, 2, 21
ROWS = {"vae": ["mean", "sample", "reconstruction", "train"]}
ROWS["gan"] = ["mean", "sample", "denoised", "reconstruction", "reconstruction_denoised", "train"]


class Patches(FeatureNet):
    """The mean colour of four by four patches; it counts the images that it has seen."""

    name, dimension = "patches", 48

    def __init__(self) -> None:
        super().__init__()
        self.anchor, self.seen = nn.Parameter(torch.zeros(())), 0

    def features(self, levels: Tensor) -> Tensor:
        self.seen += len(levels)
        return F.adaptive_avg_pool2d(levels.float() / 255, 4).flatten(1)


@pytest.fixture
def net(monkeypatch) -> Patches:
    """Replace the named network."""
    net = Patches()
    assert net.identity.startswith("patches-")
    net.seen = 0
    monkeypatch.setattr(evaluator, "feature_net", lambda *_: net)
    return net


@pytest.fixture(scope="module")
def root(trained, tmp_path_factory):
    """Copy the finished runs, so that tests may write to them."""
    return Path(shutil.copytree(trained.root, tmp_path_factory.mktemp("evaluated"), dirs_exist_ok=True))


def evaluated(root: Path, stage: str, *options: str, n: int = N) -> Path:
    """Run `test` with an odd number of held-out images and of draws."""
    settings = {"n": n, "seeds": SEEDS, "cache": root / "statistics", "batch_size": 8}
    arguments = [f"--evaluation.{name}={value}" for name, value in settings.items()]
    return tiny.run(root, stage, f"--data.valid_count={HELD_OUT}", *arguments, *options, subcommand="test")


def metrics(folder: Path) -> dict[str, float | str]:
    return json.loads((folder / "metrics.json").read_text())


# --- files of a test


def test_a_plain_gan_has_one_row_and_no_ladder(root, net):
    tiny.run(root, "plain_gan", f"--model.budget={tiny.BATCH}", "--runs", str(root / "plain"))
    folder = evaluated(root, "plain_gan", "--runs", str(root / "plain"))
    found = metrics(root / "plain/plain_gan")
    assert {name.split("/")[1] for name in found if name.endswith("/kernel")} == {"generated", "train"}
    assert not any(name.startswith("test/prior") for name in found) and folder.name == "plain_gan"


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_a_test_writes_rows_a_ladder_and_pictures(root, net, capsys, stage):
    folder = evaluated(root, stage)
    values, table = metrics(folder), (folder / "table.txt").read_text()
    spread = {f"test/{row}/{name}" for row in ROWS[stage][: 2 + (stage == "gan")] for name in METRICS[1:]}
    assert {f"{path}_std" for path in spread} == {path for path in values if path.endswith("_std")}
    assert {f"test/{row}/{name}" for row in ROWS[stage] for name in METRICS[1:]} <= values.keys()
    assert {f"test/prior/{name}/ratio_equal_n" for name in ("standard", "fitted")} <= values.keys()
    about = {"n": N, "seeds": SEEDS, "held_out": HELD_OUT, "train": N, "net": "patches", "crop": "none", "size": 32}
    assert {name: values[f"test/about/{name}"] for name in about} == about
    head = f"drawn images: {N} of each of {SEEDS} seeds beside {HELD_OUT} held-out images; features of patches"
    assert f"{head}; crop none, 32 pixels" in table
    said = capsys.readouterr().out
    assert table.strip() in said and "no Frechet distance (FID) of 25 draws and 21 held-out images" in table
    assert f"test/{'distortion' if stage == 'vae' else 'margin'}" in table  # the module's own terms
    lines = [line.split()[0] for line in table.splitlines() if line.strip()]
    places = [lines.index(row) for row in ROWS[stage]]
    assert places == sorted(places)
    for doing in ("draws of seed 1", "comparing draws of seed 1", "reconstructions", "standard prior"):
        assert f"evaluation: {doing}" in said
    with Image.open(folder / "spectra.png") as spectra, Image.open(folder / "neighbours.png") as neighbours:
        assert spectra.size[0] > 500 and neighbours.size[0] > 16 * 96 and neighbours.size[1] > 4 * 96


def test_the_rows_measure_the_images_that_the_checkpoint_draws(root, net):
    folder = evaluated(root, "gan")
    values, pipeline = metrics(folder), load_pipeline(folder / "last.ckpt")[1]
    data = Portraits(valid_count=HELD_OUT, size=32, cache=str(root / "cache"))
    data.setup("test")
    real = data.datasets["test"].__getitems__(range(HELD_OUT))["image"]
    for row in ("mean", "sample", "denoised"):
        drawn = [pipeline.draw(seed, range(N))[row] for seed in range(SEEDS)]
        kernels = [kernel_distance(net(images), net(real), subset_size=HELD_OUT).mean.item() for images in drawn]
        gaps = [spectrum_gap(PowerSpectrum.of(images), PowerSpectrum.of(real)).item() for images in drawn]
        for name, found in (("kernel", kernels), ("spectrum_gap", gaps)):
            assert values[f"test/{row}/{name}"] == pytest.approx(np.mean(found), rel=1e-4)
            assert values[f"test/{row}/{name}_std"] == pytest.approx(np.std(found, ddof=1), rel=1e-2, abs=1e-9)
    x = real.float() / 255
    mean = pipeline.reconstruct(0, range(HELD_OUT), x)["mean"]
    assert values["test/reconstruction/kernel"] == pytest.approx(
        kernel_distance(net(mean), net(real), subset_size=HELD_OUT).mean.item(), rel=1e-4
    )


def test_enough_images_have_frechet_distances_and_ratios(root, net, monkeypatch):
    monkeypatch.setattr(image_sets, "FRECHET_LEAST", 20)
    monkeypatch.setattr(comparison, "FRECHET_LEAST", 20)
    folder = evaluated(root, "vae")
    values = metrics(folder)
    assert all(values[f"test/{row}/frechet"] > 0 for row in ROWS["vae"]) and values["test/mean/frechet_std"] > 0
    assert values["test/mean/frechet"] > values["test/train/frechet"]  # it has seen 96 images
    ratio = values["test/prior/standard/frechet"] / values["test/prior/halves/frechet"]
    assert values["test/prior/standard/ratio"] == pytest.approx(ratio)
    assert "no Frechet distance" not in (folder / "table.txt").read_text()
    monkeypatch.undo()
    monkeypatch.setattr(evaluator, "feature_net", lambda *_: net)
    evaluated(root, "vae")
    assert not any("frechet" in name for name in metrics(folder) if "halves" not in name)  # nothing is left of before


def test_nearest_neighbours_are_training_images_and_the_nearest(root, net):
    data = Portraits(count=64, valid_count=HELD_OUT, size=32, cache=str(root / "cache"))
    data.trainer = type("Trainer", (), {"strategy": type("S", (), {"root_device": torch.device("cpu")})})
    assert data.open_train() is None
    chosen = torch.arange(1, 60, 2)
    images = data.datasets["train"].__getitems__(chosen.tolist())["image"]
    pipeline = load_pipeline(root / "runs/gan/last.ckpt")[1]
    subject = SimpleNamespace(data=data, pipeline=pipeline)
    bank = net(images)
    first = {"mean": bank[:0], "denoised": bank[[4, 9]] + 1e-4}  # as if two training images had been drawn
    found = comparison.nearest_training_images(subject, first, bank, chosen)
    assert list(found) == ["denoised", "nearest", "2nd nearest", "3rd nearest"]
    assert found["nearest"].equal(images[[4, 9]])
    assert found["denoised"].equal(pipeline.draw(0, range(2))["denoised"])


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

    drawn = (2 * SEEDS + 1) * N + HELD_OUT  # mean and sample of two seeds, the standard prior, reconstructions
    assert seen() == drawn + HELD_OUT + N
    assert seen() == drawn
    assert seen(f"--data.valid_count={HELD_OUT + 1}") == drawn + 1 + HELD_OUT + 1  # other held-out images
    assert seen("--data.count=63", n=N + 5) == drawn + (2 * SEEDS + 1) * 5 + N + 5  # other training images


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
    np.savez(tmp_path / "f.npz", images=rng.integers(0, 256, (7, 32, 32, 3), np.uint8), masks=np.tile(masks, (7, 1, 1)))
    shutil.copytree(root / "runs/vae", tmp_path / "runs/vae")
    (tmp_path / "runs/vae/neighbours.png").unlink(missing_ok=True)
    options = ["--data", "data.datamodule.MaskedImages", "--data.root", str(tmp_path / "f.npz")]
    options += ["--evaluation.n=8", "--data.cache", str(tmp_path / "cache"), f"--runs={tmp_path / 'runs'}"]
    tiny.run(root, "vae", *options, f"--evaluation.cache={tmp_path}", subcommand="test")
    table = (tmp_path / "runs/vae/table.txt").read_text()
    assert "no row train and no nearest neighbours: masked images" in table and "hair" in table
    values = metrics(tmp_path / "runs/vae")
    assert values["test/mean/kernel"] > 0 and not any(name.startswith("test/train/") for name in values)
    assert not (tmp_path / "runs/vae/neighbours.png").exists()


REFUSED = {
    "few draws": (["--evaluation.n=5"], "n (5) must be at least 6"),
    "no seeds": (["--evaluation.seeds=0"], "seeds (0)"),
    "few held-out images": (["--data.valid_count=5"], "5 held-out images and n 25"),
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
    assert net.seen == 0 and "test/distortion" in values and "test/mean/kernel" not in values


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
            train.main([subcommand, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert ("--evaluation.seeds SEEDS how often they are drawn" in shown) == there
        assert ("--evaluation.off" in shown) == there
