"""Images of many kinds are used, and mentioned once."""

import json
import shlex
from pathlib import Path

import numpy as np
from PIL import Image

import train
from tests import tiny


def test_what_can_be_used_is_used_and_said_once(home, capsys):
    folder = Path("photos/train")
    noise = Image.open("photos/valid/3.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.asarray(noise.convert("L")).astype(np.uint16) * 257)
    for name, image, options in (
        ("grey.png", noise.convert("L"), {}),
        ("grey.jpg", noise.convert("L"), {}),
        ("alpha.png", noise.convert("RGBA"), {}),
        ("deep.png", deep, {}),
        ("turned.jpg", noise, {"exif": exif}),
        ("moving.webp", noise, {"save_all": True, "append_images": [noise.rotate(90)]}),
        ("palette.png", noise.quantize(16), {}),
        ("cmyk.jpg", noise.convert("CMYK"), {}),
    ):
        image.save(folder / name, **options)
    train.main(shlex.split(f"fit -c photos.yaml --model.budget {tiny.BATCH}"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "made plain RGB" in line]
    assert len(lines) == 1 and lines[0].startswith("cache: ../own-cache/folder-photos-")
    assert "-train-32: of 11 images, made plain RGB: " in lines[0]
    assert set(lines[0].split("RGB: ")[1].split(", ")) == {
        "3 grey",
        "1 with alpha (laid over white)",
        "1 of 16 bits (rounded to 8)",
        "1 turned (upright by their EXIF)",
        "1 animated (their first frame)",
        "1 with a palette",
        "1 CMYK",
    }
    train.main(shlex.split(f"fit -c photos.yaml --name again --model.budget {tiny.BATCH}"))
    assert "made plain RGB" not in capsys.readouterr().out
    assert json.loads(Path("runs/again/metrics.json").read_text())["images_seen"] == tiny.BATCH
