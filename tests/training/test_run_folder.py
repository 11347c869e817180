"""A run's folder belongs to one job, what a command goes on from, and whose VAE stage 2 has."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import train
from degrain.models.training.run_folder import claimed
from tests import tiny
from tests.tiny import BATCH, BUDGET, LEG, fit_error, stopped
from tests.wandb_records import read_records, run_ids

MORE = ("--model.budget", str(BUDGET + BATCH))
NEXT = ("--model.budget", str(BUDGET + 2 * BATCH))


@pytest.fixture
def own(trained, root: Path) -> Path:
    """Copy the trained runs, so that the test may change them, and return the folder of runs."""
    (root / "runs/vae").unlink()
    return Path(shutil.copytree(trained.root / "runs", root / "runs", dirs_exist_ok=True))


def template(folder: Path, *options: str) -> list[str]:
    """Return the command that takes a run's saved config for a run that is tracked offline."""
    return ["fit", "-c", str(folder / "config.yaml"), *options]


def position(folder: Path) -> tuple[int, str | None]:
    """Return the images seen and the id in W&B of a run's checkpoint."""
    card = tiny.checkpoint(folder)["degrain"]
    return card["images_seen"], card["tracked_run"]


# --- one job


def test_a_second_fit_is_refused_and_a_test_is_not(own, root, capsys):
    config = tiny.write(root / "c.yaml", tiny.vae_config(root))
    for name, options in (("new", ()), ("new", ("--ckpt_path", "last")), ("vae", ("--ckpt_path", "last", *MORE))):
        with claimed(own / name):
            before = sorted((own / name).iterdir())
            line = fit_error(capsys, config, "--name", name, *options)
            assert f"runs/{name} is in use: process" in line and "choose another --name" in line
            assert sorted((own / name).iterdir()) == before
    assert not (own / "new").exists()
    with claimed(own / "vae"):
        tiny.run(root, "vae", subcommand="test")


def test_a_claim_leaves_nothing_and_clears_what_a_kill_has_left(own):
    (own / "vae/.last.part.ckpt").write_bytes(b"half")
    (own / "vae/pictures/.000000096-draws.part.png").write_bytes(b"half")
    (own / "vae/.lock").write_text("process 1 on another machine")
    with claimed(own / "vae"):
        pass
    assert not list((own / "vae").rglob(".*"))
    with pytest.raises(ValueError), claimed(own / "deep/new"):
        raise ValueError
    assert not (own / "deep").exists()


# --- what is gone on from


def test_a_saved_config_is_a_template(own, root, capsys):
    tiny.run(root, "vae", *MORE, "--ckpt_path", "last", "--seed", "1", "--wandb", "offline")
    said = capsys.readouterr().out
    assert f"going on from {own}/vae/last.ckpt: {BUDGET} images seen\n" in said
    assert f"changed since the last fit of this run: seed 0 -> 1, model.budget {BUDGET} -> {BUDGET + BATCH}" in said
    saved = yaml.safe_load((own / "vae/config.yaml").read_text())
    assert saved["ckpt_path"] is saved["weights_only"] is None
    train.main(template(own / "vae", "--name", "new", "--model.budget", str(BATCH)))
    assert "going on" not in capsys.readouterr().out
    assert position(own / "new")[0] == BATCH
    train.main(template(own / "vae", "--ckpt_path", str(own / "vae/last.ckpt"), *NEXT))  # its own, by its path
    assert position(own / "vae")[0] == BUDGET + 2 * BATCH


@pytest.mark.parametrize("option", ["--name", "--runs"])
def test_a_name_that_its_config_cannot_hold_is_refused(root, capsys, option):
    line = tiny.error_of(capsys, lambda: tiny.run(root, "vae", option, "n\udcffm"))
    assert f"{option[2:]} n\\udcffm: is not UTF-8" in line and not (root / "n\udcffm").exists()


