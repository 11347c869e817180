"""Exports instead of checkpoints: stage 2, tests and trainings take them; damaged and foreign files are refused."""

import json
import shutil
from dataclasses import asdict

import pytest
import safetensors.torch
import torch

import sample
from degrain.models.core.errors import InputError
from degrain.models.core.layers import PyramidConfig
from degrain.models.inference.checkpoint import read_checkpoint, to_safetensors
from degrain.models.inference.pipeline import load_pipeline
from degrain.models.training import GANModule, VAEModule
from degrain.models.vae.network import VAEConfig
from tests import tiny
from tests.inference.conftest import KINDS
from tests.inference.test_checkpoint import refusal
from tests.tiny import BATCH, BUDGET, LEG, assert_equal_states, error_of, fit_error, stopped
from tests.training.recipes import rate_of

GOES_ON = ("--model.budget", str(BUDGET + LEG), "--model.warmup", "0.3", "--model.decay", "0.3")


# --- instead of a checkpoint


def test_stage_2_takes_stage_1_from_an_export(exports, learned, root):
    net = PyramidConfig((8, 8), patch=4)
    for kind in KINDS:
        module = GANModule(str(exports[kind]), 32, net, net)
        ours, theirs = module.vae.state_dict(), load_pipeline(exports[kind])[1].vae.state_dict()
        assert_equal_states(dict(ours), dict(theirs))
        assert ("learned" in module.prior.names) == (kind == "learned")
    folder = tiny.run(root, "gan", "--model.vae", str(exports["learned"]), "--model.budget", str(2 * BATCH))
    made = tiny.checkpoint(folder)
    assert made["degrain"]["exported"] is None and made["degrain"]["images_seen"] == 2 * BATCH
    assert all(value.dtype != torch.float16 for value in made["state_dict"].values())


@pytest.mark.parametrize(("stage", "subcommand"), [("vae", "test"), ("gan", "test"), ("gan", "validate")])
def test_an_export_is_measured_with_nothing_beside_it(checkpoints, exports, root, stage, subcommand):
    values = {}
    (root / "runs/vae").mkdir(parents=True)
    (root / "runs/vae/last.ckpt").symlink_to(checkpoints["vae"])  # which a config of stage 2 names
    for name, path in (("whole", checkpoints[stage]), ("halved", exports[stage])):
        folder = tiny.run(root, stage, "--name", name, "--ckpt_path", str(path), subcommand=subcommand)
        values[name] = json.loads((root / "runs" / name / "metrics.json").read_text())
        (root / "runs/vae/last.ckpt").unlink(missing_ok=True)
    assert not list(folder.glob("*.ckpt"))
    assert values["halved"]["images_seen"] == values["whole"]["images_seen"] == BUDGET
    measured = {name for name in values["whole"] if not name.endswith("margin")}  # there is no discriminator
    assert measured == values["halved"].keys() and len(measured) > 2
    for name in measured:
        assert values["halved"][name] == pytest.approx(values["whole"][name], rel=0.02, abs=0.02), name


