"""The command line of train.py: one seed for everything, and what it suggests for a wrong name."""

import pytest
import pytorch_lightning as pl
import torch
import yaml

import degrain.data.datamodule
import degrain.data.gaussian
import degrain.data.stacked_mnist
import degrain.models.toys
import degrain.models.training
import train
from degrain.models.core.command_line import nearest
from degrain.models.training.cli import CLI
from degrain.models.training.parser import arguments
from degrain.models.training.recipe import Recipe
from tests import tiny


class Unseeded(pl.LightningModule):
    """A recipe that takes no seed."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.width = width


class UnseededData(pl.LightningDataModule):
    """A data module that takes no seed."""


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """Return a function that makes everything that a command line of `fit` names, without training."""
    monkeypatch.setattr(CLI, "fit", lambda self, model, **_: None)

    def parse(*options: str, **changes: object) -> CLI:
        return CLI(["fit", "-c", str(tiny.write(tmp_path / "c.yaml", tiny.vae_config(tmp_path) | changes)), *options])

    return parse


@pytest.mark.parametrize("options, changes", [(["--seed", "3"], {}), ([], {"seed": 3})], ids=["option", "config"])
def test_one_seed_reaches_model_data_and_lightning(parsed, options, changes):
    cli = parsed(*options, **changes)
    assert cli.model.schedule.seed == cli.datamodule.seed == torch.initial_seed() == 3


def test_the_seed_is_0_by_default_and_makes_the_networks(parsed):
    cli, same, other = parsed(), parsed("--seed", "0"), parsed("--seed", "1")
    assert cli.model.schedule.seed == cli.datamodule.seed == 0
    tiny.assert_equal_states(cli.model.state_dict(), same.model.state_dict())
    networks = (torch.cat([p.flatten() for p in run.model.parameters()]) for run in (cli, other))
    assert not torch.equal(*networks)


def test_a_recipe_and_a_data_module_without_a_seed_work(parsed):
    model = {"class_path": f"{__name__}.Unseeded", "init_args": {"width": 2}}
    cli = parsed("--seed", "3", model=model, data={"class_path": f"{__name__}.UnseededData"})
    assert cli.model.width == 2 and cli.datamodule is not None and torch.initial_seed() == 3


def test_the_saved_config_holds_the_seed_once_and_goes_on_with_it(tmp_path):
    folder = tiny.run(tmp_path, "vae", "--seed", "3", "--model.budget", "8")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["seed"] == 3 and "seed_everything" not in config
    assert not any("seed" in config[part]["init_args"] for part in ("model", "data"))
    command = ["fit", "-c", str(folder / "config.yaml"), "--ckpt_path", "last", "--model.budget", "16"]
    assert CLI(command).model.schedule.seed == 3


MODULES = [
    degrain.models.training,
    degrain.models.toys,
    degrain.data.datamodule,
    degrain.data.gaussian,
    degrain.data.stacked_mnist,
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_recipe_and_data_module_takes_the_seed(module):
    kinds = (Recipe, pl.LightningDataModule)
    ours = [cls for cls in vars(module).values() if isinstance(cls, type) and issubclass(cls, kinds)]
    assert ours and all("seed" in arguments(cls) for cls in ours if cls is not pl.LightningDataModule)


def test_arguments_are_those_of_the_schedule_and_of_dataclasses_too():
    names = arguments(degrain.models.training.VAEModule)
    assert {"budget", "validate_every", "learning_rate", "warmup", "decay", "net.encoder.widths"} <= set(names)


def test_the_nearest_name_is_suggested_with_its_place():
    places = {"width": "net.width", "budget": "budget"}
    assert nearest("widht", places) == "; did you mean `net.width`?"
    assert nearest("budget", places) == ""  # it is what was written
    assert nearest("colour", places) == ""


# --- text that looks like something else


@pytest.mark.parametrize("name", ["1e-4", "007", "null", "off", "~", "2024", "é"])
def test_a_name_survives_its_own_dump(parsed, tmp_path, name):
    cli = parsed("--name", name, "--project", name, "--data.cache", f"./{name}" if name in ("null", "~") else name)
    assert cli.folder == tmp_path / "runs" / name
    text = cli._parser("fit").dump(cli.config.fit, skip_none=False)
    path = tmp_path / "saved.yaml"
    path.write_text(text, encoding="utf-8")
    again = CLI(["fit", "-c", str(path)])
    assert again.folder == cli.folder and again.config.fit.project == name
    assert again.datamodule.cache == cli.datamodule.cache
    assert again.config.fit.as_dict() == cli.config.fit.as_dict() | {"config": again.config.fit.config}


def test_a_config_is_read_as_it_is_written(parsed, tmp_path):
    path = tmp_path / "more.yaml"
    path.write_text(
        "wandb: off\nname: 007\nmodel: {init_args: {learning_rate: 1e-4, budget: 1_000}}\n"
        "data: {init_args: {flip: no, noise: {hair: 5e-2}}}\n"
    )
    cli = parsed("-c", str(path), wandb="auto")
    assert cli.config.fit.wandb == "off" and cli.folder.name == "007"
    assert cli.model.schedule.learning_rate == 1e-4 and cli.model.schedule.budget == 1000
    assert cli.datamodule.flip is False


# --- threads


def test_the_threads_are_said_and_a_run_that_is_gone_on_with_names_its_own(tmp_path, capsys):
    folder = tiny.run(tmp_path, "vae", "--model.budget", "8", "--threads", "2")
    assert "threads: 2 (--threads)" in capsys.readouterr().out.splitlines()[:2]
    assert torch.get_num_threads() == tiny.checkpoint(folder)["degrain"]["threads"] == 2
    torch.set_num_threads(1)
    tiny.run(tmp_path, "vae", "--ckpt_path", "last", "--model.budget", "16")
    assert "the run had 2, and results now differ in their last bits; --threads 2 keeps" in capsys.readouterr().out
    assert "must be from 1 to 1024" in tiny.fit_error(capsys, tmp_path / "vae.yaml", "--name", "x", "--threads", "0")
    assert not (tmp_path / "runs/x").exists()


ALL = ["fit", "validate", "test"]
PARSERS = {"fit": ["fit"], "test -c fit": ["test"], "": ALL, "--help": ALL, "tset": ALL, "--config c.yaml fit": ALL}


@pytest.mark.parametrize("line", PARSERS)
def test_a_line_that_begins_with_a_subcommand_has_its_parser_alone(line):
    cli = CLI.__new__(CLI)
    cli.line = line.split()
    assert list(cli.subcommands()) == PARSERS[line]


@pytest.mark.parametrize("word", ["tset", "predict"])
def test_a_wrong_subcommand_is_told_all_right_ones(capsys, word):
    said = tiny.error_of(capsys, lambda: train.main([word, "-c", "c.yaml"]))
    assert "invalid choice" in said and word in said and all(right in said for right in ALL)
