"""Bad checkpoints: one line answers each, and nothing is changed."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bad_input.cases import GAN, LAST, RESUME, VAE, Case
from tests.bad_input.spoil import changed_card, cut, denied, evil, flipped, foreign_weights, holding, plain_pickle

CASES = {
    "absent": Case(f"{GAN} --model.vae absent.ckpt", "checkpoint absent.ckpt: no such file; train it first"),
    "none to test": Case(
        "train test -c vae.yaml --name new", "runs/new/last.ckpt: no such file; train it first or correct the path"
    ),
    "none to validate": Case("train validate -c vae.yaml --name new", "runs/new/last.ckpt: no such file"),
    "none to sample": Case("sample absent.ckpt", "absent.ckpt: no such file; train it first or correct the path"),
    "a folder": Case("sample runs/vae", "checkpoint runs/vae: no such file"),
    "empty": Case(RESUME, f"{LAST}: cannot be read .*; take a copy", holding(LAST, b"")),
    "truncated": Case(RESUME, f"{LAST}: cannot be read .*: truncated or no checkpoint; take a copy", cut(LAST)),
    "truncated stage 1": Case(GAN, f"{LAST}: cannot be read .*; take a copy", cut(LAST)),
    "truncated, to sample": Case(f"sample {LAST}", f"{LAST}: cannot be read .*; take a copy", cut(LAST)),
    "unreadable": Case(
        f"sample {LAST}", rf"{LAST}: cannot be read \(Permission denied\)", fails=partial(denied, "last.ckpt")
    ),
    "of stage 2 for stage 1": Case(
        f"{VAE} --ckpt_path runs/gan/last.ckpt", "gan/last.ckpt: its stage is gan, the config says vae"
    ),
    "of stage 1 for stage 2": Case(f"{GAN} --ckpt_path {LAST}", "its stage is vae, the config says gan"),
    "of another size": Case(f"{VAE} --ckpt_path {LAST} --data.size 64", "its size is 32, the config says 64"),
    "of stage 1 in another size": Case(f"{GAN} --data.size 64", "made for 32 pixels, the data have 64; set data.size"),
    "of other latents": Case(
        f"{VAE} --ckpt_path {LAST} --model.net.latent 5", "its vae.latent is 4, the config says 5"
    ),
    "of another decoder": Case(
        f"{VAE} --ckpt_path {LAST} --model.net.decoder.patch 2", "its vae.decoder.patch is 4, the config says 2"
    ),
    "of another denoiser": Case(
        f"{GAN} --ckpt_path runs/gan/last.ckpt --model.denoiser.widths [8,4]",
        r"its denoiser.widths is \(8, 8\), the config says \(8, 4\)",
    ),
    "of another discriminator": Case(
        f"{GAN} --ckpt_path runs/gan/last.ckpt --model.discriminator.widths [8,4]", "its discriminator.layers."
    ),
    "a text": Case("sample vae.yaml", "vae.yaml: cannot be read .*truncated or no checkpoint"),
    "a zip": Case("sample photos.npz", "photos.npz: cannot be read", lambda: np.savez("photos.npz", a=np.zeros(2))),
    "weights of someone else": Case(
        f"{GAN} --model.vae other.ckpt",
        "other.ckpt: was not written by degrain .*; give the last.ckpt of a run",
        lambda: torch.save({"state_dict": {}}, "other.ckpt"),
    ),
    "of another version": Case(
        f"sample {LAST}", "written by another version of degrain; take that one", changed_card(LAST, novel=1)
    ),
    "of another version's network": Case(
        f"sample {LAST}", "written by another version of degrain; take that one", changed_card(LAST, vae={"latent": 4})
    ),
    "of a toy": Case(
        f"sample {LAST} --export new.safetensors", "is a toy's, which draws no images", changed_card(LAST, stage="toy")
    ),
    "a pickle that would run code": Case(
        f"{VAE} --ckpt_path evil.ckpt", "evil.ckpt: cannot be read .*truncated or no checkpoint", evil("evil.ckpt")
    ),
    "a plain pickle that would run code": Case(
        "sample evil.ckpt", "evil.ckpt: cannot be read", evil("evil.ckpt", plain_pickle)
    ),
    "a pickle named like an export": Case(
        f"{GAN} --model.vae evil.safetensors", "evil.safetensors: cannot be read", evil("evil.safetensors")
    ),
    "a plain pickle named like an export": Case(
        f"{VAE} --ckpt_path evil.safetensors",
        "evil.safetensors: cannot be read",
        evil("evil.safetensors", plain_pickle),
    ),
    "an export named like a checkpoint": Case(
        "sample gan.ckpt", "gan.ckpt: cannot be read", lambda: Path("gan.safetensors").rename("gan.ckpt")
    ),
    "an export with a byte changed": Case(
        "sample gan.safetensors", "gan.safetensors: cannot be read .*; take a copy", flipped("gan.safetensors", 99)
    ),
    "a truncated export": Case("sample gan.safetensors", "gan.safetensors: cannot be read", cut("gan.safetensors")),
    "safetensors of someone else": Case(
        "sample foreign.safetensors", "foreign.safetensors: was not written by degrain", foreign_weights
    ),
    "an export of stage 1 for stage 2": Case(f"{GAN} --ckpt_path vae.safetensors", "its stage is vae, the config says"),
    "an export of other widths": Case(
        f"{VAE} --ckpt_path vae.safetensors --model.net.encoder.widths [8,4]",
        r"its vae.encoder.widths is \(8, 8\), the config says \(8, 4\)",
    ),
    "an export of another denoiser to test": Case(
        "train test -c gan.yaml --ckpt_path gan.safetensors --model.denoiser.widths [8,4]",
        r"its denoiser.widths is \(8, 8\), the config says \(8, 4\)",
    ),
    "an export of stage 2 for stage 1": Case(f"{VAE} --ckpt_path gan.safetensors", "its stage is gan, the config says"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_changes_nothing(home, capsys, name):
    CASES[name].check(home, capsys)