def test_fit_goes_on_from_an_export_with_new_optimizers_and_after_a_kill(exports, root, capsys):
    options = ("--ckpt_path", str(exports["vae"]), *GOES_ON)
    whole = tiny.checkpoint(tiny.run(root, "vae", "--wandb", "offline", *options))
    said = f"going on from {exports['vae']}: its weights and 96 images seen, new optimizer states"
    assert capsys.readouterr().out.count(said) == 1
    (optimizer,) = whole["optimizer_states"]
    assert {int(state["step"]) for state in optimizer["state"].values()} == {LEG // BATCH}
    position = {"images_seen": BUDGET + LEG, "warm_from": BUDGET, "exported": None}
    assert whole["degrain"] == whole["degrain"] | position and whole["degrain"]["tracked_run"]
    _, before = read_checkpoint(exports["vae"])
    moved = [name for name, value in before.items() if not torch.equal(value, whole["state_dict"][name])]
    assert any(name.startswith("vae.encoder") for name in moved) and "prior.mean" in moved

    assert stopped(root, "vae", "Kill", BUDGET + 2 * BATCH, "--checkpoint_minutes", "0", *options) == 130
    assert tiny.checkpoint(root / "runs/mine")["degrain"]["images_seen"] == BUDGET + BATCH
    tiny.run(root, "vae", "--name", "mine", "--ckpt_path", "last", *GOES_ON)
    resumed = tiny.checkpoint(root / "runs/mine")
    for key in ("state_dict", "optimizer_states"):
        assert_equal_states(resumed[key], whole[key], key)
    assert resumed["degrain"] == whole["degrain"] | {"tracked_run": None}


def test_the_learning_rate_rises_again_from_an_export(exports):
    net = VAEConfig(4, PyramidConfig(**tiny.NET), PyramidConfig(**tiny.NET))
    new, late = (VAEModule(32, net, budget=960, warmup=0.1, decay=0.3) for _ in range(2))
    late.load_export(*read_checkpoint(exports["vae"]), str(exports["vae"]), fit=True)
    for images_seen in (0, 48, 96, 200):
        new.images_seen, late.images_seen = images_seen, BUDGET + images_seen
        assert rate_of(late) == pytest.approx(rate_of(new))
    late.images_seen = 960
    assert rate_of(late) == 0


def test_stage_2_goes_on_from_an_export_with_a_discriminator_that_learns_alone_first(exports, root, capsys):
    """Two steps of D alone while the rate rises, then it rises for both; a kill between changes nothing."""
    options = ("--model.vae", str(exports["gan"]), "--ckpt_path", str(exports["gan"]), "--checkpoint_minutes", "0")
    options += ("--model.budget", str(BUDGET + 6 * BATCH), "--model.warmup_images", str(2 * BATCH))
    _, exported = read_checkpoint(exports["gan"])
    found = {}
    for seen in (2, 3):
        assert stopped(root, "gan", "Kill", BUDGET + (seen + 1) * BATCH, *options) == 130
        found[seen] = tiny.checkpoint(root / "runs/mine")
        shutil.move(root / "runs/mine", root / f"runs/after_{seen}")
    said = capsys.readouterr().out
    assert f"an export holds no discriminators: new ones learn alone for {2 * BATCH} images" in said
    for seen, moved in ((2, False), (3, True)):
        card, state = found[seen]["degrain"], found[seen]["state_dict"]
        assert card["images_seen"] == BUDGET + seen * BATCH
        assert card["warm_from"] == BUDGET + moved * 2 * BATCH
        for name, value in exported.items():  # G and its average are those of the export until G takes its first step
            if name.startswith("ema.module.") and value.is_floating_point() and value.ndim > 1:
                g = state[name.replace("ema.module.", "denoiser.")]
                assert torch.equal(g, value.float()) is not moved, name
                assert torch.equal(state[name], value.float()) is not moved, name
        of_d, of_g = found[seen]["optimizer_states"]
        assert len(of_d["state"]) and {int(s["step"]) for s in of_d["state"].values()} == {seen}
        assert {int(s["step"]) for s in of_g["state"].values()} == ({1} if moved else set())

    last = ("--ckpt_path", "last", *options[4:])
    tiny.run(root, "gan", "--name", "whole", *options)
    whole = tiny.checkpoint(root / "runs/whole")
    for seen in (2, 3):
        tiny.run(root, "gan", "--name", f"after_{seen}", *options[:2], *last)
        on = tiny.checkpoint(root / f"runs/after_{seen}")
        for key in ("state_dict", "optimizer_states"):
            assert_equal_states(on[key], whole[key], key)


def test_a_run_that_ends_before_the_denoiser_learns_says_so(exports, root, capsys):
    options = ("--model.vae", str(exports["gan"]), "--ckpt_path", str(exports["gan"]), "--model.warmup_images", "16")
    for budget, told in ((BUDGET + 2 * BATCH, True), (BUDGET + 3 * BATCH, False)):
        tiny.run(root, "gan", "--name", f"to_{budget}", "--model.budget", str(budget), *options)
        assert ("that is all this run: the images stay as they are" in capsys.readouterr().out) == told
        of_g = tiny.checkpoint(root / f"runs/to_{budget}")["optimizer_states"][1]["state"]
        assert bool(of_g) != told


def test_a_finished_export_asks_for_a_larger_budget(exports, root, capsys):
    folder = tiny.run(root, "vae", "--ckpt_path", str(exports["vae"]))
    assert f"{exports['vae']} has seen 96 of 96 images: a larger --model.budget goes on" in capsys.readouterr().out
    assert not folder.exists()


# --- what is refused


def test_a_truncated_export_is_refused(exports, tmp_path):
    whole, path = exports["gan"].read_bytes(), tmp_path / "cut.safetensors"
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "truncated or no checkpoint" in refusal(path)


def test_an_export_with_a_byte_changed_anywhere_is_refused(exports, tmp_path):
    whole, path = exports["learned"].read_bytes(), tmp_path / "damaged.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in (*range(0, header, 97), *range(header, len(whole), 997), len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x81]) + whole[place + 1 :])
        assert "cannot be read" in refusal(path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "was not written by degrain"),
        ({"format": "pt"}, "was not written by degrain"),
        ({"degrain": "no JSON"}, "cannot be read"),
        ({"degrain": "[]"}, "cannot be read"),
        ({"degrain": "7"}, "cannot be read"),
        ({"degrain": '{"stage": "vae"}'}, "cannot be read"),
        ({"degrain": "[" * 100_000}, "cannot be read"),
    ],
    ids=["none", "other", "text", "list", "number", "no digest", "deep"],
)
def test_a_foreign_file_is_refused(tmp_path, capsys, metadata, said):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(2)}, path, metadata)
    assert said in refusal(path)
    assert said in error_of(capsys, lambda: sample.main([str(path), "--out", f"{tmp_path}/s.png"]))
    config = tiny.write(tmp_path / "c.yaml", tiny.vae_config(tmp_path))
    assert said in fit_error(capsys, config, "--ckpt_path", str(path))


@pytest.mark.parametrize("change", ["field", "missing", "shape", "weight"])
def test_an_export_of_another_version_is_refused(exports, tmp_path, change):
    made, state = read_checkpoint(exports["learned"])
    fields, name = asdict(made), "prior.mixture.factors"
    if change == "field":
        fields["novel"] = 1
    elif change == "shape":
        state[name] = torch.zeros(3, 3)
    elif change == "weight":
        state["prior.novel"] = torch.zeros(1)
    else:
        del state[name]
    path = tmp_path / "other.safetensors"
    path.write_bytes(to_safetensors(fields, state))
    with pytest.raises(InputError, match="checkpoint .*other.safetensors: .* written by another version of degrain;"):
        load_pipeline(path)
