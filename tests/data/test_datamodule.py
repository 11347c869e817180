"""The stream of training images, batches from the cache, and the data modules that configs name."""

import itertools
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from data.datamodule import CachedImages, CelebA, ImageDataModule, ImageFolder, MaskedImages, Portraits, ShuffledStream
from models.core.errors import InputError


def stream(start=0, stop=100, n=7, batch_size=4, seed=0, flip=True, **ranks):
    return list(ShuffledStream(n, batch_size, start, stop, seed, flip, **ranks))


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


# --- the stream


def test_order_depends_on_seed_and_position_alone():
    whole = flat(stream())
    assert whole == flat(stream())
    for start in (4, 13, 50):
        assert flat(stream(start, stop=start + 40)) == whole[start : start + 40]
    assert flat(stream(batch_size=10)) == whole
    assert flat(stream(seed=1)) != whole


def test_each_image_once_per_n_positions():
    elements = flat(stream(stop=7 * 8, batch_size=8))
    for epoch in range(8):
        assert sorted(index for index, _ in elements[epoch * 7 : epoch * 7 + 7]) == list(range(7))
    assert len({tuple(elements[epoch * 7 : epoch * 7 + 7]) for epoch in range(8)}) == 8


@pytest.mark.parametrize("batch_size", [4, 20])  # smaller and larger than the data set
def test_processes_share_out_the_same_batches(batch_size):
    alone = stream(batch_size=batch_size)
    shares = [stream(batch_size=batch_size, rank=rank, world=2) for rank in range(2)]
    assert alone == [flat(zip(first, second, strict=True)) for first, second in zip(*shares, strict=True)]


@pytest.mark.parametrize(("start", "stop", "batches"), [(0, 12, 3), (0, 13, 4), (5, 12, 2), (12, 12, 0), (13, 12, 0)])
def test_length_is_the_batches_to_come_and_all_are_whole(start, stop, batches):
    assert len(ShuffledStream(7, 4, start, stop, 0, True)) == batches
    assert [len(batch) for batch in stream(start, stop)] == [4] * batches


def test_half_are_flipped_or_none():
    flips = [flip for _, flip in flat(stream(stop=4000, n=100))]
    assert 0.45 < np.mean(flips) < 0.55
    assert len({tuple(flips[epoch * 100 : epoch * 100 + 100]) for epoch in range(40)}) == 40
    assert not any(flip for _, flip in flat(stream(flip=False)))
    order = [index for index, _ in flat(stream())]
    assert order == [index for index, _ in flat(stream(flip=False))]


def test_batch_size_must_be_a_multiple_of_the_processes():
    with pytest.raises(InputError, match="--data.batch_size 4: choose a multiple of the 3 processes"):
        stream(rank=0, world=3)


# --- batches


def arrays(count=6, size=4):
    rng = np.random.default_rng(0)
    rgb = (count, size, size, 3)
    shapes = {"image": rgb, "regions": rgb[:3], "clean": rgb}
    return {name: rng.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}


def test_batch_is_channels_first_uint8_in_the_order_asked_for():
    cache = arrays()
    batch = CachedImages(cache).__getitems__([4, 0, (2, False)])
    assert batch["index"].tolist() == [4, 0, 2]
    for name in ("image", "clean"):
        assert batch[name].dtype == torch.uint8 and batch[name].is_contiguous()
        assert np.array_equal(batch[name].numpy(), cache[name][[4, 0, 2]].transpose(0, 3, 1, 2))
    assert np.array_equal(batch["regions"].numpy(), cache["regions"][[4, 0, 2]])


def test_a_flip_turns_all_arrays_and_leaves_the_cache():
    cache, before = arrays(), arrays()
    batch = CachedImages(cache).__getitems__([(1, True), (1, False)])
    for name in cache:
        flipped, straight = batch[name]
        assert torch.equal(flipped, straight.flip(-1)) and not torch.equal(flipped, straight)
        assert np.array_equal(cache[name], before[name])


def test_one_item_equals_its_row_of_a_batch():
    images = CachedImages(arrays())
    batch = images.__getitems__([3, (5, True)])
    assert len(images) == 6
    for row, item in enumerate([3, (5, True)]):
        assert all(torch.equal(images[item][name], batch[name][row]) for name in batch)


# --- data modules


class Recorder(pl.LightningModule):
    """Counts images as the real modules do and keeps the indices that it is given."""

    def __init__(self, leg_end, images_seen=0):
        super().__init__()
        self.automatic_optimization = False
        self.leg_end, self.images_seen = leg_end, images_seen
        self.seen = {"train": [], "valid": [], "test": []}

    def training_step(self, batch, _):
        assert batch["image"].shape[1:] == (3, 8, 8) and batch["image"].dtype == torch.uint8
        self.images_seen += len(batch["index"])
        self.seen["train"] += batch["index"].tolist()

    def validation_step(self, batch, _):
        self.seen["valid"] += batch["index"].tolist()

    def test_step(self, batch, _):
        self.seen["test"] += batch["index"].tolist()

    def configure_optimizers(self):
        return None


def trainer():
    return pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 10), ("valid", 5)):
        (tmp_path / split).mkdir()
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{i}.png")
    return tmp_path


