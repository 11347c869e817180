"""Bad data sets: one line answers each, and nothing is changed."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from degrain.data.celeba import ARCHIVE, IMAGES, PARTITION
from tests.bad_input.cases import CELEBA, DATA, PHOTOS, VAE, Case, of_vae
from tests.bad_input.spoil import cut, denied, evil, flipped, folders, holding, plain_pickle, without, zipped

CASES = {
    "absent": Case(f"{PHOTOS} --data.root absent", "no folder absent; pass --data.root DIR"),
    "a file, no folder": Case(f"{PHOTOS} --data.root vae.yaml", "no folder vae.yaml; pass --data.root"),
    "empty": Case(
        f"{PHOTOS} --data.root empty --wandb offline",
        r"no train images in empty; add some \(jpg, .*webp, bmp",
        folders("empty"),
    ),
    "an empty image": Case(
        PHOTOS,
        r"photos/train/0.png: not a readable image \(the file is empty\); --data.skip_corrupt true leaves such out",
        holding("photos/train/0.png", b""),
    ),
    "a truncated image": Case(PHOTOS, "train/2.jpg: not a readable image .*skip_corrupt", cut("photos/train/2.jpg")),
    "a text as image": Case(
        PHOTOS, r"train/1.png: .*of no known format\).*skip_corrupt", holding("photos/train/1.png", b"<html>")
    ),
    "no image that can be read": Case(
        f"{PHOTOS} --data.skip_corrupt true", "none of its 1 images is readable", holding("photos/valid/3.png", b"")
    ),
    "too small": Case(f"{PHOTOS} --data.crop c108", "0.png: 40x40 is smaller than the crop; change --data.crop"),
    "unreadable": Case(
        PHOTOS, r"1.png: cannot be read \(Permission denied\); check that", fails=partial(denied, "1.png")
    ),
    "an unreadable folder": Case(
        PHOTOS, r"photos/train: cannot be read \(Permission denied\); check that", fails=partial(denied, "train")
    ),
    "a link to nothing": Case(
        PHOTOS,
        r"photos/train/gone.png: cannot be read \(No such file or directory\); check that",
        lambda: Path("photos/train/gone.png").symlink_to("nowhere.png"),
    ),
    "directories named .jpg": Case(
        f"{PHOTOS} --data.root odd", "no train images in odd", folders("odd/train/0.jpg", "odd/valid/1.jpg")
    ),
    "images beside the folders of the splits": Case(
        PHOTOS,
        "photos: train/ names a split, but images in the folder itself are of none; put every image below",
        lambda: shutil.copy("photos/train/0.png", "photos/0.png"),
    ),
    "two names of a split": Case(
        PHOTOS,
        "photos: val/ and valid/ both name the valid split; keep one",
        lambda: shutil.copytree("photos/valid", "photos/val"),
    ),
    "held-out images alone": Case(
        PHOTOS, "it has folders to hold out alone; add a folder train/", lambda: shutil.rmtree("photos/train")
    ),
    "an archive": Case(
        f"{PHOTOS} --data.root empty",
        "no train images in empty; it has 1 .zip; .zip: unpack it",
        lambda: (folders("empty")(), holding("empty/photos.zip", b"PK")()),
    ),
    "a name with a new line that is no image": Case(
        PHOTOS, r"train/a\\nb.png: not a readable image", holding("photos/train/a\nb.png", b"<html>")
    ),
    "32-bit float pixels": Case(
        PHOTOS,
        "0.tif: 32-bit float pixels cannot be brought to 8 bits without loss; convert it to .*skip_corrupt",
        lambda: Image.new("F", (40, 40)).save("photos/train/0.tif"),
    ),
    "nothing to validate on": Case(
        f"{PHOTOS} --data.root photos/train --data.valid_share 1e-9",
        "no valid images .*; add some or change --data.valid",
    ),
    "a share of 1.5": Case(f"{PHOTOS} --data.valid_share 1.5", "valid_share 1.5 must be between 0 and 1"),
    "CelebA in a directory named .jpg": Case(
        CELEBA, r"000001.jpg: cannot be read \(Is a directory\); check that", folders(f"celeba/{IMAGES}/000001.jpg")
    ),
    "CelebA without an image": Case(
        CELEBA, r"1 of 4 images missing .*000002.jpg\); pass --data.partial", without(f"celeba/{IMAGES}/000002.jpg")
    ),
    "no folder of CelebA": Case(
        f"{CELEBA} --data.root absent", "no folder absent; pass --data.root DIR or --data.down"
    ),
    "CelebA without images": Case(
        CELEBA, f"no images in celeba/{IMAGES}; fetch", lambda: (zipped()(), folders(f"celeba/{IMAGES}")())
    ),
    "CelebA without a folder of images": Case(
        CELEBA, f"neither {IMAGES}/ nor {ARCHIVE} in celeba; fetch", lambda: shutil.rmtree(f"celeba/{IMAGES}")
    ),
    "CelebA without its splits": Case(CELEBA, f"no {PARTITION} in celeba; fetch", without(f"celeba/{PARTITION}")),
    "CelebA with a web page for its splits": Case(
        CELEBA, "line 1: not 'NAME 0|1|2'; fetch the file again", holding(f"celeba/{PARTITION}", b"<html>")
    ),
    "CelebA with unreadable splits": Case(
        CELEBA, rf"{PARTITION}: cannot be read \(Permission denied\)", fails=partial(denied, PARTITION)
    ),
    "HTML as zip": Case(
        CELEBA,
        "is a web page .quota.., not a zip; fetch it again",
        lambda: (zipped()(), holding(f"celeba/{ARCHIVE}", b"\n<!DOCTYPE html>")()),
    ),
    "a truncated zip": Case(
        CELEBA, "is damaged or cut off .*; fetch it again", lambda: (zipped()(), cut(f"celeba/{ARCHIVE}")())
    ),
    "a damaged image in a zip": Case(
        CELEBA, "000001.jpg: damaged in the zip", lambda: (zipped()(), flipped(f"celeba/{ARCHIVE}", -1000)())
    ),
    "an unreadable zip": Case(
        CELEBA, rf"{ARCHIVE}: cannot be read \(Permission denied\)", zipped(), fails=partial(denied, ARCHIVE)
    ),
    "a zip with a password": Case(CELEBA, "000001.jpg: damaged in the zip .*encrypted", zipped(encrypted=True)),
    "a zip whose paths climb out": Case(
        CELEBA, r"its path ../../000001.jpg leads out of it; fetch it again", zipped("../..")
    ),
    "a zip with absolute paths": Case(CELEBA, r"its path /etc/000001.jpg leads out of it", zipped("/etc")),
    "masked photographs that are a pickle": Case(
        "train test -c photos.yaml --ckpt_path runs/vae/last.ckpt --evaluation.off true",
        "masked images evil.npz: .*; give --data.root a .npz",
        evil("evil.npz", plain_pickle),
        {
            "data": {
                "class_path": "degrain.data.datamodule.MaskedImages",
                "init_args": {"root": "evil.npz", "size": 32, "cache": "../own-cache"},
            }
        },
    ),
    "no batch": Case(f"{VAE} --data.batch_size 0", "batch_size 0"),
    "no images in a piece": Case(f"{VAE} --data.micro_batch_size 0", "micro_batch_size 0: at least 1 image"),
    "no batch of evaluation": of_vae(f"{DATA}.eval_batch_size", 0, "eval_batch_size 0"),
    "no portraits": of_vae(f"{DATA}.count", 0, "count 0 is not in 1.."),
    "noise on no region": of_vae(f"{DATA}.noise", {"beard": 0.1}, "unknown region 'beard'; choose from"),
    "too much noise": of_vae(f"{DATA}.noise", {"hair": 0.5}, "noise 0.5 on hair is not in 0..0.1"),
    "a negative number of workers": Case(f"{VAE} --data.num_workers -1", "--data.num_workers -1"),
    "no validation": Case(f"{VAE} --data.limit_valid 0", "--data.limit_valid 0: at least 1, or null"),
    "a cache that is a file": Case(f"{VAE} --data.cache vae.yaml", "cache: cannot build vae.yaml/.*--data.cache DIR"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_changes_nothing(home, capsys, name):
    CASES[name].check(home, capsys)
