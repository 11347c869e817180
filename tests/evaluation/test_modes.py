"""Modes of Stacked MNIST: their count and KL, the classifier that reads digits, and the test of a run."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from degrain.data.digits import PackagedDigits
from degrain.data.stacked_mnist import StackedMNIST, StackedMNISTSource
from degrain.models.core.errors import InputError
from degrain.models.core.randomness import generator
from degrain.models.evaluation import digit_classifier as classifiers
from degrain.models.evaluation.digit_classifier import DigitClassifier, augmented, digit_classifier, train_classifier
from degrain.models.evaluation.modes import mode_coverage
from degrain.models.inference.pipeline import load_pipeline
from tests import tiny

STACKED = "degrain.data.stacked_mnist.StackedMNIST"
FEW = 5_000  # digits that the tests' classifier sees, of 100,000


@pytest.fixture(scope="module")
def source() -> StackedMNISTSource:
    return StackedMNISTSource(PackagedDigits(), count=1000, valid_count=100)


# --- modes and KL


def test_one_mode_has_a_kl_of_log_1000_and_even_modes_of_0():
    one, even = mode_coverage(torch.full((26_000,), 17)), mode_coverage(torch.arange(26_000) % 1000)
    assert (one.modes, even.modes) == (1, 1000)
    assert one.kl.item() == pytest.approx(math.log(1000), abs=1e-12)
    assert even.kl.item() == pytest.approx(0, abs=1e-12)


def test_kl_of_half_the_modes_is_log_2_and_of_two_shares_their_entropy():
    assert mode_coverage(torch.arange(1000) % 500).kl.item() == pytest.approx(math.log(2), abs=1e-12)
    uneven = mode_coverage(torch.tensor([0, 0, 0, 1]), modes=4)
    assert uneven.modes == 2
    assert uneven.kl.item() == pytest.approx(0.75 * math.log(3) + 0.25 * math.log(1), abs=1e-12)


def test_the_kl_of_26000_draws_of_the_uniform_distribution_is_its_known_bias():
    draws = torch.randint(1000, (40, 26_000), generator=generator(0))
    kl = torch.stack([mode_coverage(labels).kl for labels in draws])
    expected, spread = 999 / 52_000, (2 * 999) ** 0.5 / 52_000  # 2 N KL is nearly chi-squared with 999 degrees
    assert kl.mean().item() == pytest.approx(expected, rel=0.02)
    assert kl.std().item() == pytest.approx(spread, rel=0.4)


@pytest.mark.parametrize("labels", [[], [1000], [-1, 3]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(InputError, match="labels must run from 0 to 999"):
        mode_coverage(torch.tensor(labels, dtype=torch.int64))


# --- the classifier


@pytest.fixture(scope="module")
def few(source) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return training and held-out digits, as the data module does."""
    parts = {"train": source.single(False), "held_out": source.single(True)}
    return {name: (torch.from_numpy(x), torch.from_numpy(y).long()) for name, (x, y) in parts.items()}


