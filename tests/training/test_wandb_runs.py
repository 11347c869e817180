"""What W&B has of a run beside its curves, read from the offline file; sweeps and artifacts, without network."""

import json
import shutil
from pathlib import Path

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps import utils as sweeps

import train
from degrain.models.core.errors import InputError
from degrain.models.inference.artifact import local_checkpoint
from degrain.models.inference.checkpoint import read_checkpoint
from degrain.models.training.tracking import Tracker, own_name
from tests import tiny
from tests.tiny import BATCH, BUDGET, LEG
from tests.wandb_records import artifacts, history, labels, read_records, run_ids, summary

ROOT = Path(__file__).parents[2]
NAN = float("nan")

pytestmark = pytest.mark.usefixtures("no_account")


# --- records


def test_both_stages_have_one_group_and_curves_of_the_training_itself(trained):
    for stage in ("vae", "gan"):
        records = read_records(getattr(trained, stage))
        assert labels(records) == {"name": stage, "group": "vae", "tags": [], "notes": ""}
        steps = [row for row in history(records) if "train/learning_rate" in row]
        assert len(steps) == BUDGET // BATCH and all(row["speed/images_per_second"] > 0 for row in steps)
    captions = {row["draws/caption"] for row in history(records) if "draws/caption" in row}
    assert captions == {f"{n} images seen; rows from top to bottom: mean, std, sample, denoised" for n in (LEG, BUDGET)}


def test_the_summary_has_the_best_value_of_what_the_recipe_watches(trained):
    records = read_records(trained.vae)
    values = [row["val/bits_per_dimension"] for row in history(records) if "val/bits_per_dimension" in row]
    found = summary(records)
    assert found["best/val/bits_per_dimension"] == pytest.approx(min(values))
    assert found["best/images_seen"] == (LEG, BUDGET)[values.index(min(values))]
    assert not any(name.startswith("best/") for name in summary(read_records(trained.gan)))


def test_a_number_that_is_not_finite_stays_out_of_the_summary(tmp_path):
    tracker = Tracker("line", tmp_path, mode="offline", tags="a, b", notes="of a test", group="g")
    tracker.log_metrics({"val/x": 1.0, "val/y": 2.0}, step=8)
    tracker.log_metrics({"val/x": NAN, "val/y": float("-inf"), "val/z": 3.0}, step=16)
    tracker.finalize("success")
    records = read_records(tmp_path)
    assert labels(records) == {"name": "line", "group": "g", "tags": ["a", "b"], "notes": "of a test"}
    second = {name: value for name, value in history(records)[1].items() if not name.startswith("_")}
    assert second == {"val/z": 3.0, "images_seen": 16}


def test_a_test_logs_its_table_to_the_run_that_it_measures(trained, root):
    folder = Path(shutil.copytree(trained.gan, root / "runs/gan"))
    tiny.run(root, "gan", "--wandb", "offline", subcommand="test")
    records = read_records(folder)
    assert set(run_ids(records)) == {tiny.checkpoint(folder)["degrain"]["tracked_run"]}
    [row] = [row for row in history(records) if "results/path" in row]
    [path] = folder.glob(f"wandb/offline-run-*/files/{row['results/path']}")
    table = json.loads(path.read_text())
    tested = {name: v for name, v in json.loads((folder / "metrics.json").read_text()).items() if "test/" in name}
    assert row["images_seen"] == BUDGET and table["columns"] == ["measure", "row", "metric", "value"]
    found = {metric: value for measure, _, metric, value in table["data"] if measure == "test"}
    assert {f"test/{metric}": value for metric, value in found.items()} == {
        name: value for name, value in tested.items() if name.count("/") == 1
    }
    curve = [row for row in history(records) if "test/margin" in row]
    assert [row["images_seen"] for row in curve] == [BUDGET]
    assert [row["images_seen"] for row in history(records) if "denoisings/caption" in row][-1] == BUDGET
    assert summary(records)["test/margin"] == pytest.approx(tested["test/margin"])


def test_results_are_rows_by_measure_row_and_metric(tmp_path):
    tracker = Tracker("line", tmp_path, mode="offline")
    results = {"test/rate": 1, "test/net/denoised/frechet": 2.5, "test/net/budget/frechet/mean/x": NAN, "test/a/b": "c"}
    tracker.log_results(results, 8)
    tracker.finalize("success")
    [path] = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    assert json.loads(path.read_text())["data"] == [
        ["test", "", "rate", 1],
        ["net", "denoised", "frechet", 2.5],
        ["net", "budget/frechet/mean", "x", None],
    ]
    found = summary(read_records(tmp_path))
    assert found["test/a/b"] == "c" and "test/net/budget/frechet/mean/x" not in found