def image_folder(folder, **options):
    common = {"size": 8, "batch_size": 4, "eval_batch_size": 2, "cache": str(folder / "cache")}
    return ImageFolder(root=str(folder), **common, **options)


def test_fit_sees_the_stream_up_to_the_end_of_the_leg_and_goes_on_where_it_was(folder):
    whole, first = Recorder(leg_end=30), Recorder(leg_end=12)
    trainer().fit(whole, datamodule=image_folder(folder))
    trainer().fit(first, datamodule=image_folder(folder))
    second = Recorder(leg_end=30, images_seen=first.images_seen)
    trainer().fit(second, datamodule=image_folder(folder))
    assert whole.images_seen == 32  # the last batch is a whole one
    assert sorted(whole.seen["train"][:10]) == list(range(10))
    assert first.seen["train"] + second.seen["train"] == whole.seen["train"]
    assert whole.seen["valid"] == list(range(5))


def test_validation_and_test_see_every_image_once_in_order(folder):
    module = Recorder(leg_end=0)
    trainer().validate(module, datamodule=image_folder(folder, limit_valid=3), verbose=False)
    trainer().test(module, datamodule=image_folder(folder, limit_valid=3), verbose=False)
    assert module.seen == {"train": [], "valid": [0, 1, 2], "test": [0, 1, 2, 3, 4]}


def one_of_two(folder: Path, rank: int, **settings: int) -> ImageFolder:
    """The data module of one of two processes, ready to validate."""
    data = image_folder(folder, **settings)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=strategy)
    data.setup("validate")
    return data


def test_processes_share_out_validation(folder):
    seen = [batch["index"].tolist() for rank in (0, 1) for batch in one_of_two(folder, rank).val_dataloader()]
    assert seen == [[0, 2], [4], [1, 3]]


def test_a_process_without_an_image_to_validate_on_is_refused(folder):
    for rank in (0, 1):
        with pytest.raises(InputError, match="1 images in valid for 2 processes"):
            one_of_two(folder, rank, limit_valid=1).val_dataloader()


def test_describe_is_plain_and_complete(folder):
    data = image_folder(folder)
    data.setup("fit")
    about = data.describe()
    assert about == {
        "source": data.source().name,
        "crop": "square",
        "size": 8,
        "images": {"train": 10, "valid": 5},
    }


def test_training_images_can_be_opened_in_a_test_and_asked_for_by_number(folder):
    data = image_folder(folder)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    data.setup("test")
    assert "train" not in data.datasets and data.open_train() is None
    batches = list(data.numbered_dataloader("train", [7, 2, 9]))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [7, 2, 9]
    whole = data.datasets["train"].arrays["image"]
    assert torch.equal(batches[0]["image"][0], torch.from_numpy(whole[7].copy()).permute(2, 0, 1))


def test_a_source_without_training_images_says_so(tmp_path):
    data = MaskedImages(root=str(tmp_path / "faces.npz"), size=32, cache=str(tmp_path))
    assert "for `validate` and `test` only" in data.open_train() and "train" not in data.datasets


def test_identity_follows_the_images_of_a_split(folder):
    def identities(**options) -> set[str]:
        data = image_folder(folder, **options)
        data.setup("test")
        data.open_train()
        return {data.identity("test"), data.identity("train")}

    before = identities()
    assert len(before) == 2 and identities() == before and not identities(crop="none") & before
    image = next(path for path in sorted(folder.rglob("*.png")) if "valid" in path.parts)
    os.utime(image, (0, 0))
    assert len(identities() & before) == 1  # training is as it was


def test_portraits_bring_their_regions(tmp_path):
    data = Portraits(count=4, valid_count=2, size=32, cache=str(tmp_path), noise={"skin": 0.05})
    data.setup("fit")
    batch = data.datasets["train"].__getitems__([0, (1, True)])
    assert batch["image"].shape == batch["clean"].shape == (2, 3, 32, 32)
    assert batch["regions"].shape == (2, 32, 32)
    assert data.describe()["images"] == {"train": 4, "valid": 2}


def test_wrong_input_is_a_data_error_when_the_data_is_needed(tmp_path):
    for data in (CelebA(root=str(tmp_path / "nowhere")), ImageFolder(root=str(tmp_path / "nowhere"))):
        with pytest.raises(InputError, match="nowhere"):
            data.setup("fit")


@pytest.mark.parametrize("module", [Portraits, CelebA, ImageFolder])
def test_own_and_common_arguments_reach_the_command_line_with_their_help(module, capsys):
    parser = ArgumentParser()
    parser.add_subclass_arguments(ImageDataModule, "data")
    name = f"data.datamodule.{module.__name__}"
    root = [] if module is Portraits else ["--data.root=DIR"]
    arguments = parser.parse_args([f"--data={name}", *root, "--data.size=32"]).data.init_args
    assert arguments.size == 32 and arguments.batch_size == 64
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help={name}"])
    shown = " ".join(capsys.readouterr().out.split())
    documented = module.__doc__ + ImageDataModule.__doc__
    for argument in vars(arguments):
        line = re.search(rf"^ +{argument}: (.+)$", documented, re.MULTILINE)
        assert line and line[1] in shown, argument
