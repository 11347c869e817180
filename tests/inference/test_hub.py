"""The Hugging Face Hub: a folder with a model card, and weights by hf://, from a cache in the hub's layout."""

import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants, errors

import degrain
import sample
from degrain.models.core.errors import InputError
from degrain.models.inference.checkpoint import Card, read_checkpoint
from degrain.models.inference.export import model_card
from degrain.models.inference.hub import downloaded
from tests import tiny
from tests.inference.test_bad_calls import refusal
from tests.test_sample import images
from tests.tiny import BUDGET, error_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def front_matter(text: str) -> dict:
    _, metadata, _ = text.split("---\n", 2)
    return yaml.safe_load(metadata)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    """Export a model as a folder."""
    path = tmp_path_factory.mktemp("hub") / "new/model"
    sample.main([str(trained.gan / "last.ckpt"), "--export", f"{path}/"])
    return path


# --- the folder


def test_a_folder_holds_the_export_and_its_card(folder, exports, root):
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "README.md"}
    assert (folder / "model.safetensors").read_bytes() == exports["gan"].read_bytes()
    card = (folder / "README.md").read_text()
    said = front_matter(card)
    assert (said["license"], said["library_name"]) == ("mit", "degrain") and "gan" in said["tags"]
    for line in ("| stage | gan |", f"| images seen | {BUDGET} of {BUDGET} |", "| data | portraits-s0 |", "## Limits"):
        assert f"\n{line}\n" in card
    assert "{" not in card


def test_a_folder_is_used_like_its_file(folder, exports, root):
    assert (images(folder, "--n", "2") == images(exports["gan"], "--n", "2")).all()
    assert degrain.load(folder, "cpu").rows == degrain.load(exports["gan"], "cpu").rows


def test_a_folder_is_replaced_on_request_alone(folder, exports, root, capsys):
    kept = root / "mine"
    kept.mkdir()
    (kept / "README.md").write_text("mine")
    command = [str(exports["vae"]), "--export", "mine"]
    assert "mine exists; choose another --export" in error_of(capsys, lambda: sample.main(command))
    assert (kept / "README.md").read_text() == "mine"
    sample.main([*command, "--overwrite", "true"])
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "model card: mine/README.md; complete it, then: hf upload USER/NAME mine"
    assert read_checkpoint(kept)[0].stage == "vae"


@pytest.mark.parametrize("stage", ["vae", "plain_gan"])
def test_other_images_have_their_own_terms_and_unknown_facts_are_left_out(stage):
    card = Card(stage, 64, 1000, {}, data={"source": "folder-faces", "crop": None}, generator={"latent": 8})
    text = model_card(card)
    assert front_matter(text)["license"] == "other" and "CelebA permit non-commercial research alone" in text
    assert "| images seen | 1,000 |" in text and "| latents | 8 |" in text and "None" not in text
    assert "| data |" not in model_card(replace(card, data=None))


# --- hf://


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go offline, with an empty cache; return the snapshot of USER/NAME in it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub/models--USER--NAME/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (tmp_path / "hub/models--USER--NAME/refs").mkdir()
    (tmp_path / "hub/models--USER--NAME/refs/main").write_text(COMMIT)
    return snapshot


def test_a_model_loads_from_the_hub(cache, folder, exports, root):
    (cache / "model.safetensors").symlink_to(folder / "model.safetensors")
    (cache / "other").mkdir()
    (cache / "other/vae.safetensors").symlink_to(exports["vae"])
    assert degrain.load("hf://USER/NAME", "cpu").card == read_checkpoint(folder)[0]
    assert degrain.load(f"hf://USER/NAME@{COMMIT}/other/vae.safetensors", "cpu").card.stage == "vae"
    assert (images("hf://USER/NAME", "--n", "2") == images(folder, "--n", "2")).all()


def test_stage_2_takes_its_vae_from_the_hub_or_from_a_folder_for_it(cache, folder, root, capsys):
    (cache / "model.safetensors").symlink_to(folder / "model.safetensors")
    vae = {n: w for n, w in read_checkpoint(folder)[1].items() if n.startswith("vae.")}
    for name, source in {"hub": "hf://USER/NAME", "folder": str(folder)}.items():
        options = ["--model.vae", source, "--name", name, f"--model.budget={tiny.BATCH}"]
        tiny.run(root, "gan", *options)
        state = read_checkpoint(root / f"runs/{name}/last.ckpt")[1]
        assert all(torch.equal(state[n], w) for n, w in vae.items())
    line = error_of(capsys, lambda: tiny.run(root, "gan", "--model.vae", "hf://USER/OTHER", "--name", "no"))
    assert line.startswith("error: hf://USER/OTHER: cannot be downloaded: the hub cannot be reached")
    assert not (root / "runs/no").exists()


def test_without_a_connection_the_way_by_hand_is_said(cache, root, capsys):
    said = refusal(lambda: degrain.load("hf://USER/OTHER"))
    assert said.startswith("hf://USER/OTHER: cannot be downloaded: the hub cannot be reached, and there is no copy")
    assert said.endswith(
        "or download https://huggingface.co/USER/OTHER/resolve/main/model.safetensors and give its path"
    )
    with pytest.raises(InputError, match=r"/resolve/v2/a/b\.ckpt"):
        downloaded("hf://USER/NAME@v2/a/b.ckpt")
    assert "hub cannot be reached" in error_of(capsys, lambda: sample.main(["hf://USER/OTHER"]))


def test_without_its_library_the_command_to_install_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    said = refusal(lambda: degrain.load("hf://USER/NAME"))
    assert said.startswith("hf://USER/NAME: needs huggingface_hub: python -m pip install huggingface_hub; or download ")


@pytest.mark.parametrize("kind", ["RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError"])
def test_what_the_hub_refuses_is_said_in_words(monkeypatch, kind):
    error = getattr(errors, kind)

    def refuse(*_, **__):
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    reason = {"G": "its owner must grant you access", "Rep": "there is no such repository", "Rev": "it has no such rev"}
    [said] = [words for start, words in reason.items() if kind.startswith(start)]
    assert f"hf://USER/NAME: cannot be downloaded: {said}" in refusal(lambda: downloaded("hf://USER/NAME"))


@pytest.mark.parametrize("address", ["hf://", "hf://NAME", "hf:///NAME", "hf://USER/NAME@/file", "hf://USER/../NAME/ "])
def test_an_address_has_a_user_and_a_name(address):
    with pytest.raises(InputError):
        downloaded(address)