@pytest.fixture(scope="module")
def quick(few, tmp_path_factory) -> tuple[DigitClassifier, Path]:
    """Return a classifier after a twentieth of the training, and its folder."""
    folder = tmp_path_factory.mktemp("classifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "DIGITS_SEEN", FEW)
        yield digit_classifier(few["train"], few["held_out"], folder), folder


def test_the_classifier_reads_held_out_digits_clean_and_noisy(quick, few):
    net, (images, labels) = quick[0], few["held_out"]
    assert 0.93 < net.accuracy < 1
    assert (net.read(images) == labels).float().mean().item() == pytest.approx(net.accuracy.item(), abs=1e-6)
    noisy = images / 255 + 0.2 * torch.randn(images.shape, generator=generator(0))
    read = net.read((255 * noisy.clamp(0, 1)).round().byte())
    assert (read == labels).float().mean() > net.accuracy - 0.06


def test_the_mode_of_a_stack_is_its_digits_in_order(quick, source):
    net, items = quick[0], range(2 * 10**9, 2 * 10**9 + 300)
    labels = torch.from_numpy(np.stack([source.chosen(i)[1] for i in items])).long() @ torch.tensor([100, 10, 1])
    for size in (32, 64):
        levels = torch.from_numpy(np.stack([source.read(i, size)["image"] for i in items])).permute(0, 3, 1, 2)
        modes = net.modes(levels)
        assert (modes == labels).float().mean() > net.accuracy**3 - 0.07
        assert torch.equal(net.modes(levels / 255), modes)  # floats are what their picture is
    with pytest.raises(InputError, match="not finite"):
        net.modes(levels / 0)


def test_the_classifier_is_cached_by_its_digits_and_seed(quick, few, monkeypatch):
    net, folder = quick
    monkeypatch.setattr(classifiers, "DIGITS_SEEN", FEW)
    monkeypatch.setattr(classifiers, "train_classifier", lambda *_: pytest.fail("is cached"))
    kept = digit_classifier(few["train"], few["held_out"], folder)
    assert all(torch.equal(a, b) for a, b in zip(kept.state_dict().values(), net.state_dict().values(), strict=True))
    assert not kept.training
    others = {"train": (few["train"][0].flip(0), few["train"][1]), "held_out": few["held_out"], "seed": 0}
    for changed in ({"seed": 1}, {"train": others["train"]}):
        with pytest.raises(pytest.fail.Exception, match="is cached"):
            digit_classifier(**{"train": few["train"], "held_out": few["held_out"], "folder": folder} | changed)


def test_training_is_a_function_of_its_seed_also_where_lightning_tests(few, monkeypatch):
    monkeypatch.setattr(classifiers, "DIGITS_SEEN", 300)
    one = train_classifier(*few["train"], seed=0)
    state = torch.get_rng_state()
    with torch.inference_mode():
        again = train_classifier(*few["train"], seed=0)
    other = train_classifier(*few["train"], seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.layers[0].weight, again.layers[0].weight)
    assert not torch.equal(one.layers[0].weight, other.layers[0].weight)


def test_augmented_digits_are_moved_a_little_and_half_of_them_noisy(few):
    x = few["train"][0][::10, None] / 255
    moved = augmented(x, generator(0))
    noise = moved[:, 0, :2, :2].std((1, 2))  # of the corner, which is black
    assert 0.35 < (noise > 0).float().mean() < 0.55 and 0 <= moved.min() and moved.max() <= 1
    clean = moved[noise == 0].flatten(1), x[noise == 0].flatten(1)
    likeness = torch.cosine_similarity(*clean)
    assert 0.4 < likeness.mean() < 0.95
    assert clean[0].sum().item() == pytest.approx(clean[1].sum().item(), rel=0.05)


# --- the test of a run


def stacked(root: Path, stage: str, subcommand: str, *options: str) -> Path:
    """Run a stage on few stacks, in the folder of its tiny run."""
    few = ("--data.count=16", "--data.valid_count=4", f"--data.cache={root}/cache", "--data.size=32")
    return tiny.run(root, stage, "--data", STACKED, *few, "--data.draws=30", *options, subcommand=subcommand)


@pytest.fixture(scope="module")
def tested(trained, quick, tmp_path_factory):
    """Test both stages on stacks with the cached classifier; return the root folder and those of the runs."""
    root = tmp_path_factory.mktemp("stacked")
    shutil.copytree(trained.root, root, dirs_exist_ok=True)
    shutil.copytree(quick[1], root / "cache", dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "DIGITS_SEEN", FEW)
        patch.setattr(classifiers, "train_classifier", lambda *_: pytest.fail("is cached"))
        return root, {stage: stacked(root, stage, "test") for stage in ("vae", "gan")}


def test_a_test_counts_the_modes_of_every_row_and_of_the_data(tested, quick):
    _, folders = tested
    for stage, rows in (("vae", ("data", "mean", "sample")), ("gan", ("data", "mean", "sample", "denoised"))):
        metrics = json.loads((folders[stage] / "metrics.json").read_text())
        table = (folders[stage] / "table.txt").read_text()
        assert {name.split("/")[1] for name in metrics if name.endswith("/modes")} == set(rows)
        for row in rows:
            assert 1 <= metrics[f"test/{row}/modes"] <= 30
            assert 0 < math.log(1000 / 30) - 1e-4 <= metrics[f"test/{row}/kl"] <= math.log(1000) + 1e-4
            assert re.search(rf"test/{row}/kl +\d", table) and re.search(rf"test/{row}/modes +\d", table)
        assert metrics["test/data/modes"] > 25
        assert metrics["test/digit_accuracy"] == pytest.approx(quick[0].accuracy.item())


def test_the_counted_draws_are_those_of_sampling(tested, quick):
    root, folders = tested
    data = StackedMNIST(size=32, cache=str(root / "cache"))
    rows = load_pipeline(folders["gan"] / "last.ckpt")[1].draw(0, range(30)) | {"data": data.stacks(range(30))}
    metrics = json.loads((folders["gan"] / "metrics.json").read_text())
    for row in ("data", "mean", "sample", "denoised"):
        coverage = mode_coverage(quick[0].modes(rows[row]))
        assert metrics[f"test/{row}/modes"] == coverage.modes
        assert metrics[f"test/{row}/kl"] == pytest.approx(coverage.kl.item(), abs=1e-5)


def test_other_data_have_no_modes(trained, tmp_path):
    shutil.copytree(trained.root, tmp_path, dirs_exist_ok=True)
    folder = tiny.run(tmp_path, "vae", subcommand="test")
    assert not [name for name in json.loads((folder / "metrics.json").read_text()) if "modes" in name]
