"""Exports: the same draws from half a file, written and overwritten on request."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

import sample
from degrain.models.inference.checkpoint import FLOAT32, PREFIXES, packed, read_checkpoint, to_safetensors
from degrain.models.inference.pipeline import load_pipeline
from degrain.models.vae.diffusion import BLOCKS, WIDTH, Diffusion
from degrain.models.vae.latent_prior import LatentPrior, Mixture
from tests.benchmarks.memory import card, networks, resolved
from tests.inference.conftest import KINDS
from tests.test_sample import images
from tests.tiny import BUDGET, error_of

# --- what travels


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_says_what_it_is_to_any_reader_of_its_format(checkpoints, exports, kind):
    saved = torch.load(checkpoints[kind], weights_only=True)
    tensors = safetensors.torch.load_file(exports[kind])
    with safe_open(exports[kind], "pt") as file:
        said = json.loads(file.metadata()["degrain"])
    networks = {"vae", "prior"} | ({"ema"} if kind == "gan" else set())
    assert {name.split(".")[0] for name in tensors} == networks and "ema.n_averaged" not in tensors
    assert any(name.startswith("prior.mixture.") for name in tensors) == (kind == "learned")
    for name, value in tensors.items():
        whole = value.ndim < 2 or name == FLOAT32
        assert value.dtype == (saved["state_dict"][name].dtype if whole else torch.float16)
        assert torch.equal(value, saved["state_dict"][name].to(value.dtype))
    kept = ("stage", "size", "images_seen", "vae", "denoiser", "data")
    assert {name: said[name] for name in kept} == json.loads(json.dumps({k: saved["degrain"][k] for k in kept}))
    assert said["data"]["source"] == "portraits-s0" and said["images_seen"] == BUDGET
    assert "float16" in said["exported"] and ("moving average" in said["exported"]) == (kind == "gan")


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_in_wandb_does_not_travel(checkpoints, exports, kind):
    run = torch.load(checkpoints[kind], weights_only=True)["degrain"]["tracked_run"]
    assert run and run.encode() not in exports[kind].read_bytes()
    assert read_checkpoint(exports[kind])[0].tracked_run is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_read_like_a_checkpoint(checkpoints, exports, kind):
    (theirs, state), (ours, halved) = (read_checkpoint(files[kind]) for files in (checkpoints, exports))
    assert replace(ours, exported=None) == replace(theirs, tracked_run=None, threads=0)
    assert ours.vae_config() == theirs.vae_config()
    assert all(value.dtype == state[name].dtype for name, value in halved.items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_export_of_an_export_is_the_same_file(exports, root, kind, capsys):
    sample.main([str(exports[kind]), "--export", "new/again.safetensors"])
    content = exports[kind].read_bytes()
    assert Path("new/again.safetensors").read_bytes() == content
    assert capsys.readouterr().out == f"exported: new/again.safetensors ({len(content):,} bytes)\n"
    assert [path.name for path in Path("new").iterdir()] == ["again.safetensors"]
    assert not list(root.glob("*.png"))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_those_of_the_checkpoint_within_a_level(checkpoints, exports, root, kind):
    whole, halved = (load_pipeline(files[kind])[1].draw(0, range(16)) for files in (checkpoints, exports))
    assert whole.keys() == halved.keys()
    for row in whole:
        levels = [(255 * rows[row]).round() for rows in (whole, halved)]
        assert (levels[0] - levels[1]).abs().max() <= 1 and levels[0].std() > 1, row
    drawn, expected = (images(files[kind], "--n", "4", "--row", "mean") for files in (exports, checkpoints))
    assert np.abs(drawn.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("with_mixture", [False, True])
def test_densities_survive_where_latents_are_correlated(with_mixture):
    """The prior's Cholesky factor stays in float32, or its rounding would be divided by the smallest std."""
    prior = LatentPrior(16)
    mixing = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = mixing @ torch.diag(torch.logspace(1, -6, 16, dtype=torch.float64)) @ mixing.T
    prior.cholesky.copy_(torch.linalg.cholesky(covariance))
    prior.mixture = Mixture(3, 16) if with_mixture else None
    if with_mixture:
        prior.mixture.factors.mul_(0.7).add_(0.1 * torch.randn(3, 16, 16).tril())
    z = prior(torch.randn(64, 16, generator=torch.Generator().manual_seed(1)))
    before = prior.log_density(z)
    state = {f"prior.{name}": value for name, value in prior.state_dict().items()}
    state = {name: packed(name, value).to(value.dtype) for name, value in state.items()}
    prior.load_state_dict({name.removeprefix("prior."): value for name, value in state.items()})
    torch.testing.assert_close(prior.log_density(z), before, rtol=0, atol=0.02 if with_mixture else 1e-3)
    prior.cholesky.copy_(prior.cholesky.half())
    assert (prior.log_density(z) - before).abs().mean() > 1


def test_what_leaves_the_range_of_float16_stays_whole():
    large = torch.tensor([[1.0, 70_000.0]])
    assert torch.equal(packed("vae.w", large), large)
    assert packed("vae.w", large / 2).dtype == torch.float16


def test_both_small_models_stay_below_12_megabytes():
    gan, made = resolved("small", "gan")["model"]["init_args"], card("small", 64)
    nets = networks("small", 64)
    prior = LatentPrior(made.vae["latent"])
    prior.mixture = Mixture(10, made.vae["latent"])
    prior.diffusion = Diffusion(made.vae["latent"], WIDTH, BLOCKS)
    state: dict[str, Tensor] = {}
    for name, net in {"vae": nets["vae"], "prior": prior, "denoiser": nets["denoiser"]}.items():
        of_net = {PREFIXES[name] + key: value for key, value in net.state_dict().items()}
        state |= {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in of_net.items()}
    numbers = sum(value.numel() for value in state.values())
    content = to_safetensors(asdict(replace(made, stage="gan", denoiser=gan["denoiser"])), state)
    assert 5_000_000 < numbers and 2 * numbers < len(content) < 12_000_000


# --- what may be asked for


def test_out_beside_export_draws_too(checkpoints, root, capsys):
    command = [str(checkpoints["vae"]), "--n", "2", "--out", "two.npz", "--export", "vae.safetensors"]
    sample.main([*command, "--device", "cpu"])
    lines = r"exported: vae.safetensors \([\d,]+ bytes\)\nthreads: 1 \(OMP_NUM_THREADS\)\n"
    lines += r"drawn: 2 images, [\d.]+ images/s\nwrote: two.npz\n"
    assert re.fullmatch(lines, capsys.readouterr().out)
    assert np.array_equal(np.load("two.npz")["images"], images(checkpoints["vae"], "--n", "2"))


def test_what_is_there_is_replaced_on_request_alone(checkpoints, exports, root, capsys):
    Path("there.safetensors").write_bytes(b"mine")
    command = [str(checkpoints["vae"]), "--export", "there.safetensors"]
    for more in ([], ["--out", "new.png"]):
        line = error_of(capsys, lambda more=more: sample.main([*command, *more]))
        assert "there.safetensors exists; choose another --export or pass --overwrite true" in line
    assert Path("there.safetensors").read_bytes() == b"mine" and not Path("new.png").exists()
    sample.main([*command, "--overwrite", "true"])
    assert Path("there.safetensors").read_bytes() == exports["vae"].read_bytes()
    sample.main(["there.safetensors", "--export", "there.safetensors", "--overwrite", "true"])  # onto itself
    assert Path("there.safetensors").read_bytes() == exports["vae"].read_bytes()