# --- artifacts


def test_validated_checkpoints_are_artifacts_when_asked(root, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(root / "staged"))
    folder = tiny.run(root, "vae", "--name", "my vae", "--wandb", "offline", "--wandb_artifacts", "true")
    rows = history(read_records(folder.with_name("my vae")))
    values = [row["val/bits_per_dimension"] for row in rows if "val/bits_per_dimension" in row]
    second = {"latest", "best"} if values[1] < values[0] else {"latest"}
    found = artifacts(read_records(folder.with_name("my vae")))
    assert [(name, set(aliases)) for name, aliases, _ in found] == [("my-vae", {"latest", "best"}), ("my-vae", second)]
    assert [about["images_seen"] for *_, about in found] == [LEG, BUDGET]


def test_artifacts_without_wandb_are_refused(root, capsys):
    config = tiny.write(root / "c.yaml", tiny.vae_config(root) | {"name": "mine"})
    assert "--wandb_artifacts true: W&B is off" in tiny.fit_error(capsys, config, "--wandb_artifacts", "true")
    assert not (root / "runs/mine").exists()


def test_an_address_is_downloaded_and_read(trained, tmp_path, monkeypatch):
    shutil.copy(trained.gan / "last.ckpt", tmp_path)
    asked = []

    class Api:
        def __init__(self, **_: object) -> None: ...

        def artifact(self, address: str, type: str) -> "Api":
            asked.append((address, type))
            return self

        def download(self) -> str:
            return str(tmp_path)

    monkeypatch.setattr(wandb, "Api", Api)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    assert read_checkpoint("wandb:me/degrain/gan:latest")[0].stage == "gan"
    assert asked == [("me/degrain/gan:latest", "model")]
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(InputError, match="holds no checkpoint"):
        local_checkpoint("wandb:me/degrain/gan:best")


@pytest.mark.parametrize(
    ("address", "key", "reason"),
    [
        ("wandb:me/degrain/gan", "", "write wandb:ENTITY/PROJECT/NAME:ALIAS"),
        ("wandb:me/degrain/gan:latest", "", "not logged in to W&B; run `wandb login`"),
        ("wandb:me/degrain/gan:latest", "0", "W&B did not give it .*KEY invalid"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_line(monkeypatch, address, key, reason):
    monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(InputError, match=reason) as caught:
        local_checkpoint(address)
    assert "\n" not in str(caught.value)


# --- sweeps


def test_runs_of_a_sweep_have_folders_and_ids_of_their_own(root, monkeypatch):
    sweep = yaml.safe_load((ROOT / "configs/sweep.yaml").read_text())
    tried = {"model.learning_rate": 0.001, "model.rate_warmup": 0.2, "model.net.latent": 32}
    assert set(tried) == set(sweep["parameters"])
    arguments = sweeps.create_sweep_command_args({"args": {name: {"value": v} for name, v in tried.items()}})
    parts = {**arguments, "env": [], "interpreter": ["python"], "program": [sweep["program"]]}
    command = [w for word in sweeps.create_sweep_command(sweep["command"]) for w in parts.get(word[2:-1], [word])]
    assert command[:2] == ["python", "train.py"] and (ROOT / command[4]).is_file()
    monkeypatch.setenv("WANDB_SWEEP_ID", "me/degrain/s1")
    few = {"data.count": 8, "data.valid_count": 4, "data.batch_size": 4, "model.budget": 4, "model.validate_every": 4}
    options = [f"--{name}={value}" for name, value in few.items()]
    options += [f"--model.net.{half}={json.dumps(tiny.NET)}" for half in ("encoder", "decoder")]
    options += [f"--data.cache={root / 'own-cache'}", f"--runs={root / 'runs'}", "--trainer.accelerator=cpu"]
    for run in ("a1", "b2"):
        monkeypatch.setenv("WANDB_RUN_ID", run)
        train.main([*command[2:], *options, "--wandb=offline" if run == "a1" else "--wandb=off"])
        saved = yaml.safe_load((root / f"runs/sweep-{run}/config.yaml").read_text())
        assert saved["name"] == f"sweep-{run}" == own_name(saved["name"])
        assert saved["model"]["init_args"]["rate_warmup"] == 0.2
    records = read_records(root / "runs/sweep-a1")
    assert run_ids(records) == ["a1"] == [tiny.checkpoint(root / "runs/sweep-a1")["degrain"]["tracked_run"]]
    assert sweep["metric"]["name"] in summary(records)