def test_a_fork_is_a_run_of_its_own_and_is_resumed_as_such(own, root, capsys):
    tracked, parent = ("--wandb", "offline"), position(own / "vae")[1]
    tiny.run(root, "vae", "--name", "fork", *tracked, *MORE, "--ckpt_path", str(own / "vae/last.ckpt"))
    said = f"going on from {own}/vae/last.ckpt: {BUDGET} images seen; {own}/fork is a run of its own"
    assert said in capsys.readouterr().out
    _, fork = position(own / "fork")
    tiny.run(root, "vae", "--name", "fork", *NEXT, "--ckpt_path", "last", "--wandb", "off")
    assert position(own / "fork") == (BUDGET + 2 * BATCH, fork)  # kept for the next time it is tracked
    tiny.run(root, "vae", "--name", "second", *tracked, "--model.budget", "120", "--ckpt_path", f"{own}/fork/last.ckpt")
    seen, second = position(own / "second")
    assert seen == 120 and len({parent, fork, second}) == 3
    assert [set(run_ids(read_records(own / name))) for name in ("fork", "second")] == [{fork}, {second}]


def test_a_fork_that_is_killed_at_once_is_gone_on_with(own, root, capsys):
    options = ("--model.budget", str(BUDGET + LEG), "--ckpt_path")
    assert stopped(root, "vae", "Kill", BUDGET + BATCH, *options, str(own / "vae/last.ckpt")) == 130
    assert position(own / "mine") == (BUDGET, None)
    tiny.run(root, "vae", "--name", "mine", *options, "last")
    tiny.run(root, "vae", "--name", "whole", *options, str(own / "vae/last.ckpt"))
    tiny.assert_same_run(own / "mine", own / "whole")


# --- the VAE of stage 2


def test_a_checkpoint_of_stage_2_needs_no_other(own, root, trained):
    (own / "vae").rename(root / "elsewhere")
    tiny.run(root, "gan", subcommand="test")
    tiny.run(root, "gan", "--ckpt_path", "last", *MORE)
    saved = yaml.safe_load((own / "gan/config.yaml").read_text())
    assert saved["model"]["init_args"]["vae"] == str(own / "vae/last.ckpt")  # as it was given
    before, after = (tiny.checkpoint(folder)["state_dict"] for folder in (trained.gan, own / "gan"))
    vae = [name for name in before if name.startswith(("vae.", "prior."))]
    assert vae and all(torch.equal(before[name], after[name]) for name in vae)


def test_its_own_vae_is_kept_and_a_line_says_so(own, root, trained, capsys):
    tiny.run(root, "gan", "--ckpt_path", "last", *MORE)
    assert "another VAE" not in capsys.readouterr().out
    other = tiny.checkpoint(own / "vae")
    next(weights for name, weights in other["state_dict"].items() if name.startswith("vae.")).add_(1)
    torch.save(other, own / "vae/last.ckpt")
    values = []
    for folder in ("gan", "elsewhere"):
        tiny.run(root, "gan", "--model.vae", str(own / "vae/last.ckpt"), subcommand="test")
        values.append(json.loads((own / "gan/metrics.json").read_text()))
        said = f"model.vae {own}/vae/last.ckpt: holds another VAE than {own}/gan/last.ckpt, whose own is kept"
        assert (said in capsys.readouterr().out) == (folder == "gan")
        (own / "vae/last.ckpt").unlink(missing_ok=True)
    assert values[0] == values[1]


def test_a_named_stage_1_is_found(root, capsys):
    (root / "runs/vae").rename(root / "runs/my vae")
    config = tiny.write(root / "g.yaml", tiny.gan_config(root))
    line = fit_error(capsys, config)
    assert f"{root}/runs/vae/last.ckpt: no such file" in line
    assert f"--model.vae '{root}/runs/my vae/last.ckpt' takes" in line
    tiny.run(root, "vae", "--name", "N", "--model.budget", str(BATCH), "--ckpt_path", "last")
    said = capsys.readouterr().out
    assert f"{root}/runs/N has no checkpoint yet: beginning at 0 images\n" in said
    assert re.search(rf"\nnext: python train.py fit .* --model.vae {root}/runs/N/last.ckpt\n", said)
    assert f"--model.vae {root}/runs/N/last.ckpt takes" in fit_error(capsys, config)
    assert "runs/NAME/last.ckpt takes" in fit_error(capsys, config, "--data.size", "64")
