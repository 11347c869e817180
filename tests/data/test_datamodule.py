"""Test the data modules that configs name."""

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

from degrain.data.datamodule import CelebA, ImageDataModule, ImageFolder, MaskedImages, Portraits
from degrain.models.core.errors import InputError


class Recorder(pl.LightningModule):
    """Count images as the real modules do, and record the indices of the batches."""

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
    for split, count in (("train", 10), ("valid", 5), ("test", 5)):
        (tmp_path / split).mkdir()
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{i}.png")
    return tmp_path


def image_folder(folder, **options):
    common = {"size": 8, "batch_size": 4, "eval_batch_size": 2, "cache": str(folder / "cache")}
    return ImageFolder(root=str(folder), **common, **options)


def test_fit_stops_at_leg_end_and_continues_the_stream_from_images_seen(folder):
    whole, first = Recorder(leg_end=30), Recorder(leg_end=12)
    trainer().fit(whole, datamodule=image_folder(folder))
    trainer().fit(first, datamodule=image_folder(folder))
    second = Recorder(leg_end=30, images_seen=first.images_seen)
    trainer().fit(second, datamodule=image_folder(folder))
    assert whole.images_seen == 32  # the last batch is complete
    assert sorted(whole.seen["train"][:10]) == list(range(10))
    assert first.seen["train"] + second.seen["train"] == whole.seen["train"]
    assert whole.seen["valid"] == list(range(5))


def test_validation_and_test_see_every_image_once_in_order(folder):
    module = Recorder(leg_end=0)
    trainer().validate(module, datamodule=image_folder(folder, limit_valid=3), verbose=False)
    trainer().test(module, datamodule=image_folder(folder, limit_valid=3), verbose=False)
    assert module.seen == {"train": [], "valid": [0, 1, 2], "test": [0, 1, 2, 3, 4]}


def test_the_images_of_every_split_are_counted_once_at_the_start_also_from_a_cache(folder, capsys):
    for options, limit in (({}, ""), ({"limit_valid": 3}, " (--data.limit_valid 3)")):
        trainer().fit(Recorder(leg_end=4), datamodule=image_folder(folder, **options))
        said = [line for line in capsys.readouterr().out.splitlines() if "images: " in line]
        assert [line.partition("images: ")[2] for line in said] == [
            f"10 to train on, 5 to validate on{limit}, 5 to test on"
        ]


def one_of_two(folder: Path, rank: int, **settings: int) -> ImageFolder:
    """Return the data module of one of two processes, ready to validate."""
    data = image_folder(folder, **settings)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=strategy)
    data.setup("validate")
    return data


def test_processes_share_validation(folder):
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


def test_training_images_can_be_opened_in_a_test_and_loaded_by_number(folder):
    data = image_folder(folder)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    data.setup("test")
    assert "train" not in data.datasets and data.open_train() is None
    batches = list(data.numbered_dataloader("train", [7, 2, 9]))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [7, 2, 9]
    whole = data.datasets["train"].arrays["image"]
    assert torch.equal(batches[0]["image"][0], torch.from_numpy(whole[7].copy()).permute(2, 0, 1))


def test_a_source_without_training_images_is_reported(tmp_path):
    data = MaskedImages(root=str(tmp_path / "faces.npz"), size=32, cache=str(tmp_path))
    assert "for `test` only" in data.open_train() and "train" not in data.datasets


def test_identity_changes_with_the_images_of_a_split(folder):
    def identities(**options) -> set[str]:
        data = image_folder(folder, **options)
        data.setup("test")
        data.open_train()
        return {data.identity("test"), data.identity("train")}

    before = identities()
    assert len(before) == 2 and identities() == before and not identities(crop="none") & before
    image = next(path for path in sorted(folder.rglob("*.png")) if "test" in path.parts)
    os.utime(image, (0, 0))
    assert len(identities() & before) == 1  # the training split is unchanged


def test_portraits_come_with_regions(tmp_path):
    data = Portraits(count=4, valid_count=2, size=32, cache=str(tmp_path), noise={"skin": 0.05})
    data.setup("fit")
    batch = data.datasets["train"].__getitems__([0, (1, True)])
    assert batch["image"].shape == batch["clean"].shape == (2, 3, 32, 32)
    assert batch["regions"].shape == (2, 32, 32)
    assert data.describe()["images"] == {"train": 4, "valid": 2}


def test_wrong_input_is_refused_when_the_data_is_needed(tmp_path):
    for data in (CelebA(root=str(tmp_path / "nowhere")), ImageFolder(root=str(tmp_path / "nowhere"))):
        with pytest.raises(InputError, match="nowhere"):
            data.setup("fit")


@pytest.mark.parametrize("module", [Portraits, CelebA, ImageFolder])
def test_own_and_common_arguments_reach_the_command_line_with_their_help(module, capsys):
    parser = ArgumentParser()
    parser.add_subclass_arguments(ImageDataModule, "data")
    name = f"degrain.data.datamodule.{module.__name__}"
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
