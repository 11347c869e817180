"""What the terminal says of the next command, of the common options, and of options that have no effect."""

import shlex
from pathlib import Path

import pytest
from jsonargparse import Namespace

import train
from degrain.models.training import next_step
from degrain.models.training.cli import CLI
from degrain.models.training.evaluator import Evaluator
from degrain.models.training.schedule import Schedule
from degrain.models.training.short_help import COMMON, described
from tests import tiny

ROOT = Path(__file__).parents[2]
FACES = "degrain.data.datamodule.ImageFolder"


def stage_2(*configs: str, name: str, runs: str = "runs", kind: str = FACES, **data: object) -> str:
    """Return the command that follows a stage 1 with these config files, name and options of the data."""
    data = Namespace(class_path=kind, init_args=Namespace(**data))
    return next_step.stage_2(Namespace(config=list(configs), name=name, runs=runs, data=data))


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """Enter the repository: the commands name its configs."""
    monkeypatch.chdir(ROOT)


def test_stage_2_is_the_config_beside_that_of_stage_1():
    portraits = "degrain.data.datamodule.Portraits"
    demo = stage_2("configs/demo_vae.yaml", name="demo_vae", kind=portraits, size=32, count=10_000, valid_count=1_000)
    assert demo == "python train.py fit -c configs/demo_gan.yaml"
    faces = {"root": "my images", "size": 128, "batch_size": 64}
    command = stage_2("configs/vae_celeba64.yaml", "configs/base.yaml", name="faces", runs="r", **faces)
    assert command == (
        "python train.py fit -c configs/gan_celeba64.yaml -c configs/base_gan.yaml --data.root 'my images' "
        "--data.size 128 --name faces_gan --runs r --model.vae r/faces/last.ckpt"
    )


def test_the_next_command_is_one_that_train_py_takes(trained, root, capsys, monkeypatch):
    monkeypatch.setattr(CLI, "fit", lambda self, model, **_: None)
    config = CLI(["fit", "-c", str(tiny.write(root / "v.yaml", tiny.vae_config(root) | {"name": "new"}))]).config.fit
    config.name = "vae"
    [line] = next_step.after_fit(config, "vae")
    cli = CLI([*shlex.split(line)[2:], "--wandb", "off", "--trainer.accelerator", "cpu"])
    assert cli.model.card().vae == tiny.checkpoint(trained.vae)["degrain"]["vae"]
    assert cli.datamodule.describe()["size"] == 32 and cli.folder == root / "runs/gan"
    assert cli.config.fit.group == "vae"


def test_a_test_is_followed_by_the_count_of_its_sheet(tmp_path):
    assert next_step.after_test(tmp_path) == []
    (tmp_path / "sheet_key.csv").touch()
    [line] = next_step.after_test(tmp_path)
    assert line.startswith(f"python -m degrain.models.evaluation.face_sheet {tmp_path}/sheet_key.csv RATER.txt")


@pytest.mark.parametrize("subcommand", COMMON)
def test_help_has_the_common_options_and_says_how_to_see_all(capsys, subcommand):
    with pytest.raises(SystemExit) as end:
        train.main([subcommand, "-c", "configs/gan_celeba64.yaml", "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and f"train.py {subcommand} --help all" in said
    assert all(f"--{name} " in said for name in COMMON[subcommand]) and "trainer.benchmark" not in said


def test_help_all_has_every_option(capsys):
    with pytest.raises(SystemExit):
        train.main(["fit", "--help", "all"])
    assert "--trainer.benchmark" in capsys.readouterr().out


def test_a_long_option_stays_apart_from_its_text():
    option = Namespace(default=None, help="What it is. More of it.")
    assert described("model.a_name_of_very_many_letters", option) == "  --model.a_name_of_very_many_letters What it is"


def test_a_warm_up_that_the_budget_cuts_off_is_said():
    assert Schedule(budget=1_000, warmup_images=1_000).note() is None
    note = Schedule(budget=1_000, warmup_images=4_000, decay=0, warmup=0, learning_rate=1e-3).note()
    assert note.startswith("model.warmup_images 4,000 is above model.budget 1,000: ") and "at 0.00025 of 0.001" in note


def test_a_sheet_that_is_not_written_is_said():
    assert Evaluator(off=True, sheet=16).ignored == "--evaluation.sheet 16"
    assert Evaluator(off=True).ignored == "" and Evaluator(off=True).options["sheet"] == 0
