"""train.py as a user runs it: the files of a run, going on with it, and errors in one line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml
from PIL import Image

import train
from degrain.models.training.checkpoints import STOPPING, StopRequest
from tests import tiny
from tests.conftest import Trained
from tests.tiny import BATCH, BUDGET, LEG, fit_error, folder_of_images, stopped, untrained_vae
from tests.wandb_records import config, history, read_records, run_ids

ROOT = Path(__file__).parent.parent
STAGES = ("vae", "gan")


@pytest.fixture(autouse=True)
def ctrl_c_as_it_was():
    """Restore the handlers: the Trainer ignores Ctrl-C once it was pressed, and the tests that follow should not."""
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def root(trained: Trained, tmp_path: Path) -> Path:
    """Make a folder of runs for one test, with the trained stage 1 and the caches in it."""
    (tmp_path / "runs/vae").mkdir(parents=True)
    shutil.copy(trained.vae / "last.ckpt", tmp_path / "runs/vae")
    (tmp_path / "cache").symlink_to(trained.root / "cache")
    return tmp_path


def copy_of_run(trained: Trained, root: Path, stage: str) -> Path:
    """Copy a trained run, so that the test may change it."""
    return Path(shutil.copytree(getattr(trained, stage), root / "runs" / stage, dirs_exist_ok=True))


def said_last(out: str) -> str:
    """Return the last line before the commands to type next."""
    return [line for line in out.strip().splitlines() if not line.startswith("next: ")][-1]


# --- what a run leaves


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_leaves_config_checkpoint_metrics_and_pictures(trained, stage):
    folder = getattr(trained, stage)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.yaml", "curves.png", "last.ckpt", "metrics.csv", "metrics.json", "pictures", "wandb"}
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["name"] == stage and resolved["model"]["init_args"]["learning_rate"] > 0  # a default, resolved
    pictures = {path.name for path in (folder / "pictures").iterdir()}
    kinds = ("draws", "reconstructions", *(("diagnostics", "regions") if stage == "vae" else ("denoisings",)))
    assert pictures == {f"{n:09d}-{what}.png" for n in (LEG, BUDGET) for what in kinds}
    for path in (folder / "pictures").iterdir():
        with Image.open(path) as picture:
            picture.verify()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["images_seen"] == tiny.checkpoint(folder)["degrain"]["images_seen"] == BUDGET


@pytest.mark.parametrize("stage", STAGES)
def test_the_offline_run_holds_scalars_pictures_and_config(trained, stage):
    folder = getattr(trained, stage)
    records = read_records(folder)
    rows = history(records)
    loss = {"vae": "train/distortion", "gan": "train/g_loss"}[stage]
    assert [row["images_seen"] for row in rows if loss in row] == list(range(BATCH, BUDGET + 1, BATCH))
    value = {"vae": "val/distortion", "gan": "val/variance_ratio"}[stage]
    assert [row["images_seen"] for row in rows if value in row] == [LEG, BUDGET]
    assert {name for row in rows for name in row if name.startswith(("train/", "val/"))} == {
        name for name in json.loads((folder / "metrics.json").read_text()) if name.startswith(("train/", "val/"))
    }
    for what in ("draws", "reconstructions"):
        pictures = [row for row in rows if f"{what}/path" in row]
        assert [row["images_seen"] for row in pictures] == [LEG, BUDGET]
        [part] = (folder / "wandb").glob("offline-run-*")
        assert all((part / "files" / row[f"{what}/path"]).is_file() for row in pictures)
    recorded = config(records)
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert {name: recorded[name] for name in resolved} == resolved


@pytest.mark.parametrize("stage", STAGES)
def test_the_last_lines_are_the_run_and_what_to_do_next_and_there_is_no_noise(root, capsys, recwarn, stage):
    folder = tiny.run(root, stage, "--name", "mine", "--model.budget", str(BATCH))
    printed = capsys.readouterr()
    assert said_last(printed.out) == f"run: {folder.with_name('mine')}"
    assert printed.err == ""  # no advertisements
    for_us = ("LightningCLI's args parameter", "was deprecated in", "JsonargparseDeprecationWarning")
    assert not [w for w in map(str, recwarn) if not any(part in w for part in for_us)]


def test_the_progress_counts_images_in_lines(root, capsys):
    stopped(root, "vae", "Kill", 64, "--checkpoint_minutes", "0")
    capsys.readouterr()
    tiny.run(root, "vae", "--name", "mine", "--ckpt_path", "last")
    lines = [line for line in re.split("[\r\n]", capsys.readouterr().out) if line.startswith("training")]
    assert f"| 56/{BUDGET} [" in lines[0] and f"| {BUDGET}/{BUDGET} [" in lines[-1]
    assert "distortion=" in lines[-1]
    assert len(lines) <= 4


# --- going on


def test_a_killed_run_with_a_discriminator_of_features_goes_on_as_if_nothing_had_happened(root, small_levels):
    with_features = ("--model.feature_weight", "0.5", "--checkpoint_minutes", "0")
    whole = tiny.run(root, "gan", "--name", "whole", *with_features).with_name("whole")
    assert stopped(root, "gan", "Kill", 40, *with_features) == 130
    tiny.run(root, "gan", "--name", "mine", "--ckpt_path", "last", *with_features)
    tiny.assert_same_run(root / "runs/mine", whole)


@pytest.mark.parametrize("has_one", [True, False])
def test_a_discriminator_on_features_that_only_one_side_has_is_said(trained, root, capsys, small_levels, has_one):
    path, given = trained.gan / "last.ckpt", ("--model.feature_weight", "0.5")
    if has_one:
        tiny.run(root, "gan", "--name", "own", "--model.budget=8", *given)
        path, given = root / "runs/own/last.ckpt", ()
    line = tiny.error_of(capsys, lambda: tiny.run(root, "gan", "--name", "other", "--ckpt_path", str(path), *given))
    has, way = ("a", "above 0") if has_one else ("no", "0")
    said = (
        f"has {has} discriminator on features; give --model.feature_weight {way}, or -c with the config.yaml of its run"
    )
    assert line.endswith(said)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("images", [40, 64, BUDGET], ids=["in the first leg", "in the second leg", "in the last step"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(trained, root, stage, images):
    assert stopped(root, stage, "Kill", images, "--checkpoint_minutes", "0") == 130
    folder = root / "runs/mine"
    assert tiny.checkpoint(folder)["degrain"]["images_seen"] == images - BATCH  # of the step before
    tiny.run(root, stage, "--name", "mine", "--ckpt_path", "last")
    tiny.assert_same_run(folder, getattr(trained, stage))


KILLS = {  # stage, images seen, where, and the images of the checkpoint that is left
    "stage 1 in the validation that fits the last prior": ("vae", BUDGET, "validation", BUDGET - BATCH),
    "stage 2 in training": ("gan", 64, "training", 64 - BATCH),
    "in the last checkpoint's write": ("vae", BUDGET, "checkpoint", BUDGET - BATCH),
}


@pytest.mark.parametrize("case", KILLS)
def test_a_sigkill_loses_nothing(trained, root, case):
    stage, images, where, kept = KILLS[case]
    send = {"class_path": "tests.tiny.Send", "init_args": {"images": images, "name": "SIGKILL", "where": where}}
    config = tiny.write(root / "c.yaml", tiny.CONFIGS[stage](root) | {"name": "mine"})
    options = ["--checkpoint_minutes", "0", "--trainer.callbacks", json.dumps([send])]
    options += ["--wandb", "offline"] if where == "validation" else []
    if where == "validation":  # in a process of its own that wandb knows nothing of; the others are forked, in no time
        environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        quickly = "import sys, train; from tests import quick\nwith quick.pictures(): train.main(sys.argv[1:])"
        command = [sys.executable, "-c", quickly, "fit", "-c", config, *options]
        code = subprocess.run(command, cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}).returncode
    else:
        killed = get_context("fork").Process(target=train.main, args=(["fit", "-c", str(config), *options],))
        killed.start()
        killed.join()
        code = killed.exitcode
    assert code == -signal.SIGKILL
    folder = root / "runs/mine"
    before = tiny.checkpoint(folder)["degrain"]
    assert before["images_seen"] == kept
    assert (folder / ".last.part.ckpt").exists() == (where == "checkpoint")
    tiny.run(root, stage, "--name", "mine", "--ckpt_path", "last", *options[4:])
    tiny.assert_same_run(folder, getattr(trained, stage))
    if where == "validation":
        ids = {before["tracked_run"], tiny.checkpoint(folder)["degrain"]["tracked_run"]}
        assert set(run_ids(read_records(folder))) == ids  # of the killed process the record may be lost
        assert len(ids) == 1


SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138, "SIGUSR2": 140}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_run_that_is_asked_to_stop_keeps_the_step_under_way(root, capsys, name):
    assert stopped(root, "vae", "Send", 24, name=name) == SIGNALS[name]
    assert "--ckpt_path last goes on from it" in capsys.readouterr().err
    assert tiny.checkpoint(root / "runs/mine")["degrain"]["images_seen"] == 24
    assert not (root / "runs/mine/pictures").exists()
    assert not list(root.glob("runs/mine/.*.part*"))


@pytest.mark.parametrize("where", ["training", "validation"])
def test_a_validation_is_finished_before_a_stop(root, where):
    assert stopped(root, "vae", "Send", LEG, name="SIGUSR1", where=where) == 138
    assert tiny.checkpoint(root / "runs/mine")["degrain"]["images_seen"] == LEG
    assert len(list(root.glob("runs/mine/pictures/*-draws.png"))) == 1


def test_a_stop_in_the_last_validation_comes_after_the_end(trained, root):
    folder = root / "runs/mine"
    callbacks = [{"class_path": "tests.tiny.Send", "init_args": {"images": BUDGET, "name": "SIGTERM"}}]
    tiny.run(root, "vae", "--name", "mine", "--trainer.callbacks", json.dumps(callbacks))  # no exit code but 0
    tiny.assert_same_run(folder, trained.vae)


def test_a_second_ctrl_c_stops_at_once():
    stop = StopRequest()
    for number in (signal.SIGUSR1, signal.SIGTERM):  # a cluster's grace ends in SIGTERM
        stop.receive(number)
        assert stop.number == signal.SIGUSR1
    with pytest.raises(KeyboardInterrupt):
        stop.receive(signal.SIGINT)


def test_a_run_killed_before_its_first_checkpoint_begins_again(root):
    assert stopped(root, "vae", "Kill", 16) == 130
    assert not (root / "runs/mine/last.ckpt").exists()
    tiny.run(root, "vae", "--name", "mine", "--ckpt_path", "last")
    assert tiny.checkpoint(root / "runs/mine")["degrain"]["images_seen"] == BUDGET


def test_what_goes_on_is_the_same_tracked_run(root):
    stopped(root, "vae", "Kill", 64, "--wandb", "offline")
    tiny.run(root, "vae", "--name", "mine", "--wandb", "offline", "--ckpt_path", "last")
    records = read_records(root / "runs/mine")
    first, second = run_ids(records)
    assert first == second == tiny.checkpoint(root / "runs/mine")["degrain"]["tracked_run"]
    seen = [row["images_seen"] for row in history(records) if "train/distortion" in row]
    assert seen == [*range(BATCH, 64, BATCH), *range(LEG + BATCH, BUDGET + 1, BATCH)]


def test_a_finished_run_stays_as_it_is_and_a_larger_budget_goes_on(trained, root, capsys):
    folder = copy_of_run(trained, root, "vae")
    kept = {name: (folder / name).read_bytes() for name in ("last.ckpt", "metrics.json", "config.yaml")}
    tiny.run(root, "vae", "--ckpt_path", "last")
    out = capsys.readouterr().out
    assert "has seen 96 of 96 images: a larger --model.budget goes on" in out
    assert said_last(out) == f"run: {folder}"
    assert kept == {name: (folder / name).read_bytes() for name in kept}
    tiny.run(root, "vae", "--ckpt_path", "last", "--model.budget", str(BUDGET + 2 * BATCH))
    card = tiny.checkpoint(folder)["degrain"]
    assert card["images_seen"] == BUDGET + 2 * BATCH
    assert card["warm_from"] == BUDGET  # or the full rate would meet what the rate of 0 left, and undo much


@pytest.mark.parametrize("stage", STAGES)
def test_validate_and_test_add_values_and_change_nothing_else(trained, root, capsys, stage):
    folder = copy_of_run(trained, root, stage)
    before = json.loads((folder / "metrics.json").read_text())
    kept = {name: (folder / name).read_bytes() for name in ("last.ckpt", "config.yaml")}
    tiny.run(root, stage, "--ckpt_path", "last", subcommand="validate")
    assert json.loads((folder / "metrics.json").read_text()) == before  # measured again, the same
    tiny.run(root, stage, subcommand="test")  # the last checkpoint is what there is to test
    assert said_last(capsys.readouterr().out) == f"run: {folder}"
    after = json.loads((folder / "metrics.json").read_text())
    assert {name: after[name] for name in before} == before
    tested = {name.replace("test/", "val/") for name in after.keys() - before.keys()}
    assert tested == {name for name in before if name.startswith("val/")} - {"val/margin_train"}
    assert kept == {name: (folder / name).read_bytes() for name in kept}


# --- what a user can mend: one line, exit code 2, and nothing in the way of the next try


def test_wandb_that_does_not_start_is_one_line_and_blocks_nothing(root, capsys, monkeypatch):
    for name in ("HOME", "NETRC", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(root / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    path = tiny.write(root / "c.yaml", tiny.vae_config(root) | {"name": "mine"})
    assert "pass --wandb offline" in fit_error(capsys, path, "--wandb", "online")
    tiny.run(root, "vae", "--name", "mine", "--model.budget", str(BATCH))  # goes


# --- every config


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_trains_a_step_of_its_own_networks(root, path):
    written = yaml.safe_load(path.read_text())
    if "class_path" not in written.get("data", {}):
        pytest.skip("overlays have tests of their own, in test_scaling.py, test_controls.py and test_expressive.py")
    assert path.read_text().startswith("# python train.py fit -c configs/" + path.name)
    if written["data"]["class_path"].startswith("degrain.data.gaussian"):
        pytest.skip("toys have tests of their own")
    size, model, kind = written["data"]["init_args"]["size"], written["model"], written["data"]["class_path"]
    if kind.endswith(("Portraits", "StackedMNIST")):
        options = {"count": 4, "valid_count": 4}
    else:
        options = {"valid_share": 0.5, "root": folder_of_images(root / "images", size)}
    options |= {"cache": root / "own-cache", "batch_size": 2, "eval_batch_size": 4}
    arguments = [f"--data.{name}={value}" for name, value in options.items()]
    if "vae" in model["init_args"]:
        arguments += ["--model.vae", str(untrained_vae(root, size)), "--model.ratio_draws=2"]
    arguments += ["--model.budget=2", "--model.validate_every=2", f"--runs={root}/runs", "--wandb=off"]
    train.main(["fit", "-c", str(path), *arguments, "--trainer.accelerator=cpu", "--trainer.devices=1"])
    assert tiny.checkpoint(root / "runs" / written["name"])["degrain"]["images_seen"] == 2


# --- as a process


def test_the_script_prints_its_resolved_config(root):
    path = tiny.write(root / "c.yaml", tiny.vae_config(root))
    command = [sys.executable, ROOT / "train.py", "fit", "-c", path, "--model.budget", "12_000", "--print_config"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and done.stderr == ""
    assert yaml.safe_load(done.stdout)["model"]["init_args"]["budget"] == 12_000
