"""Checkpoints and pipelines: what loads from a file, what is refused, which noise an image depends on."""

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from degrain.models.core.errors import InputError
from degrain.models.gan.denoiser import Denoiser
from degrain.models.inference.checkpoint import Card, read_checkpoint
from degrain.models.inference.pipeline import ROWS, Pipeline, load_pipeline, load_vae
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.network import VAE
from tests.vae.test_networks import CONFIG, STDS, TINY, shaken


def small_pipeline(with_denoiser: bool, std: str = "pixel") -> Pipeline:
    """Build a small pipeline with changed weights and prior."""
    prior = LatentPrior(CONFIG.latent)
    prior.mean += torch.randn(CONFIG.latent)
    denoiser = shaken(Denoiser(32, TINY)) if with_denoiser else None
    return Pipeline(shaken(VAE(32, replace(CONFIG, std=std))), prior, denoiser).eval()


def save(pipeline: Pipeline, path: Path) -> Path:
    """Write a checkpoint as training does: the card and the weights under the modules' names."""
    state = pipeline.state_dict()  # the denoiser is written as its moving average
    state = {re.sub("^denoiser\\.", "ema.module.", name): value for name, value in state.items()}
    denoiser = asdict(TINY) if pipeline.denoiser else None
    vae = asdict(pipeline.vae.config)
    card = Card("gan" if denoiser else "vae", 32, 1234, vae, denoiser, {"source": "portraits"})
    torch.save({"degrain": asdict(card), "state_dict": state, "optimizer_states": []}, path)
    return path


@pytest.mark.parametrize("with_denoiser", [False, True])
@pytest.mark.parametrize("std", STDS)
def test_a_checkpoint_loads_with_nothing_but_itself(tmp_path, with_denoiser, std):
    pipeline = small_pipeline(with_denoiser, std)
    path = save(pipeline, tmp_path / "last.ckpt")
    card, loaded = load_pipeline(path)
    assert (card.size, card.images_seen, card.vae_config()) == (32, 1234, pipeline.vae.config)
    assert not loaded.training and loaded.rows == (ROWS if with_denoiser else ROWS[:3])
    want, got = pipeline.draw(0, range(2)), loaded.draw(0, range(2))
    assert tuple(got) == loaded.rows and all(torch.equal(got[row], want[row]) for row in want)
    _, vae, prior = load_vae(path)
    assert torch.equal(vae.decode(prior(torch.ones(1, 5))).mean, pipeline.vae.decode(prior(torch.ones(1, 5))).mean)


def test_a_checkpoint_older_than_the_choice_of_stds_has_one_for_every_pixel(tmp_path):
    path = save(small_pipeline(False), tmp_path / "last.ckpt")
    old = torch.load(path, weights_only=True)
    del old["degrain"]["vae"]["std"]
    torch.save(old, path)
    assert load_pipeline(path)[0].vae_config() == CONFIG


def test_a_draw_does_not_depend_on_its_batch():
    pipeline = small_pipeline(True)
    whole, one = pipeline.draw(7, range(5)), pipeline.draw(7, range(3, 4))
    for row in ROWS:
        torch.testing.assert_close(one[row][0], whole[row][3], rtol=1e-4, atol=1e-5)
    assert not torch.equal(pipeline.draw(8, range(1))["mean"], whole["mean"][:1])
    assert not torch.equal(pipeline.draw(7, range(1), prior="standard")["mean"], whole["mean"][:1])


def test_a_reconstruction_depends_on_its_photograph_and_number_alone():
    pipeline, x = small_pipeline(True), torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole, some = pipeline.reconstruct(7, range(5), x), pipeline.reconstruct(7, [3, 1], x[[3, 1]])
    for row in ROWS:
        torch.testing.assert_close(some[row], whole[row][[3, 1]], rtol=1e-4, atol=1e-5)
    other = pipeline.reconstruct(7, [4, 1], x[[3, 1]])
    assert not torch.equal(other["mean"][0], some["mean"][0])
    drawn = pipeline.draw(7, range(5))
    noise, noise_of_draws = ((rows["sample"] - rows["mean"]) / rows["std"] for rows in (whole, drawn))
    assert abs((noise * noise_of_draws).mean()) < 0.05  # independent


def test_rows_belong_together():
    pipeline = small_pipeline(True)
    for rows in (pipeline.draw(0, range(2)), pipeline.reconstruct(0, range(2), torch.rand(2, 3, 32, 32))):
        noise = (rows["sample"] - rows["mean"]) / rows["std"]
        assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
        assert all(images.shape == (2, 3, 32, 32) for images in rows.values())


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as refused:
        read_checkpoint(path)
    message = str(refused.value)
    assert message.startswith(f"checkpoint {path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99, 0.9999])
def test_a_truncated_checkpoint_is_refused(tmp_path, share):
    whole = save(small_pipeline(False), tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: int(share * len(whole))])
    assert "truncated or no checkpoint" in refusal(tmp_path / "cut.ckpt")


@pytest.mark.parametrize("start", [b"", b"\x80\x02", b"PK\x03\x04", b"<html>"])
def test_random_bytes_are_refused(tmp_path, start):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        noise = torch.randint(256, (300,), generator=generator, dtype=torch.uint8).numpy().tobytes()
        (tmp_path / "noise.ckpt").write_bytes(start + noise)
        assert "truncated or no checkpoint" in refusal(tmp_path / "noise.ckpt")


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, torch.zeros(2), [1, 2]], ids=["lightning", "tensor", "list"])
def test_a_foreign_checkpoint_is_refused(tmp_path, foreign):
    torch.save(foreign, tmp_path / "foreign.ckpt")
    assert "not written by degrain" in refusal(tmp_path / "foreign.ckpt")


def test_an_unknown_prior_is_refused_with_the_names_that_there_are():
    with pytest.raises(InputError, match="^prior learned: the checkpoint has standard, fitted; stage 1 learns it when"):
        small_pipeline(False).draw(0, range(1), "learned")
    with pytest.raises(InputError, match="^prior other: the checkpoint has standard, fitted; the names of priors"):
        small_pipeline(False).draw(0, range(1), "other")
