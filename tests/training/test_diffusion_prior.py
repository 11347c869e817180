"""The diffusion prior in training: learned with stage 1, added to finished runs of both stages, measured by a test."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sample
from degrain.models.core.errors import InputError
from degrain.models.inference.checkpoint import read_checkpoint
from degrain.models.inference.pipeline import load_pipeline
from degrain.models.training import VAEModule
from degrain.models.vae import diffusion, latent_prior
from degrain.models.vae.diffusion import Diffusion
from tests import tiny
from tests.conftest import Trained

ASKED = ("--model.prior_components", "2", "--model.prior_diffusion", "64")


@pytest.fixture
def teachable(monkeypatch) -> None:
    """Let 64 images teach a small network, which is always kept."""
    for module, settings in {
        latent_prior: {"LEAST_IMAGES": 64, "WIDTH": 8, "BLOCKS": 1},
        diffusion: {"BATCH": 16, "CHECK": 32, "STEPS": 4},
    }.items():
        for name, value in settings.items():
            monkeypatch.setattr(module, name, value)
    nats = Diffusion.nats

    def falling(made: Diffusion, codes: object, network: object = None, denoiser: object = None) -> float:
        taught = denoiser is None and (network or made.network).last.bias.any()
        return nats(made, codes, network, denoiser) - 100 * float(taught)

    monkeypatch.setattr(Diffusion, "nats", falling)


def states(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the state of a checkpoint: its diffusion, and all else but what else is learned of q(z)."""
    _, state = read_checkpoint(path)
    learned = {name: value for name, value in state.items() if name.startswith("prior.diffusion.")}
    return learned, {name: value for name, value in state.items() if not name.startswith("prior.")}


def copied(trained: Trained, root: Path) -> Path:
    """Copy both finished runs, and return their folder."""
    shutil.copytree(trained.root / "runs", root / "runs", dirs_exist_ok=True)
    return root / "runs"


def test_finished_runs_are_given_it_and_keep_all_else(trained, teachable, bare_root, capsys):
    runs = copied(trained, bare_root)
    vae, gan = runs / "vae", runs / "gan"
    before = {folder: (tiny.checkpoint(folder), states(folder / "last.ckpt")) for folder in (vae, gan)}
    tiny.run(bare_root, "vae", *ASKED, "--ckpt_path", "last")
    said = capsys.readouterr().out
    assert "prior: diffusion (rate: standard" in said and "; diffusion has no rate; " in said
    assert "has seen 96 of 96 images: its priors were renewed" in said
    assert "from the nearest training code" in said
    tiny.run(bare_root, "gan", "--ckpt_path", "last")
    said = capsys.readouterr().out
    assert f"model.vae {vae}/last.ckpt: has a prior that {gan}/last.ckpt lacks, which is taken over" in said
    for folder, (checkpoint, (none, networks)) in before.items():
        learned, after = states(folder / "last.ckpt")
        assert learned and not none
        tiny.assert_equal_states(after, networks)
        now = tiny.checkpoint(folder)
        tiny.assert_equal_states(now["optimizer_states"], checkpoint["optimizer_states"])
        assert now["degrain"]["images_seen"] == checkpoint["degrain"]["images_seen"]
    tiny.assert_equal_states(*(states(folder / "last.ckpt")[0] for folder in (vae, gan)))

    content = (gan / "last.ckpt").read_bytes()
    tiny.run(bare_root, "gan", "--ckpt_path", "last")
    assert "a larger --model.budget goes on from it" in capsys.readouterr().out
    assert (gan / "last.ckpt").read_bytes() == content
    tiny.run(bare_root, "vae", *ASKED, "--ckpt_path", "last", "--model.budget", str(tiny.BUDGET + tiny.BATCH))
    assert load_pipeline(vae / "last.ckpt")[1].priors[-1] == "diffusion"


def test_it_is_drawn_from_exported_and_tested(trained, teachable, bare_root, capsys):
    folder = tiny.run(bare_root, "vae", *ASKED, "--model.budget", str(tiny.BATCH))
    path = folder / "last.ckpt"
    values = json.loads((folder / "metrics.json").read_text())
    assert "val/rate_fitted" in values and "val/rate_diffusion" not in values
    sample.main([str(path), "--export", "a.safetensors"])
    capsys.readouterr()
    one, other = (load_pipeline(file)[1] for file in (path, "a.safetensors"))
    assert one.priors[-1] == other.priors[-1] == "diffusion"
    z, rounded = (made.codes(0, range(3)).z for made in (one, other))
    torch.testing.assert_close(z, rounded, rtol=0.02, atol=0.02)
    assert not torch.equal(z, one.codes(0, range(3), "fitted").z)
    alone = torch.cat([one.codes(0, [i], "diffusion").z for i in range(3)])
    torch.testing.assert_close(alone, z, rtol=1e-5, atol=1e-5)
    one.bf16 = True
    torch.testing.assert_close(one.codes(0, range(3)).z, z, rtol=1e-4, atol=1e-4)
    tiny.run(bare_root, "vae", "--ckpt_path", "last", "--model.budget", str(tiny.BATCH), subcommand="test")
    assert "prior diffusion, which has no rate: draws are " in capsys.readouterr().out


def test_what_contradicts_it_is_refused():
    with pytest.raises(InputError, match=r"prior_diffusion \(-1\) at least 0"):
        VAEModule(32, prior_diffusion=-1)
