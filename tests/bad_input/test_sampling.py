"""Bad arguments of sample.py: one line answers each, and nothing is changed."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from degrain.models.gan.generator import Generator, GeneratorConfig
from degrain.models.inference.checkpoint import Card
from tests.bad_input.cases import LAST, Case, photograph


def cut_off(path: str) -> None:
    """Write the first half of an image."""
    photograph(Path(path), 32)
    Path(path).write_bytes(Path(path).read_bytes()[:1000])


def texts() -> None:
    """Make a folder of a text."""
    Path("runs/vae/old").mkdir()
    Path("runs/vae/old/notes.txt").write_text("nothing to see")


def plain_gan() -> None:
    """Write a checkpoint of a plain GAN."""
    config = GeneratorConfig((8, 8), patch=4, latent=4)
    state = {f"ema.module.{name}": value for name, value in Generator(32, config).state_dict().items()}
    card = Card("plain_gan", 32, 0, {}, generator=asdict(config))
    torch.save({"degrain": asdict(card), "state_dict": state}, "plain.ckpt")


CASES = {
    "no checkpoint": Case("sample", "checkpoint"),
    "none": Case(f"sample {LAST} --n 0", "--n 0 must be at least 1"),
    "a negative seed": Case(f"sample {LAST} --seed -1", "--seed -1: give numbers, 0 or more, such as 3 or"),
    "no batch": Case(f"sample {LAST} --batch_size 0", "--batch_size 0 must be at least 1"),
    "a string for a number": Case(f"sample {LAST} --n many", "many"),
    "a row of stage 2": Case(f"sample {LAST} --row denoised", "is of stage vae and has mean, std, sample"),
    "an unknown row": Case(f"sample {LAST} --row meen", "--row meen: .* is of stage vae and has mean, std, sample"),
    "another library's name of a precision": Case(
        f"sample {LAST} --precision bf16-mixed", "Expected one of 32, bf16. Got value: bf16-mixed"
    ),
    "no thread": Case(f"sample {LAST} --threads 0", "--threads 0: must be from 1 to 1024"),
    "more threads than there can be": Case(f"sample {LAST} --threads 3000000000", "must be from 1 to 1024"),
    "half a thread": Case(f"sample {LAST} --threads 1.5", "1.5"),
    "an unknown prior": Case(f"sample {LAST} --prior other", "other"),
    "a prior that is not there": Case(
        f"sample {LAST} --prior learned", "has standard, fitted; stage 1 had 64 of the 1,000 images"
    ),
    "an unknown ending": Case(f"sample {LAST} --out picture.jpg", "picture.jpg: end it in .png, .npz, .gif, .webp or"),
    "an unknown ending beside an export": Case(
        f"sample {LAST} --export new.safetensors --out a.jpg", "--out a.jpg: end it in .png, .npz, .gif, .webp or"
    ),
    "an unknown ending of an export": Case(f"sample {LAST} --export a.ckpt", "a.ckpt: end it in .safetensors"),
    "no such device": Case(f"sample {LAST} --device gpu", "device gpu cannot be used"),
    "a typo": Case(f"sample {LAST} --sede 1", "unknown name `sede`; did you mean `seed`"),
    "a typo beside an export": Case(f"sample {LAST} --exports a.safetensors", "did you mean `export`"),
    "a row of stage 2 beside an export": Case(
        f"sample {LAST} --export new.safetensors --out new.png --row denoised", "is of stage vae and has mean, std"
    ),
    "seeds backwards": Case(f"sample {LAST} --seed 3,9-7", "--seed 3,9-7: give numbers, 0 or more, such as 3 or 3,7,"),
    "seeds of words": Case(f"sample {LAST} --seed 1,two", "--seed 1,two: give numbers"),
    "half a seed": Case(f"sample {LAST} --seed 1.5", "--seed 1.5: give numbers"),
    "no end of seeds": Case(f"sample {LAST} --seed 0-99999999999", "--seed 0-99999999999: more than 1,000,000 numbers"),
    "a negative temperature": Case(f"sample {LAST} --temperature -1", "temperature -1.0: must be a number from 0 to"),
    "negative noise": Case(f"sample {LAST} --noise -0.5", "noise -0.5: must be a number from 0 to 1,000"),
    "noise beyond float32": Case(f"sample {LAST} --noise 1e40", "noise 1e.40: must be a number from 0 to 1,000"),
    "a seed twice": Case(f"sample {LAST} --seed 1-3,2", "--seed 1-3,2: names 2 twice; name each number once"),
    "a panel for nobody": Case(f"sample {LAST} --n 50000", "a panel of 150,000 pictures of 96x96 pixels is too large"),
    "pictures of a wall": Case(f"sample {LAST} --scale 65 --out a/", "--scale 65 must be at most 64"),
    "no end of steps": Case(f"sample {LAST} --interpolate true --steps 1001", "--steps 1001 must be at most 1,000"),
    "the photograph itself": Case(
        f"sample {LAST} --images photos/valid/3.png --out photos/valid/3.png --overwrite true",
        "would replace what --im",
    ),
    "the folder of the photographs": Case(
        f"sample {LAST} --images photos/valid --out photos/valid/ --overwrite true", "would replace what --images"
    ),
    "a photograph of the folder": Case(
        f"sample {LAST} --images photos/valid --out photos/valid/3.png --overwrite true", "would replace what --images"
    ),
    "the folder of the photograph": Case(
        f"sample {LAST} --images photos/valid/3.png --out photos/valid --overwrite true", "would replace what --images"
    ),
    "two modes": Case(
        f"sample {LAST} --interpolate true --traverse 0", "--interpolate and --traverse: one call does one of them"
    ),
    "a port without a page": Case(f"sample {LAST} --port 8000", "--port 8000 is that of the page; give --explore true"),
    "no such port": Case(f"sample {LAST} --explore true --port 70000", "--port 70000 must be from 0 to 65535"),
    "a page and a file": Case(
        f"sample {LAST} --explore true --out new.png", "--out with --explore: the page writes no"
    ),
    "a page of several seeds": Case(f"sample {LAST} --explore true --seed 1-3", "--seed 1-3 with --explore: give one"),
    "a page with an unknown prior": Case(f"sample {LAST} --explore true --prior learned", "has standard, fitted"),
    "a page with negative noise": Case(
        f"sample {LAST} --explore true --noise -1", "noise -1.0: must be a number from 0"
    ),
    "steps of nothing": Case(f"sample {LAST} --steps 5", "--steps are those of --interpolate or --traverse; give one"),
    "a path of one step": Case(f"sample {LAST} --interpolate true --steps 1", "--steps 1 must be at least 2"),
    "a path from one draw": Case(
        f"sample {LAST} --interpolate true --n 1", "from one draw to the next there must be two"
    ),
    "no such latent": Case(f"sample {LAST} --traverse 2-4", "--traverse 2-4: there are 4 latents, 0 to 3"),
    "latents of words": Case(f"sample {LAST} --traverse smile", "--traverse smile: give numbers"),
    "variations of stage 1": Case(f"sample {LAST} --variations 3", "has no denoiser; take one of stage 2"),
    "one variation": Case("sample gan.safetensors --variations 1", "count 1 must be at least 2"),
    "columns of an array": Case(
        f"sample {LAST} --out a.npz --columns 4", "--columns 4 is of a panel, and a.npz is none"
    ),
    "an animation without labels": Case(f"sample {LAST} --out a.gif --labels false", "--labels false is of a panel"),
    "a folder with columns": Case(f"sample {LAST} --out a/ --columns 3", "--columns 3 is of a panel, and a/ is none"),
    "an enlarged array": Case(f"sample {LAST} --out a.npz --scale 2", "--scale 2: arrays are not enlarged"),
    "no scale": Case(f"sample {LAST} --scale 0", "--scale 0 must be at least 1"),
    "half a scale": Case(f"sample {LAST} --scale 1.5", "1.5"),
    "a mode and an export alone": Case(
        "sample gan.safetensors --variations 3 --export new.safetensors", "--variations with --export alone: nothing is"
    ),
    "how to draw and an export alone": Case(
        "sample gan.safetensors --n 4 --best_of 8 --batch_size 4 --export new.safetensors",
        "--n and --best_of and --batch_size with --export alone",
    ),
    "no such photograph": Case(
        f"sample {LAST} --images none.jpg", "none.jpg: no such file or folder; correct --images"
    ),
    "no photograph": Case(f"sample {LAST} --images vae.yaml", "vae.yaml: not a readable image"),
    "a folder without photographs": Case(
        f"sample {LAST} --images runs/vae/old", "runs/vae/old: no images; it has .*; give a", texts
    ),
    "a photograph that is cut off": Case(
        f"sample {LAST} --images photos", "a.png: not a readable image", lambda: cut_off("photos/valid/a.png")
    ),
    "more photographs than there are": Case(
        f"sample {LAST} --images photos/valid --n 900", "photos/valid: .* images, and --n 900 asks for more"
    ),
    "photographs from a prior": Case(
        f"sample {LAST} --images photos --prior standard", "--prior standard with --images: their z comes from"
    ),
    "photographs of a plain GAN": Case(
        "sample plain.ckpt --images photos", "--images: plain.ckpt is a plain GAN's, which has no encoder", plain_gan
    ),
    "latents of a plain GAN": Case("sample plain.ckpt --traverse 0", "a plain GAN has no encoder", plain_gan),
    "noise of a plain GAN": Case("sample plain.ckpt --noise 0.5", "a plain GAN has no noise of the pixels", plain_gan),
    "best of plain GANs": Case("sample plain.ckpt --best_of 4", "best_of 4: a plain GAN has no std", plain_gan),
    "best of none": Case(f"sample {LAST} --best_of 0", "best_of 0: must be an integer from 1 to"),
    "best of photographs": Case(f"sample {LAST} --images photos --best_of 4", "--best_of 4 with --images: it chooses"),
    "a page with the best of draws": Case(f"sample {LAST} --explore true --best_of 4", "--best_of with --explore"),
    "variations of a plain GAN": Case("sample plain.ckpt --variations 2", "has no denoiser", plain_gan),
    "a word of others": Case(f"sample {LAST} --truncation_psi 0.7", "`truncation_psi`; did you mean `temperature`"),
    "another typo": Case(f"sample {LAST} --batchsize 1", "unknown name `batchsize`; did you mean `batch_size`"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_changes_nothing(home, capsys, name):
    CASES[name].check(home, capsys)
